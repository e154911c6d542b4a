"""What sources with a published list share: which rows the list itself makes unusable, and the published counts.

    why = [None] * len(rows)                                 # rows with the columns split, file, row
    note(why, rows["x0"].isna(), lambda i: ("box is not four numbers", cells[i]))
    refuse_repeats(why, rows["path"], rows["label"], rows["row"])
    rows, dropped = take_out(rows, why)
"""

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from data_prep.packed import Dropped, Rejected
from data_prep.paths import shown
from data_prep.tables import numbers

Why = list[Rejected | None]

TWICE = "listed twice"
CONFLICT = "listed with different labels"


def plain(label: str) -> str:
    """"3.0" -> "3": how pandas writes whole numbers of a column with gaps."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", label)


def note(why: Why, where: Sequence[bool], tell: Callable[[int], tuple[str, str]], bad: bool = True) -> None:
    """Records a fault for the rows in `where` that have none yet; tell(i) -> (reason, detail)."""
    for i in np.flatnonzero(np.asarray(where, bool)):
        if why[i] is None:
            reason, detail = tell(i)
            why[i] = Rejected(reason, shown(detail), bad)


def bounded(cells: pd.Series, low: float, high: float, missing: Sequence[float], name: str, why: Why) -> np.ndarray:
    """float32 values; NaN where empty or one of `missing`; a fault for anything else that is outside low..high."""
    values = numbers(cells)
    absent = cells.eq("").to_numpy() | np.isin(values, missing)
    wrong = ~absent & ~((values >= low) & (values <= high))
    note(why, wrong, lambda i: (f"{name} outside {low:g}..{high:g}", cells.iat[i]))
    return np.where(absent | wrong, np.nan, values).astype(np.float32)


def refuse_repeats(why: Why, keys: Sequence[str], labels: Sequence[str], lines: Sequence[int]) -> None:
    """A second row of the same key is a fault; if the labels differ, nobody knows which is right and all are."""
    places: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        if why[i] is None:
            places.setdefault(key, []).append(i)
    labels, lines = list(labels), list(lines)
    for key, here in places.items():
        if len(here) == 1:
            continue
        found = sorted({labels[i] for i in here})
        for i in here if len(found) > 1 else here[1:]:
            reason, detail = (CONFLICT, ", ".join(found)) if len(found) > 1 else (TWICE, f"line {lines[here[0]]}")
            why[i] = Rejected(reason, shown(f"{key} ({detail})"))


def take_out(rows: pd.DataFrame, why: Why) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows without a fault, and a record of each other one."""
    stays = np.array([one is None for one in why], bool)
    out = rows[~stays]
    facts = zip(out["split"], out["file"], out["row"], (one for one in why if one), strict=True)
    dropped = [Dropped(split, file, int(row), one) for split, file, row, one in facts]
    return rows[stays].reset_index(drop=True), dropped


# --- published counts -----------------------------------------------------------------------------------------------


def counts_note(name: str, labels: Sequence[str], published: Mapping[str, int]) -> str:
    """One sentence for the report: whether a list as it is has as many rows of each label as its authors say."""
    found = Counter(labels)
    differing = [f"label {label} {found[label]:,} ({n:,})" for label, n in published.items() if found[label] != n]
    if not differing:
        return f"{name}: {len(labels):,} rows, as many of each label as published"
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"{name}: {len(labels):,} rows; other counts than published, in brackets: {', '.join(differing[:3])}{more}"


def published_counts(options: Namespace, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    """The published counts of the splits that the options leave whole; train is not if a part of it is cut off."""
    cut = options.max_per_class is not None
    cut |= any(split not in counts and getattr(options, f"{split}_share") > 0 for split in ("val", "test"))
    return {split: of for split, of in counts.items() if split != "train" or not cut}


# --- an official validation set without a test set ------------------------------------------------------------------


def add_validation_argument(parser: ArgumentParser) -> None:
    """--validation-as, for sets whose authors publish train and validation and keep the test labels."""
    parser.add_argument(
        "--validation-as",
        choices=["test", "val"],
        default="test",
        help="the official validation set is what papers report, so it becomes test, and val is a share of train; "
        "'val' keeps its name and leaves the set without test (%(default)s)",
    )
