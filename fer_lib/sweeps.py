"""Arms of several studies beside each other: what an arm changes, what its signs do, its difference to another arm seed
by seed, scores against one setting, and how many seeds "no difference" takes.

Nothing here imports torch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from fer_lib.event_metrics import measured
from fer_lib.records import TABLES, Records
from fer_lib.statistics import Interval, detectable_difference, equivalence_power, seeds_needed, t_interval

# what an arm may change, in the order in which arms are shown
ASPECTS = {"initial value": ("w0",), "cliff and divisor": ("cliff", "divide_by"),
           "mean and shape": ("w_mean", "w_shape", "w_average_moments"), "gradient": ("w_gradient", "w_noise_scale"),
           "precision": ("precision",), "optimiser": ("optimizer", "lr", "weight_decay", "decay"),
           "schedule": ("schedule", "schedule_epochs", "schedule_factor"),
           "interval": ("flip_interval", "flip_interval_unit"), "place": ("w_site", "flip_site", "flip_position")}
OF_METHOD = {"dynamic": ("w0", "w_", "cliff", "divide_by"), "periodic": ("flip_",)}     # the others don't read these
AFTER = ", after ReLU"
PLACES = ("stem", "layer1.act1", "layer2.act1", "layer3.act1", "layer4.act1", "act1", f"act1{AFTER}", "pre_add",
          "shortcut", "act2", "act3", "all")            # from input to output; then all blocks, from input to output
ABSENT = "–"


@dataclass(frozen=True)
class Arm:
    """An arm with its runs, and the settings by which it differs from the arm of the same method in table1."""

    study: str
    name: str
    records: Records
    changes: dict[str, object]

    @property
    def label(self) -> str:
        """study/arm, as the claims name it."""
        return f"{self.study}/{self.name}"

    @property
    def words(self) -> str:
        """What it changes: "w0 = 0.5"."""
        return ", ".join(f"{key} = {_value(value)}" for key, value in self.changes.items())


def arms_of(found: Mapping[str, Records], method: str) -> list[Arm]:
    """Every arm of the method, table1's own first, then by what they change (ASPECTS). found: records by study.

    Runs that a second study has as an arm of its own are taken once. Without table1, arms are compared with the setting
    that most of them have.
    """
    own, known = [], set()
    for study, records in found.items():
        for name in records.runs.loc[records.runs["method"] == method, "name"].unique():
            arm = _only(records, name)
            if not known.issuperset(arm.runs["id"]):
                own.append((study, name, arm))
            known.update(arm.runs["id"])
    names = read_by(method)
    if not own:
        return []
    base = next((r.runs.iloc[0] for study, name, r in own if (study, name) == ("table1", method)), None)
    usual = {s: base[f"setting_{s}"] if base is not None else
             pd.Series([r.runs[f"setting_{s}"].iloc[0] for *_, r in own]).mode()[0] for s in names}
    if usual["schedule"] == "constant":                 # then nothing reads these two
        names = [s for s in names if s not in ("schedule_epochs", "schedule_factor")]
    order = [s for group in ASPECTS.values() for s in group]
    arms = [Arm(study, name, r, {s: r.runs[f"setting_{s}"].iloc[0] for s in names
                                 if r.runs[f"setting_{s}"].iloc[0] != usual[s]}) for study, name, r in own]
    return sorted(arms, key=lambda arm: (arm.label != f"table1/{method}", bool(arm.changes),
                                         min(map(order.index, arm.changes), default=0)))


def read_by(method: str) -> list[str]:
    """The settings in ASPECTS that this method reads."""
    return [s for group in ASPECTS.values() for s in group
            if not any(s.startswith(own) for other, own in OF_METHOD.items() if other != method)]


def _only(records: Records, name: str) -> Records:
    """The records of one arm."""
    own = {table: t[t["name"] == name] if len(t := getattr(records, table)) else t for table in ("runs", *TABLES)}
    return replace(records, **own)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sign_table(arms: Iterable[Arm]) -> pd.DataFrame:
    """A row an arm, as text: what its signs and w do (event_metrics), over its seeds from the least to the most."""
    rows = []
    for arm in arms:
        flips = arm.records.flips
        first = flips.groupby("seed")["step"].min() if len(flips) else []
        together, end, late = (measured(arm.records, arm.name, m)
                               for m in ("synchrony", "w_end_ratio", "flips_last_third"))
        count = arm.records.runs.set_index("seed")["flips_steps"]
        rows.append({"arm": arm.label, "changes": arm.words or ABSENT, "n": len(arm.records.runs),
                     "flips": _span(count, ",.0f"), "first flip": _span(first, ",.0f"),
                     "last third": _span(late, ",.0f"),
                     "turn together": _span(together, ".1%"),
                     "sign turns": _span((count * together).where(count > 0, 0), ",.0f"),
                     "|w| at end / w0": _span(end, ".1g")})
    return pd.DataFrame(rows)


def _span(values: Iterable[float], spec: str) -> str:
    """The least and the greatest, once where they look the same."""
    known = [v for v in values if not math.isnan(v)]
    ends = dict.fromkeys(format(v, spec) for v in (min(known), max(known))) if known else [ABSENT]
    return "–".join(ends)


def differences(found: Mapping[str, Records], rows: Iterable[tuple[str, str, str, str]], measure: str) -> pd.DataFrame:
    """a - b by seed: row, arm (by whose look it is drawn), seed, value. rows: (row, arm, a, b), with a and b as
    study/arm; seeds that both have on one device count, and arms without records are left out.
    """
    parts = []
    for row, arm, *pair in rows:
        sides = [_scores(found, label, measure) for label in pair]
        both = sides[0].index.intersection(sides[1].index)
        values = (sides[0][both] - sides[1][both]).dropna()
        parts.append(pd.DataFrame({"row": row, "arm": arm, "seed": [seed for seed, _ in values.index],
                                   "value": values.to_numpy()}))
    known = [part for part in parts if len(part)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=["row", "arm", "seed", "value"])


def _scores(found: Mapping[str, Records], label: str, measure: str) -> pd.Series:
    """The measure of study/arm by seed and device; empty where there are no records."""
    study, name = label.split("/", 1)
    runs = found[study].runs if study in found else pd.DataFrame(columns=["name", "seed", "env_device", measure])
    own = runs[runs["name"] == name]
    return pd.Series(own[measure].to_numpy(float), pd.MultiIndex.from_frame(own[["seed", "env_device"]]))


def by_setting(found: Mapping[str, Records], method: str, setting: str, measure: str) -> pd.DataFrame:
    """A measure against one setting, of the arms that change nothing else: x, label, seed, value, arm; usual, whether x
    is that of the arm that changes nothing; and change, the value less that arm's with the same seed on the same device
    (NaN where it has none). Sorted by x.

    Precision is what the run had, not the setting, which may be "auto". Empty where the method reads no such setting.
    """
    rows, columns = [], ["x", "label", "seed", "value", "arm", "usual", "change"]
    if setting not in read_by(method):
        return pd.DataFrame(columns=columns)
    for arm in arms_of(found, method):
        if set(arm.changes) <= {setting}:
            runs = arm.records.runs
            x = runs["env_precision" if setting == "precision" else f"setting_{setting}"]
            rows.append(pd.DataFrame({"x": x, "label": x.map(_value), "seed": runs["seed"], "value": runs[measure],
                                      "arm": arm.label, "device": runs["env_device"]}))
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.concat(rows).drop_duplicates(["x", "seed"])          # arms_of has the one that changes nothing first
    table["usual"] = table["x"] == table["x"].iloc[0]
    unchanged = table[table["usual"]].set_index(["seed", "device"])["value"]
    table["change"] = table["value"] - unchanged.reindex(pd.MultiIndex.from_frame(table[["seed", "device"]])).to_numpy()
    return table[columns].sort_values(["x", "seed"], ignore_index=True)


def setting_means(table: pd.DataFrame) -> dict[object, Interval]:
    """By x of `by_setting`, the mean with its interval: that of the arm that changes nothing, and on it the mean change
    seed by seed, so that arms with other seeds can be compared; the mean of its own where no seed is shared.
    """
    if table.empty:
        return {}
    groups = dict(iter(table.groupby("x")))
    base, found = t_interval(table.loc[table["usual"], "value"]), {}
    for x, own in groups.items():
        changes = own["change"].dropna()
        if own["usual"].all() or changes.empty:
            found[x] = t_interval(own["value"])
        else:
            m = t_interval(changes)
            found[x] = Interval(base.mean + m.mean, base.mean + m.low, base.mean + m.high, m.n)
    return found


def by_place(found: Mapping[str, Records], measure: str, baseline: str = "table1/baseline") -> pd.DataFrame:
    """`differences` to the baseline (study/arm) of every arm that changes nothing but its place in the network: row, a
    place in the network's order; arm, the method.
    """
    rows = []
    for method, keys in (("periodic", ("flip_site", "flip_position")), ("dynamic", ("w_site",))):
        for arm in arms_of(found, method):
            if set(arm.changes) <= set(keys):
                first = arm.records.runs.iloc[0]
                late = method == "periodic" and first["setting_flip_position"] == "after_relu"
                place = first[f"setting_{keys[0]}"] + (AFTER if late else "")
                rows.append((place, method, arm.label, baseline))
    order = lambda place: PLACES.index(place) if place in PLACES else len(PLACES)                           # noqa: E731
    return differences(found, sorted(rows, key=lambda row: order(row[0])), measure)


def power_table(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """What it takes to show the pairs of `differences` equal, a row each: n, mean and sd; the difference that a test
    with n seeds finds four times in five; if they are equal, the chance that TOST shows it, and the seeds for .8.
    """
    rows = []
    for (row, arm), own in table.groupby(["row", "arm"], sort=False):
        n, sd = len(own), own["value"].std(ddof=1)
        if n > 1 and sd > 0:
            rows.append({"pair": row, "arm": arm, "n": n, "mean": own["value"].mean(), "sd": sd,
                         "detectable": detectable_difference(sd, n), "chance": equivalence_power(sd, n, margin),
                         "seeds for .8": seeds_needed(sd, margin=margin)})
    return pd.DataFrame(rows)
