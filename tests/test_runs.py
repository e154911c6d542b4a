"""Records: what is on disk, what survives a stop, and that the numbers are those of the epochs."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_same_bits, make_data, make_experiment, short, train_one, train_together, write_packed
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

import fer_lib
from fer_lib import checkpoint, engine, files, records, runs
from fer_lib.checkpoint import copied, read_state, write_state
from fer_lib.claims import judge, verdict_table
from fer_lib.claims_file import read_claims
from fer_lib.data import PackedDataset, open_packed
from fer_lib.event_metrics import measured, only_counted, run_tables
from fer_lib.files import RecordError
from fer_lib.groups import train_group
from fer_lib.records import export, join, read_records
from fer_lib.runs import Diverged, Run, record

pytestmark = pytest.mark.usefixtures("short_resnet")

FINISHED = {"experiment.json", "environment.json", "history.parquet", "epochs.parquet", "flips.parquet",
            "model.safetensors", "result.json"}
PACE = ["seconds", "images_per_second", "peak_memory_bytes", "runs_together"]
EVENTFUL = dict(method="dropout+dynamic", w0=0.001, w_gradient="exact", epochs=3, augment="flip", schedule="plateau",
                schedule_epochs=1)


def trained(folder: Path, data: PackedDataset, **settings) -> Run:
    run = Run(make_experiment(**settings), data, folder)
    assert run.status == "new"
    assert len(list(record([run]))) > 0
    return run


def started(folder: Path, data: PackedDataset, blocks: int, **settings) -> Run:
    """A run whose loop was left after so many blocks."""
    run = Run(make_experiment(**settings), data, folder)
    for k, _ in enumerate(record([run]), 1):
        if k == blocks:
            break
    return run


def assert_same_record(a: Run, b: Run) -> None:
    assert a.finished and b.finished and a.id == b.id
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
    pd.testing.assert_frame_equal(a.epochs, b.epochs, check_exact=True)
    pd.testing.assert_frame_equal(a.flips, b.flips, check_exact=True)
    ours, theirs = load_file(a.path / "model.safetensors"), load_file(b.path / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    assert {k: v for k, v in a.result.items() if k not in PACE} == {k: v for k, v in b.result.items() if k not in PACE}


def listing(run: Run) -> set[str]:
    return {p.name for p in run.path.iterdir()}


# --- what is on disk ---


def test_what_killed_processes_left_half_written_goes(tmp_path):
    """Of a run that is taken up again, and of one that was finished."""
    data = make_data()
    run = started(tmp_path, data, 1, **EVENTFUL)
    halves = [".checkpoint.safetensors.123.tmp", ".tmp7Dr0kp"]
    for _ in range(2):
        for name in halves:
            (run.path / name).write_bytes(b"half")
        run = Run(run.experiment, data, tmp_path)
        list(record([run]))
        assert run.finished and listing(run) == FINISHED


def test_a_finished_record_is_complete(data, tmp_path):
    run = trained(tmp_path, data, method="dynamic", w0=0.003, study="quick", name="arm", seed=3)
    assert run.path == tmp_path / "quick" / f"arm-{run.id}-seed3"
    assert listing(run) == FINISHED
    sites = [f"layer{k}.0.act1" for k in (1, 2, 3, 4)]
    w = [f"w_{name}/{site}" for name in ("mean", "sd", "min", "max", "channel") for site in sites]
    assert list(run.history) == ["step", "epoch", "loss", "lr", *w]
    assert run.history["step"].tolist() == list(range(1, 17)) and run.history["epoch"].tolist() == [1] * 8 + [2] * 8
    assert list(run.flips) == ["step", "epoch", "site", "sign", "share"]
    assert list(run.epochs) == runs.epoch_columns()
    assert len(run.epochs) == 2 * 2 * 2 and (run.epochs["n"] == 16).all()
    head = json.loads((run.path / "experiment.json").read_text())
    assert head["experiment"] == json.loads(run.experiment.to_json()) and head["data_hash"] == data.hash
    assert head["id"] == run.id and head["classes"] == data.classes
    assert run.result["status"] == "finished" and run.result["n"] == {"train": 64, "val": 16, "test": 16}


def test_the_environment_names_no_path_and_no_host(data, tmp_path):
    run = trained(tmp_path, data, epochs=1)
    text = (run.path / "environment.json").read_text()
    found = json.loads(text)
    assert found["device_type"] == "cpu" and found["precision"] == "fp32" and found["threads"] == 1
    assert found["packages"]["torch"]
    whole = text + (run.path / "experiment.json").read_text() + (run.path / "result.json").read_text()
    for private in (str(tmp_path), str(Path.cwd()), str(Path.home()), socket.gethostname()):
        assert private not in whole
    assert not re.search(r'"/\w', whole)


def test_flips_are_rows_at_the_first_forward_with_the_new_sign(data, tmp_path):
    run = trained(tmp_path, data, method="periodic", flip_interval=5, flip_interval_unit="step")
    sites = [f"layer{k}.0.act1" for k in (1, 2, 3, 4)]
    rows = [(step, epoch, site, sign, 1.0) for step, epoch, sign in ((5, 1, -1), (10, 2, 1), (15, 2, -1))
            for site in sites]
    assert [tuple(row) for row in run.flips.itertuples(index=False)] == rows
    assert run.result["flips"] == {"steps": 3, "first": 5, "epochs_since_last": (16 - 15 + 1) / 8}


def test_a_run_without_flips_says_so(data, tmp_path):
    run = trained(tmp_path, data, epochs=1)
    assert len(run.flips) == 0 and run.result["flips"] == {"steps": 0, "first": None, "epochs_since_last": None}


def test_result_numbers_are_those_of_the_epochs(tmp_path):
    data = make_data(sizes={"train": 64, "val": 30, "test": 40})
    run = trained(tmp_path, data, method="periodic", flip_interval=2, epochs=5, lr=5e-3)
    table = run.epochs
    val = table[(table["split"] == "val") & (table["mode"] == "trained")].reset_index(drop=True)
    best = int(val["macro_f1"].argmax())
    assert run.result["chosen"]["epoch"] == best + 1
    assert run.result["last"]["epoch"] == 5
    assert run.result["max_val_macro_f1"] == val["macro_f1"].max()
    assert run.result["min_train_loss"] == val["train_loss"].min()
    for part in ("chosen", "last"):
        for row in table[table["epoch"] == run.result[part]["epoch"]].itertuples():
            suffix = "" if row.mode == "trained" else "_clean"
            for key in ("macro_f1", "accuracy", "loss"):
                assert run.result[part][f"{row.split}_{key}{suffix}"] == getattr(row, key)
            assert run.result[part]["train_loss"] == row.train_loss
    for row in table.itertuples():
        confusion = np.array(row.confusion).reshape(7, 7)
        assert confusion.sum() == row.n == {"val": 30, "test": 40}[row.split]
        assert confusion.trace() / row.n == pytest.approx(row.accuracy)
        total = confusion.sum(0) + confusion.sum(1)
        f1 = 2 * np.diag(confusion)[total > 0] / total[total > 0]
        assert f1.mean() == pytest.approx(row.macro_f1)
        assert row.train_loss == pytest.approx(run.history.groupby("epoch")["loss"].mean()[row.epoch])


def test_the_weights_kept_are_those_of_the_chosen_epoch(data, tmp_path):
    run = Run(make_experiment(epochs=4, lr=5e-3), data, tmp_path)
    by_epoch = {b.epoch: {k: v.clone().numpy() for k, v in b.model().items()} for b in record([run])}
    kept, chosen = load_file(run.path / "model.safetensors"), by_epoch[run.result["chosen"]["epoch"]]
    assert all(np.array_equal(kept[k], chosen[k]) for k in chosen)


# --- stops ---


def test_a_finished_run_is_not_trained_again(data, tmp_path, monkeypatch):
    run = trained(tmp_path, data)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.iterdir()}
    monkeypatch.setattr(engine.Learner, "train_step", None)
    again = Run(run.experiment, data, tmp_path)
    assert again.finished and again.result == run.result
    assert list(record([again])) == [] == list(record([run]))
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.iterdir()} == before


def test_a_run_left_in_mid_epoch_goes_on_to_the_same_record(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    whole = trained(tmp_path / "whole", data, **EVENTFUL)
    assert len(whole.flips)
    run = started(tmp_path / "parts", data, 2, **EVENTFUL)
    for step, blocks in ((6, 3), (14, 1), (16, 9)):
        run = Run(run.experiment, data, tmp_path / "parts")
        assert run.status == "interrupted" and run.result["step"] == step and run.result["steps"] == 24
        assert run.history["step"].tolist() == list(range(1, step + 1))
        for k, block in enumerate(record([run]), 1):
            assert k > 1 or block.first_step == step + 1
            if k == blocks:
                break
    assert listing(run) == FINISHED
    assert_same_record(whole, run)


def test_what_was_written_after_the_last_checkpoint_is_cut_back(data, tmp_path, monkeypatch):
    """A crash before the checkpoint's file is there: steps and epochs are ahead of the state."""
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    settings = {**EVENTFUL, "method": "dropout+periodic", "flip_interval": 2, "flip_interval_unit": "step"}
    whole = trained(tmp_path / "whole", data, **settings)
    for first in (1, 3):                                            # the first checkpoint, and a later one
        folder = tmp_path / f"crash{first}"
        run, written = Run(make_experiment(**settings, checkpoint_seconds=0), data, folder), []

        def crash(path, state, written=written, first=first):
            written.append(path)
            if len(written) == first:
                raise MemoryError
            write_state(path, state)

        monkeypatch.setattr(runs, "write_state", crash)
        monkeypatch.setattr(runs.Recorder, "stop", lambda *arguments: None)     # as if the process were gone
        with pytest.raises(MemoryError):
            list(record([run]))
        monkeypatch.undo()
        short(monkeypatch)
        monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
        assert len(run.history) == {1: 3, 3: 8}[first], "the log is ahead of the checkpoint"
        run = Run(make_experiment(**settings), data, folder)        # checkpoints come at other steps than before
        assert run.status == "running"
        list(record([run]))
        assert_same_record(whole, run)


