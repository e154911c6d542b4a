"""FER2013 from csv and folder copies: names, official splits, and what happens to broken input."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzzing import fuzz
from hypothesis import strategies as st
from PIL import Image

from data_prep import fer2013
from data_prep.check import check
from data_prep.join import LEAK, LEAK_OF_VAL
from data_prep.packed import CLASSES, DataError
from data_prep.writer import write

USAGES = ["Training"] * 7 + ["PublicTest"] * 7 + ["PrivateTest"] * 7
EMOTIONS = list(range(7)) * 3
FOLDER_NAMES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
RNG_IMAGES = np.random.default_rng(0).integers(0, 256, (21, 48, 48), np.uint8)


def rows_of(images=RNG_IMAGES) -> list[list[str]]:
    """[emotion, pixels, Usage] of 7 drawn images a split, one a class."""
    return [
        [str(emotion), " ".join(map(str, image.ravel())), usage]
        for emotion, image, usage in zip(EMOTIONS, images, USAGES, strict=True)
    ]


def write_csv(folder: Path, rows: list[list[str]], header: str = "emotion,pixels,Usage", name: str = "fer2013.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return folder / name


def write_tree(folder: Path, images=RNG_IMAGES, suffix: str = "png") -> Path:
    for number, (emotion, usage, image) in enumerate(zip(EMOTIONS, USAGES, images, strict=True)):
        class_folder = folder / ("train" if usage == "Training" else "test") / FOLDER_NAMES[emotion]
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(class_folder / f"{usage}_{number}.{suffix}")
    return folder


def pack(source: Path, out: Path, strict: bool = False, **options) -> dict:
    options = {"drop_leaks": False, "dedup": False, **options}
    manifest = write(fer2013.plan(Namespace(source=source, **options)), out, strict=strict)
    assert check(out) == []
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    return manifest


def dropped_of(out: Path) -> list[list]:
    return pd.read_parquet(out / "dropped.parquet").to_numpy().tolist()


def assert_is_the_drawn_set(out: Path) -> None:
    """Official splits, labels mapped by name, pixels exact, in row order."""
    by_name = ["anger", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    for k, split in enumerate(("train", "val", "test")):
        images = np.load(out / split / "images.npy", allow_pickle=False)
        labels = pd.read_parquet(out / split / "samples.parquet")["label"]
        assert np.array_equal(images[:, 0], RNG_IMAGES[7 * k : 7 * k + 7])
        assert [CLASSES[label] for label in labels] == by_name


# --- the layouts ----------------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    pack(write_csv(tmp_path / "raw", rows_of()), tmp_path / "out")
    assert_is_the_drawn_set(tmp_path / "out")
    source = pd.read_parquet(tmp_path / "out" / "val" / "samples.parquet")["source"]
    assert source.tolist() == [f"fer2013.csv:{line}" for line in range(9, 16)]


@pytest.mark.parametrize("quote", ["", '"'])
def test_icml_face_data_with_leading_spaces_in_its_header(tmp_path, quote):
    rows = [[emotion, usage, quote + pixels + quote] for emotion, pixels, usage in rows_of()]
    write_csv(tmp_path / "raw", rows, "emotion, Usage, pixels", "icml_face_data.csv")
    pack(tmp_path / "raw", tmp_path / "out")
    assert_is_the_drawn_set(tmp_path / "out")


def test_line_ends_bom_and_blank_lines_do_not_matter(tmp_path):
    path = write_csv(tmp_path / "raw", rows_of())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n").rstrip())
    manifest = pack(path, tmp_path / "out")
    assert manifest["inputs"] == 21
    assert_is_the_drawn_set(tmp_path / "out")


def test_folder_copy_equals_the_csv(tmp_path):
    tree = pack(write_tree(tmp_path / "tree"), tmp_path / "a")
    table = pack(write_csv(tmp_path / "raw", rows_of()), tmp_path / "b")
    assert_is_the_drawn_set(tmp_path / "a")
    assert tree["content_sha256"] == table["content_sha256"]


def test_folder_copy_with_jpg_colour_and_other_class_names(tmp_path):
    tree = write_tree(tmp_path / "tree", images=[np.full((48, 48, 3), n, np.uint8) for n in range(21)], suffix="jpg")
    (tree / "train" / "angry").rename(tree / "train" / "Anger")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    pack(tmp_path, tmp_path / "out")  # one level above train and test
    images = np.load(tmp_path / "out" / "test" / "images.npy", allow_pickle=False)
    assert images.shape == (7, 1, 48, 48) and images[:, 0, 0, 0].tolist() == list(range(14, 21))


def test_folder_copy_of_another_random_split_is_refused(tmp_path):
    tree = write_tree(tmp_path / "tree")
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        path.rename(path.with_name(f"{number}.png"))
    with pytest.raises(DataError, match="21 of 21 file names.*do not tell the official split"):
        pack(tree, tmp_path / "out")


def test_augmented_copies_in_a_folder_are_left_out(tmp_path):
    tree = write_tree(tmp_path / "tree")
    first = tree / "train" / "disgust" / "Training_1.png"
    (first.parent / "Training_1.png7.png").write_bytes(first.read_bytes())
    assert pack(tree, tmp_path / "out")["dropped"] == {"file name without the official split": 1}
    assert dropped_of(tmp_path / "out")[0][1] == "train/disgust/Training_1.png7.png"
    assert_is_the_drawn_set(tmp_path / "out")


def test_unknown_class_folder_is_refused(tmp_path):
    tree = write_tree(tmp_path / "tree")
    (tree / "train" / "sad").rename(tree / "train" / "melancholy")
    with pytest.raises(DataError, match="melancholy: the folder's name is no class"):
        pack(tree, tmp_path / "out")


@pytest.mark.parametrize("there", [".", "raw", "raw/train"])
def test_a_source_that_is_not_there_is_refused(tmp_path, there):
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match="--source"):
        pack(tmp_path / "raw", tmp_path / "out")


# --- broken input ---------------------------------------------------------------------------------------------------

BROKEN_ROWS = {
    "pixel 300": (lambda row: [row[0], row[1].rsplit(" ", 1)[0] + " 300", row[2]], "pixel outside 0..255: 300"),
    "pixel -1": (lambda row: [row[0], "-1 " + row[1].split(" ", 1)[1], row[2]], "pixel outside 0..255: -1"),
    "one pixel less": (lambda row: [row[0], row[1].rsplit(" ", 1)[0], row[2]], "wrong number of pixels: 2303 .*"),
    "one pixel more": (lambda row: [row[0], row[1] + " 1", row[2]], "wrong number of pixels: 2305 .*"),
    "no pixels": (lambda row: [row[0], "", row[2]], "wrong number of pixels: 0 instead of 2304"),
    "a letter": (lambda row: [row[0], row[1] + "x", row[2]], r"pixel is not a whole number: \d+x"),
    "a fraction": (lambda row: [row[0], "1.5 " + row[1].split(" ", 1)[1], row[2]], "pixel is not a whole number: 1.5"),
    "label 9": (lambda row: ["9", *row[1:]], "label outside 0..6: 9"),
    "label -1": (lambda row: ["-1", *row[1:]], "label outside 0..6: -1"),
    "no label": (lambda row: ["", *row[1:]], r"label outside 0..6: \(empty\)"),
    "unknown Usage": (lambda row: [*row[:2], "Holdout"], "unknown Usage: Holdout"),
    "lone quote": (lambda row: [row[0], row[1] + '\r"', row[2]], "wrong number of fields: . instead of 3"),
    "short row": (lambda row: row[:2], "wrong number of fields: 2 instead of 3"),
}


@pytest.mark.parametrize("flaw", BROKEN_ROWS)
def test_a_broken_row_is_recorded_or_under_strict_refused(tmp_path, flaw):
    break_it, reason = BROKEN_ROWS[flaw]
    rows = rows_of()
    rows[9] = break_it(rows[9])
    source = write_csv(tmp_path / "raw", rows)
    manifest = pack(source, tmp_path / "out")
    (split, file, row, written), = dropped_of(tmp_path / "out")
    assert (file, row) == ("fer2013.csv", 11) and split in ("val", "")
    assert pd.Series(written).str.fullmatch(reason).all(), written
    assert manifest["dropped"] == {written.partition(": ")[0]: 1} and manifest["kept"] == 20
    assert manifest["splits"]["val"]["n"] == 6
    with pytest.raises(DataError, match=rf"^fer2013\.csv:11: {reason}"):
        pack(source, tmp_path / "strict", strict=True)


def test_a_truncated_csv_loses_only_its_last_row(tmp_path):
    path = write_csv(tmp_path / "raw", rows_of())
    path.write_bytes(path.read_bytes()[:-5000])
    assert pack(path, tmp_path / "out")["kept"] == 20
    assert dropped_of(tmp_path / "out")[0][1:3] == ["fer2013.csv", 22]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("emotion,pixels", r"lacks usage \(without Usage the official splits cannot be told\)"),
        ("label,image,split", "lacks emotion, pixels, usage; it reads: label, image, split"),
        ("", "lacks emotion, pixels, usage"),
    ],
)
def test_an_unknown_header_is_refused(tmp_path, header, sentence):
    with pytest.raises(DataError, match=sentence):
        pack(write_csv(tmp_path / "raw", rows_of(), header), tmp_path / "out")


@pytest.mark.parametrize("rows", [[], [["9", "1", "Training"]]])
def test_a_csv_without_a_usable_row_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="not one usable image"):
        pack(write_csv(tmp_path / "raw", rows), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "unreadable image"), (b"?", "unreadable image"), (None, "unreadable image"), (64, "image is not 48 x 48")],
)
def test_a_broken_image_is_recorded_or_under_strict_refused(tmp_path, content, reason):
    tree = write_tree(tmp_path / "tree")
    path = tree / "test" / "fear" / "PublicTest_9.png"
    if isinstance(content, int):
        Image.fromarray(np.zeros((content, content), np.uint8)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:500] if content is None else content)
    assert pack(tree, tmp_path / "out")["dropped"] == {reason: 1}
    assert dropped_of(tmp_path / "out")[0][:3] == ["val", "test/fear/PublicTest_9.png", -1]
    with pytest.raises(DataError, match=rf"^test/fear/PublicTest_9\.png: {reason}"):
        pack(tree, tmp_path / "strict", strict=True)


@fuzz(40, place=st.integers(0, 60_000), garbage=st.binary(max_size=12))
def test_garbage_anywhere_in_the_csv_is_a_sentence_or_a_record(tmp_path, place, garbage):
    path = write_csv(tmp_path / "raw", rows_of())
    content = bytearray(path.read_bytes())
    content[place : place + len(garbage)] = garbage
    path.write_bytes(content)
    try:
        plan = fer2013.plan(Namespace(source=path, drop_leaks=False, dedup=False))
    except DataError:
        return
    lines = [line for line in bytes(content).split(b"\n")[1:] if line.strip()]
    results = [fer2013.decode_rows(table, split, path) for split, table in plan.samples.items() if len(table)]
    assert sum(map(len, results)) + len(plan.dropped) == len(lines)


# --- options --------------------------------------------------------------------------------------------------------


def test_drop_leaks_and_dedup(tmp_path):
    images = RNG_IMAGES.copy()
    images[8], images[20], images[3], images[16] = images[0], images[1], images[2], images[9]
    source = write_csv(tmp_path / "raw", rows_of(images))
    plain = pack(source, tmp_path / "plain")
    assert plain["kept"] == 21
    assert plain["duplicates"] == {
        "groups": 4,
        "surplus": 4,
        "groups_with_other_labels": 3,
        "val_in_train": 1,
        "test_in_train": 1,
        "test_in_val": 1,
    }
    cleaned = pack(source, tmp_path / "clean", drop_leaks=True, dedup=True)
    assert [row[:3] for row in dropped_of(tmp_path / "clean")] == [
        ["train", "fer2013.csv", 5],
        ["val", "fer2013.csv", 10],
        ["test", "fer2013.csv", 18],
        ["test", "fer2013.csv", 22],
    ]
    assert cleaned["dropped"][LEAK] == 2 and cleaned["dropped"][LEAK_OF_VAL] == 1 and cleaned["kept"] == 17
    assert cleaned["options"] == {"drop_leaks": True, "dedup": True}
