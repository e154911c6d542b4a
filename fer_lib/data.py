"""Packed data: opened without copying, batches drawn on the device, augmentation there too.

A packed data set is a directory that data_prep wrote (manifest.json, {train,val,test}/images.npy and samples.parquet).
Nothing is unpickled. All random choices of an epoch are drawn at its start on the CPU, as a pure function of
(seed, epoch): they are the same on every device, and an interrupted run takes them up again.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lib.experiment import Experiment, check_augment

FORMAT = 1              # of the packed format that this version reads
SPLITS = ("train", "val", "test")
CROP = 1 / 12           # of the side: 4 pixels at 48
TURN = 15.              # degrees
SIZE = 1.15             # factor
ERASE = (.02, .2)       # share of the image's area that erasing hides (chance .5)


class DataError(ValueError):
    """A packed data set that can't be used; its one sentence names the path and the way out."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Split:
    """images uint8 (N, C, H, W), memory-mapped; samples: a row an image, with `label` and what else the source has."""

    images: np.ndarray
    samples: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PackedDataset:
    """A packed data set: its manifest and its splits by name ("train", "val", "test"; those that hold images)."""

    path: Path
    manifest: dict
    splits: dict[str, Split]

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def hash(self) -> str:
        """Of the contents: pixels, labels and class names, wherever they lie."""
        return self.manifest["content_sha256"]

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        shape = self.manifest["image"]
        return shape["channels"], shape["height"], shape["width"]

    @property
    def drawn(self) -> bool:
        """True for drawn faces: every figure that shows them says so."""
        return bool(self.manifest.get("drawn"))


def open_packed(path: str | Path) -> PackedDataset:
    """Open a packed directory. Raises DataError where it is missing, of another version, truncated or inconsistent.

    Sizes are compared with the manifest's; checksums are `python -m data_prep check`'s.
    """
    path = Path(path)
    shown = path.name if path.is_absolute() else path
    try:
        there = path.is_dir()
    except OSError:                                     # a name that is too long
        there = False
    if not there:
        source = {"synthetic": "synthetic", "synthetic-quick": "synthetic --preset quick"}.get(
            path.name, f"{path.name.split('-')[0]} --source PATH")
        raise DataError(f"no packed data at '{shown}': make it with 'python -m data_prep {source} --out "
                        f"packed/{path.name}' ('python -m data_prep list' names the sources)")
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version = manifest["format"]
    except FileNotFoundError:
        raise DataError(f"'{shown}' holds no manifest.json: it is not a packed data set, or its packing was cut off; "
                        "run the data_prep command again, finished parts are kept") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise DataError(f"'{shown}/manifest.json' is damaged: pack the data again with data_prep") from None
    if version != FORMAT:
        raise DataError(f"'{shown}' is packed in format {version}, this version reads format {FORMAT}: "
                        "pack the data again with data_prep")
    if not _complete(manifest):
        raise DataError(f"'{shown}/manifest.json' is damaged: pack the data again with data_prep")
    splits = {name: _open_split(path / name, manifest, name) for name in SPLITS if name in manifest["splits"]}
    splits = {name: split for name, split in splits.items() if len(split)}
    for name in ("train", "val"):
        if name not in splits:
            raise DataError(f"'{shown}' has an empty {name} split: training needs one, pack the data with images in it")
    return PackedDataset(path, manifest, splits)


def _complete(manifest: dict) -> bool:
    """Whether all entries are there that training reads."""
    wanted = ("name", "classes", "image", "splits", "normalization", "content_sha256")
    return all(key in manifest for key in wanted) and all(
        entry.keys() >= {"n", "files"} and entry["files"].keys() >= {"images.npy", "samples.parquet"}
        for entry in manifest["splits"].values())


def _open_split(folder: Path, manifest: dict, name: str) -> Split:
    entry = manifest["splits"][name]
    for file, facts in entry["files"].items():
        where = folder / file
        size = where.stat().st_size if where.exists() else None
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size:,} bytes long, not {facts['bytes']:,}"
            raise DataError(f"'{name}/{file}' of packed data '{folder.parent.name}' is {found}: it is cut off or "
                            "changed; pack the data again with data_prep")
    try:
        images = np.load(folder / "images.npy", mmap_mode="c" if entry["n"] else None, allow_pickle=False)
        samples = pd.read_parquet(folder / "samples.parquet")
    except (ValueError, OSError) as error:                              # its text may hold the whole path
        raise DataError(f"packed data '{folder.parent.name}' can't be read in {name} ({type(error).__name__}): pack "
                        "the data again with data_prep") from None
    if len(images) != entry["n"] or len(samples) != entry["n"] or images.dtype != np.uint8:
        raise DataError(f"packed data '{folder.parent.name}': {name} holds {len(images)} images and {len(samples)} "
                        f"labels where the manifest says {entry['n']}: pack the data again with data_prep")
    shape = tuple(manifest["image"][key] for key in ("channels", "height", "width"))
    if entry["n"] and images.shape[1:] != shape:
        raise DataError(f"packed data '{folder.parent.name}': {name} holds images of shape {images.shape[1:]} where "
                        f"the manifest says {shape}: pack the data again with data_prep")
    labels = samples["label"].to_numpy()
    if len(labels) and not (0 <= labels.min() and labels.max() < len(manifest["classes"])):
        raise DataError(f"packed data '{folder.parent.name}': {name} has a label outside 0..."
                        f"{len(manifest['classes']) - 1}: pack the data again with data_prep")
    return Split(images, samples)


