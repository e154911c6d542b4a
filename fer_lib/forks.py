"""One network in training, and copies of it that go on with the same batches, each after one change of its own.

So what parts two curves is the change alone: no other seed, no other order of images. On the CPU, same bits each time.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fer_lib.activations import AutoReLU
from fer_lib.data import PackedDataset
from fer_lib.engine import Learner
from fer_lib.experiment import Experiment
from fer_lib.methods.bn_negation import MOMENTS, negated_parameters
from fer_lib.methods.dropout import SeededDropout
from fer_lib.models import sites

Change = Callable[[Learner], None]
CPU = torch.device("cpu")


def trained(e: Experiment, data: PackedDataset, steps: int) -> Learner:
    """A network and its optimiser after so many steps of training on the CPU."""
    torch.set_num_threads(e.threads)
    learner = Learner(e, data, CPU)
    go_on(learner, steps)
    return learner


def go_on(learner: Learner, steps: int) -> np.ndarray:
    """Train on; the loss of each step, (steps,)."""
    losses = np.empty(steps)
    learner.model.train()
    for k in range(steps):
        learner.draw_epoch()
        losses[k] = float(learner.train_step())
    return losses


def fork(learner: Learner, change: Change | None = None) -> Learner:
    """A copy that goes on where the learner is, with the change made. The learner itself stays as it is."""
    copied = Learner(learner.e, learner.data, learner.device)
    copied.load_state(copy.deepcopy(learner.state()))
    if change is not None:
        with torch.no_grad():
            change(copied)
    return copied


def same_batch_twice(learner: Learner) -> float:
    """The difference of the loss between two training forwards of one batch by the same weights: 0 without noise."""
    losses = []
    statistics = [b.clone() for b in learner.model.buffers()]
    learner.draw_epoch()
    learner.model.train()
    for _ in range(2):
        with torch.no_grad():
            losses.append(float(learner.loss(learner)))
            for buffer, kept in zip(learner.model.buffers(), statistics):
                buffer.copy_(kept)
    return abs(losses[0] - losses[1])


# --- changes: each is made once, between two steps ---


def flip(where: str = "act1") -> Change:
    """Turn the sign between BN and ReLU, as Algorithm 1's toggle does."""
    def change(learner: Learner) -> None:
        for name, site in sites(learner.model, where).items():
            learner.forced[name] = -learner.forced.get(name, 1.)
            site.force(learner.forced[name], learner.device)
    return change


def negate_bn(where: str = "act1", moments: bool = True) -> Change:
    """Negate gamma and beta of the BN before the site, and Adam's first moment of both: what it remembers."""
    def change(learner: Learner) -> None:
        for name in sites(learner.model, where):
            for p in negated_parameters(learner.model, name, "before_relu"):
                p.neg_()
                for key in MOMENTS if moments else ():
                    if key in learner.optimizer.state[p]:
                        learner.optimizer.state[p][key].neg_()
    return change


def reset_bn(where: str = "act1") -> Change:
    """Gamma = 1, beta = 0, and Adam's memory of both forgotten: the BN begins anew, the rest of the network doesn't."""
    def change(learner: Learner) -> None:
        for name in sites(learner.model, where):
            gamma, beta = negated_parameters(learner.model, name, "before_relu")
            gamma.fill_(1), beta.fill_(0)
            for p in (gamma, beta):
                learner.optimizer.state.pop(p, None)
    return change


def redraw_convolutions(where: str = "act1", seed: int = 0) -> Change:
    """The convolutions that read the sites are drawn anew, and Adam forgets them: what they had learnt is gone."""
    def change(learner: Learner) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in sites(learner.model, where):
            weight, = negated_parameters(learner.model, name, "after_relu")
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
            learner.optimizer.state.pop(weight, None)
    return change


def freeze_bn(where: str = "act1") -> Change:
    """Gamma and beta of the BN before the sites learn no more."""
    def change(learner: Learner) -> None:
        for name in sites(learner.model, where):
            for p in negated_parameters(learner.model, name, "before_relu"):
                p.requires_grad_(False)
    return change


def use_auto_relu(w: float, cliff: float, where: str = "act1") -> Change:
    """AutoReLU (eq. 2) in place of ReLU, with this w for good: no optimiser moves it."""
    def change(learner: Learner) -> None:
        for site in sites(learner.model, where).values():
            site.fill("act", AutoReLU((), w, cliff, gradient="exact"))
    return change


def both(*changes: Change) -> Change:
    """One after the other, in the same pause."""
    def change(learner: Learner) -> None:
        for one in changes:
            one(learner)
    return change


def restart_lr(times: float, steps: int) -> Change:
    """Warm restart (SGDR): the rate jumps to so many times its value, and falls back on a cosine within `steps`."""
    def change(learner: Learner) -> None:
        first, groups = learner.step, learner.optimizer.param_groups
        usual = [group["lr"] for group in groups]

        def before(module: nn.Module, inputs: tuple) -> None:
            done = min(1., (learner.step - first) / steps)
            factor = 1 + (times - 1) * .5 * (1 + math.cos(math.pi * done))
            for group, lr in zip(groups, usual):
                group["lr"] = lr * factor

        learner.model.register_forward_pre_hook(before)
    return change


class Gaussian(nn.Module):
    """Noise as the word is used: y = x + sigma e, with e ~ N(0, 1) drawn anew in each training forward."""

    def __init__(self, sigma: float, seed: int):
        super().__init__()
        self.sigma, self.generator = sigma, torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x + self.sigma * torch.empty_like(x).normal_(generator=self.generator)


def add_noise(sigma: float, where: str = "act1", seed: int = 0) -> Change:
    """From now on Gaussian noise between BN and ReLU, where Algorithm 1 flips."""
    return _fill("before", where, lambda k: Gaussian(sigma, seed + k))


def add_dropout(p: float, where: str = "act1", seed: int = 0) -> Change:
    """From now on dropout after the ReLU of the sites."""
    def module(k: int) -> nn.Module:
        drop = SeededDropout(p, "element")
        drop.generator = torch.Generator().manual_seed(seed + k)
        return drop
    return _fill("after", where, module)


def _fill(slot: str, where: str, make: Callable[[int], nn.Module]) -> Change:
    def change(learner: Learner) -> None:
        for k, site in enumerate(sites(learner.model, where).values()):
            site.fill(slot, make(k).train(learner.model.training))
    return change
