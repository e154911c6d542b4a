"""AffectNet-8: npy annotations as numbers and strings, what is missing or foreign there, and npy files that lie."""

import io
import os
import pickle

import numpy as np
import pytest
from fuzzing import ODD, check_plan, damages, fuzz, kept_lines, planned
from hypothesis import strategies as st
from source_trees import dropped, labels, pack, photo, refused, samples, save, sources

from data_prep import affectnet8
from data_prep.affectnet8 import detect
from data_prep.npy import FAULT, MAX_BYTES, PICKLED, parse_value, read_value
from data_prep.packed import Rejected

NAMES = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"]


def npy(value) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value if isinstance(value, np.ndarray) else np.array(value))
    return buffer.getvalue()


def write_item(root, folder, one, label, va=(0.25, -0.5), number=None, text=True):
    """An image and its four annotations, as strings or as numbers."""
    save(root / folder / "images" / f"{one}.jpg", photo(one % 128 if number is None else number))
    kind = str if text else lambda value: value
    for name, value in (("exp", kind(label)), ("val", kind(va[0])), ("aro", kind(va[1])), ("lnd", np.arange(136.0))):
        save(root / folder / "annotations" / f"{one}_{name}.npy", npy(value))


def write_tree(root, each=3):
    """Ids with gaps; both sets have id 7, with different faces and labels."""
    for n in range(8 * each):
        write_item(root, "train_set", 7 * n, n % 8, text=n % 2 == 0)
    for n in range(8):
        write_item(root, "val_set", 7 + n, (n + 3) % 8, number=100 + n, text=n % 2 == 1)
    return root


def annotation(root, name, content):
    return save(root / "train_set" / "annotations" / name, content if isinstance(content, bytes) else npy(content))


# --- the layout -----------------------------------------------------------------------------------------------------


def test_strings_and_numbers_and_gaps(tmp_path):
    root = write_tree(tmp_path / "raw" / "AffectNet8")
    assert detect(tmp_path / "raw").arguments == ("--source", str(tmp_path / "raw"))
    out = tmp_path / "out"
    manifest = pack("affectnet8", tmp_path / "raw", out, "--contempt", "--val-share", "0")
    assert manifest["classes"] == NAMES and manifest["dropped"] == {} and manifest["notes"] == []
    assert sources(out)["train"] == [f"train_set/images/{7 * n}.jpg" for n in range(24)]
    assert labels(out, "train") == NAMES * 3
    assert labels(out, "test")[0] == "surprise" and sources(out)["test"][0] == "val_set/images/7.jpg"
    assert labels(out, "train")[1] == "happy"  # id 7 of the other set
    assert set(samples(out, "train")["valence"]) == {0.25} and set(samples(out, "test")["arousal"]) == {-0.5}
    assert root == affectnet8.find_root(tmp_path / "raw")


def test_seven_classes_and_validation_as_val(tmp_path):
    root = write_tree(tmp_path / "raw")
    manifest = pack("affectnet8", root, tmp_path / "out", "--validation-as", "val")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 21, "val": 7, "test": 0}
    assert manifest["dropped"] == {"class not selected": 4} and manifest["bad_inputs"] == 0
    plan = planned(affectnet8, root, "--val-share", "0", "--contempt")
    assert sum(plan.published["train"].values()) == 287_651 and sum(plan.published["test"].values()) == 3_999
    assert set(planned(affectnet8, root).published) == {"test"}


