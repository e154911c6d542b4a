"""Training: the same bits alone, together and after an interruption; independent streams; schedules; precision."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, Trained, assert_same_bits, make_data, make_experiment, sampled, train_one, train_together

from fer_lib import engine
from fer_lib.checkpoint import read_state, write_state
from fer_lib.data import used_rows
from fer_lib.engine import Learner, Stopped, build_optimizer, check, choose_device, fast_layout, train
from fer_lib.experiment import ParameterError
from fer_lib.models import build_model

pytestmark = pytest.mark.usefixtures("short_resnet")

METHODS = ["baseline", "dropout", "periodic", "dynamic", "bn_negation", "random_flip", "dropout+dynamic",
           "gaussian_noise", "shrink_perturb", "bn_reset", "shakedrop"]
# every kind of state that a checkpoint must hold
KINDS = {
    "baseline": dict(),
    "sgd, momentum, cosine": dict(optimizer="sgd", schedule="cosine", lr=0.05),
    "adamw, step": dict(optimizer="adamw", schedule="step", schedule_epochs=1),
    "plateau": dict(schedule="plateau", schedule_epochs=1, schedule_factor=0.5, lr=0.03, epochs=4),
    "dropout": dict(method="dropout"),
    "periodic": dict(method="periodic", flip_interval=4, flip_interval_unit="step"),
    "twin": dict(method="bn_negation", flip_interval=4, flip_interval_unit="step"),
    "random flip": dict(method="random_flip"),
    "dynamic": dict(method="dynamic", w0=0.003),
    "dynamic, raw, none": dict(method="dynamic", w0=0.003, w_mean="none", w_eval="raw", w_shape="element"),
    "modelled": dict(method="dynamic", w_gradient="modelled", w0=0.004, w_noise_scale=1e-9),
    "modelled, sgd": dict(method="dynamic", w_gradient="modelled", w0=0.004, w_noise_scale=1e-9, optimizer="sgd"),
    "modelled, cosine": dict(method="dynamic", w_gradient="modelled", w0=0.004, schedule="cosine", decay="matrices"),
    "combined": dict(method="dropout+dynamic", w0=0.003, w_average_moments=True),
    "augmentation": dict(augment="flip+affine+crop+erasing", balance="sampler"),
    "sampled labels, fp64": dict(labels="sampled", precision="fp64"),
    "gaussian noise, restarts": dict(method="gaussian_noise", schedule="restarts", schedule_epochs=2, epochs=3),
    "shrink and perturb": dict(method="shrink_perturb", flip_interval=4, flip_interval_unit="step"),
    "bn reset": dict(method="bn_reset", flip_interval=4, flip_interval_unit="step"),
    "shakedrop": dict(method="shakedrop"),
    "weighted, smoothed": dict(balance="loss", label_smoothing=.1),
    "weighted, soft": dict(balance="loss", labels="soft", label_smoothing=.1),
    "noise and restarts": dict(method="gaussian_noise+periodic+shakedrop+shrink_perturb", flip_interval=4,
                               flip_interval_unit="step"),
}
RESUMED = {"baseline", "plateau", "periodic", "dynamic", "modelled", "combined", "augmentation", "sampled labels, fp64",
           "noise and restarts"}


def block_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(engine, "BLOCK_STEPS", steps)


@pytest.mark.parametrize("kind", sampled(KINDS, RESUMED.__contains__))
def test_a_run_taken_up_in_mid_epoch_ends_with_the_same_bits(kind, monkeypatch, tmp_path):
    e, data = make_experiment(**{"epochs": 2, **KINDS[kind]}), make_data(soft=True)
    block_steps(monkeypatch, 3)
    whole = train_one(e, data)
    begun = []
    for block in train([(e, data)], CPU):
        begun.append(block)
        if len(begun) == 5:                                         # step 14 of 16, in the second epoch
            write_state(tmp_path / "state", block.state())
            break
    assert begun[-1].last_step % 8
    rest = list(train([(e, data)], CPU, [read_state(tmp_path / "state")]))
    assert rest[0].first_step == begun[-1].last_step + 1
    resumed = Trained([*begun, *rest])
    assert_same_bits(whole, resumed)
    assert whole.lr.tolist() == resumed.lr.tolist()
    assert whole.flip_steps == resumed.flip_steps
    assert [b.train_loss for b in whole.blocks if b.evaluations] == [
        b.train_loss for b in resumed.blocks if b.evaluations]
    if whole.blocks[0].w:
        assert whole.w.tobytes() == resumed.w.tobytes()
    ends = [run.blocks[-1].state()["best"] for run in (whole, resumed)]
    assert ends[0]["epoch"] == ends[1]["epoch"]
    assert all(torch.equal(v, ends[1]["weights"][k]) for k, v in ends[0]["weights"].items())


def test_runs_together_equal_each_alone():
    data = make_data()
    experiments = [make_experiment(method=m, w0=0.003, flip_interval=2, flip_interval_unit="step", epochs=1)
                   for m in METHODS]
    experiments += [make_experiment(method="dynamic", w_gradient="modelled", seed=1),
                    make_experiment(augment="flip+crop", epochs=1, seed=2)]
    for e, together in zip(experiments, train_together(experiments, data), strict=True):
        assert_same_bits(together, train_one(e, data))


def test_the_same_seed_gives_the_same_bits_whatever_the_global_streams():
    data, e = make_data(), make_experiment(method="dropout", augment="erasing")
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        state = torch.get_rng_state()
        runs.append(train_one(e, data))
        assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(*runs)


def test_arms_of_one_seed_share_weights_and_order_and_seeds_dont():
    data = make_data()
    arms = [Learner(make_experiment(method=m, seed=s), data, CPU) for s in (0, 1) for m in METHODS]
    for arm in arms:
        arm.draw_epoch()
    weights = [{k: v for k, v in arm.weights().items() if not k.endswith((".w", ".w_forward", ".sign"))}
               for arm in arms]
    first, other = 0, len(METHODS)
    for k in range(len(METHODS)):
        assert weights[k].keys() == weights[first].keys()
        assert all(torch.equal(v, weights[k][name]) for name, v in weights[first].items())
        assert torch.equal(arms[k].order, arms[first].order)
    assert not torch.equal(weights[first]["conv1.weight"], weights[other]["conv1.weight"])
    assert not torch.equal(arms[first].order, arms[other].order)


def test_streams_are_independent():
    data = make_data(soft=True)
    plain = Learner(make_experiment(), data, CPU)
    for settings in (dict(augment="flip+crop+erasing"), dict(labels="sampled"), dict(method="dropout")):
        changed = Learner(make_experiment(**settings), data, CPU)
        for learner in (plain, changed):
            learner.draw_epoch()
        assert torch.equal(plain.order, changed.order)
        assert all(torch.equal(v, changed.weights()[k]) for k, v in plain.weights().items())


def test_each_epoch_has_an_order_of_its_own():
    learner = Learner(make_experiment(), make_data(), CPU)
    orders = []
    for epoch in (0, 1):
        learner.step = 8 * epoch
        learner.draw_epoch()
        orders.append(learner.order.flatten())
    assert not torch.equal(*orders)
    assert all(torch.equal(o.sort().values, torch.arange(64)) for o in orders)


def test_training_learns():
    data = make_data(sizes={"train": 160, "val": 70})
    run = train_one(make_experiment(epochs=6, width=0.1, lr=3e-3), data)
    assert run.loss[-20:].mean() < 0.6 * run.loss[:5].mean()
    assert run.macro_f1[-1] > 0.5


def test_blocks_tell_steps_epochs_and_scores(monkeypatch):
    block_steps(monkeypatch, 5)
    blocks = train_one(make_experiment(method="dynamic"), make_data()).blocks
    assert [(b.first_step, b.last_step, b.epoch) for b in blocks] == [(1, 5, 1), (6, 8, 1), (9, 13, 2), (14, 16, 2)]
    assert [b.last for b in blocks] == [False, False, False, True]
    assert [[(v.split, v.mode) for v in b.evaluations] for b in blocks] == 2 * [
        [], [(split, mode) for mode in ("trained", "clean") for split in ("val", "test")]]
    assert blocks[1].train_loss == pytest.approx(np.concatenate([blocks[0].loss, blocks[1].loss]).mean())
    assert math.isnan(blocks[0].train_loss)
    assert blocks[0].images == 40
    for name in ("mean", "sd", "min", "max", "channel"):
        assert blocks[0].w[name].shape == (5, len(blocks[0].sites)) == (5, 4)


def test_w_is_logged_after_the_optimiser_step():
    data = make_data()
    e = make_experiment(method="dynamic", epochs=1, watch_channel=2)
    block = train_one(e, data).blocks[0]
    learner = Learner(e, data, CPU)
    learner.draw_epoch()
    for step in range(4):
        learner.train_step()
        for k, w in enumerate(learner.method.weights().values()):
            w = w.double()
            for name, value in (("mean", w.mean()), ("sd", w.std(correction=0)), ("min", w.min()), ("max", w.max()),
                                ("channel", w.flatten()[2])):
                assert block.w[name][step, k] == pytest.approx(float(value), rel=1e-9)
    assert block.w["sd"].max() > 0


def test_signs_are_counted_as_the_first_forward_with_the_new_sign():
    run = train_one(make_experiment(method="periodic", flip_interval=5, flip_interval_unit="step"), make_data())
    assert run.flip_steps == [5, 10, 15]                            # toggled after steps 4, 9 and 14
    assert (np.flatnonzero(run.turned_negative.all(1)) + 1).tolist() == [5, 15]
    assert (np.flatnonzero(run.turned_positive.all(1)) + 1).tolist() == [10]


def test_evaluation_is_as_trained_and_clean():
    run = train_one(make_experiment(method="periodic", flip_interval=2, lr=0.01, epochs=2), make_data())
    first, second = (dict(((v.split, v.mode), v.scores) for v in b.evaluations) for b in run.blocks)
    for split in ("val", "test"):
        assert first[split, "trained"].loss == first[split, "clean"].loss       # epoch 1: not flipped yet
        assert second[split, "trained"].loss != second[split, "clean"].loss     # epoch 2: flipped


@pytest.mark.parametrize("method", ["periodic", "bn_negation", "dynamic", "random_flip"])
def test_evaluation_leaves_no_trace(method):
    learner = Learner(make_experiment(method=method, flip_interval=1, flip_interval_unit="step", w_eval="raw"),
                      make_data(), CPU)
    learner.draw_epoch()
    for _ in range(2):
        learner.train_step()
    before = {k: v.clone() for k, v in learner.weights().items()}
    signs = {k: v.clone() for k, v in learner.method.signs().items()}
    learner.evaluate()
    assert learner.model.training
    assert all(torch.equal(v, before[k]) for k, v in learner.weights().items())
    assert all(torch.equal(v, signs[k]) for k, v in learner.method.signs().items())


# --- schedules, optimisers, precision ---


def epoch_lrs(**settings) -> list[float]:
    data = make_data(sizes={"train": 8, "val": 8}, side=8)
    return train_one(make_experiment(width=0.02, **settings), data).lr.tolist()


def test_warm_restarts_repeat_the_cosine():
    cosine = [1e-3 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)]
    assert epoch_lrs(epochs=7, schedule="restarts", schedule_epochs=3) == pytest.approx([*cosine, *cosine, 1e-3])


def test_a_share_of_the_data_gives_shorter_epochs_and_class_weights_of_its_own():
    data = make_data()
    e = make_experiment(train_share=.4, balance="loss", epochs=1)
    learner, whole = Learner(e, data, CPU), Learner(make_experiment(balance="loss"), data, CPU)
    labels = learner.train_split.labels[used_rows(e, learner.train_split.labels)]
    counts = torch.bincount(labels, minlength=7)
    torch.testing.assert_close(learner.weight, len(labels) / (7. * counts))
    assert not torch.equal(learner.weight, whole.weight)
    assert (learner.steps_per_epoch, whole.steps_per_epoch) == (len(labels) // 8, 8)
    run = train_one(e, data)
    assert run.blocks[-1].last and len(run.loss) == len(labels) // 8
    with pytest.raises(ParameterError, match=r"larger than the \d+ training images of 'fake' \(train_share 0.1\)"):
        check(make_experiment(train_share=.1, batch_size=32), data)


def test_constant_cosine_and_step_schedules():
    assert epoch_lrs(epochs=3) == [1e-3] * 3
    assert epoch_lrs(epochs=4, schedule="cosine") == pytest.approx(
        [1e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])
    assert epoch_lrs(epochs=5, schedule="step", schedule_epochs=2, schedule_factor=0.3) == pytest.approx(
        [1e-3, 1e-3, 3e-4, 3e-4, 9e-5])


def test_plateau_cuts_after_epochs_without_a_better_validation_loss(monkeypatch):
    losses = iter([5, 4, 4.1, 4.2, 4.3, 4.4, 3, 2])
    scores = Learner._scores

    def scripted(self, name, counts):
        found = scores(self, name, counts)
        return dataclasses.replace(found, loss=float(next(losses))) if name == "val" else found

    monkeypatch.setattr(Learner, "_scores", scripted)
    lrs = epoch_lrs(epochs=8, schedule="plateau", schedule_epochs=2, schedule_factor=0.5)
    assert lrs == [1e-3] * 5 + [5e-4] * 3                           # two bad epochs are borne, the third cuts


@pytest.mark.parametrize(("width", "stem", "channels_last"), [(.05, "small", False), (.1, "small", False),
                                                             (.125, "torchvision", True), (1., "small", True)])
def test_networks_too_narrow_for_channels_last_on_a_cpu_get_the_plain_layout(width, stem, channels_last):
    """A shortcut with 2 to 7 input channels: its weight gradient in channels_last corrupts the heap."""
    layout = fast_layout(build_model(width=width, stem=stem), CPU)
    assert layout == (torch.channels_last if channels_last else torch.contiguous_format)
    assert fast_layout(build_model(width=width, stem=stem), torch.device("cuda")) == torch.channels_last


@pytest.mark.long
def test_narrow_networks_leave_the_heap_whole():
    """glibc's checks end the process where memory was overwritten; widths .0625 and .08 died in seconds before."""
    code = ("import torch; from fer_lib.benchmark_speed import random_faces; from fer_lib.engine import train;"
            "from fer_lib.experiment import Experiment; data = random_faces(160, 48);"
            "list(train([(Experiment(width=.0625, batch_size=32, epochs=2), data)], torch.device('cpu')))")
    environment = {**os.environ, "MALLOC_CHECK_": "3", "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


def test_plateau_wants_a_factor_below_1():
    with pytest.raises(ParameterError, match="schedule_factor"):
        train_one(make_experiment(schedule="plateau", schedule_factor=1.0), make_data())


def test_optimisers_are_torchs_with_the_settings():
    model = torch.nn.Linear(2, 2)
    adam = build_optimizer(make_experiment(lr=0.1, beta1=0.5, beta2=0.6, eps=0.7, weight_decay=0.8), model)
    assert type(adam).__bases__ == (torch.optim.Adam,)
    group = adam.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.5, 0.6), 0.7, 0.8)
    assert type(build_optimizer(make_experiment(optimizer="adamw"), model)).__bases__ == (torch.optim.AdamW,)
    sgd = build_optimizer(make_experiment(optimizer="sgd", momentum=0.3), model)
    assert type(sgd).__bases__ == (torch.optim.SGD,) and sgd.param_groups[0]["momentum"] == 0.3


