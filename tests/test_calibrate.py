"""The size of the literal gradient's rounding error, measured on a finished run."""

import pytest
from conftest import CPU, make_data, make_experiment, write_packed

from fer_lib import calibrate
from fer_lib.calibrate import noise_scale
from fer_lib.data import open_packed
from fer_lib.files import RecordError
from fer_lib.runs import Run, record


@pytest.fixture
def runs(tmp_path):
    packed = write_packed(tmp_path / "packed" / "small", make_data())
    data = open_packed(packed)

    def run(**settings):
        finished = Run(make_experiment(**settings), data, tmp_path / "runs")
        list(record([finished], CPU))
        return finished.path

    return packed, run


def test_scale_is_positive_and_as_small_as_rounding(runs):
    packed, run = runs
    found = noise_scale(run(method="dynamic"), packed, CPU, batches=3)
    sites = [s for name, s in found.items() if name != "all"]
    assert len(sites) > 1 and all(0 < s < 1e-5 for s in sites)
    assert min(sites) <= found["all"] <= max(sites)


def test_double_precision_rounds_a_billion_times_less(runs):
    packed, run = runs
    single = noise_scale(run(method="dynamic"), packed, CPU, batches=3)["all"]
    double = noise_scale(run(method="dynamic", precision="fp64"), packed, CPU, batches=3)["all"]
    assert double < single * 1e-6


def test_refuses_a_run_without_a_literal_gradient(runs):
    packed, run = runs
    for settings in ({"method": "baseline"}, {"method": "dynamic", "w_gradient": "exact"}):
        with pytest.raises(RecordError, match="calibrate on a dynamic run"):
            noise_scale(run(**settings), packed, CPU)


def test_command_prints_the_setting_and_refuses_nonsense(runs, capsys):
    packed, run = runs
    path = run(method="dynamic")
    assert calibrate.main([str(path), "--data", str(packed), "--batches", "2", "--device", "cpu"]) == 0
    assert "w_noise_scale = " in capsys.readouterr().out
    for bad in (["nowhere"], [str(path), "--data", str(packed), "--batches", "0"],
                [str(path), "--data", str(packed), "--device", "abacus"]):
        assert calibrate.main(bad) == 2
        assert capsys.readouterr().err.count("\n") == 1
