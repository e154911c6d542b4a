"""Intervals against hand-computed values, scipy and simulation; arms paired by seed."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fer_lib import statistics
from fer_lib.statistics import (
    DESCRIPTIVE,
    FAILS,
    HOLDS,
    NOT_JUDGED,
    UNDECIDED,
    Interval,
    Question,
    bca_interval,
    below_margin_p,
    compare_arms,
    detectable_difference,
    equivalence_p,
    equivalence_power,
    false_positive_rate,
    holm,
    identical_pairs_rate,
    judge_family,
    overall,
    paired_difference,
    paired_values,
    probability_of_improvement,
    share_interval,
    sign_flip_p,
    t_interval,
)


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


@pytest.mark.parametrize("n", [4, 10, 20])
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


# --- tests of a sample of differences ---


@pytest.mark.parametrize("values, p", [
    ([1, 2, 3], 2 / 8), ([-1, -2, -3], 2 / 8), ([1, 2, -3], 1), ([1, 1, 1, 1], 2 / 16), ([3, 2, 2, -1], 4 / 16),
    ([5], 1), ([0, 0, 0], 1), ([.1] * 6, 2 / 64)])
def test_a_sign_flip_test_by_hand(values, p):
    """(3, 2, 2, -1) sums to 6: of 16 patterns |sum| >= 6 have those that flip nothing or -1 alone, and mirrors."""
    assert sign_flip_p(values) == pytest.approx(p, abs=1e-12)


def test_a_sign_flip_test_is_scipys():
    x = np.random.default_rng(1).normal(.5, 1, 9)
    wanted = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(x) == pytest.approx(wanted, abs=1e-12)


def test_beyond_20_seeds_patterns_are_drawn_and_drawn_again(monkeypatch):
    x = np.random.default_rng(2).normal(.4, 1, 22)
    drawn = sign_flip_p(x)
    assert drawn == sign_flip_p(x)
    monkeypatch.setattr(statistics, "EXACT_SEEDS", 22)
    assert drawn == pytest.approx(sign_flip_p(x), abs=.003) and drawn != sign_flip_p(x)


def test_holm_by_hand():
    """.01 * 3; then .03 * 2 = .06; then .04 * 1, which may not fall below the one before."""
    assert holm([.01, .04, .03]) == pytest.approx([.03, .06, .06])
    assert holm([.5, .9]) == [1, 1] and holm([.02]) == [.02] and holm([]) == []


def test_two_one_sided_tests_by_hand():
    """0, 1, 2, 3 in tenths: mean .15, s / 2 = .0645; to the margin .5 it is t = 5.42 with 3 degrees of freedom."""
    x = [0, .1, .2, .3]
    assert below_margin_p(x, .5) == pytest.approx(stats.t.sf(.35 / (math.sqrt(1 / 60) / 2), 3))
    assert below_margin_p(x, .5) == pytest.approx(stats.ttest_1samp(x, .5, alternative="less").pvalue)
    assert equivalence_p(x, .5) == below_margin_p(x, .5)
    assert equivalence_p([-v for v in x], .5) == pytest.approx(equivalence_p(x, .5))
    assert equivalence_p(x, .1) > .5


def test_without_spread_the_mean_itself_is_inside_or_outside():
    assert equivalence_p([0, 0, 0], .01) == 0 and equivalence_p([.02, .02], .01) == 1 and equivalence_p([0], .01) == 1


def test_a_bca_interval_is_scipys_and_stays_the_same():
    x = np.random.default_rng(3).exponential(size=20)
    found = bca_interval(x)
    wanted = stats.bootstrap((x,), np.mean, method="BCa", random_state=np.random.default_rng(7)).confidence_interval
    assert found == bca_interval(x)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=.03)
    assert found.high - found.mean > found.mean - found.low            # as skewed as the values
    assert (bca_interval([.2, .2, .2]).low, bca_interval([.2, .2, .2]).high) == (.2, .2)


def test_a_bca_interval_covers_too_little_at_four_seeds(monkeypatch):
    """.79 by the design; t_interval covers .95 on the same samples."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    found = [bca_interval(x, seed=k) for k, x in enumerate(np.random.default_rng(4).normal(0, 1, (400, 4)))]
    assert np.mean([i.low <= 0 <= i.high for i in found]) == pytest.approx(.79, abs=.05)


def test_the_probability_of_improvement_counts_a_tie_half():
    found = probability_of_improvement([1, 2, 0, -1])
    assert found.mean == 2.5 / 4 and 0 < found.low < .5 < found.high < 1
    assert probability_of_improvement([1] * 20).low == pytest.approx(.025 ** (1 / 20))


