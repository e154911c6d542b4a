"""Numbers about what happens in a run: jumps at toggles, intervals between flips, where w ends, who flips together.

Each is a function of one run's tables and gives one number, NaN where the run has no such event. A toggle is an epoch
in which a sign turns; with flip_interval_unit = epoch it turns at the epoch's first step, and the epoch before is
validated with the sign before. Losses of an epoch are means over its steps, so that records need not keep each step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fer_lib.records import TABLES, Records


@dataclass(frozen=True)
class RunTables:
    """One run: its row of the runs table, and its rows of the others."""

    row: pd.Series
    epochs: pd.DataFrame
    flips: pd.DataFrame
    history: pd.DataFrame

    def by_epoch(self, split: str, column: str) -> pd.Series:
        """A column of the split's scores as trained, by epoch; empty where the records keep none."""
        if split not in self._rows:
            return pd.Series(dtype=float)
        rows = self._rows[split]
        epochs = pd.Index(self.epochs["epoch"].to_numpy()[rows], name="epoch")
        return pd.Series(self.epochs[column].to_numpy()[rows], epochs, name=column)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """By split, the places of its rows as trained, in the order of their epochs."""
        if self.epochs.empty:
            return {}
        order = np.argsort(self.epochs["epoch"].to_numpy(), kind="stable")
        mode, split = (self.epochs[column].to_numpy(object)[order] for column in ("mode", "split"))
        return {name: order[(mode == "trained") & (split == name)] for name in set(split)}

    @property
    def has_flips(self) -> bool:
        """False where the run had flips and the records don't keep them."""
        return len(self.flips) > 0 or self.row["flips_steps"] == 0

    @property
    def flip_steps(self) -> np.ndarray:
        return np.sort(self.flips["step"].unique()) if len(self.flips) else np.array([], int)

    @property
    def toggles(self) -> list[int]:
        """Epochs from 2 on in which a sign turned."""
        return sorted(int(e) for e in self.flips["epoch"].unique() if e > 1) if len(self.flips) else []


def loss_spike(run: RunTables) -> float:
    """How much the training loss of a toggle's epoch is above that of the epoch before: mean over the toggles."""
    return _change_at_toggles(run, run.by_epoch("val", "train_loss"))


def f1_drop(run: RunTables) -> float:
    """How much validation macro-F1 after a toggle's epoch is below that of the epoch before: mean over the toggles."""
    return -_change_at_toggles(run, run.by_epoch("val", "macro_f1"))


def _change_at_toggles(run: RunTables, values: pd.Series) -> float:
    return _mean(values[e] - values[e - 1] for e in run.toggles if e in values)


def loss_over_an_interval(run: RunTables) -> float:
    """Training loss of the last epoch before the next toggle less that before this one: below 0 it has recovered."""
    return _change_over_intervals(run, run.by_epoch("val", "train_loss"))


def f1_over_an_interval(run: RunTables) -> float:
    """Validation macro-F1 before the next toggle less that before this one: above 0 it has recovered."""
    return _change_over_intervals(run, run.by_epoch("val", "macro_f1"))


def _change_over_intervals(run: RunTables, values: pd.Series) -> float:
    return _mean(values[b - 1] - values[a - 1] for a, b in zip(run.toggles, run.toggles[1:]) if b in values)


def recovery_epochs(run: RunTables) -> float:
    """Epochs from a toggle on whose training loss is above that of the epoch before it: mean over the toggles that
    another one follows, counted up to it.
    """
    loss = run.by_epoch("val", "train_loss")
    counts = []
    for a, b in zip(run.toggles, run.toggles[1:]) if len(loss) else ():
        recovered = [e for e in range(a, b) if loss[e] <= loss[a - 1]]
        counts.append((recovered[0] if recovered else b) - a)
    return _mean(counts)


def flip_count(run: RunTables) -> float:
    """Steps at which a sign turned."""
    return float(run.row["flips_steps"])


def flips_last_third(run: RunTables) -> float:
    """Steps in the last third of training at which a sign turned."""
    return float((run.flip_steps > run.row["steps"] * 2 / 3).sum()) if run.has_flips else math.nan


