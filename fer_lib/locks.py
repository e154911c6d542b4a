"""One process trains a run: the lock in its directory, which also holds between machines that share a disk.

    lock = RunLock(run.path)        raises Busy where another process trains it, with the sentence that says who
    lock.verify()                   before anything is written: raises RecordError where the lock was lost
    lock.release()                  the run is free

    <run>/lock/000001.json          host, process, and when it began; its time of change is the last sign of life

The newest number holds, and a number is taken by link(2), which is atomic on NFS too: of two processes that take over a
dead one's run, one gets it. Whether a process of this machine lives is asked of the system. One of another machine has
died where its file wasn't touched for SILENT seconds by the disk's own clock, and isn't while we look again and again
for PROOF seconds: clocks that differ, or jump, make nobody lose a run. One that was suspended so long finds another
number and stops.
"""

import contextlib
import json
import math
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fer_lib.files import RecordError, write_atomically, writing

LOCK = "lock"
BEAT = 5.               # seconds between two signs of life
SILENT = 60.            # without one another machine's process may be dead: longer than NFS keeps times in its cache
PROOF = 3 * BEAT        # and is, if none comes while we watch
ATTEMPTS = 100
EXITING = 0x4           # PF_EXITING of Linux


class Busy(RecordError):
    """Another process trains the run of the directory `run`."""

    def __init__(self, run: Path, sentence: str):
        super().__init__(sentence)
        self.run = run


@dataclass(frozen=True)
class Holder:
    """Who holds a run. machine: of this boot and process namespace, where the system tells; begun: when the process
    started, in the system's ticks, so that a number that was given out again is another one.
    """

    token: str = ""
    host: str = ""
    machine: str = ""
    pid: int = 0
    begun: int = 0
    since: str = ""

    @classmethod
    def here(cls) -> "Holder":
        return cls(uuid.uuid4().hex, os.uname().nodename, _machine(), os.getpid(), _begun(os.getpid()),
                   time.strftime("%Y-%m-%d %H:%M:%S %z"))

    def dead(self) -> bool | None:
        """Whether the process is gone; None where only its signs of life can tell."""
        if not self.machine or self.machine != _machine():
            return None
        if self.pid == os.getpid():
            return self.token not in _held              # left without being released
        return _begun(self.pid) != self.begun


