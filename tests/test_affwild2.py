"""Aff-Wild2: which line belongs to which frame, the names of both generations, what is not annotated or not there."""

import tracemalloc
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzzing import damages, fuzz, packed_or_refused
from hypothesis import strategies as st
from source_trees import dropped, images, labels, pack, photo, refused, samples, save

from data_prep import affwild2
from data_prep.affwild2 import NAMES, UNITS, detect
from data_prep.packed import SPLITS

HEADERS = {
    "EXPR": ",".join(NAMES),
    "VA": "valence,arousal",
    "AU": ",".join(f"AU{unit}" for unit in UNITS[12]),
    "AU8": ",".join(f"AU{unit}" for unit in UNITS[8]),
}
LONG = {"EXPR": "EXPR_Classification_Challenge", "VA": "VA_Estimation_Challenge", "AU": "AU_Detection_Challenge"}
CANONICAL = ["neutral", "anger", "disgust", "fear", "happy", "sad", "surprise"]
VIDEOS = {
    "1-30-1280x720": "train",
    "7": "train",
    "7_left": "train",
    "40-30": "train",
    "9_right": "validation",
    "3": "validation",
}


def face(video: str, frame: int) -> np.ndarray:
    return photo((list(VIDEOS).index(video) * 20 + frame) % 128)


def label_of(video: str, frame: int) -> int:
    return (list(VIDEOS).index(video) + frame) % 7


def text(root: Path, kind: str, video: str, lines: list[str], header: str | None = None, end: str = "\n") -> Path:
    folder = {"train": "Train_Set", "validation": "Validation_Set"}[VIDEOS.get(video, "train")]
    whole = end.join([HEADERS[kind] if header is None else header, *lines]) + end
    return save(root / "Annotations" / LONG[kind] / folder / f"{video}.txt", whole.encode())


def write_films(root: Path, n: int = 6) -> Path:
    """`n` frames a video with a label and a face each."""
    for video in VIDEOS:
        for frame in range(1, n + 1):
            save(root / "cropped_aligned" / video / f"{frame:05d}.jpg", face(video, frame), quality=95)
        text(root, "EXPR", video, [str(label_of(video, frame)) for frame in range(1, n + 1)])
    return root


def everything(out: Path) -> pd.DataFrame:
    """All rows by image, with the class's name."""
    parts = [samples(out, split).assign(split=split, name=labels(out, split)) for split in SPLITS]
    return pd.concat(parts).set_index("image")


def check_labels(out: Path) -> None:
    for image, row in everything(out).iterrows():
        video, frame = image.split("/")
        assert row["name"] == CANONICAL[label_of(video, int(frame[:5]))], image
        assert row["source"].endswith(f"/{video}.txt:{int(frame[:5]) + 1}")


# --- expressions ----------------------------------------------------------------------------------------------------


def test_line_and_frame_belong_together(tmp_path):
    raw, out = write_films(tmp_path / "raw"), tmp_path / "out"
    manifest = pack("affwild2", raw, out, "--size", "48", "--val-share", "0.3")
    check_labels(out)
    found = everything(out)
    for split in SPLITS:
        for image, path in zip(images(out, split), samples(out, split)["image"], strict=True):
            video, frame = path.split("/")
            assert abs(image.astype(int) - face(video, int(frame[:5])).transpose(2, 0, 1)).mean() < 4
    assert {split: facts["n"] for split, facts in manifest["splits"].items()}["test"] == 12
    assert set(found["split"][found.index.str.startswith(("9_right", "3/"))]) == {"test"}
    per_video = found.groupby(found.index.str.replace(r"(_left|_right)?/.*", "", regex=True))["split"].nunique()
    assert (per_video == 1).all() and {"train", "val"} <= set(found["split"])  # 7 and 7_left stay together
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert manifest["label_mapping"]["7"] == "(left out: Other)" and manifest["dropped"] == {}


def test_validation_keeps_its_name_when_asked(tmp_path):
    raw = write_films(tmp_path / "raw")
    manifest = pack("affwild2", raw, tmp_path / "out", "--validation-as", "val", "--size", "16")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 24, "val": 12, "test": 0}


def test_names_of_2020(tmp_path):
    raw = write_films(tmp_path / "raw")
    top = raw / "Annotations" / LONG["EXPR"]
    (top / "Train_Set").rename(top / "Training_Set")
    top.rename(raw / "EXPR_Set")
    (raw / "Annotations").rmdir()
    for path in (raw / "EXPR_Set").rglob("*.txt"):
        path.write_text(
            "\r\n".join(["Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise", *path.read_text().split()[1:]])
        )
    (raw / "cropped_aligned").rename(tmp_path / "faces")
    manifest = pack("affwild2", raw, tmp_path / "out", "--frames", tmp_path / "faces", "--size", "16")
    check_labels(tmp_path / "out")
    assert manifest["kept"] == 36 and manifest["source"]["release"] == "EXPR_Set"
    assert detect(raw).evidence == "EXPR_Set"


def test_what_cannot_be_used_is_counted(tmp_path):
    raw, out = write_films(tmp_path / "raw"), tmp_path / "out"
    faces, expr = raw / "cropped_aligned", f"{LONG['EXPR']}/Train_Set"
    text(raw, "EXPR", "7", ["-1", "7", "8", "x", "", "5"][:4] + ["4", "1.5"])
    text(raw, "EXPR", "7_left", [str(label_of("7_left", k)) for k in range(1, 9)])  # labels > frames
    (faces / "7_left" / "00002.jpg").unlink()  # no face was found
    text(raw, "EXPR", "40-30", [str(label_of("40-30", k)) for k in range(1, 5)])  # frames > labels
    save(faces / "40-30" / "00001.png", photo(1))
    save(faces / "40-30" / "cover.jpg", photo(1))
    save(faces / "40-30" / ".DS_Store", b"x")
    save(faces / "40-30" / "00003.jpg", b"broken")
    save(faces / "va only" / "00001.jpg", photo(1))
    text(raw, "EXPR", "no header", ["1", "2"], header="3")
    text(raw, "EXPR", "blank", ["1", "", "2"])
    text(raw, "EXPR", "mac", ["1", "2"], end="\r")
    text(raw, "EXPR", "order", ["1", "2"], header="Anger,Neutral,Disgust,Fear,Happiness,Sadness,Surprise")
    text(raw, "EXPR", "no faces", ["1", "2"])
    save(raw / "Annotations" / expr / "empty.txt", b"")
    (raw / "Annotations" / expr / "out.txt").symlink_to("/etc/hostname")
    save(raw / "Annotations" / LONG["EXPR"] / "Validation_Set" / "7.txt", b"Neutral,Anger\n1\n")
    manifest = pack("affwild2", raw, out, "--size", "16", "--val-share", "0")
    found = everything(out)
    check = found.drop(index=["7/00005.jpg"])
    assert found.loc["7/00005.jpg", "name"] == "happy"
    for image, row in check.iterrows():
        assert row["name"] == CANONICAL[label_of(image.split("/")[0], int(image.split("/")[1][:5]))]
    unlined = "frame without a label"
    assert sorted(map(tuple, dropped(out)), key=lambda row: (row[1], row[2])) == sorted([
        ("train", f"{expr}/7.txt", 2, "not annotated: -1"),
        ("train", f"{expr}/7.txt", 3, "no expression class: Other"),
        ("train", f"{expr}/7.txt", 4, "unknown label: 8"),
        ("train", f"{expr}/7.txt", 5, "unknown label: x"),
        ("train", f"{expr}/7.txt", 7, "unknown label: 1.5"),
        *(("train", f"{expr}/7_left.txt", k, "no cropped face of this frame") for k in (3, 8, 9)),
        ("train", f"{expr}/40-30.txt", 4, "unreadable image: 40-30/00003.jpg (cannot identify image file)"),
        ("train", "40-30/00001.png", -1, "another file of the same frame"),
        ("train", "40-30/.DS_Store", -1, "hidden file or folder"),
        ("train", "40-30/cover.jpg", -1, "file name is no number of a frame"),
        *(("train", f"40-30/0000{k}.jpg", -1, unlined) for k in (5, 6)),
        ("", "va only", -1, "video without labels of this task"),
        *(("train", f"{expr}/no faces.txt", k, "no folder of cropped faces of this video") for k in (2, 3)),
        ("train", f"{expr}/no header.txt", -1,
         "annotation text without a header: so frames cannot be counted for certain, first line 3"),
        ("train", f"{expr}/blank.txt", -1, "annotation text with a blank line, so frames cannot be counted"),
        ("train", f"{expr}/mac.txt", -1, "annotation text with unusual line ends or bytes"),
        ("train", f"{expr}/order.txt", -1,
         "header names other classes: Anger,Neutral,Disgust,Fear,Happiness,Sadness,Surprise"),
        ("train", f"{expr}/empty.txt", -1,
         f"annotation text cannot be used: image file is empty: {expr}/empty.txt"),
        ("train", f"{expr}/out.txt", -1,
         f"annotation text cannot be used: path refused: a link leads out of the source: {expr}/out.txt"),
        ("test", f"{LONG['EXPR']}/Validation_Set/7.txt", -1,
         f"second text of a video: {expr}/7.txt, {LONG['EXPR']}/Validation_Set/7.txt"),
    ], key=lambda row: (row[1], row[2]))  # fmt: skip
    assert manifest["kept"] == 6 + 1 + 5 + 3 + 12


