"""Pictures of arms over training: curves with their toggles, intervals on top of each other, a measure against T, flips
beside each other, an interaction. An arm looks the same in each (palette.arm_look).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fer_lib.curves import by_epoch, data_words, largest_of, seed_words, shared_schedule, sign_changes
from fer_lib.figures import MOST_SEEDS
from fer_lib.palette import BLACK, GREY, RED, Look, arm_look, sign_look
from fer_lib.records import Records
from fer_lib.statistics import t_interval

LABELS = {"train_loss": "training loss", "macro_f1": "validation macro-F1"}
MOST_MARKS = 40                 # toggles or flips that are marked; more would hide the curves


def over_epochs(records: Records, arms: Sequence[str], panels: Mapping[str, str]) -> Figure:
    """Arms over the epochs, a panel a column of the epochs table (panels: its title by column): a thin line for each of
    the first MOST_SEEDS seeds, a thick one for the mean of all. Shaded: epochs in which the features of an arm are
    flipped in all its seeds. Flips at steps that differ by seed are ticks at the bottom.

    Raises ValueError where an arm has no records.
    """
    if missing := [arm for arm in arms if arm not in set(records.runs["name"])]:
        raise ValueError(f"no records of {', '.join(missing)}")
    figure = Figure(figsize=(4.6 * len(panels) + .2, 3.4), layout="constrained")
    for ax, (column, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for arm in arms:
            curves, look = by_epoch(records, arm, column), arm_look(arm)
            ax.plot(curves.index, curves.iloc[:, :MOST_SEEDS], color=look.color, ls=look.line, lw=.6, alpha=.35)
            ax.plot(curves.index, curves.mean(axis=1), color=look.color, ls=look.line, lw=2.2,
                    label=f"{arm} (n = {curves.shape[1]}{_thin(curves)})")
            mark_flips(ax, records, arm, int(curves.index.max()))
        ax.set(xlabel="epoch", ylabel=LABELS.get(column, column))
        ax.set_title(title, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    apart = seed_words(records.runs[records.runs["name"].isin(arms)])
    figure.suptitle(data_words(records) + (f"\nseeds: {apart}" if apart else ""), fontsize=8)
    return figure


def _thin(curves: pd.DataFrame) -> str:
    return f"; thin: the first {MOST_SEEDS}" if curves.shape[1] > MOST_SEEDS else ""


def mark_flips(ax: Axes, records: Records, arm: str, epochs: int) -> None:
    """Shade the arm's flipped epochs; where its seeds flip at different steps, a tick a flip."""
    changes, schedule = sign_changes(records, arm), shared_schedule(records, arm)
    if schedule is not None and len(schedule) <= MOST_MARKS:
        ends = [*schedule["place"][1:], epochs + .5]
        for start, end, sign in zip(schedule["place"], ends, schedule["sign"]):
            if sign < 0:
                ax.axvspan(start, end, color=sign_look(-1).color, alpha=.1, lw=0, label="features flipped")
    elif schedule is None and 0 < len(changes) <= 10 * MOST_MARKS:
        ax.plot(changes["place"], np.full(len(changes), .02), "|", color=arm_look(arm).color, ms=8, mew=1,
                transform=ax.get_xaxis_transform(), label=f"a flip of {arm}, any seed")


