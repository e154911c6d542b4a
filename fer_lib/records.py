"""Many runs as tables: from their directories, or from a study's few small files as `export` wrote them.

    python -m fer_lib.records export runs/NAME --out notebooks/results/NAME
    python -m fer_lib.records join notebooks/results/NAME more/NAME --out notebooks/results/NAME

Nothing here imports torch: a laptop rebuilds every figure from records.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fer_lib.files import (
    MEASURE_AGAIN,
    RECORD_FORMAT,
    RecordError,
    read_json,
    read_table,
    reading,
    results_below,
    write_together,
)

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
MOST_FLIPS = 50_000             # rows of one run in exported tables: more are signs drawn at each step
SAME = ("id", "data_hash", "env_device", "env_precision", "steps", "chosen_epoch", "chosen_val_macro_f1",
        "min_train_loss")       # of two records of one run


def read_records(folder: Path) -> Records:
    """The records below a folder: run directories, or one study as `export` wrote it. Raises RecordError if it is none,
    and where a file of a finished run is missing or damaged.
    """
    if os.path.isfile(folder / "runs.parquet"):         # False also for what no path can be
        return _read_exported(folder)
    results = results_below(folder) if os.path.isdir(folder) else []
    if not results:
        raise RecordError(f"no records in '{folder.name}': run a study first, for example 'make study'")
    rows, tables, unfinished, steered = [], {name: [] for name in (*TABLES, "robustness")}, [], []
    for path in results:
        try:
            result = read_result(path)
        except FileNotFoundError:                       # moved aside in this moment: it is steered now
            continue
        if result["steered"]:
            steered.append(path.parent.name)
            continue
        if result["status"] != "finished":
            unfinished.append(f"{path.parent.name}: {result['status']}")
            continue
        try:
            row, own = _read_run(path.parent, result)
        except RecordError:
            if path.exists():
                raise
            continue                                    # moved aside in this moment
        rows.append(row)
        for name, table in own.items():
            tables[name].append(table.assign(**{k: rows[-1][k] for k in ("study", "name", "method", "seed", "id")}))
    filled = {name: [table for table in t if len(table)] or t[:1] for name, t in tables.items()}    # else dtypes go
    joined = {name: pd.concat(t, ignore_index=True) if t else pd.DataFrame() for name, t in filled.items()}
    rows.sort(key=lambda row: (rank(row["method"]), row["study"], row["name"], row["seed"]))
    return Records(pd.DataFrame(rows), unfinished=unfinished, steered=steered, **joined)


def _read_run(path: Path, result: dict) -> tuple[dict, dict[str, pd.DataFrame]]:
    """A finished run's row and tables. Raises RecordError."""
    row = _run_row(path, result)
    tables = {name: read_table(path / f"{name}.parquet") for name in TABLES}
    if (path / "robustness.parquet").exists():
        with reading(path / "robustness.parquet", MEASURE_AGAIN):
            tables["robustness"] = pd.read_parquet(path / "robustness.parquet")
            row |= _robustness_means(tables["robustness"])
    return row, tables


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
    """One run as a flat row: place, settings, numbers, environment. Raises RecordError."""
    head, env = read_json(path / "experiment.json"), read_json(path / "environment.json")
    with reading(path / "result.json"):
        row = {k: result[k] for k in ("study", "name", "method", "seed", "id", "status", "steered", "seconds",
                                      "images_per_second", "max_val_macro_f1", "min_train_loss", "steps",
                                      "steps_per_epoch")}
        row |= {k: result.get(k) for k in ("runs_together", "peak_memory_bytes")}   # older records don't have them
        for part in ("chosen", "last", "flips", "n"):
            row |= {f"{part}_{k}": v for k, v in result[part].items()}
    with reading(path / "experiment.json"):
        row |= {f"setting_{k}": v for k, v in head["experiment"].items()
                if k not in ("study", "name", "seed", "method")}
        row |= {k: head[k] for k in ("data", "data_hash", "drawn", "semantics")}
        row["classes"] = ",".join(head["classes"])
    with reading(path / "environment.json"):
        return row | {f"env_{k}": v for k, v in env.items() if k != "packages"} | {
            f"env_{k}": v for k, v in env["packages"].items()}


