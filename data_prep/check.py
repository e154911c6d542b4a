"""`python -m data_prep check DIR`: does a packed directory hold what its manifest says?"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep.audit import read_audit
from data_prep.packed import SPLITS, Contents, DataError, file_sha256, image_digests, read_manifest

_BLOCK_BYTES = 4 << 20  # pixels read at once


def check(directory: Path) -> list[str]:
    """One sentence a problem, none if all is well: version, files, hashes, shapes, labels, counts, content hash."""
    try:
        manifest = read_manifest(directory)
        problems = list(_damaged_files(directory, manifest)) or list(_contradictions(directory, manifest))
        return problems + list(_audit_problems(directory))
    except DataError as error:
        return [str(error)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"{directory / 'manifest.json'} is incomplete or garbled ({type(error).__name__}: {error})"]
    except (OSError, ValueError, pa.ArrowException) as error:
        return [f"{directory} cannot be read: {error}"]


def _damaged_files(directory: Path, manifest: dict) -> Iterator[str]:
    """Files that are missing, truncated or changed since they were packed."""
    if not (directory / "dropped.parquet").is_file():
        yield f"{directory / 'dropped.parquet'} is missing"
    for split in SPLITS:
        for name in ("images.npy", "samples.parquet"):
            path, facts = directory / split / name, manifest["splits"][split]["files"][name]
            if not path.is_file():
                yield f"{path} is missing"
            elif path.stat().st_size != facts["bytes"]:
                yield f"{path} has {path.stat().st_size:,} bytes instead of {facts['bytes']:,}: truncated or replaced"
            elif _was_changed(path, facts, manifest):
                yield f"{path} was changed after packing: its sha256 is not the manifest's"


def _was_changed(path: Path, facts: dict, manifest: dict) -> bool:
    """By the file's sha256, or where images are hashed one by one, by that of their digests and by the header."""
    if "images_sha256" not in facts:
        return file_sha256(path) != facts["sha256"]
    images, digest = np.load(path, mmap_mode="r", allow_pickle=False), hashlib.sha256()
    for block in _blocks(images):
        digest.update(image_digests(block))
    return digest.hexdigest() != facts["images_sha256"]


def _audit_problems(directory: Path) -> Iterator[str]:
    """An audit is optional, but must not be one of other data."""
    if (directory / "audit.json").exists() and read_audit(directory) is None:
        yield f"{directory / 'audit.json'} is damaged or of other data; run 'python -m data_prep audit {directory}'"


def _contradictions(directory: Path, manifest: dict) -> Iterator[str]:
    """Where whole files and the manifest say different things."""
    contents = Contents(manifest["image"]["channels"], manifest.get("hash_of", "pixels"))
    for split in SPLITS:
        images = np.load(directory / split / "images.npy", mmap_mode="r", allow_pickle=False)
        samples = pd.read_parquet(directory / split / "samples.parquet")
        wrong_images = list(_image_problems(directory / split / "images.npy", images, manifest, split))
        yield from wrong_images
        yield from _sample_problems(directory / split / "samples.parquet", samples, manifest, split)
        if wrong_images:
            return
        contents.start(split, images.shape)
        for block in _blocks(images):
            contents.add_images(block)
        contents.add_samples(samples)
    if contents.sha256(manifest["classes"]) != manifest["content_sha256"]:
        yield f"{directory}: the content hash is not the manifest's"
    if contents.normalization() != manifest["normalization"]:
        yield f"{directory}: the normalization is not that of the training images"
    yield from _count_problems(directory, manifest)


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    step = max(_BLOCK_BYTES // int(np.prod(images.shape[1:])), 1)
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _image_problems(path: Path, images: np.ndarray, manifest: dict, split: str) -> Iterator[str]:
    image = manifest["image"]
    expected = (manifest["splits"][split]["n"], image["channels"], image["height"], image["width"])
    if images.dtype != np.uint8 or images.shape != expected or not images.flags.c_contiguous:
        yield f"{path} is {images.dtype} {images.shape}, the manifest says uint8 {expected}"


def _sample_problems(path: Path, samples: pd.DataFrame, manifest: dict, split: str) -> Iterator[str]:
    facts, classes = manifest["splits"][split], manifest["classes"]
    if len(samples) != facts["n"]:
        yield f"{path} has {len(samples):,} rows, the manifest says {facts['n']:,}"
    label = samples["label"].to_numpy()
    outside = label[(label < 0) | (label >= len(classes))]
    if len(outside):
        yield f"{path}: label {outside[0]} is outside 0..{len(classes) - 1}"
        return
    counts = dict(zip(classes, np.bincount(label, minlength=len(classes)).tolist(), strict=True))
    if counts != facts["class_counts"]:
        yield f"{path}: the counts of classes are {counts}, the manifest says {facts['class_counts']}"
    if "soft" in samples and len(samples):
        yield from _soft_problems(path, samples["soft"], len(classes))


def _soft_problems(path: Path, soft: pd.Series, classes: int) -> Iterator[str]:
    if set(soft.map(len)) != {classes}:
        yield f"{path}: soft labels have {sorted(set(soft.map(len)))} numbers instead of {classes}"
    elif not np.allclose(np.stack(soft.to_list()).sum(1), 1, atol=1e-5):
        yield f"{path}: soft labels do not sum to 1"


def _count_problems(directory: Path, manifest: dict) -> Iterator[str]:
    dropped = pd.read_parquet(directory / "dropped.parquet")
    found = dict(Counter(reason.partition(": ")[0] for reason in dropped["reason"]))
    kept = sum(manifest["splits"][split]["n"] for split in SPLITS)
    if found != manifest["dropped"]:
        yield f"{directory / 'dropped.parquet'} lists {found}, the manifest says {manifest['dropped']}"
    if kept != manifest["kept"] or manifest["inputs"] != kept + sum(manifest["dropped"].values()):
        yield f"{directory}: inputs, kept and dropped do not add up"
