"""The paper's claims: what would show each (notebooks/studies/claims.yml), judged against records.

    python -m fer_lib.claims [--records notebooks/results] [--size standard]

claims.yml is written and committed before the records that it judges; its head explains each key. Runs are compared
seed by seed on one device in one precision: a seed whose arms ran on two is left out, and the verdict says so.
"""

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from fer_lib.claims_file import Claim, ClaimError, Claims, Contrast, at_size, read_claims
from fer_lib.event_metrics import METRICS, RunTables, measured, only_counted, run_tables
from fer_lib.files import RecordError
from fer_lib.records import read_records
from fer_lib.statistics import (
    DESCRIPTIVE,
    NOT_JUDGED,
    Interval,
    Judgement,
    Question,
    judge_family,
    overall,
    t_interval,
)
from fer_lib.workspace import find_workspace

PRIMARY = "chosen_test_macro_f1"
BESIDE = ("last_test_macro_f1", "before_toggle_test_macro_f1", "max_val_macro_f1")      # the last one is the paper's
SAME = ("semantics", "data_hash", "setting_epochs", "setting_batch_size", "setting_backbone", "setting_width",
        "setting_image_size")                           # of all arms that are subtracted from each other


@dataclass(frozen=True)
class Sample:
    """A contrast's values by seed, the ids of the runs behind them, and what a reader must know about them.

    reason: why there are none, or why they can't be compared.
    """

    values: pd.Series
    ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    drawn: bool = False                                 # of drawn faces: they describe and judge nothing
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContrastVerdict:
    """A contrast judged. beside: its estimate by other measures of F1."""

    contrast: Contrast
    judgement: Judgement
    sample: Sample
    beside: dict[str, Interval] = field(default_factory=dict)

    @property
    def paper_difference(self) -> float | None:
        """The paper's a - b."""
        paper = self.contrast.paper
        return paper["a"] - paper["b"] if len(paper) == 2 else None


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim judged: holds, does not hold, undecided, descriptive (too few seeds) or not judged, and why."""

    claim: Claim
    verdict: str
    reason: str
    contrasts: tuple[ContrastVerdict, ...]


def judge(claims: Claims, folder: Path) -> list[ClaimVerdict]:
    """Judge each claim on the records below the folder, one folder for each study: run directories, or exported tables.
    """
    studies = {study: _Study(folder / study, data) for study, data in claims.data.items()}
    asked = [(claim, contrast) for claim in claims.claims for contrast in claim.contrasts]
    samples = [_sample(contrast, studies) for _, contrast in asked]
    questions = [Question(tuple(sample.values), "shown" if sample.drawn else c.direction, c.n, c.margin, c.value)
                 for (_, c), sample in zip(asked, samples)]
    families: dict[object, list[int]] = {}
    for k, (_, contrast) in enumerate(asked):
        families.setdefault(k if contrast.direction == "shown" else contrast.family, []).append(k)
    judgements: dict[int, Judgement] = {}
    for members in families.values():
        judgements |= zip(members, judge_family([questions[k] for k in members]))
    found: dict[str, list[ContrastVerdict]] = {claim.name: [] for claim in claims.claims}
    for k, (claim, contrast) in enumerate(asked):
        beside = {m: _sample(replace(contrast, metric=m), studies).values
                  for m in BESIDE if contrast.metric == PRIMARY}
        found[claim.name].append(ContrastVerdict(contrast, judgements[k], samples[k],
                                                 {m: t_interval(x) for m, x in beside.items() if len(x)}))
    return [_claim_verdict(claim, found[claim.name]) for claim in claims.claims]


def _claim_verdict(claim: Claim, found: list[ContrastVerdict]) -> ClaimVerdict:
    if claim.not_judged:
        return ClaimVerdict(claim, NOT_JUDGED, claim.not_judged, ())
    asked = [c for c in found if c.contrast.direction != "shown"] or found
    verdict = overall([c.judgement.verdict for c in asked])
    missing = [c.sample.reason for c in asked if c.judgement.verdict == NOT_JUDGED]
    few = [c for c in asked if c.judgement.verdict == DESCRIPTIVE and c.contrast.direction != "shown"]
    drawn = ["drawn faces are no evidence about methods"] * any(c.sample.drawn for c in few)
    counts: dict[str, list[str]] = {}
    for c in (c for c in few if not c.sample.drawn):
        counts.setdefault(f"n = {c.judgement.n} where {c.contrast.n} are asked for", []).append(c.contrast.label)
    reasons = list(dict.fromkeys(missing + drawn + [
        f"{words}: {own[0]}{f' and {len(own) - 1} more' * (len(own) > 1)}" for words, own in counts.items()]))
    more = f"; and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return ClaimVerdict(claim, verdict, "; ".join(reasons[:2]) + more, tuple(found))


class _Unusable(Exception):
    """Why records can't be used for a contrast."""


