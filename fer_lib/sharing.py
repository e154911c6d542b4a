"""A study on GPUs: what a worker that has one does. It trains groups of runs (fer_lib.groups).

Such a worker declares the resource GPU. One that batch started is named after its device; another one uses the first
GPU that it sees.
"""

import torch
from distributed import get_worker

from fer_lib import engine
from fer_lib.experiment import Experiment
from fer_lib.groups import OUT_OF_MEMORY, Fit, measure_fit, train_group
from fer_lib.kernels import INTERRUPTED, leaving
from fer_lib.runs import Run, open_run
from fer_lib.workspace import Workspace

_used = False                                           # in a worker: it measured or trained something


class Crowded(RuntimeError):
    """Raised by a worker where runs found no memory, even alone, after other work: (its address, sentence by number).

    What PyTorch, cuBLAS and failed recordings keep on a GPU goes with their process.
    """


def devices_of(runs: list[Run]) -> list[str]:
    """The GPUs that the runs may use: all for auto and cuda, one for cuda:N. Empty where a run is not for a GPU."""
    asked = {run.experiment.device for run in runs}
    if not torch.cuda.is_available() or "cpu" in asked:
        return []
    single = sorted(d for d in asked if ":" in d)
    return single or [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def fit_on_worker(e: Experiment, workspace: Workspace, most: int) -> Fit:
    """`measure_fit`, in a worker."""
    global _used
    device, _used = _device(), True
    run = open_run(e, workspace)
    return measure_fit(e, run.data, device, most)


def train_on_worker(experiments: list[Experiment], workspace: Workspace) -> dict[int, str]:
    """`train_group`, in a worker. INTERRUPTED for those that go on another time: the worker was told to leave.

    Raises Crowded.
    """
    global _used
    device = _device()
    engine.LEAVE.clear()
    runs = [open_run(e, workspace) for e in experiments]
    used, _used = _used, _used or not all(run.finished for run in runs)
    with leaving(engine.LEAVE.set) as told:
        try:
            failed = train_group(runs, device, lambda line: print(f"  {device}: {line}", flush=True))
        except engine.Stopped as stopped:
            sentence = INTERRUPTED if told.is_set() else str(stopped)
            return {n: sentence for n, run in enumerate(runs) if not run.finished}
    if used and OUT_OF_MEMORY in failed.values():
        raise Crowded(get_worker().address, failed)
    return failed


def _device() -> torch.device:
    name = str(get_worker().name)
    device = torch.device(name if name.startswith(("cuda:", "cpu:")) else "cuda:0")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
