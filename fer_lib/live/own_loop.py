"""The live view around a training loop of your own, for any network:

    from fer_lib.live import View

    with View(steps=1000) as view:
        for step, (x, y) in enumerate(batches, 1):
            ...
            view.update(step=step, loss=loss.item(), w={"block1": model.block1.w})
            if view.stopped:
                break
"""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np
import pandas as pd
from IPython.display import Image, display

from fer_lib import figures
from fer_lib.live.chart import CurveChart, wants_widget, widget_class
from fer_lib.live.curves import Curves, chart_settings
from fer_lib.live.pushing import Pushing
from fer_lib.live.series import Layout
from fer_lib.steering import KINDS, Command, Steering
from fer_lib.steplog import row_type

PLAIN_SECONDS = 5.      # between two lines where there is no chart
AT_ONCE = 512           # updates that are taken in together, at most


class View:
    """A live chart of a loop: Pause and Stop work at once, other controls where `on` has a function for them.

    steps: in all, for the progress bar; steps_per_epoch: for the epochs' axis; channel: the element of w that is drawn
    alone; live: auto, on or off; on: what a control does, by its kind (flip, lr, weight_decay, evaluate, checkpoint):
    a function of the command (its `site` and `value`), called within `update`. The picture stays when the block ends.
    """

    def __init__(self, title: str = "training", steps: int = 0, steps_per_epoch: int = 0, live: str = "auto",
                 refresh_seconds: float = .5, channel: int = 0, say: Callable[[str], None] = print,
                 on: Mapping[str, Callable[[Command], None]] | None = None):
        if unknown := set(on or {}) - (set(KINDS) - {"pause", "resume", "stop"}):
            raise ValueError(f"no control is called '{min(unknown)}' (choose of {', '.join(KINDS)})")
        self.title, self.steps, self.steps_per_epoch = title, steps, steps_per_epoch
        if wants_widget(live):
            widget_class(CurveChart.script)             # before training begins: it takes some time
        self.live, self.say, self.channel, self.on = wants_widget(live), say, channel, dict(on or {})
        self.stopped = False
        self.steering = Steering()
        self.curves: Curves | None = None
        self.chart: CurveChart | None = None
        self.pushing = Pushing(refresh_seconds if self.live else PLAIN_SECONDS)
        self.known: tuple[list[str], list[int]] = ([], [])      # the sites, and the elements of each
        self.negative = np.zeros(0, bool)               # whether each was negative at the last step
        self.waiting: list[tuple] = []                  # updates that the curves have not taken in
        self.begun, self.updates = time.monotonic(), 0

    def __enter__(self) -> "View":
        return self

    def update(self, step: int, loss: float, w: Mapping[str, object] | None = None,
               signs: Mapping[str, object] | None = None, macro_f1: float | None = None, lr: float = math.nan,
               epoch: int | None = None) -> None:
        """One step, counted from 1. w, signs: a number, array or tensor by site, the same sites each time.

        Without `signs`, those of w are drawn. Tensors on a GPU are read, which waits for it: give them every some
        steps. Raises ValueError where the sites change.
        """
        started = time.perf_counter()
        sites = list(signs or w or {})
        w_now, sizes = _joined(w)
        signs_now, sign_sizes = _joined(signs) if signs else (w_now, sizes)
        if self.curves is None:
            self.known = (sites, sign_sizes)
            self._begin(sites, w is not None)
        if (sites, sign_sizes) != self.known or (w and signs and list(w) != sites):
            raise ValueError(f"the sites and their sizes were {self.known}, now they are {(sites, sign_sizes)}")
        self.updates += 1
        epoch = epoch or (-(-step // self.steps_per_epoch) if self.steps_per_epoch else 1)
        self.waiting.append((step, epoch, float(loss), lr, w_now, signs_now))
        if macro_f1 is not None:
            self.curves.add_score(step, float(macro_f1))
        due = self.pushing.due()
        if due or len(self.waiting) >= AT_ONCE:
            self._take_in()
        self.pushing.spent += time.perf_counter() - started
        self._obey(step)
        if due:
            with self.pushing.timed():
                self._push(step)
            self.pushing.done()

    def _take_in(self) -> None:
        """The updates that wait, together: for each alone it would cost more than the step of a small network."""
        if not self.waiting:
            return
        step, epoch, loss, lr, w, signs = zip(*self.waiting)
        layout, ends = self.curves.series.layout, np.cumsum(self.known[1])[:-1]
        rows = np.zeros(len(step), row_type(list(layout.sites), layout.has_w))
        rows["step"], rows["epoch"], rows["loss"], rows["lr"] = step, epoch, loss, lr
        if layout.sites:
            now = np.stack(signs) < 0
            before = np.concatenate([self.negative[None] if len(self.negative) else np.zeros_like(now[:1]), now[:-1]])
            for j, change in enumerate((now, now & ~before, before & ~now)):
                for k, part in enumerate(np.split(change, ends, axis=1)):
                    rows["signs"][:, j, k] = part.mean(1)
            self.negative = now[-1]
        if layout.has_w:
            values = np.stack(w)
            for k, v in enumerate(np.split(values, ends, axis=1)):
                for j, value in enumerate((v.mean(1), v.std(1), v.min(1), v.max(1),
                                           v[:, min(self.channel, v.shape[1] - 1)])):
                    rows["w"][:, j, k] = value
        self.curves.add(rows)
        self.waiting = []

    def _begin(self, sites: list[str], has_w: bool) -> None:
        layout = Layout(tuple(sites), has_w)
        self.curves = Curves(layout, {"status": "running", "steps": self.steps, "paused": False, "unit": "steps",
                                      "flips": 0 if sites else None, "channel": self.channel})
        if self.live:
            settings = chart_settings(layout, self.title, steps_per_epoch=self.steps_per_epoch, steers=bool(sites),
                                      controls=["pause", "stop", *self.on], all_sites=sites, loss_label="loss",
                                      refresh=self.pushing.refresh)
            self.chart = CurveChart(self.curves, settings, self.steering.send)
            self.chart.show()

    def _obey(self, step: int) -> None:
        """What was asked for; a pause waits here."""
        while self.steering.waiting or self.steering.paused:
            for command in self.steering.take():
                if command.kind in ("pause", "resume"):
                    self.steering.paused = command.kind == "pause"
                elif command.kind == "stop":
                    self.stopped, self.steering.paused = True, False
                elif command.kind in self.on:
                    self.on[command.kind](command)
                self.curves.add_events([{**vars(command), "step": step}])
                self.chart.send({"t": "ack", "id": command.id, "text": f"{command.kind} after step {step}"})
                self._push(step)
            if self.steering.paused:
                self.steering.wait(.1)

    def _push(self, step: int) -> None:
        self._take_in()
        rate = self.updates / max(time.monotonic() - self.begun, 1e-9)
        self.curves.facts |= {"rate": rate, "left": (self.steps - step) / rate if self.steps else None}
        if self.chart is not None:
            self.chart.push()
            return
        facts = self.curves.facts
        parts = [f"step {step}" + (f"/{self.steps}" if self.steps else ""),
                 f"loss {facts['loss']:.4g}" if facts["loss"] is not None else "loss is not finite",
                 figures.steps_with_a_flip(facts["flips"]) if facts["flips"] else "", f"{rate:.0f} steps/s"]
        self.say(" · ".join(filter(None, parts)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """The picture, also where the loop was interrupted or failed."""
        if self.curves is None:
            return
        self._take_in()
        history, flips = self.curves.series.tables()
        scores = pd.DataFrame(self.curves.series.scores.points, columns=["step", "macro_f1", "clean"]).assign(
            epoch=range(1, len(self.curves.series.scores.points) + 1), split="val", mode="trained", train_loss=math.nan,
            loss=math.nan)
        steps = self.curves.series.steps
        numbers = f"{steps} step{'s' * (steps != 1)}" + (f" · {figures.steps_with_a_flip(self.curves.series.flips)}"
                                                         if self.curves.series.flips else "")
        picture = Image(figures.png(figures.training(history, scores, flips, self.title, False, numbers=numbers)))
        self.chart.replace(picture) if self.chart is not None else display(picture)


def _joined(values: Mapping[str, object] | None) -> tuple[np.ndarray, list[int]]:
    """(all numbers, arrays or tensors of a mapping as one flat array of its own, the size of each)."""
    parts = [np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, np.float64).ravel()
             for v in (values or {}).values()]
    return (np.concatenate(parts) if parts else np.zeros(0)), [len(p) for p in parts]
