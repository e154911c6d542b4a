"""The packed format 1 and what a source hands over to fill it (`Plan`).

    <out>/manifest.json, dropped.parquet, {train,val,test}/images.npy, {train,val,test}/samples.parquet

`data_prep.writer` writes such a directory, `data_prep.check` compares one with its manifest, `data_prep.audit` adds
audit.json, audit.html and contact_sheets/, which are no part of the format.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd

FORMAT = 1
SPLITS = ("train", "val", "test")
SHEETS = "contact_sheets"
SHEET_NAME = re.compile(r"\d{3,}-[a-z0-9-]*\.png(?:\.tmp)?")
AUDIT_FILES = ("audit.json", "audit.html", SHEETS)
CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


class DataError(ValueError):
    """What is wrong with the user's data, options or disk, in one sentence."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why `decode` gives no image for a row.

    `reason` is the category that is counted (without ": "), `detail` the offending value. `bad` says that the input
    is broken, which --strict does not accept; False means left out by a rule of the data set.
    """

    reason: str
    detail: str = ""
    bad: bool = True

    def __post_init__(self) -> None:
        if ": " in self.reason:
            raise ValueError(f"reason {self.reason!r} must not contain ': ', which starts the detail")

    @property
    def text(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Dropped:
    """An input that was left out: `split` is "" where unknown, `row` is a line of `file` (1 = the header) or -1."""

    split: str
    file: str
    row: int
    why: Rejected

    @property
    def place(self) -> str:
        return f"{self.file}:{self.row}" if self.row >= 0 else self.file

    @property
    def facts(self) -> dict[str, object]:
        why = {"reason": self.why.reason, "detail": self.why.detail, "bad": self.why.bad}
        return {"split": self.split, "file": self.file, "row": self.row, "why": why}


@dataclass(frozen=True)
class Resized:
    """An image made from a file: its pixels, and how many the part of the file had that became the image."""

    pixels: np.ndarray
    width: int
    height: int


Decode = Callable[[pd.DataFrame, str], Sequence[np.ndarray | Resized | Rejected]]


@dataclass(frozen=True)
class Plan:
    """Everything `write` needs from a source.

    samples   one table a split with a RangeIndex, `label`, `source` and any other column of the format. Columns whose
              names start with "_" reach `decode` and are not written; `_row` (line number) goes to dropped.parquet.
    decode    picklable, called as decode(rows, split) with consecutive rows; gives for each row a uint8 array of
              `shape` (C, H, W), a `Resized` (columns width, height) or a `Rejected`. It must not depend on how the rows
              are cut into chunks.
    dropped   inputs that were left out before decoding.
    files     sha256 of every input by name (no path), so that other inputs are another plan. Image files may be too
              many to read twice: `data_prep.image_files` hashes their names and sizes, and gives a `stamp`.
    published counts to compare with: split -> class -> n, or split -> {"all": n}.
    label_mapping   what the source calls a class -> the class, for the manifest and the report.
    notes     what a user should know about the reading, one sentence each, for the manifest and the report.
    stamp     changes whenever an input may have changed, even if `files` is the same; it is of this machine and goes
              into no result. Parts of an unfinished run are used again only under the same stamp.
    newest    the latest modification time of an input, seconds; 0 where `files` covers the contents.
    modules   what `decode` imports that takes long to import.
    hash_of   what content_sha256 is taken over, "pixels" or "images": see `Contents`.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    samples: Mapping[str, pd.DataFrame]
    decode: Decode
    licence: str
    release: str
    files: Mapping[str, str]
    options: Mapping[str, object] = field(default_factory=dict)
    dropped: Sequence[Dropped] = ()
    drop_leaks: bool = False
    dedup: bool = False
    drawn: bool = False
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    label_mapping: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    stamp: str = ""
    newest: float = 0.0
    modules: tuple[str, ...] = ()
    hash_of: str = "pixels"

    @property
    def all_options(self) -> dict[str, object]:
        return {**self.options, "drop_leaks": self.drop_leaks, "dedup": self.dedup}

    @cached_property
    def sha256(self) -> str:
        """Hash of whatever shapes the result: inputs, options, classes, labels and their order; not of any path."""
        digest = hashlib.sha256()
        facts = [FORMAT, self.name, self.classes, self.shape, dict(self.files), self.all_options, self.release]
        facts += ["test images that equal a val image too"] * self.drop_leaks  # not so in the first version
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for split in SPLITS:
            samples = self.samples[split]
            digest.update(f"{split} {len(samples)}\n".encode())
            digest.update("\n".join(samples["source"]).encode())
            digest.update(_little(samples["label"], "<i8"))
            digest.update(_soft_bytes(samples))
        for i, drop in enumerate(self.dropped):  # one at a time: there may be millions
            digest.update((", " if i else "[").encode() + json.dumps(drop.facts).encode())
        digest.update(b"]" if self.dropped else b"[]")
        return digest.hexdigest()


# --- the contents: hash and exact sums ------------------------------------------------------------------------------


