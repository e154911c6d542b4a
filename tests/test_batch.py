"""The batch command: real kernels in a real process for what runs, its own `main` for what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
import pytest
import scripted_runs
from conftest import make_data, write_packed
from jupyterlab import REST, let_rest, make_project
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError
from safetensors.numpy import load_file
from test_scheduling import running

from fer_lib import kernels, scheduling
from fer_lib import studies as batch
from fer_lib.checkpoint import read_state
from fer_lib.experiment import ParameterError
from fer_lib.runs import open_run, record
from fer_lib.workspace import Workspace

ROOT = Path(__file__).parents[1]
STUDY = """
study: tiny
title: A tiny study
note: Two arms on random pixels.
settings: {data: tiny, width: 0.05, batch_size: 8, lr: 1e-3, epochs: 12, device: cpu, checkpoint_seconds: 0}
arms:
  dynamic: {method: dynamic, w0: 2e-2, w_gradient: exact}
  baseline: {method: baseline, epochs: 4}
seeds: 2
"""
RECORD = {"experiment.json", "environment.json", "history.parquet", "epochs.parquet", "flips.parquet",
          "model.safetensors", "result.json", "notebook.ipynb", "curve.png"}


@dataclass
class Place:
    """A folder with packed data, and the batch command on it."""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def workspace(self) -> Workspace:
        return Workspace(ROOT, self.folder / "packed", self.runs)

    def study(self, text: str = STUDY) -> Path:
        path = self.folder / "study.yml"
        path.write_text(text)
        return path

    def command(self, *more: str, runs: Path | None = None) -> tuple[list[str], dict[str, str]]:
        env = {**os.environ, "FER_PACKED": str(self.folder / "packed"), "FER_RUNS": str(runs or self.runs),
               "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return [sys.executable, "-m", "fer_lib.batch", str(self.folder / "study.yml"), "--workers", "2", *more], env

    def run(self, *more: str, runs: Path | None = None) -> subprocess.CompletedProcess:
        command, env = self.command(*more, runs=runs)
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def listing(self) -> dict[str, int]:
        return {str(p.relative_to(self.folder)): p.stat().st_mtime_ns for p in self.folder.rglob("*") if p.is_file()}


def make_place(folder: Path) -> Place:
    data = make_data()
    data.manifest["title"] = "Random pixels"
    write_packed(folder / "packed" / "tiny", data)
    return Place(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def finished(place) -> subprocess.CompletedProcess:
    """Seed 1 was trained here before, seed 0 is by the command: both kernels at once."""
    study = batch.read_study(place.study(), seeds=[1])
    for e in study.experiments:
        deque(record([open_run(e, place.workspace)]), maxlen=0)
    return place.run()


def by_name(runs: Path) -> dict[str, Path]:
    """Run directories of the study as `arm-seed`."""
    return {re.sub("-[0-9a-f]{10}-", "-", p.name): p for p in (runs / "tiny").iterdir() if p.is_dir()}


def outputs(notebook: Path) -> str:
    cells = nbformat.read(notebook, 4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


# --- a study that ends well ---


def test_a_study_ends_with_a_table_of_n_mean_interval_and_difference(finished):
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "tiny: 4 runs, 2 finished before, 2 to train, 2 at a time" in finished.stdout
    assert "[4/4]" in finished.stdout and "A tiny study" in finished.stdout
    assert "Two arms on random pixels." in finished.stdout
    score = r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]"
    gap = r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]"
    assert re.search(rf"^baseline +2  {score} +0–0$", finished.stdout, re.M)
    assert re.search(rf"^dynamic +2  {score} +{gap} +[1-9]\d*–[1-9]\d*$", finished.stdout, re.M)


def test_the_table_holds_the_numbers_of_the_records(finished, place):
    scores = {}
    for name, path in by_name(place.runs).items():
        scores[name] = json.loads((path / "result.json").read_text())["chosen"]["test_macro_f1"]
    for arm in ("baseline", "dynamic"):
        mean = (scores[f"{arm}-seed0"] + scores[f"{arm}-seed1"]) / 2
        assert re.search(rf"^{arm} +2  {mean:.3f} \[", finished.stdout, re.M)


def test_each_run_leaves_its_record_and_its_executed_notebook(finished, place):
    found = by_name(place.runs)
    assert set(found) == {f"{arm}-seed{k}" for arm in ("baseline", "dynamic") for k in (0, 1)}
    for name, path in found.items():
        if name.endswith("seed1"):
            continue
        assert {p.name for p in path.iterdir()} == RECORD
        assert json.loads((path / "result.json").read_text())["status"] == "finished"
        assert len(pd.read_parquet(path / "history.parquet")) == (96 if "dynamic" in name else 32)
        notebook = nbformat.read(path / "notebook.ipynb", 4)
        code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
        assert all(c.execution_count for c in code)
        assert f"{name.split('-')[0]}, seed {name[-1]}" in outputs(path / "notebook.ipynb")
        assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
        assert (path / "notebook.ipynb").stat().st_size <= 300_000


def test_a_second_call_trains_nothing_and_can_make_a_report(finished, place, monkeypatch, capsys):
    before = {k: v for k, v in place.listing().items() if k.startswith("runs")}
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FER_PACKED", str(place.folder / "packed"))
    monkeypatch.setenv("FER_RUNS", str(place.runs))
    monkeypatch.setattr(batch, "start_here", lambda *_: pytest.fail("no worker is needed"))
    assert batch.main([str(place.study(STUDY + "report: 09_table1.ipynb\n"))]) == 0
    shown = capsys.readouterr().out
    assert "4 runs, 4 finished before, 0 to train" in shown and "[1/4]" not in shown
    after = {k: v for k, v in place.listing().items() if k.startswith("runs")}
    assert after.items() >= before.items() and set(after) - set(before) == {"runs/tiny/09_table1.ipynb"}
    table = [line for line in shown.splitlines() if re.match("(baseline|dynamic) ", line)]
    assert len(table) == 2 and set(table) < set(finished.stdout.splitlines())
    report = outputs(place.runs / "tiny" / "09_table1.ipynb")
    mean = re.search(r"^dynamic +2  (\S+ \[\S+ \S+\])", shown, re.M)[1]
    assert mean in report


# --- stops and failures ---


def one_arm(text: str = STUDY) -> str:
    return text.replace("  baseline: {method: baseline, epochs: 4}\n", "")


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it did not come to pass"
        time.sleep(.01)


@contextmanager
def started(command: list[str], env: dict[str, str], folder: Path = ROOT) -> Iterator[subprocess.Popen]:
    """A process with a process group of its own, which leaves nothing behind."""
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()


def kernel_of(process: subprocess.Popen) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                return child
    return None


@dataclass
class Interrupted:
    """How a study ended whose worker was killed in mid-run, and which then got a Ctrl-C."""

    runs: Path
    code: int
    error: str
    killed_at: int
    alive: list[psutil.Process]

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints."""
        return [read_state(p)["learner"]["step"] for p in self.runs.rglob("checkpoint.safetensors")]

    @property
    def result(self) -> dict:
        path, = self.runs.rglob("result.json")
        return json.loads(path.read_text())


