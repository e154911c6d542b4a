"""RAF-DB, basic expressions: the authors' layout, or the folder copy that goes round.

    basic/EmoLabel/list_patition_label.txt      "train_00001.jpg 5"; 1 Surprise 2 Fear 3 Disgust 4 Happiness 5 Sadness
    basic/Image/aligned/train_00001_aligned.jpg 6 Anger 7 Neutral
    basic/Image/original/train_00001.jpg
    basic/Annotation/boundingbox/train_00001_boundingbox.txt    "left top right bottom" (unverified)

    DATASET/{train,test}/{1..7}/*.jpg with train_labels.csv, test_labels.csv (image,label) (unverified)

Results on aligned and original images differ, so the manifest records which were packed. Original photographs are
cropped to the face's box where there is a boundingbox folder. In the copy, rows whose folder and csv disagree are left
out. The authors' split has no val: it is cut from train.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import BOX, plan_images, source_folder
from data_prep.image_folder import NO_IMAGE, find_root, split_folders, walk
from data_prep.labels import expression, name_classes
from data_prep.listed import Why, counts_note, note, plain, published_counts, refuse_repeats, take_out
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import MISSING, Located, Root, refusal, shown
from data_prep.tables import Table, read_table

LICENCE = "Non-commercial research only; no redistribution of images."
ACCESS = "whdeng.cn/RAF/model1.html: a request by e-mail from an academic address gives the password of the archives."

LIST = "EmoLabel/list_patition_label.txt"
BOXES = "Annotation/boundingbox"
BOX_BYTES = 4096  # of a file with four numbers


@dataclass(frozen=True)
class Part:
    """One of RAF-DB's two parts: its folder, the names of its labels, and the published counts by split and label."""

    name: str
    title: str
    folder: str
    names: Mapping[str, str]
    published: Mapping[str, Mapping[str, int]]


_LABELS = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
BASIC = Part(
    "rafdb",
    "RAF-DB, basic expressions",
    "basic",
    dict(zip("1234567", _LABELS, strict=True)),
    {
        "train": dict(zip("1234567", (1290, 281, 717, 4772, 1982, 705, 2524), strict=True)),
        "test": dict(zip("1234567", (329, 74, 160, 1185, 478, 162, 680), strict=True)),
    },
)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of RAF-DB."""
    image_files.add_arguments(parser, size=100, boxes=True)
    parser.add_argument(
        "--alignment",
        choices=["aligned", "original"],
        default="aligned",
        help="the authors' aligned faces, or their photographs, cropped by --margin around the box (%(default)s)",
    )


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it has neither layout."""
    root = find_part(source_folder(options.source), BASIC)
    return plan_folders(options) if root is None else plan_part(options, BASIC, root)


def detect(path: Path) -> Layout | None:
    """The authors' list, or numbered folders with the authors' file names."""
    if not path.is_dir():
        return None
    if find_part(path, BASIC):
        return Layout(f"RAF-DB, {BASIC.folder}/{LIST}", ("--source", str(path)))
    root = find_root(path)
    folders = split_folders(root)
    train = next((name for name, split in folders.items() if split == "train"), "")
    if not train or sorted(_subfolders(root / train)) != sorted(BASIC.names):
        return None
    first = next((path for path, why in walk(root, train) if why is None), "")
    known = first.rpartition("/")[2].startswith("train_")
    return Layout("RAF-DB as a copy in folders 1 to 7", ("--source", str(path))) if known else None


def find_part(folder: Path, part: Part) -> Path | None:
    """The folder that holds a part's EmoLabel: `folder`/basic, one level deeper, or `folder` itself if so called."""
    below = sorted(child for child in folder.iterdir() if child.is_dir())
    places = [folder / part.folder, *(child / part.folder for child in below)]
    if folder.resolve().name == part.folder:
        places.insert(0, folder)
    return next((place for place in places if (place / LIST).is_file()), None)


# --- the authors' layout --------------------------------------------------------------------------------------------


