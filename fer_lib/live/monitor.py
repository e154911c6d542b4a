"""Following runs that train elsewhere, by their directories: one run in full, or a study's runs side by side.

    monitor("runs/quick")                       a study, or any folder with runs below it
    monitor("runs/scratch/dynamic-...-seed0")   one run
"""

import os
import threading
import time
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from fer_lib import figures
from fer_lib.experiment import Experiment
from fer_lib.files import RecordError, results_below
from fer_lib.live.chart import Chart, CurveChart, receive_command, wants_widget
from fer_lib.live.follower import Follower
from fer_lib.records import rank
from fer_lib.steering import Command, Event, told
from fer_lib.workspace import find_workspace

POINTS = 80             # of a curve on a card
ENDED = ("finished", "failed", "interrupted")


def monitor(path: str | Path, live: str = "auto", refresh_seconds: float = 1.) -> "Monitor":
    """Show a run, or all runs below a folder, as they are on disk now; in a notebook, as they go on.

    The cell ends at once and the view goes on, from a thread of its own: it survives a reload of the page, and other
    cells can run. When all runs are finished a picture stays. path: seen from here, from the project's folder or from
    its runs folder. Raises RecordError where there are no runs, ParameterError for a `live` or a number of seconds that
    04_train would refuse.
    """
    refresh_seconds = Experiment.from_mapping({"live": live, "refresh_seconds": refresh_seconds}).refresh_seconds
    place = _find(Path(path))
    one = (place / "experiment.json").exists()
    found = RunMonitor(place, refresh_seconds) if one else StudyMonitor(place, refresh_seconds)
    found.show(wants_widget(live))
    return found


def _find(path: Path) -> Path:
    workspace = find_workspace()
    for place in (os.path.expanduser(path), workspace.root / path, workspace.runs / path, workspace.runs.parent / path):
        if os.path.isdir(place):                        # False also for what no path can be
            return Path(place).absolute()
    raise RecordError(f"no folder '{path}': name a run's directory or a folder of runs, such as runs/quick "
                      "('make study' makes it)")


class Monitor:
    """What `monitor` gives back: `stop()` ends the view and leaves a picture."""

    def __init__(self, path: Path, refresh: float):
        self.path, self.refresh = path, refresh
        self.chart: Chart | None = None
        self.wake, self.ended = threading.Event(), False
        self.soon = 0.                                  # until then look often: an answer is awaited

    def show(self, live: bool) -> None:
        self.update()
        if live:
            self.make_chart()
            self.chart.show()
            self.thread = threading.Thread(target=self._follow, name="fer_lib monitor", daemon=True)
            self.thread.start()
        else:
            self.show_plainly()

    def _follow(self) -> None:
        error = None
        while not self.ended:
            try:
                self.update()
                self.push()
            except RecordError as caught:
                error, self.ended = caught, True
            if self.over:
                break
            self.wake.wait(min(self.refresh, .15) if time.monotonic() < self.soon else self.refresh)
            self.wake.clear()
        self.ended = True
        picture = self.picture()
        self.chart.replace(Image(picture) if picture is not None else figures.text(str(error or "no step was taken")))

    def expect(self) -> None:
        """A command was passed on: look for its effect at once and for some seconds."""
        self.soon = time.monotonic() + 5
        self.wake.set()

    def stop(self) -> None:
        """End the view; what is shown by then stays as a picture."""
        self.ended = True
        self.wake.set()
        if self.chart is not None:
            self.thread.join(30)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.path.name}"

    def _ipython_display_(self) -> None:
        """Nothing: the view is there already."""


