r"""`table`: a csv or parquet file that names images and their labels, with a mapping of its columns.

    python -m data_prep table --source labels.csv --root images --image-column file --label-column emotion
    python -m data_prep table --source plus.csv --image-column image --valence-column valence --arousal-column arousal \
        --soft-columns p0,p1,p2,p3,p4,p5,p6,p7 --class-names neutral,happy,sad,surprise,fear,disgust,anger,contempt

The second is for labels as of AffectNet+, whose own file format is not public: `detect` proposes it for a table with
p0..p7, in AffectNet's order of classes, which is unverified for AffectNet+.

Labels are class names, or numbers that --class-names explains. Soft labels (AffectNet+ style) are one column a class;
they are normalised to sum 1. Valence and arousal outside -1..1 are faults, except the sentinels of known sets and empty
cells, which mean "not annotated". Action units: the number in a column's name says which; -1, 9, 999 mean "unknown".
"""

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import BOX, plan_images, source_folder
from data_prep.labels import EIGHT_CLASSES, Naming, expression, name_classes, parse_class_names
from data_prep.listed import Why, bounded, note, plain, take_out
from data_prep.packed import DataError, Dropped, Plan
from data_prep.paths import shown
from data_prep.splits import split_name
from data_prep.tables import Table, numbers, read_table, table_columns

LICENCE = "Unknown: that of the images in the table. Check it before you share anything made from them."
ACCESS = "Your own images, or any set whose labels are a csv or parquet file beside them."
NOT_ANNOTATED = (-2.0, -5.0)  # of valence and arousal: AffectNet, Aff-Wild2
UNKNOWN_UNIT = (-1.0, 9.0, 999.0)  # of an action unit: most sets, BP4D, EmotioNet

_GUESSES = {
    "--image-column": ("image", "path", "pth", "file", "filename", "file_name", "image_path", "img", "image_name"),
    "--label-column": ("label", "expression", "emotion", "class", "emotion_label"),
    "--split-column": ("split", "usage", "subset", "partition", "set"),
    "--subject-column": ("subject", "person", "subject_id", "identity"),
    "--valence-column": ("valence",),
    "--arousal-column": ("arousal",),
}


def add_arguments(parser: ArgumentParser) -> None:
    """The mapping of columns."""
    image_files.add_arguments(parser, boxes=True, subjects=True)
    add = parser.add_argument
    add("--root", type=Path, metavar="DIR", help="where the image paths start (the table's directory)")
    add("--image-column", required=True, metavar="NAME", help="paths, relative to --root")
    add("--label-column", metavar="NAME", help="class names, or numbers beside --class-names")
    add("--soft-columns", type=_names, metavar="A,B,...", help="shares of the classes, instead of a label column")
    add("--class-names", metavar="NAMES", help="NAME,NAME,... in the order of labels or soft columns, or 0=NAME,...")
    add("--split-column", metavar="NAME", help="train, val, test or what else these are called")
    add("--subject-column", metavar="NAME", help="who is in the image: stays in one split")
    add("--valence-column", metavar="NAME")
    add("--arousal-column", metavar="NAME")
    add("--au-columns", type=_names, metavar="A,B,...", help="action units, with their number in the name")
    add("--box-columns", type=_names, metavar="A,B,C,D", help="left, top, width, height in pixels; see --box-format")
    add("--box-format", choices=["xywh", "xyxy"], default="xywh", help="what the third and fourth are (%(default)s)")


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if a column is missing or the options do not fit together."""
    if bool(options.label_column) == bool(options.soft_columns):
        raise DataError("table needs one of --label-column and --soft-columns")
    table = read_table(options.source, _wanted_columns(options))
    root = source_folder(options.root or options.source.parent)
    naming = _naming(options, table.rows)
    rows, dropped = _rows(options, table, naming)
    return plan_images(
        options,
        rows,
        naming=naming,
        root=root,
        name="table",
        title=f"Table {table.name}",
        licence=LICENCE,
        release="table of image files",
        dropped=[*table.dropped, *dropped],
        files={table.name: table.sha256},
        settings=_settings(options),
        notes=[*table.notes, *_folder_notes(rows, naming)],
    )


def detect(path: Path) -> Layout | None:
    """A table whose header has a column of images and one of labels, alone in a folder or named itself."""
    if path.is_dir():
        tables = sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".tsv", ".parquet"))
        path = tables[0] if len(tables) == 1 else path
    if not path.is_file():
        return None
    columns = table_columns(path)
    found = {}
    for option, guesses in _GUESSES.items():
        column = next((name for name in columns if name.casefold() in guesses), None)
        found |= {option: column} if column else {}
    evidence = f"a table with the columns {', '.join(map(shown, columns))[:100]}"
    if "relfcs" in map(str.casefold, columns):
        evidence += "; relFCs: a copy of AffectNet whose labels a network gave"
    soft = _soft_arguments(columns)
    if soft:
        evidence += "; soft labels" + " named in the order of AffectNet: check that it is theirs" * (len(soft) > 2)
        found.pop("--label-column", None)
        if found.get("--split-column", "").casefold() == "subset":  # AffectNet+'s easy, challenging, difficult
            del found["--split-column"]
    if "--image-column" not in found or not (soft or "--label-column" in found):
        return None
    arguments = [word for option in found.items() for word in option] + soft
    return Layout(evidence, ("--source", str(path), *arguments), path.stem)


def _soft_arguments(columns: list[str]) -> list[str]:
    """Options for columns p0..p7, or for columns that are called like expressions; empty if there are none."""
    written = {name.casefold(): name for name in columns if "," not in name}
    numbered = [written.get(f"p{k}", "") for k in range(len(EIGHT_CLASSES))]
    if all(numbered):
        return ["--soft-columns", ",".join(numbered), "--class-names", ",".join(EIGHT_CLASSES)]
    named = [name for name in written.values() if expression(name)]
    return ["--soft-columns", ",".join(named)] if len(named) >= 3 else []


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


# --- columns --------------------------------------------------------------------------------------------------------


def _wanted_columns(options: Namespace) -> list[str]:
    names = [options.image_column, options.label_column, options.split_column, options.subject_column]
    names += [options.valence_column, options.arousal_column]
    names += [*(options.soft_columns or ()), *(options.au_columns or ()), *(options.box_columns or ())]
    if options.box_columns and len(options.box_columns) != 4:
        raise DataError(f"--box-columns names {len(options.box_columns)} columns instead of four")
    return list(dict.fromkeys(name for name in names if name))


def _folder_notes(rows: pd.DataFrame, naming: Naming) -> list[str]:
    """Whether the labels are the names of the images' folders, where those are expressions."""
    if "label" not in rows:
        return []
    folders = [expression(path.rpartition("/")[0].rpartition("/")[2]) for path in rows["path"]]
    labels = [naming.of.get(label) for label in rows["label"]]
    named = sum(folder is not None for folder in folders)
    other = sum(folder is not None and folder != label for folder, label in zip(folders, labels, strict=True))
    if not other:
        return []
    return [f"{other:,} of {named:,} labels are not the expression that the image's folder is called by"]


