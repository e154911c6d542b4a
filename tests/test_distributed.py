"""One run on two processes: the steps of one process up to rounding, the same bits on both, and ends that hang nobody.

Two processes started by torchrun train the cases of spread.py; each leaves its numbers in a file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import Trained, make_data, make_experiment, short, write_packed
from safetensors.numpy import load_file
from spread import CASES, DATA, REST, ROUNDED, numbers

from fer_lib import distributed, engine
from fer_lib.checkpoint import read_state
from fer_lib.data import open_packed
from fer_lib.experiment import ParameterError
from fer_lib.records import read_records
from fer_lib.runs import Run, record
from fer_lib.world import ALONE, World

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
NAMES = ["loss", "lr", "w", "negative", "macro_f1", "held_out_loss", "confusion"]
DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")])]
# fp64, 8 to 16 steps. Measured on the CPU: 5e-13 (SGD at lr .05), else 1e-14
TOLERANCE = {"cpu": 1e-11, "cuda": 1e-7}


def start(*command: str, **environment: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(TESTS)])
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Spread:
    """What the two ranks left, and what one process does."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self.shown = ""
        self.code = self.run("compare,resume,stop,fail")
        self.ended = time.time()

    def run(self, tasks: str, *more: str) -> int:
        cuda = ["--cuda"] if self.device == "cuda" else []
        process = start(*TORCHRUN, str(TESTS / "spread.py"), tasks, str(self.folder), *cuda, *more)
        self.shown += process.communicate(timeout=300)[1]
        return process.returncode

    def read(self, name: str) -> list[dict[str, np.ndarray]]:
        """By rank."""
        if name in REST and not (self.folder / f"{REST[0]} 0.npz").exists():
            self.run("compare", "--rest")
        assert (self.folder / f"{name} 1.npz").exists(), self.shown
        return [dict(np.load(self.folder / f"{name} {rank}.npz")) for rank in (0, 1)]

    def one(self, **settings) -> dict[str, np.ndarray]:
        e = make_experiment(**{"device": self.device, **settings})
        with pytest.MonkeyPatch.context() as patch:
            short(patch)
            return numbers(Trained(list(engine.train([(e, make_data(**DATA))], torch.device(self.device),
                                                     capture=False))))


@pytest.fixture(scope="module", params=DEVICES)
def spread(request, tmp_path_factory) -> Spread:
    return Spread(tmp_path_factory.mktemp(request.param), request.param)


# --- the same steps ---


def sampled(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.long) if name in REST else name for name in names]


@pytest.mark.parametrize("name", sampled(CASES))
def test_two_processes_do_what_one_does(spread, name):
    two, one = spread.read(name)[0], spread.one(**CASES[name])
    limit = TOLERANCE[spread.device]
    assert len(two["loss"]) == len(one["loss"]) >= 8
    for key, value in one.items():
        if key.startswith("model/") or key in NAMES:
            np.testing.assert_allclose(two[key], value, rtol=limit, atol=limit, err_msg=key)


@pytest.mark.parametrize("name", sampled(CASES | ROUNDED))
def test_both_processes_come_to_the_same_bits(spread, name):
    """w, signs, weights, and the running statistics, which nobody sends round."""
    ours, theirs = spread.read(name)
    assert ours.keys() == theirs.keys() and {"model/bn1.running_mean", "model/bn1.running_var"} < set(ours)
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


@pytest.mark.parametrize("name", ROUNDED)
def test_in_single_precision_the_first_steps_are_those_of_one_process(spread, name):
    two, one = spread.read(name)[0], spread.one(**ROUNDED[name])
    limit = 2e-2 if name == "bf16" else 1e-3 if spread.device == "cuda" else 1e-5
    np.testing.assert_allclose(two["loss"][:3], one["loss"][:3], rtol=limit)


@pytest.mark.parametrize("name", sampled(["periodic", "twin", "random flip", "dynamic", "modelled"]))
def test_signs_change_in_these_runs(spread, name):
    """Else the comparisons above would say little."""
    assert len(np.unique(spread.read(name)[0]["negative"])) > 1


def test_w_and_the_learning_rate_move_in_these_runs(spread):
    assert np.ptp(spread.read("dynamic")[0]["w"]) > 1e-3
    assert len(set(spread.read("plateau")[0]["lr"])) > 1


