"""Exercises: each solution passes, each stub fails, each misreading is named by a message of its own."""

import ast
import re
import textwrap
from pathlib import Path

import nbformat
import pytest
import torch

from fer_lib import exercises
from fer_lib.exercises import EXERCISES, check, solution
from fer_lib.exercises.base import Exercise, Trial, judge, same

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("name", EXERCISES)


@each
def test_the_solution_passes_and_stands_alone_as_shown(name):
    exercise = EXERCISES[name]
    assert check(name, exercise.solution).right
    shown = str(solution(name))
    assert shown.startswith(f"def {exercise.solution.__name__}(")
    compile(textwrap.dedent(shown), name, "exec")
    assert "<details>" in solution(name)._repr_html_() and shown not in repr(solution(name))


@each
def test_a_stub_fails_and_is_told_so(name):
    for nothing in (None, ...):
        verdict = check(name, lambda *args, **kwargs: nothing)      # noqa: B023
        assert not verdict.right and "returned nothing" in repr(verdict)


@each
def test_each_misreading_is_named_by_its_own_message_alone(name):
    exercise = EXERCISES[name]
    assert len(exercise.misreadings) >= 3
    for message, function in exercise.misreadings.items():
        verdict = check(name, function)
        assert not verdict.right and verdict.message == message


@each
def test_the_function_that_raises_is_told_what_and_where(name):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("by nothing")

    verdict = check(name, broken)
    assert not verdict.right and verdict.message.startswith(EXERCISES[name].trials[0].about)
    assert "ZeroDivisionError: by nothing" in verdict.message


def test_two_misreadings_at_once_are_both_named():
    """Divided by w and without a guard, as the formula is often copied: w < 0 and w = 0 go wrong in two ways."""
    def guarded_only_for_clamp(x, w, cliff):
        return (x * w).clamp(0, cliff) / w.abs() if w != 0 else torch.zeros_like(x)

    verdict = check("auto_relu", guarded_only_for_clamp)
    assert "ReLU6" in verdict.message and "product too. Also, you hold" in verdict.message
    assert "0 counts as a tiny positive w" in verdict.message


def test_a_misreading_that_would_show_elsewhere_is_not_named():
    """Right for ResNet-18, which has 17 places, and wrong for ResNet-34: who counts modules is wrong for both."""
    verdict = check("relu_calls", lambda model, x: 17)
    assert verdict.message == "for torchvision's resnet34, it should give 33 and gave 17"


def test_a_right_idea_that_fails_at_its_edge_is_told_the_edge():
    by_intervals = check("flags", lambda steps, T: [(s // T) % 2 == 1 for s in range(1, steps + 1)])
    assert by_intervals.message.startswith("right for T of 2 and more. For T = 1: 1 % 1 = 0 = T - 1")
    edge = check("cut_share", lambda x, w, cliff: float((x * w > cliff).sum() / (x * w > 0).sum()))
    assert edge.message.startswith("you let x w = C pass")


def test_the_printed_eq_2_is_named_as_the_papers_own():
    verdict = check("auto_relu", lambda x, w, cliff: solved(x, w, cliff) * torch.where(w < 0, -1, 1))
    assert "as the paper's printed eq. 2 does; its text says by the absolute value" in verdict.message


def solved(x, w, cliff):
    return EXERCISES["auto_relu"].solution(x, w, cliff)


def test_what_is_changed_for_good_is_seen():
    def negates_bn(x, bn, flag):
        with torch.no_grad():
            for p in (bn.weight, bn.bias) if flag else ():
                p.neg_()
        return torch.relu(bn(x))

    def negates_the_state(state):
        return {name: value.neg_() if "sq" not in name and "running" not in name else value
                for name, value in state.items()}

    assert "gamma and beta for good" in check("flipped_unit", negates_bn).message
    assert check("twin", negates_the_state).message.startswith("you change the tensors that you were given")
    alone = check("twin", lambda state: {k: -v if k == "gamma" else v for k, v in state.items()})
    assert alone.message.startswith("you leave beta as it is")


def test_what_no_misreading_explains_is_told_with_both_values():
    verdict = check("cut_share", lambda x, w, cliff: 17.)
    assert verdict.message == "at w = 0.9, it should give 0.4 and gave 17"


def test_the_reader_cannot_change_what_later_trials_see():
    def scribbles(x, w, cliff):
        y = EXERCISES["auto_relu"].solution(x, w, cliff)
        x.zero_(), torch.manual_seed(1)
        return y

    assert check("auto_relu", scribbles).right and check("auto_relu", EXERCISES["auto_relu"].solution).right


def test_an_unknown_exercise_is_a_sentence():
    with pytest.raises(ValueError, match="no exercise 'auto_rely': did you mean 'auto_relu'"):
        check("auto_rely", len)


@pytest.mark.parametrize("a, b, equal", [
    (1, 1., True), (True, 1, True), (float("nan"), torch.tensor(float("nan")), True), ([1, 2], (1, 2), True),
    ([1, 2], [1, 2, 3], False), (torch.zeros(2), torch.zeros(2, 1), False), ("a", "a", True), ("a", 1, False),
    ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"b": 1}, False), (object(), 1, False), (0., 1e-6, False)])
def test_results_are_compared_in_kind_shape_and_value(a, b, equal):
    assert same(a, b, 1e-5) is equal


def test_a_misreading_that_gives_the_right_values_is_not_named():
    exercise = Exercise("twice", [Trial("at 1", lambda f: f(1)), Trial("at 2", lambda f: f(2))], lambda x: 2 * x,
                        {"you add one": lambda x: x + 1, "you square": lambda x: x * x}, "doubled")
    assert judge(exercise, lambda x: x + 1).message == "you add one"        # right at 1, wrong at 2
    assert judge(exercise, lambda x: x * x).message == "you square"
    assert judge(exercise, lambda x: 2 * x).message == "doubled"


def test_notebooks_hold_stubs_for_each_exercise_and_no_solution():
    """In a notebook: the stub with dots, its check, its solution folded away; the stored verdict is "Not yet"."""
    found = {}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and (match := re.search(r"^check\(\"(\w+)\", (\w+)\)$", cell.source, re.M)):
                defined = {n.name: n for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)}
                stub = defined[match[2]]
                assert isinstance(stub.body[-1], ast.Expr) and stub.body[-1].value.value is ..., cell.source
                text = "".join(o["data"]["text/plain"] for o in cell.outputs)
                assert text.startswith("Not yet:") and "returned nothing" in text
                assert cell.source.startswith("# NBVAL_CHECK_OUTPUT")
                found[match[1]] = path.stem
    assert set(found) == set(EXERCISES), set(found) ^ set(EXERCISES)
    for path in NOTEBOOKS:
        for name, where in found.items():
            assert where != path.stem or f'solution("{name}")' in path.read_text().replace('\\"', '"')


def test_the_package_shows_its_two_functions():
    assert set(exercises.__all__) == {"EXERCISES", "check", "solution"}
