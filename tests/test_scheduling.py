"""A study's runs on real Dask workers that are killed, leave and come back; what the runs do is scripted."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import scripted_runs
from conftest import free_port, make_data, make_experiment, write_packed

from fer_lib import cluster, scheduling
from fer_lib.cluster import Cluster, ClusterError, connect, differences, start_here, traits
from fer_lib.kernels import BUSY, DIED
from fer_lib.runs import Run, open_run
from fer_lib.scheduling import Batch, Job, Outcome
from fer_lib.workspace import Workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    write_packed(tmp_path / "packed" / "tiny", make_data())
    return Workspace(ROOT, tmp_path / "packed", tmp_path / "runs")


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr(scheduling, "execute", scripted_runs.execute)
    monkeypatch.setattr(scheduling, "LOOK_SECONDS", (.5, 1.))


def runs_of(workspace: Workspace, *names: str) -> list[Run]:
    return [open_run(make_experiment(data="tiny", study="s", name=name, seed=k), workspace)
            for k, name in enumerate(names)]


def trained(cluster: Cluster, runs: list[Run], said: list[str]) -> dict[str, Outcome]:
    """Outcomes by name and seed, each run has one."""
    try:
        found = list(Batch(cluster, said.append).outcomes(runs))
    finally:
        cluster.close()
    assert len(found) == len(runs) == len({id(o.run) for o in found})
    return {f"{o.run.experiment.name}{o.run.experiment.seed}": o for o in found}


def wait_for(condition, seconds: float = 40.) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(.05)


def no_step_twice(runs: list[Run]) -> bool:
    return all((run.path / "steps").read_text().split() == [str(k + 1) for k in range(scripted_runs.steps(run.path))]
               for run in runs)


# --- on this machine ---


def test_workers_that_die_cost_nothing_and_what_kills_them_is_given_up(workspace):
    """One run kills its worker once, one each time, one's kernel dies each time, one fails: the others finish."""
    runs, said = runs_of(workspace, "good", "poison", "once", "good", "dies", "diverges"), []
    here = start_here(workspace, 2, [])
    assert here.address.startswith("tcp://127.0.0.1:")
    assert all(w["host"] == "127.0.0.1" for w in here.workers().values()) and here.slots("KERNEL") == 2
    found = trained(here, runs, said)
    assert {name for name, o in found.items() if o.status == "finished"} == {"good0", "once2", "good3"}
    assert "its worker died each time" in found["poison1"].sentence and "given up" in found["poison1"].sentence
    assert found["dies4"].sentence.startswith(f"{DIED} {scheduling.ATTEMPTS} times")
    assert found["diverges5"].sentence == "Diverged: the loss is nan"
    assert no_step_twice(runs)
    starts = {name: scripted_runs.lines(o.run.path / "starts") for name, o in found.items()}
    assert cluster.DEATHS <= scripted_runs.steps(runs[1].path) <= 2 * cluster.DEATHS
    assert starts["dies4"] >= scheduling.ATTEMPTS
    assert starts["once2"] >= 2
    assert sum("tried once more at the end, alone" in line for line in said) >= 1


