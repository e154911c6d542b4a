"""What passes through each site while a network trains, what a sudden flip does, and the diagram that shows both."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_experiment, train_one
from torch import nn

from fer_lib import figures, placement_figures
from fer_lib.data import open_packed
from fer_lib.diagram import Box, Diagram
from fer_lib.files import RecordError
from fer_lib.flip_effects import effects, flipped
from fer_lib.live.clickable import Clickable, ClickableChart, Drawing
from fer_lib.models import build_model, sites
from fer_lib.runs import Run, record
from fer_lib.site_statistics import batch_statistics, every_site, record_sites, watched


@pytest.fixture
def run(packed, tmp_path, short_resnet) -> Run:
    e = make_experiment(method="dynamic+dropout", w0=.009, w_gradient="exact", data=str(packed))    # flips at step 12
    return Run(e, open_packed(packed), tmp_path / "runs")


def test_looking_changes_no_bit_and_the_table_is_kept_with_the_run(run, tmp_path):
    """With dropout, whose random stream an evaluation mustn't touch."""
    plain = Run(run.experiment, run.data, tmp_path / "plain")
    for _ in record([plain]):
        pass
    table = record_sites(run, images=16, every=2)
    weights = [(r.path / "model.safetensors").read_bytes() for r in (run, plain)]
    assert weights[0] == weights[1] and run.history["loss"].equals(plain.history["loss"])
    assert pd.read_parquet(run.path / "sites.parquet").equals(table) and record_sites(run).equals(table)
    with pytest.raises(RecordError, match="was trained without sites.parquet"):
        record_sites(plain)


def test_a_look_holds_every_site_with_what_it_has(run):
    table = record_sites(run, images=16, every=1)
    assert table["step"].max() == 16 and 8 in set(table["step"]), "the end of an epoch is looked at"
    last = table[table["step"] == 16].set_index("site")
    assert list(last.index[:3]) == ["stem", "layer1.0.act1", "layer1.0.pre_add"] and last.index[-1] == "head"
    act1 = last[last.index.str.endswith("act1")]
    assert act1["flipped"].isin([0., 1.]).all() and (np.sign(act1["w"]) != 0).all() and len(act1) == 4
    assert last["w"].notna().sum() == 4 and last["zeros"].notna().sum() == 9 and last["sd"].gt(0).all()
    site = "layer1.0.act1"
    turned = run.flips[run.flips["site"] == site].set_index("step")["sign"]
    seen = table[table["site"] == site].set_index("step")["flipped"]
    assert {0., 1.} == set(seen)
    for step, share in seen.items():
        last = turned[turned.index <= step]
        assert share == (len(last) > 0 and last.iloc[-1] < 0)


def test_a_look_uses_the_batchs_statistics_and_teaches_batch_norms_nothing():
    model, x = network().train(), torch.randn(16, 1, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), batch_statistics(model):
        looked = model(x)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(looked, model(x)) and not torch.equal(looked, model.eval()(x))


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet18", width=.05).eval()


def test_a_flip_is_the_negated_input_and_goes_away():
    model, x = network(), torch.randn(2, 1, 32, 32)
    with watched(model) as plain:
        model(x)
    with flipped(model, "layer2.0.act1"), watched(model) as seen:
        model(x)
    assert torch.equal(seen["layer2.0.act1"][0], -plain["layer2.0.act1"][0])
    assert torch.equal(seen["layer1.1.act2"][1], plain["layer1.1.act2"][1])
    assert not torch.equal(seen["layer2.0.pre_add"][0], plain["layer2.0.pre_add"][0])
    with watched(model) as again:
        model(x)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain.values(), again.values()))
    with pytest.raises(ValueError, match="unknown site 'layer9'"), flipped(model, "layer9"):
        pass


@pytest.mark.parametrize("training", [True, False])
def test_effects_reach_what_comes_after_and_only_that(training):
    model, x, labels = network(), torch.randn(32, 1, 32, 32), torch.arange(32) % 7
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pairs, flips = effects(model, x, labels, training)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and not model.training
    order = list(every_site(model))
    assert flips["flipped"].tolist() == order and len(order) == 29
    own = pairs[pairs["flipped"] == pairs["site"]]
    assert len(own) == 29 and own["alike"].round(4).eq(-1).all()
    shortcut = ["layer3.0.shortcut"]                    # is beside act1 and pre_add, not after them
    after = pairs[pairs["flipped"] == "layer3.0.act1"]["site"].tolist()
    assert after == [s for s in order[order.index("layer3.0.act1"):] if s not in shortcut]
    norms = pairs[pairs["site"].str.endswith(("act1", "pre_add")) & (pairs["flipped"] != pairs["site"])]
    if training:                                        # the batch's statistics bring mean and spread back
        assert norms["moved"].max() < 1e-3 and (norms["spread"] - 1).abs().max() < .1 and norms["alike"].max() < .99
    else:
        assert norms["moved"].max() > .05
    relu = flips[flips["zeros"].notna()].set_index("flipped")
    assert list(relu.index) == list(sites(model))
    assert relu.loc["layer1.0.act1", "zeros"] == pytest.approx(1 - relu.loc["layer1.0.act1", "zeros_before"], abs=.01)


