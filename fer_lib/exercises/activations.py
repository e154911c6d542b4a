"""Exercises of 02_activations: eq. 2 with its edges, what the cliff cuts, what w learns."""

import torch
from torch import Tensor

from fer_lib.activations import cliff_relu
from fer_lib.exercises.base import Exercise, Trial

X = torch.tensor([-9., -3., -.5, 0., .5, 2., 5., 8., 40.])


def auto_relu(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    """Eq. 2 with |w|, as the text has it. |w| is held away from 0, with the sign + at w = 0, where 0 / 0 would be."""
    w = torch.where(w < 0, -1., 1.) * w.abs().clamp_min(1e-20)
    return cliff_relu(x * w, cliff) / w.abs()


def _nan_at_zero(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return cliff_relu(x * w, cliff) / w.abs()


def _held(w: Tensor) -> Tensor:
    return torch.where(w < 0, -1., 1.) * w.abs().clamp_min(1e-20)


def _signed(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return cliff_relu(x * _held(w), cliff) / _held(w)


def _undivided(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return cliff_relu(x * w, cliff)


def _epsilon(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return cliff_relu(x * w, cliff) / (w.abs() + 1e-8)


def _off_at_zero(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return auto_relu(x, w, cliff) * (w != 0)


def _after_relu(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    w = _held(w)
    return torch.sign(w) * cliff_relu(x * w.abs(), cliff) / w.abs()


def _cut_at_c(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return cliff_relu(torch.where(w < 0, -x, x), cliff)


def _clamped(x: Tensor, w: Tensor, cliff: float) -> Tensor:
    return (x * _held(w)).clamp(0, cliff) / _held(w).abs()


def cut_share(x: Tensor, w: float, cliff: float) -> float:
    """Of the values that ReLU would pass, sign(w) x > 0, those with |x w| >= C."""
    passed = x * w > 0
    return float((passed & (x * w >= cliff)).sum() / passed.sum())


def _of_all(x: Tensor, w: float, cliff: float) -> float:
    return float((x * w >= cliff).float().mean())


def _x_against_c(x: Tensor, w: float, cliff: float) -> float:
    passed = x * w > 0
    return float((passed & (x.abs() >= cliff)).sum() / passed.sum())


def _sign_ignored(x: Tensor, w: float, cliff: float) -> float:
    return cut_share(x, abs(w), cliff)


def _edge_passes(x: Tensor, w: float, cliff: float) -> float:
    passed = x * w > 0
    return float((passed & (x * w > cliff)).sum() / passed.sum())


def _both_sides(x: Tensor, w: float, cliff: float) -> float:
    return float(((x * w).abs() >= cliff).float().mean())


def w_gradient(x: Tensor, w: float, upstream: Tensor) -> float:
    """dL/dw of y = CliffReLU(x w) / |w| with C = inf: the product's part and the quotient's part cancel."""
    passed = x * w > 0
    product = x / abs(w)                                        # d(x w)/dw / |w|
    quotient = -(x * w) * (1 if w > 0 else -1) / w ** 2         # x w d(1/|w|)/dw
    return float((upstream * passed * (product + quotient)).sum())


def _product_alone(x: Tensor, w: float, upstream: Tensor) -> float:
    return float((upstream * (x * w > 0) * x / abs(w)).sum())


def _quotient_alone(x: Tensor, w: float, upstream: Tensor) -> float:
    return float((upstream * (x * w > 0) * -(x * w) * (1 if w > 0 else -1) / w ** 2).sum())


def _sign_lost(x: Tensor, w: float, upstream: Tensor) -> float:
    return float((upstream * (x * w > 0) * (x / abs(w) - x * w / w ** 2)).sum())


def _auto(about: str, w: float) -> Trial:
    return Trial(about, lambda f: f(X.clone(), torch.tensor(w), 6.))


def _share(about: str, w: float) -> Trial:
    return Trial(about, lambda f: f(X.clone(), w, 6.))


def _gradient(about: str, w: float) -> Trial:
    return Trial(about, lambda f: f(X.double(), w, torch.linspace(-.3, .8, len(X), dtype=torch.double)))


EXERCISES = [
    Exercise(
        "auto_relu",
        [_auto("at w = 0.5", .5), _auto("at w = -0.5", -.5), _auto("at w = 0", 0.), _auto("at w = 1e-4", 1e-4)],
        auto_relu,
        {"you divide by w, as the paper's printed eq. 2 does; its text says by the absolute value of w, and this kit "
         "follows the text. With w < 0 yours gives min(x, 0): negative numbers": _signed,
         "w = 0 gives NaN: 0 / 0. Hold |w| away from 0 before you multiply and divide": _nan_at_zero,
         "an epsilon in the denominator alone switches the unit off at w = 0 and changes what a small w gives. Hold w "
         "itself away from 0, in the product too": _epsilon,
         "at w = 0 your output is 0 everywhere: the unit is switched off there. 0 counts as a tiny positive w, in the "
         "product too": _off_at_zero,
         "you flip after ReLU: eq. 2 multiplies x by w before the cut, so with w < 0 it is the negative x that "
         "pass": _after_relu,
         "you cut x at C: eq. 2 cuts the product x w, so x is cut at C / |w|": _cut_at_c,
         "you hold x w at C, as ReLU6 does: beyond its cliff CliffReLU falls to 0": _clamped,
         "you don't divide by |w|: the output shrinks with w": _undivided},
        "for w > 0, for w < 0 and at w = 0; point by point that is ReLU(sign(w) x), cut where |x w| reaches C"),
    Exercise(
        "cut_share",
        [_share("at w = 0.9", .9), _share("at w = -0.9", -.9), _share("at w = 0.1", .1),
         _share("at w = 0.75, where one product lies right on the cliff, x w = C", .75)],
        cut_share,
        {"you let x w = C pass: CliffReLU passes what is below C, and is 0 from C on": _edge_passes,
         "you divide by the number of all values: the question is about those that ReLU would pass": _of_all,
         "you compare x with C: the cliff cuts where the product x w reaches C": _x_against_c,
         "you take the sign of w away: with w < 0 it is the negative x that pass": _sign_ignored,
         "you count both sides: values of the wrong sign are 0 already, no cliff is needed for them": _both_sides},
        "the cliff moves to C / |w|, and away from all values as w becomes small"),
    Exercise(
        "w_gradient",
        [_gradient("at w = 0.5", .5), _gradient("at w = -0.2", -.2)],
        w_gradient,
        {"you differentiate the product x w alone: w stands in the denominator too": _product_alone,
         "you differentiate 1 / |w| alone: w stands in the product x w too": _quotient_alone,
         "you differentiate 1 / w in place of 1 / |w|: for w < 0 the derivative of |w| is -1": _sign_lost},
        "0. The output doesn't depend on the size of w, so the loss teaches w nothing; a computer adds its rounding "
        "error"),
]
