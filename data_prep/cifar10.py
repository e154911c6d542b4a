"""CIFAR-10 from its official batches: cifar-10-batches-py/{data_batch_1, ..., data_batch_5, test_batch, batches.meta}.

The batches are pickles. They are read without unpickling (`data_prep.plain_pickle`), so a tampered copy cannot run
anything. An image is 3,072 bytes: 1,024 red, 1,024 green, 1,024 blue, row by row. The official test batch is test, and
val is cut from train. Rows are counted from 0, as in the batches. Copies as folders (train/airplane/0001.png) are read
by `image_folder`; of a parquet copy, export the images to folders first.
"""

import hashlib
from argparse import ArgumentParser, Namespace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import splits
from data_prep.detect import Layout
from data_prep.image_files import share, source_folder, whole
from data_prep.labels import Naming, name_classes
from data_prep.packed import SPLITS, DataError, Dropped, Plan, Rejected
from data_prep.plain_pickle import Array, read_plain

FOLDER = "cifar-10-batches-py"
BATCHES = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
META = "batches.meta"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32  # pixels
LICENCE = "No licence is stated: free for research, cite Krizhevsky (2009), Learning multiple layers of features."
ACCESS = f"cs.toronto.edu/~kriz/cifar.html, 'CIFAR-10 python version'; unpack it: the batches lie in {FOLDER}."
PUBLISHED = {"train": dict.fromkeys(NAMES, 5_000), "test": dict.fromkeys(NAMES, 1_000)}
MD5 = {  # as torchvision checks them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
MAX_BATCH_BYTES = 64 << 20  # an official batch has 31 MB
WIDTH = 3 * SIDE * SIDE


def add_arguments(parser: ArgumentParser) -> None:
    """Options of CIFAR-10; the images stay 32 x 32 in colour."""
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="PATH", help=f"{FOLDER}, or the directory that holds it")
    add("--val-share", type=share(0.9), default=0.1, help="of train, by seed (%(default)s)")
    add("--max-per-class", type=whole(1, 10**9), metavar="N", help="at most N training images a class, drawn by seed")
    add("--split-seed", type=whole(0, 2**31), default=0, metavar="SEED", help="of these choices (%(default)s)")
    add("--drop-leaks", action="store_true", help="drop val/test images that equal a training image")
    add("--dedup", action="store_true", help="keep the first of equal images within a split")


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if a batch is missing, damaged or anything but plain data."""
    folder = find_folder(source_folder(options.source))
    names, files = _read_names(folder)
    naming = name_classes(names)
    tables, dropped, notes = [], [], []
    for name in BATCHES:
        content = _read(folder / name)
        files[name] = hashlib.sha256(content).hexdigest()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
            notes.append(f"{name} is not byte for byte the official file")
        table, faults = _index(name, _labels(folder / name, content), naming)
        tables.append(table)
        dropped += faults
    rows = pd.concat(tables, ignore_index=True)
    rows["split"] = splits.cut_shares(rows, options.val_share, 0.0, options.split_seed)
    if options.max_per_class:
        stays = splits.draw_per_class(rows, options.max_per_class, options.split_seed)
        left_out = rows[~stays][["split", "_batch", "_row"]].itertuples(index=False)
        dropped += [Dropped(*place, splits.NOT_DRAWN) for place in left_out]
        rows = rows[stays]
    names = ["val_share", "split_seed", "max_per_class"]
    return Plan(
        name="cifar10",
        title="CIFAR-10 (10 classes, official test batch)",
        classes=naming.classes,
        shape=(3, SIDE, SIDE),
        samples=_samples(rows),
        decode=partial(decode_rows, folder=str(folder), sha256={name: files[name] for name in BATCHES}),
        licence=LICENCE,
        release="official batches for Python",
        files=files,
        options={name: getattr(options, name) for name in names},
        dropped=dropped,
        drop_leaks=options.drop_leaks,
        dedup=options.dedup,
        published={split: PUBLISHED[split] for split in ("train", "test") if split == "test" or not options.val_share},
        label_mapping=naming.shown,
        notes=notes,
    )


def detect(path: Path) -> Layout | None:
    """The folder of batches or its parent."""
    folder = find_folder(path)
    return Layout(f"{folder.name} with test_batch and data_batch_1..5", ("--source", str(path)))


def find_folder(path: Path) -> Path:
    """The folder of the batches: `path` or the official folder in it."""
    for folder in (path, path / FOLDER):
        if (folder / "data_batch_1").is_file():
            return folder
    raise DataError(f"{path} holds no data_batch_1, neither directly nor in {FOLDER}")


# --- batches --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """A batch's bytes; DataError if it is missing or far too large."""
    if not path.is_file():
        raise DataError(f"{path} is missing: the download is incomplete")
    with open(path, "rb") as file:
        content = file.read(MAX_BATCH_BYTES + 1)
    if len(content) > MAX_BATCH_BYTES:
        raise DataError(f"{path} is larger than {MAX_BATCH_BYTES >> 20} MB and no batch of CIFAR-10")
    return content