def test_sources_that_are_none(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert "holds no folder train_set" in refused(capsys, "affectnet8", tmp_path / "raw", tmp_path / "out")
    write_tree(tmp_path / "raw")
    (tmp_path / "raw" / "val_set").rename(tmp_path / "elsewhere")
    assert pack("affectnet8", tmp_path / "raw", tmp_path / "a")["notes"][0].startswith("no val_set: without the")
    (tmp_path / "raw" / "train_set" / "images").rename(tmp_path / "images")
    assert "holds no folder train_set/images" in refused(capsys, "affectnet8", tmp_path / "raw", tmp_path / "out")
    (tmp_path / "raw" / "train_set" / "images").symlink_to(tmp_path / "images")
    assert "leads out of --source" in refused(capsys, "affectnet8", tmp_path / "raw", tmp_path / "out")
    assert detect(tmp_path) is not None and detect(tmp_path / "elsewhere") is None


# --- known flaws ----------------------------------------------------------------------------------------------------


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_is_missing_broken_or_foreign(tmp_path):
    root = write_tree(tmp_path / "raw")
    folder = root / "train_set"
    for name in ("0_exp", "7_val", "14_lnd", "21_aro", "21_lnd"):
        (folder / "annotations" / f"{name}.npy").unlink()
    for kind in ("exp", "val", "aro", "lnd"):
        annotation(root, f"999_{kind}.npy", "1")
    (folder / "images" / "28.jpg").unlink()
    (folder / "annotations" / "28_val.npy").unlink()
    annotation(root, "35_exp.npy", np.array(Bomb(tmp_path / "exploded"), dtype=object))
    annotation(root, "42_val.npy", np.array([0.1, 0.2]))
    annotation(root, "49_aro.npy", b"hello")
    annotation(root, "56_exp.npy", "8")
    annotation(root, "63_exp.npy", "1.0")
    annotation(root, "70_val.npy", -2)
    annotation(root, "77_val.npy", "1.01")
    annotation(root, "84_exp.npy", npy("4")[:-2])
    (folder / "annotations" / "91_exp.npy").unlink()
    (folder / "annotations" / "91_exp.npy").symlink_to(folder / "annotations" / "0_val.npy")
    (folder / "annotations" / "98_exp.npy").unlink()
    os.mkfifo(folder / "annotations" / "98_exp.npy")
    (folder / "annotations" / "105_exp.npy").unlink()
    (folder / "annotations" / "105_exp.npy").mkdir()
    save(folder / "images" / "112.png", photo(112))
    save(folder / "images" / "119.jpg", b"x")
    save(folder / "images" / "new.jpg", photo(1))
    annotation(root, "readme.txt", b"x")
    annotation(root, "._0_exp.npy", b"x")
    save(folder / "images" / "list.csv", b"x")
    save(root / "AffectNet8Labels_Documentation.pdf", b"not looked at")
    out = tmp_path / "out"
    manifest = pack("affectnet8", root, out, "--contempt", "--val-share", "0")
    assert dropped(out) == [
        ["train", "train_set/images/0.jpg", -1, "annotation is missing: 0_exp.npy"],
        ["train", "train_set/images/35.jpg", -1, f"{PICKLED}: 35_exp.npy"],
        ["train", "train_set/images/42.jpg", -1, f"{FAULT}: 42_val.npy (shape (2,))"],
        ["train", "train_set/images/49.jpg", -1, f"{FAULT}: 49_aro.npy (no npy file)"],
        ["train", "train_set/images/77.jpg", -1, "valence outside -1..1: 1.01"],
        ["train", "train_set/images/84.jpg", -1, f"{FAULT}: 84_exp.npy (2 bytes of data instead of 4)"],
        ["train", "train_set/images/91.jpg", -1,
         "annotation cannot be opened: 91_exp.npy (Too many levels of symbolic links)"],
        ["train", "train_set/images/98.jpg", -1, f"{FAULT}: 98_exp.npy (no npy file)"],
        ["train", "train_set/images/105.jpg", -1, "annotation cannot be opened: 105_exp.npy (Is a directory)"],
        ["train", "train_set/images/112.jpg", -1, "several images of one id: 112.jpg"],
        ["train", "train_set/images/112.png", -1, "several images of one id: 112.png"],
        ["train", "train_set/images/new.jpg", -1, "annotation is missing: new_exp.npy"],
        ["train", "train_set/annotations/28", -1, "annotation without image: exp, aro, lnd"],
        ["train", "train_set/annotations/999", -1, "annotation without image: exp, val, aro, lnd"],
        ["train", "train_set/images/list.csv", -1, "neither image nor annotation"],
        ["train", "train_set/annotations/._0_exp.npy", -1, "hidden file or folder"],
        ["train", "train_set/annotations/readme.txt", -1, "neither image nor annotation"],
        ["train", "train_set/images/56.jpg", -1, "unknown label: 8"],
        ["train", "train_set/images/119.jpg", -1,
         "unreadable image: train_set/images/119.jpg (cannot identify image file)"],
    ]
    assert not (tmp_path / "exploded").exists()
    assert manifest["inputs"] == 24 + 8 + 6 and manifest["kept"] == 38 - 19 and manifest["bad_inputs"] == 16
    assert manifest["notes"] == ["train_set: images with an expression but 1 without val, 1 without aro, 2 without lnd"]
    kept = samples(out, "train").set_index("source")
    for one, column in ((7, "valence"), (21, "arousal"), (70, "valence")):
        assert np.isnan(kept.loc[f"train_set/images/{one}.jpg", column])
    assert not np.isnan(kept.loc["train_set/images/7.jpg", "arousal"])
    assert kept.loc["train_set/images/63.jpg", "label"] == 1


def test_a_changed_annotation_is_another_plan(tmp_path):
    root = write_tree(tmp_path / "raw", 1)
    before = planned(affectnet8, root).sha256
    assert planned(affectnet8, root).sha256 == before
    annotation(root, "7_val.npy", "0.26")
    assert planned(affectnet8, root).sha256 != before


# --- npy ------------------------------------------------------------------------------------------------------------

VALUES = [3, "3", b"3", 0.25, "-0.5", np.float32(0.5), np.int8(-2), np.uint64(7), np.array([3]), np.array([["3"]]),
          np.array("3", ">U1"), np.array(3, ">i4"), "", " 3 ", "\u0663"]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_values_are_those_of_numpy(value, tmp_path):
    content = npy(value)
    expected = np.load(io.BytesIO(content), allow_pickle=False).reshape(-1)[0].item()
    expected = expected.decode() if isinstance(expected, bytes) else str(expected)
    assert parse_value(content) == expected.strip()
    assert read_value(str(save(tmp_path / "x.npy", content))) == expected.strip()


REFUSALS = {
    "objects": (npy(np.array({}, dtype=object)), PICKLED),
    "a record with objects": (npy(np.zeros(1, [("a", object)])), PICKLED),
    "pickle alone": (pickle.dumps(3), FAULT),
    "two values": (npy([1, 2]), FAULT),
    "no value": (npy(np.zeros(0)), FAULT),
    "complex": (npy(1j), FAULT),
    "truth": (npy(True), FAULT),
    "a date": (npy(np.datetime64("2021-03-01")), FAULT),
    "a record": (npy(np.zeros(1, [("a", "<i4")])), FAULT),
    "empty": (b"", FAULT),
    "too long": (npy("x" * MAX_BYTES), FAULT),
    "data missing": (npy(1.5)[:-1], FAULT),
    "data too many": (npy(1.5) + b"\0", FAULT),
    "header cut": (npy(1.5)[:20], FAULT),
    "version 9": (npy(1.5)[:6] + b"\x09" + npy(1.5)[7:], FAULT),
    "code in the header": (npy(1.5).replace(b"'<f8'", b"exec()"), FAULT),
    "no Unicode": (npy("a").replace(b"a\0\0\0", b"\xff\xff\xff\xff"), FAULT),
}


@pytest.mark.parametrize("flaw", REFUSALS)
def test_files_that_hold_no_single_value(flaw):
    content, reason = REFUSALS[flaw]
    assert parse_value(content).reason == reason


@fuzz(400, value=st.sampled_from(VALUES), damage=damages)
def test_damaged_npy_is_numpys_value_or_a_reason(value, damage):
    content = damage(npy(value))
    found = parse_value(content)
    if isinstance(found, Rejected):
        return
    expected = np.load(io.BytesIO(content), allow_pickle=False).reshape(-1)[0].item()
    expected = expected.decode("latin-1") if isinstance(expected, bytes) else str(expected)
    assert found == expected.strip()


# --- broken sets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("affectnet8")
    for n in range(8):
        write_item(root, "train_set", n, n, text=n % 2 == 0)
    write_item(root, "val_set", 3, 5)
    return root


_values = st.sampled_from([*range(-3, 12), 0.5, -2.0, *ODD]) | st.text(max_size=6) | st.floats(width=32)


@fuzz(60, damage=damages, one=st.integers(0, 7), kind=st.sampled_from(["exp", "val", "aro"]), value=st.none() | _values)
def test_broken_annotations(small, damage, one, kind, value):
    path = small / "train_set" / "annotations" / f"{one}_{kind}.npy"
    original = path.read_bytes()
    content = damage(original) if value is None else npy(value)
    path.write_bytes(content)
    try:
        plan = planned(affectnet8, small, "--contempt", "--val-share", "0")
    finally:
        path.write_bytes(original)
    check_plan(plan, {f"train_set/images/{n}.jpg" for n in range(8)} | {"val_set/images/3.jpg"})
    for source, name in kept_lines(plan).items():
        n = int(source.rpartition("/")[2].removesuffix(".jpg"))
        if source.startswith("train_set") and (n, kind) == (one, "exp"):
            assert name == NAMES[int(float(np.load(io.BytesIO(content), allow_pickle=False).reshape(-1)[0]))]
        else:
            assert name == NAMES[5 if source.startswith("val_set") else n]
