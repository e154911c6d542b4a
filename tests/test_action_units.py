"""DISFA, BP4D and EmotioNet: values by frame, what is unknown, labels where there is no expression."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzzing import damages, fuzz, packed_or_refused
from hypothesis import strategies as st
from source_trees import dropped, images, labels, pack, photo, refused, samples, save, sources, write_csv

from data_prep import bp4d, disfa, emotionet
from data_prep.packed import SPLITS

THREE = ["--split-by-subject", "3", "--size", "48"]
PEOPLE = [f"SN{k:03d}" for k in (1, 2, 3, 4)]


def everything(out: Path, key: str = "image") -> pd.DataFrame:
    """All rows, with split and class."""
    parts = [samples(out, split).assign(split=split, name=labels(out, split)) for split in SPLITS]
    found = pd.concat(parts)
    return found.set_index(key if key in found else "source")


def people_of(out: Path, length: int) -> list[set[str]]:
    paths = [samples(out, s).get("image", samples(out, s)["source"]) for s in SPLITS]
    return [{path[:length] for path in found} for found in paths]


# --- DISFA ----------------------------------------------------------------------------------------------------------


def intensity(person: int, unit: int, frame: int) -> int:
    return (person + unit + frame) % 6


def write_disfa(root: Path, n: int = 5) -> Path:
    """`n` labelled frames a person and one image more, as films have."""
    for k, person in enumerate(PEOPLE):
        for unit in disfa.UNITS:
            lines = [f"{frame},{intensity(k, unit, frame)}" for frame in range(1, n + 1)]
            save(root / "ActionUnit_Labels" / person / f"{person}_au{unit}.txt", ("\r\n".join(lines) + "\r\n").encode())
        for frame in range(1, n + 2):
            save(root / "frames" / person / f"{frame:05d}.png", photo(k * 20 + frame))
    return root


def check_disfa(out: Path, kept: bool = False, unsure: str = "") -> None:
    for path, row in everything(out, "source").iterrows():
        k, frame = PEOPLE.index(path[:5]), int(path[6:11])
        for unit in disfa.UNITS:
            value = intensity(k, unit, frame)
            if not np.isnan(row[f"au{unit}"]) and f"{path[:5]}_au{unit}." not in unsure:
                assert row[f"au{unit}"] == (value if kept else value >= 2)


def test_disfa_intensities_by_frame(tmp_path):
    raw, out = write_disfa(tmp_path / "raw"), tmp_path / "out"
    manifest = pack("disfa", raw, out, *THREE)
    check_disfa(out)
    assert manifest["kept"] == 20 and manifest["dropped"] == {"frame without a label": 4}
    assert manifest["classes"] == ["unlabelled"] and "--label-au N" in manifest["notes"][0]
    people = people_of(out, 5)
    assert all(people) and sum(map(len, people)) == 4
    path = sources(out)["test"][0]
    assert np.array_equal(
        images(out, "test")[0], photo(PEOPLE.index(path[:5]) * 20 + int(path[6:11])).transpose(2, 0, 1)
    )
    pack("disfa", raw, tmp_path / "kept", *THREE, "--keep-intensity")
    check_disfa(tmp_path / "kept", kept=True)


def test_disfa_flaws(tmp_path, capsys):
    raw, out = write_disfa(tmp_path / "raw"), tmp_path / "out"
    top = raw / "ActionUnit_Labels"
    (top / "SN001" / "SN001_au4.txt").unlink()
    (top / "SN002" / "SN002_au4.txt").write_text("1,2\n2,6\n3;1\n\n4,1\n4,3\n5,0\n9,1\n")
    (raw / "frames" / "SN003" / "00002.png").unlink()
    shutil.rmtree(raw / "frames" / "SN004")
    save(raw / "frames" / "SN001" / "00003.jpg", photo(3))
    save(raw / "frames" / "SN001" / "00004.png", b"broken")
    save(raw / "frames" / "SN001" / "film.avi", b"x")
    for person in PEOPLE[1:2]:
        save(top / "SN005" / f"{person}_au1.txt", b"1,1")  # another person's file
    manifest = pack("disfa", raw, out, "--split-by-subject", "3", "--size", "16", "--label-au", "1")
    check_disfa(out, unsure="SN002_au4.")
    found = everything(out, "source")
    assert found.loc[["SN001/00001.png", "SN002/00002.png", "SN002/00004.png"], "au4"].isna().all()
    assert (found["name"] == np.where(found["au1"] > 0, "au1 present", "au1 absent")).all()
    lost = "SN002/SN002_au4.txt"
    broken = "unreadable image: SN001/00004.png (cannot identify image file)"
    assert sorted(map(tuple, (row[1:] for row in dropped(out)))) == sorted([
        (lost, 2, "line is not frame,intensity: 2,6"),
        (lost, 3, "line is not frame,intensity: 3;1"),
        (lost, 5, "frame is listed twice"),
        (lost, 6, "frame is listed twice"),
        ("SN002/00009", -1, "no image of this frame"),
        ("SN003/00002", -1, "no image of this frame"),
        *((f"SN004/{frame:05d}", -1, "no folder of frames") for frame in range(1, 6)),
        *((f"SN00{k}/00006.png", -1, "frame without a label") for k in (1, 2, 3)),
        ("SN001/00003.png", -1, "another file of the same frame"),
        ("SN001/film.avi", -1, "no image file: .avi"),
        ("SN001/00004.png", -1, broken),
    ])  # fmt: skip
    assert "SN001: no usable label file of the units 4" in manifest["notes"]
    assert disfa.detect(raw) and disfa.detect(raw / "ActionUnit_Labels")
    shutil.rmtree(raw / "frames")
    assert "ffmpeg -i" in refused(capsys, "disfa", raw, tmp_path / "no")
    assert "holds no ActionUnit_Labels" in refused(capsys, "disfa", tmp_path, tmp_path / "no")


def test_label_au_needs_a_unit_of_the_set(tmp_path, capsys):
    raw = write_disfa(tmp_path / "raw")
    assert "--label-au 7: the set has" in refused(capsys, "disfa", raw, tmp_path / "no", "--label-au", "7")
    both = ["--label-au", "1", "--keep-intensity"]
    assert "leave --keep-intensity out" in refused(capsys, "disfa", raw, tmp_path / "no", *both)
    assert "there are only 4 subjects" in refused(capsys, "disfa", raw, tmp_path / "no")


# --- BP4D -----------------------------------------------------------------------------------------------------------

CODED = [0, *range(1, 25), 43]


def code(person: int, unit: int, frame: int) -> int:
    return (0, 1, 9)[(person + unit + frame) % 3] if unit in bp4d.UNITS else 9


def write_bp4d(root: Path) -> Path:
    for k, person in enumerate(("F001", "F023", "M001", "M018")):
        for task in ("T1", "T8"):
            frames = range(2440, 2444) if task == "T1" else range(7, 10)
            rows = [",".join(map(str, [n, *(code(k, unit, n) for unit in CODED[1:])])) for n in frames]
            write_csv(root / "AUCoding" / "AU_OCC" / f"{person}_{task}.csv", ",".join(map(str, CODED)), *rows)
            for n in frames:
                name = f"{n:04d}.jpg" if k % 2 else f"{n}.jpg"
                save(root / "frames" / person / task / name, photo((k * 11 + n) % 128))
    return root


def check_bp4d(out: Path, unsure: str = "-") -> None:
    for path, row in everything(out).iterrows():
        person, task, name = path.split("/")
        if row["source"].startswith(unsure):
            continue
        for unit in bp4d.UNITS:
            value = code(["F001", "F023", "M001", "M018"].index(person), unit, int(name[:-4]))
            assert row[f"au{unit}"] == value or (value == 9 and np.isnan(row[f"au{unit}"]))


def test_bp4d_units_by_frame(tmp_path):
    raw, out = write_bp4d(tmp_path / "raw"), tmp_path / "out"
    manifest = pack("bp4d", raw, out, "--split-by-subject", "4", "--size", "16")
    check_bp4d(out)
    assert manifest["kept"] == 28 and manifest["dropped"] == {}
    found = everything(out)
    assert found.loc["F001/T1/2440.jpg", "source"] == "F001_T1.csv:2" and "F023/T8/0007.jpg" in found.index
    assert [name for name in found if name.startswith("au")] == [f"au{unit}" for unit in bp4d.UNITS]
    people = people_of(out, 4)
    assert all(people) and sum(map(len, people)) == 4
    two = pack("bp4d", raw, tmp_path / "two", "--split-by-subject", "4", "--size", "16", "--label-au", "12")
    found = everything(tmp_path / "two")
    assert (found["name"] == np.where(found["au12"] == 1, "au12 present", "au12 absent")).all()
    assert two["dropped"] == {"action unit of --label-au is unknown": 28 - len(found)} and two["bad_inputs"] == 0


def test_bp4d_flaws(tmp_path, capsys):
    raw, out = write_bp4d(tmp_path / "raw"), tmp_path / "out"
    top = raw / "AUCoding" / "AU_OCC"
    lines = (top / "F001_T1.csv").read_text().split("\n")
    nines = ",".join(["2442", *["9"] * (len(CODED) - 1)])
    twice = ",".join(["2443", *["1"] * (len(CODED) - 1)])
    lines[1:5] = [lines[1].replace("2440,", "2440,7,", 1), lines[2].replace("2441", "x"), nines, twice]
    (top / "F001_T1.csv").write_text("\n".join([*lines[:5], twice, "2444" + twice[4:].replace("1", "2")]))
    write_csv(top / "F001_T8.csv", "a,b,c", "1,2,3")
    (top / "M001_T1.csv").write_bytes(b"")
    shutil.rmtree(raw / "frames" / "M018" / "T8")
    (raw / "frames" / "M001" / "T8" / "8.jpg").unlink()
    save(top / "readme.txt", b"x")
    pack("bp4d", raw, out, "--split-by-subject", "3", "--size", "16")
    check_bp4d(out)
    found = {(row[1], row[2]): row[3] for row in dropped(out)}
    assert found["F001_T1.csv", 2].startswith("line is not a frame and its units: 2440,7")
    assert found["F001_T1.csv", 3].startswith("line is not a frame and its units: x,")
    assert found["F001_T1.csv", 4] == "no action unit is known"
    assert found["F001_T1.csv", 5] == found["F001_T1.csv", 6] == "frame is listed twice"
    assert found["F001_T1.csv", 7].startswith("action unit is not 0, 1 or 9: 2444,2")
    assert found["F001_T8.csv", -1] == "header does not name the action units: a,b,c"
    assert found["M001_T1.csv", -1] == "label file cannot be used: image file is empty: M001_T1.csv"
    assert found["M018_T8.csv", 2] == "no folder of frames" and found["M001_T8.csv", 3] == "no image of this frame"
    assert found["F001/T1/2440.jpg", -1] == found["F001/T8/7.jpg", -1] == "frame without a label"
    assert bp4d.detect(raw) and bp4d.detect(top)
    assert "holds no AUCoding/AU_OCC" in refused(capsys, "bp4d", tmp_path, tmp_path / "no")
    shutil.rmtree(raw / "frames")
    assert "no folder of frames at" in refused(capsys, "bp4d", raw, tmp_path / "no")


# --- EmotioNet ------------------------------------------------------------------------------------------------------

COLUMNS = ["URL", "URL orig", *(f"'AU {unit}'" for unit in range(1, 61))]


def present(k: int, unit: int) -> int:
    return (0, 1, 999)[(k + unit) % 3]


def net_row(k: int, url: str = "", quote: str = "'") -> str:
    url = url or f"http://images.example/batch_1/N_{k:03d}.jpg"
    cells = [f"{quote}{url}{quote}", f"{quote}http://else.example/{k}.jpg{quote}"]
    return ",".join([*cells, *(f"{quote}{present(k, unit)}{quote}" for unit in range(1, 61))])


def write_emotionet(root: Path, n: int = 20) -> Path:
    for k in range(n):
        save(root / "images" / f"N_{k:03d}.jpg", photo(k))
    return write_csv(root / "EmotioNet_FACS_aws_2020_24600.csv", ",".join(COLUMNS), *map(net_row, range(n)))


def check_emotionet(out: Path) -> None:
    for path, row in everything(out).iterrows():
        k = int(Path(path).stem.removeprefix("N_"))
        for unit in emotionet.UNITS:
            value = present(k, unit)
            assert row[f"au{unit}"] == value or (value == 999 and np.isnan(row[f"au{unit}"]))


@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_emotionet_quotes_and_unknowns(tmp_path, quote):
    source, out = write_emotionet(tmp_path / "raw"), tmp_path / "out"
    write_csv(source, ",".join(COLUMNS), *(net_row(k, quote=quote) for k in range(20)), end="\r\n")
    manifest = pack(
        "emotionet", source.parent, out, "--size", "16", "--label-au", "12", "--test-share", "0.3", "--val-share", "0.3"
    )
    check_emotionet(out)
    found = everything(out)
    assert (
        manifest["kept"] == 14 and (found["name"] == np.where(found["au12"] == 1, "au12 present", "au12 absent")).all()
    )
    assert all(facts["n"] for facts in manifest["splits"].values())
    assert emotionet.detect(source).evidence == "EmotioNet_FACS_aws_2020_24600.csv with URL and 61 more"


def test_emotionet_flaws(tmp_path, capsys):
    source, out = write_emotionet(tmp_path / "raw"), tmp_path / "out"
    (tmp_path / "raw" / "images" / "N_003.jpg").unlink()
    (tmp_path / "raw" / "images" / "N_004.jpg").rename(tmp_path / "raw" / "images" / "4.jpg")  # by URL orig
    save(tmp_path / "raw" / "images" / "N_005.jpg", b"<html>404</html>")
    rows = [net_row(k) for k in range(20)]
    rows[6] = net_row(6, "http://images.example/batch_2/N_007.jpg?size=1")
    rows[8] = rows[8].replace("'999'", "'2'", 1)
    rows[9] = rows[9].replace("'0'", "'999'").replace("'1'", "'999'")
    rows[10] = "'http://images.example/..',''," + rows[10].split(",", 2)[2]
    rows[11] = "'http://x/%2e%2e%2fsecret.jpg','/'," + rows[11].split(",", 2)[2]
    rows[12] = "too,short"
    save(tmp_path / "raw" / "secret.jpg", photo(1))
    write_csv(source, ",".join(COLUMNS), *rows)
    pack("emotionet", source, out, "--size", "16")
    check_emotionet(out)
    assert "4.jpg" in everything(out).index
    found = {row[2]: row[3] for row in dropped(out)}
    broken = "unreadable image: N_005.jpg (cannot identify image file)"
    assert (
        found
        == {
            5: "image was not downloaded (dead address)",
            7: broken.replace(broken, "several addresses end in this file name: N_007.jpg"),
            8: broken,
            9: "several addresses end in this file name: N_007.jpg",
            10: "action unit is not 0, 1 or 999: 2",
            11: "no action unit is known",
            12: "address without a file name: http://images.example/..",
            13: "image was not downloaded (dead address)",
            14: "wrong number of fields: 2 instead of 62",
        }
        or found[7] == broken
    )
    save(tmp_path / "x" / "list.xlsx", b"PK")
    assert "save it as csv" in refused(capsys, "emotionet", tmp_path / "x", tmp_path / "no")
    assert "does not exist" in refused(capsys, "emotionet", tmp_path / "gone.csv", tmp_path / "no")
    write_csv(tmp_path / "y" / "list.csv", "URL,x", "a,b")
    (tmp_path / "y" / "images").mkdir()
    assert "has no columns of action units" in refused(capsys, "emotionet", tmp_path / "y", tmp_path / "no")


def test_emotionet_lists_without_header(tmp_path):
    source, out = write_emotionet(tmp_path / "raw"), tmp_path / "out"
    source.unlink()
    rows = [net_row(k, quote="").replace(",", "\t") for k in range(20)]
    listed = write_csv(source.parent / "EmotioNet_1.txt", *rows)
    assert pack("emotionet", listed, out, "--size", "16")["kept"] == 20
    check_emotionet(out)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("units")
    write_disfa(root / "disfa", n=3)
    write_bp4d(root / "bp4d")
    write_emotionet(root / "emotionet", n=8)
    return root


FILES = {
    "disfa": ("ActionUnit_Labels/SN001/SN001_au4.txt", THREE[:2]),
    "bp4d": ("AUCoding/AU_OCC/F001_T1.csv", THREE[:2]),
    "emotionet": ("EmotioNet_FACS_aws_2020_24600.csv", ["--test-share", "0.2"]),
}


@fuzz(16, damage=damages, name=st.sampled_from(list(FILES)))
def test_damaged_labels_are_packed_right_or_refused(trees, damage, name):
    file, options = FILES[name]
    path, out = trees / name / file, trees / "out"
    content = path.read_bytes()
    text = damage(content)
    path.write_bytes(text)
    try:
        found = packed_or_refused(name, trees / name, out, "--size", "8", *options)
    finally:
        path.write_bytes(content)
    if found is None:
        return
    lines = text.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
    if name == "disfa":
        check_disfa(out, unsure="SN001_au4.")
        said = [line.split(",") for line in lines if line.count(",") == 1]
        for image, row in everything(out, "source").iterrows():
            if image.startswith("SN001") and not np.isnan(row["au4"]):
                values = {value.strip() for frame, value in said if frame.strip().isdigit()
                          and int(frame) == int(image[6:11])}
                # a line that a cut left without its value is left out, its twin kept
                assert {row["au4"]} == {int(value) >= 2 for value in values - {""}}
    elif name == "bp4d":
        check_bp4d(out, unsure="F001_T1")
        for _, row in everything(out).iterrows():
            if row["source"].startswith("F001_T1"):
                cells = [cell.strip().strip('"') for cell in lines[int(row["source"].split(":")[1]) - 1].split(",")]
                header = [cell.strip().strip('"') for cell in lines[0].split(",")]
                value = cells[header.index("12")]
                assert value == "9" if np.isnan(row["au12"]) else float(value) == row["au12"]
    elif lines[0].strip() == content.split(b"\n")[0].decode():
        for _, row in everything(out).iterrows():
            cells = [
                cell.strip().strip("'\"").strip() for cell in lines[int(row["source"].split(":")[1]) - 1].split(",")
            ]
            if len(cells) == 62:
                assert cells[13] in ("999", "") if np.isnan(row["au12"]) else float(cells[13]) == row["au12"]
