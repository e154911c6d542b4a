"""Tables as people have them: dialects, encodings, broken lines, and what is never read into memory."""

import hashlib
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from fuzzing import fuzz
from hypothesis import strategies as st

from data_prep import tables
from data_prep.packed import DataError
from data_prep.tables import numbers, read_table, table_columns

HEADER, ROWS = "Image,label,valence", ["a/1.jpg,happy,0.5", "a/2.jpg,sad,-1"]
EXPECTED = {"image": ["a/1.jpg", "a/2.jpg"], "label": ["happy", "sad"], "_row": [2, 3]}


def write(path, *lines, end="\n", encoding="utf-8"):
    path.write_bytes(b"".join(line.encode(encoding) + end.encode() for line in lines))
    return path


def read(path, wanted=("image", "label"), **options) -> tuple[dict, list]:
    table = read_table(path, list(wanted), **options)
    return table.rows.to_dict("list"), [(drop.row, drop.why.text) for drop in table.dropped]


# --- dialects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_line_ends(tmp_path, delimiter, end):
    lines = [line.replace(",", delimiter) for line in (HEADER, *ROWS)]
    assert read(write(tmp_path / "t.csv", *lines, end=end)) == (EXPECTED, [])


def test_decimal_commas_do_not_cut_fields(tmp_path):
    path = write(tmp_path / "t.csv", "image;valence;label", "1.jpg;0,5;happy", "2.jpg;0,25;sad")
    assert read(path, ["image", "valence"])[0]["valence"] == ["0,5", "0,25"]


def test_bom_blank_lines_spaces_quotes_and_no_last_line_end(tmp_path):
    path = write(tmp_path / "t.csv", "\ufeff Image , LABEL", "", '"a/1.jpg", "happy"', "  ", "a/2.jpg ,sad")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path) == ({**EXPECTED, "_row": [3, 5]}, [])


def test_a_delimiter_inside_quotes(tmp_path):
    path = write(tmp_path / "t.csv", "image,label", '"a, ""b"".jpg",happy', "2.jpg,sad")
    assert read(path)[0]["image"] == ['a, "b".jpg', "2.jpg"]


def test_without_header(tmp_path):
    names = ["image", "label", "valence"]
    assert read(write(tmp_path / "t.csv", *ROWS), without_header=names) == ({**EXPECTED, "_row": [1, 2]}, [])
    assert read(write(tmp_path / "u.csv", HEADER, *ROWS), without_header=names) == (EXPECTED, [])


def test_lists_with_spaces(tmp_path):
    path = write(tmp_path / "t.txt", "1.jpg 5", "2.jpg   3 ", "3.jpg", end="\r\n")
    rows, dropped = read(path, without_header=["image", "label"], delimiter=" ")
    assert rows == {"image": ["1.jpg", "2.jpg"], "label": ["5", "3"], "_row": [1, 2]}
    assert dropped == [(3, "wrong number of fields: 1 instead of 2")]


def test_landmarks_joined_by_semicolons_do_not_confuse_the_sniffer(tmp_path):
    marks = ";".join(str(n) for n in range(136))
    path = write(tmp_path / "t.csv", f"a.jpg,{marks},3", f"b.jpg,{marks},1")
    assert read(path, ["label"], without_header=["image", "marks", "label"])[0]["label"] == ["3", "1"]


def test_a_column_that_some_copies_cut_into_fields(tmp_path):
    lines = ["image,marks,label,,", "1.jpg,1;2;3,happy", "2.jpg,1,2,3,sad", "3.jpg,1,2,sad", "4.jpg,1,2,3,4,sad"]
    rows, dropped = read(write(tmp_path / "t.csv", *lines), ["image", "marks", "label"], split_up=("marks", 3))
    assert rows["marks"] == ["1;2;3", "1;2;3"] and rows["label"] == ["happy", "sad"] and rows["_row"] == [2, 3]
    assert dropped == [(4, "wrong number of fields: 4 instead of 3"), (5, "wrong number of fields: 6 instead of 3")]


def test_latin_1_is_read_and_reported(tmp_path):
    path = write(tmp_path / "t.csv", "image,label", "m\u00fcller.jpg,happy", "2.jpg,sad", encoding="latin-1")
    table = read_table(path, ["image"])
    assert table.rows["image"].tolist() == ["m\u00fcller.jpg", "2.jpg"]
    assert table.notes == ("t.csv: 1 line(s) are not UTF-8 and were read as Latin-1",)
    assert read_table(write(tmp_path / "u.csv", "image,label", "m\u00fcller.jpg,x"), ["image"]).notes == ()