@pytest.fixture(scope="module")
def interrupted(place, tmp_path_factory) -> Interrupted:
    """Ctrl-C reaches the whole process group, as in a terminal. The run rests after each block: it can't end before."""
    place.study(one_arm())
    project = make_project(tmp_path_factory.mktemp("project"))
    let_rest(project / "notebooks" / "04_train.ipynb", REST.replace(".25", "1"))
    found = Interrupted(tmp_path_factory.mktemp("interrupted"), 0, "", 0, [])
    command, env = place.command("--seeds", "0", "--workers", "1", runs=found.runs)
    with started(command, env, project) as process:
        wait_for(process, lambda: found.steps)
        first = kernel_of(process)
        first.parent().kill()
        wait_for(process, lambda: not first.is_running())               # a kernel ends with its worker
        found.killed_at = max(found.steps)
        wait_for(process, lambda: max(found.steps, default=0) > found.killed_at)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, found.error = process.communicate(timeout=60)
    found.code = process.returncode
    _, found.alive = psutil.wait_procs(children, timeout=5)
    return found


def test_a_killed_workers_run_goes_on_and_ctrl_c_leaves_a_checkpoint_and_no_process(interrupted):
    assert (interrupted.code, interrupted.error) == (
        130, "batch: interrupted; finished runs are kept, start the same command again to go on\n")
    assert not interrupted.alive
    assert interrupted.result["status"] == "interrupted" and interrupted.result["step"] > interrupted.killed_at
    assert interrupted.steps == [interrupted.result["step"]]
    notebook, = interrupted.runs.rglob("notebook.ipynb")
    assert "Stopped" in notebook.read_text()


