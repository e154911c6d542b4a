"""A disk that fails while a run is written: one sentence, and the same bits when it is there again."""

import errno
import os
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_data, make_experiment
from test_runs import EVENTFUL, FINISHED, assert_same_record, listing, trained

from fer_lib import files, locks, records
from fer_lib.files import RecordError
from fer_lib.records import read_records, read_result
from fer_lib.runs import Run, record

pytestmark = pytest.mark.usefixtures("short_resnet")
SETTINGS = {**EVENTFUL, "checkpoint_seconds": 0.}
POINTS = int(os.environ.get("FER_DISK_POINTS", 5))
FAULTS = [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"),
          (errno.EROFS, "Read-only file system"), (errno.EIO, "Input/output error"),
          (errno.ESTALE, "Stale file handle"), (errno.EACCES, "Permission denied")]


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def whole(data, tmp_path) -> Run:
    return trained(tmp_path / "whole", data, **SETTINGS)


def test_whichever_write_fails_the_run_goes_on_to_the_same_bits(data, whole, tmp_path, monkeypatch):
    """From some flush, rename or link on everything fails: full, read-only, quota, a lost file server."""
    calls, broken = 0, (10 ** 9, 0)
    true = {"replace": os.replace, "fsync": os.fsync, "link": os.link}

    def failing(name):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls >= broken[0]:
                raise OSError(broken[1], os.strerror(broken[1]))
            return true[name](*arguments)
        return call

    for name in true:
        monkeypatch.setattr(files.os, name, failing(name))
    list(record([Run(make_experiment(**SETTINGS), data, tmp_path / "counted")]))
    total, calls = calls, 0
    for k, at in enumerate(np.linspace(1, total - 1, POINTS).astype(int)):
        number, reason = FAULTS[k % len(FAULTS)]
        folder, calls, broken = tmp_path / f"fails{k}", 0, (at, number)
        with pytest.raises(RecordError) as caught:
            list(record([Run(make_experiment(**SETTINGS), data, folder)]))
        sentence, = caught.value._render_traceback_()
        assert reason in sentence and "what was recorded before is kept" in sentence and "\n" not in sentence
        assert str(tmp_path) not in sentence
        broken = (10 ** 9, 0)
        run = Run(make_experiment(**SETTINGS), data, folder)
        list(record([run]))
        assert_same_record(whole, run)
        assert listing(run) == FINISHED


def test_a_directory_removed_before_a_checkpoint_is_not_made_again(data, tmp_path):
    """Half a run would be left, which nobody could take up."""
    run = Run(make_experiment(**SETTINGS), data, tmp_path)
    with pytest.raises(RecordError, match="has lost its directory"):
        for _ in record([run]):
            shutil.rmtree(run.path)
    assert not run.path.exists()


def test_a_clock_that_jumps_changes_nothing(data, whole, tmp_path, monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(-1e9, 4e9))
    run = Run(make_experiment(**SETTINGS), data, tmp_path / "jumps")
    list(record([run]))
    assert_same_record(whole, run)


def test_readers_never_see_half_a_file_also_where_renames_take_their_time(data, tmp_path, monkeypatch):
    """As on a file server: a new file appears some time after it was written."""
    true_replace, seen, ended = os.replace, [], threading.Event()

    def slow(source, target):
        time.sleep(.01)
        true_replace(source, target)

    monkeypatch.setattr(files.os, "replace", slow)
    run = Run(make_experiment(**SETTINGS), data, tmp_path)

    def read() -> None:
        other = Run(run.experiment, data, tmp_path)
        while not ended.is_set():
            if (run.path / "result.json").exists():
                read_result(run.path / "result.json")
                other.reload()
                locks.newest(run.path / "lock")
                if other.status == "running":
                    steps = other.history["step"].tolist() if (run.path / "log" / "steps.json").exists() else []
                    assert steps == list(range(1, len(steps) + 1))
                    seen.append(len(steps))

    failures = []
    reader = threading.Thread(target=lambda: failures.extend(_raised(read)))
    reader.start()
    list(record([run]))
    ended.set()
    reader.join()
    assert not failures and len(set(seen)) > 1, (failures, seen)


@pytest.fixture
def going(monkeypatch):
    """A function: a folder of this name is gone in the moment in which it would be looked into."""
    true_scandir, names = os.scandir, set()

    def scandir(path="."):
        if not isinstance(path, int) and Path(path).name in names:      # rmtree's own are descriptors
            shutil.rmtree(path, ignore_errors=True)
        return true_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return names.add


def test_a_study_is_found_while_its_runs_finish(data, tmp_path, going):
    """A run that finishes clears its log and lock away; one that begins has no result yet."""
    run = Run(make_experiment(**SETTINGS), data, tmp_path)
    list(record([run]))
    begun = run.path.with_name("begun")
    (begun / "log").mkdir(parents=True)
    for name in ("log", locks.LOCK):
        (run.path / name).mkdir(exist_ok=True)
        going(name)
    assert files.results_below(tmp_path) == [run.path / "result.json"]
    assert list(read_records(tmp_path).runs["id"]) == [run.id] and not (begun / "log").exists()
    assert locks.newest(run.path / locks.LOCK) == (0, None)


def test_a_run_that_moves_aside_while_a_study_is_read_is_left_out(data, tmp_path, monkeypatch):
    runs = [Run(make_experiment(**SETTINGS, seed=seed), data, tmp_path) for seed in (1, 2)]
    list(record(runs))
    found = files.results_below(tmp_path)
    runs[0].move_aside()
    monkeypatch.setattr(records, "results_below", lambda folder: found)
    assert list(read_records(tmp_path).runs["id"]) == [runs[1].id]


def _raised(function) -> list[Exception]:
    try:
        function()
    except Exception as error:
        return [error]
    return []
