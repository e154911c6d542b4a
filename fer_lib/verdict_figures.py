"""Verdicts as a notebook shows them: a table with a legend, a forest of intervals, a sentence for each claim, and what
is missing.

Everything is computed from `claims.judge`; nothing here decides.
"""

from collections.abc import Iterable, Sequence
from html import escape
from textwrap import fill, wrap

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_lib.claims import ClaimVerdict, ContrastVerdict
from fer_lib.event_metrics import METRICS
from fer_lib.palette import BLACK, BLUE, GREEN, GREY, RED, WINE, Look
from fer_lib.statistics import DESCRIPTIVE, FAILS, HOLDS, NOT_JUDGED, UNDECIDED, Interval

VERDICTS = {HOLDS: Look(GREEN, "-", "D"), FAILS: Look(WINE, "-", "v"), UNDECIDED: Look(BLACK, "-", "s"),
            DESCRIPTIVE: Look(BLUE, "--", "o"), NOT_JUDGED: Look(GREY, ":", "o")}
RULES = """A difference is taken seed by seed: a pair shares initial weights, the order of images and the split.
holds         p < .05 in the claimed direction (sign-flip permutation test, Holm-adjusted within the claim's family);
              a claim of equality: shown to lie within the margin (TOST, adjusted); an event: in every run
does not hold p < .05 the other way, or shown to lie within the margin; equality: interval outside; an event: in no run
undecided     neither; a failed test alone never makes "does not hold"
descriptive   fewer seeds than the claim asks for: numbers, no verdict
not judged    no records, no verdict
A claim of several contrasts holds where all hold, and does not hold where one doesn't, whatever the others show.
What stands in “ ” is the paper's claim, in few words, and not ours."""
COLUMNS = {"contrast": "first arm less second, seed by seed; one arm alone: its own value",
           "n": "seeds; “10 of 20”: the claim asks for 20",
           "ours": "mean of our runs [95 % interval]",
           "median": "given where one seed makes most of the mean",
           "paper": "the same difference by the paper's numbers (AffectNet)",
           "claimed": "what the claim says of ours; “each”: of each run",
           "p": "of the permutation test, adjusted",
           "p within": "of TOST, adjusted: small where ours is shown to lie within the margin",
           "runs": "runs that are as claimed",
           "verdict": "by the rules; “shown”: described, not judged"}
MEASURES = {"chosen_test_macro_f1": "macro-F1 on test, at the epoch that was best on val",
            "chosen_test_macro_f1_clean": "the same with the sign + everywhere",
            "chosen_test_accuracy": "accuracy on test, at the epoch that was best on val",
            "last_test_macro_f1": "macro-F1 on test, last epoch",
            "max_val_macro_f1": "largest macro-F1 on val over all epochs",
            "min_train_loss": "lowest training loss of an epoch",
            "chosen_train_loss": "training loss of the epoch that was best on val",
            "last_train_loss": "training loss of the last epoch",
            "corrupted_macro_f1": "macro-F1 on corrupted test images, mean over the corruptions",
            "uncorrupted_ece": "calibration error on test: confidence less accuracy, in size (0 is best)"}


def contrast_table(verdicts: Sequence[ClaimVerdict]) -> pd.DataFrame:
    """A row a contrast that has records, as text: what is compared, n, ours with its 95 % interval, the paper's, p."""
    rows = []
    for v in verdicts:
        for c in v.contrasts:
            j = c.judgement
            if not j.n:
                continue
            asked = c.contrast.direction != "shown"
            rows.append({
                "claim": v.claim.name, "contrast": short(c), "measure": c.contrast.metric,
                "n": f"{j.n} of {c.contrast.n}" if asked and j.n < c.contrast.n else f"{j.n}",
                "ours [95 %]": number(j.estimate), "median": outlying(c),
                "paper": "" if c.paper_difference is None else f"{c.paper_difference:+.3f}",
                "claimed": claimed(c), "p": "" if np.isnan(j.p_adjusted) else f"{j.p_adjusted:.3g}",
                "p within": "" if np.isnan(j.equivalent_p_adjusted) else f"{j.equivalent_p_adjusted:.3g}",
                "runs": f"{round(j.met.mean * j.n)} of {j.n}" if j.met else "",
                "verdict": j.verdict if asked else "shown"})
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()] if rows else table


