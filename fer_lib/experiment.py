"""An experiment: every setting that can change a number, as flat scalars. They are the training notebook's parameters.

Defaults are the paper's setting (section 4.2) with the choices of the README's table "where the paper leaves a choice".
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import yaml

from fer_lib import methods

# Raised by hand when a change of code or of a default alters numbers: older records are then other experiments.
# 2: on CUDA steps are recorded, in channels_last, and AutoReLU is fused, which all rounds differently.
SEMANTICS = 2


class ParameterError(ValueError):
    """A setting that can't be used; its one sentence names the setting, the value and what is allowed."""

    def __init__(self, sentence: str):                  # on one line whatever the value, as a terminal can show it
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence alone, not the calls that led to it."""
        return [f"{type(self).__name__}: {self}"]


def _setting(default, help: str, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf,
             part: str = ""):
    """A field with its meaning and range (low <= value <= high). `part` groups fields in notebooks and tables."""
    return field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high, part=part))


@dataclass(frozen=True)
class Experiment:
    """One training run. Raises ParameterError for a wrong type, an unknown choice or a value out of range.

    The first part says where and how it runs and does not enter the id; all else does.
    """

    study: str = _setting("scratch", "folder of the run's record, below runs/", part="place")
    name: str = _setting("", "name of the arm in tables; empty: the method's", part="place")
    data: str = _setting("synthetic", "a packed data set: a name below packed/, or a path", part="place")
    device: str = _setting("auto", "auto (CUDA where there is one), cpu, cuda or cuda:N", part="place")
    threads: int = _setting(1, "CPU threads; another number rounds differently", low=1, high=1024, part="place")
    deterministic: bool = _setting(False, "on CUDA: only deterministic kernels (slower)", part="place")
    compile_step: str = _setting("auto", "on CUDA, torch.compile: on, off, or auto (for runs of ten minutes or more)",
                                 ("auto", "on", "off"), part="place")
    image_place: str = _setting("auto", "on CUDA, where training images lie: device, disk (they stream), or auto "
                                "(device where they fit)", ("auto", "device", "disk"), part="place")
    checkpoint_seconds: float = _setting(60., "seconds between checkpoints, longer where they take long; 0: each block",
                                         low=0., part="place")
    live: str = _setting("auto", "live view: auto (where somebody looks), on or off", ("auto", "on", "off"),
                         part="place")
    refresh_seconds: float = _setting(.5, "seconds between updates of the live view", low=.05, high=60., part="place")
    watch_channel: int = _setting(0, "the channel whose own w is recorded at each step", low=0, part="place")

    method: str = _setting("baseline", f"{', '.join(methods.METHODS)}, or several joined by +", part="method")
    seed: int = _setting(0, "initial weights, batch order, augmentation and noise, a stream each", low=0, part="method")

    backbone: str = _setting("resnet18", "resnet18, resnet34 or resnet50", ("resnet18", "resnet34", "resnet50"),
                             part="model")
    stem: str = _setting("torchvision", "torchvision (7x7/2 and max-pool) or small (3x3/1)", ("torchvision", "small"),
                         part="model")
    width: float = _setting(1., "multiplier of all channel counts; 1 means 64 to 512", low=.01, high=8., part="model")
    share_activations: bool = _setting(False, "one activation object a block, as torchvision has it", part="model")

    image_size: int = _setting(0, "pixels a side; 0: the data's own size", low=0, high=1024, part="data")
    augment: str = _setting("none", "none, or flip, affine, crop, erasing joined by +", part="data")
    labels: str = _setting("hard", "hard, soft, or sampled from the soft labels at each presentation",
                           ("hard", "soft", "sampled"), part="data")
    balance: str = _setting("none", "none, loss (weights 1/frequency) or sampler (classes equally often)",
                            ("none", "loss", "sampler"), part="data")
    train_share: float = _setting(1., "share of the training split that is used, drawn by seed, class by class",
                                  low=1e-6, high=1., part="data")

    epochs: int = _setting(30, "passes over the training split", low=1, high=100_000, part="training")
    batch_size: int = _setting(64, "images a step; the last partial batch is dropped", low=1, high=65_536,
                               part="training")
    optimizer: str = _setting("adam", "adam (coupled L2), adamw (decoupled) or sgd", ("adam", "adamw", "sgd"),
                              part="training")
    lr: float = _setting(1e-4, "learning rate", low=0., high=1e3, part="training")
    weight_decay: float = _setting(1e-4, "weight decay", low=0., high=1e3, part="training")
    decay: str = _setting("all", "parameters that decay: all, or matrices (none that are one-dimensional)",
                          ("all", "matrices"), part="training")
    beta1: float = _setting(.9, "Adam's first decay rate", low=0., high=.9999999, part="training")
    beta2: float = _setting(.999, "Adam's second decay rate", low=0., high=.9999999, part="training")
    eps: float = _setting(1e-8, "Adam's epsilon", low=0., high=1., part="training")
    momentum: float = _setting(.9, "SGD's momentum", low=0., high=.9999999, part="training")
    schedule: str = _setting("constant", "learning rate: constant, cosine, step, plateau or restarts (cosine, again)",
                             ("constant", "cosine", "step", "plateau", "restarts"), part="training")
    schedule_epochs: int = _setting(10, "step: epochs between cuts; plateau: epochs without a better validation loss; "
                                    "restarts: epochs of each cosine", low=1, high=100_000, part="training")
    schedule_factor: float = _setting(.1, "step, plateau: what a cut multiplies the learning rate by", low=0., high=1.,
                                      part="training")
    label_smoothing: float = _setting(0., "share of the target spread over all classes", low=0., high=1.,
                                      part="training")
    precision: str = _setting("auto", "auto (fp32 on CPU, TF32 on CUDA), fp32, tf32, bf16 or fp64",
                              ("auto", "fp32", "tf32", "bf16", "fp64"), part="training")

    dropout_p: float = _setting(.5, "dropout: share that is zeroed", low=0., high=.999999, part="dropout")
    dropout_site: str = _setting("act1", "dropout: where, after the activation; head is before the classifier",
                                 part="dropout")
    dropout_unit: str = _setting("element", "dropout: element or channel", ("element", "channel"), part="dropout")

    flip_interval: int = _setting(5, "Algorithm 1's interval T", low=1, part="flips")
    flip_interval_unit: str = _setting("epoch", "what Algorithm 1's step counts: epoch or step", ("epoch", "step"),
                                       part="flips")
    flip_site: str = _setting("act1", "where features are flipped", part="flips")
    flip_position: str = _setting("before_relu", "before_relu (between BN and ReLU) or after_relu",
                                  ("before_relu", "after_relu"), part="flips")
    flip_p: float = _setting(.1, "random_flip: chance of the sign -, at each step", low=0., high=1., part="flips")
    flip_unit: str = _setting("channel", "random_flip: channel or batch", ("channel", "batch"), part="flips")

    w_site: str = _setting("act1", "where AutoReLU replaces ReLU", part="dynamic")
    w0: float = _setting(.1, "initial w, in (0, 1)", part="dynamic")
    cliff: float = _setting(6., "CliffReLU's constant C; inf: no cut", low=1e-30, part="dynamic")
    w_shape: str = _setting("channel", "one w a channel, a scalar a site, or one an element",
                            ("channel", "scalar", "element"), part="dynamic")
    w_mean: str = _setting("model", "mean of w over: model (all elements), model_of_sites, site or none",
                           ("model", "model_of_sites", "site", "none"), part="dynamic")
    w_average_moments: bool = _setting(False, "average Adam's moments of w as w is", part="dynamic")
    w_eval: str = _setting("shared", "evaluate with the shared w of the last training forward, or the raw w",
                           ("shared", "raw"), part="dynamic")
    divide_by: str = _setting("abs", "eq. 2 divides by abs(w) (abs) or by w (signed)", ("abs", "signed"),
                              part="dynamic")
    w_gradient: str = _setting("literal", "gradient of w: literal (autograd), exact (zero) or modelled",
                               ("literal", "exact", "modelled"), part="dynamic")
    w_noise_scale: float = _setting(2e-10, "modelled gradient: N(0,1) * this / max(abs(w), 1e-8)", low=0.,
                                    part="dynamic")

    noise_sd: float = _setting(.3, "gaussian_noise: standard deviation", low=0., high=1e3, part="controls")
    noise_site: str = _setting("act1", "gaussian_noise: where, after the activation", part="controls")
    shrink: float = _setting(.6, "shrink_perturb: what weights are multiplied by at each toggle", low=0., high=1.,
                             part="controls")
    perturb: float = _setting(.01, "shrink_perturb: share of a fresh initialisation that is added", low=0., high=1e3,
                              part="controls")
    shake_p: float = _setting(.5, "shakedrop: chance that the last block stays as it is; others fall linearly from 1",
                              low=0., high=1., part="controls")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        try:
            object.__setattr__(self, "method", methods.canonical_name(self.method))
            methods.build_method(self.method, dataclasses.asdict(self))
        except ValueError as error:
            raise ParameterError(str(error)) from None
        object.__setattr__(self, "augment", "+".join(check_augment(self.augment)) or "none")
        for key in ("study", "name"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", getattr(self, key) or "x"):
                raise ParameterError(f"{key} '{getattr(self, key)}' becomes a folder's name: use letters, digits, "
                                     "'.', '_', '+' and '-' only, 80 at most")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ParameterError(f"unknown device '{self.device}' (choose auto, cpu, cuda or cuda:N)")
        if not self.study:
            raise ParameterError("study is empty: it names the folder of the run's record")

    @property
    def label(self) -> str:
        """The arm's name in tables and figures."""
        return self.name or self.method

    def settings(self) -> dict[str, object]:
        """The fields that enter the id; those that this run does not read are at their defaults."""
        used = _used_fields(self)
        return {f.name: getattr(self, f.name) if f.name in used else f.default for f in dataclasses.fields(self)
                if f.metadata["part"] != "place"}

    def id(self, data_hash: str) -> str:
        """10 hexadecimal digits of a hash over the settings, the data's content hash and the semantics version.

        A setting at its default stays out of the hash, so that a setting added later leaves the ids of older records as
        they are. A default that changes needs a new semantics version.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        chosen = {name: value for name, value in self.settings().items() if value != defaults[name]}
        text = json.dumps([SEMANTICS, data_hash, chosen], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        return cls.from_mapping(json.loads(text))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "Experiment":
        """Raises ParameterError for a name that is no field, with the nearest one that is."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean '{near[0]}'?" if near else "the parameters are the fields of fer_lib.Experiment"
                raise ParameterError(f"unknown parameter '{key}': {hint}")
        return cls(**values)

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, object]) -> "Experiment":
        """The experiment of a notebook's parameters cell and of the cell papermill injects; pass `globals()`.

        Both cells begin with "# Parameters". Names are read from their text (papermill itself lets a misspelt name
        pass), values from the namespace. Where the kernel keeps no history of cells (under nbval), every plain value
        that the namespace holds by then is a parameter.
        """
        cells = [c for c in namespace.get("In", []) if c.lstrip().startswith("# Parameters")]
        names = {name for cell in cells for name in _assigned_names(cell)}
        if not any(namespace.get("In", [])):
            names = {k for k, v in namespace.items() if not k.startswith("_") and isinstance(v, str | int | float)}
        if not names:
            raise ParameterError("no cell beginning with '# Parameters' has run: run the notebook from its top")
        return cls.from_mapping({name: namespace[name] for name in names if name in namespace})


