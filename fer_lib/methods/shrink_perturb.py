"""A control: shrink and perturb, w <- shrink * w + perturb * w', w' a fresh initialisation (Ash & Adams 2020).

"On Warm-Starting Neural Network Training" (NeurIPS 2020) does it before training goes on with new data; here it is done
to the whole network at each toggle of Algorithm 1's flag. If sudden changes of a network in training are what helps,
this should help as well.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.methods.periodic import AtToggles


@torch.no_grad()
def fresh(module: nn.Module, generator: torch.Generator | None = None) -> list[Tensor]:
    """A new draw of each of the module's own parameters, in their order, from the distribution that SiteResNet and
    torch initialise it from. A module that draws nothing there, such as AutoReLU with its w, gives none.
    """
    if isinstance(module, nn.Conv2d):
        return [nn.init.kaiming_normal_(torch.empty_like(module.weight), mode="fan_out", nonlinearity="relu",
                                        generator=generator)]
    if isinstance(module, nn.Linear):
        bound = module.in_features ** -.5
        return [torch.empty_like(p).uniform_(-bound, bound, generator=generator)
                for p in (module.weight, module.bias)]
    if isinstance(module, nn.BatchNorm2d):
        return [torch.ones_like(module.weight), torch.zeros_like(module.bias)]
    return []


class ShrinkPerturb(AtToggles):
    """Shrinks and perturbs all weights of convolutions, batch norms and classifier at each toggle.

    The optimiser's moments and the running statistics stay: they follow within some steps.
    """

    fields = ("flip_interval", "flip_interval_unit", "shrink", "perturb")

    def __init__(self, flip_interval: int, flip_interval_unit: str, shrink: float, perturb: float):
        super().__init__(flip_interval, flip_interval_unit)
        if not 0 <= shrink <= 1:
            raise ValueError(f"shrink is a factor in [0, 1], not {shrink}")
        if not 0 <= perturb < float("inf"):
            raise ValueError(f"perturb is a finite number of at least 0, not {perturb}")
        self.shrink, self.perturb = shrink, perturb

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        self.layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
        return len(self.layers)

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        # a seed of its own, as in random_flip
        self.generator = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 4)

    @torch.no_grad()
    def toggle(self) -> None:
        for layer in self.layers:
            for p, new in zip(layer.parameters(recurse=False), fresh(layer, self.generator), strict=True):
                p.mul_(self.shrink).add_(new, alpha=self.perturb)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.generator.set_state(state["generator"].cpu())
