"""RAF-DB basic and compound, its folder copy, and RAF-CE: lists, boxes, what disagrees, and broken lists."""

import numpy as np
import pytest
from fuzzing import check_plan, damages, fuzz, kept_lines, lines_of, planned
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources, write_csv

from data_prep import rafce, rafdb, rafdb_compound
from data_prep.labels import expression
from data_prep.rafdb import BASIC, LIST, detect

NAMES = ["surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"]  # labels 1..7


def write_list(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def list_lines(classes=7) -> list[str]:
    """Two training images and one test image a label; numbers run on."""
    train = [f"train_{n:05d}.jpg {n % classes + 1}" for n in range(2 * classes)]
    return train + [f"test_{n:04d}.jpg {n % classes + 1}" for n in range(2 * classes, 3 * classes)]


def write_tree(root, part="basic", classes=7, lines=None):
    """Aligned faces; originals of 96 x 64 with the face at (40, 8), and its box."""
    for n, line in enumerate(list_lines(classes)):
        stem = line.split(".")[0]
        save(root / part / "Image" / "aligned" / f"{stem}_aligned.jpg", photo(n), quality=95, subsampling=0)
        original = np.zeros((64, 96, 3), np.uint8)
        original[8:56, 40:88] = photo(n)
        save(root / part / "Image" / "original" / f"{stem}.jpg", original, quality=95, subsampling=0)
        write_list(root / part / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt", "40.0 8.0 88.0 56.0 ")
    write_list(root / part / LIST, *(list_lines(classes) if lines is None else lines))
    return root


# --- the authors' layout --------------------------------------------------------------------------------------------


def test_the_list_and_its_splits(tmp_path):
    root = write_tree(tmp_path / "raw")
    out = tmp_path / "out"
    manifest = pack("rafdb", root, out, "--size", "48", "--val-share", "0.5")
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 7, "val": 7, "test": 7}
    assert manifest["dropped"] == {} and manifest["options"]["alignment"] == "aligned"
    assert labels(out, "test") == NAMES and manifest["label_mapping"]["6"] == "anger"
    assert samples(out, "test")["image"][0] == "Image/aligned/test_0014_aligned.jpg"
    assert abs(images(out, "test")[0].transpose(1, 2, 0).astype(int) - photo(14)).mean() < 3
    assert manifest["notes"][0].startswith("list_patition_label.txt, train: 14 rows; other counts than published")


@pytest.mark.parametrize("below", ["", "basic"])
def test_where_the_source_may_point(tmp_path, below):
    root = write_tree(tmp_path / "raw" / "RAF-DB")
    for source in (tmp_path / "raw", root, root / "basic"):
        assert rafdb.find_part(source, BASIC) == root / "basic"
        assert detect(source).arguments == ("--source", str(source))
    assert detect(root / "basic" / "Image") is None


def test_original_photographs_are_cropped_to_their_boxes(tmp_path):
    root = write_tree(tmp_path / "raw")
    boxes = root / "basic" / "Annotation" / "boundingbox"
    (boxes / "train_00001_boundingbox.txt").unlink()
    write_list(boxes / "train_00002_boundingbox.txt", "40 8 88")
    write_list(boxes / "train_00003_boundingbox.txt", "a b c d")
    write_list(boxes / "train_00004_boundingbox.txt", "88 8 40 56")
    write_list(boxes / "train_00005_boundingbox.txt", "1" * 100_000)
    out = tmp_path / "out"
    given = ("--alignment", "original", "--size", "48", "--margin", "0", "--val-share", "0")
    manifest = pack("rafdb", root, out, *given)
    assert abs(images(out, "test")[0].transpose(1, 2, 0).astype(int) - photo(14)).mean() < 3
    assert manifest["options"]["alignment"] == "original" and manifest["options"]["boxes"] == "Annotation/boundingbox"
    name = "list_patition_label.txt"
    assert dropped(out) == [
        ["train", name, 2, "box file is missing: Annotation/boundingbox/train_00001_boundingbox.txt"],
        ["train", name, 3, "box is not four numbers: Annotation/boundingbox/train_00002_boundingbox.txt"],
        ["train", name, 4, "box is not four numbers: Annotation/boundingbox/train_00003_boundingbox.txt"],
        ["train", name, 6, "box is not four numbers: Annotation/boundingbox/train_00005_boundingbox.txt"],
        ["train", name, 5, "box without area: 88,8,40,56"],
    ]
    boxes.rename(tmp_path / "boxes")
    manifest = pack("rafdb", root, tmp_path / "whole", *given)
    assert manifest["kept"] == 21 and manifest["notes"][0].startswith("no folder Annotation/boundingbox: whole")
    assert manifest["options"]["boxes"] == "none"


def test_flaws_of_the_list_are_recorded(tmp_path):
    lines = list_lines()
    lines[0] = "train_00000.jpg 0"
    lines[1] = "train_00001.jpg"
    lines[2] = "train_00002.jpg 3 3"
    lines[3] = "valid_00003.jpg 4"
    lines[4] = "train_/../../../../secret.jpg 5"
    lines[5] = "/train_00005.jpg 6"
    lines[6] = "train_99999.jpg 7"
    lines += ["train_00007.jpg 1", "train_00008.jpg 3", "", "train_00009.jpg 3"]
    root = write_tree(tmp_path / "raw", lines=lines)
    save(tmp_path / "secret.jpg", photo(60))
    save(root / "basic" / "Image" / "aligned" / "train_00010_aligned.jpg", b"x")
    save(root / "basic" / "Image" / "aligned" / "train_00011_aligned.jpg", b"")
    (root / "basic" / "Image" / "aligned" / "train_00012_aligned.jpg").unlink()
    (root / "basic" / "Image" / "aligned" / "train_00012_aligned.jpg").symlink_to(tmp_path / "secret.jpg")
    out, name = tmp_path / "out", "list_patition_label.txt"
    manifest = pack("rafdb", root, out, "--val-share", "0")
    aligned = "Image/aligned/train_"
    assert sorted(dropped(out), key=lambda row: row[2]) == [
        ["train", name, 1, "unknown label: 0"],
        ["", name, 2, "wrong number of fields: 1 instead of 2"],
        ["", name, 3, "wrong number of fields: 3 instead of 2"],
        ["", name, 4, "file name tells no split: valid_00003.jpg"],
        ["train", name, 5, "path refused: leads out of the source: train_/../../../../secret.jpg"],
        ["", name, 6, "path refused: absolute, must be relative to the source: /train_00005.jpg"],
        ["train", name, 7, f"image file is missing: {aligned}99999_aligned.jpg"],
        ["train", name, 9, "listed with different labels: train_00008.jpg (2, 3)"],
        ["train", name, 11, f"unreadable image: {aligned}00010_aligned.jpg (cannot identify image file)"],
        ["train", name, 12, f"image file is empty: {aligned}00011_aligned.jpg"],
        ["train", name, 13, f"path refused: a link leads out of the source: {aligned}00012_aligned.jpg"],
        ["train", name, 22, "listed twice: train_00007.jpg (line 8)"],
        ["train", name, 23, "listed with different labels: train_00008.jpg (2, 3)"],
        ["train", name, 25, "listed twice: train_00009.jpg (line 10)"],
    ]
    assert manifest["bad_inputs"] == 14 and manifest["inputs"] == 24


def test_windows_line_ends_and_a_bom(tmp_path):
    root = write_tree(tmp_path / "raw")
    path = root / "basic" / LIST
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert pack("rafdb", root, tmp_path / "out")["kept"] == 21


def test_published_counts(tmp_path):
    root = write_tree(tmp_path / "raw")
    assert set(planned(rafdb, root).published) == {"test"}
    whole = planned(rafdb, root, "--val-share", "0").published
    assert {split: sum(counts.values()) for split, counts in whole.items()} == {"train": 12_271, "test": 3_068}
    assert whole["train"]["happy"] == 4772 and whole["test"]["neutral"] == 680


def test_sources_that_are_none(tmp_path, capsys):
    (tmp_path / "raw" / "train" / "1").mkdir(parents=True)
    for name in ("rafdb", "rafdb-compound", "rafce"):
        sentence = refused(capsys, name, tmp_path / "raw", tmp_path / "out")
        assert "holds n" in sentence or "does not exist" in sentence


# --- the folder copy ------------------------------------------------------------------------------------------------


def write_copy(root, suffix="_aligned"):
    rows = {"train": [], "test": []}
    for n, line in enumerate(list_lines()):
        name, label = line.split()
        split, name = name.split("_")[0], name.replace(".jpg", f"{suffix}.jpg")
        save(root / "DATASET" / split / label / name, photo(n))
        rows[split].append(f"{name},{label}")
    for split, lines in rows.items():
        write_csv(root / f"{split}_labels.csv", "image,label", *lines)
    return root


def test_the_folder_copy(tmp_path):
    root = write_copy(tmp_path / "raw")
    assert detect(root).evidence == "RAF-DB as a copy in folders 1 to 7"
    manifest = pack("rafdb", root, tmp_path / "out", "--val-share", "0")
    assert manifest["kept"] == 21 and labels(tmp_path / "out", "test") == NAMES
    assert manifest["options"]["alignment"] == "aligned" and "folder copy" in manifest["title"]
    assert set(manifest["source"]["files"]) > {"train_labels.csv", "test_labels.csv"}
    plain = pack("rafdb", write_copy(tmp_path / "plain", suffix=""), tmp_path / "b")
    assert plain["options"]["alignment"] == "unknown"


def test_what_folders_and_csv_disagree_on(tmp_path):
    root = write_copy(tmp_path / "raw")
    train = root / "DATASET" / "train"
    (train / "1" / "train_00000_aligned.jpg").rename(train / "2" / "train_00000_aligned.jpg")
    (train / "3" / "train_00002_aligned.jpg").unlink()
    save(train / "4" / "extra.jpg", photo(70))
    save(train / "8" / "train_00080_aligned.jpg", photo(71))
    save(train / "notes.txt", b"x")
    out = tmp_path / "out"
    manifest = pack("rafdb", root, out, "--val-share", "0")
    assert dropped(out) == [
        ["train", "train/notes.txt", -1, "no image file: .txt"],
        ["train", "train/2/train_00000_aligned.jpg", -1,
         "folder and csv disagree: train_00000_aligned.jpg (2 and 1)"],
        ["train", "train_labels.csv", 4, "image file is missing: train_00002_aligned.jpg"],
        ["train", "train/8/train_00080_aligned.jpg", -1, "unknown label: 8"],
    ]
    assert "train_labels.csv does not name 2 images of its split" in manifest["notes"]
    assert manifest["bad_inputs"] == 3


def test_a_copy_with_other_csv_columns_or_none(tmp_path):
    root = write_copy(tmp_path / "raw")
    write_csv(root / "train_labels.csv", "a,b", "1,2")
    (root / "test_labels.csv").unlink()
    notes = pack("rafdb", root, tmp_path / "out")["notes"]
    assert notes[0].startswith("train_labels.csv was not compared with the folders (")
    assert notes[1] == "no test_labels.csv to compare the folders with"


# --- compound -------------------------------------------------------------------------------------------------------


def test_compound(tmp_path):
    root = write_tree(tmp_path / "raw", "compound", 11)
    out = tmp_path / "out"
    manifest = pack("rafdb-compound", root, out, "--val-share", "0")
    assert len(manifest["classes"]) == 11 and manifest["classes"] == sorted(rafdb_compound.PAIRS)
    assert labels(out, "test") == list(rafdb_compound.PAIRS) and manifest["label_mapping"]["4"] == "sadly angry"
    assert rafdb_compound.detect(root).arguments == ("--source", str(root)) and detect(root) is None
    assert planned(rafdb_compound, write_tree(tmp_path / "basic")) is None


def write_ce(root, lines=None, partition=None):
    for n in range(28):
        save(root / "aligned" / f"{n:04d}_aligned.jpg", photo(n))
        save(root / "original" / f"{n:04d}.jpg", photo(n))
    write_list(root / rafce.LABELS, *(lines or [f"{n:04d}.jpg {n % 14}" for n in range(28)]))
    write_list(root / rafce.PARTITION, *(partition or [f"{n:04d}.jpg {n % 3}" for n in range(28)]))
    return root


def test_raf_ce(tmp_path):
    root = write_ce(tmp_path / "raw" / "RAF-CE")
    assert rafce.detect(tmp_path / "raw").arguments == ("--source", str(tmp_path / "raw"))
    out = tmp_path / "out"
    manifest = pack("rafce", tmp_path / "raw", out)
    assert rafce.PARTITION_NOTE in manifest["notes"] and rafce.PARTITION_NOTE in rafce.ACCESS
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 10, "val": 9, "test": 9}
    assert len(manifest["classes"]) == 14 and manifest["label_mapping"]["13"] == "happily sad"
    assert sources(out)["test"][0] == "RAFCE_emolabel.txt:2" and labels(out, "test")[0] == "happily disgusted"
    assert pack("rafce", root, tmp_path / "b", "--alignment", "original")["options"]["alignment"] == "original"


