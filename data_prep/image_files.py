"""From a table of image files to a `Plan`: what every source whose images are files shares.

A source gives one row for each image (or face), as a DataFrame with

    path        relative to `root`, "/" between folders
    label       what the source calls its class (text, mapped by a `Naming`); not needed beside `soft`
    soft        optional, shares of the classes in the order of `naming.classes`; the label is the largest share
    split       optional, "train", "val", "test" or "" where the source does not say
    file, row   optional, the table that names the image and the line of it; otherwise the image is its own record
    subject     optional, text, the person: makes --split-by-subject possible
    group       optional, text, what must stay together in one split, such as frames of one film (default: the subject)
    x0 y0 x1 y1 optional, the face's box in pixels; NaN = the whole image

and any other column of the packed format (valence, arousal, au12). `plan_images` finds the files, names the classes,
makes the splits and records every row that is left out; reading the images is left to `data_prep.images`, later and in
parallel. Rows that are unusable before that come as `dropped`.

The inputs' identity: hashing 300,000 images before the first is packed would take as long as packing them, so `files`
has one hash of all names and sizes beside those of the tables, the same for every copy of the data. An image edited to
the same size is noticed by its modification time, in the plan's `stamp`: a stopped run then starts anew.
"""

import hashlib
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import splits
from data_prep.labels import Naming, soft_labels
from data_prep.packed import SPLITS, DataError, Dropped, Plan, Rejected, Resized
from data_prep.paths import Located, Root

BOX = ("x0", "y0", "x1", "y1")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z", ".bz2", ".xz")
NO_SUBJECT = Rejected("subject unknown (--split-by-subject)", bad=False)

_USED = {"path", "split", "file", "row", "group", *BOX}  # what plan_images consumes


def add_arguments(
    parser: ArgumentParser,
    *,
    size: int = 96,
    val_share: float = 0.1,
    boxes: bool = False,
    subjects: bool = False,
    folds: int | None = None,
) -> None:
    """The common options. `boxes` and `subjects` say whether the source has faces' boxes and persons; with `folds` it
    is always split by subject, into that many folds by default, since any other split would leak."""
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="PATH", help="the unpacked data set")
    add("--size", type=whole(8, 1024), default=size, metavar="S", help="images become S x S pixels (%(default)s)")
    add("--grey", action="store_true", help="one channel instead of three")
    if boxes:
        add("--margin", type=share(4), default=0.1, metavar="M", help="of the box, added on each side (%(default)s)")
    if not folds:
        add("--val-share", type=share(0.9), default=val_share, help="of train, if the source has no val (%(default)s)")
        add("--test-share", type=share(0.9), default=0.0, help="of train, if the source has no test (%(default)s)")
    if subjects or folds:
        meaning = f"K folds of persons ({folds})" if folds else "K folds of persons instead of other splits"
        add("--split-by-subject", type=whole(3, 1000), metavar="K", default=folds, help=meaning)
        add("--fold", type=whole(0, 999), default=0, help="0..K-1: test is this fold, val the next (%(default)s)")
    add("--max-per-class", type=whole(1, 10**9), metavar="N", help="at most N training images a class, drawn by seed")
    add("--split-seed", type=whole(0, 2**31), default=0, metavar="SEED", help="of these choices (%(default)s)")
    add("--drop-leaks", action="store_true", help="drop val/test images equal to a train image, test to a val one")
    add("--dedup", action="store_true", help="keep the first of equal images within a split")


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    """An argument type: a whole number in this range."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
            raise ArgumentTypeError(f"{text!r} is no whole number from {lowest} to {highest:,}")
        return int(text)

    return parse


def share(highest: float) -> Callable[[str], float]:
    """An argument type: a number from 0 to `highest`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= highest:
            raise ArgumentTypeError(f"{text!r} is no number from 0 to {highest:g}")
        return value

    return parse


def source_folder(path: Path) -> Path:
    """--source as a directory; DataError if it is none, and for an archive what to do with it."""
    if path.is_dir():
        return path
    if path.suffix.lower() in ARCHIVES and path.is_file():
        raise DataError(f"--source {path} is an archive: unpack it first and name the directory")
    raise DataError(f"--source {path} is a file, a directory is needed" if path.exists() else f"no --source {path}")


# --- the plan -------------------------------------------------------------------------------------------------------


def plan_images(
    options: Namespace,
    rows: pd.DataFrame,
    *,
    naming: Naming,
    root: Path,
    name: str,
    title: str,
    licence: str,
    release: str,
    dropped: Sequence[Dropped] = (),
    files: Mapping[str, str] | None = None,
    published: Mapping[str, Mapping[str, int]] | None = None,
    settings: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    any_extension: bool = False,
) -> Plan:
    """The plan for rows as described above; inputs are the rows and `dropped`, each counted once.

    `files` are the hashes of the source's tables, `settings` its own options for the manifest; `any_extension`: see
    `data_prep.paths.Root`. DataError for options that do not fit together.
    """
    rows, dropped = _with_sources(rows), list(dropped)
    rows, located = _locate(rows, Root(root, any_extension), dropped)
    rows = _boxed(rows, dropped)
    rows = _labelled(rows, naming, dropped)
    rows = _split(rows, options, dropped)
    if options.max_per_class:
        stays = splits.draw_per_class(rows, options.max_per_class, options.split_seed)
        rows = _keep(rows, [None if stay else splits.NOT_DRAWN for stay in stays], dropped)
    return Plan(
        name=name,
        title=title,
        classes=naming.classes,
        shape=(1 if options.grey else 3, options.size, options.size),
        samples=_samples(rows),
        decode=partial(decode, root=str(root), **_pixels(options)),
        licence=licence,
        release=release,
        files={**(files or {}), f"{len(located):,} image files, by name and size": _identity(located)},
        options={**_image_settings(options, rows), **_split_settings(options), **(settings or {})},
        dropped=dropped,
        drop_leaks=options.drop_leaks,
        dedup=options.dedup,
        published=published or {},
        label_mapping=naming.shown,
        notes=notes,
        stamp=_identity(located, times=True),
        newest=max((one.mtime_ns for one in located), default=0) / 1e9,
        modules=("data_prep.images",),
        hash_of="images",
    )


def decode(rows: pd.DataFrame, split: str, **how) -> Sequence[Resized | Rejected]:
    """`data_prep.images.decode_files`, which imports torch: seconds that only the processes that decode should pay."""
    from data_prep.images import decode_files

    return decode_files(rows, **how)


def _pixels(options: Namespace) -> dict[str, object]:
    return {"size": options.size, "grey": options.grey, "margin": getattr(options, "margin", 0.0)}