def test_several_runs_are_recorded_together(data, tmp_path):
    experiments = [make_experiment(method=m, epochs=n) for m, n in (("baseline", 1), ("dropout", 2))]
    together = [Run(e, data, tmp_path / "together") for e in experiments]
    list(record(together))
    for e, run in zip(experiments, together):
        assert_same_record(run, trained(tmp_path / "alone", data, method=e.method, epochs=e.epochs))


# from step 11 on it waits where the file `wait` lies beside the records, so that a signal never comes too late
WORKER = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from conftest import make_experiment
from fer_lib import engine, models
from fer_lib.data import open_packed
from fer_lib.runs import Run, record

models.LAYERS["resnet18"] = (models.BasicBlock, [1, 1, 1, 1])
engine.BLOCK_STEPS = 3
run = Run(make_experiment(**eval(sys.argv[3])), open_packed(sys.argv[1]), Path(sys.argv[2]))
for block in record([run]):
    print(block.last_step, flush=True)
    while block.last_step >= 11 and Path(sys.argv[2] + ".wait").exists():
        time.sleep(.01)
"""


def in_another_process(packed: Path, folder: Path, settings: dict) -> subprocess.Popen:
    root = str(Path(fer_lib.__file__).parents[1])
    arguments = [str(packed), str(folder), repr(settings), str(Path(__file__).parent)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], cwd=folder.parent, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"})


def test_another_process_gives_the_same_bits_also_after_kill_or_ctrl_c(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    settings = {**EVENTFUL, "w_gradient": "literal", "epochs": 3}
    slow = {**settings, "epochs": 3, "checkpoint_seconds": 0}
    data = open_packed(packed)
    whole = trained(tmp_path / "here", data, **settings)
    for name in ("killed", "stopped"):
        (tmp_path / f"{name}.wait").touch()
    processes = {name: in_another_process(packed, tmp_path / name, slow) for name in ("whole", "killed", "stopped")}
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGINT)):
        process = processes[name]
        while int(process.stdout.readline()) < 11:                  # in the second epoch
            pass
        process.send_signal(number)
    time.sleep(0.2)                                                 # the signal arrives before the wait ends
    (tmp_path / "stopped.wait").unlink()
    errors = {name: process.communicate(timeout=60)[1] for name, process in processes.items()}
    assert processes["whole"].returncode == 0, errors["whole"]
    assert processes["killed"].returncode == -signal.SIGKILL
    assert processes["stopped"].returncode != 0 and "Stopped" in errors["stopped"], errors["stopped"]
    found = {name: Run(make_experiment(**slow), data, tmp_path / name) for name in processes}
    assert found["whole"].finished
    assert found["killed"].status == "running"
    assert found["stopped"].status == "interrupted" and found["stopped"].result["reason"] == "Stopped"
    reached = found["stopped"].result["step"]
    assert found["stopped"].history["step"].tolist() == list(range(1, reached + 1)) and 11 <= reached < 24
    assert read_state(found["stopped"].path / "checkpoint.safetensors")["learner"]["step"] == reached
    for name, run in found.items():
        blocks = list(record([run]))
        assert bool(blocks) == (name != "whole") and all(b.first_step > 9 for b in blocks)
        assert_same_record(whole, run)


# --- what goes wrong ---


def full_disk(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(data, tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", data, **EVENTFUL)
    run = started(tmp_path / "full", data, 1, **EVENTFUL)
    checkpoint = (run.path / "checkpoint.safetensors").read_bytes()
    run = Run(run.experiment, data, tmp_path / "full")
    with pytest.raises(RecordError) as caught:
        for _ in record([run]):
            monkeypatch.setattr(files.os, "replace", full_disk)
    monkeypatch.undo()
    short(monkeypatch)
    message, = caught.value._render_traceback_()
    assert "the disk is full" in message and "\n" not in message and str(tmp_path) not in message
    assert (run.path / "checkpoint.safetensors").read_bytes() == checkpoint
    assert not list(run.path.rglob("*.tmp"))
    run = Run(run.experiment, data, tmp_path / "full")
    assert not run.finished
    list(record([run]))
    assert_same_record(whole, run)


def test_a_full_disk_in_the_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.json"
    files.write_json(path, 1)
    with pytest.raises(RecordError, match="the disk is full; what was recorded before is kept"):
        files.write_atomically(path, full_disk)
    assert json.loads(path.read_text()) == 1 and [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_a_diverged_run_fails_with_its_step(data, tmp_path):
    settings = dict(optimizer="sgd", lr=1000.0, momentum=0.0, epochs=3, width=0.1)
    run = Run(make_experiment(**settings), data, tmp_path)
    with pytest.raises(Diverged, match=r"diverged; try a smaller lr than 1000") as caught:
        list(record([run]))
    run = Run(make_experiment(**settings), data, tmp_path)
    assert run.status == "failed" and not (run.path / "model.safetensors").exists()
    bad = int(np.flatnonzero(~np.isfinite(run.history["loss"]))[0])
    assert f"at step {run.history['step'][bad]}:" in str(caught.value) and str(caught.value) == run.result["reason"]
    assert read_records(tmp_path).unfinished == [f"{run.path.name}: failed"]


@pytest.mark.parametrize("broken", ["w", "weights"])
def test_w_and_weights_that_go_bad_fail_with_their_step_and_the_good_checkpoint_stays(data, tmp_path, monkeypatch,
                                                                                      broken):
    """The loss stays finite: it is found out nonetheless, in the block where it happens, before a checkpoint is made of
    it; also in the last one. The run beside it goes on.
    """
    monkeypatch.setattr(engine, "BLOCK_STEPS", 3)
    bad_step = 24
    true_step = engine.Learner.train_step

    def step(self):
        if self.step == bad_step - 1 and self.e.seed == 1:
            with torch.no_grad():
                (self.method.weights()["layer2.0.act1"] if broken == "w" else self.model.fc.bias)[-1] = -np.inf
        return true_step(self)

    monkeypatch.setattr(engine.Learner, "train_step", step)
    settings = dict(method="dynamic", w0=.003, w_mean="none", epochs=3, checkpoint_seconds=0.)
    runs = [Run(make_experiment(seed=k, **settings), data, tmp_path) for k in range(2)]
    true_add = engine.Log.add
    monkeypatch.setattr(engine.Log, "add", lambda self, loss: true_add(self, loss.nan_to_num(2., 2., 2.)))
    failed = train_group(runs, torch.device("cpu"), lambda line: None)
    what = {"w": f"w of '{runs[1].path.name}' at layer2.0.act1 is nan at step 24",
            "weights": f"'fc.bias' of '{runs[1].path.name}' is no longer finite at step 24"}[broken]
    assert failed == {1: f"{what}: the run has diverged; its last checkpoint, of step 22, is kept; try a smaller lr "
                         "than 0.001"}
    assert runs[0].finished and runs[1].status == "failed" and runs[1].result["reason"] == failed[1]
    kept = read_state(runs[1].path / "checkpoint.safetensors")["learner"]
    assert kept["step"] == 22 and all(v.isfinite().all() for v in kept["model"].values())


def test_a_run_that_diverges_changes_no_bit_of_one_beside_it(data):
    wild, calm = make_experiment(optimizer="sgd", lr=1e3, momentum=0.), make_experiment(method="dropout")
    together, alone = train_together([wild, calm], data), train_one(calm, data)
    assert any(block.broken for block in together[0].blocks) and not np.isfinite(together[0].loss).all()
    assert_same_bits(together[1], alone)


def test_a_record_of_another_attempt_is_not_mixed_in(data, tmp_path, monkeypatch):
    """A failed run has no checkpoint; when it is trained again its old history goes."""
    e = make_experiment(epochs=3)
    true_add = engine.Log.add
    monkeypatch.setattr(engine.Log, "add", lambda self, loss: true_add(self, loss * float("nan")))
    with pytest.raises(Diverged):
        list(record([Run(e, data, tmp_path)]))
    monkeypatch.setattr(engine.Log, "add", true_add)
    run = Run(e, data, tmp_path)
    assert len(run.history) == 8
    list(record([run]))
    assert run.history["step"].tolist() == list(range(1, 25)) and np.isfinite(run.history["loss"]).all()


@pytest.mark.parametrize(("file", "text", "reason"), [
    ("result.json", "{", "'.*/result.json' is damaged: delete that file"),
    ("result.json", '{"format": 99, "status": "finished"}', "format 99, this version reads 1: read it with"),
    ("result.json", "[]", "format None, this version reads 1"),
    ("checkpoint.safetensors", "x", "'.*/checkpoint.safetensors' is damaged .*: delete that file")])
def test_damaged_records_are_named(data, tmp_path, file, text, reason):
    run = started(tmp_path, data, 1)
    (run.path / file).write_text(text)
    with pytest.raises(RecordError, match=reason):
        list(record([Run(run.experiment, data, tmp_path)]))


def test_a_checkpoint_of_another_format_is_named_and_one_without_is_read(data, tmp_path, monkeypatch):
    """The first versions wrote no format into a checkpoint."""
    monkeypatch.setattr(checkpoint, "STATE_FORMAT", 2)
    run = started(tmp_path, data, 1)
    path = run.path / "checkpoint.safetensors"
    monkeypatch.undo()
    with pytest.raises(RecordError, match="'.*/checkpoint.safetensors' is a checkpoint of format 2, this version reads "
                                          "1: finish the run with the version of this kit that began it, or delete"):
        read_state(path)
    with safe_open(path, framework="pt") as f:
        tensors, text = {key: f.get_tensor(key) for key in f.keys()}, f.metadata()["state"]
    save_file(tensors, path, metadata={"state": text})
    assert read_state(path)["learner"]["step"] == 8


def test_a_damaged_record_in_a_study_is_named(data, tmp_path):
    run = started(tmp_path, data, 1)
    for text, reason in (("{", "result.json' is damaged"), ('{"format": 0}', "is a record of format 0")):
        (run.path / "result.json").write_text(text)
        with pytest.raises(RecordError, match=f"'{run.path.name}.*{reason}|{reason}"):
            read_records(tmp_path)


@pytest.mark.parametrize("text", [None, "", "x", "{}", "[1]"])
def test_a_missing_or_damaged_file_of_a_finished_run_is_named(data, tmp_path, text):
    run = trained(tmp_path / "runs", data, epochs=1)
    export(run.path.parent, tmp_path / "small")
    for folder, names, way_out in ((run.path, ("epochs.parquet", "history.parquet"), "delete its folder to train"),
                                   (run.path, ("experiment.json", "environment.json"), "delete its folder to train"),
                                   (tmp_path / "small", ("flips.parquet",), "take it from a copy, or export")):
        for name in names:
            whole = (folder / name).read_bytes()
            (folder / name).unlink() if text is None else (folder / name).write_text(text)
            named = re.escape(f"'{folder.name}/{name}'")
            with pytest.raises(RecordError, match=f"{named} is (missing|damaged): {way_out}"):
                read_records(folder.parent if folder == run.path else folder)
            (folder / name).write_bytes(whole)
    assert len(read_records(run.path.parent).runs) == len(read_records(tmp_path / "small").runs) == 1


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "nothing"])
def test_where_no_records_are_is_a_sentence(tmp_path, place):
    with pytest.raises(RecordError, match=f"no records in '{place}': run a study first"):
        read_records(tmp_path / place)


def test_nothing_is_written_before_the_first_block(data, tmp_path):
    Run(make_experiment(), data, tmp_path)
    record([Run(make_experiment(), data, tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_just_begun_has_a_history_without_rows(data, tmp_path):
    run = Run(make_experiment(), data, tmp_path)
    assert run.history["step"].tolist() == [] and run.flips["step"].tolist() == []


# --- many records ---


def sorted_by_run(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["name", "seed"], kind="stable", ignore_index=True)


def test_records_are_read_and_exported_with_the_same_numbers(data, tmp_path):
    kept = [trained(tmp_path / "runs", data, study="s", method=m, seed=seed, w0=0.003, w_gradient="exact")
            for m in ("dynamic", "baseline") for seed in (1, 0)]
    found = read_records(tmp_path / "runs")
    assert [*zip(found.runs["method"], found.runs["seed"])] == [
        ("baseline", 0), ("baseline", 1), ("dynamic", 0), ("dynamic", 1)]
    for run in kept:
        row = found.runs.set_index("id").loc[run.id]
        assert row["chosen_val_macro_f1"] == run.result["chosen"]["val_macro_f1"]
        assert row["last_test_loss_clean"] == run.result["last"]["test_loss_clean"]
        assert row["setting_lr"] == 1e-3 and row["n_train"] == 64
        own = found.history[found.history["id"] == run.id]
        assert own["loss"].tolist() == run.history["loss"].tolist()
    small = export(tmp_path / "runs" / "s", tmp_path / "small", every=4)
    shown = [c for c in found.runs if c != "setting_data"]
    pd.testing.assert_frame_equal(small.runs, found.runs[shown], check_exact=True)
    by_class = ["f1", "confusion"]
    order = ["name", "seed", "epoch", "mode", "split"]
    kept_order = small.epochs.sort_values(order, ascending=[True] * 3 + [False] * 2, ignore_index=True)
    all_epochs = sorted_by_run(found.epochs)
    pd.testing.assert_frame_equal(kept_order.drop(columns=by_class), all_epochs.drop(columns=by_class), rtol=1e-6)
    assert kept_order["macro_f1"].tolist() == all_epochs["macro_f1"].tolist()
    at_ends = kept_order.dropna(subset="confusion")
    for run in kept:
        assert set(at_ends.loc[at_ends["id"] == run.id, "epoch"]) == {run.result["chosen"]["epoch"], 2}
    for column in by_class:
        for here, there in zip(at_ends[column], all_epochs.loc[at_ends.index, column]):
            np.testing.assert_array_equal(here, there)
    pd.testing.assert_frame_equal(small.flips, sorted_by_run(found.flips), check_exact=True)
    assert sorted(small.history["step"].unique()) == [4, 8, 12, 16]
    thinned = sorted_by_run(found.history[found.history["step"] % 4 == 0])
    np.testing.assert_array_equal(small.history["loss"], thinned["loss"].astype(np.float32))
    assert {p.name for p in (tmp_path / "small").iterdir()} == {
        "runs.parquet", "epochs.parquet", "flips.parquet", "history.parquet"}


def test_an_unfinished_study_is_not_exported(data, tmp_path):
    run = started(tmp_path / "runs", data, 1)
    assert read_records(tmp_path / "runs").unfinished == [f"{run.path.name}: interrupted"]
    with pytest.raises(RecordError, match="1 runs .* not finished"):
        export(tmp_path / "runs", tmp_path / "small")
    assert not (tmp_path / "small").exists()
    with pytest.raises(RecordError, match="no records in"):
        read_records(tmp_path / "nowhere")


def tables(some: records.Records) -> dict[str, pd.DataFrame]:
    return {name: getattr(some, name) for name in ("runs", "epochs", "flips", "history")}


def assert_same_tables(a: records.Records, b: records.Records) -> None:
    for name, table in tables(a).items():
        both = [t.drop(columns=PACE, errors="ignore") for t in (table, tables(b)[name])]
        pd.testing.assert_frame_equal(*both, check_exact=True)


@pytest.fixture(scope="module")
def in_two_places(tmp_path_factory) -> Path:
    """Runs of one study: here seeds 0 and 1, there seeds 1 and 2, which are also exported."""
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        for place, seeds in (("here", (0, 1)), ("there", (1, 2))):
            for method in ("baseline", "dynamic"):
                for seed in seeds:
                    trained(folder / place, make_data(), study="s", method=method, seed=seed, w0=.003,
                            w_gradient="exact")
    export(folder / "there" / "s", folder / "small", every=4)
    return folder


@pytest.fixture
def two_places(in_two_places, tmp_path) -> tuple[Path, Path]:
    shutil.copytree(in_two_places, tmp_path, dirs_exist_ok=True)
    return tmp_path / "here" / "s", tmp_path / "small"


def test_records_of_several_places_are_joined_in_any_order_and_runs_in_two_taken_once(two_places, tmp_path):
    here, small = two_places
    whole = tmp_path / "whole"
    shutil.copytree(here, whole)
    shutil.copytree(tmp_path / "there" / "s", whole, dirs_exist_ok=True)
    wanted = export(whole, tmp_path / "wanted", every=4)
    assert len(wanted.runs) == 6
    for k, given in enumerate((two_places, two_places[::-1])):
        assert_same_tables(join(given, tmp_path / f"joined{k}", every=4), wanted)
    assert records.main(["join", str(here), str(small), "--out", str(small), "--every", "4"]) == 0
    assert_same_tables(read_records(small), wanted)
    assert_same_tables(join([small], small, every=4), wanted)
    assert {p.suffix for p in small.iterdir()} == {".parquet"} and len(list(small.iterdir())) == 4


def test_an_older_export_lacks_columns_which_stay_empty_and_what_is_known_more_of_is_taken(two_places, tmp_path):
    here, small = two_places
    older = read_records(small).runs.drop(columns=["runs_together", "peak_memory_bytes"])
    older.to_parquet(small / "runs.parquet")            # as pandas writes it: earlier versions did
    for k, given in enumerate((two_places, two_places[::-1])):
        runs = join(given, tmp_path / f"joined{k}").runs
        assert runs.loc[runs["seed"] == 2, ["runs_together", "peak_memory_bytes"]].isna().all(axis=None)
        assert (runs.loc[runs["seed"] < 2, "runs_together"] == 1).all()


def test_what_can_not_be_joined_is_named(data, tmp_path, capsys):
    for place, changes in (("a", {}), ("b", {"lr": .002}), ("c", {"study": "other"})):
        trained(tmp_path / place, data, **{"study": "s", "method": "baseline", "seed": 0, **changes})
    export(tmp_path / "a" / "s", tmp_path / "elsewhere")
    moved = read_records(tmp_path / "elsewhere").runs.assign(env_device="another GPU")
    moved.to_parquet(tmp_path / "elsewhere" / "runs.parquet")
    (tmp_path / "empty").mkdir()
    for places, reason in ((("a", "b"), "two runs of arm 'baseline', seed 0, differ in id"),
                           (("a", "elsewhere"), "differ in env_device ("), (("a", "empty"), "no records in 'empty'"),
                           (("a", "c"), "records of several studies (other, s)"), (("a", "d"), "no records in 'd'")):
        words = [str(tmp_path / place) for place in places]
        assert records.main(["join", *words, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert reason in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
    run, = (tmp_path / "a" / "s").iterdir()
    assert records.main(["join", str(tmp_path / "a"), "--out", str(run)]) == 2
    assert "is a run's own folder" in capsys.readouterr().err
    assert records.main(["join", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 2
    assert "in 'a'" in (said := capsys.readouterr().err) and "in 'b'" in said
    assert records.main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"records of several studies (other, s) in '{tmp_path}'" in capsys.readouterr().err


SOME = (1, 3, 6, 8)


@pytest.mark.parametrize("at", [k if k in SOME else pytest.param(k, marks=pytest.mark.long) for k in range(1, 9)])
def test_a_join_that_fails_or_is_killed_leaves_the_old_records_or_the_new(two_places, tmp_path, monkeypatch, at):
    """At each flush and rename: a full disk is one sentence; after a kill what is read is the old or the new."""
    here, small = two_places
    old, new = read_records(small), join(two_places, tmp_path / "new", every=4)
    calls = 0

    def failing(true, error):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls >= at:
                raise error
            return true(*arguments)
        return call

    killed = shutil.copytree(small, tmp_path / "killed")
    for place, error, expected in ((small, OSError(errno.ENOSPC, "full"), RecordError), (killed, Killed(), Killed)):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", failing(os.fsync, error))
            patch.setattr(files.os, "replace", failing(os.replace, error))
            if expected is Killed:
                patch.setattr(Path, "unlink", lambda *arguments, **keywords: None)
            with pytest.raises(expected, match="the disk is full" if expected is RecordError else None):
                join([here, place], place, every=4)
        found = read_records(place)
        assert_same_tables(found, old if len(found.runs) == len(old.runs) else new)
        assert_same_tables(join([here, place], place, every=4), new)
        assert not list(place.glob(".*"))


class Killed(BaseException):
    """SIGKILL's stand-in: nothing is tidied up."""