def test_every_nth_frame(tmp_path):
    manifest = pack("affwild2", write_films(tmp_path / "raw"), tmp_path / "out", "--every", "4", "--size", "16")
    assert set(everything(tmp_path / "out").index.str[-9:]) == {"00001.jpg", "00005.jpg"}
    assert manifest["dropped"] == {"not drawn (--every)": 24} and manifest["bad_inputs"] == 0
    check_labels(tmp_path / "out")


# --- valence, arousal, action units ---------------------------------------------------------------------------------


def units(frame: int) -> list[str]:
    return [str((frame >> (k % 3)) & 1) for k in range(12)]


def add_values(raw: Path) -> None:
    text(raw, "VA", "7", [f"0.{k},-0.{k}" for k in range(1, 6)] + ["-5,-5"])
    text(raw, "VA", "3", ["-5,-5", "0.5,0.25", "2,0", "a,b", "0.5,nan", "1,-1"])
    text(
        raw,
        "AU",
        "7",
        [",".join(units(k)) for k in range(1, 4)] + [",".join(["-1"] * 12), "1,0", ",".join(["-1", *["1"] * 11])],
    )
    text(raw, "AU", "9_right", ["0,1,1,1,0,0,-1,1"] * 6, header=HEADERS["AU8"])


def test_values_of_the_other_tasks_become_columns(tmp_path):
    raw, out = write_films(tmp_path / "raw"), tmp_path / "out"
    add_values(raw)
    pack("affwild2", raw, out, "--size", "16")
    check_labels(out)
    found = everything(out)
    assert np.allclose(found.loc["7/00003.jpg", ["valence", "arousal"]].astype(float), [0.3, -0.3])
    assert found.loc["3/00006.jpg", "valence"] == 1 and np.isnan(found.loc["7/00006.jpg", "valence"])
    assert found.loc["7/00003.jpg", "au1"] == 1 and found.loc["7/00001.jpg", "au2"] == 0
    assert np.isnan(found.loc["7/00006.jpg", "au1"]) and found.loc["7/00006.jpg", "au26"] == 1
    assert found.loc["9_right/00001.jpg", "au25"] == 1 and np.isnan(found.loc["9_right/00001.jpg", "au20"])
    va, au = f"{LONG['VA']}/Validation_Set/3.txt", f"{LONG['AU']}/Train_Set/7.txt"
    assert sorted(map(tuple, dropped(out))) == [
        ("test", va, 4, "valence or arousal outside -1..1: 2,0"),
        ("test", va, 5, "valence and arousal are not two numbers: a,b"),
        ("test", va, 6, "valence or arousal outside -1..1: 0.5,nan"),
        ("train", au, 6, "action units are not 0, 1 or -1: 1,0"),
    ]
    assert found.loc["3/00003.jpg", "name"] and len(found) == 36  # their images stay


def test_images_without_expressions(tmp_path, capsys):
    raw = write_films(tmp_path / "raw")
    add_values(raw)
    manifest = pack("affwild2", raw, tmp_path / "va", "--task", "va", "--size", "16")
    assert manifest["classes"] == ["unlabelled"] and manifest["name"] == "affwild2-va" and manifest["kept"] == 7
    assert manifest["dropped"]["not annotated"] == 2 and "unlabelled" in manifest["notes"][0]
    found = everything(tmp_path / "va")
    assert np.allclose(found.loc["7/00002.jpg", ["valence", "arousal"]].astype(float), [0.2, -0.2])
    pack("affwild2", raw, tmp_path / "au", "--task", "au", "--label-au", "1", "--size", "16", "--val-share", "0")
    names = everything(tmp_path / "au")["name"]
    assert names[[f"7/0000{k}.jpg" for k in (1, 2, 3)]].tolist() == ["au1 present", "au1 absent", "au1 present"]
    reasons = [row[3] for row in dropped(tmp_path / "au")]
    assert reasons.count("action unit of --label-au is unknown") == 1  # frame 6
    sentence = refused(capsys, "affwild2", raw, tmp_path / "no", "--task", "au", "--label-au", "5")
    assert sentence.startswith("--label-au 5: the set has the action units 1, 2, 4")
    assert "is for --task au" in refused(capsys, "affwild2", raw, tmp_path / "no", "--label-au", "1")
    assert "--task mtl" in refused(capsys, "affwild2", raw, tmp_path / "no", "--task", "mtl")


