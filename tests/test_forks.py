"""Forks: copies that go on with the same batches; what changes is the change alone."""

import math

import numpy as np
import pytest
import torch

from fer_lib import features, forks
from fer_lib.data import open_packed
from fer_lib.experiment import Experiment
from fer_lib.workspace import find_workspace

E = Experiment(data="synthetic-quick", width=.125, batch_size=32, lr=1e-3, epochs=1000)
STEPS = 4


@pytest.fixture(scope="module")
def data():
    return open_packed(find_workspace().data_path(E.data))


@pytest.fixture(scope="module")
def network(data):
    return forks.trained(E, data, 6)


@pytest.fixture(scope="module")
def plain(network):
    return forks.go_on(forks.fork(network), STEPS)


def after(network, change) -> np.ndarray:
    return forks.go_on(forks.fork(network, change), STEPS)


def test_a_fork_without_a_change_is_the_training_that_went_on(data, network, plain):
    whole = forks.trained(E, data, 0)
    assert np.array_equal(forks.go_on(whole, 6 + STEPS)[6:], plain)
    assert np.array_equal(after(network, None), plain), "the first fork changed the network"


def test_a_flip_is_the_negated_bn_to_the_last_bit_and_its_moment_counts(network, plain):
    flip = after(network, forks.flip())
    assert np.array_equal(after(network, forks.negate_bn()), flip)
    kept = after(network, forks.negate_bn(moments=False))
    assert kept[0] == flip[0] and not np.array_equal(kept, flip)
    assert not np.array_equal(flip, plain)
    twice = after(network, forks.both(forks.flip(), forks.flip()))
    assert np.array_equal(twice, plain)


def test_frozen_batch_norms_keep_gamma_and_beta(network):
    one = forks.fork(network, forks.both(forks.flip(), forks.freeze_bn()))
    before = features.affine(one)
    assert (before[0] < 0).all() and torch.equal(before[0], -features.affine(network)[0])
    forks.go_on(one, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, features.affine(one)))


def test_reset_and_redrawn_parts_begin_anew(network, plain):
    reset = forks.fork(network, forks.reset_bn())
    gamma, beta = features.affine(reset)
    assert (gamma == 1).all() and (beta == 0).all()
    redrawn = forks.fork(network, forks.redraw_convolutions())
    conv, old = redrawn.model.layer2[1].conv2.weight, network.model.layer2[1].conv2.weight
    assert not torch.equal(conv, old) and conv not in redrawn.optimizer.state
    assert abs(float(conv.detach().std()) - math.sqrt(2 / (16 * 9))) < .02
    assert torch.equal(redrawn.model.layer2[1].conv1.weight, network.model.layer2[1].conv1.weight)
    assert not np.array_equal(forks.go_on(redrawn, 1), plain[:1])


def test_a_warm_restart_jumps_and_comes_back_to_the_usual_rate(network):
    one = forks.fork(network, forks.restart_lr(5., 4))
    rates = []
    for _ in range(6):
        forks.go_on(one, 1)
        rates.append(one.optimizer.param_groups[0]["lr"] / E.lr)
    assert rates == pytest.approx([5., 1 + 4 * .5 * (1 + math.sqrt(.5)), 3., 1 + 4 * .5 * (1 - math.sqrt(.5)), 1., 1.])


def test_noise_is_random_in_training_and_absent_in_evaluation(network):
    loss = lambda one: one.evaluate(["val"])[0].scores.loss
    for change, random in ((forks.add_noise(.5), True), (forks.add_dropout(.2), True), (forks.flip(), False)):
        one = forks.fork(network, change)
        assert (forks.same_batch_twice(one) > 0) is random
        assert (loss(one) == loss(network)) is random
        assert forks.go_on(forks.fork(network, change), 2).tolist() == forks.go_on(one, 2).tolist() or random
    assert after(network, forks.add_noise(.5)).tolist() == after(network, forks.add_noise(.5)).tolist(), "seeded"
    assert after(network, forks.add_noise(0.)).tolist() == after(network, None).tolist()


def test_auto_relu_with_a_small_w_is_relu(network, plain):
    assert np.array_equal(after(network, forks.use_auto_relu(.1, 6.)), plain)
    with pytest.warns(UserWarning, match="outside"):
        assert np.array_equal(after(network, forks.use_auto_relu(-.1, 6.)), after(network, forks.flip()))


def test_features_are_read_without_a_trace(network):
    state = {k: v.clone() for k, v in network.model.state_dict().items()}
    for training in (False, True):
        seen = features.at_sites(network, "layer1.0.act1+layer4.1.act1", slice(0, 5), training=training)
        assert list(seen) == ["layer1.0.act1", "layer4.1.act1"]
        before, after = seen["layer1.0.act1"]
        assert before.shape == (5, 8, 12, 12) and torch.equal(after, before.relu()) and (before < 0).any()
    assert all(torch.equal(v, state[k]) for k, v in network.model.state_dict().items())
    flipped = features.at_sites(forks.fork(network, forks.flip()), "layer1.0.act1", slice(0, 5))["layer1.0.act1"]
    before, after = features.at_sites(network, "layer1.0.act1", slice(0, 5))["layer1.0.act1"]
    assert torch.equal(flipped[0], before) and torch.equal(flipped[1], (-before).relu())
