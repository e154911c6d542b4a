"""Writing files whole or not at all, or a part at a time; a disk that refuses becomes one sentence (`DataError`)."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.packed import DataError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into one sentence that names the path and, where the disk is full, the way out."""
    try:
        yield
    except OSError as error:
        full = error.errno in (ENOSPC, EDQUOT)
        way_out = "; free space and run the same command again: finished parts are kept" if full else ""
        raise DataError(f"cannot write {path}: {error.strerror or error}{way_out}") from error


def check_space(folder: Path, needed: int) -> None:
    """DataError if the disk of `folder` has not `needed` bytes free."""
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"packing needs up to {needed / 1e9:,.2f} GB beside {folder}, which has {free / 1e9:,.2f} GB free; free "
            "space, choose an --out on another disk, or a smaller --size"
        )


def write_file(path: Path, blocks: Iterable[bytes], scratch: bool = False) -> dict[str, int | str]:
    """Writes blocks under a temporary name, renames, and returns {"bytes", "sha256"}; every file goes through here.

    A `scratch` file can be made again: it is not hashed (sha256 is ""), and nobody waits until it is on the disk, so
    that a power failure, but no killed process, may leave it damaged.
    """
    digest, size = hashlib.sha256(), 0
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path), open(temporary, "wb") as file:
            for block in blocks:
                file.write(block)
                if not scratch:
                    digest.update(block)
                size += len(block)
            file.flush()
            if not scratch:
                os.fsync(file.fileno())
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk gets the space back
        raise
    return {"bytes": size, "sha256": "" if scratch else digest.hexdigest()}


def make_file(path: Path) -> None:
    """An empty file if there is none, for `write_at`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        open(path, "ab").close()


def write_at(path: Path, offset: int, content: bytes | np.ndarray) -> None:
    """Writes bytes into a file that is there; nobody waits until they are on the disk, see `finish`."""
    with writing(path), open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def finish(path: Path, size: int) -> int:
    """Cuts a file to `size` bytes, waits until it is on the disk, and returns `size`."""
    with writing(path), open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return size


def write_json(path: Path, value: object) -> None:
    """Writes indented UTF-8 JSON."""
    write_file(path, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])


def write_parquet(path: Path, columns: Mapping[str, pa.Array]) -> dict[str, int | str]:
    """Writes a table and returns {"bytes", "sha256"}."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return write_file(path, [buffer.getvalue()])