def test_multi_task_texts(tmp_path):
    raw, out = write_films(tmp_path / "raw"), tmp_path / "out"
    header, au = "image,valence,arousal,expression,aus", ",".join(units(5))
    for name, videos in (("train_set", ["7", "7_left", "40-30", "1-30-1280x720"]), ("validation_set", ["3"])):
        lines = [f"{v}/0000{k}.jpg,0.{k},-0.5,{label_of(v, k)},{au}" for v in videos for k in (6, 2, 3)]
        save(raw / "Annotations" / "MTL_Challenge" / f"{name}.txt", "\n".join([header, *lines]).encode())
    path = raw / "Annotations" / "MTL_Challenge" / "train_set.txt"
    more = [
        "7/00004.jpg,-5,-5,-1," + au,
        "../00004.jpg,0,0,1," + au,
        "7/00005.jpg,0,0,9," + au,
        "nothing",
        "3/00004.jpg,-5,0,2," + au,
    ]
    path.write_text(
        path.read_text() + "\n" + "\n".join([*more, "7/00006.jpg,0.5,0.5,1," + au, "7/00001.jpg,0.5,0.5,1,1"])
    )
    manifest = pack("affwild2", raw, out, "--task", "mtl", "--size", "16", "--val-share", "0")
    found = everything(out)
    for image, row in found.iterrows():
        video, frame = image.split("/")
        assert row["name"] == CANONICAL[label_of(video, int(frame[:5]))] and row["au2"] == int(units(5)[1])
        expected = [np.nan] * 2 if image == "3/00004.jpg" else [int(frame[:5]) / 10, -0.5]  # -5 in one of the two
        assert np.allclose(row[["valence", "arousal"]].astype(float), expected, equal_nan=True)
    file = "MTL_Challenge/train_set.txt"
    reasons = {row[2]: row[3] for row in dropped(out) if row[1] == file}
    assert reasons[14] == "not annotated: -1" and reasons[15] == "line names no image: ../00004.jpg"
    assert reasons[16] == "unknown label: 9" and reasons[17] == "line names no image: nothing"
    assert reasons[2] == reasons[19] == "frame is listed twice"
    assert reasons[20] == "wrong number of fields: 5 instead of 16"
    assert manifest["dropped"]["frame without a label"] == 3 * 3 + 5
    assert manifest["dropped"]["second text of a video"] == 3


def test_sources_that_are_none(tmp_path, capsys):
    assert "holds no folder EXPR_Classification" in refused(capsys, "affwild2", tmp_path, tmp_path / "out")
    raw = write_films(tmp_path / "raw")
    (raw / "cropped_aligned").rename(raw / "faces")
    assert "by --frames DIR" in refused(capsys, "affwild2", raw, tmp_path / "out")
    sentence = refused(capsys, "affwild2", raw, tmp_path / "out", "--frames", raw / "gone")
    assert sentence == f"no --source {raw / 'gone'}"


# --- damage ---------------------------------------------------------------------------------------------------------


def test_memory_holds_the_texts_of_one_video_at_a_time(tmp_path):
    """Three texts a video and no faces: what remains of a line is its record."""

    def peak(videos: int) -> int:
        for video in range(videos):
            for kind, line in (("EXPR", "3"), ("VA", "0.123,-0.345"), ("AU", ",".join("010011010010"))):
                text(tmp_path / str(videos), kind, f"v{video}", [line] * 1000)
        (tmp_path / str(videos) / "cropped_aligned").mkdir()
        parser = ArgumentParser()
        affwild2.add_arguments(parser)
        options = parser.parse_args(["--source", str(tmp_path / str(videos))])
        tracemalloc.start()
        plan = affwild2.plan(options)
        assert len(plan.dropped) == 1000 * videos and len(plan.sha256) == 64
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(1)
    assert (peak(9) - peak(3)) / 6000 < 300  # bytes a line


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = write_films(tmp_path_factory.mktemp("affwild2") / "raw")
    add_values(root)
    return root


@fuzz(12, damage=damages, kind=st.sampled_from(["EXPR", "VA", "AU"]))
def test_damaged_texts_give_no_wrong_label(raw, damage, kind):
    path = raw / "Annotations" / LONG[kind] / "Train_Set" / "7.txt"
    content = path.read_bytes()
    text = damage(content)
    path.write_bytes(text)
    try:
        out = packed_or_refused("affwild2", raw, raw.parent / "out", "--size", "8", "--val-share", "0")
    finally:
        path.write_bytes(content)
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for image, row in everything(out).iterrows():
        video, frame = image.split("/")[0], int(image.split("/")[1][:5])
        if video != "7":
            assert row["name"] == CANONICAL[label_of(video, frame)]
        elif kind == "EXPR":
            assert row["name"] == CANONICAL[int(lines[frame])]
        elif kind == "VA" and not np.isnan(row.get("valence", np.nan)):
            assert np.allclose(row[["valence", "arousal"]].astype(float), [float(v) for v in lines[frame].split(b",")])
        elif kind == "AU" and not np.isnan(row.get("au1", np.nan)):
            assert row["au1"] == float(lines[frame].split(b",")[0])