def toggles(around: pd.DataFrame, title: str = "") -> Figure:
    """The intervals between toggles on top of each other, means over the seeds: training loss (log axis) and validation
    macro-F1 by the epochs since the toggle. Numbers count the toggles; the dotted line is the beginning of training.

    around: as `curves.around_toggles` gives it.
    """
    figure = Figure(figsize=(9.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_yscale("log")
    for ax, column in ((left, "train_loss"), (right, "macro_f1")):
        ends = []
        for k, own in around.groupby("toggle"):
            mean, look = own.groupby("since")[column].mean(), sign_look(own["sign"].iloc[0])
            if k:
                ax.plot(mean.index, mean, color=look.color, ls=look.line, marker=look.marker, ms=5, lw=1.4,
                        label="a toggle to −" if own["sign"].iloc[0] < 0 else "a toggle back to +")
                ends.append((mean.iloc[-1], mean.index[-1], str(k), look.color))
            else:
                ax.plot(mean.index, mean, color=BLACK, ls=":", marker="o", ms=3, lw=2,
                        label="the beginning of training")
        _number(ax, ends)
        ax.axvline(-.5, color=GREY, lw=.8)
        ax.set(xlabel="epochs since the toggle (−1: the epoch before it)", ylabel=LABELS[column])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)
    plain = FuncFormatter(lambda y, _: f"{y:g}")
    left.yaxis.set_major_formatter(plain), left.yaxis.set_minor_formatter(NullFormatter())
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _legend(figure)
    figure.suptitle(title, fontsize=8)
    return figure


def _number(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """A word at the end of each line (y, x, word, color), apart from each other by a line's height."""
    ax.get_xlim(), ax.get_ylim()                        # what is drawn settles the axes
    lowest: dict[float, float] = {}
    for y, x, word, color in sorted(ends):
        (_, here), = ax.transAxes.inverted().transform(ax.transData.transform([(x, y)]))
        lowest[x] = max(here, lowest.get(x, -np.inf) + .055)
        ax.annotate(word, (x, lowest[x]), (6, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                    fontsize=8, va="center", color=color)


def step_by_step(losses: Mapping[str, pd.Series], toggles: Sequence[int], title: str = "", before: int = 20,
                 smooth: int = 5) -> Figure:
    """Left: the losses of a run without and a run with toggles (in this order, by arm) by training step. Right: their
    difference around each toggle, which is what the toggles did. All are means over `smooth` steps that don't cross a
    toggle.
    """
    figure = Figure(figsize=(9.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    (_, plain), (_, flipped) = losses.items()
    ends, numbers = [*toggles[1:], int(flipped.index.max()) + 1], []
    for arm, loss in losses.items():
        pieces = np.searchsorted(toggles, loss.index, side="right")
        shown = loss.groupby(pieces).transform(lambda x: x.rolling(smooth, center=True, min_periods=1).mean())
        left.plot(shown.index, shown, color=arm_look(arm).color, ls=arm_look(arm).line, lw=1.4, label=arm)
    for k, (toggle, end) in enumerate(zip(toggles, ends)):
        if k % 2 == 0:
            left.axvspan(toggle, end, color=sign_look(-1).color, alpha=.1, lw=0, label="features flipped")
        if end - toggle < smooth:
            continue
        gap, look = (flipped - plain).loc[toggle - before:end - 1], sign_look(-1 if k % 2 == 0 else 1)
        shown = gap.groupby(gap.index >= toggle).transform(
            lambda x: x.rolling(smooth, center=True, min_periods=1).mean())
        right.plot(shown.index - toggle, shown, color=look.color, ls=look.line, lw=1.4,
                   label="a toggle to −" if k % 2 == 0 else "a toggle back to +")
        numbers.append((shown.iloc[-1], shown.index[-1] - toggle, str(k + 1), look.color))
    _number(right, numbers)
    right.axhline(0, color=GREY, lw=.8)
    right.axvline(-.5, color=GREY, lw=.8)
    left.set(xlabel="training step", ylabel="training loss")
    right.set(xlabel="steps since the toggle", ylabel="loss with − loss without toggles")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    figure.suptitle(title, fontsize=8)
    return figure


def against(panels: Mapping[str, pd.DataFrame], x: str, bands: Mapping[str, Sequence[float]] | None = None,
            arm: str = "periodic", log: bool = True, title: str = "") -> Figure:
    """A measure against a setting of the arm, a panel each: by its label a table with x, label, seed and value. A dot a
    seed, the mean with its 95 % interval. bands: by label, the baseline's values, drawn as a band (mean, interval).
    """
    look = arm_look(arm)
    figure = Figure(figsize=(9.4 if len(panels) > 1 else 8, 3.4), layout="constrained")
    for ax, (label, table) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        if label in (bands or {}):
            band = t_interval(bands[label])
            ax.axhline(band.mean, color=arm_look("baseline").color, lw=1.2, label=f"baseline (n = {band.n})")
            if band.n > 1:
                ax.axhspan(band.low, band.high, color=GREY, alpha=.15, lw=0)
        groups = list(table.groupby("x"))
        means = [t_interval(own["value"]) for _, own in groups]
        places = [place for place, _ in groups]
        ax.plot(table["x"], table["value"], "o", color=look.color, ms=3, alpha=.5, mew=0)
        ax.plot(places, [m.mean for m in means], color=look.color, ls=look.line, marker=look.marker, ms=6, lw=1.4,
                label="mean, 95 % interval; dots: seeds")
        for place, m in zip(places, means):
            if m.n > 1:
                ax.plot([place, place], [m.low, m.high], color=look.color, lw=2)
        if log:
            ax.set_xscale("log")
            ax.minorticks_off()
        ax.set_xticks(places, [own["label"].iloc[0] for _, own in groups], fontsize=7, rotation=90 if log else 0)
        ax.set(xlabel=x, ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    figure.suptitle(title, fontsize=8)
    return figure


def flip_rhythm(records: Records, arms: Sequence[str]) -> Figure:
    """Left: when the signs turned, a row for each run. Right: the steps between one flip and the next, in bins that
    double.
    """
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    row, names, gaps = 0, {}, {}
    for arm in arms:
        changes, look = sign_changes(records, arm), arm_look(arm)
        gaps[arm], seeds = steps_between(changes), sorted(records.runs.loc[records.runs["name"] == arm, "seed"])
        names[row + (len(seeds) - 1) / 2] = f"{arm}\nn = {len(seeds)}"
        for seed in seeds:
            steps = changes.loc[changes["seed"] == seed, "step"]
            left.plot(steps, np.full(len(steps), row), "|", color=look.color, ms=9, mew=1.5)
            row += 1
    left.set_yticks(list(names), names.values(), fontsize=8)
    left.set_ylim(row - .5, -.5)
    left.set_xlim(0, records.runs["steps"].max())
    left.set(xlabel="training step; each mark is a flip")
    highest = max([int(np.ceil(np.log2(g.max()))) for g in gaps.values() if len(g)], default=1)
    for k, arm in enumerate(arms):
        counts = np.bincount(np.ceil(np.log2(gaps[arm])).astype(int), minlength=highest + 1)
        right.bar(np.arange(highest + 1) + .4 * (k - (len(arms) - 1) / 2), counts, width=.4, color=arm_look(arm).color,
                  hatch="//" if k else "", edgecolor="white", label=f"{arm} ({len(gaps[arm])} intervals)")
    right.set_xticks(range(0, highest + 1, 2), [f"{2 ** b:,}" for b in range(0, highest + 1, 2)], fontsize=7)
    right.set(xlabel="steps between two flips (up to)", ylabel="intervals, all seeds")
    right.yaxis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    figure.suptitle(data_words(records), fontsize=8)
    return figure


def steps_between(changes: pd.DataFrame) -> np.ndarray:
    """Steps between one flip and the next of the same run, over all seeds. changes: as `curves.sign_changes`."""
    return np.concatenate([np.zeros(0, int), *(np.diff(own) for _, own in changes.groupby("seed")["step"])]).astype(int)


def wobbles(table: pd.DataFrame, title: str = "") -> Figure:
    """The highest point of a curve above its own trend, against how much the curve wobbles: a mark a run; the line is
    what chance alone gives to independent wobbles. table: as `curves.wobble` gives it.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    ax = figure.subplots()
    expected, right = largest_of(int(table["epochs"].iloc[0])), 1.05 * table["wobble"].max()
    ax.plot([0, right], [0, expected * right], color=BLACK, ls=":", lw=1,
            label=f"chance alone: {expected:.2f} standard deviations")
    for arm, own in table.groupby("name", sort=False):
        look = arm_look(arm)
        ax.plot(own["wobble"], own["gain"], look.marker, color=look.color, ms=6, alpha=.8, label=arm)
    ax.set(xlim=(0, right), ylim=(0, None), xlabel="wobble: standard deviation of validation macro-F1 about its trend",
           ylabel="highest point − trend")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title(title, fontsize=8)
    return figure


def interaction(lines: Mapping[str, Sequence[pd.Series]], x: Sequence[str], label: str, looks: Mapping[str, Look],
                title: str = "") -> Figure:
    """A line each, over the places x: thin a seed that all have, thick the mean with its 95 % interval. Parallel lines:
    no interaction. With two lines and two places the cross is where the second line would end if they were parallel, by
    the seeds that all four have.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(x))
    for k, (name, values) in enumerate(lines.items()):
        look, aside = looks[name], .03 * (k - (len(lines) - 1) / 2)
        both = pd.concat(list(values), axis=1).dropna()
        ax.plot(places + aside, both.T, color=look.color, ls=look.line, lw=.6, alpha=.4)
        means = [t_interval(v) if len(v) else None for v in values]
        there = [p for p, m in zip(places, means) if m]
        ax.plot(np.array(there) + aside, [m.mean for m in means if m], color=look.color, ls=look.line, lw=2.2,
                marker=look.marker, label=f"{name} (n = {', '.join(str(len(v)) for v in values)})")
        for place, m in zip(places, means):
            if m and m.n > 1:
                ax.plot([place + aside] * 2, [m.low, m.high], color=look.color, lw=3)
    common = pd.concat([v for values in lines.values() for v in values], axis=1).dropna()
    if len(lines) == len(x) == 2 and len(common):
        a, b, c, _ = common.mean()
        ax.plot(places, [c, c + b - a], color=GREY, lw=.8, ls=":")
        ax.plot(1, c + b - a, "x", color=RED, ms=9, mew=2, label="if the two effects added up")
    ax.set_xticks(places, x)
    ax.set_xlim(-.3, len(x) - .7)
    ax.set_ylabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title(title, fontsize=8)
    return figure


def _legend(figure: Figure) -> None:
    """One legend below, each name once."""
    found = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {name: handle for handle, name in zip(handles, labels) if name not in found}
    columns = 5 if figure.get_figwidth() > 8 else 2
    figure.legend(found.values(), found.keys(), fontsize=8, frameon=False, loc="outside lower center", ncols=columns)