def plan_part(options: Namespace, part: Part, root: Path) -> Plan:
    """The plan for one part of RAF-DB in the authors' layout."""
    table = read_table(root / LIST, ["name", "label"], without_header=["name", "label"], delimiter=" ")
    rows, dropped = list_rows(table, part, options.alignment)
    settings, notes = {"alignment": options.alignment}, list(table.notes)
    if options.alignment == "original":
        rows, out, boxed = with_boxes(rows, root, notes)
        dropped += out
        settings["boxes"] = boxed
    for split, counts in part.published.items():
        labels = [label for name, label in zip(table.rows["name"], table.rows["label"]) if split_of(name) == split]
        notes.append(counts_note(f"{table.name}, {split}", labels, counts))
    return plan_images(
        options,
        rows.drop(columns="name"),
        naming=name_classes(part.names),
        root=root,
        name=part.name,
        title=f"{part.title} ({options.alignment} images)",
        licence=LICENCE,
        release=f"authors' layout, {options.alignment} images",
        dropped=[*table.dropped, *dropped],
        files={table.name: table.sha256},
        published=_by_class(options, part),
        settings=settings,
        notes=notes,
    )


def split_of(name: str) -> str:
    """The split that a file name tells; "" for none."""
    return next((split for split in ("train", "test") if name.startswith(f"{split}_")), "")


