"""AffectNet 2017: lists with all their known flaws, faces cut out of photographs, the splits, and broken lists."""

import numpy as np
import pytest
from fuzzing import check_plan, damages, fuzz, kept_lines, lines_of, planned
from PIL import Image
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources

from data_prep import affectnet
from data_prep.affectnet import COLUMNS, EXPRESSIONS, detect
from data_prep.labels import expression

HEADER = ",".join(COLUMNS)
MARKS = [f"{n}.5" for n in range(136)]
MANUAL, AUTOMATIC = "Manually_Annotated_Images", "Automatically_Annotated_Images"
TRAIN, VALIDATION = "Manually_Annotated_file_lists/training.csv", "Manually_Annotated_file_lists/validation.csv"


def row(path, label, box=(10, 20, 48, 48), va=(0.25, -0.5), marks=None) -> str:
    marks = ";".join(MARKS) if marks is None else marks
    return ",".join(map(str, [path, *box, marks, label, *va]))


def photograph(*numbers: int) -> np.ndarray:
    """uint8 (128, 192, 3): faces of 48 pixels on black, face k at (10 + 90 k, 20)."""
    canvas = np.zeros((128, 192, 3), np.uint8)
    for k, number in enumerate(numbers):
        canvas[20:68, 10 + 90 * k : 58 + 90 * k] = photo(number)
    return canvas


def write_lines(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def train_rows() -> list[str]:
    """Three faces of each label 0..10, in photographs 0..32."""
    return [row(f"{n % 3}/{n}.jpg", n % 11, va=(-2, -2) if n % 11 > 8 else (0.25, -0.5)) for n in range(33)]


def validation_rows() -> list[str]:
    return [row(f"9/{n}.jpg", n - 33) for n in range(33, 44)]


def write_tree(root, train=None, validation=None, header=(True, True), automatic=False):
    for n in range(33):
        save(root / MANUAL / str(n % 3) / f"{n}.jpg", photograph(n), quality=95, subsampling=0)
    for n in range(33, 44):
        save(root / MANUAL / "9" / f"{n}.jpg", photograph(n), quality=95, subsampling=0)
    for path, rows, with_header in ((TRAIN, train or train_rows(), header[0]),
                                    (VALIDATION, validation or validation_rows(), header[1])):
        write_lines(root / path, *[HEADER] * with_header, *rows)
    if automatic:
        for n in range(50, 66):
            save(root / AUTOMATIC / "a" / f"{n}.jpg", photograph(n), quality=95, subsampling=0)
        rows = [row(f"a/{n}.jpg", n % 8) for n in range(50, 66)]
        write_lines(root / "Automatically_Annotated_file_lists" / "automatically_annotated.csv", HEADER, *rows)
    return root


def name_of(label: str) -> str:
    return expression(EXPRESSIONS[int(label)])


# --- the layout -----------------------------------------------------------------------------------------------------


def test_lists_images_and_splits(tmp_path):
    out = tmp_path / "out"
    given = ("--size", "48", "--margin", "0", "--val-share", ".34")
    manifest = pack("affectnet", write_tree(tmp_path / "raw"), out, *given)
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 14, "val": 7, "test": 7}
    assert manifest["dropped"] == {"no expression class": 9 + 3, "class not selected": 3 + 1}
    assert manifest["bad_inputs"] == 0 and manifest["inputs"] == 44
    assert manifest["label_mapping"]["3"] == "surprise" and manifest["label_mapping"]["7"] == "(contempt: not selected)"
    assert manifest["label_mapping"]["10"] == "(left out: No-Face)"
    assert manifest["options"]["lists"] == "manual" and manifest["options"]["validation_as"] == "test"
    assert labels(out, "test") == [name_of(n) for n in range(7)]
    assert sources(out)["test"] == [f"validation.csv:{n}" for n in range(2, 9)]
    table = samples(out, "test")
    assert table["image"].tolist() == [f"{MANUAL}/9/{n}.jpg" for n in range(33, 40)]
    assert set(table["valence"]) == {0.25} and set(table["arousal"]) == {-0.5}
    face = images(out, "test")[0].transpose(1, 2, 0).astype(int)
    assert abs(face - photo(33)).mean() < 3  # the face alone, through JPEG


def test_contempt_by_option_or_by_name(tmp_path):
    root = write_tree(tmp_path / "raw")
    eight = pack("affectnet", root, tmp_path / "a", "--contempt", "--val-share", "0")
    assert eight["classes"][-1] == "contempt" and eight["splits"]["test"]["n"] == 8
    two = pack("affectnet", root, tmp_path / "b", "--classes", "contempt,happy", "--val-share", "0")
    assert two["classes"] == ["contempt", "happy"] and two["splits"]["train"]["n"] == 6


