"""README's results, written between its two markers from the records that came with the kit; nothing is typed in.

    python -m fer_lib.readme_results [--check]

`make readme-results` after records were added. A test compares README with the records.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fer_lib.claims import ClaimVerdict
from fer_lib.claims_file import ClaimError
from fer_lib.curves import around_toggles, stopped_at, toggle_sizes
from fer_lib.files import RecordError, write_atomically
from fer_lib.records import read_records
from fer_lib.statistics import JUDGED_SEEDS, Interval, compare_arms
from fer_lib.study_records import judged
from fer_lib.verdict_figures import VERDICTS, deciding, happened, number, seeds_of, short
from fer_lib.workspace import Workspace, find_workspace

BEGIN, END = "<!-- results: made by `make readme-results` -->", "<!-- end of results -->"
PAPER = {"baseline": ".34", "dropout": ".32", "periodic": ".38", "dynamic": ".39", "dropout+periodic": ".35"}
SPLITS = {"fer2013": {"val": "PublicTest", "test": "PrivateTest"}}
MEASURE = "chosen_test_macro_f1"


def section(workspace: Workspace, study: str = "table1") -> str:
    """The text between the markers."""
    runs = read_records(workspace.root / "notebooks" / "results" / study).runs
    verdicts = judged(workspace)
    parts = [_short(workspace, runs), _made(runs, study), _table(runs), _reading(runs), _strong(workspace, runs),
             _controls(verdicts, runs), _claims_head(verdicts), _claims(verdicts), _beside(workspace)]
    return "\n\n".join(filter(None, parts))


def _short(workspace: Workspace, plain: pd.DataFrame) -> str:
    """Where the three methods' F1 lies, by their intervals."""
    strong = _arms(workspace.root / "notebooks" / "results" / "strong")
    said = [f"**In short**, macro-F1 against the baseline: {_effects(_differences(plain))}."]
    if strong:
        said.append(f"With a strong recipe in all arms: {_effects(strong)}.")
    said.append("These intervals are not adjusted for their number; which of the paper's claims hold on these data, by "
                "adjusted tests, is judged below.")
    return _wrapped(" ".join(said))


def _effects(differences: dict[str, Interval]) -> str:
    """Such as "periodic below it (-0.007 [-0.013, -0.000])"."""
    place = lambda d: "above it" if d.low > 0 else "below it" if d.high < 0 else "not told apart from it"  # noqa: E731
    return ", ".join(f"{arm} {place(d)} ({number(d)})" for arm in ("periodic", "dynamic", "dropout")
                     if (d := differences.get(arm)) and d.n > 1)


def _made(runs: pd.DataFrame, study: str) -> str:
    """What was run, on what, when, and what it took."""
    one = lambda column: " or ".join(f"{v:g}" if isinstance(v, float) else str(v)                            # noqa: E731
                                     for v in runs[column].unique())
    n = runs.groupby("name").size()
    seeds = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    split = SPLITS.get(runs["data"].iloc[0], {"val": "val", "test": "test"})
    augment, side = one("setting_augment"), one("setting_image_size")
    lines = [
        f"{one('data')}: {_thousands(runs['n_train'])} training images. The epoch is chosen on {split['val']} "
        f"({_thousands(runs['n_val'])} images), macro-F1 is reported on {split['test']} "
        f"({_thousands(runs['n_test'])}).",
        f"{one('setting_backbone')} from scratch, {'images of their own size' if side == '0' else f'{side} px'}, batch "
        f"{one('setting_batch_size')}, {one('setting_optimizer')} {one('setting_lr')} / "
        f"{one('setting_weight_decay')}, {one('setting_epochs')} epochs, "
        f"{'no augmentation' if augment == 'none' else augment}, {one('env_precision')}.",
        f"**n = {seeds} seeds an arm** ({len(runs)} runs); brackets are 95 % t intervals, differences are paired by "
        f"seed. Made {' and '.join(sorted(runs['env_date'].unique()))} on {_devices(runs)}. {_cost(runs)}",
        f"Records: [notebooks/results/{study}](notebooks/results/{study}), shown by "
        "[09_table1](notebooks/09_table1.ipynb)."]
    return _wrapped(" ".join(lines))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _thousands(counts: pd.Series) -> str:
    return " or ".join(f"{n:,}" for n in counts.unique())


