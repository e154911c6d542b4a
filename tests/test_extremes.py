"""Settings and data at their ends: each trains to a record, or is refused in a sentence before anything is written."""

import json

import numpy as np
import pytest
from conftest import make_data, make_experiment

from fer_lib.data import PackedDataset
from fer_lib.experiment import ParameterError
from fer_lib.runs import Diverged, Run, record

pytestmark = pytest.mark.usefixtures("short_resnet")
DYNAMIC = dict(method="dynamic")


def relabelled(change, **sizes: int) -> PackedDataset:
    data = make_data(sizes=sizes or {"train": 16, "val": 8, "test": 8})
    for name, split in data.splits.items():
        split.samples["label"] = change(name, split.samples["label"].to_numpy().copy())
    return data


def recorded(e, data, folder) -> Run:
    run = Run(e, data, folder)
    list(record([run]))
    return run


@pytest.mark.filterwarnings("ignore:w0 = .* is outside")
@pytest.mark.parametrize("settings", [
    dict(DYNAMIC, w0=1e-45), dict(DYNAMIC, w0=1e-45, cliff=float("inf"), w_gradient="exact"), dict(DYNAMIC, w0=1e-40),
    dict(DYNAMIC, w0=1e30, w_gradient="modelled"), dict(DYNAMIC, w0=-1e-45), dict(lr=10.), dict(lr=10., **DYNAMIC),
    dict(lr=0.), dict(batch_size=16), dict(weight_decay=1.), dict(label_smoothing=1.)], ids=str)
def test_settings_at_their_ends_train_to_finite_numbers(settings, tmp_path):
    run = recorded(make_experiment(epochs=1, **settings), make_data(sizes={"train": 16, "val": 8, "test": 8}), tmp_path)
    assert run.finished and np.isfinite(run.history.to_numpy(float)).all()


@pytest.mark.parametrize("balance", ["none", "loss", "sampler"])
def test_batches_of_one_class_train(balance, tmp_path):
    run = recorded(make_experiment(epochs=1, balance=balance), relabelled(lambda name, label: label * 0 + 2), tmp_path)
    assert run.finished and np.isfinite(run.history["loss"]).all()


def test_a_class_absent_from_validation_counts_where_it_is_predicted(tmp_path):
    """Macro-F1 is the mean over the classes that are present or predicted: F1 is 0 where only predicted, and NaN, in no
    mean, where neither."""
    data = relabelled(lambda name, label: np.where(label == 3, 0, label) if name == "val" else label)
    run = recorded(make_experiment(epochs=1), data, tmp_path)
    row = run.epochs[(run.epochs["split"] == "val") & (run.epochs["mode"] == "trained")].iloc[0]
    confusion, f1 = np.array(row["confusion"]).reshape(7, 7), np.array(row["f1"], float)
    assert confusion[3].sum() == 0
    seen = (confusion.sum(0) + confusion.sum(1)) > 0
    assert np.isnan(f1[~seen]).all() and row["macro_f1"] == pytest.approx(f1[seen].mean())
    assert f1[3] == 0 if seen[3] else np.isnan(f1[3])


@pytest.mark.parametrize(("settings", "sizes", "sentence"), [
    (dict(batch_size=17), (16, 8), "batch_size 17 is larger than the 16 training images of 'fake': choose at most 16"),
    (dict(batch_size=1), (16, 8), "batch_size 1 can't train on images of 16 x 16 pixels: .*choose at least 2"),
    (dict(batch_size=1), (1, 1), "batch_size 1 can't train on images of 16 x 16 pixels"),
    (dict(batch_size=8), (1, 1), "batch_size 8 is larger than the 1 training images")])
def test_what_cant_train_is_refused_before_anything_is_written(settings, sizes, sentence, tmp_path):
    data = make_data(sizes=dict(zip(("train", "val"), sizes)))
    with pytest.raises(ParameterError, match=sentence):
        recorded(make_experiment(**settings), data, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.name in ("history.parquet", "log")]


def test_one_image_trains_where_its_maps_have_more_than_one_value(tmp_path):
    data = make_data(sizes={"train": 1, "val": 1}, side=48)
    assert recorded(make_experiment(batch_size=1, epochs=1), data, tmp_path).finished


def test_a_huge_rate_ends_as_failed_with_what_to_try(tmp_path):
    run = Run(make_experiment(optimizer="sgd", lr=1000., momentum=0., epochs=4), make_data(), tmp_path)
    with pytest.raises(Diverged, match="the run has diverged; try a smaller lr than 1000"):
        list(record([run]))
    kept = json.loads((run.path / "result.json").read_text())
    assert kept["status"] == "failed" and "at step" in kept["reason"]
