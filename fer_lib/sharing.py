"""A study on GPUs: a process for each GPU, which trains groups of runs (fer_lib.groups), and then each run's notebook.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from fer_lib.experiment import Experiment
from fer_lib.groups import Fit, kind, measure_fit, plan_groups, train_group
from fer_lib.kernels import heed, stopping
from fer_lib.runs import Run, open_run
from fer_lib.workspace import Workspace

ATTEMPTS = 2            # at a group whose process died


def devices_of(runs: list[Run]) -> list[str]:
    """The GPUs that the runs may use: all for auto and cuda, one for cuda:N. Empty where a run is not for a GPU."""
    asked = {run.experiment.device for run in runs}
    if not torch.cuda.is_available() or "cpu" in asked:
        return []
    single = sorted(d for d in asked if ":" in d)
    return single or [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def train_on_gpus(runs: list[Run], workspace: Workspace, devices: list[str], together: int,
                  say: Callable[[str], None]) -> Iterator[tuple[Run, str]]:
    """Each run as it ends, with "" or what went wrong. together: runs that share a GPU; 0: as many as still gain."""
    kinds = [kind(run.experiment, run.data.hash) for run in runs]
    context = get_context("spawn")                      # not forked: CUDA doesn't survive a fork
    reader, writer = context.Pipe(duplex=False)
    pools: dict[str, ProcessPoolExecutor] = {}

    def pool(device: str) -> ProcessPoolExecutor:
        if device not in pools:
            pools[device] = ProcessPoolExecutor(1, context, heed, (reader,))
        return pools[device]

    with writer:
        try:
            fits = {}
            for k in dict.fromkeys(kinds):
                one = runs[kinds.index(k)]
                fits[k] = Fit(together, 1., 0) if together else pool(devices[0]).submit(
                    fit_in_process, one.experiment, workspace, devices[0], kinds.count(k)).result()
                say(f"{kinds.count(k)} runs of one kind, {fits[k].size} at a time on a GPU"
                    + (f" ({fits[k].bytes / 2 ** 20:,.0f} MiB and {1e3 * fits[k].step_seconds / fits[k].size:.2f} ms "
                       "a step each)" if fits[k].bytes else ""))
            groups = [(group, 1) for group in plan_groups(
                [(k, run.steps) for k, run in zip(kinds, runs)], fits, len(devices))]
            yield from _all_groups(groups, runs, workspace, devices, pool, pools)
        except BaseException:
            writer.close()                              # this tells the workers
            for one in pools.values():
                one.shutdown(cancel_futures=True)
            raise
        for one in pools.values():
            one.shutdown()


def _all_groups(groups: list[tuple[list[int], int]], runs: list[Run], workspace: Workspace, devices: list[str],
                pool: Callable[[str], ProcessPoolExecutor], pools: dict) -> Iterator[tuple[Run, str]]:
    going: dict[Future, tuple[str, list[int], int]] = {}
    free = list(devices)
    while groups or going:
        while groups and free:
            (group, attempt), device = groups.pop(0), free.pop(0)
            experiments = [runs[n].experiment for n in group]
            going[pool(device).submit(train_in_process, experiments, workspace, device)] = (device, group, attempt)
        done, _ = wait(going, return_when=FIRST_COMPLETED)
        for job in done:
            device, group, attempt = going.pop(job)
            free.append(device)
            reasons = {n: "" for n in group}
            try:
                failed = job.result()
                reasons |= {group[k]: sentence for k, sentence in failed.items()}
            except BrokenProcessPool:
                pools.pop(device).shutdown()
                if attempt < ATTEMPTS:                  # finished runs are not trained again, others go on
                    groups.insert(0, (group, attempt + 1))
                    continue
                reasons = dict.fromkeys(group, "the process on the GPU died; start the study again to go on from the "
                                               "last checkpoint")
            except Exception as error:                  # whatever it is: the other groups go on
                reasons = dict.fromkeys(group, " ".join(f"{type(error).__name__}: {error}".split()))
            for n in group:
                runs[n].reload()
                yield runs[n], "" if runs[n].finished else reasons[n] or f"it ended {runs[n].status}"


def fit_in_process(e: Experiment, workspace: Workspace, device: str, most: int) -> Fit:
    """`measure_fit`, in the GPU's process."""
    _use(device)
    run = open_run(e, workspace)
    return measure_fit(e, run.data, torch.device(device), most)


def train_in_process(experiments: list[Experiment], workspace: Workspace, device: str) -> dict[int, str]:
    """`train_group`, in the GPU's process."""
    if stopping():
        return dict.fromkeys(range(len(experiments)), "not started")
    _use(device)
    return train_group([open_run(e, workspace) for e in experiments], torch.device(device),
                       lambda line: print(f"  {device}: {line}", flush=True))


def _use(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
