"""Training: many runs through one call, recorded on the device, read back in blocks of steps.

    for block in train([(experiment, data), ...], device):
        ...                                             # leaving the loop stops training

Nothing waits for the device within a block: losses, w and signs go to buffers there and come back together. Runs have
a model, an optimiser and random streams each, so a run in company equals the same run alone. Where a block is cut
changes no bit, so a reader can watch and steer (fer_lib.steering) between any two steps.

On CUDA a step is recorded once and replayed (fer_lib.capture), and the runs of one call share the device, a stream
each. What can change between two steps lies where a replay finds it: the step's number, the epoch's order, augmentation
and targets, the learning rate, the signs. `Block.eager` says why a run could not be recorded.

One run can be spread over processes (fer_lib.world): each takes part in every step and comes to the same state.
"""

import contextlib
import functools
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    ReduceLROnPlateau,
    StepLR,
)

from fer_lib.capture import Lane
from fer_lib.compilation import check_compile, compiled, compiles, is_compiler_error
from fer_lib.data import (
    Augmentation,
    DeviceSplit,
    PackedDataset,
    at,
    epoch_order,
    sampled_labels,
    stream,
    used_counts,
    used_rows,
)
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.late_imports import unmarked
from fer_lib.losses import cross_entropy
from fer_lib.methods import Method, build_method
from fer_lib.metrics import Scores, confusion_matrix, scores
from fer_lib.models import Site, build_model, load_weights, sites
from fer_lib.steering import Command, Event, Steering
from fer_lib.steplog import W_STATISTICS
from fer_lib.streaming import ImageRing
from fer_lib.world import ALONE, World

BLOCK_STEPS = 32                # steps between two readings of the device's buffers, at most
REPLAYED_STEPS = 512            # the same where steps are replayed, which take a fraction of the time
BLOCK_SECONDS = .25             # and seconds for each run, so that slow steps can be watched
BUFFER_BYTES = 64 * 2 ** 20     # of w and sign logs at most, a block: blocks get shorter where every element has a w
EVALUATION_BATCH = 512
RECORDED_BATCHES = 64           # of an evaluation at most: a longer one is not bound by its launches
NARROW = .01                    # a width for questions about a network whose answer is the same at all widths
LEAVE = threading.Event()       # set by any thread: what this process trains stops after the step, as at Ctrl-C


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
    re-initialisation; empty without w), negative (share of the site's signs that are - in this forward),
    turned_negative and turned_positive (share that changed since the forward before). At an epoch's end `evaluations`
    holds its scores and `train_loss` its mean loss. `events`: what steering did; such a block holds no step. memory:
    bytes, the device's peak (CPU: the process's). `state()`, `model()` and `network` show the learner at the block's
    end; they hold until the next block is asked for. eager: why the run's steps are not recorded and replayed, or not
    compiled where they should be; empty where they are, and on a CPU. broken: the first of the model's tensors that
    holds a NaN or inf at the block's end. Runs that are replayed advance together: the
    first of their blocks holds all of them in `together`, the others none.
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
    negative: np.ndarray
    turned_negative: np.ndarray
    turned_positive: np.ndarray
    images: int
    seconds: float
    memory: int = 0
    events: list[Event] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    train_loss: float = math.nan
    last: bool = False
    eager: str = ""
    broken: str = ""
    together: "list[Block]" = field(default_factory=list, repr=False)
    state: Callable[[], dict] = field(default=dict, repr=False)
    model: Callable[[], dict[str, Tensor]] = field(default=dict, repr=False)
    network: "Learner | None" = field(default=None, repr=False)

    @property
    def last_step(self) -> int:
        return self.first_step + len(self.loss) - 1


class Stopped(KeyboardInterrupt):
    """Interrupt, termination or a reader's stop, raised between two steps: everything was handed out in blocks.

    exit_code: what a command ends with, 128 + the signal. 143 tells a cluster's SIGTERM from Ctrl-C and a stop, 130.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__("training was stopped after a whole step: its record and checkpoint are kept, run the same "
                         "cell or command again to go on")
        self.exit_code = 128 + number

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


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


def check(e: Experiment, data: PackedDataset, world: World = ALONE) -> None:
    """Raise ParameterError where the experiment can't run on the data, before anything is trained or written."""
    if e.batch_size % world.size:
        raise ParameterError(f"batch_size {e.batch_size} can't be divided among {world.size} processes: choose a "
                             f"multiple of {world.size}")
    n = used_counts(e, data)["train"]
    if e.batch_size > n:
        of = f" (train_share {e.train_share:g})" if e.train_share < 1 else ""
        raise ParameterError(f"batch_size {e.batch_size} is larger than the {n} training images of "
                             f"'{data.path.name}'{of}: choose at most {n}")
    if e.labels != "hard" and "soft" not in data.splits["train"].samples:
        raise ParameterError(f"labels '{e.labels}' needs soft labels and '{data.path.name}' has none: use hard")
    if e.precision == "tf32" and choose_device(e.device).type != "cuda":
        raise ParameterError("precision 'tf32' needs a CUDA device: use fp32 or auto")
    check_compile(e)
    _check_network(replace(e, seed=0, study="scratch", name="", data="synthetic"), len(data.classes), tuple(data.image))