def legend(verdicts: Sequence[ClaimVerdict]) -> str:
    """What the columns of `contrast_table` say, and the measures in it: a line each, of those that occur."""
    columns = [name.removesuffix(" [95 %]") for name in contrast_table(verdicts)]
    measures = dict.fromkeys(c.contrast.metric for v in verdicts for c in v.contrasts if c.judgement.n)
    parts = [[(name, COLUMNS[name]) for name in columns if name in COLUMNS],
             [(name, _measure(name)) for name in measures]]
    told = lambda name, said: fill(f"{name:21} {said}", 110, subsequent_indent=" " * 22)                     # noqa: E731
    return "\n\n".join("\n".join(told(name, said) for name, said in part if said) for part in parts if part)


def _measure(name: str) -> str:
    """In words; empty for a column of the runs table that has none here."""
    said = METRICS[name].__doc__ if name in METRICS else MEASURES.get(name, "")
    return " ".join(said.split("\n\n")[0].split()).rstrip(".")


def deciding(v: ClaimVerdict) -> ContrastVerdict | None:
    """The first contrast, of those that are to be judged and have records, whose verdict is the claim's."""
    asked = [c for c in v.contrasts if c.contrast.direction != "shown" and c.judgement.n]
    return next((c for c in asked if c.judgement.verdict == v.verdict), next(iter(asked), None))


def seeds_of(c: ContrastVerdict) -> str:
    """The number of seeds, and of those that are asked for."""
    q, n = c.contrast, c.judgement.n
    return f"{n}" if q.direction == "shown" else f"{n} (needs {q.n})"


def happened(c: ContrastVerdict) -> str:
    """Of a claim about an event: in how many runs it was so; else empty."""
    q, met = c.contrast, c.judgement.met
    words = {"each_above": "above", "each_below": "below"}.get(q.direction, "")
    return f"{words} {q.value:g} in {round(met.mean * c.judgement.n)} of {c.judgement.n} runs" if met else ""


def outlying(c: ContrastVerdict) -> str:
    """The median, where one seed makes most of the mean: without it the mean is less than half or of the other sign."""
    x = c.sample.values.to_numpy()
    if len(x) < 4:
        return ""
    without = np.delete(x, np.abs(x).argmax()).mean()
    return f"{np.median(x):+.3f}" if abs(without) < abs(x.mean()) / 2 or without * x.mean() < 0 else ""


def claim_table(verdicts: Sequence[ClaimVerdict]) -> pd.DataFrame:
    """A row a claim, as text. The numbers are those of the contrast that decides; `its contrasts` counts those that are
    to be judged by their verdicts, and says what is missing. `data` is a column where claims were judged on several.
    """
    rows = []
    for v in verdicts:
        asked = [c for c in v.contrasts if c.contrast.direction != "shown"] or list(v.contrasts)
        shown = deciding(v) or next((c for c in asked if c.judgement.n), None)
        data = sorted({d for c in asked if c.judgement.n for d in c.sample.data})
        row = {"claim": v.claim.name, "the paper says": v.claim.text if _papers(v) else f"(a control) {v.claim.text}",
               "verdict": v.verdict, "data": ", ".join(data)}
        if shown is not None:
            j, paper = shown.judgement, shown.paper_difference
            p = j.p_adjusted if shown.contrast.direction in ("greater", "less") else j.equivalent_p_adjusted
            event = happened(shown)
            row |= {"decided by": f"{short(shown)}, {shown.contrast.metric}{f', {event}' if event else ''}",
                    "ours [95 %]": number(j.estimate),
                    "paper": "" if paper is None else f"{paper:+.3f}",
                    "ours − paper": "" if paper is None else f"{j.estimate.mean - paper:+.3f}",
                    "n": seeds_of(shown), "p": "" if np.isnan(p) else f"{p:.3g}"}
        counts = [(name, sum(c.judgement.verdict == name for c in asked)) for name in VERDICTS]
        parts = [", ".join(f"{k} {name}" for name, k in counts if k), _lacking(v.reason)]
        row["its contrasts"] = "; ".join(part for part in parts if part)
        rows.append(row)
    table = pd.DataFrame(rows).fillna("").set_index("claim")
    return table if len(set(table["data"]) - {""}) > 1 else table.drop(columns="data")


