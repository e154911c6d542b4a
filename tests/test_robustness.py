"""Corruptions, measures of calibration, and the command that writes both into finished runs."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, make_data, make_experiment, short, write_packed

from fer_lib import robustness
from fer_lib.checkpoint import read_weights, write_weights
from fer_lib.corruptions import CHUNK, KINDS, SEVERITIES, box, corrupted, moved
from fer_lib.files import RecordError
from fer_lib.predict import load_trained
from fer_lib.records import export, read_records
from fer_lib.robustness import SETS, brier_score, calibration_error, finished_runs, main, measures
from fer_lib.runs import open_run, record
from fer_lib.workspace import Workspace

EACH = [(kind, severity) for kind in KINDS for severity in SEVERITIES]


def pictures(n: int = 6, channels: int = 1, side: int = 48) -> torch.Tensor:
    """Smooth uint8 images of middling brightness, each of its own."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    waves = [.5 + .3 * torch.sin(2 * math.pi * (2 + k % 3) * (x * math.cos(k + c) + y * math.sin(k + c)) + k)
             for k in range(n) for c in range(channels)]
    return (255 * torch.stack(waves)).round().to(torch.uint8).view(n, channels, side, side)


# --- corruptions ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_changes_images_more_and_more_and_always_alike(kind, channels):
    images, state = pictures(4, channels), torch.get_rng_state()
    kept, change = images.clone(), []
    for severity in SEVERITIES:
        found = corrupted(images, kind, severity)
        assert found.shape == images.shape and found.dtype == torch.uint8
        torch.manual_seed(severity)                     # the global stream has no say
        assert torch.equal(found, corrupted(images, kind, severity))
        change.append(float((found.float() - images.float()).abs().mean()))
    torch.set_rng_state(state)
    assert torch.equal(images, kept)
    assert 0 < change[0] < change[4]
    assert all(a < 1.25 * b for a, b in zip(change, change[1:]))        # they draw their own noise


def test_draws_are_each_images_own_and_differ_by_kind_and_severity(monkeypatch):
    monkeypatch.setitem(KINDS, "twin", KINDS["gaussian_noise"])
    grey = torch.full((3, 1, 48, 48), 128, dtype=torch.uint8)
    for kind in ("gaussian_noise", "shot_noise", "occlusion"):
        found = corrupted(grey if kind != "occlusion" else grey // 2, kind, 3)
        assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2]), kind
    noise = [corrupted(grey, *one).float().flatten() - 128 for one in (
        ("gaussian_noise", 1), ("gaussian_noise", 2), ("twin", 1))]
    assert torch.corrcoef(torch.stack(noise)).fill_diagonal_(0).abs().max() < .06


def test_more_images_leave_the_first_ones_as_they_are():
    images = pictures(1).expand(CHUNK + 3, -1, -1, -1)
    for kind in ("gaussian_noise", "motion_blur"):
        assert torch.equal(corrupted(images, kind, 2)[:CHUNK], corrupted(images[:CHUNK], kind, 2))


def test_noise_has_the_strength_named():
    grey = torch.full((20, 1, 48, 48), 128, dtype=torch.uint8)
    for severity, (sd, photons) in enumerate(zip(KINDS["gaussian_noise"][1], KINDS["shot_noise"][1]), 1):
        assert float((corrupted(grey, "gaussian_noise", severity) / 255).std()) == pytest.approx(sd, rel=.03)
        shot = (128 / 255 / photons) ** .5              # of a Poisson count, over the count of white
        assert float((corrupted(grey, "shot_noise", severity) / 255).std()) == pytest.approx(shot, rel=.03)


