"""What a method is: it changes sites of a model once, and may act before each training forward and after each step.

A method knows nothing of data, files, notebooks or plots. Its constructor takes its settings by name; `fields` lists
them, so that an experiment's id covers just the settings that the method reads.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.world import World


class Method:
    """The baseline: changes nothing. Subclasses override what they need.

    Steps and epochs count from 1. Between construction and the first step come `modify` and `attach`, once each.
    """

    fields: tuple[str, ...] = ()
    steers_signs = False
    rewrites_weights = False            # whether it writes parameters between steps: two such would undo each other
    on_host = False         # whether `before_forward` and `after_step` decide on the host what a step does. A captured
    #                         step leaves them outside then; else they are recorded with it, and must act on the device
    draws_in_forward = False        # from a random stream of its own, which torch.compile can't follow

    def parts(self) -> "list[Method]":
        """The single methods that this one is made of."""
        return [self]

    def generators(self) -> list[torch.Generator]:
        """The random streams that a step draws from on the device."""
        return []

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        """Change the model's sites for images of shape (C, H, W); the number of sites changed.

        Raises ValueError where no site is chosen, or one was changed already.
        """
        return 0

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        """Hand over the optimiser, the method's own random stream (on the model's device) and the run's seed."""

    def spread(self, world: World) -> None:
        """Each rank of the world trains on its part of the batch: what is drawn for single images must be cut so."""

    def before_forward(self, step: int, epoch: int) -> None:
        """Act before the training forward of `step`. No host synchronisation."""

    def after_step(self, step: int, epoch: int) -> None:
        """Act after the optimiser's `step`. No host synchronisation."""

    def signs(self) -> dict[str, Tensor]:
        """By site, a tensor whose signs the last training forward gave the features (one element, or per channel)."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """By site, w as it is now: after the optimiser step, before the next re-initialisation."""
        return {}

    @contextmanager
    def as_trained(self) -> Iterator[bool]:
        """Within, the network is evaluated as trained. Yields whether that takes more than leaving it as it is."""
        yield False

    @contextmanager
    def clean(self) -> Iterator[bool]:
        """Within, the network has the sign + at every site. Yields whether that differs from the network as trained."""
        yield False

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside the model and the optimiser."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up where `state()` was read."""


class DrawsInForward(Method):
    """Modules that draw random numbers within the training forward, from one stream of the method's own.

    A module has the attributes `generator` and `world`. `seed_offset` keeps the streams of combined methods apart.
    """

    draws_in_forward = True
    seed_offset = 0

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        self.generator = torch.Generator(generator.device).manual_seed(generator.initial_seed() + self.seed_offset)
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


class Combined(Method):
    """Several methods at once, each with a random stream of its own."""

    def __init__(self, methods: list[Method]):
        self.methods = methods

    def parts(self) -> list[Method]:
        return self.methods

    def generators(self) -> list[torch.Generator]:
        return [generator for m in self.methods for generator in m.generators()]

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        return sum(m.modify(model, image) for m in self.methods)

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        for m in self.methods:
            # a generator each, so that a method draws the same numbers alone and in company
            own = torch.Generator(generator.device).manual_seed(generator.initial_seed())
            m.attach(optimizer, own, seed)

    def spread(self, world: World) -> None:
        for m in self.methods:
            m.spread(world)

    def before_forward(self, step: int, epoch: int) -> None:
        for m in self.methods:
            m.before_forward(step, epoch)

    def after_step(self, step: int, epoch: int) -> None:
        for m in self.methods:
            m.after_step(step, epoch)

    def signs(self) -> dict[str, Tensor]:
        return {site: s for m in self.methods for site, s in m.signs().items()}

    def weights(self) -> dict[str, Tensor]:
        return {site: w for m in self.methods for site, w in m.weights().items()}

    @contextmanager
    def as_trained(self) -> Iterator[bool]:
        with ExitStack() as stack:
            yield any([stack.enter_context(m.as_trained()) for m in self.methods])

    @contextmanager
    def clean(self) -> Iterator[bool]:
        with ExitStack() as stack:
            yield any([stack.enter_context(m.clean()) for m in self.methods])

    def state(self) -> dict[str, Tensor]:
        return {f"{k}.{key}": value for k, m in enumerate(self.methods) for key, value in m.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for k, m in enumerate(self.methods):
            m.load_state({key.split(".", 1)[1]: v for key, v in state.items() if key.startswith(f"{k}.")})
