"""Verdicts as a notebook shows them: a table, a forest of intervals, a sentence a claim, and what is missing.

Everything is computed from `claims.judge`; nothing here decides.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_lib.claims import ClaimVerdict, ContrastVerdict
from fer_lib.palette import BLACK, BLUE, GREEN, GREY, RED, Look
from fer_lib.statistics import DESCRIPTIVE, FAILS, HOLDS, NOT_JUDGED, UNDECIDED

VERDICTS = {HOLDS: Look(GREEN, "-", "D"), FAILS: Look(RED, "-", "X"), UNDECIDED: Look(BLACK, "-", "s"),
            DESCRIPTIVE: Look(BLUE, "--", "o"), NOT_JUDGED: Look(GREY, ":", "o")}
RULES = """A difference is taken seed by seed: a pair shares initial weights, the order of images and the split.
holds         p < .05 in the claimed direction (sign-flip permutation test, Holm-adjusted within the claim's family);
              a claim of equality: shown to lie within the margin (TOST, adjusted); an event: in every run
does not hold p < .05 the other way, or shown to lie within the margin; equality: interval outside; an event: in no run
undecided     neither; a failed test alone never makes "does not hold"
descriptive   fewer seeds than the claim asks for: numbers, no verdict
not judged    no records"""


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
                "ours [95 %]": f"{j.estimate:+.3f}",
                "paper": "" if c.paper_difference is None else f"{c.paper_difference:+.3f}",
                "claimed": claimed(c), "p": "" if np.isnan(j.p_adjusted) else f"{j.p_adjusted:.3g}",
                "p within": "" if np.isnan(j.equivalent_p_adjusted) else f"{j.equivalent_p_adjusted:.3g}",
                "runs": f"{round(j.met.mean * j.n)} of {j.n}" if j.met else "",
                "verdict": j.verdict if asked else "shown"})
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()] if rows else table


def short(c: ContrastVerdict) -> str:
    """The contrast's label, without the study where both arms have the same."""
    label, studies = c.contrast.label, {arm.split("/")[0] for arm in c.contrast.arms}
    return label.replace(f"{studies.pop()}/", "") if len(studies) == 1 else label


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
    figure = Figure(figsize=(8.5, 1.1 + .5 * len(shown)), layout="constrained")
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
    ax.set_yticks(range(len(shown)), [f"{short(c)} (n = {c.judgement.n})" for c in shown])
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


def sentence(v: ClaimVerdict) -> str:
    """The claim's verdict in words, with what it stands on."""
    parts = [f"{short(c)}: {c.contrast.metric} {c.judgement.estimate:+.3f} (n = {c.judgement.n})"
             for c in v.contrasts if c.judgement.n and c.contrast.direction != "shown"]
    said = f"{v.claim.name} {v.verdict.upper()}: {v.claim.text}."
    said += f" {'; '.join(parts)}." if parts else ""
    return f"{said} ({v.reason}.)" if v.reason else said
