"""Pictures from records: static, small, readable without colour vision, and clear about drawn data."""

import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito's palette: told apart with any kind of colour vision
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
                                                       "#F0E442", "#666666")
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
DRAWN = "drawn faces, not photographs"
LINTHRESH = 1e-4        # w lives near 1e-4: the symlog axis is linear within ± this


def png(figure: Figure, dpi: int = 90, colors: int = 96) -> bytes:
    """The figure as PNG bytes with a palette of so many colours: a third of the size, for notebooks that are shared."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor="white")
    Image.open(raw).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def training(history: pd.DataFrame, epochs: pd.DataFrame, flips: pd.DataFrame, title: str, drawn: bool) -> Figure:
    """One run at a glance on a shared step axis: loss, macro-F1 as trained and clean, w by site, signs by site.

    Tables as a run records them. Panels that have nothing to show (w without AutoReLU, signs without flips) are left
    out.
    """
    sites = [c.removeprefix("w_mean/") for c in history if c.startswith("w_mean/")]
    panels = ["loss", "f1"] + (["w"] if sites else []) + (["signs"] if len(flips) else [])
    heights = {"loss": 2., "f1": 2., "w": 2.4, "signs": 1.6}
    figure = Figure(figsize=(9, .9 + sum(heights[p] for p in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False,
                           gridspec_kw={"height_ratios": [heights[p] for p in panels]})[:, 0]
    figure.suptitle(title + (f"\n({DRAWN})" if drawn else ""), fontsize=11)
    draw = {"loss": lambda ax: _loss(ax, history, epochs), "f1": lambda ax: _f1(ax, epochs),
            "w": lambda ax: _w(ax, history, sites), "signs": lambda ax: _signs(ax, flips, int(history["step"].max()))}
    for panel, ax in zip(panels, axes):
        draw[panel](ax)
        ax.spines[["top", "right"]].set_visible(False)
        if panel != "signs" and len(flips):
            _mark_flips(ax, flips)
    axes[-1].set_xlabel("training step")
    axes[-1].set_xlim(0, history["step"].max() * 1.01)
    return figure


def _loss(ax, history: pd.DataFrame, epochs: pd.DataFrame) -> None:
    ax.plot(history["step"], history["loss"], color=GREY, lw=.6, alpha=.7, label="each step")
    train = epochs[(epochs["split"] == "val") & (epochs["mode"] == "trained")]
    ax.plot(train["step"], train["train_loss"], "o-", ms=3, color=BLUE, label="train, mean of the epoch")
    ax.plot(train["step"], train["loss"], "s--", ms=3, color=ORANGE, label="validation")
    top = float(np.nanquantile(history["loss"].replace([np.inf, -np.inf], np.nan), .995))
    top = max([top, *train["train_loss"].dropna()])
    ax.set_ylim(0, 1.15 * top)
    over = train[train["loss"] > 1.15 * top]
    if len(over):
        ax.plot(over["step"], np.full(len(over), 1.12 * top), "^", color=ORANGE, ms=5)
        ax.text(.99, .93, f"▲ validation above the axis, at most {over['loss'].max():.1f}", fontsize=7, ha="right",
                transform=ax.transAxes, color=ORANGE)
    ax.set_ylabel("cross-entropy")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _f1(ax, epochs: pd.DataFrame) -> None:
    for mode, style, color in (("trained", "o-", BLUE), ("clean", "s--", ORANGE)):
        rows = epochs[(epochs["split"] == "val") & (epochs["mode"] == mode)]
        label = "as trained" if mode == "trained" else "clean (sign +)"
        ax.plot(rows["step"], rows["macro_f1"], style, ms=3, color=color, label=label)
    ax.set_ylim(0, 1)
    ax.set_ylabel("validation macro-F1")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _w(ax, history: pd.DataFrame, sites: list[str]) -> None:
    for k, site in enumerate(sites):
        color = CYCLE[k % len(CYCLE)]
        low, high = history[f"w_min/{site}"], history[f"w_max/{site}"]
        ax.fill_between(history["step"], low, high, color=color, alpha=.15, lw=0)
        ax.plot(history["step"], history[f"w_mean/{site}"], lw=.9, color=color, label=site)
    ax.set_yscale("symlog", linthresh=LINTHRESH)
    ax.axhline(0, color="black", lw=.6)
    ax.set_ylabel("w (mean, range)")
    ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _signs(ax, flips: pd.DataFrame, steps: int) -> None:
    """Each site's row is dark while its sign is -; with signs by channel, as dark as the share that is -."""
    names = sorted(flips["site"].unique(), key=lambda s: (s != "stem", s))
    for row, site in enumerate(names):
        own = flips[flips["site"] == site].sort_values("step")
        change = np.where(own["sign"] < 0, own["share"], -own["share"])
        share = np.clip(np.cumsum(change), 0, 1)
        edges = np.append(own["step"].to_numpy(), steps + 1)
        for start, stop, alpha in zip(edges[:-1], edges[1:], share):
            if alpha > .001 and stop > start:
                ax.barh(row, stop - start, left=start, height=.8, color=RED, alpha=float(alpha), lw=0)
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.set_ylim(len(names) - .5, -.5)
    ax.set_ylabel("sign − (dark)")


