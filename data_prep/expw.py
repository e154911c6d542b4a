"""ExpW: 91,793 faces in photographs from the web, often several in one.

    label/label.lst    "name.jpg face_id top left right bottom confidence label"; mind the order of the box
    image/origin/*.jpg

Labels: 0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral. `confidence` is the face detector's; tilted faces
and pictures of no face remain, --min-confidence leaves the doubtful ones out. There is no official split: val and test
are shares of all, and the faces of one photograph stay together. Each face is its own row, known by its line and
`face` (the face_id), so that no crop overwrites another.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import BOX, plan_images, source_folder
from data_prep.labels import name_classes
from data_prep.listed import Why, counts_note, note, refuse_repeats, take_out
from data_prep.packed import DataError, Dropped, Plan
from data_prep.paths import below
from data_prep.tables import Table, first_lines, numbers, read_table

LICENCE = "Academic research only; the photographs belong to whoever took them, no redistribution."
ACCESS = "mmlab.ie.cuhk.edu.hk/projects/socialrelation: links to the archives, without a request."

COLUMNS = ("name", "face", "top", "left", "right", "bottom", "confidence", "label")
NAMES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
LISTED = dict(zip("0123456", (3671, 3995, 1088, 30537, 10559, 7060, 34883), strict=True))
LISTS = ("label/label.lst", "label.lst")
DOUBTFUL = "confidence below --min-confidence"
IMAGES = ("image/origin", "origin", "image", "images")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ExpW."""
    image_files.add_arguments(parser, boxes=True)
    parser.set_defaults(test_share=0.1)
    help_text = "leave out faces that the detector was less sure of, on its scale (%(default)s)"
    parser.add_argument("--min-confidence", type=_number, default=0.0, metavar="C", help=help_text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ArgumentTypeError(f"{text!r} is no number")
    return value


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if the list or the photographs are missing."""
    root = find_root(source_folder(options.source))
    path = next((root / name for name in LISTS if (root / name).is_file()), None)
    folder = next((name for name in IMAGES if (root / name).is_dir()), None)
    if path is None or folder is None:
        missing = f"no {LISTS[0]}" if path is None else f"no folder {IMAGES[0]} with the photographs"
        raise DataError(f"--source {options.source} holds {missing}")
    table = read_table(path, COLUMNS, without_header=COLUMNS, delimiter=" ")
    rows, dropped = _rows(table, folder, options.min_confidence)
    return plan_images(
        options,
        rows,
        naming=name_classes(NAMES),
        root=root,
        name="expw",
        title="ExpW",
        licence=LICENCE,
        release="label.lst, no official split",
        dropped=[*table.dropped, *dropped],
        files={table.name: table.sha256},
        settings={"min_confidence": options.min_confidence},
        notes=[*table.notes, counts_note(table.name, list(table.rows["label"]), LISTED)],
    )


def detect(path: Path) -> Layout | None:
    """label.lst with eight fields a line."""
    root = find_root(path) if path.is_dir() else path
    found = next((root / name for name in LISTS if (root / name).is_file()), None)
    if found is None or len(first_lines(found)[0].split()) != len(COLUMNS):
        return None
    return Layout(f"ExpW, {found.name} with {len(COLUMNS)} fields a line", ("--source", str(path)))


def find_root(folder: Path) -> Path:
    """The folder with the list: `folder` or one below."""
    places = [folder, *sorted(child for child in folder.iterdir() if child.is_dir() and child.name != "label")]
    return next((place for place in places if any((place / name).is_file() for name in LISTS)), folder)


def _rows(table: Table, folder: str, least: float) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row a face for `plan_images`, and those that the list or --min-confidence leaves out."""
    given = table.rows
    rows = pd.DataFrame({"label": given["label"], "row": given["_row"]})
    rows["path"] = pd.Series([below(folder, name) for name in given["name"]], dtype=object)
    rows = rows.assign(file=table.name, split="", group=rows["path"])
    box = np.column_stack([numbers(given[side]) for side in ("left", "top", "right", "bottom")])
    rows[list(BOX)] = box
    face, confidence = numbers(given["face"]), numbers(given["confidence"])
    rows["face"] = np.nan_to_num(face)
    why: Why = [None] * len(rows)
    note(why, ~(face == np.clip(np.round(face), 0, 1e6)), lambda i: ("face id is no number", given["face"].iat[i]))
    written = [",".join(four) for four in zip(*(given[side] for side in ("top", "left", "right", "bottom")))]
    note(why, np.isnan(box).any(1), lambda i: ("box is not four numbers", written[i]))
    note(why, np.isnan(confidence), lambda i: ("confidence is no number", given["confidence"].iat[i]))
    keys = [f"{path} face {number:g}" for path, number in zip(rows["path"], rows["face"])]
    refuse_repeats(why, keys, rows["label"], rows["row"])
    note(why, confidence < least, lambda i: (DOUBTFUL, given["confidence"].iat[i]), bad=False)
    rows, dropped = take_out(rows, why)
    return rows.astype({"face": np.int64}), dropped
