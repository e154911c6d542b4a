"""Dynamic injection: AutoReLU (eq. 2) at each chosen site, all w re-initialised to their mean before each forward.

    y = CliffReLU(x * w) / |w|                            eq. 2, with eq. 1 inside
    before each training forward: w <- mean of all w      section 3.2.1, step 2

The pointwise dL/dw is 0 almost everywhere, so what moves w is the optimiser's L2 term and, in the literal version,
rounding error. Each choice that the paper leaves open is a setting; see the README's table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fer_lib.activations import AutoReLU
from fer_lib.methods.base import Method
from fer_lib.models import site_shapes, sites

SHAPES = ("channel", "scalar", "element")
MEANS = ("model", "model_of_sites", "site", "none")
EVAL_W = ("shared", "raw")


def reinitialise(w: list[Tensor], mean: str) -> list[Tensor]:
    """The paper's re-initialisation: every element becomes the mean of all w. Shapes stay; memory may be shared.

    mean: "model" pools all elements of all sites; "model_of_sites" is the mean of the sites' means; "site" averages
    each site for itself; "none" changes nothing. Means are taken in float64.
    """
    if mean == "none":
        return w
    if mean == "model":
        means = [torch.cat([v.flatten() for v in w]).double().mean()] * len(w)
    else:
        means = [v.double().mean() for v in w]
    if mean == "model_of_sites":
        means = [torch.stack(means).mean()] * len(w)
    return [m.to(v.dtype).expand(v.shape) for v, m in zip(w, means)]


def keep_last_sign(w: Tensor, last_sign: Tensor) -> Tensor:
    """w, where exact zeros become the smallest normal number with the last non-zero sign. Updates `last_sign`."""
    last_sign.copy_(torch.where(w == 0, last_sign, torch.sign(w)))
    return torch.where(w == 0, torch.finfo(w.dtype).tiny * last_sign, w)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, without waiting for it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def gradient_noise(seed: int, step: int, site: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws for one site at one step: a pure function of its arguments, made on the CPU (Philox)."""
    key = int.from_bytes(sha256(f"{seed}/w noise/{site}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=step << 64)).standard_normal(shape)


class ModelledPath:
    """w under a modelled gradient, in float64 on the CPU: the network never enters, so every device sees one path.

    dL/dw = N(0, 1) * scale / max(|w|, 1e-8) per element, then the run's own optimiser with its L2 term.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], w0: float, scale: float, optimizer: Optimizer, seed: int):
        self.w = {site: nn.Parameter(torch.full(shape, w0, dtype=torch.float64)) for site, shape in shapes.items()}
        self.leader, self.scale, self.seed = optimizer, scale, seed
        # the group that w would be in: decay "matrices" has a second one, without decay, for what is one-dimensional
        self.group = [-1 if sum(n > 1 for n in w.shape) <= 1 else 0 for w in self.w.values()]
        keys = ("lr", "betas", "eps", "weight_decay", "momentum")
        groups = [{"params": [w], **{k: v for k, v in optimizer.param_groups[g].items() if k in keys}}
                  for w, g in zip(self.w.values(), self.group)]
        self.optimizer = type(optimizer)(groups, foreach=False)

    def step(self, step: int) -> None:
        """One optimiser step on every w, at the learning rate and weight decay that the run has now."""
        for own, g in zip(self.optimizer.param_groups, self.group):
            own |= {key: self.leader.param_groups[g][key] for key in ("lr", "weight_decay")}
        for site, w in self.w.items():
            if self.scale == 0:
                w.grad = torch.zeros_like(w)
            else:
                noise = torch.from_numpy(gradient_noise(self.seed, step, site, tuple(w.shape)))
                w.grad = noise * self.scale / w.detach().abs().clamp_min(1e-8)
        self.optimizer.step()


class Dynamic(Method):
    """AutoReLU at the chosen sites, with the re-initialisation of w before each training forward.

    w_average_moments also averages Adam's two moments of w. w_eval: evaluate with the "shared" w of the last training
    forward, or with the "raw" w just after an optimiser step, which mixes signs near 0.
    """

    fields = ("w_site", "w0", "w_shape", "w_mean", "w_average_moments", "w_eval", "cliff", "divide_by", "w_gradient",
              "w_noise_scale")
    steers_signs = True

    def __init__(self, w_site: str, w0: float, w_shape: str, w_mean: str, w_average_moments: bool, w_eval: str,
                 cliff: float, divide_by: str, w_gradient: str, w_noise_scale: float):
        for name, value, allowed in (("w_shape", w_shape, SHAPES), ("w_mean", w_mean, MEANS),
                                     ("w_eval", w_eval, EVAL_W)):
            if value not in allowed:
                raise ValueError(f"unknown {name} '{value}' (choose one of {', '.join(allowed)})")
        if not 0 <= w_noise_scale < float("inf"):
            raise ValueError(f"w_noise_scale is a finite number of at least 0, not {w_noise_scale}")
        self.where, self.w0, self.shape, self.mean = w_site, w0, w_shape, w_mean
        self.average_moments, self.raw_at_evaluation = w_average_moments, w_eval == "raw"
        self.settings = dict(w0=w0, cliff=cliff, divide_by=divide_by, gradient=w_gradient)
        self.modelled, self.noise_scale = w_gradient == "modelled", w_noise_scale
        AutoReLU((), **self.settings)                   # raises now for a value out of range, not after set-up
        self.units: dict[str, AutoReLU] = {}
        self.path: ModelledPath | None = None

    def modify(self, model: nn.Module, image: tuple[int, int, int]) -> int:
        shapes = site_shapes(model, image) if self.shape != "scalar" else {}
        for name, site in sites(model, self.where).items():
            shape = {"scalar": (), "channel": (site.channels, 1, 1), "element": shapes.get(name)}[self.shape]
            self.units[name] = AutoReLU(shape, **self.settings)
            site.fill("act", self.units[name])
        return len(self.units)

    def attach(self, optimizer: Optimizer, generator: torch.Generator, seed: int) -> None:
        self.optimizer = optimizer
        if self.modelled:
            shapes = {name: tuple(unit.w.shape) for name, unit in self.units.items()}
            self.path = ModelledPath(shapes, self.w0, self.noise_scale, optimizer, seed)
        self.last_sign = torch.sign(torch.cat([w.detach().flatten() for w in self.source.values()]))

    @property
    def on_host(self) -> bool:
        """The modelled path is stepped on the CPU."""
        return self.path is not None

    @property
    def source(self) -> dict[str, Tensor]:
        """Where w lives: the model's parameters, or the modelled path on the CPU."""
        return self.path.w if self.path else {name: unit.w for name, unit in self.units.items()}

    @torch.no_grad()
    def before_forward(self, step: int, epoch: int) -> None:
        w = list(self.source.values())
        flat = torch.cat([v.flatten() for v in reinitialise(w, self.mean)])     # a few operations for all sites at once
        flat = keep_last_sign(flat, self.last_sign)
        shared = [part.view_as(v) for part, v in zip(flat.split([v.numel() for v in w]), w)]
        torch._foreach_copy_(w, shared)
        if self.path:                                   # float64 reaches below float32's range: keep the sign
            like = next(iter(self.units.values())).w
            tiny = torch.finfo(like.dtype).tiny
            flat = _sent(torch.where(flat.abs() < tiny, tiny * self.last_sign, flat), like.device)
            shared = [part.view_as(v) for part, v in zip(flat.split([v.numel() for v in w]), w)]
            torch._foreach_copy_([unit.w for unit in self.units.values()], shared)
        torch._foreach_copy_([unit.w_forward for unit in self.units.values()], shared)
        if self.average_moments:
            self._average_moments()

    def _average_moments(self) -> None:
        optimizer = self.path.optimizer if self.path else self.optimizer
        states = [optimizer.state[w] for w in self.source.values()]
        for moment in ("exp_avg", "exp_avg_sq"):
            if all(moment in s for s in states):
                for s, shared in zip(states, reinitialise([s[moment] for s in states], self.mean)):
                    s[moment].copy_(shared)

    def after_step(self, step: int, epoch: int) -> None:
        if self.path:
            self.path.step(step)

    def signs(self) -> dict[str, Tensor]:
        return {name: unit.w_forward for name, unit in self.units.items()}

    def weights(self) -> dict[str, Tensor]:
        return {name: w.detach() for name, w in self.source.items()}

    @contextmanager
    def as_trained(self) -> Iterator[bool]:
        raw = self.weights() if self.raw_at_evaluation else {}
        with self._evaluated_with({name: w.to(self.units[name].w_forward) for name, w in raw.items()}):
            yield self.raw_at_evaluation

    @contextmanager
    def clean(self) -> Iterator[bool]:
        shared = {name: unit.w_forward for name, unit in self.units.items()}
        differs = any(bool((w < 0).any()) for w in shared.values())
        with self._evaluated_with({name: w.abs() for name, w in shared.items()}):
            yield differs

    @contextmanager
    def _evaluated_with(self, w: dict[str, Tensor]) -> Iterator[None]:
        """Evaluation reads w_forward: put other values there, and the old ones back afterwards."""
        kept = {name: self.units[name].w_forward.clone() for name in w}
        for name, value in w.items():
            self.units[name].w_forward.copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                self.units[name].w_forward.copy_(value)

    def state(self) -> dict[str, Tensor]:
        state = {"last_sign": self.last_sign}
        if self.path:
            state |= {f"path/{name}": w.detach() for name, w in self.path.w.items()}
            for name, w in self.path.w.items():
                state |= {f"path_optimizer/{name}/{k}": v for k, v in self.path.optimizer.state[w].items()
                          if v is not None}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.last_sign = state["last_sign"].to(self.last_sign.device)
        if self.path:
            for name, w in self.path.w.items():
                w.data.copy_(state[f"path/{name}"])
                prefix = f"path_optimizer/{name}/"
                self.path.optimizer.state[w] = {k.removeprefix(prefix): v.cpu() for k, v in state.items()
                                                if k.startswith(prefix)}


def predicted_flips(w0: float, lr: float, weight_decay: float, steps: int, beta1: float = .9, beta2: float = .999,
                    eps: float = 1e-8) -> list[int]:
    """The forward passes, counted from 1, in which w first has another sign, if nothing but Adam's L2 term moves it.

    One w in float64: g = weight_decay * w, then Adam. What the literal method does beyond this is rounding error.
    Values below 1e-300 end the count: there float64 itself rounds.
    """
    w, m, v, flips = w0, 0., 0., []
    for t in range(1, steps):
        g = weight_decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        step = lr * (m / (1 - beta1 ** t)) / ((v / (1 - beta2 ** t)) ** .5 + eps)
        before, w = w, w - step
        if abs(w) < 1e-300:
            break
        if (w < 0) != (before < 0):
            flips.append(t + 1)
    return flips
