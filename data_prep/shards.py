"""Shards: the rows of a plan in chunks, each decoded once, in parallel, into a file of its own.

A finished shard is never decoded again: that is what lets a stopped run pick up where it stopped.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import disk
from data_prep.packed import SPLITS, DataError, Decode, Dropped, Plan, Rejected

SHARD_BYTES = 4 << 20  # of pixels in a shard, so that memory does not depend on the number of images
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a split and the path of the shard that holds them once they are decoded."""

    split: str
    rows: pd.DataFrame
    path: Path


@dataclass(frozen=True)
class Shard:
    """What a shard holds besides pixels; positions count from the start of its chunk.

    kept      int64 (n,), the rows that have an image
    digests   uint8 (n, 16), of each image
    rejected  (position, reason) of every other row
    """

    kept: np.ndarray
    digests: np.ndarray
    rejected: list[tuple[int, Rejected]]


def cut_into_chunks(plan: Plan, directory: Path) -> list[Chunk]:
    """The plan's rows, split after split; the shards' paths lie in `directory`."""
    size = min(max(SHARD_BYTES // int(np.prod(plan.shape)), 16), 1024)
    chunks = []
    for split in SPLITS:
        samples = plan.samples[split]
        for start in range(0, len(samples), size):
            stop = min(start + size, len(samples))
            chunks.append(Chunk(split, samples.iloc[start:stop], directory / f"{split}-{start:09d}-{stop:09d}.npz"))
    return chunks


def _finish_chunk(chunk: Chunk, decode: Decode, shape: tuple[int, int, int]) -> Shard:
    """Loads the chunk's shard if it is there and whole, else decodes the rows and writes it. Runs in the workers."""
    shard = _load_shard(chunk.path)
    if shard is not None:
        return shard
    results = decode(chunk.rows, chunk.split)
    assert len(results) == len(chunk.rows), f"decode gave {len(results)} results for {len(chunk.rows)} rows"
    rejected = [(i, result) for i, result in enumerate(results) if isinstance(result, Rejected)]
    kept = np.array([i for i, result in enumerate(results) if not isinstance(result, Rejected)], np.int64)
    images = np.zeros((len(kept), *shape), np.uint8)
    for image, i in zip(images, kept, strict=True):
        found = results[i].dtype, results[i].shape
        assert found == (np.uint8, shape), f"decode gave {found}, not uint8 {shape}"
        image[...] = results[i]
    shard = Shard(kept, _digests(images), rejected)
    _write_shard(chunk.path, images, shard)
    return shard


def _digests(images: np.ndarray) -> np.ndarray:
    """One 16-byte digest an image, uint8 (N, 16). Processors have instructions for sha256, none for blake2b."""
    joined = b"".join(hashlib.sha256(image).digest()[:DIGEST_BYTES] for image in images)
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)


def _write_shard(path: Path, images: np.ndarray, shard: Shard) -> None:
    reasons = json.dumps([(i, asdict(why)) for i, why in shard.rejected]).encode()
    buffer = io.BytesIO()
    np.savez(buffer, images=images, kept=shard.kept, digests=shard.digests, rejected=np.frombuffer(reasons, np.uint8))
    disk.write_file(path, [buffer.getbuffer()], scratch=True)


def _load_shard(path: Path) -> Shard | None:
    """The shard at `path`; None if there is none or it is damaged (the zip's checksums cover every byte)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept, digests, _ = arrays["kept"], arrays["digests"], arrays["images"]
            reasons = json.loads(arrays["rejected"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Shard(kept, digests, [(i, Rejected(**why)) for i, why in reasons])


def shard_images(path: Path) -> np.ndarray:
    """The pixels of a finished shard, uint8 (n, C, H, W)."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"]


def dropped_of(chunk: Chunk, shard: Shard) -> list[Dropped]:
    """The rows that `decode` rejected."""
    return [dropped_row(chunk.split, chunk.rows.iloc[i], why) for i, why in shard.rejected]


def dropped_row(split: str, sample: Mapping, why: Rejected) -> Dropped:
    """The record of a samples row that is left out; its `source` reads "file" or "file:row"."""
    row = int(sample.get("_row", -1))
    return Dropped(split, sample["source"].removesuffix(f":{row}"), row, why)


# --- the pool -------------------------------------------------------------------------------------------------------


def _start_worker() -> None:
    """Ctrl-C is the parent's to answer, and a worker must not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def finish_all(plan: Plan, chunks: list[Chunk], workers: int) -> Iterator[Shard]:
    """Yields every chunk's shard in order; one worker means this process."""
    task = partial(_finish_chunk, decode=plan.decode, shape=plan.shape)
    if workers == 1 or len(chunks) == 1:
        yield from map(task, chunks)
        return
    pool = ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(task, chunks)
    except BrokenProcessPool as error:
        way_out = "run the same command again, with fewer --workers if memory was short: finished parts are kept"
        raise DataError(f"a worker process was killed; {way_out}") from error
    finally:
        pool.shutdown(cancel_futures=True)
