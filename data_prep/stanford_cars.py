"""Stanford Cars: 196 models of cars with boxes, from the files of the devkit and the folders of images.

    cars_train/00001.jpg, cars_test/00001.jpg          (copies from Kaggle nest them: cars_train/cars_train/00001.jpg)
    devkit/{cars_meta,cars_train_annos}.mat, cars_test_annos_withlabels.mat       (as torchvision has them)
    car_ims/000001.jpg, cars_annos.mat                 (older: one list with the split; written from descriptions only)

Each .mat file may lie up to two folders below --source. Labels start at 1 and are named by cars_meta.mat. The official
split is kept, val is cut from train. Boxes are MATLAB's: pixels from 1, the last one inside (not stated by the devkit).
Without labels of the test images these are left out by rule; --test-share then cuts a test set from train. A copy as
folders of classes is read by `image_folder`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.detect import Layout
from data_prep.image_files import BOX, plan_images, source_folder
from data_prep.image_folder import HIDDEN, NOT_TEXT, is_hidden
from data_prep.labels import name_classes
from data_prep.mat_files import read_mat
from data_prep.packed import DataError, Dropped, Plan, Rejected, file_sha256
from data_prep.paths import is_image_name, is_text, shown

META, TRAIN, TEST, TEST_WITHOUT = (
    "cars_meta.mat",
    "cars_train_annos.mat",
    "cars_test_annos_withlabels.mat",
    "cars_test_annos.mat",
)
ONE_LIST = "cars_annos.mat"
LICENCE = "Non-commercial research only (Krause et al. 2013); the images belong to their photographers."
ACCESS = "The official download is gone; github.com/pytorch/vision/issues/7545 says where the parts can be had."
PUBLISHED = {"train": {"all": 8_144}, "test": {"all": 8_041}}
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
NO_LABEL = Rejected("image without a label in this copy", bad=False)
UNUSABLE = "unusable annotation"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of Stanford Cars: boxes are cropped with a margin."""
    image_files.add_arguments(parser, boxes=True)


def plan(options: Namespace) -> Plan:
    """What to pack from --source; DataError if the annotations or the names of the classes are missing."""
    source = source_folder(options.source)
    lists, names, used = _read_lists(source)
    for each in lists:
        each.read(len(names))
    dropped = [drop for each in lists for drop in each.dropped]
    dropped += [drop for each in lists for drop in each.unlisted(source)]
    rows = pd.concat([each.table() for each in lists], ignore_index=True)
    official = {"train"} if options.val_share == 0 and not options.max_per_class else set()
    notes = []
    if any(each.split == "test" for each in lists):
        official.add("test")
    elif used[0].name != ONE_LIST:
        notes = [f"{TEST} is not there, so the official test images are without labels and left out"]
    return plan_images(
        options,
        rows,
        naming=name_classes(names),
        root=source,
        name="stanford_cars",
        title="Stanford Cars (196 classes, official split)",
        licence=LICENCE,
        release="one list, cars_annos.mat" if used[0].name == ONE_LIST else "devkit with cars_train and cars_test",
        dropped=dropped,
        files={path.name: file_sha256(path) for path in used},
        published={split: counts for split, counts in PUBLISHED.items() if split in official},
        notes=notes,
    )


def detect(path: Path) -> Layout | None:
    """The list of training images or the older single list."""
    if not path.is_dir():
        return None
    found = _find(path, TRAIN) or _find(path, ONE_LIST)
    return Layout(str(found.relative_to(path)), ("--source", str(path))) if found else None


# --- the .mat files -------------------------------------------------------------------------------------------------


def _find(root: Path, name: str) -> Path | None:
    """A file or folder of this name, at most two folders below the root."""
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        found = sorted(root.glob(pattern))
        if found:
            return found[0]
    return None