def _machine() -> str:
    """Processes with the same one see each other. Empty without /proc."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _begun(pid: int) -> int:
    """When the process began, in ticks since the boot; -1 where there is none, or it has only to be reaped, or is
    ending: its connections may be closed by then, so that somebody has been told to go on with its run.
    """
    try:
        return _begun_of(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return -1


def _begun_of(stat: str) -> int:
    """From a line of proc(5), /proc/PID/stat: its fields 3 (state), 9 (flags) and 22 (when it started)."""
    state, *rest = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" or int(rest[5]) & EXITING else int(rest[18])


def _now() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class RunLock:
    """This process's hold on a run, kept alive by a thread. Taken again by the thread that has it, the older hold is
    lost: it is that of a loop which was left without being closed, as in a notebook.
    """

    def __init__(self, run: Path):
        self.run, self.me = run, Holder.here()
        self.thread, self.lost = threading.get_ident(), ""
        self._guard = threading.RLock()
        for older in _held_here():
            if older.run == run and older.thread == self.thread:
                older.lost = "was started again in this process"
                older.release()
        self.number, self.seen = 0, _now()
        with _held_guard:
            _held[self.me.token] = self
        try:
            with writing(run / LOCK):
                self.number = self._take()
        except BaseException:
            self.release()
            raise
        _beat_for_all()

    @property
    def folder(self) -> Path:
        return self.run / LOCK

    def _take(self) -> int:
        mine = self.folder / f".{self.me.token}.tmp"
        text = json.dumps(asdict(self.me))
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(FileNotFoundError):        # the folder went: the run has just ended
                    self.folder.mkdir(parents=True, exist_ok=True)
                    mine.write_text(text)
                    number, held = newest(self.folder)
                    if held and (sentence := self._alive(number, held, mine)):
                        raise Busy(self.run, sentence)
                    if self._claim(mine, number + 1, text):
                        return number + 1
                    mine.unlink()
        finally:
            mine.unlink(missing_ok=True)
        raise Busy(self.run, f"'{self.run.name}' is started by many processes at once: start it again")

    def _claim(self, mine: Path, number: int, text: str) -> bool:
        """Whether the number is ours now."""
        path = self.folder / f"{number:06d}.json"
        try:
            os.link(mine, path)
        except FileExistsError:
            if not (path.exists() and path.samefile(mine)):         # NFS may say so of a link that it has just made
                return False
        except FileNotFoundError:
            raise
        except OSError:                                 # a disk without links; a reader may see the file still empty
            try:
                with open(path, "x") as f:
                    f.write(text)
            except FileExistsError:
                return False
        if newest(self.folder)[0] > number:             # an old number that its later owners have cleared away
            path.unlink()
            return False
        for other in self.folder.glob("[0-9]*.json"):
            if int(other.stem) < number:
                other.unlink(missing_ok=True)
        return True

    def beat(self) -> None:
        """A sign of life, if the run is still ours."""
        with self._guard:
            if self.lost or not self.number:
                return
            try:
                if newest(self.folder)[0] > self.number:
                    self.lost = "was taken over by another process, which saw no sign of life of this one"
                    return
                os.utime(self.folder / f"{self.number:06d}.json")
                self.seen = _now()
            except FileNotFoundError:
                self.lost = "has lost its directory, or the lock in it"
            except OSError:
                pass                                    # the disk is away for a moment: what is written next says so

    def verify(self, now: bool = False) -> None:
        """Raise RecordError where the run isn't ours any more. Cheap: looks at the disk only after a long silence, or
        where it is to know `now`.
        """
        if now or _now() - self.seen > 2 * BEAT:
            self.beat()
        if self.lost:
            raise RecordError(f"'{self.run.name}' {self.lost}: this process writes nothing more; start the same "
                              "command again to go on from what is recorded")

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Within, no sign of life is given: the run's directory gets another name, which is then set as `run`."""
        with self._guard:
            yield

    def release(self, forget: bool = False) -> None:
        """The run is free. The number stays, so that no later one is taken twice; `forget` it where the run is
        finished.
        """
        with _held_guard:
            _held.pop(self.me.token, None)
        with self._guard:
            if self.lost or not self.number:
                return
            self.lost = "was released"
            if forget:
                shutil.rmtree(self.folder, ignore_errors=True)
            elif self.folder.exists():
                with contextlib.suppress(RecordError):  # a full disk: when this process has ended it is seen to be dead
                    write_atomically(self.folder / f"{self.number:06d}.json", lambda p: p.write_text("{}\n"))

    def _alive(self, number: int, held: Holder, mine: Path) -> str:
        """The sentence that says who trains the run; empty where that process is dead."""
        who = f"process {held.pid} on '{held.host}' (since {held.since})" if held.pid else "another process"
        busy = f"'{self.run.name}' is being trained by {who}: wait for it, or stop it there"
        dead = held.dead()
        if dead is not None:
            return "" if dead else busy
        path = self.folder / f"{number:06d}.json"
        first = _touched(path)
        silent = _touched(mine) - first                 # both by the disk's clock
        if 0 <= silent < SILENT:
            return f"{busy}; if that machine is gone, start again in {math.ceil(SILENT - silent)} seconds"
        pause = min(.2, PROOF / 5)
        for _ in range(math.ceil(PROOF / pause)):       # looks, no clock: what stopped this process proves nothing
            time.sleep(pause)
            if _touched(path) not in (first, -math.inf):
                return busy
        return ""


def newest(folder: Path) -> tuple[int, Holder | None]:
    """(the newest number, its holder); (0, None) where there is none, and None where it was released."""
    try:
        paths = sorted(folder.glob("[0-9]*.json"))
    except FileNotFoundError:                           # the folder goes in this moment
        paths = []
    if not paths:
        return 0, None
    number = int(paths[-1].stem)
    try:
        values = json.loads(paths[-1].read_text())
        return number, Holder(**values) if values else None
    except (FileNotFoundError, ValueError, TypeError):  # just gone, being written, or of another version
        return number, Holder()


def _touched(path: Path) -> float:
    """When the file was changed; never, where it is gone. Opened, so that NFS asks the server."""
    try:
        with open(path, "rb") as f:
            return os.fstat(f.fileno()).st_mtime
    except FileNotFoundError:
        return -math.inf


_held: "weakref.WeakValueDictionary[str, RunLock]" = weakref.WeakValueDictionary()      # of this process, by token
_held_guard = threading.RLock()
_beating: threading.Thread | None = None


def _held_here() -> "list[RunLock]":
    with _held_guard:
        return list(_held.values())


def _beat_for_all() -> None:
    """One thread for all runs of this process."""
    global _beating

    def go() -> None:
        while True:
            time.sleep(BEAT)
            for lock in _held_here():
                lock.beat()
                del lock                                # it isn't kept alive by this

    with _held_guard:
        if _beating is None or not _beating.is_alive():
            _beating = threading.Thread(target=go, name="run locks", daemon=True)
            _beating.start()


def _forked() -> None:
    """A child holds no run, whatever its parent does."""
    global _beating, _held_guard
    _held_guard, _beating = threading.RLock(), None
    _held.clear()


os.register_at_fork(after_in_child=_forked)
