"""Studies: a matrix of experiments from a YAML file, trained notebook by notebook, closed by a table and a report.

The command is `python -m fer_lib.batch`.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from fer_lib.claims_file import read_claims
from fer_lib.cluster import ClusterError, connect, start_here
from fer_lib.experiment import Experiment, ParameterError, as_number, settings_of
from fer_lib.files import RecordError
from fer_lib.kernels import run_notebook
from fer_lib.late_imports import without_grammar
from fer_lib.records import read_records
from fer_lib.runs import Run, open_run
from fer_lib.scheduling import Batch, Outcome, measured_groups
from fer_lib.sharing import devices_of
from fer_lib.statistics import compare_arms
from fer_lib.workspace import Workspace, find_workspace

KEYS = {"study", "title", "note", "settings", "arms", "seeds", "report", "measure", "sizes"}
SIZES = ("quick", "standard", "paper")
SIZE_KEYS = {"title", "note", "settings", "arms", "seeds"}
ARM_KEYS = ("seeds", "first_seed")                      # of an arm, beside its settings


@dataclass(frozen=True)
class Study:
    """Every arm with every seed. `measure`: the column of the runs table that the closing table shows."""

    name: str
    experiments: list[Experiment]
    title: str = ""
    note: str = ""
    report: str = ""
    measure: str = "chosen_test_macro_f1"


def read_study(path: Path, seeds: list[int] | None = None, changes: dict[str, object] | None = None,
               name: str | None = None, size: str = "standard", arms: list[str] | None = None) -> Study:
    """Read a study file; `changes` override its settings, `name` its folder below runs/, `arms` takes some of its arms.

    Raises ParameterError naming what is wrong in it.

    study: name · title · note · settings: {field: value} for all arms · arms: {name: {field: value}} ·
    seeds: a count or a list · report: a notebook to run on the records · measure ·
    sizes: {quick, standard or paper: {title, note, settings, arms: names of those that it runs, seeds}}.
    An arm may have `seeds`, the count of the study's that it takes, and `first_seed`, which is added to each.
    A size's settings stand between the study's and the arm's. Records of "quick" go to NAME-quick, of "paper" to
    NAME-paper.
    """
    content = _sized(_content(path), size, path.name)
    settings, arms = content.get("settings") or {}, _taken(content["arms"], arms, path.name)
    name = name or str(content["study"]) + ("" if size == "standard" else f"-{size}")
    seeds = _seed_list(seeds if seeds is not None else content["seeds"], path.name)
    taken = {arm: _arm_seeds(arm, own or {}, seeds, path.name) for arm, own in arms.items()}
    experiments = []
    for k in range(len(seeds)):                         # seeds first: an interrupted study is balanced over its arms
        for arm, own in arms.items():
            own = {key: value for key, value in (own or {}).items() if key not in ARM_KEYS}
            values = {**settings, **own, **(changes or {})}
            if fixed := {"study", "name", "seed"} & set(values):
                raise ParameterError(f"'{min(fixed)}' is no setting of an arm: the study file's keys study, arms and "
                                     "seeds give it")
            values = {k: as_number(k, v) for k, v in values.items()}
            if k >= len(taken[arm]):
                continue
            try:
                experiments.append(Experiment.from_mapping(
                    {**values, "study": name, "name": arm, "seed": taken[arm][k]}))
            except ParameterError as error:
                raise ParameterError(f"arm '{arm}' of '{path.name}': {error}") from None
    texts = {k: str(content[k]).strip() for k in ("title", "note", "report", "measure") if k in content}
    return Study(name, experiments, **texts)


def _content(path: Path) -> dict:
    """The file's mapping, its keys checked."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ParameterError(f"no study file at '{path}' ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:        # also impossible dates, and depth
        raise ParameterError(f"'{path.name}' is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not {"study", "arms", "seeds"} <= set(content):
        raise ParameterError(f"'{path.name}' must have the keys study, arms and seeds")
    if unknown := sorted(str(key) for key in set(content) - KEYS):
        raise ParameterError(f"unknown key '{unknown[0]}' in '{path.name}' (known: {', '.join(sorted(KEYS))})")
    settings, arms = content.get("settings") or {}, content["arms"] or {}
    mapped = isinstance(arms, dict) and all(isinstance(values, dict | None) for values in (settings, *arms.values()))
    if not mapped or not arms:
        raise ParameterError(f"'settings', 'arms' and each arm in '{path.name}' must map names to values, and at least "
                             "one arm is needed")
    return content


def _sized(content: dict, size: str, file: str) -> dict:
    """The study at that size. Without `sizes` in the file the file itself is the standard size, the only one."""
    sizes = content.get("sizes") or {}
    if not isinstance(sizes, dict) or not all(isinstance(own, dict | None) for own in sizes.values()) \
            or not set(sizes) <= set(SIZES):
        raise ParameterError(f"'sizes' in '{file}' maps {', '.join(SIZES)} to mappings")
    if size not in (known := list(dict.fromkeys(("standard", *sizes)))):
        raise ParameterError(f"'{file}' has no size '{size}' (choose {' or '.join(known)})")
    own = sizes.get(size) or {}
    if unknown := sorted(str(key) for key in set(own) - SIZE_KEYS):
        raise ParameterError(f"unknown key '{unknown[0]}' in size '{size}' of '{file}' (known: "
                             f"{', '.join(sorted(SIZE_KEYS))})")
    settings, names = own.get("settings") or {}, own.get("arms", list(content["arms"]))
    if not isinstance(settings, dict):
        raise ParameterError(f"'settings' of size '{size}' in '{file}' must map names to values")
    if not isinstance(names, list) or not names or not all(n in content["arms"] for n in names):
        raise ParameterError(f"'arms' of size '{size}' in '{file}' is a list of the study's arms, not {names!r}")
    return {**content, **own, "settings": {**(content.get("settings") or {}), **settings},
            "arms": {name: content["arms"][name] for name in names}}


def _taken(all_arms: dict, names: list[str] | None, file: str) -> dict:
    """The arms of these names, in the file's order; all without names."""
    if unknown := [name for name in names or [] if name not in all_arms]:
        raise ParameterError(f"no arm '{unknown[0]}' in '{file}' (choose from {', '.join(map(str, all_arms))})")
    return {name: own for name, own in all_arms.items() if names is None or name in names}


def _seed_list(seeds: object, file: str) -> list[int]:
    found = list(range(seeds)) if type(seeds) is int else seeds
    if not isinstance(found, list) or not found or not all(type(s) is int for s in found) \
            or len(set(found)) < len(found):
        raise ParameterError(f"'seeds' in '{file}' is a count or a list of different whole numbers, not {found!r}")
    return found


def _arm_seeds(arm: str, own: dict, seeds: list[int], file: str) -> list[int]:
    """Of the study's seeds the first `seeds`, each plus `first_seed`."""
    count, first = own.get("seeds", len(seeds)), own.get("first_seed", 0)
    if type(count) is not int or type(first) is not int or count < 1 or first < 0:
        raise ParameterError(f"'seeds' and 'first_seed' of arm '{arm}' in '{file}' are whole numbers, at least 1 and "
                             "0")
    return [first + seed for seed in seeds[:count]]


def run_study(study: Study, workspace: Workspace, workers: int, say: Callable[[str], None], together: int = 0,
              scheduler: str = "") -> list[Outcome]:
    """Train what is not finished on a Dask cluster (fer_lib.scheduling): that of `scheduler`, or one of this machine's
    with `workers` notebook kernels at a time. On GPUs runs train in groups (`together` on each; 0: as many as still
    gain), then their notebooks show them.

    Raises ParameterError, DataError, RecordError or ClusterError before anything starts, ClusterError also where the
    scheduler goes and stays away.
    """
    runs = [open_run(e, workspace) for e in study.experiments]
    _check_ending(study, runs, workspace)
    going = [run for run in runs if not run.finished]
    done = [Outcome(run, "finished", result=run.result) for run in runs if run.finished]
    head = f"{study.name}: {len(runs)} runs, {len(done)} finished before, {len(going)} to train"
    if not going:
        say(head)
        return done
    workers, gpus = min(workers, len(going)), [] if scheduler else devices_of(going)
    cluster = connect(workspace, scheduler) if scheduler else start_here(workspace, workers, gpus)
    try:
        cluster.check(sorted({run.experiment.data for run in going}), say)
        if scheduler and all(run.experiment.device in ("auto", "cuda") for run in going):
            gpus = [address for address, worker in cluster.workers().items() if "GPU" in worker["resources"]]
        local = f"on {', '.join(gpus)}" if gpus else f"{workers} at a time"
        say(f"{head}, " + (f"{len(cluster.workers())} workers of {cluster.address}" if scheduler else local))
        if cluster.dashboard:
            say(f"dashboard: {cluster.dashboard}")
        say(f"to watch them: monitor(\"{_shown(workspace.runs / study.name)}\") in notebooks/monitor.ipynb")
        groups = measured_groups(going, cluster, len(gpus), together, say) if gpus else None
    except BaseException:
        cluster.close()
        raise
    with contextlib.closing(Batch(cluster, say).outcomes(going, groups)) as outcomes:
        for outcome in outcomes:
            done.append(outcome)
            say(f"[{len(done)}/{len(runs)}] {_line(outcome)}")
    cluster.close()
    return done


def _check_ending(study: Study, runs: list[Run], workspace: Workspace) -> None:
    """Raise ParameterError where the closing table or the report could not be made."""
    if study.report and (Path(study.report).name != study.report            # it would run one from anywhere
                         or not (workspace.root / "notebooks" / study.report).is_file()):
        raise ParameterError(f"no report notebook '{study.report}' in notebooks/")
    splits = [name for name in runs[0].data.splits if name != "train"]
    measures = ["max_val_macro_f1", "min_train_loss"] + [
        f"{part}_{split}_{key}{mode}" for part in ("chosen", "last") for split in splits
        for key in ("macro_f1", "accuracy", "loss") for mode in ("", "_clean")]
    if study.measure not in measures:
        raise ParameterError(f"unknown measure '{study.measure}' (choose one of {', '.join(measures)})")


def _line(outcome: Outcome) -> str:
    e = outcome.run.experiment
    head = f"{e.label} seed {e.seed}: "
    if outcome.status != "finished":
        return head + f"FAILED: {outcome.sentence}"
    chosen, flips = outcome.result["chosen"], outcome.result["flips"]
    return head + (f"val macro-F1 {chosen['val_macro_f1']:.3f} at epoch {chosen['epoch']}, "
                   f"{flips['steps']} steps with a sign flip, {outcome.result['seconds']:.0f} s")


def closing_table(study: Study, outcomes: list[Outcome], workspace: Workspace) -> str:
    """Arms with n, mean, interval and difference to the baseline, as text."""
    records = read_records(workspace.runs / study.name)
    ids = {outcome.run.id for outcome in outcomes}
    runs = records.runs[records.runs["id"].isin(ids)]
    table = compare_arms(runs, study.measure)
    lines = [f"{'arm':<18}{'n':>3}  {'macro-F1, mean [95 % interval]':<34}{'difference to baseline':<26}flips a run"]
    for row in table.itertuples():
        gap = f"{row.difference:+.3f}" if row.difference else ""
        flips = runs.loc[runs["name"] == row.arm, "flips_steps"]
        lines.append(f"{row.arm:<18}{row.score.n:>3}  {f'{row.score:.3f}':<34}{gap:<26}{flips.min()}–{flips.max()}")
    return "\n".join(lines)


def write_report(study: Study, workspace: Workspace) -> Path:
    """Execute the study's report notebook on its records, claims judged where it is one of theirs. Raises RecordError
    where it fails.
    """
    with without_grammar():
        from papermill import PapermillExecutionError

    target = workspace.runs / study.name / Path(study.report).name
    inside = workspace.runs == workspace.root / "runs"
    records = Path("runs") / study.name if inside else target.parent
    name, _, size = study.name.partition("-")
    claims = read_claims(workspace.root / "notebooks" / "studies" / "claims.yml").data
    parameters = {"records": str(records), "size": size if size in SIZES else "standard",
                  "claims_records": str(records.parent) if name in claims and size in ("", *SIZES) else ""}
    try:
        run_notebook(workspace.root / "notebooks" / study.report, target, parameters, workspace.root)
    except PapermillExecutionError as error:
        raise RecordError(f"the report {study.report} failed: {error.ename}: {error.evalue}") from None
    return target


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _seeds(text: str | None) -> list[int] | None:
    try:
        return [int(s) for s in text.split(",")] if text is not None else None
    except ValueError:
        raise ParameterError(f"--seeds takes whole numbers joined by commas, not '{text}'") from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.batch",
                                     description="Train a study's runs, each in a notebook of its own.")
    parser.add_argument("study", type=Path, help="a study file, such as notebooks/studies/quick.yml")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                        help="notebook kernels at a time (default: as many as cores)")
    parser.add_argument("--scheduler", default="", metavar="ADDRESS",
                        help="an existing Dask cluster's scheduler, or its scheduler file, in place of this machine")
    parser.add_argument("--together", type=int, default=0,
                        help="runs that share a GPU (default: as many as still gain, measured)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, in place of the study's")
    parser.add_argument("--name", help="folder of the records below runs/, in place of the study's name")
    parser.add_argument("--size", choices=SIZES, default="standard", help="which of the study's sizes (default: "
                        "standard); records of the others go to runs/NAME-quick and runs/NAME-paper")
    parser.add_argument("--arms", help="only these of the study's arms, such as baseline,periodic")
    parser.add_argument("--seeds", help="in place of the study's, such as 0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for all arms")
    args = parser.parse_args(argv)
    say = lambda text: print(text, flush=True)                                              # noqa: E731
    workspace = find_workspace()
    try:
        changes = settings_of(args.set) | ({"device": args.device} if args.device else {})
        study = read_study(args.study, _seeds(args.seeds), changes, args.name, args.size,
                           args.arms.split(",") if args.arms is not None else None)
        if args.workers < 1:
            raise ParameterError(f"--workers is at least 1, not {args.workers}")
        if args.together < 0:
            raise ParameterError(f"--together is at least 1 (or 0: measured), not {args.together}")
        outcomes = run_study(study, workspace, args.workers, say, args.together, args.scheduler)
        failed = [o for o in outcomes if o.status != "finished"]
        if len(failed) < len(outcomes):
            say(f"\n{study.title}\n\n{closing_table(study, outcomes, workspace)}\n")
            if study.note:
                say(study.note + "\n")
            if study.report and not failed:
                say(f"report:              {_shown(write_report(study, workspace))}")
            say(f"executed notebooks:  {_shown(workspace.runs / study.name)}/*/notebook.ipynb")
    except (ParameterError, ValueError, RecordError, ClusterError) as error:
        print(f"batch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("batch: interrupted; finished runs are kept, start the same command again to go on", file=sys.stderr)
        return 130
    for outcome in failed:
        print(f"batch: {outcome.run.path.name} failed: {outcome.sentence}", file=sys.stderr)
    return 1 if failed else 0