def _mark_flips(ax, flips: pd.DataFrame) -> None:
    steps = flips["step"].unique()
    for step in steps if len(steps) <= 200 else []:     # more would hide what they mark
        ax.axvline(step, color=RED, lw=.5, alpha=.5, zorder=0)


def arms(runs: pd.DataFrame, table: pd.DataFrame, measure: str, label: str, paper: dict[str, float],
         title: str) -> Figure:
    """Each arm's mean with its interval, each seed a dot, and the paper's number where it gives one.

    table: `statistics.compare_arms` of the same runs and measure.
    """
    figure = Figure(figsize=(7.5, .9 + .55 * len(table)), layout="constrained")
    ax = figure.subplots()
    for row, arm in enumerate(table.itertuples()):
        seeds = runs.loc[runs["name"] == arm.arm, measure]
        below = np.full(len(seeds), row + .22)          # beside the line, where the mean doesn't hide them
        ax.plot(seeds, below, "o", color=SKY, ms=4, alpha=.8, label="a seed" if row == 0 else None)
        ax.plot([arm.score.low, arm.score.high], [row, row], color=BLUE, lw=2,
                label="95 % interval of the mean" if row == 0 else None)
        ax.plot(arm.score.mean, row, "D", color=BLUE, ms=6, label="mean" if row == 0 else None)
    shown = [(row, paper[arm]) for row, arm in enumerate(table["arm"]) if arm in paper]
    if shown:
        ax.plot([v for _, v in shown], [r for r, _ in shown], "x", color=RED, ms=8, mew=2, label="paper (AffectNet)")
    ax.set_yticks(range(len(table)), [f"{arm.arm} (n = {arm.score.n})" for arm in table.itertuples()])
    ax.set_ylim(len(table) - .5, -.5)
    ax.set_xlabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.set_title(title, fontsize=10)
    return figure


def gallery(images: np.ndarray, labels: np.ndarray, classes: list[str], columns: int, drawn: bool) -> Figure:
    """A row of pictures a class: images uint8 (N, C, H, W), the first `columns` of each label."""
    if not drawn:
        raise ValueError("research pictures are not shown in notebooks that may be shared: only drawn faces are")
    figure = Figure(figsize=(.8 * columns + 1, .8 * len(classes) + .4), layout="constrained")
    axes = figure.subplots(len(classes), columns, squeeze=False)
    for row, name in enumerate(classes):
        found = images[labels == row][:columns]
        for column, ax in enumerate(axes[row]):
            ax.set_xticks([]), ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if column < len(found):
                picture = np.moveaxis(found[column], 0, -1)
                ax.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(DRAWN, fontsize=9)
    return figure


def arm_curves(epochs: pd.DataFrame, names: list[str], split: str, column: str, label: str, title: str) -> Figure:
    """A panel for each arm in `names`: a thin line a seed, a thick one for their mean, as trained.

    `epochs` as in `runs.Records`.
    """
    rows = epochs[(epochs["split"] == split) & (epochs["mode"] == "trained")]
    figure = Figure(figsize=(2.3 * len(names) + .6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        own = rows[rows["name"] == name].pivot_table(index="epoch", columns="seed", values=column)
        ax.plot(own.index, own, color=CYCLE[k % len(CYCLE)], lw=.7, alpha=.6)
        ax.plot(own.index, own.mean(axis=1), color=CYCLE[k % len(CYCLE)], lw=2)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("epoch")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(label)
    figure.suptitle(title, fontsize=9)
    return figure
