"""`write`: packs a plan into a directory, in parallel, resumably, whole or not at all.

Finished shards and the plan's hash lie in `<out>.partial/`, so that the same command picks up where a stopped run
stopped. Pixels are written to their final place in `<out>.partial/done`, which is renamed to `<out>` when it is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import disk
from data_prep.join import join_shards
from data_prep.packed import (
    AUDIT_FILES,
    SHEET_NAME,
    SHEETS,
    SPLITS,
    DataError,
    Dropped,
    Plan,
    partial_directory,
    read_manifest,
)
from data_prep.shards import Chunk, cut_into_chunks, dropped_of, finish_all, pixel_file

ROW_BYTES = 200  # on the disk for an image, beside its pixels

try:
    import fcntl
except ImportError:  # not on Windows: there two writers of one --out are not told apart
    fcntl = None


def write(
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    strict: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
    progress: bool = False,
) -> dict:
    """Packs `plan` into the directory `out` and returns the manifest.

    A finished `out` of the same plan is left as it is; `overwrite` replaces a packed directory. `say` gets what a user
    should know (resumed, started anew, left as it is); `progress` shows a bar on stderr. With `workers` > 1 the caller
    must be importable, as everywhere in multiprocessing. DataError for bad input under `strict`, for no usable
    image, for an `out` that is something else, and for a disk that refuses.
    """
    out = Path(out)
    parts = partial_directory(out)
    finished = _finished(plan, out, strict, overwrite)
    if finished is not None:
        say(f"{out} already holds this data with these options: left as it is{_doubt(plan, out)}")
        _remove_left(plan, parts)
        return finished
    with disk.writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(parts)
    with _locked(parts):
        _prepare(plan, parts, say)
        _refuse_bad(plan.dropped, strict)
        chunks = cut_into_chunks(plan, parts)
        _say_resumed(chunks, say)
        disk.check_space(parts, _bytes_needed(plan, chunks))
        for split in SPLITS:
            disk.make_file(pixel_file(parts, split))
        shards = []
        bar = tqdm(total=sum(map(len, plan.samples.values())), desc=plan.name, unit="img", disable=not progress)
        with bar, closing(finish_all(plan, chunks, workers)) as results:
            for chunk, shard in zip(chunks, results, strict=True):
                _refuse_bad(dropped_of(chunk, shard), strict)
                shards.append(shard)
                bar.update(len(chunk.rows))
        manifest = join_shards(plan, chunks, shards, parts)
        with disk.writing(out):
            _move_into_place(parts, out)
    _remove(parts)
    return manifest


def _remove_left(plan: Plan, parts: Path) -> None:
    """What a process left that was killed after its set was in place, unless another one works there now."""
    if not parts.is_dir() or not (_is_of(plan, parts) or {path.name for path in parts.iterdir()} <= {"lock"}):
        return
    with suppress(DataError), _locked(parts):
        _remove(parts)


def _remove(parts: Path) -> None:
    """plan.json last: a removal that is killed leaves a directory that is known to be ours."""
    with suppress(OSError):                             # the set is in place: what can't be removed is no failure
        for path in parts.iterdir():
            if path.name not in ("plan.json", "lock"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    shutil.rmtree(parts, ignore_errors=True)


def _doubt(plan: Plan, out: Path) -> str:
    """Image files are told apart by name and size, so one that was edited afterwards deserves a word."""
    changed = plan.newest > (out / "manifest.json").stat().st_mtime
    return " (some input is newer than it: if its content was changed, pack with --overwrite)" if changed else ""


def _finished(plan: Plan, out: Path, strict: bool, overwrite: bool) -> dict | None:
    """The manifest if `out` holds the plan's data, None if it is free to be written; DataError for anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"{out} is a file, but --out names a directory")
    if not any(out.iterdir()):
        return None
    if not (out / "manifest.json").is_file():
        raise DataError(f"{out} is not empty and no packed directory; choose another --out")
    if overwrite:
        _refuse_others_files(out)
        return None
    manifest = read_manifest(out)
    if manifest.get("plan_sha256") != plan.sha256:
        raise DataError(
            f"{out} holds {manifest.get('title', 'other data')}, made from other input, with other options or by "
            "another version of data_prep; replace it with --overwrite, or choose another --out"
        )
    if strict and manifest.get("bad_inputs"):
        raise DataError(f"{out} was packed without {manifest['bad_inputs']} bad input(s), see its dropped.parquet")
    for split, facts in manifest["splits"].items():
        for name, file in facts["files"].items():
            path = out / split / name
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise DataError(f"{path} is missing or truncated; pack it again with --overwrite")
    return manifest


