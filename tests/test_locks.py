"""One process trains a run: among processes that start together, after crashes, between machines, on disks like NFS."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import CPU, make_data, make_experiment, write_packed
from test_runs import FINISHED, assert_same_record, in_another_process, listing, started, trained

import fer_lib
from fer_lib import locks
from fer_lib.data import open_packed
from fer_lib.files import RecordError
from fer_lib.groups import train_group
from fer_lib.kernels import BUSY
from fer_lib.locks import Busy, Holder, RunLock
from fer_lib.runs import Run, record
from fer_lib.steering import Command

ELSEWHERE = dict(host="node7", machine="another boot", pid=4711, begun=99, since="2026-01-01 10:00:00 +0000")


@pytest.fixture(autouse=True)
def impatient(short_resnet, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", .05)
    monkeypatch.setattr(locks, "PROOF", .3)


def held_by(run: Path, age: float, number: int = 3, **holder) -> Path:
    """A lock as another process left it, last touched `age` seconds ago."""
    path = run / "lock" / f"{number:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(Holder.here(), **holder))))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_the_same_run_started_twice_is_trained_once(tmp_path):
    """Another process trains; this one is told so, and finds the finished run afterwards."""
    packed = write_packed(tmp_path / "packed", make_data())
    (wait := tmp_path / "runs.wait").touch()
    data = open_packed(packed)
    process = in_another_process(packed, tmp_path / "runs", {"epochs": 2})
    while int(process.stdout.readline()) < 11:
        pass
    run = Run(make_experiment(epochs=2), data, tmp_path / "runs")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(Busy) as caught:
        list(record([run]))
    sentence, = caught.value._render_traceback_()
    assert f"'{run.path.name}' is being trained by process {process.pid} on '" in sentence and "\n" not in sentence
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    failed = train_group([run, Run(make_experiment(epochs=1), data, tmp_path / "runs")], CPU, lambda line: None)
    assert failed == {0: BUSY}                                      # the scheduler looks at it again later
    wait.unlink()
    assert process.wait(60) == 0, process.stderr.read()
    assert list(record([run])) == [] and run.finished and listing(run) == FINISHED
    assert_same_record(run, trained(tmp_path / "alone", data, epochs=2))


RACE = """
import os, sys, time
from pathlib import Path
from fer_lib import locks
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for k in range(rounds):
    run = folder / f"run{k}"
    if k % 3:                                       # a dead process holds it, or it was released before
        dead = os.fork()
        if not dead:
            lock = locks.RunLock(run)
            if k % 3 == 1:
                lock.release()
            os._exit(0)
        os.waitpid(dead, 0)
    begin, children = time.time() + .02, []
    for child in range(6):
        children.append(os.fork())
        if not children[-1]:
            time.sleep(max(0, begin - time.time()))
            try:
                locks.RunLock(run)
            except locks.Busy as busy:
                os._exit(0 if "being trained" in str(busy) else 9)
            while not (run / "over").exists():      # it lives until all others have asked
                time.sleep(.01)
            os._exit(7)
    ended, deadline = {}, time.monotonic() + 20
    while len(ended) < 5 and time.monotonic() < deadline:
        time.sleep(.005)
        for pid in set(children) - set(ended):
            done, status = os.waitpid(pid, os.WNOHANG)
            ended |= {pid: os.waitstatus_to_exitcode(status)} if done else {}
    (run / "over").touch()
    ended |= {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in set(children) - set(ended)}
    assert sorted(ended.values()) == [0] * 5 + [7], (k, ended)
