"""A control, the twin of periodic injection: no flip at all, but a sudden negation of parameters at each toggle.

Since -BN(x; gamma, beta) = BN(x; -gamma, -beta), a network whose features are flipped between BN and ReLU is the plain
network with gamma and beta negated. If the optimiser's first moment of gamma and beta (Adam's exp_avg, SGD's momentum
buffer) is negated with them, the two runs stay equal bit for bit. A flip after ReLU is the negation of the weight of
the convolution that reads it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.methods.base import Method
from fer_lib.methods.periodic import POSITIONS, schedule
from fer_lib.models import SiteBottleneck, norm_before, sites

MOMENTS = ("exp_avg", "momentum_buffer")                # odd in the parameter: they follow its sign; exp_avg_sq doesn't


def negated_parameters(model: nn.Module, site: str, position: str) -> list[nn.Parameter]:
    """The parameters whose negation equals a flip at the site. Raises ValueError where there are none."""
    path, _, kind = site.rpartition(".")
    block = model.get_submodule(path) if path else None
    if block is not None and block.act1 is block.act2:
        raise ValueError("bn_negation has no twin where a block's activations are one object (share_activations)")
    norm, reader = norm_before(model, site), None
    if kind == "act1" and block is not None:
        reader = block.conv2
    elif kind == "act2" and isinstance(block, SiteBottleneck):
        reader = block.conv3
    if norm is not None and (position == "before_relu" or kind in ("pre_add", "shortcut")):
        return [norm.weight, norm.bias]
    if reader is not None and position == "after_relu":
        return [reader.weight]
    raise ValueError(f"bn_negation has no twin for a flip {position} at site '{site}': the feature there is not one "
                     "batch norm's output read by one convolution (choose act1, pre_add, shortcut or stem)")


class BatchNormNegation(Method):
    """Negates the twin parameters and their first moment whenever Algorithm 1's flag toggles."""

    fields = ("flip_interval", "flip_interval_unit", "flip_site", "flip_position")
    steers_signs = True
    rewrites_weights = True
    on_host = True

    def __init__(self, flip_interval: int, flip_interval_unit: str, flip_site: str, flip_position: str):
        if flip_position not in POSITIONS:
            raise ValueError(f"unknown flip_position '{flip_position}' (choose one of {', '.join(POSITIONS)})")
        self.flag_at = schedule(flip_interval, flip_interval_unit)
        self.where, self.position, self.set = flip_site, flip_position, False

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        chosen = sites(model, self.where)
        self.parameters = [p for name in chosen for p in negated_parameters(model, name, self.position)]
        self.sign = {name: torch.ones(()) for name in chosen}
        return len(chosen)

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        self.optimizer = optimizer
        self.sign = {name: sign.to(generator.device) for name, sign in self.sign.items()}

    @torch.no_grad()
    def before_forward(self, step: int, epoch: int) -> None:
        if self.flag_at(step, epoch) != self.set:
            self.set = not self.set
            self.negate()
            for p in self.parameters:
                for moment in MOMENTS:
                    buffer = self.optimizer.state[p].get(moment)
                    if buffer is not None:
                        buffer.neg_()
            for sign in self.sign.values():
                sign.fill_(-1. if self.set else 1.)

    @torch.no_grad()
    def negate(self) -> None:
        for p in self.parameters:
            p.neg_()

    def signs(self) -> dict[str, Tensor]:
        return self.sign

    @contextmanager
    def clean(self) -> Iterator[bool]:
        if self.set:
            self.negate()
        try:
            yield self.set
        finally:
            if self.set:
                self.negate()

    def state(self) -> dict[str, Tensor]:
        return {"set": torch.tensor(self.set)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.set = bool(state["set"])
        for sign in self.sign.values():
            sign.fill_(-1. if self.set else 1.)
