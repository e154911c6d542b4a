"""RAF-CE: compound expressions, 14 pairs such as "happily sad", 4,549 images.

    RAFCE_emolabel.txt     "0001.jpg 3"; labels 0..13, in the order of PAIRS
    RAFCE_partition.txt    "0001.jpg 0"; 0 train, 1 test, 2 val
    aligned/0001_aligned.jpg, original/0001.jpg    (unverified; also in a folder RAF-AU)

The order of the labels is that of three public loaders, the meaning of the partition's numbers that of two which know
nothing of each other; the authors' own description was not seen, which `list` and the report say (PARTITION_NOTE).
RAFCE_AUlabel.txt is not read.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pandas as pd

from data_prep import image_files, rafdb
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.labels import name_classes
from data_prep.listed import Why, note, refuse_repeats, take_out
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import below, refusal, shown
from data_prep.tables import Table, read_table

LICENCE = rafdb.LICENCE
PARTITION_NOTE = (
    "the partition's numbers are read as 0 train, 1 test, 2 val, as two public loaders do; compare with the readme of "
    "your copy"
)
ACCESS = (
    "whdeng.cn/RAF/model1.html: a request by e-mail from an academic address gives the password of the archives. "
    f"Unverified: {PARTITION_NOTE}."
)

LABELS, PARTITION = "RAFCE_emolabel.txt", "RAFCE_partition.txt"
SPLITS = {"0": "train", "1": "test", "2": "val"}
PAIRS = (
    "happily surprised",
    "happily disgusted",
    "sadly fearful",
    "sadly angry",
    "sadly surprised",
    "sadly disgusted",
    "fearfully angry",
    "fearfully surprised",
    "fearfully disgusted",
    "angrily surprised",
    "angrily disgusted",
    "disgustedly surprised",
    "happily fearful",
    "happily sad",
)
NAMES = {str(label): name for label, name in enumerate(PAIRS)}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of RAF-CE."""
    image_files.add_arguments(parser, size=100)
    parser.add_argument("--alignment", choices=["aligned", "original"], default="aligned", help="(%(default)s)")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if a list or the images are missing."""
    root = find_root(source_folder(options.source))
    labels, partition = _read(root / LABELS, "label"), _read(root / PARTITION, "part")
    rows, dropped = _rows(labels, partition, options.alignment, _image_folder(root, options.alignment))
    return plan_images(
        options,
        rows,
        naming=name_classes(NAMES),
        root=root,
        name="rafce",
        title=f"RAF-CE, compound expressions ({options.alignment} images)",
        licence=LICENCE,
        release=f"authors' lists, {options.alignment} images",
        dropped=[*labels.dropped, *partition.dropped, *dropped],
        files={table.name: table.sha256 for table in (labels, partition)},
        settings={"alignment": options.alignment},
        notes=[*labels.notes, *partition.notes, PARTITION_NOTE],
    )


def detect(path: Path) -> Layout | None:
    """Both lists, here or one level below."""
    if not path.is_dir() or not (find_root(path) / PARTITION).is_file():
        return None
    return Layout(f"RAF-CE, {LABELS} and {PARTITION}", ("--source", str(path)))


def find_root(folder: Path) -> Path:
    """The folder with the lists: `folder` or one below."""
    below_it = sorted(child for child in folder.iterdir() if child.is_dir())
    return next((place for place in (folder, *below_it) if (place / LABELS).is_file()), folder)


def _read(path: Path, column: str) -> Table:
    return read_table(path, ["name", column], without_header=["name", column], delimiter=" ")


def _image_folder(root: Path, alignment: str) -> str:
    places = (f"{top}{alignment}{inner}" for top in ("", "RAF-AU/", "Image/") for inner in (f"/{alignment}", ""))
    found = next((place for place in places if (root / place).is_dir()), None)
    if found is None:
        raise DataError(f"--source {root} holds no folder {alignment} with the images")
    return found


def _rows(labels: Table, partition: Table, alignment: str, folder: str) -> tuple[pd.DataFrame, list[Dropped]]:
    """A row a line of the labels, with the split that the partition gives to its name."""
    names = labels.rows["name"]
    parts: dict[str, set[str]] = {}
    for name, part in zip(partition.rows["name"], partition.rows["part"]):
        parts.setdefault(name, set()).add(part)
    found = [", ".join(sorted(parts.get(name, set()))) for name in names]
    rows = pd.DataFrame({"label": labels.rows["label"], "row": labels.rows["_row"]})
    rows["file"] = labels.name
    rows["split"] = pd.Series([SPLITS.get(part, "") for part in found], dtype=object)
    inner = [rafdb.image_path(name, alignment).split("/", 2)[2] for name in names]
    rows["path"] = pd.Series([below(folder, name) for name in inner], dtype=object)
    why: Why = [refusal(name) for name in names]
    note(why, rows["split"] == "", lambda i: ("no split in the partition", f"{names.iat[i]} ({found[i] or 'absent'})"))
    refuse_repeats(why, names, rows["label"], rows["row"])
    rows, dropped = take_out(rows, why)
    labelled = set(names)
    for name, part, line in zip(partition.rows["name"], partition.rows["part"], partition.rows["_row"]):
        if name not in labelled:
            why_not = Rejected("image has no label", shown(name))
            dropped.append(Dropped(SPLITS.get(part, ""), partition.name, int(line), why_not))
    return rows, dropped
