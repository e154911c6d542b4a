"""Intervals against hand-computed values, scipy and simulation; arms paired by seed."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fer_lib.statistics import Interval, compare_arms, paired_difference, t_interval


def test_an_interval_by_hand():
    """1, 2, 3, 4: mean 2.5, s = sqrt(5/3), t(.975, 3) = 3.18245."""
    found = t_interval([1, 2, 3, 4])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (found.mean, found.n) == (2.5, 4)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-6)


@pytest.mark.parametrize("confidence", [.9, .95, .99])
@pytest.mark.parametrize("n", [2, 3, 20])
def test_an_interval_is_scipys(n, confidence):
    x = np.random.default_rng(n).normal(.4, .02, n)
    found = t_interval(x, confidence)
    wanted = stats.ttest_1samp(x, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-12)


@pytest.mark.parametrize("n", [4, 20])
def test_a_95_percent_interval_covers_the_mean_in_95_percent_of_samples(n):
    samples = np.random.default_rng(n).normal(.4, .03, (4000, n))
    found = [t_interval(x) for x in samples]
    assert np.mean([i.low <= .4 <= i.high for i in found]) == pytest.approx(.95, abs=.02)


def test_one_value_has_no_interval():
    found = t_interval([.3])
    assert (found.mean, found.n) == (.3, 1) and math.isnan(found.low) and math.isnan(found.high)
    assert f"{found:.2f}" == "0.30"


@pytest.mark.parametrize("values", [[], [.1, math.nan], [math.inf, .1]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="an interval needs numbers"):
        t_interval(values)


def test_the_format_is_that_of_the_numbers():
    assert f"{Interval(.1234, -.05, .3, 4):+.2f}" == "+0.12 [-0.05, +0.30]"


def test_a_paired_difference_by_hand():
    """Differences by seed 1, 2, 3 (whatever the order): mean 2, s = 1, t(.975, 2) = 4.302653."""
    a, b = pd.Series([11., 22., 33.], [0, 1, 2]), pd.Series([30., 20., 10.], [2, 1, 0])
    found = paired_difference(a, b)
    half = 4.302653 / math.sqrt(3)
    assert (found.mean, found.n) == (2., 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_a_paired_difference_is_scipys_and_takes_common_seeds_only():
    rng = np.random.default_rng(0)
    a, b = pd.Series(rng.normal(size=8), range(8)), pd.Series(rng.normal(size=8), range(3, 11))
    found, wanted = paired_difference(a, b), stats.ttest_rel(a[3:], b[:5]).confidence_interval()
    assert found.n == 5 and (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    with pytest.raises(ValueError, match="share no seed"):
        paired_difference(a[:3], b)


def runs(**arms: dict[int, float]) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "seed": seed, "f1": f1} for name, own in arms.items()
                         for seed, f1 in own.items()])


def test_arms_are_compared_seed_by_seed():
    """The seeds move both arms together: the paired interval is narrow where the arms' own are wide."""
    table = compare_arms(runs(dynamic={2: .91, 0: .11, 1: .51}, baseline={0: .10, 1: .50, 2: .90}), "f1")
    assert table["arm"].tolist() == ["dynamic", "baseline"]
    gap = table["difference"][0]
    assert (gap.mean, gap.low, gap.high, gap.n) == pytest.approx((.01, .01, .01, 3))
    assert table["difference"][1] is None
    assert table["score"][0] == t_interval([.91, .11, .51]) and table["score"][1].high > 1


def test_arms_without_a_common_seed_have_no_difference():
    table = compare_arms(runs(baseline={0: .1}, dynamic={1: .2}), "f1")
    assert table["difference"].tolist() == [None, None] and table["score"][1].n == 1
    assert compare_arms(runs(dynamic={1: .2}), "f1")["difference"].tolist() == [None]


def test_one_seed_an_arm_gives_a_difference_without_an_interval():
    gap = compare_arms(runs(baseline={0: .1}, dynamic={0: .3}), "f1")["difference"][1]
    assert gap.mean == pytest.approx(.2) and gap.n == 1 and math.isnan(gap.low)


def test_a_seed_twice_is_refused():
    twice = pd.concat([runs(baseline={0: .1, 1: .2}), runs(baseline={1: .3})])
    with pytest.raises(ValueError, match="two records of arm 'baseline' with seed 1"):
        compare_arms(twice, "f1")


def test_nan_in_a_record_is_refused():
    with pytest.raises(ValueError, match="an interval needs numbers"):
        compare_arms(runs(baseline={0: .1, 1: math.nan}), "f1")