def interval_cv(run: RunTables) -> float:
    """Irregularity: standard deviation / mean of the steps between flips; 0 for a period. Needs three flips."""
    gaps = np.diff(run.flip_steps)
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 else math.nan


def synchrony(run: RunTables) -> float:
    """The share of all signs, each site weighing the same, that turn at a step at which any does: mean over the steps.

    Of runs with w, whose sites the history names.
    """
    sites = len(_w_at_end(run))
    return float(run.flips.groupby("step")["share"].sum().mean() / sites) if sites and len(run.flips) else math.nan


def w_end_ratio(run: RunTables) -> float:
    """The largest |mean of w| over the sites, at the last recorded step, as a share of |w0|."""
    w = _w_at_end(run)
    return float(w.abs().max() / abs(run.row["setting_w0"])) if len(w) else math.nan


def ends_negative(run: RunTables) -> float:
    """The share of sites whose mean w is below 0 at the last recorded step."""
    w = _w_at_end(run)
    return float((w < 0).mean()) if len(w) else math.nan


def _w_at_end(run: RunTables) -> pd.Series:
    if not len(run.history):
        return pd.Series(dtype=float)
    last = run.history.sort_values("step").iloc[-1]
    return last[[c for c in run.history if c.startswith("w_mean/")]].dropna().astype(float)


def before_toggle_test_macro_f1(run: RunTables) -> float:
    """Test macro-F1 of the last epoch before a toggle; without toggles, of the last epoch."""
    f1 = run.by_epoch("test", "macro_f1")
    epoch = max([e - 1 for e in run.toggles], default=int(run.row["last_epoch"]))
    return float(f1.get(epoch, math.nan)) if run.has_flips else math.nan


def chosen_gap(run: RunTables) -> float:
    """Validation loss less training loss, at the chosen epoch."""
    return float(run.row["chosen_val_loss"] - run.row["chosen_train_loss"])


def corruption_drop(run: RunTables) -> float:
    """Test macro-F1 on intact images less its mean over the corruptions (fer_lib.robustness)."""
    return float(run.row.get("uncorrupted_macro_f1", math.nan) - run.row.get("corrupted_macro_f1", math.nan))


METRICS: dict[str, Callable[[RunTables], float]] = {f.__name__: f for f in (
    loss_spike, f1_drop, loss_over_an_interval, f1_over_an_interval, recovery_epochs, flip_count, flips_last_third,
    interval_cv, synchrony, w_end_ratio, ends_negative, before_toggle_test_macro_f1, chosen_gap,
    corruption_drop)}


def measured(records: Records, arm: str, metric: str, tables: Sequence[RunTables] | None = None) -> pd.Series:
    """The metric of an arm's runs by their seeds: a column of the runs table, or one of METRICS. NaN where it has none.

    tables: what `run_tables` finds, where several metrics of an arm are asked for. Raises ValueError for a metric that
    is neither.
    """
    if metric not in METRICS:
        if metric not in records.runs:
            raise ValueError(f"unknown metric '{metric}': it is neither a column of the runs table nor one of "
                             f"{', '.join(METRICS)}")
        own = records.runs["name"] == arm
        return records.runs.loc[own, ["seed", metric]].set_index("seed")[metric].astype(float)
    tables = run_tables(records, arm) if tables is None else tables
    return pd.Series({run.row.name: METRICS[metric](run) for run in tables}, dtype=float)


def only_counted(tables: Sequence[RunTables]) -> int:
    """The runs that had flips whose steps the records don't keep: what needs them is NaN for these."""
    return sum(not run.has_flips for run in tables)


def run_tables(records: Records, arm: str) -> list[RunTables]:
    """The arm's runs, each with its rows of the other tables."""
    runs = records.runs[records.runs["name"] == arm].set_index("seed")
    tables = {}
    for name in TABLES:
        table = getattr(records, name)
        own = table[table["name"] == arm] if len(table) else table
        tables[name] = {seed: rows for seed, rows in own.groupby("seed")} if len(own) else {}
    return [RunTables(row, **{name: by_seed.get(seed, pd.DataFrame()) for name, by_seed in tables.items()})
            for seed, row in runs.iterrows()]


def _mean(values) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan
