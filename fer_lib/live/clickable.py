"""A diagram that is clicked in a notebook, and a picture that follows at once.

    Clickable(diagram, draw, "stem", alt="...").show(live)

A notebook shows it beside static pictures of the same, which is what readers without a kernel see.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fer_lib.diagram import Diagram
from fer_lib.live.chart import Chart, wants_widget


@dataclass(frozen=True)
class Drawing:
    """What a chosen box shows: a sentence or two whose numbers are computed, and plotly's traces and layout."""

    text: str
    traces: list[dict] = field(default_factory=list)
    layout: dict = field(default_factory=dict)


class ClickableChart(Chart):
    """The widget. `draw` gets the chosen box's name, and runs in another thread than cells do."""

    script = "diagram.js"

    def __init__(self, settings: dict, draw: Callable[[str], Drawing]):
        self.draw, self.names = draw, [box["name"] for box in settings["diagram"]["boxes"] if box["name"]]
        super().__init__(settings, self._answer)

    def _answer(self, content: dict) -> None:
        if content.get("t") == "draw?":
            name = content["values"].get("chosen")
            drawing = self.draw(name) if name in self.names else Drawing(f"the diagram has no box '{name}'")
            self.send({"t": "picture", "id": content["id"], "text": drawing.text, "traces": drawing.traces,
                       "layout": drawing.layout})


@dataclass(frozen=True)
class Clickable:
    """chosen: the box that is shown first; ValueError where there is none. alt: the picture in words."""

    diagram: Diagram
    draw: Callable[[str], Drawing]
    chosen: str
    alt: str
    height: int = 380                   # of the picture, pixels

    def settings(self) -> dict:
        """What the front end must know."""
        return {"alt": self.alt, "height": self.height, "diagram": self.diagram.settings(self.chosen)}

    def show(self, live: str) -> bool:
        """Show it where somebody looks (live: auto, on or off), else print what it says; whether it was shown."""
        settings = self.settings()
        if wants_widget(live):
            ClickableChart(settings, self.draw).show()
            return True
        print(self.draw(self.chosen).text)
        return False