def _devices(runs: pd.DataFrame) -> str:
    """Such as "NVIDIA H200 (20 runs; torch 2.11.0, CUDA 13.0, Python 3.12.3)"."""
    columns = ["env_device", "env_torch", "env_cuda", "env_python"]
    rows = runs[columns].fillna("none").value_counts(sort=False).reset_index().itertuples(index=False)
    return " and ".join(f"{device} ({k} runs; torch {torch.split('+')[0]}, CUDA {cuda}, Python {python})"
                        for device, torch, cuda, python, k in rows)


def _cost(runs: pd.DataFrame) -> str:
    """Wall time, and the GPU's seconds where the records say how many runs shared it."""
    said = f"A run took {runs['seconds'].median():.0f} s of wall time (median)"
    own = runs[runs["runs_together"].notna()] if "runs_together" in runs else runs.iloc[:0]
    if own.empty:
        return f"{said}; how many shared a GPU was not recorded."
    seconds = own["seconds"] / own["runs_together"]
    return f"{said}; side by side on a GPU that is {seconds.median():.0f} GPU seconds a run ({len(own)} runs that " \
           f"record it, {seconds.sum() / 60:.0f} GPU minutes in all)."


def _table(runs: pd.DataFrame) -> str:
    last, most = ({r.arm: f"{r.score.mean:.3f}" for r in compare_arms(runs, m).itertuples()}
                  for m in ("last_test_macro_f1", "max_val_macro_f1"))
    rows = []
    for r in compare_arms(runs, MEASURE).itertuples():
        flips = runs.loc[runs["name"] == r.arm, "flips_steps"]
        rows.append([r.arm, r.score.n, f"{r.score:.3f}", f"{r.difference:+.3f}" if r.difference else "", last[r.arm],
                     most[r.arm], PAPER.get(r.arm, ""), f"{flips.min()}–{flips.max()}"])
    return _markdown(["arm", "n", "macro-F1, test", "against baseline", "last epoch",
                      "largest on val (the paper's way)", "the paper, AffectNet", "steps with a flip"], rows)


def _reading(runs: pd.DataFrame) -> str:
    """The table in words, by its intervals."""
    table = compare_arms(runs, MEASURE)
    where: dict[str, list[str]] = {}
    for r in table.itertuples():
        if r.difference and r.difference.n > 1:
            d = r.difference
            where.setdefault("above the baseline" if d.low > 0 else "below the baseline" if d.high < 0 else
                             "not told apart from it", []).append(r.arm)
    said = "; ".join(f"{', '.join(arms)}: {words}" for words, arms in where.items())
    paper = [arm for arm in sorted(PAPER, key=PAPER.get, reverse=True) if arm in set(table["arm"])]
    text = f"By these intervals {said}. The paper's order: {', '.join(paper)}. {_other_measures(runs)} {_fit(runs)}"
    if (fewest := min(r.score.n for r in table.itertuples())) < JUDGED_SEEDS:
        text = f"**Descriptive, no verdict**: judging Table 1 takes {JUDGED_SEEDS} seeds an arm by the rules we set " \
               f"ourselves; here the fewest are {fewest}. {text}"
    return _wrapped(text)


def _other_measures(runs: pd.DataFrame) -> str:
    """What the paper's way of scoring and the last epoch say instead."""
    said = []
    for measure, words in (("max_val_macro_f1", "by the paper's own measure, the largest F1 on val"),
                           ("last_test_macro_f1", "at the last epoch")):
        found = {r.arm: r.difference for r in compare_arms(runs, measure).itertuples() if r.difference}
        own = [f"{arm} {found[arm]:+.3f}" for arm in ("periodic", "dynamic") if arm in found]
        said += [f"{words}, against the baseline: {', '.join(own)}"] if own else []
    text = "; ".join(said)
    more = "(not adjusted; periodic runs turn their sign in the last epoch)"
    return f"{text[0].upper()}{text[1:]} {more}." if text else ""


