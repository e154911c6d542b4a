"""Dropout: y = x * m / (1 - p), with m = 0 for a share p of the elements or channels (Srivastava et al. 2014)."""

import torch
from torch import Tensor, nn

from fer_lib.methods.base import DrawsInForward
from fer_lib.models import sites
from fer_lib.world import ALONE, World

UNITS = ("element", "channel")


def dropout(x: Tensor, p: float, unit: str, generator: torch.Generator | None = None, world: World = ALONE) -> Tensor:
    """Zero a share p of x's elements, or of whole (N, C) channels, and scale the rest by 1 / (1 - p).

    torch's own functional draws from the global stream; this one takes the run's, so that runs side by side don't mix.
    Where x is a rank's part of the batch, the mask is drawn for the whole batch, as one process would, and cut.
    """
    whole = world.size * len(x)
    shape = (whole, *x.shape[1:]) if unit == "element" else (whole, x.shape[1], *(1 for _ in x.shape[2:]))
    keep = torch.empty(shape, dtype=x.dtype, device=x.device)
    return x * keep.bernoulli_(1 - p, generator=generator).div_(1 - p)[world.part(whole)]


class SeededDropout(nn.Module):
    """`dropout` as a module: the identity in evaluation."""

    def __init__(self, p: float, unit: str):
        super().__init__()
        self.p, self.unit, self.generator, self.world = p, unit, None, ALONE

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.unit, self.generator, self.world) if self.training and self.p > 0 else x

    def extra_repr(self) -> str:
        return f"p={self.p}, unit={self.unit!r}"


class Dropout(DrawsInForward):
    """Dropout after the activation of the chosen sites ("head" = before the classifier)."""

    fields = ("dropout_p", "dropout_site", "dropout_unit")

    def __init__(self, dropout_p: float, dropout_site: str, dropout_unit: str):
        super().__init__()
        if not 0 <= dropout_p < 1:
            raise ValueError(f"dropout_p is a share in [0, 1), not {dropout_p}")
        if dropout_unit not in UNITS:
            raise ValueError(f"unknown dropout_unit '{dropout_unit}' (choose one of {', '.join(UNITS)})")
        self.p, self.where, self.unit = dropout_p, dropout_site, dropout_unit

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        for site in sites(model, self.where).values():
            self.modules.append(SeededDropout(self.p, self.unit))
            site.fill("after", self.modules[-1])
        return len(self.modules)
