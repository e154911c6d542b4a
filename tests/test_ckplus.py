"""CK+ and CK+48: which frames are used, labels by sequence, folds of people."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzzing import damages, fuzz, packed_or_refused
from hypothesis import strategies as st
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources

from data_prep import ck48, ckplus
from data_prep.__main__ import main
from data_prep.labels import EIGHT_CLASSES
from data_prep.packed import SPLITS

OFFICIAL = ["neutral", "anger", "contempt", "disgust", "fear", "happy", "sad", "surprise"]
PEOPLE = [f"S{k:03d}" for k in (5, 10, 11, 14, 22, 26)]


def frame(person: str, sequence: str, number: int) -> str:
    return f"cohn-kanade-images/{person}/{sequence}/{person}_{sequence}_{number:08d}.png"


def emotion(root: Path, person: str, sequence: str, number: int, text: str) -> Path:
    path = root / "Emotion" / person / sequence / f"{person}_{sequence}_{number:08d}_emotion.txt"
    return save(path, text.encode())


def write_sequence(root: Path, person: str, sequence: str, numbers: range, label: int | None) -> None:
    for number in numbers:
        name = frame(person, sequence, number)
        save(root / name, photo((PEOPLE.index(person) * 20 + int(sequence) * 7 + number) % 128, 32, colour=False))
    (root / "Emotion" / person / sequence).mkdir(parents=True, exist_ok=True)
    if label is not None:
        emotion(root, person, sequence, numbers[-1], f"   {label:.7e}\n")


def write_ckplus(root: Path) -> Path:
    """Two labelled sequences of six frames a person, one without a label."""
    for k, person in enumerate(PEOPLE):
        write_sequence(root, person, "001", range(1, 7), k + 1)
        write_sequence(root, person, "002", range(1, 7), 7 - k)
        write_sequence(root, person, "003", range(1, 3), None)
    return root


def true_label(source: str) -> str:
    """By the published rule, from a kept frame's path."""
    person, sequence, number = Path(source).stem.split("_")
    k = PEOPLE.index(person)
    return "neutral" if int(number) == 1 else OFFICIAL[k + 1 if sequence == "001" else 7 - k]


def everything(out: Path) -> dict[str, str]:
    """Source -> class, of all splits."""
    return {source: label for split in SPLITS for source, label in zip(sources(out)[split], labels(out, split))}


# --- CK+ ------------------------------------------------------------------------------------------------------------


def test_first_frame_neutral_last_three_the_label(tmp_path):
    raw, out = write_ckplus(tmp_path / "raw"), tmp_path / "out"
    manifest = pack("ckplus", raw, out, "--split-by-subject", "3", "--size", "32")
    found = everything(out)
    kept = {frame(person, sequence, n) for person in PEOPLE for sequence in ("001", "002") for n in (1, 4, 5, 6)}
    assert set(found) == kept and all(found[source] == true_label(source) for source in kept)
    assert manifest["classes"] == list(EIGHT_CLASSES) and manifest["label_mapping"]["6"] == "sad"
    left_out = "sequence without an emotion label"
    assert manifest["dropped"] == {"frame between the neutral one and the peak": 24, left_out: 12}
    assert ["", frame("S010", "001", 2), -1, "frame between the neutral one and the peak"] in dropped(out)
    assert (
        manifest["notes"] == ["12 of 18 sequences have a label (published: 327 of 593)"] and not manifest["bad_inputs"]
    )
    assert np.array_equal(images(out, "train")[0, 0], np.asarray(read(raw / sources(out)["train"][0])))