def _fit(runs: pd.DataFrame) -> str:
    own = runs[runs["name"] == "baseline"]
    return f"The baseline overfits: at the chosen epoch its training loss is {own['chosen_train_loss'].mean():.2f}, " \
           f"its validation loss {own['chosen_val_loss'].mean():.1f}; whether a gain survives a stronger one is C21."


def _strong(workspace: Workspace, plain: pd.DataFrame) -> str:
    """The same arms where the baseline has what a careful practitioner would give it; empty without records."""
    folder = workspace.root / "notebooks" / "results" / "strong"
    if not folder.exists():
        return ""
    found = read_records(folder)
    runs, table = found.runs, compare_arms(found.runs, MEASURE)
    before = {r.arm: r for r in compare_arms(plain, MEASURE).itertuples()}
    losses = runs.groupby("name")[["chosen_train_loss", "chosen_val_loss"]].mean()
    rows = [[r.arm, r.score.n, f"{r.score:.3f}", number(r.difference) if r.difference else "",
             number(before[r.arm].difference) if r.difference else "",
             "{:.2f} / {:.2f}".format(*losses.loc[r.arm])] for r in table.itertuples()]
    recipe = runs.iloc[0]
    base = table[table["arm"] == "baseline"].iloc[0].score.mean
    own = found.epochs[(found.epochs["name"] == "baseline") & (found.epochs["split"] == "val") &
                       (found.epochs["mode"] == "trained")]
    by_epoch = own.groupby("epoch")["macro_f1"].mean()
    change = by_epoch.iloc[-1] - by_epoch.iloc[-6]
    train, val = losses.loc["baseline"]
    plain_loss = plain.loc[plain["name"] == "baseline", "chosen_val_loss"].mean()
    text = f"Table 1's arms with augmentation ({recipe['setting_augment']}), {recipe['setting_schedule']} schedule, " \
           f"label smoothing {recipe['setting_label_smoothing']:g} and class weights, else as above (C21). The " \
           f"recipe alone takes the baseline from {before['baseline'].score.mean:.3f} to {base:.3f} and its " \
           f"validation loss at the chosen epoch from {plain_loss:.2f} to {val:.2f}. Its training loss there, " \
           f"{train:.2f}, is smoothed, weighted and taken on augmented images: the two say nothing of overfitting by " \
           f"themselves. Validation F1 changes by {change:+.3f} over the last five of {recipe['setting_epochs']} " \
           "epochs. What noise does in a longer training by this recipe was not run."
    return "### With a strong recipe\n\n" + _wrapped(text) + "\n\n" + _markdown(
        ["arm", "n", "macro-F1, test", "against this baseline", "as above, without the recipe",
         "loss, train / val"], rows)


def _controls(verdicts: Sequence[ClaimVerdict], runs: pd.DataFrame) -> str:
    """What other noise, other restarts and chance alone do, beside the paper's methods; empty without their records."""
    compared = {short(c).split(" - ")[0].removeprefix("controls/"): c.judgement for v in verdicts
                if v.claim.name in ("K1", "K3") for c in v.contrasts if c.judgement.n}
    if not compared:
        return ""
    own = _differences(runs)
    found = [(name, j.n, j.estimate) for name, j in compared.items()]
    paper = [arm for arm in ("dropout", "periodic", "dynamic") if arm in own]
    found += [(f"{arm} (the paper's)", own[arm].n, own[arm]) for arm in paper]
    found.sort(key=lambda row: -row[2].mean)
    rows = [[f"`{name}`" if name in compared else name, n, number(difference)] for name, n, difference in found]
    above = [name for name, _, d in found if d.low > 0 and name in compared and name != "again"]
    text = f"Other noise and other restarts against the same baseline, paired by seed, not adjusted. Above it lie " \
           f"{', '.join(above) or 'none'}. `again` is the baseline with other seeds: what chance alone shows. The " \
           "methods are described below."
    return "### What else raises F1\n\n" + _wrapped(text) + "\n\n" + _markdown(
        ["arm", "n", "macro-F1 against baseline"], rows)


