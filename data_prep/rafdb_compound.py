"""RAF-DB, compound expressions: 11 pairs such as "sadly angry", in the layout of the basic part.

    compound/EmoLabel/list_patition_label.txt, compound/Image/{aligned,original}/

The order of the labels is that of several public loaders; 3,954 images; counts of classes are not known here. That
images and boxes lie as in the basic part is unverified.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from data_prep import rafdb
from data_prep.detect import Layout
from data_prep.image_files import source_folder
from data_prep.packed import DataError, Plan
from data_prep.rafdb import LIST, Part, find_part, plan_part

LICENCE = rafdb.LICENCE
ACCESS = rafdb.ACCESS

PAIRS = (
    "happily surprised",
    "happily disgusted",
    "sadly fearful",
    "sadly angry",
    "sadly surprised",
    "sadly disgusted",
    "fearfully angry",
    "fearfully surprised",
    "angrily surprised",
    "angrily disgusted",
    "disgustedly surprised",
)
COMPOUND = Part(
    "rafdb-compound",
    "RAF-DB, compound expressions",
    "compound",
    {str(label): name for label, name in enumerate(PAIRS, start=1)},
    {},
)


def add_arguments(parser: ArgumentParser) -> None:
    """Options of RAF-DB's compound part."""
    rafdb.add_arguments(parser)


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if it does not hold the compound part."""
    root = find_part(source_folder(options.source), COMPOUND)
    if root is None:
        raise DataError(f"--source {options.source} holds no {COMPOUND.folder}/{LIST}")
    return plan_part(options, COMPOUND, root)


def detect(path: Path) -> Layout | None:
    """The authors' list of the compound part."""
    if not path.is_dir() or find_part(path, COMPOUND) is None:
        return None
    return Layout(f"RAF-DB, {COMPOUND.folder}/{LIST}", ("--source", str(path)))
