"""Curves over training: what is drawn is what the records hold, and what is missing is said."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest

from fer_lib import curve_figures, curves, verdict_figures
from fer_lib.claims_file import ClaimError
from fer_lib.palette import arm_look, sign_look
from fer_lib.quick import make_quick
from fer_lib.records import Records, export
from fer_lib.study_records import judged, lacking, studies_in, to_make, what_is_here
from fer_lib.workspace import Workspace, find_workspace

EPOCHS, STEPS = 12, 10                                  # of a run; steps an epoch
TOGGLES = {3: -1, 6: 1, 9: -1, 12: 1}                   # T = 3: epoch, new sign


def curve(arm: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training loss, validation F1) by epoch: a baseline that falls as 1/epoch, and one that starts again at each
    toggle, 0.1 lower each time.
    """
    epoch = np.arange(1, EPOCHS + 1)
    since, k = epoch.copy(), np.zeros(EPOCHS, int)
    for toggle in TOGGLES if arm == "periodic" else ():
        since[epoch >= toggle], k[epoch >= toggle] = epoch[epoch >= toggle] - toggle + 1, k[toggle - 1] + 1
    loss = 1 / since - .1 * k + .001 * seed
    return loss, .5 - .2 * loss


def made(arms: dict[str, int], dynamic: dict[int, list[int]] | None = None) -> Records:
    """Records of so many seeds an arm; dynamic: by seed, steps at which the sign turns."""
    runs, epochs, flips = [], [], []
    for arm, seeds in arms.items():
        for seed in range(seeds):
            key = {"study": "s", "name": arm, "method": arm, "seed": seed, "id": f"{arm}{seed}"}
            loss, f1 = curve(arm, seed)
            steps = {"periodic": [(e - 1) * STEPS + 1 for e in TOGGLES], "dynamic": (dynamic or {}).get(seed, [])}
            own = steps.get(arm, [])
            runs.append({**key, "data": "fer2013", "drawn": False, "steps": EPOCHS * STEPS, "steps_per_epoch": STEPS,
                         "flips_steps": len(own), "setting_flip_interval": 3, "setting_flip_interval_unit": "epoch",
                         "chosen_test_macro_f1": f1.max() - .01 * seed, "max_val_macro_f1": f1.max()})
            for split, aside in (("val", 0), ("test", .02)):
                epochs.append(pd.DataFrame({**key, "epoch": range(1, EPOCHS + 1), "split": split, "mode": "trained",
                                            "train_loss": loss, "macro_f1": f1 + aside}))
            flips += [{**key, "step": step, "epoch": (step - 1) // STEPS + 1, "site": site, "sign": (-1) ** (k + 1)}
                      for k, step in enumerate(own) for site in ("a", "b")]
    return Records(pd.DataFrame(runs), pd.concat(epochs, ignore_index=True), pd.DataFrame(flips), pd.DataFrame(), [])


@pytest.fixture
def records() -> Records:
    return made({"baseline": 3, "periodic": 2, "dynamic": 2}, {0: [5, 6, 70], 1: [31]})


def test_arms_are_drawn_by_seed_and_mean_with_their_own_look_and_flipped_epochs_shaded(records):
    figure = curve_figures.over_epochs(records, ["baseline", "periodic"], {"train_loss": "one", "macro_f1": "two"})
    left, right = figure.axes
    thick = {line.get_label(): line for line in left.lines if line.get_linewidth() > 2}
    assert list(thick) == ["baseline (n = 3)", "periodic (n = 2)"] and len(left.lines) == 3 + 2 + 2
    assert np.allclose(thick["periodic (n = 2)"].get_ydata(), curve("periodic", 0)[0] + .0005)
    assert thick["periodic (n = 2)"].get_color() == arm_look("periodic").color
    assert np.allclose(right.lines[0].get_ydata(), curve("baseline", 0)[1])
    shaded = [(p.get_x(), p.get_x() + p.get_width()) for p in left.patches]
    assert shaded == [(2.5, 5.5), (8.5, 11.5)]          # from half an epoch before the toggles to −, 3 and 9
    assert figure.get_suptitle().endswith("\nseeds: baseline: 0–2; periodic: 0–1")
    with pytest.raises(ValueError, match="no records of gone"):
        curve_figures.over_epochs(records, ["baseline", "gone"], {"train_loss": ""})


@pytest.mark.parametrize("panels", [{"macro_f1": "one"}, {"train_loss": "one", "macro_f1": "two"}])
def test_the_legend_is_whole(records, panels):
    figure = curve_figures.over_epochs(made({"baseline": 9, "dropout+periodic": 9, "periodic": 2}),
                                       ["baseline", "dropout+periodic", "periodic"], panels)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_the_seeds_of_arms_are_told_where_they_differ():
    runs = pd.DataFrame([("a", k) for k in (0, 1, 2, 5)] + [("b", k) for k in (5, 0, 1, 2)] + [("c", 7)],
                        columns=["name", "seed"])
    assert curves.seed_words(runs) == "a, b: 0–2, 5; c: 7" and curves.seed_words(runs[runs["name"] != "c"]) == ""


def test_of_many_seeds_some_are_drawn_and_all_are_in_the_mean(monkeypatch, records):
    monkeypatch.setattr(curve_figures, "MOST_SEEDS", 2)
    ax = curve_figures.over_epochs(records, ["baseline"], {"train_loss": ""}).axes[0]
    assert len(ax.lines) == 2 + 1 and ax.lines[-1].get_label() == "baseline (n = 3; thin: the first 2)"


def test_flips_that_differ_by_seed_are_ticks(records):
    ax = curve_figures.over_epochs(records, ["dynamic"], {"train_loss": ""}).axes[0]
    ticks, = (line for line in ax.lines if line.get_marker() == "|")
    assert np.allclose(ticks.get_xdata(), [.4 + .5, .5 + .5, 6.9 + .5, 3 + .5]) and not ax.patches
    assert curves.shared_schedule(records, "dynamic") is None and curves.shared_schedule(records, "baseline") is None


def test_intervals_between_toggles_and_the_size_of_a_toggle(records):
    around = curves.around_toggles(records, "periodic")
    first = around[(around["seed"] == 0) & (around["toggle"] == 1)]
    assert list(first["since"]) == [-1, 0, 1, 2] and list(first["epoch"]) == [2, 3, 4, 5]
    assert np.allclose(first["train_loss"], [1 / 2, .9, .4, 1 / 3 - .1]) and set(first["sign"]) == {-1}
    assert list(around.groupby("toggle")["sign"].first()) == [1, -1, 1, -1, 1]
    sizes = curves.toggle_sizes(around).set_index(["seed", "toggle"])
    assert len(sizes) == 2 * 4
    assert sizes.loc[(0, 1), "loss_spike"] == pytest.approx(.9 - .5)
    assert sizes.loc[(1, 1), "f1_change"] == pytest.approx(-.2 * .4)
    assert sizes.loc[(0, 1), "recovery"] == 1 and sizes.loc[(0, 2), "recovery"] == 2
    assert math.isnan(sizes.loc[(0, 4), "recovery"])    # training ends first
    with pytest.raises(ValueError, match="dynamic have no toggles in common"):
        curves.around_toggles(records, "dynamic")


def test_toggles_are_drawn_in_the_colour_of_their_sign_with_the_beginning_beside_them(records):
    around = curves.around_toggles(records, "periodic")
    left, right = curve_figures.toggles(around).axes
    lines = [line for line in left.lines if len(line.get_xdata()) > 1 and line.get_xdata()[0] != -.5]
    assert [line.get_color() for line in lines[1:]] == [sign_look(s).color for s in (-1, 1, -1, 1)]
    assert np.allclose(lines[0].get_ydata(), [1.0005, .5005]) and lines[0].get_linestyle() == ":"
    assert np.allclose(lines[1].get_ydata(), [.5005, .9005, .4005, 1 / 3 - .0995])
    assert left.get_yscale() == "log" and [t.get_text() for t in right.texts] and len(left.texts) == 4


def test_the_step_by_step_difference_is_the_toggles(records):
    steps = np.arange(1, 31)
    plain = pd.Series(1., steps)
    flipped = plain + .5 * (steps >= 10) - .4 * (steps >= 20)
    left, right = curve_figures.step_by_step({"baseline": plain, "periodic": flipped}, [10, 20, 29], before=5).axes
    first, second = (line for line in right.lines if len(line.get_xdata()) > 2)
    assert list(first.get_xdata()) == list(range(-5, 10)) and list(second.get_xdata()) == list(range(-5, 9))
    assert np.allclose(first.get_ydata(), [0] * 5 + [.5] * 10)      # the means don't run across a toggle
    assert np.allclose(second.get_ydata(), [.5] * 5 + [.1] * 9)
    assert first.get_color() == sign_look(-1).color and second.get_color() == sign_look(1).color
    assert [p.get_x() for p in left.patches] == [10, 29] and len(right.texts) == 2


def test_a_measure_against_T_has_steps_on_its_axis_and_the_baseline_as_a_band(records):
    other = made({"periodic": 2})
    other.runs["setting_flip_interval"], other.runs["setting_flip_interval_unit"] = 1, "step"
    table = curves.by_interval([(records, "periodic"), (other, "periodic")], "chosen_test_macro_f1")
    assert list(table["x"]) == [1, 1, 30, 30] and list(table["label"]) == ["1 step"] * 2 + ["3 epochs"] * 2
    figure = curve_figures.against({"F1": table}, "T", {"F1": [.4, .42, .44]})
    ax = figure.axes[0]
    band, = ax.patches
    assert (band.get_y() + band.get_height() / 2) == pytest.approx(.42) and ax.get_xscale() == "log"
    means, = (line for line in ax.lines if line.get_marker() == arm_look("periodic").marker)
    assert np.allclose(means.get_ydata(), table.groupby("x")["value"].mean())
    spikes = curves.by_interval([(records, "periodic"), (records, "baseline")], "loss_spike")
    assert len(spikes) == 2                             # the baseline has no toggle


def test_the_rhythm_counts_intervals_within_runs_only(records):
    assert list(curve_figures.steps_between(curves.sign_changes(records, "dynamic"))) == [1, 64]
    left, right = curve_figures.flip_rhythm(records, ["periodic", "dynamic"]).axes
    assert len(left.lines) == 4 and list(left.lines[2].get_xdata()) == [5, 6, 70]
    periodic, dynamic = right.containers
    assert [b.get_height() for b in periodic] == [0, 0, 0, 0, 0, 6, 0]      # 30 steps: at most 2^5
    assert [b.get_height() for b in dynamic] == [1, 0, 0, 0, 0, 0, 1]


def test_wobble_is_measured_about_the_trend_and_luck_is_what_test_does_not_show():
    records = made({"baseline": 1})
    val = (records.epochs["split"] == "val") & (records.epochs["epoch"] > 6)
    records.epochs["macro_f1"] = .1 + .01 * records.epochs["epoch"]
    assert curves.wobble(records)[["wobble", "gain", "luck"]].to_numpy() == pytest.approx(0, abs=1e-9)
    records.epochs.loc[val & (records.epochs["epoch"] == 9), "macro_f1"] += .12
    found = curves.wobble(records).iloc[0]
    assert found["luck"] == pytest.approx(.12 * 5 / 6) and 0 < found["gain"] < .12 and found["epochs"] == 6
    assert curves.largest_of(2) == pytest.approx(1 / math.sqrt(math.pi), abs=.02) and curves.largest_of(1) < .02
    ax = curve_figures.wobbles(curves.wobble(records)).axes[0]
    assert ax.lines[1].get_ydata()[0] == found["gain"] and ax.lines[1].get_xdata()[0] == found["wobble"]


def test_had_training_ended_earlier_is_scored_on_test_at_the_best_epoch_so_far():
    records = made({"baseline": 2, "periodic": 2})
    epochs = records.epochs
    up = {"baseline": [.3] * EPOCHS, "periodic": [.1, .2, .5, .4] + [.4] * (EPOCHS - 4)}
    for arm, f1 in up.items():
        for split, aside in (("val", 0.), ("test", .01)):
            for seed in (0, 1):
                own = (epochs["name"] == arm) & (epochs["split"] == split) & (epochs["seed"] == seed)
                epochs.loc[own, "macro_f1"] = np.array(f1) + aside * (arm == "periodic") + .002 * seed
    found = curves.stopped_at(records, "periodic", "baseline").set_index("epochs")
    assert found["periodic - baseline"].tolist() == [-.19, -.09] + [.21] * (EPOCHS - 2)
    assert found["below"].tolist() == ["2 of 2"] * 2 + ["0 of 2"] * (EPOCHS - 2)
    assert (found["low"] <= found["periodic - baseline"]).all() and list(found.index) == list(range(1, EPOCHS + 1))


def test_an_interaction_marks_where_parallel_lines_would_end():
    s = lambda *v: pd.Series(v)                                                                             # noqa: E731
    lines = {"without": [s(.4, .42), s(.45, .47)], "with": [s(.5, .52), s(.49, .51, .9)]}
    looks = {"without": arm_look("baseline"), "with": arm_look("dropout")}
    ax = curve_figures.interaction(lines, ["no", "yes"], "F1", looks).axes[0]
    cross, = (line for line in ax.lines if line.get_marker() == "x" and line.get_color() != arm_look("dropout").color)
    assert cross.get_ydata()[0] == pytest.approx(.51 + .46 - .41)       # by the two seeds that all four have
    assert "with (n = 2, 3)" in [t.get_text() for t in ax.get_legend().get_texts()]
    three = curve_figures.interaction({"a": [s(1.), s(2.), s(3.)]}, ["x", "y", "z"], "", {"a": arm_look("a")})
    assert "if the two effects added up" not in [t.get_text() for t in three.axes[0].get_legend().get_texts()]


def test_ours_stands_beside_the_papers(records):
    paper = {"max_val_macro_f1": {"baseline": .34, "periodic": .38}, "chosen_test_macro_f1": {}}
    table = curves.beside_paper(records.runs, ["baseline", "periodic"], paper)
    row = table.iloc[1]
    gap = records.runs.groupby("name")["max_val_macro_f1"].first()
    assert row["arm"] == "periodic" and row["paper's"] == "+0.040" and row["paper"] == "0.380" and row["n"] == 2
    assert row["less baseline [95 %]"].startswith(f"{gap['periodic'] - gap['baseline']:+.3f} [")
    assert table.iloc[3]["paper"] == table.iloc[3]["paper's"] == ""


# --- what is here, what is missing, and what can be made at once ---


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Workspace:
    """Two arms' quick records, trained as a notebook does, but for 4 epochs and on smaller images."""
    here, root = find_workspace(), tmp_path_factory.mktemp("quick")
    shutil.copytree(here.root / "notebooks" / "studies", root / "notebooks" / "studies")
    study = root / "notebooks" / "studies" / "t_sweep.yml"
    short = study.read_text().replace("epochs: 10,", "epochs: 4, image_size: 24,")
    assert short != study.read_text()
    study.write_text(short)
    workspace, lines = Workspace(root, here.packed, root / "runs"), []
    for _ in range(2):
        make_quick(workspace, {"t_sweep": ["T_1_epoch", "T_2_epochs"]}, lines.append)
    assert "2 runs on drawn faces, 2 trained now" in lines[0] and "2 runs on drawn faces, 0 trained now" in lines[1]
    return workspace


def test_records_that_a_notebook_made_are_found_and_judge_nothing(quick):
    found = studies_in(quick, ("table1", "t_sweep"), str(quick.runs), "quick")
    assert list(found) == ["t_sweep"] and len(found["t_sweep"].runs) == 2
    spikes = curves.by_interval([(found["t_sweep"], "T_2_epochs")], "loss_spike")
    assert list(spikes["label"]) == ["2 epochs"] and list(spikes["x"]) == [50]
    missing, here = what_is_here(quick, found, ("table1", "t_sweep"), "quick")
    assert "drawn faces: they show how it works and judge nothing" in here and "T_1_epoch 1, T_2_epochs 1" in here
    assert "notebooks/studies/table1.yml --size quick" in missing
    verdicts = judged(quick, ["C3", "C9"], str(quick.runs), "quick")
    assert {v.verdict for v in verdicts} == {"not judged"}
    commands = to_make(quick, verdicts)
    assert "table1.yml --size quick --arms periodic,baseline" in commands
    assert "notebooks/studies/t_sweep.yml --size quick\n" in commands      # each needs the baseline's n beside it


def test_exported_records_are_found_too(quick, tmp_path):
    export(quick.runs / "t_sweep-quick", tmp_path / "mine" / "t_sweep")
    found = studies_in(quick, ("t_sweep",), str(tmp_path / "mine"))
    assert len(found["t_sweep"].runs) == 2 and studies_in(quick, ("dropout",), str(tmp_path / "mine")) == {}


def test_what_is_lacking_is_said_with_its_command(quick):
    found = studies_in(quick, ("t_sweep",), str(quick.runs), "quick")
    assert lacking(quick, found, ["t_sweep", "t_sweep/T_1_epoch"], "quick") == ""
    said = lacking(quick, found, ["t_sweep/T_1_epoch", "t_sweep/T_3_epochs", "dropout"], "quick")
    assert said.splitlines() == [
        "No records of t_sweep/T_3_epochs here. To make them, 1 runs (1 arms).",
        "    python -m fer_lib.batch notebooks/studies/t_sweep.yml --size quick --arms T_3_epochs",
        "No records of dropout here. To make them, 6 runs (6 arms).",
        "    python -m fer_lib.batch notebooks/studies/dropout.yml --size quick"]
    assert "size 'quick' has none of them" in lacking(quick, found, ["t_sweep/T_15_epochs"], "quick")


def test_contrasts_of_different_studies_have_different_words():
    for size in ("standard", "quick"):
        verdicts = judged(find_workspace(), ["C1", "C5"], size=size)
        assert verdict_figures.short(verdicts[0].contrasts[0]) == "periodic - baseline"
        assert [verdict_figures.short(c) for c in verdicts[1].contrasts][:3] == [
            "dropout_cifar10: dropout - baseline", "dropout_cars: dropout - baseline",
            "(dropout_cifar10/dropout - dropout_cifar10/baseline) - (dropout - baseline)"]


@pytest.mark.parametrize("records, size, said", [
    ("nowhere", "standard", "no folder of records at 'nowhere'"),
    ("x" * 300, "standard", f"no folder of records at '{'x' * 300}'"),
    ("a\0b", "standard", "no folder of records at 'a\0b'"),
    ("notebooks/results", "huge", "no size 'huge' (choose from quick, standard, paper)")])
def test_a_wrong_place_or_size_is_a_sentence(records, size, said):
    with pytest.raises(ClaimError) as error:
        studies_in(find_workspace(), ("table1",), records, size)
    assert str(error.value) == said and error.value._render_traceback_() == [f"ClaimError: {said}"]