def test_decay_of_matrices_spares_what_is_one_dimensional():
    learner = Learner(make_experiment(method="dynamic", decay="matrices", weight_decay=0.5), make_data(), CPU)
    decayed, spared = learner.optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and spared["weight_decay"] == 0
    names = {id(p): n for n, p in learner.model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in spared["params"]} == {"weight", "bias", "w"}
    assert len(spared["params"]) + len(decayed["params"]) == len(names)
    assert all(p.dim() in (2, 4) for p in decayed["params"])


@pytest.mark.parametrize("method", ["baseline", "dropout+dynamic", "periodic"])
@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_other_precisions_train(method, precision):
    data = make_data()
    run = train_one(make_experiment(method=method, precision=precision, flip_interval=1), data)
    plain = train_one(make_experiment(method=method, precision="fp32", flip_interval=1), data)
    assert np.isfinite(run.loss).all()
    assert run.loss.tolist() != plain.loss.tolist()
    np.testing.assert_allclose(run.loss[:2], plain.loss[:2], rtol=0.1)
    if method != "dropout+dynamic":                                 # fp64's dropout draws are others
        np.testing.assert_allclose(run.loss[0], plain.loss[0], rtol=1e-5 if precision == "fp64" else 0.02)
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {v.dtype for v in run.model.values() if v.is_floating_point()} == {wanted}


