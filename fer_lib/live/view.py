"""Watching one run where it trains: a live chart with controls in a notebook, plain lines elsewhere, a picture after.

    for block in watch(run): ...
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

from IPython.display import Image, Pretty, display

from fer_lib import figures
from fer_lib.engine import Block, choose_device
from fer_lib.files import write_atomically
from fer_lib.live.chart import CurveChart, wants_widget, widget_class
from fer_lib.live.curves import Curves, chart_settings, interval_of
from fer_lib.live.maps import look
from fer_lib.live.pushing import Pushing
from fer_lib.live.series import Layout
from fer_lib.methods import steers_signs
from fer_lib.models import sites
from fer_lib.progress import follow
from fer_lib.runs import Run, environment, epoch_rows, record
from fer_lib.steering import KINDS, told
from fer_lib.steplog import LogReader, as_rows, block_rows

LOOK_SHARE = .02        # of the time since the start that feature maps may take which come by themselves, while open


def watch(run: Run, say: Callable[[str], None] = print) -> Iterator[Block]:
    """Train a run (`runs.record`) and show it; yields its blocks. A finished run is only shown.

    The experiment's `live` decides: "auto" (a live chart in a notebook that somebody looks at, else a plain line every
    few seconds), "on" or "off". Either way a picture of everything stays, also after Stop, Interrupt and errors, shown
    and written to curve.png. Stop and Interrupt then raise engine.Stopped. What is watched changes no bit of the run;
    what is steered is in its record.
    """
    live = wants_widget(run.experiment.live) and not run.finished
    if run.finished:
        say(f"this run is finished: {run.path.name}")
    chart = None
    try:
        if live:
            chart = RunChart(run)
            yield from chart.blocks()
        else:
            yield from follow(record([run]), say)
    finally:
        picture = final_picture(run)
        if chart is not None:
            chart.end(picture)
        elif picture is not None:
            display(Image(picture))


def final_picture(run: Run) -> bytes | None:
    """The picture of a run so far, also written to its curve.png. None before its first step."""
    history = run.history
    if not len(history):
        return None
    picture = figures.png(figures.training(history, run.epochs, run.flips, title(run), run.data.drawn, run.events,
                                           figures.numbers(run.result, run.epochs, run.flips)))
    write_atomically(run.path / "curve.png", lambda path: path.write_bytes(picture))
    return picture


def title(run: Run) -> str:
    e = run.experiment
    return f"{e.label}, seed {e.seed}" + (" (steered by hand)" if run.steered else "")


class RunChart:
    """A live chart of one run that trains in this process."""

    def __init__(self, run: Run):
        widget_class(CurveChart.script)                 # before training begins: it takes some time
        self.run, self.e = run, run.experiment
        self.device = environment(self.e, choose_device(self.e.device))["device"]
        self.chart: CurveChart | None = None
        self.pushing = Pushing(self.e.refresh_seconds)
        self.looking = Pushing(self.e.refresh_seconds, LOOK_SHARE)
        self.wanted: dict | None = None                 # feature maps: {"open", "image", "site"}
        self.asked = False                              # for other ones than are shown
        self.seconds, self.images = 0., 0

    def blocks(self) -> Iterator[Block]:
        """The run's blocks, each shown before it is handed out."""
        for block in record([self.run]):
            with self.pushing.timed():
                if self.chart is None:
                    self._begin(block)
                self._take(block)
                if block.events or block.last or self.pushing.due():
                    self.chart.push()
                    self.pushing.done()
            if self.asked or self.wanted and self.looking.due():
                self._look(block)
            yield block

    def _begin(self, block: Block) -> None:
        """Make the chart, with what the record holds of an earlier attempt."""
        e, run = self.e, self.run
        layout = Layout(tuple(block.sites), bool(block.w), interval_of(e) is not None)
        slow = f" (steps not recorded: {block.eager})" if block.eager else ""
        self.curves = Curves(layout, {
            "status": "running", "steps": block.steps_per_epoch * e.epochs, "epochs": e.epochs, "epoch": block.epoch,
            "device": self.device + slow, "channel": e.watch_channel, "paused": False, "unit": "images",
            "flips": 0 if steers_signs(e.method) else None}, interval_of(e))
        if block.first_step > 1:
            self._take_up(block)
        group = block.network.optimizer.param_groups[0]
        settings = chart_settings(
            layout, title(run), steps_per_epoch=block.steps_per_epoch, steers=steers_signs(e.method),
            controls=list(KINDS), all_sites=list(sites(block.network.model)), images=len(run.data.splits["val"]),
            lr=float(group["lr"]), weight_decay=float(group["weight_decay"]), channel=e.watch_channel,
            refresh=e.refresh_seconds)
        self.chart = CurveChart(self.curves, settings, run.steering.send, self._receive)
        self.chart.show()

    def _take_up(self, block: Block) -> None:
        """The curves of an earlier attempt, before this block: from its log, or from the tables it has become."""
        run, curves = self.run, self.curves
        if run.finished:                                # this block was its last
            rows = as_rows(run.history, run.flips, block.sites)
            curves.add(rows[rows["step"] < block.first_step])
        else:
            for rows in LogReader(run.path).chunks():
                curves.add(rows[rows["step"] < block.first_step])
        curves.add_epochs(row for row in run.epochs.to_dict("records") if row["step"] < block.first_step)
        events = run.events.to_dict("records")
        curves.add_events(events[:len(events) - len(block.events)])

    def _take(self, block: Block) -> None:
        self.curves.add(block_rows(block))
        self.curves.add_epochs(epoch_rows(block, self.run.data.classes))
        self.curves.add_events(vars(event) for event in block.events)
        for id in dict.fromkeys(event.id for event in block.events if event.id):
            self.chart.send({"t": "ack", "id": id,
                             "text": told([e for e in block.events if e.id == id], block.network.forced)})
        self.seconds, self.images = self.seconds + block.seconds, self.images + block.images
        facts, steps = self.curves.facts, self.images / self.e.batch_size
        facts |= {"rate": self.images / max(self.seconds, 1e-9),
                  "left": (facts["steps"] - facts["step"]) * self.seconds / steps if steps else None}

    def _look(self, block: Block) -> None:
        """Feature maps. Their cost counts only where nobody asked: the first ones on a busy GPU can take seconds, after
        which none would come for long.
        """
        asked, self.asked = self.asked, False
        if wanted := self.wanted:
            with nullcontext() if asked else self.looking.timed():
                self.chart.send(*look(block.network, int(wanted["image"]), wanted["site"]))
            self.looking.done()

    def _receive(self, content: dict) -> None:
        """From the browser, in another thread: which feature maps are wanted."""
        if content.get("t") == "look":
            wanted = content["wanted"]
            known = wanted["site"] in self.chart.widget.cfg["all_sites"]
            self.wanted = wanted if wanted["open"] and known else None
            self.asked = True
            self.chart.send({"t": "looking", "wanted": wanted})
            self.run.steering.wake()

    def end(self, picture: bytes | None) -> None:
        """Only the picture stays."""
        shown = Image(picture) if picture is not None else Pretty("no step was taken")
        self.chart.replace(shown) if self.chart is not None else display(shown)
