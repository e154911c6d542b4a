"""Boxes and wires on a grid: one description, drawn as a static picture and, in the live view, to be clicked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch


@dataclass(frozen=True)
class Box:
    """At (x, y), its upper left corner, in grid units; y grows downwards. One with a name can be chosen."""

    x: float
    y: float
    w: float
    h: float
    label: str
    color: str
    help: str = ""
    name: str = ""


@dataclass(frozen=True)
class Word:
    """Words beside the boxes."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Diagram:
    """alt: the diagram in words. wires: polylines of (x, y)."""

    width: float
    height: float
    alt: str
    boxes: Sequence[Box]
    wires: Sequence[Sequence[tuple[float, float]]] = field(default_factory=list)
    texts: Sequence[Word] = field(default_factory=list)

    def settings(self, chosen: str) -> dict:
        """What the front end draws. Raises ValueError where no box has the chosen name."""
        if chosen not in [box.name for box in self.boxes if box.name]:
            raise ValueError(f"the diagram has no box '{chosen}' to begin with")
        return {**asdict(self), "chosen": chosen}

    def figure(self, inches: float = .5) -> Figure:
        """The static picture, `inches` a grid unit."""
        figure = Figure(figsize=(self.width * inches, self.height * inches))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, self.width)
        ax.set_ylim(self.height, 0)
        ax.set_axis_off()
        for wire in self.wires:
            ax.plot(*zip(*wire), color="#888888", lw=1, zorder=1)
        for box in self.boxes:
            ax.add_patch(FancyBboxPatch((box.x, box.y), box.w, box.h, fc=box.color, ec="#444444", lw=.8, zorder=2,
                                        boxstyle="round,pad=0,rounding_size=.12"))
            ax.text(box.x + box.w / 2, box.y + box.h / 2, box.label, ha="center", va="center", fontsize=7.5, zorder=3)
        for word in self.texts:
            ax.text(word.x, word.y, word.text, ha="left", va="center", fontsize=7.5)
        return figure