def _claims_head(verdicts: Sequence[ClaimVerdict]) -> str:
    named = [(name, [v.claim.name for v in verdicts if v.verdict == name]) for name in VERDICTS]
    data = sorted({d for v in verdicts for c in v.contrasts if c.judgement.n for d in c.sample.data})
    counts = "; ".join(f"**{name}** {', '.join(own)}" for name, own in named if own)
    return "### Each claim, judged\n\n" + _wrapped(
        "By rules [written down](notebooks/studies/claims.yml) before the runs, on "
        f"{', '.join(data) or 'no data yet'}: {counts}. A claim of several comparisons holds where all do, and does "
        "not where one doesn't, whatever the others may still show; the numbers are those of the first that decided. "
        "Claims ask for 20 seeds, 10 or 4 (events), so the same numbers may judge one and only describe another. p is "
        "adjusted for the comparisons of a family (Holm). K1 to K3 are our controls. 09_table1 shows every comparison, "
        "how each claim was read, and the commands that make what is still without records.") + "\n\n" + _wrapped(
        "What was known before: a pilot of 4 seeds an arm (2026-11-22, same settings) came before the rules "
        "(2026-11-25), and the records were first read at 6 to 7 seeds an arm, then extended (2026-11-29).")


def _beside(workspace: Workspace) -> str:
    """What the rules of single claims can't see, from the same records."""
    results, said = workspace.root / "notebooks" / "results", []
    table1, dynamics = read_records(results / "table1"), read_records(results / "dynamics")
    change = toggle_sizes(around_toggles(table1, "periodic")).groupby("sign")["f1_change"].mean()
    said.append(f"C3 is about means over a run's toggles: at toggles to − F1 changes by {change[-1]:+.3f}, at those "
                f"back to + by {change[1]:+.3f}.")
    stopped = stopped_at(table1, "dropout", "baseline")
    below, above = stopped.loc[stopped["high"] < 0, "epochs"], stopped.loc[stopped["low"] > 0, "epochs"]
    if len(below) and len(above):
        said.append(f"C4 is judged at {stopped['epochs'].max()} epochs and p = .5: stopped at {below.max()} epochs or "
                    f"earlier, dropout would lie below the baseline; from {above.min()} on it lies above.")
    other = {name: _arms(results / f"dropout_{name}") for name in ("cifar10", "cars")}
    if all(other.values()):
        own = {name: found["dropout"] for name, found in {**other, "faces": _arms(results / "table1")}.items()}
        said.append("C5: dropout changes F1 by {cifar10:+.3f} on CIFAR-10, by {cars:+.3f} on Stanford Cars, and by "
                    "{faces:+.3f} on faces.".format(**{name: d.mean for name, d in own.items()}))
        heads = [found["dropout_head"] for found in other.values() if "dropout_head" in found]
        if len(heads) == len(other):
            said[-1] = (f"{said[-1][:-1]}; before the classifier alone by {heads[0]:+.3f} on CIFAR-10 and by "
                        f"{heads[1]:+.3f} on Stanford Cars.")
    sweep = read_records(results / "t_sweep").runs if (results / "t_sweep").exists() else pd.DataFrame()
    if len(sweep) and len(often := sweep[sweep["name"] == "T_1_step"]):
        same = table1.runs[(table1.runs["name"] == "baseline") & table1.runs["seed"].isin(often["seed"])]
        f1, loss = (f"{often[m].mean():.{d}f} (baseline {same[m].mean():.{d}f})" for m, d in ((MEASURE, 3),
                                                                                          ("min_train_loss", 2)))
        said.append(f"C9 asks for a lower F1 only: with a flip at each step the network is trained all the same, with "
                    f"an F1 of {f1} and a lowest training loss of {loss}.")
    flips = dynamics.runs.groupby("name")["flips_steps"].agg(["min", "max"])
    arms = {"w0_2": "2", "w0_.9": ".9, inside (0, 1),", "w0_negative": "−0.1"}
    turned = [f"with w0 = {w0} " + (f"signs turned at {flips['min'][arm]} to {flips['max'][arm]} steps a run"
                                    if flips["max"][arm] else "no sign turned in any run")
              for arm, w0 in arms.items() if arm in flips.index]
    said.append(f"C14 is judged by F1 alone, which can't see whether the method acts: {', '.join(turned)}.")
    moved = [c for v in judged(workspace, file="choices.yml") for c in v.contrasts if c.judgement.n > 1
             and c.contrast.metric == MEASURE and c.contrast.arms[1:] == ("table1/dynamic",)
             and not c.judgement.estimate.low <= 0 <= c.judgement.estimate.high]
    if moved:
        moved.sort(key=lambda c: -abs(c.judgement.estimate.mean))
        still = {f"dynamics/{arm}" for arm in flips.index[flips["max"] == 0]}
        said.append("Of the choices that the paper leaves open ([choices.yml](notebooks/studies/choices.yml)), these "
                    "change the dynamic arm's F1, not adjusted: " + ", ".join(
                        f"{c.contrast.arms[0]} {number(c.judgement.estimate)} (n = {c.judgement.n}"
                        f"{', no sign turned: the training, not the method' * (c.contrast.arms[0] in still)})"
                        for c in moved) + ".")
    return _wrapped(" ".join(["**Beside the verdicts.**", *said]))