"""


def test_of_processes_that_start_in_one_moment_one_gets_the_run(tmp_path):
    """Six at once, on a run that is new, was left, or whose process died."""
    rounds = os.environ.get("FER_RACES", "12")
    subprocess.run([sys.executable, "-c", RACE, str(tmp_path), rounds], check=True, timeout=50 + 2 * int(rounds),
                   env={**os.environ, "PYTHONPATH": str(Path(fer_lib.__file__).parents[1])})


def test_a_killed_process_holds_nothing_but_a_stopped_one_does(tmp_path):
    script = "import sys, time; from pathlib import Path; from fer_lib.locks import RunLock\n" \
             "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(Path(fer_lib.__file__).parents[1])})
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)                             # its sign of life is old, and yet it isn't dead
    os.utime(tmp_path / "run" / "lock" / "000001.json", (0, 0))
    with pytest.raises(Busy, match=f"process {process.pid} on"):
        RunLock(tmp_path / "run")
    process.kill()
    process.wait()
    lock = RunLock(tmp_path / "run")
    assert lock.number == 2 and [p.name for p in lock.folder.iterdir()] == ["000002.json"]
    lock.release()


# --- another machine ---


def test_another_machine_that_lives_is_named_at_once(tmp_path):
    held_by(tmp_path / "run", age=10, **ELSEWHERE)
    with pytest.raises(Busy) as caught:
        RunLock(tmp_path / "run")
    assert "'run' is being trained by process 4711 on 'node7' (since 2026-01-01 10:00:00 +0000)" in str(caught.value)
    assert "if that machine is gone, start again in 5" in str(caught.value)
    assert [p.name for p in (tmp_path / "run" / "lock").iterdir()] == ["000003.json"]


@pytest.mark.parametrize("age", [3600., -3600.])
def test_clocks_that_differ_take_no_run_away(tmp_path, age):
    """By its time the lock is an hour old, or from the future. Touched again and again it is alive; silent it isn't."""
    path, ended = held_by(tmp_path / "run", age, **ELSEWHERE), threading.Event()

    def beat() -> None:
        k = 0
        while not ended.wait(.05):
            k += 1
            os.utime(path, (time.time() - age + k, time.time() - age + k))

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(Busy, match="being trained by process 4711 on 'node7'"):
            RunLock(tmp_path / "run")
    finally:
        ended.set()
        beating.join()
    os.utime(path, (time.time() - age,) * 2)
    lock = RunLock(tmp_path / "run")
    assert lock.number == 4 and not path.exists()
    lock.release()


def test_who_was_suspended_while_it_watched_takes_no_run_away(tmp_path, monkeypatch):
    """The time that passed meanwhile is no proof: the other machine had been suspended as well, and beats again."""
    path, looks, true_touched = held_by(tmp_path / "run", 3600., **ELSEWHERE), [], locks._touched

    def touched(asked: Path) -> float:
        if asked == path:
            looks.append(asked)
            if len(looks) == 2:
                monkeypatch.setattr(locks, "_now", lambda: 1e9)
            if len(looks) == 4:
                os.utime(path)
        return true_touched(asked)

    monkeypatch.setattr(locks, "_touched", touched)
    with pytest.raises(Busy, match="being trained by process 4711 on 'node7'"):
        RunLock(tmp_path / "run")
    assert len(looks) == 4


def test_a_process_that_was_taken_over_writes_nothing_more(tmp_path):
    """It was suspended for so long that another machine went on; then it wakes."""
    data = make_data()
    run = Run(make_experiment(epochs=3), data, tmp_path)
    with pytest.raises(RecordError, match="was taken over by another process.*writes nothing more"):
        for block in record([run]):
            if block.epoch == 1:
                held_by(run.path, age=0, number=2, **ELSEWHERE)
                left = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
                time.sleep(.2)                                      # a sign of life is due
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == left


def test_a_directory_removed_while_it_trains_is_one_sentence(tmp_path):
    run = Run(make_experiment(epochs=3), make_data(), tmp_path)
    with pytest.raises(RecordError, match=f"'{run.path.name}' has lost its directory") as caught:
        for block in record([run]):
            if block.epoch == 1:
                shutil.rmtree(run.path)
                time.sleep(.2)
    assert len(caught.value._render_traceback_()) == 1 and not run.path.exists()
    again = Run(run.experiment, run.data, tmp_path)
    list(record([again]))
    assert again.finished


# --- disks ---


