"""Pictures of many arms: the path of w in each, differences seed by seed, scores against settings, and the power of a
test of equality.
"""

from collections.abc import Container, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from fer_lib.curves import data_words
from fer_lib.palette import BLACK, CYCLE, GREY, SIGNS, Look, arm_look
from fer_lib.statistics import equivalence_power, t_interval
from fer_lib.sweeps import Arm, setting_means
from fer_lib.w_figures import LIN, MARKS

COLUMNS = 4
MOST_SEEDS = 3         # whose paths are drawn: of more, none can be followed


def paths(arms: Sequence[Arm]) -> Figure:
    """A panel an arm: w by training step. The coloured line is the seed with the lowest number (mean over the sites:
    blue while +, dashed vermilion while −), ticks below are its flips, the grey band holds each single w after the
    optimiser step; thin grey lines are the next two seeds.
    """
    rows = -(-len(arms) // COLUMNS)
    figure = Figure(figsize=(9.6, .9 + 1.55 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(arms):]:
        ax.set_axis_off()
    top = max(float(a.records.history.filter(like="w_mean/").abs().max().max()) for a in arms)
    powers = 10. ** np.arange(-5, np.ceil(np.log10(top)) + 1)
    for ax, arm in zip(axes.flat, arms):
        _path(ax, arm)
        ax.set_yscale("symlog", linthresh=LIN)
        ax.set_ylim(-2 * top, 2 * top)
        ax.set_yticks([-1e-2, -1e-4, 0, 1e-4, 1e-2], ["−.01", "−1e-4", "0", "1e-4", ".01"])
        ax.yaxis.set_minor_locator(FixedLocator([s * p for p in powers for s in (-1, 1)]))
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(labelsize=7)
        ax.tick_params(which="minor", length=2)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[max(0, len(arms) - COLUMNS):len(arms)]:
        ax.tick_params(labelbottom=True)
    figure.supxlabel("training step", fontsize=8)
    figure.supylabel("w (linear within ± 1e-5)", fontsize=8)
    figure.suptitle(data_words(arms[0].records), fontsize=8)
    return figure


def _path(ax: Axes, arm: Arm) -> None:
    history, runs = arm.records.history, arm.records.runs
    seeds = sorted(runs["seed"])
    for seed in seeds[1:MOST_SEEDS]:
        own = history[history["seed"] == seed]
        ax.plot(own["step"], own.filter(like="w_mean/").mean(axis=1), color=GREY, lw=.5, alpha=.5)
    own = history[history["seed"] == seeds[0]]
    w = own.filter(like="w_mean/").mean(axis=1)
    ax.fill_between(own["step"], own.filter(like="w_min/").min(axis=1), own.filter(like="w_max/").max(axis=1),
                    color=GREY, alpha=.2, lw=0)
    for sign, look in SIGNS.items():
        ax.plot(own["step"], w.where((w < 0) == (sign < 0)), look.line, color=look.color, lw=1.3, marker=".", ms=1.5)
    ax.axhline(0, color=BLACK, lw=.5)
    flips = arm.records.flips
    steps = flips.loc[flips["seed"] == seeds[0], "step"].unique() if len(flips) else []
    if len(steps) <= MARKS:
        ax.plot(steps, np.full(len(steps), .05), "|", color=BLACK, ms=6, mew=.8, transform=ax.get_xaxis_transform())
    counts = dict.fromkeys(f"{c:,.0f}" for c in (runs["flips_steps"].min(), runs["flips_steps"].max()))
    flips = " to ".join(counts) + (" flip" if list(counts) == ["1"] else " flips")
    ax.set_title(f"{arm.words or 'as in Table 1'} (n = {len(seeds)})\n{arm.name}: {flips}", fontsize=7, loc="left",
                 pad=3)


def differences(table: pd.DataFrame, label: str, margin: float = 0., title: str = "",
                tints: Mapping[str, str] | None = None) -> Figure:
    """A row each, in the table's order: the mean difference with its 95 % interval, each seed a dot; a panel an arm if
    rows are shared, else one. table: as `sweeps.differences`. margin: a band about 0. tints: colours of rows' names.
    """
    names = list(dict.fromkeys(table["row"]))
    shared = table.groupby("row")["arm"].nunique().max() > 1
    panels = list(dict.fromkeys(table["arm"])) if shared else [""]
    figure = Figure(figsize=(8.6, 1.2 + .34 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels):
        if margin:
            ax.axvspan(-margin, margin, color=GREY, alpha=.15, lw=0, label=f"± {margin:g}")
        ax.axvline(0, color=GREY, lw=.8)
        for (name, arm), own in table[table["arm"] == panel if shared else slice(None)].groupby(["row", "arm"]):
            _difference(ax, names.index(name), own["value"].to_numpy(), arm_look(arm))
        if shared:
            ax.set_title(panel, fontsize=9)
        ax.set_xlabel(label, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [_counted(name, table) for name in names])
    axes[0].set_ylim(len(names) - .4, -.6)
    for tick, name in zip(axes[0].get_yticklabels(), names):
        if name in (tints or {}):
            tick.set_bbox({"fc": tints[name], "ec": "none", "pad": 1.5})
    figure.suptitle(title, fontsize=8)
    return figure


def _counted(name: str, table: pd.DataFrame) -> str:
    n = dict.fromkeys(len(own) for _, own in table[table["row"] == name].groupby("arm", sort=False))
    return f"{name} (n = {', '.join(map(str, n))})"


def _difference(ax: Axes, row: int, values: np.ndarray, look: Look) -> None:
    mean = t_interval(values)
    ax.plot(values, np.full(len(values), row + .26), "o", color=look.color, ms=3, alpha=.45, mew=0)
    if mean.n > 1:
        ax.plot([mean.low, mean.high], [row, row], color=look.color, lw=2)
    ax.plot(mean.mean, row, look.marker, color=look.color, ms=6)


def against_settings(panels: Mapping[str, Mapping[str, pd.DataFrame]], label: str, base: Sequence[float] = (),
                     title: str = "", shared: Container[str] = ()) -> Figure:
    """A panel a setting (its name: by method a table as `sweeps.by_setting` gives it): a dot a seed, the mean with its
    95 % interval (`sweeps.setting_means`), at evenly spaced values. base: the baseline's scores, a grey band;
    across a panel, or, in those whose setting the baseline reads as well (shared), only where that is the baseline's.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9.4, .7 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for ax, (name, tables) in zip(axes.flat, panels.items()):
        every = pd.concat(tables.values())[["x", "label", "usual"]].drop_duplicates("x").sort_values("x")
        places = {x: k for k, x in enumerate(every["x"])}
        if len(base):
            usual = places[every.loc[every["usual"], "x"].iloc[0]]
            _baseline(ax, base, (usual - .3, usual + .3) if name in shared else (-.5, len(places) - .5))
        for k, (method, table) in enumerate(tables.items()):
            _scores(ax, table, places, .09 * (2 * k - len(tables) + 1), arm_look(method), method)
        counts = [[len(t[t["x"] == x]) for t in tables.values() if (t["x"] == x).any()] for x in every["x"]]
        ax.set_xticks(range(len(every)), [f"{word}\nn = {', '.join(map(str, n))}"
                                          for word, n in zip(every["label"], counts)], fontsize=7)
        ax.set_xlim(-.5, len(every) - .5)
        ax.set_title(name, fontsize=8)
        ax.tick_params(axis="y", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(label, fontsize=8)
    found = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    figure.legend(found.values(), found.keys(), fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=8)
    return figure


def _baseline(ax: Axes, scores: Sequence[float], ends: tuple[float, float]) -> None:
    band = t_interval(scores)
    ax.plot(ends, [band.mean] * 2, color=arm_look("baseline").color, lw=1, label=f"baseline (n = {band.n})")
    if band.n > 1:
        ax.fill_between(ends, band.low, band.high, color=GREY, alpha=.15, lw=0)


def _scores(ax: Axes, table: pd.DataFrame, places: Mapping[object, int], aside: float, look: Look, name: str) -> None:
    at = table["x"].map(places).to_numpy() + aside
    ax.plot(at, table["value"], "o", color=look.color, ms=3, alpha=.45, mew=0)
    groups = [(places[x] + aside, m) for x, m in setting_means(table).items()]
    ax.plot([p for p, _ in groups], [m.mean for _, m in groups], color=look.color, ls=look.line, marker=look.marker,
            ms=5, lw=1, label=f"{name}: mean, 95 % interval; dots: seeds")
    for place, m in groups:
        if m.n > 1:
            ax.plot([place, place], [m.low, m.high], color=look.color, lw=2)


def power_of_equality(sds: Mapping[str, tuple[float, int]], margin: float, wanted: float = .8,
                      most: int = 60) -> Figure:
    """The chance that TOST shows two equal arms equal, against the number of seeds: a line a pair (its name: sd of the
    paired differences, seeds it has, which are marked).
    """
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    ax, seeds = figure.subplots(), np.unique(np.round(np.geomspace(3, most, 16)).astype(int))
    for k, (name, (sd, n)) in enumerate(sds.items()):
        line, color = ("-", "--", "-.", ":")[k % 4], CYCLE[k % len(CYCLE)]
        ax.plot(seeds, [equivalence_power(sd, int(m), margin) for m in seeds], line, color=color, lw=1.6,
                label=f"{name}: sd {sd:.4f}")
        ax.plot(n, equivalence_power(sd, n, margin), "D", color=color, ms=6)
    ax.axhline(wanted, color=GREY, lw=.8)
    ax.set(xlabel="seeds; diamond: what is here", ylabel=f"chance to show it within ± {margin:g}", ylim=(0, 1),
           xlim=(0, most))
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    return figure
