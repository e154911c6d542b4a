"""Joining the shards to a packed directory: equal images are found, marked or dropped; files and manifest written."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep import disk
from data_prep.packed import FORMAT, SPLITS, Contents, DataError, Dropped, Plan, Rejected
from data_prep.shards import Chunk, Shard, dropped_of, dropped_row, shard_images

LEAK = "equals a training image (--drop-leaks)"
LEAK_OF_VAL = "equals a validation image (--drop-leaks)"
REPEAT = "equals an earlier image of its split (--dedup)"

_COLUMN_TYPES = {
    **dict.fromkeys(["label", "true_label", "subject", "duplicate_group"], pa.int64()),
    **dict.fromkeys(["valence", "arousal", *(f"au{number}" for number in range(1, 65))], pa.float32()),
    "soft": pa.list_(pa.float32()),
    **dict.fromkeys(["source", "image"], pa.string()),
}


def join_shards(plan: Plan, chunks: list[Chunk], shards: list[Shard], folder: Path) -> dict:
    """Writes the finished directory into `folder`, one shard in memory at a time, and returns its manifest."""
    decoded = {split: _decoded(plan, split, chunks, shards) for split in SPLITS}
    why = {split: _why_removed(plan, split, decoded) for split in SPLITS}
    dropped = list(plan.dropped)
    for chunk, shard in zip(chunks, shards, strict=True):
        dropped += dropped_of(chunk, shard)
    for split in SPLITS:
        dropped += _removed(split, decoded[split], why[split])
    samples = _grouped({split: decoded[split][why[split] == ""] for split in SPLITS})
    _refuse_empty(plan, samples, dropped)
    contents, splits = Contents(plan.shape[0]), {}
    for split in SPLITS:
        paths = [chunk.path for chunk in chunks if chunk.split == split]
        contents.start(split, (len(samples[split]), *plan.shape))
        blocks = _image_blocks(paths, why[split] == "", contents)
        splits[split] = _write_split(plan, folder / split, blocks, samples[split])
        contents.add_samples(samples[split])
    _write_dropped(folder / "dropped.parquet", dropped)
    manifest = _manifest(plan, splits, dropped, _duplicate_facts(decoded), contents)
    disk.write_json(folder / "manifest.json", manifest)
    return manifest


def _decoded(plan: Plan, split: str, chunks: list[Chunk], shards: list[Shard]) -> pd.DataFrame:
    """The rows of a split that have an image, in order, with its digest in the column `_digest`."""
    own = [(chunk, shard) for chunk, shard in zip(chunks, shards, strict=True) if chunk.split == split]
    kept = [row for chunk, shard in own for row in chunk.rows.index[shard.kept]]
    digests = [digest.tobytes() for _, shard in own for digest in shard.digests]
    return plan.samples[split].iloc[kept].reset_index(drop=True).assign(_digest=np.array(digests, object))


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


def _image_blocks(paths: list[Path], stays: np.ndarray, contents: Contents) -> Iterator[np.ndarray]:
    """A split's images that stay, shard by shard, fed to `contents` on the way; `stays` is bool (n decoded,).

    Reading the next shard and hashing the contents go on in threads while the caller hashes and writes the file: the
    three take about as long as each other, and while shards are joined nothing else uses the cores.
    """
    start = 0
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as hasher:
        coming = [reader.submit(shard_images, path) for path in paths[:1]]
        hashed = hasher.submit(int)
        for following in (*paths[1:], None):
            if not coming:
                return
            images = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(shard_images, following))
            stop = start + len(images)
            stay = stays[start:stop]
            images = images if stay.all() else images[stay]
            start = stop
            hashed.result()
            hashed = hasher.submit(contents.add_images, images)
            yield images
        hashed.result()


def _write_split(plan: Plan, folder: Path, blocks: Iterable[np.ndarray], samples: pd.DataFrame) -> dict:
    """Writes a split's two files and returns its part of the manifest."""
    with disk.writing(folder):
        folder.mkdir(parents=True)
    counts = np.bincount(samples["label"].to_numpy(np.int64), minlength=len(plan.classes)).tolist()
    return {
        "n": len(samples),
        "class_counts": dict(zip(plan.classes, counts, strict=True)),
        "files": {
            "images.npy": disk.write_file(folder / "images.npy", _npy((len(samples), *plan.shape), blocks)),
            "samples.parquet": disk.write_parquet(folder / "samples.parquet", _sample_columns(samples)),
        },
    }


def _npy(shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> Iterator[bytes]:
    """The bytes of an .npy file of uint8, C-order."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for block in blocks:
        yield np.ascontiguousarray(block).data.cast("B") if block.size else b""


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
    }


def _count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    return dict(Counter(drop.why.reason for drop in dropped).most_common())