def test_blocks_say_why_nothing_is_recorded(spread):
    shown = "the run is spread over 2 processes" if spread.device == "cuda" else ""
    assert spread.read("baseline")[0]["eager"] == shown


# --- ends ---


def test_a_stopped_run_goes_on_to_the_same_bits(spread):
    whole, parts = (next((spread.folder / name).glob("*/*")) for name in ("whole", "parts"))
    assert json.loads((parts / "result.json").read_text())["status"] == "finished"
    if spread.device == "cuda":                         # not deterministic kernels
        return
    for name in ("history", "epochs", "flips"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(path / f"{name}.parquet") for path in (whole, parts)),
                                      check_exact=True)
    ours, theirs = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


def test_a_stop_on_one_rank_ends_both_after_the_same_step(spread):
    ours, theirs = spread.read("signal")
    assert ours["steps"] == ours["taken"] < 200 and ours["epoch"] in (2, 3)
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


def test_commands_of_rank_0_act_on_both(spread):
    ours, theirs = spread.read("steering")
    assert ours["signs"].tolist() == [-1] * 4 and ours["lr"] == 0.5 and ours["taken"] < 200
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


def test_a_failing_rank_ends_the_other_and_leaves_a_good_record(spread):
    assert spread.code == 1 and "ZeroDivisionError" in spread.shown
    # at once, where the other learns of it; a GPU's kernel may wait for its partner until torchrun kills the process
    limit = distributed.GRACE * (1.5 if spread.device == "cuda" else 1)
    assert spread.ended - (spread.folder / "failing").stat().st_mtime < limit
    path, = (spread.folder / "fail").glob("*/*")
    result, saved = json.loads((path / "result.json").read_text()), read_state(path / "checkpoint.safetensors")
    assert result["status"] in ("interrupted", "running")           # running: rank 0 was ended before it could say
    assert saved["learner"]["step"] >= 8 and saved["learner"]["step"] == result.get("step", saved["learner"]["step"])


# --- the command ---


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    write_packed(tmp_path / "packed" / "fake", make_data(**DATA))
    monkeypatch.setenv("FER_PACKED", str(tmp_path / "packed"))
    monkeypatch.setenv("FER_RUNS", str(tmp_path / "runs"))
    return tmp_path


SETTINGS = dict(data="fake", width=0.05, batch_size=8, epochs=10, lr=1e-3, device="cpu", method="dynamic", w0=0.003,
                w_gradient="exact", precision="fp64")


