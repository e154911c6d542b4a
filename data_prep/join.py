"""Joining the shards to a packed directory: equal images are found, marked or dropped; files and manifest written.

The pixels are at their place already. Only where an image was left out do those behind it move up, in the file itself.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep import disk
from data_prep.packed import FORMAT, SPLITS, Contents, DataError, Dropped, Plan, Rejected
from data_prep.shards import Chunk, Shard, dropped_of, dropped_row, npy_header, pixel_file

LEAK = "equals a training image (--drop-leaks)"
LEAK_OF_VAL = "equals a validation image (--drop-leaks)"
REPEAT = "equals an earlier image of its split (--dedup)"

_COLUMN_TYPES = {
    **dict.fromkeys(["label", "true_label", "subject", "duplicate_group"], pa.int64()),
    **dict.fromkeys(["valence", "arousal", *(f"au{number}" for number in range(1, 65))], pa.float32()),
    "soft": pa.list_(pa.float32()),
    **dict.fromkeys(["width", "height"], pa.int32()),
    **dict.fromkeys(["source", "image"], pa.string()),
}
_BLOCK_BYTES = 4 << 20  # of pixels moved or hashed at once


def join_shards(plan: Plan, chunks: list[Chunk], shards: list[Shard], parts: Path) -> dict:
    """Finishes the directory `done` in `parts`, where the pixels are, and returns its manifest."""
    decoded = {split: _decoded(plan, split, chunks, shards) for split in SPLITS}
    why = {split: _why_removed(plan, split, decoded) for split in SPLITS}
    dropped = list(plan.dropped)
    for chunk, shard in zip(chunks, shards, strict=True):
        dropped += dropped_of(chunk, shard)
    for split in SPLITS:
        dropped += _removed(split, decoded[split], why[split])
    samples = _grouped({split: decoded[split][why[split] == ""] for split in SPLITS})
    _refuse_empty(plan, samples, dropped)
    contents, splits = Contents(plan.shape[0], plan.hash_of), {}
    for split in SPLITS:
        own = [(chunk, shard) for chunk, shard in zip(chunks, shards, strict=True) if chunk.split == split]
        contents.start(split, (len(samples[split]), *plan.shape))
        images = _finish_images(plan, pixel_file(parts, split), own, why[split] == "", contents)
        splits[split] = _write_split(plan, parts / "done" / split, images, samples[split])
        contents.add_samples(samples[split])
    _write_dropped(parts / "done" / "dropped.parquet", dropped)
    manifest = _manifest(plan, splits, dropped, _duplicate_facts(decoded), contents)
    disk.write_json(parts / "done" / "manifest.json", manifest)
    return manifest


def _decoded(plan: Plan, split: str, chunks: list[Chunk], shards: list[Shard]) -> pd.DataFrame:
    """The rows of a split that have an image, in order, with its digest in the column `_digest`, and with width and
    height if the plan's images were resized."""
    own = [(chunk, shard) for chunk, shard in zip(chunks, shards, strict=True) if chunk.split == split]
    kept = [row for chunk, shard in own for row in chunk.rows.index[shard.kept]]
    digests = [digest.tobytes() for _, shard in own for digest in shard.digests]
    rows = plan.samples[split].iloc[kept].reset_index(drop=True).assign(_digest=np.array(digests, object))
    if any(shard.sizes.any() for shard in shards):
        sizes = np.concatenate([np.empty((0, 2), np.int32), *(shard.sizes for _, shard in own)])
        rows = rows.assign(width=sizes[:, 0], height=sizes[:, 1])
    return rows


# --- equal images ---------------------------------------------------------------------------------------------------


