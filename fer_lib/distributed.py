"""One experiment on several processes of this machine, a GPU each, or on the CPU:

    python -m fer_lib.distributed --processes 2 [--set NAME=VALUE ...]
    torchrun --standalone --nproc-per-node 2 -m fer_lib.distributed [--set NAME=VALUE ...]

NAME is a field of fer_lib.Experiment, such as data, method or batch_size (of the whole batch, which is divided). The
record is that of notebook 04_train with the same parameters: it shows the finished run, and either goes on where the
other stopped. Device "auto" is a GPU for each process, by NCCL, else the CPU, by gloo.

Exit code 0: the run is finished; 1: it failed; 2: it can't be run; 130: stopped by Ctrl-C or a reader, 143: by
SIGTERM, as a cluster does, start again to go on. torchrun itself turns all but 0 into 1 and reports them at length. The
first form lets the processes find each other through a file and listens on loopback only. torchrun opens a port on
every interface and unpickles what it is sent there: use it where no stranger reaches the machine.
"""

import argparse
import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from fer_lib import engine
from fer_lib.data import DataError
from fer_lib.experiment import Experiment, ParameterError, settings_of
from fer_lib.files import RecordError
from fer_lib.runs import Diverged, Run, open_run, record
from fer_lib.workspace import find_workspace
from fer_lib.world import World

TIMEOUT = timedelta(minutes=5)      # for a rank that hangs; one that dies ends the others at once
GRACE = 30.                         # seconds that ranks have to end by themselves when one has failed, as in torchrun
STORE = "FER_STORE"                 # the file through which the ranks find each other, where we start them


def prepare(settings: list[str], size: int) -> Run:
    """The run that the settings mean. Raises ParameterError, DataError or RecordError; on all ranks, if on one."""
    e = Experiment.from_mapping(settings_of(settings))
    if ":" in e.device:
        raise ParameterError(f"device '{e.device}' is one device: choose auto, cpu or cuda, each process takes its own")
    if engine.choose_device(e.device).type == "cuda" and size > torch.cuda.device_count():
        raise ParameterError(f"{size} processes need a CUDA device each and this machine has "
                             f"{torch.cuda.device_count()}: start fewer, or set device=cpu")
    run = open_run(e, find_workspace())
    engine.check(e, run.data, World(0, size))
    return run


def train(run: Run, world: World) -> int:
    """This rank's share of the run; the exit code."""
    device = engine.choose_device(run.experiment.device)
    if device.type == "cuda":
        device = torch.device("cuda", world.rank)
        torch.cuda.set_device(device)
    connect(device, world)
    code, sentence = 0, f"'{run.path.name}' is finished"
    try:
        for _ in record([run], device, world):
            pass
    except engine.Stopped as error:
        code, sentence = error.exit_code, str(error)
    except (Diverged, RecordError) as error:
        code, sentence = 1, str(error)
    if world.rank == 0:
        print(f"distributed: {sentence}", file=sys.stderr if code else sys.stdout, flush=True)
    code = world.share(code)                            # nobody goes before rank 0 has written its record
    dist.destroy_process_group()
    return code


def connect(device: torch.device, world: World) -> None:
    """Open torch's process group, on loopback."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    store = dist.FileStore(os.environ[STORE], world.size) if STORE in os.environ else None
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)


def launch(processes: int, settings: list[str]) -> int:
    """Start the ranks and wait for them; the first exit code that is not 0. Where one fails, the others end too.

    Ctrl-C and SIGTERM reach all of them.
    """
    def start(rank: int) -> subprocess.Popen:
        environment = os.environ | ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "fer_lib.distributed", *arguments]
        return subprocess.Popen(command, env=environment)                                   # noqa: S603

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        for process in going:
            process.terminate()

    asked: list[int] = []
    arguments = [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        ranks = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), STORE: str(Path(folder) / "store")}
        going = [start(rank) for rank in range(processes)]
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = _wait(going)
            return 128 + asked[0] if code and asked else code
        finally:
            for process in going:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait(going: list[subprocess.Popen]) -> int:
    """The first exit code that is not 0, when all have ended."""
    code, deadline = 0, math.inf
    while None in (codes := [process.poll() for process in going]):
        code = code or next(filter(None, codes), 0)
        if code:
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for process in going:
                process.kill()
        time.sleep(.05)
    code = code or next(filter(None, codes), 0)
    return code if code >= 0 else 1


def started_as(environment: Mapping[str, str]) -> World | None:
    """The rank that this process was started as, or None."""
    try:
        world, here = World(int(environment["RANK"]), int(environment["WORLD_SIZE"])), environment["LOCAL_WORLD_SIZE"]
    except (KeyError, ValueError):
        return None
    if int(here) != world.size:
        raise ParameterError(f"{world.size} processes on several machines: a run is spread over one machine only")
    return world


def main(argv: list[str] | None = None) -> int:
    world, follows = None, False
    try:
        world = started_as(os.environ)
        follows = world is not None and world.rank > 0      # what keeps a run from beginning does so on all ranks, and
        with contextlib.redirect_stderr(io.StringIO()) if follows else contextlib.nullcontext():    # rank 0 says it
            args = _parser().parse_args(argv)
            if world is None and args.processes is None:
                raise ParameterError("say how many processes: python -m fer_lib.distributed --processes 2, or "
                                     "torchrun --standalone --nproc-per-node 2 -m fer_lib.distributed")
            if args.processes is not None and args.processes < 1:
                raise ParameterError(f"--processes is at least 1, not {args.processes}")
            run = prepare(args.set, world.size if world else args.processes)
    except (ParameterError, DataError, RecordError, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 2
        if follows and code and STORE not in os.environ:
            time.sleep(GRACE)       # torchrun ends all ranks with the first: rank 0 may not have said it yet
        if isinstance(error, SystemExit):
            raise
        if not follows:
            print(f"distributed: {error}", file=sys.stderr)
        return code
    return train(run, world) if world else launch(args.processes, args.set)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.distributed",
                                     description="Train one experiment on several processes of this machine.")
    parser.add_argument("--processes", type=int, help="how many to start (torchrun has an option of its own)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the experiment")
    return parser


if __name__ == "__main__":
    sys.exit(main())
