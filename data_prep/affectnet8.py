"""AffectNet-8 of March 2021: aligned faces of 224 x 224 pixels, each with its annotations in four npy files.

    {train_set,val_set}/images/<id>.jpg
    {train_set,val_set}/annotations/<id>_{exp,val,aro,lnd}.npy

exp, val and aro are arrays of one number or, in many copies, one string: 0 Neutral 1 Happy 2 Sad 3 Surprise 4 Fear
5 Disgust 6 Anger 7 Contempt; valence and arousal -2 where there is none. lnd holds landmarks, which the packed format
has no use for: it is missed where it is missing, and never opened. Ids have gaps, the same id in both sets is two
different faces, and no id leads to a name in the lists of 2017. Which set becomes val or test: as in
`data_prep.affectnet`.

An id is one input. Without image, without exp, or with an annotation that cannot be read it is left out; without val,
aro or lnd it is kept, and the report counts them.
"""

import hashlib
import os
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep import affectnet, image_files
from data_prep.affectnet import NAMES, NOT_ANNOTATED, PUBLISHED, seven_or_eight
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.image_folder import HIDDEN, NOT_TEXT, is_hidden
from data_prep.labels import name_classes
from data_prep.listed import Why, add_validation_argument, bounded, note, plain, published_counts, take_out
from data_prep.npy import read_value
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import is_image_name, is_text, shown

LICENCE = affectnet.LICENCE
ACCESS = affectnet.ACCESS

SETS = {"train_set": "train", "val_set": "validation"}
KINDS = ("exp", "val", "aro", "lnd")
VALUES = {"exp": "label", "val": "valence", "aro": "arousal"}
STRAY = Rejected("neither image nor annotation", bad=False)
READERS = 8  # threads: a disk answers several questions at once
PUBLISHED_VAL = {**PUBLISHED["validation"], "contempt": 499}  # one image of 4,000 is missing in the release


