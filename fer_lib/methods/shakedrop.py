"""ShakeDrop, the published method that is nearest to the paper's: residual branches whose sign flips at random.

Block l of L computes x + (b + alpha - b alpha) F(x) in the training forward, the gradient of F is multiplied by
b + beta - b beta in the backward, and evaluation uses the mean, x + p_l F(x). b is 1 with chance p_l, else 0; alpha is
uniform in [-1, 1], so that a branch with b = 0 is negated in half of all cases; beta is uniform in [0, 1]. p_l falls
linearly, p_l = 1 - l / L (1 - p_L) (Yamada et al. 2018, "ShakeDrop Regularization for Deep Residual Learning", eq. 6).
Here b is drawn for each block and step, alpha and beta for each image of it. The ReLU after the addition stays.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.methods.base import Method
from fer_lib.models import sites
from fer_lib.world import ALONE, World


class _Scaled(torch.autograd.Function):
    """x times one factor forwards, its gradient times another one backwards."""

    @staticmethod
    def forward(ctx, x: Tensor, forwards: Tensor, backwards: Tensor) -> Tensor:
        ctx.save_for_backward(backwards)
        return x * forwards

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.saved_tensors[0], None, None


def shakedrop(x: Tensor, p: float, generator: torch.Generator | None = None, world: World = ALONE) -> Tensor:
    """A residual branch's output x (N, C, H, W), kept with chance p, else shaken: times alpha, its gradient times beta.

    Where x is a rank's part of the batch, the factors are drawn for the whole batch, as one process would, and cut.
    """
    whole = world.size * len(x)
    draw = torch.empty(2 * whole + 1, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    draw.uniform_(generator=generator)
    b = draw[0] < p
    alpha, beta = draw[1:].view(2, whole, *(1 for _ in x.shape[1:]))[:, world.part(whole)].to(x.dtype)
    # b + f - b f is 1 where b = 1, else f; computed, it would be 1 up to rounding only
    return _Scaled.apply(x, torch.where(b, 1, 2 * alpha - 1), torch.where(b, 1, beta))


class Shake(nn.Module):
    """`shakedrop` as a module: times its mean p in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.generator, self.world = p, None, ALONE

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 1:
            return x
        return shakedrop(x, self.p, self.generator, self.world) if self.training else x * self.p

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class ShakeDrop(Method):
    """ShakeDrop on every residual branch, after its last batch norm."""

    fields = ("shake_p",)
    draws_in_forward = True

    def __init__(self, shake_p: float):
        if not 0 <= shake_p <= 1:
            raise ValueError(f"shake_p is a chance in [0, 1], not {shake_p}")
        self.p = shake_p
        self.modules: list[Shake] = []

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        branches = sites(model, "pre_add")
        for k, site in enumerate(branches.values(), 1):
            self.modules.append(Shake(1 - k / len(branches) * (1 - self.p)))
            site.fill("after", self.modules[-1])
        return len(self.modules)

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        # a seed of its own, as in random_flip
        self.generator = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 3)
        for module in self.modules:
            module.generator = self.generator

    def spread(self, world: World) -> None:
        for module in self.modules:
            module.world = world

    def generators(self) -> list[torch.Generator]:
        return [self.generator]

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())