def given(**changes) -> list[str]:
    return [part for key, value in {**SETTINGS, **changes}.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.long
def test_the_command_stops_goes_on_and_records_what_one_process_would(place, monkeypatch, capfd):
    """Stopped by SIGTERM at its first steps, then started again, from this process. It listens on loopback only."""
    data, e = open_packed(place / "packed" / "fake"), make_experiment(**SETTINGS)
    command = [sys.executable, "-m", "fer_lib.distributed", "--processes", "2", *given()]
    process, run = start(*command), Run(e, data, place / "runs")
    steps = run.path / "log" / "steps"
    while process.poll() is None and not (steps.exists() and steps.stat().st_size):
        time.sleep(0.1)
    heard: set[str] = set()
    while process.poll() is None and not heard:         # the kernel may miss a line while others come
        heard = {c.laddr.ip for child in psutil.Process(process.pid).children() for c in child.net_connections()
                 if c.status == psutil.CONN_LISTEN}
    process.terminate()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.startswith("distributed: training was stopped after a whole step"), err
    assert err.count("\n") == 1 and heard == {"127.0.0.1"}
    run.reload()
    assert run.status == "interrupted" and 0 < run.result["step"] < run.result["steps"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert distributed.main(command[3:]) == 0
    out, err = capfd.readouterr()
    assert not err, err
    assert out == f"distributed: '{run.path.name}' is finished\n"
    two, one = Run(e, data, place / "runs"), Run(e, data, place / "alone")
    assert two.finished and list(record([two])) == []               # nothing is trained again
    list(record([one]))
    assert {p.name for p in two.path.iterdir()} == {p.name for p in one.path.iterdir()}
    pd.testing.assert_frame_equal(two.history, one.history, rtol=1e-11, atol=1e-11)
    pd.testing.assert_frame_equal(two.epochs, one.epochs, rtol=1e-11)
    assert two.result.keys() == one.result.keys() and two.result["chosen"].keys() == one.result["chosen"].keys()
    assert [len(read_records(r.path.parent).runs) for r in (two, one)] == [1, 1]
    assert [json.loads((r.path / "environment.json").read_text())["processes"] for r in (two, one)] == [2, 1]


@pytest.mark.long
def test_under_torchrun_a_wrong_setting_is_one_sentence_and_nobody_hangs(place):
    """Also where rank 0 is the last to find it: torchrun ends all ranks with the first that ends."""
    (place / "sitecustomize.py").write_text("import os, time\ntime.sleep(3 * (os.environ.get('RANK') == '0'))\n")
    process = start(*TORCHRUN, "-m", "fer_lib.distributed", *given(metod="dropout"),
                    PYTHONPATH=os.pathsep.join([str(place), str(ROOT)]))
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("unknown parameter 'metod': did you mean 'method'?") == 1
    own, _, _ = err.partition("torch/distributed/elastic")         # torchrun's report follows
    assert "Traceback" not in own and not (place / "runs").exists()


@pytest.mark.parametrize("arguments, sentence", [
    (given(), "say how many processes: python -m fer_lib.distributed --processes 2, or torchrun --standalone"),
    (["--processes", "0", *given()], "--processes is at least 1, not 0"),
    (["--processes", "3", *given()], "batch_size 8 can't be divided among 3 processes: choose a multiple of 3"),
    (["--processes", "2", *given(lr="fast")], "lr is a number, not 'fast'"),
    (["--processes", "2", "--set", "lr"], "--set takes name=value, not 'lr'"),
    (["--processes", "2", *given(data="gone")], "no packed data at 'gone'"),
    (["--processes", "2", *given(device="cuda:1")], "device 'cuda:1' is one device: choose auto, cpu or cuda")])
def test_what_cannot_run_is_one_sentence_and_starts_nothing(place, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert distributed.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"distributed: {sentence}") and err.count("\n") == 1


@pytest.mark.parametrize("rank, lines", [(0, 1), (1, 0)])
def test_only_rank_0_says_it(place, capsys, monkeypatch, rank, lines):
    for name, value in {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    waited = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    assert distributed.main(given()) == 2
    assert waited == [distributed.GRACE] * rank, "torchrun ends all with the first"
    assert capsys.readouterr().err.count("\n") == lines


def test_several_machines_are_refused():
    with pytest.raises(ParameterError, match="one machine only"):
        distributed.started_as({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})


def test_more_processes_than_gpus_are_refused(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ParameterError, match="2 processes need a CUDA device each and this machine has 1"):
        distributed.prepare([s for s in given(device="cuda") if s != "--set"], 2)


@pytest.mark.parametrize("codes, expected", [([0, 0], 0), ([0, 130], 130), ([1, 0], 1), ([-signal.SIGKILL, 0], 1)])
def test_the_first_failure_is_the_exit_code(codes, expected):
    ends = [f"import os, sys; os.kill(os.getpid(), {-c}) if {c} < 0 else sys.exit({c})" for c in codes]
    assert distributed._wait([subprocess.Popen([sys.executable, "-c", end]) for end in ends]) == expected


def test_a_rank_that_hangs_when_another_fails_is_ended(monkeypatch):
    monkeypatch.setattr(distributed, "GRACE", 0.2)
    hanging, failing = (subprocess.Popen([sys.executable, "-c", code])
                        for code in ("import time; time.sleep(60)", "import sys; sys.exit(7)"))
    assert distributed._wait([hanging, failing]) == 7 and hanging.returncode == -signal.SIGKILL


# --- alone ---


def test_parts_of_a_batch_are_contiguous_and_complete():
    for size in (1, 2, 3, 5):
        for n in (0, 4, 17):
            parts = [list(range(n))[World(rank, size).part(n)] for rank in range(size)]
            assert sum(parts, []) == list(range(n))


def test_a_world_of_one_does_nothing():
    model, total = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), torch.ones(2)
    ALONE.connect_norms(model, torch.device("cpu"))
    ALONE.sum(total)
    assert type(model[0]) is torch.nn.BatchNorm2d and ALONE.connect_gradients(model) is model
    assert total.tolist() == [1, 1] and ALONE.share({"a": 1}) == {"a": 1} and not ALONE.any(False)