def test_a_join_on_a_disk_that_is_full_says_so(two_places, full_disk, capsys):
    here, small = two_places
    words = ["join", str(here), str(small), "--out", str(full_disk / "joined")]
    (full_disk / "other").write_bytes(b"x" * 50_000)
    assert records.main(words) == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said and said.count("\n") == 1
    assert not list((full_disk / "joined").iterdir())


@pytest.mark.long
def test_a_join_is_small_and_judged_as_before(tmp_path, kit):
    """The records that came with the kit: a third of the bytes that pandas needs, the same verdicts to 1e-6."""
    results = Path(__file__).parents[1] / "notebooks" / "results"
    runs = join([results / "table1"], tmp_path / "table1").runs
    assert sum(p.stat().st_size for p in (tmp_path / "table1").iterdir()) < 5_000 * len(runs) + 80_000
    file = results.parent / "studies" / "claims.yml"
    found = [verdict_table(verdicts).set_index(["claim", "contrast", "metric"])
             for verdicts in (kit, judge(read_claims(file), tmp_path))]
    numbers = ["estimate", "low", "high", "p_adjusted"]
    both = [table.loc[table["reason"] == "", numbers].dropna(how="all") for table in found]
    shared = both[1].index
    assert len(shared) > 20
    pd.testing.assert_frame_equal(both[0].loc[shared], both[1], rtol=0, atol=1e-6)


