"""Where a study is trained: the workers of a Dask cluster, of this machine or of an existing one.

A worker does one piece of work at a time. Workers may declare resources: those with GPU train groups of runs on one
(fer_lib.sharing); those with KERNEL, where there are any, and else all, run notebooks.

Dask's messages are pickled, so whoever reaches a scheduler or worker runs programs as its user. What is started here
listens on 127.0.0.1; Dask's settings for TLS hold for both.
"""

import asyncio
import hashlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import dask
from distributed import Client, Future, Nanny, Scheduler, Security, SpecCluster, get_worker
from distributed.comm import connect as comm_connect

import fer_lib
from fer_lib.files import write_atomically
from fer_lib.kernels import NOTEBOOK, at_work
from fer_lib.workspace import Workspace

LOCAL = "127.0.0.1"
DEATHS = 2              # of workers with the same piece of work, here; elsewhere distributed.scheduler.allowed-failures
CONNECT_SECONDS = 10.
LOST_SECONDS = 600.     # a scheduler may be away
LEAVE_SECONDS = 30.     # for the last steps and checkpoints of all that is interrupted
DATA = "the data "
# else Dask looks at itself every 10 to 500 ms, in each process: 7 % of two cores
CALM = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s",
        "distributed.admin.tick.cycle": "10s", "distributed.admin.system-monitor.interval": "5s"}
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "papermill", "distributed")


class ClusterError(RuntimeError):
    """The cluster can't be used; one sentence says why, and the way out."""


class Unfit(RuntimeError):
    """Raised by a piece of work on a worker that differs from what the study was begun with: (its address, why)."""


class Cluster:
    """Workers, and what they are asked to do. Left by `close`, or by `leave` where work is still going on."""

    def __init__(self, workspace: Workspace, client: Client, local: SpecCluster | None, address: str):
        self.workspace, self.client, self.local, self.address = workspace, client, local, address
        self.traits: dict[str, str] = {}                # of this process; empty: nothing to compare
        self.seen: tuple[float, dict] = (0., {})
        self.token = workspace.runs / f".batch-{uuid.uuid4().hex}"

    @property
    def dashboard(self) -> str:
        """Its address, where bokeh is installed to show one."""
        return self.client.dashboard_link if util.find_spec("bokeh") else ""

    @property
    def lost(self) -> bool:
        return self.client.status != "running"

    def workers(self) -> dict[str, dict]:
        """What the scheduler knows of each worker, by address; at most two seconds old."""
        when, found = self.seen
        if time.monotonic() - when > 2 and not self.lost:
            try:
                found = self.client.scheduler_info(n_workers=-1)["workers"]
            except (OSError, TimeoutError):             # going away: `lost` tells
                found = {}
            self.seen = time.monotonic(), found
        return found

    def slots(self, resource: str) -> int:
        """How many pieces of work of this kind may be done at a time."""
        return sum(self._has(w, resource) for w in self.workers().values())

    def _has(self, worker: dict, resource: str) -> bool:
        return resource in worker["resources"] or (resource == "KERNEL" and not self._declared("KERNEL"))

    def _declared(self, resource: str) -> bool:
        return any(resource in w["resources"] for w in self.workers().values())

    def submit(self, resource: str, name: str, work: Callable, *args: object) -> Future:
        """A piece of work for one worker; a worker that differs raises Unfit instead."""
        needs = {resource: 1} if self._declared(resource) else None
        return self.client.submit(fitting, self.traits, self.workspace, work, *args, resources=needs, pure=False,
                                  key=f"{name}-{uuid.uuid4().hex}")

    def check(self, data: list[str], wait: Callable[[str], None]) -> None:
        """Wait for workers, and raise ClusterError where one doesn't see the same disk, code, data and packages."""
        if self.local:
            return
        said = -1e9
        while not self.workers():
            if self.lost:
                raise ClusterError(f"the scheduler at {self.address} is gone: start it again, then this command")
            if time.monotonic() - said > 60:
                wait(f"waiting for workers at {self.address}")
                said = time.monotonic()
            time.sleep(.5)
        write_atomically(self.token, lambda p: p.write_text(self.token.name))
        self.traits = {"the runs folder": str(self.token), **traits(self.workspace, self.token, data)}
        found = self.client.run(differences, self.workspace, self.traits, on_error="return")
        for address, wrong in found.items():
            if isinstance(wrong, BaseException):
                raise ClusterError(f"worker {address} can't run fer_lib ({type(wrong).__name__}: {wrong}): start it in "
                                   "the project's environment")
            if wrong:
                raise ClusterError(f"worker {address} {wrong}")
        for address, worker in self.workers().items():
            if worker["nthreads"] != 1:
                raise ClusterError(f"worker {address} does {worker['nthreads']} pieces of work at a time: start it "
                                   "with --nthreads 1 (more of them with --nworkers)")

    def retire(self, address: str) -> None:
        self.client.retire_workers([address])

    def renew(self, address: str) -> bool:
        """A new process in place of this worker. False where nobody would start one: it has no nanny."""
        try:
            worker = self.client.scheduler_info(n_workers=-1)["workers"].get(address)
            if worker and not worker["nanny"]:
                return False
            if worker:
                self.client.restart_workers([address], raise_for_error=False)
        except (OSError, TimeoutError, KeyError):       # going by itself, or the scheduler is: `lost` tells
            pass
        self.seen = 0., {}
        return True

    def reconnect(self) -> None:
        """Wait until the scheduler is there again. Raises ClusterError when it stays away."""
        self.client.close(timeout=1)
        until = time.monotonic() + LOST_SECONDS
        while time.monotonic() < until:
            try:
                self.client = _connect(self.address)
                self.seen = 0., {}
                return
            except ClusterError:
                time.sleep(1)
        raise ClusterError(f"the scheduler at {self.address} is gone; what was recorded is kept: start it again, then "
                           "this command, to go on")

    def leave(self, futures: list[Future]) -> None:
        """Cancel work, and come back when its kernels have written their checkpoints."""
        until = time.monotonic() + LEAVE_SECONDS
        if not self.lost:
            self.client.cancel(futures)
        while futures and not self.lost and time.monotonic() < until:
            if not any(self.client.run(at_work, on_error="ignore").values()):
                break
            time.sleep(.1)
        self.close()

    def close(self) -> None:
        self.token.unlink(missing_ok=True)
        self.client.close(timeout=5)
        if self.local:
            self.local.close(timeout=10)


