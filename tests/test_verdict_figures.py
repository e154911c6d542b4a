"""Verdicts as notebooks show them: tables, forests and sentences hold the judgements' own numbers."""

import dataclasses
import re

import numpy as np
import pytest
import yaml
from test_claims import RESULTS, STUDIES, arm, asked, plant, quick_bca, run  # noqa: F401

from fer_lib import verdict_figures
from fer_lib.claims import judge
from fer_lib.claims_file import ClaimError, read_claims
from fer_lib.figures import png
from fer_lib.statistics import (
    DESCRIPTIVE,
    HOLDS,
    NOT_JUDGED,
    Interval,
    detectable_difference,
    equivalence_power,
    seeds_needed,
)
from fer_lib.study_records import judged, to_make, to_make_each
from fer_lib.workspace import Workspace, find_workspace


def test_the_table_has_a_row_a_contrast_with_records_and_its_numbers(kit):
    table = verdict_figures.contrast_table(kit)
    with_records = [c for v in kit for c in v.contrasts if c.judgement.n]
    assert len(table) == len(with_records) > 20
    for row, c in zip(table.itertuples(), with_records):
        low = float(row[table.columns.get_loc("ours [95 %]") + 1].split("[")[1].split(",")[0])
        assert low == pytest.approx(c.judgement.estimate.low, rel=.06, abs=6e-4)
        assert row.verdict == ("shown" if c.contrast.direction == "shown" else c.judgement.verdict)
        assert row.n.split()[0] == str(c.judgement.n)


def test_a_claim_is_a_row_with_the_papers_number_beside_ours(tmp_path):
    planted = plant(tmp_path, arm("baseline", 0.), arm("a", .05))
    claims = asked(tmp_path, paper={"a": .38, "b": .34})
    v, = judge(claims, planted)
    row = verdict_figures.claim_table([v]).loc["C1"]
    assert row["verdict"] == HOLDS == v.verdict and row["paper"] == "+0.040" and row["n"] == "20 (needs 20)"
    ours = v.contrasts[0].judgement.estimate.mean
    assert float(row["ours − paper"]) == pytest.approx(ours - .04, abs=6e-4)
    assert row["its contrasts"] == f"1 {HOLDS}" and "data" not in row
    assert verdict_figures.sentence(v).startswith(
        f"C1, the paper says: “{v.claim.text}”. Verdict: HOLDS. s: a - baseline: chosen_test_macro_f1 +0.05")


def test_a_claim_without_records_says_what_is_missing(tmp_path):
    few, = judge(asked(tmp_path), plant(tmp_path / "few", arm("baseline", 0., n=6), arm("a", .05, n=6)))
    row = verdict_figures.claim_table([few]).loc["C1"]
    assert (row["n"], row["its contrasts"]) == ("6 (needs 20)", f"1 {DESCRIPTIVE}")      # how few is said once
    v, = judge(asked(tmp_path), tmp_path)
    row = verdict_figures.claim_table([v]).loc["C1"]
    assert row["verdict"] == NOT_JUDGED and "no records of s" in row["its contrasts"]
    assert verdict_figures.sentence(v).startswith(f"C1, the paper says: “{v.claim.text}”. No verdict: NOT JUDGED.")
    assert verdict_figures.contrast_table([v]).empty
    with pytest.raises(ValueError, match="no records of chosen_test_macro_f1 for C1"):
        verdict_figures.forest([v], "chosen_test_macro_f1", "difference")


def test_the_numbers_shown_are_those_that_decided(kit):
    """Of C13's two contrasts one holds and one is undecided, and so is the claim."""
    c13, = (v for v in kit if v.claim.name == "C13")
    assert verdict_figures.deciding(c13).judgement.verdict == c13.verdict
    row = verdict_figures.claim_table([c13]).loc["C13"]
    assert row["decided by"].startswith("dynamic, flips_last_third, above 0.5 in ")
    shown = dataclasses.replace(c13, contrasts=tuple(
        dataclasses.replace(c, contrast=dataclasses.replace(c.contrast, direction="shown")) for c in c13.contrasts))
    assert verdict_figures.deciding(shown) is None
    told = verdict_figures.sentence(shown)
    here = [c for c in shown.contrasts if c.judgement.n]
    for c in here:                                      # what is only shown stands in the sentence where all is
        assert f"{verdict_figures.short(c)}: {c.contrast.metric} {verdict_figures.number(c.judgement.estimate)}" in told
    half = dataclasses.replace(c13, contrasts=(c13.contrasts[0], shown.contrasts[1]))
    assert verdict_figures.sentence(half).count("(n = ") == 1 and told.count("(n = ") == len(here) > 2


