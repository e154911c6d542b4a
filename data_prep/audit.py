"""`python -m data_prep audit DIR`: what is wrong with the images and labels of a packed directory?

    audit = audit_packed(Path("packed/fer2013"))
    audit.summary()                # DataFrame: a row a check, with status, count and a sentence
    audit.rows("leaks")            # DataFrame: the images that a check found
    write_audit(audit, out)        # audit.json, audit.html and contact_sheets/

`data_prep.check` asks whether the files are those that were packed; the audit looks at what they show. It computes
everything from the images and samples, so that it also finds what packing missed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep import near
from data_prep.packed import SPLITS, DataError, read_manifest

VERSION = 1
BLANK = 2.0  # grey levels of standard deviation: below it an image shows nothing
ROWS_IN_JSON = 100
UNKNOWN_UNIT = -1  # an action unit that was not coded

_BLOCK_BYTES = 4 << 20  # pixels in memory at once, for each thread
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    status  "ok", "found" (a flaw), "note" (worth knowing, expected), or "skipped" (the data do not say)
    rows    what was found: one row an image (split, row, source, class, ...), or a subject, or a class
    """

    title: str
    status: str
    count: int
    sentence: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Audit:
    """The answers, by name of the check, and the numbers that audit.json holds.

    images  one row an image: split, row (0 = the first of its split), source, class, label, `copies` and `near`
            (numbers shared by equal and by near images over all splits, -1 = none), `constant`, `blank`
    """

    directory: Path
    manifest: Mapping
    images: pd.DataFrame
    checks: Mapping[str, Check]
    numbers: Mapping[str, object]

    @property
    def found(self) -> list[str]:
        """Names of the checks that found a flaw."""
        return [name for name, check in self.checks.items() if check.status == "found"]

    def summary(self) -> pd.DataFrame:
        """A row a check: check, status, count, sentence."""
        columns = [(name, one.status, one.count, one.sentence) for name, one in self.checks.items()]
        return pd.DataFrame(columns, columns=["check", "status", "count", "sentence"])

    def rows(self, name: str) -> pd.DataFrame:
        """What a check found; ValueError for a name that is no check."""
        if name not in self.checks:
            raise ValueError(f"{name!r} is no check (there are: {', '.join(self.checks)})")
        return self.checks[name].rows

    def as_json(self) -> dict:
        """What audit.json holds."""
        return {
            "audit": VERSION,
            "title": self.manifest["title"],
            "content_sha256": self.manifest["content_sha256"],
            "n": {split: int((self.images["split"] == split).sum()) for split in SPLITS},
            **self.numbers,
            "found": self.found,
            "checks": {name: _check_json(check) for name, check in self.checks.items()},
        }


def _check_json(check: Check) -> dict:
    shown = check.rows.head(ROWS_IN_JSON)
    return {
        "title": check.title,
        "status": check.status,
        "count": check.count,
        "sentence": check.sentence,
        "rows": json.loads(shown.to_json(orient="records")),
        "rows_left_out": len(check.rows) - len(shown),
    }


def audit_packed(directory: Path, workers: int = 1) -> Audit:
    """Looks at every image and every row; `workers` threads read and hash images. DataError if it cannot be read."""
    manifest = read_manifest(directory)
    try:
        samples = {split: _samples(directory, manifest, split) for split in SPLITS}
        seen = _scan(directory, manifest, workers)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'manifest.json'} is incomplete or garbled: {error!r}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{directory} cannot be read: {error}; 'python -m data_prep check' says more") from error
    images, complete = _images_table(manifest, samples, seen)
    everything = pd.concat(list(samples.values()), ignore_index=True)
    checks = dict(_checks(manifest, images, everything, complete))
    return Audit(directory, manifest, images, checks, _numbers(manifest, images, checks, complete))