@pytest.mark.long
def test_a_worker_that_reaches_the_scheduler_by_its_address_ends_the_run_with_the_same_bits(
        finished, interrupted, place, tmp_path, monkeypatch, capsys):
    """The reference was trained without a break, by one of two workers of this machine."""
    stopped_at, runs = interrupted.result["step"], interrupted.runs
    place.study(one_arm())
    with running(tmp_path) as elsewhere:
        elsewhere.worker()
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("FER_PACKED", str(place.folder / "packed"))
        monkeypatch.setenv("FER_RUNS", str(runs))
        assert batch.main([str(place.folder / "study.yml"), "--seeds", "0", "--scheduler", elsewhere.address]) == 0
    assert f"1 to train, 1 workers of {elsewhere.address}" in capsys.readouterr().out
    ours, reference = by_name(runs)["dynamic-seed0"], by_name(place.runs)["dynamic-seed0"]
    first_said = int(re.search(r"step (\d+)/96", outputs(ours / "notebook.ipynb"))[1])
    assert first_said > stopped_at, "it began anew"
    assert ours.name == reference.name
    for table in ("history", "epochs", "flips"):
        pd.testing.assert_frame_equal(pd.read_parquet(ours / f"{table}.parquet"),
                                      pd.read_parquet(reference / f"{table}.parquet"), check_exact=True)
    weights, wanted = (load_file(p / "model.safetensors") for p in (ours, reference))
    assert weights.keys() == wanted.keys()
    assert all(weights[k].tobytes() == wanted[k].tobytes() for k in wanted)
    assert {p.name for p in ours.iterdir()} == RECORD


SCRIPTED = """
if __name__ == "__mp_main__":
    from fer_lib.batch import leave_signals_to_batch
    leave_signals_to_batch()
if __name__ == "__main__":
    import runpy
    import scripted_runs
    from fer_lib import scheduling
    scheduling.execute = scripted_runs.execute
    runpy.run_module("fer_lib.batch", run_name="__main__")
"""


def test_sigterm_to_the_command_alone_as_a_cluster_sends_it_stops_the_runs(place, tmp_path):
    """Scripted runs: one fails, which stops no other, one is at work when the signal comes."""
    place.study(STUDY.replace("dynamic:", "diverges:").replace("baseline:", "slow:"))
    (tmp_path / "script.py").write_text(SCRIPTED)
    command, env = place.command("--seeds", "0", "--workers", "1", runs=tmp_path)
    env["PYTHONPATH"] += f":{ROOT / 'tests'}"
    with started([sys.executable, str(tmp_path / "script.py"), *command[3:]], env) as process:
        wait_for(process, lambda: list(tmp_path.rglob("slow*/steps")))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.startswith("batch: interrupted;") and err.count("\n") == 1, err
    assert "diverges seed 0: FAILED: Diverged: the loss is nan" in out
    assert [scripted_runs.status(p.parent) for p in tmp_path.rglob("slow*/steps")] == ["interrupted"]


