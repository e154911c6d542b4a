"""The reader's own table: columns, soft labels, values with sentinels, boxes, splits by subject."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import check_plan, damages, fuzz, lines_of, planned
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources, write_csv

from data_prep import csv_table
from data_prep.csv_table import detect

NAMES = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"]


def faces(root, n=12):
    for number in range(n):
        save(root / "img" / f"{number}.png", photo(number))
    return root


def mapping(*more: str) -> list[str]:
    return ["--image-column", "file", "--size", "48", *more]


def test_labels_by_name_with_splits(tmp_path):
    usage = ["Training", "validation", "test"]
    spelt = ["Happiness", "sad", "Angry", "fear"]
    rows = [f"img/{n}.png,{spelt[n % 4]},{usage[n % 3]}" for n in range(12)]
    rows[5:7] = ["img/5.png,hapy,test", "img/6.png,sad,holdout"]
    source = write_csv(faces(tmp_path) / "list.csv", "file,emotion,usage", *rows)
    out = tmp_path / "out"
    manifest = pack("table", source, out, *mapping("--label-column", "emotion", "--split-column", "usage"))
    assert manifest["classes"] == ["happy", "sad", "fear", "anger"]
    assert sources(out)["val"] == [f"list.csv:{n + 2}" for n in (1, 4, 7, 10)]
    assert labels(out, "val") == ["sad", "happy", "fear", "anger"]
    assert samples(out, "val")["image"].tolist() == [f"img/{n}.png" for n in (1, 4, 7, 10)]
    assert np.array_equal(images(out, "val")[1], photo(4).transpose(2, 0, 1))
    assert dropped(out) == [
        ["", "list.csv", 8, "unknown split: holdout"],
        ["test", "list.csv", 7, "unknown label: hapy"],
    ]
    assert "list.csv" in manifest["source"]["files"] and manifest["options"]["label_column"] == "emotion"


def test_numbers_need_names(tmp_path, capsys):
    rows = [f"img/{n}.png,{n % 8}.0" for n in range(12)]
    source = write_csv(faces(tmp_path) / "list.csv", "file,label", *rows)
    given = mapping("--label-column", "label")
    assert "say what they are with --class-names" in refused(capsys, "table", source, tmp_path / "out", *given)
    manifest = pack("table", source, tmp_path / "out", *given, "--class-names", ",".join(NAMES), "--val-share", "0")
    assert manifest["classes"] == NAMES and labels(tmp_path / "out", "train") == [NAMES[n % 8] for n in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_row_that_can_be_used(tmp_path, capsys, workers):
    source = write_csv(tmp_path / "list.csv", "file,label", "img/none.png,happy")
    given = mapping("--label-column", "label", "--workers", workers)
    said = refused(capsys, "table", source, tmp_path / "out", *given)
    assert said.endswith("not one usable image in the source (1 x image file is missing)")


def test_soft_labels_in_another_order(tmp_path):
    order = ["anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    shares = np.random.default_rng(0).random((12, 8))
    rows = [f"img/{n}.png," + ",".join(map(str, shares[n])) for n in range(12)]
    rows[3] = "img/3.png,0,0,0,0,0,0,0,0"
    rows[4] = "img/4.png,x,0,0,0,0,0,0,1"
    rows[5] = "img/5.png,-1,0,0,0,0,0,0,2"
    columns = [f"p{k}" for k in range(8)]
    source = write_csv(faces(tmp_path) / "plus.csv", ",".join(["file", *columns]), *rows)
    given = mapping("--soft-columns", ",".join(columns), "--class-names", ",".join(order), "--val-share", "0")
    out = tmp_path / "out"
    manifest = pack("table", source, out, *given)
    assert manifest["classes"] == NAMES and manifest["label_mapping"]["p0"] == "anger"
    kept = [n for n in range(12) if n not in (3, 4, 5)]
    expected = shares[kept] / shares[kept].sum(1, keepdims=True)
    found = np.stack(samples(out, "train")["soft"])
    assert np.allclose(found, expected[:, [order.index(name) for name in NAMES]], atol=1e-6)
    assert labels(out, "train") == [order[k] for k in shares[kept].argmax(1)]
    assert [row[2:] for row in dropped(out)] == [
        [5, "unusable soft label: sum 0"],
        [6, "unusable soft label: not a number"],
        [7, "unusable soft label: a negative share"],
    ]


def test_values_boxes_and_subjects_from_parquet(tmp_path):
    frame = pd.DataFrame(
        {
            "file": [f"{n}.png" for n in range(12)],
            "label": ["happy", "sad"] * 6,
            "who": [f"S{n // 3}" for n in range(12)],
            "valence": [0.5, -2, -5, 1.5, None, -1, *[0.25] * 6],
            "AU01": [0.0, 5, 9, 999, -1, 3, *[2.0] * 6],
            "au_12": [1] * 6 + [7] + [1] * 5,
            "x": 10, "y": 4, "w": [20.0] * 7 + [-3.0, None, *[20.0] * 3], "h": 40,
        }
    )  # fmt: skip
    faces(tmp_path)
    frame.to_parquet(tmp_path / "list.parquet")
    out = tmp_path / "out"
    given = mapping("--label-column", "label", "--subject-column", "who", "--valence-column", "valence", "--root")
    given += [str(tmp_path / "img"), "--au-columns", "AU01,au_12", "--box-columns", "x,y,w,h", "--margin", "0"]
    manifest = pack("table", tmp_path / "list.parquet", out, *given, "--split-by-subject", "3")
    assert sorted(row[1:] for row in dropped(out)) == [
        ["list.parquet", 5, "valence outside -1..1: 1.5"],
        ["list.parquet", 8, "au12 outside 0..5: 7"],
        ["list.parquet", 9, "box without area: 10,4,7,44"],
        ["list.parquet", 10, "box is not four numbers: 10,4,,40"],
    ]
    everything = pd.concat([samples(out, split) for split in ("train", "val", "test")]).set_index("image")
    assert everything.loc["1.png", "valence"] != everything.loc["1.png", "valence"]  # NaN: not annotated
    assert everything.loc["0.png", "valence"] == 0.5 and everything.loc["1.png", "au1"] == 5
    assert everything["au1"].isna().sum() == 2 and manifest["options"]["box_columns"] == ["x", "y", "w", "h"]
    people = [set(samples(out, split)["subject"]) for split in ("train", "val", "test")]
    assert not people[0] & people[1] and not people[1] & people[2] and not people[0] & people[2]


def test_paths_that_leave_the_root_are_recorded(tmp_path):
    save(tmp_path / "secret.png", photo(50))
    rows = ["../secret.png,happy", f"{tmp_path}/secret.png,sad", "img\\0.png,sad"]
    rows += [f"img/{n}.png,{['happy', 'sad'][n % 2]}" for n in range(12)]
    source = write_csv(faces(tmp_path / "raw") / "list.csv", "file,label", *rows)
    manifest = pack("table", source, tmp_path / "out", *mapping("--label-column", "label"))
    assert manifest["dropped"] == {"path refused": 3} and manifest["kept"] == 12


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "needs one of --label-column and --soft-columns"),
        (["--label-column", "label", "--soft-columns", "p0,p1"], "needs one of"),
        (["--label-column", "emotion"], "has no column 'emotion'; it has: file, label"),
        (["--label-column", "label", "--root", "/nowhere"], "no --source /nowhere"),
        (["--label-column", "label", "--box-columns", "x,y"], "names 2 columns instead of four"),
        (["--soft-columns", "file,label", "--class-names", "a"], "must give 2 different names"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, given, sentence):
    source = write_csv(faces(tmp_path, 2) / "list.csv", "file,label", "img/0.png,happy", "img/1.png,sad")
    assert sentence in refused(capsys, "table", source, tmp_path / "out", *mapping(*given))


def test_a_table_and_folders_that_disagree_are_reported_from_both_sides(tmp_path, capsys):
    """A copy of AffectNet: folders by one label, labels.csv by another, which a network gave."""
    names = ["anger", "Happy"]
    for number in range(20):
        save(tmp_path / "raw" / names[number % 2] / f"{number}.png", photo(number))
    rows = [f"{n},{names[n % 2]}/{n}.png,{names[n % 2] if n % 7 else 'sad'},0.9" for n in range(20)]
    source = write_csv(tmp_path / "raw" / "labels.csv", ",pth,label,relFCs", *rows)
    assert "labels a network gave" in detect(source).evidence
    manifest = pack("table", source, tmp_path / "a", "--image-column", "pth", "--label-column", "label")
    assert manifest["notes"] == ["3 of 20 labels are not the expression that the image's folder is called by"]
    manifest = pack("image_folder", tmp_path / "raw", tmp_path / "b")
    assert manifest["notes"][0].startswith("labels.csv lies beside the folders and was not read")


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"bytes": b"\xff\xd8", "path": None}, "'image' holds the images themselves, as Hugging Face's files do"),
        ([1, 2], "'image' holds list<"),
        (b"\xff\xd8", "'image' holds binary in each cell"),
    ],
)
def test_a_parquet_of_images_names_the_way_out(tmp_path, capsys, cell, sentence):
    pq.write_table(pa.table({"image": [cell] * 2, "label": ["happy", "sad"]}), tmp_path / "train.parquet")
    given = ["--image-column", "image", "--label-column", "label"]
    said = refused(capsys, "table", tmp_path / "train.parquet", tmp_path / "out", *given)
    assert sentence in said and len(said) < 600


def test_detect_proposes_the_columns(tmp_path):
    source = write_csv(tmp_path / "my faces" / "list.csv", "path,Emotion,split", "1.png,happy,train")
    columns = ("--image-column", "path", "--label-column", "Emotion", "--split-column", "split")
    expected = ("--source", str(source), *columns)
    assert detect(source.parent).arguments == detect(source).arguments == expected
    assert detect(write_csv(tmp_path / "x.csv", "a,b", "1,2")) is None


def test_affectnet_plus_style_table(tmp_path, capsys):
    """image, p0..p7 in AffectNet's order, valence, arousal, subset; the command is the one that detect proposes."""
    shares = np.random.default_rng(1).dirichlet(np.ones(8), 12).round(4)
    subsets = ["easy", "challenging", "difficult"]
    cells = [[f"img/{n}.png", *shares[n], -2 if n == 3 else 0.5, -0.25, subsets[n % 3]] for n in range(12)]
    cells[7][0] = "../7.png"
    rows = [",".join(map(str, row)) for row in cells]
    header = "image," + ",".join(f"p{k}" for k in range(8)) + ",valence,arousal,subset"
    source = write_csv(faces(tmp_path) / "plus.csv", header, *rows)
    found = detect(source)
    assert "in the order of AffectNet: check" in found.evidence
    assert "--split-column" not in found.arguments and "--valence-column" in found.arguments
    out = tmp_path / "out"
    manifest = pack("table", *found.arguments[1:2], out, *found.arguments[2:], "--val-share", "0", "--size", "48")
    assert manifest["classes"] == NAMES and manifest["label_mapping"]["p3"] == "surprise"
    kept = [n for n in range(12) if n != 7]
    assert labels(out, "train") == [NAMES[k] for k in shares[kept].argmax(1)]
    expected = shares[kept] / shares[kept].sum(1, keepdims=True)
    assert np.allclose(np.stack(samples(out, "train")["soft"]), expected, atol=1e-6)
    assert np.isnan(samples(out, "train")["valence"]).tolist() == [n == 3 for n in kept]
    assert [row[2:] for row in dropped(out)] == [[9, "path refused: leads out of the source: ../7.png"]]


