"""AffectNet of 2017: photographs, and csv lists of faces in them with expression, valence and arousal.

    Manually_Annotated_file_lists/{training,validation}.csv          Manually_Annotated_Images/<folder>/<name>.jpg
    Automatically_Annotated_file_lists/automatically_annotated.csv   Automatically_Annotated_Images/...

Lists and image folders are looked for in --source and two levels below. Expressions: 0 Neutral 1 Happy 2 Sad 3 Surprise
4 Fear 5 Disgust 6 Anger 7 Contempt 8 None 9 Uncertain 10 No-Face; the last three are no classes and left out by rule.

The test set was never released. Papers report on the official validation set, which an epoch must not be chosen on, so
it becomes `test`, and `val` is cut from training (--val-share); --validation-as val keeps the official name.

Known flaws: lists without header; landmarks cut over 136 columns by a re-save; one row with NULL for a box; boxes of
negative size; boxes that reach beyond the image (moved inside); extensions in another case or wrong; one image listed
once for each of its faces (they stay in one split); valence and arousal -2 where there is none. Published counts are
those of the lists; that 9 and 10 have 11,645 and 82,415 rows in training.csv is unverified.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import BOX, plan_images, source_folder
from data_prep.labels import CLASSES, NO_CLASS, expression, name_classes, select_classes
from data_prep.listed import (
    Why,
    add_validation_argument,
    bounded,
    counts_note,
    note,
    plain,
    published_counts,
    refuse_repeats,
    take_out,
)
from data_prep.packed import DataError, Dropped, Plan
from data_prep.paths import below
from data_prep.tables import Table, first_lines, numbers, read_table

LICENCE = "Non-commercial research only, by a signed agreement; no redistribution of images."
ACCESS = "mohammadmahoor.com: a professor or head of laboratory signs the request; students through their supervisor."

EXPRESSIONS = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
NAMES = dict(zip("01234567", EXPRESSIONS, strict=True))
NO_CLASSES = {"8": "None", "9": "Uncertain", "10": "No-Face"}
NOT_ANNOTATED = (-2.0,)  # of valence and arousal
PUBLISHED = {
    "train": dict(zip(map(expression, EXPRESSIONS), (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750))),
    "validation": dict.fromkeys(map(expression, EXPRESSIONS), 500),
}
LISTED = {  # rows of a label in each list, the unusable ones included
    "training.csv": dict(zip("012345678", (74874, 134416, 25459, 14090, 6378, 3803, 24882, 3750, 33088))),
    "validation.csv": dict.fromkeys((*NAMES, *NO_CLASSES), 500),
}

BOX_CELLS = ("face_x", "face_y", "face_width", "face_height")
COLUMNS = ("subDirectory_filePath", *BOX_CELLS, "facial_landmarks", "expression", "valence", "arousal")
LANDMARKS = 136  # numbers of a face, in one field or, in some copies, in as many


@dataclass(frozen=True)
class FaceList:
    """One csv: its kind, its name, and the split of its rows ("validation" = as the option says)."""

    kind: str
    name: str
    split: str


LISTS = (
    FaceList("manual", "training.csv", "train"),
    FaceList("manual", "validation.csv", "validation"),
    FaceList("automatic", "automatically_annotated.csv", "train"),
)
IMAGES = {"manual": "Manually_Annotated_Images", "automatic": "Automatically_Annotated_Images"}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of AffectNet 2017."""
    image_files.add_arguments(parser, boxes=True, val_share=0.05)
    add_class_argument(parser)
    add_validation_argument(parser)
    parser.add_argument(
        "--lists",
        choices=["manual", "automatic", "both"],
        default="manual",
        help="whose labels to train on: people's, a network's, or both; validation.csv is used with each (%(default)s)",
    )


def add_class_argument(parser: ArgumentParser) -> None:
    """--contempt, for AffectNet in any shape."""
    parser.add_argument("--contempt", action="store_true", help="keep contempt: 8 classes instead of 7")


