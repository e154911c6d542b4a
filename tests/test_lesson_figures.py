"""The lessons' pictures: what is drawn is what the functions give."""

import numpy as np
import pytest
import torch

from fer_lib import lesson_figures
from fer_lib.activations import cliff_relu
from fer_lib.palette import Look, arm_look, sign_look

X = np.linspace(-4, 12, 4001)


def test_gradients_are_autograds():
    y, slope = lesson_figures.value_and_gradient(lambda t: cliff_relu(t, 6.), X)
    inside = (X > 0) & (X < 6)
    assert np.array_equal(slope, inside.astype(float)) and np.array_equal(y, np.where(inside, X, 0))


def test_functions_are_drawn_beside_their_gradients_with_gaps_where_they_jump():
    figure = lesson_figures.functions({"ReLU": (torch.relu, arm_look("baseline")),
                                       "cliff": (lambda t: cliff_relu(t, 6.), Look("#000000", "--"))})
    left, right = figure.axes
    assert [line.get_label() for line in left.lines][:2] == ["ReLU", "cliff"]
    y = left.lines[1].get_ydata()
    assert np.isnan(y).sum() == 1 and np.nanmax(y) < 6 and np.nanmax(right.lines[0].get_ydata()) == 1


@pytest.mark.parametrize("w, passed, lost", [(.5, .5, 0.), (-.5, .3, 0.), (2., .5, .6), (-2., .3, 1 / 3), (0., .5, 0.)])
def test_what_the_cliff_cuts(w, passed, lost):
    x = np.array([-5., -2., -1., 0., 0., 1., 2., 3., 4., 5.])
    assert lesson_figures.cut(x, w, 6.) == pytest.approx((passed, lost))


def test_the_panel_shows_what_passes_of_the_real_features():
    values = np.random.default_rng(0).normal(size=20_000)
    panel = lesson_figures.activation_panel({"a": values, "b": 3 * values})
    curves, said = panel.curves(w=-.5, cliff=1., divide_by="abs", site="b")
    found = {(c.axis, c.name): c for c in curves}
    unit = found["y", "AutoReLU, w < 0"]
    assert unit.look == sign_look(-1) and np.allclose(unit.y, np.where((unit.x < 0) & (unit.x > -2), -unit.x, 0))
    through = found["seen", "not set to 0"]
    share = ((3 * values < 0) & (3 * values > -2)).mean()
    assert abs(through.y.sum() - share) < 1e-9 and f"{share:.1%} pass" in said and "|x| = 2" in said
    assert len(panel.curves(**panel.start)[0]) == len(curves)
    assert "infinity" in panel.curves(w=0., cliff=1., divide_by="abs", site="a")[1]
    signed = panel.curves(w=-.5, cliff=1., divide_by="signed", site="b")[0][1]
    assert np.allclose(signed.y, -unit.y)


def test_maps_share_a_scale_and_are_of_drawn_faces_only():
    rows = {"a": [torch.ones(2, 2), torch.full((2, 2), -3.)], "b": [torch.zeros(2, 2), torch.ones(2, 2)]}
    figure = lesson_figures.maps(rows, ["x", "y"], [False, True], True)
    signed = [ax.images[0].get_clim() for ax in figure.axes if ax.images[0].get_cmap().name == "PuOr_r"]
    assert signed == [(-3., 3.)] * 2
    assert figure.get_suptitle().startswith("coloured maps: purple −, white 0, orange +")
    face = torch.ones(2, 2)
    same = {name: [face, row[1]] for name, row in rows.items()}
    shown = lesson_figures.maps(same, ["face", "y"], [False, True], True).axes
    assert [len(ax.images) for ax in shown] == [1, 1, 0, 1], "what is the same in each row is shown once"
    assert [[t.get_text() for t in ax.texts] for ax in shown] == [[], [], ["the same"], []]
    with pytest.raises(ValueError, match="not shown"):
        lesson_figures.maps(rows, ["x", "y"], [False, True], False)


def test_twins_and_lines_draw_their_numbers():
    loss = np.linspace(2, 1, 10)
    top, below = lesson_figures.twins(loss, loss, [5]).axes
    assert np.array_equal(top.lines[0].get_ydata(), loss) and not below.lines[0].get_ydata().any()
    figure = lesson_figures.lines({"flip": (np.arange(10), loss, arm_look("periodic"))}, "step", "loss", "t", {"1": 3.})
    ax, = figure.axes
    assert ax.lines[0].get_color() == arm_look("periodic").color and ax.texts[0].get_text() == "1"


def test_curves_that_lie_on_one_another_are_told_apart_below():
    x, loss, look = np.arange(10), np.linspace(2, 1, 10), arm_look("periodic")
    named = {"flip": (x, loss, look), "close": (x, loss + .01, look), "far": (x, loss - 1, look)}
    top, below = lesson_figures.lines(named, "step", "loss", "t", minus="flip").axes
    assert len(top.lines) == 3 and [line.get_ydata() for line in below.lines] == [pytest.approx([0.] * 10),
                                                                                  pytest.approx([.01] * 10)]
    assert below.get_ylabel() == "minus “flip”" and below.get_xlabel() == "step" and not top.get_xlabel()