def test_raf_ce_lists_that_disagree(tmp_path):
    lines = [f"{n:04d}.jpg {n % 14}" for n in range(28)]
    partition = [f"{n:04d}.jpg {n % 3}" for n in range(28)]
    lines[3], lines[4], lines[5] = "0003.jpg 14", "../0004.jpg 4", "0006.jpg 5"
    del partition[9]
    partition[0], partition[1] = "0000.jpg 7", "0002.jpg 1"
    root = write_ce(tmp_path / "raw", lines, partition)
    pack("rafce", root, tmp_path / "out")
    name = rafce.LABELS
    assert sorted(dropped(tmp_path / "out"), key=lambda row: row[1:3]) == [
        ["", name, 1, "no split in the partition: 0000.jpg (7)"],
        ["", name, 2, "no split in the partition: 0001.jpg (absent)"],
        ["", name, 3, "no split in the partition: 0002.jpg (1, 2)"],
        ["train", name, 4, "unknown label: 14"],
        ["", name, 5, "path refused: leads out of the source: ../0004.jpg"],
        ["train", name, 6, "listed with different labels: 0006.jpg (5, 6)"],
        ["train", name, 7, "listed with different labels: 0006.jpg (5, 6)"],
        ["", name, 10, "no split in the partition: 0009.jpg (absent)"],
        ["test", rafce.PARTITION, 5, "image has no label: 0004.jpg"],
        ["val", rafce.PARTITION, 6, "image has no label: 0005.jpg"],
    ]