def seven_or_eight(plan: Plan, options: Namespace) -> Plan:
    """The plan of eight classes without contempt, unless --contempt or --classes is given."""
    return plan if options.contempt or options.classes else select_classes(plan, CLASSES)


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if a list or its image folder is missing."""
    root = source_folder(options.source)
    folders = list(_folders(root))
    rows, dropped, files, notes = [], [], {}, []
    for one in _chosen(options.lists):
        path = _find(root, folders, one.name)
        if path is None:
            _refuse_missing(root, one)
            notes.append(f"no {one.name}: without the official validation set results cannot be compared")
            continue
        table = _read(root / path, one.name)
        split = options.validation_as if one.split == "validation" else one.split
        found, out = _rows(table, split, _image_folder(root, folders, one.kind))
        rows.append(found)
        dropped += [*(Dropped(split, drop.file, drop.row, drop.why) for drop in table.dropped), *out]
        files[table.name] = table.sha256
        notes += table.notes
        if one.name in LISTED:
            notes.append(counts_note(one.name, [plain(label) for label in table.rows["expression"]], LISTED[one.name]))
    counts = {"train": PUBLISHED["train"]} if options.lists == "manual" else {}
    whole = plan_images(
        options,
        pd.concat(rows, ignore_index=True),
        naming=name_classes({**NAMES, **NO_CLASSES}),
        root=root,
        name="affectnet",
        title="AffectNet 2017",
        licence=LICENCE,
        release=f"2017, {options.lists} lists",
        dropped=dropped,
        files=files,
        published=published_counts(options, {**counts, options.validation_as: PUBLISHED["validation"]}),
        settings={"lists": options.lists, "validation_as": options.validation_as},
        notes=notes,
        any_extension=True,
    )
    return seven_or_eight(whole, options)


def detect(path: Path) -> Layout | None:
    """A list of 2017 whose first lines have AffectNet's columns, and the images beside it."""
    if not path.is_dir():
        return None
    folders = list(_folders(path))
    kinds = []
    for one in LISTS:
        found = _find(path, folders, one.name)
        if found and one.split == "train" and _find(path, folders, IMAGES[one.kind]) and _looks_right(path / found):
            kinds.append(one.kind)
    if not kinds:
        return None
    arguments = ("--source", str(path), "--lists", "both" if len(kinds) == 2 else kinds[0])
    return Layout(f"AffectNet 2017 with {' and '.join(kinds)} lists", arguments)


def _looks_right(path: Path) -> bool:
    first = first_lines(path)[0]
    return COLUMNS[0].casefold() in first.casefold() or first.count(",") + first.count(";") >= LANDMARKS


# --- where things lie -----------------------------------------------------------------------------------------------


def _folders(root: Path) -> Iterator[str]:
    """"" and the folders one and two levels below, relative to the root; image folders are not entered."""
    yield ""
    below_root = _children(root, "")
    yield from below_root
    for folder in below_root:
        if folder not in IMAGES.values():
            yield from _children(root, folder)


def _children(root: Path, folder: str) -> list[str]:
    try:
        with os.scandir(root / folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except PermissionError:
        return []
    return [f"{folder}/{name}" if folder else name for name in names]


def _find(root: Path, folders: list[str], name: str) -> str | None:
    """The path of a file or folder of this name, relative to the root."""
    return next((below(folder, name) for folder in folders if (root / folder / name).exists()), None)


def _chosen(lists: str) -> list[FaceList]:
    return [one for one in LISTS if lists == "both" or one.kind == lists or one.split == "validation"]


def _refuse_missing(root: Path, one: FaceList) -> None:
    if one.split == "train":
        raise DataError(f"--source {root} holds no {one.name}, not even two levels below; see --lists")


def _image_folder(root: Path, folders: list[str], kind: str) -> str:
    found = _find(root, folders, IMAGES[kind])
    if found is None:
        raise DataError(f"--source {root} holds no folder {IMAGES[kind]}: unpack its archives there")
    return found


# --- a list ---------------------------------------------------------------------------------------------------------


def _read(path: Path, name: str) -> Table:
    """The csv, with or without header, with landmarks in one field (joined by semicolons) or cut over 136."""
    commas = sum(line.count(",") >= len(COLUMNS) - 1 for line in first_lines(path))
    return read_table(
        path,
        [COLUMNS[0], *BOX_CELLS, "expression"],
        optional=["valence", "arousal"],
        without_header=COLUMNS,
        delimiter="," if commas else "",
        name=name,
        split_up=("facial_landmarks", LANDMARKS),
    )


def _rows(table: Table, split: str, folder: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows of a list for `plan_images`, and those that the list itself makes unusable."""
    given = table.rows
    label = given["expression"].map(plain)
    path = [below(folder, name) for name in given[COLUMNS[0]]]
    rows = pd.DataFrame({"path": pd.Series(path, dtype=object), "label": label, "split": split, "file": table.name})
    rows = rows.assign(row=given["_row"], group=rows["path"])
    why: Why = [None] * len(rows)
    note(why, label.isin(NO_CLASSES), lambda i: (NO_CLASS, NO_CLASSES[label.iat[i]]), bad=False)
    rows[list(BOX)] = _boxes(given, why)
    for name in ("valence", "arousal"):
        if name in given:
            rows[name] = bounded(given[name], -1, 1, NOT_ANNOTATED, name, why)
    boxes = zip(*(given[name] for name in BOX_CELLS))
    faces = [f"{path} {','.join(box)}" for path, box in zip(rows["path"], boxes, strict=True)]
    refuse_repeats(why, faces, label, rows["row"])
    return take_out(rows, why)


def _boxes(given: pd.DataFrame, why: Why) -> np.ndarray:
    """(n, 4): left, top, right, bottom."""
    cells = [given[name] for name in BOX_CELLS]
    box = np.column_stack([numbers(column) for column in cells])
    written = [",".join(four) for four in zip(*cells)]
    note(why, np.isnan(box).any(1), lambda i: ("box is not four numbers", written[i]))
    note(why, (box[:, 2:] <= 0).any(1), lambda i: ("no face box", written[i]))
    with np.errstate(over="ignore"):
        box[:, 2:] += box[:, :2]
    return box