@dataclass(frozen=True)
class _Arm:
    """What a comparison asks of an arm's runs: by seed their ids and places (device, precision); by setting the values
    that must be the others', too.
    """

    ids: dict[int, str]
    places: dict[int, str]
    same: dict[str, set[str]]
    drawn: bool
    data: set[str]


class _Study:
    """A study's records, read once, and each metric of each arm, computed once."""

    def __init__(self, folder: Path, data: str):
        self.name, self.data, self.records = folder.name, data, None
        with contextlib.suppress(RecordError):
            self.records = read_records(folder)
        self._measured: dict[tuple[str, str], pd.Series] = {}
        self._arms: dict[str, _Arm] = {}
        self._tables: dict[str, list[RunTables]] = {}

    def arm(self, name: str) -> _Arm:
        """Raises _Unusable with the reason why its runs can't be used."""
        if name not in self._arms:
            own = self._usable(name)
            places = (f"{device}, {precision}" for device, precision in zip(own["env_device"], own["env_precision"]))
            same = {key: {str(v) for v in own[key].unique()} if key in own else {"none"} for key in SAME}
            self._arms[name] = _Arm(dict(zip(own["seed"], own["id"])), dict(zip(own["seed"], places)), same,
                                    bool(own["drawn"].any()), set(own["data"]))
        return self._arms[name]

    def _usable(self, arm: str) -> pd.DataFrame:
        if self.records is None or self.records.runs.empty:
            raise _Unusable(f"no records of {self.name}")
        own = self.records.runs[self.records.runs["name"] == arm]
        if own.empty:
            raise _Unusable(f"no records of {self.name}/{arm}")
        if (twice := own["seed"].duplicated()).any():
            raise _Unusable(f"two records of {self.name}/{arm} with seed {own['seed'][twice].iloc[0]}")
        if set(own["data"]) != {self.data}:
            found = ", ".join(sorted(set(own["data"])))
            raise _Unusable(f"the records of {self.name}/{arm} are of {found}, not {self.data}")
        return own

    def measured(self, arm: str, metric: str) -> pd.Series:
        """By seed. Raises _Unusable where the records don't have it."""
        if (arm, metric) not in self._measured:
            try:
                self._measured[arm, metric] = measured(self.records, arm, metric,
                                                       self._run_tables(arm) if metric in METRICS else None)
            except ValueError:
                raise _Unusable(f"the records of {self.name}/{arm} have no {metric}") from None
        return self._measured[arm, metric]

    def _run_tables(self, arm: str) -> list[RunTables]:
        if arm not in self._tables:
            self._tables[arm] = run_tables(self.records, arm)
        return self._tables[arm]

    def only_counted(self, arm: str) -> int:
        return only_counted(self._run_tables(arm))

    def unfinished(self, arm: str) -> int:
        return sum(line.startswith(f"{arm}-") for line in self.records.unfinished)