def read_audit(directory: Path) -> dict | None:
    """audit.json of a packed directory, if it is there, whole, of this version and of the directory's content."""
    try:
        found = json.loads((directory / "audit.json").read_text(encoding="utf-8"))
        current = found["audit"] == VERSION and found["content_sha256"] == read_manifest(directory)["content_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if current else None


# --- reading --------------------------------------------------------------------------------------------------------


def _samples(directory: Path, manifest: Mapping, split: str) -> pd.DataFrame:
    samples = pd.read_parquet(directory / split / "samples.parquet").reset_index(drop=True)
    if len(samples) != manifest["splits"][split]["n"]:
        raise ValueError(f"{split} has {len(samples)} rows, its manifest says {manifest['splits'][split]['n']}")
    source = samples["source"] if "source" in samples else [f"{split}:{row}" for row in range(len(samples))]
    return samples.assign(split=split, row=np.arange(len(samples)), source=source)


def _scan(directory: Path, manifest: Mapping, workers: int) -> dict[str, np.ndarray]:
    """Of every image in the order of SPLITS: digest, hash, thumbnail, constant, spread (of grey levels)."""
    blocks = [block for split in SPLITS for block in _blocks(directory, manifest, split)]
    if not blocks:
        raise ValueError("there is not one image")
    with ThreadPoolExecutor(workers) as pool:  # hashing and averaging leave the interpreter's lock
        seen = list(pool.map(lambda block: _look(block()), blocks))
    return {name: np.concatenate([one[name] for one in seen]) for name in seen[0]}


def _shape(manifest: Mapping) -> tuple[int, int, int]:
    return tuple(manifest["image"][name] for name in ("channels", "height", "width"))


def _blocks(directory: Path, manifest: Mapping, split: str) -> Iterator[Callable[[], np.ndarray]]:
    """Calls that read consecutive images, uint8 (n, C, H, W), into memory of their own."""
    path, shape = directory / split / "images.npy", _shape(manifest)
    n, size = manifest["splits"][split]["n"], int(np.prod(shape))
    images = np.load(path, mmap_mode="r" if n else None, allow_pickle=False)
    if images.dtype != np.uint8 or images.shape != (n, *shape) or not images.flags.c_contiguous:
        raise ValueError(f"{path} is {images.dtype} {images.shape}, its manifest says uint8 {(n, *shape)}")
    step = max(_BLOCK_BYTES // size, 1)
    for start in range(0, n, step):
        count, offset = min(step, n - start), images.offset + start * size
        # no memory map: its pages would count as memory of this process
        yield lambda count=count, offset=offset: np.fromfile(path, np.uint8, count * size, offset=offset).reshape(
            count, *shape
        )


def _look(images: np.ndarray) -> dict[str, np.ndarray]:
    grey = near.grey(images)
    flat = images.reshape(*images.shape[:2], -1)
    digests = b"".join(hashlib.sha256(image).digest()[:_DIGEST_BYTES] for image in images)
    return {
        "digest": np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES),
        "hash": near.dhash(grey),
        "thumbnail": near.thumbnail(grey),
        "constant": (flat.max(2) == flat.min(2)).all(1),
        "spread": grey.reshape(len(grey), -1).std(1),
    }


# --- the table of all images ----------------------------------------------------------------------------------------


def _images_table(
    manifest: Mapping, samples: Mapping[str, pd.DataFrame], seen: Mapping[str, np.ndarray]
) -> tuple[pd.DataFrame, bool]:
    """`Audit.images`, and whether no comparison for near images was left out."""
    images = pd.concat([samples[split][["split", "row", "source", "label"]] for split in SPLITS], ignore_index=True)
    names = dict(enumerate(manifest["classes"]))
    images.insert(3, "class", [names.get(label, f"({label})") for label in images["label"]])
    picture, _ = pd.factorize(seen["digest"].view(f"V{_DIGEST_BYTES}").ravel().astype(object))
    first = np.unique(picture, return_index=True)[1]  # of each picture, the first image that shows it
    shows = first[seen["spread"][first] >= BLANK]
    grouped = near.group_near(seen["hash"][shows], seen["thumbnail"][shows])
    near_of = np.full(len(first), -1, np.int64)
    near_of[picture[shows]] = grouped.group
    images["copies"] = _numbered(picture)
    images["near"] = near_of[picture]
    images["constant"] = seen["constant"]
    images["blank"] = (seen["spread"] < BLANK) & ~seen["constant"]
    return images, grouped.complete


def _numbered(picture: np.ndarray) -> np.ndarray:
    """A number for each picture that several images show, in the order of their first; -1 for the others."""
    several = np.bincount(picture, minlength=1)[picture] > 1
    group = np.full(len(picture), -1, np.int64)
    group[several] = pd.factorize(picture[several])[0]
    return group


def _shared(images: pd.DataFrame, group: str, split: str, other: str) -> np.ndarray:
    """Which images of `split` have a fellow of their group in the split `other`, bool over all images."""
    here, there = (images["split"] == name for name in (split, other))
    known = images.loc[there & (images[group] >= 0), group]
    return (here & images[group].isin(known)).to_numpy()


LEAKS = {"val": ("val", "train"), "test": ("test", "train"), "test_in_val": ("test", "val")}


def _conflicting(images: pd.DataFrame, group: str) -> np.ndarray:
    """Numbers of the groups whose images have different labels."""
    labels = images.loc[images[group] >= 0].groupby(group)["label"].nunique()
    return labels.index[labels > 1].to_numpy()


def _count_groups(images: pd.DataFrame, group: str) -> int:
    return int(images.loc[images[group] >= 0, group].nunique())


# --- the checks -----------------------------------------------------------------------------------------------------


def _checks(
    manifest: Mapping, images: pd.DataFrame, samples: pd.DataFrame, complete: bool
) -> Iterator[tuple[str, Check]]:
    yield "leaks", _leaks(images)
    yield "duplicates", _duplicates(images)
    yield "conflicting_labels", _conflicts(images)
    yield "near_leaks", _near_leaks(images)
    yield "near_duplicates", _near_duplicates(images, complete)
    yield "subjects", _subjects(samples)
    yield "constant", _flagged(images, "constant", "Constant images", "of a single colour")
    yield "blank", _flagged(images, "blank", "Blank images", f"whose grey levels vary by less than {BLANK:g}")
    yield "sizes", _sizes(manifest, samples)
    yield "labels", _labels(manifest, images, samples)
    yield "soft_labels", _soft_labels(manifest, images, samples)
    yield "ranges", _ranges(images, samples)
    yield "classes", _empty_classes(manifest, images)
    yield "published", _published(manifest, images)


def _result(title: str, rows: pd.DataFrame, count: int, found: str, fine: str) -> Check:
    """A check whose count is that of flaws."""
    rows = rows.reset_index(drop=True)
    return Check(title, "found" if count else "ok", count, found if count else fine, rows)


def _skipped(title: str, why: str) -> Check:
    return Check(title, "skipped", 0, why, pd.DataFrame())


_SHOWN = ["split", "row", "source", "class"]


def _leaks(images: pd.DataFrame) -> Check:
    masks = {name: _shared(images, "copies", *pair) for name, pair in LEAKS.items()}
    rows = _with_fellow(images, masks, "copies")
    val, test, in_val = (int(mask.sum()) for mask in masks.values())
    found = (
        f"{val:,} val and {test:,} test images equal a training image, {in_val:,} test images equal a val image: "
        "a score on them measures memory. --drop-leaks leaves them out"
    )
    return _result("The same image in two splits", rows, len(rows), found, "no image is in two splits")


def _with_fellow(images: pd.DataFrame, masks: Mapping[str, np.ndarray], group: str) -> pd.DataFrame:
    """Images that are in one of the masks of LEAKS, each beside the first image that it equals."""
    parts = []
    for name, mask in masks.items():
        there = images[images["split"] == LEAKS[name][1]].drop_duplicates(group)
        fellow = there.set_index(group)[_SHOWN].add_prefix("equals_")
        parts.append(images[mask][[*_SHOWN, group]].join(fellow, on=group))
    joined = pd.concat(parts)
    return joined[~joined.index.duplicated()].sort_index(kind="stable")


def _duplicates(images: pd.DataFrame) -> Check:
    rows = images[images["copies"] >= 0].sort_values("copies", kind="stable")[[*_SHOWN, "copies"]]
    groups = _count_groups(images, "copies")
    inside = {split: int((part.groupby("copies").size() - 1).sum()) for split, part in rows.groupby("split")}
    within = ", ".join(f"{inside.get(split, 0):,} in {split}" for split in SPLITS)
    found = (
        f"{groups:,} images are there more than once, {len(rows) - groups:,} surplus copies in all; surplus within a "
        f"split: {within}. --dedup keeps one of them in each split"
    )
    return _result("Equal images", rows, groups, found, "no two images are equal")


def _conflicts(images: pd.DataFrame) -> Check:
    bad = _conflicting(images, "copies")
    rows = images[images["copies"].isin(bad)].sort_values("copies", kind="stable")[[*_SHOWN, "copies"]]
    found = f"{len(bad):,} images are there with different labels ({len(rows):,} rows): at most one of them is right"
    return _result("Equal images, different labels", rows, len(bad), found, "equal images have equal labels")


def _near_leaks(images: pd.DataFrame) -> Check:
    exact = {name: _shared(images, "copies", *pair) for name, pair in LEAKS.items()}
    masks = {name: _shared(images, "near", *pair) & ~exact[name] for name, pair in LEAKS.items()}
    rows = _with_fellow(images, masks, "near")
    val, test, in_val = (int(mask.sum()) for mask in masks.values())
    found = (
        f"{val:,} val and {test:,} test images nearly equal a training image, {in_val:,} test images a val image "
        "(beside the exactly equal ones)"
    )
    return _result("Nearly the same image in two splits", rows, len(rows), found, "none found")


def _near_duplicates(images: pd.DataFrame, complete: bool) -> Check:
    rows = images[images["near"] >= 0].sort_values("near", kind="stable")[[*_SHOWN, "near"]]
    groups, bad = _count_groups(images, "near"), len(_conflicting(images, "near"))
    part = "" if complete else "; so many images are alike that not all were compared, there may be more"
    found = f"{groups:,} groups of nearly equal images ({len(rows):,} images), {bad:,} with different labels{part}"
    return _result("Nearly equal images", rows, groups, found, f"no two images are nearly equal{part}")


def _subjects(samples: pd.DataFrame) -> Check:
    title = "The same person in two splits"
    known = samples[samples["subject"] >= 0] if "subject" in samples else samples.iloc[:0]
    if not len(known):
        return _skipped(title, "the samples do not say who is in an image")
    counts = known.groupby(["subject", "split"]).size().unstack(fill_value=0).reindex(columns=SPLITS, fill_value=0)
    rows = counts[(counts > 0).sum(1) > 1].reset_index().rename_axis(columns=None)
    found = (
        f"{len(rows):,} of {len(counts):,} persons are in several splits: a score on them says little about strangers. "
        "--split-by-subject, where the source has it, keeps them apart"
    )
    return _result(title, rows, len(rows), found, f"none of {len(counts):,} persons is in two splits")


def _flagged(images: pd.DataFrame, column: str, title: str, what: str) -> Check:
    rows = images[images[column]][_SHOWN]
    fine = "every image shows something" if column == "constant" else "none found"
    return _result(title, rows, len(rows), f"{len(rows):,} {'image' if len(rows) == 1 else 'images'} {what}", fine)


def _sizes(manifest: Mapping, samples: pd.DataFrame) -> Check:
    title = "Unusual sizes"
    if not {"width", "height"} <= set(samples):
        return _skipped(title, "the samples do not record how large an image was: none was resized, or packed long ago")
    sides = samples[["width", "height"]]
    packed = max(manifest["image"][name] for name in ("width", "height"))
    odd = (sides.max(1) < packed / 2) | (sides.max(1) > 2 * sides.min(1))
    rows = samples[odd][["split", "row", "source", "width", "height"]]
    found = (
        f"{len(rows):,} images (of those with a box, what was cropped) had less than half the packed size, or were "
        "more than twice as long as wide"
    )
    return _result(title, rows, len(rows), found, "none is tiny or elongated")


def _labels(manifest: Mapping, images: pd.DataFrame, samples: pd.DataFrame) -> Check:
    most = len(manifest["classes"]) - 1
    bad = ~images["label"].between(0, most)
    if "true_label" in samples:
        bad |= ~samples["true_label"].between(0, most)
    rows = images[bad][["split", "row", "source", "label"]]
    found = f"{len(rows):,} labels are outside 0..{most}"
    return _result("Labels out of range", rows, len(rows), found, f"all labels are in 0..{most}")


def _soft_labels(manifest: Mapping, images: pd.DataFrame, samples: pd.DataFrame) -> Check:
    title, classes = "Soft labels", len(manifest["classes"])
    if "soft" not in samples:
        return _skipped(title, "there are none")
    faults = samples["soft"].map(lambda soft: _soft_fault(soft, classes))
    rows = images.loc[faults != "", _SHOWN].assign(fault=faults[faults != ""])
    found = f"{len(rows):,} soft labels are no shares of {classes} classes that sum to 1"
    return _result(title, rows, len(rows), found, f"all are shares of {classes} classes that sum to 1")


def _soft_fault(soft: Sequence[float] | None, classes: int) -> str:
    if soft is None or np.ndim(soft) != 1 or len(soft) != classes:
        return f"not {classes} numbers"
    if not np.isfinite(soft).all() or min(soft) < 0:
        return "a share is negative or no number"
    return "" if abs(float(np.sum(soft, dtype=np.float64)) - 1) <= 1e-5 else f"sum {np.sum(soft):.4g}"


def _ranges(images: pd.DataFrame, samples: pd.DataFrame) -> Check:
    """Valence and arousal in -1..1, action units in 0..5 or UNKNOWN_UNIT; NaN = not annotated."""
    title = "Valence, arousal, action units"
    limits = {name: (-1.0, 1.0) for name in ("valence", "arousal") if name in samples}
    limits |= {f"au{unit}": (0.0, 5.0) for unit in range(1, 65) if f"au{unit}" in samples}
    if not limits:
        return _skipped(title, "there are none")
    parts = []
    for name, (low, high) in limits.items():
        value = samples[name].astype(float)
        bad = value.notna() & ~value.between(low, high) & ~(name.startswith("au") & (value == UNKNOWN_UNIT))
        parts.append(images.loc[bad, ["split", "row", "source"]].assign(column=name, value=value[bad]))
    rows = pd.concat(parts)
    found = f"{len(rows):,} values are outside their range (valence and arousal -1..1, action units 0..5)"
    return _result(title, rows, len(rows), found, "all values are in their range")


def _class_table(manifest: Mapping, images: pd.DataFrame) -> pd.DataFrame:
    """split, class, n, published (None where no number is)."""
    counts = images.groupby(["split", "class"]).size().to_dict()
    published = manifest.get("published") or {}
    rows = []
    for split in SPLITS:
        known = published.get(split, {})
        rows += [(split, name, counts.get((split, name), 0), known.get(name)) for name in manifest["classes"]]
        if "all" in known:
            rows.append((split, "all", int((images["split"] == split).sum()), known["all"]))
    return pd.DataFrame(rows, columns=["split", "class", "n", "published"]).astype({"published": "Int64"})


def _empty_classes(manifest: Mapping, images: pd.DataFrame) -> Check:
    table = _class_table(manifest, images)
    used = table.groupby("split")["n"].transform("sum") > 0
    rows = table[used & (table["n"] == 0)][["split", "class"]]
    found = f"{len(rows):,} classes have no image in a split: {_few(rows['class'] + ' in ' + rows['split'])}"
    return _result("Classes without images", rows, len(rows), found, "every class has images in every split")


def _published(manifest: Mapping, images: pd.DataFrame) -> Check:
    title, table = "Published counts", _class_table(manifest, images)
    known = table[table["published"].notna()]
    if not len(known):
        return _skipped(title, "no published counts are known for this set")
    rows = known[known["n"] != known["published"]].reset_index(drop=True)
    if not len(rows):
        return Check(title, "ok", 0, f"all {len(known)} counts are as published", rows)
    text = f"{len(rows)} of {len(known)} counts differ from the published ones"
    chosen = [name for name in _CHOICES if manifest.get("options", {}).get(name)]
    if chosen:
        return Check(title, "note", len(rows), f"{text}, as they must with {', '.join(chosen)}", rows)
    return Check(title, "found", len(rows), text, rows)


_CHOICES = ("drop_leaks", "dedup", "max_per_class", "split_by_subject")  # options that leave out or move images


def _few(words: Sequence[str], most: int = 5) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


# --- audit.json -----------------------------------------------------------------------------------------------------


def _numbers(manifest: Mapping, images: pd.DataFrame, checks: Mapping[str, Check], complete: bool) -> dict:
    exact = {name: _shared(images, "copies", *pair) for name, pair in LEAKS.items()}
    near_too = {name: _shared(images, "near", *pair) & ~exact[name] for name, pair in LEAKS.items()}
    groups = _count_groups(images, "copies")
    subjects = checks["subjects"]
    return {
        "leaks": {name: int(mask.sum()) for name, mask in exact.items()},
        "duplicate_groups": groups,
        "surplus": int((images["copies"] >= 0).sum()) - groups,
        "conflicting_groups": len(_conflicting(images, "copies")),
        "near": {
            "leaks": {name: int(mask.sum()) for name, mask in near_too.items()},
            "groups": _count_groups(images, "near"),
            "images": int((images["near"] >= 0).sum()),
            "conflicting_groups": len(_conflicting(images, "near")),
            "hamming": near.HAMMING,
            "correlation": near.CORRELATION,
            "complete": complete,
        },
        "constant": int(images["constant"].sum()),
        "blank": int(images["blank"].sum()),
        "subjects_in_several_splits": None if subjects.status == "skipped" else subjects.count,
        "class_counts": _class_counts(_class_table(manifest, images), "n"),
        "published": _class_counts(_class_table(manifest, images).dropna(), "published"),
        "options": dict(manifest.get("options", {})),
        "before_packing": {"dropped": manifest.get("dropped", {}), "duplicates": manifest.get("duplicates", {})},
    }


def _class_counts(table: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    table = table[table["class"] != "all"]
    return {
        split: dict(zip(part["class"], part[column].astype(int).tolist(), strict=True))
        for split, part in table.groupby("split", sort=False)
    }
