"""Aff-Wild2 (ABAW challenges): expressions, valence and arousal, action units, a text a video, and cropped faces.

    Annotations/EXPR_Classification_Challenge/Train_Set/VIDEO.txt     (of 2020: EXPR_Set/Training_Set/VIDEO.txt)
    cropped_aligned/VIDEO/00001.jpg

The first line of a text is a header; the line after it belongs to frame 1, 00001.jpg. VIDEO may end in _left or _right
where two people are seen. Faces are missing where none was found, and texts and folders differ in length by some
frames: what has both a label and an image is kept. -1 (expression, unit) and -5 (valence, arousal): not annotated.

--task says what the label is: an expression (expr, mtl), or the image only carries columns (va, au; see
`data_prep.action_units`). Values of the other texts of a video are added as columns valence, arousal, au1, ... "Other"
(class 7 since 2022) is no expression and left out by rule. The test set was never released: the official validation
videos become `test` and `val` is cut from training by video; --validation-as val keeps the official name.
The layout of the multi-task texts (mtl: image,valence,arousal,expression,12 units) is from descriptions only.
"""

import hashlib
import os
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.action_units import LISTED_TWICE, NO_LINE, NOTE, add_label_argument, labelled_by_unit, number_frames
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder, whole
from data_prep.image_folder import HIDDEN, is_hidden
from data_prep.labels import expression, is_no_expression, name_classes
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import Located, Root, shown

TASKS = {
    "expr": ("EXPR_Classification_Challenge", "EXPR_Set"),
    "va": ("VA_Estimation_Challenge", "VA_Set"),
    "au": ("AU_Detection_Challenge", "AU_Set"),
    "mtl": ("MTL_Challenge", "MTL_Set"),
}
PARTS = {"Train_Set": "train", "Training_Set": "train", "Validation_Set": "validation"}
NAMES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
UNITS = {12: (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26), 8: (1, 2, 4, 6, 12, 15, 20, 25)}
LICENCE = "Non-commercial research by an agreement that an institution signs; no redistribution."
ACCESS = (
    "By request to the organisers of the ABAW challenges (ibug.doc.ic.ac.uk, D. Kollias); students via supervisors."
)
MAX_TEXT_BYTES = 64 << 20

TWO_TEXTS = "second text of a video"
NO_HEADER = "annotation text without a header"
NOT_ANNOTATED = "not annotated"
NO_FACE = Rejected("no cropped face of this frame", bad=False)
NO_FOLDER = Rejected("no folder of cropped faces of this video")
NO_TEXT = Rejected("video without labels of this task", bad=False)
NOT_DRAWN = Rejected("not drawn (--every)", bad=False)

_INTEGER = re.compile(r"-?\d{1,4}", re.ASCII)
_MTL_IMAGE = re.compile(r"(?!\.)([^/\\\0]+)/(\d{1,9})\.\w+", re.ASCII)

Values = dict[str, float]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of Aff-Wild2."""
    image_files.add_arguments(parser, size=112)
    add = parser.add_argument
    add("--frames", type=Path, metavar="DIR", help="the cropped faces (SOURCE/cropped_aligned)")
    add("--task", choices=list(TASKS), help="whose texts and videos (the first of these that is there)")
    add("--every", type=whole(1, 10_000), default=1, metavar="N", help="only frames 1, 1 + N, ... (%(default)s)")
    meaning = "what the official validation videos become; with val there is no test set (%(default)s)"
    add("--validation-as", choices=["test", "val"], default="test", help=meaning)
    add_label_argument(parser)


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if the texts or the faces are not there."""
    source = source_folder(options.source)
    root = _annotations(source)
    there = [task for task in TASKS if _challenge(root, task)]
    task = options.task or there[0]
    if task not in there:
        raise DataError(f"--task {task}: {root} has no {' or '.join(TASKS[task])} (it has: {', '.join(there)})")
    frames = source_folder(options.frames) if options.frames else _frames(source)
    reader = _Reader(root, options.validation_as)
    videos, dropped = (reader.mtl if task == "mtl" else reader.videos)(task)
    others = {other: reader.by_name(other, dropped) for other in there if other not in (task, "mtl")}
    rows, out = _rows(videos, others, frames, task, options.every)
    dropped += [*out, *_unused(frames, {video.name for video in videos})]
    naming, rows, more = _labelled(rows, task, options.label_au)
    return plan_images(
        options,
        rows,
        naming=naming,
        root=frames,
        name="affwild2" if task == "expr" else f"affwild2-{task}",
        title=f"Aff-Wild2, task {task}",
        licence=LICENCE,
        release=_challenge(root, task),
        dropped=dropped + more,
        files={f"annotations, {reader.count} files": reader.digest.hexdigest()},
        settings={"task": task, "every": options.every, "validation_as": options.validation_as}
        | ({"label_au": options.label_au} if options.label_au else {}),
        notes=[NOTE] if task in ("va", "au") and not options.label_au else [],
    )


