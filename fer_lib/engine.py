"""Training: many runs through one call, recorded on the device, read back in blocks of steps.

    for block in train([(experiment, data), ...], device):
        ...                                             # leaving the loop stops training

Nothing waits for the device within a block: losses, w and signs go to buffers there and come back together. Runs have
a model, an optimiser and random streams each, so a run in company equals the same run alone.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR

from fer_lib.data import Augmentation, DeviceSplit, PackedDataset, epoch_order, sampled_labels, stream
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.methods import Method, build_method
from fer_lib.metrics import Scores, confusion_matrix, scores
from fer_lib.models import build_model

BLOCK_STEPS = 32                # steps between two readings of the device's buffers
BUFFER_BYTES = 64 * 2 ** 20     # of w and sign logs at most, a block: blocks get shorter where every element has a w
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """One pass over a split. mode: "trained" (signs of the last training forward) or "clean" (sign + everywhere)."""

    split: str
    mode: str
    scores: Scores


@dataclass(frozen=True)
class Block:
    """Consecutive steps of one run, `first_step` counting from 1; arrays hold a row a step.

    loss (S,); lr (S,); by site (S, sites): w_mean, w_sd, w_min, w_max, w_channel (after the optimiser step, before the
    re-initialisation; empty without w), turned_negative and turned_positive (share of the site's signs that changed
    since the forward before). At an epoch's end `evaluations` holds its scores and `train_loss` its mean loss.
    `state()` and `model()` read the learner at the block's end; they hold until the next block is asked for.
    """

    run: int
    experiment: Experiment
    first_step: int
    epoch: int
    steps_per_epoch: int
    sites: list[str]
    loss: np.ndarray
    lr: np.ndarray
    w: dict[str, np.ndarray]
    turned_negative: np.ndarray
    turned_positive: np.ndarray
    images: int
    seconds: float
    evaluations: list[Evaluation] = field(default_factory=list)
    train_loss: float = math.nan
    last: bool = False
    state: Callable[[], dict] = field(default=dict, repr=False)
    model: Callable[[], dict[str, Tensor]] = field(default=dict, repr=False)

    @property
    def last_step(self) -> int:
        return self.first_step + len(self.loss) - 1


class Stopped(KeyboardInterrupt):
    """Interrupt or termination, raised between two steps: everything is consistent and was handed out in blocks."""


def choose_device(name: str) -> torch.device:
    """The device of that name ("auto": CUDA where there is one). Raises ParameterError where it doesn't exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ParameterError(f"unknown device '{name}' (choose auto, cpu, cuda or cuda:N)") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"device '{name}' is not here: this machine has {torch.cuda.device_count()} CUDA devices "
                             "(choose auto or cpu)")
    return device


def check(e: Experiment, data: PackedDataset) -> None:
    """Raise ParameterError where the experiment can't run on the data, before anything is trained or written."""
    n = len(data.splits["train"])
    if e.batch_size > n:
        raise ParameterError(f"batch_size {e.batch_size} is larger than the {n} training images of "
                             f"'{data.path.name}': choose at most {n}")
    if e.labels != "hard" and "soft" not in data.splits["train"].samples:
        raise ParameterError(f"labels '{e.labels}' needs soft labels and '{data.path.name}' has none: use hard")
    if e.precision == "tf32" and choose_device(e.device).type != "cuda":
        raise ParameterError("precision 'tf32' needs a CUDA device: use fp32 or auto")
    try:
        with torch.device("meta"):
            model = _model(e, data)
            build_method(e.method, vars(e)).modify(model, _image(e, data))
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _image(e: Experiment, data: PackedDataset) -> tuple[int, int, int]:
    channels, height, width = data.image
    return (channels, e.image_size or height, e.image_size or width)


def _model(e: Experiment, data: PackedDataset) -> nn.Module:
    return build_model(e.backbone, len(data.classes), data.image[0], e.stem, e.width, e.share_activations)


