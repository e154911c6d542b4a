"""Folders of classes: layouts, the order of classes, what else lies in such folders."""

import os

import numpy as np
import pandas as pd
import pytest
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources

from data_prep.audit import audit_packed
from data_prep.image_folder import detect

NAMES = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


def write_tree(root, splits=("train", "test"), names=NAMES, each=3):
    """`each` faces a class and split; their numbers run on."""
    number = 0
    for split in splits:
        for name in names:
            for _ in range(each):
                save(root / split / name / f"{number}.png", photo(number))
                number += 1
    return root


def test_splits_of_the_folders_and_a_val_cut_from_train(tmp_path):
    out = tmp_path / "out"
    manifest = pack("image_folder", write_tree(tmp_path / "raw"), out, "--size", "48", "--val-share", "0.34")
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 14, "val": 7, "test": 21}
    assert set(manifest["splits"]["val"]["class_counts"].values()) == {1}
    assert manifest["label_mapping"]["angry"] == "anger" and manifest["dropped"] == {}
    assert labels(out, "test") == [{"angry": "anger"}.get(name, name) for name in NAMES for _ in range(3)]
    assert sources(out)["test"][0] == "test/angry/21.png" and "image" not in samples(out, "test")
    assert np.array_equal(images(out, "test")[0], photo(21).transpose(2, 0, 1))


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV"])
def test_names_of_the_val_split(tmp_path, val):
    manifest = pack("image_folder", write_tree(tmp_path / "raw", ("Training", val), NAMES[:3], 2), tmp_path / "out")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 6, "val": 6, "test": 0}


def test_no_splits_nested_films_and_a_wrapper_folder(tmp_path):
    root = tmp_path / "raw" / "download" / "set"
    for number in range(60):
        save(root / ["Bird", "truck"][number % 2] / f"film{number // 6}" / f"{number}.jpg", photo(number))
    out = tmp_path / "out"
    manifest = pack("image_folder", tmp_path / "raw", out, "--val-share", "0.3", "--test-share", "0.2", "--grey")
    assert manifest["classes"] == ["Bird", "truck"] and manifest["image"]["channels"] == 1
    films = {split: {path.rpartition("/")[0] for path in found} for split, found in sources(out).items()}
    assert all(films.values()) and len(set().union(*films.values())) == sum(map(len, films.values())) == 20


def test_what_else_lies_there_is_counted(tmp_path):
    root = write_tree(tmp_path / "raw", names=NAMES[:3], each=2)
    save(root / "train" / "angry" / "._0.png", b"x")
    save(root / "train" / "angry" / "Thumbs.db", b"x")
    save(root / "train" / "angry" / "broken.jpg", b"x")
    save(root / "train" / "angry" / "empty.jpg", b"")
    save(root / "train" / "labels.csv", b"x")
    save(root / "train" / "none" / "1.png", photo(90))
    save(root / "__MACOSX" / "train" / "angry" / "0.png", b"x")
    save(root / "extra" / "0.png", photo(91))
    save(root / "train" / "fear" / "notes.txt", b"x")
    (root / "train" / "fear" / "out.png").symlink_to("/etc/hostname")
    (root / "train" / "fear" / "all").symlink_to(root / "test")
    os.mkfifo(root / "train" / "fear" / "pipe.png")
    with open(os.fsencode(root / "train" / "fear") + b"/\xff.png", "wb") as file:
        file.write(b"x")
    out, broken = tmp_path / "out", "train/angry/broken.jpg"
    manifest = pack("image_folder", root, out, "--val-share", "0")
    assert sorted(dropped(out), key=lambda row: row[1]) == [
        ["", "__MACOSX", -1, "hidden file or folder"],
        ["", "extra/0.png", -1, "outside of the class folders"],
        ["train", "train/angry/._0.png", -1, "hidden file or folder"],
        ["train", "train/angry/Thumbs.db", -1, "hidden file or folder"],
        ["train", broken, -1, f"unreadable image: {broken} (cannot identify image file)"],
        ["train", "train/angry/empty.jpg", -1, "image file is empty: train/angry/empty.jpg"],
        ["train", "train/fear/\\udcff.png", -1, "file name is not UTF-8"],
        ["train", "train/fear/all", -1, "link to a folder is not followed"],
        ["train", "train/fear/notes.txt", -1, "no image file: .txt"],
        ["train", "train/fear/out.png", -1, "path refused: a link leads out of the source: train/fear/out.png"],
        ["train", "train/fear/pipe.png", -1, "not a regular file: train/fear/pipe.png"],
        ["train", "train/labels.csv", -1, "no image file: .csv"],
        ["train", "train/none/1.png", -1, "no expression class: none"],
    ]
    assert manifest["inputs"] == 12 + 13 and manifest["kept"] == 12 and manifest["bad_inputs"] == 6
    assert manifest["label_mapping"]["none"] == "(left out: none)"