def detect(path: Path) -> Layout | None:
    """A folder of texts of one of the challenges."""
    root = _annotations(path)
    found = [_challenge(root, task) for task in TASKS if _challenge(root, task)]
    return Layout(", ".join(found), ("--source", str(path)))


def _annotations(source: Path) -> Path:
    for root in (source / "Annotations", source / "annotations", source):
        if any(_challenge(root, task) for task in TASKS):
            return root
    raise DataError(f"{source} holds no folder {TASKS['expr'][0]} (or of another task), nor does Annotations in it")


def _challenge(root: Path, task: str) -> str | None:
    """The folder of a task, by either generation's name."""
    return next((name for name in TASKS[task] if (root / name).is_dir()), None)


def _frames(source: Path) -> Path:
    for name in ("cropped_aligned", "cropped_aligned_new_50_vids"):
        if (source / name).is_dir():
            return source / name
    raise DataError(f"{source} holds no folder cropped_aligned: name the one with the faces by --frames DIR")


# --- texts ----------------------------------------------------------------------------------------------------------


Lines = list[tuple[int, int, str]]  # (frame, line number, what stands there)


@dataclass(frozen=True)
class _Video:
    """The text of a video; its lines are read when they are asked for, since three million are too many to keep."""

    name: str
    file: str
    split: str
    lines: Callable[[], Lines]
    parse: Callable[[str], Values | Rejected]


class _Reader:
    """Reads the texts, each checked and added to `digest`."""

    def __init__(self, root: Path, validation: str) -> None:
        self._root, self._splits = root, {"train": "train", "validation": validation}
        self.digest, self.count = hashlib.sha256(), 0

    def videos(self, task: str) -> tuple[list[_Video], list[Dropped]]:
        """The videos of a task in the order of their names, and the texts that cannot be used."""
        found, dropped, names = [], [], {}
        for file, split in self._files(task):
            lines = self._lines(file)
            parse = lines if isinstance(lines, Rejected) else _parser_of(task, lines[0])
            if Path(file).stem in names:
                parse = Rejected(TWO_TEXTS, shown(f"{names[Path(file).stem]}, {file}"))
            names.setdefault(Path(file).stem, file)
            if isinstance(parse, Rejected):
                shown_file = file.encode("utf-8", "backslashreplace").decode()
                dropped.append(Dropped(split, shown_file, -1, parse))
            else:
                found.append(_Video(Path(file).stem, file, split, partial(self._numbered, file), parse))
        return found, dropped

    def mtl(self, task: str) -> tuple[list[_Video], list[Dropped]]:
        """The videos of the multi-task texts, whose lines name their images; lines that name none are dropped."""
        found: dict[str, _Video] = {}
        of: dict[str, Lines] = {}
        dropped = []
        for file, split in self._files(task):
            lines = self._lines(file)
            if isinstance(lines, Rejected):
                dropped.append(Dropped(split, file, -1, lines))
                continue
            for row, text in enumerate(lines, start=1):
                image, _, rest = text.partition(",")
                match = _MTL_IMAGE.fullmatch(image.strip())
                video = found.get(match[1]) if match else None
                if match and not video:
                    own = of[match[1]] = []
                    video = found[match[1]] = _Video(match[1], file, split, lambda own=own: own, _parse_mtl)
                if video and video.file != file:
                    dropped.append(Dropped(split, file, row, Rejected(TWO_TEXTS, shown(f"{video.file}, {file}"))))
                elif video:
                    of[video.name].append((int(match[2]), row, rest))
                elif row > 1:
                    dropped.append(Dropped(split, file, row, Rejected("line names no image", shown(image)[:40])))
        return list(found.values()), dropped

    def by_name(self, task: str, dropped: list[Dropped]) -> dict[str, _Video]:
        """The videos of another task; texts that cannot be used give no values and are recorded."""
        videos, out = self.videos(task)
        dropped += out
        return {video.name: video for video in videos}

    def _files(self, task: str) -> Iterator[tuple[str, str]]:
        """(path below the root, split) of each text."""
        top = _challenge(self._root, task)
        if task == "mtl":
            for name in sorted(os.listdir(self._root / top)):
                part = next(
                    (part for word, part in (("train", "train"), ("val", "validation")) if word in name.lower()), ""
                )
                if name.endswith(".txt") and part and not is_hidden(name):
                    yield f"{top}/{name}", self._splits[part]
            return
        for part in sorted(os.listdir(self._root / top)):
            if part in PARTS and (self._root / top / part).is_dir():
                for name in sorted(os.listdir(self._root / top / part)):
                    if name.endswith(".txt") and not is_hidden(name):
                        yield f"{top}/{part}/{name}", self._splits[PARTS[part]]

    def _numbered(self, file: str) -> Lines:
        """The lines of a text that `_lines` accepted: line k + 1 is of frame k."""
        lines = _texts((self._root / file).read_bytes())
        return [(k, k + 1, text) for k, text in enumerate(lines[1:], start=1)]

    def _lines(self, file: str) -> list[str] | Rejected:
        """All lines, the header first, or why frames and lines cannot be matched for certain."""
        located = Root(self._root).locate(file)
        if not isinstance(located, Located):
            return Rejected("annotation text cannot be used", located.text)
        if located.size > MAX_TEXT_BYTES:
            return Rejected("annotation text is too large", f"{located.size >> 20:,} MB")
        content = (self._root / file).read_bytes()
        self.digest.update(file.encode() + b"\t" + hashlib.sha256(content).digest())
        self.count += 1
        lines = _texts(content)
        if b"\r" in content.replace(b"\r\n", b"\n") or b"\0" in content:
            return Rejected("annotation text with unusual line ends or bytes")
        if not all(lines):
            return Rejected("annotation text with a blank line, so frames cannot be counted")
        return lines