class Learner:
    """One run: model, method, optimiser, data and buffers on one device."""

    def __init__(self, e: Experiment, data: PackedDataset, device: torch.device):
        check(e, data)
        self.e, self.data, self.device = e, data, device
        self.precision = Precision(e.precision, device)
        self.train_split, *rest = (DeviceSplit(data.splits[s], data.manifest, e, device, self.precision.dtype)
                                   for s in data.splits)
        self.held_out = dict(zip([s for s in data.splits if s != "train"], rest))
        with torch.random.fork_rng(devices=[]):         # initial weights: the same for every arm and device
            torch.manual_seed(stream(e.seed, "weights"))
            model = _model(e, data)
        self.method: Method = build_method(e.method, vars(e))
        changed = self.method.modify(model, _image(e, data))
        if changed == 0 and e.method != "baseline":
            raise ParameterError(f"method '{e.method}' changed no site of the network")
        self.model = model.to(device, self.precision.dtype)
        self.layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.model.to(memory_format=self.layout)        # on a CPU a fifth of the step's time
        self.optimizer = build_optimizer(e, self.model)
        self.scheduler = build_scheduler(e, self.optimizer)
        self.method.attach(self.optimizer, torch.Generator(device).manual_seed(stream(e.seed, "method")), e.seed)
        self.steps_per_epoch = len(self.train_split) // e.batch_size
        self.total_steps = self.steps_per_epoch * e.epochs
        self.step = 0                                   # steps taken
        self.epoch_losses: list[float] = []
        self.weight = _class_weights(self.train_split.labels, len(data.classes), self.precision.dtype) \
            if e.balance == "loss" else None
        self.log = Log(self.method, e.watch_channel, device)
        self.best = (-math.inf, 0, {})                  # (validation macro-F1, epoch, weights) of the chosen epoch
        self._drawn_epoch = 0

    @property
    def epoch(self) -> int:
        """Of the next step, from 1."""
        return self.step // self.steps_per_epoch + 1

    def draw_epoch(self) -> None:
        """All random choices of the epoch, drawn on the CPU."""
        if self._drawn_epoch == self.epoch:
            return
        order = epoch_order(self.e, self.train_split.labels.cpu(), self.epoch)
        self.augmentation = Augmentation(self.e, order, self.epoch, self.device)
        self.targets = self.train_split.labels[order.to(self.device)]
        if self.e.labels == "sampled":
            self.targets = sampled_labels(self.e, self.train_split.soft.cpu(), order, self.epoch).to(self.device)
        elif self.e.labels == "soft":
            self.targets = self.train_split.soft[order.to(self.device)].to(self.precision.dtype)
        self.order, self._drawn_epoch = order.to(self.train_split.images.device), self.epoch

    def train_step(self) -> Tensor:
        """One step; the loss stays on the device."""
        k = self.step % self.steps_per_epoch
        self.method.before_forward(self.step + 1, self.epoch)
        x = self.augmentation.apply(self.train_split.batch(self.order[k]), k).contiguous(memory_format=self.layout)
        with self.precision.autocast():
            logits = self.model(x)
        loss = F.cross_entropy(logits.to(self.precision.loss_dtype), self.targets[k], self.weight,
                               label_smoothing=self.e.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.method.after_step(self.step + 1, self.epoch)
        self.step += 1
        return loss.detach()

    def block(self, run: int, stopping: Callable[[], bool]) -> Block:
        """Up to BLOCK_STEPS steps of one epoch, with the evaluation where the epoch ends."""
        started, first, epoch = time.perf_counter(), self.step + 1, self.epoch
        self.draw_epoch()
        self.model.train()
        self.precision.apply()
        steps = min(BLOCK_STEPS, self.log.capacity, self.steps_per_epoch - self.step % self.steps_per_epoch)
        lr, losses = self.optimizer.param_groups[0]["lr"], []
        for _ in range(steps):
            losses.append(self.train_step())
            self.log.add()
            if stopping():
                break
        loss = torch.stack(losses).double().cpu().numpy()
        w, negative, positive = self.log.read()
        self.epoch_losses += loss.tolist()
        evaluations, train_loss = [], math.nan
        if self.step % self.steps_per_epoch == 0:
            train_loss, self.epoch_losses = float(np.mean(self.epoch_losses)), []
            evaluations = self.evaluate()
            self._end_epoch(evaluations, epoch)
        return Block(run, self.e, first, epoch, self.steps_per_epoch, self.log.sites, loss,
                     np.full(len(loss), lr), w, negative, positive, len(loss) * self.e.batch_size,
                     time.perf_counter() - started, evaluations, train_loss, self.step >= self.total_steps,
                     self.state, self.weights)

    def _end_epoch(self, evaluations: list[Evaluation], epoch: int) -> None:
        chosen = next(v.scores for v in evaluations if v.split == "val" and v.mode == "trained")
        if chosen.macro_f1 > self.best[0]:
            self.best = (chosen.macro_f1, epoch, {k: v.clone() for k, v in self.model.state_dict().items()})
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(chosen.loss)
        else:
            self.scheduler.step()

    @torch.no_grad()
    def evaluate(self) -> list[Evaluation]:
        """Scores of val and test as trained and clean; where both are the same network it is evaluated once."""
        self.model.eval()
        with self.method.as_trained() as special:
            trained = {name: self._pass(split) for name, split in self.held_out.items()}
        with self.method.clean() as differs:
            clean = trained
            if differs or special:
                clean = {name: self._pass(split) for name, split in self.held_out.items()}
        self.model.train()
        return [Evaluation(name, mode, s) for mode, found in (("trained", trained), ("clean", clean))
                for name, s in found.items()]

    def _pass(self, split: DeviceSplit) -> Scores:
        classes = len(self.data.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(split), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            with self.precision.autocast():
                logits = self.model(split.batch(rows).contiguous(memory_format=self.layout))
            logits = logits.to(self.precision.loss_dtype)
            label = split.labels[rows]
            total += F.cross_entropy(logits, label, reduction="sum")
            confusion += confusion_matrix(logits.argmax(1), label, classes)
        return scores(confusion.cpu().numpy(), float(total) / len(split))

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def state(self) -> dict:
        """Everything that the steps still to come depend on."""
        return {"step": self.step, "epoch_losses": self.epoch_losses, "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                "method": self.method.state(), "signs": self.log.previous,
                "best": {"macro_f1": self.best[0], "epoch": self.best[1], "weights": self.best[2]}}

    def load_state(self, state: dict) -> None:
        """Take up where `state()` was read, to the same bits."""
        self.step, self.epoch_losses = state["step"], list(state["epoch_losses"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for p, moments in self.optimizer.state.items():         # fused kernels want the parameter's own memory layout
            moments |= {k: torch.empty_like(p).copy_(v) for k, v in moments.items() if v.shape == p.shape}
        self.scheduler.load_state_dict(state["scheduler"])
        self.method.load_state(state["method"])
        self.log.previous = state["signs"].to(self.device)
        best = state["best"]
        self.best = (best["macro_f1"], best["epoch"], {k: v.to(self.device) for k, v in best["weights"].items()})


class Log:
    """Device-side buffers of w and signs: one row a step, read back together."""

    def __init__(self, method: Method, channel: int, device: torch.device):
        self.method, self.channel = method, channel
        signs, weights = method.signs(), method.weights()
        self.sites = list(signs)
        self.sign_sizes, self.w_sizes = [s.numel() for s in signs.values()], [w.numel() for w in weights.values()]
        self.capacity = max(1, BUFFER_BYTES // (4 * max(1, sum(self.sign_sizes) + sum(self.w_sizes))))
        self.previous = torch.ones(sum(self.sign_sizes), dtype=torch.bool, device=device)     # before step 1: all +
        self.positive: list[Tensor] = []
        self.w: list[Tensor] = []

    def add(self) -> None:
        """Copy what the method has now; call after each step."""
        if self.sites:
            signs = torch.cat([s.detach().reshape(-1) for s in self.method.signs().values()])
            self.positive.append((signs >= 0).to(self.previous.device))
        if self.w_sizes:
            self.w.append(torch.cat([w.reshape(-1) for w in self.method.weights().values()]))

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(w statistics by name, turned negative, turned positive), each (steps, sites); the buffers are empty then."""
        return self._read_w(), *self._read_signs()

    def _read_signs(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.sites:
            return np.zeros((0, 0)), np.zeros((0, 0))
        now = torch.stack(self.positive)
        before = torch.cat([self.previous[None], now[:-1]])
        share = lambda changed: torch.stack(                                                # noqa: E731
            [part.float().mean(1) for part in changed.split(self.sign_sizes, 1)], 1).cpu().numpy()
        self.previous, self.positive = now[-1].clone(), []
        return share(before & ~now), share(~before & now)

    def _read_w(self) -> dict[str, np.ndarray]:
        if not self.w_sizes:
            return {}
        flat = torch.stack(self.w).double().cpu().numpy()
        self.w = []
        # numpy reduces each row by itself, whatever the number of rows: the same bits wherever a block was cut
        parts = [np.ascontiguousarray(p) for p in np.split(flat, np.cumsum(self.w_sizes)[:-1], axis=1)]
        statistics = {"mean": lambda p: p.mean(1), "sd": lambda p: p.std(1), "min": lambda p: p.min(1),
                      "max": lambda p: p.max(1), "channel": lambda p: p[:, min(self.channel, p.shape[1] - 1)]}
        return {name: np.stack([of(p) for p in parts], 1) for name, of in statistics.items()}


class Precision:
    """Arithmetic of a run: fp32, tf32 (CUDA's matrix units), bf16 (autocast; AutoReLU stays in fp32) or fp64."""

    def __init__(self, name: str, device: torch.device):
        self.name = ("tf32" if device.type == "cuda" else "fp32") if name == "auto" else name
        self.device = device
        self.dtype = torch.float64 if self.name == "fp64" else torch.float32
        self.loss_dtype = self.dtype

    def apply(self) -> None:
        """Set torch's switches for the steps that follow."""
        tf32 = self.name == "tf32"
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32, tf32

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.name == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def build_optimizer(e: Experiment, model: nn.Module) -> Optimizer:
    """Adam (L2 coupled: the gradient gets weight_decay * w), AdamW (decoupled) or SGD.

    With decay "matrices", parameters with at most one dimension larger than 1 (biases, BN's, w per channel) have none.
    """
    parameters = list(model.parameters())
    groups = [{"params": parameters, "weight_decay": e.weight_decay}]
    if e.decay == "matrices":
        flat = {id(p) for p in parameters if sum(n > 1 for n in p.shape) <= 1}
        groups = [{"params": [p for p in parameters if id(p) not in flat], "weight_decay": e.weight_decay},
                  {"params": [p for p in parameters if id(p) in flat], "weight_decay": 0.}]
    if e.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=e.lr, momentum=e.momentum, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[e.optimizer]
    return kind(groups, lr=e.lr, betas=(e.beta1, e.beta2), eps=e.eps, fused=True)


def build_scheduler(e: Experiment, optimizer: Optimizer) -> LRScheduler:
    """torch's scheduler, stepped at each epoch's end. Cosine ends at 0 after the last epoch."""
    if e.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=e.epochs)
    if e.schedule == "step":
        return StepLR(optimizer, e.schedule_epochs, e.schedule_factor)
    if e.schedule == "plateau":
        if e.schedule_factor >= 1:
            raise ParameterError("schedule_factor must be below 1 for the plateau schedule")
        return ReduceLROnPlateau(optimizer, factor=e.schedule_factor, patience=e.schedule_epochs)
    return ConstantLR(optimizer, factor=1., total_iters=0)


def _class_weights(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """1 / frequency, scaled so that the mean weight of the training images is 1. Shape (K,)."""
    counts = torch.bincount(labels, minlength=classes).to(dtype)
    return torch.where(counts > 0, len(labels) / (counts.clamp_min(1) * (counts > 0).sum()), 0)


def train(runs: Sequence[tuple[Experiment, PackedDataset]], device: torch.device,
          states: Sequence[dict | None] | None = None) -> Iterator[Block]:
    """Train the experiments together, in turn, a block at a time; `states` (from Block.state) takes them up again.

    Ctrl-C and SIGTERM end the block at the next step; it is handed out, then Stopped is raised. Leaving the loop is a
    clean stop as well. Device settings are restored at the end. Raises ParameterError for settings that can't run.
    """
    states = states or [None] * len(runs)
    with _settings(runs, device), _deferred_signals() as stopping:
        learners = []
        for (e, data), state in zip(runs, states, strict=True):
            learners.append(Learner(e, data, device))
            if state:
                learners[-1].load_state(state)
        going = [k for k, learner in enumerate(learners) if learner.step < learner.total_steps]
        while going:
            for k in list(going):
                yield learners[k].block(k, stopping)
                if stopping():
                    raise Stopped
                if learners[k].step >= learners[k].total_steps:
                    going.remove(k)


@contextlib.contextmanager
def _settings(runs: Sequence[tuple[Experiment, PackedDataset]], device: torch.device) -> Iterator[None]:
    """Threads, determinism and TF32 as the runs ask, and as they were afterwards."""
    threads = {e.threads for e, _ in runs}
    deterministic = {e.deterministic for e, _ in runs}
    if len(threads) > 1 or len(deterministic) > 1:
        raise ParameterError("runs that train together share the process: give them the same threads and deterministic")
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
              torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.set_num_threads(threads.pop() if threads else before[0])
    if device.type == "cuda" and deterministic == {True}:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = deterministic != {True}
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3:]


@contextlib.contextmanager
def _deferred_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set a flag that is read between steps; a second SIGINT interrupts at once.

    Only in the main thread, where Python allows handlers; elsewhere signals act as they did.
    """
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