def stream(seed: int, *purpose: object) -> int:
    """The seed of one of a run's random streams, such as (seed, "order", epoch): streams never overlap by accident."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()[:8], "little") >> 1


class DeviceSplit:
    """A split ready for training: images on the device where they fit, else in their file, from where they stream.

    Batches come normalised to the train split's mean 0 and standard deviation 1, shape (B, C, S, S). shared: the
    images by their split, which runs beside each other have once.
    """

    def __init__(self, split: Split, manifest: dict, e: Experiment, device: torch.device, dtype: torch.dtype,
                 shared: dict[int, Tensor] | None = None):
        self.device, self.size, self.dtype = device, e.image_size, dtype
        shared = {} if shared is None else shared
        self.images = shared[id(split)] if id(split) in shared else _placed(split, device, e.image_place)
        shared[id(split)] = self.images
        self.labels = torch.from_numpy(split.samples["label"].to_numpy().copy()).to(device)
        self.soft = None
        if "soft" in split.samples:
            self.soft = torch.from_numpy(np.stack(split.samples["soft"].to_list()).astype(np.float32)).to(device)
        facts = manifest["normalization"]
        to_tensor = lambda key: torch.tensor(facts[key], dtype=dtype, device=device)[:, None, None]  # noqa: E731
        self.mean, self.std = to_tensor("mean"), to_tensor("std").clamp_min(1 / 255)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident(self) -> bool:
        """Whether the images are on the device."""
        return self.images.device.type == self.device.type

    def batch(self, index: Tensor | slice) -> Tensor:
        """Normalised images (B, C, S, S) of the rows in `index`."""
        if isinstance(index, Tensor):
            index = index.to(self.images.device)
        return self.normalised(self.images[index].to(self.device, non_blocking=True))

    def normalised(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on the device, as the network sees it: (B, C, S, S)."""
        x = x.to(self.dtype).div_(255).sub_(self.mean).div_(self.std)
        if self.size and self.size != x.shape[-1]:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return x


def _placed(split: Split, device: torch.device, where: str) -> Tensor:
    """The images on the device, or as they lie in their file. auto: there where they fill half of what is free or more.
    """
    images = torch.from_numpy(np.asarray(split.images))
    fits = device.type != "cuda" or images.numel() < .5 * torch.cuda.mem_get_info(device)[0]
    return images.to(device) if where == "device" or where == "auto" and fits else images


def used_rows(e: Experiment, labels: Tensor) -> Tensor:
    """Row numbers of the training images that a run uses, in order, on the CPU. labels (N,), there too.

    Of each class `train_share` of its images, rounded, one at least. They depend on the seed and nothing else: arms of
    a seed share them, and a smaller share's are among a larger one's.
    """
    if e.train_share == 1:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(stream(e.seed, "subset"))
    kept = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        kept.append(rows[:max(1, round(e.train_share * len(rows)))])
    return torch.cat(kept).sort().values


def used_counts(e: Experiment, data: PackedDataset) -> dict[str, int]:
    """Images that a run uses, by split."""
    counts = {name: len(split) for name, split in data.splits.items()}
    labels = torch.from_numpy(data.splits["train"].samples["label"].to_numpy().copy())
    return counts | {"train": len(used_rows(e, labels))}


def epoch_order(e: Experiment, labels: Tensor, epoch: int) -> Tensor:
    """Row numbers (steps, batch) of one epoch, on the CPU: a permutation of the rows that the run uses, or draws from
    them with classes equally likely. labels (N,) of the whole split.

    The last partial batch is dropped.
    """
    generator = torch.Generator().manual_seed(stream(e.seed, "order", epoch))
    rows = used_rows(e, labels)
    n = len(rows)
    if e.balance == "sampler":
        counts = torch.bincount(labels[rows])
        order = torch.multinomial(1 / counts[labels[rows]].double(), n, replacement=True, generator=generator)
    else:
        order = torch.randperm(n, generator=generator)
    steps = n // e.batch_size
    return rows[order[:steps * e.batch_size]].reshape(steps, e.batch_size)