def _texts(content: bytes) -> list[str]:
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\n \t")
    return [line.strip() for line in content.decode("latin-1").split("\n")]


def _parser_of(task: str, header: str) -> Callable[[str], Values | Rejected] | Rejected:
    """How to read a line of a text with this header; the header must be one, and name the official order."""
    fields = [name.strip() for name in header.split(",")]
    if re.fullmatch(r"[-\d.,\se]*", header):
        return Rejected(NO_HEADER, f"so frames cannot be counted for certain, first line {shown(header)[:40]}")
    if task == "va":
        order = [name.casefold() for name in fields]
        return (
            _parse_va if order == ["valence", "arousal"] else Rejected("header names other columns", shown(header)[:60])
        )
    if task == "expr":
        known = [name for name in fields if expression(name) or is_no_expression(name)]
        official = [expression(name) for name in NAMES]
        if len(known) == len(fields) > 1 and [expression(name) for name in fields] not in (official, official[:7]):
            return Rejected("header names other classes", shown(header)[:60])
        return _parse_expression
    units = [int(number) for number in re.findall(r"\d{1,3}", header)]
    if not units and len(fields) in UNITS:
        units = list(UNITS[len(fields)])
    if len(units) != len(fields) or len(set(units)) != len(units) or tuple(units) not in UNITS.values():
        return Rejected("header names other action units", shown(header)[:60])
    return lambda text: _parse_units(text, units)


def _parse_expression(text: str) -> Values | Rejected:
    if not _INTEGER.fullmatch(text) or int(text) not in range(-1, len(NAMES)):
        return Rejected("unknown label", shown(text)[:40])
    return Rejected(NOT_ANNOTATED, "-1", bad=False) if int(text) == -1 else {"label": int(text)}


def _parse_va(text: str) -> Values | Rejected:
    try:
        valence, arousal = (float(part) for part in text.encode("ascii").split(b","))
    except ValueError:
        return Rejected("valence and arousal are not two numbers", shown(text)[:40])
    if -5 in (valence, arousal):
        return Rejected(NOT_ANNOTATED, "-5", bad=False)
    if not (-1 <= valence <= 1 and -1 <= arousal <= 1):
        return Rejected("valence or arousal outside -1..1", shown(text)[:40])
    return {"valence": valence, "arousal": arousal}


