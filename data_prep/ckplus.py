"""CK+ (extended Cohn-Kanade): sequences from neutral to the peak of a posed expression, 327 of 593 labelled.

    cohn-kanade-images/S005/001/S005_001_00000011.png
    Emotion/S005/001/S005_001_00000011_emotion.txt          one number: 1 anger 2 contempt ... 7 surprise

The last frames of a labelled sequence (--peak-frames, customary: 3) have its label and the first one is neutral; other
frames and sequences without a label are left out by rule. There is no official split and frames of one person look
alike, so the split is always by person: test is fold --fold of --split-by-subject, val the next.
"""

import hashlib
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder, whole
from data_prep.image_folder import walk
from data_prep.labels import name_classes
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import Located, Root, shown

IMAGES, EMOTION = ("cohn-kanade-images", "extended-cohn-kanade-images"), ("Emotion", "Emotion_labels")
NAMES = dict(enumerate(("neutral", "anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")))
LICENCE = "Research only, by a signed agreement; faces may be published of few, named people only."
ACCESS = "By request to the Affect Analysis Group of the University of Pittsburgh (Lucey et al. 2010)."
SEQUENCES = 327  # with a label
NO_LABEL = Rejected("sequence without an emotion label", bad=False)
BETWEEN = Rejected("frame between the neutral one and the peak", bad=False)
NO_NEUTRAL = Rejected("frame before the peak", bad=False)
REPEATED = Rejected("another file of the same frame")
BAD_LABEL = "unusable emotion label"
MAX_TEXT_BYTES = 1 << 10

_FRAME = re.compile(r"(S\d{3})_(\d{3})_(\d{8})\.\w+", re.ASCII)
_LABEL = re.compile(r"(S\d{3})_(\d{3})_(\d{8})_emotion\.txt", re.ASCII)
_NUMBER = re.compile(r"\d(\.\d*)?(e[+-]?0+)?", re.ASCII | re.IGNORECASE)  # 3.0000000e+00

Sequence = tuple[str, str]  # subject, number