def test_numbered_folders_need_names(tmp_path, capsys):
    root = write_tree(tmp_path / "raw", names=list("1234567"), each=2)
    assert "--class-names NAME,NAME" in refused(capsys, "image_folder", root, tmp_path / "out")
    rafdb = "Surprise,Fear,Disgust,Happiness,Sadness,Anger,Neutral"
    manifest = pack("image_folder", root, tmp_path / "out", "--class-names", rafdb)
    assert manifest["classes"][0] == "neutral" and manifest["label_mapping"]["7"] == "neutral"
    assert labels(tmp_path / "out", "test")[:4] == ["surprise", "surprise", "fear", "fear"]
    sentence = refused(capsys, "image_folder", root, tmp_path / "no", "--class-names", "a,b,c,d,e,f")
    assert "6 names for 7 labels" in sentence


def test_sources_that_are_no_folders_of_classes(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "flat" / "1.png", photo(1))
    save(tmp_path / "set.tar.gz", b"x")
    write_tree(tmp_path / "two", ("train", "val", "valid"), NAMES[:2], 1)
    sentences = {
        "gone": "no --source",
        "empty": "holds no images in CLASS/",
        "flat": "holds no images in CLASS/",
        "set.tar.gz": "is an archive: unpack it first",
        "two": "holds val and valid, both meaning val",
    }
    for name, sentence in sentences.items():
        assert sentence in refused(capsys, "image_folder", tmp_path / name, tmp_path / "out"), name


def test_strict_stops_at_a_broken_image_and_not_at_other_files(tmp_path, capsys):
    root = write_tree(tmp_path / "raw", names=NAMES[:2])
    save(root / "train" / "readme.txt", b"x")
    pack("image_folder", root, tmp_path / "out", "--strict")
    save(root / "train" / "angry" / "broken.jpg", b"x")
    assert "train/angry/broken.jpg: unreadable" in refused(capsys, "image_folder", root, tmp_path / "no", "--strict")


def test_detect_tells_classes_and_splits(tmp_path):
    found = detect(write_tree(tmp_path / "raw", names=NAMES[:2]))
    assert found.evidence == "2 class folders (angry, disgust) in test, train" and found.out == "raw"
    numbered = detect(write_tree(tmp_path / "numbers", ("",), ["0", "1"]))
    assert numbered.arguments[2:] == ("--class-names", "0=NAME,1=NAME")
    assert detect(tmp_path / "raw" / "train" / "angry") is None


def test_sizes_before_resizing_reach_the_audit(tmp_path):
    for number in range(20):
        save(tmp_path / "raw" / ["Angry", "Sad"][number % 2] / f"{number:02d}.png", photo(number))
    save(tmp_path / "raw" / "Sad" / "tiny.png", photo(30, 20))
    save(tmp_path / "raw" / "Sad" / "wide.png", photo(31)[:20])
    pack("image_folder", tmp_path / "raw", tmp_path / "out", "--size", "48", "--val-share", "0.2")
    sizes = pd.concat([samples(tmp_path / "out", split) for split in ("train", "val")]).set_index("source")
    assert tuple(sizes.loc["Sad/tiny.png", ["width", "height"]]) == (20, 20)
    assert tuple(sizes.loc["Sad/wide.png", ["width", "height"]]) == (48, 20)
    assert len(sizes) == 22 and (sizes["width"] == 48).sum() == 21
    odd = audit_packed(tmp_path / "out").rows("sizes")
    assert sorted(odd["source"]) == ["Sad/tiny.png", "Sad/wide.png"]
