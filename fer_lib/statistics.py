"""Means over seeds with their intervals, arms compared seed by seed, and the rules by which a comparison is judged.

The rules are fixed before the runs. The value of a seed is a difference of arms that share initial weights, batch order
and split. p: sign-flip permutation test, Holm within the family. Interval: paired t; BCa stands beside it (at n = 4 it
covers .79, at 10 .90). A difference *holds* with adjusted p < .05 in the claimed direction; it *does not
hold* where it is significant the other way, or shown equivalent to none within the margin (TOST). A claim of
equivalence *holds* by TOST and *does not hold* where the interval lies outside the margin. Else *undecided*: a failed
test alone never refutes. Fewer seeds than the claim asks for describe and don't judge.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

CONFIDENCE = .95
LEVEL = .05             # of every test
EXACT_SEEDS = 20        # up to here a sign-flip test counts all 2^n sign patterns
SAMPLED_PATTERNS = 200_000      # beyond, this many are drawn
RESAMPLES = 9_999       # of the bootstrap
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


# --- one sample of seeds' differences: tests and intervals ---


def bca_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Mean and bias-corrected accelerated bootstrap interval (Efron 1987). It is too narrow below about 20 values."""
    x = _numbers(values)
    if len(x) < 2 or np.ptp(x) == 0:                    # nothing to resample
        return Interval(float(x.mean()), *((math.nan,) * 2 if len(x) < 2 else (float(x[0]),) * 2), len(x))
    found = stats.bootstrap((x,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="BCa",
                            random_state=np.random.default_rng(seed)).confidence_interval
    return Interval(float(x.mean()), float(found.low), float(found.high), len(x))


def sign_flip_p(values: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test: the chance of a mean at least this far from 0, were each
    difference as likely with the other sign. Exact (all 2^n patterns) up to 20 values, else over drawn patterns.

    Its least value is 2 / 2^n: with n < 6 nothing is significant at .05.
    """
    x = _numbers(values)
    far = abs(x.sum()) * (1 - 1e-12)                    # rounding must not lose the observed pattern itself
    if len(x) <= EXACT_SEEDS:
        sums = x[:1]                                    # the first sign is +: a pattern's mirror image is as far
        for value in x[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= far).mean())
    rng, hits = np.random.default_rng(seed), 1          # the observed pattern counts
    for _ in range(0, SAMPLED_PATTERNS, 10_000):
        sums = (rng.integers(0, 2, (10_000, len(x))) * 2 - 1) @ x
        hits += int((np.abs(sums) >= far).sum())
    return hits / (SAMPLED_PATTERNS + 1)


def below_margin_p(values: Sequence[float], margin: float) -> float:
    """One-sided p of the t test that the mean is below the margin: small where any gain is shown to be less."""
    x = _numbers(values) - margin
    if len(x) < 2:
        return 1.
    if np.ptp(x) == 0:
        return 0. if x[0] < 0 else 1.
    return float(special.stdtr(len(x) - 1, x.mean() / x.std(ddof=1) * math.sqrt(len(x))))


def equivalence_p(values: Sequence[float], margin: float) -> float:
    """p of two one-sided t tests, TOST (Schuirmann 1987): small where the mean is shown to lie within ± margin."""
    x = _numbers(values)
    return max(below_margin_p(x, margin), below_margin_p(-x, margin))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family's tests, in their order (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p, dtype=float)[order] * (len(order) - np.arange(len(order))))
    return np.minimum(adjusted, 1).tolist()


def probability_of_improvement(values: Sequence[float]) -> Interval:
    """The share of seeds in which the difference is above 0, a tie counting half, with its exact (Clopper-Pearson)
    interval (ties leave it as wide as for the share rounded down).
    """
    x = _numbers(values)
    return share_interval((x > 0).sum() + (x == 0).sum() / 2, len(x))


def share_interval(count: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """count / n with its exact binomial interval (Clopper and Pearson 1934)."""
    k, tail = int(count), (1 - confidence) / 2
    low = special.betaincinv(k, n - k + 1, tail) if k > 0 else 0
    high = special.betaincinv(k + 1, n - k, 1 - tail) if k < n else 1
    return Interval(float(count / n), float(low), float(high), n)


def paired_values(a: pd.Series, b: pd.Series, c: pd.Series | None = None, d: pd.Series | None = None) -> pd.Series:
    """a - b over common seeds; with c and d the interaction (a - b) - (c - d), such as a 2x2 factorial's."""
    found = a - b if c is None else (a - b) - (c - d)   # pandas aligns the seeds
    return found.dropna()


# --- what could have been seen ---


def detectable_difference(sd: float, n: int, power: float = .8, level: float = LEVEL) -> float:
    """The least difference that a paired t test with n seeds finds with that power, for a standard deviation sd of the
    paired differences: "with n = 20 a difference of x would be seen".
    """
    return math.inf if n < 2 else _detectable_shift(n, power, level) * sd / math.sqrt(n)


@functools.cache
def _detectable_shift(n: int, power: float, level: float) -> float:
    """In standard errors: the noncentrality at which a t test has that power."""
    critical = stats.t.ppf(1 - level / 2, n - 1)
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, n - 1, shift) - power, 0, 1_000))


