"""Runs that share a GPU: which together, what happens when memory runs out or one diverges, and processes that die."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripted_runs
import torch
from conftest import CPU, make_data, make_experiment, short, write_packed
from hypothesis import given
from hypothesis import strategies as st
from test_runs import assert_same_record, trained

from fer_lib import engine, groups, scheduling, sharing, studies
from fer_lib.cluster import start_here
from fer_lib.experiment import Experiment
from fer_lib.groups import OUT_OF_MEMORY, Fit, kind, measure_fit, plan_groups, train_group
from fer_lib.locks import LOCK, newest
from fer_lib.runs import Run, open_run
from fer_lib.scheduling import Batch, Job, measured_groups
from fer_lib.sharing import Crowded, devices_of
from fer_lib.workspace import Workspace

pytestmark = pytest.mark.usefixtures("short_resnet")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


# --- which runs together ---


def test_runs_of_one_length_fill_groups_of_the_measured_size():
    fits = {"a": Fit(16, .01, 0)}
    found = plan_groups([("a", 100)] * 30, fits, 1)
    assert [len(g) for g in found] == [15, 15] and sorted(sum(found, [])) == list(range(30))


def test_groups_are_spread_over_the_devices():
    fits = {"a": Fit(16, .01, 0)}
    sizes = lambda count, devices: [len(g) for g in plan_groups([("a", 100)] * count, fits, devices)]   # noqa: E731
    assert sizes(30, 2) == [15, 15] and sizes(4, 4) == [1, 1, 1, 1] and sizes(16, 1) == [16]
    assert sizes(40, 2) == [10, 10, 10, 10]


def test_long_runs_go_first_and_with_others_as_long():
    fits = {"large": Fit(2, .1, 0), "small": Fit(8, .01, 0)}
    runs = [("small", 50), ("large", 100)] * 4
    found = plan_groups(runs, fits, 1)
    assert [[runs[n][0] for n in g] for g in found] == [["large"] * 2, ["large"] * 2, ["small"] * 4]


def test_a_group_with_room_takes_runs_of_another_kind():
    fits = {"large": Fit(2, .1, 0), "small": Fit(8, .01, 0)}
    runs = [("large", 100), *[("small", 50)] * 4]
    assert plan_groups(runs, fits, 1) == [[0, 1, 2, 3, 4]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), min_size=1, max_size=60), st.integers(1, 8),
       st.tuples(*[st.sampled_from([1, 2, 4, 8, 16, 32])] * 3))
def test_each_run_is_in_one_group_and_no_group_is_too_large(runs, devices, sizes):
    fits = {k: Fit(size, .01 * size, 0) for k, size in zip("abc", sizes)}
    found = plan_groups(runs, fits, devices)
    assert Counter(n for g in found for n in g) == Counter(range(len(runs)))
    assert all(len(g) == 1 or sum(1 / fits[runs[n][0]].size for n in g) <= 1 + 1e-6 for g in found)


def test_runs_of_one_kind_differ_in_seed_method_and_length_only():
    same = [make_experiment(seed=3), make_experiment(method="dynamic", w0=.2), make_experiment(epochs=9, lr=.1)]
    assert len({kind(e, "x") for e in same}) == 1
    others = [make_experiment(batch_size=4), make_experiment(width=.1), make_experiment(precision="fp64")]
    assert len({kind(e, "x") for e in [*same, *others]} | {kind(same[0], "y")}) == 5


def test_only_runs_for_a_gpu_are_shared_out(monkeypatch):
    run = lambda device: type("R", (), {"experiment": make_experiment(device=device)})()      # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_of([run("auto")]) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of([run("auto"), run("cuda")]) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of([run("cuda:1")]) == ["cuda:1"] and devices_of([run("cuda"), run("cpu")]) == []


# --- trouble within a group ---


def runs_in(folder: Path, data, count: int = 4, **settings) -> list[Run]:
    return [Run(make_experiment(seed=k, method="dropout", checkpoint_seconds=0., **settings), data, folder)
            for k in range(count)]


@pytest.fixture
def scarce(monkeypatch):
    """A device with room for `room` learners: a step of more of them fails in the second epoch. left: how many learners
    of the groups before lived when the next group began.
    """
    alive: list[int] = []
    record, advance = groups.record, engine.Learner.advance

    def counted(runs, device):
        if alive:                                       # the first group may find those of earlier tests
            limited.left += sum(type(o) is engine.Learner for o in gc.get_objects())
        alive.append(len(runs))
        yield from record(runs, device)

    def limited(self):
        if alive[-1] > limited.room and self.step >= 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(self)

    limited.room, limited.left = 2, 0
    monkeypatch.setattr(groups, "record", counted)
    monkeypatch.setattr(engine.Learner, "advance", limited)
    limited.tried = alive
    return limited


def test_out_of_memory_makes_smaller_groups_and_loses_nothing(scarce, tmp_path):
    data, said = make_data(), []
    runs = runs_in(tmp_path / "together", data)
    assert train_group(runs, CPU, said.append) == {}
    assert scarce.tried == [4, 2, 2] and not scarce.left
    assert "the GPU's memory is too small for 4 runs together: 2 at a time now" in said
    scarce.room = 9
    for run in runs:
        assert_same_record(run, trained(tmp_path / "alone", data, method="dropout", checkpoint_seconds=0.,
                                        seed=run.experiment.seed))


def test_a_run_too_large_for_the_gpu_alone_fails_by_itself(scarce, tmp_path):
    scarce.room = 0
    runs = runs_in(tmp_path, make_data(), 2)
    assert train_group(runs, CPU, lambda line: None) == {0: OUT_OF_MEMORY, 1: OUT_OF_MEMORY}
    assert scarce.tried == [2, 1, 1] and not scarce.left and {run.status for run in runs} == {"interrupted"}


def test_a_run_that_diverges_leaves_the_group_and_the_others_go_on(tmp_path):
    data = make_data()
    runs = runs_in(tmp_path / "group", data, 2)
    runs.append(Run(make_experiment(seed=9, lr=1e3, optimizer="sgd"), data, tmp_path / "group"))
    failed = train_group(runs, CPU, lambda line: None)
    assert list(failed) == [2] and "has diverged" in failed[2] and runs[2].status == "failed"
    for run in runs[:2]:
        assert run.finished
        assert_same_record(run, trained(tmp_path / "alone", data, method="dropout", checkpoint_seconds=0.,
                                        seed=run.experiment.seed))


# --- processes ---


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    write_packed(tmp_path / "packed" / "tiny", make_data())
    return Workspace(Path(__file__).parents[1], tmp_path / "packed", tmp_path / "runs")


def opened(workspace: Workspace, count: int = 4, **settings) -> list[Run]:
    return [open_run(make_experiment(data="tiny", study="s", seed=k, **settings), workspace) for k in range(count)]


@pytest.mark.long
def test_each_device_has_a_worker_that_trains_its_groups_and_goes_on_after_it_died(workspace, monkeypatch):
    """One is killed in mid-run: its group goes on from its checkpoints, on a worker that Dask starts anew. One run
    diverges, and the other of its group goes on.
    """
    monkeypatch.setattr(scheduling, "execute", scripted_runs.finished_before)
    diverging = open_run(make_experiment(data="tiny", study="s", seed=9, lr=1e3, optimizer="sgd"), workspace)
    runs, said, killed = [*opened(workspace, 3, epochs=20, checkpoint_seconds=0.), diverging], [], []

    def kill() -> None:
        while not (runs[0].path / "checkpoint.safetensors").exists():
            time.sleep(.01)
        killed.append(newest(runs[0].path / LOCK)[1].pid)
        os.kill(killed[0], signal.SIGKILL)

    here = start_here(workspace, 1, ["cpu:0", "cpu:1"])
    try:
        assert (here.slots("GPU"), here.slots("KERNEL")) == (2, 1)
        groups_found = measured_groups(runs, here, 2, 2, said.append)
        assert said == ["3 runs of one kind, 2 at a time on a GPU", "1 runs of one kind, 2 at a time on a GPU"]
        threading.Thread(target=kill, daemon=True).start()
        outcomes = {o.run.experiment.seed: o.sentence for o in Batch(here, said.append).outcomes(runs, groups_found)}
    finally:
        here.close()
    assert killed and outcomes[0] == outcomes[1] == outcomes[2] == "" and "has diverged" in outcomes[9]
    assert all(run.finished and len(run.history) == run.result["steps"] == 160 for run in runs[:3])
    assert 2 in {run.result["runs_together"] for run in runs[:3]}


@pytest.mark.long
def test_where_earlier_work_keeps_the_memory_runs_go_on_in_a_new_process(workspace, monkeypatch):
    """And one that is too large for any process fails, by itself."""
    monkeypatch.setattr(scheduling, "execute", scripted_runs.finished_before)
    monkeypatch.setattr(scheduling, "train_on_worker", scripted_runs.room_for_one_group)
    monkeypatch.setattr(scheduling, "fit_on_worker", scripted_runs.no_fit)
    runs = [*opened(workspace, 3), open_run(make_experiment(data="tiny", study="s", seed=9), workspace)]
    said: list[str] = []
    here = start_here(workspace, 1, ["cpu:0"])
    try:
        assert measured_groups(runs, here, 1, 0, said.append) == [[0], [1], [2], [3]]
        ended = list(Batch(here, said.append).outcomes(runs, [[0], [1, 2, 3]]))
    finally:
        here.close()
    assert said[0] == f"baseline: how many train together could not be measured ({OUT_OF_MEMORY})"
    assert {o.run.experiment.seed: o.sentence for o in ended} == {0: "", 1: "", 2: "", 9: OUT_OF_MEMORY}
    assert all(run.finished for run in runs[:3])
    tried = [line.split(",")[0] for line in said if line.startswith("no memory")]
    processes = [(run.path / "processes").read_text().split() for run in runs[:2]]
    assert tried == ["no memory for 3 runs"] and len(set(processes[1])) == 2, (said, processes)
    assert len(processes[0]) == 1, "what ended is not begun again in the new process"


def test_a_process_that_met_finished_runs_only_is_as_new(workspace, monkeypatch):
    runs = opened(workspace, 1, epochs=1)
    monkeypatch.setattr(sharing, "get_worker", lambda: SimpleNamespace(name="cpu:0", address="tcp://a"))
    monkeypatch.setattr(sharing, "leaving", lambda stop: nullcontext(threading.Event()))
    monkeypatch.setattr(sharing, "_used", False)
    work = [run.experiment for run in runs]
    assert sharing.train_on_worker(work, workspace) == {} and sharing._used
    sharing._used = False
    assert sharing.train_on_worker(work, workspace) == {} and not sharing._used


def test_without_a_new_process_runs_that_find_no_memory_fail_by_themselves(workspace):
    runs, future = opened(workspace, 2), Future()
    future.set_exception(Crowded("tcp://a", {1: OUT_OF_MEMORY}))
    batch = Batch(SimpleNamespace(renew=lambda address: False), lambda line: None)
    ended = {o.run.experiment.seed: o.sentence for o in batch._take(future, Job(runs, group=True))}
    assert ended == {0: "the work ended and the run is new", 1: OUT_OF_MEMORY}


# --- the batch command ---

ON_CPUS = """
if __name__ == "__mp_main__":
    from fer_lib.batch import leave_signals_to_batch
    leave_signals_to_batch()