def list_rows(table: Table, part: Part, alignment: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows of the list for `plan_images` and a column `name`, and those that the list makes unusable."""
    names = table.rows["name"]
    rows = pd.DataFrame({"name": names, "label": table.rows["label"], "row": table.rows["_row"]})
    rows["file"] = table.name
    rows["split"] = pd.Series([split_of(name) for name in names], dtype=object)
    rows["path"] = pd.Series([image_path(name, alignment) for name in names], dtype=object)
    why: Why = [refusal(name) for name in names]
    note(why, rows["split"] == "", lambda i: ("file name tells no split", names.iat[i]))
    refuse_repeats(why, names, rows["label"], rows["row"])
    return take_out(rows, why)


def image_path(name: str, alignment: str) -> str:
    """Where the image lies that a list calls `name`."""
    if alignment == "original":
        return f"Image/original/{name}"
    stem, dot, extension = name.rpartition(".")
    return f"Image/aligned/{stem}_aligned.{extension}" if dot else f"Image/aligned/{name}_aligned"


def _by_class(options: Namespace, part: Part) -> dict[str, dict[str, int]]:
    counts = published_counts(options, part.published)
    names = {label: expression(name) or name for label, name in part.names.items()}
    return {split: {names[label]: n for label, n in of.items()} for split, of in counts.items()}


def with_boxes(rows: pd.DataFrame, root: Path, notes: list[str]) -> tuple[pd.DataFrame, list[Dropped], str]:
    """The rows with the boxes of Annotation/boundingbox, those without a usable one, and what was done in a word."""
    if not (root / BOXES).is_dir():
        notes.append(f"no folder {BOXES}: whole photographs are packed, not faces")
        return rows, [], "none"
    finder, why = Root(root), []
    boxes = np.full((len(rows), 4), np.nan)
    for i, name in enumerate(rows["name"]):
        found = _read_box(finder, f"{BOXES}/{name.rpartition('.')[0]}_boundingbox.txt")
        why.append(found if isinstance(found, Rejected) else None)
        boxes[i] = np.nan if isinstance(found, Rejected) else found
    rows[list(BOX)] = boxes
    return *take_out(rows, why), "Annotation/boundingbox"


def _read_box(finder: Root, path: str) -> list[float] | Rejected:
    located = finder.locate(path)
    if not isinstance(located, Located):
        return Rejected(located.reason.replace("image", "box"), located.detail, located.bad)
    with open(finder.folder / located.path, "rb") as file:
        cells = file.read(BOX_BYTES).split()
    try:
        box = [float(cell) for cell in cells]
    except ValueError:
        box = []
    if len(box) != 4 or not np.isfinite(box).all():
        return Rejected("box is not four numbers", shown(path))
    return box


# --- the folder copy ------------------------------------------------------------------------------------------------


def plan_folders(options: Namespace) -> Plan:
    """The plan for {train,test}/{1..7}/, compared with the csv files beside."""
    root = find_root(source_folder(options.source))
    folders = {name: split for name, split in split_folders(root).items() if split in ("train", "test")}
    if set(folders.values()) != {"train", "test"} or not set(BASIC.names) & set(_subfolders(root / min(folders))):
        raise DataError(
            f"--source {options.source} holds neither {BASIC.folder}/{LIST} nor the folders train/1..7 and test/1..7"
        )
    rows, dropped = _index(root, folders)
    files, notes = {}, []
    for split in ("train", "test"):
        rows, out = _compare(rows, split, root, files, notes)
        dropped += out
    for split, counts in BASIC.published.items():
        notes.append(counts_note(f"{split} folders", list(rows.loc[rows["split"] == split, "label"]), counts))
    alignment = _alignment(rows["path"])
    return plan_images(
        options,
        rows.drop(columns="name"),
        naming=name_classes(BASIC.names),
        root=root,
        name=BASIC.name,
        title=f"{BASIC.title} (folder copy, {alignment} images)",
        licence=LICENCE,
        release=f"folder copy, {alignment} images",
        dropped=dropped,
        files=files,
        published=_by_class(options, BASIC),
        settings={"alignment": alignment},
        notes=notes,
    )


def _subfolders(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir() if child.is_dir()]


def _index(root: Path, folders: Mapping[str, str]) -> tuple[pd.DataFrame, list[Dropped]]:
    """Every file below the split folders, as a row or as a record of why it is none."""
    found, dropped = [], []
    for folder, split in folders.items():
        for path, why in walk(root, folder):
            parts = path.split("/")
            if why is None and len(parts) != 3:
                why = Rejected("outside of the class folders", bad=False)
            if why is None:
                found.append((path, parts[1], split, parts[2]))
            else:
                bad = why.bad and why.reason != NO_IMAGE
                shown_path = path.encode("utf-8", "backslashreplace").decode()
                dropped.append(Dropped(split, shown_path, -1, Rejected(why.reason, why.detail, bad)))
    columns = list(zip(*found, strict=True)) or [()] * 4
    named = zip(("path", "label", "split", "name"), columns, strict=True)
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in named}), dropped


def _compare(
    rows: pd.DataFrame, split: str, root: Path, files: dict[str, str], notes: list[str]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows whose folder is the csv's label, where there is a csv; its images that are missing are recorded too."""
    table = _labels_csv(root, split, notes)
    if table is None:
        return rows, []
    files[table.name] = table.sha256
    listed: dict[str, set[str]] = {}
    for name, label in zip(table.rows["image"], table.rows["label"]):
        listed.setdefault(name, set()).add(plain(label))
    here = rows["split"] == split
    why: Why = [None] * len(rows)
    labels, names = rows["label"], rows["name"]
    differ = [bool(listed.get(name, {label}) - {label}) for name, label in zip(names, labels)]

    def tell(i: int) -> tuple[str, str]:
        both = f"{labels.iat[i]} and {', '.join(sorted(listed[names.iat[i]]))}"
        return "folder and csv disagree", f"{names.iat[i]} ({both})"

    note(why, here & np.array(differ, bool), tell)
    unlisted = sum(name not in listed for name in names[here])
    if unlisted:
        notes.append(f"{table.name} does not name {unlisted:,} images of its split")
    stays, dropped = take_out(rows.assign(file=rows["path"], row=-1), why)
    there = set(names[here])
    gone = [(row, name) for row, name in zip(table.rows["_row"], table.rows["image"]) if name not in there]
    dropped += [Dropped(split, table.name, int(row), Rejected(MISSING, shown(name))) for row, name in gone]
    dropped += [Dropped(split, drop.file, drop.row, drop.why) for drop in table.dropped]
    return stays.drop(columns=["file", "row"]), dropped


def _labels_csv(root: Path, split: str, notes: list[str]) -> Table | None:
    for folder in (root, root.parent):
        path = folder / f"{split}_labels.csv"
        if path.is_file():
            try:
                return read_table(path, ["image", "label"])
            except DataError as error:
                notes.append(f"{path.name} was not compared with the folders ({error})")
                return None
    notes.append(f"no {split}_labels.csv to compare the folders with")
    return None


def _alignment(paths: Iterator[str]) -> str:
    """What the copy's file names say of its images."""
    aligned = {path.rpartition(".")[0].endswith("_aligned") for path in paths}
    return "aligned" if aligned == {True} else "unknown"
