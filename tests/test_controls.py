"""The control methods: Gaussian noise, shrink and perturb, batch norm resets, ShakeDrop."""

import math

import numpy as np
import pytest
import torch
from conftest import CPU, make_data, make_experiment, train_one
from test_methods import make_learner, simulated_flags
from torch import nn

from fer_lib import methods
from fer_lib.engine import Learner, check
from fer_lib.experiment import ParameterError
from fer_lib.methods.gaussian_noise import SeededNoise, gaussian_noise
from fer_lib.methods.shakedrop import Shake, shakedrop
from fer_lib.methods.shrink_perturb import fresh
from fer_lib.models import build_model, norm_before, sites
from fer_lib.world import World

pytestmark = pytest.mark.usefixtures("short_resnet")
SETTINGS = {"noise_sd": .3, "noise_site": "act1", "shake_p": .5, "shrink": .6, "perturb": .01, "flip_interval": 3,
            "flip_interval_unit": "step", "flip_site": "act1"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what all of them share ---


@pytest.mark.parametrize("name", ["gaussian_noise", "shrink_perturb", "bn_reset", "shakedrop"])
def test_a_control_flips_no_sign_and_is_evaluated_as_it_is(name):
    learner = make_learner(method=name, flip_interval=2, flip_interval_unit="step")
    assert not methods.steers_signs(name) and learner.method.signs() == {} and learner.method.weights() == {}
    for _ in range(5):
        learner.train_step()
    found = {(v.split, v.mode): v.scores for v in learner.evaluate()}
    for split in ("val", "test"):
        assert found[split, "trained"] is found[split, "clean"]
    assert train_one(make_experiment(method=name, flip_interval=2, flip_interval_unit="step"),
                     make_data()).flip_steps == []


@pytest.mark.parametrize("name", ["gaussian_noise", "shakedrop"])
def test_seeds_draw_other_noise_and_the_global_stream_stays(name):
    data, losses = make_data(), {}
    for seed in (0, 0, 1):
        learner = Learner(make_experiment(method=name), data, CPU)
        learner.method.attach(learner.optimizer, seeded(seed), seed)
        learner.draw_epoch()
        before = torch.get_rng_state()
        losses.setdefault(seed, []).append([float(learner.train_step()) for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0][0] == losses[0][1] != losses[1][0]


def test_methods_in_one_run_draw_from_streams_of_their_own():
    learner = make_learner(method="dropout+gaussian_noise+random_flip+shakedrop+shrink_perturb")
    seeds = [part.generator.initial_seed() for part in learner.method.parts()]
    assert len(set(seeds)) == 5


@pytest.mark.parametrize(("name", "bad"), [
    ("gaussian_noise", {"noise_sd": -1.}), ("gaussian_noise", {"noise_sd": math.inf}), ("shakedrop", {"shake_p": 1.5}),
    ("shrink_perturb", {"shrink": -.1}), ("shrink_perturb", {"perturb": math.nan}), ("bn_reset", {"flip_interval": 0}),
    ("shrink_perturb", {"flip_interval_unit": "week"})])
def test_wrong_values_are_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        methods.build_method(name, SETTINGS | bad)


# --- Gaussian noise ---


@pytest.mark.parametrize("sd", [.1, 2.])
def test_noise_has_its_sd_and_no_pattern(sd):
    noise = gaussian_noise(torch.full((64, 8, 10, 10), 3.), sd, seeded()) - 3
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 * sd / n ** .5
    assert float(noise.std()) == pytest.approx(sd, rel=4 / (2 * n) ** .5)
    assert float((noise.abs() > 2 * sd).float().mean()) == pytest.approx(.0455, abs=.005)
    flat = noise.flatten(1)                             # images among each other, neighbours in an image
    for a, b in ((flat[0], flat[1]), (flat[:, :-1].flatten(), flat[:, 1:].flatten())):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / len(a) ** .5


def test_noise_is_there_in_training_only_and_not_at_sd_0():
    x = torch.randn(2, 3, 4, 4)
    assert SeededNoise(.5).eval()(x) is x and SeededNoise(0.).train()(x) is x
    assert not torch.equal(SeededNoise(.5).train()(x), x)


def test_noise_comes_after_the_activation_of_the_sites_chosen():
    learner = make_learner(method="gaussian_noise", noise_site="layer2.act1+stem", noise_sd=.7)
    found = {name: m for name, m in learner.model.named_modules() if isinstance(m, SeededNoise)}
    assert [*found] == ["relu.after", "layer2.0.act1.after"] and {m.sd for m in found.values()} == {.7}
    seen = []
    learner.model.layer2[0].act1.register_forward_hook(lambda m, i, y: seen.append(y.detach().clone()))
    learner.train_step()
    assert (seen[0] < 0).any()                          # ReLU's output has none


@pytest.mark.parametrize("draw", [lambda x, world: gaussian_noise(x, .3, seeded(), world),
                                  lambda x, world: shakedrop(x, .2, seeded(), world)], ids=["noise", "shake"])
def test_ranks_get_their_part_of_the_whole_batchs_draws(draw):
    x = torch.ones(6, 2, 3, 3)
    whole = draw(x, World(0, 1))
    parts = [draw(x[World(rank, 2).part(6)], World(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(*parts)


# --- ShakeDrop ---


def factors(p: float, images: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What x and its gradient are multiplied by: (steps, images) each."""
    generator, forwards, backwards = seeded(), [], []
    for _ in range(steps):
        x = torch.ones(images, 2, 3, 3, requires_grad=True)
        y = shakedrop(x, p, generator)
        y.sum().backward()
        for v in (y.detach(), x.grad):
            assert torch.equal(v, v[:, :1, :1, :1].expand_as(v))        # one factor an image
        forwards.append(y.detach()[:, 0, 0, 0])
        backwards.append(x.grad[:, 0, 0, 0])
    return torch.stack(forwards), torch.stack(backwards)


def test_shakedrop_keeps_a_branch_at_its_rate_and_shakes_it_evenly_else():
    p, steps, images = .3, 600, 8
    forwards, backwards = factors(p, images, steps)
    kept = (forwards == 1).all(1)
    assert torch.equal(kept, (backwards == 1).all(1)) and not (forwards[~kept] == 1).any()  # one b for all images
    assert abs(float(kept.double().mean()) - p) < 4 * (p * (1 - p) / steps) ** .5
    alpha, beta = forwards[~kept].flatten(), backwards[~kept].flatten()
    n = len(alpha)
    for drawn, low, high in ((alpha, -1, 1), (beta, 0, 1)):
        assert low <= drawn.min() < low + .01 and high - .01 < drawn.max() <= high
        width = (high - low) / 12 ** .5                 # sd of a uniform number
        assert abs(float(drawn.mean()) - (low + high) / 2) < 4 * width / n ** .5
        assert float(drawn.std()) == pytest.approx(width, rel=.05)
    assert abs(float(torch.corrcoef(torch.stack([alpha, beta]))[0, 1])) < 4 / n ** .5
    assert abs(float(forwards.mean()) - p) < .05        # the mean, which evaluation uses
    runs = float((kept[1:] == kept[:-1]).double().mean())
    assert abs(runs - (p * p + (1 - p) ** 2)) < .1      # steps are independent


def test_shakedrop_is_its_mean_in_evaluation_and_the_identity_at_p_1():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Shake(.25).eval()(x), .25 * x) and Shake(1.).train()(x) is x and Shake(1.).eval()(x) is x


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_shakedrop_sits_on_each_branch_and_decays_linearly(backbone):
    model = build_model(backbone, width=.02)
    blocks = methods.build_method("shakedrop", {"shake_p": .4}).modify(model, (1, 16, 16))
    found = [site.after for site in sites(model, "pre_add").values()]
    assert len(found) == blocks == {"resnet18": 4, "resnet50": 16}[backbone]
    np.testing.assert_allclose([m.p for m in found], [1 - k / blocks * .6 for k in range(1, blocks + 1)])


def test_shakedrops_shortcut_is_left_alone():
    """At p = 0 of every block and a factor 0 the block would be the identity: only F(x) is scaled."""
    model = build_model("resnet18", width=.05)
    methods.build_method("shakedrop", {"shake_p": 0.}).modify(model, (1, 16, 16))
    block, x = model.layer1[0].eval(), torch.rand(2, 3, 5, 5)
    block.pre_add.after.p = 0.
    assert torch.equal(block(x), x)


# --- at the toggles of Algorithm 1 ---


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


@pytest.mark.parametrize("name", ["shrink_perturb", "bn_reset"])
@pytest.mark.parametrize("interval", [1, 3, 4])
def test_they_act_in_the_forward_in_which_the_flag_toggles(name, interval):
    learner = make_learner(method=name, flip_interval=interval, flip_interval_unit="step")
    flags, acted = simulated_flags(interval, 12), []
    for step in range(1, 13):
        before = weights(learner)
        learner.method.before_forward(step, 1)
        acted.append(any(not torch.equal(p, before[k]) for k, p in learner.model.named_parameters()))
        learner.train_step()
        learner.draw_epoch()
    toggles = [now != before for now, before in zip(flags, [False, *flags])]
    assert acted == toggles and any(toggles)


def test_epochs_are_what_the_schedule_counts_by_default():
    learner = make_learner(method="shrink_perturb", flip_interval=2)
    calls = []
    learner.method.toggle = lambda: calls.append(learner.epoch)
    for _ in range(40):
        learner.draw_epoch()
        learner.train_step()
    assert calls == [2, 4]


def test_shrink_and_perturb_is_its_formula():
    learner = make_learner(method="shrink_perturb", shrink=.5, perturb=.1)
    before, twin = weights(learner), torch.Generator().manual_seed(learner.method.generator.initial_seed())
    learner.method.toggle()
    for layer in learner.method.layers:
        for p, new in zip(layer.parameters(recurse=False), fresh(layer, twin), strict=True):
            name = next(k for k, q in learner.model.named_parameters() if q is p)
            torch.testing.assert_close(p.detach(), .5 * before.pop(name) + .1 * new)
    assert before == {}                                 # every parameter had its turn
    norm = learner.model.layer1[0].bn1
    torch.testing.assert_close(norm.weight.detach(), torch.full_like(norm.weight, .6))


def test_a_fresh_initialisation_is_distributed_as_the_networks_own():
    torch.manual_seed(0)
    model = build_model("resnet18", width=.5)
    for name, layer in model.named_modules():
        new = fresh(layer, seeded())
        assert bool(new) == bool([*layer.parameters(recurse=False)]), name
        for p, drawn in zip((p.detach() for p in layer.parameters(recurse=False)), new, strict=True):
            assert drawn.shape == p.shape and drawn.stride() == p.stride()
            if p.numel() > 500:
                assert float(drawn.std()) == pytest.approx(float(p.std()), rel=.1), name
                assert float(drawn.abs().max()) == pytest.approx(float(p.abs().max()), rel=.35)
                assert not torch.equal(drawn, p)
            elif isinstance(layer, nn.BatchNorm2d):
                assert torch.equal(drawn, p)
    assert [torch.equal(*pair) for pair in zip(fresh(model.conv1, seeded(3)), fresh(model.conv1, seeded(3)))] == [True]


def test_each_toggle_draws_anew_and_leaves_w_and_the_moments():
    learner = make_learner(method="dynamic+shrink_perturb", shrink=0., perturb=1.)
    learner.train_step()
    moments = learner.optimizer.state[learner.model.conv1.weight]["exp_avg"].clone()
    part = next(p for p in learner.method.parts() if isinstance(p, methods.ShrinkPerturb))
    w = {name: w.clone() for name, w in learner.method.weights().items()}
    drawn = []
    for _ in range(2):
        part.toggle()
        drawn.append(learner.model.conv1.weight.detach().clone())
    assert not torch.equal(*drawn)
    assert all(torch.equal(now, w[name]) for name, now in learner.method.weights().items())
    assert torch.equal(learner.optimizer.state[learner.model.conv1.weight]["exp_avg"], moments)


@pytest.mark.parametrize(("optimizer", "kept"), [("adam", {"exp_avg", "exp_avg_sq", "step"}),
                                                 ("sgd", {"momentum_buffer"})])
def test_bn_reset_starts_the_chosen_norms_anew_with_the_optimisers_memory(optimizer, kept):
    learner = make_learner(method="bn_reset", flip_site="layer2.act1+pre_add", optimizer=optimizer)
    for _ in range(3):
        learner.train_step()
    model, state = learner.model, learner.optimizer.state
    before = weights(learner)
    learner.method.toggle()
    chosen = [model.layer2[0].bn1, *(getattr(model, f"layer{k}")[0].bn2 for k in (1, 2, 3, 4))]
    parameters = {id(p) for norm in chosen for p in (norm.weight, norm.bias)}
    for norm in chosen:
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    for name, p in model.named_parameters():
        found = {k: v for k, v in state[p].items() if v is not None}
        assert found.keys() == kept
        if id(p) in parameters:
            assert not any(v.any() for v in found.values())
        else:
            assert torch.equal(p, before[name]) and found[max(kept)].any()


def test_after_a_reset_adams_step_is_again_at_most_lr():
    """With the old count of steps its bias correction would be off, and the first step three times as large."""
    learner = make_learner(method="bn_reset", flip_interval=5, flip_interval_unit="step", weight_decay=0.)
    for _ in range(5):                                  # the last one has begun with a reset
        learner.train_step()
    gamma = learner.model.layer1[0].bn1.weight.detach()
    assert 0 < float((gamma - 1).abs().max()) <= 1e-3 * 1.001


def test_the_norm_before_a_site():
    model = build_model("resnet50", width=.02)
    block = model.layer1[0]
    assert norm_before(model, "stem") is model.bn1 and norm_before(model, "head") is None
    assert [norm_before(model, f"layer1.0.{kind}") for kind in ("act1", "act2", "pre_add", "shortcut", "act3")] == [
        block.bn1, block.bn2, block.bn3, block.downsample[1], None]
    basic = build_model("resnet18", width=.05)
    assert norm_before(basic, "layer1.0.act2") is None
    assert norm_before(basic, "layer1.0.pre_add") is basic.layer1[0].bn2


def test_bn_reset_where_no_norm_is_alone_says_so():
    with pytest.raises(ParameterError, match=r"no batch norm at site 'layer1\.0\.act2'.*choose act1"):
        check(make_experiment(method="bn_reset", flip_site="all"), make_data())
