"""Stanford Cars: .mat files as MATLAB writes them, the copies that are about, boxes, labels from 1."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from fuzzing import damages, fuzz, packed_or_refused
from hypothesis import strategies as st
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources

from data_prep import mat_files
from data_prep.mat_files import read_mat
from data_prep.packed import DataError
from data_prep.stanford_cars import detect

MODELS = ["AM General Hummer SUV 2000", "Acura TL Sedan 2012", "Ram C/V Cargo Van Minivan 2012", "BMW M3 Coupe 2012"]
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def number(value: int) -> np.ndarray:
    """As MATLAB keeps small whole numbers: a 1 x 1 matrix of the smallest type."""
    return np.array([[value]], np.uint8 if value < 256 else np.uint16)


def annotations(rows: list[tuple], fields=FIELDS) -> np.ndarray:
    found = np.zeros((1, len(rows)), [(name, object) for name in fields])
    for k, row in enumerate(rows):
        found[0, k] = tuple(value if isinstance(value, str) else number(value) for value in row)
    return found


def names(models=MODELS) -> np.ndarray:
    cell = np.zeros((1, len(models)), object)
    cell[0, :] = models
    return cell


def mat(path: Path, compressed: bool = True, **variables) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=compressed)
    return path


def row_of(k: int) -> tuple:
    return 11, 5, 90 - k, 80, k % 4 + 1, f"{k + 1:05d}.jpg"


def picture(k: int) -> np.ndarray:
    return np.kron(photo(k, 48), np.ones((2, 2, 1), np.uint8))


def write_cars(root: Path, n: int = 12, nested: bool = False, test_labels: bool = True) -> Path:
    """`n` cars a split; numbers of the test images follow those of training."""
    for first, part in ((0, "cars_train"), (n, "cars_test")):
        folder = root / part / part if nested else root / part
        for k in range(n):
            save(folder / f"{k + 1:05d}.jpg", picture(first + k), quality=95)
    mat(root / "devkit" / "cars_meta.mat", class_names=names())
    mat(root / "devkit" / "cars_train_annos.mat", annotations=annotations([row_of(k) for k in range(n)]))
    unlabelled = [row_of(k)[:4] + row_of(k)[5:] for k in range(n)]
    mat(root / "devkit" / "cars_test_annos.mat", annotations=annotations(unlabelled, FIELDS[:4] + FIELDS[5:]))
    if test_labels:
        mat(root / "cars_test_annos_withlabels.mat", annotations=annotations([row_of(k) for k in range(n)]))
    return root


# --- layouts --------------------------------------------------------------------------------------------------------


def test_torchvisions_layout(tmp_path):
    raw, out = write_cars(tmp_path / "raw" / "stanford_cars"), tmp_path / "out"
    manifest = pack("stanford_cars", raw.parent, out, "--val-share", "0.34", "--margin", "0", "--size", "32")
    assert manifest["classes"] == sorted(MODELS)
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 8, "val": 4, "test": 12}
    assert labels(out, "test") == [MODELS[k % 4] for k in range(12)]
    assert manifest["label_mapping"]["3"] == "Ram C/V Cargo Van Minivan 2012" and manifest["dropped"] == {}
    assert sources(out)["test"][0] == "cars_test_annos_withlabels.mat:1"
    assert samples(out, "test")["image"][0] == "stanford_cars/cars_test/00001.jpg"
    assert set(manifest["source"]["files"]) >= {"cars_meta.mat", "cars_train_annos.mat"}


def test_boxes_are_counted_from_one(tmp_path):
    """Corner 11, 5 to corner 50, 44 are 40 x 40 pixels, from column 10 and row 4 on."""
    raw, image = write_cars(tmp_path / "raw"), picture(3)
    save(raw / "cars_test" / "00001.png", image)
    mat(raw / "cars_test_annos_withlabels.mat", annotations=annotations([(11, 5, 50, 44, 1, "00001.png")]))
    pack("stanford_cars", raw, tmp_path / "out", "--margin", "0", "--size", "40")
    assert np.array_equal(images(tmp_path / "out", "test")[0], image[4:44, 10:50].transpose(2, 0, 1))


def test_kaggles_nested_copy_without_test_labels(tmp_path):
    raw, out = write_cars(tmp_path / "raw", nested=True, test_labels=False), tmp_path / "out"
    manifest = pack("stanford_cars", raw, out, "--val-share", "0.34", "--test-share", "0.34")
    assert manifest["dropped"] == {"image without a label in this copy": 12} and manifest["bad_inputs"] == 0
    assert dropped(out)[0] == ["", "cars_test/cars_test/00001.jpg", -1, "image without a label in this copy"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 4, "val": 4, "test": 4}
    assert "official test images are without labels" in manifest["notes"][0]


def test_the_older_single_list(tmp_path):
    fields = ("relative_im_path", *FIELDS[:5], "test")
    rows = [(f"car_ims/{k + 1:06d}.jpg", *row_of(k)[:5], k % 2) for k in range(12)]
    rows[3] = (*rows[3][:6], 7)
    for k in range(12):
        save(tmp_path / "raw" / "car_ims" / f"{k + 1:06d}.jpg", picture(k))
    mat(tmp_path / "raw" / "cars_annos.mat", annotations=annotations(rows, fields), class_names=names())
    out = tmp_path / "out"
    manifest = pack("stanford_cars", tmp_path / "raw", out, "--val-share", "0")
    assert sources(out)["test"] == [f"cars_annos.mat:{k + 1}" for k in (1, 5, 7, 9, 11)]
    assert labels(out, "train") == [MODELS[k % 4] for k in range(0, 12, 2)]
    assert dropped(out) == [["", "cars_annos.mat", 4, "unusable annotation: no split, car_ims/000004.jpg"]]
    assert manifest["source"]["release"] == "one list, cars_annos.mat"


def test_grey_images_become_colour(tmp_path):
    raw = write_cars(tmp_path / "raw")
    grey = np.full((96, 96), 77, np.uint8)
    save(raw / "cars_test" / "00005.jpg", grey)
    pack("stanford_cars", raw, tmp_path / "out")
    assert (images(tmp_path / "out", "test")[4] == 77).all()
    one = pack("stanford_cars", raw, tmp_path / "grey", "--grey")
    assert one["image"]["channels"] == 1


def test_what_cannot_be_used_is_counted(tmp_path):
    raw, out = write_cars(tmp_path / "raw"), tmp_path / "out"
    rows = [list(row_of(k)) for k in range(12)]
    rows[0][4], rows[1][4], rows[2][5], rows[3][5] = 5, 0, "../secret.jpg", "99999.jpg"
    rows[4][:4], rows[5][:4], rows[6][5] = (50, 50, 20, 20), (500, 5, 600, 80), ""
    found = annotations([tuple(row) for row in rows])
    found[0, 7]["class"] = np.zeros((0, 0))
    found[0, 8]["bbox_x1"] = np.array([[np.nan]])
    found[0, 9]["fname"] = np.array([[1.0]])
    mat(raw / "devkit" / "cars_train_annos.mat", annotations=found)
    save(tmp_path / "secret.jpg", photo(1))
    save(raw / "cars_train" / "00012.jpg", b"broken")
    save(raw / "cars_train" / "readme.txt", b"x")
    save(raw / "cars_train" / ".DS_Store", b"x")
    manifest = pack("stanford_cars", raw, out, "--val-share", "0")
    file, unlabelled = "cars_train_annos.mat", "image without a label in this copy"
    assert sorted(dropped(out), key=lambda row: (row[1], row[2])) == [
        ["train", "cars_train/.DS_Store", -1, "hidden file or folder"],
        ["train", "cars_train/00003.jpg", -1, unlabelled],
        ["train", "cars_train/00004.jpg", -1, unlabelled],
        ["train", "cars_train/00007.jpg", -1, unlabelled],
        ["train", "cars_train/00010.jpg", -1, unlabelled],
        ["train", "cars_train/readme.txt", -1, "no image file: .txt"],
        ["train", file, 1, "unknown label: 5"],
        ["train", file, 2, "unknown label: 0"],
        ["train", file, 3, "path refused: leads out of the source: cars_train/../secret.jpg"],
        ["train", file, 4, "image file is missing: cars_train/99999.jpg"],
        ["train", file, 5, "box without area: 49,49,20,20"],
        ["train", file, 6, "box outside the image: cars_train/00006.jpg (499,4,600,80 in 96 x 96)"],
        ["train", file, 7, "unusable annotation: no file name"],
        ["train", file, 8, "unusable annotation: no class, 00008.jpg"],
        ["train", file, 9, "box is not four numbers: 00009.jpg"],
        ["train", file, 10, "unusable annotation: no file name"],
        ["train", file, 12, "unreadable image: cars_train/00012.jpg (cannot identify image file)"],
    ]
    assert (
        manifest["inputs"] == 24 + 6
        and manifest["splits"]["train"]["class_counts"]["Ram C/V Cargo Van Minivan 2012"] == 1
    )


def test_detect_and_copies_that_are_refused(tmp_path, capsys):
    raw = write_cars(tmp_path / "raw")
    assert detect(raw).evidence == "devkit/cars_train_annos.mat" and detect(tmp_path / "no") is None
    (raw / "devkit" / "cars_meta.mat").unlink()
    assert "names the classes, is missing" in refused(capsys, "stanford_cars", raw, tmp_path / "out")
    mat(raw / "devkit" / "cars_meta.mat", class_names=names(["a", "b", "a", "c"]))
    assert "gives two classes the same name" in refused(capsys, "stanford_cars", raw, tmp_path / "out")
    mat(raw / "devkit" / "cars_meta.mat", class_names=3)
    assert "has no list of texts" in refused(capsys, "stanford_cars", raw, tmp_path / "out")
    mat(raw / "devkit" / "cars_train_annos.mat", annotations="x")
    assert "has no struct array" in refused(capsys, "stanford_cars", raw, tmp_path / "out")
    shutil.rmtree(raw / "devkit")
    assert "is the devkit there?" in refused(capsys, "stanford_cars", raw, tmp_path / "out")


# --- .mat files -----------------------------------------------------------------------------------------------------


def plain(value: object) -> object:
    """What scipy.io.loadmat gives, in the form of `read_mat`."""
    if value.dtype.names:
        return [{name: plain(one[name]) for name in value.dtype.names} for one in value.ravel(order="F")]
    if value.dtype == object:
        return [plain(one) for one in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return "".join(value.ravel())
    return value.ravel(order="F").tolist()


def listed(value: object) -> object:
    if isinstance(value, list):
        return [listed(one) for one in value]
    if isinstance(value, dict):
        return {name: listed(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("compressed", [True, False])
def test_values_are_those_of_scipy(tmp_path, compressed):
    cell = np.zeros((2, 2), object)
    cell[:] = [["é中", np.arange(3.0)], [np.zeros((0, 0)), names()]]
    values = {"a": annotations([row_of(k) for k in range(5)]), "b": cell, "c": np.arange(6).reshape(2, 3),
              "d": np.array([[1.5, np.nan]]), "e": "text", "f": np.array([[-3]], np.int8), "g": 2**40}  # fmt: skip
    values["d"][0, 1] = 2.5
    path = mat(tmp_path / "x.mat", compressed, **values)
    expected = scipy.io.loadmat(path)
    found = read_mat(path, list(values))
    for name in values:
        assert listed(found[name]) == plain(expected[name]), name
    assert read_mat(path, ["nothing"]) == {}


def header(order: bytes = b"IM") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01" + order


def test_big_endian_files(tmp_path):
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2)) + element(1, b"x")
    content = element(14, parts + element(9, struct.pack(">dd", 1.5, -2)))
    (tmp_path / "x.mat").write_bytes(header(b"MI") + content)
    assert read_mat(tmp_path / "x.mat", ["x"])["x"].tolist() == [1.5, -2]


def test_function_handles_and_others_are_refused(tmp_path, monkeypatch):
    function = struct.pack("<II", 6, 8) + struct.pack("<II", 16, 0) + struct.pack("<IIii", 5, 8, 1, 1)
    function += struct.pack("<HH4s", 1, 1, b"x")
    bad = {
        "is damaged: holds more than numbers": header() + struct.pack("<II", 14, len(function)) + function,
        "version 7.3": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "no .mat file of version 5": b"hello",
        "ends too early": header() + struct.pack("<II", 14, 10**6),
        "incorrect header": header() + struct.pack("<II", 15, 8) + b"notzlib!",
        "MB when unpacked": header() + struct.pack("<II", 15, len(bomb := zlib.compress(bytes(5_000_000)))) + bomb,
    }
    monkeypatch.setattr(mat_files, "MAX_BYTES", 2_000_000)
    for sentence, content in bad.items():
        (tmp_path / "x.mat").write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            read_mat(tmp_path / "x.mat", ["x"])
    (tmp_path / "x.mat").write_bytes(bytes(2_000_001))
    with pytest.raises(DataError, match="larger than"):
        read_mat(tmp_path / "x.mat", ["x"])


# --- damage ---------------------------------------------------------------------------------------------------------


@fuzz(400, damage=damages, again=damages, compressed=st.booleans())
def test_a_damaged_mat_file_is_read_or_refused(tmp_path_factory, damage, again, compressed):
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    mat(path, compressed, annotations=annotations([row_of(k) for k in range(4)]))
    whole, content = read_mat(path, ["annotations"])["annotations"], path.read_bytes()
    path.write_bytes(content[:128] + again(damage(content[128:])))
    try:
        value = read_mat(path, ["annotations"]).get("annotations")
    except DataError as error:
        assert len(str(error)) < 400
    else:
        assert not compressed or value is None or listed(value) == listed(whole)  # checksums cover every byte


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_cars(tmp_path_factory.mktemp("cars") / "raw", n=6)


@fuzz(30, damage=damages, name=st.sampled_from(["devkit/cars_train_annos.mat", "devkit/cars_meta.mat"]))
def test_damaged_lists_are_packed_right_or_refused(raw, damage, name):
    path = raw / name
    whole = path.read_bytes()
    variables = {key: value for key, value in scipy.io.loadmat(path).items() if key[0] != "_"}
    mat(path, False, **variables)
    path.write_bytes(damage(path.read_bytes()))
    try:
        out = packed_or_refused("stanford_cars", raw, raw.parent / "out", "--size", "8", "--val-share", "0")
        said = read_mat(path, ["annotations", "class_names"]) if out else {}
    finally:
        path.write_bytes(whole)
    if out is None:
        return
    models = [one.strip() for one in said.get("class_names", MODELS)]
    listed_labels = [record["class"] for record in said["annotations"]] if "annotations" in said else None
    for source, label in zip(sources(out)["train"], labels(out, "train"), strict=True):
        row = int(source.split(":")[1]) - 1
        number = int(listed_labels[row][0]) if listed_labels else row % 4 + 1
        assert label == models[number - 1] or not label.isprintable() or "\\" in label
