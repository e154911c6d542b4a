"""Pictures from records: static, small, readable without colour vision, and clear about drawn data."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import Image as Picture
from IPython.display import Pretty
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from fer_lib.palette import BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, YELLOW, arm_look

DRAWN = "drawn faces, not photographs"
SIGN_ROWS = "sign: − filled\n+ blank"
MOST_SEEDS = 5          # that are drawn one by one: of more, none can be followed
LINTHRESH = 1e-4        # w lives near 1e-4: the symlog axis is linear within ± this


def png(figure: Figure, dpi: int = 90, colors: int = 256) -> bytes:
    """The figure as PNG bytes with a palette of so many colours: a third of the size, for notebooks that are shared."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor="white")
    pixels = np.array(Image.open(raw).convert("RGB")).astype(np.int32)
    found, where, counts = np.unique(pixels @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True)
    chosen, nearest = few_colors(np.stack([found >> 16, found >> 8 & 255, found & 255], 1), counts, colors)
    image = Image.fromarray(nearest[where].reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(chosen.astype(np.uint8).tobytes())
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def few_colors(found: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(at most `most` colours, for each found colour (n, 3) which of them stands for it).

    Half are the commonest, so what is drawn flat keeps its colour; then always the one that is farthest from all chosen
    yet, so no rare colour, as a small map has them, becomes another.
    """
    order = np.argsort(-counts, kind="stable")
    chosen, far, nearest = [], np.full(len(found), np.inf), np.zeros(len(found), int)
    for k in range(min(most, len(found))):
        one = order[k] if k < most // 2 else int(np.argmax(far))
        away = ((found - found[one]) ** 2).sum(1)
        nearest = np.where(away < far, k, nearest)
        far = np.minimum(far, away)
        chosen.append(one)
    return found[chosen], nearest


def picture(figure: Figure, alt: str, dpi: int = 90, colors: int = 256) -> Picture:
    """The figure as a notebook shows it, with words for readers who don't see it. Raises ValueError without words."""
    if not alt.strip():
        raise ValueError("a picture needs words for readers who don't see it: give alt")
    return Picture(png(figure, dpi, colors), alt=" ".join(alt.split()))


def training(history: pd.DataFrame, epochs: pd.DataFrame, flips: pd.DataFrame, title: str, drawn: bool,
             events: pd.DataFrame | None = None, numbers: str = "") -> Figure:
    """One run at a glance on a shared step axis: loss, macro-F1 as trained and clean, w by site, signs by site.

    Tables as a run records them; `events`: what a reader did. `numbers`: a line below the title. Beside the signs is
    the distribution of the steps between flips, from three flips on. Panels that have nothing to show (w without
    AutoReLU, signs without flips) are left out.
    """
    last = int(history["step"].max())
    history = thinned(history)
    sites = [c.removeprefix("w_mean/") for c in history if c.startswith("w_mean/")]
    panels = ["loss", "f1"] + (["w"] if sites else []) + (["signs"] if len(flips) else [])
    heights = {"loss": 2., "f1": 2., "w": 2.4, "signs": 1.6}
    figure = Figure(figsize=(9, 1.1 + sum(heights[p] for p in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False,
                           gridspec_kw={"height_ratios": [heights[p] for p in panels]})[:, 0]
    lines = [title, *([numbers] if numbers else []), *([f"({DRAWN})"] if drawn else [])]
    figure.suptitle("\n".join(lines), fontsize=10)
    draw = {"loss": lambda ax: _loss(ax, history, epochs), "f1": lambda ax: _f1(ax, epochs, events),
            "w": lambda ax: _w(ax, history, sites), "signs": lambda ax: _signs(ax, flips, last)}
    for panel, ax in zip(panels, axes):
        draw[panel](ax)
        ax.spines[["top", "right"]].set_visible(False)
        if panel != "signs" and len(flips):
            _mark_flips(ax, flips)
        if events is not None:
            _mark_events(ax, events, panel == panels[0])
    axes[-1].set_xlabel("training step")
    axes[-1].set_xlim(0, last * 1.01)
    if flips["step"].nunique() >= 3:                        # fewer are no distribution
        _intervals(axes[-1].inset_axes([1.07, .08, .2, .8]), flips)
    return figure


def board(cards: list[dict], title: str, drawn: bool, most: int = 60) -> Figure:
    """Many runs side by side, of which the first `most`: training loss, validation macro-F1, steps with a flip.

    cards: as `live.monitor.card` makes them.
    """
    shown, columns = cards[:most], 4
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.5 * columns, .7 + 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(shown):]:
        ax.set_axis_off()
    for ax, run in zip(axes.flat, shown):
        if run["loss"]:
            step, loss = np.array(run["loss"]).T
            ax.plot(step, np.minimum(1, loss / run["loss_top"]), color=GREY, lw=.8)
        if run["f1"]:
            ax.plot(*np.array(run["f1"], float).T, color=BLUE, lw=1.2)
        ax.vlines(run["flips"], 0, .08, color=RED, lw=.6)
        ax.set_xlim(0, max(1, run["steps"]))
        ax.set_ylim(0, 1.02)
        ax.set_title(f"{run['label']}\n{run['note']}", fontsize=7)
        ax.tick_params(labelsize=6)
        ax.spines[["top", "right"]].set_visible(False)
    more = f" (the first {most} are shown)" if len(cards) > most else ""
    figure.suptitle(f"{title}{more}\ngrey: training loss, scaled; blue: validation macro-F1; red: steps with a flip"
                    + (f" ({DRAWN})" if drawn else ""), fontsize=8)
    return figure


def text(words: str) -> Pretty:
    """Plain words in a picture's place."""
    return Pretty(words)


def numbers(result: dict, epochs: pd.DataFrame, flips: pd.DataFrame) -> str:
    """The run in one line: how far, macro-F1 at the chosen and the last epoch, flips, speed."""
    val = epochs[(epochs["split"] == "val") & (epochs["mode"] == "trained")]
    parts = [f"{result['status']} at step {result['step']} of {result['steps']}" if "step" in result
             else f"{result.get('steps', '')} steps"]
    if len(val):
        best = val.loc[val["macro_f1"].astype(float).idxmax()]
        parts.append(f"val macro-F1 {best['macro_f1']:.3f} at its best epoch {best['epoch']}, "
                     f"{val['macro_f1'].iloc[-1]:.3f} at the last")
    if len(flips):
        parts.append(steps_with_a_flip(flips["step"].nunique()))
    if "images_per_second" in result:
        parts.append(f"{result['images_per_second']:,.0f} images/s")
    return " · ".join(parts)


def steps_with_a_flip(n: int) -> str:
    """The count as a reader says it."""
    return f"{n:,} step{'' if n == 1 else 's'} with a flip"


def thinned(history: pd.DataFrame, most: int = 4096) -> pd.DataFrame:
    """At most `most` rows, each for as many steps: loss is their mean, w the last of them, its range the widest."""
    every = -(-len(history) // most)
    if every <= 1:
        return history
    how = {c: "min" if c.startswith("w_min/") else "max" if c.startswith("w_max/") else
           "mean" if c == "loss" else "last" for c in history}
    return history.groupby(np.arange(len(history)) // every).agg(how)


def _intervals(ax, flips: pd.DataFrame) -> None:
    """How many steps lay between one step with a flip and the next, in bins that double."""
    gaps = np.diff(np.sort(flips["step"].unique()))
    counts = np.bincount(np.ceil(np.log2(gaps)).astype(int))
    ax.bar(range(len(counts)), counts, color=RED)
    shown = range(0, len(counts), -(-len(counts) // 5))
    ax.set_xticks(list(shown), [f"{2 ** k}" for k in shown], fontsize=6)
    ax.tick_params(labelsize=6)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_title("steps between flips (up to)", fontsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _mark_events(ax, events: pd.DataFrame, named: bool) -> None:
    """What the reader changed by hand, as dashed lines."""
    by_hand = events[events["kind"].isin(["flip", "lr", "weight_decay"])]
    for k, event in enumerate(by_hand.itertuples()):
        ax.axvline(event.step, color=PURPLE, lw=.8, ls="--", zorder=0, label="by hand" if named and k == 0 else None)
    if named and len(by_hand):
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _loss(ax, history: pd.DataFrame, epochs: pd.DataFrame) -> None:
    ax.plot(history["step"], history["loss"], color=GREY, lw=.6, alpha=.7, label="each step")
    train = epochs[(epochs["split"] == "val") & (epochs["mode"] == "trained")]
    for column, style, color, label in (("train_loss", "o-", BLUE, "train, mean of the epoch"),
                                        ("loss", "s--", ORANGE, "validation")):
        if train[column].notna().any():
            ax.plot(train["step"], train[column], style, ms=3, color=color, label=label)
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


def _f1(ax, epochs: pd.DataFrame, events: pd.DataFrame | None) -> None:
    for mode, style, color in (("trained", "o-", BLUE), ("clean", "s--", ORANGE)):
        rows = epochs[(epochs["split"] == "val") & (epochs["mode"] == mode)]
        label = "as trained" if mode == "trained" else "clean (sign +)"
        ax.plot(rows["step"], rows["macro_f1"], style, ms=3, color=color, label=label)
    if events is not None and len(probes := events[events["site"] == "val trained"]):
        ax.plot(probes["step"], probes["value"], "*", mfc="none", ms=8, color=BLUE, label="evaluated by hand")
    ax.set_ylim(0, 1)
    ax.set_ylabel("validation macro-F1")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _w(ax, history: pd.DataFrame, sites: list[str]) -> None:
    """Each site's mean and range, the darker the deeper the site. One mean over all of them decides the sign."""
    for site, color in zip(sites, depth_colors(len(sites))):
        low, high = history[f"w_min/{site}"], history[f"w_max/{site}"]
        ax.fill_between(history["step"], low, high, color=color, alpha=.15, lw=0)
        ax.plot(history["step"], history[f"w_mean/{site}"], lw=.9, color=color, label=site)
    ax.set_yscale("symlog", linthresh=LINTHRESH)
    ax.axhline(0, color="black", lw=.6)
    ax.set_ylabel("w (mean, range)")
    ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def depth_colors(n: int) -> list[str]:
    """n colours for places in a network, from the image (light) to the scores (dark), each another one."""
    return [to_hex(colormaps["viridis_r"](v)) for v in np.linspace(.12, 1, n)]


def _signs(ax, flips: pd.DataFrame, steps: int) -> None:
    """Each site's row is filled while its sign is -; with signs by channel, as strongly as the share that is -."""
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
    ax.set_ylabel(SIGN_ROWS)


def _mark_flips(ax, flips: pd.DataFrame) -> None:
    steps = flips["step"].unique()
    for step in steps if len(steps) <= 200 else []:     # more would hide what they mark
        ax.axvline(step, color=RED, lw=1, zorder=0)


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


def contact_sheet(rows: dict[str, np.ndarray], drawn: bool, show_images: bool = False, headings: Sequence[str] = (),
                  side: int = 72, dpi: int = 96) -> Figure:
    """Pictures pixel by pixel, a row each name: uint8 (n, C, H, W), n may differ. `headings`: a word a column.

    Pictures are shown whole multiples of their size, or fractions, of about `side` pixels. Saved with `dpi`, no pixel
    is interpolated. Research pictures need the reader's own `show_images`.
    """
    if not (drawn or show_images):
        raise ValueError("research pictures are not shown in notebooks that may be shared: only drawn faces are, "
                         "unless show_images says so")
    columns, gap = max(map(len, rows.values())), 4
    tiles = [[_tile(picture, side) for picture in pictures] for pictures in rows.values()]
    high, wide, depth = next(tile.shape for row in tiles for tile in row)
    sheet = np.full((len(rows) * (high + gap), columns * (wide + gap), depth), 255, np.uint8)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet[y * (high + gap):, x * (wide + gap):][:high, :wide] = tile
    lines = max((word.count("\n") + 1 for word in headings), default=0)
    left, top = 12 + 6 * max(map(len, rows)), 30 + 14 * lines
    width, height = left + sheet.shape[1], top + sheet.shape[0]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    ax = figure.add_axes((left / width, 0, sheet.shape[1] / width, sheet.shape[0] / height))
    ax.imshow(sheet.repeat(3 // depth, axis=2), interpolation="nearest", aspect="auto")
    ax.set_yticks(np.arange(len(rows)) * (high + gap) + high / 2, list(rows), fontsize=8)
    ax.set_xticks(np.arange(len(headings)) * (wide + gap) + wide / 2, headings, fontsize=8)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    figure.text(.5, 1 - 12 / height, DRAWN if drawn else "research pictures: do not share", fontsize=8, ha="center",
                va="center")
    return figure


def _tile(picture: np.ndarray, side: int) -> np.ndarray:
    """(C, H, W) enlarged or thinned by a whole number to about `side`: (h, w, C)."""
    longest = max(picture.shape[1:])
    times, every = max(1, round(side / longest)), max(1, round(longest / side))
    return np.moveaxis(picture[:, ::every, ::every], 0, -1).repeat(times, axis=0).repeat(times, axis=1)


def class_counts(counts: pd.DataFrame, drawn: bool) -> Figure:
    """Images of each class (rows) in each split (columns): a panel a split, bars in one order; a dashed line is where
    all classes would be equal.
    """
    figure = Figure(figsize=(2.6 * counts.shape[1] + .8, .8 + .26 * len(counts)), layout="constrained")
    axes = figure.subplots(1, counts.shape[1], sharey=True, squeeze=False)[0]
    for ax, (split, n), color in zip(axes, counts.items(), CYCLE):
        ax.barh(range(len(n)), n, color=color)
        ax.axvline(n.mean(), color=GREY, lw=.8, ls="--")
        for y, value in enumerate(n):
            ax.text(value, y, f" {value:,}", va="center", fontsize=7, bbox={"fc": "white", "ec": "none", "pad": .5})
        ax.set_xlim(0, 1.25 * max(1, n.max()))
        ax.set_title(f"{split}, {n.sum():,} images", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(counts)), counts.index, fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle("images of each class; dashed: all classes equal" + (f" ({DRAWN})" if drawn else ""), fontsize=9)
    return figure


def soft_labels(soft: np.ndarray, labels: np.ndarray, classes: Sequence[str], drawn: bool) -> Figure:
    """The mean share that the images of each class (rows) give to every class: soft (N, K), labels (N,)."""
    mean = np.stack([soft[labels == k].mean(0) if (labels == k).any() else np.zeros(len(classes))
                     for k in range(len(classes))])
    figure = Figure(figsize=(1.6 + .55 * len(classes), 1 + .36 * len(classes)), layout="constrained")
    ax = figure.subplots()
    ax.imshow(mean, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(mean):
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > .5 else "black")
    ax.set_xticks(range(len(classes)), classes, fontsize=7, rotation=30)
    ax.set_yticks(range(len(classes)), classes, fontsize=8)
    ax.set_xlabel("mean share given to")
    ax.set_ylabel("label")
    ax.set_title(DRAWN if drawn else "", fontsize=9)
    return figure


def memory(scores: pd.DataFrame, label: str, drawn: bool) -> Figure:
    """Scores of the same networks on several sets of images: rows are seeds, columns sets, in their order."""
    figure = Figure(figsize=(6.5, .9 + .4 * scores.shape[1]), layout="constrained")
    ax = figure.subplots()
    for row in scores.itertuples(index=False):
        ax.plot(list(row), range(len(row)), color=GREY, lw=.6, zorder=0)
    for y, (column, color) in enumerate(zip(scores, CYCLE)):
        ax.plot(scores[column], [y] * len(scores), "o", color=color, ms=6, alpha=.8)
    ax.set_yticks(range(scores.shape[1]), list(scores), fontsize=8)
    ax.set_ylim(scores.shape[1] - .5, -.5)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel(f"{label}; a line is a seed (n = {len(scores)})", fontsize=8)
    ax.set_title(DRAWN if drawn else "", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def arm_curves(epochs: pd.DataFrame, names: list[str], split: str, column: str, label: str, title: str) -> Figure:
    """A panel for each arm in `names`: a thin line for each of the first MOST_SEEDS seeds, a thick one for the mean of
    all, as trained.

    `epochs` as in `runs.Records`.
    """
    rows = epochs[(epochs["split"] == split) & (epochs["mode"] == "trained")]
    figure = Figure(figsize=(2.3 * len(names) + .6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        own, look = rows[rows["name"] == name].pivot_table(index="epoch", columns="seed", values=column), arm_look(name)
        ax.plot(own.index, own.iloc[:, :MOST_SEEDS], color=look.color, ls=look.line, lw=.7, alpha=.6)
        ax.plot(own.index, own.mean(axis=1), color=look.color, ls=look.line, lw=2)
        ax.set_title(f"{name} (n = {own.shape[1]})", fontsize=9)
        ax.set_xlabel("epoch")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(label)
    figure.suptitle(title, fontsize=9)
    return figure


def step_times(profile: dict[str, dict]) -> Figure:
    """Where a step's time goes: a bar a way of running it, cut by what the GPU does; the rest of the step it waits.

    profile: by name, as fer_lib.time_profile gives it.
    """
    kinds = list(dict.fromkeys(k for found in profile.values() for k in found["by_kind"]))
    colors = dict(zip(kinds, (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)))
    figure = Figure(figsize=(9, .8 + .42 * len(profile)), layout="constrained")
    ax = figure.subplots()
    for y, found in enumerate(profile.values()):
        left, scale = 0., min(1., found["step_us"] / found["busy_us"])
        for kind, us in found["by_kind"].items():
            seen = ax.get_legend_handles_labels()[1]
            ax.barh(y, us * scale, left=left, color=colors[kind], label=None if kind in seen else kind)
            left += us * scale
        ax.barh(y, found["step_us"] - left, left=left, color="none", edgecolor=GREY, hatch="///", linewidth=.6,
                label="the GPU waits" if y == 0 else None)
        ax.text(found["step_us"], y, f"  {found['step_us'] / 1000:.2f} ms, {found['kernels']:.0f} kernels", va="center",
                fontsize=8)
    ax.set_yticks(range(len(profile)), list(profile))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * max(found["step_us"] for found in profile.values()))
    ax.set_xlabel("microseconds a training step")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
