"""Tables of curves from records: where the sign turned, what the epochs around a toggle do, a measure against T, how
much a curve wobbles.

An epoch's point stands at its number, and a flip that acts from the epoch's first step on half an epoch before it.
Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fer_lib.event_metrics import measured
from fer_lib.figures import DRAWN
from fer_lib.records import Records
from fer_lib.statistics import compare_arms, t_interval

CURVES = ("train_loss", "macro_f1")


def data_words(records: Records) -> str:
    """What the records are of: the data set, and whether its faces are drawn."""
    runs = records.runs
    return ", ".join(runs["data"].unique()) + (f" ({DRAWN})" if runs["drawn"].any() else "")


def seed_words(runs: pd.DataFrame) -> str:
    """Which seeds each arm has, "a, b: 0–5, 7; c: 0–3"; empty where all have the same. runs: of the runs table."""
    arms: dict[tuple[int, ...], list[str]] = {}
    for name, own in runs.groupby("name", sort=False)["seed"]:
        arms.setdefault(tuple(sorted(own)), []).append(name)
    return "; ".join(f"{', '.join(names)}: {_ranges(seeds)}" for seeds, names in arms.items()) if len(arms) > 1 else ""


def _ranges(numbers: Sequence[int]) -> str:
    """"0–5, 7", of sorted numbers."""
    parts = np.split(np.array(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def by_epoch(records: Records, arm: str, column: str, split: str = "val") -> pd.DataFrame:
    """A column as trained: a row an epoch, a column a seed. Empty where the arm has no records."""
    rows = records.epochs
    own = rows[(rows["name"] == arm) & (rows["split"] == split) & (rows["mode"] == "trained")]
    return own.pivot(index="epoch", columns="seed", values=column)


def sign_changes(records: Records, arm: str) -> pd.DataFrame:
    """A row a seed and a step at which a sign turned: seed, step, epoch, sign (the new one), place (on the axis)."""
    flips, runs = records.flips, records.runs
    own = flips[flips["name"] == arm] if len(flips) else flips
    if own.empty:
        return pd.DataFrame(columns=["seed", "step", "epoch", "sign", "place"])
    found = own.drop_duplicates(["seed", "step"])[["seed", "step", "epoch", "sign"]].sort_values(["seed", "step"])
    steps = runs.loc[runs["name"] == arm, "steps_per_epoch"].iloc[0]
    return found.assign(place=(found["step"] - 1) / steps + .5).reset_index(drop=True)


def shared_schedule(records: Records, arm: str) -> pd.DataFrame | None:
    """The sign changes that all of the arm's seeds have in common (step, epoch, sign, place); None where they differ.
    """
    changes = sign_changes(records, arm)
    seeds = records.runs.loc[records.runs["name"] == arm, "seed"].nunique()
    each = changes.drop(columns="seed").groupby("step", as_index=False).agg(
        epoch=("epoch", "first"), sign=("sign", "first"), place=("place", "first"), n=("step", "size"))
    return each.drop(columns="n") if len(each) and (each["n"] == seeds).all() else None


def around_toggles(records: Records, arm: str) -> pd.DataFrame:
    """The epochs of each interval: a row a seed and an epoch with train_loss, macro_f1 (val) and `since`, the epochs
    since the toggle that began the interval: 0 in the epoch in which the sign turned, -1 in the one before it.

    toggle: 0 for the run's beginning, then 1, 2, ...; sign: that of the interval. Raises ValueError where the arm's
    seeds have no toggles in common.
    """
    schedule = shared_schedule(records, arm)
    if schedule is None:
        raise ValueError(f"the runs of {arm} have no toggles in common")
    schedule = schedule.drop_duplicates("epoch", keep="last")
    tables = {column: by_epoch(records, arm, column) for column in CURVES}
    epochs = tables["train_loss"].index
    starts = [1, *(int(e) for e in schedule["epoch"] if e > 1)]
    signs = [1, *(int(s) for e, s in zip(schedule["epoch"], schedule["sign"]) if e > 1)]
    rows = []
    for k, (start, end, sign) in enumerate(zip(starts, [*starts[1:], int(epochs.max()) + 1], signs)):
        for epoch in range(max(1, start - 1), end):
            values = pd.DataFrame({column: table.loc[epoch] for column, table in tables.items()})
            rows.append(values.assign(toggle=k, sign=sign, epoch=epoch, since=epoch - start).reset_index())
    return pd.concat(rows, ignore_index=True)


def toggle_sizes(around: pd.DataFrame) -> pd.DataFrame:
    """A row a seed and a toggle: the epoch after it less the one before, as loss_spike and f1_change; recovery, the
    epochs until the training loss is back where it was (NaN where the interval ends before).
    """
    rows = []
    for (seed, toggle), own in around[around["toggle"] > 0].groupby(["seed", "toggle"]):
        own = own.set_index("since")
        back = [k for k in own.index if k >= 0 and own["train_loss"][k] <= own["train_loss"][-1]]
        rows.append({"seed": seed, "toggle": toggle, "sign": int(own["sign"].iloc[0]), "epoch": int(own["epoch"][0]),
                     "loss_spike": own["train_loss"][0] - own["train_loss"][-1],
                     "f1_change": own["macro_f1"][0] - own["macro_f1"][-1], "recovery": back[0] if back else np.nan})
    return pd.DataFrame(rows)


def by_interval(sources: Sequence[tuple[Records, str]], metric: str) -> pd.DataFrame:
    """A metric (a column of the runs table, or one of event_metrics) against T: x (in steps), label, seed, value.

    sources: records with the name of an arm of periodic injection. Runs without such an event are left out.
    """
    rows = []
    for records, arm in sources:
        own = records.runs[records.runs["name"] == arm]
        for seed, value in measured(records, arm, metric).dropna().items():
            T, unit = own["setting_flip_interval"].iloc[0], own["setting_flip_interval_unit"].iloc[0]
            rows.append({"x": T * (own["steps_per_epoch"].iloc[0] if unit == "epoch" else 1),
                         "label": f"{T:g} {unit}{'s' if T > 1 else ''}", "seed": seed, "value": value})
    return pd.DataFrame(rows, columns=["x", "label", "seed", "value"]).sort_values(["x", "seed"], ignore_index=True)


def wobble(records: Records) -> pd.DataFrame:
    """How validation macro-F1 moves in the second half of each run: name, seed, `level` (its mean), `wobble` (standard
    deviation about a straight line), `gain` (how far the highest point lies above that line), `epochs`, and `luck`:
    the paper's score (the highest, less the level) less what the same epoch scores on test (less test's level).
    """
    rows = []
    for arm in records.runs["name"].unique():
        splits = {split: by_epoch(records, arm, "macro_f1", split) for split in ("val", "test")}
        for seed in splits["val"]:
            f1 = pd.DataFrame({split: own.get(seed) for split, own in splits.items()})
            late = f1[f1.index > f1.index.max() // 2]
            if len(late) < 4:                           # no trend to speak of
                continue
            line = np.polyval(np.polyfit(late.index, late["val"], 1), late.index)
            above, best = late["val"] - line, late["val"].idxmax()
            rows.append({"name": arm, "seed": seed, "level": late["val"].mean(), "epochs": len(late),
                         "wobble": np.sqrt((above ** 2).sum() / (len(late) - 2)), "gain": above.max(),
                         "luck": (late["val"] - late["test"])[best] - (late["val"] - late["test"]).mean()})
    return pd.DataFrame(rows, columns=["name", "seed", "level", "epochs", "wobble", "gain", "luck"])


def beside_paper(runs: pd.DataFrame, arms: Sequence[str], paper: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """A row a measure and an arm, as text: n, ours with its 95 % interval, the paper's, and the same of the difference
    to the first arm, seed by seed. paper: by measure (a column of the runs table), the paper's numbers by arm.
    """
    rows, first = [], arms[0]
    for measure, numbers in paper.items():
        for own in compare_arms(runs[runs["name"].isin(arms)], measure, first).itertuples():
            both = own.difference is not None and {own.arm, first} <= set(numbers)
            rows.append({"measure": measure, "arm": own.arm, "n": own.score.n, "ours [95 %]": f"{own.score:.3f}",
                         "paper": f"{numbers[own.arm]:.3f}" if own.arm in numbers else "",
                         f"less {first} [95 %]": f"{own.difference:+.3f}" if own.difference else "",
                         "paper's": f"{numbers[own.arm] - numbers[first]:+.3f}" if both else ""})
    return pd.DataFrame(rows)


def largest_of(n: int, repeats: int = 20_000, seed: int = 0) -> float:
    """The mean of the largest of n standard normal numbers, by simulation."""
    return float(np.random.default_rng(seed).normal(size=(repeats, n)).max(axis=1).mean())


def stopped_at(records: Records, a: str, b: str) -> pd.DataFrame:
    """Had training ended earlier: a row a number of epochs with a - b in macro-F1 on test, at the epoch up to there
    that was best on val (the first of equals). Mean, 95 % interval (low, high), and `below`: in how many seeds a < b.
    """
    scores = {}
    for arm in (a, b):
        val, test = by_epoch(records, arm, "macro_f1"), by_epoch(records, arm, "macro_f1", "test")
        best = val.apply(lambda own: own.expanding().apply(np.argmax, raw=True)).astype(int)
        scores[arm] = pd.DataFrame({seed: test[seed].to_numpy()[best[seed]] for seed in val}, index=val.index)
    gain = (scores[a] - scores[b]).dropna(axis=1, how="all").dropna()
    intervals = [t_interval(row) for _, row in gain.iterrows()]
    return pd.DataFrame({"epochs": gain.index, f"{a} - {b}": [round(i.mean, 3) for i in intervals],
                         "low": [round(i.low, 3) for i in intervals], "high": [round(i.high, 3) for i in intervals],
                         "below": [f"{(row < 0).sum()} of {len(row)}" for _, row in gain.iterrows()]})