def add_arguments(parser: ArgumentParser) -> None:
    """Options of CK+: which frames of a sequence are used."""
    image_files.add_arguments(parser, folds=10)
    add = parser.add_argument
    add("--peak-frames", type=whole(1, 100), default=3, metavar="N", help="last frames with the label (%(default)s)")
    add("--no-neutral", action="store_true", help="leave the neutral first frames out")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if the images or the labels are not there."""
    source = source_folder(options.source)
    images, emotions = _folder(source, IMAGES), _folder(source, EMOTION)
    if images is None or emotions is None:
        missing = f"{IMAGES[0]} (frames)" if images is None else f"{EMOTION[0]} (labels)"
        raise DataError(f"--source {source} holds no folder {missing}, nor does one below it")
    frames, dropped = _index_frames(source, images)
    labels, digest = _read_labels(source, emotions)
    rows: list[tuple[str, str, str]] = []
    for sequence, paths in sorted(frames.items()):
        kept, why = _choose(paths, labels.get(sequence), options)
        rows += [(path, label, sequence[0]) for path, label in kept]
        dropped += [Dropped("", path, -1, reason) for path, reason in why]
    dropped += [
        Dropped("", one.path, -1, Rejected("emotion label without images", bad=False))
        for sequence, one in sorted(labels.items())
        if sequence not in frames
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 3
    table = {name: pd.Series(c, dtype=object) for name, c in zip(("path", "label", "subject"), columns, strict=True)}
    return plan_images(
        options,
        pd.DataFrame(table),
        naming=name_classes({str(number): name for number, name in NAMES.items() if number or not options.no_neutral}),
        root=source,
        name="ckplus",
        title="CK+ (folds of people)",
        licence=LICENCE,
        release="image sequences with emotion labels",
        dropped=dropped,
        files={f"{EMOTION[0]}, {len(labels)} files": digest},
        settings={"peak_frames": options.peak_frames, "neutral": not options.no_neutral},
        notes=_notes(frames, labels),
    )


def detect(path: Path) -> Layout | None:
    """The folders of frames and labels."""
    if not path.is_dir() or _folder(path, IMAGES) is None or _folder(path, EMOTION) is None:
        return None
    return Layout(f"{IMAGES[0]} and {EMOTION[0]}", ("--source", str(path)))


def _folder(root: Path, names: tuple[str, ...]) -> str | None:
    """The folder of one of these names, the innermost, at most two below the root; relative to it."""
    found = [
        path.relative_to(root).as_posix()
        for name in names
        for pattern in (name, f"*/{name}")
        for path in sorted(root.glob(pattern))
        if path.is_dir()
    ]
    return max(found, key=lambda path: path.count("/"), default=None)


# --- frames and labels ----------------------------------------------------------------------------------------------


def _index_frames(source: Path, images: str) -> tuple[dict[Sequence, list[str]], list[Dropped]]:
    """The frames of each sequence in their order, and what else lies there."""
    found: dict[Sequence, dict[int, str]] = {}
    dropped = []
    for path, why in walk(source, images):
        match = _FRAME.fullmatch(path.rpartition("/")[2])
        if why is None and match is None:
            why = Rejected("file name without person, sequence and frame")
        elif why is None and path.split("/")[-3:-1] != [match[1], match[2]]:
            why = Rejected("folders and file name tell different sequences")
        elif why is None and int(match[3]) in found.get((match[1], match[2]), {}):
            why = REPEATED
        if why:
            dropped.append(Dropped("", path.encode("utf-8", "backslashreplace").decode(), -1, why))
        else:
            found.setdefault((match[1], match[2]), {})[int(match[3])] = path
    return {sequence: [path for _, path in sorted(of.items())] for sequence, of in found.items()}, dropped


class _Label:
    """The label of a sequence: "1" ... "7" from the text at `path`, or `fault`."""

    def __init__(self, path: str, frame: int, content: bytes | Rejected) -> None:
        self.path, self.frame, self.code, self.fault = path, frame, "", None
        if isinstance(content, Rejected):
            self.fault = content
            return
        words = [word.decode("latin-1") for word in content.removeprefix(b"\xef\xbb\xbf").split()]
        if len(words) == 1 and _NUMBER.fullmatch(words[0]) and float(words[0]) in NAMES:
            self.code = str(int(float(words[0])))
        else:
            self.fault = Rejected(BAD_LABEL, f"{shown(' '.join(words))[:40] or '(empty)'} in {shown(path)}")


def _read_labels(source: Path, emotions: str) -> tuple[dict[Sequence, _Label], str]:
    """The label of each sequence, and the sha256 of all texts. Of several texts of a sequence none can be trusted."""
    root, digest, found = Root(source), hashlib.sha256(), {}
    for path, _ in walk(source, emotions):
        match = _LABEL.fullmatch(path.rpartition("/")[2])
        if match is None:
            continue
        located = root.locate(path)
        content = _text(source / path) if isinstance(located, Located) else _empty(located, path)
        digest.update(f"{path}\t{content}\n".encode())
        label = _Label(path, int(match[3]), content)
        sequence = match[1], match[2]
        if sequence in found:
            label.fault = Rejected(BAD_LABEL, f"two files: {shown(found[sequence].path)}, {shown(path)}")
        found[sequence] = label
    return found, digest.hexdigest()


def _empty(why: Rejected, path: str) -> Rejected:
    return Rejected(BAD_LABEL, f"{why.reason.removeprefix('image ')}, {shown(path)}")


def _text(path: Path) -> bytes | Rejected:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_TEXT_BYTES)
    except PermissionError:
        return Rejected(BAD_LABEL, f"cannot be opened, {shown(path.name)}")


def _choose(
    paths: list[str], label: _Label | None, options: Namespace
) -> tuple[list[tuple[str, str]], list[tuple[str, Rejected]]]:
    """(path, label) of the frames of a sequence that are used, and why the others are not."""
    fault = NO_LABEL if label is None else label.fault
    if fault:
        return [], [(path, fault) for path in paths]
    peak = paths[max(len(paths) - options.peak_frames, min(1, len(paths) - 1)) :]  # the first one is no peak
    rest = paths[: len(paths) - len(peak)]
    kept = [(path, label.code) for path in peak]
    if options.no_neutral:
        return kept, [(path, NO_NEUTRAL) for path in rest]
    return [(path, "0") for path in rest[:1]] + kept, [(path, BETWEEN) for path in rest[1:]]


def _notes(frames: dict[Sequence, list[str]], labels: dict[Sequence, _Label]) -> list[str]:
    good = [sequence for sequence in frames if sequence in labels and not labels[sequence].fault]
    notes = [f"{len(good):,} of {len(frames):,} sequences have a label (published: {SEQUENCES} of 593)"]
    other = [one for one in good if labels[one].frame != int(_FRAME.fullmatch(Path(frames[one][-1]).name)[3])]
    if other:
        notes.append(
            f"in {len(other):,} sequences the label names another frame than the last one; the last one counts"
        )
    return notes