# --- the diagram ---


def test_the_diagram_has_every_site_once_and_marks_those_with_a_twin():
    model = network()
    diagram = placement_figures.network_diagram(model)
    named = [box for box in diagram.boxes if box.name]
    assert sorted(box.name for box in named) == sorted(every_site(model))
    twins = {box.name for box in named if box.color == placement_figures.TWIN}
    assert {"stem", "layer1.0.act1", "layer2.0.shortcut", "layer4.1.pre_add"} <= twins and len(twins) == 20
    assert not any(name.endswith("act2") or name == "head" for name in twins)
    assert "17 sites hold a ReLU" in diagram.alt and "At 20 sites" in diagram.alt
    rooms = [(b.x, b.y, b.x + b.w, b.y + b.h) for b in diagram.boxes]
    for k, (left, top, right, bottom) in enumerate(rooms):
        assert left >= 0 and top >= 0 and right <= diagram.width and bottom <= diagram.height
        assert not any(a < right and c > left and b < bottom and d > top for a, b, c, d in rooms[:k])
    assert figures.png(diagram.figure()).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="ResNet-18 and ResNet-34"):
        placement_figures.network_diagram(build_model("resnet50", width=.05))


def explorer() -> Clickable:
    model = network()
    pairs, flips = effects(model, torch.randn(8, 1, 32, 32), torch.arange(8) % 7, True)
    table = pd.DataFrame([{"step": step, "site": site, "mean": .1 * step, "sd": 1. * step, "zeros": .5,
                           "flipped": math.nan, "w": math.nan} for step in (1, 2, 3) for site in every_site(model)])
    assert len(placement_figures.over_training(table, [2]).axes) == 6          # three panels with their colour bars
    left, right, _ = placement_figures.reach(pairs, flips).axes
    assert left.patch.get_hatch() and not right.patch.get_hatch(), "what isn't reached looks like no correlation"
    return placement_figures.clickable(model, pairs, flips, table)


def test_a_change_is_told_in_multiples_of_what_is_usual_there():
    grid = pd.DataFrame({1: [0., 5.], 2: [1., 5.], 3: [0., 5.], 4: [10., 6.]}, index=["a", "b"])
    moved = placement_figures.changes(grid)
    assert moved.loc["a"].tolist() == [1., 1., 10.] and moved.loc["b"].isna().all()


def test_each_site_can_be_drawn_and_says_its_own():
    clickable = explorer()
    names = [box.name for box in clickable.diagram.boxes if box.name]
    drawings = {name: clickable.draw(name) for name in names}
    assert all(drawing.text.startswith(f"{name}, ") for name, drawing in drawings.items())
    assert len({drawing.text for drawing in drawings.values()}) == len(names)
    assert "negating one batch norm" in drawings["layer1.0.act1"].text
    assert "No single batch norm" in drawings["layer1.0.act2"].text and "ReLU zeroes" in drawings["layer1.0.act2"].text
    first = drawings["layer1.0.act1"].traces
    assert [t["name"] for t in first] == ["correlation with the unflipped features", "mean before the activation",
                                          "standard deviation before it", "share of zeros after ReLU"]


def test_the_widget_answers_a_click_and_refuses_what_is_no_box():
    boxes = [Box(0, 0, 1, 1, "a", "#fff", "first", "a"), Box(2, 0, 1, 1, "b", "#fff")]
    clickable = Clickable(Diagram(4, 1, "two boxes", boxes), lambda name: Drawing(f"{name} was chosen"), "a", "words")
    chart = ClickableChart(clickable.settings(), clickable.draw)
    sent = []
    chart.widget.send = lambda content, buffers=None: sent.append(content)
    for rid, name in (("1", "a"), ("1", "a"), ("2", "b")):
        chart._on_message(None, {"t": "draw?", "rid": rid, "id": rid, "values": {"chosen": name}}, [])
    assert [(m["id"], m["text"]) for m in sent] == [("1", "a was chosen"), ("2", "the diagram has no box 'b'")]
    with pytest.raises(ValueError, match="no box 'c' to begin with"):
        Clickable(clickable.diagram, clickable.draw, "c", "words").settings()


def test_where_nobody_looks_its_words_are_printed(capsys):
    boxes = [Box(0, 0, 1, 1, "a", "#fff", "first", "a")]
    shown = Clickable(Diagram(1, 1, "one", boxes), lambda name: Drawing(f"{name} says"), "a", "words").show("auto")
    assert not shown and capsys.readouterr().out == "a says\n"


def test_a_block_cut_anew_is_the_same_run(data, short_resnet):
    """record_sites cuts blocks to a few steps."""
    from fer_lib.engine import train

    e, whole = make_experiment(), None
    for block in train([(e, data)], torch.device("cpu")):
        block.network.block_steps, whole = 3, block
    assert torch.equal(whole.model()["conv1.weight"], train_one(e, data).model["conv1.weight"])