def _with_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns that a source may leave out, and `source` and `_row` as the packed format wants them."""
    n = len(rows)
    rows = rows.reset_index(drop=True)
    if "split" not in rows:
        rows["split"] = pd.Series([""] * n, dtype=object)
    if "file" in rows:
        rows["source"] = [f"{file}:{row}" for file, row in zip(rows["file"], rows["row"], strict=True)]
        return rows.assign(_row=rows["row"].to_numpy(np.int64), image=rows["path"])
    return rows.assign(source=rows["path"], _row=np.full(n, -1, np.int64))


def _keep(rows: pd.DataFrame, why: Sequence[Rejected | None], dropped: list[Dropped]) -> pd.DataFrame:
    """The rows without a reason; the others are recorded in `dropped`."""
    stays = np.array([one is None for one in why], bool)
    for i in np.flatnonzero(~stays):
        row = int(rows["_row"].iat[i])
        file = rows["source"].iat[i].removesuffix(f":{row}")
        file = file.encode("utf-8", "backslashreplace").decode()  # names from a disk may be no text
        dropped.append(Dropped(rows["split"].iat[i], file, row, why[i]))
    return rows[stays].reset_index(drop=True)


def _locate(rows: pd.DataFrame, root: Root, dropped: list[Dropped]) -> tuple[pd.DataFrame, list[Located]]:
    """The rows whose file is there, with `_path`, and the files, each once, sorted."""
    found = {path: root.locate(path) for path in dict.fromkeys(rows["path"])}
    here = [found[path] for path in rows["path"]]
    rows = _keep(rows, [one if isinstance(one, Rejected) else None for one in here], dropped)
    rows["_path"] = pd.Series([one.path for one in here if isinstance(one, Located)], dtype=object)
    unique = {one.path: one for one in found.values() if isinstance(one, Located)}
    return rows, [unique[path] for path in sorted(unique)]


def _identity(located: Sequence[Located], times: bool = False) -> str:
    """sha256 over the names and sizes of files; with `times` also over their modification times."""
    digest = hashlib.sha256()
    for one in located:
        digest.update(f"{one.path}\t{one.size}\t{one.mtime_ns if times else 0}\n".encode())
    return digest.hexdigest()


# --- boxes and labels -----------------------------------------------------------------------------------------------


def _boxed(rows: pd.DataFrame, dropped: list[Dropped]) -> pd.DataFrame:
    """The boxes in the columns that `decode` reads; rows whose box is none are dropped."""
    if BOX[0] not in rows:
        return rows
    boxes = rows[list(BOX)].to_numpy(float)
    rows = rows.assign(**{f"_{name}": column for name, column in zip(BOX, boxes.T, strict=True)})
    return _keep(rows, [_box_fault(box) for box in boxes], dropped)


def _box_fault(box: np.ndarray) -> Rejected | None:
    if np.isnan(box).all():
        return None
    if not np.isfinite(box).all():
        return Rejected("box is not four numbers")
    if box[2] <= box[0] or box[3] <= box[1]:
        return Rejected("box without area", ",".join(f"{value:g}" for value in box))
    return None


def _labelled(rows: pd.DataFrame, naming: Naming, dropped: list[Dropped]) -> pd.DataFrame:
    """`label` becomes the class index, `soft` float32 rows that sum to 1, `subject` a number, `_group` its name."""
    if "soft" in rows:
        shares = np.array(rows["soft"].to_list(), float).reshape(len(rows), len(naming.classes))
        soft, why = soft_labels(shares)
        rows["soft"] = pd.Series(list(soft), dtype=object)
        rows["label"] = soft.argmax(1)
    else:
        codes = {label: naming.code(label) for label in set(rows["label"])}
        found = [codes[label] for label in rows["label"]]
        why = [one if isinstance(one, Rejected) else None for one in found]
        rows["label"] = [-1 if isinstance(one, Rejected) else one for one in found]
    rows = _keep(rows, why, dropped)
    rows["label"] = rows["label"].astype(np.int64)
    rows["_class"] = np.array(naming.classes, object)[rows["label"]]
    group = next((rows[name] for name in ("group", "subject") if name in rows), rows["source"])
    rows["_group"] = group.where(group.ne(""), rows["source"])  # an unknown group is one of its own
    if "subject" in rows:
        rows["_subject"] = rows["subject"]
        rows["subject"] = pd.factorize(rows["subject"].where(rows["subject"].ne("")), sort=True)[0]  # -1 = unknown
    return rows


# --- splits ---------------------------------------------------------------------------------------------------------


def _split(rows: pd.DataFrame, options: Namespace, dropped: list[Dropped]) -> pd.DataFrame:
    """The rows with a split each; under --split-by-subject without those whose subject is unknown."""
    if not len(rows):
        return rows
    if not getattr(options, "split_by_subject", None):
        return rows.assign(split=splits.cut_shares(rows, options.val_share, options.test_share, options.split_seed))
    if "subject" not in rows or (rows["subject"] < 0).all():
        raise DataError("--split-by-subject needs to know who is in an image, and this source does not say")
    rows = _keep(rows, [NO_SUBJECT if subject < 0 else None for subject in rows["subject"]], dropped)
    people = rows.assign(_group=rows["_subject"])
    return rows.assign(split=splits.subject_folds(people, options.split_by_subject, options.fold))


def _split_settings(options: Namespace) -> dict[str, object]:
    """What of the options makes the splits, for the manifest."""
    names = ["val_share", "test_share", "split_seed", "max_per_class"]
    if getattr(options, "split_by_subject", None):
        names = ["split_by_subject", "fold", "max_per_class"] + ["split_seed"] * bool(options.max_per_class)
    return {name: getattr(options, name) for name in names}


def _image_settings(options: Namespace, rows: pd.DataFrame) -> dict[str, object]:
    """How files become pixels, for the manifest."""
    crop = "whole image, stretched to a square"
    if "_x0" in rows:
        crop = f"square around the box, margin {options.margin:g} of its longer side; without a box the whole image"
    return {"size": options.size, "grey": options.grey, "crop": crop}


def _samples(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the packed format, in the order of the rows."""
    columns = [name for name in rows if name not in _USED and name not in ("_class", "_group", "_subject")]
    return {split: rows.loc[rows["split"] == split, columns].reset_index(drop=True) for split in SPLITS}
