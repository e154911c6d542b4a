"""Means over seeds with their intervals, and arms compared seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = .95
JUDGED_SEEDS = 20       # fewer seeds describe and don't judge (design rule for Table 1)


@dataclass(frozen=True)
class Interval:
    """A mean over n values with its t interval; low and high are NaN for n = 1."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """The mean in the given format, and the interval where there is one: `f"{interval:+.3f}"`."""
        if self.n < 2:
            return f"{self.mean:{spec}}"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean and two-sided Student interval: mean ± t(n - 1) s / sqrt(n). Raises ValueError for no values, NaN or inf."""
    x = np.asarray(values, dtype=float)
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"an interval needs numbers, not {list(values)}")
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1)
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def paired_difference(a: pd.Series, b: pd.Series, confidence: float = CONFIDENCE) -> Interval:
    """a - b over the seeds (the index) that both have. Pairs share initial weights, batch order and split."""
    both = a.index.intersection(b.index)
    if both.empty:
        raise ValueError("the two arms share no seed")
    return t_interval((a[both] - b[both]).to_numpy(), confidence)


def compare_arms(runs: pd.DataFrame, measure: str, baseline: str = "baseline") -> pd.DataFrame:
    """A row an arm, in order of appearance: `score`, the measure's Interval, and `difference`, that of the paired
    difference to the baseline (None for the baseline itself, and where the two share no seed).

    `runs` has the columns name, seed and `measure`, one row a run. Raises ValueError where a seed appears twice.
    """
    if runs.duplicated(["name", "seed"]).any():
        twice = runs[runs.duplicated(["name", "seed"])].iloc[0]
        raise ValueError(f"two records of arm '{twice['name']}' with seed {twice['seed']}: they differ in their "
                         "settings; compare one study at a time")
    arms = {name: group.set_index("seed")[measure] for name, group in runs.groupby("name", sort=False)}
    rows = []
    for name, values in arms.items():
        own = t_interval(values.to_numpy())
        paired = baseline in arms and name != baseline and values.index.isin(arms[baseline].index).any()
        gap = paired_difference(values, arms[baseline]) if paired else None
        rows.append({"arm": name, "score": own, "difference": gap})
    return pd.DataFrame(rows)
