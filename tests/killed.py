"""A training process that is killed again and again until it has finished: killed.py PACKED FOLDER KILLS SEED DEVICE

Prints how far it was at each kill. A process is forked for each attempt, so that torch is loaded once (and CUDA in
each attempt: a process that has begun it can't be forked). It is killed after a random time, or at a random one of its
calls that change the disk (before it, or in the middle of a file).
"""

import json
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from conftest import SMALL

from fer_lib import checkpoint, engine, files, models, runs
from fer_lib.data import open_packed
from fer_lib.experiment import Experiment
from fer_lib.runs import Run, record

SETTINGS = {**SMALL, "method": "dropout+dynamic", "w0": .001, "augment": "flip", "schedule": "plateau",
            "schedule_epochs": 1, "epochs": 3}


def experiment(device: str, **changes: object) -> Experiment:
    """On a GPU in deterministic mode: without, the same steps don't promise the same bits."""
    return Experiment(**{**SETTINGS, "device": device, "deterministic": device != "cpu", **changes})


def killed_at(call: int) -> None:
    """Kill this process at its call-th flush to the disk, rename or removal; every second time after half a file."""
    count = 0

    def before(function, halve: bool = False):
        def called(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == call:
                if halve and call % 2:
                    path = arguments[1] if isinstance(arguments[1], str | Path) else arguments[0]
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)
        return called

    def save(tensors, path, metadata=None, true_save=checkpoint.save_file):
        true_save(tensors, path, metadata=metadata)
        written(tensors, path)

    written = before(lambda *arguments: None, halve=True)
    checkpoint.save_file = save
    files.os.replace = before(os.replace)
    files.os.fsync = before(os.fsync)
    files.os.unlink = before(os.unlink)


def attempt(packed: Path, folder: Path, device: str, seconds: float, call: int, beside: bool = False) -> int:
    """The exit status of one process. beside: checkpoints are written while training goes on."""
    child = os.fork()
    if child == 0:
        if call:
            killed_at(call)
        elif seconds:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        runs.CHECKPOINT_SHARE = math.inf
        e = experiment(device, checkpoint_seconds=1e-9 * beside)
        for _ in record([Run(e, open_packed(packed), folder)]):
            pass
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def state(packed: Path, folder: Path, device: str) -> str:
    run = Run(experiment(device), open_packed(packed), folder)
    halves = " in a file" if list(run.path.rglob(".*.tmp")) else ""
    if run.finished:
        return "finished, not cleared" if (run.path / "log").exists() else "finished"
    if (run.path / "epochs.parquet").exists() or (run.path / "history.parquet").exists():
        return "in the final write" + halves
    return ("trained" if (run.path / "checkpoint.safetensors").exists() else "begun") + halves


def main() -> None:
    packed, folder, kills, device = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[5]
    models.LAYERS["resnet18"] = (models.BasicBlock, [1, 1, 1, 1])
    engine.BLOCK_STEPS = 3
    torch.set_num_threads(1)
    rng = random.Random(int(sys.argv[4]))
    begin = time.monotonic()
    assert attempt(packed, folder / "whole", device, 0., 0) == 0
    whole = time.monotonic() - begin
    met, done, k = [], 0, 0
    while len(met) < kills:
        k += 1
        target = folder / f"killed{done}"
        calls = rng.choice((4, 12, 40))
        code = attempt(packed, target, device, whole * rng.random(), rng.randint(1, calls) if k % 2 else 0, k % 4 > 1)
        assert code in (0, -signal.SIGKILL), code
        if code:
            met.append(state(packed, target, device))
        else:
            done += 1
    assert attempt(packed, folder / f"killed{done}", device, 0., 0) == 0
    print(json.dumps({"met": met, "runs": done + 1, "device": device}))


if __name__ == "__main__":
    main()