# columns of words, which are aligned to the left, and the least width of each
WORDS = {"the paper says": "14em", "decided by": "10em", "its contrasts": "10em", "contrast": "13em", "choice": "14em",
         "commands": "20em", "cost": "10em"}


def _lacking(reason: str) -> str:
    """Without the seeds that are too few: the column n says that."""
    return "; ".join(part for part in reason.split("; ") if not part.startswith(("n = ", "and ")))


def page(table: pd.DataFrame, summary: str = "") -> HTML:
    """A table of text as a notebook shows it, lines wrapped; with a summary it is folded away under it, or
    one line says that there is nothing.

    Styles stand in the cells: JupyterLab leaves those of a page out until its reader trusts the notebook.
    """
    if summary and table.empty:
        return HTML(f"<p>{escape(summary)}: nothing</p>")
    table = table.reset_index() if table.index.name else table          # its head in one line with the others
    table = table.replace(r"\[(\S+), (\S+)\]", "[\\1,\u00a0\\2]", regex=True)        # an interval stays in one line
    left = ["text-align:left" if name in WORDS else "" for name in table]
    wide = [f"{side};min-width:{WORDS[name]}" if name in WORDS else "" for name, side in zip(table, left)]
    heads = [name.replace("95 %", "95\u00a0%").replace("− ", "−\u00a0") for name in table]
    rows = [_row("th", heads, wide), *(_row("td", row, left) for row in table.itertuples(index=False))]
    body = f'<table style="font-size:85%"><thead>{rows[0]}</thead><tbody>{"".join(rows[1:])}</tbody></table>'
    return HTML(f"<details><summary>{escape(summary)}</summary>{body}</details>" if summary else body)


def _row(tag: str, cells: Iterable[object], styles: Iterable[str]) -> str:
    return "<tr>{}</tr>".format("".join(
        f'<{tag} style="{style}">{escape(str(cell))}</{tag}>' if style else f"<{tag}>{escape(str(cell))}</{tag}>"
        for cell, style in zip(cells, styles)))


