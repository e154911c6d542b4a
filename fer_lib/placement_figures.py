"""Pictures of places in ResNet-18: the network as a diagram, what a flip at each site does, each site over training."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import nn

from fer_lib.diagram import Box, Diagram, Word
from fer_lib.live.clickable import Clickable, Drawing
from fer_lib.methods.bn_negation import negated_parameters
from fer_lib.models import SiteBasicBlock, sites
from fer_lib.palette import BLUE, GREY, ORANGE, RED
from fer_lib.site_statistics import STATISTICS, every_site

TWIN, NO_TWIN, PLAIN = "#cfe5f3", "#f9d9c5", "#eeeeee"      # tints of the palette's blue and vermilion
KINDS = {"stem": "ReLU after the first BN", "act1": "ReLU after bn1", "act2": "ReLU after the addition",
         "pre_add": "bn2's output, before the addition", "shortcut": "the shortcut's BN",
         "head": "pooled features"}
CHANGES = ("mean", "sd", "zeros")       # statistics that move at each step, so that a level hides what a flip does
WORDS = {"mean": "mean before the activation", "sd": "standard deviation before it",
         "zeros": "share of zeros after ReLU", "flipped": "share of signs that are −", "w": "mean w"}


def has_twin(model: nn.Module, site: str) -> bool:
    """Whether a flip between BN and ReLU there equals the negation of one batch norm's gamma and beta."""
    try:
        return bool(negated_parameters(model, site, "before_relu"))
    except ValueError:
        return False


def place_tint(model: nn.Module, place: str) -> str:
    """A place's colour in the diagram (sites as an Experiment names them; with ", after ReLU" where the flip is
    there): of several sites the common one, else a neutral one.
    """
    where, _, late = place.partition(",")
    twins = {bool(has_twin(model, name) and not late) for name in sites(model, where)}
    return PLAIN if len(twins) > 1 else TWIN if True in twins else NO_TWIN


def network_diagram(model: nn.Module) -> Diagram:
    """A ResNet of basic blocks, two blocks a row; sites can be chosen. Raises ValueError for bottlenecks."""
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, SiteBasicBlock)}
    if not blocks:
        raise ValueError("the diagram draws ResNet-18 and ResNet-34, whose blocks are basic ones")
    boxes, wires, words = [], [], []

    def add(x: float, y: float, w: float, label: str, site: str = "") -> None:
        twin = site and has_twin(model, site)
        help = f"{site}: {KINDS[every_site(model)[site].kind]}" if site else label
        boxes.append(Box(x, y, w, .7, label, (TWIN if twin else NO_TWIN) if site else PLAIN, help, site))

    words.append(Word(.1, .55, "input"))
    wires.append([(.9, .55), (6.2, .55)])
    add(1.3, .2, 1.6, "conv · BN")
    add(3.2, .2, 1.1, "stem", "stem")
    add(4.6, .2, 1.4, "max-pool")
    row, column = 0, 0
    for name, block in blocks.items():
        stage, number = name.split(".")
        column, row = int(number) % 2, row + (int(number) % 2 == 0)
        x, y = 1.35 + 8.8 * column, 2. + 2.1 * (row - 1)
        if column == 0:
            words.append(Word(.02, y + .35, stage))
        wires += [[(x - .3, y + .35), (x + 8.3, y + .35)],
                  [(x - .1, y + .35), (x - .1, y - .45), (x + 6.3, y - .45), (x + 6.3, y + .1)]]
        add(x + .1, y, 1.6, "conv · BN")
        add(x + 1.9, y, 1.1, "act1", f"{name}.act1")
        add(x + 3.2, y, 1.3, "conv · BN")
        add(x + 4.65, y, 1.3, "pre_add", f"{name}.pre_add")
        boxes.append(Box(x + 6.1, y + .1, .5, .5, "+", PLAIN, "addition"))
        add(x + 6.9, y, 1.1, "act2", f"{name}.act2")
        if block.downsample is not None:
            add(x + .6, y - .8, 1.6, "conv · BN")
            add(x + 2.5, y - .8, 1.3, "shortcut", f"{name}.shortcut")
    y = 2. + 2.1 * row - .6
    words.append(Word(.02, y + .35, "output"))
    wires.append([(1., y + .35), (6.2, y + .35)])
    add(1.3, y, 1.5, "mean pool")
    add(3.1, y, 1.1, "head", "head")
    add(4.5, y, 1.4, "linear")
    twins = sum(box.color == TWIN for box in boxes)
    words += [Word(8.1, y + .15, "blue: a flip there is the negation of one batch norm's γ and β"),
              Word(8.1, y + .55, "red: it is not")]
    boxes += [Box(7.5, y, .45, .3, "", TWIN, "a twin"), Box(7.5, y + .4, .45, .3, "", NO_TWIN, "no twin")]
    relu = sum(bool(box.name) and box.label in ("stem", "act1", "act2") for box in boxes)
    alt = (f"The network from input to output, two blocks a row. {relu} sites hold a ReLU: stem, and act1 and act2 "
           f"in each of {len(blocks)} blocks. At {twins} sites a flip equals the negation of one batch norm.")
    return Diagram(18.9, y + 1., alt, boxes, wires, words)


