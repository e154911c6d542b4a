"""The packed format 1: what a source hands over (`Plan`) and the parallel, resumable writer.

    <out>/manifest.json, dropped.parquet, {train,val,test}/images.npy, {train,val,test}/samples.parquet

A source describes its images as one samples table a split and a `decode` that turns rows into pixels. `write` maps
chunks of rows over processes; each finished chunk is a shard in `<out>.partial/`, so that a stopped run picks up where
it stopped. Then the shards are joined by streaming and the directory is renamed into place, whole or not at all.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from errno import EDQUOT, ENOSPC
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # not on Windows: there two writers of one --out are not told apart
    fcntl = None

FORMAT = 1
SPLITS = ("train", "val", "test")
CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")
LEAK = "equals a training image (--drop-leaks)"
REPEAT = "equals an earlier image of its split (--dedup)"

_SHARD_BYTES = 4 << 20  # of pixels in a shard, so that memory does not depend on the number of images
_DIGEST_BYTES = 16
_COLUMN_TYPES = {
    **dict.fromkeys(["label", "true_label", "subject", "duplicate_group"], pa.int64()),
    **dict.fromkeys(["valence", "arousal", *(f"au{number}" for number in range(1, 65))], pa.float32()),
    "soft": pa.list_(pa.float32()),
    "source": pa.string(),
}


class DataError(ValueError):
    """What is wrong with the user's data, options or disk, in one sentence."""