def test_a_study_whose_runs_fail_says_which_and_why(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FER_PACKED", str(place.folder / "packed"))
    monkeypatch.setenv("FER_RUNS", str(tmp_path))
    monkeypatch.setattr(scheduling, "execute", scripted_runs.execute)
    study = place.study(one_arm(STUDY).replace("dynamic:", "diverges:"))
    assert batch.main([str(study), "--workers", "1"]) == 1
    shown = capsys.readouterr()
    assert re.fullmatch(r"(batch: diverges-[0-9a-f]{10}-seed[01] failed: Diverged: the loss is nan\n){2}", shown.err)
    assert "2 runs, 0 finished before, 2 to train, 1 at a time\n" in shown.out
    assert f'monitor("{tmp_path / "tiny"}")' in shown.out


@pytest.mark.long
def test_on_a_full_disk_a_run_fails_with_a_sentence(place, full_disk, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FER_PACKED", str(place.folder / "packed"))
    monkeypatch.setenv("FER_RUNS", str(full_disk))
    study = place.study(one_arm())
    assert batch.main([str(study), "--workers", "1", "--seeds", "7"]) == 1
    error = capsys.readouterr().err
    assert "RecordError: can't write 'dynamic-" in error
    assert "the disk is full; what was recorded before is kept" in error
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not list(full_disk.rglob("*.tmp"))


@pytest.mark.parametrize("ename, sentence", [("Busy", kernels.BUSY), ("Diverged", "Diverged: at step 3")])
def test_what_a_notebook_ends_with_is_told(monkeypatch, ename, sentence):
    def fail(*_):
        raise PapermillExecutionError(3, 1, "", ename, "at step 3", [])

    monkeypatch.setattr(kernels, "run_notebook", fail)
    monkeypatch.setattr(os, "environ", dict(os.environ))        # a worker sets its own; this process has other tests
    assert kernels._execute({"threads": 1}, Workspace(ROOT, ROOT, ROOT), Path("x"), kernels.Kernel()) == sentence


def test_a_kernel_that_is_stopped_before_a_cell_starts_no_other(tmp_path):
    """A kernel that isn't busy takes no notice of an interrupt."""
    kernel = kernels.Kernel()
    kernel.stop()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("open('ran', 'w')")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(kernels.Interrupted):
        kernels.run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path, kernel)
    assert not (tmp_path / "ran").exists()


def test_a_kernel_that_does_not_start_is_tried_again_and_one_that_dies_is_not(monkeypatch):
    def attempts(*errors: Exception) -> int:
        left = list(errors)

        def execute_notebook(*_, **__):
            if left:
                raise left.pop(0)

        monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
        kernels.run_notebook(Path("a"), Path("b"), {}, ROOT)
        return len(errors) - len(left)

    silent = RuntimeError("Kernel didn't respond in 60 seconds")
    assert attempts(RuntimeError("Kernel died before replying to kernel_info"), silent) == 2
    for errors in ([silent] * 3, [DeadKernelError("Kernel died")], [RuntimeError("something else")]):
        with pytest.raises(RuntimeError):
            attempts(*errors)


START = """import runpy, sys
from pathlib import Path
starts = Path({starts!r})
starts.write_text(starts.read_text() + "x")
if len(starts.read_text()) <= {failures}:
    sys.exit("Address already in use")
runpy.run_module("ipykernel_launcher", run_name="__main__")
"""


@pytest.mark.parametrize("failures, heard", [(1, ""), (3, "Address already in use\n")])
def test_what_a_kernel_says_that_does_not_start_is_heard_when_it_is_not_tried_again(
        tmp_path, monkeypatch, capfd, failures, heard):
    starts, spec = tmp_path / "starts", tmp_path / "kernels" / "other"
    spec.mkdir(parents=True)
    starts.write_text("")
    (tmp_path / "start.py").write_text(START.format(starts=str(starts), failures=failures))
    (spec / "kernel.json").write_text(json.dumps({"display_name": "", "language": "python", "argv": [
        sys.executable, str(tmp_path / "start.py"), "-f", "{connection_file}"]}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    notebook.metadata.kernelspec = {"name": "other", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with nullcontext() if failures < kernels.START_ATTEMPTS else pytest.raises(RuntimeError, match="died before"):
        kernels.run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path)
    assert len(starts.read_text()) == min(failures + 1, kernels.START_ATTEMPTS)
    assert capfd.readouterr().err == heard


# --- what a study file says ---


def read(tmp_path: Path, text: str = STUDY, **more) -> batch.Study:
    path = tmp_path / "study.yml"
    path.write_text(text)
    return batch.read_study(path, **more)


def test_seeds_come_first_so_that_an_interrupted_study_is_balanced(tmp_path):
    order = [(e.label, e.seed) for e in read(tmp_path).experiments]
    assert order == [("dynamic", 0), ("baseline", 0), ("dynamic", 1), ("baseline", 1)]


def test_seeds_are_a_count_or_a_list_or_the_commands(tmp_path):
    assert {e.seed for e in read(tmp_path, STUDY.replace("seeds: 2", "seeds: [3, 7]")).experiments} == {3, 7}
    assert {e.seed for e in read(tmp_path, seeds=[5]).experiments} == {5}


def test_exponents_without_a_point_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-4 as a text."""
    text = STUDY.replace("lr: 1e-3", "lr: 1e-4, eps: 1E-7, cliff: inf")
    first = read(tmp_path, text, changes={"weight_decay": "5e-5"}).experiments[0]
    assert (first.lr, first.w0, first.eps, first.weight_decay, first.cliff) == (1e-4, .02, 1e-7, 5e-5, float("inf"))


def test_an_arm_wins_over_the_settings_and_the_command_over_both(tmp_path):
    text = STUDY.replace("{method: baseline, epochs: 4}", "{method: baseline, lr: 0.5, epochs: 3}")
    first, second, *_ = read(tmp_path, text, changes={"epochs": 7}).experiments
    assert (first.lr, first.epochs, second.lr, second.epochs) == (.001, 7, .5, 7)


STUDIES = sorted(path for path in (ROOT / "notebooks" / "studies").glob("*.yml")
                 if path.name not in ("claims.yml", "choices.yml"))


@pytest.mark.filterwarnings("ignore:w0 = .* is outside")
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_the_studies_that_come_with_the_kit_can_be_read(path):
    """Each at its three sizes; the quick one is on drawn faces. quick.yml is one size."""
    sizes = ["standard"] if path.name == "quick.yml" else batch.SIZES
    studies = {size: batch.read_study(path, size=size) for size in sizes}
    study = studies["standard"]
    assert study.title and study.name == path.stem
    assert not study.report or (ROOT / "notebooks" / study.report).is_file()
    if path.name in ("quick.yml", "table1.yml"):
        assert [e.label for e in study.experiments[:4]] == ["baseline", "dropout", "periodic", "dynamic"]
    for size, other in studies.items():
        assert other.name == path.stem + ("" if size == "standard" else f"-{size}")
        assert len({(e.label, e.seed) for e in other.experiments}) == len(other.experiments)
    if len(studies) > 1:
        assert {e.data for e in studies["quick"].experiments} == {"synthetic-quick"}
        assert len(studies["quick"].experiments) <= 20


SIZED = STUDY + """
sizes:
  quick: {settings: {epochs: 2, w0: .9}, arms: [dynamic], seeds: 1, title: Quick}
  paper: {seeds: 3}
"""


def test_a_size_has_settings_arms_and_seeds_of_its_own(tmp_path):
    """A size's settings stand between the study's and the arm's."""
    quick, paper, standard = (read(tmp_path, SIZED, size=size) for size in ("quick", "paper", "standard"))
    assert (quick.name, paper.name, standard.name) == ("tiny-quick", "tiny-paper", "tiny")
    assert [(e.label, e.seed, e.epochs, e.w0, e.study) for e in quick.experiments] == [
        ("dynamic", 0, 2, .02, "tiny-quick")]
    assert len(paper.experiments) == 6 and len(standard.experiments) == 4
    assert (quick.title, paper.title, standard.experiments[0].epochs) == ("Quick", "A tiny study", 12)
    assert read(tmp_path, SIZED, size="quick", name="mine", seeds=[4]).experiments[0].seed == 4


def test_an_arm_takes_the_first_of_the_seeds_or_others(tmp_path):
    text = change("epochs: 4}", "epochs: 4, seeds: 2, first_seed: 100}")
    assert [(e.label, e.seed) for e in read(tmp_path, text, seeds=[0, 3, 5]).experiments] == [
        ("dynamic", 0), ("baseline", 100), ("dynamic", 3), ("baseline", 103), ("dynamic", 5)]
    assert len(read(tmp_path, text, seeds=[0]).experiments) == 2


def test_some_of_the_arms_alone(tmp_path):
    only = read(tmp_path, STUDY, seeds=[0, 1], arms=["baseline"])
    assert [(e.label, e.seed) for e in only.experiments] == [("baseline", 0), ("baseline", 1)]


# --- what is refused ---


def change(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new)


REFUSED = {
    "unknown parameter": (change("lr:", "learning_rate:"), [], "unknown parameter 'learning_rate'"),
    "misspelt parameter": (change("epochs:", "epoch:"), [], "did you mean 'epochs'?"),
    "wrong type": (change("lr: 1e-3", "lr: fast"), [], "lr is a number, not 'fast'"),
    "fraction of an epoch": (change("epochs: 12", "epochs: 1.5"), [], "epochs is a whole number, not 1.5"),
    "unknown method": (change("method: dynamic", "method: bogus"), [], "bogus"),
    "unknown site": (change("w0: 2e-2", "w_site: act9"), [], "act9"),
    "unknown data": (change("data: tiny", "data: nowhere"), [], "no packed data at 'nowhere'"),
    "batch larger than data": (change("batch_size: 8", "batch_size: 65"), [], "batch_size 65 is larger than the 64"),
    "not YAML": ("study: [", [], "'study.yml' is not YAML"),
    "not a mapping": ("- 1", [], "must have the keys study, arms and seeds"),
    "key missing": (change("seeds: 2", ""), [], "must have the keys study, arms and seeds"),
    "unknown key": (STUDY + "sedes: 3\n", [], "unknown key 'sedes'"),
    "key that is a number": (STUDY + "1: 3\n", [], "unknown key '1'"),
    "no arm": ("study: x\narms:\nseeds: 1\n", [], "at least one arm is needed"),
    "arms in a list": ("study: x\narms: [a]\nseeds: 1\n", [], "must map names to values"),
    "arm that is a word": ("study: x\narms: {a: baseline}\nseeds: 1\n", [], "must map names to values"),
    "no seed": (change("seeds: 2", "seeds: 0"), [], "'seeds' in 'study.yml' is"),
    "seeds in words": (change("seeds: 2", "seeds: two"), [], "'seeds' in 'study.yml' is"),
    "seed twice": (change("seeds: 2", "seeds: [1, 1]"), [], "different whole numbers, not [1, 1]"),
    "seed as a setting": (change("lr:", "seed: 4, lr:"), [], "'seed' is no setting of an arm"),
    "unknown measure": (STUDY + "measure: f1\n", [], "unknown measure 'f1' (choose one of max_val_macro_f1"),
    "no such report": (STUDY + "report: none.ipynb\n", [], "no report notebook 'none.ipynb'"),
    "folder outside runs": (change("study: tiny", "study: ../tiny"), [], "study '../tiny' becomes a folder's name"),
    "no such size": (SIZED.replace("paper: ", "standard: "), ["--size", "paper"], "no size 'paper' (choose standard"),
    "size that is unknown": (SIZED.replace("paper", "huge"), [], "'sizes' in 'study.yml' maps quick, standard, paper"),
    "size with an unknown key": (SIZED.replace("seeds: 1", "sedes: 1"), ["--size", "quick"], "unknown key 'sedes' in"),
    "size with an unknown arm": (SIZED.replace("[dynamic]", "[none]"), ["--size", "quick"], "is a list of the study's"),
    "size with bad settings": (SIZED.replace("{epochs: 2, w0: .9}", "7"), ["--size", "quick"], "must map names"),
    "size with a bad seed": (SIZED.replace("seeds: 1", "seeds: no"), ["--size", "quick"], "is a count or a list"),
    "arm without a seed": (STUDY.replace("w0:", "seeds: 0, w0:"), [], "'seeds' and 'first_seed' of arm 'dynamic'"),
    "arm with a list of seeds": (STUDY.replace("w0:", "seeds: [1], w0:"), [], "are whole numbers, at least 1"),
    "set without a value": (STUDY, ["--set", "epochs"], "--set takes name=value, not 'epochs'"),
    "set an unknown name": (STUDY, ["--set", "epoch=3"], "did you mean 'epochs'?"),
    "set a wrong type": (STUDY, ["--set", "epochs=many"], "epochs is a whole number, not 'many'"),
    "set half a list": (STUDY, ["--set", "epochs=["], "--set epochs: '[' is no value in YAML"),
    "set the seed": (STUDY, ["--set", "seed=1"], "'seed' is no setting of an arm"),
    "bad seeds": (STUDY, ["--seeds", "0,x"], "--seeds takes whole numbers joined by commas, not '0,x'"),
    "empty seeds": (STUDY, ["--seeds", ""], "--seeds takes whole numbers"),
    "negative seed": (STUDY, ["--seeds=-1"], "seed = -1 is out of range"),
    "no such arm": (STUDY, ["--arms", "dynamic,dynamik"], "no arm 'dynamik' in 'study.yml' (choose from"),
    "empty arms": (STUDY, ["--arms", ""], "no arm '' in 'study.yml'"),
    "no worker": (STUDY, ["--workers", "0"], "--workers is at least 1, not 0"),
    "unknown device": (STUDY, ["--device", "tpu"], "unknown device 'tpu'"),
}


@pytest.mark.parametrize("text, options, reason", REFUSED.values(), ids=REFUSED)
def test_a_bad_study_is_one_sentence_and_nothing_is_started(
        place, tmp_path, monkeypatch, capsys, text, options, reason):
    path = tmp_path / "study.yml"
    path.write_text(text)
    assert_refused(path, options, reason, place, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("name", ["none.yml", "."])
def test_no_study_file_is_one_sentence(place, tmp_path, monkeypatch, capsys, name):
    assert_refused(tmp_path / name, [], "no study file at", place, tmp_path, monkeypatch, capsys)


def assert_refused(path, options, reason, place, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FER_PACKED", str(place.folder / "packed"))
    monkeypatch.setenv("FER_RUNS", str(tmp_path / "runs"))
    for starter in ("start_here", "connect", "write_report"):
        monkeypatch.setattr(batch, starter, lambda *_: pytest.fail("something was started"))
    assert batch.main([str(path), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("batch: ") and shown.err.count("\n") == 1
    assert reason in shown.err and "Traceback" not in shown.err
    assert not (tmp_path / "runs").exists()


def test_a_data_set_without_a_test_split_cant_be_measured_on_it(tmp_path):
    data = make_data(sizes={"train": 64, "val": 16})
    write_packed(tmp_path / "packed" / "tiny", data)
    workspace = Workspace(ROOT, tmp_path / "packed", tmp_path / "runs")
    with pytest.raises(ParameterError, match="unknown measure 'chosen_test_macro_f1' .*chosen_val_macro_f1"):
        batch.run_study(read(tmp_path), workspace, 1, print)