def _naming(options: Namespace, rows: pd.DataFrame) -> Naming:
    if options.soft_columns:
        return _soft_naming(options)
    labels = {label for label in map(plain, rows[options.label_column]) if label}
    if options.class_names:
        return name_classes(parse_class_names(options.class_names, labels))
    if labels and all(label.lstrip("-").isdigit() for label in labels):
        raise DataError(
            f"the labels in {options.label_column} are numbers ({', '.join(sorted(labels)[:12])}), whose meaning "
            "differs from set to set; say what they are with --class-names NAME,NAME,..."
        )
    return name_classes(labels, others=False)


def _soft_naming(options: Namespace) -> Naming:
    """Each column is a class; expressions come in the canonical order, else the columns' order stays."""
    columns = options.soft_columns
    names = parse_class_names(options.class_names, columns) if "=" in (options.class_names or "") else None
    ordered = [names[column] for column in columns] if names else _names(options.class_names or ",".join(columns))
    if len(ordered) != len(columns) or len(set(ordered)) != len(ordered):
        raise DataError(f"--class-names must give {len(columns)} different names, one for each of --soft-columns")
    classes = [expression(name) or name for name in ordered]
    of = dict(zip(columns, classes, strict=True))
    if set(classes) <= set(EIGHT_CLASSES):
        classes.sort(key=EIGHT_CLASSES.index)
    return Naming(tuple(classes), of)


def _rows(options: Namespace, table: Table, naming: Naming) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows for `plan_images`, and those that the table itself makes unusable."""
    given, n = table.rows, len(table.rows)
    rows = pd.DataFrame({"path": given[options.image_column], "split": "", "file": table.name, "row": given["_row"]})
    why: Why = [None] * n
    if options.label_column:
        rows["label"] = given[options.label_column].map(plain)
    else:
        columns = sorted(options.soft_columns, key=lambda name: naming.classes.index(naming.of[name]))
        shares = np.column_stack([numbers(given[name]) for name in columns])
        rows["soft"] = pd.Series(list(shares), dtype=object)
    if options.split_column:
        rows["split"] = [split_name(text) or "" for text in given[options.split_column]]
        note(why, rows["split"] == "", lambda i: ("unknown split", given[options.split_column].iat[i] or "(empty)"))
    if options.subject_column:
        rows["subject"] = given[options.subject_column]
    for name in ("valence", "arousal"):
        if column := getattr(options, f"{name}_column"):
            rows[name] = bounded(given[column], -1, 1, NOT_ANNOTATED, name, why)
    for column in options.au_columns or ():
        number = _unit_number(column)
        rows[f"au{number}"] = bounded(given[column], 0, 5, UNKNOWN_UNIT, f"au{number}", why)
    if options.box_columns:
        rows[list(BOX)] = _corners(options, given, why)
    return take_out(rows, why)


def _unit_number(column: str) -> int:
    number = re.search(r"(\d+)\D*$", column)
    if number is None or not 1 <= int(number[1]) <= 64:
        raise DataError(f"--au-columns: {column!r} does not tell which action unit it is; its name must end in 1..64")
    return int(number[1])


def _corners(options: Namespace, given: pd.DataFrame, why: Why) -> np.ndarray:
    """(n, 4): left, top, right, bottom; NaN where all four cells are empty."""
    box = np.column_stack([numbers(given[name]) for name in options.box_columns])
    empty = np.column_stack([given[name].eq("").to_numpy() for name in options.box_columns]).all(1)
    cells = [given[name] for name in options.box_columns]
    note(why, np.isnan(box).any(1) & ~empty, lambda i: ("box is not four numbers", ",".join(c.iat[i] for c in cells)))
    if options.box_format == "xywh":
        box[:, 2:] += box[:, :2]
    return box


def _settings(options: Namespace) -> dict[str, object]:
    """The mapping of columns, for the manifest."""
    names = ["image_column", "label_column", "soft_columns", "class_names", "split_column", "subject_column"]
    names += ["valence_column", "arousal_column", "au_columns", "box_columns"]
    found = {name: getattr(options, name) for name in names if getattr(options, name)}
    return {**found, **({"box_format": options.box_format} if options.box_columns else {})}