def export(folder: Path, out: Path, every: int = 64, most_flips: int = MOST_FLIPS) -> Records:
    """Write a study's records as a few small tables. Numbers only: no weights, no images.

    `runs` is kept whole. Of histories each `every`-th step, the loss, the learning rate and w's mean by site; of epochs
    all scores, with F1 by class and the confusion matrix at the chosen and the last epoch; of runs with more rows of
    flips than `most_flips` only their number, in `runs`. Losses, accuracies and what corruptions cost are rounded to
    single precision (a relative error of 6e-8). Raises RecordError where runs are unfinished.
    """
    return join([folder], out, every, most_flips)


def join(folders: Sequence[Path], out: Path, every: int = 64, most_flips: int = MOST_FLIPS) -> Records:
    """`export` of one study whose records lie in several places, each a folder of runs or an exported study; `out` may
    be one of them. A run that is in several of them is taken once, from where most is known of it.

    Raises RecordError where runs are unfinished, of several studies, or differ though arm and seed are the same, and
    where `out` is a run's own folder. Until all tables are on the disk the old ones stay.
    """
    if (out / "experiment.json").exists():
        raise RecordError(f"'{out.name}' is a run's own folder, whose tables would be lost: export into another one")
    found = [_whole(read_records(folder), folder) for folder in folders]
    if len(studies := sorted({study for records in found for study in records.runs["study"]})) > 1:
        places = ", ".join(f"'{folder}'" for folder in folders)
        raise RecordError(f"records of several studies ({', '.join(studies)}) in {places}: export each into a folder "
                          "of its own")
    parts = [_small(records, every, most_flips) for records in found]
    runs = pd.concat([part["runs"] for part in parts], ignore_index=True)
    origin = np.repeat(np.arange(len(parts)), [len(part["runs"]) for part in parts])
    again = _repeated(runs, [folders[k] for k in origin])
    order = sorted(np.flatnonzero(~again), key=lambda n: (rank(runs["method"][n]), runs["name"][n], runs["seed"][n]))
    place = {(runs["name"][n], runs["seed"][n]): k for k, n in enumerate(order)}
    taken = [set(zip(own["name"], own["seed"])) for own in (runs[(origin == k) & ~again] for k in range(len(parts)))]
    tables = {}
    for name in (*TABLES, "robustness"):
        own = [table[[pair in keep for pair in zip(table["name"], table["seed"])]]
               for table, keep in zip((part[name] for part in parts), taken) if len(table)]
        table = pd.concat(own, ignore_index=True) if own else parts[0][name]
        places = [place[pair] for pair in zip(table["name"], table["seed"])] if len(table) else []
        tables[name] = table.iloc[np.argsort(places, kind="stable")] if len(table) else table
    _write_tables(out, {**tables, "runs": runs.loc[order]})
    return read_records(out)


def _whole(records: Records, folder: Path) -> Records:
    """The records, where there are some and all runs are finished."""
    if records.unfinished:
        raise RecordError(f"{len(records.unfinished)} runs in '{folder.name}' are not finished "
                          f"({records.unfinished[0]}): finish the study before exporting it")
    if records.runs.empty:
        raise RecordError(f"no runs in '{folder.name}' to export: those in it were steered by hand")
    return records


def _small(records: Records, every: int, most_flips: int) -> dict[str, pd.DataFrame]:
    history, flips, epochs, robustness = records.history, records.flips, records.epochs, records.robustness
    if len(history):
        keep = [c for c in history if not c.startswith(("w_sd/", "w_channel/", "w_min/", "w_max/"))]
        history = _single(history.loc[history["step"] % every == 0, keep])
    if len(epochs):
        ends = records.runs.set_index(["name", "seed"])[["chosen_epoch", "last_epoch"]]
        ends = ends[~ends.index.duplicated()]           # copies of one run
        own = ends.loc[list(zip(epochs["name"], epochs["seed"]))].to_numpy()
        other = (epochs["epoch"].to_numpy()[:, None] != own).all(1)
        epochs = _single(epochs, ("loss", "train_loss", "accuracy"))
        epochs.loc[other, ["f1", "confusion"]] = None
        # a column that says again what another split or mode said compresses to nothing
        by = ["name", "seed", "mode", "split"]
        epochs = epochs.sort_values(by, kind="stable", ascending=[True, True, False, False])
    if len(flips):
        flips = flips[flips.groupby(["name", "seed"])["step"].transform("size") <= most_flips]
    tables = {"runs": records.runs, "epochs": epochs, "flips": flips, "history": history,
              "robustness": _single(robustness)}
    return {name: table.drop(columns=[c for c in table if c == "setting_data"]) for name, table in tables.items()}


