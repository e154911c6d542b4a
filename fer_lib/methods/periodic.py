"""Periodic injection (the paper's Algorithm 1): feature *= -1 while a flag is set that toggles every T steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fer_lib.activations import SignFlip
from fer_lib.methods.base import Method
from fer_lib.models import sites

UNITS = ("epoch", "step")
POSITIONS = ("before_relu", "after_relu")


def flag(step: int, interval: int) -> bool:
    """Algorithm 1's flag in the forward pass of `step` (from 1): toggled after each step s with s % T == T - 1.

    So the first interval has T - 1 steps, each later one T; with T = 1 the flag toggles after every step.
    """
    return bool((step - 1) % 2) if interval == 1 else bool(step // interval % 2)


class SignFlips(Method):
    """Puts a SignFlip into the chosen sites, between BN and ReLU or after ReLU. Subclasses decide the signs."""

    steers_signs = True
    per_channel = False

    def __init__(self, flip_site: str, flip_position: str):
        if flip_position not in POSITIONS:
            raise ValueError(f"unknown flip_position '{flip_position}' (choose one of {', '.join(POSITIONS)})")
        self.where, self.position = flip_site, flip_position
        self.flips: dict[str, SignFlip] = {}

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        for name, site in sites(model, self.where).items():
            self.flips[name] = SignFlip((site.channels, 1, 1) if self.per_channel else ())
            site.fill("before" if self.position == "before_relu" else "after", self.flips[name])
        return len(self.flips)

    def signs(self) -> dict[str, Tensor]:
        return {name: module.sign for name, module in self.flips.items()}

    @contextmanager
    def clean(self) -> Iterator[bool]:
        kept = {name: module.sign.clone() for name, module in self.flips.items()}
        differs = any(bool((sign < 0).any()) for sign in kept.values())
        for module in self.flips.values():
            module.sign.fill_(1)
        try:
            yield differs
        finally:
            for name, module in self.flips.items():
                module.sign.copy_(kept[name])


class Periodic(SignFlips):
    """All chosen sites have the sign - while Algorithm 1's flag is set. Its `step` counts epochs or training steps."""

    fields = ("flip_interval", "flip_interval_unit", "flip_site", "flip_position")
    on_host = True

    def __init__(self, flip_interval: int, flip_interval_unit: str, flip_site: str, flip_position: str):
        super().__init__(flip_site, flip_position)
        self.flag_at = schedule(flip_interval, flip_interval_unit)
        self.set = False

    def before_forward(self, step: int, epoch: int) -> None:
        if self.flag_at(step, epoch) != self.set:
            self.set = not self.set
            for module in self.flips.values():
                module.sign.fill_(-1. if self.set else 1.)

    def state(self) -> dict[str, Tensor]:
        return {"set": torch.tensor(self.set)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.set = bool(state["set"])


class AtToggles(Method):
    """Flips nothing, but acts in the forward in which Algorithm 1's flag has toggled. Subclasses say how."""

    on_host = True
    rewrites_weights = True

    def __init__(self, flip_interval: int, flip_interval_unit: str):
        self.flag_at = schedule(flip_interval, flip_interval_unit)
        self.set = False

    def toggle(self) -> None:
        """Act. No host synchronisation."""
        raise NotImplementedError

    def before_forward(self, step: int, epoch: int) -> None:
        if self.flag_at(step, epoch) != self.set:
            self.set = not self.set
            self.toggle()

    def state(self) -> dict[str, Tensor]:
        return {"set": torch.tensor(self.set)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.set = bool(state["set"])


def schedule(interval: int, unit: str):
    """A function (step, epoch) -> flag. Raises ValueError for an interval below 1 or an unknown unit."""
    if interval < 1:
        raise ValueError(f"flip_interval is a whole number of at least 1, not {interval}")
    if unit not in UNITS:
        raise ValueError(f"unknown flip_interval_unit '{unit}' (choose one of {', '.join(UNITS)})")
    return lambda step, epoch: flag(epoch if unit == "epoch" else step, interval)