def lines(table: pd.DataFrame, most: int = 110) -> str:
    """`contrast_table`'s rows as text: contrasts to the left, or each above its numbers where the table would be too
    wide.

    most: characters of a line.
    """
    numbers = table.drop(columns="contrast").to_string(index=False).splitlines()
    longest = max(map(len, ("contrast", *table["contrast"])))
    if longest + 1 + len(numbers[0]) <= most:
        return "\n".join(f"{name:{longest}} {row}" for name, row in zip(("contrast", *table["contrast"]), numbers))
    said = ["contrast", f"    {numbers[0]}"]
    for name, row in zip(table["contrast"], numbers[1:]):
        parts = wrap(name, most, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        said += [*parts, f"    {row}"]
    return "\n".join(said)


def short(c: ContrastVerdict) -> str:
    """The contrast's label: the study once, before it, where all arms have the same; table1, which most have, is left
    out, and so is the size of drawn faces' records.
    """
    label = c.contrast.label.replace("-quick/", "/").replace("table1/", "")
    studies = {arm.split("/")[0].removesuffix("-quick") for arm in c.contrast.arms}
    study = studies.pop() if len(studies) == 1 else ""
    return label if study in ("", "table1") else f"{study}: {label.replace(f'{study}/', '')}"


def number(i: Interval) -> str:
    """With three decimals, or two digits where these would show nothing."""
    return f"{i:+.3f}" if max(abs(x) for x in (i.mean, i.low, i.high) if x == x) >= .005 else f"{i:+.2g}"


def claimed(c: ContrastVerdict) -> str:
    """What is claimed of the contrast's value: "> 0", "within ±0.01", ..."""
    q = c.contrast
    return {"greater": f"> {q.value:g}", "less": f"< {q.value:g}", "equal": f"within ±{q.margin:g}",
            "no_gain": f"< {q.margin:g}", "each_above": f"each > {q.value:g}", "each_below": f"each < {q.value:g}",
            "shown": ""}[q.direction]


def forest(verdicts: Sequence[ClaimVerdict], metric: str, label: str, title: str = "") -> Figure:
    """Contrasts of one metric that have records: each mean with its 95 % interval, each seed a dot, the paper's number
    a cross, the margin a band. Colour and mark say the verdict.

    Raises ValueError where no contrast has records.
    """
    shown = [c for v in verdicts for c in v.contrasts if c.contrast.metric == metric and c.judgement.n]
    if not shown:
        raise ValueError(f"no records of {metric} for {', '.join(v.claim.name for v in verdicts)}")
    names = [fill(f"{short(c)} (n = {c.judgement.n})", 44) for c in shown]
    height = 1.1 + sum(.36 + .14 * (name.count("\n") + 1) for name in names)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    ax = figure.subplots()
    margin = max(c.contrast.margin for c in shown)
    if margin:
        ax.axvspan(-margin, margin, color=GREY, alpha=.15, lw=0, label=f"margin ±{margin:g}")
    ax.axvline(0, color=GREY, lw=.8)
    for row, c in enumerate(shown):
        _interval(ax, row, c)
    papers = [(row, c.paper_difference) for row, c in enumerate(shown) if c.paper_difference is not None]
    if papers:
        rows, values = zip(*papers)
        ax.plot(values, rows, "x", color=RED, ms=8, mew=2, label="paper (AffectNet)")
    ax.set_yticks(range(len(shown)), names, fontsize=8)
    ax.set_ylim(len(shown) - .5, -.5)
    ax.set_xlabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles))
    ax.legend(once.values(), once.keys(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.set_title(title, fontsize=10)
    return figure


def _interval(ax: Axes, row: int, c: ContrastVerdict) -> None:
    verdict = c.judgement.verdict
    look, estimate = VERDICTS[verdict], c.judgement.estimate
    name = "shown only" if c.contrast.direction == "shown" else verdict
    ax.plot(c.sample.values, np.full(c.judgement.n, row + .22), "o", color=look.color, ms=3, alpha=.45, mew=0)
    ax.plot([estimate.low, estimate.high], [row, row], color=look.color, ls=look.line, lw=2)
    ax.plot(estimate.mean, row, look.marker, color=look.color, ms=6, label=name,
            mfc="white" if c.contrast.direction == "shown" else look.color)


def head(v: ClaimVerdict) -> str:
    """Whose claim it is, in quotes, and our verdict, or that there is none."""
    said = f"the paper says: “{v.claim.text}”" if _papers(v) else f"a control: {v.claim.text}"
    none = v.verdict in (DESCRIPTIVE, NOT_JUDGED)
    return f"{v.claim.name}, {said}. {'No verdict' if none else 'Verdict'}: {v.verdict.upper()}."


def _papers(v: ClaimVerdict) -> bool:
    """Whether the claim is the paper's, and no control (K) of ours."""
    return v.claim.name.startswith("C")


def sentence(v: ClaimVerdict) -> str:
    """The claim and its verdict in words, with what the verdict stands on, or with what is shown where all is."""
    told = [c for c in v.contrasts if c.contrast.direction != "shown"] or v.contrasts
    parts = [f"{short(c)}: {c.contrast.metric} {number(c.judgement.estimate)} (n = {c.judgement.n})"
             for c in told if c.judgement.n]
    said = f"{head(v)} {'; '.join(parts)}." if parts else head(v)
    return f"{said} ({v.reason}.)" if v.reason else said