def test_signs_drawn_at_each_step_are_counted_and_not_exported(data, tmp_path):
    for method in ("random_flip", "periodic"):
        trained(tmp_path / "runs", data, study="s", method=method, seed=0, flip_interval=1)
    small = export(tmp_path / "runs" / "s", tmp_path / "small", most_flips=20)
    assert set(small.flips["name"]) == {"periodic"}
    counts = small.runs.set_index("name")["flips_steps"]
    assert counts["random_flip"] > 10
    assert measured(small, "random_flip", "flip_count")[0] == counts["random_flip"]
    assert np.isnan(measured(small, "random_flip", "interval_cv")[0])
    assert np.isnan(measured(small, "random_flip", "before_toggle_test_macro_f1")[0])
    assert [only_counted(run_tables(small, arm)) for arm in ("random_flip", "periodic")] == [1, 0]
    assert not len(export(tmp_path / "runs" / "s", tmp_path / "none", most_flips=0).flips)


def test_data_on_disk_trains_like_data_in_memory(tmp_path):
    made = make_data()
    opened = open_packed(write_packed(tmp_path / "fake", made))
    assert_same_record(trained(tmp_path / "a", made, epochs=1), trained(tmp_path / "b", opened, epochs=1))


def test_states_come_back_as_they_were(tmp_path):
    state = {"a": [1, 2.5, None, True, "x", (1, 2)], 3: {"t": torch.arange(3), "inf": float("inf")},
             "b": torch.tensor(float("nan")), "u": torch.get_rng_state()}
    write_state(tmp_path / "state", state)
    again = read_state(tmp_path / "state")
    assert list(again) == list(state) and again["a"] == state["a"] and again[3]["inf"] == float("inf")
    assert torch.equal(again[3]["t"], state[3]["t"]) and torch.isnan(again["b"]) and torch.equal(again["u"], state["u"])
    with pytest.raises(TypeError, match="not set at '/c'"):
        write_state(tmp_path / "state", {"c": set()})


