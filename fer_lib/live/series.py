"""A run's curves in bounded memory: rows of steps become buckets, and buckets merge in pairs when there are too many.

At any length there are at most CAPACITY buckets of `stride` steps each (a power of two), so memory, messages and the
picture cost the same for a thousand steps and for a million. Sign flips keep their exact steps, up to MARKS of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fer_lib.steplog import SIGNS, W_STATISTICS

CAPACITY = 1024         # buckets: about one a pixel of a chart
MARKS = 2048            # sign flips (step, site) that are kept; of more, each second goes
POINTS = 1024           # scores of epochs, and events, likewise
INTERVALS = 24          # bins of the histogram of intervals: 1, 2, 3-4, 5-8, ... steps
MEAN, LEAST, MOST, LAST = range(4)


@dataclass(frozen=True)
class Layout:
    """The columns of a bucket for a run of these sites, and how each summarises its steps."""

    sites: tuple[str, ...]
    has_w: bool
    flag: bool = False                                  # a column for the periodic method's flag

    @property
    def columns(self) -> list[tuple[str, int]]:
        columns = [("step", LAST), ("loss", MEAN), ("loss_low", LEAST), ("loss_high", MOST)]
        if self.flag:
            columns.append(("flag", MEAN))
        columns += [(f"negative/{site}", MEAN) for site in self.sites]
        if self.has_w:                                  # w is sampled, not averaged: near 0 a mean would hide its size
            for name, how in (("w", LAST), ("w_low", LEAST), ("w_high", MOST), ("w_channel", LAST)):
                columns += [(f"{name}/{site}", how) for site in self.sites]
        return columns

    def values(self, rows: np.ndarray, flag: np.ndarray | None = None) -> np.ndarray:
        """The columns of a log's rows (fer_lib.steplog): (steps, columns)."""
        parts = [rows["step"][:, None], *[rows["loss"][:, None]] * 3]
        if self.flag:
            parts.append(np.asarray(flag, float)[:, None])
        parts.append(rows["signs"][:, SIGNS.index("negative")])
        if self.has_w:
            parts += [rows["w"][:, W_STATISTICS.index(name)] for name in ("mean", "min", "max", "channel")]
        return np.concatenate(parts, 1, dtype=np.float64)


