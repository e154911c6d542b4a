"""Pictures of w: its life step by step, several lives side by side, the size of its rounding error, and the panel."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_lib.figures import steps_with_a_flip
from fer_lib.life_of_w import Life, simulate
from fer_lib.live.panel import Axis, Choice, Curve, Panel, Slider
from fer_lib.palette import GREY, SIGNS, Look

LIN = 1e-5              # w's axis is linear within ± this
POINTS = 1500           # of a curve that is drawn: more can't be told apart
MARKS = 60              # flips that get a line of their own

def first_flip(history: pd.DataFrame, w: np.ndarray, flip: int, site: str, around: int = 12) -> Figure:
    """Left: w in each forward pass. Right: around one flip, beside it the channels of one site after the step before.

    history: a run's, every step; w as `life_of_w.shared_w` gives it; flip: a forward pass, from 1.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _life(left, w)
    left.axvline(flip, color=GREY, lw=.8, ls=":")
    left.set_title("w in each forward pass", fontsize=9)
    at = np.arange(max(2, flip - around), min(len(w), flip + around) + 1)
    before = history.iloc[at - 2]                       # row t - 1 is after step t, and forward t + 1 uses what it left
    mean, low, high = (before[f"w_{name}/{site}"] for name in ("mean", "min", "max"))
    right.errorbar(at, mean, yerr=[mean - low, high - mean], fmt="none", color=GREY, lw=1, capsize=2,
                   label=f"w of {site}'s channels")
    for sign, look in SIGNS.items():
        own = np.sign(w[at - 1]) == sign
        right.plot(at[own], w[at - 1][own], look.marker, color=look.color, ms=5,
                   label=f"the mean of all w, {'+' if sign > 0 else '−'}")
    right.axhline(0, color="black", lw=.6)
    right.set_title(f"around forward pass {flip}", fontsize=9)
    right.set_xlabel("forward pass")
    right.legend(fontsize=7, frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def lives(paths: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """A row for each life: w in each forward pass, blue while it is positive, dashed vermilion while negative."""
    figure = Figure(figsize=(9, .7 + 1.15 * len(paths)), layout="constrained")
    axes = figure.subplots(len(paths), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, w) in zip(axes, paths.items()):
        _life(ax, w)
        ax.set_xlabel("")
        ax.set_ylabel("")
        ax.set_title(name, fontsize=8, loc="left", pad=2)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("forward pass")
    figure.supylabel("w", fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


def recorded(history: pd.DataFrame, flips: pd.DataFrame, title: str = "") -> Figure:
    """A row a run of a study's records: w, the mean over sites, at the steps that were kept; lines: steps with a flip.
    """
    runs = history.groupby(["name", "seed"])
    figure = Figure(figsize=(9, .7 + 1.15 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    for ax, ((name, seed), own) in zip(axes, runs):
        steps = flips.loc[(flips["name"] == name) & (flips["seed"] == seed), "step"].unique()
        _life(ax, own.filter(like="w_mean/").mean(axis=1).to_numpy(), own["step"].to_numpy(), steps)
        ax.set_xlabel(""), ax.set_ylabel("")
        ax.set_title(f"{name}, seed {seed}: {steps_with_a_flip(len(steps))}", fontsize=8, loc="left", pad=2)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("training step")
    figure.supylabel("w", fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


def _life(ax: Axes, w: np.ndarray, x: np.ndarray | None = None, flips: np.ndarray | None = None) -> None:
    """w over forward passes, on an axis that is linear near 0 and logarithmic outside; x, flips: where it isn't whole.
    """
    x = np.arange(1, len(w) + 1) if x is None else x
    for sign, look in SIGNS.items():
        own = np.where(np.where(w < 0, -1, 1) == sign, w, np.nan)
        ax.plot(x, own, look.line, color=look.color, lw=1.2, marker=".", ms=1.5)
    flips = np.flatnonzero((w[1:] < 0) != (w[:-1] < 0)) + 2 if flips is None else flips
    if len(flips) <= MARKS:
        ax.vlines(flips, 0, 1, transform=ax.get_xaxis_transform(), color=GREY, lw=.5, zorder=0)
    ax.axhline(0, color="black", lw=.5)
    ax.set_yscale("symlog", linthresh=LIN)
    top = max(1.2 * float(np.abs(w).max()), 2 * LIN)
    ax.set_ylim(-top if len(flips) else -2 * LIN, top)
    ax.yaxis.get_major_locator().set_params(numticks=6)
    ax.tick_params(labelsize=7)
    ax.set_xlabel("forward pass")
    ax.set_ylabel("w")


def rounding(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """dL/dw as autograd gives it against |w|, a line a precision. tables: as `rounding.gradients_of_w` gives them."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    for (name, table), (line, marker) in zip(tables.items(), (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))):
        ax.loglog(table["w"], table["gradient"], line, marker=marker, ms=4, color="black", label=name)
    ax.invert_xaxis()
    ax.set_xlabel("|w|, smaller to the right")
    ax.set_ylabel("dL/dw (root mean square)")
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def told(life: Life) -> str:
    """A life in a sentence or two, all of it computed."""
    if not len(life.flips):
        return f"No flip in {len(life.w):,} forward passes; w ends at {life.w[-1]:.2g}."
    said = (f"{len(life.flips)} flip{'s' if len(life.flips) > 1 else ''} in {len(life.w):,} forward passes, the first "
            f"at {life.flips[0]:,}; features are flipped in {life.negative:.0%} of them.")
    if len(life.intervals):
        said += f" Steps between flips: {life.intervals.min()} to {life.intervals.max()}, half of them at most " \
                f"{np.median(life.intervals):g}."
    return said + f" After the first flip |w| stays below {np.abs(life.w[life.flips[0] - 1:]).max():.2g}."


def panel(steps: int, weight_decay: float, **start: float) -> Panel:
    """Sliders over the simulated life of w, for so many forward passes. start: lr, w0, noise, where they begin."""
    def curves(optimizer: str, **values: float) -> tuple[list[Curve], str]:
        values |= {"decoupled": optimizer == "AdamW"}
        if optimizer == "no decay":
            values["weight_decay"] = 0.
        life = simulate(steps=steps, **values)
        quiet = simulate(steps=steps, **{**values, "noise": 0.})
        x, size = np.arange(1, steps + 1), np.abs(life.w)
        found = [Curve("w", "without noise", *thinned(x, np.abs(quiet.w)), Look(GREY, ":"))]
        for sign, look in SIGNS.items():
            own = np.where((life.w < 0) == (sign < 0), size, np.nan)
            found.append(Curve("w", f"w is {'+' if sign > 0 else '−: flipped'}", *thinned(x, own), look))
        found.append(Curve("gaps", "a flip", life.flips[1:], life.intervals, Look(GREY, "-", "o"), "points"))
        return found, told(life)

    axes = [Axis("w", "|w|; its colour is its sign", "forward pass", "|w|", (0, steps), (1e-8, 1.), "log"),
            Axis("gaps", "steps since the flip before", "forward pass of the flip", "steps", (0, steps))]
    return Panel(axes, [
        Choice("optimizer", ["Adam", "AdamW", "no decay"], "Adam"),
        Slider("lr", 1e-5, 1e-2, start["lr"], .25, log=True),
        Slider("weight_decay", 1e-7, 1e-1, weight_decay, .5, "weight decay", log=True),
        Slider("beta1", 0., .99, .9, .01, "β1"), Slider("beta2", .9, .9999, .999, .0001, "β2", digits=".4f"),
        Slider("eps", 1e-12, 1e-4, 1e-8, 1., "ε", log=True), Slider("w0", .01, .99, start["w0"], .01),
        Slider("noise", 1e-14, 1e-7, start["noise"], .5, "noise s", log=True)], curves)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: of each stretch its least and its greatest, in their order; NaN where it has none."""
    every = -(-len(x) // (POINTS // 2))
    if every <= 2:
        return x, y
    keep = []
    for start in range(0, len(x), every):
        part = y[start:start + every]
        known = np.flatnonzero(~np.isnan(part))
        ends = (known[part[known].argmin()], known[part[known].argmax()]) if len(known) else (0,)
        keep += sorted({start + int(k) for k in ends})
    return x[keep], y[keep]