def test_optional_columns_and_hash(tmp_path):
    path = write(tmp_path / "t.csv", HEADER, *ROWS)
    table = read_table(path, ["image"], optional=["valence", "arousal"])
    assert list(table.rows) == ["image", "valence", "_row"]
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and table.name == "t.csv"
    assert table_columns(path) == ["Image", "label", "valence"]


def test_numbers_are_finite_or_missing():
    found = numbers(pd.Series(["1", "-2.5e1", "", "NULL", "inf", "nan", "0x10", "1_000"], dtype=object))
    assert found[:2].tolist() == [1.0, -25.0] and pd.isna(found[2:]).all()


# --- broken lines ---------------------------------------------------------------------------------------------------


def test_each_broken_line_costs_itself_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    lines = ["image,label", "1.jpg,happy", "2.jpg", "3.jpg,sad,extra", '4.jpg,"sad', "5.jpg," + "x" * 5000, "6.jpg,sad"]
    rows, dropped = read(write(tmp_path / "t.csv", *lines))
    assert rows == {"image": ["1.jpg", "6.jpg"], "label": ["happy", "sad"], "_row": [2, 7]}
    assert dropped == [
        (3, "wrong number of fields: 1 instead of 2"),
        (4, "wrong number of fields: 3 instead of 2"),
        (5, 'quotes do not match: 4.jpg,"sad'),
        (6, "line is too long: over 0 MB"),
    ]


def test_a_line_of_a_hundred_megabytes_is_never_in_memory(tmp_path):
    path = tmp_path / "t.csv"
    with open(path, "wb") as file:
        file.write(b"image,label\n1.jpg,happy\n2.jpg,")
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n3.jpg,sad\n")
    tracemalloc.start()
    rows, dropped = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows["image"] == ["1.jpg", "3.jpg"] and dropped == [(3, "line is too long: over 1 MB")]
    assert peak < 10 << 20


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        ("image,label\n".encode("utf-16"), "is UTF-16; save it as csv in UTF-8"),
        (b"image,label\r1.jpg,happy\r", "line ends of old Macintosh"),
        (b"img,label\n", "has no column 'image'; it has: img, label"),
        (b"image,label,Image\n", "has the column 'image' 2 times"),
    ],
)
def test_files_that_are_no_such_table(tmp_path, content, sentence):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "t.csv")


def test_a_table_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "t.csv", tmp_path / "t.parquet"):
        with pytest.raises(DataError, match="does not exist or is no file"):
            read(path)


@fuzz(100, place=st.integers(12, 120), garbage=st.binary(max_size=8))
def test_garbage_in_a_row_is_a_row_or_a_record(tmp_path, place, garbage):
    path = write(tmp_path / "t.csv", "image,label", *(f"{n}.jpg,happy" for n in range(9)))
    content = bytearray(path.read_bytes())
    content[place : place + len(garbage)] = garbage
    path.write_bytes(content)
    lines = [line for line in bytes(content).split(b"\n")[1:] if tables._decode(line)[0].strip()]
    rows, dropped = read(path)
    assert len(rows["image"]) + len(dropped) == len(lines)


# --- parquet --------------------------------------------------------------------------------------------------------


def test_parquet_gives_the_same_text(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PARQUET_ROWS", 2)
    frame = pd.DataFrame({"Image": ["1.jpg", "2.jpg", None], "label": [1.0, 2.0, float("nan")], "v": [0.5, -1.0, 2.5]})
    frame.to_parquet(tmp_path / "t.parquet")
    rows, dropped = read(tmp_path / "t.parquet", ["image", "label", "v"])
    assert rows["image"] == ["1.jpg", "2.jpg", ""] and rows["label"] == ["1", "2", ""]
    assert rows["v"] == ["0.5", "-1", "2.5"] and rows["_row"] == [2, 3, 4]
    assert dropped == [] and table_columns(tmp_path / "t.parquet") == ["Image", "label", "v"]


@pytest.mark.parametrize("keep", [0, 10, 500, -5])
def test_damaged_parquet_is_one_sentence(tmp_path, keep):
    pd.DataFrame({"image": [f"{n}.jpg" for n in range(500)]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:keep])
    with pytest.raises(DataError, match="is no readable parquet file"):
        read(tmp_path / "t.parquet", ["image"])


def test_a_number_with_a_nul_byte_is_none():
    """pandas before 3.1 reads 0.03 here."""
    assert np.isnan(numbers(pd.Series(["0.03\x005", "1e400", "x", None]))).all() and numbers(pd.Series(["1"])) == [1]
