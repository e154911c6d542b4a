"""The benchmark's parts on a CPU, at a size at which its figures mean nothing."""

import json

import pytest
import torch
from conftest import CPU, SMALL

from fer_lib import activations, benchmark_speed
from fer_lib.benchmark_speed import Pictures, activation, handed_out, plain_loop, random_faces, steps
from fer_lib.experiment import Experiment

pytestmark = pytest.mark.usefixtures("short_resnet")
E = Experiment(**{**SMALL, "epochs": 100_000})


@pytest.fixture
def data():
    return random_faces(16, 16, 8)


def test_the_plain_loop_sees_what_the_engine_sees(data):
    split = data.splits["train"]
    (x, label), (tensor, _) = (Pictures(split, pil)[3] for pil in (True, False))
    assert torch.equal(x, tensor) and label == split.samples["label"][3]
    assert torch.allclose(x, (torch.from_numpy(split.images[3]) / 255 - .5) / .29, atol=1e-6)
    assert plain_loop(E, data, CPU, 2) > 0


def test_figures_are_ratios_to_what_stands_beside_them(data, monkeypatch):
    monkeypatch.setattr(benchmark_speed, "plain_loop", lambda *_, pil=True: .5 if pil else .25)
    found = steps(E, data, CPU, [2], 1)
    assert found["plain"] == {"ms": 500., "images_per_second": 16., "ratio": 1.}
    assert found["plain, tensors"]["ratio"] == 2.
    assert found["eager"]["ratio"] == pytest.approx(500. / found["eager"]["ms"]) and len(found) == 3
    found = activation(E, data, CPU, 1)
    assert found["ReLU"]["ratio"] == 1. and {"literal", "exact", "exact, unfused"} < set(found)
    assert activations.FUSED, "put back after the unfused version's turn"


def test_images_handed_out_are_counted_from_the_second_epoch(data):
    found = handed_out(E, data, CPU, 2)
    assert found["runs"] == 2 and found["images_per_second"] > 0


def test_the_command_writes_json_and_names_a_missing_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_speed, "measure", lambda *_: iter([("steps", {"captured": {"ratio": 9.}})]))
    assert benchmark_speed.main(["--device", "cpu", "--out", str(tmp_path / "speed.json")]) == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["steps"]["captured"]["ratio"] == 9. and written["environment"]["torch"] == torch.__version__
    assert "target >= 8" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert benchmark_speed.main(["--device", "cuda:7"]) == 2