@fuzz(60, damage=damages)
def test_broken_soft_tables(tmp_path, damage):
    if not (tmp_path / "img").exists():
        faces(tmp_path, 6)
    columns = [f"p{k}" for k in range(8)]
    rows = [f"img/{n}.png," + ",".join(str((n + k) % 8 / 28) for k in range(8)) for n in range(6)]
    content = damage("\n".join([",".join(["file", *columns]), *rows, ""]).encode())
    (tmp_path / "plus.csv").write_bytes(content)
    given = ("--image-column", "file", "--soft-columns", ",".join(columns), "--class-names", ",".join(NAMES))
    plan = planned(csv_table, tmp_path / "plus.csv", *given)
    if plan is None:
        return
    lines = lines_of(content)
    check_plan(plan, {f"plus.csv:{n}" for n in lines}, header=f"plus.csv:{min(lines)}")
    for table in plan.samples.values():
        for source, soft, label in zip(table["source"], table["soft"], table["label"]):
            shares = np.array(lines[int(source.split(":")[1])].replace('"', "").split(",")[1:9], float)
            assert np.allclose(soft, shares / shares.sum(), atol=1e-6) and label == soft.argmax()


def test_detect_soft_columns_by_name(tmp_path):
    source = write_csv(tmp_path / "votes.csv", "image,Happy,Sad,label,Angry,usage", "1.png,1,0,x,0,train")
    assert detect(source).arguments[2:] == (
        "--image-column", "image", "--split-column", "usage", "--soft-columns", "Happy,Sad,Angry"
    )  # fmt: skip