def _assigned_names(cell: str) -> list[str]:
    names = []
    for node in ast.parse(cell).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(
            node, ast.AnnAssign) else []
        names += [t.id for t in targets if isinstance(t, ast.Name)]
    return names


def as_number(name: str, value: object) -> object:
    """YAML 1.1 reads 1e-4 as a text; where the field is a number, so is the value."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Experiment)}
    if kinds.get(name) is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def settings_of(pairs: Iterable[str]) -> dict[str, object]:
    """The settings of texts such as "lr=1e-3". Raises ParameterError for what is none."""
    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ParameterError(f"--set takes name=value, not '{pair}'")
        try:
            changes[key] = as_number(key, yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):            # a date or number that can't be, too, and depth
            raise ParameterError(f"--set {key}: {shown(value)} is no value in YAML") from None
    return changes


def shown(value: object) -> str:
    """The value in a sentence: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:                                  # Python writes no whole number of more than 4300 digits
        return f"a whole number of more than {sys.get_int_max_str_digits()} digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _checked(f: dataclasses.Field, value: object) -> object:
    """The value in the field's type, or ParameterError."""
    kind, rule = type(f.default), f.metadata
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if kind is float and value in ("inf", "Infinity"):              # JSON, YAML and the command line can't say inf
        value = math.inf
    if type(value) is not kind:
        want = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}[kind]
        raise ParameterError(f"{f.name} is {want}, not {shown(value)} ({rule['help']})")
    if rule["choices"] and value not in rule["choices"]:
        near = difflib.get_close_matches(value.lower(), rule["choices"], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ParameterError(f"unknown {f.name} {shown(value)} (choose one of {', '.join(rule['choices'])}{hint})")
    if kind in (int, float) and not rule["low"] <= value <= rule["high"]:
        raise ParameterError(f"{f.name} = {shown(value)} is out of range {rule['low']:g} to {rule['high']:g} "
                             f"({rule['help']})")
    return value


AUGMENTATIONS = ("flip", "affine", "crop", "erasing")


def check_augment(text: str) -> list[str]:
    """The augmentations that the text names, in the order they act. Raises ParameterError for an unknown one."""
    terms = [] if text == "none" else [t.strip() for t in text.split("+")]
    for term in terms:
        if term not in AUGMENTATIONS:
            raise ParameterError(f"unknown augment '{term}' (choose none, or {', '.join(AUGMENTATIONS)} joined by +)")
    return [a for a in AUGMENTATIONS if a in terms]


def _used_fields(e: Experiment) -> set[str]:
    """The fields that can change a number of this run."""
    optional = {"beta1": e.optimizer != "sgd", "beta2": e.optimizer != "sgd", "eps": e.optimizer != "sgd",
                "momentum": e.optimizer == "sgd",
                "schedule_epochs": e.schedule in ("step", "plateau", "restarts"),
                "schedule_factor": e.schedule in ("step", "plateau")}
    of_method = methods.fields(e.method)
    if e.w_gradient != "modelled":
        of_method -= {"w_noise_scale"}
    return {f.name for f in dataclasses.fields(e)
            if optional.get(f.name, f.metadata["part"] in ("method", "model", "data", "training"))
            or f.name in of_method}


def parameters_cell(values: Experiment | None = None) -> str:
    """The text of a notebook's parameters cell: one typed, commented literal a line, exactly the fields."""
    values, lines, part = values or Experiment(), ["# Parameters: each line is a setting of fer_lib.Experiment."], ""
    for f in dataclasses.fields(values):
        if f.metadata["part"] != part:
            part = f.metadata["part"]
            lines.append("")
        value = getattr(values, f.name)
        literal = "float('inf')" if value == math.inf else repr(value)
        lines.append(f"{f.name}: {f.type if isinstance(f.type, str) else f.type.__name__} = {literal}"
                     f"  # {f.metadata['help']}")
    return "\n".join(lines)


def differences(e: Experiment) -> dict[str, tuple[object, object]]:
    """The settings in use that differ from the defaults (the paper's setting): name -> (here, default)."""
    return {f.name: (getattr(e, f.name), f.default) for f in dataclasses.fields(e)
            if f.name in _used_fields(e) - {"method", "seed"} and getattr(e, f.name) != f.default}