class RunMonitor(Monitor):
    """One run in full, with controls while it trains."""

    def __init__(self, path: Path, refresh: float):
        super().__init__(path, refresh)
        self.run = Follower(path)

    def update(self) -> None:
        self.run.update()
        while self.run.behind:
            self.run.update()

    def make_chart(self) -> None:
        deadline = time.monotonic() + 10
        while self.run.curves is None and time.monotonic() < deadline:      # it was started in this moment
            time.sleep(.1)
            self.run.update()
        if self.run.curves is None:
            raise RecordError(f"'{self.path.name}' has not taken a step yet: run this cell again in a moment")
        self.chart = CurveChart(self.run.curves, self.run.settings(), self.act)

    def act(self, command: Command) -> None:
        self.run.act(command)
        self.expect()

    def push(self) -> None:
        chart, run = self.chart, self.run
        if chart.curves is not run.curves:              # the run was taken up again from its checkpoint
            chart.curves = run.curves
        acknowledge(run, chart)
        chart.push()

    @property
    def over(self) -> bool:
        return self.run.status == "finished"

    def picture(self) -> bytes | None:
        curves = self.run.curves
        if curves is None:
            return None
        history, flips = curves.series.tables()
        scores = curves.series.scores.points
        epochs = pd.DataFrame([{"step": s, "macro_f1": v, "mode": mode} for s, *both in scores
                               for mode, v in zip(("trained", "clean"), both)], columns=["step", "macro_f1", "mode"])
        epochs = epochs.assign(split="val", epoch=epochs["step"] // max(1, self.run.steps_per_epoch),
                               train_loss=float("nan"), loss=float("nan"))
        events = pd.DataFrame(curves.series.events, columns=["step", "kind", "site", "value"])
        numbers = figures.numbers({"step": curves.facts["step"], **self.run.result, "steps": self.run.steps}, epochs,
                                  flips)
        return figures.png(figures.training(history, epochs, flips, self.run.label, self.run.drawn, events, numbers))

    def show_plainly(self) -> None:
        picture = self.picture()
        display(Image(picture) if picture is not None else figures.text("no step was taken yet"))


def acknowledge(run: Follower, chart: Chart) -> None:
    """Tell the front end what its commands did."""
    for group in run.acknowledged:
        chart.send({"t": "ack", "id": group[0]["id"], "text": told([Event(**event) for event in group])})
    run.acknowledged = []


