"""SFEW 2.0: aligned and original images, films that stay together, and test labels that were never given."""

import os

import pytest
from fuzzing import ODD, check_plan, damages, fuzz, kept_lines, planned
from hypothesis import strategies as st
from source_trees import dropped, labels, pack, photo, refused, save, sources

from data_prep import sfew
from data_prep.labels import expression
from data_prep.sfew import CLASSES, detect

ALIGNED = {"Train": "Train_Aligned_Faces", "Val": "Val_Aligned_Faces", "Test": "Test_Aligned_Faces"}
INNER = {part: f"{part}/{folder}" for part, folder in ALIGNED.items()}
ORIGINAL = {part: part for part in ALIGNED}


def write_tree(root, folders=ALIGNED, test="withheld"):
    """Four training films of two frames a class, one validation frame a class, seven test images."""
    number = 0
    for name in CLASSES:
        for film in "ABCD":
            for frame in (1, 2):
                path = root / folders["Train"] / name / f"Film{film}{name}_00{number:07d}_0000000{frame}.png"
                save(path, photo(number))
                number += 1
        save(root / folders["Val"] / name / f"Other{name}_000519240_00000005.png", photo(number))
        inner = f"{name}/" if test == "labelled" else ""
        save(root / folders["Test"] / f"{inner}Third{name}_000519240_00000005.png", photo(number + 1))
        number += 2
    return root


@pytest.mark.parametrize("folders", [ALIGNED, INNER, {**ALIGNED, "Val": "Val_Aligned_Faces_new"},
                                     {part: f"{name}/{name}" for part, name in ALIGNED.items()}])
def test_aligned_faces(tmp_path, folders):
    root = write_tree(tmp_path / "raw", folders)
    assert detect(root).arguments == ("--source", str(root), "--alignment", "aligned")
    out = tmp_path / "out"
    manifest = pack("sfew", root, out, "--val-share", "0.25")
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 42, "val": 14, "test": 7}
    assert manifest["dropped"] == {"test label withheld": 7} and manifest["bad_inputs"] == 0
    assert labels(out, "test") == [expression(name) for name in CLASSES]
    films = {split: {path.rpartition("/")[2].split("_")[0] for path in paths} for split, paths in sources(out).items()}
    assert not films["train"] & films["val"] and len(films["val"]) == 7


def test_original_frames(tmp_path):
    root = write_tree(write_tree(tmp_path / "raw", INNER), ORIGINAL)
    manifest = pack("sfew", root, tmp_path / "out", "--alignment", "original")
    assert manifest["kept"] == 56 + 7 and manifest["dropped"] == {"test label withheld": 7}
    assert all("Aligned" not in path for paths in sources(tmp_path / "out").values() for path in paths)
    only = write_tree(tmp_path / "only", ORIGINAL)
    assert detect(only).arguments[-1] == "original" and detect(only / "Train") is None


def test_validation_as_val_and_a_copy_with_test_labels(tmp_path):
    manifest = pack("sfew", write_tree(tmp_path / "raw"), tmp_path / "a", "--validation-as", "val")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 56, "val": 7, "test": 0}
    manifest = pack("sfew", write_tree(tmp_path / "labelled", test="labelled"), tmp_path / "b")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 56, "val": 7, "test": 7}
    assert manifest["options"]["validation_as"] == "val"


def test_what_else_lies_there(tmp_path, capsys):
    root = write_tree(tmp_path / "raw")
    train = root / "Train_Aligned_Faces"
    (train / "Angry").rename(train / "angry")
    save(train / "Bored" / "A_000000001_1.png", photo(100))
    save(train / "Thumbs.db", b"x")
    save(train / "stray.png", photo(101))
    save(train / "Sad" / "notes.txt", b"x")
    save(train / "Sad" / "broken_000000001_1.png", b"x")
    (train / "Sad" / "out.png").symlink_to("/etc/hostname")
    out, top = tmp_path / "out", "Train_Aligned_Faces"
    manifest = pack("sfew", root, out, "--val-share", "0")
    assert [row for row in dropped(out) if row[0] == "train"] == [
        ["train", f"{top}/Sad/notes.txt", -1, "no image file: .txt"],
        ["train", f"{top}/Thumbs.db", -1, "hidden file or folder"],
        ["train", f"{top}/stray.png", -1, "outside of the class folders"],
        ["train", f"{top}/Sad/out.png", -1, f"path refused: a link leads out of the source: {top}/Sad/out.png"],
        ["train", f"{top}/Bored/A_000000001_1.png", -1, "unknown label: Bored"],
        ["train", f"{top}/Sad/broken_000000001_1.png", -1,
         f"unreadable image: {top}/Sad/broken_000000001_1.png (cannot identify image file)"],
    ]
    assert manifest["bad_inputs"] == 3 and manifest["splits"]["train"]["class_counts"]["anger"] == 8
    sentence = refused(capsys, "sfew", root, tmp_path / "no", "--alignment", "original")
    assert "holds no Train/<Class> (--alignment original)" in sentence


def test_published_counts(tmp_path):
    root = write_tree(tmp_path / "raw")
    whole = planned(sfew, root, "--val-share", "0").published
    assert {split: sum(counts.values()) for split, counts in whole.items()} == {"train": 891, "test": 431}
    assert whole["train"]["happy"] == 184 and whole["test"]["surprise"] == 56
    assert set(planned(sfew, root).published) == {"test"}


_names = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20) | st.sampled_from(ODD)
_names = _names.filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)


@fuzz(40, damage=damages, folder=st.sampled_from(CLASSES) | _names, name=_names)
def test_odd_names(tmp_path, damage, folder, name):
    """A class folder or a file of any name, with broken bytes in it."""
    root = tmp_path / "raw"
    if not root.exists():
        write_tree(root)
    content = damage((root / "Val_Aligned_Faces" / "Sad" / "OtherSad_000519240_00000005.png").read_bytes())
    path = root / "Train_Aligned_Faces" / folder / f"{name}.png"
    try:
        new = not path.parent.exists()
        save(path, content)
    except (OSError, UnicodeEncodeError):
        return  # no name for a file here
    place = path.relative_to(root).as_posix()
    try:
        plan = planned(sfew, root, "--val-share", "0.2")
        inputs = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
        hidden = path.parent if folder.startswith(".") else path
        assert hidden.exists()
        if folder.startswith("."):
            inputs = inputs - {place} | {f"Train_Aligned_Faces/{folder}"}
        check_plan(plan, inputs)
        kept = kept_lines(plan)
        assert all(found == expression(source.split("/")[1]) for source, found in kept.items()) and len(kept) >= 63
    finally:
        path.unlink()
        if new:
            os.rmdir(path.parent)