@pytest.mark.long
def test_what_ended_is_not_begun_again_where_its_worker_dies_later(workspace):
    runs = runs_of(workspace, "good", "slow", "slow", "slow")
    here = start_here(workspace, 2, [])

    def kill() -> None:
        wait_for(lambda: scripted_runs.steps(runs[2].path))     # it has the first run's worker
        os.kill(int((runs[2].path / "starts").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    found = trained(here, runs, [])
    thread.join()
    assert all(o.status == "finished" for o in found.values()) and no_step_twice(runs)
    assert [scripted_runs.lines(run.path / "starts") for run in runs] == [1, 1, 2, 1]
    assert (runs[0].path / "starts").read_text() == (runs[2].path / "starts").read_text().splitlines(True)[0]


def test_a_batch_that_is_left_waits_until_all_have_stopped(workspace):
    runs = runs_of(workspace, "good", "slow", "slow", "slow")
    here = start_here(workspace, 2, [])
    with closing(Batch(here, print).outcomes(runs)) as outcomes:
        assert next(outcomes).run is runs[0]
        wait_for(lambda: scripted_runs.steps(runs[1].path))
    found = [scripted_runs.status(run.path) for run in runs]
    assert found[0] == "finished" and found.count("interrupted") in (1, 2) and "running" not in found
    assert found[3] == "new", "nothing was begun after that"
    assert here.client.status == "closed"


def test_two_batches_at_once_train_no_run_twice(workspace, monkeypatch):
    pytest.importorskip("fer_lib.locks")
    monkeypatch.setattr(scheduling, "TICK_SECONDS", .02)
    names = ("slow", "good", "slow", "good", "good")
    both, said = [runs_of(workspace, *names), runs_of(workspace, *names)], [[], []]
    found: list[dict] = [{}, {}]
    heres = [start_here(workspace, 1, []) for _ in both]
    work = lambda k: found[k].update(trained(heres[k], both[k], said[k]))                   # noqa: E731
    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert [{o.status for o in part.values()} for part in found] == [{"finished"}] * 2
    assert no_step_twice(both[0]) and all(len(part) == len(names) for part in found)
    assert any(BUSY in line for line in said[0] + said[1])


def test_a_run_that_another_process_trains_is_looked_at_again_and_ends_as_that_one_does(workspace):


    run, = runs_of(workspace, "good")
    batch = Batch(None, lambda line: None)
    job = Job([run])
    for _ in range(2):
        assert list(batch._settle(job, BUSY)) == []
        (when, job), = batch.elsewhere
        batch.elsewhere.clear()
        assert when > time.monotonic()
    assert job.pause == 1. and not batch.waiting
    run.path.mkdir(parents=True)
    scripted_runs.write(run.path, "finished")
    outcome, = batch._settle(job, "")
    assert outcome.status == "finished"


def test_a_group_that_kills_its_workers_goes_on_in_halves(workspace):
    runs, said = runs_of(workspace, *["good"] * 5), []
    batch = Batch(None, said.append)
    assert list(batch._killed(Job(runs, group=True))) == [] and [len(j.runs) for j in batch.waiting] == [3, 2]
    assert said == ["workers died training 5 runs together: 3 at a time now"]


@pytest.mark.parametrize("sentence, status", [("RuntimeError: it didn't start", "RuntimeError: it didn't start"),
                                              ("", "the work ended and the run is new")])
def test_whatever_ends_the_work_is_the_outcome_of_one_run(workspace, sentence, status):
    outcome, = Batch(None, print)._settle(Job(runs_of(workspace, "good")), sentence)
    assert (outcome.status, outcome.sentence) == ("failed", status)
    assert not workspace.runs.exists()


# --- workers that were started elsewhere, and are reached by the scheduler's address ---


class Elsewhere:
    """`dask scheduler` and `dask worker` as processes of their own."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.processes = folder, free_port(), []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, *command: str, path: Path = ROOT) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": f"{path}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        with open(self.folder / f"{len(self.processes)}.log", "w") as log:
            self.processes.append(subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.folder, env=env, stdout=log, stderr=log,
                start_new_session=True))
        return self.processes[-1]

    def scheduler(self) -> subprocess.Popen:
        return self.start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port),
                          "--no-dashboard")

    def worker(self, *more: str, path: Path = ROOT) -> subprocess.Popen:
        return self.start("distributed.cli.dask_worker", self.address, "--host", "127.0.0.1", "--nthreads", "1",
                          "--no-dashboard", *more, path=path)

    def stop(self) -> None:
        """Workers before their scheduler, to which they say goodbye."""
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[Elsewhere]:
    with running(tmp_path) as place:
        yield place


@contextmanager
def running(folder: Path) -> Iterator[Elsewhere]:
    place = Elsewhere(folder)
    place.scheduler()
    try:
        yield place
    finally:
        place.stop()


@pytest.mark.long
def test_a_scheduler_that_is_restarted_costs_nothing(workspace, elsewhere):
    """With it go its workers, whose runs are checkpointed; new ones come, one of them with other code."""
    elsewhere.worker("--nworkers", "2")
    runs, said, found = runs_of(workspace, "slow", "slow", "good", "slow"), [], {}
    there = connect(workspace, elsewhere.address)
    there.check(["tiny"], said.append)
    assert there.slots("KERNEL") >= 1
    thread = threading.Thread(target=lambda: found.update(trained(there, runs, said)))
    thread.start()
    wait_for(lambda: scripted_runs.steps(runs[0].path) > 2)
    elsewhere.processes[0].kill()
    elsewhere.processes[0].wait()
    wait_for(lambda: scripted_runs.status(runs[0].path) == "interrupted")
    elsewhere.scheduler()
    other = elsewhere.folder / "other"
    shutil.copytree(ROOT / "fer_lib", other / "fer_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "fer_lib" / "metrics.py").open("a").write("\n")
    elsewhere.worker(path=other)
    elsewhere.worker()
    thread.join(50)
    assert {o.status for o in found.values()} == {"finished"} and no_step_twice(runs), said
    assert f"the scheduler at {elsewhere.address} is there again" in said
    assert not list(workspace.runs.glob(".batch-*")), "the file that shows the shared disk is gone"


def test_a_worker_that_came_later_and_differs_does_no_work(workspace):
    """It is told what is expected with its work, and says which worker it is."""
    here = start_here(workspace, 1, [])
    runs, said = runs_of(workspace, "good"), []
    try:
        here.token.parent.mkdir(parents=True)
        here.token.write_text("x")
        here.traits = {"the runs folder": str(here.token), **traits(workspace, here.token, ["tiny"]), "torch": "1.0"}
        future = here.submit("KERNEL", "x", scripted_runs.execute, {}, workspace, runs[0].path / "notebook.ipynb")
        batch = Batch(here, said.append)
        assert list(batch._take(future, Job(runs))) == []
        assert len(batch.waiting) == 1 and not runs[0].path.exists()
    finally:
        here.close()
    assert "has another version of torch" in said[0] and "it is sent away" in said[0]


def test_what_differs_is_named(workspace):
    token = workspace.runs / "token"
    token.parent.mkdir(parents=True)
    token.write_text("t")
    expected = {"the runs folder": str(token), **traits(workspace, token, ["tiny"])}
    assert differences(workspace, expected) == ""
    for name in expected.keys() - {"the runs folder", "the token"}:
        assert differences(workspace, {**expected, name: "x"}).startswith(f"has another version of {name} (")
    (workspace.packed / "tiny" / "manifest.json").write_text(json.dumps({}))
    assert "another version of the data tiny" in differences(workspace, expected)
    token.unlink()
    assert differences(workspace, expected).startswith(f"doesn't see the folder {workspace.runs}: all machines")


def test_a_port_is_not_given_twice_while_its_test_lives(monkeypatch):
    """A worker of a suite beside had reached this one's scheduler."""
    first, draw = free_port(), random.randrange
    drawn = [first, first]
    monkeypatch.setattr("random.randrange", lambda *bounds: drawn.pop() if drawn else draw(*bounds))
    assert free_port() != first and not drawn


def test_a_cluster_that_cant_be_used_is_one_sentence(workspace, elsewhere, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.)
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense://x", "absent.json"):
        with pytest.raises(ClusterError, match=f"no Dask scheduler answers at '{address}'"):
            connect(workspace, address)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 20.)
    elsewhere.start("distributed.cli.dask_worker", elsewhere.address, "--host", "127.0.0.1", "--nthreads", "2",
                    "--no-dashboard", "--no-nanny")
    there = connect(workspace, elsewhere.address)
    try:
        with pytest.raises(ClusterError, match="does 2 pieces of work at a time: start it with --nthreads 1"):
            there.check(["tiny"], print)
        alone, = there.workers()
        assert not there.renew(alone) and list(there.workers()) == [alone], "nobody would start another"
    finally:
        there.close()