def test_the_official_validation_set_may_stay_val(tmp_path):
    manifest = pack("affectnet", write_tree(tmp_path / "raw"), tmp_path / "out", "--validation-as", "val")
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 21, "val": 7, "test": 0}


@pytest.mark.parametrize(("lists", "train"), [("manual", 21), ("automatic", 14), ("both", 35)])
def test_whose_labels(tmp_path, lists, train):
    root = write_tree(tmp_path / "raw", automatic=True)
    manifest = pack("affectnet", root, tmp_path / "out", "--lists", lists, "--val-share", "0")
    assert manifest["splits"]["train"]["n"] == train and manifest["splits"]["test"]["n"] == 7
    listed = set(manifest["source"]["files"]) & {"training.csv", "automatically_annotated.csv"}
    assert len(listed) == (2 if lists == "both" else 1)


def test_automatic_lists_alone_say_what_is_missing(tmp_path, capsys):
    root = write_tree(tmp_path / "raw", automatic=True)
    (root / VALIDATION).unlink()
    manifest = pack("affectnet", root, tmp_path / "out", "--lists", "automatic")
    assert manifest["notes"][0].startswith("no validation.csv: without the official validation set")
    (root / TRAIN).unlink()
    assert "holds no training.csv, not even two levels" in refused(capsys, "affectnet", root, tmp_path / "no")
    write_lines(root / TRAIN, HEADER, *train_rows())
    (root / MANUAL).rename(root / "images")
    assert f"holds no folder {MANUAL}: unpack" in refused(capsys, "affectnet", root, tmp_path / "no")


def test_folders_two_levels_below_and_detect(tmp_path):
    root = write_tree(tmp_path / "raw" / "Manually_Annotated")
    found = detect(tmp_path / "raw")
    assert found.arguments == ("--source", str(tmp_path / "raw"), "--lists", "manual")
    assert pack("affectnet", *[tmp_path / "raw", tmp_path / "out"])["kept"] == 28
    write_tree(root, automatic=True)
    assert detect(tmp_path / "raw").arguments[-1] == "both"
    assert detect(root / MANUAL) is None


# --- known flaws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [(True, True), (True, False), (False, True), (False, False)])
def test_lists_with_and_without_header_are_the_same_data(tmp_path, header):
    manifest = pack("affectnet", write_tree(tmp_path / "raw", header=header), tmp_path / "out", "--val-share", "0")
    assert manifest["kept"] == 28 and labels(tmp_path / "out", "test") == [name_of(n) for n in range(7)]
    assert sources(tmp_path / "out")["test"][0] == f"validation.csv:{1 + header[1]}"


@pytest.mark.parametrize("layout", ["commas", "commas, header padded", "no header", "semicolons", "header cut too"])
def test_landmarks_cut_over_columns(tmp_path, layout):
    root = write_tree(tmp_path / "raw")
    rows = [row(f"{n % 3}/{n}.jpg", n % 11, marks=",".join(MARKS)) for n in range(33)]
    header = HEADER + "," * 135 * ("padded" in layout)
    if layout == "header cut too":
        header = HEADER.replace("facial_landmarks", ",".join(["facial_landmarks", *map(str, range(135))]))
    lines = rows if layout == "no header" else [header, *rows]
    write_lines(root / TRAIN, *[line.replace(",", ";") if layout == "semicolons" else line for line in lines])
    out = tmp_path / "out"
    assert pack("affectnet", root, out, "--val-share", "0", "--contempt")["kept"] == 24 + 8
    assert labels(out, "train") == [name_of(n % 11) for n in range(33) if n % 11 < 8]
    assert set(samples(out, "train")["arousal"]) == {-0.5}


