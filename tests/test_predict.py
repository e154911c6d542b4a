"""A finished run on a picture: the network's own probabilities, and one sentence where there is none."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import make_data, make_experiment, short
from PIL import Image

from fer_lib import predict
from fer_lib.checkpoint import read_weights, write_weights
from fer_lib.data import DeviceSplit, PackedDataset
from fer_lib.files import RecordError
from fer_lib.predict import load_trained, probabilities
from fer_lib.runs import Run, record

pytestmark = pytest.mark.usefixtures("short_resnet")


def trained(folder, data: PackedDataset, **settings) -> Run:
    chosen = {"method": "dynamic", "w0": .003, "w_gradient": "exact", "epochs": 3, **settings}
    run = Run(make_experiment(**chosen), data, folder)
    for _ in record([run]):
        pass
    return run


@pytest.fixture(scope="module")
def data() -> PackedDataset:
    return make_data()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        return trained(tmp_path_factory.mktemp("runs"), data)


@torch.no_grad()
def own_probabilities(run: Run, data: PackedDataset) -> torch.Tensor:
    """Of the val split, from its packed pixels, by the training code's own batches: (N, K)."""
    split = DeviceSplit(data.splits["val"], data.manifest, run.experiment, torch.device("cpu"), torch.float32)
    return load_trained(run.path)[0](split.batch(slice(0, len(split)))).softmax(1)


def picture(tmp_path, pixels: np.ndarray, name: str = "face.png"):
    """uint8 (C, H, W) as a file."""
    Image.fromarray(np.moveaxis(pixels, 0, -1).squeeze()).save(tmp_path / name)
    return tmp_path / name


def test_a_picture_of_the_packed_pixels_gives_the_networks_own_probabilities(run, data, tmp_path):
    own = own_probabilities(run, data)
    for k in range(8):
        found = probabilities(run.path, picture(tmp_path, data.splits["val"].images[k]))
        assert [found[c] for c in data.classes] == pytest.approx(own[k].tolist(), abs=1e-6)
        assert sum(found.values()) == pytest.approx(1) and list(found.values()) == sorted(found.values(), reverse=True)


def test_the_loaded_network_scores_as_the_record_says(run, data):
    """Signs included: the record's score is that of the network as trained."""
    own = own_probabilities(run, data)
    right = (own.argmax(1).numpy() == data.splits["val"].samples["label"]).mean()
    assert right == pytest.approx(run.result["chosen"]["val_accuracy"])
    assert len(run.flips), "choose settings under which w flips"


def test_colour_and_another_size_agree_with_the_training_codes_batches(tmp_path):
    data = make_data(channels=3, side=24)
    run = trained(tmp_path, data, image_size=16, epochs=1, method="baseline")
    own = own_probabilities(run, data)
    found = probabilities(run.path, picture(tmp_path, data.splits["val"].images[0]))
    assert [found[c] for c in data.classes] == pytest.approx(own[0].tolist(), abs=.01)      # it resizes whole numbers


def test_a_colour_picture_reaches_a_grey_network_as_grey(run, data, tmp_path):
    grey = data.splits["val"].images[0]
    colour = probabilities(run.path, picture(tmp_path, np.repeat(grey, 3, 0)))
    assert colour == pytest.approx(probabilities(run.path, picture(tmp_path, grey)), abs=.01)
    Image.fromarray(grey[0]).convert("P").convert("RGBA").save(tmp_path / "rgba.png")
    assert sum(probabilities(run.path, tmp_path / "rgba.png").values()) == pytest.approx(1)


@pytest.mark.parametrize("wide", [True, False])
def test_of_a_picture_that_is_not_square_the_centre_counts(run, data, tmp_path, wide):
    grey = data.splits["val"].images[0]
    border = np.full((1, 16, 5) if wide else (1, 5, 16), 255, np.uint8)
    framed = np.concatenate([border, grey, border], 2 if wide else 1)
    assert probabilities(run.path, picture(tmp_path, framed, "framed.png")) == probabilities(
        run.path, picture(tmp_path, grey))


def main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    return predict.main()


def test_the_command_prints_every_class_the_likeliest_first(run, data, tmp_path, monkeypatch, capsys):
    path = picture(tmp_path, data.splits["val"].images[0])
    assert main(monkeypatch, run.path, path) == 0
    shown = capsys.readouterr()
    rows = [line.split()[:2] for line in shown.out.splitlines()]
    assert [(name, p) for name, p in rows] == [(c, f"{p:.3f}") for c, p in probabilities(run.path, path).items()]
    assert {name for name, _ in rows} == set(data.classes) and shown.err == ""


def damage_nothing(path): ...


def remove_weights(path):
    (path / "model.safetensors").unlink()


def cut_weights(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def other_weights(path):
    write_weights(path / "model.safetensors", {k: v for k, v in read_weights(path / "model.safetensors").items()
                                               if not k.startswith("fc")})


def remove_head(path):
    (path / "experiment.json").unlink()


def cut_head(path):
    (path / "experiment.json").write_text('{"id": ')


def future_setting(path):
    head = json.loads((path / "experiment.json").read_text())
    head["experiment"]["warmup"] = 3
    (path / "experiment.json").write_text(json.dumps(head))


def write_garbage(path):
    path.write_bytes(b"no picture" * 50)


def cut_png(path):
    path.write_bytes(path.read_bytes()[:150])


@pytest.mark.parametrize("harm_run, harm_picture, reason", [
    (remove_weights, damage_nothing, "has no model.safetensors: the run is not finished"),
    (cut_weights, damage_nothing, "no readable weights in"),
    (other_weights, damage_nothing, "don't fit its experiment.json"),
    (remove_head, damage_nothing, "is not a run's directory"),
    (cut_head, damage_nothing, "is not a run's directory"),
    (future_setting, damage_nothing, "unknown parameter 'warmup'"),
    (shutil.rmtree, damage_nothing, "is not a run's directory"),
    (damage_nothing, write_garbage, "can't be read as a picture"),
    (damage_nothing, cut_png, "can't be read as a picture"),
    (damage_nothing, lambda p: p.unlink(), "no picture at"),
    (damage_nothing, lambda p: (p.unlink(), p.mkdir()), "can't be read as a picture"),
])
def test_what_cant_be_used_is_one_sentence(run, data, tmp_path, monkeypatch, capsys, harm_run, harm_picture, reason):
    own = shutil.copytree(run.path, tmp_path / "run")
    path = picture(tmp_path, data.splits["val"].images[0])
    harm_run(own), harm_picture(path)
    assert main(monkeypatch, own, path) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("predict: ") and shown.err.count("\n") == 1
    assert reason in shown.err


def test_a_picture_too_large_to_open_safely_is_refused(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RecordError, match="can't be read as a picture"):
        probabilities(run.path, picture(tmp_path, data.splits["val"].images[0]))
