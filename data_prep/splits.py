"""Who goes into train, val and test, where the source does not say: always by seed or by name, never by file order.

All functions take the rows of `data_prep.image_files` (columns `split`, `source`, `_class`, `_group`). What happens to
a row depends on names and the seed, not on the order of the rows.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from data_prep.packed import SPLITS, DataError, Rejected

NOT_DRAWN = Rejected("over --max-per-class", bad=False)

_NAMES = {
    **dict.fromkeys(["train", "training", "trn", "training_set", "train_set"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "dev", "eval", "validation_set", "val_set"], "val"),
    **dict.fromkeys(["test", "testing", "tst", "test_set"], "test"),
}


def split_name(text: str) -> str | None:
    """train, val or test for what people call them ("Training", "valid", "dev"); None for anything else."""
    return _NAMES.get(text.strip().casefold().replace(" ", "_").replace("-", "_"))


def cut_shares(rows: pd.DataFrame, val: float, test: float, seed: int) -> np.ndarray:
    """The split of each row, object (n,): rows without one go to train, a share of which is cut off as test and val.

    A split that the source has is left alone. The cut is by group and, as far as groups allow, the same in each class:
    a group counts with the class that most of its rows have.
    """
    split = rows["split"].to_numpy(object).copy()
    split[split == ""] = "train"
    pool = split == "train"
    share_of = {"test": test if "test" not in split else 0.0, "val": val if "val" not in split else 0.0}
    groups, of = _groups(rows[pool], f"cut {seed}"), {}
    for _, members in groups.groupby("class", sort=True):
        start = 0.0
        place = (members["size"].cumsum() - members["size"] / 2) / members["size"].sum()  # a group's middle, in 0..1
        for name, share in share_of.items():
            of |= dict.fromkeys(members.index[(place >= start) & (place < start + share)], name)
            start += share
    split[pool] = [of.get(group, "train") for group in rows.loc[pool, "_group"]]
    return split


def subject_folds(rows: pd.DataFrame, folds: int, fold: int) -> np.ndarray:
    """The split of each row, object (n,): test = fold `fold` of `folds`, val = the next one, train = all others.

    The largest subjects are dealt first, each to the fold with fewest images; ties are broken by a hash of the
    subject's name. So folds are balanced and the same on every machine, and no image that is reported on had a part in
    choosing the epoch. DataError for fewer than three folds or fewer subjects than folds.
    """
    if folds < 3:
        raise DataError(f"--split-by-subject {folds} must be 3 or more: one fold each for test and val, the rest train")
    if not 0 <= fold < folds:
        raise DataError(f"--fold {fold} is outside 0..{folds - 1}")
    sizes = rows["_group"].value_counts()
    if len(sizes) < folds:
        raise DataError(f"--split-by-subject {folds}: there are only {len(sizes)} subjects")
    held, of = [0] * folds, {}
    for subject in sorted(sizes.index, key=lambda name: (-sizes[name], _hash(f"fold {name}"))):
        of[subject] = held.index(min(held))
        held[of[subject]] += int(sizes[subject])
    number = rows["_group"].map(of).to_numpy(np.int64)
    return np.select([number == fold, number == (fold + 1) % folds], ["test", "val"], "train").astype(object)


def draw_per_class(rows: pd.DataFrame, most: int, seed: int) -> np.ndarray:
    """Which rows stay, bool (n,): of each class at most `most` training rows, drawn by seed; val and test stay whole,
    so that scores remain comparable."""
    stays = np.ones(len(rows), bool)
    for name in sorted(set(rows["_class"])):
        here = np.flatnonzero(((rows["_class"] == name) & (rows["split"] == "train")).to_numpy())
        if len(here) > most:
            keys = [_hash(f"draw {seed} {source}") for source in rows["source"].iloc[here]]
            stays[here[np.argsort(np.array(keys, object), kind="stable")[most:]]] = False
    return stays


def split_counts(split: Sequence[str]) -> dict[str, int]:
    """How many rows each split has."""
    found = pd.Series(split, dtype=object).value_counts()
    return {name: int(found.get(name, 0)) for name in SPLITS}


def _groups(rows: pd.DataFrame, salt: str) -> pd.DataFrame:
    """One row a group, in an order given by the hash of its name: `size`, and the commonest `class` of its rows."""
    counts = rows.groupby(["_group", "_class"], sort=True).size().rename("n").reset_index()
    largest = counts.sort_values(["_group", "n"], ascending=[True, False], kind="stable").drop_duplicates("_group")
    names = largest["_group"].to_numpy()
    sizes = counts.groupby("_group")["n"].sum()[names].to_numpy()
    groups = pd.DataFrame({"class": largest["_class"].to_numpy(), "size": sizes}, index=names)
    keys = [_hash(f"{salt} {name}") for name in names.tolist()]
    return groups.iloc[sorted(range(len(groups)), key=keys.__getitem__)]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
