"""FER+ (Barsoum et al. 2016, arXiv:1608.01041): ten votes for each row of fer2013.csv, joined by row order.

Rules as in the official src/ferplus.py: single votes are outliers and count nothing; rows without an image name, rows
whose votes are too divided and rows led by "unknown" or "NF" (not a face) are left out. What remains depends on --mode:

    majority      one class with more than half of the votes
    probability   shares of the leading classes; the trainer draws one label a presentation (`label_mode`)
    crossentropy  the same shares as soft targets
    multi_target  equal shares of every class with at least 30 % of the votes; the official target of a class is
                  (1 - 0.001) * (soft > 0) + 0.001

`label` is the class with most votes, the official order deciding ties. Contempt is the eighth class.
"""

import csv
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import fer2013
from data_prep.detect import Layout
from data_prep.fer2013 import CsvIndex, CsvRow
from data_prep.labels import EIGHT_CLASSES
from data_prep.packed import DataError, Dropped, Plan, Rejected, file_sha256

MODES = ("majority", "probability", "crossentropy", "multi_target")
VOTED = ("neutral", "happy", "surprise", "sad", "anger", "disgust", "fear", "contempt")  # the votes' order
VOTE_COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "nf",
)
LICENCE = f"The FER+ votes are under the MIT licence. {fer2013.LICENCE}"
ACCESS = "fer2013new.csv from github.com/microsoft/FERPlus, beside fer2013.csv (see fer2013)."
VOTES_NAME = "fer2013new.csv"
PUBLISHED_MAJORITY = {
    "train": dict(zip(VOTED, (8740, 7287, 3149, 3014, 2100, 119, 532, 119), strict=True)),
    "val": {"all": 3199},
    "test": {"all": 3153},
}
UNNAMED = Rejected("without a FER+ image name", bad=False)
DIVIDED = Rejected("FER+ votes too divided", bad=False)
NO_FACE = Rejected("FER+ votes led by unknown or not a face", bad=False)

_TO_CANONICAL = [VOTED.index(name) for name in EIGHT_CLASSES]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of FER+."""
    fer2013.add_arguments(parser)
    parser.add_argument("--votes", type=Path, required=True, help="fer2013new.csv, the votes")
    parser.add_argument("--mode", choices=MODES, default="majority", help="how votes become labels (majority)")


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if the votes do not belong to the csv row by row."""
    source = fer2013.find_source(options.source)
    if source.is_dir():
        raise DataError(f"--source {source} is a folder copy, but FER+ is joined by row order, which only the csv has")
    index = fer2013.index_csv(source)
    votes = read_votes(options.votes)
    _check_same_rows(index, votes, source, options.votes)
    samples, dropped = _label_rows(index, votes, options.mode, source.name, options.votes.name)
    return Plan(
        name="ferplus",
        title=f"FER+ (8 classes, {options.mode})",
        classes=EIGHT_CLASSES,
        shape=(1, fer2013.SIDE, fer2013.SIDE),
        samples=samples,
        decode=partial(fer2013.decode_rows, path=source),
        licence=LICENCE,
        release="FER+ votes joined to the ICML 2013 challenge csv by row order",
        files={source.name: index.sha256, options.votes.name: file_sha256(options.votes)},
        options={"label_mode": options.mode},
        dropped=dropped,
        drop_leaks=options.drop_leaks,
        dedup=options.dedup,
        published=PUBLISHED_MAJORITY if options.mode == "majority" else {},
        label_mapping=dict(zip(VOTE_COLUMNS, VOTED, strict=False)),
    )


def detect(path: Path) -> Layout | None:
    """The votes beside a csv of FER2013."""
    folder = path if path.is_dir() else path.parent
    if not (folder / VOTES_NAME).is_file() or fer2013.find_source(folder).is_dir():
        return None
    arguments = ("--source", str(folder), "--votes", str(folder / VOTES_NAME))
    return Layout(f"{VOTES_NAME} beside the images' csv", arguments)


# --- the rules ------------------------------------------------------------------------------------------------------


def shares(votes: np.ndarray, mode: str) -> np.ndarray | Rejected:
    """Votes (10,) in the official order -> shares (8,) that sum to 1, or why the row is left out."""
    votes = np.where(votes > 1, votes, 0)
    total = votes.sum()
    if mode == "majority":
        taken = np.where(np.arange(len(votes)) == votes.argmax(), votes, 0)
    elif mode == "multi_target":
        taken = np.where(votes >= 0.3 * total, votes, 0)
    else:
        taken = _leaders(votes)
    if taken.sum() <= 0.5 * total:
        return DIVIDED
    if taken.argmax() >= len(VOTED):
        return NO_FACE
    faces = taken[: len(VOTED)]
    return faces / faces.sum()


