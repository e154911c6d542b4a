"""Runs that share a GPU: how many fit and still gain, which of them together, and what happens when memory runs out."""

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from fer_lib.data import PackedDataset
from fer_lib.engine import Learner
from fer_lib.experiment import Experiment
from fer_lib.kernels import BUSY
from fer_lib.locks import Busy
from fer_lib.progress import follow
from fer_lib.runs import Diverged, Run, record

GAIN = 1.03             # twice the runs must give this factor in images a second, or half of them is enough
MEMORY = .85            # share of the GPU's memory that runs may fill by estimate
FIRST = 8               # tried after 1: making a run and recording its step takes a second
MOST = 32               # runs together: each checkpoint stops them all
TRIED_SECONDS = .5      # of steps that are timed, for each number of runs
OUT_OF_MEMORY = "the GPU's memory is too small for it, even alone; use a smaller batch_size"


@dataclass(frozen=True)
class Fit:
    """size: the runs of one kind that share a GPU. step_seconds: a step of all of them. bytes: of memory, one run."""

    size: int
    step_seconds: float
    bytes: int


def kind(e: Experiment, data_hash: str) -> Hashable:
    """Runs of one kind cost about the same: they differ in their seed, method and length at most."""
    fields = ("backbone", "stem", "width", "image_size", "batch_size", "precision", "augment", "optimizer", "labels",
              "image_place", "deterministic", "threads", "compile_step")
    return data_hash, *(asdict(e)[name] for name in fields)


def measure_fit(e: Experiment, data: PackedDataset, device: torch.device, most: int) -> Fit:
    """Time 1, 8, 16, ... runs like this one, until memory or the gain ends, `most` at most. Nothing is recorded.

    Raises torch.OutOfMemoryError where not even one fits.
    """
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.reset_peak_memory_stats(device)
    learners: list[Learner] = []
    images: dict = {}
    best = Fit(1, float("inf"), 0)
    size = 1
    while True:
        try:
            while len(learners) < size:
                learners.append(Learner(replace(e, seed=len(learners), epochs=100_000), data, device, images=images))
            seconds = _step_seconds(learners)
        except torch.OutOfMemoryError:
            if not best.bytes:
                raise
            break
        shared = sum(t.numel() for t in images.values() if t.device.type == "cuda")
        taken = (torch.cuda.max_memory_reserved(device) - shared) // size
        gains = size == 1 or size / seconds >= GAIN * best.size / best.step_seconds
        best = Fit(size, seconds, taken) if gains else best
        room = min(most, MOST, int((MEMORY * total - shared) / taken))
        if not gains or 2 * size > room:
            break
        size = min(FIRST, room) if size == 1 else 2 * size
    learners.clear()
    images.clear()
    free_memory()
    return best


def _step_seconds(learners: Sequence[Learner]) -> float:
    """A step of each, with their steps and evaluations recorded before."""
    def steps(seconds: float) -> float:
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds or not count:
            planned = min(learner.begin() for learner in learners)
            for _ in range(planned):
                for learner in learners:
                    learner.advance()
            for learner in learners:
                learner.finish(0, 0)
            count += planned
        return (time.perf_counter() - started) / count

    for learner in learners:
        if not learner.step:
            for _ in range(3):                          # the third is recorded, as in training
                with learner.lane.entered():
                    learner.evaluate()
    steps(0.)
    return steps(TRIED_SECONDS)


def free_memory() -> None:
    """Give back what garbage holds on the GPU; graphs are freed by the collector alone."""
    gc.collect()
    torch.cuda.empty_cache()


def plan_groups(runs: Sequence[tuple[Hashable, int]], fits: dict[Hashable, Fit], devices: int) -> list[list[int]]:
    """Groups of runs by their number, the longest first. runs: (kind, steps to go) of each.

    A run takes 1 / size of a GPU. Runs of like duration go together, so that a group ends as one, and the groups are of
    equal share, so that no device is left idle while the last ones train.
    """
    seconds = [steps * fits[k].step_seconds for k, steps in runs]
    shares = [1 / fits[k].size for k, _ in runs]
    order = sorted(range(len(runs)), key=lambda n: (-seconds[n], str(runs[n][0])))

    def filled(room: float) -> list[list[int]]:
        groups: list[list[int]] = []
        left = 0.
        for n in order:
            if not groups or shares[n] > left:
                groups.append([])
                left = room + 1e-9
            groups[-1].append(n)
            left -= shares[n]
        return groups

    full = filled(1.)
    rounds = math.ceil(len(full) / devices)             # groups that each device trains one after the other
    equal = filled(min(1., sum(shares) / (rounds * devices)))
    return equal if math.ceil(len(equal) / devices) == rounds else full


def train_group(runs: Sequence[Run], device: torch.device, say: Callable[[str], None]) -> dict[int, str]:
    """Train and record them together; by number, what went wrong with those that did not finish.

    A run that diverges, or that another process trains (BUSY), leaves the group, and the others go on. Where memory
    runs out each half goes on by itself, from the last checkpoints. Whatever else goes wrong is raised.
    """
    failed: dict[int, str] = {}
    waiting = [list(range(len(runs)))]
    while waiting:
        group = [n for n in waiting.pop(0) if not runs[n].finished and n not in failed]
        if not group:
            continue
        try:
            reason = _train([runs[n] for n in group], device, say)
        except Busy as error:
            failed |= {n: BUSY for n in group if runs[n].path == error.run}
            waiting.insert(0, group)
            continue
        if reason == OUT_OF_MEMORY and len(group) == 1:
            failed[group[0]] = OUT_OF_MEMORY
        elif reason == OUT_OF_MEMORY:
            half = (len(group) + 1) // 2
            say(f"the GPU's memory is too small for {len(group)} runs together: {half} at a time now")
            waiting[:0] = [group[:half], group[half:]]
        elif reason:
            failed |= {n: runs[n].result.get("reason", reason) for n in group if runs[n].status == "failed"}
            waiting.insert(0, group)
    return failed


def _train(runs: Sequence[Run], device: torch.device, say: Callable[[str], None]) -> str:
    """"" where all finished, OUT_OF_MEMORY, or the sentence of a run that diverged."""
    reason = ""
    try:
        deque(follow(record(runs, device), say), maxlen=0)        # a loop's variable would keep the last run's memory
    except Diverged as error:
        reason = str(error)
    except torch.OutOfMemoryError:
        reason = OUT_OF_MEMORY
    free_memory()                                       # outside of the handlers, which hold the failed step's tensors
    return reason
