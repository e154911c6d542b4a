"""Steering: what a reader does to a run while it trains. Commands come from any thread or process, act between steps.

    run.steering.send(Command("flip", site="layer1.0.act1"))        from this process
    request(run.path, Command("stop"))                              from another one, through the run's folder

Each command that acted is an `Event` in the run's record. Those of CHANGES alter numbers: a run that had one is
recorded as steered.
"""

import dataclasses
import json
import math
import os
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fer_lib.files import RecordError, writing

CHANGES = ("flip", "lr", "weight_decay")
KINDS = ("pause", "resume", "stop", "evaluate", "checkpoint", "watch_channel", *CHANGES)
REQUESTS = "requests"           # the folder in a run's directory where other processes leave commands
POLL_SECONDS = .2               # between two looks into it


@dataclass(frozen=True)
class Command:
    """kind: one of KINDS. site: for "flip", a site's name or "all". value: for lr, weight_decay and watch_channel.

    `id` comes back with the event, so that whoever sent it knows. Raises ValueError for what no run can do.
    """

    kind: str
    site: str = ""
    value: float = 0.
    id: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown command '{self.kind}' (choose one of {', '.join(KINDS)})")
        if type(self.value) not in (int, float) or not (math.isfinite(self.value) and 0 <= self.value <= 1e3):
            raise ValueError(f"{self.kind} takes a number in 0 to 1000, not {self.value!r}")
        if not isinstance(self.site, str) or not isinstance(self.id, str):
            raise ValueError(f"site and id of a command are texts, not {self.site!r} and {self.id!r}")


@dataclass(frozen=True)
class Event:
    """What a command did. step: the first step that it acts on (evaluate, checkpoint, stop: the last one before).

    For "evaluate" `site` is the split and mode, and `value` its macro-F1.
    """

    step: int
    epoch: int
    kind: str
    site: str = ""
    value: float = 0.
    id: str = ""


class Steering:
    """The commands that wait for one run. `folder`: where other processes' requests are looked for."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.paused = False
        self._commands: deque[Command] = deque()
        self._wake = threading.Event()
        self._looked = -math.inf

    def send(self, command: Command) -> None:
        """From any thread; it acts at the run's next step boundary."""
        self._commands.append(command)
        self._wake.set()

    def wake(self) -> None:
        """End the block that is being trained, or a pause's wait, at the next step boundary."""
        self._wake.set()

    @property
    def waiting(self) -> bool:
        """Whether the run should come to a step boundary. Cheap: asked at every step."""
        now = time.monotonic()
        if self.folder is not None and now - self._looked >= POLL_SECONDS:
            self._looked = now
            for command in take_requests(self.folder):
                self.send(command)
        return self._wake.is_set()

    def take(self) -> list[Command]:
        """All commands so far, once, in their order."""
        self._wake.clear()
        found = []
        while self._commands:
            found.append(self._commands.popleft())
        return found

    def wait(self, seconds: float) -> None:
        """Return when something is sent, or after so long."""
        self._wake.wait(min(seconds, POLL_SECONDS))


def request(run: Path, command: Command) -> None:
    """Leave a command in a run's directory, for the process that trains it. Raises RecordError where it can't.

    The directory may move aside in this moment, as a steered run's does: the command goes with it.
    """
    if not (run / "result.json").exists():
        raise RecordError(f"'{run.name}' is not a run's directory: it holds no result.json")
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"         # sorted by name, they are in order
    with writing(run / REQUESTS / name):
        (run / REQUESTS).mkdir(exist_ok=True)
        folder = os.open(run / REQUESTS, os.O_RDONLY)
        try:
            with open(f".{name}", "w", opener=partial(os.open, mode=0o666, dir_fd=folder)) as f:
                json.dump(dataclasses.asdict(command), f)
            os.rename(f".{name}", name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with suppress(OSError):                     # the disk may be full
                os.unlink(f".{name}", dir_fd=folder)
            os.close(folder)


def take_requests(run: Path) -> list[Command]:
    """The requests in a run's directory, removed from it. What is no command is removed and left out."""
    found = []
    try:
        paths = sorted((run / REQUESTS).glob("[0-9]*.json"))
    except OSError:
        return []
    for path in paths:
        try:
            text = path.read_text()
            path.unlink()                               # first: what can't be removed would act again and again
            found.append(Command(**json.loads(text)))
        except (OSError, ValueError, TypeError):        # cut off, of another version, or gone
            continue
    return found


def told(events: list[Event], forced: dict[str, float] | None = None) -> str:
    """What a command did, as one line. forced: the flips by hand, where they are known."""
    first = events[0]
    steered = "; the run counts as steered from here on" if first.kind in CHANGES else ""
    if first.kind == "evaluate":
        found = {event.site.split()[1]: event.value for event in events}
        return (f"evaluated after step {first.step}: val macro-F1 {found['trained']:.3f} as trained, "
                f"{found['clean']:.3f} clean")
    now = f", now times {'−1' if forced[first.site] < 0 else '+1'}," if forced and first.site in forced else ""
    texts = {"flip": "signs flipped at {p}{now} from step {s} on", "lr": "learning rate {v:g} from step {s} on",
             "weight_decay": "weight decay {v:g} from step {s} on",
             "watch_channel": "channel {v:.0f} is drawn and recorded from step {s} on",
             "checkpoint": "checkpoint saved after step {s}", "pause": "paused after step {s}",
             "resume": "going on after step {s}", "stop": "stopped after step {s}"}
    place = "all sites" if first.site == "all" else first.site
    return texts[first.kind].format(v=first.value, s=first.step, p=place, now=now) + steered
