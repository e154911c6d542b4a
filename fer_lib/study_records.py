"""The records of a study where a notebook wants them: what is here, or what is missing and what it would cost.

Nothing here imports torch.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from fer_lib.claims import ClaimVerdict, judge
from fer_lib.claims_file import ClaimError, at_size, read_claims
from fer_lib.curves import seed_words
from fer_lib.files import results_below
from fer_lib.records import Records, read_records
from fer_lib.workspace import Workspace

SIZES = ("quick", "standard", "paper")


def places(workspace: Workspace, name: str) -> list[Path]:
    """Where a study's records may lie: those that came with the kit, then those made here."""
    return [workspace.root / "notebooks" / "results" / name, workspace.runs / name]


def find_study(workspace: Workspace, name: str) -> Records | None:
    """The study's records from the first place that has any finished run."""
    for place in places(workspace, name):
        if (place / "runs.parquet").exists() or results_below(place):
            records = read_records(place)
            if len(records.runs):
                return records
    return None


def studies_in(workspace: Workspace, names: Sequence[str], records: str = "notebooks/results",
               size: str = "standard") -> dict[str, Records]:
    """By study, its records at that size below the folder `records`, which has one folder for each study; those
    without finished runs are left out. Raises ClaimError for a size or a folder that there isn't.
    """
    if size not in SIZES:
        raise ClaimError(f"no size '{size}' (choose from {', '.join(SIZES)})")
    if not os.path.isdir(workspace.root / records):
        raise ClaimError(f"no folder of records at '{records}'")
    found = {}
    for name in names:
        place = workspace.root / records / (name if size == "standard" else f"{name}-{size}")
        if (place / "runs.parquet").exists() or results_below(place):
            own = read_records(place)
            found |= {name: own} if len(own.runs) else {}
    return found


def missing(workspace: Workspace, name: str, size: str = "standard") -> str:
    """What to do for a study without records, and what it costs by the records that came with the kit."""
    folder = name if size == "standard" else f"{name}-{size}"
    said = f"No records of the study '{folder}' are here (neither in notebooks/results/{folder} nor in runs/{folder})."
    if not _file(workspace, name).exists():
        return f"{said} This version of the kit has no notebooks/studies/{name}.yml to make them with."
    seeds = _seeds(workspace, name, size)
    return f"{said} To make them: {_command(name, size)}, {sum(seeds.values())} runs ({len(seeds)} arms)." \
           f"{_cost(workspace, sum(seeds.values()), size)}"


def lacking(workspace: Workspace, found: Mapping[str, Records], wanted: Sequence[str], size: str = "standard") -> str:
    """What a part of a notebook needs and `found` (`studies_in`) doesn't have, and how to make it: a line a study, then
    its command; empty where all is here. wanted: STUDY, of which any arm will do, STUDY/ARM, or STUDY/* for each arm
    that runs at that size.
    """
    said = []
    for study in dict.fromkeys(name.split("/")[0] for name in wanted):
        arms = [name.split("/", 1)[1] for name in wanted if name.startswith(f"{study}/")]
        arms = list(_seeds(workspace, study, size)) if "*" in arms else arms
        here = set(found[study].runs["name"]) if study in found else set()
        if not here:
            said.append(f"No records of {study} here. {_how(workspace, study, size)}")
        elif not set(arms) <= here:
            arms = [arm for arm in arms if arm not in here]
            said.append(f"No records of {study}/{', '.join(arms)} here. {_how(workspace, study, size, arms)}")
    return "\n".join(said)


def what_is_here(workspace: Workspace, found: Mapping[str, Records], names: Sequence[str], size: str) -> list[str]:
    """Each study's data, arms and seeds, and which seeds these are where arms differ; or what to do where there are no
    records.
    """
    lines = []
    for name in names:
        if name in found:
            runs = found[name].runs
            arms = ", ".join(f"{arm} {n}" for arm, n in runs.groupby("name", sort=False).size().items())
            kind = "drawn faces: they show how it works and judge nothing" if runs["drawn"].any() else "photographs"
            lines.append(f"{name}: {', '.join(runs['data'].unique())} ({kind}); seeds: {arms}")
            if apart := seed_words(runs):
                lines.append(f"    not the same seeds: {apart}")
        else:
            lines.append(lacking(workspace, found, [name], size))
    return lines


def _how(workspace: Workspace, name: str, size: str, arms: Sequence[str] = ()) -> str:
    """The command that makes a study's records, or those of some of its arms, and what that costs."""
    seeds = _seeds(workspace, name, size)
    chosen = [arm for arm in seeds if arm in arms or not arms]
    if not chosen:
        return f"The study's size '{size}' has none of them."
    runs, some = sum(seeds[arm] for arm in chosen), f" --arms {','.join(chosen)}" if len(chosen) < len(seeds) else ""
    return f"To make them, {runs} runs ({len(chosen)} arms).{_cost(workspace, runs, size)}\n" \
           f"    {_command(name, size)}{some}"


def _command(name: str, size: str) -> str:
    return f"python -m fer_lib.batch notebooks/studies/{name}.yml" + ("" if size == "standard" else f" --size {size}")


def _file(workspace: Workspace, name: str) -> Path:
    return workspace.root / "notebooks" / "studies" / f"{name}.yml"