@dataclass(frozen=True)
class Rejected:
    """Why `decode` gives no image for a row.

    `reason` is the category that is counted (without ": "), `detail` the offending value. `bad` says that the input
    is broken, which --strict does not accept; False means left out by a rule of the data set.
    """

    reason: str
    detail: str = ""
    bad: bool = True

    def __post_init__(self) -> None:
        if ": " in self.reason:
            raise ValueError(f"reason {self.reason!r} must not contain ': ', which starts the detail")

    @property
    def text(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Dropped:
    """An input that was left out: `split` is "" where unknown, `row` is a line of `file` (1 = the header) or -1."""

    split: str
    file: str
    row: int
    why: Rejected

    @property
    def place(self) -> str:
        return f"{self.file}:{self.row}" if self.row >= 0 else self.file


Decode = Callable[[pd.DataFrame, str], Sequence[np.ndarray | Rejected]]


@dataclass(frozen=True)
class Plan:
    """Everything `write` needs from a source.

    samples   one table a split with a RangeIndex, `label`, `source` and any other column of the format. Columns whose
              names start with "_" reach `decode` and are not written; `_row` (line number) goes to dropped.parquet.
    decode    picklable, called as decode(rows, split) with consecutive rows; gives for each row a uint8 array of
              `shape` (C, H, W) or a `Rejected`. It must not depend on how the rows are cut into chunks.
    dropped   inputs that were left out before decoding.
    files     sha256 of every input by name (no path), so that other inputs are another plan.
    published counts to compare with: split -> class -> n, or split -> {"all": n}.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    samples: Mapping[str, pd.DataFrame]
    decode: Decode
    licence: str
    release: str
    files: Mapping[str, str]
    options: Mapping[str, object] = field(default_factory=dict)
    dropped: Sequence[Dropped] = ()
    drop_leaks: bool = False
    dedup: bool = False
    drawn: bool = False
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, object]:
        return {**self.options, "drop_leaks": self.drop_leaks, "dedup": self.dedup}

    @property
    def sha256(self) -> str:
        """Hash of whatever shapes the result: inputs, options, classes, labels and their order; not of any path."""
        digest = hashlib.sha256()
        facts = [FORMAT, self.name, self.classes, self.shape, dict(self.files), self.all_options, self.release]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for split in SPLITS:
            samples = self.samples[split]
            digest.update(f"{split} {len(samples)}\n".encode())
            digest.update("\n".join(samples["source"]).encode())
            digest.update(_little(samples["label"], "<i8"))
            digest.update(_soft_bytes(samples))
        digest.update(json.dumps([asdict(drop) for drop in self.dropped]).encode())
        return digest.hexdigest()


# --- hashes and exact sums ------------------------------------------------------------------------------------------


class ContentHash:
    """sha256 that identifies the data whatever the encoding of its files.

    For each split: name (UTF-8), shape (N, C, H, W) as four little-endian int64, image bytes, labels (int64), soft
    labels (float32) if any; at the end the class names joined by newlines.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def start(self, split: str, shape: Sequence[int]) -> None:
        self._digest.update(split.encode() + np.asarray(shape, "<i8").tobytes())

    def images(self, block: bytes) -> None:
        self._digest.update(block)

    def samples(self, samples: pd.DataFrame) -> None:
        self._digest.update(_little(samples["label"], "<i8"))
        self._digest.update(_soft_bytes(samples))

    def finish(self, classes: Iterable[str]) -> str:
        self._digest.update("\n".join(classes).encode())
        return self._digest.hexdigest()


class Moments:
    """Mean and standard deviation per channel from a histogram of grey levels, hence exact for any number of images."""

    def __init__(self, channels: int) -> None:
        self._histogram = np.zeros((channels, 256), np.int64)

    def add(self, images: np.ndarray) -> None:
        """Adds uint8 images (N, C, H, W)."""
        for channel, histogram in enumerate(self._histogram):
            histogram += np.bincount(images[:, channel].ravel(), minlength=256)

    def normalization(self) -> dict[str, list[float]]:
        """{"mean", "std"} of pixel / 255, one number a channel."""
        mean, std = [], []
        for histogram in self._histogram.tolist():
            n = sum(histogram)
            total = sum(level * count for level, count in enumerate(histogram))
            squares = sum(level * level * count for level, count in enumerate(histogram))
            mean.append(total / (255 * n))
            std.append(sqrt((n * squares - total * total) / (n * n)) / 255)
        return {"mean": mean, "std": std}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _little(values: pd.Series, dtype: str) -> bytes:
    return values.to_numpy().astype(dtype).tobytes()


def _soft_bytes(samples: pd.DataFrame) -> bytes:
    if "soft" not in samples or samples.empty:
        return b""
    return np.stack(samples["soft"].to_list()).astype("<f4").tobytes()


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def _writing(path: Path) -> Iterator[None]:
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
        with _writing(path), open(temporary, "wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
            file.flush()
            os.fsync(file.fileno())
        with _writing(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk gets the space back
        raise
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write_json(path: Path, value: object) -> None:
    write_file(path, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])


def _write_parquet(path: Path, columns: Mapping[str, pa.Array]) -> dict[str, int | str]:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return write_file(path, [buffer.getvalue()])


def _sample_columns(samples: pd.DataFrame) -> dict[str, pa.Array]:
    written = [name for name in samples.columns if not name.startswith("_")]
    return {name: pa.array(samples[name].to_numpy(), type=_COLUMN_TYPES.get(name)) for name in written}


def read_manifest(directory: Path) -> dict:
    """manifest.json of a packed directory; DataError if it is missing, unreadable or of another format version."""
    path = directory / "manifest.json"
    if not directory.is_dir():
        unfinished = partial_directory(directory)
        hint = "; packing it was not finished: run its command again" if unfinished.is_dir() else ""
        raise DataError(f"no packed directory at {directory}{hint}")
    if not path.is_file():
        raise DataError(f"{directory} holds no manifest.json, so it is no packed directory")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; pack the data again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(f"{directory} is of packed format {found!r}, this version reads {FORMAT}; pack the data again")
    return manifest


def partial_directory(out: Path) -> Path:
    """Where the parts of an unfinished run lie: beside `out`, so that the last step is a rename."""
    whole = Path(os.path.abspath(out))
    return whole.with_name(whole.name + ".partial")


# --- shards: one finished chunk of rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunk:
    """Rows [start, stop) of a split and the shard that holds them once they are done."""

    split: str
    rows: pd.DataFrame
    path: Path


@dataclass(frozen=True)
class _Shard:
    """What a shard holds besides pixels: positions in the chunk, digests (n, 16), and the rejected rows' reasons."""

    kept: np.ndarray
    digests: np.ndarray
    rejected: list[tuple[int, Rejected]]


def _chunks(plan: Plan, directory: Path) -> list[_Chunk]:
    size = min(max(_SHARD_BYTES // int(np.prod(plan.shape)), 16), 1024)
    chunks = []
    for split in SPLITS:
        samples = plan.samples[split]
        for start in range(0, len(samples), size):
            stop = min(start + size, len(samples))
            chunks.append(_Chunk(split, samples.iloc[start:stop], directory / f"{split}-{start:09d}-{stop:09d}.npz"))
    return chunks


def _finish_chunk(chunk: _Chunk, decode: Decode, shape: tuple[int, int, int]) -> _Shard:
    """Loads the chunk's shard if it is there and whole, else decodes the rows and writes it. Runs in the workers."""
    shard = _load_shard(chunk.path)
    if shard is not None:
        return shard
    results = decode(chunk.rows, chunk.split)
    if len(results) != len(chunk.rows):
        raise AssertionError(f"decode gave {len(results)} results for {len(chunk.rows)} rows")
    rejected = [(i, result) for i, result in enumerate(results) if isinstance(result, Rejected)]
    kept = np.array([i for i, result in enumerate(results) if not isinstance(result, Rejected)], np.int64)
    images = np.zeros((len(kept), *shape), np.uint8)
    for image, i in zip(images, kept, strict=True):
        if results[i].dtype != np.uint8 or results[i].shape != shape:
            raise AssertionError(f"decode gave {results[i].dtype} {results[i].shape}, not uint8 {shape}")
        image[...] = results[i]
    digests = _digests(images)
    _write_shard(chunk.path, images, _Shard(kept, digests, rejected))
    return _Shard(kept, digests, rejected)


def _digests(images: np.ndarray) -> np.ndarray:
    """One 16-byte digest an image, uint8 (N, 16)."""
    joined = b"".join(hashlib.blake2b(image, digest_size=_DIGEST_BYTES).digest() for image in images)
    return np.frombuffer(joined, np.uint8).reshape(-1, _DIGEST_BYTES)


def _write_shard(path: Path, images: np.ndarray, shard: _Shard) -> None:
    reasons = json.dumps([(i, asdict(why)) for i, why in shard.rejected]).encode()
    buffer = io.BytesIO()
    np.savez(buffer, images=images, kept=shard.kept, digests=shard.digests, rejected=np.frombuffer(reasons, np.uint8))
    write_file(path, [buffer.getbuffer()])


def _load_shard(path: Path) -> _Shard | None:
    """The shard at `path`; None if there is none or it is damaged (the zip's checksums cover every byte)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept, digests, _ = arrays["kept"], arrays["digests"], arrays["images"]
            reasons = json.loads(arrays["rejected"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return _Shard(kept, digests, [(i, Rejected(**why)) for i, why in reasons])


def _shard_images(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"]


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


def _finish_all(plan: Plan, chunks: list[_Chunk], workers: int) -> Iterator[_Shard]:
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


# --- the writer -----------------------------------------------------------------------------------------------------


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
    must be importable (spawn), as everywhere in multiprocessing. DataError for bad input under `strict`, for no usable
    image, for an `out` that is something else, and for a disk that refuses.
    """
    out = Path(out)
    if _same_plan_is_there(plan, out, strict, overwrite):
        say(f"{out} already holds this data with these options: left as it is")
        return read_manifest(out)
    parts = partial_directory(out)
    with _writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(parts)
    with _locked(parts):
        _prepare(plan, parts, say)
        _refuse_bad(plan.dropped, strict)
        chunks = _chunks(plan, parts)
        _say_resumed(chunks, say)
        shards = []
        bar = tqdm(total=sum(map(len, plan.samples.values())), desc=plan.name, unit="img", disable=not progress)
        with bar, closing(_finish_all(plan, chunks, workers)) as finished:
            for chunk, shard in zip(chunks, finished, strict=True):
                _refuse_bad(_dropped_of(chunk, shard), strict)
                shards.append(shard)
                bar.update(len(chunk.rows))
        manifest = _assemble(plan, chunks, shards, parts / "done")
        with _writing(out):
            _move_into_place(parts, out)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def _same_plan_is_there(plan: Plan, out: Path, strict: bool, overwrite: bool) -> bool:
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"{out} is a file, but --out names a directory")
    if not any(out.iterdir()):
        return False
    if not (out / "manifest.json").is_file():
        raise DataError(f"{out} is not empty and no packed directory; choose another --out")
    if overwrite:
        return False
    manifest = read_manifest(out)
    if manifest.get("plan_sha256") != plan.sha256:
        raise DataError(
            f"{out} holds {manifest.get('title', 'other data')} made from other input or with other options; "
            "choose another --out, or replace it with --overwrite"
        )
    if strict and manifest.get("bad_inputs"):
        raise DataError(f"{out} was packed without {manifest['bad_inputs']} bad input(s), see its dropped.parquet")
    for split, facts in manifest["splits"].items():
        for name, file in facts["files"].items():
            path = out / split / name
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise DataError(f"{path} is missing or truncated; pack it again with --overwrite")
    return True


@contextmanager
def _locked(parts: Path) -> Iterator[None]:
    """Keeps a second writer out; the lock goes with the process, so a killed run leaves none."""
    with open(parts / "lock", "w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another process is packing into {parts}") from error
        yield


def _refuse_foreign(parts: Path) -> None:
    names = {path.name for path in parts.iterdir()} - {"lock", "plan.json.tmp"}
    if names and "plan.json" not in names:
        raise DataError(f"{parts} is not empty and was not made by data_prep; move it away or choose another --out")


def _prepare(plan: Plan, parts: Path, say: Callable[[str], None]) -> None:
    """Leaves in `parts` only what belongs to this plan."""
    note = parts / "plan.json"
    try:
        same = json.loads(note.read_text())["plan_sha256"] == plan.sha256
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        if note.exists():
            say(f"{parts} holds parts of other input or other options: starting anew")
        with _writing(parts):
            for path in parts.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        _write_json(note, {"plan_sha256": plan.sha256})
    shutil.rmtree(parts / "done", ignore_errors=True)


def _say_resumed(chunks: list[_Chunk], say: Callable[[str], None]) -> None:
    there = sum(chunk.path.exists() for chunk in chunks)
    if there:
        say(f"resuming: {there} of {len(chunks)} parts are there")


def _refuse_bad(dropped: Iterable[Dropped], strict: bool) -> None:
    for drop in dropped:
        if strict and drop.why.bad:
            raise DataError(f"{drop.place}: {drop.why.text} (without --strict it would be left out and recorded)")


def _dropped_of(chunk: _Chunk, shard: _Shard) -> list[Dropped]:
    return [_dropped_row(chunk.split, chunk.rows.iloc[i], why) for i, why in shard.rejected]


def _dropped_row(split: str, sample: pd.Series, why: Rejected) -> Dropped:
    row = int(sample.get("_row", -1))
    return Dropped(split, sample["source"].removesuffix(f":{row}"), row, why)


def _move_into_place(parts: Path, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        os.replace(out, parts / "replaced")
    elif out.exists():
        out.rmdir()
    os.replace(parts / "done", out)


# --- joining the shards ---------------------------------------------------------------------------------------------


def _assemble(plan: Plan, chunks: list[_Chunk], shards: list[_Shard], folder: Path) -> dict:
    """Writes the finished directory into `folder`, one shard in memory at a time, and returns its manifest."""
    decoded = {split: _decoded(plan, split, chunks, shards) for split in SPLITS}
    dropped = [*plan.dropped, *(drop for pair in zip(chunks, shards, strict=True) for drop in _dropped_of(*pair))]
    removed = {split: _duplicates_to_drop(plan, split, decoded) for split in SPLITS}
    found = _duplicate_facts(decoded)
    for split, why in removed.items():
        rows = decoded[split]
        dropped += [_dropped_row(split, rows.iloc[i], Rejected(why[i], bad=False)) for i in np.flatnonzero(why != "")]
    keep = {split: removed[split] == "" for split in SPLITS}
    samples = _grouped({split: decoded[split][keep[split]] for split in SPLITS})
    _refuse_empty(plan, samples, dropped)
    content, moments, splits = ContentHash(), Moments(plan.shape[0]), {}
    for split in SPLITS:
        paths = [chunk.path for chunk in chunks if chunk.split == split]
        splits[split] = _write_split(plan, split, paths, keep[split], samples[split], folder / split, content, moments)
    _write_dropped(folder / "dropped.parquet", dropped)
    manifest = _manifest(plan, splits, dropped, found, moments, content)
    _write_json(folder / "manifest.json", manifest)
    return manifest


def _write_split(
    plan: Plan,
    split: str,
    paths: list[Path],
    keep: np.ndarray,
    samples: pd.DataFrame,
    folder: Path,
    content: ContentHash,
    moments: Moments,
) -> dict:
    """Writes a split's two files and returns its part of the manifest."""
    with _writing(folder):
        folder.mkdir(parents=True)
    blocks = _image_blocks(paths, keep, (len(samples), *plan.shape), content, split, moments)
    image_file = write_file(folder / "images.npy", blocks)
    content.samples(samples)
    sample_file = _write_parquet(folder / "samples.parquet", _sample_columns(samples))
    counts = np.bincount(samples["label"].to_numpy(np.int64), minlength=len(plan.classes)).tolist()
    return {
        "n": len(samples),
        "class_counts": dict(zip(plan.classes, counts, strict=True)),
        "files": {"images.npy": image_file, "samples.parquet": sample_file},
    }


def _decoded(plan: Plan, split: str, chunks: list[_Chunk], shards: list[_Shard]) -> pd.DataFrame:
    """The rows of a split that have an image, in order, with its digest in the column `_digest`."""
    own = [(chunk, shard) for chunk, shard in zip(chunks, shards, strict=True) if chunk.split == split]
    if not own:
        return plan.samples[split].assign(_digest=np.array([], f"V{_DIGEST_BYTES}").astype(object))
    rows = pd.concat([chunk.rows.iloc[shard.kept] for chunk, shard in own], ignore_index=True)
    digests = np.concatenate([shard.digests for _, shard in own])
    return rows.assign(_digest=[digest.tobytes() for digest in digests])


def _duplicates_to_drop(plan: Plan, split: str, decoded: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Why each row of a split goes, object (n,); "" = it stays."""
    digest = decoded[split]["_digest"]
    why = np.full(len(digest), "", object)
    if plan.dedup:
        why[digest.duplicated().to_numpy()] = REPEAT
    if plan.drop_leaks and split != "train":
        why[digest.isin(decoded["train"]["_digest"]).to_numpy()] = LEAK
    return why


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


def _image_blocks(
    paths: list[Path], keep: np.ndarray, shape: tuple[int, ...], content: ContentHash, split: str, moments: Moments
) -> Iterator[bytes]:
    """The bytes of images.npy, shard by shard, feeding the content hash and (train only) the moments on the way."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    content.start(split, shape)
    yield header.getvalue()
    start = 0
    for path in paths:
        images = _shard_images(path)
        images = images[keep[start : (start := start + len(images))]]
        if split == "train":
            moments.add(images)
        block = images.tobytes()
        content.images(block)
        yield block


def _count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    return dict(Counter(drop.why.reason for drop in dropped).most_common())


def _write_dropped(path: Path, dropped: Sequence[Dropped]) -> None:
    columns = {
        "split": pa.array([drop.split for drop in dropped], pa.string()),
        "file": pa.array([drop.file for drop in dropped], pa.string()),
        "row": pa.array([drop.row for drop in dropped], pa.int64()),
        "reason": pa.array([drop.why.text for drop in dropped], pa.string()),
    }
    _write_parquet(path, columns)


def _manifest(
    plan: Plan, splits: dict, dropped: list[Dropped], duplicates: dict, moments: Moments, content: ContentHash
) -> dict:
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
        "normalization": moments.normalization(),
        "options": plan.all_options,
        "source": {"release": plan.release, "files": dict(plan.files)},
        "licence": plan.licence,
        "inputs": kept + len(dropped),
        "kept": kept,
        "dropped": _count_reasons(dropped),
        "bad_inputs": sum(drop.why.bad for drop in dropped),
        "duplicates": duplicates,
        "plan_sha256": plan.sha256,
        "content_sha256": content.finish(plan.classes),
    }
