"""Exercises of 03_flip_is_not_noise: where the flip stands, when the flag toggles, what the twin negates."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lib.exercises.base import Exercise, Trial


def flipped_unit(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    """Algorithm 1: feature *= -1 after batch normalisation and before ReLU, whenever the flag is set."""
    y = bn(x)
    return F.relu(-y if flag else y)


def _after_relu(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    y = F.relu(bn(x))
    return -y if flag else y


def _before_bn(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    return F.relu(bn(-x if flag else x))


def _in_training_only(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    return flipped_unit(x, bn, flag and bn.training)


def _for_good(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    with torch.no_grad():
        for p in (bn.weight, bn.bias) if flag else ():
            p.neg_()
    return F.relu(bn(x))


def _always(x: Tensor, bn: nn.BatchNorm2d, flag: bool) -> Tensor:
    return F.relu(-bn(x))


def flags(steps: int, T: int) -> list[bool]:
    """The flag that the forward pass of each step sees, steps counting from 1."""
    seen, flag = [], False
    for step in range(1, steps + 1):
        seen.append(flag)                   # the forward pass of this step
        if step % T == T - 1:
            flag = not flag                 # acts from the next step on
    return seen


def _toggle_before(steps: int, T: int) -> list[bool]:
    seen, flag = [], False
    for step in range(1, steps + 1):
        if step % T == T - 1:
            flag = not flag
        seen.append(flag)
    return seen


def _from_zero(steps: int, T: int) -> list[bool]:
    seen, flag = [], False
    for step in range(steps):
        seen.append(flag)
        if step % T == T - 1:
            flag = not flag
    return seen


def _intervals(steps: int, T: int) -> list[bool]:
    return [step // T % 2 == 1 for step in range(1, steps + 1)]


def _no_toggle(steps: int, T: int) -> list[bool]:
    return [step % T == T - 1 for step in range(1, steps + 1)]


def twin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gamma and beta, and Adam's first moment of both. Squares, and statistics of BN's input, have no sign to turn."""
    odd = ("gamma", "beta", "gamma.exp_avg", "beta.exp_avg")
    return {name: -value if name in odd else value for name, value in state.items()}


def _negate(*names: str):
    return lambda state: {name: -value if name in names else value for name, value in state.items()}


def _in_place(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in ("gamma", "beta", "gamma.exp_avg", "beta.exp_avg"):
        state[name].neg_()
    return state


def _unit(about: str, flags: Sequence[bool], training: bool) -> Trial:
    def run(function):
        g = torch.Generator().manual_seed(0)
        bn = nn.BatchNorm2d(3)
        with torch.no_grad():
            bn.weight.copy_(torch.tensor([1., -.5, 2.]))
            bn.bias.copy_(torch.tensor([.5, 1., -.4]))
        bn.train(training)
        x = torch.randn(4, 3, 2, 2, generator=g)
        return [function(x.clone(), bn, flag) for flag in flags]
    return Trial(about, run)


def _state() -> dict[str, Tensor]:
    return {"gamma": torch.tensor([1., .5]), "beta": torch.tensor([.2, -.3]),
            "gamma.exp_avg": torch.tensor([1e-3, -2e-3]), "beta.exp_avg": torch.tensor([-4e-3, 1e-3]),
            "gamma.exp_avg_sq": torch.tensor([1e-6, 4e-6]), "beta.exp_avg_sq": torch.tensor([2e-6, 1e-6]),
            "running_mean": torch.tensor([.3, -.1]), "running_var": torch.tensor([1.2, .8])}


def _given(function) -> dict[str, Tensor]:
    state = _state()
    function(state)
    return state


def _schedule(steps: int, T: int) -> Trial:
    return Trial(f"for {steps} steps and T = {T}", lambda f: f(steps, T))


ODD = ("gamma", "beta", "gamma.exp_avg", "beta.exp_avg")
SQUARES = ("gamma.exp_avg_sq", "beta.exp_avg_sq")
EXERCISES = [
    Exercise(
        "flipped_unit",
        [_unit("in training, with the flag down", [False], True), _unit("in training, with the flag up", [True], True),
         _unit("in evaluation, with the flag up", [True], False),
         _unit("in three forward passes of one bn, with the flag up, up and down", [True, True, False], True)],
        flipped_unit,
        {"you flip after ReLU: Algorithm 1 flips after batch normalisation, so that ReLU passes what it cut "
         "before": _after_relu,
         "you flip before batch normalisation: its beta is then not flipped": _before_bn,
         "you flip in training only: a network is evaluated as it was trained last, and Algorithm 1 doesn't look at "
         "the mode": _in_training_only,
         "you negate bn's own gamma and beta for good: the second forward pass with the flag up is then not flipped. "
         "Algorithm 1 flips the feature, in each pass anew": _for_good,
         "you flip with the flag down, too": _always},
        "ReLU now passes what it cut before, and the unit stays non-linear"),
    Exercise(
        "flags",
        [_schedule(12, 3), _schedule(12, 5), _schedule(6, 1)],
        flags,
        {"you toggle before the step: in Algorithm 1 the toggle comes last, so it acts from the next forward pass "
         "on": _toggle_before,
         "your first interval has T steps: step is 1, not 0, in the first pass, so the flag rises after T - 1 "
         "steps": _from_zero,
         "right for T of 2 and more. For T = 1: 1 % 1 = 0 = T - 1, so the flag is down in step 1 and toggles after "
         "each step": _intervals,
         "you set the flag for the one step where step % T == T - 1: Algorithm 1 toggles it there, and it then stays "
         "until it toggles back": _no_toggle},
        "the first interval has T - 1 steps, each later one T"),
    Exercise(
        "twin",
        [Trial("for one batch norm", lambda f: f(_state())),
         Trial("in the state that your function was given", _given)],
        twin,
        {"you leave Adam's first moment as it is: it remembers gradients of the old sign, so the next steps of gamma "
         "and beta go the wrong way": _negate("gamma", "beta"),
         "you leave beta as it is: -(gamma x + beta) = (-gamma) x + (-beta). Adam's first moment of both turns with "
         "them": _negate("gamma"),
         "you change the tensors that you were given: return new ones, as -value makes them": _in_place,
         "you negate gamma alone: -(gamma x + beta) has -beta in it": _negate("gamma", "gamma.exp_avg"),
         "you negate Adam's second moment: it is a mean of squares, and the square of -g is that of g": _negate(
             *ODD, *SQUARES),
         "you negate BN's running statistics: they describe its input, which doesn't change": _negate(
             *ODD, "running_mean"),
         "you negate everything: squares and statistics of BN's input have no sign to turn": _negate(*_state())},
        "with these four negated the twin's next steps are the flipped run's, bit for bit"),
]
