"""FER2013 with its official splits: from fer2013.csv, icml_face_data.csv, or a folder copy named after them.

Labels are mapped by name (csv: 0 Angry 1 Disgust 2 Fear 3 Happy 4 Sad 5 Surprise 6 Neutral). Usage Training is train,
PublicTest val, PrivateTest test. A folder copy is used only if its file names (Training_N.jpg) still tell the split.
"""

import csv
import hashlib
import io
import re
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep.detect import Layout
from data_prep.packed import CLASSES, SPLITS, DataError, Dropped, Plan, Rejected

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
CSV_CLASSES = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # label 0..6 in the csv
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
SIDE = 48  # pixels
LICENCE = "FER2013 came with a Kaggle competition and has no explicit image licence: research use, do not redistribute."
ACCESS = "kaggle.com, competition 'challenges-in-representation-learning-facial-expression-recognition-challenge'."
PUBLISHED = {  # in the order of CSV_CLASSES
    "train": dict(zip(CSV_CLASSES, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True)),
    "val": dict(zip(CSV_CLASSES, (467, 56, 496, 895, 653, 415, 607), strict=True)),
    "test": dict(zip(CSV_CLASSES, (491, 55, 528, 879, 594, 416, 626), strict=True)),
}

_SYNONYMS = {"angry": "anger", "happiness": "happy", "sadness": "sad"}
_FOLDERS = {**{name: name for name in CSV_CLASSES}, **_SYNONYMS}
CSV_MAPPING = {str(number): name for number, name in enumerate(CSV_CLASSES)}
FOLDER_MAPPING = {**_SYNONYMS, **{name: name for name in ("disgust", "fear", "neutral", "surprise")}}

_IMAGE_NAME = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_OFFICIAL_NAME = re.compile(r"(Training|PublicTest|PrivateTest)_(\d+)\.(?:png|jpe?g)", re.IGNORECASE)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of FER2013 and FER+."""
    parser.add_argument("--source", type=Path, required=True, help="fer2013.csv, icml_face_data.csv or their directory")
    leaks = "drop val/test images equal to a train image, test to a val one"
    parser.add_argument("--drop-leaks", action="store_true", help=leaks)
    parser.add_argument("--dedup", action="store_true", help="keep the first of equal images within a split")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it is neither the csv nor a folder copy with official names."""
    source = find_source(options.source)
    if source.is_dir():
        samples, dropped, files = _index_folder(source)
        decode, release = partial(decode_files, folder=source), "folder copy, splits from the file names"
    else:
        index = index_csv(source)
        samples, dropped = _label_rows(index, source.name)
        files = {source.name: index.sha256}
        decode, release = partial(decode_rows, path=source), "ICML 2013 challenge csv"
    return Plan(
        name="fer2013",
        title="FER2013 (7 classes, official splits)",
        classes=CLASSES,
        shape=(1, SIDE, SIDE),
        samples=samples,
        decode=decode,
        licence=LICENCE,
        release=release,
        files=files,
        dropped=dropped,
        drop_leaks=options.drop_leaks,
        dedup=options.dedup,
        published=PUBLISHED,
        label_mapping=FOLDER_MAPPING if source.is_dir() else CSV_MAPPING,
    )


def detect(path: Path) -> Layout | None:
    """The csv with its three columns, or a folder copy whose file names tell the official split."""
    source = find_source(path)
    if source.is_dir():
        classes = [path for path in (source / "train").iterdir() if path.name.lower() in _FOLDERS and path.is_dir()]
        first = next((child for child in classes[0].iterdir()), None) if classes else None
        official = first is not None and _OFFICIAL_NAME.fullmatch(first.name)
        return Layout("a folder copy with the official file names", ("--source", str(path))) if official else None
    with open(source, "rb") as file:
        header = file.readline(1 << 16).decode("utf-8-sig", "replace")
    names = {name.strip().lower() for name in header.split(",")}
    known = {"emotion", "pixels", "usage"} <= names
    return Layout(f"{source.name} with emotion, pixels and Usage", ("--source", str(path))) if known else None


