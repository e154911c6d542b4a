"""SFEW 2.0: frames of films, with the authors' aligned faces.

    {Train,Val,Test}/<Class>/*.png
    Train_Aligned_Faces/<Class>/*.png or Train/Train_Aligned_Faces/<Class>/*.png; Val likewise, also Val_..._Faces_new

Classes: Angry Disgust Fear Happy Neutral Sad Surprise. Labels of Test were kept for a challenge: its images are left
out by rule, unless a copy has them in class folders. Papers report on Val, so it becomes `test`, and `val` is cut from
Train by film, which the file name starts with (Airheads_000519240_00000005.png): frames of a film stay together. That
all names do is unverified, and so is that the full release has 958 and 436 images; the published counts are those of
the aligned faces.
"""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.image_folder import OUTSIDE, walk
from data_prep.labels import expression, name_classes
from data_prep.listed import add_validation_argument, published_counts
from data_prep.packed import DataError, Dropped, Plan, Rejected

LICENCE = "Research only, by a signed agreement; frames of films, no redistribution."
ACCESS = "The authors (Australian National University, users.cecs.anu.edu.au/~few_group/AFEW.html) send the agreement."

CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
PARTS = {"Train": "train", "Val": "validation", "Test": "test"}
WITHHELD = Rejected("test label withheld", bad=False)
PUBLISHED = {  # aligned faces, in the order of CLASSES
    "train": dict(zip(map(expression, CLASSES), (178, 52, 78, 184, 144, 161, 94), strict=True)),
    "validation": dict(zip(map(expression, CLASSES), (77, 23, 46, 72, 84, 73, 56), strict=True)),
}

_FRAME = re.compile(r"[^/]+_\d{6,}_\d+\.\w+$")
_FILM = re.compile(r"^(.+?)_\d")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of SFEW."""
    image_files.add_arguments(parser)
    add_validation_argument(parser)
    parser.add_argument(
        "--alignment",
        choices=["aligned", "original"],
        default="aligned",
        help="the authors' aligned faces, or whole frames of the films (%(default)s)",
    )


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it has no Train part of the wanted alignment."""
    root = source_folder(options.source)
    parts = find_parts(root, options.alignment)
    if "Train" not in parts:
        wanted = "Train_Aligned_Faces/<Class>" if options.alignment == "aligned" else "Train/<Class>"
        raise DataError(f"--source {root} holds no {wanted} (--alignment {options.alignment})")
    rows, dropped = _index(root, parts, options.alignment)
    validation = "val" if (rows["split"] == "test").any() else options.validation_as
    rows["split"] = rows["split"].replace({"validation": validation})
    dropped = [Dropped(validation if d.split == "validation" else d.split, d.file, d.row, d.why) for d in dropped]
    counts = {"train": PUBLISHED["train"], validation: PUBLISHED["validation"]}
    return plan_images(
        options,
        rows,
        naming=name_classes(_spellings(rows["label"])),
        root=root,
        name="sfew",
        title=f"SFEW 2.0 ({options.alignment} images)",
        licence=LICENCE,
        release=f"2.0, {options.alignment} images",
        dropped=dropped,
        published=published_counts(options, counts) if options.alignment == "aligned" else {},
        settings={"alignment": options.alignment, "validation_as": validation},
    )


def _spellings(labels: Iterable[str]) -> list[str]:
    """The seven classes, also as this copy spells them; any other folder holds an unknown label."""
    known = set(map(expression, CLASSES))
    return sorted({*CLASSES, *(label for label in labels if expression(label) in known)})


def detect(path: Path) -> Layout | None:
    """Aligned faces or frames in Train and Val with SFEW's seven classes."""
    for alignment in ("aligned", "original"):
        parts = find_parts(path, alignment) if path.is_dir() else {}
        if not {"Train", "Val"} <= set(parts) or not set(CLASSES) <= set(os.listdir(path / parts["Train"])):
            continue
        first = next((name for name, why in walk(path, f"{parts['Train']}/{CLASSES[0]}") if why is None), "")
        if alignment == "aligned" or _FRAME.search(first):
            arguments = ("--source", str(path), "--alignment", alignment)
            return Layout(f"SFEW 2.0, {alignment} images in {parts['Train']} and {parts['Val']}", arguments)
    return None


def find_parts(root: Path, alignment: str) -> dict[str, str]:
    """Train, Val, Test -> their folder, relative to the root, as far as they are there."""
    found = {}
    for part in PARTS:
        aligned = [f"{part}_Aligned_Faces{end}" for end in ("", "_new")]
        places = [*aligned, *(f"{part}/{name}" for name in aligned)] if alignment == "aligned" else [part]
        here = [place for place in places if (root / place).is_dir()]
        nested = [f"{place}/{place.rpartition('/')[2]}" for place in here]  # as some archives unpack
        here = [place for place in nested if (root / place).is_dir()] or here
        if here:
            found[part] = here[0]
    return found


def _index(root: Path, parts: dict[str, str], alignment: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """Every file of the parts, as a row or as a record of why it is none."""
    found, dropped = [], []
    for part, folder in parts.items():
        for path, why in walk(root, folder):
            inner = path[len(folder) + 1 :].split("/")
            if alignment == "original" and "_Aligned_Faces" in inner[0]:
                continue  # another form of the same images
            if why is None and part == "Test" and (len(inner) != 2 or expression(inner[0]) is None):
                why = WITHHELD
            elif why is None and len(inner) != 2:
                why = OUTSIDE
            if why is None:
                film = _FILM.match(inner[-1])
                found.append((path, inner[0], PARTS[part], film[1] if film else ""))
            else:
                shown_path = path.encode("utf-8", "backslashreplace").decode()
                dropped.append(Dropped(PARTS[part], shown_path, -1, why))
    columns = list(zip(*found, strict=True)) or [()] * 4
    names = ("path", "label", "split", "group")
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in zip(names, columns)}), dropped
