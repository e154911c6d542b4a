"""Exercises of 08_placement: how often ReLU is called, and how far a flip moves what the next layer computes."""

from functools import cache

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fer_lib.exercises.base import Exercise, Trial


def relu_calls(model: nn.Module, x: Tensor) -> int:
    """How often a forward pass calls a ReLU: each call is a place of its own."""
    calls = []
    hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for m in model.modules() if isinstance(m, nn.ReLU)]
    model(x)
    for hook in hooks:
        hook.remove()
    return len(calls)


def _modules(model: nn.Module, x: Tensor) -> int:
    return sum(isinstance(m, nn.ReLU) for m in model.modules())


def _norms(model: nn.Module, x: Tensor) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def _named(model: nn.Module, x: Tensor) -> int:
    return sum(name.endswith("relu") for name, _ in model.named_children())


def flip_shift(weight: Tensor, x: Tensor) -> Tensor:
    """What a flip of x, before ReLU, adds to the next layer's output: relu(-x) = relu(x) - x, so it is -x @ W.T."""
    return -x @ weight.T


def _output_negated(weight: Tensor, x: Tensor) -> Tensor:
    return -2 * F.relu(x) @ weight.T


def _not_subtracted(weight: Tensor, x: Tensor) -> Tensor:
    return F.relu(-x) @ weight.T


def _other_way(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.T


def _without_relu(weight: Tensor, x: Tensor) -> Tensor:
    return -2 * x @ weight.T


@cache
def _network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return getattr(torchvision.models, name)(num_classes=7).eval()


def _calls(name: str) -> Trial:
    return Trial(f"for torchvision's {name}", lambda f: f(_network(name), torch.zeros(1, 3, 32, 32)))


def _shift(about: str, seed: int) -> Trial:
    def run(function):
        g = torch.Generator().manual_seed(seed)
        return function(torch.randn(3, 5, generator=g), torch.randn(4, 5, generator=g))
    return Trial(about, run)


EXERCISES = [
    Exercise(
        "relu_calls",
        [_calls("resnet18"), _calls("resnet34")],
        relu_calls,
        {"you count modules: each block has one ReLU object and calls it twice. An AutoReLU put in its place would "
         "share its w between two places": _modules,
         "you count batch norms: the shortcut's and the last of a block have no ReLU directly after them": _norms,
         "you count the ReLUs at the top of the network: the blocks hold the others": _named},
        "17 places in ResNet-18 where a ReLU acts, from 9 objects"),
    Exercise(
        "flip_shift",
        [_shift("with 4 samples of 5 features", 0), _shift("with others", 1)],
        flip_shift,
        {"you flip after ReLU: that negates what passes. Before ReLU, the flip lets pass what was cut": _output_negated,
         "you give the output with the flip: asked for is what the flip adds to the output without it": _not_subtracted,
         "you have the sign the other way round: with the flip minus without": _other_way,
         "you leave ReLU out": _without_relu},
        "relu(-x) = relu(x) - x, so a flip moves the next layer's mean by -W times the mean of x: nothing where BN has "
        "made that mean 0, much after an addition, where it is not"),
]