def _sample(contrast: Contrast, studies: dict[str, _Study]) -> Sample:
    """Values of the seeds that all arms of the contrast have."""
    runs, values, notes = {}, {}, []
    for arm in dict.fromkeys(contrast.arms):
        study, name = studies[arm.split("/", 1)[0]], arm.split("/", 1)[1]
        shift = contrast.seed_shift if arm in contrast.a else 0
        try:
            own, found = study.arm(name), study.measured(name, contrast.metric)
        except _Unusable as reason:
            return _nothing(str(reason))
        values[arm] = found.dropna()
        if shift:
            values[arm].index -= shift
            own = replace(own, ids={seed - shift: one for seed, one in own.ids.items()},
                          places={seed - shift: place for seed, place in own.places.items()})
        runs[arm] = own
        if missing := len(found) - len(values[arm]):
            notes.append(f"{missing} of {len(found)} runs of {arm} have no {contrast.metric}" + (
                "; of their flips the records keep only the number" if study.only_counted(name) else ""))
        if unfinished := study.unfinished(name):
            notes.append(f"{unfinished} runs of {arm} are not finished")
    compared = [contrast.a + contrast.b] + ([contrast.against] if contrast.against else [])
    for arms in compared:
        if reason := _incomparable(arms, runs):
            return _nothing(reason)
    seeds = sorted(set.intersection(*(set(v.index) for v in values.values())))
    if not seeds:
        return _nothing(f"no seed with all of {', '.join(runs)}", notes)
    places = {arm: own.places for arm, own in runs.items()}
    if not contrast.across_precisions:
        mixed = [s for s in seeds if any(len({places[arm][s] for arm in arms}) > 1 for arms in compared)]
        seeds = [s for s in seeds if s not in mixed]
        if mixed:
            notes.append(f"{len(mixed)} seeds left out: their arms ran on different devices or precisions")
        if not seeds:
            return _nothing("the arms ran on different devices or precisions in each seed", notes)
    several = pd.Series([places[arm][s] for s in seeds for arm in runs]).value_counts()
    if len(several) > 1:
        notes.append("runs of several devices or precisions: " + ", ".join(f"{k} ({v})" for k, v in several.items()))
    side = lambda arms: _spread([values[arm][seeds] for arm in arms])                                       # noqa: E731
    result = side(contrast.a)
    if contrast.b:
        result = result - side(contrast.b)
    if contrast.against:
        result = result - (values[contrast.against[0]][seeds] - values[contrast.against[1]][seeds])
    ids = tuple(own.ids[s] for own in runs.values() for s in seeds)
    drawn = any(own.drawn for own in runs.values())
    data = tuple(sorted(set().union(*(own.data for own in runs.values()))))
    return Sample(result, ids, tuple(notes), drawn=drawn, data=data)


def _nothing(reason: str, notes: Sequence[str] = ()) -> Sample:
    return Sample(pd.Series(dtype=float), notes=tuple(notes), reason=reason)


def _spread(values: list[pd.Series]) -> pd.Series:
    """One arm's values; of several, largest - smallest by seed."""
    if len(values) == 1:
        return values[0]
    table = pd.concat(values, axis=1)
    return table.max(axis=1) - table.min(axis=1)


def _incomparable(arms: tuple[str, ...], runs: dict[str, _Arm]) -> str:
    """Why runs of these arms can't be subtracted from each other; empty where they can."""
    for key in SAME:
        found = set().union(*(runs[arm].same[key] for arm in arms))
        if len(found) > 1:
            names = ", ".join(dict.fromkeys(arms))
            return f"{names} differ in {key.removeprefix('setting_')}: {', '.join(sorted(found))}"
    return ""