if __name__ == "__main__":
    import sys
    import scripted_runs
    from fer_lib import scheduling, studies
    scheduling.execute = scripted_runs.finished_before
    studies.devices_of = lambda runs: ["cpu:0"]
    sys.exit(studies.main(sys.argv[1:]))
"""
STUDY = """
study: s
settings: {{data: tiny, width: 0.05, batch_size: 8, lr: 1e-3, epochs: {epochs}, device: cpu, checkpoint_seconds: 0}}
arms: {{baseline: {{}}, dropout: {{method: dropout}}}}
seeds: 1
"""


def environment(workspace: Workspace) -> dict[str, str]:
    return {"FER_PACKED": str(workspace.packed), "FER_RUNS": str(workspace.runs), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{workspace.root}:{workspace.root / 'tests'}"}


def study_on_cpus(workspace: Workspace, epochs: int) -> subprocess.Popen:
    """The batch command where "GPUs" are CPUs."""
    folder = workspace.runs.parent
    (folder / "batch.py").write_text(ON_CPUS)
    (folder / "study.yml").write_text(STUDY.format(epochs=epochs))
    command = [sys.executable, str(folder / "batch.py"), str(folder / "study.yml"), "--workers", "2", "--together", "2"]
    return subprocess.Popen(command, env={**os.environ, **environment(workspace)}, cwd=workspace.root,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_study_in_groups_leaves_records_notebooks_and_the_table(workspace, monkeypatch, capfd):
    monkeypatch.setattr(scheduling, "execute", scripted_runs.finished_before)
    monkeypatch.setattr(studies, "devices_of", lambda runs: ["cpu:0"])
    for name, value in environment(workspace).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workspace.root)
    (workspace.runs.parent / "study.yml").write_text(STUDY.format(epochs=2))
    assert studies.main([str(workspace.runs.parent / "study.yml"), "--workers", "2", "--together", "2"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "2 to train, on cpu:0" in out and "[2/2]" in out and "baseline " in out.split("[2/2]")[1]
    for path in (workspace.runs / "s").iterdir():
        result = json.loads((path / "result.json").read_text())
        assert result["status"] == "finished" and result["runs_together"] == 2
        assert (path / "notebook.ipynb").read_text() == "shown: finished"


@pytest.mark.long
def test_a_group_that_is_interrupted_is_checkpointed_and_goes_on(workspace):
    process = study_on_cpus(workspace, 2000)
    deadline = time.monotonic() + 120
    while not list(workspace.runs.glob("s/dropout*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; finished runs are kept" in err and "Traceback" not in err
    results = [json.loads((path / "result.json").read_text()) for path in (workspace.runs / "s").iterdir()]
    assert {r["status"] for r in results} == {"interrupted"} and all(r["step"] > 0 for r in results)


# --- on a GPU ---


@pytest.mark.gpu
@needs_gpu
def test_the_fit_counts_memory_and_stops_where_it_would_be_full(monkeypatch):
    data, e = make_data(sizes={"train": 512, "val": 64}, side=48), Experiment(batch_size=32, width=.25)
    device = torch.device("cuda:0")
    monkeypatch.setattr(groups, "GAIN", 0.)             # whatever else this GPU does now

    def reserved() -> int:
        torch._C._cuda_clearCublasWorkspaces()          # two a stream, 64 MiB on an H200: the next on it takes them
        groups.free_memory()
        return torch.cuda.memory_reserved()

    before = reserved()                                 # by tests that ran in this process
    found = measure_fit(e, data, device, 8)
    assert found.size == 8 and found.step_seconds > 0 and found.bytes > 2 ** 20
    assert reserved() < before + 64 * 2 ** 20, "nothing stays behind"
    monkeypatch.setattr(groups, "MEMORY", 3 * found.bytes / torch.cuda.mem_get_info(device)[1])
    assert measure_fit(e, data, device, 8).size <= 2


def train_in_3_gib(place: Path) -> None:
    """Four runs of about a GiB, in a process that may have 3 GiB."""
    short(pytest.MonkeyPatch())
    device = torch.device("cuda:0")
    torch.cuda.set_per_process_memory_fraction(3 * 2 ** 30 / torch.cuda.mem_get_info(device)[1], device)
    data = make_data(sizes={"train": 512, "val": 64}, side=112)
    runs = [Run(Experiment(study="s", seed=k, batch_size=256, epochs=2, checkpoint_seconds=0.), data, place)
            for k in range(4)]
    said: list[str] = []
    assert train_group(runs, device, said.append) == {}
    assert any("too small for 4 runs together: 2 at a time now" in line for line in said)
    assert all(run.finished for run in runs) and {run.result["runs_together"] for run in runs} <= {1, 2}


@pytest.mark.gpu
@needs_gpu
def test_real_memory_pressure_makes_the_group_smaller(tmp_path):
    """A process of its own: a bound counts what earlier tests leave, as cuBLAS's workspaces of each stream."""
    process = multiprocessing.get_context("spawn").Process(target=train_in_3_gib, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
