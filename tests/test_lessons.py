"""The lesson notebooks: their form, and what they print with quick parameters."""

import re
import statistics

import nbformat
import pytest
from test_notebooks import ROOT, code_cells, execute, is_parameters

from fer_lib.exercises import EXERCISES

LESSONS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
           if any("from fer_lib.exercises import" in c.source for c in code_cells(path))]
each = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


@each
def test_a_lesson_promises_a_time_says_what_to_know_and_ends_with_a_recap(path):
    notebook = nbformat.read(path, 4)
    opening, text = notebook.cells[0].source, "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert re.search(r"(minute|seconds) on two cores", opening) and "need to know" in opening
    for part in ("## Exercises", "## Try it yourself", "## Recap"):
        assert text.count(part) == 1


@each
def test_cells_are_short(path):
    lengths = [len(c.source.splitlines()) for c in code_cells(path) if not is_parameters(c)]
    assert statistics.median(lengths) < 8 and max(lengths) <= 30


@each
def test_each_picture_has_words(path):
    seen = 0
    for cell in code_cells(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                seen += 1
                assert len(output.metadata["image/png"]["alt"]) > 40
    assert seen


@each
def test_each_exercise_is_a_stub_a_check_and_a_folded_solution(path):
    text = "\n".join(c.source for c in code_cells(path))
    names = re.findall(r'^check\("(\w+)", ', text, re.M)
    assert 2 <= len(names) <= 3 and names == re.findall(r'^solution\("(\w+)"\)$', text, re.M)
    assert set(names) <= set(EXERCISES)


QUICK = {"02_activations": ({"steps": 4, "short": 20, "live": "off"},
                            ["w = 0.1: 20 of 20 losses are ReLU's to the last bit", "and 0 both times"]),
         "03_flip_is_not_noise": ({"steps": 4, "fork_steps": 6, "twin_steps": 8, "flip_interval": 3, "seed": 4}, [
             "8 steps, 2 toggles; largest difference: 0.0\n", "exact negatives: 0; others: 0\n",
             "BN negated, Adam's moment too: differs from the flip by at most 0 in the first 10 steps, 0 in all, "
             "on average +0\n",
             "random: Gaussian noise, dropout\n"]),
         "05_periodic": ({"epochs": 2, "flip_interval": 12}, [
             "toggles act from steps [12, 24, 36, 48] | as recorded: True", "losses before step 12: 0.0"]),
         "06_dropout": ({"epochs": 1, "dropout_p": .5}, [
             "dropout at 8 places, p = 0.5; evaluation drops something: False"]),
         # 07 and 08 with a folder in which no study has records; with records nbval compares them (see COMPARED)
         "07_dynamic": ({"epochs": 1, "panel_steps": 300, "live": "off", "records": "notebooks/studies"}, [
             "within 50 steps, a network in double precision: [26]", "adamw: 0 flips in 50 steps",
             "flips without momentum (β₁ = 0): 0", "No records of table1 here", "No records of dynamics here",
             "No verdict: NOT JUDGED"]),
         "08_placement": ({"epochs": 1, "images": 16, "live": "off", "records": "notebooks/studies"}, [
             "the same bits at 20 of 20 blue sites", "all act1 sites have one sign at each step: True",
             "the mean moves by 0.000 standard", "No records of placement here", "No verdict: NOT JUDGED",
             "no pair has two seeds here"])}
COMPARED = {"07_dynamic": ["the number alone: 272 flips, the first at 6,275",
                           "“AutoReLU can be applied only with 0 < w0 < 1”. Verdict: DOES NOT HOLD"],
            "08_placement": ["act1 - all", "the paper says: “One BN+ReLU unit a block is best"]}


# nbval runs each lesson with its own parameters beside this
SAMPLE = {"06_dropout"}  # of those that a study stands behind


@pytest.mark.parametrize("name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.long) for n in QUICK])
def test_papermill_runs_a_lesson_with_quick_parameters(name, tmp_path):
    values, sentences = QUICK[name]
    out = tmp_path / "out.ipynb"
    execute(out, tmp_path / "runs", name, **values)
    assert out.stat().st_size <= 500_000
    text = "".join(o.get("text", "") for c in code_cells(out) for o in c.outputs)
    for sentence in sentences:
        assert sentence in text


@pytest.mark.parametrize("name", COMPARED)
def test_stored_verdicts_are_in_cells_that_nbval_compares(name):
    """What these notebooks say of the records that came with the kit; nbval runs the cells anew."""
    cells = [c for c in code_cells(ROOT / "notebooks" / f"{name}.ipynb") if c.source.startswith("# NBVAL_CHECK_OUTPUT")]
    text = "".join(o.get("text", "") for c in cells for o in c.outputs)
    for sentence in COMPARED[name]:
        assert sentence in text
