"""CIFAR-10's batches: read like the official ones, never unpickled."""

import io
import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzzing import damages, fuzz, packed_or_refused
from hypothesis import strategies as st
from source_trees import dropped, images, labels, pack, photo, refused, samples, sources

from data_prep import cifar10, plain_pickle
from data_prep.cifar10 import BATCHES, FOLDER, NAMES, detect
from data_prep.packed import DataError
from data_prep.plain_pickle import Array, read_plain

# --- batches as Python 2 wrote them ---------------------------------------------------------------------------------


def string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def array(pixels: np.ndarray) -> bytes:
    """A uint8 array (n, m)."""
    shape = b"".join(map(number, pixels.shape)) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    return start + b"(K\x01" + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"


def memoized(count: int) -> bytes:
    return b"q" + bytes([count])


def batch(pixels: np.ndarray, numbers: list[int], title: bytes = b"training batch 1 of 5") -> bytes:
    """Protocol 2, byte strings as keys, entries in the official order."""
    entries = string(b"batch_label") + memoized(2) + string(title) + string(b"labels") + b"]" + memoized(4)
    entries += b"(" + b"".join(map(number, numbers)) + b"e" + string(b"data") + array(pixels)
    names = b"".join(string(b"image_%05d.png" % k) for k in range(len(numbers)))
    return b"\x80\x02}" + memoized(1) + b"(" + entries + string(b"filenames") + b"](" + names + b"eu."


def meta(names=NAMES) -> bytes:
    listed = b"".join(string(name.encode()) for name in names)
    entries = string(b"num_cases_per_batch") + number(10_000) + string(b"label_names")
    return b"\x80\x02}(" + entries + b"](" + listed + b"eu."


def picture(k: int) -> np.ndarray:
    """uint8 (3, 32, 32), different for every k."""
    return np.ascontiguousarray(photo(k, 32).transpose(2, 0, 1))


def rows_of(place: int, each: int) -> tuple[np.ndarray, list[int]]:
    """Images and labels of batch number `place`."""
    numbers = list(range(place * each, (place + 1) * each))
    return np.stack([picture(k).reshape(-1) for k in numbers]), [(3 * k) % 10 for k in numbers]


def write_batches(root: Path, each: int = 10) -> Path:
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for place, name in enumerate(BATCHES):
        (folder / name).write_bytes(batch(*rows_of(place, each)))
    (folder / "batches.meta").write_bytes(meta())
    (folder / "readme.html").write_text("x")
    return root


# --- what is packed -------------------------------------------------------------------------------------------------


def test_batches_as_they_are_published(tmp_path):
    manifest = pack("cifar10", write_batches(tmp_path / "raw"), tmp_path / "out", "--val-share", "0.2")
    out = tmp_path / "out"
    assert manifest["classes"] == list(NAMES) and manifest["image"] == {"channels": 3, "height": 32, "width": 32}
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 40, "val": 10, "test": 10}
    assert set(manifest["splits"]["val"]["class_counts"].values()) == {1}
    assert sources(out)["test"] == [f"test_batch:{row}" for row in range(10)]
    assert labels(out, "test") == [NAMES[3 * k % 10] for k in range(50, 60)]
    for split in ("train", "val", "test"):
        for image, source in zip(images(out, split), sources(out)[split], strict=True):
            name, row = source.split(":")
            assert np.array_equal(image, picture(10 * list(BATCHES).index(name) + int(row)))
    assert "_batch" not in samples(out, "train")
    assert manifest["notes"][0] == "data_batch_1 is not byte for byte the official file" and len(manifest["notes"]) == 6
    assert set(manifest["source"]["files"]) == {*BATCHES, "batches.meta"}