def test_auto_precision_on_the_cpu_is_fp32():
    data = make_data()
    assert_same_bits(train_one(make_experiment(), data), train_one(make_experiment(precision="fp32"), data))


def test_class_weights_have_mean_1_over_the_training_images():
    labels = torch.tensor([0, 0, 0, 2])
    weights = engine._class_weights(labels, 3, torch.float64)
    assert weights.tolist() == pytest.approx([2 / 3, 0, 2])
    assert weights[labels].mean() == pytest.approx(1)


def test_loss_settings_change_the_loss():
    data = make_data(soft=True)
    losses = {name: train_one(make_experiment(epochs=1, **settings), data).loss[0] for name, settings in {
        "plain": {}, "smooth": dict(label_smoothing=0.2), "weighted": dict(balance="loss"), "soft": dict(labels="soft"),
        "sampled": dict(labels="sampled")}.items()}
    assert len(set(losses.values())) == 5


def test_the_image_size_is_what_the_network_sees():
    learner = Learner(make_experiment(image_size=24), make_data(), CPU)
    assert learner.train_split.batch(slice(0, 3)).shape == (3, 1, 24, 24)
    element = Learner(make_experiment(image_size=32, method="dynamic", w_shape="element"), make_data(), CPU)
    assert element.method.units["layer1.0.act1"].w.shape == (3, 8, 8)


