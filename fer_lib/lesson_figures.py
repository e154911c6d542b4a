"""Pictures of the lessons 02_activations and 03_flip_is_not_noise, and the panel of sliders for the activations."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fer_lib.activations import auto_relu
from fer_lib.figures import DRAWN
from fer_lib.live.panel import Axis, Choice, Curve, Panel, Slider
from fer_lib.palette import BLACK, GREY, SKY, Look, sign_look

PLAIN = Look(GREY, ":", "o")            # ReLU, where something is compared with it
Activation = Callable[[Tensor], Tensor]


def value_and_gradient(f: Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = f(x) and dy/dx by autograd, where x is a row of numbers."""
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = f(t)
    gradient, = torch.autograd.grad(y.sum(), t)
    return y.detach().numpy(), gradient.numpy()


def functions(named: Mapping[str, tuple[Activation, Look]], low: float = -10., high: float = 10.) -> Figure:
    """Functions and their gradients side by side, each name with its look, the first broad. Jumps are gaps."""
    x = np.linspace(low, high, 2001)
    figure = Figure(figsize=(8.5, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (f, look) in named.items():
        broad = name == next(iter(named))                # so that what lies on it hides it nowhere
        for ax, y in zip((left, right), value_and_gradient(f, x)):
            y = np.where(np.abs(np.diff(y, prepend=y[0])) > .5, np.nan, y)
            ax.plot(x, y, color=look.color, ls=look.line, lw=6 if broad else 2, alpha=.4 if broad else 1, label=name)
    for ax, title in ((left, "function y(x)"), (right, "gradient dy/dx")):
        ax.set(title=title, xlabel="x, the output of batch normalisation")
        ax.axhline(0, color=BLACK, lw=.5), ax.axvline(0, color=BLACK, lw=.5)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    return figure


def maps(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], signed: Sequence[bool], drawn: bool) -> Figure:
    """A grid of small maps (H, W): a row each name. signed: by column, purple - to orange +, else grey from 0 up. A
    column that is the same in all rows is shown once.

    One scale a column, so that rows can be compared. Research pictures are refused.
    """
    if not drawn:
        raise ValueError("feature maps of research pictures are not shown in notebooks that may be shared")
    figure = Figure(figsize=(1.15 * len(columns) + 2.2, 1.1 * len(rows) + .55), layout="constrained")
    axes, first = figure.subplots(len(rows), len(columns), squeeze=False), next(iter(rows.values()))
    for k, column in enumerate(columns):
        once = all(torch.equal(row[k], first[k]) for row in rows.values())
        most = max(float(row[k].abs().max()) for row in rows.values()) or 1.
        for y, (ax, (name, row)) in enumerate(zip(axes[:, k], rows.items())):
            ax.set_xticks([]), ax.set_yticks([])
            if once and y:
                ax.spines[:].set_visible(False)
                ax.text(.5, .5, "the same", ha="center", va="center", fontsize=7, transform=ax.transAxes)
            else:
                ax.imshow(row[k], cmap="PuOr_r" if signed[k] else "gray", vmin=-most if signed[k] else 0, vmax=most)
            if k == 0:
                ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes[0, k].set_title(column, fontsize=8)
    key = "coloured maps: purple −, white 0, orange +; " if any(signed) else ""
    figure.suptitle(f"{key}{DRAWN}", fontsize=8)
    return figure


def lines(named: Mapping[str, tuple[np.ndarray, np.ndarray, Look]], x: str, y: str, title: str,
          marks: Mapping[str, float] | None = None, log_x: bool = False, markers: bool = False,
          minus: str = "") -> Figure:
    """One plot: by name x, y and look. marks: by word, a place on x with a thin line. minus: one of the names; a panel
    below shows the others minus it, where the two are closer than a quarter of what the plot spans."""
    figure = Figure(figsize=(8.5, 5. if minus else 3.5), layout="constrained")
    ax, *below = figure.subplots(2 if minus else 1, 1, sharex=True, squeeze=False)[:, 0]
    for name, (at, values, look) in named.items():
        ax.plot(at, values, color=look.color, ls=look.line, lw=1.8, label=name, marker=look.marker if markers else "",
                ms=5, markevery=max(1, len(at) // 12))
    for word, place in (marks or {}).items():
        ax.axvline(place, color=BLACK, lw=.7, ls=":")
        ax.text(place, 1.01, word, fontsize=7, ha="center", transform=ax.get_xaxis_transform())
    if log_x:
        ax.set_xscale("log")
    span = np.ptp(np.concatenate([values for _, values, _ in named.values()]))
    for under in below:
        for at, values, look in named.values():
            gap = values - named[minus][1]
            if np.abs(gap).mean() < span / 4:
                under.plot(at, gap, color=look.color, ls=look.line, lw=1.8)
        under.set_ylabel(f"minus “{minus}”")
        under.spines[["top", "right"]].set_visible(False)
    (below or [ax])[0].set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize=10, pad=14)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    return figure


def twins(flipped: np.ndarray, twin: np.ndarray, toggles: Sequence[int]) -> Figure:
    """Two losses on top of each other, and their difference below, by step; the toggles as thin lines."""
    step = np.arange(1, len(flipped) + 1)
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(step, flipped, color=SKY, lw=4, label="periodic: features flipped")
    top.plot(step, twin, color=BLACK, ls=":", lw=1.4, label="twin: γ, β and their moment negated")
    below.plot(step, flipped - twin, color=BLACK, lw=1)
    for ax in (top, below):
        for toggle in toggles:
            ax.axvline(toggle, color=sign_look(-1).color, lw=.6, alpha=.6)
        ax.spines[["top", "right"]].set_visible(False)
    top.set_ylabel("training loss")
    top.legend(fontsize=8, frameon=False)
    below.set(ylabel="difference", xlabel="training step", ylim=(-1e-6, 1e-6))
    return figure


def cut(x: np.ndarray, w: float, cliff: float) -> tuple[float, float]:
    """(share of x that ReLU(sign(w) x) passes, share of these where |x w| >= C, which the cliff sets to 0)."""
    signed = x if w >= 0 else -x
    passed = signed > 0
    lost = passed & (np.abs(x * w) >= cliff)
    return float(passed.mean()), float(lost.sum() / max(1, passed.sum()))


def activation_panel(features: Mapping[str, np.ndarray]) -> Panel:
    """Sliders for w and C: AutoReLU beside ReLU, the gradient, and what passes of a site's real features.

    features: by site, BN's outputs as a row of numbers.
    """
    x = np.linspace(-8, 8, 801)
    edges = np.linspace(-8, 8, 81)

    def curves(w: float, cliff: float, divide_by: str, site: str) -> tuple[list[Curve], str]:
        weight = torch.tensor(w, dtype=torch.float64)
        unit = lambda t: auto_relu(t, weight, cliff, divide_by)                      # noqa: E731
        y, slope = value_and_gradient(unit, x)
        _, relu_slope = value_and_gradient(torch.relu, x)
        values, look = features[site], sign_look(w)
        passed, lost = cut(values, w, cliff)
        share = np.histogram(values, edges)[0] / len(values)
        kept = unit(torch.from_numpy(values)).numpy() != 0
        through = np.histogram(values[kept], edges)[0] / len(values)
        name = f"AutoReLU, w {'<' if w < 0 else '≥'} 0"
        found = [Curve("y", "ReLU", x, np.maximum(x, 0), PLAIN), Curve("y", name, x, y, look),
                 Curve("slope", "ReLU", x, relu_slope, PLAIN), Curve("slope", name, x, slope, look),
                 Curve("seen", "all values", edges[:-1], share, PLAIN, "area"),
                 Curve("seen", "not set to 0", edges[:-1], through, look, "area")]
        edge = f"|x| = {cliff / abs(w):.3g}" if w else "infinity"
        return found, (f"{site}: with w = {w:.3g}, {passed:.1%} of the values have the sign of w; the cliff at {edge} "
                       f"then sets {lost:.2%} of those to 0. {kept.mean():.1%} pass.")

    axes = [Axis("y", "function", "x", "y", (-8, 8), (-8, 8)),
            Axis("slope", "gradient dy/dx", "x", "", (-8, 8), (-1.2, 1.2)),
            Axis("seen", "the site's values of x", "x", "share in a bin", (-8, 8))]
    names = list(features)
    return Panel(axes, [Slider("w", -2., 2., -.8, .05), Slider("cliff", .5, 12., 6., .5, "C"),
                        Choice("divide_by", ["abs", "signed"], "abs"), Choice("site", names, names[0])], curves)
