"""One plain line for the first block, every few seconds and the last of each run."""

import numpy as np
import pytest

from fer_lib import progress
from fer_lib.engine import Block, Evaluation
from fer_lib.experiment import Experiment
from fer_lib.metrics import scores


class Clock:
    """Time that the test moves."""

    def __init__(self):
        self.now = 100.

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def block(first: int, n: int = 10, run: int = 0, flips: tuple[int, ...] = (), f1: float | None = None,
          epochs: int = 4, method: str = "periodic", **settings) -> Block:
    """Ten steps of an epoch of twenty-five; `flips`: rows in which the second site turns."""
    turned = np.zeros((n, 2))
    for row in flips:
        turned[row, -1] = 1
    evaluations = []
    if f1 is not None:
        evaluations = [Evaluation(split, mode, scores(np.eye(2, dtype=int), 1.)) for split in ("val", "test")
                       for mode in ("trained", "clean")]
        object.__setattr__(evaluations[0].scores, "macro_f1", f1)
    e = Experiment(epochs=epochs, method=method, **settings)
    return Block(run, e, first, (first - 1) // 25 + 1, 25, ["a", "b"], np.linspace(1, 2, n), np.ones(n), {},
                 turned * 0, turned, np.zeros((n, 2)), n * 32, 1., evaluations=evaluations,
                 last=first + n - 1 == 25 * epochs)


def said(clock: Clock, blocks: list[tuple[float, Block]], seconds: float = 5.) -> list[str]:
    """The lines; each block comes after so many seconds."""
    def come():
        for wait, b in blocks:
            clock.now += wait
            yield b

    lines: list[str] = []
    passed = list(progress.follow(come(), lines.append, seconds))
    assert passed == [b for _, b in blocks]
    return lines


def test_a_line_tells_step_epoch_loss_f1_flips_speed_and_time_left(clock):
    lines = said(clock, [(2, block(1)), (6, block(11, flips=(2, 4))), (2, block(91, flips=(0,), f1=.25))])
    assert lines == [
        "step 10/100 · epoch 1/4 · loss 1.500 · 0 steps with a flip · 160 images/s · 18 s left",
        "step 20/100 · epoch 1/4 · loss 1.500 · 2 steps with a flip · 80 images/s · 32 s left",
        "step 100/100 · epoch 4/4 · loss 1.500 · val macro-F1 0.250 · 3 steps with a flip · 96 images/s · 10 s"]


def test_lines_come_every_few_seconds_only(clock):
    blocks = [(1, block(1 + 10 * k)) for k in range(10)]
    assert [line.split(" · ")[0] for line in said(clock, blocks, 3)] == [
        "step 10/100", "step 40/100", "step 70/100", "step 100/100"]


def test_a_run_that_goes_on_from_a_checkpoint_is_timed_by_its_own_steps(clock):
    line, = said(clock, [(10, block(71))])
    assert "32 images/s" in line and line.endswith("20 s left")         # 10 steps in 10 s, 20 to go


def test_a_method_without_flips_tells_none_but_those_by_hand(clock):
    line, = said(clock, [(1, block(1, method="baseline"))])
    assert "flip" not in line
    line, = said(clock, [(1, block(1, method="baseline", flips=(3,)))])
    assert "1 step with a flip" in line


def test_several_runs_are_named_and_counted_apart(clock):
    lines = said(clock, [(1, block(1, name="a", flips=(1,))), (6, block(1, run=1, name="b", seed=3)),
                         (6, block(91, name="a", flips=(1, 2))), (1, block(91, run=1, name="b", seed=3))])
    assert [line.split(" · ")[:2] for line in lines[1:]] == [
        ["b seed 3", "step 10/100"], ["a seed 0", "step 100/100"], ["b seed 3", "step 100/100"]]
    assert "3 steps with a flip" in lines[2] and "0 steps with a flip" in lines[3]


def test_steps_that_are_not_recorded_are_told_once(clock):
    blocks = [block(1), block(11)]
    for b in blocks:
        object.__setattr__(b, "eager", "the images don't fit on the device")
    lines = said(clock, [(1, blocks[0]), (6, blocks[1])])
    assert len(lines) == 3
    assert lines[0] == "slower than it could be: the images don't fit on the device"


def test_no_block_no_line(clock):
    assert said(clock, []) == []
