"""What sets with action units share: frames of films by number, and a label where there is no expression.

The packed format needs a class for every image. Without --label-au all images get the one class "unlabelled": honest,
and of use to whoever reads the columns au1 ... au64, but nothing to train a classifier on. With --label-au 12 the
classes are "au12 absent" and "au12 present", and images where that unit is unknown are left out.
"""

import os
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.image_files import whole
from data_prep.image_folder import HIDDEN, NOT_TEXT, is_hidden
from data_prep.labels import Naming
from data_prep.packed import DataError, Dropped, Rejected
from data_prep.paths import is_image_name, is_text, shown

NO_EXPRESSION = "(no expression)"
UNLABELLED = Naming(("unlabelled",), {NO_EXPRESSION: "unlabelled"})
NOTE = "the images have no expression: the one class is 'unlabelled'; --label-au N makes an action unit the label"
UNKNOWN = Rejected("action unit of --label-au is unknown", bad=False)
NO_UNIT = Rejected("no action unit is known", bad=False)
NO_IMAGE_OF_FRAME = Rejected("no image of this frame", bad=False)
NO_FOLDER = Rejected("no folder of frames")
NO_LINE = Rejected("frame without a label", bad=False)
LISTED_TWICE = Rejected("frame is listed twice")  # nobody knows which line is right
REPEATED = Rejected("another file of the same frame")
NO_FRAME = Rejected("file name is no number of a frame")

_FRAME = re.compile(r"(\d{1,9})\.\w+", re.ASCII)


def add_label_argument(parser: ArgumentParser) -> None:
    """--label-au."""
    meaning = "two classes, unit N absent and present (without it: one class, 'unlabelled')"
    parser.add_argument("--label-au", type=whole(1, 64), metavar="N", help=meaning)


def labelled_by_unit(
    rows: pd.DataFrame, number: int | None, units: Sequence[int]
) -> tuple[Naming, pd.DataFrame, list[Dropped]]:
    """The naming, the rows with `label`, and those whose unit is unknown; the columns au1, ... are 0 for absent.

    DataError for a unit that the set has not.
    """
    if number is None:
        return UNLABELLED, rows.assign(label=NO_EXPRESSION), []
    if number not in units:
        raise DataError(f"--label-au {number}: the set has the action units {', '.join(map(str, units))}")
    names = (f"au{number} absent", f"au{number} present")
    values = rows[f"au{number}"].to_numpy(float)
    unknown = np.isnan(values)
    labels = np.array(["0", "1"], object)[(np.where(unknown, 0, values) > 0).astype(int)]
    out = rows[unknown]
    splits = out["split"] if "split" in out else [""] * len(out)
    places = zip(out["file"], out["row"], strict=True) if "file" in out else ((path, -1) for path in out["path"])
    dropped = [Dropped(split, file, int(row), UNKNOWN) for split, (file, row) in zip(splits, places, strict=True)]
    return Naming(names, dict(zip("01", names, strict=True))), rows.assign(label=labels)[~unknown], dropped


# --- frames ---------------------------------------------------------------------------------------------------------


def number_frames(root: Path, folder: str, split: str = "") -> tuple[dict[int, str] | None, list[Dropped]]:
    """Frame -> path of its image for root/folder/00001.jpg, None without a folder; and what else lies there."""
    if not (root / folder).is_dir():
        return None, []
    found, dropped = {}, []
    for name in sorted(os.listdir(root / folder)):
        match, path = _FRAME.fullmatch(name), f"{folder}/{name}"
        if is_hidden(name) or not is_text(name):
            why = HIDDEN if is_hidden(name) else NOT_TEXT
        elif not is_image_name(name):
            why = Rejected("no image file", shown(Path(name).suffix), bad=False)
        else:
            why = NO_FRAME if match is None else REPEATED if int(match[1]) in found else None
        if why:
            dropped.append(Dropped(split, path.encode("utf-8", "backslashreplace").decode(), -1, why))
        else:
            found[int(match[1])] = path
    return found, dropped


@dataclass
class Clip:
    """A film of one person: `values[frame]` are its units (au number -> 0, 1, ... or NaN), `place[frame]` the line of
    `file` that says so; without `file` a frame is its own record."""

    folder: str
    subject: str
    file: str = ""
    values: dict[int, dict[int, float]] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)


def join_frames(clips: Sequence[Clip], root: Path, units: Sequence[int]) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row for each frame with an image and a known unit, and a record of every other frame and file below `root`."""
    rows, dropped = [], []
    for clip in clips:
        images, out = number_frames(root, clip.folder)
        dropped += out
        for frame, values in sorted(clip.values.items()):
            why = NO_FOLDER if images is None else None if frame in images else NO_IMAGE_OF_FRAME
            if why is None and all(np.isnan(values.get(unit, np.nan)) for unit in units):
                why = NO_UNIT
            place = {"file": clip.file, "row": clip.place[frame]} if clip.file else {}
            if why:
                file = clip.file or (images or {}).get(frame, f"{clip.folder}/{frame:05d}")
                dropped.append(Dropped("", file, place.get("row", -1), why))
            else:
                columns = {f"au{unit}": values.get(unit, np.nan) for unit in units}
                rows.append({"path": images[frame], "subject": clip.subject, **place, **columns})
        for frame in sorted(set(images or ()) - set(clip.values)):
            dropped.append(Dropped("", images[frame], -1, NO_LINE))
    names = ["path", "subject", *(["file", "row"] if any(clip.file for clip in clips) else [])]
    names += [f"au{unit}" for unit in units]
    table = pd.DataFrame(rows, columns=names)
    return table.astype({f"au{unit}": np.float32 for unit in units}), dropped


def frames_folder(given: Path | None, source: Path, name: str, command: str) -> Path:
    """--frames, or `name` below the source; DataError with the command that makes it."""
    folder = given or source / name
    if not folder.is_dir():
        raise DataError(f"no folder of frames at {folder}; films are not decoded here, this does it: {command}")
    return folder
