"""A control: batch norms start anew, gamma = 1 and beta = 0, at each toggle of Algorithm 1's flag.

Periodic injection is a restart of the affine part of batch norms, with the opposite sign (fer_lib.methods.bn_negation).
Does any restart of it do as well? Everything that the optimiser knows of gamma and beta is forgotten with them: Adam's
moments and count of steps, SGD's momentum buffer.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.methods.periodic import AtToggles
from fer_lib.models import norm_before, sites


class BatchNormReset(AtToggles):
    """Resets the batch norms in front of the chosen sites whenever Algorithm 1's flag toggles."""

    fields = ("flip_interval", "flip_interval_unit", "flip_site")

    def __init__(self, flip_interval: int, flip_interval_unit: str, flip_site: str):
        super().__init__(flip_interval, flip_interval_unit)
        self.where = flip_site

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        self.start: list[tuple[nn.Parameter, float]] = []
        for name in sites(model, self.where):
            norm = norm_before(model, name)
            if norm is None:
                raise ValueError(f"bn_reset has no batch norm at site '{name}': the feature there is not the output of "
                                 "one alone (choose act1, pre_add, shortcut or stem)")
            self.start += [(norm.weight, 1.), (norm.bias, 0.)]
        return len(self.start) // 2

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def toggle(self) -> None:
        for p, value in self.start:
            p.fill_(value)
            for state in self.optimizer.state[p].values():
                if isinstance(state, Tensor):
                    state.zero_()
