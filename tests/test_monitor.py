"""Following runs by their directories: a log that grows, is cut back, moves aside or becomes a finished record."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from conftest import make_experiment
from IPython.display import Image
from test_live import FakeChart

from fer_lib import engine
from fer_lib.engine import Stopped
from fer_lib.experiment import ParameterError
from fer_lib.files import RecordError
from fer_lib.live import monitor
from fer_lib.live import monitor as monitor_function
from fer_lib.live.chart import receive_command
from fer_lib.live.follower import Follower
from fer_lib.runs import Run, record
from fer_lib.steering import Command, take_requests
from fer_lib.steplog import LogReader, StepLog, as_rows, flip_table, history_table, read_lines, row_type

monitoring = __import__("sys").modules["fer_lib.live.monitor"]
pytestmark = pytest.mark.usefixtures("short_resnet")
EVENTFUL = dict(method="dynamic", w0=.003, w_gradient="exact", epochs=3)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(monitoring, "display", found.append)
    return found


def make_run(folder, data, **settings) -> Run:
    return Run(make_experiment(**settings), data, folder)


# --- the log ---


def rows(steps: range) -> np.ndarray:
    found = np.zeros(len(steps), row_type(["a", "b"], True))
    found["step"], found["epoch"], found["loss"] = list(steps), 1, np.sqrt(list(steps))
    return found


def test_a_reader_sees_whole_rows_as_they_come_and_a_cut_back(tmp_path):
    log = StepLog(tmp_path, ["a", "b"], True)
    reader = LogReader(tmp_path)
    log.add(rows(range(1, 6)), [{"step": 5, "epoch": 1}], [])
    assert reader.rows()["step"].tolist() == [1, 2, 3, 4, 5] and len(reader.rows()) == 0
    log.files["steps"].write(rows(range(6, 7)).tobytes()[:-3])          # a row that is being written
    log.files["steps"].flush()
    (tmp_path / "log" / "epochs.jsonl").open("a").write('{"step": 9')
    assert len(reader.rows()) == 0 and read_lines(tmp_path / "log" / "epochs.jsonl") == [{"step": 5, "epoch": 1}]
    log.close()
    again = StepLog(tmp_path, ["a", "b"], True, step=3, events=0)
    assert read_lines(tmp_path / "log" / "epochs.jsonl") == []
    assert reader.rows()["step"].tolist() == [1, 2, 3] and reader.restarted == 1
    again.add(rows(range(4, 9)), [], [])
    assert reader.rows()["loss"].tolist() == np.sqrt(range(4, 9)).tolist()
    again.close()


def test_a_log_shorter_than_its_checkpoint_is_named(tmp_path):
    StepLog(tmp_path, ["a"], False).close()
    with pytest.raises(RecordError, match="log/steps' is missing or shorter than its checkpoint .*: delete"):
        StepLog(tmp_path, ["a"], False, step=7)


def test_tables_and_rows_are_each_others_inverse():
    steps = rows(range(1, 200))
    steps["w"] = np.random.default_rng(0).normal(size=steps["w"].shape)
    for k, (step, way, share) in enumerate([(5, 1, 1.), (9, 2, .5), (9, 1, .25), (100, 2, .5)]):
        steps["signs"][step - 1, way, k % 2] = share
    change = steps["signs"][:, 1].astype(float) - steps["signs"][:, 2]
    steps["signs"][:, 0] = np.clip(np.cumsum(change, 0), 0, 1)
    again = as_rows(history_table(steps, ["a", "b"]), flip_table(steps, ["a", "b"]), ["a", "b"])
    for name in ("step", "epoch", "loss", "lr", "w", "signs"):
        np.testing.assert_array_equal(again[name], steps[name])


# --- one run ---


def test_a_follower_agrees_with_the_run_at_every_moment(data, tmp_path):
    run = make_run(tmp_path, data, **EVENTFUL)
    follower = None
    for block in record([run]):
        follower = follower or Follower(run.path)
        if not block.last:
            follower.update()
            assert follower.status == "running" and follower.curves.facts["step"] == block.last_step
            assert len(follower.curves.series.scores.points) == block.last_step // 8
    assert follower.update() and follower.finished and follower.status == "finished" and not follower.update()
    fresh = Follower(run.path)
    fresh.update()
    for one in (follower, fresh):
        series = one.curves.series
        np.testing.assert_array_equal(series.column("loss"), run.history["loss"])
        np.testing.assert_array_equal(series.column("w/layer1.0.act1"), run.history["w_mean/layer1.0.act1"])
        assert series.flips == run.flips["step"].nunique() > 0 and one.curves.facts["f1"] is not None
        assert one.steps == 24 and one.steps_per_epoch == 8


def test_a_follower_notices_a_restart_from_a_checkpoint(data, tmp_path):
    run = make_run(tmp_path, data, epochs=3, checkpoint_seconds=0)
    for block in record([run]):
        if block.last_step == 6:
            break
    follower = Follower(run.path)
    follower.update()
    assert follower.status == "interrupted" and follower.curves.facts["step"] == 6
    shutil.copytree(run.path, tmp_path / "copy")
    log = run.path / "log" / "steps"
    log.write_bytes(log.read_bytes()[:log.stat().st_size // 2])         # as a resumed run cuts it, below what was read
    follower.update()
    assert follower.curves.facts["step"] == 3 and follower.curves.series.column("step").tolist() == [1, 2, 3]


def test_a_follower_finds_a_steered_run_where_it_moved(data, tmp_path):
    run = make_run(tmp_path, data, epochs=3)
    follower, name = None, None
    for block in record([run]):
        follower = follower or Follower(run.path)
        name = name or follower.path.name
        if block.last_step == 6 and len(block.loss):
            run.steering.send(Command("flip", "layer1.0.act1", id="x"))
        follower.update()
    assert follower.path.name == name + "-steered" and follower.label == "baseline, seed 0 (steered)"
    assert [[e["kind"] for e in group] for group in follower.acknowledged] == [["flip"]]


def test_a_command_reaches_a_run_that_moved_since_the_last_look(data, tmp_path):
    """Flip, then at once Stop: the second had been lost without a word."""
    run = make_run(tmp_path, data, epochs=3)
    follower = None
    with pytest.raises(Stopped):
        for block in record([run]):
            follower = follower or Follower(run.path)
            if block.last_step == 3 and len(block.loss):
                follower.act(Command("flip", "all", id="f"))
                time.sleep(.25)                             # the run looks into its folder every .2 s
            if run.steered and block.events:
                assert follower.path != run.path and not follower.path.exists()
                follower.act(Command("stop", id="s"))
                time.sleep(.25)
    follower.update()
    assert [[e["id"] for e in group] for group in follower.acknowledged] == [["f"], ["s"]]
    shutil.rmtree(run.path)
    with pytest.raises(RecordError, match="is not a run's directory"):
        follower.act(Command("stop"))


def test_a_command_that_cant_be_passed_on_is_answered():
    said = []

    def gone(command: Command) -> None:
        raise RecordError("the run is gone")
    receive_command({"kind": "stop", "id": "a"}, gone, said.append)
    assert said == [{"t": "got", "id": "a"}, {"t": "ack", "id": "a", "text": "the run is gone", "wrong": True}]


def test_a_run_that_has_written_nothing_for_a_minute_is_silent(data, tmp_path):
    import os

    run = make_run(tmp_path, data, epochs=3)
    for block in record([run]):
        if block.last_step == 6:
            follower = Follower(run.path)
            follower.update()
            assert follower.curves.facts["silent"] is None
            os.utime(run.path / "log" / "steps", (time.time() - 300,) * 2)
            follower.update()
            assert 299 < follower.curves.facts["silent"] < 310
            break


def test_commands_go_through_the_runs_folder(data, tmp_path):
    run = make_run(tmp_path, data)
    for _ in record([run]):
        break
    Follower(run.path).act(Command("pause", id="p"))
    assert take_requests(run.path) == [Command("pause", id="p")]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RecordError, match="is not a run's directory"):
        Follower(tmp_path)


# --- the monitor ---


def test_a_study_is_a_picture_and_a_table_where_nobody_looks(data, tmp_path, shown):
    for seed in (1, 0):
        list(record([make_run(tmp_path / "runs", data, study="s", seed=seed, **EVENTFUL)]))
    for _ in record([make_run(tmp_path / "runs", data, study="s")]):
        break
    found = monitor(tmp_path / "runs" / "s", live="off")
    picture, table = shown
    assert isinstance(picture, Image) and isinstance(table, pd.DataFrame)
    assert table["run"].tolist() == ["baseline, seed 0", "dynamic, seed 0", "dynamic, seed 1"]
    assert table["status"].tolist() == ["interrupted", "finished", "finished"] and table["step"].tolist() == [3, 24, 24]
    assert found.summary() == "s: 3 runs, 2 finished, 1 interrupted"
    assert found.ordered()[0].path.name.startswith("baseline")


def test_one_run_is_its_picture_where_nobody_looks(data, tmp_path, shown):
    run = make_run(tmp_path, data, **EVENTFUL)
    list(record([run]))
    monitor(run.path, live="off")
    assert isinstance(shown[0], Image) and len(shown) == 1


@pytest.mark.parametrize(("path", "reason"), [("nowhere", "no folder 'nowhere': name a run's directory"),
                                              ("x" * 300, "no folder 'xxx"), ("a\0b", "no folder 'a"),
                                              ("~nobody-here/runs", "no folder '~nobody-here/runs'"),
                                              (".", "no runs below .* run a study first")])
def test_a_wrong_path_is_one_sentence(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match=reason):
        monitor_function(path if path != "." else tmp_path, live="off")


def test_a_damaged_run_is_named_on_its_card_and_the_others_are_shown(data, tmp_path):
    runs = [Run(make_experiment(study="s", seed=seed, epochs=1), data, tmp_path) for seed in (0, 1)]
    for run in runs:
        list(record([run]))
    (runs[1].path / "epochs.parquet").write_text("x")
    board = monitoring.StudyMonitor(tmp_path / "s", 1.)
    for _ in range(2):
        board.update()
        table = board.table().set_index("run")
        assert table["status"].tolist() == ["finished", "damaged"] and table["step"].tolist() == [8, 0]
    assert set(board.summary().removeprefix("s: 2 runs, ").split(", ")) == {"1 finished", "1 damaged"}
    assert len(board.picture()) > 1000
    board.chart = Board({}, None)
    for run in board.ordered():
        board._open(run.name)
    assert board.tag == board.ordered()[0].name, "what is damaged does not open"


@pytest.mark.parametrize("seconds", [0, -1, "x", None, float("nan"), 1e9])
def test_a_wrong_number_of_seconds_is_one_sentence(tmp_path, seconds):
    with pytest.raises(ParameterError, match="refresh_seconds"):
        monitor_function(tmp_path, "off", seconds)


class Board(FakeChart):
    """A chart without curves."""

    def __init__(self, settings, receive):
        super().__init__(None, settings, None)
        self.receive = receive

    def show(self):
        self.hear({"t": "board?", "rid": "b"})


@pytest.fixture
def board(monkeypatch):
    FakeChart.made = []
    monkeypatch.setattr(monitoring, "Chart", Board)
    monkeypatch.setattr(monitoring, "CurveChart", FakeChart)
    monkeypatch.setattr(monitoring, "wants_widget", lambda live: True)


def wait_for(condition, seconds: float = 10.):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(.02)


def test_a_watched_study_shows_new_runs_opens_one_and_passes_commands_on(data, tmp_path, board):
    first = make_run(tmp_path, data, study="s", epochs=500, checkpoint_seconds=0)
    blocks = record([first])
    next(blocks)
    view = monitor(tmp_path / "s", refresh_seconds=.05)
    front, = FakeChart.made
    wait_for(lambda: "board" in front.kinds())
    list(record([make_run(tmp_path, data, study="s", seed=1)]))
    wait_for(lambda: any(len(c["names"]) == 2 for c, _ in front.sent if c["t"] == "board"))
    name = f"s/{first.path.name}"
    front.hear({"t": "open", "run": name, "rid": "o"})
    wait_for(lambda: "opened" in front.kinds())
    front.hear({"t": "all?", "run": name, "rid": "a"})
    assert "data" in front.kinds()
    opened = next(c for c, _ in front.sent if c["t"] == "opened")
    assert opened["run"] == name and "stop" in opened["cfg"]["controls"]
    front.hear({"t": "command", "run": name, "rid": "c", "command": {"kind": "flip", "site": "all", "id": "f"}})
    time.sleep(.25)                                         # the run looks into its folder every .2 s
    for block in blocks:
        if block.last_step > 12:
            break
    wait_for(lambda: any(c["t"] == "ack" and c["id"] == "f" for c, _ in front.sent))
    assert first.path.name.endswith("-steered")
    wait_for(lambda: any("steered" in n for c, _ in front.sent if c["t"] == "board" for n in c["names"]))
    last = [c for c, _ in front.sent if c["t"] == "data"][-1]
    assert last["run"] == name, "the run that is open keeps its name there"
    view.stop()
    assert isinstance(front.replaced, Image)


def test_a_watched_run_ends_in_a_picture(data, tmp_path, board):
    run = make_run(tmp_path, data, **EVENTFUL)
    blocks = record([run])
    next(blocks)
    view = monitor(run.path, refresh_seconds=.05)
    front, = FakeChart.made
    list(blocks)
    wait_for(lambda: front.replaced is not None)
    assert view.over and isinstance(front.replaced, Image)
    json.dumps([c for c, _ in front.sent], allow_nan=False)
