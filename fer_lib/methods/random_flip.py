"""A control: each training step draws the sign of features at random, - with chance p, per channel or for the batch.

It separates "flips now and then" from "stays flipped for a while", which the paper's two methods do.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from fer_lib.methods.periodic import SignFlips

UNITS = ("channel", "batch")


class RandomFlip(SignFlips):
    """At each step and site: sign - with chance `flip_p`, for each channel or for the whole batch."""

    fields = ("flip_p", "flip_unit", "flip_site", "flip_position")

    def __init__(self, flip_p: float, flip_unit: str, flip_site: str, flip_position: str):
        super().__init__(flip_site, flip_position)
        if not 0 <= flip_p <= 1:
            raise ValueError(f"flip_p is a chance in [0, 1], not {flip_p}")
        if flip_unit not in UNITS:
            raise ValueError(f"unknown flip_unit '{flip_unit}' (choose one of {', '.join(UNITS)})")
        self.p, self.per_channel = flip_p, flip_unit == "channel"

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        # a seed of its own: in "dropout+random_flip" dropout draws from the given one
        self.generator = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1)

    def generators(self) -> list[torch.Generator]:
        return [self.generator]

    def before_forward(self, step: int, epoch: int) -> None:
        for module in self.flips.values():
            module.sign.bernoulli_(1 - self.p, generator=self.generator).mul_(2).sub_(1)

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