def _refuse_others_files(out: Path) -> None:
    """--overwrite removes a whole directory, so there must be nothing in it that data_prep did not put there."""
    ours = {"manifest.json", "dropped.parquet", *SPLITS, *AUDIT_FILES}
    ours |= {f"{name}.tmp" for name in AUDIT_FILES}  # of an audit that was killed
    others = [path for path in out.iterdir() if path.name not in ours]
    if (out / SHEETS).is_dir():
        others += [path for path in (out / SHEETS).iterdir() if not SHEET_NAME.fullmatch(path.name)]
    if others:
        raise DataError(f"--overwrite would remove {min(others)} too; move it away or choose another --out")


@contextmanager
def _locked(parts: Path) -> Iterator[None]:
    """Keeps a second writer out; the lock goes with the process, so a killed run leaves none."""
    with disk.writing(parts):
        lock = open(parts / "lock", "w")
    with lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another process is packing into {parts}") from error
        yield


def _refuse_foreign(parts: Path) -> None:
    """`_prepare` empties `parts`, so it must be new or be marked as ours by its plan.json."""
    names = {path.name for path in parts.iterdir()} - {"lock", "plan.json.tmp"}
    if names and "plan.json" not in names:
        raise DataError(f"{parts} is not empty and was not made by data_prep; move it away or choose another --out")


def _prepare(plan: Plan, parts: Path, say: Callable[[str], None]) -> None:
    """Leaves in `parts` only what belongs to this plan."""
    note = parts / "plan.json"
    if not _is_of(plan, parts):
        if note.exists():
            say(f"{parts} holds parts of other input or other options: starting anew")
        with disk.writing(parts):
            for path in parts.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        disk.write_json(note, _note(plan))
    for path in (parts / "done").rglob("*"):
        if path.is_file() and path.name != "images.npy":
            path.unlink()


def _is_of(plan: Plan, parts: Path) -> bool:
    try:
        return json.loads((parts / "plan.json").read_text()) == _note(plan)
    except (OSError, ValueError):
        return False


def _note(plan: Plan) -> dict[str, str]:
    """What must be the same for the parts of a stopped run to be used."""
    return {"plan_sha256": plan.sha256, "stamp": plan.stamp}


def _bytes_needed(plan: Plan, chunks: list[Chunk]) -> int:
    """At most: the pixels that are not there yet, and each image's rows in the notes of its part and in the samples."""
    missing = sum(len(chunk.rows) for chunk in chunks if not chunk.path.exists())
    return int(np.prod(plan.shape)) * missing + ROW_BYTES * sum(len(chunk.rows) for chunk in chunks)


def _say_resumed(chunks: list[Chunk], say: Callable[[str], None]) -> None:
    there = sum(chunk.path.exists() for chunk in chunks)
    if there:
        say(f"resuming: {there} of {len(chunks)} parts are there")


def _refuse_bad(dropped: Iterable[Dropped], strict: bool) -> None:
    for drop in dropped:
        if strict and drop.why.bad:
            raise DataError(f"{drop.place}: {drop.why.text} (without --strict it would be left out and recorded)")


def _move_into_place(parts: Path, out: Path) -> None:
    """Renames the finished directory to `out`; what was there is moved aside first and back if that fails."""
    replaced = parts / "replaced"
    shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed between the two renames
    if out.exists():
        os.replace(out, replaced)
    try:
        os.replace(parts / "done", out)
    except BaseException:
        if replaced.exists():
            os.replace(replaced, out)
        raise