# --- broken lists ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("rafdb"))


@fuzz(80, damage=damages)
def test_broken_lists(small, damage):
    content = damage("".join(line + "\n" for line in list_lines()).encode())
    (small / "basic" / LIST).write_bytes(content)
    plan = planned(rafdb, small, "--val-share", "0")
    if plan is None:
        return
    lines = lines_of(content)
    name = "list_patition_label.txt"
    check_plan(plan, {f"{name}:{n}" for n in lines}, header=f"{name}:{min(lines)}")
    split = {source: split for split, table in plan.samples.items() for source in table["source"]}
    for source, found in kept_lines(plan).items():
        file, label = lines[int(source.split(":")[1])].split()
        assert found == expression(BASIC.names[label]) and file.startswith(split[source])


@fuzz(30, damage=damages)
def test_broken_boxes(small, damage):
    write_list(small / "basic" / LIST, *list_lines())
    path = small / "basic" / "Annotation" / "boundingbox" / "train_00003_boundingbox.txt"
    path.write_bytes(damage(b"40.0 8.0 88.0 56.0 \n"))
    plan = planned(rafdb, small, "--val-share", "0", "--alignment", "original")
    check_plan(plan, {f"list_patition_label.txt:{n}" for n in range(1, 22)})
    assert len(kept_lines(plan)) >= 20


@fuzz(30, damage=damages)
def test_broken_csv_of_a_copy(tmp_path, damage):
    if not (tmp_path / "raw").exists():
        write_copy(tmp_path / "raw")
        (tmp_path / "original.csv").write_bytes((tmp_path / "raw" / "train_labels.csv").read_bytes())
    (tmp_path / "raw" / "train_labels.csv").write_bytes(damage((tmp_path / "original.csv").read_bytes()))
    plan = planned(rafdb, tmp_path / "raw", "--val-share", "0")
    if plan is None:
        return
    places = [*kept_lines(plan), *(drop.place for drop in plan.dropped)]
    assert len(set(places)) == len(places)
    assert sum(not place.startswith("train_labels.csv") for place in places) == 21
    for source, name in kept_lines(plan).items():
        assert name == NAMES[int(source.split("/")[1]) - 1]
