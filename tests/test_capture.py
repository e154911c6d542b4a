"""Captured steps: the same bits as steps launched one by one, alone, in company, steered and taken up again."""

import copy
import gc
import io
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import CPU, Trained, assert_same_bits, make_data, make_experiment
from test_engine import KINDS

from fer_lib import capture, engine
from fer_lib.capture import WARM_UP, Lane
from fer_lib.data import at
from fer_lib.engine import Learner, Stopped, blocks_together, train
from fer_lib.groups import free_memory
from fer_lib.metrics import confusion_matrix
from fer_lib.runs import Diverged, Run, _take_in, record
from fer_lib.steering import Command, Steering

pytestmark = pytest.mark.usefixtures("short_resnet")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def gpu(function):
    for mark in needs_gpu:
        function = mark(function)
    return function


def never() -> bool:
    return False


def trained(experiments, data, capture=True, commands=None, states=None) -> list[Trained]:
    """Runs on the GPU with deterministic kernels. commands: {run: {step: command sent after that step's block}}."""
    steering = [Steering() for _ in experiments]
    blocks = []
    for block in train([(e, data) for e in experiments], torch.device("cuda"), states, steering, capture):
        blocks.append(block)
        for command in (commands or {}).get(block.run, {}).get(block.last_step, []) if len(block.loss) else []:
            steering[block.run].send(command)
    return [Trained([b for b in blocks if b.run == k]) for k in range(len(experiments))]


def exact(**settings):
    """An experiment whose kernels are deterministic."""
    return make_experiment(**{"device": "cuda", "deterministic": True, "epochs": 3, **settings})


# --- on any machine ---


def test_a_lane_on_the_cpu_does_the_work_itself():
    lane, calls = Lane(CPU, "not said of a CPU"), []
    for k in range(2 * WARM_UP):
        assert lane.run("work", lambda k=k: calls.append(k) or k) == k
    assert calls == list(range(2 * WARM_UP)) and not lane.captures and lane.eager == "" and not lane.graphs


def test_memory_that_runs_out_in_a_recording_is_no_recording_that_failed(monkeypatch):
    """The recording's end fails then, with another error: the group is made smaller, and does not go on slowly."""
    def recorded(*_: object) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(capture, "Captured", recorded)
    lane = Lane(CPU)
    lane.stream, lane.passes["step"] = object(), WARM_UP
    with pytest.raises(torch.OutOfMemoryError):
        lane.run("step", int)
    assert not lane.eager


def test_a_step_number_in_a_tensor_reads_the_same_row():
    rows = torch.arange(24).reshape(4, 3, 2)
    for k in range(4):
        assert torch.equal(at(rows, torch.tensor([k])), rows[k]) and torch.equal(at(rows, k), rows[k])


def test_counts_are_bincounts():
    label, prediction = torch.randint(0, 5, (2, 1000))
    assert torch.equal(confusion_matrix(prediction, label, 7),
                       torch.bincount(label * 7 + prediction, minlength=49).reshape(7, 7))


def test_blocks_together_are_the_blocks_in_turn(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 5)
    data, blocks = make_data(), {}
    for together in (True, False):
        learners = [Learner(make_experiment(seed=k, method=m), data, CPU) for k, m in enumerate(["dropout", "dynamic"])]
        turns = [list(enumerate(learners))] if together else [[(k, one)] for k, one in enumerate(learners)]
        found = [b for _ in range(4) for turn in turns for b in blocks_together(turn, never)]
        blocks[together] = [Trained([b for b in found if b.run == k]) for k in (0, 1)]
    for a, b in zip(blocks[True], blocks[False]):
        assert [x.last_step for x in a.blocks] == [x.last_step for x in b.blocks] == [5, 8, 13, 16]
        assert_same_bits(a, b)


def test_a_block_on_the_cpu_stands_for_itself_and_gives_no_reason():
    block = next(train([(make_experiment(), make_data())], CPU))
    assert block.together == [block] and block.eager == ""