def test_workers_give_the_same(tmp_path, monkeypatch):
    raw = write_batches(tmp_path / "raw", each=20)
    one = pack("cifar10", raw / FOLDER, tmp_path / "one")
    two = pack("cifar10", raw, tmp_path / "two", workers=2)
    assert one["content_sha256"] == two["content_sha256"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_saved_again_by_python_3(tmp_path, protocol):
    raw = write_batches(tmp_path / "raw")
    pixels, numbers = rows_of(0, 10)
    again = pickle.dumps({b"labels": numbers, b"data": pixels, b"batch_label": "é"}, protocol=protocol)
    (raw / FOLDER / "data_batch_1").write_bytes(again)
    pack("cifar10", raw, tmp_path / "out", "--val-share", "0")
    assert np.array_equal(images(tmp_path / "out", "train")[3], picture(3))


def test_names_come_from_the_meta_file_whatever_its_order(tmp_path):
    raw = write_batches(tmp_path / "raw")
    (raw / FOLDER / "batches.meta").write_bytes(meta(NAMES[::-1]))
    pack("cifar10", raw, tmp_path / "out", "--val-share", "0")
    assert labels(tmp_path / "out", "test") == [NAMES[9 - 3 * k % 10] for k in range(50, 60)]
    (raw / FOLDER / "batches.meta").unlink()
    pack("cifar10", raw, tmp_path / "out2", "--val-share", "0")
    assert labels(tmp_path / "out2", "test") == [NAMES[3 * k % 10] for k in range(50, 60)]


def test_rows_left_out_are_recorded(tmp_path):
    raw = write_batches(tmp_path / "raw")
    pixels, numbers = rows_of(0, 10)
    numbers[2:5] = [10, -1, 300]
    (raw / FOLDER / "data_batch_1").write_bytes(batch(pixels, numbers))
    manifest = pack("cifar10", raw, tmp_path / "out", "--val-share", "0")
    assert dropped(tmp_path / "out") == [
        ["train", "data_batch_1", row, f"unknown label: {label}"] for row, label in ((2, 10), (3, -1), (4, 300))
    ]
    assert manifest["inputs"] == 60 and manifest["kept"] == 57 and manifest["bad_inputs"] == 3
    some = pack("cifar10", raw, tmp_path / "some", "--val-share", "0", "--max-per-class", "2", "--classes", "cat,dog")
    assert some["splits"]["train"]["class_counts"] == {"cat": 2, "dog": 2} and some["inputs"] == 60


def test_detect(tmp_path):
    raw = write_batches(tmp_path / "raw")
    assert detect(raw).arguments == ("--source", str(raw)) and detect(raw / FOLDER)
    with pytest.raises(DataError):
        detect(tmp_path)


# --- what is refused ------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_pickle_that_runs_a_program_is_refused_and_not_run(tmp_path, capsys, name, protocol):
    raw, proof = write_batches(tmp_path / "raw"), tmp_path / "ran"
    evil = pickle.dumps({"data": Bomb(os.system, f"touch {proof}"), "labels": [1]}, protocol=protocol)
    (raw / FOLDER / name).write_bytes(evil)
    sentence = refused(capsys, "cifar10", raw, tmp_path / "out")
    assert name in sentence and sentence.endswith("not run") and not proof.exists()
    pickle.loads(evil)
    assert proof.exists()


def ascii_names(names: bytes, arguments: bytes) -> bytes:
    return b"\x80\x02" + names + arguments + b"R."


CALLS = {
    "eval": ascii_names(b"cbuiltins\neval\n", string(b"1") + b"\x85"),
    "object array": pickle.dumps({"data": np.array([os.system], object)}, protocol=2),
    "encode by another codec": ascii_names(b"c_codecs\nencode\n", string(b"a") + string(b"zip") + b"\x86"),
    "reconstruct of another class": ascii_names(
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\n", b"K\x00\x85" + string(b"b") + b"\x87"
    ),
    "a name as value": b"\x80\x02cposix\nsystem\n.",
    "persistent": b"\x80\x02U\x01aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"(iposix\nsystem\n.",
    "new object": pickle.dumps(Path("x"), protocol=2),
}


@pytest.mark.parametrize("call", CALLS)
def test_other_ways_to_call_are_refused(call):
    with pytest.raises(DataError, match="not run|not read"):
        read_plain(CALLS[call])


def test_plain_values_are_read():
    value = {"a": [1, -2, 70_000, 2**40, True, None, ()], b"b": ("é", [b"x" * 300]), "c": {"d": (1, 2, 3, 4)}}
    assert read_plain(pickle.dumps(value, protocol=4)) == read_plain(pickle.dumps(value, protocol=2)) == value
    found = read_plain(pickle.dumps(np.arange(6).reshape(2, 3), protocol=4))
    assert isinstance(found, Array) and np.array_equal(found.bytes_as("i8"), np.arange(6).reshape(2, 3))
    assert found.bytes_as("u1") is None
    assert Array((2**40, 2**40), "u1", b"x").bytes_as("u1") is None


def test_endless_pickles_are_cut_off(monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_OPCODES", 50)
    with pytest.raises(DataError, match="more than 50 opcodes"):
        read_plain(b"\x80\x02" + b"}" * 100)


def spoil(name: str, content: bytes | None):
    def make(folder: Path) -> None:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    return make


PIXELS, LABELS = rows_of(0, 10)
FLAWS = {
    "batch missing": (spoil("data_batch_4", None), "data_batch_4 is missing: the download is incomplete"),
    "empty": (spoil("data_batch_4", b""), "is damaged or no pickle"),
    "half": (lambda folder: os.truncate(folder / "test_batch", 9_000), "test_batch is damaged or no pickle"),
    "text": (spoil("data_batch_2", b"<html>404</html>"), "data_batch_2 is damaged or no pickle"),
    "one label short": (spoil("data_batch_2", batch(PIXELS, LABELS[:9])), "has 9 labels for 10 images"),
    "grey images": (spoil("data_batch_2", batch(PIXELS[:, :1024], LABELS)), "has no data of n x 3,072 bytes"),
    "a list": (spoil("data_batch_2", b"\x80\x02]."), "holds no dict"),
    "no labels": (spoil("data_batch_2", pickle.dumps({"data": PIXELS}, protocol=2)), "has no list of labels"),
    "cifar-100": (
        spoil("data_batch_2", pickle.dumps({"data": PIXELS, "fine_labels": LABELS}, protocol=2)),
        "fine_labels: this is CIFAR-100",
    ),
    "other names": (spoil("batches.meta", meta(["a"] * 10)), "does not name the ten classes of CIFAR-10"),
    "no names": (spoil("batches.meta", b"\x80\x02}."), "has no list label_names"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_copies_that_are_refused(tmp_path, capsys, flaw):
    make, sentence = FLAWS[flaw]
    raw = write_batches(tmp_path / "raw")
    make(raw / FOLDER)
    assert sentence in refused(capsys, "cifar10", raw, tmp_path / "out")


def test_sources_that_are_none(tmp_path, capsys, monkeypatch):
    assert "holds no data_batch_1" in refused(capsys, "cifar10", tmp_path, tmp_path / "out")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    sentence = refused(capsys, "cifar10", tmp_path / "cifar-10-python.tar.gz", tmp_path / "out")
    assert "is an archive: unpack it first" in sentence
    monkeypatch.setattr(cifar10, "MAX_BATCH_BYTES", 1_000)
    assert "larger than" in refused(capsys, "cifar10", write_batches(tmp_path / "raw"), tmp_path / "out")


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_batches(tmp_path_factory.mktemp("cifar10") / "raw", each=4)


@fuzz(40, damage=damages, name=st.sampled_from(["data_batch_1", "test_batch", "batches.meta"]), head=st.booleans())
def test_damaged_batches_are_packed_right_or_refused(raw, damage, name, head):
    path = raw / FOLDER / name
    content = path.read_bytes()
    size = min(400, len(content)) if head else len(content)  # most of a batch is pixels
    damaged = damage(content[:size]) + content[size:]
    path.write_bytes(damaged)
    try:
        out = packed_or_refused("cifar10", raw, raw.parent / "out", "--val-share", "0")
    finally:
        path.write_bytes(content)
    if out is None:
        return
    for split in ("train", "test"):
        for source, label in zip(sources(out)[split], labels(out, split), strict=True):
            batch_name, row = source.split(":")
            k = 4 * list(BATCHES).index(batch_name) + int(row)
            assert label == NAMES[3 * k % 10] or batch_name == name or name == "batches.meta"
            if batch_name == name and (said := reference(damaged)):
                assert label == NAMES[said[int(row)]]


def reference(content: bytes) -> list[int] | None:
    """Labels by an unpickler that knows numpy only; None for what it refuses, such as a damaged dtype."""

    class Safe(pickle.Unpickler):
        def find_class(self, module, name):
            allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}
            assert (module, name) in allowed, "only numpy"
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy has a word on damaged dtypes
            found = Safe(io.BytesIO(content), encoding="bytes").load()
    except (ValueError, TypeError):
        return None
    return {key if isinstance(key, bytes) else key.encode(): value for key, value in found.items()}[b"labels"]


WORDS = [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n"]
WORDS += [b"U\x01a", b"K\x01", b"q\x00", b"h\x00", *(bytes([one]) for one in b"}](teusabRN.\x85\x86\x93\x94")]


@fuzz(600, content=st.binary(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=30).map(b"".join))
def test_any_bytes_are_a_value_or_one_sentence(content):
    try:
        read_plain(content)
    except DataError as error:
        assert len(str(error)) < 300