def equivalence_power(sd: float, n: int, margin: float, level: float = LEVEL) -> float:
    """The chance that TOST shows equivalence of two arms that don't differ, for normal paired differences of that sd.

    Given the sample's sd s, TOST succeeds where |mean| < margin - t s / sqrt(n); s^2 is integrated over its chi^2.
    """
    critical, root = stats.t.ppf(1 - level, n - 1), math.sqrt(n)
    nodes = stats.chi2.ppf((np.arange(4_000) + .5) / 4_000, n - 1)
    room = margin - critical * sd * np.sqrt(nodes / (n - 1)) / root
    return float(np.where(room > 0, 2 * stats.norm.cdf(np.maximum(room, 0) * root / sd) - 1, 0).mean())


def seeds_needed(sd: float, difference: float = 0., margin: float = 0., power: float = .8, most: int = 1_000) -> int:
    """The least number of seeds that finds a difference of that size (at least 6: with fewer the sign-flip test finds
    nothing), or with a margin shows that two arms which don't differ lie within it, for paired differences of standard
    deviation sd. More than `most`: returns most + 1.

    Raises ValueError unless one of difference and margin is above 0.
    """
    if (difference > 0) == (margin > 0) or sd <= 0:
        raise ValueError(f"give a difference or a margin above 0, and sd above 0, not {difference}, {margin}, {sd}")

    def enough(n: int) -> bool:
        return n > 5 and detectable_difference(sd, n, power) <= difference if difference else \
            equivalence_power(sd, n, margin) >= power

    low, high = 1, most + 1                             # not enough, enough or unknown
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def false_positive_rate(values: Sequence[float], repeats: int = 1_000, seed: int = 0) -> float:
    """The identical-arms control: how often the sign-flip test calls runs of one arm, cut at random into pairs of other
    seeds, different. It should be at most .05.
    """
    x, rng = _numbers(values), np.random.default_rng(seed)
    half = len(x) // 2
    if half < 6:
        raise ValueError(f"the identical-arms control needs 12 runs of an arm at least, not {len(x)}: with fewer pairs "
                         "no test can be significant")
    pairs = (rng.permutation(x)[:2 * half].reshape(2, half) for _ in range(repeats))
    return float(np.mean([sign_flip_p(a - b) < LEVEL for a, b in pairs]))


