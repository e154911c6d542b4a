"""CK+48: the last three frames of each labelled CK+ sequence as folders, CK+48/anger/S010_004_00000017.png.

No neutral faces and no official split. Frames of one sequence are nearly identical, so a random split would put copies
of the training images into the test set: the split is always by person, whom the file name tells. Folders train and
test of a copy (a random split) are read, but their split is not used. Classes come by the names of the folders.
"""

import re
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.image_folder import find_root, index_folder, names_of, split_folders
from data_prep.labels import expression, name_classes
from data_prep.packed import DataError, Dropped, Plan, Rejected

LICENCE = "That of CK+: research only, by a signed agreement. Copies that claim a free licence are not credible."
ACCESS = "CK+ itself by request to the University of Pittsburgh (see ckplus); this form of it is a re-upload."
COUNTS = {"surprise": 249, "happy": 207, "disgust": 177, "anger": 135, "sad": 84, "fear": 75, "contempt": 54}
NO_SUBJECT = Rejected("file name does not tell the person")

_NAME = re.compile(r"(S\d{3})_(\d{3})_(\d{8})\.\w+", re.ASCII)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of CK+48."""
    image_files.add_arguments(parser, size=48, folds=10)
    parser.add_argument("--class-names", metavar="NAMES", help="for folders 0, 1, ...: NAME,NAME,... or 0=NAME,1=NAME")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it holds no class folders, or names that do not tell the person."""
    root = find_root(source_folder(options.source))
    folders = split_folders(root)
    rows, dropped = index_folder(root, folders)
    labels = sorted(set(rows["label"]))
    if not labels:
        raise DataError(f"--source {root} holds no images in CLASS folders")
    naming = name_classes(names_of(labels, options.class_names))
    match = [_NAME.fullmatch(path.rpartition("/")[2]) for path in rows["path"]]
    stays = np.array([one is not None for one in match], bool)
    if 2 * stays.sum() <= len(rows):
        name = rows["path"][~stays].iloc[0].rpartition("/")[2]
        raise DataError(
            f"{(~stays).sum():,} of {len(rows):,} file names, such as {name!a}, do not tell the person (S010_004_...), "
            "so this copy cannot be split by person, and a random split would leak"
        )
    dropped = [replace(drop, split="") for drop in dropped]
    dropped += [Dropped("", path, -1, NO_SUBJECT) for path in rows["path"][~stays]]
    rows = rows[stays].reset_index(drop=True).assign(split="", subject=[one[1] for one in match if one])
    found = rows["label"].map(naming.of).value_counts()
    notes = (
        [f"this copy's own split ({', '.join(sorted(folders))}) is not used: it is not by person"] if folders else []
    )
    notes += [
        f"{name}: {found.get(name, 0):,} images, published {count:,}"
        for name, count in COUNTS.items()
        if found.get(name, 0) != count
    ]
    return plan_images(
        options,
        rows.drop(columns="group"),
        naming=naming,
        root=root,
        name="ck48",
        title="CK+48 (folds of people)",
        licence=LICENCE,
        release="folders of 48 x 48 faces",
        dropped=dropped,
        notes=notes,
    )


def detect(path: Path) -> Layout | None:
    """Folders of expressions whose files are named after people and sequences of CK+."""
    if not path.is_dir():
        return None
    root = find_root(path)
    for top in [root / name for name in split_folders(root)] or [root]:
        for folder in sorted(child for child in top.iterdir() if child.is_dir() and expression(child.name)):
            first = next((child.name for child in folder.iterdir() if not child.name.startswith(".")), "")
            if _NAME.fullmatch(first):
                return Layout(f"{folder.name}/{first}", ("--source", str(path)))
    return None