def test_a_mean_that_one_seed_makes_is_shown_with_its_median(tmp_path):
    rows = [[run("a", k, .4 + gain) for k, gain in enumerate(gains)] for gains in ((.001,) * 9 + (.3,), (.03,) * 10)]
    for k, (own, told) in enumerate(zip(rows, ("+0.001", ""))):
        folder = plant(tmp_path / str(k), [run("baseline", seed, .4) for seed in range(10)], own)
        v, = judge(asked(tmp_path), folder)
        assert verdict_figures.outlying(v.contrasts[0]) == told


def test_the_forest_draws_each_seed_the_interval_and_the_paper(tmp_path):
    v, = judge(asked(tmp_path, paper={"a": .38, "b": .34}), plant(tmp_path, arm("baseline", 0.), arm("a", .05)))
    figure = verdict_figures.forest([v], "chosen_test_macro_f1", "difference", "title")
    assert png(figure).startswith(b"\x89PNG")
    c, drawn = v.contrasts[0], [line.get_xdata() for line in figure.axes[0].lines]
    assert any(len(x) == 20 and np.allclose(sorted(x), sorted(c.sample.values)) for x in drawn)
    assert any(len(x) == 2 and np.allclose(x, [c.judgement.estimate.low, c.judgement.estimate.high]) for x in drawn)
    assert any(len(x) == 1 and np.isclose(x[0], .04) for x in drawn)
    told = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert told == {"margin ±0.01", HOLDS, "paper (AffectNet)"}


def test_the_page_is_the_same_each_time_and_shows_text_as_text(kit):
    table = verdict_figures.claim_table(kit)
    assert verdict_figures.page(table).data == verdict_figures.page(table).data
    table.loc["C1", "the paper says"] = "<b>bold</b>"
    table = table.rename(index={"C2": "<b>bold</b>"}, columns={"paper": "<b>bold</b>"})
    folded = verdict_figures.page(table, "all <of> it").data
    assert "95\u00a0%" in folded and not re.search(r"\[[-+.\d]+, ", folded), "intervals and heads break between words"
    assert "<b>bold" not in folded and "<summary>all &lt;of&gt; it</summary>" in folded
    assert "<style" not in folded and '<td style="text-align:left">' in folded, "a page that isn't trusted shows it so"
    assert verdict_figures.page(table.iloc[:0], "all <of> it").data == "<p>all &lt;of&gt; it: nothing</p>"


def test_lines_hold_each_contrast_whole_and_stay_narrow(kit):
    for v in kit:
        table = verdict_figures.contrast_table([v]).drop(columns="claim", errors="ignore")
        if table.empty:
            continue
        head, *said = verdict_figures.lines(table).splitlines()
        assert max(map(len, (head, *said))) <= 110 and head.startswith("contrast")
        if "measure" in head:
            assert [line[:len(name) + 1] for line, name in zip(said, table["contrast"])] == [
                f"{name} " for name in table["contrast"]]
            continue
        names, numbers = ([line for line in said if line.startswith("    ") == own] for own in (False, True))
        assert " ".join(" ".join(names).split()) == " ".join(table["contrast"]) and v.claim.name != "C3"
        assert "measure" in numbers[0] and all(ours in line for ours, line in zip(table["ours [95 %]"], numbers[1:]))
        assert len(numbers) == len(table) + 1


def test_the_legend_has_each_column_and_measure_that_occurs(kit):
    said = verdict_figures.legend(kit)
    for column in verdict_figures.contrast_table(kit):
        name = column.removesuffix(" [95 %]")
        assert name in ("claim", "measure") or f"\n{name} " in f"\n{said}", column
    for measure in {c.contrast.metric for v in kit for c in v.contrasts if c.judgement.n}:
        assert f"\n{measure} " in said, measure
    assert max(map(len, said.splitlines())) <= 110 and verdict_figures.legend([]) == ""


def test_whose_words_a_claim_is_and_whether_there_is_a_verdict(kit):
    for v in kit:
        said = verdict_figures.head(v)
        assert ("the paper says: “" in said) == v.claim.name.startswith("C")
        assert ("No verdict: " in said) == (v.verdict in (DESCRIPTIVE, NOT_JUDGED)) and v.verdict.upper() in said


