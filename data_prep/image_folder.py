"""A folder of classes: ROOT/CLASS/*.jpg, or ROOT/{train,val,test}/CLASS/*.jpg as torchvision's ImageFolder reads it.

Images may lie deeper than their class; those of one sub-folder stay in one split (frames of one film). Names that are
expressions come in the canonical order, however the copy spells and sorts them; other names in sorted order.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.labels import name_classes, parse_class_names
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import is_image_name, is_text, shown
from data_prep.splits import split_name

LICENCE = "Unknown: that of the images in the folder. Check it before you share anything made from them."
ACCESS = "Your own images, or a folder copy of a data set; copies often differ from the original in split and labels."
HIDDEN = Rejected("hidden file or folder", bad=False)
NO_IMAGE = "no image file"
OUTSIDE = Rejected("outside of the class folders", bad=False)
NOT_TEXT = Rejected("file name is not UTF-8")
LINKED = Rejected("link to a folder is not followed")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of a folder of classes."""
    image_files.add_arguments(parser)
    parser.add_argument("--class-names", metavar="NAMES", help="for folders 0, 1, ...: NAME,NAME,... or 0=NAME,1=NAME")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it holds no folders of classes."""
    root = find_root(source_folder(options.source))
    rows, dropped = index_folder(root, split_folders(root))
    labels = sorted(set(rows["label"]))
    if not labels:
        raise DataError(f"--source {root} holds no images in CLASS/ or train/CLASS/ folders")
    return plan_images(
        options,
        rows,
        naming=name_classes(names_of(labels, options.class_names)),
        root=root,
        name="image_folder",
        title=f"Folder {root.name}",
        licence=LICENCE,
        release="folder of classes" + (", splits from its folders" if split_folders(root) else ""),
        dropped=dropped,
        notes=[
            f"{drop.file} lies beside the folders and was not read: if its labels are others, pack it with 'table'"
            for drop in dropped
            if "/" not in drop.file and drop.file.lower().endswith((".csv", ".tsv", ".parquet"))
        ],
    )


def detect(path: Path) -> Layout | None:
    """Class folders with images in them, under train/ or directly."""
    if not path.is_dir():
        return None
    root = find_root(path)
    folders = split_folders(root)
    tops = [root / name for name in folders] or [root]
    classes = sorted({child for top in tops for child in _folders(top) if _holds_images(top / child)})
    if not classes:
        return None
    named = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    evidence = f"{len(classes)} class folders ({shown(named)})"
    evidence += f" in {', '.join(sorted(folders))}" if folders else ", no splits"
    numbered = all(name.isdigit() for name in classes)
    arguments = ("--source", str(path), *(("--class-names", ",".join(f"{name}=NAME" for name in classes)) * numbered))
    return Layout(evidence, arguments, path.resolve().name)


# --- the folders ----------------------------------------------------------------------------------------------------


def find_root(folder: Path) -> Path:
    """The folder that holds the classes or the splits: `folder`, or what lies alone in it."""
    while True:
        inner = _folders(folder)
        if len(inner) != 1 or split_name(inner[0]) or not _folders(folder / inner[0]):
            return folder
        folder = folder / inner[0]


def split_folders(root: Path) -> dict[str, str]:
    """Folder name -> split, empty if the root holds classes; DataError if two folders mean the same split."""
    found = {name: split for name in _folders(root) if (split := split_name(name))}
    if "train" not in found.values():
        return {}
    for split in set(found.values()):
        names = [name for name in found if found[name] == split]
        if len(names) > 1:
            raise DataError(f"{root} holds {' and '.join(names)}, both meaning {split}; move one of them away")
    return found


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def is_hidden(name: str) -> bool:
    """Whether an entry is a computer's own and no part of the data."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _holds_images(folder: Path) -> bool:
    """Whether one of the first entries, here or one level deeper, is an image."""
    with os.scandir(folder) as entries:
        first = [entry for entry, _ in zip(entries, range(100), strict=False)]
    if any(is_image_name(entry.name) for entry in first):
        return True
    return any(is_image_name(name) for entry in first if entry.is_dir() for name in os.listdir(entry.path)[:100])


def names_of(labels: list[str], given: str | None) -> dict[str, str]:
    """Label -> name for class folders; DataError if they are numbers that nobody has explained."""
    if given:
        return parse_class_names(given, labels)
    if all(label.isdigit() for label in labels):
        raise DataError(
            f"the class folders are numbers ({', '.join(labels)[:60]}), whose meaning differs from copy to copy; say "
            "what they are with --class-names NAME,NAME,..."
        )
    return {label: label for label in labels}


def index_folder(root: Path, folders: dict[str, str]) -> tuple[pd.DataFrame, list[Dropped]]:
    """Every file below the root, as a row or as a record of why it is none."""
    found: list[tuple[str, str, str, str]] = []
    dropped = []
    depth = 1 if folders else 0  # of the class in a path
    for path, why in walk(root, ""):
        parts = path.split("/")
        split = folders.get(parts[0], "")
        if why is None and (len(parts) < depth + 2 or (folders and not split)):
            why = OUTSIDE
        if why:
            dropped.append(Dropped(split, path.encode("utf-8", "backslashreplace").decode(), -1, why))
        else:
            inner = "/".join(parts[:-1]) if len(parts) > depth + 2 else ""
            found.append((path, parts[depth], split, inner))
    columns = list(zip(*found, strict=True)) or [()] * 4
    names = ("path", "label", "split", "group")
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in zip(names, columns)}), dropped


def walk(root: Path, folder: str) -> Iterator[tuple[str, Rejected | None]]:
    """Paths of all files in the order of their names, with what keeps one from being an image; a hidden folder is one
    path."""
    try:
        with os.scandir(root / folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        yield folder, Rejected("folder cannot be opened")
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if is_hidden(entry.name):
            yield path, HIDDEN
        elif not is_text(entry.name):
            yield path, NOT_TEXT
        elif entry.is_dir():
            yield from [(path, LINKED)] if entry.is_symlink() else walk(root, path)
        elif not is_image_name(entry.name):
            yield path, Rejected(NO_IMAGE, shown(Path(entry.name).suffix), bad=False)
        else:
            yield path, None
