"""What the README claims comes from the committed records and the code."""

import json
import re
import statistics
from dataclasses import fields
from pathlib import Path

import pytest
from scipy import stats

from fer_lib import readme_results
from fer_lib.experiment import Experiment
from fer_lib.files import RecordError
from fer_lib.readme_results import BEGIN, END
from fer_lib.records import read_records
from fer_lib.statistics import compare_arms
from fer_lib.study_records import judged
from fer_lib.workspace import Workspace, find_workspace

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def judged_once(kit):
    """The claims are judged on the same records each time."""
    verdicts = {"claims.yml": kit, "choices.yml": judged(find_workspace(), file="choices.yml")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readme_results, "judged", lambda workspace, file="claims.yml": verdicts[file])
        yield


def rows_after(marker: str) -> list[list[str]]:
    """The cells of the first table after the marker, without its two head lines."""
    table = re.search(r"(^\|.*\n)+", README.split(marker, 1)[1], re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_results_are_those_of_the_records():
    """To the letter: whoever adds records runs `make readme-results`."""
    assert readme_results.main(["--check"]) == 0, "make readme-results"


def test_results_have_n_intervals_hardware_and_a_verdict_for_each_claim():
    text = README.split(BEGIN)[1].split(END)[0]
    runs = read_records(ROOT / "notebooks" / "results" / "table1").runs
    flat = " ".join(text.split())
    for fact in ("env_device", "env_date", "env_torch"):
        assert all(value.split("+")[0] in flat for value in runs[fact])
    assert re.search(r"\*\*n = \d+( to \d+)? seeds an arm\*\*", flat) and "GPU seconds a run" in flat
    assert "wall time" in flat
    shown = {row[0]: row for row in rows_after(BEGIN)}
    for arm in compare_arms(runs, "chosen_test_macro_f1").itertuples():
        assert shown[arm.arm][1:3] == [str(arm.score.n), f"{arm.score:.3f}"]
    assert [row[0] for row in rows_after("### Each claim, judged")] == [
        *(f"C{k}" for k in range(1, 23)), "K1", "K2", "K3"]


def test_another_number_is_found_and_mended(tmp_path, monkeypatch, capsys):
    (tmp_path / "fer_lib").mkdir()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    digit = re.search(r"\| baseline \| \d+ \| 0\.(\d)", README)
    wrong = README[:digit.start(1)] + str((int(digit[1]) + 1) % 10) + README[digit.end(1):]
    (tmp_path / "README.md").write_text(wrong)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readme_results, "find_workspace", lambda: Workspace(tmp_path, tmp_path / "runs", tmp_path))
    assert readme_results.main(["--check"]) == 1 and (tmp_path / "README.md").read_text() == wrong
    assert "make readme-results" in capsys.readouterr().out
    assert readme_results.main([]) == 0 and (tmp_path / "README.md").read_text() == README


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_markers_that_are_not_there_are_named(text):
    with pytest.raises(RecordError, match="README.md needs the lines"):
        readme_results.written(text, "results")


def test_what_else_raises_f1_is_the_controls_paired_by_seed():
    """Counted anew from the tables; `again` has the baseline's seeds and 100."""
    runs = {name: read_records(ROOT / "notebooks" / "results" / name).runs for name in ("table1", "controls")}
    score = {(name, arm): own.set_index("seed")["chosen_test_macro_f1"] for name, table in runs.items()
             for arm, own in table.groupby("name")}
    text = README.split("### What else raises F1", 1)[1].split("###", 1)[0]
    shown = {row[0].strip("`"): row[1:] for row in rows_after("### What else raises F1") if row[0].startswith("`")}
    above = set(re.split(r",\s+", text.split("Above it lie ", 1)[1].split(". ", 1)[0]))
    assert set(shown) == set(runs["controls"]["name"]) - {"bn_negation"}    # K2's: against the periodic arm
    for arm, (n, said) in shown.items():
        own = score["controls", arm].rename(lambda seed, arm=arm: seed - 100 * (arm == "again"))
        d = (own - score["table1", "baseline"]).dropna()
        low = d.mean() - stats.t.ppf(.975, len(d) - 1) * d.sem()
        assert n == str(len(d)) and said.startswith(f"{d.mean():+.3f} [{low:+.3f}, ")
        assert (arm in above) == (low > 0)