def reach(pairs: pd.DataFrame, flips: pd.DataFrame) -> Figure:
    """Left: how alike features are with and without a flip, a row for each flipped site, a column for each site that
    sees it; sites that the flip doesn't reach are hatched, so that they don't look like a correlation of 0. Right: the
    loss. Tables as `flip_effects.effects` gives them.
    """
    order = list(flips["flipped"])
    grid = pairs.pivot(index="flipped", columns="site", values="alike").reindex(index=order, columns=order)
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    left.patch.set(fc="#cccccc", ec="white", hatch="///")
    shown = left.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    short = [name.replace("layer", "") for name in order]
    left.set_xticks(range(len(order)), short, rotation=90, fontsize=6)
    left.set_yticks(range(len(order)), short, fontsize=6)
    left.set_xlabel("site that sees it (hatched: the flip doesn't get there; white: correlation 0)", fontsize=8)
    left.set_ylabel("flipped site", fontsize=8)
    figure.colorbar(shown, ax=left, shrink=.6, label="correlation with the unflipped features")
    right.barh(range(len(order)), flips["loss"], color=ORANGE, height=.6)
    right.axvline(flips["loss_before"].iloc[0], color=GREY, ls="--", lw=1)
    right.set_ylim(len(order) - .5, -.5)
    right.set_yticks([])
    right.tick_params(labelsize=7)
    right.set_xlabel("loss with the flip\n(dashed: without)", fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def over_training(table: pd.DataFrame, flips: list[int]) -> Figure:
    """A panel for each statistic: sites by training step, from each look to the next. Of mean, sd and zeros the change
    since the look before, as a multiple of the site's own median change; of signs and w the value. table as
    `site_statistics` records it; flips: steps, as triangles.
    """
    names = [name for name in STATISTICS if table[name].notna().any()]
    figure = Figure(figsize=(9.6, 1.2 + 1.75 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names):
        grid = table[table[name].notna()].pivot(index="site", columns="step", values=name)
        grid = grid.reindex([site for site in dict.fromkeys(table["site"]) if site in grid.index])
        relative = name in CHANGES
        grid = changes(grid) if relative else grid
        looks = grid.columns.to_numpy()
        edges = np.concatenate([looks, [looks[-1] + (looks[-1] - looks[-2] if len(looks) > 1 else 1)]])
        top = 1 if name == "flipped" else None if relative else np.nanmax(np.abs(grid))
        scale = LogNorm(1, 100, clip=True) if relative else Normalize(-top if name == "w" else 0, top)
        shown = ax.pcolormesh(edges, np.arange(len(grid) + 1), grid, norm=scale,
                              cmap={"w": "RdBu", "flipped": "Greys"}.get(name, "magma_r"))
        ax.plot(np.array(flips) + .5, np.full(len(flips), 1.04), "v", color="black", ms=4, clip_on=False,
                transform=ax.get_xaxis_transform())
        labelled = [k for k, site in enumerate(grid.index) if len(grid) <= 9 or site.endswith(("act2", "stem", "head"))]
        ax.set_yticks(np.array(labelled) + .5, [grid.index[k].replace("layer", "") for k in labelled], fontsize=6)
        ax.invert_yaxis()
        ax.set_title(WORDS[name] + (": change, as a multiple of the site's median change" if relative else ""),
                     fontsize=8, loc="left", pad=6)
        ax.tick_params(labelsize=6)
        figure.colorbar(shown, ax=ax, aspect=12)
    axes[-1].set_xlabel("training step; triangles: flips")
    return figure


def changes(grid: pd.DataFrame) -> pd.DataFrame:
    """|change| from each column to the next, by row in multiples of the row's median; NaN where the median is 0."""
    moved = grid.diff(axis=1).abs().iloc[:, 1:]
    return moved.div(moved.median(axis=1).replace(0, np.nan), axis=0)


def clickable(model: nn.Module, pairs: pd.DataFrame, flips: pd.DataFrame, table: pd.DataFrame,
              chosen: str = "layer1.0.act1") -> Clickable:
    """The network to click: what a flip at the chosen site does (flip_effects), that site over training (table)."""
    facts = flips.set_index("flipped")

    def draw(site: str) -> Drawing:
        seen = pairs[(pairs["flipped"] == site) & (pairs["site"] != site)]
        return Drawing(told(model, site, facts.loc[site], seen), _traces(seen, table[table["site"] == site]), _LAYOUT)
    return Clickable(network_diagram(model), draw, chosen, "Left: correlation of each later site's input with and "
                     "without the flip. Right: mean, spread, zeros, flipped share and w of the site over training.")


def told(model: nn.Module, site: str, flip: pd.Series, seen: pd.DataFrame) -> str:
    """What a flip at the site does, in sentences; all numbers computed."""
    said = (f"{site}, {KINDS[every_site(model)[site].kind]}: a sudden flip takes the loss from "
            f"{flip['loss_before']:.2f} to {flip['loss']:.2f} and changes {flip['changed']:.0%} of the predictions.")
    if every_site(model)[site].act is not None:
        said += f" ReLU zeroes {flip['zeros']:.0%} of its values, before {flip['zeros_before']:.0%}."
    if len(seen):
        said += (f" What the next site sees correlates {seen['alike'].iloc[0]:+.2f} with what it saw without the flip, "
                 f"at the last one {seen['alike'].iloc[-1]:+.2f}.")
    return said + (" The same as negating one batch norm's γ and β." if has_twin(model, site) else
                   " No single batch norm's negation does the same.")


def _traces(seen: pd.DataFrame, own: pd.DataFrame) -> list[dict]:
    def line(name: str, axis: str, color: str, dash: str, symbol: str) -> dict:
        return {"x": own["step"].tolist(), "y": [None if np.isnan(v) else v for v in own[name]], "type": "scatter",
                "mode": "lines+markers", "name": WORDS[name], "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                "line": {"color": color, "dash": dash}, "marker": {"symbol": symbol, "size": 5}}

    later = {"x": [name.replace("layer", "") for name in seen["site"]], "y": seen["alike"].tolist(), "type": "bar",
             "name": "correlation with the unflipped features", "marker": {"color": GREY}, "showlegend": False}
    found = [later, line("mean", "2", BLUE, "solid", "circle"), line("sd", "2", ORANGE, "dash", "square"),
             line("zeros", "3", GREY, "solid", "circle"), line("flipped", "3", RED, "dash", "x"),
             line("w", "4", "black", "dot", "diamond")]
    return [trace for trace in found if any(y is not None for y in trace["y"])]


_LAYOUT = {
    "margin": {"l": 45, "r": 10, "t": 10, "b": 120},
    "legend": {"orientation": "h", "y": -.32, "x": 1, "xanchor": "right"},
    "xaxis": {"domain": [0, .36], "tickangle": -90, "tickfont": {"size": 9}, "title": {"text": "sites that see it"}},
    "yaxis": {"range": [-1, 1], "title": {"text": "correlation with before"}},
    "xaxis2": {"domain": [.43, .62], "title": {"text": "training step"}, "anchor": "y2", "nticks": 4},
    "yaxis2": {"anchor": "x2"},
    "xaxis3": {"domain": [.68, .81], "title": {"text": "training step"}, "anchor": "y3", "nticks": 3},
    "yaxis3": {"anchor": "x3", "range": [-.02, 1.02]},
    "xaxis4": {"domain": [.88, 1], "title": {"text": "training step"}, "anchor": "y4", "nticks": 3},
    "yaxis4": {"anchor": "x4", "tickformat": ".0e"}}
