"""Exercises of 07_dynamic: the step that moves w, the mean of all w, and which forward pass sees which sign."""

import torch
from torch import Tensor

from fer_lib.exercises.base import Exercise, Trial

SETTINGS = dict(lr=.01, weight_decay=.1, beta1=.9, beta2=.99, eps=1e-3)


def adam_step(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    """One step of Adam on w, whose loss gradient is 0: weight decay is part of the gradient (coupled L2)."""
    g = 0. + weight_decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w = w - lr * (m / (1 - beta1 ** t)) / ((v / (1 - beta2 ** t)) ** .5 + eps)
    return w, m, v


def _decoupled(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    m, v = beta1 * m, beta2 * v
    step = lr * (m / (1 - beta1 ** t)) / ((v / (1 - beta2 ** t)) ** .5 + eps)
    return (1 - lr * weight_decay) * w - step, m, v


def _corrected(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    w, m, v = adam_step(w, m, v, t, lr, weight_decay, beta1, beta2, eps)
    return w, m / (1 - beta1 ** t), v / (1 - beta2 ** t)


def _uncorrected(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    g = weight_decay * w
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    return w - lr * m / (v ** .5 + eps), m, v


def _no_decay(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    return adam_step(w, m, v, t, lr, 0., beta1, beta2, eps)


def _sgd(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    _, m, v = adam_step(w, m, v, t, lr, weight_decay, beta1, beta2, eps)
    return w - lr * weight_decay * w, m, v


def _inside(w, m, v, t, lr, weight_decay, beta1, beta2, eps):
    g = weight_decay * w
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    return w - lr * (m / (1 - beta1 ** t)) / (v / (1 - beta2 ** t) + eps) ** .5, m, v


def mean_of_all(w: list[Tensor]) -> list[Tensor]:
    """Section 3.2.1, step 2: every element of every w becomes the mean of all elements."""
    mean = torch.cat([v.flatten() for v in w]).mean()
    return [mean.expand(v.shape) for v in w]


def _mean_of_sites(w: list[Tensor]) -> list[Tensor]:
    mean = torch.stack([v.mean() for v in w]).mean()
    return [mean.expand(v.shape) for v in w]


def _each_site(w: list[Tensor]) -> list[Tensor]:
    return [v.mean().expand(v.shape) for v in w]


def _of_sizes(w: list[Tensor]) -> list[Tensor]:
    mean = torch.cat([v.flatten() for v in w]).abs().mean()
    return [mean.expand(v.shape) for v in w]


def _scalar(w: list[Tensor]) -> list[Tensor]:
    mean = torch.cat([v.flatten() for v in w]).mean()
    return [mean for _ in w]


def signs_seen(w0: float, after_step: Tensor) -> Tensor:
    """after_step (steps, K): all w after each optimiser step. Before a forward pass all become their mean: the first
    one sees w0, each other one the mean of what the step before it left."""
    mean = torch.cat([torch.tensor([w0]), after_step.mean(1)[:-1]])
    return torch.where(mean < 0, -1., 1.)[:, None].expand(after_step.shape)


def _mean_after(w0: float, after_step: Tensor) -> Tensor:
    raw = torch.cat([torch.full((1, after_step.shape[1]), w0), after_step[:-1]])
    return torch.where(raw < 0, -1., 1.)


def _same_step(w0: float, after_step: Tensor) -> Tensor:
    return torch.where(after_step.mean(1) < 0, -1., 1.)[:, None].expand(after_step.shape)


def _votes(w0: float, after_step: Tensor) -> Tensor:
    signs = torch.where(after_step < 0, -1., 1.).sum(1)
    seen = torch.cat([torch.ones(1), torch.where(signs < 0, -1., 1.)[:-1]])
    return seen[:, None].expand(after_step.shape)


def _step(about: str, w: float, m: float, v: float, t: int) -> Trial:
    return Trial(about, lambda f: f(w, m, v, t, **SETTINGS))


def _mean(about: str, *w: list[float]) -> Trial:
    return Trial(about, lambda f: f([torch.tensor(v)[:, None, None] for v in w]))


AFTER = [[.3, .1, .2], [.1, -.2, .4], [-.4, .1, .1], [.2, -.3, -.1], [.6, -.1, -.1], [.2, .2, -.1]]

EXERCISES = [
    Exercise(
        "adam_step",
        [_step("at the first step", .8, 0., 0., 1), _step("at step 20, with w near 0", .01, .03, .004, 20),
         _step("with w negative", -.3, .02, .002, 40)],
        adam_step,
        {"you decay w outside of the gradient: that is AdamW's decay or SGD's. In Adam weight_decay * w is added to "
         "the gradient, so m and v see it, and Adam makes a step of about lr of it however small it is": _decoupled,
         "you leave out the bias correction: divide m by 1 - beta1 ** t and v by 1 - beta2 ** t": _uncorrected,
         "return m and v without bias correction: the next step goes on from them, and only the step that w takes is "
         "corrected": _corrected,
         "you leave weight decay out: then g is 0 and nothing pulls w": _no_decay,
         "you step by lr * g, as SGD does: Adam divides by the square root of v": _sgd,
         "you add eps inside the square root: Adam adds it to the root": _inside},
        "the first step is about lr whatever weight_decay is, as long as eps is small beside the gradient"),
    Exercise(
        "mean_of_all",
        [_mean("with two sites of 2 and 6 channels", [.1, .3], [-.2, -.1, -.3, -.2, -.1, -.3]),
         _mean("with sites of one size", [.1, .4, .1], [.2, -.1, -.3]), _mean("with all negative", [-.1], [-.2, -.6])],
        mean_of_all,
        {"you take the mean of the sites' means: a channel of a small site then counts for more than one of a large "
         "site. All w are pooled": _mean_of_sites,
         "you take the mean of each site by itself: the sites then flip one by one, not all together": _each_site,
         "you take the mean of the sizes |w|: it is never negative, so nothing ever flips": _of_sizes,
         "you return one number a site: each w keeps its shape, every element becomes the mean": _scalar},
        "one mean, so one sign: that is why all sites flip at the same step"),
    Exercise(
        "signs_seen",
        [Trial("with six steps of three w", lambda f: f(.2, torch.tensor(AFTER))),
         Trial("with the same backwards", lambda f: f(.2, torch.tensor(AFTER[::-1])))],
        signs_seen,
        {"you take the mean after the forward pass: yours sees the raw w, of mixed signs. The re-initialisation comes "
         "before": _mean_after,
         "you let a forward pass see what its own step leaves: the optimiser moves w after it": _same_step,
         "you let the w vote by their signs: it is the mean of their values that counts": _votes},
        "a flip shows one forward pass after the step that made it, and in all channels at once"),
]
