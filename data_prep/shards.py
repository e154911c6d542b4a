"""Shards: the rows of a plan in chunks, each decoded once, in parallel, straight into its place of the split's file.

    <out>.partial/done/train/images.npy              the pixels, a chunk's kept images from its first row's place on
    <out>.partial/train-000000000-000000151.npz      all else that is known of a chunk, written when its pixels are

A finished shard is never decoded again: that is what lets a stopped run pick up where it stopped.
"""

import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import disk
from data_prep.packed import SPLITS, DataError, Decode, Dropped, Plan, Rejected, Resized, image_digests, image_sums

SHARD_BYTES = 4 << 20  # of pixels in a shard, so that memory does not depend on the number of images


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a split, from row `start` on, and the path of what is noted once they are decoded."""

    split: str
    start: int
    rows: pd.DataFrame
    path: Path

    @property
    def pixels(self) -> Path:
        """The file that their pixels go to."""
        return pixel_file(self.path.parent, self.split)


@dataclass(frozen=True)
class Shard:
    """What is known of a decoded chunk besides pixels; positions count from the start of the chunk.

    kept      int64 (n,), the rows that have an image
    digests   uint8 (n, 32), sha256 of each image
    sums      int64 (n, 2, C), `image_sums` of training images, 0 for others
    sizes     int32 (n, 2), width and height of what was resized to the image, 0 if nothing was
    rejected  (position, reason) of every other row
    """

    kept: np.ndarray
    digests: np.ndarray
    sums: np.ndarray
    sizes: np.ndarray
    rejected: list[tuple[int, Rejected]]


def pixel_file(directory: Path, split: str) -> Path:
    """Where a split's pixels are while shards are made in `directory`: at their final place in the finished set."""
    return directory / "done" / split / "images.npy"


def npy_header(n: int, shape: tuple[int, int, int]) -> bytes:
    """The start of an .npy file of uint8 (n, *shape), C-order; equally long for any n."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)})
    return header.getvalue()


def cut_into_chunks(plan: Plan, directory: Path) -> list[Chunk]:
    """The plan's rows, split after split; the shards' paths lie in `directory`."""
    size = min(max(SHARD_BYTES // int(np.prod(plan.shape)), 16), 1024)
    chunks = []
    for split in SPLITS:
        samples = plan.samples[split]
        for start in range(0, len(samples), size):
            stop = min(start + size, len(samples))
            path = directory / f"{split}-{start:09d}-{stop:09d}.npz"
            chunks.append(Chunk(split, start, samples.iloc[start:stop], path))
    return chunks


def _finish_chunk(chunk: Chunk, decode: Decode, shape: tuple[int, int, int]) -> Shard:
    """What is known of the chunk if it is there and its pixels too, else decodes the rows. Runs in the workers."""
    shard = _load_shard(chunk, shape)
    if shard is not None:
        return shard
    results = decode(chunk.rows, chunk.split)
    assert len(results) == len(chunk.rows), f"decode gave {len(results)} results for {len(chunk.rows)} rows"
    rejected = [(i, result) for i, result in enumerate(results) if isinstance(result, Rejected)]
    kept = np.array([i for i, result in enumerate(results) if not isinstance(result, Rejected)], np.int64)
    images, sizes = np.zeros((len(kept), *shape), np.uint8), np.zeros((len(kept), 2), np.int32)
    for place, i in enumerate(kept):
        pixels = results[i]
        if isinstance(pixels, Resized):
            sizes[place] = pixels.width, pixels.height
            pixels = pixels.pixels
        assert (pixels.dtype, pixels.shape) == (np.uint8, shape), f"decode gave {pixels.dtype} {pixels.shape}"
        images[place] = pixels
    sums = image_sums(images) if chunk.split == "train" else np.zeros((len(kept), 2, shape[0]), np.int64)
    shard = Shard(kept, image_digests(images), sums, sizes, rejected)
    disk.write_at(chunk.pixels, _offset(chunk, shape), images)
    _write_shard(chunk.path, shard)
    return shard


def _offset(chunk: Chunk, shape: tuple[int, int, int]) -> int:
    return len(npy_header(0, shape)) + chunk.start * int(np.prod(shape))


def _write_shard(path: Path, shard: Shard) -> None:
    reasons = json.dumps([(i, asdict(why)) for i, why in shard.rejected]).encode()
    arrays = {name: getattr(shard, name) for name in ("kept", "digests", "sums", "sizes")}
    buffer = io.BytesIO()
    np.savez(buffer, rejected=np.frombuffer(reasons, np.uint8), **arrays)
    disk.write_file(path, [buffer.getbuffer()], scratch=True)


def _load_shard(chunk: Chunk, shape: tuple[int, int, int]) -> Shard | None:
    """What an earlier run noted of the chunk; None if there is nothing, or if a byte of it or of the pixels is not what
    it was: the zip's checksums cover the one, the digests the other."""
    if not chunk.path.exists():
        return None
    try:
        with np.load(chunk.path, allow_pickle=False) as arrays:
            found = [arrays[name] for name in ("kept", "digests", "sums", "sizes")]
            reasons = json.loads(arrays["rejected"].tobytes())
        count = len(found[0]) * int(np.prod(shape))
        images = np.fromfile(chunk.pixels, np.uint8, count, offset=_offset(chunk, shape)).reshape(-1, *shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not np.array_equal(image_digests(images), found[1]):
        return None
    return Shard(*found, [(i, Rejected(**why)) for i, why in reasons])


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
    if workers == 1 or len(chunks) <= 1:
        yield from map(task, chunks)
        return
    pool = ProcessPoolExecutor(min(workers, len(chunks)), _start_method(plan.modules), _start_worker)
    try:
        yield from pool.map(task, chunks)
    except BrokenProcessPool as error:
        way_out = "run the same command again, with fewer --workers if memory was short: finished parts are kept"
        raise DataError(f"a worker process was killed; {way_out}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_method(modules: Sequence[str]) -> multiprocessing.context.BaseContext:
    """Where that is safe the workers are copies of one process that has imported the modules: with torch, that saves
    each of them five seconds and most of 300 MB."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *modules])
    return context
