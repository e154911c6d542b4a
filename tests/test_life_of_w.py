"""w without a network, w in a network, and the rounding error between the two."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_data, make_experiment, train_one
from torch import nn

from fer_lib import figures, w_figures
from fer_lib.engine import Learner
from fer_lib.life_of_w import cosine, shared_w, simulate, staircase
from fer_lib.methods.dynamic import predicted_flips
from fer_lib.rounding import gradients_of_w
from fer_lib.study_records import find_study, flips_by_run, missing
from fer_lib.workspace import Workspace, find_workspace

SLOW = dict(w0=.1, lr=1e-4, weight_decay=1e-4, steps=13_440)
FAST = dict(w0=.02, lr=1e-3, weight_decay=1e-4, steps=250)


@pytest.mark.parametrize("settings", [SLOW, FAST, FAST | {"beta1": .5}, FAST | {"eps": 1e-6}])
def test_without_noise_the_flips_are_those_of_predicted_flips(settings):
    assert simulate(**settings).flips.tolist() == predicted_flips(**settings)


@pytest.mark.parametrize("changes", [{}, {"decoupled": True}, {"beta1": .5, "eps": 1e-6}])
def test_a_step_is_torchs_own(changes):
    """torch's Adam and AdamW on a number whose gradient is 0."""
    settings = dict(FAST, steps=100) | changes
    kind = torch.optim.AdamW if settings.pop("decoupled", False) else torch.optim.Adam
    w = nn.Parameter(torch.tensor(settings["w0"], dtype=torch.float64))
    optimizer = kind([w], lr=settings["lr"], betas=(settings.get("beta1", .9), .999), eps=settings.get("eps", 1e-8),
                     weight_decay=settings["weight_decay"])
    path = [float(w.detach())]
    for _ in range(99):
        w.grad = torch.zeros_like(w)
        optimizer.step()
        path.append(float(w.detach()))
    np.testing.assert_allclose(simulate(**FAST | {"steps": 100} | changes).w, path, rtol=1e-9, atol=1e-15)


def test_what_switches_it_off():
    assert len(simulate(**FAST).flips) == 10
    for changes in ({"decoupled": True}, {"weight_decay": 0.}, {"beta1": 0.}):
        assert len(simulate(**FAST | changes).flips) == 0
    frozen = simulate(**FAST | {"lr": staircase(1e-3, 250, 40, .01)})
    assert frozen.flips.tolist() == [26] and frozen.w[-1] < 0 and frozen.negative == pytest.approx(225 / 250)
    assert len(simulate(**FAST | {"lr": cosine(1e-3, 250)}).flips) < 10


def test_noise_makes_it_irregular_and_is_the_same_for_a_seed():
    noisy = [simulate(**SLOW, noise=2e-10, seed=k) for k in range(3)]
    assert all(life.flips[0] < 5000 for life in noisy) and len({life.flips[0] for life in noisy}) == 3
    assert np.array_equal(simulate(**SLOW, noise=2e-10, seed=1).w, noisy[1].w)
    assert np.ptp(noisy[0].intervals) > 5 * np.ptp(simulate(**SLOW).intervals)


def test_settings_that_make_no_sense_are_a_sentence():
    with pytest.raises(ValueError, match="w0 is a finite number other than 0, not 0"):
        simulate(**FAST | {"w0": 0})
    with pytest.raises(ValueError, match="lr has 3 values for 250 steps"):
        simulate(**FAST | {"lr": [1., 1., 1.]})


def test_a_network_in_double_precision_lives_the_predicted_life(short_resnet):
    data = make_data()
    e = make_experiment(method="dynamic", precision="fp64", w0=.004, epochs=2)
    run = train_one(e, data)
    sites = {name: unit.w.numel() for name, unit in Learner(e, data, torch.device("cpu")).method.units.items()}
    w = shared_w(pd.DataFrame({f"w_mean/{name}": run.w[:, k] for k, name in enumerate(sites)}), e.w0, sites)
    life = simulate(e.w0, e.lr, e.weight_decay, len(w))
    assert life.flips.tolist() == run.flip_steps and len(run.flip_steps) > 0
    np.testing.assert_allclose(w, life.w, atol=1e-9)