def test_brightness_contrast_and_pixels_are_their_formulas():
    images = pictures(2, 3)
    x, c = images / 255, 4                              # severity 5
    lit, dull = corrupted(images, "brightness", 5) / 255, corrupted(images, "contrast", 5) / 255
    torch.testing.assert_close(lit.amax(1), (x.amax(1) + KINDS["brightness"][1][c]).clamp(max=1), atol=.003, rtol=0)
    torch.testing.assert_close(lit / lit.amax(1, keepdim=True), x / x.amax(1, keepdim=True), atol=.01, rtol=0)
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(dull, mean + KINDS["contrast"][1][c] * (x - mean), atol=.003, rtol=0)
    black = corrupted(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "brightness", 1)
    assert (black == round(.05 * 255)).all()
    blocks = corrupted(pictures(1), "pixelate", 5)[0, 0]
    assert len(blocks.unique(dim=0)) <= int(48 * .65) and len(blocks.unique(dim=1).T) <= int(48 * .65)


def test_blurs_keep_the_brightness_and_grow_with_the_side():
    for kind in ("gaussian_blur", "motion_blur"):
        spread = []
        for side in (32, 64):
            dot = torch.zeros(8, 1, side, side, dtype=torch.uint8)
            dot[:, :, side * 7 // 16:side * 9 // 16, side * 7 // 16:side * 9 // 16] = 255
            found = corrupted(dot, kind, 5).float()
            assert float(found.sum()) == pytest.approx(float(dot.sum()), rel=.03)
            spread.append(float((found > 12).sum((1, 2, 3)).double().mean()))
        assert spread[1] == pytest.approx(4 * spread[0], rel=.25)


def test_motion_blurs_in_directions_of_their_own_within_45_degrees():
    dot = torch.zeros(40, 1, 48, 48, dtype=torch.uint8)
    dot[:, :, 23:25, 23:25] = 255
    found = corrupted(dot, "motion_blur", 5)[:, 0].double()
    weight = found / found.sum((1, 2), keepdim=True)
    at = torch.arange(48.).double() - 23.5
    dx, dy = (weight.sum(1) * at).sum(1), (weight.sum(2) * at).sum(1)
    assert (dx > 1).all() and (dy.abs() <= dx * 1.1).all()
    assert (dy < -.5).any() and (dy > .5).any()


def test_moved_moves():
    x = torch.zeros(2, 1, 8, 8)
    x[:, 0, 3, 3] = 1
    y = moved(x, torch.tensor([[2., 0.], [-1., 1.]]))
    torch.testing.assert_close(y[0, 0, 3, 5], torch.tensor(1.))
    torch.testing.assert_close(y[1, 0, 4, 2], torch.tensor(1.))


def test_occlusion_hides_a_square_inside_and_rotation_turns_both_ways():
    white = torch.full((60, 1, 48, 48), 255, dtype=torch.uint8)
    for severity, share in enumerate(KINDS["occlusion"][1], 1):
        hidden = corrupted(white, "occlusion", severity)[:, 0] == 128
        assert (hidden.sum((1, 2)) == round(48 * share) ** 2).all()
    bar = torch.zeros(20, 1, 48, 48, dtype=torch.uint8)
    bar[:, :, :, 23:25] = 255
    turned = corrupted(bar, "rotation", 5)[:, 0].double()
    top = (turned[:, 8] * torch.arange(48.).double()).sum(1) / turned[:, 8].sum(1) - 23.5
    np.testing.assert_allclose(top.abs(), 15.5 * math.tan(math.radians(30)), atol=.6)
    assert (top < 0).any() and (top > 0).any()


def test_a_box_is_a_mean_of_the_pixels_it_covers():
    assert box(4, 2).tolist() == [[.5, .5, 0, 0], [0, 0, .5, .5]]
    for m in (5, 31, 45, 48):
        torch.testing.assert_close(box(48, m).sum(1), torch.ones(m))
        assert ((box(48, m) > 0).sum(0) == 1).all()


def test_unknown_corruptions_are_refused():
    with pytest.raises(ValueError, match="unknown corruption 'fog'.*gaussian_noise"):
        corrupted(pictures(1), "fog", 1)
    with pytest.raises(ValueError, match="1 to 5, not 6"):
        corrupted(pictures(1), "jpeg", 6)


# --- calibration ---


def test_calibration_error_by_hand():
    p = torch.tensor([[.9, .1], [.86, .14], [.55, .45], [.21, .79]])
    label = torch.tensor([0, 1, 0, 1])
    # bins (.5333, .6], (.7333, .8], (.8, .8667], (.8667, .9333] hold one image each
    assert calibration_error(p, label) == pytest.approx((.1 + .86 + .45 + .21) / 4, abs=1e-6)
    # one bin: accuracy .75 against a mean confidence of .775
    assert calibration_error(p, label, 1) == pytest.approx(.025, abs=1e-6)
    assert calibration_error(torch.tensor([[1., 0.]] * 4), torch.tensor([0, 0, 0, 1])) == pytest.approx(.25)


def test_a_value_on_an_edge_belongs_to_the_lower_bin():
    p = torch.tensor([[.5, .5], [.51, .49]], dtype=torch.float64)
    assert calibration_error(p, torch.tensor([0, 1]), 2) == pytest.approx((.5 + .51) / 2)


def test_brier_and_nll_by_hand():
    p = torch.tensor([[.7, .2, .1], [.1, .3, .6]])
    label = torch.tensor([0, 1])
    assert brier_score(p, label) == pytest.approx(((.09 + .04 + .01) + (.01 + .49 + .36)) / 2, abs=1e-6)
    found = measures(p.log(), label)
    assert found["nll"] == pytest.approx(-(math.log(.7) + math.log(.3)) / 2, abs=1e-6)
    assert (found["n"], found["accuracy"]) == (2, .5) and found["macro_f1"] == pytest.approx(1 / 3)
    assert found["brier"] == pytest.approx(brier_score(p, label), abs=1e-6)


def test_honest_probabilities_are_calibrated_and_sharpened_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 7, generator=generator)
    label = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert measures(logits, label)["ece"] < .015
    assert measures(3 * logits, label)["ece"] > .1
    assert measures(3 * logits, label)["nll"] > measures(logits, label)["nll"]
    assert measures(3 * logits, label)["accuracy"] == measures(logits, label)["accuracy"]


