"""A panel of sliders: one function makes the picture and the chart, which follows the sliders."""

import numpy as np
import pytest

from fer_lib.live.panel import Axis, Choice, Curve, Panel, Slider
from fer_lib.palette import arm_look, sign_look


def curves(w: float, scale: float, sign: str):
    x = np.linspace(0, 1, 5)
    y = (1 if sign == "plus" else -1) * w * scale * x
    marks = x[:int(scale)], y[:int(scale)]
    found = [Curve("left", "y", x, y, sign_look(w)), Curve("right", "counts", x, y ** 2, arm_look("dynamic"), "area"),
             Curve("left", "marks", *marks, arm_look("dropout"), "points")]
    return found, f"slope {w * scale:g}"


PANEL = Panel([Axis("left", "y against x", "x", "y", (0, 1), (-2, 2)), Axis("right", "squares", "x", "n")],
              [Slider("w", -1., 1., .5, .1), Slider("scale", .01, 100., 1., .5, log=True),
               Choice("sign", ["plus", "minus"], "plus")], curves)


def test_the_chart_and_the_sentence_follow_each_control():
    panel = PANEL.widget(w=.25)
    controls, chart, said = panel.children
    w, scale, sign = controls.children
    line, area, marks = chart.data
    assert line.y[-1] == .25 and line.line.dash == "solid" and "slope 0.25" in said.value and len(marks.x) == 1
    w.value = -.5
    assert line.y[-1] == -.5 and area.y[-1] == .25 and line.line.dash == "dash" and "slope -0.5" in said.value
    assert line.line.color == sign_look(-1).color
    scale.value, sign.value = 2., "minus"
    assert line.y[-1] == 1. and len(marks.x) == 2 and (area.fill, area.line.shape) == ("tozeroy", "hv")


def test_the_picture_shows_the_same_curves_and_the_values():
    figure = PANEL.figure(w=-.5)
    left, right = figure.axes
    assert figure.get_suptitle() == "w = -0.5, scale = 1, sign = plus"
    drawn = left.lines[0]
    assert list(drawn.get_ydata()) == list(curves(-.5, 1., "plus")[0][0].y)
    assert (drawn.get_color(), drawn.get_linestyle()) == (sign_look(-1).color, sign_look(-1).line)
    assert left.get_xlim() == (0, 1) and left.get_ylim() == (-2, 2) and right.get_xlabel() == "x"
    assert len(right.collections) == 1


def test_a_name_or_a_kind_that_is_not_there_is_a_sentence():
    with pytest.raises(ValueError, match="no control .'width'."):
        PANEL.figure(width=1.)
    odd = Panel(PANEL.axes, [], lambda: ([Curve("left", "y", [0], [0], sign_look(1), "bars")], ""))
    with pytest.raises(ValueError, match="unknown kind 'bars'"):
        odd.figure()


def test_shown_where_nobody_looks_it_is_a_picture_and_a_sentence(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("fer_lib.live.panel.display", shown.append)
    monkeypatch.setattr(Panel, "widget", lambda self, **values: "widget")
    PANEL.show("auto", "a line")
    assert len(shown) == 1 and shown[0].alt == "a line" and capsys.readouterr().out == "slope 0.5\n"
    PANEL.show("on", "a line", w=1.)
    assert shown[1] == "widget" and capsys.readouterr().out == "slope 1\n"
