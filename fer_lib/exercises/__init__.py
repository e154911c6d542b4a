"""The notebooks' exercises: `check(name, function)` judges a reader's function, `solution(name)` shows a right one.

A file a notebook holds EXERCISES, a list of `base.Exercise`: what to compute, its solution, and each misreading of the
paper that is named to readers who fall for it.
"""

import difflib

from fer_lib.exercises import activations, flip, life, placement
from fer_lib.exercises.base import Exercise, Function, Solution, Verdict, judge, source

EXERCISES: dict[str, Exercise] = {e.name: e for module in (activations, flip, life, placement)
                                  for e in module.EXERCISES}
__all__ = ["EXERCISES", "check", "solution"]


def check(name: str, function: Function) -> Verdict:
    """Judge a reader's function. Shows as one sentence. Raises ValueError for an unknown exercise."""
    return judge(_exercise(name), function)


def solution(name: str) -> Solution:
    """A function that is right, folded away until it is clicked. Raises ValueError for an unknown exercise."""
    return source(_exercise(name))


def _exercise(name: str) -> Exercise:
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, 1)
        raise ValueError(f"no exercise '{name}'" + (f": did you mean '{near[0]}'?" if near else
                                                    f" (choose one of {', '.join(EXERCISES)})"))
    return EXERCISES[name]
