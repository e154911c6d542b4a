"""The records of a study where a notebook wants them: what is here, or what is missing and what it would cost.

Nothing here imports torch.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from fer_lib.claims import ClaimVerdict, judge
from fer_lib.claims_file import ClaimError, at_size, read_claims
from fer_lib.records import Records, read_records
from fer_lib.workspace import Workspace


def places(workspace: Workspace, name: str) -> list[Path]:
    """Where a study's records may lie: those that came with the kit, then those made here."""
    return [workspace.root / "notebooks" / "results" / name, workspace.runs / name]


def find_study(workspace: Workspace, name: str) -> Records | None:
    """The study's records from the first place that has any finished run."""
    for place in places(workspace, name):
        if (place / "runs.parquet").exists() or any(place.rglob("result.json")):
            records = read_records(place)
            if len(records.runs):
                return records
    return None


def missing(workspace: Workspace, name: str) -> str:
    """What to do for a study without records, and what it costs by the records that came with the kit."""
    said = f"No records of the study '{name}' are here (neither in notebooks/results/{name} nor in runs/{name})."
    if not _file(workspace, name).exists():
        return f"{said} This version of the kit has no notebooks/studies/{name}.yml to make them with."
    seeds = _seeds(workspace, name)
    return f"{said} To make them: python -m fer_lib.batch notebooks/studies/{name}.yml, {sum(seeds.values())} runs " \
           f"({len(seeds)} arms).{_cost(workspace, sum(seeds.values()))}"


def _file(workspace: Workspace, name: str) -> Path:
    return workspace.root / "notebooks" / "studies" / f"{name}.yml"


def _seeds(workspace: Workspace, name: str) -> dict[str, int]:
    """The number of seeds of each arm."""
    content = yaml.safe_load(_file(workspace, name).read_text())
    seeds = content["seeds"] if isinstance(content["seeds"], int) else len(content["seeds"])
    return {arm: min(seeds, (own or {}).get("seeds", seeds)) for arm, own in content["arms"].items()}


def _cost(workspace: Workspace, runs: int) -> str:
    """What so many runs cost by the Table 1 that came with the kit: runs share a GPU, so each takes a part of it."""
    found = find_study(workspace, "table1")
    if found is None or "runs_together" not in found.runs or not found.runs["runs_together"].notna().any():
        return ""
    own = found.runs[found.runs["runs_together"].notna()]
    seconds = (own["seconds"] / own["runs_together"]).median()
    device = " or ".join(sorted(set(own["env_device"])))
    return f" A run of Table 1 took {seconds:.0f} s of one {device}, so about {runs * seconds / 3600:.1f} hours of it."


def judged(workspace: Workspace, names: Sequence[str] = (), records: str = "notebooks/results",
           size: str = "standard") -> list[ClaimVerdict]:
    """The verdicts of these claims (all, without names) on the records below the folder `records`, a folder a study.

    Raises ClaimError for a claims file or a size that can't be read, and for a claim or a folder that there isn't.
    """
    file = workspace.root / "notebooks" / "studies" / "claims.yml"
    claims = at_size(read_claims(file), file, size)
    if unknown := [name for name in names if name not in {c.name for c in claims.claims}]:
        raise ClaimError(f"no claim '{unknown[0]}' (choose from {', '.join(c.name for c in claims.claims)})")
    if not (workspace.root / records).is_dir():
        raise ClaimError(f"no folder of records at '{records}'")
    found = {v.claim.name: v for v in judge(claims, workspace.root / records)}
    return [found[name] for name in names or found]


def to_make(workspace: Workspace, verdicts: Sequence[ClaimVerdict]) -> str:
    """The commands that make what these verdicts lack, a line a study, and what that costs at most; empty where nothing
    is lacking.
    """
    lacking: dict[str, list[str]] = {}
    for c in (c for v in verdicts for c in v.contrasts):
        if c.judgement.n < (1 if c.contrast.direction == "shown" else c.contrast.n):
            for arm in c.contrast.arms:
                study, name = arm.split("/", 1)
                names = lacking.setdefault(study, [])
                names += [name] if name not in names else []
    lines, runs = [], 0
    for study, names in lacking.items():
        seeds = _seeds(workspace, study)
        runs += sum(seeds[name] for name in names)
        arms = "" if set(names) == set(seeds) else f" --arms {','.join(names)}"
        lines.append(f"python -m fer_lib.batch notebooks/studies/{study}.yml{arms}")
    return "\n".join(lines) + f"\n{runs} runs at most.{_cost(workspace, runs)}" if lines else ""


def flips_by_run(flips: pd.DataFrame) -> pd.DataFrame:
    """By run (name, seed): its steps with a flip, their number, the first, and the median of the steps between."""
    rows = []
    for (name, seed), own in flips.groupby(["name", "seed"]):
        steps = own["step"].drop_duplicates().sort_values()
        rows.append({"arm": name, "seed": seed, "flips": len(steps), "first": steps.iloc[0],
                     "median interval": steps.diff().median()})
    return pd.DataFrame(rows)