def _entries(path: Path, content: bytes) -> dict[str, object]:
    """The dict in a batch, keys as text."""
    try:
        found = read_plain(content)
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no dict, so it is no batch of CIFAR-10")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _read_names(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Label -> class name from batches.meta, and the file's hash; the official names where that file is missing."""
    path = folder / META
    if not path.is_file():
        return {str(label): name for label, name in enumerate(NAMES)}, {}
    content = _read(path)
    names = _entries(path, content).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{path} has no list label_names")
    names = [name.decode("latin-1") if isinstance(name, bytes) else name for name in names]
    if sorted(names) != sorted(NAMES):
        raise DataError(f"{path} does not name the ten classes of CIFAR-10 (found: {', '.join(names)[:80]!a})")
    return {str(label): name for label, name in enumerate(names)}, {META: hashlib.sha256(content).hexdigest()}


def _pixels(path: Path, content: bytes) -> tuple[np.ndarray, dict[str, object]]:
    """The images of a batch, uint8 (n, 3072), and its other entries."""
    entries = _entries(path, content)
    data = entries.get("data")
    pixels = data.bytes_as("u1") if isinstance(data, Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != WIDTH:
        raise DataError(f"{path} has no data of n x {WIDTH:,} bytes")
    return pixels, entries


def _labels(path: Path, content: bytes) -> list:
    """A batch's labels, one an image."""
    pixels, entries = _pixels(path, content)
    labels = entries.get("labels")
    if not isinstance(labels, list):
        other = " (fine_labels: this is CIFAR-100)" if "fine_labels" in entries else ""
        raise DataError(f"{path} has no list of labels{other}")
    if len(labels) != len(pixels):
        raise DataError(f"{path} has {len(labels):,} labels for {len(pixels):,} images, so none can be trusted")
    return labels


def _index(name: str, labels: list, naming: Naming) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows of a batch, and those whose label is none."""
    codes = [naming.code(str(label)) if type(label) is int else _no_number(label) for label in labels]
    kept = [row for row, code in enumerate(codes) if not isinstance(code, Rejected)]
    faults = [Dropped(BATCHES[name], name, row, code) for row, code in enumerate(codes) if isinstance(code, Rejected)]
    label = np.array([codes[row] for row in kept], np.int64)
    source = pd.Series([f"{name}:{row}" for row in kept], dtype=object)
    table = pd.DataFrame({"label": label, "source": source, "_row": np.array(kept, np.int64), "_batch": name})
    return table.assign(split=BATCHES[name], _class=np.array(naming.classes, object)[label], _group=source), faults


def _no_number(label: object) -> Rejected:
    return Rejected("unknown label", f"a {type(label).__name__} instead of a number")


def _samples(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    columns = ["label", "source", "_row", "_batch"]
    return {split: rows.loc[rows["split"] == split, columns].reset_index(drop=True) for split in SPLITS}


def decode_rows(rows: pd.DataFrame, split: str, folder: str, sha256: dict[str, str]) -> list[np.ndarray]:
    """Pixels of the rows, each uint8 (3, 32, 32)."""
    places = zip(rows["_batch"], rows["_row"], strict=True)
    return [_batch(Path(folder, name), sha256[name])[row].reshape(3, SIDE, SIDE) for name, row in places]


@lru_cache(2)
def _batch(path: Path, sha256: str) -> np.ndarray:
    """The images of one batch; a process decodes row after row of the same."""
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} changed while it was packed; run the command again")
    return _pixels(path, content)[0]
