"""The life of AutoReLU's w without a network: one number under Adam, in float64.

    g = weight_decay * w + N(0, 1) * noise / max(|w|, 1e-8)     dL/dw itself is 0 almost everywhere (paper, eq. 2):
    w <- w - lr * m / (sqrt(v) + eps)                           what is left is the L2 term and rounding error

m and v are Adam's bias-corrected moments of g (Kingma & Ba 2015). With `noise` 0 the flips are those of
`methods.dynamic.predicted_flips`. A run averages many w (section 3.2.1, step 2), which this doesn't: `noise` is that of
one w.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SMALLEST = 1e-300       # below, float64 itself rounds


@dataclass(frozen=True)
class Life:
    """w (steps,) in each forward pass; flips: the forward passes, from 1, in which w first has another sign."""

    w: np.ndarray
    flips: np.ndarray

    @property
    def intervals(self) -> np.ndarray:
        """Steps between one flip and the next."""
        return np.diff(self.flips)

    @property
    def negative(self) -> float:
        """The share of forward passes with features flipped."""
        return float((self.w < 0).mean())


def simulate(w0: float, lr: float | Sequence[float], weight_decay: float, steps: int, beta1: float = .9,
             beta2: float = .999, eps: float = 1e-8, noise: float = 0., seed: int = 0, decoupled: bool = False) -> Life:
    """The life of one w over so many forward passes.

    lr: a number, or one for each step (a schedule). decoupled: weight decay as AdamW has it, w <- (1 - lr * wd) * w,
    outside of the gradient (Loshchilov & Hutter 2019). Raises ValueError for w0 of 0, or a schedule that is too short.
    """
    if w0 == 0 or not math.isfinite(w0):
        raise ValueError(f"w0 is a finite number other than 0, not {w0}")
    rates = [float(lr)] * steps if isinstance(lr, int | float) else [float(rate) for rate in lr]
    if len(rates) < steps:
        raise ValueError(f"lr has {len(rates)} values for {steps} steps: give one a step")
    draws = np.random.default_rng(seed).standard_normal(steps).tolist() if noise else [0.] * steps
    w, m, v, path = w0, 0., 0., [w0]
    for t in range(1, steps):
        g = draws[t] * noise / max(abs(w), 1e-8)
        if not decoupled:
            g += weight_decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        rate = rates[t - 1]
        step = rate * (m / (1 - beta1 ** t)) / (math.sqrt(v / (1 - beta2 ** t)) + eps) if v else 0.
        w -= step + (rate * weight_decay * w if decoupled else 0.)
        if abs(w) < SMALLEST:
            break
        path.append(w)
    path = np.array(path + [math.copysign(SMALLEST, path[-1])] * (steps - len(path)))
    return Life(path, np.flatnonzero((path[1:] < 0) != (path[:-1] < 0)) + 2)


def cosine(lr: float, steps: int) -> np.ndarray:
    """lr * (1 + cos(pi t / steps)) / 2, step by step (Loshchilov & Hutter 2017)."""
    return lr * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def staircase(lr: float, steps: int, every: int, factor: float) -> np.ndarray:
    """lr, multiplied by `factor` after each `every` steps."""
    return lr * factor ** (np.arange(steps) // every)


def shared_w(history: pd.DataFrame, w0: float, channels: Mapping[str, int]) -> np.ndarray:
    """The w of each forward pass of a run that shares one w (w_mean "model"): w0, then the mean of all w after a step.

    history as a run records it, every step of it; channels: how many w each site has.
    """
    means = np.stack([history[f"w_mean/{site}"] for site in channels], axis=1)
    return np.concatenate([[w0], np.average(means, axis=1, weights=list(channels.values()))[:-1]])
