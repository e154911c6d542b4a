"""A panel of sliders above curves: one function computes the curves; matplotlib draws them once, plotly at each move.

    panel = Panel([Axis("function", "y against x", "x", "y")], [Slider("w", -1, 1, .5, .05)], curves)
    panel.show(live, alt="...")

The picture stays in the saved notebook, and is all there is where nobody looks: no widget is made there.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from fer_lib import figures
from fer_lib.live.chart import wants_widget
from fer_lib.palette import Look

KINDS = ("line", "points", "area")      # area: filled to 0, in steps that begin at x: a histogram


@dataclass(frozen=True)
class Axis:
    """One plot of the panel. key: curves name it. x_range, y_range: fixed; None follows the curves. scale of y."""

    key: str
    title: str
    x: str
    y: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    scale: str = "linear"


@dataclass(frozen=True)
class Curve:
    """A curve of the plot `axis`. Each draw has the same curves in the same order; x and y (n,) may grow and shrink."""

    axis: str
    name: str
    x: np.ndarray
    y: np.ndarray
    look: Look
    kind: str = "line"


@dataclass(frozen=True)
class Slider:
    """A number. name: the keyword of the curves' function. log: low, high and start are > 0, step is in decades."""

    name: str
    low: float
    high: float
    start: float
    step: float
    label: str = ""
    log: bool = False
    digits: str = ".3g"

    def widget(self):
        import ipywidgets as w

        shared = {"value": self.start, "step": self.step, "description": self.label or self.name,
                  "readout_format": self.digits, "layout": w.Layout(width="330px"),
                  "style": {"description_width": "110px"}}
        if self.log:
            return w.FloatLogSlider(min=np.log10(self.low), max=np.log10(self.high), base=10, **shared)
        kind = w.IntSlider if isinstance(self.start, int) else w.FloatSlider
        if kind is w.IntSlider:
            shared["readout_format"] = "d"
        return kind(min=self.low, max=self.high, **shared)


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    name: str
    options: Sequence[str]
    start: str
    label: str = ""

    def widget(self):
        import ipywidgets as w

        return w.ToggleButtons(options=list(self.options), value=self.start, description=self.label or self.name,
                               style={"button_width": "auto", "description_width": "110px"})