def start_here(workspace: Workspace, kernels: int, devices: list[str]) -> Cluster:
    """A cluster of this machine's own: a worker for each of `devices`, and `kernels` that run notebooks."""
    _quiet()
    dask.config.set(CALM)                               # the workers are given it too
    security = Security()
    common = {"security": security, "host": LOCAL, "protocol": "tls://" if security.require_encryption else "tcp://"}
    worker = {**common, "nthreads": 1, "memory_limit": 0, "dashboard": False, "silence_logs": logging.CRITICAL}
    spec = {name: {"cls": Nanny, "options": {**worker, "resources": {"GPU": 1}}} for name in devices}
    spec |= {f"kernel {k}": {"cls": Nanny, "options": {**worker, "resources": {"KERNEL": 1}}} for k in range(kernels)}
    shown = util.find_spec("bokeh") is not None
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, "allowed_failures": DEATHS - 1, "dashboard": shown,
                                               "dashboard_address": f"{LOCAL}:0"}}
    local = SpecCluster(spec, scheduler, security=security, silence_logs=logging.CRITICAL)
    return Cluster(workspace, Client(local, set_as_default=False), local, local.scheduler_address)


def connect(workspace: Workspace, address: str) -> Cluster:
    """An existing cluster. address: of its scheduler, or the path of its scheduler file. Raises ClusterError."""
    _quiet()
    return Cluster(workspace, _connect(address), None, address)


def _connect(address: str) -> Client:
    try:
        place = json.loads(Path(address).read_text())["address"] if address.endswith(".json") else address
        asyncio.run(_reach(place))                      # a Client that doesn't reach it complains when it is deleted
        return Client(place, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(f"no Dask scheduler answers at '{address}' ({reason}): start one with 'dask scheduler', or "
                           "leave out --scheduler to use this machine") from None


async def _reach(address: str) -> None:
    comm = await comm_connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
    await comm.close()


def _quiet() -> None:
    """Dask tells of each worker that goes; what matters the study's own lines say."""
    dask.config.set({"logging.distributed": "critical"})
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def traits(workspace: Workspace, token: Path, data: list[str]) -> dict[str, str]:
    """What must be the same on each worker, by its name in a sentence."""
    code = hashlib.sha256()
    for path in sorted(Path(fer_lib.__file__).parent.rglob("*.py")):
        code.update(path.name.encode() + path.read_bytes())
    sight = {"fer_lib's code": code.hexdigest()[:12], "the training notebook": _digest(workspace.root / NOTEBOOK)}
    sight |= {f"{DATA}{name}": _digest(workspace.data_path(name) / "manifest.json") for name in data}
    sight |= {name: metadata.version(name) for name in PACKAGES}
    return {"the token": token.read_text() if token.exists() else "", "Python": sys.version.split()[0], **sight}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "absent"


def differences(workspace: Workspace, expected: dict[str, str]) -> str:
    """In a worker: the first trait that differs from `expected`, as the end of a sentence; "" where none does."""
    token = Path(expected["the runs folder"])
    data = [name.removeprefix(DATA) for name in expected if name.startswith(DATA)]
    found = traits(workspace, token, data)
    if found["the token"] != expected["the token"]:
        return f"doesn't see the folder {workspace.runs}: all machines of a cluster must share it (FER_RUNS)"
    for name, value in found.items():
        if value != expected[name]:
            return (f"has another version of {name} ({value}, not {expected[name]}): let all machines use the same "
                    "folders and environment")
    return ""


_compared: set[str] = set()                             # in a worker: what it was found to agree with


def fitting(expected: dict[str, str], workspace: Workspace, work: Callable, *args: object) -> object:
    """In a worker: do the work, or raise Unfit where this worker differs, as one that came later may."""
    key = json.dumps(expected)
    if expected and key not in _compared:
        if wrong := differences(workspace, expected):
            raise Unfit(get_worker().address, wrong)
        _compared.add(key)
    return work(*args)