# --- finished runs ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four finished runs: workspace and paths by name."""
    root = tmp_path_factory.mktemp("robust")
    write_packed(root / "packed" / "fake", make_data())
    workspace = Workspace(root, root / "packed", root / "runs")
    arms = {"plain": dict(), "dynamic": dict(method="dynamic", w0=.003), "shaken": dict(method="dropout+shakedrop"),
            "raw": dict(method="dynamic", w0=.003, w_mean="none", w_eval="raw")}
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        runs = [open_run(make_experiment(data="fake", study="s", name=name, **settings), workspace)
                for name, settings in arms.items()]
        for _ in record(runs, CPU):
            pass
    return workspace, {run.experiment.name: run.path for run in runs}


@pytest.fixture
def command(trained, monkeypatch, short_resnet, capsys):
    """Runs the command on a folder; its exit code and what it said."""
    workspace, paths = trained
    monkeypatch.setenv("FER_PACKED", str(workspace.packed))
    for path in paths.values():
        (path / "robustness.parquet").unlink(missing_ok=True)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--device", "cpu"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def table(path) -> pd.DataFrame:
    return pd.read_parquet(path / "robustness.parquet")


def test_each_run_gets_a_row_for_each_corruption_and_the_records_score_for_none(trained, command):
    workspace, paths = trained
    code, out, err = command(str(workspace.runs))
    assert (code, err) == (0, "") and "4 finished runs, 0 measured before, 4 to measure" in out
    for name, path in paths.items():
        found = table(path)
        assert [*zip(found["kind"], found["severity"])] == SETS and len(SETS) == 51
        assert found["n"].eq(16).all() and found[["ece", "accuracy"]].stack().between(0, 1).all()
        assert found["brier"].between(0, 2).all() and np.isfinite(found["nll"]).all()
        chosen = json.loads((path / "result.json").read_text())["chosen"]
        assert found["macro_f1"].iloc[0] == chosen["test_macro_f1"], name       # as trained, at the chosen epoch
        assert found["nll"].iloc[0] == pytest.approx(chosen["test_loss"], rel=1e-5), name
        assert f"{path.name}: macro-F1 {chosen['test_macro_f1']:.3f}, corrupted" in out
        assert found["nll"].nunique() > 40
    assert not table(paths["plain"]).equals(table(paths["dynamic"]))