def _why_removed(plan: Plan, split: str, decoded: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Why the options take an image out of a split, object (n,); "" = it stays."""
    digest = decoded[split]["_digest"]
    why = np.full(len(digest), "", object)
    if plan.dedup:
        why[digest.duplicated().to_numpy()] = REPEAT
    if plan.drop_leaks and split == "test":
        why[digest.isin(decoded["val"]["_digest"]).to_numpy()] = LEAK_OF_VAL
    if plan.drop_leaks and split != "train":
        why[digest.isin(decoded["train"]["_digest"]).to_numpy()] = LEAK
    return why


def _removed(split: str, rows: pd.DataFrame, why: np.ndarray) -> list[Dropped]:
    return [dropped_row(split, rows.iloc[i], Rejected(why[i], bad=False)) for i in np.flatnonzero(why != "")]


def _duplicate_facts(decoded: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Counts of byte-identical images among the decoded inputs, before any option dropped some."""
    everything = pd.concat([decoded[split][["_digest", "label"]] for split in SPLITS], ignore_index=True)
    group = everything.groupby("_digest", sort=False)["label"]
    train, val, test = (decoded[split]["_digest"] for split in SPLITS)
    return {
        "groups": int((group.size() > 1).sum()),
        "surplus": int(everything["_digest"].duplicated().sum()),
        "groups_with_other_labels": int((group.nunique() > 1).sum()),
        "val_in_train": int(val.isin(train).sum()),
        "test_in_train": int(test.isin(train).sum()),
        "test_in_val": int(test.isin(val).sum()),
    }


def _grouped(samples: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Adds `duplicate_group`: -1 for a unique image, else a number shared by equal images over all splits."""
    joined = pd.concat([samples[split]["_digest"] for split in SPLITS], ignore_index=True)
    repeated = joined.duplicated(keep=False).to_numpy()
    group = np.full(len(joined), -1, np.int64)
    group[repeated] = pd.factorize(joined[repeated])[0]
    ends = np.cumsum([len(samples[split]) for split in SPLITS])[:-1]
    parts = zip(SPLITS, np.split(group, ends), strict=True)
    return {split: samples[split].assign(duplicate_group=part) for split, part in parts}


def _refuse_empty(plan: Plan, samples: Mapping[str, pd.DataFrame], dropped: list[Dropped]) -> None:
    if len(samples["train"]):
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in _count_reasons(dropped).items())
    what = "training image" if any(map(len, samples.values())) else "image"
    raise DataError(f"{plan.title}: not one usable {what} in the source" + (f" ({reasons})" if reasons else ""))


# --- files and manifest ---------------------------------------------------------------------------------------------


def _finish_images(
    plan: Plan, path: Path, own: list[tuple[Chunk, Shard]], stays: np.ndarray, contents: Contents
) -> dict[str, int | str]:
    """Makes a split's images.npy whole, feeds `contents`, and returns the file's part of the manifest; `stays` is bool
    (n decoded,)."""
    size, header = int(np.prod(plan.shape)), npy_header(int(stays.sum()), plan.shape)
    places = [chunk.start + np.arange(len(shard.kept)) for chunk, shard in own]
    places = np.concatenate([np.empty(0, np.int64), *places])[stays]
    disk.make_file(path)
    with disk.writing(path):
        _move_up(path, len(header), size, places)
    disk.write_at(path, 0, header)
    facts: dict[str, int | str] = {"bytes": disk.finish(path, len(header) + len(places) * size)}
    if own and own[0][0].split == "train":
        sums = np.concatenate([shard.sums for _, shard in own])[stays]
        contents.add_sums(sums, size // plan.shape[0])
    if contents.by_image:
        digests = np.concatenate([np.empty((0, 32), np.uint8), *(shard.digests for _, shard in own)])[stays].tobytes()
        contents.add_hashed(digests)
        return facts | {"images_sha256": hashlib.sha256(digests).hexdigest()}
    digest = hashlib.sha256(header)
    for images in _blocks(path, len(header), size):
        digest.update(images)
        contents.add_hashed(images)
    return facts | {"sha256": digest.hexdigest()}


def _move_up(path: Path, start: int, size: int, places: np.ndarray) -> None:
    """Moves the images of `size` bytes at these places, ascending, to 0, 1, 2, ..., in blocks.

    A run that is killed meanwhile decodes again what is not at its place any more.
    """
    target = int(np.argmax(places != np.arange(len(places)))) if len(places) else 0
    if not len(places) or places[target] == target:
        return
    step = max(_BLOCK_BYTES // size, 1)
    ends = np.append(np.flatnonzero(np.diff(places) != 1) + 1, len(places))  # of runs of neighbours
    with open(path, "r+b") as file:
        while target < len(places):
            count = min(int(ends[np.searchsorted(ends, target, side="right")]) - target, step)
            file.seek(start + int(places[target]) * size)
            images = file.read(count * size)
            file.seek(start + target * size)
            file.write(images)
            target += count


def _blocks(path: Path, start: int, size: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        while images := file.read(max(_BLOCK_BYTES // size, 1) * size):
            yield images


def _write_split(plan: Plan, folder: Path, images: dict[str, int | str], samples: pd.DataFrame) -> dict:
    """Writes a split's samples and returns its part of the manifest; `images` is that of images.npy."""
    counts = np.bincount(samples["label"].to_numpy(np.int64), minlength=len(plan.classes)).tolist()
    return {
        "n": len(samples),
        "class_counts": dict(zip(plan.classes, counts, strict=True)),
        "files": {
            "images.npy": images,
            "samples.parquet": disk.write_parquet(folder / "samples.parquet", _sample_columns(samples)),
        },
    }


def _sample_columns(samples: pd.DataFrame) -> dict[str, pa.Array]:
    written = [name for name in samples.columns if not name.startswith("_")]
    return {name: pa.array(samples[name].to_numpy(), type=_COLUMN_TYPES.get(name)) for name in written}


def _write_dropped(path: Path, dropped: Sequence[Dropped]) -> None:
    columns = {
        "split": pa.array([drop.split for drop in dropped], pa.string()),
        "file": pa.array([drop.file for drop in dropped], pa.string()),
        "row": pa.array([drop.row for drop in dropped], pa.int64()),
        "reason": pa.array([drop.why.text for drop in dropped], pa.string()),
    }
    disk.write_parquet(path, columns)


def _manifest(plan: Plan, splits: dict, dropped: list[Dropped], duplicates: dict, contents: Contents) -> dict:
    channels, height, width = plan.shape
    kept = sum(facts["n"] for facts in splits.values())
    return {
        "format": FORMAT,
        "name": plan.name,
        "title": plan.title,
        "drawn": plan.drawn,
        "classes": list(plan.classes),
        "image": {"channels": channels, "height": height, "width": width},
        "splits": splits,
        "normalization": contents.normalization(),
        "label_mapping": dict(plan.label_mapping),
        "published": {split: dict(counts) for split, counts in plan.published.items()},
        "notes": list(plan.notes),
        "options": plan.all_options,
        "source": {"release": plan.release, "files": dict(plan.files)},
        "licence": plan.licence,
        "inputs": kept + len(dropped),
        "kept": kept,
        "dropped": _count_reasons(dropped),
        "bad_inputs": sum(drop.why.bad for drop in dropped),
        "duplicates": duplicates,
        "plan_sha256": plan.sha256,
        "content_sha256": contents.sha256(plan.classes),
        **({"hash_of": plan.hash_of} if contents.by_image else {}),
    }


def _count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    return dict(Counter(drop.why.reason for drop in dropped).most_common())