def test_flaws_of_rows_are_recorded(tmp_path):
    rows = train_rows()
    rows[1] = row("1/1.jpg", 1, ("NULL", "NULL", 48, 48))  # line 3
    rows[2] = row("2/2.jpg", 2, (0, 0, -1, -1))
    rows[3] = row("0/3.jpg", 3, (10, 20, 500, 900))  # beyond the image: moved inside
    rows[4] = row("1/4.jpg", 4, (-10, -20, 48, 48))
    rows[5] = row("2/5.jpg", 5, (500, 20, 48, 48))
    rows[6] = row("0/6.jpg", 6, va=(-2, -2))
    rows[11] = row("2/11.jpg", 0, va=(1.5, 0))
    rows[12] = row("0/12.JPG", 1)
    rows[13] = row("1/13.png", 2)
    rows[14] = row("2/gone.jpg", 3)
    rows[15] = row("0/15.jpg", 12)
    rows[16] = row("1/16.jpg", "happy")
    rows[17] = row("../../secret.jpg", 6)
    rows[22] = row("/etc/passwd", 0)
    rows[23] = row("2/23.jpg", "1.0", va=("", ""))
    rows[24] = rows[23]
    rows[25] = row("1/25.jpg", 3) + ",extra"
    rows[26] = row("2/26.jpg", 4, (0, 0, 0, 48))
    rows[27] = row("2/27.jpg", 10, (-1, -1, -1, -1), (-2, -2))
    validation = validation_rows()
    validation[6] = row("9/broken.jpg", 6)
    validation[5] = row("9/38.tif", 5)
    root = write_tree(tmp_path / "raw", rows, validation)
    save(tmp_path / "secret.jpg", photograph(90))
    save(root / MANUAL / "9" / "broken.jpg", b"GIF89a nothing more")
    (root / MANUAL / "9" / "38.jpg").unlink()
    save(root / MANUAL / "9" / "38.tif", photograph(38))
    out = tmp_path / "out"
    manifest = pack("affectnet", root, out, "--val-share", "0", "--contempt")
    name = "training.csv"
    by_rule = dict.fromkeys((10, 21, 32), "None") | dict.fromkeys((11, 22, 33), "Uncertain")
    by_rule |= dict.fromkeys((12, 23, 29, 34), "No-Face")
    found = [record for record in dropped(out) if record[1] == name and record[2] not in by_rule]
    assert sorted(found, key=lambda record: record[2]) == [
        ["train", name, 3, "box is not four numbers: NULL,NULL,48,48"],
        ["train", name, 4, "no face box: 0,0,-1,-1"],
        ["train", name, 7, f"box outside the image: {MANUAL}/2/5.jpg (500,20,548,68 in 192 x 128)"],
        ["train", name, 13, "valence outside -1..1: 1.5"],
        ["train", name, 16, f"image file is missing: {MANUAL}/2/gone.jpg"],
        ["train", name, 17, "unknown label: 12"],
        ["train", name, 18, "unknown label: happy"],
        ["train", name, 19, "path refused: leads out of the source: ../../secret.jpg"],
        ["train", name, 24, "path refused: absolute, must be relative to the source: /etc/passwd"],
        ["train", name, 26, f"listed twice: {MANUAL}/2/23.jpg 10,20,48,48 (line 25)"],
        ["train", name, 27, "wrong number of fields: 10 instead of 9"],
        ["train", name, 28, "no face box: 0,0,0,48"],
    ]
    assert [record for record in dropped(out) if record[1] == name and record[2] in by_rule] == [
        ["train", name, line, f"no expression class: {by_rule[line]}"] for line in sorted(by_rule)
    ]
    broken = f"unreadable image: {MANUAL}/9/broken.jpg (cannot identify image file)"
    assert [record for record in dropped(out) if record[0] == "test"] == [
        *(["test", "validation.csv", line, f"no expression class: {what}"]
          for line, what in ((10, "None"), (11, "Uncertain"), (12, "No-Face"))),
        ["test", "validation.csv", 8, broken],
    ]
    kept = samples(out, "train").set_index("source")
    assert kept.loc[f"{name}:8", ["valence", "arousal"]].isna().all()  # -2: kept, not annotated
    assert kept.loc[f"{name}:25", ["valence", "arousal"]].isna().all()
    assert {f"{name}:{line}" for line in (5, 6, 14, 15)} <= set(kept.index)
    assert kept.loc[f"{name}:14", "image"] == f"{MANUAL}/0/12.JPG"
    assert manifest["bad_inputs"] == 12 + 1


