"""Runs that follow a script in place of a notebook: real workers and real deaths, and no kernel.

What a run does is its name: `good`, `slow`, `once` (kills its worker the first time), `poison` (each time), `dies` (its
kernel dies each time), `diverges`. Each step is a line in `steps`, as each start is one in `starts`; it goes on from
there, holds the run's lock, and leaves an interrupted record where it is told to leave.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from fer_lib.kernels import BUSY, DIED, INTERRUPTED, leaving

try:
    from fer_lib.locks import Busy, RunLock
except ImportError:                                     # without locks nothing holds a run
    Busy = RunLock = None

STEPS, SECONDS = {"slow": 40}, .05


def execute(parameters: dict[str, object], workspace: object, target: Path) -> str:
    path, name = target.parent, parameters["name"]
    path.mkdir(parents=True, exist_ok=True)
    add(path / "starts", str(os.getpid()))
    try:
        lock = RunLock(path) if RunLock else None
    except Busy:
        return BUSY
    try:
        return follow(path, name, parameters["seed"])
    finally:
        if lock:
            lock.release()


def follow(path: Path, name: str, seed: int) -> str:
    if status(path) == "finished":
        return ""
    write(path, "running")
    told: list[bool] = []
    with leaving(lambda: told.append(True)):
        while name == "poison" or steps(path) < STEPS.get(name, 4):
            add(path / "steps", str(steps(path) + 1))
            time.sleep(SECONDS)
            if name == "poison" or (name == "once" and lines(path / "starts") == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "dies":
                return DIED
            if name == "diverges":
                return "Diverged: the loss is nan"
            if told:
                write(path, "interrupted")
                return INTERRUPTED
    write(path, "finished")
    return ""


def write(path: Path, status: str) -> None:
    temporary = path / f".{os.getpid()}.tmp"
    temporary.write_text(json.dumps({"format": 1, "status": status, "steered": False}))
    temporary.replace(path / "result.json")


def status(path: Path) -> str:
    try:
        return json.loads((path / "result.json").read_text())["status"]
    except FileNotFoundError:
        return "new"


def add(path: Path, line: str) -> None:
    with open(path, "a") as f:
        f.write(line + "\n")


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def steps(path: Path) -> int:
    return lines(path / "steps")


def finished_before(parameters: dict[str, object], workspace: object, target: Path) -> str:
    """In place of the notebook that shows a run which a group has trained."""
    target.write_text(f"shown: {status(target.parent)}")
    return ""


def room_for_one_group(experiments: Sequence[object], workspace: object) -> dict[int, str]:
    """`train_on_worker` where a process keeps so much of the first group that no other run finds memory; the run with
    seed 9 finds none in any.
    """
    from fer_lib import groups, sharing

    def train(runs: Sequence[object], device: object, say: object) -> dict[int, str]:
        for run in runs:
            run.path.mkdir(parents=True, exist_ok=True)
            add(run.path / "processes", str(os.getpid()))
        too_small = [n for n, run in enumerate(runs) if used or run.experiment.seed == 9]
        fitting = [n for n in range(len(runs)) if n not in too_small]
        failed = groups.train_group([runs[n] for n in fitting], device, say)
        return dict.fromkeys(too_small, groups.OUT_OF_MEMORY) | {fitting[n]: failed[n] for n in failed}

    used, sharing.train_group = sharing._used, train
    return sharing.train_on_worker(experiments, workspace)


def no_fit(*_: object) -> None:
    """`fit_on_worker` where not even one run fits."""
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory")