def test_a_strong_recipe_is_counted_anew():
    runs = {name: read_records(ROOT / "notebooks" / "results" / name).runs for name in ("table1", "strong")}
    text = " ".join(README.split("**In short**", 1)[1].split("\n\n")[0].split())
    plain, strong = text.split("With a strong recipe in all arms:")
    shown = {row[0]: row for row in rows_after("### With a strong recipe")}
    assert set(shown) == set(runs["strong"]["name"])
    for said, column, study in ((strong, 3, "strong"), (plain, 4, "table1")):
        score = {arm: own.set_index("seed")["chosen_test_macro_f1"] for arm, own in runs[study].groupby("name")}
        for arm in ("periodic", "dynamic", "dropout"):
            d = (score[arm] - score["baseline"]).dropna()
            half = stats.t.ppf(.975, len(d) - 1) * d.sem()
            low, high = d.mean() - half, d.mean() + half
            place = "above it" if low > 0 else "below it" if high < 0 else "not told apart from it"
            assert f"{arm} {place} ({d.mean():+.3f} [{low:+.3f}, {high:+.3f}])" in said
            assert shown[arm][column] == f"{d.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    base = runs["strong"][runs["strong"]["name"] == "baseline"]
    train, val = base["chosen_train_loss"].mean(), base["chosen_val_loss"].mean()
    assert shown["baseline"][5] == f"{train:.2f} / {val:.2f}"
    words = " ".join(README.split("### With a strong recipe", 1)[1].split("###")[0].split())
    plain = runs["table1"][runs["table1"]["name"] == "baseline"]
    assert f"validation loss at the chosen epoch from {plain['chosen_val_loss'].mean():.2f} to {val:.2f}" in words


def test_speed_is_that_of_the_record():
    """Each line's ratio, rate, target and verdict are those of one row; no figure is without its row."""
    record = json.loads((ROOT / "notebooks" / "results" / "speed_h100.json").read_text())
    text = README.split("## Speed", 1)[1].split("## Your own data", 1)[0]
    assert record["environment"]["date"] in text and record["environment"]["device"].removesuffix(" HBM3") in text
    assert f"torch {record['environment']['torch'].split('+')[0]}" in text
    assert f"medians of {record['stretches']}" in text
    known = set()
    for row in record["rows"]:
        rate = "" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f} images/s"
        sign = "≥" if row["floor"] else "≤"
        target = "" if row["target"] is None else f"{sign} {row['target']:g}, {row['verdict']}"
        known |= {(f"{row['ratio']:.{digits}f} x", rate, target) for digits in (1, 3)}
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|"))[1:] for line in text.splitlines()
             if re.match(r"\| .*\d x \|", line)]
    assert len(shown) >= 15 and set(shown) <= known