# --- refusals and interruptions ---


@pytest.mark.parametrize(("settings", "reason"), [
    (dict(batch_size=65), "batch_size 65 is larger than the 64 training images"), (dict(labels="soft"), "soft labels"),
    (dict(precision="tf32"), "tf32"), (dict(method="dynamic", w_site="act3"), "unknown site 'act3'"),
    (dict(method="dynamic", backbone="resnet50", share_activations=True), "share|scalar|shape")])
def test_settings_that_cant_run_are_refused_before_training(settings, reason):
    with pytest.raises(ParameterError, match=reason):
        check(make_experiment(**settings), make_data())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused():
    assert choose_device("auto") == CPU
    with pytest.raises(ParameterError, match="cuda:7"):
        choose_device("cuda:7")


def test_runs_together_share_threads():
    with pytest.raises(ParameterError, match="threads"):
        train_together([make_experiment(), make_experiment(threads=2)], make_data())


def test_threads_and_handlers_are_put_back():
    before = torch.get_num_threads(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    blocks = train([(make_experiment(threads=2), make_data())], CPU)
    next(blocks)
    assert torch.get_num_threads() == 2 and signal.getsignal(signal.SIGINT) != before[1]
    blocks.close()
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("first", [0, 1])
def test_handlers_are_put_back_whichever_training_ends_first(first):
    """In a notebook, a cell that failed keeps its loop open while the next one trains."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    both = [train([(make_experiment(epochs=30), make_data())], CPU) for _ in range(2)]
    for blocks in both:
        next(blocks)
    both[first].close()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):
        list(both[1 - first])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block_at_the_next_step_and_hands_it_out(number, monkeypatch):
    data = make_data()
    true_step = Learner.train_step

    def step_and_signal(self):
        loss = true_step(self)
        if self.step == 3:
            signal.raise_signal(number)
        return loss

    monkeypatch.setattr(Learner, "train_step", step_and_signal)
    blocks = []
    with pytest.raises(Stopped) as stopped:
        for block in train([(make_experiment(), data)], CPU):
            blocks.append(block)
    assert stopped.value.exit_code == 128 + number
    assert [len(b.loss) for b in blocks] == [3]
    monkeypatch.setattr(Learner, "train_step", true_step)
    rest = list(train([(make_experiment(), data)], CPU, [blocks[0].state()]))
    assert_same_bits(train_one(make_experiment(), data), Trained([*blocks, *rest]))