class StudyMonitor(Monitor):
    """Many runs: a card and a table's row each; the one that is clicked opens in full."""

    def __init__(self, path: Path, refresh: float):
        super().__init__(path, refresh)
        self.runs: dict[Path, Follower] = {}
        self.changed: set[Path] = set()
        self.chosen: Follower | None = None             # the run that is open, and its name when it was opened: a
        self.tag = ""                                   # steered run gets another one
        self.asked: str | None = None
        self.whole = True

    def update(self) -> None:
        for path in (p.parent for p in results_below(self.path)):
            if path not in self.runs:
                try:
                    self.runs[path] = Follower(path, small=True)
                except RecordError:                     # of another version, or being made in this moment
                    continue
        if not self.runs:
            raise RecordError(f"no runs below '{self.path.name}': run a study first, for example 'make study'")
        for path, run in list(self.runs.items()):
            if not path.exists():                       # a steered run moved aside, and is found under its new name
                del self.runs[path]
                continue
            if look(run):
                self.changed.add(path)

    def make_chart(self) -> None:
        self.chart = Chart({"kind": "study", "title": self.path.name}, self._receive)

    def _receive(self, content: dict) -> None:
        """In a thread of the kernel's: note it for the next update, which comes at once."""
        kind = content.get("t")
        if kind == "board?":
            self.whole = True
        elif kind == "open":
            self.asked = content["run"]
        elif kind == "all?" and self.chosen is not None and content.get("run") == self.tag:
            self._push_chosen(whole=True)
        elif kind == "command" and self.chosen is not None and content.get("run") == self.tag:
            receive_command(content["command"], self.chosen.act, self.chart.send)
            self.expect()
        self.wake.set()

    def push(self) -> None:
        runs = self.ordered()
        shown = [run for run in runs if self.whole or run.path in self.changed]
        self.whole, self.changed = False, set()
        if shown:
            self.chart.send({"t": "board", "text": self.summary(), "names": [run.name for run in runs],
                             "runs": [card(run) for run in shown]})
        if self.asked is not None:
            self._open(self.asked)
        if self.chosen is not None and look(self.chosen):
            self._push_chosen()

    def _open(self, name: str) -> None:
        self.asked = None
        path = next((path for path, run in self.runs.items() if run.name == name), None)
        if path is None:
            return
        try:
            chosen = Follower(path)
        except RecordError:                             # damaged since its card was drawn
            return
        look(chosen)
        while chosen.behind:
            look(chosen)
        if chosen.curves is not None:
            self.chosen, self.tag = chosen, name
            self.chart.send({"t": "opened", "run": name, "cfg": chosen.settings()})

    def _push_chosen(self, whole: bool = False) -> None:
        run = self.chosen
        acknowledge(run, self.chart)
        with run.curves.lock:
            content, buffers = run.curves.message(whole)
            self.chart.send({**content, "run": self.tag}, buffers)

    def ordered(self) -> list[Follower]:
        return sorted(self.runs.values(), key=lambda r: (rank(r.experiment.method), r.experiment.label,
                                                         r.experiment.seed, r.name))

    def summary(self) -> str:
        counts = pd.Series([run.status for run in self.runs.values()]).value_counts()
        return f"{self.path.name}: {len(self.runs)} runs, " + ", ".join(f"{n} {status}" for status, n in counts.items())

    @property
    def over(self) -> bool:
        return False                                    # more runs may be started; `stop` ends it

    def table(self) -> pd.DataFrame:
        """A row a run."""
        cards = [card(run) for run in self.ordered()]
        columns = {"run": "label", "status": "status", "step": "step", "of": "steps", "loss": "last_loss",
                   "val macro-F1": "last_f1", "best": "best_f1", "steps with a flip": "flip_count", "images/s": "rate"}
        return pd.DataFrame([{name: c[key] for name, key in columns.items()} for c in cards]).round(3)

    def picture(self) -> bytes:
        return figures.png(figures.board([card(run) for run in self.ordered()], self.summary(),
                                         any(run.drawn for run in self.runs.values())))

    def show_plainly(self) -> None:
        display(Image(self.picture()))
        display(self.table())


def look(run: Follower) -> bool:
    """`update`; of a run whose record is damaged the card says so, and the others go on."""
    try:
        return run.update()
    except RecordError:
        run.give_up()
        return True


def card(run: Follower) -> dict:
    """A run as its card shows it: curves of at most POINTS points, plain numbers."""
    base = {"name": run.name, "label": run.label, "status": run.status, "steps": run.steps}
    curves = run.curves
    if curves is None:
        nothing = dict.fromkeys(("last_loss", "last_f1", "best_f1", "rate", "left", "silent"))
        return {**base, **nothing, "step": 0, "loss": [], "loss_top": 1., "f1": [], "flips": [], "flip_count": 0,
                "note": run.status if run.finished else "no step yet"}
    s, facts = curves.series, curves.facts
    every = max(1, -(-s.n // POINTS))
    loss = s.column("loss")
    marks = sorted({int(step) for step in s.marks[:s.n_marks, 0]})
    f1 = "–" if facts["f1"] is None else f"{facts['f1']:.3f}"
    return {**base, "step": facts["step"], "loss": [[int(a), round(float(b), 4)] for a, b in
                                                   zip(s.column("step")[::every], loss[::every]) if b == b],
            "loss_top": float(pd.Series(loss).replace(float("inf"), float("nan")).quantile(.98)) if s.n else 1.,
            "f1": [[p[0], p[1]] for p in s.scores.points[::max(1, -(-len(s.scores.points) // POINTS))]
                   if p[1] is not None],
            "flips": marks[::max(1, -(-len(marks) // 100))], "flip_count": s.flips, "note": f"{run.status} · F1 {f1}",
            "last_loss": facts["loss"], "last_f1": facts["f1"], "best_f1": facts["best"], "rate": facts["rate"],
            "left": facts["left"], "silent": facts["silent"]}