@pytest.mark.parametrize("k", [0, 1, 7, 20])
def test_the_interval_of_a_share_is_scipys(k):
    found, wanted = share_interval(k, 20), stats.binomtest(k, 20).proportion_ci(.95, "exact")
    assert (found.mean, found.low, found.high) == pytest.approx((k / 20, wanted.low, wanted.high))


def test_an_interaction_is_a_difference_of_differences():
    s = lambda *values: pd.Series(values, range(len(values)))
    assert paired_values(s(5, 7, 9), s(1, 2, 3), s(3, 3), s(2, 1)).tolist() == [3, 3]
    assert paired_values(s(5, 7), s(1, 2, 3)).tolist() == [4, 5]


@pytest.mark.parametrize("test", [sign_flip_p, lambda x: equivalence_p(x, 1), bca_interval,
                                  probability_of_improvement])
def test_a_test_of_no_numbers_is_refused(test):
    for values in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="a test needs numbers"):
            test(values)


# --- what could have been seen ---


@pytest.mark.parametrize("n, power", [(6, .14), (12, .5), (20, .86)])
def test_the_power_of_the_equivalence_test_is_that_of_the_design(n, power):
    """paper.md: TOST at ±1 point with a paired sd of .014."""
    assert equivalence_power(.014, n, .01) == pytest.approx(power, abs=.02)


def test_simulated_arms_that_are_equal_are_found_equal_as_often_as_the_power_says():
    samples = np.random.default_rng(5).normal(0, .014, (2000, 20))
    found = np.mean([equivalence_p(x, .01) < .05 for x in samples])
    assert found == pytest.approx(equivalence_power(.014, 20, .01), abs=.025)


def test_arms_that_differ_by_the_margin_are_called_equal_in_5_percent_at_most():
    samples = np.random.default_rng(6).normal(.01, .014, (2000, 20))
    assert np.mean([equivalence_p(x, .01) < .05 for x in samples]) < .065


@pytest.mark.parametrize("n", [2, 10, 20])
def test_a_detectable_difference_is_detected_in_80_percent(n):
    shift = detectable_difference(.014, n)
    samples = np.random.default_rng(n).normal(shift, .014, (2000, n))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < .05).mean() == pytest.approx(.8, abs=.03)
    assert detectable_difference(.014, 1) == math.inf


@pytest.mark.parametrize("n", [4, 6, 10, 20])
def test_a_true_zero_is_significant_in_5_percent_at_most(n):
    samples = np.random.default_rng(n).normal(0, .014, (1000 if n < 20 else 300, n))
    found = np.mean([sign_flip_p(x) < .05 for x in samples])
    assert found <= (.065 if n < 20 else .08) and (n >= 6 or found == 0)


def test_identical_arms_are_told_apart_in_5_percent_at_most():
    assert false_positive_rate(np.random.default_rng(8).normal(.5, .01, 24), repeats=600) <= .08
    with pytest.raises(ValueError, match="needs 12 runs of an arm at least, not 11"):
        false_positive_rate(range(11))


def test_the_identical_arms_control_of_several_arms_cries_wolf_at_most_as_often_as_it_may():
    rng = np.random.default_rng(9)
    arms = [rng.normal(mean, sd, n) for mean, sd, n in ((.4, .01, 11), (.5, .02, 10), (.6, .005, 3), (.1, 1., 1))]
    assert identical_pairs_rate(arms, repeats=600) <= .08
    with pytest.raises(ValueError, match="needs 6 pairs of runs at least, not 5"):
        identical_pairs_rate([range(11)])


# --- the verdict ---


@pytest.fixture
def quick_bca(monkeypatch):
    monkeypatch.setattr(statistics, "bca_interval", lambda x: t_interval(x))


def sample(mean: float, sd: float = .01, n: int = 20) -> tuple[float, ...]:
    """n values of exactly that mean and standard deviation."""
    x = stats.norm.ppf((np.arange(n) + .5) / n)
    return tuple(mean + sd * (x - x.mean()) / x.std(ddof=1))


def verdict(mean: float, direction: str, sd: float = .01, n: int = 20, **more) -> str:
    return judge_family([Question(sample(mean, sd, n), direction, more.pop("least_n", n), .01, **more)])[0].verdict