def _seeds(workspace: Workspace, name: str, size: str = "standard") -> dict[str, int]:
    """The number of seeds of each arm that runs at that size."""
    content = yaml.safe_load(_file(workspace, name).read_text())
    own = (content.get("sizes") or {}).get(size) or {}
    seeds, arms = own.get("seeds", content["seeds"]), own.get("arms", list(content["arms"]))
    seeds = seeds if isinstance(seeds, int) else len(seeds)
    return {arm: min(seeds, (content["arms"][arm] or {}).get("seeds", seeds)) for arm in arms}


def _cost(workspace: Workspace, runs: int, size: str = "standard") -> str:
    """What so many runs cost by the Table 1 that came with the kit: runs share a GPU, so each takes a part of it."""
    if size != "standard":                              # nothing of another size came with it
        return ""
    found = find_study(workspace, "table1")
    if found is None or "runs_together" not in found.runs or not found.runs["runs_together"].notna().any():
        return ""
    own = found.runs[found.runs["runs_together"].notna()]
    seconds = (own["seconds"] / own["runs_together"]).median()
    device = " or ".join(sorted(set(own["env_device"])))
    hours, minutes = runs * seconds / 3600, math.ceil(runs * seconds / 60)
    cost = f"{hours:.1f} hours" if hours >= .1 else f"{minutes} minute{'s' * (minutes > 1)}"
    return f" A run of Table 1 took {seconds:.0f} s of one {device}, so about {cost} of it if each took as long."


def judged(workspace: Workspace, names: Sequence[str] = (), records: str = "notebooks/results",
           size: str = "standard", file: str = "claims.yml") -> list[ClaimVerdict]:
    """The verdicts of these claims (all, without names) on the records below the folder `records`, which has one folder
    for each study.

    file: of notebooks/studies; choices.yml has, in the same form, what other readings of the paper would change.

    Raises ClaimError for a claims file or a size that can't be read, and for a claim or a folder that there isn't.
    """
    if size not in SIZES:
        raise ClaimError(f"no size '{size}' (choose from {', '.join(SIZES)})")
    path = workspace.root / "notebooks" / "studies" / file
    claims = at_size(read_claims(path), path, size)
    if unknown := [name for name in names if name not in {c.name for c in claims.claims}]:
        raise ClaimError(f"no claim '{unknown[0]}' (choose from {', '.join(c.name for c in claims.claims)})")
    if not os.path.isdir(workspace.root / records):
        raise ClaimError(f"no folder of records at '{records}'")
    if names:                                           # p are adjusted within a family: no other claim matters
        families = {c.family for claim in claims.claims if claim.name in names for c in claim.contrasts}
        claims = replace(claims, claims=tuple(claim for claim in claims.claims if claim.name in names
                                              or families & {c.family for c in claim.contrasts}))
    found = {v.claim.name: v for v in judge(claims, workspace.root / records)}
    return [found[name] for name in names or found]


def to_make(workspace: Workspace, verdicts: Sequence[ClaimVerdict]) -> str:
    """The commands that make what these verdicts lack, a line a study, and what that costs at most; empty where nothing
    is lacking.
    """
    lacking: dict[str, list[str]] = {}
    size = "standard"
    for c in (c for v in verdicts for c in v.contrasts):
        if c.judgement.n < (1 if c.contrast.direction == "shown" or c.sample.drawn else c.contrast.n):
            for arm in c.contrast.arms:
                study, name = arm.split("/", 1)
                study, _, size = study.partition("-") if not _file(workspace, study).exists() else (study, "", size)
                names = lacking.setdefault(study, [])
                names += [name] if name not in names else []
    lines, runs = [], 0
    for study, names in lacking.items():
        seeds = _seeds(workspace, study, size)
        names = [name for name in names if name in seeds]
        if not names:                                   # that size has none of them
            continue
        runs += sum(seeds[name] for name in names)
        arms = "" if set(names) == set(seeds) else f" --arms {','.join(names)}"
        lines.append(_command(study, size) + arms)
    return "\n".join(lines) + f"\n{runs} runs at most.{_cost(workspace, runs, size)}" if lines else ""


def to_make_each(workspace: Workspace, verdicts: Sequence[ClaimVerdict]) -> pd.DataFrame:
    """`to_make` of each claim by itself: a row for each that lacks something. Claims share runs, so costs don't add up.
    """
    rows = {v.claim.name: to_make(workspace, [v]) for v in verdicts}
    found = [{"claim": name, "commands": ", then ".join(text.splitlines()[:-1]), "cost": text.splitlines()[-1]}
             for name, text in rows.items() if text]
    return pd.DataFrame(found, columns=["claim", "commands", "cost"]).set_index("claim")


def flips_by_run(flips: pd.DataFrame) -> pd.DataFrame:
    """By run (name, seed): its steps with a flip, their number, the first, and the median of the steps between."""
    rows = []
    for (name, seed), own in flips.groupby(["name", "seed"]):
        steps = own["step"].drop_duplicates().sort_values()
        rows.append({"arm": name, "seed": seed, "flips": len(steps), "first": steps.iloc[0],
                     "median interval": steps.diff().median()})
    return pd.DataFrame(rows)
