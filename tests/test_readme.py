"""What the README claims comes from the committed records and the code."""

import json
import re
from dataclasses import fields
from pathlib import Path

from fer_lib.experiment import Experiment
from fer_lib.records import read_records
from fer_lib.statistics import compare_arms

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows_after(marker: str) -> list[list[str]]:
    """The cells of the first table after the marker, without its two head lines."""
    lines = README.split(marker, 1)[1].strip().splitlines()
    table = [line for line in lines[:lines.index("")] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_results_table_is_that_of_the_records():
    runs = read_records(ROOT / "notebooks" / "results" / "table1_fer2013").runs
    arms = {row.arm: row for row in compare_arms(runs, "chosen_test_macro_f1").itertuples()}
    last = {row.arm: row.score.mean for row in compare_arms(runs, "last_test_macro_f1").itertuples()}
    most = {row.arm: row.score.mean for row in compare_arms(runs, "max_val_macro_f1").itertuples()}
    shown = rows_after("<!-- results:table1_fer2013 -->")
    assert [row[0] for row in shown] == list(arms)
    for arm, n, score, difference, at_last, largest, _, flips in shown:
        steps = runs.loc[runs["name"] == arm, "flips_steps"]
        assert (n, score) == (str(arms[arm].score.n), f"{arms[arm].score:.3f}")
        assert difference == (f"{arms[arm].difference:+.3f}" if arms[arm].difference else "")
        assert (at_last, largest) == (f"{last[arm]:.3f}", f"{most[arm]:.3f}")
        assert flips == f"{steps.min()}–{steps.max()}"


def test_results_state_where_and_on_what_they_were_made():
    runs = read_records(ROOT / "notebooks" / "results" / "table1_fer2013").runs
    text = " ".join(README.split("## Results", 1)[1].split("<!--")[0].split())
    assert set(runs["env_date"]) == set(re.findall(r"Made (\d{4}-\d\d-\d\d)", text))
    assert all(device in text for device in runs["env_device"])
    assert all(f"torch {version}" in text for version in runs["env_torch"])
    for split in ("val", "test"):
        assert set(runs[f"n_{split}"]) <= {int(n.replace(",", "")) for n in re.findall(r"\d,\d{3}", text)}
    assert {f"n = {n}" for n in runs.groupby("name").size()} == set(re.findall(r"n = \d+", text))


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


def test_settings_that_the_choices_table_names_exist():
    rows = rows_after("## Where the paper leaves a choice")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[-1])}
    assert len(named) > 15
    assert named <= {f.name for f in fields(Experiment)}


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
