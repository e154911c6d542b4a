"""ShakeDrop, the published method that is nearest to the paper's: residual branches whose sign flips at random.

Block l of L computes x + (b + alpha - b alpha) F(x) in the training forward, the gradient of F is multiplied by
b + beta - b beta in the backward, and evaluation uses the mean, x + p_l F(x). b is 1 with chance p_l, else 0; alpha is
uniform in [-1, 1], so that a branch with b = 0 is negated in half of all cases; beta is uniform in [0, 1]. p_l falls
linearly, p_l = 1 - l / L (1 - p_L) (Yamada et al. 2018, "ShakeDrop Regularization for Deep Residual Learning", eq. 6).
Here b is drawn for each block and step, alpha and beta for each image of it. The ReLU after the addition stays.
"""

import torch
from torch import Tensor, nn

from fer_lib.methods.base import DrawsInForward
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


class ShakeDrop(DrawsInForward):
    """ShakeDrop on every residual branch, after its last batch norm."""

    fields = ("shake_p",)
    seed_offset = 3

    def __init__(self, shake_p: float):
        super().__init__()
        if not 0 <= shake_p <= 1:
            raise ValueError(f"shake_p is a chance in [0, 1], not {shake_p}")
        self.p = shake_p

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        branches = sites(model, "pre_add")
        for k, site in enumerate(branches.values(), 1):
            self.modules.append(Shake(1 - k / len(branches) * (1 - self.p)))
            site.fill("after", self.modules[-1])
        return len(self.modules)
