"""BP4D: action units of 41 people in eight tasks, a csv a film, and its frames as images.

    AUCoding/AU_OCC/F001_T1.csv      header: the numbers of the units; a line a frame: frame, then 0, 1 or 9 (unknown)
    F001/T1/2440.jpg                 the frames, below --frames; with or without leading zeros

The twelve units that papers use become columns. Always split by person; the folds are balanced ones of this project,
not the three lists that papers share. Films are not decoded here: `ffmpeg -i F001_T1.avi F001/T1/%04d.jpg` does it.
"""

import hashlib
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np

from data_prep import image_files
from data_prep.action_units import (
    LISTED_TWICE,
    NOTE,
    Clip,
    add_label_argument,
    frames_folder,
    join_frames,
    labelled_by_unit,
)
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import Located, Root, shown

LABELS = ("AUCoding/AU_OCC", "AU_OCC")
UNITS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
LICENCE = "Non-commercial research by a signed agreement; no redistribution."
ACCESS = "By request to Binghamton University (L. Yin, cs.binghamton.edu/~lijun/Research/3DFE)."
COMMAND = "ffmpeg -i F001_T1.avi frames/F001/T1/%04d.jpg"
VALUES = {"0": 0.0, "1": 1.0, "9": np.nan}

_NAME = re.compile(r"([FM]\d{3})_(T\d)\.csv", re.ASCII | re.IGNORECASE)
_FRAME = re.compile(r"\d{1,7}", re.ASCII)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of BP4D."""
    image_files.add_arguments(parser, folds=10)
    parser.add_argument("--frames", type=Path, metavar="DIR", help="DIR/F001/T1/2440.jpg (SOURCE/frames)")
    add_label_argument(parser)


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if labels or frames are not there."""
    source = source_folder(options.source)
    labels = _labels(source)
    frames = frames_folder(options.frames, source, "frames", COMMAND)
    root, digest, clips, faults = Root(labels), hashlib.sha256(), [], []
    for path in sorted(labels.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            located = root.locate(path.name)
            content = path.read_bytes() if isinstance(located, Located) else b""
            digest.update(path.name.encode() + b"\t" + hashlib.sha256(content).digest())
            clip = Clip(f"{match[1].upper()}/{match[2].upper()}", match[1].upper(), path.name)
            why = _read(content, clip, faults) if isinstance(located, Located) else Rejected(*_words(located))
            if why:
                faults.append(Dropped("", path.name, -1, why))
            clips.append(clip)
    rows, dropped = join_frames(clips, frames, UNITS)
    naming, rows, unknown = labelled_by_unit(rows, options.label_au, UNITS)
    return plan_images(
        options,
        rows,
        naming=naming,
        root=frames,
        name="bp4d",
        title="BP4D, action units (folds of people)",
        licence=LICENCE,
        release="frames with the occurrence of 12 action units",
        dropped=[*faults, *dropped, *unknown],
        files={f"AU_OCC, {len(clips)} files": digest.hexdigest()},
        settings={"label_au": options.label_au},
        notes=[] if options.label_au else [NOTE],
    )


def detect(path: Path) -> Layout | None:
    """The folder of csv files named after people and tasks."""
    return Layout(f"{_labels(path).name} with F001_T1.csv and others", ("--source", str(path)))


def _labels(source: Path) -> Path:
    for folder in (*(source / name for name in LABELS), source):
        if folder.is_dir() and any(_NAME.fullmatch(path.name) for path in folder.iterdir()):
            return folder
    raise DataError(f"{source} holds no {LABELS[0]}/F001_T1.csv")


def _words(why: Rejected) -> tuple[str, str]:
    return "label file cannot be used", why.text


def _read(content: bytes, clip: Clip, faults: list[Dropped]) -> Rejected | None:
    """Fills the clip; a line that cannot be used is a fault. Gives what makes the whole file unusable."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n")
    header = [name.strip().strip('"') for name in lines[0].split(",")]
    places = {int(name): k for k, name in enumerate(header) if k and _FRAME.fullmatch(name)}
    missing = [unit for unit in UNITS if unit not in places]
    if missing or len(places) != len(header) - 1:
        return Rejected("header does not name the action units", shown(lines[0].strip())[:60])
    listed: dict[int, list[int]] = {}
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        why = None
        if len(cells) != len(header) or not _FRAME.fullmatch(cells[0]):
            why = Rejected("line is not a frame and its units", shown(line.strip())[:40])
        elif not all(cells[places[unit]] in VALUES for unit in UNITS):
            why = Rejected("action unit is not 0, 1 or 9", shown(line.strip())[:40])
        if why:
            faults.append(Dropped("", clip.file, row, why))
            continue
        frame = int(cells[0])
        listed.setdefault(frame, []).append(row)
        clip.values[frame] = {unit: VALUES[cells[places[unit]]] for unit in UNITS}
        clip.place[frame] = row
    for frame, rows in listed.items():
        if len(rows) > 1:
            del clip.values[frame]
            faults += [Dropped("", clip.file, row, LISTED_TWICE) for row in rows]
    return None