class Contents:
    """The manifest's content_sha256 and normalization, from data that is fed split by split in the order of SPLITS.

    The hash identifies the data whatever the encoding of its files. It is taken over, for each split: name (UTF-8),
    shape (N, C, H, W) as four little-endian int64, image bytes, labels (int64), soft labels (float32) if any; at the
    end the class names joined by newlines. Under `hash_of` = "images" each image's sha256 stands for its bytes, and the
    word "images" comes first: those are hashed where they are decoded, in parallel, while pixels can only be hashed one
    after the other, which on many cores takes longer than decoding. The manifest says which; "pixels" if it does not.
    """

    def __init__(self, channels: int, hash_of: str = "pixels") -> None:
        self._moments, self._split, self.by_image = Moments(channels), "", hash_of == "images"
        self._digest = hashlib.sha256(b"images" * self.by_image)

    def start(self, split: str, shape: Sequence[int]) -> None:
        """From here on `split` is fed, all its images before its samples."""
        self._split = split
        self._digest.update(split.encode() + np.asarray(shape, "<i8").tobytes())

    def add_images(self, images: np.ndarray) -> None:
        """Adds uint8 images (n, C, H, W)."""
        self.add_hashed(image_digests(images).tobytes() if self.by_image else np.ascontiguousarray(images))
        if self._split == "train":
            self.add_sums(image_sums(images), int(np.prod(images.shape[2:])))

    def add_hashed(self, content: bytes | np.ndarray) -> None:
        """Adds the digests of images where these stand for them, else their pixels."""
        self._digest.update(content)

    def add_sums(self, sums: np.ndarray, pixels: int) -> None:
        """Adds the `image_sums` of training images, each of so many pixels."""
        self._moments.add(sums, pixels)

    def add_samples(self, samples: pd.DataFrame) -> None:
        self._digest.update(_little(samples["label"], "<i8"))
        self._digest.update(_soft_bytes(samples))

    def sha256(self, classes: Iterable[str]) -> str:
        """content_sha256, after the last split."""
        digest = self._digest.copy()
        digest.update("\n".join(classes).encode())
        return digest.hexdigest()

    def normalization(self) -> dict[str, list[float]]:
        """{"mean", "std"} of the training images, pixel / 255, one number a channel."""
        return self._moments.normalization()


class Moments:
    """Mean and standard deviation per channel from whole-number sums, hence exact for any number of images."""

    def __init__(self, channels: int) -> None:
        self._pixels, self._sums = 0, [[0] * channels, [0] * channels]

    def add(self, sums: np.ndarray, pixels: int) -> None:
        """Adds the `image_sums` of n images, each of so many pixels."""
        self._pixels += len(sums) * pixels
        for own, more in zip(self._sums, sums.sum(0).tolist(), strict=True):
            own[:] = [a + b for a, b in zip(own, more, strict=True)]

    def normalization(self) -> dict[str, list[float]]:
        """{"mean", "std"} of pixel / 255, one number a channel."""
        mean, std, n = [], [], self._pixels
        for total, squares in zip(*self._sums, strict=True):
            mean.append(total / (255 * n))
            std.append(sqrt((n * squares - total * total) / (n * n)) / 255)
        return {"mean": mean, "std": std}


def image_digests(images: np.ndarray) -> np.ndarray:
    """The sha256 of each image, uint8 (N, 32). Processors have instructions for sha256, none for blake2b."""
    joined = b"".join(hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images)
    return np.frombuffer(joined, np.uint8).reshape(-1, hashlib.sha256().digest_size)


def image_sums(images: np.ndarray) -> np.ndarray:
    """The sums of the pixels and of their squares, int64 (N, 2, C), of uint8 images (N, C, H, W).

    Exact, and quick: a sum of 256 squares of bytes is below 2^24, up to which single precision has every whole number.
    """
    n, channels = images.shape[:2]
    size = int(np.prod(images.shape[2:]))
    width = -(-size // 256) * 256
    step = max((1 << 16) // max(channels * width, 1), 1)  # images that fit into the processor's cache
    flat, sums = images.reshape(n, channels, size), np.zeros((n, 2, channels), np.int64)
    values, ones = np.zeros((step, channels, width), np.float32), np.ones(256, np.float32)
    for start in range(0, n, step):
        block = flat[start : start + step]
        values[: len(block), :, :size] = block
        rows = values[: len(block)].reshape(-1, 256)
        for power in (0, 1):
            sums[start : start + step, power] = (rows @ ones).reshape(*block.shape[:2], -1).sum(2, dtype=np.float64)
            np.square(rows, out=rows)
    return sums


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _little(values: pd.Series, dtype: str) -> bytes:
    return values.to_numpy().astype(dtype).tobytes()


def _soft_bytes(samples: pd.DataFrame) -> bytes:
    if "soft" not in samples or samples.empty:
        return b""
    return np.stack(samples["soft"].to_list()).astype("<f4").tobytes()


# --- the directory --------------------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> dict:
    """manifest.json of a packed directory; DataError if it is missing, unreadable or of another format version."""
    path = directory / "manifest.json"
    if not directory.is_dir():
        unfinished = partial_directory(directory)
        hint = "; packing it was not finished: run its command again" if unfinished.is_dir() else ""
        raise DataError(f"no packed directory at {directory}{hint}")
    if not path.is_file():
        raise DataError(f"{directory} holds no manifest.json, so it is no packed directory")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; pack the data again with --overwrite") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        way_out = "pack the data again with --overwrite"
        raise DataError(f"{directory} is of packed format {found!r}, this version reads {FORMAT}; {way_out}")
    wanted = ("title", "classes", "image", "splits", "normalization", "content_sha256", "dropped")
    if missing := [key for key in wanted if key not in manifest]:
        raise DataError(f"{path} is incomplete or garbled, it has no {missing[0]}: pack the data again "
                        "with --overwrite")
    return manifest


def partial_directory(out: Path) -> Path:
    """Where the parts of an unfinished run lie: beside `out`, so that the last step is a rename."""
    whole = Path(os.path.abspath(out))
    return whole.with_name(whole.name + ".partial")