def test_the_log_holds_as_many_rows_as_a_block_has_steps(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    learner = Learner(make_experiment(method="dynamic"), make_data(), CPU)
    block = learner.block(0, never)
    kept = block.loss.copy()
    assert len(block.loss) == learner.log.rows == 3
    learner.block(0, never)
    assert np.array_equal(block.loss, kept), "a block handed out is not written again"


def test_a_learner_that_goes_back_to_a_state_repeats_its_steps(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    learner = Learner(make_experiment(method="dropout+dynamic", augment="flip"), make_data(), CPU)
    learner.block(0, never)
    kept = copy.deepcopy(learner.state())
    first = [learner.block(0, never).loss.tolist() for _ in range(2)]
    learner.load_state(kept)
    assert [learner.block(0, never).loss.tolist() for _ in range(2)] == first


def test_a_round_is_recorded_whole_before_a_divergence_is_raised(tmp_path):
    class Taking:
        def __init__(self, fails):
            self.fails, self.taken = fails, []

        def add(self, block):
            self.taken.append(block)
            if self.fails:
                raise Diverged(f"run {block.run}")

    recorders = [Taking(k == 1) for k in range(3)]
    blocks = [type("B", (), {"run": k})() for k in range(3)]
    with pytest.raises(Diverged, match="run 1"):
        _take_in(recorders, blocks)
    assert all(r.taken == [b] for r, b in zip(recorders, blocks))


# --- on a GPU ---


@gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_give_the_bits_of_steps_one_by_one(kind):
    e, data = exact(**KINDS[kind]), make_data(soft=True)
    (captured,), (eager,) = trained([e], data), trained([e], data, capture=False)
    assert {b.eager for b in captured.blocks} == {""} and {b.eager for b in eager.blocks} == {"capture is switched off"}
    assert "step" in captured.blocks[-1].network.lane.graphs
    assert_same_bits(captured, eager)
    assert captured.lr.tolist() == eager.lr.tolist() and captured.flip_steps == eager.flip_steps
    if captured.blocks[0].w:
        assert captured.w.tobytes() == eager.w.tobytes()


@gpu
def test_runs_side_by_side_equal_each_alone():
    data = make_data(soft=True)
    experiments = [exact(**settings) for settings in KINDS.values()]
    for e, beside in zip(experiments, trained(experiments, data), strict=True):
        assert_same_bits(beside, trained([e], data)[0])


@gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_run_is_taken_up_in_mid_epoch(kind, monkeypatch):
    monkeypatch.setattr(engine, "REPLAYED_STEPS", 3)
    e, data = exact(**KINDS[kind]), make_data(soft=True)
    whole, = trained([e], data)
    begun = []
    for block in train([(e, data)], torch.device("cuda")):
        begun.append(block)
        if block.last_step == 14:
            kept = torch.load(saved(block.state()), weights_only=False)
            break
    rest, = trained([e], data, states=[kept])
    assert rest.blocks[0].first_step == 15
    assert_same_bits(whole, Trained([*begun, *rest.blocks]))


def saved(state: dict) -> io.BytesIO:
    """A copy that shares no memory with the learner."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@gpu
def test_commands_act_at_the_same_step_with_the_same_bits(monkeypatch):
    for name in ("BLOCK_STEPS", "REPLAYED_STEPS"):
        monkeypatch.setattr(engine, name, 3)
    commands = {0: {3: [Command("lr", value=5e-3)], 6: [Command("flip", "layer1.0.act1")],
                    11: [Command("weight_decay", value=.5)], 14: [Command("flip", "layer1.0.act1")],
                    19: [Command("evaluate")]}}
    e, data = exact(method="dropout+dynamic", w0=.003), make_data()
    (captured,), (eager,) = (trained([e], data, capture, commands) for capture in (True, False))
    assert_same_bits(captured, eager)
    for run in (captured, eager):
        assert [(v.kind, v.step) for b in run.blocks for v in b.events][:4] == [
            ("lr", 4), ("flip", 7), ("weight_decay", 12), ("flip", 15)]
    assert captured.lr[2:4].tolist() == [1e-3, 5e-3]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_command_sent_while_runs_train_ends_all_blocks_after_this_step(device, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_SECONDS", 100.)  # no block ends because its time is over
    data, begun, advance = make_data(sizes={"train": 8192, "val": 16}), [], Learner.advance
    experiments = [make_experiment(device=device, seed=k, epochs=50) for k in range(4)]
    steering = [Steering() for _ in experiments]

    def counted(learner: Learner) -> None:
        begun.append(learner)
        if len(begun) == 4 * 20 + 1:                    # the first of four, in the midst of a block
            steering[2].send(Command("stop"))
        advance(learner)

    monkeypatch.setattr(Learner, "advance", counted)
    if device == "cuda":
        blocks = train([(e, data) for e in experiments], torch.device(device), None, steering)
    else:                                               # where train takes a block of each in turn
        learners = [(k, Learner(e, data, CPU, steering=steering[k])) for k, e in enumerate(experiments)]
        blocks = (block for _ in range(2) for block in blocks_together(learners, never))
    assert [len(block.loss) for block in islice(blocks, 5)] == [21] * 4 + [0], "the last one tells of the command"
    if device == "cuda":
        with pytest.raises(Stopped):
            next(blocks)
    assert len(begun) == 4 * 21


@gpu
def test_graphs_that_are_garbage_do_not_spoil_a_recording():
    def work():
        x = torch.ones(4, device="cuda")
        for _ in range(200):
            list(range(3))                              # each list is a chance for the collector to run
            x = x + 1
        return x

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(3):
            lane = Lane(torch.device("cuda"))
            lane.itself = lane                          # only the collector can free it
            with lane.entered():
                for _ in range(WARM_UP + 1):
                    found = lane.run("work", work)
            lane.wait()
            assert lane.eager == "" and found.tolist() == [201.] * 4
    finally:
        gc.set_threshold(*before)


def test_a_command_is_told_before_any_run_beside_takes_a_step():
    learners = [(k, Learner(make_experiment(seed=k), make_data(), CPU)) for k in range(2)]
    learners[1][1].steering.send(Command("lr", value=.1))
    told, = blocks_together(learners, never)
    assert told.run == 1 and len(told.loss) == 0 and [e.kind for e in told.events] == ["lr"]
    assert [block.last_step for block in blocks_together(learners, never)] == [8, 8]


@gpu
def test_no_step_waits_for_the_device():
    """Between two readings the host asks the device nothing: torch raises where it would."""
    learner = Learner(exact(method="dropout+dynamic", augment="flip+crop+erasing", deterministic=False),
                      make_data(sizes={"train": 1024, "val": 16}), torch.device("cuda"))
    for _ in range(2):
        learner.block(0, never)
    planned = learner.begin()
    with warnings.catch_warnings(action="ignore"):      # torch's, that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(planned):
            learner.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(learner.finish(0, 0).loss).all() and planned > 10


@gpu
def test_work_that_cannot_be_recorded_runs_and_says_why():
    lane = Lane(torch.device("cuda"))
    x = torch.ones(4, device="cuda")
    lane.follow()
    with lane.entered():
        found = [float(lane.run("work", lambda: x.sum() * x.sum().item())) for _ in range(WARM_UP + 2)]
    assert found == [16.] * (WARM_UP + 2)
    assert lane.eager.startswith("recording failed: ") and not lane.captures


@gpu
def test_random_streams_survive_a_recording_that_failed():
    streams = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
    torch.cuda.manual_seed(4)
    draw = lambda stream: torch.cat([torch.rand(5, device="cuda", generator=g) for g in (stream, None)])  # noqa: E731
    expected = [draw(streams[0]).tolist() for _ in range(WARM_UP + 2)]
    torch.cuda.manual_seed(4)
    lane = Lane(torch.device("cuda"))
    with lane.entered():
        found = [lane.run("work", lambda: [draw(streams[1]).tolist()], (), streams)[0] for _ in range(WARM_UP + 2)]
    assert lane.eager.startswith("recording failed: ") and found == expected


@gpu
@pytest.mark.parametrize("wait", [torch.Tensor.tolist, lambda _: torch.cuda.synchronize()], ids=["read", "invalidated"])
def test_memory_is_given_back_after_a_recording_that_failed(wait):
    """What the failed step took (PyTorch 2.12 to 2.14 keep it, pytorch#190308), and all that later runs take."""
    def reserved() -> int:
        torch._C._cuda_clearCublasWorkspaces()          # two a stream, 64 MiB on an H200: the next on it takes them
        free_memory()
        return torch.cuda.memory_reserved()

    before = reserved()
    lane, size = Lane(torch.device("cuda")), 2 ** 26 if torch.__version__ < "2.12" else 1
    with lane.entered():
        for _ in range(WARM_UP + 1):
            lane.run("work", lambda: wait(torch.rand(size, device="cuda")[:5]))
    assert lane.eager
    for _ in range(3):
        for _ in train([(make_experiment(seed=k, width=.5, device="cuda"), make_data(side=48)) for k in range(8)],
                       torch.device("cuda")):
            del _
    del lane
    assert reserved() < before + 64 * 2 ** 20


@gpu
def test_leaving_in_mid_round_keeps_records_that_go_on_to_the_same_bits(tmp_path):
    data = make_data()
    experiments = [exact(seed=k, method="dropout+dynamic", w0=.003) for k in range(3)]
    whole = [Run(e, data, tmp_path / "whole") for e in experiments]
    for _ in record(whole):
        pass
    parts = [Run(e, data, tmp_path / "parts") for e in experiments]
    for block in record(parts):
        if block.first_step > 8:
            break                                       # after the first run's block of a round of three
    assert {run.status for run in parts} == {"interrupted"} and {run.result["step"] for run in parts} == {16}
    again = [Run(e, data, tmp_path / "parts") for e in experiments]
    for _ in record(again):
        pass
    for a, b in zip(whole, again):
        assert a.finished and b.finished
        for table in ("history", "epochs", "flips"):
            assert getattr(a, table).equals(getattr(b, table))