def verdict_table(verdicts: Sequence[ClaimVerdict]) -> pd.DataFrame:
    """A row a contrast (claims that aren't judged: one row), with the paper's numbers, ours, tests and verdicts.

    records: ids of the runs behind it, joined by commas.
    """
    rows = []
    for v in verdicts:
        head = {"claim": v.claim.name, "text": v.claim.text, "claim_verdict": v.verdict, "claim_reason": v.reason}
        if not v.contrasts:
            rows.append({**head, "verdict": v.verdict, "reason": v.reason, "n": 0})
        for c in v.contrasts:
            j, estimate = c.judgement, c.judgement.estimate
            numbers = {} if estimate is None else {
                "estimate": estimate.mean, "low": estimate.low, "high": estimate.high, "bca_low": j.bca.low,
                "bca_high": j.bca.high, "improvement": j.improvement.mean, "detectable": j.detectable,
                "met": j.met.mean if j.met else None}
            rows.append({
                **head, "contrast": c.contrast.label, "metric": c.contrast.metric, "direction": c.contrast.direction,
                "family": c.contrast.family, "margin": c.contrast.margin, "value": c.contrast.value,
                "paper_a": c.contrast.paper.get("a"), "paper_b": c.contrast.paper.get("b"),
                "paper_difference": c.paper_difference, "n": j.n, "least_n": c.contrast.n, **numbers,
                "p": j.p, "p_adjusted": j.p_adjusted, "equivalent_p": j.equivalent_p,
                "equivalent_p_adjusted": j.equivalent_p_adjusted, "verdict": j.verdict,
                "reason": c.sample.reason, "notes": "; ".join(c.sample.notes), "records": ",".join(c.sample.ids),
                **{f"beside_{m}": i.mean for m, i in c.beside.items()}})
    return pd.DataFrame(rows)


def as_text(verdicts: Sequence[ClaimVerdict]) -> str:
    """The verdict table as lines: each claim, then its contrasts with the paper's number beside ours."""
    lines = []
    for v in verdicts:
        lines += [f"{v.claim.name:<4}{v.verdict.upper():<15}{v.claim.text}"]
        lines += [f"{'':<19}{line}" for line in textwrap.wrap(v.reason, 100)]
        for c in v.contrasts:
            asked = f"{c.contrast.metric}: {c.contrast.label} ({_claimed(c.contrast)})"
            first, *more = textwrap.wrap(asked, 100)
            lines += [f"    {c.judgement.verdict:<15}{first}", *(f"{'':<19}{line}" for line in more)]
            lines += [f"{'':<19}{line}" for line in textwrap.wrap(_numbers_of(c), 100)]
    return "\n".join(lines)


def _claimed(c: Contrast) -> str:
    return {"greater": f"claimed: above {c.value:g}", "less": f"claimed: below {c.value:g}",
            "equal": f"claimed: within ±{c.margin:g}", "no_gain": f"claimed: below {c.margin:g}",
            "each_above": f"claimed: each run above {c.value:g}", "each_below": f"claimed: each run below {c.value:g}",
            "shown": "shown only"}[c.direction]


def _numbers_of(c: ContrastVerdict) -> str:
    j = c.judgement
    if not j.n:
        return c.sample.reason
    parts = [f"{j.estimate:+.4f}, n = {j.n}"]
    if c.paper_difference is not None:
        parts.append(f"the paper {c.paper_difference:+.4f}, ours less the paper's "
                     f"{j.estimate.mean - c.paper_difference:+.4f}")
    if j.p == j.p:
        parts.append(f"p = {j.p:.4g}, adjusted {j.p_adjusted:.4g}")
    if j.equivalent_p == j.equivalent_p:
        parts.append(f"within the margin: p = {j.equivalent_p:.4g}, adjusted {j.equivalent_p_adjusted:.4g}")
    if j.met:
        parts.append(f"{round(j.met.mean * j.n)} of {j.n} runs")
    return "; ".join([*parts, *c.sample.notes])


def main(argv: list[str] | None = None) -> int:
    root = find_workspace().root
    parser = argparse.ArgumentParser(prog="python -m fer_lib.claims", description="The paper's claims, judged.")
    parser.add_argument("--records", type=Path, default=root / "notebooks" / "results",
                        help="a folder with one folder for each study: notebooks/results (default), or runs")
    parser.add_argument("--claims", type=Path, default=root / "notebooks" / "studies" / "claims.yml")
    parser.add_argument("--size", choices=("quick", "standard", "paper"), default="standard",
                        help="which of the studies' sizes (default: standard)")
    args = parser.parse_args(argv)
    try:
        claims = at_size(read_claims(args.claims), args.claims, args.size)
        if not os.path.isdir(args.records):             # False also for what no path can be
            raise ClaimError(f"no folder of records at '{args.records}'")
        print(as_text(judge(claims, args.records)))
    except ClaimError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