def test_small_numbers_keep_two_digits():
    assert verdict_figures.number(Interval(.114, .107, .122, 7)) == "+0.114 [+0.107, +0.122]"
    assert verdict_figures.number(Interval(.00048, .0004, .00056, 4)) == "+0.00048 [+0.0004, +0.00056]"


# --- what is judged, and what is lacking ---


def test_claims_are_judged_by_name_and_what_is_not_there_is_named(tmp_path):
    assert [v.claim.name for v in judged(find_workspace(), ("C7", "C1"))] == ["C7", "C1"]
    with pytest.raises(ClaimError, match="no claim 'C99'"):
        judged(find_workspace(), ("C99",))
    with pytest.raises(ClaimError, match="no folder of records at 'nowhere'"):
        judged(find_workspace(), records="nowhere")


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """The verdicts on Table 1's records and no others."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "table1").symlink_to(RESULTS / "table1")
    return judge(read_claims(STUDIES / "claims.yml"), folder)


def test_the_commands_name_the_arms_that_are_lacking_and_nothing_else(early):
    found = {v.claim.name: v for v in early}
    assert to_make(find_workspace(), [found["C3"]]).splitlines()[0].startswith(
        "python -m fer_lib.batch notebooks/studies/t_sweep.yml --arms T_2_epochs,")
    full = found["C12"]
    judged_only = dataclasses.replace(full, contrasts=tuple(c for c in full.contrasts if c.judgement.n))
    assert judged_only.contrasts and to_make(find_workspace(), [judged_only]) == ""


def test_costs_are_told_where_records_tell_them(early, tmp_path):
    lacking = [v for v in early if v.verdict == NOT_JUDGED and v.contrasts]
    assert "runs at most. A run of Table 1 took" in to_make(find_workspace(), lacking)
    nowhere = Workspace(tmp_path, tmp_path, tmp_path)
    (tmp_path / "notebooks").symlink_to(STUDIES.parent)
    assert "runs at most." in to_make(nowhere, lacking)


def test_each_claim_has_its_own_commands_and_cost(early):
    table = to_make_each(find_workspace(), early)
    lacking = {v.claim.name: v for v in early if to_make(find_workspace(), [v])}
    assert list(table.index) == list(lacking) and not {"C19", "C20"} & set(lacking)
    for name, row in table.iterrows():
        assert row["commands"].startswith("python -m fer_lib.batch notebooks/studies/")
        alone = to_make(find_workspace(), [lacking[name]])
        assert [*row["commands"].split(", then "), row["cost"]] == alone.splitlines()
    assert to_make_each(find_workspace(), []).empty


# --- choices ---


def test_each_choice_names_arms_that_there_are_and_judges_nothing():
    choices = read_claims(STUDIES / "choices.yml")
    claims = read_claims(STUDIES / "claims.yml")
    assert all(claims.data[study] == data for study, data in choices.data.items())
    arms = {f"{study}/{name}" for study in choices.data
            for name in yaml.safe_load((STUDIES / f"{study}.yml").read_text())["arms"]}
    for choice in choices.claims:
        for c in choice.contrasts:
            assert set(c.arms) <= arms and c.direction == "shown"
    assert {v.verdict for v in judge(choices, RESULTS)} <= {DESCRIPTIVE, NOT_JUDGED}


# --- how many seeds ---


@pytest.mark.parametrize("sd", [.004, .0114, .02])
def test_the_seeds_needed_are_the_fewest_that_are_enough(sd):
    n = seeds_needed(sd, difference=.01)
    assert detectable_difference(sd, n) <= .01 and (n == 6 or .01 < detectable_difference(sd, n - 1))
    n = seeds_needed(sd, margin=.01)
    assert equivalence_power(sd, n, .01) >= .8 > equivalence_power(sd, n - 1, .01)


def test_seeds_needed_has_an_end_and_refuses_nonsense():
    assert seeds_needed(1., difference=.001, most=50) == 51
    assert seeds_needed(.001, difference=.01) == 6      # fewer are never significant, however small the spread
    for wrong in ({}, {"difference": .01, "margin": .01}, {"difference": -1.}):
        with pytest.raises(ValueError, match="give a difference or a margin above 0"):
            seeds_needed(.01, **wrong)