@functools.lru_cache(maxsize=1024)                      # the same for all seeds of an arm
def _check_network(e: Experiment, classes: int, image: tuple[int, int, int]) -> None:
    """On a network as narrow as can be: what sites it has and what fits there does not depend on the width."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = _model(replace(e, width=min(e.width, NARROW)), classes, image)
            if e.batch_size == 1:
                _check_norms(model, _image(e, image))
            build_method(e.method, vars(e)).modify(model, _image(e, image))
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _check_norms(model: nn.Module, image: tuple[int, int, int]) -> None:
    """Batch normalisation can't train on a single value a channel."""
    try:
        model.train()(torch.empty(1, *image))
    except ValueError:
        channels, height, width = image
        raise ParameterError(f"batch_size 1 can't train on images of {height} x {width} pixels: batch normalisation "
                             "needs more than one value, and the last maps are 1 x 1; choose at least 2") from None


def _image(e: Experiment, image: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = image
    return (channels, e.image_size or height, e.image_size or width)


def _model(e: Experiment, classes: int, image: tuple[int, int, int]) -> nn.Module:
    return build_model(e.backbone, classes, image[0], e.stem, e.width, e.share_activations)


class Learner:
    """One run: model, method, optimiser, data and buffers on one device.

    capture: record the step where the device can. images: those that runs beside this one have on the device already.
    world: the processes that the run is spread over. Each has a Learner, and all come to the same bits; w's literal
    gradient, which is rounding error, is then the mean of the ranks' and of another size than one process's.
    """

    def __init__(self, e: Experiment, data: PackedDataset, device: torch.device, steering: Steering | None = None,
                 capture: bool = True, images: dict[int, Tensor] | None = None, world: World = ALONE):
        check(e, data, world)
        self.e, self.data, self.device, self.world = e, data, device, world
        self.steering = steering or Steering()
        self.precision = Precision(e.precision, device)
        self.train_split, *rest = (DeviceSplit(data.splits[s], data.manifest, e, device, self.precision.dtype,
                                               images) for s in data.splits)
        self.held_out = dict(zip([s for s in data.splits if s != "train"], rest))
        with torch.random.fork_rng(devices=[]):         # initial weights: the same for every arm and device
            torch.manual_seed(stream(e.seed, "weights"))
            model = _model(e, len(data.classes), data.image)
        self.method: Method = build_method(e.method, vars(e))
        changed = self.method.modify(model, _image(e, data.image))
        if changed == 0 and e.method != "baseline":
            raise ParameterError(f"method '{e.method}' changed no site of the network")
        self.model = model.to(device, self.precision.dtype)
        self.layout = fast_layout(self.model, device)
        self.model.to(memory_format=self.layout)
        world.connect_norms(self.model, device)
        self.optimizer = build_optimizer(e, self.model)
        self.scheduler = build_scheduler(e, self.optimizer)
        self.method.attach(self.optimizer, torch.Generator(device).manual_seed(stream(e.seed, "method")), e.seed)
        self.method.spread(world)
        used = used_rows(e, self.train_split.labels.cpu())
        self.steps_per_epoch = len(used) // e.batch_size
        self.total_steps = self.steps_per_epoch * e.epochs
        fast = capture and world.size == 1 and compiles(e, self.total_steps, _image(e, data.image), device)
        self.loss = compiled(Learner._loss) if fast else Learner._loss
        self.step = 0                                   # steps taken
        self.epoch_losses: list[float] = []
        self.weight = _class_weights(self.train_split.labels[used.to(device)], len(data.classes),
                                     self.precision.dtype) if e.balance == "loss" else None
        self.forced: dict[str, float] = {}              # flips by hand: site -> sign
        self.lane = Lane(device, f"the run is spread over {world.size} processes" if world.size > 1 else
                         "" if capture else "capture is switched off")
        with self.lane.entered():
            self.network = world.connect_gradients(self.model)
        self.block_steps = REPLAYED_STEPS if self.lane.captures else BLOCK_STEPS
        self.log = Log(self.method, self.steerable(), e.watch_channel, device, self.precision.loss_dtype,
                       self.block_steps)
        self.ring = None if self.train_split.resident else ImageRing(
            self.train_split.images, e.batch_size // world.size, self.steps_per_epoch, device, self.lane.stream)
        self.best = (-math.inf, 0, {})                  # (validation macro-F1, epoch, weights) of the chosen epoch
        self.position = torch.zeros(1, dtype=torch.long, device=device)         # of the next step in its epoch
        # read by the fused optimisers from the device, in float32: for fp64 a changed rate records the step anew
        self.device_lr = [torch.zeros((), device=device) for _ in self.optimizer.param_groups] \
            if device.type == "cuda" and self.precision.dtype == torch.float32 else []
        self._drawn_epoch = 0
        self._trained: dict[str, tuple[Tensor, Tensor]] | None = None       # evaluations that were begun; clean: empty
        self._clean: dict[str, tuple[Tensor, Tensor]] | None = None         # where the network is the same
        self._pace = BLOCK_SECONDS                      # seconds a step takes, where a block's length is agreed
        self.whole = True                               # between two blocks: `state()` is that of the last one's end

    @property
    def epoch(self) -> int:
        """Of the next step, from 1."""
        return self.step // self.steps_per_epoch + 1

    def steerable(self) -> dict[str, Site]:
        """The sites whose sign is logged and can be flipped by hand: the method's, or each block's first activation."""
        own = self.method.signs()
        return {name: site for name, site in sites(self.model, "+".join(own) if own else "act1").items()}

    def draw_epoch(self) -> None:
        """All random choices of the epoch, drawn on the CPU; a captured step finds them in the last epoch's place."""
        if self._drawn_epoch == self.epoch:
            return
        order = epoch_order(self.e, self.train_split.labels.cpu(), self.epoch)
        own = self.world.part(self.e.batch_size)        # of each batch
        augmentation = Augmentation(self.e, order, self.epoch, self.device, own)
        targets = self.train_split.labels[order.to(self.device)]
        if self.e.labels == "sampled":
            targets = sampled_labels(self.e, self.train_split.soft.cpu(), order, self.epoch).to(self.device)
        elif self.e.labels == "soft":
            targets = self.train_split.soft[order.to(self.device)].to(self.precision.dtype)
        if self.world.size > 1:
            weights = torch.ones_like(order, device=self.device, dtype=self.precision.loss_dtype) \
                if self.weight is None or targets.is_floating_point() else self.weight[targets]
            self.divisors = weights.sum(1) / self.world.size
        targets, order = targets[:, own], order[:, own]
        if self.ring:
            self.ring.start(order, self.step % self.steps_per_epoch)
        order = order.to(self.device)
        if self._drawn_epoch and self.lane.captures:
            self.augmentation.renew(augmentation)
            self.targets.copy_(targets)
            self.order.copy_(order)
        else:
            self.augmentation, self.targets, self.order = augmentation, targets, order
        self.position.fill_(self.step % self.steps_per_epoch)
        self._drawn_epoch = self.epoch

    def train_step(self) -> Tensor:
        """One step, logged; the loss stays on the device, where the next step may overwrite it."""
        for part in self.method.parts():
            if part.on_host:
                part.before_forward(self.step + 1, self.epoch)
        if self.ring:
            self.ring.ready(self.step % self.steps_per_epoch)
        fixed = (tuple(self.forced), tuple(group["weight_decay"] for group in self.optimizer.param_groups),
                 tuple(group["lr"] for group in self.optimizer.param_groups if not self.device_lr))
        loss = self.lane.run("step", self._device_step, fixed, self.method.generators())
        for part in self.method.parts():
            if part.on_host:
                part.after_step(self.step + 1, self.epoch)
        self.log.add_from_host()
        self.step += 1
        return loss

    def _device_step(self) -> Tensor:
        """What a step does on the device: the part that is recorded."""
        on_device = [part for part in self.method.parts() if not part.on_host]
        for part in on_device:
            part.before_forward(self.step + 1, self.epoch)
        loss = self._chosen_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with self._device_settings():
            self.optimizer.step()
        for part in on_device:
            part.after_step(self.step + 1, self.epoch)
        self.log.add(loss.detach())
        self.position.add_(1)
        return loss.detach()

    def _chosen_loss(self) -> Tensor:
        """Compiled where that was decided and works."""
        try:
            return self.loss(self)
        except Exception as error:
            if self.loss is Learner._loss or not is_compiler_error(error):
                raise
            reason = f"torch.compile failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if self.e.compile_step == "on":
                raise ParameterError(f"{reason} (use compile_step off)") from error
            self.loss, self.lane.note = Learner._loss, reason
            return self.loss(self)

    def _loss(self) -> Tensor:
        """Of the network on the step's images: the part that can be compiled."""
        k = self.position
        x = self.train_split.normalised(self.ring.batch(k)) if self.ring else \
            self.train_split.batch(at(self.order, k))
        x = self.augmentation.apply(x, k).contiguous(memory_format=self.layout)
        with self.precision.autocast():
            logits = self.network(x)
        loss = cross_entropy(logits.to(self.precision.loss_dtype), at(self.targets, k), self.weight,
                             self.e.label_smoothing, "mean" if self.world.size == 1 else "sum")
        if self.world.size > 1:                         # so that the ranks' mean is the whole batch's (weighted) mean
            loss = loss / at(self.divisors, k)
        return loss

    @contextlib.contextmanager
    def _device_settings(self) -> Iterator[None]:
        """Within, the optimiser takes the learning rate from the device, and knows whether it is being recorded."""
        groups = self.optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
        for group, lr in zip(groups, self.device_lr):
            group["lr"] = lr
        if self.lane.captures and torch.cuda.is_current_stream_capturing():
            for group in groups:
                group |= {"capturable": True} if "capturable" in group else {}
        try:
            yield
        finally:
            for group, own in zip(groups, kept):
                group |= own

    def block(self, run: int, stopping: Callable[[], bool]) -> Block:
        """The run's next block, by itself."""
        return blocks_together([(run, self)], stopping)[0]

    def begin(self) -> int:
        """Do what steering asks for; the number of steps that the block takes at most: none where it did, or paused."""
        self._started, self._first, self._epoch = time.perf_counter(), self.step + 1, self.epoch
        self.whole = False
        self.lane.follow()
        with self.lane.entered():
            commands, most = self._plan()
            self.events = [event for command in commands for event in self.obey(command)]
            if self.steering.paused or self.events:     # events are told at once
                return 0
            self.draw_epoch()
            self.model.train()
            for lr, group in zip(self.device_lr, self.optimizer.param_groups):
                lr.fill_(group["lr"])
        return min(most, self.log.capacity, self.steps_per_epoch - self.step % self.steps_per_epoch)

    def _plan(self) -> tuple[list[Command], int]:
        """The commands to obey now, and the steps that may follow. In a world both are rank 0's, on every rank."""
        commands = self.steering.take()
        if self.world.size == 1:
            return commands, self.block_steps
        most = min(self.block_steps, max(1, int(BLOCK_SECONDS / self._pace)))
        told, most = self.world.share([[asdict(c) for c in commands], most])
        return [Command(**c) for c in told], most

    def advance(self) -> None:
        """One step within a block."""
        with self.lane.entered():
            self.precision.apply()
            self.train_step()

    def begin_evaluation(self) -> None:
        """At an epoch's end: start to count the held-out splits as trained, without waiting."""
        if self.step >= self._first and self.step % self.steps_per_epoch == 0:
            with self.lane.entered(), torch.no_grad():
                self.precision.apply()
                self.model.eval()
                with self.method.as_trained() as self._special:
                    self._trained = {name: self._counted(name) for name in self.held_out}
                self.model.train()

    def begin_clean(self) -> None:
        """After `begin_evaluation`, once it was called for all runs: the same for the sign + at every site."""
        if self._trained is not None:
            with self.lane.entered(), torch.no_grad():
                self.precision.apply()
                self._clean = self._counted_clean(list(self.held_out))

    def finish(self, run: int, memory: int) -> Block:
        """The block of the steps since `begin`, with the evaluation where they end an epoch. memory: the peak so far.
        """
        with self.lane.entered():
            steps, lr = self.step + 1 - self._first, self.optimizer.param_groups[0]["lr"]
            if self.world.size > 1 and steps:
                self.world.sum(self.log.loss[:steps].div_(self.world.size))
            loss, w, negative, turned_negative, turned_positive = self.log.read(steps, self.forced)
            if steps:
                self._pace = (time.perf_counter() - self._started) / steps
            self.epoch_losses += loss.tolist()
            broken = self._broken() if steps else ""
            evaluations, train_loss = [], math.nan
            if steps and self.step % self.steps_per_epoch == 0:
                train_loss, self.epoch_losses = float(np.mean(self.epoch_losses)), []
                if self._trained is None:
                    self.begin_evaluation()
                self.precision.apply()
                evaluations = self.evaluate()
                self._end_epoch(evaluations, self._epoch)
        self.lane.wait()
        self.whole = True
        return Block(run, self.e, self._first, self._epoch, self.steps_per_epoch, self.log.sites, loss,
                     np.full(steps, lr), w, negative, turned_negative, turned_positive,
                     steps * self.e.batch_size, time.perf_counter() - self._started, memory, self.events,
                     evaluations, train_loss, self.step >= self.total_steps, self.lane.eager or self.lane.note, broken,
                     [], self.state, self.weights, self)

    @torch.no_grad()
    def _broken(self) -> str:
        """The first of the model's tensors that holds a NaN or inf, or "". Asked once a block: sums are quick, and not
        finite where one of their terms isn't.
        """
        values = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        if torch.stack([value.sum() for value in values.values()]).isfinite().all():
            return ""
        return next((name for name, value in values.items() if not value.isfinite().all()), "")

    def obey(self, command: Command) -> list[Event]:
        """Act on a command between two steps. A site or channel that the network hasn't is answered by no event."""
        event = Event(self.step, self.step // self.steps_per_epoch + (self.step % self.steps_per_epoch > 0),
                      command.kind, command.site, command.value, command.id)
        following = replace(event, step=self.step + 1, epoch=self.epoch)
        match command.kind:
            case "pause" | "resume":
                self.steering.paused = command.kind == "pause"
            case "flip":
                chosen = self.steerable() if command.site == "all" else sites(self.model)
                if command.site not in ("all", *chosen):
                    return []
                for name in chosen if command.site == "all" else [command.site]:
                    self.forced[name] = -self.forced.get(name, 1.)
                    chosen[name].force(self.forced[name], self.device)
                return [following]
            case "lr":
                for group in self.optimizer.param_groups:
                    group["lr"] = command.value
                return [following]
            case "weight_decay":                        # with decay "matrices" the second group stays without
                self.optimizer.param_groups[0]["weight_decay"] = command.value
                return [following]
            case "watch_channel":
                self.log.channel = int(command.value)
                return [following]
            case "evaluate":
                self.precision.apply()
                return [replace(event, site=f"{v.split} {v.mode}", value=v.scores.macro_f1)
                        for v in self.evaluate(["val"])]
        return [event]

    def _end_epoch(self, evaluations: list[Evaluation], epoch: int) -> None:
        chosen = next(v.scores for v in evaluations if v.split == "val" and v.mode == "trained")
        if chosen.macro_f1 > self.best[0]:
            self.best = (chosen.macro_f1, epoch, {k: v.clone() for k, v in self.model.state_dict().items()})
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(chosen.loss)
        else:
            self.scheduler.step()

    @torch.no_grad()
    def evaluate(self, splits: Sequence[str] = ("val", "test")) -> list[Evaluation]:
        """Scores of the splits as trained and clean; where both are the same network it is evaluated once."""
        names = [name for name in self.held_out if name in splits]
        counts, clean_counts, self._trained, self._clean = self._trained, self._clean, None, None
        if counts is None:
            self.model.eval()
            with self.method.as_trained() as self._special:
                counts = {name: self._counted(name) for name in names}
            self.model.train()
        if clean_counts is None:
            clean_counts = self._counted_clean(names)
        trained = {name: self._scores(name, counts[name]) for name in names}
        clean = {name: self._scores(name, c) for name, c in clean_counts.items()} or trained
        return [Evaluation(name, mode, s) for mode, found in (("trained", trained), ("clean", clean))
                for name, s in found.items()]

    def _counted_clean(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """`_counted` with the sign + at every site; empty where that is the network as trained."""
        with self.method.clean() as differs, self._unforced() as forced:
            if not (differs or self._special or forced):
                return {}
            self.model.eval()
            counts = {name: self._counted(name) for name in names}
            self.model.train()
        return counts

    @contextlib.contextmanager
    def _unforced(self) -> Iterator[bool]:
        """Within, flips by hand are undone. Yields whether there are any."""
        chosen = {name: site for name, site in sites(self.model).items() if site.forced is not None}
        for site in chosen.values():
            site.force(1., self.device)
        try:
            yield any(sign < 0 for sign in self.forced.values())
        finally:
            for name, site in chosen.items():
                site.force(self.forced.get(name, 1.), self.device)

    def _counted(self, name: str) -> tuple[Tensor, Tensor]:
        """`_count` of a split, recorded where it can be; not waited for."""
        split = self.held_out[name]
        if split.resident and len(split) <= RECORDED_BATCHES * EVALUATION_BATCH:
            counts = self.lane.run(f"evaluate {name}", lambda: self._count(split), tuple(self.forced))
            return tuple(count.clone() for count in counts)         # a replay writes the same tensors anew
        return self._count(split)

    def _scores(self, name: str, counts: tuple[Tensor, Tensor]) -> Scores:
        confusion, total = counts
        self.world.sum(confusion, total)
        return scores(confusion.cpu().numpy(), float(total) / len(self.held_out[name]))

    def _count(self, split: DeviceSplit) -> tuple[Tensor, Tensor]:
        """(confusion matrix, sum of the losses) of this rank's part of a split, on the device."""
        classes = len(self.data.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        part = self.world.part(len(split))
        for start in range(part.start, part.stop, EVALUATION_BATCH):
            rows = slice(start, min(start + EVALUATION_BATCH, part.stop))
            with self.precision.autocast():
                logits = self.model(split.batch(rows).contiguous(memory_format=self.layout))
            logits = logits.to(self.precision.loss_dtype)
            label = split.labels[rows]
            total += F.cross_entropy(logits, label, reduction="sum")
            confusion += confusion_matrix(logits.argmax(1), label, classes)
        return confusion, total

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def state(self) -> dict:
        """Everything that the steps still to come depend on."""
        return {"step": self.step, "epoch_losses": self.epoch_losses, "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                "method": self.method.state(), "signs": self.log.previous, "forced": self.forced,
                "best": {"macro_f1": self.best[0], "epoch": self.best[1], "weights": self.best[2]}}

    def load_state(self, state: dict) -> None:
        """Take up where `state()` was read, to the same bits."""
        self.step, self.epoch_losses = state["step"], list(state["epoch_losses"])
        load_weights(self.model, state["model"])
        self.forced = dict(state["forced"])
        self.optimizer.load_state_dict(state["optimizer"])
        for p, moments in self.optimizer.state.items():         # fused kernels want the parameter's own memory layout
            moments |= {k: torch.empty_like(p).copy_(v) for k, v in moments.items() if v.shape == p.shape}
        self.scheduler.load_state_dict(state["scheduler"])
        self.method.load_state(state["method"])
        self.log.previous = state["signs"].cpu()
        best = state["best"]
        self.best = (best["macro_f1"], best["epoch"], {k: v.to(self.device) for k, v in best["weights"].items()})
        self.lane.graphs.clear()                        # they read what was replaced
        self._trained = self._clean = None
        self._drawn_epoch = 0


def blocks_together(learners: Sequence[tuple[int, Learner]], stopping: Callable[[], bool]) -> list[Block]:
    """A block of each run, by its number: a step of each in turn, until one of them has to come to a boundary.

    Where steering did something, only the blocks that tell of it, and no run takes a step. In a world of several
    processes they have agreed on the steps before, so that all end after the same one.
    """
    started = time.perf_counter()
    left = [[learner, learner.begin()] for _, learner in learners]
    told = [(run, learner) for run, learner in learners if learner.events]
    while not told and any(steps for _, steps in left):
        for one in left:
            if one[1]:
                one[0].advance()
                one[1] -= 1
        if learners[0][1].world.size > 1:
            continue
        if stopping() or any(learner.steering.waiting for _, learner in learners) \
                or time.perf_counter() - started >= BLOCK_SECONDS * len(learners):
            break
    for _, learner in () if told else learners:         # all start before the first is waited for
        learner.begin_evaluation()
    for _, learner in () if told else learners:
        learner.begin_clean()
    memory = peak_memory(learners[0][1].device) if learners else 0
    return [learner.finish(run, memory) for run, learner in told or learners]


class Log:
    """Device-side buffers of loss, w and signs: one row a step, read back together.

    chosen: the sites whose sign is logged. Where the method steers no sign, they are all + but for flips by hand.
    rows: the steps between two readings, at most.
    """

    def __init__(self, method: Method, chosen: dict[str, Site], channel: int, device: torch.device,
                 dtype: torch.dtype, rows: int):
        self.method, self.channel = method, channel
        signs, weights = method.signs(), method.weights()
        self.sites = list(signs or chosen)
        self.sign_sizes, self.w_sizes = [s.numel() for s in signs.values()], [w.numel() for w in weights.values()]
        self.capacity = max(1, BUFFER_BYTES // (4 * max(1, sum(self.sign_sizes) + sum(self.w_sizes))))
        elements = sum(self.sign_sizes) or len(self.sites)
        self.previous = torch.ones(elements, dtype=torch.bool)                      # before step 1: all +
        self.rows = min(rows, self.capacity)
        self.row = torch.zeros(1, dtype=torch.long, device=device)                  # the next one
        self.loss = torch.zeros(self.rows, dtype=dtype, device=device)
        self.positive = torch.zeros(self.rows, sum(self.sign_sizes), dtype=torch.bool, device=device)
        self.host_w = any(part.on_host and part.weights() for part in method.parts())   # w is on the CPU, and stepped
        kept = 0 if self.host_w else sum(self.w_sizes)                                  # there after the device's part
        self.w = torch.zeros(self.rows, kept, dtype=dtype, device=device)
        self.from_host: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Write a row of what is on the device; the last thing of a step."""
        self.loss.index_copy_(0, self.row, loss[None])
        if self.sign_sizes:
            signs = torch.cat([s.detach().reshape(-1) for s in self.method.signs().values()])
            self.positive.index_copy_(0, self.row, (signs >= 0)[None])
        if self.w.shape[1]:
            w = torch.cat([w.reshape(-1) for w in self.method.weights().values()])
            self.w.index_copy_(0, self.row, w[None])
        self.row.add_(1).remainder_(self.rows)

    def add_from_host(self) -> None:
        """Copy w where it is on the CPU; after a step."""
        if self.host_w:
            self.from_host.append(torch.cat([w.reshape(-1) for w in self.method.weights().values()]))

    def read(self, steps: int, forced: dict[str, float]) -> tuple:
        """(loss (steps,); w statistics by name; negative, turned negative, turned positive: (steps, sites) each).

        Empty afterwards. forced: the flips by hand, which held for all these steps.
        """
        self.row.zero_()
        loss = self.loss[:steps].cpu().numpy().astype(float)
        return loss, self._read_w(steps), *self._read_signs(steps, forced)

    def _read_signs(self, steps: int, forced: dict[str, float]) -> list[np.ndarray]:
        if not steps:
            return [np.zeros((0, len(self.sites)))] * 3
        sizes = self.sign_sizes or [1] * len(self.sites)
        by_hand = np.repeat([forced.get(s, 1.) < 0 for s in self.sites], sizes)
        now = self.positive[:steps].cpu().numpy() ^ by_hand if self.sign_sizes else np.tile(~by_hand, (steps, 1))
        before = np.concatenate([self.previous.numpy()[None], now[:-1]])
        self.previous = torch.from_numpy(now[-1].copy())
        first = np.cumsum([0, *sizes[:-1]])             # of each site's elements
        return [np.add.reduceat(change, first, axis=1, dtype=np.float32) / np.float32(sizes)
                for change in (~now, before & ~now, ~before & now)]

    def _read_w(self, steps: int) -> dict[str, np.ndarray]:
        if not self.w_sizes:
            return {}
        if not steps:
            return {name: np.zeros((0, len(self.w_sizes))) for name in W_STATISTICS}
        flat = (torch.stack(self.from_host[-steps:]) if self.host_w else self.w[:steps]).double().cpu().numpy()
        self.from_host = []
        # numpy reduces each row by itself, whatever the number of rows: the same bits wherever a block was cut
        parts = [np.ascontiguousarray(p) for p in np.split(flat, np.cumsum(self.w_sizes)[:-1], axis=1)]
        statistics = (lambda p: p.mean(1), lambda p: p.std(1), lambda p: p.min(1), lambda p: p.max(1),
                      lambda p: p[:, min(self.channel, p.shape[1] - 1)])
        return {name: np.stack([of(p) for p in parts], 1) for name, of in zip(W_STATISTICS, statistics, strict=True)}


def fast_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last, a fifth of a step's time or more on a CPU and on CUDA, but for one trap.

    On a CPU oneDNN writes beyond its memory (x86, torch 2.14.1) in the weight gradient of a 1x1 convolution of stride 2
    in channels_last with 2 to 7 input channels: a ResNet narrower than 8 channels has it on its shortcuts.
    """
    trap = any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 8
               for m in model.modules())
    return torch.contiguous_format if trap and device.type == "cpu" else torch.channels_last


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
        return unmarked(torch.optim.SGD)(groups, lr=e.lr, momentum=e.momentum, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[e.optimizer]
    return unmarked(kind)(groups, lr=e.lr, betas=(e.beta1, e.beta2), eps=e.eps, fused=True)


def build_scheduler(e: Experiment, optimizer: Optimizer) -> LRScheduler:
    """torch's scheduler, stepped at each epoch's end. Cosine ends at 0 after the last epoch; with restarts it falls so
    over each `schedule_epochs` and begins anew (SGDR, Loshchilov & Hutter 2017, with T_mult 1, by epochs).
    """
    if e.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=e.epochs)
    if e.schedule == "restarts":
        return CosineAnnealingWarmRestarts(optimizer, e.schedule_epochs)
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


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of the tensors on a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(runs: Sequence[tuple[Experiment, PackedDataset]], device: torch.device,
          states: Sequence[dict | None] | None = None, steering: Sequence[Steering] | None = None,
          capture: bool = True, world: World = ALONE) -> Iterator[Block]:
    """Train the experiments together, a block at a time; `states` (from Block.state) takes them up again.

    They take turns, or advance side by side where their steps are captured (CUDA; with `capture`).
    Ctrl-C, SIGTERM and a "stop" of `steering` end the block at the next step; it is handed out, then Stopped is raised.
    Leaving the loop is a clean stop as well. Device settings are restored at the end. Raises ParameterError for
    settings that can't run.

    world: one run, spread over processes that all call this. Commands are rank 0's; a stop on any rank, or its leaving
    the loop, ends the run on all of them after the same block.
    """
    assert world.size == 1 or len(runs) == 1
    states = states or [None] * len(runs)
    steering = steering or [Steering() for _ in runs]
    with _settings(runs, device) as settle, _deferred_signals() as stopping:
        learners, images = [], {}
        for (e, data), state, own in zip(runs, states, steering, strict=True):
            learners.append(Learner(e, data, device, own, capture, images, world))
            if state:
                learners[-1].load_state(state)
        going = [k for k, learner in enumerate(learners) if learner.step < learner.total_steps]
        while going:
            for team in _teams(going, learners):
                ready = [k for k in team if not steering[k].paused or world.any(steering[k].waiting)]
                if not ready and all(steering[k].paused for k in going):
                    steering[team[0]].wait(.1)
                settle()
                blocks = blocks_together([(k, learners[k]) for k in ready], stopping)
                for block in blocks[:1]:
                    block.together.extend(blocks)
                try:
                    yield from blocks
                except GeneratorExit:
                    world.any(True)
                    raise
                stop = world.any(stopping())
                if any(event.kind == "stop" for block in blocks for event in block.events):
                    raise Stopped
                going = [k for k in going if learners[k].step < learners[k].total_steps]
                if stop:
                    raise Stopped(stopping.number or signal.SIGINT)


def _teams(going: list[int], learners: list[Learner]) -> list[list[int]]:
    """The runs that advance side by side, then each of the others by itself."""
    captured = [k for k in going if learners[k].lane.captures]
    return [*([captured] if captured else []), *([k] for k in going if k not in captured)]


@contextlib.contextmanager
def _settings(runs: Sequence[tuple[Experiment, PackedDataset]], device: torch.device) -> Iterator[Callable[[], None]]:
    """Threads, determinism and TF32 as the runs ask, and as they were afterwards. Yields a function that sets them
    again, where a loop that began or ended between two blocks has set its own.
    """
    threads = {e.threads for e, _ in runs}
    deterministic = {e.deterministic for e, _ in runs}
    if len(threads) > 1 or len(deterministic) > 1:
        raise ParameterError("runs that train together share the process: give them the same threads and deterministic")
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
              torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    number = threads.pop() if threads else before[0]

    def settle() -> None:
        if torch.get_num_threads() != number:
            torch.set_num_threads(number)
        if device.type == "cuda" and deterministic == {True}:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = deterministic != {True}

    settle()
    try:
        yield settle
    finally:
        torch.set_num_threads(before[0])
        if torch.are_deterministic_algorithms_enabled() != before[1]:   # setting it imports torch's compiler
            torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3:]


class _Asked:
    """Whether a signal, or LEAVE, has asked for the end, and which signal came first."""

    def __init__(self):
        self.number, self.ended = 0, False
        self.before: dict[int, object] = {}             # the handlers that this one's took the place of

    def __call__(self) -> bool:
        return self.number > 0 or LEAVE.is_set()

    def ask(self, number: int, frame: object) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextlib.contextmanager
def _deferred_signals() -> Iterator[_Asked]:
    """SIGINT and SIGTERM set a flag that is read between steps; a second SIGINT interrupts at once.

    Only in the main thread, where Python allows handlers; elsewhere signals act as they did.
    """
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    asked.before = {s: signal.signal(s, asked.ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        asked.ended = True
        for number, handler in asked.before.items():
            if signal.getsignal(number) == asked.ask:   # else a training that began later has it now
                while isinstance(owner := getattr(handler, "__self__", None), _Asked) and owner.ended:
                    handler = owner.before[number]
                signal.signal(number, handler)