def find_source(path: Path) -> Path:
    """The csv file, or the folder that holds train/ and test/, at `path` or one level below."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"--source {path} does not exist")
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        for name in CSV_NAMES:
            if (folder / name).is_file():
                return folder / name
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return folder
    raise DataError(f"--source {path} holds neither {' nor '.join(CSV_NAMES)} nor the folders train and test")


# --- the csv --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One data row without its pixels: `line` of the file (1 = header), where it starts and how many bytes it has."""

    line: int
    offset: int
    size: int
    usage: str
    emotion: str
    fault: Rejected | None


@dataclass(frozen=True)
class CsvIndex:
    """All data rows of a csv in order, its sha256, and the column that holds the pixels."""

    rows: list[CsvRow]
    sha256: str
    pixel_column: int


def index_csv(path: Path) -> CsvIndex:
    """Reads the csv once, a row in memory at a time, and notes where each row lies.

    DataError if the header has no emotion, pixels and Usage (any order and case, spaces around allowed).
    """
    digest, rows = hashlib.sha256(), []
    with open(path, "rb") as file:
        header = file.readline(1 << 16)
        digest.update(header)
        names = [name.strip().lower() for name in header.decode("utf-8-sig", "replace").split(",")]
        columns = _csv_columns(path, names)
        offset = len(header)
        for line, text in enumerate(file, start=2):
            digest.update(text)
            if text.strip():
                rows.append(_index_row(text, line, offset, columns, len(names)))
            offset += len(text)
    return CsvIndex(rows, digest.hexdigest(), columns["pixels"])


def _csv_columns(path: Path, names: list[str]) -> dict[str, int]:
    wanted = ("emotion", "pixels", "usage")
    missing = [name for name in wanted if name not in names]
    if missing:
        hint = " (without Usage the official splits cannot be told)" if missing == ["usage"] else ""
        found = ", ".join(names)[:80] or "nothing"
        raise DataError(f"{path}: the header lacks {', '.join(missing)}{hint}; it reads: {found}")
    return {name: names.index(name) for name in wanted}


def _fields(text: bytes) -> list[bytes]:
    """The fields of one line; none where its quotes make no sense."""
    if b'"' not in text:
        return text.split(b",")
    try:
        return [field.encode() for field in next(csv.reader([text.decode("utf-8", "replace")]))]
    except csv.Error:
        return []


def _index_row(text: bytes, line: int, offset: int, columns: dict[str, int], width: int) -> CsvRow:
    fields = _fields(text)
    fault, usage, emotion = None, "", ""
    if len(fields) != width:
        fault = Rejected("wrong number of fields", f"{len(fields)} instead of {width}")
    else:
        usage = fields[columns["usage"]].strip().decode("utf-8", "replace")
        emotion = fields[columns["emotion"]].strip().decode("utf-8", "replace")
        if usage not in USAGES:
            fault, usage = Rejected("unknown Usage", usage[:40] or "(empty)"), ""
        elif emotion not in set("0123456"):
            fault = Rejected("label outside 0..6", emotion[:40] or "(empty)")
    return CsvRow(line, offset, len(text), usage, emotion, fault)


def _label_rows(index: CsvIndex, name: str) -> tuple[dict[str, pd.DataFrame], list[Dropped]]:
    dropped = [Dropped(USAGES.get(row.usage, ""), name, row.line, row.fault) for row in index.rows if row.fault]
    good = [row for row in index.rows if not row.fault]
    labels = [CLASSES.index(CSV_CLASSES[int(row.emotion)]) for row in good]
    return by_split(row_table(good, labels, index, name), [USAGES[row.usage] for row in good]), dropped


def row_table(rows: Sequence[CsvRow], labels: Sequence[int], index: CsvIndex, name: str) -> pd.DataFrame:
    """The samples table for rows of the csv called `name`, in file order, ready for `decode_rows`."""
    return pd.DataFrame(
        {
            "label": np.array(labels, np.int64),
            "source": [f"{name}:{row.line}" for row in rows],
            "_row": np.array([row.line for row in rows], np.int64),
            "_offset": np.array([row.offset for row in rows], np.int64),
            "_size": np.array([row.size for row in rows], np.int64),
            "_column": np.full(len(rows), index.pixel_column, np.int64),
        }
    )


