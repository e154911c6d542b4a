"""The chart in the notebook: a small anywidget that draws with the installed plotly.js, fed by custom messages.

Custom messages work while a cell runs, in both directions, and none of what they carry is saved with the notebook.
What arrives from the browser is handled in a thread of the kernel: handlers only note it, or answer from memory.
"""

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from IPython import get_ipython
from IPython.display import display

from fer_lib.experiment import ParameterError
from fer_lib.files import RecordError
from fer_lib.live.curves import Curves
from fer_lib.steering import Command

HERE = Path(__file__).parent
UNASKED_SECONDS = 4.    # without a word from the browser by then, its messages don't get through: send all unasked


def wants_widget(live: str) -> bool:
    """Whether to make a widget. "auto": where somebody looks, which is not so under papermill, nbval and nbconvert.

    Raises ParameterError for another word, and for "on" without the packages.
    """
    if live not in ("auto", "on", "off"):
        raise ParameterError(f"unknown live '{live}' (choose one of auto, on, off)")
    missing = [name for name in ("anywidget", "plotly") if importlib.util.find_spec(name) is None]
    if live == "on" and missing:
        raise ParameterError(f"live = 'on' needs the package {missing[0]}: pip install '.[lab]', or use auto or off")
    return live == "on" or live == "auto" and not missing and somebody_looks()


def somebody_looks() -> bool:
    """Whether this cell was run from a notebook's front end: those send the cell's id, batch runners don't."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or "JPY_SESSION_NAME" not in os.environ and "VSCODE_PID" not in os.environ:
        return False
    return "cellId" in (kernel.get_parent() or {}).get("metadata", {})


@cache
def plotly_js() -> bytes:
    """plotly.js as the installed plotly package has it."""
    folder = Path(importlib.util.find_spec("plotly").origin).parent
    return (folder / "package_data" / "plotly.min.js").read_bytes()


@cache
def widget_class(script: str) -> type:
    """The widget's class, made once: a batch run needs neither anywidget nor the second that its import takes."""
    import anywidget
    import traitlets

    class LiveChart(anywidget.AnyWidget):
        _esm = (HERE / "talk.js").read_text() + (HERE / script).read_text()
        _css = (HERE / "chart.css").read_text()
        cfg = traitlets.Dict().tag(sync=True)

    return LiveChart


class Chart:
    """The widget. settings: what the front end knows at once (kind "run" or "study"); `receive` gets its questions.

    `receive` runs in another thread than the cell: it must not touch the device, the optimiser or the model.
    """

    script = "chart.js"

    def __init__(self, settings: dict, receive: Callable[[dict], None]):
        self.receive, self.heard, self.asleep = receive, False, False   # asleep: the page was left
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self.widget = widget_class(self.script)(cfg=settings)
        self.widget.on_msg(self._on_message)
        if hasattr(self.widget.comm, "_reply_subshell_for"):
            # ipykernel 7.4 answers in the shell that published last, which is busy: keep to the one that was asked
            self.widget.comm._reply_subshell_for = lambda data, default: default

    def show(self) -> None:
        self.handle = display(self.widget, display_id=True)

    def replace(self, thing: object) -> None:
        """Put a picture in the widget's place, which a saved notebook can still show; the widget is gone."""
        self.handle.update(thing)
        if not self.asleep:                             # a page that was loaded anew doesn't know this widget
            self.widget.close()

    def send(self, content: dict, buffers: list[bytes] | None = None) -> None:
        if not self.asleep:
            self.widget.send(content, buffers=buffers)

    def _on_message(self, _: object, content: dict, buffers: list) -> None:
        self.heard, self.asleep = True, content.get("t") == "bye"
        if content.get("t") in ("bye", "here"):
            return
        with self._lock:                                # questions are repeated until they are answered
            if content["rid"] in self._seen:
                return
            self._seen.add(content["rid"])
        if content.get("t") == "library?":
            self.send({"t": "library"}, [plotly_js()])
        else:
            self.receive(content)


class CurveChart(Chart):
    """A chart of one run's curves. `act` gets the reader's commands and `receive` what is neither, both in a thread."""

    def __init__(self, curves: Curves, settings: dict, act: Callable[[Command], None],
                 receive: Callable[[dict], None] = lambda content: None):
        self.curves, self.act, self.other = curves, act, receive
        self.begun = time.monotonic()
        super().__init__(settings, self._answer)

    def push(self, whole: bool = False) -> None:
        """Send what is new."""
        if not self.heard and time.monotonic() - self.begun > UNASKED_SECONDS:
            self.heard = whole = True                   # its words don't get through while a cell runs: send unasked
            self.send({"t": "library"}, [plotly_js()])
        with self.curves.lock:
            content, buffers = self.curves.message(whole)
            self.send({**content, "run": ""}, buffers)

    def _answer(self, content: dict) -> None:
        if content.get("t") == "all?":
            self.push(whole=True)
        elif content.get("t") == "command":
            receive_command(content["command"], self.act, self.send)
        else:
            self.other(content)


def receive_command(fields: dict, act: Callable[[Command], None], send: Callable[[dict], None]) -> None:
    """Take a command from the front end: tell it at once that it came, or why it can't be taken or passed on."""
    id = fields.get("id", "")
    try:
        command = Command(**{**fields, "value": float(fields.get("value", 0.))})
    except (TypeError, ValueError) as error:
        send({"t": "ack", "id": id, "text": str(error), "wrong": True})
        return
    send({"t": "got", "id": id})
    try:
        act(command)
    except RecordError as error:
        send({"t": "ack", "id": id, "text": str(error), "wrong": True})
