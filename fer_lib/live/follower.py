"""A run as another process sees it: through its directory, whether it trains, has stopped or is finished."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq

from fer_lib.experiment import Experiment
from fer_lib.files import RecordError, read_table, reading
from fer_lib.live.curves import Curves, chart_settings, interval_of
from fer_lib.live.series import Layout
from fer_lib.methods import steers_signs
from fer_lib.steering import Command, request
from fer_lib.steplog import LogReader, as_rows, parse_lines

SILENT_SECONDS = 60.    # without a new row, after which a run may have died
BATCH = 4096            # rows of a log that one update reads at most, so that none takes long
CONTROLS = ["pause", "stop", "flip", "lr", "weight_decay", "evaluate", "checkpoint"]


class LineReader:
    """The lines of a .jsonl file as they come."""

    def __init__(self, path: Path):
        self.path, self.read = path, 0

    def lines(self) -> list[dict]:
        try:
            with open(self.path, "rb") as f:
                f.seek(self.read)
                data = f.read()
        except FileNotFoundError:
            return []
        rows, size = parse_lines(self.path, data)
        self.read += size
        return rows


class Follower:
    """One run's curves and facts, kept up to date by `update`. small: loss, scores and flips only, for many runs.

    Raises RecordError where the directory is not a run's.
    """

    def __init__(self, path: Path, small: bool = False):
        self.path, self.small = path, small
        self.curves: Curves | None = None
        self.reader: LogReader | None = None
        self.acknowledged: list[list[dict]] = []        # events that somebody asked for by id, in groups
        self.finished, self.behind = False, False       # behind: there is more to read at once
        self._read_head()

    def _read_head(self) -> None:
        try:
            head, env, self.result = (json.loads((self.path / f"{name}.json").read_text())
                                      for name in ("experiment", "environment", "result"))
            self.experiment = e = Experiment.from_mapping(head["experiment"])
            self.drawn, self.device, _ = head["drawn"], env["device"], self.result["status"]
            n_train = head.get("splits", {}).get("train", 0)    # records of earlier versions don't tell
            self.steps_per_epoch = self.result.get("steps_per_epoch") or n_train // e.batch_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"'{self.path.name}' is not a run's directory, or of another version "
                              f"({type(error).__name__}: {error})") from None
        self.steps = self.result.get("steps") or self.steps_per_epoch * e.epochs

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def label(self) -> str:
        e = self.experiment
        return f"{e.label}, seed {e.seed}" + (" (steered)" if self.result.get("steered") else "")

    @property
    def status(self) -> str:
        return self.result["status"]

    def update(self) -> bool:
        """Read what is new; whether there was anything."""
        if self.finished:
            return False
        before = (self.result, self.curves and self.curves.facts["step"])
        self._read_result()
        if self.status == "finished":
            self._read_tables()
        else:
            self._read_log()
        if self.curves is not None:
            self._tell()
        return before != (self.result, self.curves and self.curves.facts["step"]) or bool(self.acknowledged)

    def give_up(self) -> None:
        """Its record is damaged: what was read stays, and no more is read."""
        self.result, self.finished, self.behind = {**self.result, "status": "damaged"}, True, False
        if self.curves is not None and "status" in self.curves.facts:
            self.curves.facts["status"] = "damaged"
        else:                                           # not once read to its end
            self.curves = None

    def _read_result(self) -> None:
        if not self.path.exists():
            if not (moved := self._moved()):
                raise RecordError(f"the run's directory '{self.path.name}' is gone")
            self.path, self.reader = moved[-1], None
        try:
            result = json.loads((self.path / "result.json").read_text())
            self.result = result if result["status"] else self.result
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass                                        # on a shared disk a renamed file can be away for a moment

    def _moved(self) -> list[Path]:
        """Where a run that is steered has moved aside to: the last is the latest."""
        return sorted(self.path.parent.glob(f"{self.path.name}-steered*"), key=lambda p: p.stat().st_mtime)

    def _begin(self, sites: list[str], has_w: bool) -> None:
        e, interval = self.experiment, interval_of(self.experiment)
        layout = Layout(tuple(sites), has_w and not self.small, interval is not None and not self.small)
        self.curves = Curves(layout, {
            "steps": self.steps, "epochs": e.epochs, "epoch": 0, "device": self.device, "channel": e.watch_channel,
            "paused": False, "unit": "images", "flips": 0 if steers_signs(e.method) else None},
            interval if layout.flag else None)

    def _read_log(self) -> None:
        if self.reader is None:
            try:
                self.reader = LogReader(self.path)
            except FileNotFoundError:
                return                                  # it has not taken a step
            self._start_over()
        rows = self.reader.rows(BATCH)
        if self.reader.restarted:
            self.reader = LogReader(self.path)          # cut back to a checkpoint, or begun anew
            self._start_over()
            rows = self.reader.rows(BATCH)
        self.curves.add(rows)
        self.behind = len(rows) == BATCH
        if len(rows):
            self._pace(rows)
        self.curves.add_epochs(self.epochs.lines())
        events = self.events.lines()
        self.curves.add_events(events)
        asked = [event for event in events if event.get("id")]
        self.acknowledged += [[e for e in asked if e["id"] == id] for id in dict.fromkeys(e["id"] for e in asked)]

    def _start_over(self) -> None:
        self._begin(self.reader.sites, self.reader.has_w)
        self.epochs, self.events = (LineReader(self.path / "log" / f"{n}.jsonl") for n in ("epochs", "events"))
        self.first, self.rate, self.left = None, None, None

    def _pace(self, rows) -> None:
        last = rows[-1]
        self.first = self.first or (int(rows[0]["step"]) - 1, float(rows[0]["seconds"]))
        steps, seconds = int(last["step"]) - self.first[0], float(last["seconds"]) - self.first[1]
        if steps > 0 and seconds > 0:
            self.rate = self.experiment.batch_size * steps / seconds
            self.left = (self.steps - int(last["step"])) * seconds / steps

    def _read_tables(self) -> None:
        """All of a finished run, once."""
        flips = read_table(self.path / "flips.parquet")
        with reading(self.path / "history.parquet"):
            names = pq.read_schema(self.path / "history.parquet").names
        columns = ["step", "epoch", "loss", "lr"] if self.small else names
        history = read_table(self.path / "history.parquet", columns=columns)
        sites = [c.removeprefix("w_mean/") for c in names if c.startswith("w_mean/")] or list(flips["site"].unique())
        self._begin(sites, "w_mean/" + sites[0] in names if sites else False)
        self.curves.add(as_rows(history, flips, sites))
        self.curves.add_epochs(read_table(self.path / "epochs.parquet").to_dict("records"))
        if (self.path / "events.parquet").exists():
            self.curves.add_events(read_table(self.path / "events.parquet").to_dict("records"))
        self.rate, self.left = self.result["images_per_second"], None
        self.curves.facts["memory"] = self.result.get("peak_memory_bytes")
        self.finished, self.behind = True, False

    def _tell(self) -> None:
        quiet = None
        if self.status == "running":
            try:
                quiet = time.time() - (self.path / "log" / "steps").stat().st_mtime
            except FileNotFoundError:
                pass
        silent = quiet if quiet is not None and quiet > SILENT_SECONDS and not self.curves.facts["paused"] else None
        self.curves.facts |= {"status": self.status, "rate": self.rate, "left": self.left, "silent": silent}

    def settings(self) -> dict:
        """What the front end must know before the data come."""
        e = self.experiment
        return chart_settings(self.curves.series.layout, f"{self.name}: {self.label}", controls=CONTROLS,
                              steps_per_epoch=self.steps_per_epoch, steers=steers_signs(e.method),
                              all_sites=list(self.curves.series.layout.sites), lr=e.lr, weight_decay=e.weight_decay,
                              channel=e.watch_channel)

    def act(self, command: Command) -> None:
        """Pass a command on to the process that trains the run. From any thread. Raises RecordError where it can't."""
        try:
            request(self.path, command)
        except RecordError:
            if not (moved := self._moved()):            # since the last update
                raise
            request(moved[-1], command)