def _parse_units(text: str, units: list[int]) -> Values | Rejected:
    values = [part.strip() for part in text.split(",")]
    if len(values) != len(units) or not set(values) <= {"0", "1", "-1"}:
        return Rejected("action units are not 0, 1 or -1", shown(text)[:40])
    if set(values) == {"-1"}:
        return Rejected(NOT_ANNOTATED, "-1", bad=False)
    meaning = {"0": 0.0, "1": 1.0, "-1": np.nan}
    return {f"au{unit}": meaning[value] for unit, value in zip(units, values, strict=True)}


def _parse_mtl(text: str) -> Values | Rejected:
    """valence,arousal,expression,12 units; the expression is needed."""
    parts = text.split(",")
    if len(parts) != 3 + 12:
        return Rejected("wrong number of fields", f"{len(parts) + 1} instead of 16")
    found = _parse_expression(parts[2].strip())
    if isinstance(found, Rejected):
        return found
    for other in (_parse_va(",".join(parts[:2])), _parse_units(",".join(parts[3:]), list(UNITS[12]))):
        if isinstance(other, Rejected) and other.bad:
            return other
        found = found | ({} if isinstance(other, Rejected) else other)
    return found


# --- rows -----------------------------------------------------------------------------------------------------------


def _rows(
    videos: list[_Video], others: dict[str, dict[str, _Video]], frames: Path, task: str, every: int
) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row for each line with a label and an image, and a record of each other line and image."""
    tables, dropped = [], []
    for video in videos:
        images, out = number_frames(frames, video.name, video.split)
        dropped += out
        more = _columns([other[video.name] for other in others.values() if video.name in other], dropped)
        lines, rows = video.lines(), []
        times = Counter(frame for frame, _, _ in lines)
        for frame, line, text in lines:
            found = video.parse(text)
            why = found if isinstance(found, Rejected) else None
            if why is None and (frame - 1) % every:
                why = NOT_DRAWN
            if why is None and (images is None or frame not in images):
                why = NO_FOLDER if images is None else NO_FACE
            if times[frame] > 1:
                why = LISTED_TWICE
            if why:
                dropped.append(Dropped(video.split, video.file, line, why))
            else:
                rows.append({"path": images[frame], "row": line} | more.get(frame, {}) | found)
        for frame in sorted(set(images or ()) - set(times)):
            dropped.append(Dropped(video.split, images[frame], -1, NO_LINE))
        if rows:
            group = re.sub(r"_(left|right)$", "", video.name)
            tables.append(_table(rows).assign(split=video.split, file=video.file, group=group))
    if not tables:
        return pd.DataFrame(columns=["path", "split", "file", "row", "group", "label"]), dropped
    return pd.concat(tables, ignore_index=True), dropped


def _table(rows: list[dict]) -> pd.DataFrame:
    """The rows of a video, values in single precision."""
    table = pd.DataFrame(rows)
    values = [name for name in table if name in ("valence", "arousal") or name.startswith("au")]
    return table.astype(dict.fromkeys(values, np.float32))


def _columns(videos: list[_Video], dropped: list[Dropped]) -> dict[int, Values]:
    """Frame -> values of the other texts of a video; a line that cannot be read is recorded, its image may stay."""
    found: dict[int, Values] = {}
    for video in videos:
        for frame, line, text in video.lines():
            values = video.parse(text)
            if not isinstance(values, Rejected):
                found.setdefault(frame, {}).update(values)
            elif values.bad:
                dropped.append(Dropped(video.split, video.file, line, values))
    return {frame: {name: value for name, value in of.items() if name != "label"} for frame, of in found.items()}


def _unused(frames: Path, names: set[str]) -> Iterator[Dropped]:
    """Folders of videos that have no text of the task, a record each."""
    for name in sorted(os.listdir(frames)):
        if name not in names:
            shown_name = name.encode("utf-8", "backslashreplace").decode()
            yield Dropped("", shown_name, -1, HIDDEN if is_hidden(name) else NO_TEXT)


def _labelled(rows: pd.DataFrame, task: str, unit: int | None) -> tuple:
    """The naming, the rows with `label` as text, and those that --label-au leaves out."""
    if task in ("expr", "mtl"):
        if unit:
            raise DataError("--label-au is for --task au: here the label is the expression")
        rows["label"] = [str(label) for label in rows["label"]]
        return name_classes({str(number): name for number, name in enumerate(NAMES)}), rows, []
    units = sorted(int(name[2:]) for name in rows if re.fullmatch(r"au\d+", name))
    return labelled_by_unit(rows, unit, units)