def _read_lists(root: Path) -> tuple[list["_List"], dict[str, str], list[Path]]:
    """The lists of images, label -> name of the class, and the files that were read."""
    train, one = _find(root, TRAIN), _find(root, ONE_LIST)
    if train is None and one is not None:
        found = read_mat(one, ["annotations", "class_names"])
        ims = _find(root, "car_ims")
        base = _below(root, ims.parent) if ims else _below(root, one.parent)
        return [_List(one.name, "", _records(one, found), base, ("car_ims",))], _names(one, found), [one]
    if train is None:
        raise DataError(
            f"--source {root} holds neither {TRAIN} nor {ONE_LIST}, up to two folders deep: is the devkit there?"
        )
    meta, test = _find(root, META), _find(root, TEST)
    if meta is None:
        raise DataError(f"{META}, which names the classes, is missing below {root}; it is a part of the devkit")
    lists = [_List(train.name, "train", _records(train), *_images(root, "cars_train"))]
    if test is not None:
        lists.append(_List(test.name, "test", _records(test), *_images(root, "cars_test")))
    else:
        lists.append(_List(TEST_WITHOUT, "", [], *_images(root, "cars_test")))
    names = _names(meta, read_mat(meta, ["class_names"]))
    return lists, names, [path for path in (train, meta, test) if path is not None]


def _below(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    return "" if name == "." else name + "/"


def _images(root: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Where the images of a list lie, relative to the root: the innermost folder of this name."""
    folder = _find(root, f"{name}/{name}") or _find(root, name)
    return (_below(root, folder), ("",)) if folder else (name + "/", ())


def _records(path: Path, found: dict | None = None) -> list[dict]:
    records = (found or read_mat(path, ["annotations"])).get("annotations")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} has no struct array 'annotations'")
    return records


def _names(path: Path, found: dict) -> dict[str, str]:
    """ "1" -> "AM General Hummer SUV 2000"."""
    names = found.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"{path} has no list of texts 'class_names'")
    names = [shown(name.strip()) for name in names]
    if len(set(names)) != len(names):
        raise DataError(f"{path} gives two classes the same name")
    return {str(label): name for label, name in enumerate(names, start=1)}


def _number(record: dict, name: str) -> float:
    """A field that holds one finite number; NaN otherwise."""
    value = record.get(name)
    if not isinstance(value, np.ndarray) or value.shape != (1,) or not np.isfinite(value[0]):
        return np.nan
    return float(value[0])


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass
class _List:
    """One list of images: records of `file`, whose paths start at `base`; `folders` below it are all of its images."""

    file: str
    split: str
    records: list[dict]
    base: str
    folders: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)

    def read(self, classes: int) -> None:
        """Fills `rows` and `dropped`; record k of the list is row k, from 1."""
        for row, record in enumerate(self.records, start=1):
            name = record.get("fname", record.get("relative_im_path"))
            flag = _number(record, "test")
            split = self.split or ("test" if flag == 1 else "train" if flag == 0 else "")
            label, box = _number(record, "class"), [_number(record, corner) for corner in CORNERS]
            if isinstance(name, str):
                self.listed.add(self.base + name)
            why = None
            if not isinstance(name, str) or not name.strip():
                why = Rejected(UNUSABLE, "no file name")
            elif not split:
                why = Rejected(UNUSABLE, f"no split, {shown(name)}")
            elif np.isnan(label):
                why = NO_LABEL if "class" not in record else Rejected(UNUSABLE, f"no class, {shown(name)}")
            elif label not in range(1, classes + 1):
                why = Rejected("unknown label", f"{label:g}")
            elif np.isnan(box).any():
                why = Rejected("box is not four numbers", shown(name))
            if why:
                self.dropped.append(Dropped(split, self.file, row, why))
            else:
                corners = (box[0] - 1, box[1] - 1, box[2], box[3])
                self.rows.append((self.base + name, str(int(label)), split, self.file, row, *corners))

    def table(self) -> pd.DataFrame:
        names = ("path", "label", "split", "file", "row", *BOX)
        types = [object] * 4 + [np.int64] + [float] * 4
        columns = list(zip(*self.rows, strict=True)) or [()] * len(names)
        return pd.DataFrame({n: pd.Series(c, dtype=t) for n, c, t in zip(names, columns, types, strict=True)})

    def unlisted(self, root: Path) -> Iterator[Dropped]:
        """What lies beside the listed images."""
        for folder in self.folders:
            where = root / self.base / folder
            for name in sorted(path.name for path in where.iterdir()):
                path = f"{self.base}{folder}/{name}" if folder else self.base + name
                shown_path = path.encode("utf-8", "backslashreplace").decode()
                if path not in self.listed:
                    yield Dropped(self.split, shown_path, -1, _why_unlisted(name))


def _why_unlisted(name: str) -> Rejected:
    if is_hidden(name):
        return HIDDEN
    if not is_text(name):
        return NOT_TEXT
    return NO_LABEL if is_image_name(name) else Rejected("no image file", shown(Path(name).suffix), bad=False)