class Series:
    """Buckets of a layout's columns, and the flips, scores and events beside them."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.how = np.array([how for _, how in layout.columns])
        self.buckets = np.zeros((CAPACITY, len(self.how)))
        self.n, self.stride, self.filled = 0, 1, 0      # buckets, steps a bucket, steps in the last one
        self.marks = np.zeros((MARKS, 4), np.float32)   # step, site, new sign, share of the site's signs
        self.n_marks, self.every_mark, self._seen_marks = 0, 1, 0
        self.flips, self.last_flip = 0, None            # steps with a flip, and the last of them
        self.intervals = np.zeros(INTERVALS, int)
        self.scores = Thinned()                         # [step, as trained, clean]
        self.events: list[dict] = []
        self.versions = {"buckets": 0, "marks": 0, "scores": 0}     # raised where what was sent is no longer right

    def add(self, rows: np.ndarray, flag: np.ndarray | None = None) -> None:
        """Take steps in, in their order."""
        if not len(rows):
            return
        self._add_flips(rows)
        values = self.layout.values(rows, flag)
        while len(values):
            if self.filled in (0, self.stride):         # begin a bucket
                if self.n == CAPACITY:
                    self._merge()
                    continue
                self.n, self.filled = self.n + 1, 0
            whole = (len(values) + self.filled) // self.stride if not self.filled else 0
            take = min(max(whole, 1), CAPACITY - self.n + 1) * self.stride - self.filled
            part, values = values[:take], values[take:]
            found = self._summary(part, self.stride)
            if self.filled:
                found[0] = self._join(self.buckets[self.n - 1], self.filled, found[0], len(part))
            self.buckets[self.n - 1:self.n - 1 + len(found)] = found
            self.n += len(found) - 1
            self.filled = self.filled + len(part) if len(found) == 1 else len(part) - (len(found) - 1) * self.stride

    def _summary(self, values: np.ndarray, stride: int) -> np.ndarray:
        """Each `stride` rows as one; the last ones can be fewer."""
        starts = np.arange(0, len(values), stride)
        if stride == 1:
            return values.copy()
        found = np.empty((len(starts), len(self.how)))
        counts = np.diff(np.append(starts, len(values)))[:, None]
        ends = np.append(starts[1:], len(values)) - 1
        found[:, self.how == MEAN] = np.add.reduceat(values[:, self.how == MEAN], starts) / counts
        found[:, self.how == LEAST] = np.fmin.reduceat(values[:, self.how == LEAST], starts)
        found[:, self.how == MOST] = np.fmax.reduceat(values[:, self.how == MOST], starts)
        found[:, self.how == LAST] = values[ends][:, self.how == LAST]
        return found

    def _join(self, a: np.ndarray, n: float, b: np.ndarray, m: float) -> np.ndarray:
        """One bucket of n steps and the next of m."""
        mean = (a * n + b * m) / (n + m)
        return np.choose(self.how, [mean, np.fmin(a, b), np.fmax(a, b), b])

    def _merge(self) -> None:
        """Two buckets become one."""
        pairs = self.buckets.reshape(CAPACITY // 2, 2, -1)
        self.buckets[:CAPACITY // 2] = [self._join(a, 1, b, 1) for a, b in pairs]
        self.n, self.stride, self.filled = CAPACITY // 2, 2 * self.stride, 2 * self.stride
        self.versions["buckets"] += 1

    def _add_flips(self, rows: np.ndarray) -> None:
        turned = rows["signs"][:, 1:]                   # (steps, turned negative or positive, sites)
        at, way, site = np.nonzero(turned)
        if not len(at):
            return
        order = np.lexsort((site, at))
        marks = np.stack([rows["step"][at], site, np.where(way == 0, -1, 1), turned[at, way, site]], 1)
        marks = marks[order].astype(np.float32)
        steps = np.unique(rows["step"][at]).astype(int)
        gaps = np.diff(steps if self.last_flip is None else np.insert(steps, 0, self.last_flip))
        bins = np.minimum(np.ceil(np.log2(np.maximum(gaps, 1))).astype(int), INTERVALS - 1)
        self.intervals += np.bincount(bins, minlength=INTERVALS)
        self.flips, self.last_flip = self.flips + len(steps), int(steps[-1])
        while len(marks):
            skip = -self._seen_marks % self.every_mark
            room = (MARKS - self.n_marks) * self.every_mark
            part, marks = marks[:room + skip], marks[room + skip:]
            kept = part[skip::self.every_mark]
            self.marks[self.n_marks:self.n_marks + len(kept)] = kept
            self.n_marks, self._seen_marks = self.n_marks + len(kept), self._seen_marks + len(part)
            if self.n_marks == MARKS:
                self.marks[:MARKS // 2] = self.marks[::2]
                self.n_marks, self.every_mark = MARKS // 2, 2 * self.every_mark
                self.versions["marks"] += 1

    def add_score(self, step: int, trained: float, clean: float) -> None:
        """Validation macro-F1 at an epoch's end."""
        if self.scores.add([step, trained, clean]):
            self.versions["scores"] += 1

    def add_event(self, event: dict) -> None:
        """Something a reader did: step, kind, site, value. The latest POINTS are kept."""
        self.events.append(event)
        del self.events[:-POINTS]

    def column(self, name: str) -> np.ndarray:
        """One column of all buckets, such as "loss" or "w/layer1.0.act1"."""
        return self.buckets[:self.n, [n for n, _ in self.layout.columns].index(name)]

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(history, flips) as figures.training takes them, a row a bucket and a mark."""
        history = {"step": self.column("step").astype(int), "loss": self.column("loss")}
        for name, column in (("w_mean", "w"), ("w_min", "w_low"), ("w_max", "w_high")) if self.layout.has_w else ():
            history |= {f"{name}/{site}": self.column(f"{column}/{site}") for site in self.layout.sites}
        step, site, sign, share = self.marks[:self.n_marks].T
        flips = pd.DataFrame({"step": step.astype(int), "site": [self.layout.sites[int(k)] for k in site],
                              "sign": sign.astype(int), "share": share})
        return pd.DataFrame(history), flips

    @property
    def steps(self) -> int:
        """The last step taken in."""
        return int(self.buckets[self.n - 1, 0]) if self.n else 0


class Thinned:
    """A list of at most POINTS points: when it is full, each second goes, and from then on each second is taken."""

    def __init__(self) -> None:
        self.points: list = []
        self.every, self.seen = 1, 0

    def add(self, point: list) -> bool:
        """Whether older points went."""
        self.seen += 1
        if (self.seen - 1) % self.every:
            return False
        self.points.append(point)
        if len(self.points) < POINTS:
            return False
        self.points, self.every = self.points[::2], 2 * self.every
        return True


def interval_label(k: int) -> str:
    """What the k-th bin of the histogram of intervals counts, in steps."""
    low, high = 2 ** (k - 1) + 1 if k else 1, 2 ** k
    return str(high) if math.isclose(low, high) else f"{low}–{high}"
