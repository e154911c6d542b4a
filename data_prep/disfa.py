"""DISFA: intensities 0 to 5 of twelve action units for every frame of 27 people's films.

    ActionUnit_Labels/SN001/SN001_au1.txt      lines frame,intensity
    frames/SN001/00001.png                     made from the films (their names differ in case):
    ffmpeg -i Videos_LeftCamera/LeftVideoSN001_comp.avi frames/SN001/%05d.png

Intensity 2 and more is 1, less is 0, as in papers; --keep-intensity keeps 0 to 5. Films and labels differ in length by
a frame, and some label files are missing in copies: that unit is then unknown. Always split by person; the folds are
balanced ones of this project, not the three lists that papers share. Frames are counted from 1, as ffmpeg does.
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

LABELS = "ActionUnit_Labels"
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
LICENCE = "Non-commercial research by a signed agreement; no redistribution."
ACCESS = "By request to the University of Denver (mohammadmahoor.com/disfa), signed by a faculty member."
COMMAND = "ffmpeg -i Videos_LeftCamera/LeftVideoSN001_comp.avi frames/SN001/%05d.png"
PRESENT = 2  # from this intensity on

_LINE = re.compile(rb"\s*(\d{1,7})\s*,\s*([0-5])\s*", re.ASCII)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of DISFA."""
    image_files.add_arguments(parser, folds=9)
    parser.add_argument("--frames", type=Path, metavar="DIR", help="DIR/SN001/00001.png (SOURCE/frames)")
    parser.add_argument("--keep-intensity", action="store_true", help="keep 0 to 5 instead of absent and present")
    add_label_argument(parser)


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if labels or frames are not there."""
    source = source_folder(options.source)
    labels = _labels(source)
    frames = frames_folder(options.frames, source, "frames", COMMAND)
    reader = _Reader(labels)
    clips = [reader.clip(folder.name) for folder in sorted(labels.iterdir()) if re.fullmatch(r"SN\d{3}", folder.name)]
    if not options.keep_intensity:
        for clip in clips:
            clip.values = {frame: {unit: _present(v) for unit, v in of.items()} for frame, of in clip.values.items()}
    rows, dropped = join_frames(clips, frames, UNITS)
    if options.label_au and options.keep_intensity:
        raise DataError("--label-au needs absent and present: leave --keep-intensity out")
    naming, rows, unknown = labelled_by_unit(rows, options.label_au, UNITS)
    return plan_images(
        options,
        rows,
        naming=naming,
        root=frames,
        name="disfa",
        title="DISFA, action units (folds of people)",
        licence=LICENCE,
        release="frames with intensities of 12 action units",
        dropped=[*reader.dropped, *dropped, *unknown],
        files={f"{LABELS}, {reader.count} files": reader.digest.hexdigest()},
        settings={"keep_intensity": options.keep_intensity, "label_au": options.label_au},
        notes=[*([] if options.label_au else [NOTE]), *reader.notes],
    )


def detect(path: Path) -> Layout | None:
    """The folder of labels."""
    folder = _labels(path)
    return Layout(f"{folder.name}/SN...", ("--source", str(path))) if any(folder.glob("SN[0-9]*")) else None


def _labels(source: Path) -> Path:
    for folder in (source / LABELS, source):
        if any(folder.glob("SN[0-9][0-9][0-9]/SN*_au*.txt")):
            return folder
    raise DataError(f"{source} holds no {LABELS}/SN001/SN001_au1.txt")


def _present(intensity: float) -> float:
    return np.nan if np.isnan(intensity) else float(intensity >= PRESENT)


class _Reader:
    """Reads label files; lines that cannot be used are recorded, and their value is unknown."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._root = folder, Root(folder)
        self.digest, self.count = hashlib.sha256(), 0
        self.dropped: list[Dropped] = []
        self.notes: list[str] = []

    def clip(self, subject: str) -> Clip:
        clip, missing = Clip(subject, subject), []
        for unit in UNITS:
            file = f"{subject}/{subject}_au{unit}.txt"
            located = self._root.locate(file)
            if isinstance(located, Located):
                self._read(file, unit, clip)
            else:
                missing.append(unit)
        if missing:
            self.notes.append(f"{subject}: no usable label file of the units {', '.join(map(str, missing))}")
        return clip

    def _read(self, file: str, unit: int, clip: Clip) -> None:
        content = (self._folder / file).read_bytes()
        self.digest.update(file.encode() + b"\t" + hashlib.sha256(content).digest())
        self.count += 1
        listed: dict[int, list[int]] = {}
        for row, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            match = _LINE.fullmatch(line)
            if match:
                listed.setdefault(int(match[1]), []).append(row)
                clip.values.setdefault(int(match[1]), {})[unit] = float(match[2])
            elif line.strip():
                why = Rejected("line is not frame,intensity", shown(line.decode("latin-1").strip())[:40])
                self.dropped.append(Dropped("", file, row, why))
        for frame, rows in listed.items():
            if len(rows) > 1:
                clip.values[frame][unit] = np.nan
                self.dropped += [Dropped("", file, row, LISTED_TWICE) for row in rows]