def identical_pairs_rate(groups: Sequence[Sequence[float]], pairs: int = 12, repeats: int = 1_000,
                         seed: int = 0) -> float:
    """The identical-arms control where no arm has runs enough: `false_positive_rate` of pairs that are each cut from
    the runs of one arm, any arm, `pairs` of them at a time. The pairs share no seed, so nothing is there to be found.
    """
    rng, arms = np.random.default_rng(seed), [_numbers(g) for g in groups if len(g) > 1]
    if sum(len(x) // 2 for x in arms) < 6:
        raise ValueError(f"the identical-arms control needs 6 pairs of runs at least, not "
                         f"{sum(len(x) // 2 for x in arms)}: with fewer no test can be significant")

    def once() -> float:
        halves = [rng.permutation(x)[:len(x) // 2 * 2].reshape(2, -1) for x in arms]
        return sign_flip_p(rng.permutation(np.concatenate([a - b for a, b in halves]))[:pairs])

    return float(np.mean([once() < LEVEL for _ in range(repeats)]))


# --- the verdict ---


HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
DESCRIPTIVE, NOT_JUDGED = "descriptive", "not judged"


@dataclass(frozen=True)
class Question:
    """What is asked of a sample: values of seeds (or of runs), the claimed direction, and the least n that judges.

    direction: greater, less, equal, no_gain (of values, against `value` and within `margin`), each_above, each_below
    (of every run's value, against `value`), or shown.
    """

    values: tuple[float, ...]
    direction: str
    least_n: int
    margin: float = 0.
    value: float = 0.


@dataclass(frozen=True)
class Judgement:
    """The answer. p: of the sign-flip test (two-sided); equivalent_p: of TOST, or for no_gain of its upper half; both
    with their Holm-adjusted values. improvement: the share of seeds above 0. detectable: the difference that this n and
    sd would show. met: for each_above and each_below, the share of runs that meet it. NaN or None where not asked.
    """

    verdict: str
    n: int
    estimate: Interval | None = None
    bca: Interval | None = None
    improvement: Interval | None = None
    met: Interval | None = None
    p: float = math.nan
    p_adjusted: float = math.nan
    equivalent_p: float = math.nan
    equivalent_p_adjusted: float = math.nan
    detectable: float = math.nan


def judge_family(questions: Sequence[Question]) -> list[Judgement]:
    """Judge the questions of one family together: Holm counts all that are to be judged, those without enough seeds
    with p = 1.
    """
    p, equivalent = [], []
    for q in questions:
        x = np.asarray(q.values, dtype=float) - q.value
        enough = len(x) >= q.least_n
        p.append(sign_flip_p(x) if enough and q.direction in ("greater", "less") else 1.)
        with_margin = enough and q.direction in ("greater", "less", "equal")
        equivalent.append(equivalence_p(x, q.margin) if with_margin else
                          below_margin_p(x, q.margin) if enough and q.direction == "no_gain" else 1.)
    differences = [k for k, q in enumerate(questions) if q.direction in ("greater", "less")]
    margins = [k for k, q in enumerate(questions) if q.direction in ("greater", "less", "equal", "no_gain")]
    adjusted = dict(zip(differences, holm([p[k] for k in differences])))
    adjusted_equivalent = dict(zip(margins, holm([equivalent[k] for k in margins])))
    return [_judgement(q, p[k], adjusted.get(k, math.nan), equivalent[k], adjusted_equivalent.get(k, math.nan))
            for k, q in enumerate(questions)]


def _judgement(q: Question, p: float, adjusted: float, equivalent: float, adjusted_equivalent: float) -> Judgement:
    n = len(q.values)
    if n == 0:
        return Judgement(NOT_JUDGED, 0)
    x = np.asarray(q.values, dtype=float) - q.value
    estimate, event = t_interval(q.values), q.direction in ("each_above", "each_below")
    sd = x.std(ddof=1) if n > 1 else math.nan
    described = dict(n=n, estimate=estimate, bca=bca_interval(q.values), detectable=detectable_difference(sd, n),
                     improvement=probability_of_improvement(x),
                     met=share_interval((x > 0 if q.direction == "each_above" else x < 0).sum(), n) if event else None)
    if q.direction == "shown" or n < q.least_n:
        return Judgement(DESCRIPTIVE, **described)
    if event:
        verdict = HOLDS if described["met"].mean == 1 else FAILS if described["met"].mean == 0 else UNDECIDED
        return Judgement(verdict, **described)
    tests = dict(equivalent_p=equivalent, equivalent_p_adjusted=adjusted_equivalent)
    low, high = estimate.low - q.value, estimate.high - q.value
    if q.direction in ("equal", "no_gain"):
        outside = low > q.margin or q.direction == "equal" and high < -q.margin
        verdict = HOLDS if adjusted_equivalent < LEVEL else FAILS if outside else UNDECIDED
        return Judgement(verdict, **described, **tests)
    claimed = x.mean() > 0 if q.direction == "greater" else x.mean() < 0
    if adjusted < LEVEL:
        verdict = HOLDS if claimed else FAILS
    else:
        verdict = FAILS if adjusted_equivalent < LEVEL else UNDECIDED
    return Judgement(verdict, **described, **tests, p=p, p_adjusted=adjusted)


def overall(verdicts: Sequence[str]) -> str:
    """A claim's verdict from its contrasts' that are to be judged: it holds where all do, and does not where one
    doesn't; with no verdict on any it is descriptive, or not judged where there are no records.
    """
    if FAILS in verdicts:
        return FAILS
    judged = [v for v in verdicts if v not in (DESCRIPTIVE, NOT_JUDGED)]
    if not judged:
        return DESCRIPTIVE if DESCRIPTIVE in verdicts else NOT_JUDGED
    return HOLDS if all(v == HOLDS for v in verdicts) else UNDECIDED


def _numbers(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"a test needs numbers, not {list(values)}")
    return x
