"""One run's curves and facts, filled from a log's rows: by the process that trains, or by one that reads along."""

import math
import threading
from collections.abc import Iterable

import numpy as np

from fer_lib.experiment import Experiment
from fer_lib.live.series import INTERVALS, Layout, Series, interval_label
from fer_lib.methods.periodic import flag
from fer_lib.steering import CHANGES

PARTS = ("buckets", "marks", "scores", "events")
LIN = 1e-5              # w's axis is linear within ± this


class Curves:
    """A bounded series, the facts beside it, and what of it was sent to the front end. Safe to use from two threads."""

    def __init__(self, layout: Layout, facts: dict | None = None, interval: tuple[int, str] | None = None):
        self.series, self.interval = Series(layout), interval
        self.facts = {"step": 0, "flips": None, "loss": None, "f1": None, "best": None, **(facts or {})}
        self.lock = threading.RLock()
        self._trained: dict[int, float] = {}            # an epoch's score as trained, until the clean one comes
        self._sent = dict.fromkeys(PARTS, 0)
        self._versions = dict(self.series.versions)

    def add(self, rows: np.ndarray) -> None:
        """Steps, as rows of a run's log."""
        if not len(rows):
            return
        with self.lock:
            set_flag = None
            if self.interval:
                interval, unit = self.interval
                set_flag = np.array([flag(int(k), interval) for k in rows["epoch" if unit == "epoch" else "step"]])
            self.series.add(rows, set_flag)
            last = rows[-1]
            self.facts |= {"step": int(last["step"]), "epoch": int(last["epoch"]), "loss": _plain(last["loss"]),
                           "memory": float(last["memory"])}
            if self.series.flips or self.facts["flips"] is not None:
                self.facts["flips"] = self.series.flips

    def add_epochs(self, rows: Iterable[dict]) -> None:
        """Rows of a run's epochs table; the chart shows val."""
        with self.lock:
            for row in rows:
                if row["split"] != "val":
                    continue
                if row["mode"] == "trained":
                    self._trained[row["epoch"]] = row["macro_f1"]
                else:
                    trained = self._trained.pop(row["epoch"], math.nan)
                    self.add_score(row["step"], trained, row["macro_f1"])

    def add_score(self, step: int, trained: float, clean: float | None = None) -> None:
        with self.lock:
            self.series.add_score(int(step), _plain(trained), _plain(clean))
            self.facts["f1"] = _plain(trained)
            self.facts["best"] = max(filter(None, (self.facts["best"], self.facts["f1"])), default=None)

    def add_events(self, events: Iterable[dict]) -> None:
        """Rows of a run's events table."""
        with self.lock:
            for event in events:
                self.series.add_event({k: event[k] for k in ("step", "kind", "site", "value")})
                if event["kind"] == "watch_channel":
                    self.facts["channel"] = int(event["value"])
                if event["kind"] in ("pause", "resume"):
                    self.facts["paused"] = event["kind"] == "pause"

    @property
    def steered(self) -> bool:
        return any(event["kind"] in CHANGES for event in self.series.events)

    def message(self, whole: bool = False) -> tuple[dict, list[bytes]]:
        """What changed since the last message, or all; call and send it under `lock`. Its size is bounded."""
        s, sent = self.series, self._sent
        if whole:
            sent |= dict.fromkeys(PARTS, 0)
        for part, version in s.versions.items():
            if version != self._versions[part]:
                sent[part] = 0
        scores = s.scores.points
        since = {"buckets": sent["buckets"], "marks": sent["marks"], "scores": sent["scores"],
                 "events": 0 if len(s.events) < sent["events"] else sent["events"]}
        content = {"t": "data", "from": since, "versions": dict(s.versions), "stride": s.stride,
                   "every_mark": s.every_mark, "scores": scores[since["scores"]:],
                   "events": s.events[since["events"]:], "intervals": s.intervals.tolist(), "facts": dict(self.facts)}
        buffers = [s.buckets[since["buckets"]:s.n].astype(np.float32).tobytes(),
                   s.marks[since["marks"]:s.n_marks].tobytes()]
        self._versions = dict(s.versions)
        # the last bucket may still grow: it is sent again
        sent |= {"buckets": max(0, s.n - 1), "marks": s.n_marks, "scores": len(scores), "events": len(s.events)}
        return content, buffers


def _plain(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def chart_settings(layout: Layout, title: str, **more: object) -> dict:
    """What the front end must know of a run before its data come."""
    return {"kind": "run", "title": title, "sites": list(layout.sites), "has_w": layout.has_w, "flag": layout.flag,
            "columns": [name for name, _ in layout.columns], "lin": LIN, "steps_per_epoch": 0, "scores": True,
            "steers": False, "controls": [], "all_sites": [], "images": 0, "lr": 0., "weight_decay": 0., "channel": 0,
            "refresh": .5, "interval_labels": [interval_label(k) for k in range(INTERVALS)], **more}


def interval_of(e: Experiment) -> tuple[int, str] | None:
    """(T, unit) where the method has Algorithm 1's flag."""
    if {"periodic", "bn_negation"} & set(e.method.split("+")):
        return e.flip_interval, e.flip_interval_unit
    return None
