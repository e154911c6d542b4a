"""A control: noise that is noise. y = x + N(0, sd^2) after the activation, in training only (Camuto et al. 2020).

"Explicit Regularisation in Gaussian Noise Injections" (arXiv 2007.07368) adds it to the input and every hidden layer,
not to the output: `noise_site` "all" is that without the input. A sign flip is no noise but a re-parametrisation
(fer_lib.methods.bn_negation); this is what the word means elsewhere.
"""

import math

import torch
from torch import Tensor, nn

from fer_lib.methods.base import DrawsInForward
from fer_lib.models import sites
from fer_lib.world import ALONE, World


def gaussian_noise(x: Tensor, sd: float, generator: torch.Generator | None = None, world: World = ALONE) -> Tensor:
    """x + sd * N(0, 1), an own draw for each element of x (N, ...).

    Where x is a rank's part of the batch, the noise is drawn for the whole batch, as one process would, and cut.
    """
    whole = world.size * len(x)
    noise = torch.empty((whole, *x.shape[1:]), dtype=x.dtype, device=x.device)
    return x + noise.normal_(0, sd, generator=generator)[world.part(whole)]


class SeededNoise(nn.Module):
    """`gaussian_noise` as a module: the identity in evaluation."""

    def __init__(self, sd: float):
        super().__init__()
        self.sd, self.generator, self.world = sd, None, ALONE

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_noise(x, self.sd, self.generator, self.world) if self.training and self.sd > 0 else x

    def extra_repr(self) -> str:
        return f"sd={self.sd}"


class GaussianNoise(DrawsInForward):
    """Gaussian noise after the activation of the chosen sites."""

    fields = ("noise_sd", "noise_site")
    seed_offset = 2

    def __init__(self, noise_sd: float, noise_site: str):
        super().__init__()
        if not 0 <= noise_sd < math.inf:
            raise ValueError(f"noise_sd is a finite number of at least 0, not {noise_sd}")
        self.sd, self.where = noise_sd, noise_site

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        for site in sites(model, self.where).values():
            self.modules.append(SeededNoise(self.sd))
            site.fill("after", self.modules[-1])
        return len(self.modules)
