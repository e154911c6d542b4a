"""Steering: commands act between steps, are recorded, and leave every other run alone."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, make_experiment
from test_runs import assert_same_record, trained

from fer_lib import engine
from fer_lib.engine import Learner, Stopped, train
from fer_lib.files import RecordError
from fer_lib.models import sites
from fer_lib.predict import load_trained
from fer_lib.records import read_records
from fer_lib.runs import Run, record, reopen_run
from fer_lib.steering import REQUESTS, Command, Steering, request, take_requests
from fer_lib.steplog import StepLog
from fer_lib.workspace import Workspace

pytestmark = pytest.mark.usefixtures("short_resnet")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)


def steered(run: Run, commands: dict[int, list[Command]]) -> list:
    """Train, sending commands after the blocks that end at these steps; the blocks."""
    blocks = []
    for block in record([run]):
        blocks.append(block)
        for command in commands.get(block.last_step, []) if len(block.loss) else []:
            run.steering.send(command)
    return blocks


def make_run(folder, data, **settings) -> Run:
    return Run(make_experiment(**settings), data, folder)


def events(run: Run) -> list[tuple]:
    return [tuple(row) for row in run.events[["step", "epoch", "kind", "site"]].itertuples(index=False)]


# --- what commands do ---


def test_a_forced_flip_multiplies_the_feature_and_twice_is_none(data):
    learner = Learner(make_experiment(method="dropout", dropout_p=0.), data, CPU)
    x = torch.randn(4, 1, 16, 16)
    name = "layer2.0.act1"
    seen = []
    learner.model.layer2[0].conv2.register_forward_hook(lambda m, inputs, y: seen.append(inputs[0]))
    block = learner.model.layer2[0]
    block.bn1.register_forward_hook(lambda m, inputs, y: seen.append(y.clone()))
    learner.model.eval()
    for sign in (-1., 1.):
        event, = learner.obey(Command("flip", name))
        assert event.step == 1 and learner.forced == {name: sign}
        seen.clear()
        learner.model(x)
        assert torch.equal(seen[1], torch.relu(sign * seen[0])), "between batch normalisation and ReLU"
    others = [s.name for s in sites(learner.model).values() if s.forced is not None]
    assert others == [name]


def test_all_means_the_methods_sites_and_an_unknown_site_does_nothing(data):
    learner = Learner(make_experiment(method="periodic", flip_site="layer1+stem"), data, CPU)
    learner.obey(Command("flip", "all"))
    assert set(learner.forced) == {"stem", "layer1.0.act1", "layer1.0.act2"}
    assert learner.obey(Command("flip", "layer9.0.act1")) == []
    baseline = Learner(make_experiment(), data, CPU)
    baseline.obey(Command("flip", "all"))
    assert set(baseline.forced) == {f"layer{k}.0.act1" for k in (1, 2, 3, 4)}


def test_flips_by_hand_equal_the_periodic_method_bit_for_bit(data):
    losses, weights = [], []
    for settings, by_hand in ((dict(method="periodic", flip_interval=6, flip_interval_unit="step"), ()), ({}, (6, 12))):
        learner = Learner(make_experiment(**settings), data, CPU)
        learner.model.train()
        loss = []
        for step in range(1, 17):
            learner.draw_epoch()
            if step in by_hand:
                learner.obey(Command("flip", "all"))
            loss.append(float(learner.train_step()))
        losses.append(loss)
        weights.append([p.detach().numpy().tobytes() for p in learner.model.parameters()])
    assert losses[0] == losses[1] and weights[0] == weights[1]


def test_learning_rate_and_decay_act_at_the_next_step(data, tmp_path):
    plain = trained(tmp_path / "plain", data)
    run = make_run(tmp_path / "hand", data)
    blocks = steered(run, {6: [Command("lr", value=0.), Command("weight_decay", value=.5)]})
    lr = np.concatenate([b.lr for b in blocks])
    assert lr.tolist() == [1e-3] * 6 + [0.] * 10
    loss = np.concatenate([b.loss for b in blocks])
    assert loss[:7].tobytes() == plain.history["loss"].to_numpy()[:7].tobytes() and loss[7] != plain.history["loss"][7]
    assert events(run) == [(7, 1, "lr", ""), (7, 1, "weight_decay", "")]
    group = blocks[-1].network.optimizer.param_groups[0]
    assert group["weight_decay"] == .5 and group["lr"] == 0.


def test_a_learning_rate_by_hand_is_scaled_by_the_schedule(data):
    learner = Learner(make_experiment(schedule="step", schedule_epochs=1, schedule_factor=.1, epochs=3), data, CPU)
    learner.obey(Command("lr", value=1e-2))
    never = lambda: False                                                                   # noqa: E731
    while learner.step < 8:
        learner.block(0, never)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_evaluate_checkpoint_and_another_channel_change_no_bit(data, tmp_path):
    settings = dict(method="dynamic", w0=.003, w_gradient="exact", epochs=2)
    plain = trained(tmp_path / "plain", data, **settings)
    run = make_run(tmp_path / "hand", data, **settings)
    blocks = steered(run, {3: [Command("evaluate")], 6: [Command("checkpoint"), Command("watch_channel", value=2)]})
    assert not run.steered and run.result["steered"] is False and "steered" not in run.path.name
    kinds = [e.kind for b in blocks for e in b.events]
    assert kinds == ["evaluate", "evaluate", "checkpoint", "watch_channel"]
    found = {e.site: e.value for b in blocks for e in b.events if e.kind == "evaluate"}
    assert set(found) == {"val trained", "val clean"} and all(0 <= v <= 1 for v in found.values())
    columns = [c for c in plain.history if not c.startswith("w_channel")]
    pd.testing.assert_frame_equal(run.history[columns], plain.history[columns], check_exact=True)
    pd.testing.assert_frame_equal(run.epochs, plain.epochs, check_exact=True)


def test_a_pause_takes_no_step_until_resumed_and_other_commands_act_in_it(data):
    steering = Steering()
    blocks = train([(make_experiment(), data)], CPU, steering=[steering])
    first = next(blocks)
    steering.send(Command("pause"))
    paused = next(blocks)
    assert len(paused.loss) == 0 and paused.last_step == first.last_step == 3 and steering.paused
    steering.send(Command("evaluate"))
    assert [e.kind for e in next(blocks).events] == ["evaluate", "evaluate"]
    threading.Timer(.3, steering.send, [Command("resume")]).start()
    started = time.monotonic()
    resumed, going = next(blocks), next(blocks)
    assert .25 < time.monotonic() - started < 3 and [e.kind for e in resumed.events] == ["resume"]
    assert going.first_step == 4 and len(going.loss) == 3
    blocks.close()


def test_slow_steps_end_a_block_early_and_change_no_bit(data, tmp_path, monkeypatch):
    plain = trained(tmp_path / "plain", data)
    monkeypatch.setattr(engine, "BLOCK_SECONDS", 0.)
    run = make_run(tmp_path / "slow", data)
    assert {len(b.loss) for b in record([run])} == {1}
    assert_same_record(plain, run)


# --- the record of a steered run ---


def test_a_steered_run_says_so_moves_aside_and_is_left_out_of_tables(data, tmp_path):
    run = make_run(tmp_path, data, study="s")
    home = run.path
    steered(run, {3: [Command("flip", "layer1.0.act1")], 8: [Command("flip", "layer1.0.act1")]})
    assert run.steered and run.finished and run.path == home.with_name(home.name + "-steered")
    assert not home.exists(), "the experiment's own place is free"
    assert events(run) == [(4, 1, "flip", "layer1.0.act1"), (9, 2, "flip", "layer1.0.act1")]
    assert run.flips[["step", "site", "sign"]].to_numpy().tolist() == [[4, "layer1.0.act1", -1],
                                                                       [9, "layer1.0.act1", 1]]
    again = make_run(tmp_path, data, study="s")
    assert again.status == "new"
    list(record([again]))
    records = read_records(tmp_path)
    assert records.runs["id"].tolist() == [again.id] and records.steered == [run.path.name]
    assert records.epochs["seed"].eq(0).all() and len(records.history) == 16
    second = make_run(tmp_path / "other", data, study="s")
    steered(second, {3: [Command("lr", value=.1)]})
    assert second.path.name == home.name + "-steered"


def test_who_reads_of_a_flip_finds_the_run_in_its_new_place(data, tmp_path, monkeypatch):
    """A monitor's next command goes where it read of the last one."""
    run, add, seen = make_run(tmp_path, data), StepLog.add, []

    def looked(log: StepLog, rows: np.ndarray, epochs: list, said: list) -> None:
        seen.extend((log.folder.parent.name.endswith("-steered"), log.folder.is_dir()) for _ in said)
        add(log, rows, epochs, said)
    monkeypatch.setattr(StepLog, "add", looked)
    steered(run, {3: [Command("evaluate")], 6: [Command("flip", "all")]})
    assert seen == [(False, True), (False, True), (True, True)]


