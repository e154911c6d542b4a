"""A copy of a packed set with planted flaws: to learn what an audit finds, and to see that it finds it.

    planted = plant(Path("packed/synthetic-quick"), out, Flaws(val=24), seed=0)     # a row a flaw
    expected(planted), numbers(audit.as_json())                                     # equal, if the source has none
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.packed import SPLITS, DataError, Plan, read_manifest
from data_prep.writer import write

NUMBERS = ("leaks.val", "leaks.test", "leaks.test_in_val", "near.leaks.val", "duplicate_groups", "conflicting_groups",
           "constant", "subjects_in_several_splits")  # of audit.json, which the flaws add to  # fmt: skip
COLUMNS = ["flaw", "split", "row", "like_split", "like_row"]


@dataclass(frozen=True)
class Flaws:
    """How many of each. A picture takes another's place and leaves the row's label and person as they are.

    val, test    images that become the copy of a training image of their label
    test_in_val  test images that become the copy of a val image of their label
    near         val images that become a paler copy of a training image of their label
    conflicts    training images that become the copy of one of another label
    constant     training images that become a single level of grey
    swaps        pairs of a training and a val image, of one label, that change places with all that is known of them:
                 both persons are then in two splits
    """

    val: int = 24
    test: int = 12
    test_in_val: int = 4
    near: int = 8
    conflicts: int = 3
    constant: int = 2
    swaps: int = 1


def plant(source: Path, out: Path, flaws: Flaws, seed: int = 0) -> pd.DataFrame:
    """Packs the copy into `out`; returns COLUMNS, a row a flaw, like_row -1 where no other image is concerned.

    No row of the source takes part in two flaws. DataError where it has too few that fit.
    """
    manifest = read_manifest(source)
    samples = {split: pd.read_parquet(source / split / "samples.parquet").reset_index(drop=True) for split in SPLITS}
    for split, table in samples.items():
        samples[split] = table.assign(_split=split, _row=np.arange(len(table)), _pale=False, _grey=-1)
    planted = pd.DataFrame(_planted(samples, flaws, np.random.default_rng(seed)), columns=COLUMNS)
    plan = Plan(
        name=f"{manifest['name']}-flawed",
        title=f"{manifest['title']}, with planted flaws",
        classes=tuple(manifest["classes"]),
        shape=tuple(manifest["image"][name] for name in ("channels", "height", "width")),
        samples=samples,
        decode=partial(_pictures, source=source),
        licence=manifest["licence"],
        release="planted by data_prep.flaws",
        files={"content": manifest["content_sha256"]},
        options={"flaws": asdict(flaws), "flaws_seed": seed},
        drawn=manifest.get("drawn", False),
    )
    write(plan, out)
    return planted


def expected(planted: pd.DataFrame) -> dict[str, int]:
    """NUMBERS that an audit finds where these flaws are all there is."""
    n = planted["flaw"].value_counts().reindex(Flaws.__dataclass_fields__, fill_value=0)
    copies = n["val"] + n["test"] + n["test_in_val"] + n["conflicts"]
    counts = (n["val"], n["test"], n["test_in_val"], n["near"], copies, n["conflicts"], n["constant"], 2 * n["swaps"])
    return dict(zip(NUMBERS, map(int, counts), strict=True))


def numbers(found: Mapping) -> dict[str, int]:
    """NUMBERS of an audit.json."""
    values = {}
    for name in NUMBERS:
        value = found
        for key in name.split("."):
            value = value[key]
        values[name] = value or 0  # None: the samples do not say
    return values


# --- planting -------------------------------------------------------------------------------------------------------


def _planted(samples: dict[str, pd.DataFrame], flaws: Flaws, rng: np.random.Generator) -> list[tuple]:
    """Changes `samples` in place and says how."""
    free = {split: rng.permutation(len(table)).tolist() for split, table in samples.items()}
    labels = {split: table["label"].to_numpy() for split, table in samples.items()}

    def draw(split: str, fits: Callable[[int], bool] = lambda row: True) -> int:
        place = next((k for k, row in enumerate(free[split]) if fits(row)), None)
        if place is None:
            raise DataError(f"{split} has too few images that fit for so many flaws")
        return free[split].pop(place)

    done = []
    for flaw, split, like in (("val", "val", "train"), ("test", "test", "train"), ("test_in_val", "test", "val"),
                              ("near", "val", "train"), ("conflicts", "train", "train")):  # fmt: skip
        for _ in range(getattr(flaws, flaw)):
            row = draw(split)
            label, same = labels[split][row], flaw != "conflicts"
            other = draw(like, lambda r, like=like, label=label, same=same: (labels[like][r] == label) == same)
            samples[split].loc[row, ["_split", "_row", "_pale"]] = [like, other, flaw == "near"]
            done.append((flaw, split, row, like, other))
    for number in range(flaws.constant):
        row = draw("train")
        samples["train"].loc[row, "_grey"] = 60 + number  # levels that differ: two equal images are another flaw
        done.append(("constant", "train", row, "", -1))
    return done + [_swap(samples, draw) for _ in range(flaws.swaps)]


def _swap(samples: dict[str, pd.DataFrame], draw: Callable) -> tuple:
    """Two rows change places whose persons have more images where they were and are not in two splits yet."""
    train, val = samples["train"], samples["val"]
    if "subject" not in train or "subject" not in val:
        raise DataError("a swap needs to know who is in an image, and the samples do not say")

    def alone(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
        counts = table["subject"].value_counts()
        return ((table["subject"].map(counts) > 1) & ~table["subject"].isin(other["subject"])).to_numpy()

    in_train, in_val = alone(train, val), alone(val, train)
    row = draw("val", lambda r: in_val[r])
    other = draw("train", lambda r: in_train[r] and train["label"][r] == val["label"][row])
    here, there = val.loc[row].copy(), train.loc[other].copy()
    for name in val.columns.intersection(train.columns):
        val.at[row, name], train.at[other, name] = there[name], here[name]
    return "swaps", "val", row, "train", other


def _pictures(rows: pd.DataFrame, split: str, source: Path) -> np.ndarray:
    """uint8 (n, C, H, W): what each row shows now."""
    images = {name: np.load(source / name / "images.npy", mmap_mode="r", allow_pickle=False) for name in SPLITS}
    shown = np.stack([images[name][row] for name, row in zip(rows["_split"], rows["_row"])])
    pale, grey = rows["_pale"].to_numpy(bool), rows["_grey"].to_numpy()
    shown[pale] = 0.85 * shown[pale] + 25
    shown[grey >= 0] = grey[grey >= 0, None, None, None]
    return shown
