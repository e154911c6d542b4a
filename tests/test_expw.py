"""ExpW: several faces a photograph, the order of the box, confidence, and broken lists."""

import numpy as np
import pytest
from fuzzing import check_plan, damages, fuzz, kept_lines, lines_of, planned
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources

from data_prep import expw
from data_prep.expw import detect
from data_prep.labels import expression

NAMES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]  # labels 0..6
TOP, LEFT = 20, (10, 100)  # of the faces in a photograph


def line(name, face, label, confidence=40.5, box=None) -> str:
    """One line; the box is top left right bottom."""
    box = box or (TOP, LEFT[face], LEFT[face] + 48, TOP + 48)
    return " ".join(map(str, [name, face, *box, confidence, label]))


def list_lines(photographs=21) -> list[str]:
    return [line(f"{n}.jpg", face, (n + face) % 7) for n in range(photographs) for face in (0, 1)]


def write_tree(root, lines=None, images="image/origin", name="label/label.lst"):
    for n in range(21):
        canvas = np.zeros((90, 192, 3), np.uint8)
        for face in (0, 1):
            canvas[TOP : TOP + 48, LEFT[face] : LEFT[face] + 48] = photo(2 * n + face)
        save(root / images / f"{n}.jpg", canvas, quality=95, subsampling=0)
    save(root / name, "".join(f"{one}\n" for one in lines or list_lines()).encode())
    return root


def test_faces_are_cropped_apart_and_photographs_stay_together(tmp_path):
    out = tmp_path / "out"
    given = ("--size", "48", "--margin", "0", "--val-share", ".2", "--test-share", ".2")
    manifest = pack("expw", write_tree(tmp_path / "raw"), out, *given)
    assert manifest["classes"] == ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
    assert manifest["kept"] == 42 and manifest["dropped"] == {}
    photographs = [set(samples(out, split)["image"]) for split in ("train", "val", "test")]
    assert all(photographs) and len(set.union(*photographs)) == sum(map(len, photographs)) == 21
    for split in ("train", "val", "test"):
        table = samples(out, split)
        for image, path, face, name in zip(images(out, split), table["image"], table["face"], labels(out, split)):
            n = int(path.rpartition("/")[2].removesuffix(".jpg"))
            assert abs(image.transpose(1, 2, 0).astype(int) - photo(2 * n + face)).mean() < 3
            assert name == expression(NAMES[(n + face) % 7])
    assert manifest["notes"][0].startswith("label.lst: 42 rows; other counts than published, in brackets: label 0 6 (")


@pytest.mark.parametrize(("images", "name"), [("origin", "label.lst"), ("images", "label/label.lst")])
def test_where_things_may_lie(tmp_path, images, name):
    root = write_tree(tmp_path / "raw" / "ExpW", images=images, name=name)
    assert detect(tmp_path / "raw").arguments == ("--source", str(tmp_path / "raw"))
    assert pack("expw", tmp_path / "raw", tmp_path / "out")["splits"]["test"]["n"] > 0
    assert detect(root / images) is None


def test_sources_that_are_none(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert "holds no label/label.lst" in refused(capsys, "expw", tmp_path / "raw", tmp_path / "out")
    save(tmp_path / "raw" / "label.lst", b"x")
    assert "holds no folder image/origin" in refused(capsys, "expw", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(SystemExit, match="2"):
        pack("expw", tmp_path / "raw", tmp_path / "out", "--min-confidence", "nan")


def test_flaws_of_the_list_are_recorded(tmp_path):
    lines = list_lines()
    lines[0] = line("0.jpg", 0, 7)
    lines[1] = line("0.jpg", 1, 1, confidence=12)
    lines[2] = line("1.jpg", 0, 1, confidence="high")
    lines[3] = line("1.jpg", 1, 1, box=(20, 100, 100, 68))
    lines[4] = line("2.jpg", 0, 1, box=(20, "left", 100, 68))
    lines[5] = line("2.jpg", 1, 1, box=(20, 500, 548, 68))
    lines[6] = line("3.jpg", 0, 1, box=(-10, -10, 38, 38))
    lines[7] = line("../secret.jpg", 1, 1)
    lines[8] = line("gone.jpg", 0, 1)
    lines[9] = "4.jpg 1 20 100"
    lines[10] = line("5.jpg", 0, 5).replace(" 0 ", " x ", 1)
    lines[12] = line("6.jpg", 1, 3)  # 6.jpg's face 1 is on line 14 too, with label 0
    lines[14] = line("7.jpg", 1, 1)  # and as line 16 says
    save(tmp_path / "secret.jpg", photo(90))
    out, name = tmp_path / "out", "label.lst"
    given = ("--min-confidence", "20", "--val-share", "0", "--test-share", "0")
    manifest = pack("expw", write_tree(tmp_path / "raw", lines), out, *given)
    assert sorted(([*row[1:]] for row in dropped(out)), key=lambda row: row[1]) == [
        [name, 1, "unknown label: 7"],
        [name, 2, "confidence below --min-confidence: 12"],
        [name, 3, "confidence is no number: high"],
        [name, 4, "box without area: 100,20,100,68"],
        [name, 5, "box is not four numbers: 20,left,100,68"],
        [name, 6, "box outside the image: image/origin/2.jpg (500,20,548,68 in 192 x 90)"],
        [name, 8, "path refused: leads out of the source: ../secret.jpg"],
        [name, 9, "image file is missing: image/origin/gone.jpg"],
        [name, 10, "wrong number of fields: 4 instead of 8"],
        [name, 11, "face id is no number: x"],
        [name, 13, "listed with different labels: image/origin/6.jpg face 1 (0, 3)"],
        [name, 14, "listed with different labels: image/origin/6.jpg face 1 (0, 3)"],
        [name, 16, "listed twice: image/origin/7.jpg face 1 (line 15)"],
    ]
    assert manifest["inputs"] == 42 and manifest["bad_inputs"] == 12
    assert "label.lst:7" in sources(out)["train"] and manifest["options"]["min_confidence"] == 20


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("expw"))


@fuzz(80, damage=damages)
def test_broken_lists(small, damage):
    content = damage("".join(f"{one}\n" for one in list_lines(5)).encode())
    (small / "label" / "label.lst").write_bytes(content)
    plan = planned(expw, small)
    if plan is None:
        return
    lines = lines_of(content)
    check_plan(plan, {f"label.lst:{n}" for n in lines}, header=f"label.lst:{min(lines)}")
    places = {split: set(table["image"]) for split, table in plan.samples.items() if len(table)}
    assert len(set().union(*places.values())) == sum(map(len, places.values()))
    for source, found in kept_lines(plan).items():
        assert found == expression(NAMES[int(lines[int(source.split(":")[1])].split()[-1])])