def _single(table: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A copy with these columns (all floats, without names) in single precision."""
    floats = table.select_dtypes("float").columns
    return table.astype({c: np.float32 for c in floats if columns is None or c in columns})


def _repeated(runs: pd.DataFrame, folders: Sequence[Path]) -> np.ndarray:
    """True for each row to leave out, because its run is in another as well, which says as much or more. Raises
    RecordError where the two differ.
    """
    again = np.zeros(len(runs), bool)
    known = runs.notna().sum(axis=1)
    first: dict[tuple, int] = {}
    for n, pair in enumerate(zip(runs["name"], runs["seed"])):
        k = first.setdefault(pair, n)
        if k == n:
            continue
        for column in SAME:
            if runs[column][k] != runs[column][n]:
                raise RecordError(f"two runs of arm '{pair[0]}', seed {pair[1]}, differ in {column} "
                                  f"({runs[column][k]} in '{folders[k].name}', {runs[column][n]} in "
                                  f"'{folders[n].name}'): leave one out")
        again[k if known[n] > known[k] else n] = True
        first[pair] = n if known[n] > known[k] else k
    return again


# --- small files, which any reader of parquet opens ---


def _write_tables(out: Path, tables: dict[str, pd.DataFrame]) -> None:
    """All or none: `runs` is the last to be renamed, and what it doesn't list is not read."""
    if tables["robustness"].empty:
        (out / "robustness.parquet").unlink(missing_ok=True)        # of an earlier export
        tables = {name: table for name, table in tables.items() if name != "robustness"}
    for name in tables:
        for left in out.glob(f".{name}.parquet.*.tmp"):             # of one that was killed
            left.unlink()
    write_together({out / f"{name}.parquet": lambda p, table=table: _write_small(p, table)
                    for name, table in tables.items()})


def _write_small(path: Path, table: pd.DataFrame) -> None:
    """Half of the size of what pandas writes, and slower: floats byte by byte, no statistics, most compression."""
    floats = list(table.select_dtypes("float").columns)
    encoding = {c: "BYTE_STREAM_SPLIT" for c in floats} | {"step": "DELTA_BINARY_PACKED"}
    encoding = {c: how for c, how in encoding.items() if c in table}
    table.to_parquet(path, index=False, compression="zstd", compression_level=19, write_statistics=False,
                     column_encoding=encoding, use_dictionary=[c for c in table if c not in encoding])


def _read_exported(folder: Path) -> Records:
    again = "take it from a copy, or export the study again"
    runs = read_table(folder / "runs.parquet", again)
    tables = {name: read_table(folder / f"{name}.parquet", again) for name in (*TABLES, "robustness")
              if name != "robustness" or (folder / "robustness.parquet").exists()}
    for name, table in tables.items():
        if len(table) and "id" in table:                # a join that was killed left more than `runs` lists
            table = table[table["id"].isin(set(runs["id"]))].reset_index(drop=True)
        wide = table.select_dtypes(np.float32).columns if name in ("epochs", "robustness") else []
        tables[name] = table.astype({c: float for c in wide})
    return Records(runs=runs, unfinished=[], **tables)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.records", description="Records of runs, as small tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("export", "write a study's records as small tables (numbers only)"),
                        ("join", "the same for records of one study that lie in several places")):
        command = commands.add_parser(
            name, help=words, description="Several places are joined: runs of one study that were made on different "
            "machines, or at other times. A run that is in two of them is taken once.")
        command.add_argument("study", type=Path, nargs="+", help="a folder of runs, such as runs/quick, or an exported "
                             "study, such as notebooks/results/table1")
        command.add_argument("--out", type=Path, required=True, help="such as notebooks/results/quick; may be one of "
                             "those that are read")
        command.add_argument("--every", type=int, default=64, help="keep each N-th step of the history")
        command.add_argument("--most-flips", type=int, default=MOST_FLIPS, metavar="N",
                             help=f"of runs with more rows of flips keep only their number (default: {MOST_FLIPS}); 0 "
                             "keeps none")
    args = parser.parse_args(argv)
    try:
        for name, least in (("every", 1), ("most_flips", 0)):
            if not least <= getattr(args, name) <= MOST_STEPS:
                raise ValueError(f"--{name.replace('_', '-')} is a whole number from {least} to {MOST_STEPS}, not "
                                 f"{getattr(args, name)}")
        records = join(args.study, args.out, args.every, args.most_flips)
    except (RecordError, ValueError, OSError) as error:
        print(f"records: {error}", file=sys.stderr)
        return 2
    print(f"{len(records.runs)} runs in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