@dataclass(frozen=True)
class Panel:
    """axes side by side; controls; curves(**values) -> (curves, a sentence that says what they show, from numbers)."""

    axes: Sequence[Axis]
    controls: Sequence[Slider | Choice]
    curves: Callable[..., tuple[Sequence[Curve], str]]
    height: float = 3.2                 # inches

    @property
    def start(self) -> dict:
        return {c.name: c.start for c in self.controls}

    def figure(self, **values) -> Figure:
        """The panel as a picture, at these values, else at those it starts with. ValueError for an unknown name."""
        if unknown := set(values) - set(self.start):
            raise ValueError(f"the panel has no control {sorted(unknown)} (choose of {sorted(self.start)})")
        values = self.start | values
        curves, _ = self.curves(**values)
        figure = Figure(figsize=(3.4 * len(self.axes), self.height), layout="constrained")
        for ax, axis in zip(figure.subplots(1, len(self.axes), squeeze=False)[0], self.axes):
            for curve in curves:
                if curve.axis == axis.key:
                    _draw(ax, curve)
            ax.set(title=axis.title, xlabel=axis.x, ylabel=axis.y, yscale=axis.scale)
            ax.title.set_fontsize(10)
            ax.set_xlim(axis.x_range), ax.set_ylim(axis.y_range)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=.25)
            if ax.get_legend_handles_labels()[1]:
                ax.legend(fontsize=7, frameon=False)
        told = ", ".join(f"{c.label or c.name} = {_shown(values[c.name])}" for c in self.controls)
        figure.suptitle(textwrap.fill(told, 42 * len(self.axes)), fontsize=9)
        return figure

    def show(self, live: str, alt: str, **values) -> None:
        """Sliders where somebody looks (live: auto, on or off), then the picture at `values`, then the sentence."""
        if wants_widget(live):
            display(self.widget(**values))
        display(figures.picture(self.figure(**values), alt, colors=16))
        print(textwrap.fill(self.curves(**self.start | values)[1], 88))

    def widget(self, **values):
        """The controls, the plotly chart and the sentence, which follow one another."""
        import ipywidgets as w

        chart, said = self.chart(**values), w.HTML(layout=w.Layout(margin="0 0 0 12px"))
        controls = {c.name: c.widget() for c in self.controls}
        for name, value in values.items():
            controls[name].value = value

        def redraw(_=None) -> None:
            curves, sentence = self.curves(**{name: control.value for name, control in controls.items()})
            with chart.batch_update():
                for trace, curve in zip(chart.data, curves, strict=True):
                    for key, values in (("x", curve.x), ("y", curve.y)):
                        if not np.array_equal(trace[key], values, equal_nan=True):     # sent only where it changed
                            trace[key] = np.asarray(values, float)
                    if trace.line.color != curve.look.color:
                        trace.update(**_styled(curve))
            said.value = f'<div class="fer-said">{sentence}</div>'

        for control in controls.values():
            control.observe(redraw, "value")
        redraw()
        box = w.HBox(list(controls.values()), layout=w.Layout(flex_flow="row wrap"))
        panel = w.VBox([box, chart, said])
        panel.add_class("fer-panel")
        return panel

    def chart(self, **values):
        """The plotly FigureWidget."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        grid = make_subplots(1, len(self.axes), subplot_titles=[a.title for a in self.axes], horizontal_spacing=.09)
        columns = {axis.key: k + 1 for k, axis in enumerate(self.axes)}
        told = set()
        for curve in self.curves(**self.start | values)[0]:
            own = {"showlegend": curve.name not in told, "legendgroup": curve.name}     # a name once in the legend
            grid.add_trace(_trace(go, curve).update(own), row=1, col=columns[curve.axis])
            told.add(curve.name)
        for k, axis in enumerate(self.axes):
            grid.update_xaxes(title_text=axis.x, range=axis.x_range, row=1, col=k + 1)
            limits = np.log10(axis.y_range) if axis.y_range and axis.scale == "log" else axis.y_range
            grid.update_yaxes(title_text=axis.y, range=limits, type=axis.scale, row=1, col=k + 1)
        grid.update_layout(height=int(110 * self.height), margin={"l": 50, "r": 10, "t": 36, "b": 10},
                           template="plotly_white", legend={"orientation": "h", "y": -.25}, uirevision="keep",
                           font={"size": 11}, transition_duration=0)
        return go.FigureWidget(grid)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _draw(ax, curve: Curve) -> None:
    if curve.kind not in KINDS:
        raise ValueError(f"unknown kind '{curve.kind}' of curve (choose one of {', '.join(KINDS)})")
    look, label = curve.look, curve.name
    if curve.kind == "area":
        ax.fill_between(curve.x, curve.y, step="post", color=look.color, alpha=.35, lw=0)
        ax.step(curve.x, curve.y, where="post", color=look.color, lw=1, ls=look.line, label=label)
    elif curve.kind == "points":
        ax.plot(curve.x, curve.y, look.marker, color=look.color, ms=5, label=label)
    else:
        ax.plot(curve.x, curve.y, color=look.color, ls=look.line, lw=1.8, label=label)


def _trace(go, curve: Curve):
    return go.Scatter(
        x=np.asarray(curve.x, float), y=np.asarray(curve.y, float),
        mode="markers" if curve.kind == "points" else "lines", fill="tozeroy" if curve.kind == "area" else "none",
        **_styled(curve))


def _styled(curve: Curve) -> dict:
    look, area = curve.look, curve.kind == "area"
    return {"name": curve.name, "marker": {"color": look.color, "symbol": look.symbol, "size": 7},
            "line": {"color": look.color, "dash": look.dash, "shape": "hv" if area else "linear",
                     "width": 1 if area else 2}}
