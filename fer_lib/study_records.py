"""The records of a study where a notebook wants them: what is here, or what is missing and what it would cost.

Nothing here imports torch.
"""

from pathlib import Path

import pandas as pd
import yaml

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
    file = workspace.root / "notebooks" / "studies" / f"{name}.yml"
    said = f"No records of the study '{name}' are here (neither in notebooks/results/{name} nor in runs/{name})."
    if not file.exists():
        return f"{said} This version of the kit has no notebooks/studies/{name}.yml to make them with."
    content = yaml.safe_load(file.read_text())
    seeds = content["seeds"] if isinstance(content["seeds"], int) else len(content["seeds"])
    runs = len(content["arms"]) * seeds
    said += f" To make them: python -m fer_lib.batch notebooks/studies/{name}.yml, {runs} runs " \
            f"({len(content['arms'])} arms, {seeds} seeds)."
    measured = find_study(workspace, "table1_fer2013")
    if measured is not None:
        seconds = measured.runs["seconds"].median()
        device = " or ".join(sorted(set(measured.runs["env_device"])))
        said += f" A run of Table 1 took {seconds:.0f} s on {device}, so about {runs * seconds / 3600:.1f} hours there."
    return said


def flips_by_run(flips: pd.DataFrame) -> pd.DataFrame:
    """By run (name, seed): its steps with a flip, their number, the first, and the median of the steps between."""
    rows = []
    for (name, seed), own in flips.groupby(["name", "seed"]):
        steps = own["step"].drop_duplicates().sort_values()
        rows.append({"arm": name, "seed": seed, "flips": len(steps), "first": steps.iloc[0],
                     "median interval": steps.diff().median()})
    return pd.DataFrame(rows)