def test_what_is_done_is_skipped_unless_asked_again_or_of_an_older_version(trained, command):
    workspace, paths = trained
    one = paths["plain"]
    assert command(str(one))[0] == 0 and not (paths["dynamic"] / "robustness.parquet").exists()
    first = table(one)
    marked = first.assign(ece=.5)
    marked.to_parquet(one / "robustness.parquet")
    assert "1 measured before, 0 to measure" in command(str(one))[1] and table(one).equals(marked)
    assert command(str(one), "--again")[0] == 0 and table(one).equals(first)
    first.assign(version=0).to_parquet(one / "robustness.parquet")
    assert "0 measured before, 1 to measure" in command(str(one))[1] and table(one).equals(first)


def test_a_run_without_weights_is_named_and_the_others_go_on(trained, command):
    workspace, paths = trained
    weights = paths["dynamic"] / "model.safetensors"
    kept = read_weights(weights)
    weights.unlink()
    try:
        code, out, err = command(str(workspace.runs))
    finally:
        write_weights(weights, kept)
    assert code == 1 and len(err.splitlines()) == 1 and paths["dynamic"].name in err and "no model.safetensors" in err
    assert [(path / "robustness.parquet").exists() for path in paths.values()] == [True, False, True, True]


def test_few_sets_at_a_time_give_the_same_rows(trained, command, monkeypatch):
    workspace, paths = trained
    command(str(paths["shaken"]))
    whole = table(paths["shaken"])
    monkeypatch.setattr(robustness, "SETS_BYTES", 7 * 16 * 16 * 16)
    command(str(paths["shaken"]), "--again")
    pd.testing.assert_frame_equal(table(paths["shaken"]), whole, rtol=1e-6)


def test_other_data_are_refused_in_a_sentence(trained, command, monkeypatch, tmp_path):
    workspace, paths = trained
    write_packed(tmp_path / "fake", make_data(1))
    monkeypatch.setenv("FER_PACKED", str(tmp_path))
    code, _, err = command(str(paths["plain"]))
    assert code == 1 and "other images" in err and len(err.splitlines()) == 1
    monkeypatch.setenv("FER_PACKED", str(tmp_path / "nowhere"))
    assert command(str(paths["plain"]))[0] == 1


def test_a_folder_without_runs_and_a_modelled_raw_w_are_refused(trained, command, tmp_path):
    code, _, err = command(str(tmp_path))
    assert code == 2 and "no finished run below" in err and len(err.splitlines()) == 1
    with pytest.raises(RecordError, match="no finished run"):
        finished_runs(tmp_path)
    model, _ = load_trained(trained[1]["raw"])
    e = make_experiment(method="dynamic", w_eval="raw", w_gradient="modelled")
    with pytest.raises(RecordError, match="modelled"):
        robustness.use_evaluated_w(model, e)


def test_records_carry_the_table_and_its_means(trained, command, tmp_path):
    workspace, paths = trained
    command(str(paths["plain"]))
    records = read_records(workspace.runs)
    runs, found = records.runs.set_index("name"), records.robustness
    assert len(found) == 51 and set(found["name"]) == {"plain"}
    assert {"study", "method", "seed", "id"} < set(found)
    own = table(paths["plain"])
    assert runs.loc["plain", "uncorrupted_ece"] == own["ece"].iloc[0]
    assert runs.loc["plain", "corrupted_macro_f1"] == pytest.approx(own["macro_f1"].iloc[1:].mean())
    assert runs.loc["dynamic", ["uncorrupted_ece", "corrupted_macro_f1"]].isna().all()
    small = export(workspace.runs, tmp_path / "small")
    pd.testing.assert_frame_equal(small.robustness, found)
    (paths["plain"] / "robustness.parquet").unlink()
    bare = export(workspace.runs, tmp_path / "bare")
    assert bare.robustness.empty and not (tmp_path / "bare" / "robustness.parquet").exists()
    assert "uncorrupted_ece" not in bare.runs