def test_a_run_that_cant_move_aside_goes_on_from_its_checkpoint_without_the_flip(data, tmp_path, monkeypatch):
    plain, run = (make_run(tmp_path / name, data) for name in ("plain", "refused"))
    list(record([plain]))
    with monkeypatch.context() as patch, pytest.raises(RecordError, match="-steered': Permission denied"):
        patch.setattr(Path, "rename", refused)
        steered(run, {3: [Command("checkpoint")], 8: [Command("flip", "all")]})
    again = make_run(tmp_path / "refused", data)
    assert (again.status, again.steered) == ("running", False)
    list(record([again]))
    assert_same_record(plain, again)


def refused(*paths: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_steered_run_goes_on_from_its_checkpoint_with_its_flips(data, tmp_path):
    commands = {3: [Command("flip", "layer1.0.act1"), Command("lr", value=5e-3)]}
    whole = make_run(tmp_path / "whole", data, method="dynamic", w0=.003, w_gradient="exact")
    steered(whole, commands)
    run = make_run(tmp_path / "parts", data, method="dynamic", w0=.003, w_gradient="exact")
    with pytest.raises(Stopped, match="run the same cell or command again"):
        steered(run, {**commands, 8: [Command("stop")]})
    assert run.status == "interrupted" and run.result["step"] == 8
    workspace = Workspace(tmp_path, tmp_path, tmp_path / "parts")
    reopened = Run(run.experiment, data, workspace.runs, run.path)
    assert reopened.steered and len(reopened.history) == 8
    list(record([reopened]))
    assert reopened.path == run.path and events(reopened)[:2] == events(whole)
    pd.testing.assert_frame_equal(reopened.history, whole.history, check_exact=True)
    pd.testing.assert_frame_equal(reopened.flips, whole.flips, check_exact=True)
    model, _ = load_trained(reopened.path)
    assert model.get_submodule("layer1.0.act1").forced.sign == -1, "predict knows the flip by hand"


def test_a_directory_opens_as_its_run_again(packed, tmp_path):
    from fer_lib.data import open_packed

    data = open_packed(packed)
    run = Run(make_experiment(data="fake"), data, tmp_path / "runs")
    list(record([run]))
    workspace = Workspace(tmp_path, packed.parent, tmp_path / "runs")
    assert reopen_run(run.path, workspace).result == run.result
    with pytest.raises(RecordError, match="'runs' is not a run's directory"):
        reopen_run(tmp_path / "runs", workspace)


# --- requests from other processes ---


def test_requests_come_through_the_runs_folder_in_order_and_once(data, tmp_path):
    run = make_run(tmp_path, data, epochs=60)
    seen = []
    with pytest.raises(Stopped):
        for k, block in enumerate(record([run])):
            seen += block.events
            if k == 0:
                request(run.path, Command("evaluate", id="a"))
                request(run.path, Command("stop", id="b"))
                time.sleep(.25)
    assert [(e.kind, e.id) for e in seen] == [("evaluate", "a"), ("evaluate", "a"), ("stop", "b")]
    assert run.status == "interrupted" and not list((run.path / REQUESTS).iterdir())


def test_what_is_no_command_is_left_out(data, tmp_path):
    run = make_run(tmp_path, data)
    for _ in record([run]):
        break
    folder = run.path / REQUESTS
    folder.mkdir()
    for k, text in enumerate(("{", '{"kind": "rm"}', '{"kind": "lr", "value": -1}', '{"kind": "lr", "value": "1"}',
                              '{"kind": "stop", "path": "x"}', '[]', '{"kind": "pause"}')):
        (folder / f"{k}.json").write_text(text)
    assert [c.kind for c in take_requests(run.path)] == ["pause"]
    assert not list(folder.iterdir())


def test_a_request_from_before_the_start_does_not_act(data, tmp_path):
    run = make_run(tmp_path, data)
    for _ in record([run]):
        break
    request(run.path, Command("stop"))
    list(record([make_run(tmp_path, data)]))
    assert make_run(tmp_path, data).finished


def test_a_request_goes_with_a_run_that_moves_aside_in_this_moment(data, tmp_path, monkeypatch):
    run = make_run(tmp_path, data)
    for _ in record([run]):
        break
    old, opened = run.path, os.open

    def moved(path, *rest, **more) -> int:
        found = opened(path, *rest, **more)
        if path == old / REQUESTS:
            run.move_aside()
        return found
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", moved)
        request(old, Command("stop", id="a"))
    assert not old.exists() and run.path.name == f"{old.name}-steered"
    assert [c.id for c in take_requests(run.path)] == ["a"] and not list((run.path / REQUESTS).iterdir())


def test_a_request_that_cant_be_written_leaves_nothing(data, tmp_path, monkeypatch):
    run = make_run(tmp_path, data)
    for _ in record([run]):
        break
    with monkeypatch.context() as patch, pytest.raises(RecordError, match="can't write 'requests/.*Permission denied"):
        patch.setattr(os, "rename", lambda *names, **folders: refused())
        request(run.path, Command("stop"))
    assert not list((run.path / REQUESTS).iterdir())


def test_a_request_needs_a_run(tmp_path):
    with pytest.raises(RecordError, match="not a run's directory"):
        request(tmp_path, Command("stop"))


@pytest.mark.parametrize(("wrong", "reason"), [
    (dict(kind="explode"), "unknown command 'explode'"), (dict(kind="lr", value=float("nan")), "0 to 1000"),
    (dict(kind="lr", value=-1.), "0 to 1000"), (dict(kind="lr", value=True), "0 to 1000"),
    (dict(kind="flip", site=3), "are texts")])
def test_a_command_that_no_run_can_take_is_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Command(**wrong)


def test_commands_from_many_threads_all_arrive():
    steering = Steering()
    threads = [threading.Thread(target=lambda: [steering.send(Command("evaluate")) for _ in range(200)])
               for _ in range(4)]
    for t in threads:
        t.start()
    found = 0
    while any(t.is_alive() for t in threads) or steering.waiting:
        found += len(steering.take())
    assert found == 800
