"""Many runs as tables: from their directories, or from a study's few small files as `export` wrote them.

    python -m fer_lib.records export runs/NAME --out notebooks/results/NAME

Nothing here imports torch: a laptop rebuilds every figure from records.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fer_lib.files import RECORD_FORMAT, RecordError, write_table

# single methods in this order, then combinations
ORDER = ("baseline", "dropout", "periodic", "dynamic", "bn_negation", "random_flip", "gaussian_noise",
         "shrink_perturb", "bn_reset", "shakedrop")


@dataclass(frozen=True)
class Records:
    """Many runs as tables. Each has the columns study, name, method, seed and id; `runs` has one row a finished run.

    Left out, by directory: `unfinished` runs, and those `steered` by a reader's hand. `robustness`: of those runs that
    fer_lib.robustness measured; `runs` has its means as uncorrupted_* and corrupted_* (over kinds and severities).
    """

    runs: pd.DataFrame
    epochs: pd.DataFrame
    flips: pd.DataFrame
    history: pd.DataFrame
    unfinished: list[str]
    steered: list[str] = field(default_factory=list)
    robustness: pd.DataFrame = field(default_factory=pd.DataFrame)


MOST_STEPS = 2 ** 31 - 1        # of a run: they are counted in 32 bits
TABLES = ("epochs", "flips", "history")


def read_records(folder: Path) -> Records:
    """The records below a folder: run directories, or one study as `export` wrote it. Raises RecordError if it is none.
    """
    if (folder / "runs.parquet").exists():
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("runs", *TABLES)}
        if (folder / "robustness.parquet").exists():
            tables["robustness"] = pd.read_parquet(folder / "robustness.parquet")
        return Records(**tables, unfinished=[])
    results = sorted(folder.rglob("result.json"))
    if not results:
        raise RecordError(f"no records in '{folder.name}': run a study first, for example 'make study'")
    rows, tables, unfinished, steered = [], {name: [] for name in (*TABLES, "robustness")}, [], []
    for path in results:
        result = read_result(path)
        if result["steered"]:
            steered.append(path.parent.name)
            continue
        if result["status"] != "finished":
            unfinished.append(f"{path.parent.name}: {result['status']}")
            continue
        rows.append(_run_row(path.parent, result))
        own = {name: pd.read_parquet(path.parent / f"{name}.parquet") for name in TABLES}
        if (path.parent / "robustness.parquet").exists():
            own["robustness"] = pd.read_parquet(path.parent / "robustness.parquet")
            rows[-1] |= _robustness_means(own["robustness"])
        for name, table in own.items():
            tables[name].append(table.assign(**{k: rows[-1][k] for k in ("study", "name", "method", "seed", "id")}))
    joined = {name: pd.concat(t, ignore_index=True) if t else pd.DataFrame() for name, t in tables.items()}
    rows.sort(key=lambda row: (rank(row["method"]), row["study"], row["name"], row["seed"]))
    return Records(pd.DataFrame(rows), unfinished=unfinished, steered=steered, **joined)


def _robustness_means(table: pd.DataFrame) -> dict[str, float]:
    """A run's measures on the test split as it is, and their means over all corruptions."""
    intact = table["kind"] == "none"
    names = [c for c in table if c not in ("kind", "severity", "n", "version")]
    return {f"{part}_{name}": float(table.loc[rows, name].mean()) for name in names
            for part, rows in (("uncorrupted", intact), ("corrupted", ~intact))}


def read_result(path: Path) -> dict:
    """A run's result.json. Raises RecordError where it is damaged or of another format."""
    name = path.parent.name
    try:
        result = json.loads(path.read_text())
    except ValueError:
        raise RecordError(f"'{name}/result.json' is damaged: delete that file to train the run again") from None
    found = result.get("format") if isinstance(result, dict) else None
    if found != RECORD_FORMAT:
        raise RecordError(f"'{name}' is a record of format {found}, this version reads {RECORD_FORMAT}: read it with "
                          "the version of this kit that wrote it, or move it away to train the run again")
    return result


def rank(method: str) -> tuple:
    """Tables show single methods in ORDER, then combinations."""
    parts = method.split("+")
    return len(parts), [ORDER.index(p) for p in parts]


def _run_row(path: Path, result: dict) -> dict:
    """One run as a flat row: place, settings, numbers, environment."""
    head = json.loads((path / "experiment.json").read_text())
    env = json.loads((path / "environment.json").read_text())
    row = {k: result[k] for k in ("study", "name", "method", "seed", "id", "status", "steered", "seconds",
                                  "images_per_second", "max_val_macro_f1", "min_train_loss", "steps",
                                  "steps_per_epoch")}
    row |= {k: result.get(k) for k in ("runs_together", "peak_memory_bytes")}       # older records don't have them
    for part in ("chosen", "last", "flips", "n"):
        row |= {f"{part}_{k}": v for k, v in result[part].items()}
    row |= {f"setting_{k}": v for k, v in head["experiment"].items() if k not in ("study", "name", "seed", "method")}
    row |= {k: head[k] for k in ("data", "data_hash", "drawn", "semantics")} | {"classes": ",".join(head["classes"])}
    return row | {f"env_{k}": v for k, v in env.items() if k != "packages"} | {
        f"env_{k}": v for k, v in env["packages"].items()}


def export(folder: Path, out: Path, every: int = 64) -> Records:
    """Write a study's records as a few small tables: histories keep each `every`-th step and w's mean, min and max.

    Numbers only: no weights, no images. Raises RecordError where runs are unfinished.
    """
    records = read_records(folder)
    if records.unfinished:
        raise RecordError(f"{len(records.unfinished)} runs in '{folder.name}' are not finished "
                          f"({records.unfinished[0]}): finish the study before exporting it")
    history = records.history
    keep = [c for c in history if not c.startswith(("w_sd/", "w_channel/"))]
    history = history.loc[history["step"] % every == 0, keep]
    floats = history.select_dtypes("float").columns
    history = history.astype({c: np.float32 for c in floats})
    out.mkdir(parents=True, exist_ok=True)
    measured = [("robustness", records.robustness)] if len(records.robustness) else []
    for name, table in (("runs", records.runs), ("epochs", records.epochs), ("flips", records.flips),
                        ("history", history), *measured):
        write_table(out / f"{name}.parquet", table.drop(columns=[c for c in table if c == "setting_data"]))
    return read_records(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.records", description="Records of runs, as small tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    export_command = commands.add_parser("export", help="write a study's records as small tables (numbers only)")
    export_command.add_argument("study", type=Path, help="a folder of runs, such as runs/quick")
    export_command.add_argument("--out", type=Path, required=True, help="such as notebooks/results/quick")
    export_command.add_argument("--every", type=int, default=64, help="keep each N-th step of the history")
    args = parser.parse_args(argv)
    try:
        if not 1 <= args.every <= MOST_STEPS:
            raise ValueError(f"--every is a whole number from 1 to {MOST_STEPS}, not {args.every}")
        records = export(args.study, args.out, args.every)
    except (RecordError, ValueError, OSError) as error:
        print(f"records: {error}", file=sys.stderr)
        return 2
    print(f"{len(records.runs)} runs in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