@pytest.mark.parametrize("mean, direction, expected", [
    (.02, "greater", HOLDS), (-.02, "greater", FAILS), (0, "greater", FAILS), (.02, "less", FAILS),
    (-.02, "less", HOLDS), (0, "equal", HOLDS), (.03, "equal", FAILS), (-.03, "equal", FAILS),
    (.01, "equal", UNDECIDED), (0, "no_gain", HOLDS), (-.05, "no_gain", HOLDS), (.03, "no_gain", FAILS),
    (.01, "no_gain", UNDECIDED)])
def test_the_verdict_on_20_clear_seeds(quick_bca, mean, direction, expected):
    assert verdict(mean, direction) == expected


def test_a_failed_test_alone_refutes_nothing(quick_bca):
    """No gain seen, but one of a margin or more isn't excluded."""
    assert verdict(.004, "greater", sd=.04) == UNDECIDED == verdict(-.004, "greater", sd=.04)
    assert verdict(.0, "equal", sd=.04) == UNDECIDED


def test_too_few_seeds_describe(quick_bca):
    found = judge_family([Question(sample(.1, n=9), "greater", 10, .01)])[0]
    assert (found.verdict, found.n) == (DESCRIPTIVE, 9) and math.isnan(found.p) and found.estimate.mean > .09
    assert judge_family([Question((), "greater", 10, .01)])[0].verdict == NOT_JUDGED
    assert verdict(.1, "shown") == DESCRIPTIVE
    assert judge_family([Question((.1,), "shown", 10)])[0].estimate.n == 1


def test_a_value_to_compare_with(quick_bca):
    assert verdict(.53, "greater", value=.5) == HOLDS and verdict(.47, "greater", value=.5) == FAILS


@pytest.mark.parametrize("values, direction, expected", [
    ((1, 2, 3, 4), "each_above", HOLDS), ((1, 2, 3, -4), "each_above", UNDECIDED),
    ((-1, -2, 0, -4), "each_above", FAILS),
    ((-1, -2, -3, -4), "each_below", HOLDS), ((1, 2, 3), "each_above", DESCRIPTIVE)])
def test_an_event_is_in_every_run_or_in_none(quick_bca, values, direction, expected):
    found = judge_family([Question(values, direction, 4, value=0)])[0]
    assert found.verdict == expected and found.met.n == len(values)


def test_holm_counts_the_whole_family_also_what_has_no_records_yet(quick_bca):
    """p = 2 / 2^6 alone is significant; in a family of two it is not."""
    clear = Question((.02, .03, .02, .03, .02, .03), "greater", 6, .001)
    alone, (first, missing) = judge_family([clear])[0], judge_family([clear, Question((), "greater", 6, .001)])
    assert (alone.p, alone.verdict) == (2 / 64, HOLDS)
    assert (first.p_adjusted, first.verdict, missing.verdict) == (4 / 64, UNDECIDED, NOT_JUDGED)


def test_a_family_of_four_methods_that_do_nothing_is_wrong_in_5_percent_at_most(quick_bca):
    """Wrong is a difference found where there is none; equivalence found is right."""
    rng, wrong, refuted = np.random.default_rng(9), 0, 0
    for _ in range(400):
        found = judge_family([Question(tuple(rng.normal(0, .014, 10)), "greater", 10, .01) for _ in range(4)])
        wrong += any(j.p_adjusted < .05 for j in found)
        refuted += any(j.verdict == FAILS and j.p_adjusted >= .05 for j in found)
    assert wrong / 400 <= .07 and refuted > 0


def test_a_method_that_gains_just_the_margin_is_refuted_in_5_percent_at_most(quick_bca):
    rng = np.random.default_rng(10)
    found = [judge_family([Question(tuple(rng.normal(.01, .014, 20)), "greater", 20, .01)])[0].verdict
             for _ in range(150)]
    assert found.count(FAILS) / 150 <= .08 and found.count(HOLDS) / 150 > .75


@pytest.mark.parametrize("verdicts, expected", [
    ([HOLDS, HOLDS], HOLDS), ([HOLDS, FAILS, UNDECIDED], FAILS), ([HOLDS, UNDECIDED], UNDECIDED),
    ([HOLDS, DESCRIPTIVE], UNDECIDED), ([HOLDS, NOT_JUDGED], UNDECIDED), ([DESCRIPTIVE, NOT_JUDGED], DESCRIPTIVE),
    ([NOT_JUDGED], NOT_JUDGED)])
def test_a_claim_holds_where_all_its_contrasts_do(verdicts, expected):
    assert overall(verdicts) == expected