def test_the_faces_of_one_photograph_are_cropped_apart_and_stay_together(tmp_path):
    root = tmp_path / "raw"
    rows = []
    for n in range(0, 42, 2):
        save(root / MANUAL / "0" / f"{n}.jpg", photograph(n, n + 1), quality=95, subsampling=0)
        rows += [row(f"0/{n}.jpg", n // 2 % 7), row(f"0/{n}.jpg", (n // 2 + 1) % 7, (100, 20, 48, 48))]
    write_lines(root / TRAIN, HEADER, *rows)
    out = tmp_path / "out"
    given = ("--size", "48", "--margin", "0", "--val-share", ".3", "--test-share", ".2")
    manifest = pack("affectnet", root, out, *given)
    assert manifest["kept"] == 42 and manifest["notes"][0].startswith("training.csv: 42 rows; other counts than")
    photographs = [set(samples(out, split)["image"]) for split in ("train", "val", "test")]
    assert all(photographs) and len(set.union(*photographs)) == sum(map(len, photographs)) == 21
    first, second = images(out, "train")[:2].transpose(0, 2, 3, 1).astype(int)
    n = int(samples(out, "train")["image"].iat[0].split("/")[-1].removesuffix(".jpg"))
    assert abs(first - photo(n)).mean() < 3 and abs(second - photo(n + 1)).mean() < 3


def test_published_counts_are_compared_where_the_split_is_whole(tmp_path):
    root = write_tree(tmp_path / "raw")
    cut, whole = planned(affectnet, root), planned(affectnet, root, "--val-share", "0", "--contempt")
    assert set(cut.published) == {"test"} and sum(cut.published["test"].values()) == 3500
    assert sum(whole.published["train"].values()) == 287_651 and sum(whole.published["test"].values()) == 4000
    assert sum(planned(affectnet, root, "--val-share", "0").published["train"].values()) == 283_901
    assert set(planned(affectnet, root, "--validation-as", "val").published) == {"train", "val"}
    assert cut.notes[0] == (
        "training.csv: 33 rows; other counts than published, in brackets: label 0 3 (74,874), label 1 3 (134,416), "
        "label 2 3 (25,459) and 6 more"
    )


# --- broken lists ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Photographs of 24 pixels, so that each of many cases is quick; the lists' bytes."""
    root = tmp_path_factory.mktemp("affectnet")
    rows = [row(f"0/{n}.jpg", n % 11, (4, 4, 16, 16), marks="1;2;3") for n in range(10)]
    for n in range(10):
        save(root / MANUAL / "0" / f"{n}.jpg", np.asarray(Image.fromarray(photo(n)).resize((24, 24))))
    validation = [row(f"0/{n}.jpg", n % 8, (4, 4, 16, 16), marks="1;2;3") for n in range(8)]
    write_lines(root / TRAIN, HEADER, *rows)
    write_lines(root / VALIDATION, *validation)
    return root, {path: (root / path).read_bytes() for path in (TRAIN, VALIDATION)}


def test_the_report_says_what_the_official_validation_set_became(tmp_path, capsys):
    root = write_tree(tmp_path / "raw")
    pack("affectnet", root, tmp_path / "a")
    said = capsys.readouterr().out
    assert "the official validation set is test here" in said and "val is empty" in said
    heading = next(line.split() for line in said.splitlines() if line.startswith("class "))
    assert heading == ["class", "train", "val", "test", "(published)"]  # of train a share was cut off
    pack("affectnet", root, tmp_path / "b", "--validation-as", "val")
    said = capsys.readouterr().out
    assert "the official validation set is test" not in said and "val is empty" not in said


@fuzz(100, damage=damages)
def test_broken_lists(small, damage):
    root, original = small
    broken = damage(original[TRAIN])
    (root / TRAIN).write_bytes(broken)
    plan = planned(affectnet, root, "--contempt", "--val-share", "0")
    if plan is None:
        return
    lines = lines_of(broken)
    inputs = {f"training.csv:{n}" for n in lines} | {f"validation.csv:{n}" for n in range(1, 9)}
    check_plan(plan, inputs, header=f"training.csv:{min(lines)}")
    for source, name in kept_lines(plan).items():
        file, line = source.split(":")
        if file == "training.csv" and '"' not in lines[int(line)]:
            cells, head = ([cell.strip() for cell in lines[n].split(",")] for n in (int(line), min(lines)))
            label = cells[head.index("expression") if len(head) == len(cells) and "expression" in head else -3]
            assert name == name_of(label.removesuffix(".0")) and cells[0].startswith("0/")


@fuzz(40, damage=damages)
def test_broken_lists_without_header(small, damage):
    root, original = small
    broken = damage(original[VALIDATION])
    (root / TRAIN).write_bytes(original[TRAIN])
    (root / VALIDATION).write_bytes(broken)
    plan = planned(affectnet, root, "--contempt", "--val-share", "0")
    (root / VALIDATION).write_bytes(original[VALIDATION])
    if plan is not None:
        inputs = {f"training.csv:{n}" for n in range(2, 12)} | {f"validation.csv:{n}" for n in lines_of(broken)}
        check_plan(plan, inputs)
