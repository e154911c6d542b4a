"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

TRAIN_AGAIN = "delete its folder to train the run again"
MEASURE_AGAIN = "delete that file to measure the run again"
RECORD_FORMAT = 1       # of a run's directory; raised when what an earlier version wrote can't be read any more


class RecordError(RuntimeError):
    """A record that can't be written or read; its one sentence names the file and the way out."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)`, flush and rename to `path`. Readers see the old file or the new one.

    Raises RecordError with one sentence where the disk is full or can't be written; the old file stays.
    """
    write_together({path: write})


def write_together(writes: Mapping[Path, Callable[[Path], None]]) -> None:
    """`write_atomically` of several files: none is renamed before all are on the disk; then each, in their order."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writes}
    try:
        for path, write in writes.items():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary[path])
                with open(temporary[path], "rb") as f:
                    os.fsync(f.fileno())
        for path in writes:
            with writing(path):
                os.replace(temporary[path], path)
    finally:
        for left in temporary.values():
            with suppress(OSError):                     # a name that is too long, a disk that went away
                left.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong within, on the disk, is raised as a RecordError of one sentence that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = "the disk is full" if _is_full(error) else getattr(error, "strerror", None) or str(error)
        raise RecordError(f"can't write '{path.parent.name}/{path.name}': {reason}; what was recorded before is kept: "
                          "make room or set FER_RUNS to another folder, then start the same command again") from error


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def write_json(path: Path, value: object) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda p: table.to_parquet(p, index=False, compression="zstd"))


@contextmanager
def reading(path: Path, way_out: str = TRAIN_AGAIN) -> Iterator[None]:
    """What goes wrong within, because the file is missing or damaged, is raised as a RecordError of one sentence that
    names it and the way out. Errors that are a sentence pass.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:     # Arrow's are of these
        if hasattr(error, "_render_traceback_"):
            raise
        refused = getattr(error, "strerror", None)
        how = ("is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({refused})" if refused else
               "is damaged")
        shown = "/".join(path.parts[-3 if path.parent.name == "log" else -2:])      # from the run's folder on
        raise RecordError(f"'{shown}' {how}: {way_out}") from error


def read_json(path: Path, way_out: str = TRAIN_AGAIN) -> dict:
    """A JSON object. Raises RecordError."""
    with reading(path, way_out):
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise TypeError(f"an object, not {type(found).__name__}")
    return found


def read_table(path: Path, way_out: str = TRAIN_AGAIN, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Raises RecordError."""
    with reading(path, way_out):
        return pd.read_parquet(path, columns=columns)


def results_below(folder: Path) -> list[Path]:
    """Each run's result.json, sorted. A run's own folders come and go while it trains: they are not looked into, and
    what has just gone is left out, where Path.rglob raises FileNotFoundError.
    """
    found = []
    for place, below, names in os.walk(folder):
        if "result.json" in names:
            found.append(Path(place) / "result.json")
            below.clear()
    return sorted(found)