def by_split(table: pd.DataFrame, splits: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Cuts a table by the split of each row, keeping the order."""
    of_row = np.array(splits, object)
    return {split: table[of_row == split].reset_index(drop=True) for split in SPLITS}


def decode_rows(rows: pd.DataFrame, split: str, path: Path) -> list[np.ndarray | Rejected]:
    """Pixels of the rows, each uint8 (1, 48, 48), read at their offsets in the csv."""
    results = []
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy reports text that is no number
        for offset, size, column in zip(rows["_offset"], rows["_size"], rows["_column"], strict=True):
            file.seek(offset)
            results.append(_parse_pixels(_fields(file.read(size))[column]))
    return results


def _parse_pixels(text: bytes) -> np.ndarray | Rejected:
    try:
        values = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        return _pixel_fault(text)
    if len(values) != SIDE * SIDE:
        return Rejected("wrong number of pixels", f"{len(values)} instead of {SIDE * SIDE}")
    if values.min() < 0 or values.max() > 255:
        outside = values[(values < 0) | (values > 255)]
        return Rejected("pixel outside 0..255", str(outside[0]))
    return values.astype(np.uint8).reshape(1, SIDE, SIDE)


def _pixel_fault(text: bytes) -> Rejected:
    word = next((word for word in text.split() if not word.lstrip(b"-").isdigit()), b"")
    return Rejected("pixel is not a whole number", word.decode("utf-8", "replace")[:40] or "(empty)")


# --- the folder copy ------------------------------------------------------------------------------------------------


def _index_folder(folder: Path) -> tuple[dict[str, pd.DataFrame], list[Dropped], dict[str, str]]:
    """Samples by split, in the order of the official numbers; never in the order of the folder."""
    paths = sorted(_image_files(folder))
    matches = {path: _OFFICIAL_NAME.fullmatch(path.name) for path in paths}
    _refuse_other_splits(folder, matches)
    usages = {usage.lower(): split for usage, split in USAGES.items()}
    found, dropped = [], []
    for path, match in matches.items():
        name = path.relative_to(folder).as_posix()
        if match is None:
            dropped.append(Dropped("", name, -1, Rejected("file name without the official split")))
        else:
            label = CLASSES.index(_FOLDERS[path.parent.name.lower()])
            found.append((usages[match[1].lower()], int(match[2]), name, label))
    found.sort()
    table = pd.DataFrame({"label": [row[3] for row in found], "source": [row[2] for row in found]})
    digest = _folder_sha256(folder, table["source"])
    return by_split(table, [row[0] for row in found]), dropped, {f"train and test, {len(paths)} files": digest}


def _image_files(folder: Path) -> Iterator[Path]:
    for part in ("train", "test"):
        for class_folder in sorted((folder / part).iterdir()):
            if class_folder.name.startswith((".", "__MACOSX")) or not class_folder.is_dir():
                continue
            if class_folder.name.lower() not in _FOLDERS:
                allowed = ", ".join(sorted(_FOLDERS))
                raise DataError(f"{class_folder}: the folder's name is no class of FER2013 (known: {allowed})")
            yield from (path for path in class_folder.iterdir() if _IMAGE_NAME.search(path.name))


def _refuse_other_splits(folder: Path, matches: dict[Path, re.Match | None]) -> None:
    if not matches:
        raise DataError(f"{folder}: no .png or .jpg under train/CLASS and test/CLASS")
    others = [path for path, match in matches.items() if match is None]
    if 2 * len(others) > len(matches):
        raise DataError(
            f"{folder}: {len(others)} of {len(matches)} file names, such as {others[0].name}, do not tell the official "
            "split (Training_N, PublicTest_N, PrivateTest_N), so results on this copy could not be compared"
        )


def _folder_sha256(folder: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def decode_files(rows: pd.DataFrame, split: str, folder: Path) -> list[np.ndarray | Rejected]:
    """Pixels of the rows' files, each uint8 (1, 48, 48); colour copies of the grey images become grey again."""
    return [_decode_file((folder / name).read_bytes()) for name in rows["source"]]


def _decode_file(content: bytes) -> np.ndarray | Rejected:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (SIDE, SIDE):
                return Rejected(f"image is not {SIDE} x {SIDE}", f"{image.width} x {image.height}")
            return np.asarray(image.convert("L"))[None]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Rejected("unreadable image", str(error).partition(" <")[0])
