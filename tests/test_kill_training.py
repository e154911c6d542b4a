"""A training process killed at random moments ends, started again, with the bits of one that was left alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_data, write_packed
from killed import SETTINGS
from test_runs import FINISHED, assert_same_record, listing

import fer_lib
from fer_lib.data import open_packed
from fer_lib.experiment import Experiment
from fer_lib.runs import Run

KILLS = int(os.environ.get("FER_KILLS", 6))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of the runs; what kills met is in met.json."""
    folder = tmp_path_factory.mktemp("kills")
    packed = write_packed(folder / "packed", make_data())
    done = subprocess.run([sys.executable, Path(__file__).with_name("killed.py"), packed, folder, str(KILLS), "0"],
                          text=True, capture_output=True, timeout=60 + 10 * KILLS,
                          env={**os.environ, "PYTHONPATH": str(Path(fer_lib.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    (folder / "met.json").write_text(done.stdout)
    return folder


def test_killed_anywhere_a_run_ends_with_the_same_bits(killed):
    data, e = open_packed(killed / "packed"), Experiment(**SETTINGS)
    whole, met = Run(e, data, killed / "whole"), json.loads((killed / "met.json").read_text())
    print(f"{len(met['met'])} kills: {dict(Counter(met['met']))}")
    assert whole.finished and len(met["met"]) == KILLS and len(set(met["met"])) > 1
    for k in range(met["runs"]):
        run = Run(e, data, killed / f"killed{k}")
        assert_same_record(whole, run)
        assert listing(run) == FINISHED