def test_checkpoints_that_take_long_get_rarer(data, tmp_path, monkeypatch):
    """The copies that a group waits for take two runs 6 s: the next comes after 600 s and not after 60."""
    clock = [0.]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    written = []

    def slow(state):
        clock[0] += 3.
        written.append(clock[0])
        return copied(state)

    monkeypatch.setattr(runs, "copied", slow)
    monkeypatch.setattr(engine, "BLOCK_STEPS", 1)
    for _ in record([Run(make_experiment(seed=k, epochs=10), data, tmp_path) for k in range(2)]):
        clock[0] += 20.                                 # after each block: 80 of each run
    gaps = np.diff(written[::2])
    assert len(gaps) >= 2 and min(gaps) >= 600


def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    """And what is written is the state of the block that it was made after, one run's after the other's."""
    monkeypatch.setattr(engine, "BLOCK_STEPS", 1)
    monkeypatch.setattr(runs, "CHECKPOINT_SHARE", 1e9)
    whole = trained(tmp_path / "whole", data, **EVENTFUL)
    own = [Run(make_experiment(**EVENTFUL, seed=k, checkpoint_seconds=1e-9), data, tmp_path) for k in range(2)]
    release, begun, true_write = threading.Event(), [], runs.write_state

    def slow(path, state):
        begun.append(path.parent.name)
        assert release.wait(30)
        true_write(path, state)

    monkeypatch.setattr(runs, "write_state", slow)
    blocks = record(own)
    for block in blocks:
        if block.run == 0 and block.last_step == 1:
            then = {k: v.clone() for k, v in block.state()["model"].items()}
        if block.run == 1 and block.last_step == 9:
            break
    assert begun == [own[0].path.name], "one copy at a time is in memory"
    assert not list(tmp_path.glob("s/*/checkpoint.safetensors"))
    release.set()
    until = time.monotonic() + 30
    while not (own[0].path / "checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(.01)
    saved = read_state(own[0].path / "checkpoint.safetensors")["learner"]
    assert saved["step"] == 1 and all(torch.equal(saved["model"][k], then[k]) for k in then)
    blocks.close()
    assert {run.status for run in own} == {"interrupted"}
    assert read_state(own[0].path / "checkpoint.safetensors")["learner"]["step"] == 9
    for _ in record(own):
        pass
    assert_same_record(whole, own[0])


def test_a_checkpoint_that_could_not_be_written_is_said_with_a_later_block(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_STEPS", 1)
    run = Run(make_experiment(**EVENTFUL, checkpoint_seconds=1e-9), data, tmp_path)
    monkeypatch.setattr(runs, "CHECKPOINT_SHARE", 1e9)
    with monkeypatch.context() as full, pytest.raises(RecordError, match="the disk is full; what was recorded") as said:
        for block in record([run]):
            if block.last_step == 4:
                full.setattr(checkpoint, "save_file", full_disk)
            if block.last_step > 4:
                time.sleep(.05)
    assert "checkpoint.safetensors" in str(said.value) and str(said.value).isprintable()
    kept = read_state(run.path / "checkpoint.safetensors")["learner"]["step"]
    assert 1 <= kept <= 4 and not list(run.path.rglob(".*.tmp"))
    for _ in record([run]):
        pass
    assert_same_record(trained(tmp_path / "whole", data, **EVENTFUL), run)