def test_speed_on_the_newer_gpu_is_that_of_its_record():
    record = json.loads((ROOT / "notebooks" / "results" / "speed_h200.json").read_text())
    text = " ".join(README.split("The same on an H200", 1)[1].split("\n\n")[0].split())
    rows = {(row["section"], row["figure"]): row for row in record["rows"]}
    bf16, autorelu = "48 px, batch 64, bf16", "AutoReLU, 48 px, batch 64, default precision, "
    many = rows[bf16, "compiled, 24 runs at once"]
    one, again, two = (record["table1"][k] for k in ("one_gpu", "one_gpu_again", "two_gpus"))
    parts = record["table1"]["where_its_time_goes"]
    first, second, *later = parts["seconds_an_epoch"].values()
    with_checkpoints, without, with_again = later
    assert round(with_again, 1) == round(without, 1) and round(with_checkpoints, 1) - round(without, 1) < .4
    for said in (f"({record['environment']['date']}, ", f"bf16 {rows[bf16, 'compiled step, one run']['ratio']:.1f} x",
                 f"24 runs {many['ratio']:.1f} x ({many['images_per_second']:,.0f} images/s;",
                 f"exact {rows[autorelu + 'recorded', 'exact']['ratio']:.3f} x, literal "
                 f"{rows[autorelu + 'recorded', 'literal']['ratio']:.3f} x, compiled "
                 f"{rows[autorelu + 'compiled', 'literal']['ratio']:.3f} x",
                 f"took {one['seconds_to_last_result']} and {again['seconds_to_last_result']} s from the command to "
                 f"the last result in two measurements (target ≤ {one['target_seconds']}, missed: "
                 f"{again['seconds_to_first_step']} s until the first step",
                 f"{parts['import_torch'] + parts['import_fer_lib']:.0f} s go into importing, "
                 f"{parts['until_first_steps']:.0f} s into building and recording {one['runs']} networks "
                 f"({parts['of_these_building_networks']:.0f} s to build them)",
                 f"take {first + 2 * second - 3 * without:.0f} s more than three later ones",
                 f"an epoch takes {without:.1f} s, with checkpoints or without",
                 f"30 of them are {30 * without:.0f} s",
                 f"then {one['seconds_an_epoch']:.1f} to {again['seconds_an_epoch']:.1f} s an epoch",
                 "and {} to {} s more".format(*sorted(k["seconds_to_end"] - k["seconds_to_last_result"]
                                                      for k in (one, again))),
                 "took {} to {} s in place of {}".format(*two["seconds_an_epoch"], one["seconds_an_epoch"]),
                 "{:.2f} to {:.2f} x".format(*(one["seconds_an_epoch"] / s for s in two["seconds_an_epoch"][::-1]))):
        assert said in text, said


def test_the_speed_of_packing_is_that_of_its_record():
    record = json.loads((ROOT / "notebooks" / "results" / "data_speed.json").read_text())
    text = " ".join(README.split("**How fast.**", 1)[1].split("\n\n")[0].split())
    middle = lambda change: statistics.median(change(one) for one in record["rates"])                       # noqa: E731
    share = middle(lambda one: one["decode"] / (record["workers"] * one["convert"]))
    few, *_, many = record["memory"]
    growth = 1024 * (many["parent_mb"] - few["parent_mb"]) / (many["n"] - few["n"])
    assert record["workers"] == record["hardware"]["cores"] == 2 and share >= .9 and growth <= 3
    for said in (f"at {middle(lambda one: 1 / one['convert']):,.0f} images a second on two cores, "
                 f"{share:.2f}".replace(" 0.", " ."), f"(target ≥ .9, met; n = {len(record['rates'])})",
                 f"files at {middle(lambda one: 1 / one['loader']):,.0f}, in each epoch",
                 f"grows by {growth:.1f} KB an image ({few['n']:,} to {many['n']:,} images; target ≤ 3, met)",
                 f"torch {record['hardware']['packages']['torch']}, {record['hardware']['date']}"):
        assert said in text, said


def test_settings_that_the_choices_table_names_exist():
    rows = rows_after("## Where the paper leaves a choice")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[-1])}
    assert len(named) > 15
    assert named <= {f.name for f in fields(Experiment)}


def test_links_lead_somewhere():
    """Files that exist, and sections of notebooks that do."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []
    for path, section in (link.split("#") for link in links if "#" in link):
        cells = json.loads((ROOT / path).read_text())["cells"]
        heads = [line for c in cells if c["cell_type"] == "markdown" for line in "".join(c["source"]).splitlines()]
        assert f"## {section.replace('-', ' ')}" in heads


def test_a_headings_text_is_about_it():
    """What stood under "Many machines" by mistake: a reader's own picture, and what a record holds."""
    own = README.split("### Many machines")[1].split("\n## ")[0]
    assert "Your own picture" in README and "Your own picture" not in own and "A run's record lies" not in own