def test_a_link_that_nfs_reports_as_failed_counts(tmp_path, monkeypatch):
    """The answer to the first request was lost, and the request sent again."""
    true_link = os.link

    def link(source, target):
        true_link(source, target)
        raise FileExistsError

    monkeypatch.setattr(locks.os, "link", link)
    lock = RunLock(tmp_path / "run")
    assert lock.number == 1
    lock.release()


def test_a_disk_without_links_excludes_as_well(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(locks.os, "link", link)
    lock = RunLock(tmp_path / "run")
    taken = []
    other = threading.Thread(target=lambda: taken.append(pytest.raises(Busy, RunLock, tmp_path / "run")))
    other.start()
    other.join()
    assert len(taken) == 1
    lock.release()
    RunLock(tmp_path / "run").release()


def test_half_a_lock_file_is_somebodys(tmp_path):
    path = held_by(tmp_path / "run", age=1)
    path.write_text("")
    with pytest.raises(Busy, match="being trained by another process"):
        RunLock(tmp_path / "run")


def test_a_disk_that_cant_be_written_is_one_sentence(tmp_path, monkeypatch):
    def mkdir(*arguments, **keywords):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RecordError, match="can't write 'run/lock': Read-only file system"):
        RunLock(tmp_path / "run")


# --- one process ---


def test_a_loop_that_was_left_open_doesnt_keep_the_run(tmp_path):
    """In a notebook a cell that failed keeps its loop alive. The cell run again goes on, the old loop is dead."""
    data = make_data()
    whole = trained(tmp_path / "whole", data)
    run = Run(make_experiment(), data, tmp_path / "runs")
    left = record([run])
    next(left)
    again = Run(run.experiment, data, tmp_path / "runs")
    going = record([again])
    next(going)
    with pytest.raises(RecordError, match="was started again in this process"):
        list(left)
    list(going)
    assert_same_record(whole, again)
    assert listing(again) == FINISHED


def test_an_interrupted_run_is_free_and_so_is_one_that_failed_to_start(tmp_path):
    data = make_data()
    run = started(tmp_path, data, 1)
    assert [p.read_text() for p in (run.path / "lock").iterdir()] == ["{}\n"]
    (run.path / "checkpoint.safetensors").write_text("x")
    with pytest.raises(RecordError, match="is damaged"):
        list(record([Run(run.experiment, data, tmp_path)]))
    assert [p.read_text() for p in (run.path / "lock").iterdir()] == ["{}\n"]


def test_a_steered_run_keeps_its_lock_and_frees_the_place(tmp_path):
    data = make_data()
    run = Run(make_experiment(epochs=2), data, tmp_path)
    steered = record([run])
    next(steered)
    run.steering.send(Command("lr", value=.01))
    next(steered)
    assert run.steered and [p.name for p in (run.path / "lock").iterdir()] == ["000001.json"]
    plain = trained(tmp_path, data, epochs=2)
    list(steered)
    assert plain.finished and run.finished and plain.path != run.path and listing(run) == FINISHED | {"events.parquet"}


# --- who is alive ---


@pytest.mark.parametrize(("state", "flags", "begun"), [
    ("R", 0x400000, 12345), ("S", 0x400140, 12345), ("Z", 0x40844c, -1), ("X", 0, -1), ("R", 0x400004, -1),
    ("D", 4, -1)])
def test_a_process_that_ends_is_dead(state, flags, begun):
    """Lines of proc(5): the name may hold anything."""
    fields = [7, 7, 7, 0, -1, flags, *[0] * 12, 12345, 99]
    assert locks._begun_of(f"4711 (a) R (b {state} Z) {state} {' '.join(map(str, fields))}\n") == begun
    assert locks._begun(os.getpid()) > 0


def test_a_killed_process_is_dead_as_soon_as_its_connections_are_closed():
    """So that whoever goes on with its run because of that gets the lock."""
    program = "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(60,)).start()\n" \
              "print('x', flush=True)\ntime.sleep(60)"
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert locks._begun(process.pid) > 0
            process.kill()
            process.stdout.read()
            assert locks._begun(process.pid) == -1