def read(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def test_nobody_is_in_two_splits_in_any_fold(tmp_path):
    raw, tested = write_ckplus(tmp_path / "raw"), []
    for fold in range(3):
        out = tmp_path / f"out{fold}"
        pack("ckplus", raw, out, "--split-by-subject", "3", "--fold", str(fold), "--size", "16")
        people = [{Path(source).name[:4] for source in sources(out)[split]} for split in SPLITS]
        assert all(people) and len(set().union(*people)) == sum(map(len, people)) == 6
        subjects = [set(samples(out, split)["subject"]) for split in SPLITS]
        assert len(set().union(*subjects)) == 6
        tested += people[2]
    assert sorted(tested) == PEOPLE


def test_other_choices_of_frames(tmp_path):
    raw = write_ckplus(tmp_path / "raw")
    three = ["--split-by-subject", "3", "--size", "16"]
    manifest = pack("ckplus", raw, tmp_path / "peak", *three, "--no-neutral", "--peak-frames", "1")
    assert set(everything(tmp_path / "peak")) == {frame(p, s, 6) for p in PEOPLE for s in ("001", "002")}
    assert manifest["classes"] == list(EIGHT_CLASSES[1:]) and manifest["options"]["neutral"] is False
    assert manifest["dropped"]["frame before the peak"] == 60
    pack("ckplus", raw, tmp_path / "long", *three, "--peak-frames", "50")
    assert all(label == true_label(source) for source, label in everything(tmp_path / "long").items())
    assert len(everything(tmp_path / "long")) == 72


def test_a_random_split_is_refused(tmp_path, capsys):
    for name in ("ckplus", "ck48"):
        with pytest.raises(SystemExit, match="2"):
            main([name, "--source", str(tmp_path), "--out", str(tmp_path / "out"), "--test-share", "0.2"])
        assert "--test-share" in capsys.readouterr().err
    sentence = refused(capsys, "ckplus", write_ckplus(tmp_path / "raw"), tmp_path / "out")
    assert sentence == "--split-by-subject 10: there are only 6 subjects"


def test_what_cannot_be_used_is_counted(tmp_path):
    raw, out = write_ckplus(tmp_path / "raw"), tmp_path / "out"
    emotion(raw, "S005", "001", 6, "8.0")
    emotion(raw, "S005", "002", 6, "")
    emotion(raw, "S010", "001", 6, "3.5")
    emotion(raw, "S010", "002", 6, "1 2")
    emotion(raw, "S011", "001", 5, "3.0")  # beside 6
    os.rename(*(raw / "Emotion" / "S011" / "002" / f"S011_002_{n:08d}_emotion.txt" for n in (6, 4)))
    emotion(raw, "S999", "001", 9, "1")
    write_sequence(raw, "S014", "004", range(9, 10), 5)
    save(raw / frame("S014", "001", 6), b"broken")
    save(raw / "cohn-kanade-images" / "S014" / "001" / ".DS_Store", b"x")
    save(raw / "cohn-kanade-images" / "S014" / "001" / "readme.png", photo(1))
    save(raw / "cohn-kanade-images" / "S014" / "001" / "S014_001_00000005.jpg", photo(1))
    save(raw / "cohn-kanade-images" / "S014" / "001" / "S014_002_00000007.png", photo(1))
    save(tmp_path / "secret.txt", b"3.0")
    (raw / "Emotion" / "S022" / "003" / "S022_003_00000002_emotion.txt").symlink_to(tmp_path / "secret.txt")
    manifest = pack("ckplus", raw, out, "--split-by-subject", "3", "--size", "16")
    top, end = "cohn-kanade-images/S014/001", "_emotion.txt"
    found = {row[1]: row[3] for row in dropped(out)}
    label = "unusable emotion label: "
    assert found[frame("S005", "001", 1)] == f"{label}8.0 in Emotion/S005/001/S005_001_00000006{end}"
    assert found[frame("S005", "002", 6)] == f"{label}file is empty, Emotion/S005/002/S005_002_00000006{end}"
    assert found[frame("S010", "001", 3)].startswith(f"{label}3.5 in") and "1 2 in" in found[frame("S010", "002", 3)]
    assert found[frame("S011", "001", 6)].startswith(f"{label}two files: Emotion/S011/001/S011_001_00000005")
    assert found[f"Emotion/S999/001/S999_001_00000009{end}"] == "emotion label without images"
    assert found[frame("S022", "003", 1)].startswith(f"{label}path refused")
    assert found[f"{top}/S014_001_00000006.png"].startswith("unreadable image")
    assert found[f"{top}/.DS_Store"] == "hidden file or folder"
    assert found[f"{top}/readme.png"] == "file name without person, sequence and frame"
    assert found[f"{top}/S014_001_00000005.png"] == "another file of the same frame"
    assert found[f"{top}/S014_002_00000007.png"] == "folders and file name tell different sequences"
    assert everything(out)[frame("S014", "004", 9)] == "happy"  # one frame is the peak
    assert "in 1 sequences the label names another frame" in manifest["notes"][1]
    assert manifest["inputs"] == 6 * 14 + 1 + 4 + 1


def test_detect_and_sources_that_are_none(tmp_path, capsys):
    raw = write_ckplus(tmp_path / "down" / "CK+")
    assert ckplus.detect(raw).arguments == ("--source", str(raw)) and ckplus.detect(tmp_path / "down")
    shutil.rmtree(raw / "Emotion")
    assert ckplus.detect(raw) is None
    assert "holds no folder Emotion (labels)" in refused(capsys, "ckplus", raw, tmp_path / "out")


# --- CK+48 ----------------------------------------------------------------------------------------------------------

FOLDERS = ["anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"]


def write_ck48(root: Path, folders=FOLDERS) -> Path:
    """Three frames of a sequence for each class and two people."""
    for k, name in enumerate(folders):
        for person in (PEOPLE[k % 6], PEOPLE[(k + 1) % 6]):
            for n in (17, 18, 19):
                save(root / name / f"{person}_{k + 1:03d}_{n:08d}.png", photo(k * 17 + n - 17, colour=False))
    return root


@pytest.mark.parametrize("wrapper", ["", "CK+48", "train"])
def test_folders_by_name_and_people_apart(tmp_path, wrapper):
    raw = tmp_path / "raw"
    top = write_ck48(raw / wrapper)
    if wrapper == "train":
        os.makedirs(raw / "test" / "anger")
        os.rename(top / "anger" / "S005_001_00000017.png", raw / "test" / "anger" / "S005_001_00000017.png")
        os.makedirs(raw / "val" / "anger")
    out = tmp_path / "out"
    manifest = pack("ck48", raw, out, "--split-by-subject", "3")
    assert manifest["classes"] == list(EIGHT_CLASSES[1:]) and manifest["kept"] == 42
    people = [{Path(source).name[:4] for source in sources(out)[split]} for split in SPLITS]
    assert all(people) and len(set().union(*people)) == sum(map(len, people)) == 6
    expected = {"sadness": "sad"}
    for source, label in everything(out).items():
        folder = source.split("/")[-2]
        assert label == expected.get(folder, folder)
    assert "anger: 6 images, published 135" in manifest["notes"]
    assert any("own split (test, train, val) is not used" in note for note in manifest["notes"]) == (wrapper == "train")


def test_ck48_flaws(tmp_path, capsys):
    raw, out = write_ck48(tmp_path / "raw"), tmp_path / "out"
    save(raw / "fear" / "17.png", photo(3))
    save(raw / "fear" / "S026_009_00000001.png", b"broken")
    save(raw / "fear" / "Thumbs.db", b"x")
    save(raw / "none" / "S026_009_00000001.png", photo(1))
    pack("ck48", raw, out, "--split-by-subject", "3")
    found = {row[1]: row[3] for row in dropped(out)}
    broken = "fear/S026_009_00000001.png"
    assert found == {
        "fear/17.png": "file name does not tell the person",
        broken: f"unreadable image: {broken} (cannot identify image file)",
        "fear/Thumbs.db": "hidden file or folder",
        "none/S026_009_00000001.png": "no expression class: none",
    }
    assert (
        ck48.detect(raw)
        and ck48.detect(tmp_path / "none") is None
        and ck48.detect(write_ckplus(tmp_path / "x")) is None
    )
    for number, name in enumerate(FOLDERS):
        os.rename(raw / name, raw / str(number))
    shutil.rmtree(raw / "none")
    assert "--class-names" in refused(capsys, "ck48", raw, tmp_path / "no", "--split-by-subject", "3")
    given = ["--split-by-subject", "3", "--class-names", ",".join(FOLDERS)]
    pack("ck48", raw, tmp_path / "numbers", *given)
    assert everything(tmp_path / "numbers")["5/S026_006_00000017.png"] == "sad"
    for path in (tmp_path / "raw").glob("*/*.png"):
        path.rename(path.with_name(path.name.replace("_", "-")))
    assert "do not tell the person" in refused(capsys, "ck48", raw, tmp_path / "no", *given)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_ckplus(tmp_path_factory.mktemp("ckplus") / "raw")


odd_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@fuzz(10, damage=damages, more=st.just(b"") | st.binary(max_size=12), name=odd_names)
def test_damaged_labels_give_no_wrong_label(raw, damage, more, name):
    path = raw / "Emotion" / "S005" / "001" / "S005_001_00000006_emotion.txt"
    odd = raw / "cohn-kanade-images" / "S005" / "001" / name
    content = path.read_bytes()
    text = damage(content) + more
    path.write_bytes(text)
    made = not odd.exists() and len(name.encode()) < 250
    if made:
        odd.write_bytes(b"x")
    try:
        out = packed_or_refused("ckplus", raw, raw.parent / "out", "--split-by-subject", "3", "--size", "8")
    finally:
        path.write_bytes(content)
        if made:
            odd.unlink()
    for source, label in everything(out).items():
        if "S005/001" not in source or source.endswith("_00000001.png"):
            assert label == true_label(source)
        else:  # whatever stands there now is a plain number
            assert float(text.removeprefix(b"\xef\xbb\xbf").decode("ascii")) == OFFICIAL.index(label)
    assert len([row for row in dropped(out) if "S005/001" in row[1]]) in (2 + made, 6 + made)
