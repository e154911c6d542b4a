"""An exercise: the reader writes a function, and `check` runs it beside the solution and beside known misreadings.

A misreading of the paper is itself a function, which computes what somebody gets who reads it so. A reader's function
that goes wrong just where a misreading does, and to the same values, is told so by name.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch

Function = Callable[..., object]
WIDTH = 88


@dataclass(frozen=True)
class Trial:
    """One use of the reader's function. about: where it is, as in "at w = 0"; run: calls the function, with arguments
    made anew, and returns what is compared: tensors, numbers, booleans, words, or lists, tuples and dicts of them."""

    about: str
    run: Callable[[Function], object]


@dataclass(frozen=True)
class Exercise:
    """name; the trials; the solution; by message ("you flip after ReLU: ..."), the function that misreads so.

    right: what a reader is told whose function is right. tolerance: relative, of numbers; 0 asks for the same bits.
    """

    name: str
    trials: Sequence[Trial]
    solution: Function
    misreadings: Mapping[str, Function]
    right: str
    tolerance: float = 1e-5


@dataclass(frozen=True)
class Verdict:
    """What `check` found: a sentence, as a notebook shows it."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return textwrap.fill(("Right: " if self.right else "Not yet: ") + self.message, WIDTH)


@dataclass(frozen=True)
class Solution:
    """A solution's source: folded away in a notebook, printed whole by print()."""

    name: str
    source: str

    def _repr_html_(self) -> str:
        return (f"<details><summary>Solution of {escape(self.name)} (click)</summary><pre>{escape(self.source)}</pre>"
                "</details>")

    def __repr__(self) -> str:
        return f"the solution of {self.name} is folded away here; print(solution({self.name!r})) shows it"

    def __str__(self) -> str:
        return self.source


def judge(exercise: Exercise, function: Function) -> Verdict:
    """Run the function through the trials. Never raises for what the reader's function does."""
    wrong = {}
    for k, trial in enumerate(exercise.trials):
        expected = trial.run(exercise.solution)
        try:
            with torch.random.fork_rng(devices=[]):
                got = trial.run(function)
        except Exception as error:
            return Verdict(False, f"{trial.about}, your function stopped with {type(error).__name__}: {error}")
        if got is None or got is ... or isinstance(got, list | tuple) and any(g is None or g is ... for g in got):
            return Verdict(False, f"{trial.about}, your function returned nothing: replace the dots by your own lines")
        if not same(got, expected, exercise.tolerance):
            wrong[k] = got
    if not wrong:
        return Verdict(True, exercise.right)
    named = misread(exercise, wrong)
    if named:
        return Verdict(False, ". Also, ".join(named))
    first = min(wrong)
    trial = exercise.trials[first]
    return Verdict(False, f"{trial.about}, it should give {told(trial.run(exercise.solution))} and gave "
                          f"{told(wrong[first])}")


def misread(exercise: Exercise, wrong: dict[int, object]) -> list[str]:
    """The fewest misreadings that give the same wrong values, by message: those that explain most come first. One that
    would have gone wrong where the reader's function is right is not what the reader has in mind."""
    rights = [trial.run(exercise.solution) for trial in exercise.trials]
    explains = {}
    for message, function in exercise.misreadings.items():
        results = [trial.run(function) for trial in exercise.trials]
        if all(same(result, right, exercise.tolerance)
               for k, (result, right) in enumerate(zip(results, rights)) if k not in wrong):
            explains[message] = {k for k, got in wrong.items() if same(got, results[k], exercise.tolerance)}
    left, named = set(wrong), []
    while left and explains:
        message = max(explains, key=lambda m: len(explains[m] & left))
        if not explains[message] & left:
            break
        named.append(message)
        left -= explains[message]
    return named


def same(a: object, b: object, tolerance: float) -> bool:
    """Whether two results are equal in kind, shape and value; NaN equals NaN."""
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return a is b or isinstance(a, str) and a == b
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        return isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys() and all(
            same(a[k], b[k], tolerance) for k in a)
    if isinstance(a, list | tuple) or isinstance(b, list | tuple):
        return isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b) and all(
            same(x, y, tolerance) for x, y in zip(a, b))
    try:
        a, b = (torch.as_tensor(v).detach().to(torch.float64) for v in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)


def told(value: object) -> str:
    """A result in few words."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dim() == 0:
            return f"{value.item():.4g}"
        flat = ", ".join(f"{v:.4g}" for v in value.flatten()[:8].tolist())
        return f"[{flat}{', ...' if value.numel() > 8 else ''}] of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return textwrap.shorten(str(value), 200, placeholder=" ...")


def source(exercise: Exercise) -> Solution:
    """The solution's source, as it stands in this package."""
    return Solution(exercise.name, inspect.getsource(exercise.solution).strip())