def _leaders(votes: np.ndarray) -> np.ndarray:
    """Votes of the leading classes until they cover 75 % or are three; unknown and NF end the list."""
    taken = np.zeros_like(votes)
    for rank, k in enumerate(np.argsort(-votes, kind="stable")[:3]):
        if taken.sum() >= 0.75 * votes.sum() or (k >= len(VOTED) and rank > 0):
            break
        taken[k] = votes[k]
        if k >= len(VOTED):
            break
    return taken


def _soft(share: np.ndarray, mode: str) -> np.ndarray:
    """Soft label, float32 (8,) in the canonical order."""
    if mode == "multi_target":
        share = (share > 0) / np.count_nonzero(share)
    return share[_TO_CANONICAL].astype(np.float32)


# --- the files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VoteRow:
    """One row of the votes: `line` of the file, votes (10,), and what is wrong with it."""

    line: int
    usage: str
    named: bool
    votes: np.ndarray
    fault: Rejected | None


def read_votes(path: Path) -> list[VoteRow]:
    """The rows of fer2013new.csv in order; DataError if a column is missing."""
    if not path.is_file():
        raise DataError(f"--votes {path} does not exist or is no file")
    try:
        return _read_rows(path)
    except csv.Error as error:
        raise DataError(f"{path} is no csv: {error}") from error


def _read_rows(path: Path) -> list[VoteRow]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        names = [name.strip().lower() for name in next(rows, [])]
        missing = [name for name in ("usage", "image name", *VOTE_COLUMNS) if name not in names]
        if missing:
            raise DataError(f"{path}: the header lacks {', '.join(missing)}, so these are not the FER+ votes")
        return [_vote_row(names, row, rows.line_num) for row in rows if any(row)]


def _vote_row(names: list[str], row: list[str], line: int) -> VoteRow:
    fields = dict(zip(names, row, strict=False))
    cells = [fields.get(name, "").strip() for name in VOTE_COLUMNS]
    bad = [cell for cell in cells if not (cell.isascii() and cell.isdigit() and len(cell) < 4)]
    fault = None
    if len(row) != len(names):
        fault = Rejected("votes row with a wrong number of fields")
    elif bad:
        fault = Rejected("vote is not a count", bad[0][:40] or "(empty)")
    votes = np.zeros(len(VOTE_COLUMNS), np.int64) if fault else np.array(cells, np.int64)
    return VoteRow(line, fields.get("usage", "").strip(), bool(fields.get("image name", "").strip()), votes, fault)


def _check_same_rows(index: CsvIndex, votes: Sequence[VoteRow], source: Path, votes_path: Path) -> None:
    if len(index.rows) != len(votes):
        raise DataError(
            f"{votes_path} has {len(votes):,} rows and {source} {len(index.rows):,}, "
            "but they are joined by row order: one of the two is incomplete"
        )
    for row, vote in zip(index.rows, votes, strict=True):
        if row.usage and not vote.fault and row.usage != vote.usage:
            raise DataError(
                f"{votes_path}:{vote.line} is a {vote.usage or '(empty)'} row and {source}:{row.line} a {row.usage} "
                "row, but they are joined by row order: one of the two is in another order"
            )


def _label_rows(
    index: CsvIndex, votes: Sequence[VoteRow], mode: str, name: str, votes_name: str
) -> tuple[dict[str, pd.DataFrame], list[Dropped]]:
    kept, labels, soft, dropped = [], [], [], []
    for row, vote in zip(index.rows, votes, strict=True):
        share = row.fault or vote.fault or (shares(vote.votes, mode) if vote.named else UNNAMED)
        if isinstance(share, Rejected):
            dropped.append(_drop(row, vote, share, name, votes_name))
            continue
        kept.append(row)
        labels.append(EIGHT_CLASSES.index(VOTED[share.argmax()]))
        soft.append(_soft(share, mode))
    table = fer2013.row_table(kept, labels, index, name)
    if mode != "majority":
        table["soft"] = pd.Series(soft, dtype=object)
    return fer2013.by_split(table, [fer2013.USAGES[row.usage] for row in kept]), dropped


def _drop(row: CsvRow, vote: VoteRow, why: Rejected, name: str, votes_name: str) -> Dropped:
    in_votes = why is vote.fault
    split = fer2013.USAGES.get(row.usage, "")
    return Dropped(split, votes_name if in_votes else name, vote.line if in_votes else row.line, why)
