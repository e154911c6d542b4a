"""Writing files whole or not at all; a disk that refuses becomes one sentence (`DataError`)."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

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


def write_file(path: Path, blocks: Iterable[bytes]) -> dict[str, int | str]:
    """Writes blocks under a temporary name, renames, and returns {"bytes", "sha256"}; every file goes through here."""
    digest, size = hashlib.sha256(), 0
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path), open(temporary, "wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
            file.flush()
            os.fsync(file.fileno())
        with writing(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk gets the space back
        raise
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_json(path: Path, value: object) -> None:
    """Writes indented UTF-8 JSON."""
    write_file(path, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])


def write_parquet(path: Path, columns: Mapping[str, pa.Array]) -> dict[str, int | str]:
    """Writes a table and returns {"bytes", "sha256"}."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return write_file(path, [buffer.getvalue()])