def test_autograds_error_grows_as_w_shrinks_and_the_loss_stays(short_resnet):
    data, e = make_data(), make_experiment(method="dynamic", w0=.1)
    model = Learner(e, data, torch.device("cpu")).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    single, double = (gradients_of_w(model, e, data, [.1, 1e-3, 1e-5], name, 32) for name in ("fp32", "fp64"))
    assert (single["gradient"].diff()[1:] > 0).all() and single["gradient"].iloc[-1] > 1e3 * single["gradient"].iloc[0]
    assert (single["gradient"] > 1e6 * double["gradient"]).all() and np.ptp(double["loss"]) < 1e-12
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="no AutoReLU with the literal gradient"):
        gradients_of_w(Learner(make_experiment(), data, torch.device("cpu")).model, e, data, [.1])


# --- pictures and the panel ---


def test_the_panel_follows_its_values_and_keeps_its_curves():
    panel = w_figures.panel(20_000, 1e-4, lr=1e-3, w0=.02, noise=1e-9)
    curves, said = panel.curves(**panel.start)
    assert said.startswith(f"{len(simulate(**FAST | {'steps': 20_000, 'noise': 1e-9}).flips)} flips in 20,000 forward")
    assert all(len(curve.x) == len(curve.y) <= w_figures.POINTS + 2 for curve in curves)
    still, said = panel.curves(**panel.start | {"optimizer": "AdamW", "noise": 1e-14})
    assert said.startswith("No flip in 20,000") and [c.name for c in still] == [c.name for c in curves]
    assert panel.curves(**panel.start | {"optimizer": "no decay", "noise": 1e-14})[1] == \
        "No flip in 20,000 forward passes; w ends at 0.02."


def test_thinning_keeps_the_extremes_of_each_part():
    y = np.sin(np.arange(30_000) / 700.)
    y[12_345], y[5000:6000] = 9., np.nan
    x, thin = w_figures.thinned(np.arange(30_000), y)
    assert len(x) <= w_figures.POINTS + 2 and 9. in thin and np.nanmin(thin) == np.nanmin(y) and np.isnan(thin).any()
    assert (np.diff(x) > 0).all()


def test_the_pictures_can_be_drawn():
    life = simulate(**FAST)
    history = pd.DataFrame({f"w_{name}/a": life.w + shift for name, shift in (("mean", 0), ("min", -.1), ("max", .1))})
    table = pd.DataFrame({"w": [.1, .01], "loss": [1., 1.], "gradient": [1e-8, 1e-7]})
    runs = history.assign(name="dynamic", seed=0, step=np.arange(1, 251))
    flips = pd.DataFrame({"name": "dynamic", "seed": 0, "step": life.flips})
    for figure, axes in ((w_figures.first_flip(history, life.w, 26, "a"), 2), (w_figures.rounding({"fp32": table}), 1),
                         (w_figures.lives({"a": life.w, "b": -life.w}), 2), (w_figures.recorded(runs, flips), 1)):
        assert len(figure.axes) == axes and figures.png(figure).startswith(b"\x89PNG")


# --- records of a study, or what they would cost ---


def test_records_are_found_or_what_is_missing_is_told(tmp_path):
    kit = find_workspace()
    found = find_study(kit, "table1")
    counts = flips_by_run(found.flips[found.flips["name"] == "dynamic"]).set_index("seed")
    assert counts["flips"][:4].tolist() == [3, 7, 4, 6] and counts["first"][0] == 2995
    nowhere = Workspace(kit.root, tmp_path, tmp_path)
    assert find_study(nowhere, "quick") is None
    assert "12 runs (4 arms)." in missing(nowhere, "quick")
    assert "147 runs (27 arms)." in missing(nowhere, "dynamics")         # arms may have a number of seeds of their own
    assert "has no notebooks/studies/nothing.yml" in missing(nowhere, "nothing")