def add_arguments(parser: ArgumentParser) -> None:
    """Options of AffectNet-8."""
    image_files.add_arguments(parser, val_share=0.05)
    affectnet.add_class_argument(parser)
    add_validation_argument(parser)


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it holds no train_set."""
    root = find_root(source_folder(options.source))
    if not (root / "train_set").is_dir():
        raise DataError(f"--source {root} holds no folder train_set with images and annotations")
    rows, dropped, notes, digest = [], [], [], hashlib.sha256()
    for folder, split in SETS.items():
        if not (root / folder).is_dir():
            notes.append(f"no {folder}: without the official validation set results cannot be compared")
            continue
        listing = _list_set(root, folder)
        split = options.validation_as if split == "validation" else split
        values = _read_annotations(root / folder / "annotations", sorted(listing.images, key=_number))
        found, out = _rows(listing, values, split, folder)
        rows.append(found)
        dropped += out
        notes += _absent(folder, listing, values)
        for one, row in values.items():
            digest.update(f"{folder}\t{one}\t{row}\n".encode("utf-8", "backslashreplace"))
    whole = plan_images(
        options,
        pd.concat(rows, ignore_index=True),
        naming=name_classes(NAMES),
        root=root,
        name="affectnet8",
        title="AffectNet-8 (March 2021)",
        licence=LICENCE,
        release="March 2021, 224 x 224 faces with npy annotations",
        dropped=dropped,
        files={"annotations": digest.hexdigest()},
        published=published_counts(options, {"train": PUBLISHED["train"], options.validation_as: PUBLISHED_VAL}),
        settings={"validation_as": options.validation_as},
        notes=notes,
    )
    return seven_or_eight(whole, options)


def detect(path: Path) -> Layout | None:
    """train_set/annotations with npy files in it, here or one level below."""
    root = find_root(path) if path.is_dir() else path
    annotations = root / "train_set" / "annotations"
    if not annotations.is_dir():
        return None
    with os.scandir(annotations) as entries:
        first = next((entry.name for entry in entries if _annotation(entry.name)), None)
    return Layout("train_set with npy annotations", ("--source", str(path))) if first else None


def find_root(folder: Path) -> Path:
    """The folder that holds train_set: `folder`, or what lies below it."""
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not (folder / "train_set").is_dir())
    return next((child for child in below if (child / "train_set").is_dir()), folder)


# --- a set's files --------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """A set's files by id: `images` names the image files, `kinds` which annotations there are; `others` are files
    that are neither, with the reason."""

    images: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    others: list[tuple[str, Rejected]] = field(default_factory=list)


def _list_set(root: Path, folder: str) -> Listing:
    """What lies in images/ and annotations/ of one set."""
    found = Listing()
    for name in _names(root, f"{folder}/images", found):
        if is_image_name(name):
            found.images.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            found.others.append((f"{folder}/images/{name}", STRAY))
    for name in _names(root, f"{folder}/annotations", found):
        one, kind = _annotation(name) or ("", "")
        if kind:
            found.kinds.setdefault(one, set()).add(kind)
        else:
            found.others.append((f"{folder}/annotations/{name}", STRAY))
    return found


def _names(root: Path, folder: str, listing: Listing) -> Iterator[str]:
    """The names in a folder in order; those that are hidden or no text go to the others."""
    real, whole = os.path.realpath(root / folder), os.path.realpath(root)
    if not os.path.isdir(real):
        raise DataError(f"--source {root} holds no folder {folder}")
    if os.path.commonpath([real, whole]) != whole:
        raise DataError(f"{root / folder} is a link that leads out of --source; name the folder that holds the data")
    for name in sorted(os.listdir(real)):
        if is_hidden(name) or not is_text(name):
            shown_name = name.encode("utf-8", "backslashreplace").decode()
            listing.others.append((f"{folder}/{shown_name}", HIDDEN if is_hidden(name) else NOT_TEXT))
        else:
            yield name


def _annotation(name: str) -> tuple[str, str] | None:
    """ "123_exp.npy" -> ("123", "exp")."""
    one, _, kind = name.removesuffix(".npy").rpartition("_")
    return (one, kind) if name.endswith(".npy") and one and kind in KINDS else None


def _number(one: str) -> tuple[int, int | str]:
    """Ids in the order of their numbers; those that are none come last."""
    return (0, int(one)) if one.isascii() and one.isdigit() and len(one) < 19 else (1, one)


# --- annotations ----------------------------------------------------------------------------------------------------


def _read_annotations(folder: Path, ids: list[str]) -> dict[str, list[str | Rejected | None]]:
    """For each id exp, val and aro as text, None where the file is missing.

    With the files in memory, on two busy cores of a virtual machine, 19,000 ids a second by one thread and 25,000 by
    eight, against 1,500 by numpy.load (29,000, 37,000 and 2,700 per second of CPU): 863,000 files take 12 s, not 190.
    """
    bar = tqdm(total=len(ids), desc="annotations", unit="id", disable=len(ids) < 5000)
    read = partial(_read_some, str(folder))
    some = [ids[start : start + 1000] for start in range(0, len(ids), 1000)]
    found: dict[str, list[str | Rejected | None]] = {}
    with bar, ThreadPoolExecutor(READERS) as pool:
        for part, values in zip(some, pool.map(read, some), strict=True):
            found.update(zip(part, values, strict=True))
            bar.update(len(part))
    return found


def _read_some(folder: str, ids: list[str]) -> list[list[str | Rejected | None]]:
    return [[_read_one(f"{folder}/{one}_{kind}.npy") for kind in VALUES] for one in ids]


def _read_one(path: str) -> str | Rejected | None:
    try:
        return read_value(path)
    except FileNotFoundError:
        return None


def _absent(folder: str, listing: Listing, values: dict[str, list]) -> list[str]:
    """One sentence if images have an expression but lack something else."""
    counts = Counter(
        kind for one, row in values.items() if row[0] is not None for kind in set(KINDS) - listing.kinds.get(one, set())
    )
    missing = [f"{counts[kind]:,} without {kind}" for kind in KINDS[1:] if counts[kind]]
    return [f"{folder}: images with an expression but {', '.join(missing)}"] if missing else []


def _rows(
    listing: Listing, values: dict[str, list[str | Rejected | None]], split: str, folder: str
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows for `plan_images`, and ids and files that are unusable."""
    rows = _frame(values, listing, split, folder)
    why: Why = [None] * len(rows)
    names = rows["path"].map(lambda path: path.rpartition("/")[2])
    doubled = [len(listing.images[one]) > 1 for one in rows["id"]]
    note(why, doubled, lambda i: ("several images of one id", names.iat[i]))
    note(why, rows["label"].isna(), lambda i: ("annotation is missing", f"{rows['id'].iat[i]}_exp.npy"))
    for kind, column in VALUES.items():
        for i, value in enumerate(rows[column]):
            if isinstance(value, Rejected) and why[i] is None:
                file = f"{rows['id'].iat[i]}_{kind}.npy"
                why[i] = Rejected(value.reason, shown(f"{file} ({value.detail})" if value.detail else file))
        rows[column] = [value if isinstance(value, str) else "" for value in rows[column]]
    rows["label"] = rows["label"].map(plain)
    for name in ("valence", "arousal"):
        rows[name] = bounded(rows[name], -1, 1, NOT_ANNOTATED, name, why)
    rows["row"] = -1
    rows, dropped = take_out(rows.assign(file=rows["path"]), why)
    for one in sorted(set(listing.kinds) - set(listing.images), key=_number):
        kinds = ", ".join(kind for kind in KINDS if kind in listing.kinds[one])
        dropped.append(Dropped(split, f"{folder}/annotations/{one}", -1, Rejected("annotation without image", kinds)))
    dropped += [Dropped(split, path, -1, reason) for path, reason in listing.others]
    return rows.drop(columns=["id", "file", "row"]), dropped


def _frame(values: dict[str, list], listing: Listing, split: str, folder: str) -> pd.DataFrame:
    """A row an image file: id, path, split, and the three annotations as they were read."""
    images = [(one, name) for one in values for name in listing.images[one]]
    columns = list(zip(*(values[one] for one, _ in images), strict=True)) or [()] * len(VALUES)
    frame = {"id": [one for one, _ in images], "path": [f"{folder}/images/{name}" for _, name in images]}
    frame |= dict(zip(VALUES.values(), columns, strict=True))
    rows = pd.DataFrame({name: pd.Series(list(cells), dtype=object) for name, cells in frame.items()})
    return rows.assign(split=np.full(len(rows), split, object))