def _arms(folder: Path) -> dict[str, Interval]:
    """The arms' differences from their baseline; empty without records."""
    return _differences(read_records(folder).runs) if folder.exists() else {}


def _differences(runs: pd.DataFrame) -> dict[str, Interval]:
    return {r.arm: r.difference for r in compare_arms(runs, MEASURE).itertuples() if r.difference}


def _claims(verdicts: Sequence[ClaimVerdict]) -> str:
    rows = []
    for v in verdicts:
        asked = [c for c in v.contrasts if c.contrast.direction != "shown"] or list(v.contrasts)
        first = deciding(v) or next((c for c in asked if c.judgement.n), None)
        row = [v.claim.name, v.claim.text, v.verdict]
        if first is None:
            rows.append([*row, v.reason, "", "", "", ""])
            continue
        j, paper, q = first.judgement, first.paper_difference, first.contrast
        p = j.equivalent_p_adjusted if q.direction in ("equal", "no_gain") else j.p_adjusted
        counts = [(name, sum(c.judgement.verdict == name for c in asked)) for name in VERDICTS]
        more = f" ({', '.join(f'{k} {name}' for name, k in counts if k)})" if len(asked) > 1 else ""
        event = f", {happened(first)}" if j.met else ""
        rows.append([*row, f"{short(first)}, {q.metric}{event}{more}", number(j.estimate),
                     "" if paper is None else f"{paper:+.3f}", seeds_of(first), "" if p != p else f"{p:.2g}"])
    return _markdown(["", "the paper says", "verdict", "by, and how its comparisons went", "ours [95 %]", "the paper",
                      "n", "p"], rows)


def _markdown(head: list[str], rows: list[list]) -> str:
    cells = lambda row: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"              # noqa: E731
    return "\n".join([cells(head), "|" + "---|" * len(head), *map(cells, rows)])


def written(readme: str, text: str) -> str:
    """README with that text between its markers. Raises RecordError where they are not there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise RecordError(f"README.md needs the lines '{BEGIN}' and '{END}' once each, in this order")
    return f"{readme.split(BEGIN)[0]}{BEGIN}\n\n{text}\n\n{END}{readme.split(END)[1]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.readme_results", description="README's results, from the "
                                     "records in notebooks/results.")
    parser.add_argument("--check", action="store_true",
                        help="write nothing; exit code 1 where README says something else")
    args = parser.parse_args(argv)
    workspace = find_workspace()
    path: Path = workspace.root / "README.md"
    try:
        old = path.read_text()
        new = written(old, section(workspace))
        if old != new and not args.check:
            write_atomically(path, lambda p: p.write_text(new))
    except (RecordError, ClaimError, OSError) as error:
        print(f"readme_results: {error}", file=sys.stderr)
        return 2
    if old == new:
        print("README agrees with the records")
    else:
        print("README doesn't say what the records say: make readme-results" if args.check else
              "README's results are new")
    return int(args.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