def sampled_labels(e: Experiment, soft: Tensor, order: Tensor, epoch: int) -> Tensor:
    """One label a presentation, drawn from the soft labels: (steps, batch), on the CPU."""
    generator = torch.Generator().manual_seed(stream(e.seed, "labels", epoch))
    return torch.multinomial(soft[order.flatten()].double(), 1, generator=generator).reshape(order.shape)


class Augmentation:
    """Random flips, turns, crops and erasing of an epoch: drawn on the CPU for (steps, batch) images, applied on the
    device. part: the images of each batch that it is applied to.
    """

    def __init__(self, e: Experiment, order: Tensor, epoch: int, device: torch.device, part: slice = slice(None)):
        self.terms = check_augment(e.augment)
        generator = torch.Generator().manual_seed(stream(e.seed, "augment", epoch))
        draw = lambda *shape: torch.rand((*order.shape, *shape), generator=generator)[:, part].to(device)  # noqa: E731
        self.flip = draw() < .5 if "flip" in self.terms else None
        self.shift = draw(2).mul_(2).sub_(1) if "crop" in self.terms else None            # (dx, dy) in -1..1
        self.erase = draw(5) if "erasing" in self.terms else None       # applied?, area, aspect, centre x, centre y
        self.turn = draw(2).mul_(2).sub_(1) if "affine" in self.terms else None           # (angle, size) in -1..1

    def renew(self, other: "Augmentation") -> None:
        """Take over another epoch's draws, in place: a captured step reads them where they are."""
        for own, new in ((self.flip, other.flip), (self.shift, other.shift), (self.erase, other.erase),
                         (self.turn, other.turn)):
            if own is not None:
                own.copy_(new)

    def apply(self, x: Tensor, step: int | Tensor) -> Tensor:
        """x (B, C, H, W), normalised; `step` counts from 0 within the epoch, or is that number in a tensor (1,)."""
        if self.flip is not None:
            x = torch.where(at(self.flip, step)[:, None, None, None], x.flip(-1), x)
        if self.turn is not None:
            x = turned(x, at(self.turn, step))
        if self.shift is not None:
            x = shifted(x, (at(self.shift, step) * round(CROP * x.shape[-1])).round().long())
        if self.erase is not None:
            x = erased(x, at(self.erase, step))
        return x


def at(rows: Tensor, step: int | Tensor) -> Tensor:
    """One row. A step in a tensor (1,) is read on the device."""
    return rows[step].reshape(rows.shape[1:])


def turned(x: Tensor, by: Tensor) -> Tensor:
    """Each image turned by up to TURN and enlarged or shrunk by up to SIZE about its centre, bilinear, its edge
    repeated outside. by (B, 2) in -1..1.
    """
    angle, size = by[:, 0] * math.radians(TURN), SIZE ** by[:, 1]
    c, s = (torch.cos(angle) / size)[:, None, None], (torch.sin(angle) / size)[:, None, None]
    h, w = x.shape[-2:]                                 # grid coordinates: -1 to 1 from edge to edge
    v = (2 * torch.arange(h, device=x.device, dtype=x.dtype) + 1 - h)[None, :, None]    # in half pixels
    u = (2 * torch.arange(w, device=x.device, dtype=x.dtype) + 1 - w)[None, None, :]
    grid = torch.stack([(c * u - s * v) / w, (s * u + c * v) / h], -1).to(x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def shifted(x: Tensor, by: Tensor) -> Tensor:
    """Each image moved by (dx, dy) whole pixels, its edge repeated outside: a crop of the padded image. by (B, 2)."""
    b, _, h, w = x.shape
    rows = (torch.arange(h, device=x.device) + by[:, 1:]).clamp_(0, h - 1)
    columns = (torch.arange(w, device=x.device) + by[:, :1]).clamp_(0, w - 1)
    return x[torch.arange(b, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def erased(x: Tensor, draws: Tensor) -> Tensor:
    """A rectangle of each second image set to 0, the mean (Zhong et al. 2020). draws (B, 5), uniform in 0..1."""
    chance, area, aspect, cx, cy = (draws[:, k, None, None] for k in range(5))
    area = ERASE[0] + area * (ERASE[1] - ERASE[0])
    ratio = .3 ** (1 - 2 * aspect)                                      # height / width, .3 to 3.3, log-uniform
    h, w = x.shape[-2:]
    y = ((torch.arange(h, device=x.device) + .5) / h)[None, :, None]
    u = ((torch.arange(w, device=x.device) + .5) / w)[None, None, :]
    hidden = ((y - cy).abs() < (area * ratio).sqrt() / 2) & ((u - cx).abs() < (area / ratio).sqrt() / 2) & (chance < .5)
    return x.masked_fill(hidden[:, None], 0)
