"""A training process killed at random moments ends, started again, with the bits of one that was left alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import make_data, write_packed
from killed import experiment
from test_runs import FINISHED, assert_same_record, listing

import fer_lib
from fer_lib.data import open_packed
from fer_lib.runs import Run

KILLS = int(os.environ.get("FER_KILLS", 6))


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=needs_gpu)])
def killed(request, tmp_path_factory) -> Path:
    """The folder of the runs; what kills met is in met.json."""
    folder = tmp_path_factory.mktemp("kills")
    packed = write_packed(folder / "packed", make_data())
    done = subprocess.run([sys.executable, Path(__file__).with_name("killed.py"), packed, folder, str(KILLS), "0",
                           request.param], text=True, capture_output=True, timeout=60 + 20 * KILLS,
                          env={**os.environ, "PYTHONPATH": str(Path(fer_lib.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    (folder / "met.json").write_text(done.stdout)
    return folder


def test_killed_anywhere_a_run_ends_with_the_same_bits(killed):
    met = json.loads((killed / "met.json").read_text())
    data, e = open_packed(killed / "packed"), experiment(met["device"])
    whole = Run(e, data, killed / "whole")
    print(f"{len(met['met'])} kills: {dict(Counter(met['met']))}")
    assert whole.finished and len(met["met"]) == KILLS and len(set(met["met"])) > 1
    for k in range(met["runs"]):
        run = Run(e, data, killed / f"killed{k}")
        assert_same_record(whole, run)
        assert listing(run) == FINISHED
