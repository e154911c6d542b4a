"""The live view without a browser: bounded curves, messages, headless runs, the view of one's own loop."""

import importlib.metadata
import json
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from conftest import make_data, make_experiment
from IPython.display import Image

from fer_lib import engine
from fer_lib.engine import Learner, Stopped
from fer_lib.experiment import ParameterError
from fer_lib.live import View, chart, own_loop, view, watch
from fer_lib.live.curves import Curves, chart_settings
from fer_lib.live.maps import look
from fer_lib.live.pushing import Pushing
from fer_lib.live.series import CAPACITY, INTERVALS, MARKS, POINTS, Layout, Series, Thinned, interval_label
from fer_lib.runs import Run, record
from fer_lib.steering import Command
from fer_lib.steplog import row_type

SITES = ("a", "b", "c")


def rows(n: int, first: int = 1, seed: int = 0, flips: tuple[int, ...] = (), has_w: bool = True) -> np.ndarray:
    """n steps of random values; at the steps `flips` site b turns, - first."""
    rng = np.random.default_rng(seed)
    found = np.zeros(n, row_type(list(SITES), has_w))
    found["step"], found["epoch"] = np.arange(first, first + n), 1
    found["loss"] = rng.random(n)
    if has_w:
        found["w"] = rng.normal(size=(n, 5, 3))
    sign = 1
    for step in flips:
        found["signs"][step - first, 1 if sign > 0 else 2, 1] = 1.
        sign = -sign
    return found


def filled(steps: np.ndarray, cut: int, has_w: bool = True) -> Series:
    series = Series(Layout(SITES, has_w))
    for k in range(0, len(steps), cut):
        series.add(steps[k:k + cut])
    return series


# --- curves in bounded memory ---


@pytest.mark.parametrize("cut", [1, 7, 32, 1000, 10_000])
def test_buckets_are_the_same_wherever_blocks_are_cut(cut):
    steps = rows(9_000, flips=(10, 11, 40, 8_000))
    series = filled(steps, cut)
    assert series.stride == 16 and series.n == -(-9_000 // 16)
    edges = [slice(k, min(k + 16, 9_000)) for k in range(0, 9_000, 16)]
    assert series.column("step").tolist() == [steps["step"][e][-1] for e in edges]
    np.testing.assert_allclose(series.column("loss"), [steps["loss"][e].mean() for e in edges])
    np.testing.assert_array_equal(series.column("loss_low"), [steps["loss"][e].min() for e in edges])
    np.testing.assert_array_equal(series.column("loss_high"), [steps["loss"][e].max() for e in edges])
    np.testing.assert_array_equal(series.column("w/b"), [steps["w"][e, 0, 1][-1] for e in edges])
    np.testing.assert_array_equal(series.column("w_low/c"), [steps["w"][e, 2, 2].min() for e in edges])
    np.testing.assert_array_equal(series.column("w_high/a"), [steps["w"][e, 3, 0].max() for e in edges])
    np.testing.assert_array_equal(series.column("w_channel/a"), [steps["w"][e, 4, 0][-1] for e in edges])
    assert series.marks[:series.n_marks].tolist() == [[10, 1, -1, 1], [11, 1, 1, 1], [40, 1, -1, 1], [8_000, 1, 1, 1]]
    assert series.flips == 4 and series.steps == 9_000
    labels = {interval_label(k): n for k, n in enumerate(series.intervals) if n}
    assert labels == {"1": 1, "17–32": 1, "4097–8192": 1}       # gaps of 1, 29 and 7960 steps


@pytest.mark.parametrize("cut", [1, 50, 100_000])
def test_marks_are_thinned_evenly_wherever_blocks_are_cut(cut):
    n = 5 * MARKS
    steps = rows(n, has_w=False)
    steps["signs"][:, 1, 2] = .5                            # site c turns at every step
    series = filled(steps, cut, has_w=False)
    assert series.every_mark == 8 and series.n_marks <= MARKS
    assert series.marks[:series.n_marks, 0].tolist() == list(range(1, n + 1, 8))
    assert series.flips == n and series.intervals.tolist() == [n - 1] + [0] * (INTERVALS - 1)


def test_a_list_of_points_is_thinned_evenly():
    points, gone = Thinned(), 0
    for k in range(5 * POINTS):
        gone += points.add([k])
    assert points.points == [[k] for k in range(0, 5 * POINTS, points.every)] and points.every == 8 and gone == 3
    assert len(points.points) < POINTS


def test_a_loss_that_is_not_a_number_leaves_the_rest_alone():
    steps = rows(5_000)
    steps["loss"][77] = np.nan
    series = filled(steps, 64)
    assert np.isnan(series.column("loss")).sum() == 1 and not np.isnan(series.column("loss_high")).any()
    json.dumps(Curves(Layout(SITES, True)).message()[0], allow_nan=False)


def test_memory_and_messages_are_flat_in_the_length_of_a_run():
    curves = Curves(Layout(tuple(f"s{k}" for k in range(17)), True))
    block = np.zeros(1000, row_type([f"s{k}" for k in range(17)], True))
    block["signs"][::100, 1, 3] = 1
    sizes, times, memory = [], [], []
    tracemalloc.start()
    for k in range(200):                                    # 200,000 steps with 17 sites
        block["step"] = np.arange(1000 * k + 1, 1000 * k + 1001)
        curves.add(block)
        if k % 5 == 4:
            curves.add_score(1000 * k, .5, .5)
            curves.add_events([{"step": 1000 * k, "kind": "evaluate", "site": "", "value": 0.}])
        started = time.process_time()
        content, buffers = curves.message()
        times.append(time.process_time() - started)
        sizes.append(len(json.dumps(content)) + sum(map(len, buffers)))
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    whole = curves.message(whole=True)
    assert len(json.dumps(whole[0])) + sum(map(len, whole[1])) < 600_000
    assert max(sizes) < 600_000 and np.median(sizes[100:]) < 20_000
    assert memory[-1] < memory[20] + 200_000, "a hundred thousand steps more cost some 100 KB of events at most"


# --- messages ---


class Receiver:
    """What the front end does with messages, in Python."""

    def __init__(self, columns: int):
        self.columns, self.buckets, self.marks, self.scores, self.events = columns, [], [], [], []
        self.versions = {}

    def take(self, content: dict, buffers: list[bytes]) -> bool:
        """False where something is missing."""
        since = content["from"]
        for part in ("buckets", "marks", "scores", "events"):
            whole = since[part] == 0 or part == "events" or self.versions.get(part) == content["versions"][part]
            if since[part] > len(getattr(self, part)) or not whole:
                return False
        self.buckets[since["buckets"]:] = np.frombuffer(buffers[0], np.float32).reshape(-1, self.columns).tolist()
        self.marks[since["marks"]:] = np.frombuffer(buffers[1], np.float32).reshape(-1, 4).tolist()
        self.scores[since["scores"]:] = content["scores"]
        self.events[since["events"]:] = content["events"]
        self.versions = content["versions"]
        return True


def test_messages_add_up_to_the_whole_also_after_a_loss():
    layout = Layout(SITES, True)
    curves, steps, rng = Curves(layout), rows(40_000), np.random.default_rng(1)
    steps["signs"][::7, 1, 0] = 1
    receiver = Receiver(len(layout.columns))
    n, asked = 0, 0
    while n < len(steps):
        m = int(rng.integers(1, 400))
        curves.add(steps[n:n + m])
        n += m
        if rng.random() < .5:
            curves.add_score(n, n / 1e5, None)
            curves.add_events([{"step": n, "kind": "pause", "site": "", "value": 0.}])
        message = curves.message()
        if rng.random() < .05:
            continue                                        # lost on the way
        if not receiver.take(*message):
            asked += 1
            assert receiver.take(*curves.message(whole=True))
        assert len(receiver.buckets) == curves.series.n
    assert asked > 0 and curves.series.stride == 64
    series = curves.series
    assert receiver.take(*curves.message()) or receiver.take(*curves.message(whole=True))
    np.testing.assert_allclose(receiver.buckets, series.buckets[:series.n], rtol=1e-6)
    assert receiver.marks == series.marks[:series.n_marks].tolist()
    assert receiver.scores == series.scores.points and receiver.events == series.events


def test_the_front_end_is_told_every_column():
    settings = chart_settings(Layout(SITES, True, flag=True), "x")
    assert settings["columns"][:5] == ["step", "loss", "loss_low", "loss_high", "flag"]
    assert len(settings["columns"]) == 5 + 3 + 4 * 3 and len(settings["interval_labels"]) == INTERVALS
    json.dumps(settings)


# --- when a widget is made ---


def test_no_widget_without_somebody_who_looks_and_a_sentence_without_the_packages(monkeypatch):
    assert not chart.wants_widget("auto") and not chart.wants_widget("off") and chart.wants_widget("on")
    monkeypatch.setattr(chart.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match="live = 'on' needs the package anywidget: pip install"):
        chart.wants_widget("on")
    assert not chart.wants_widget("auto")


@pytest.mark.parametrize(("environment", "metadata", "looks"), [
    ({"JPY_SESSION_NAME": "x.ipynb"}, {"cellId": "1"}, True),           # JupyterLab
    ({"JPY_SESSION_NAME": "x.ipynb"}, {}, False),                       # papermill, started from a notebook
    ({}, {"cellId": "1"}, False), ({}, {}, False)])
def test_somebody_looks_where_a_front_end_ran_the_cell(monkeypatch, environment, metadata, looks):
    class Shell:
        class kernel:
            @staticmethod
            def get_parent():
                return {"metadata": metadata}

    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(chart, "get_ipython", Shell)
    assert chart.somebody_looks() is looks


def test_the_chart_draws_with_the_installed_plotly():
    text = chart.plotly_js()
    assert len(text) > 1_000_000 and b"plotly.js v" in text[:200]
    assert importlib.metadata.version("plotly").split(".")[0] in ("6", "7")


def test_updates_keep_to_their_share_of_the_time(monkeypatch):
    class Clock:
        now = 0.

        def monotonic(self):
            return self.now

        perf_counter = monotonic

    clock = Clock()
    monkeypatch.setattr("fer_lib.live.pushing.time", clock)
    pushing, pushes = Pushing(.5, share=.01), 0
    while clock.now < 600:
        clock.now += .1
        if pushing.due():
            with pushing.timed():
                clock.now += .1                             # far too slow for twice a second
            pushing.done()
            pushes += 1
    assert pushing.spent / clock.now < .02 and pushes > 30, "one in ten seconds comes anyway"


# --- a run, watched ---


@pytest.fixture
def shown(monkeypatch):
    """What would be displayed in a notebook."""
    found = []
    for module in (view, own_loop):
        monkeypatch.setattr(module, "display", found.append)
    return found


class FakeChart(chart.CurveChart):
    """A chart whose front end asks for all and sends commands, from a thread as ipykernel does."""

    made: list["FakeChart"] = []

    def __init__(self, curves, settings, act, receive=lambda content: None):
        self.curves, self.act, self.other, self.settings = curves, act, receive, settings
        self.receive = self._answer
        self.heard, self.asleep, self.sent, self.replaced = True, False, [], None
        self._seen, self._lock = set(), threading.Lock()
        self.begun = time.monotonic()
        self.widget = type("Widget", (), {"cfg": settings})
        FakeChart.made.append(self)

    def show(self):
        self.hear({"t": "all?", "rid": "first"})

    def replace(self, thing):
        self.replaced = thing

    def send(self, content, buffers=None):
        json.dumps(content, allow_nan=False)
        self.sent.append((content, buffers))

    def hear(self, content):
        thread = threading.Thread(target=self._on_message, args=(None, content, []))
        thread.start()
        thread.join()

    def kinds(self):
        return [content["t"] for content, _ in self.sent]


@pytest.fixture
def fake(monkeypatch, shown):
    FakeChart.made = []
    for module in (view, own_loop):
        monkeypatch.setattr(module, "CurveChart", FakeChart)
        monkeypatch.setattr(module, "wants_widget", lambda live: live != "off")
    return FakeChart


@pytest.mark.usefixtures("short_resnet")
class TestWatch:
    def test_headless_is_lines_and_a_picture_with_the_final_numbers(self, data, tmp_path, shown):
        run = Run(make_experiment(method="dynamic", w0=.003, w_gradient="exact"), data, tmp_path)
        said = []
        blocks = list(watch(run, said.append))
        assert blocks[-1].last and said[-1].startswith("step 16/16")
        picture, = shown
        assert isinstance(picture, Image) and picture.data == (run.path / "curve.png").read_bytes()
        assert list(watch(run, said.append)) == [] and said[-1] == f"this run is finished: {run.path.name}"
        assert len(shown) == 2

    def test_watched_and_headless_give_the_same_bits(self, data, tmp_path, fake):
        from test_runs import assert_same_record

        settings = dict(method="dropout+dynamic", w0=.003, epochs=3)
        plain = Run(make_experiment(**settings, live="off"), data, tmp_path / "off")
        watched = Run(make_experiment(**settings, live="on", refresh_seconds=.05), data, tmp_path / "on")
        assert plain.id == watched.id
        list(watch(plain, lambda line: None))
        for block in watch(watched):
            front, = fake.made
            if block.first_step == 1:
                front.hear({"t": "look", "rid": "l", "wanted": {"open": True, "image": 3, "site": "layer2.0.act1"}})
        assert {"data", "maps", "looking"} <= set(front.kinds())
        assert_same_record(plain, watched)
        assert front.replaced.data == (watched.path / "curve.png").read_bytes()

    def test_feature_maps_go_on_where_those_asked_for_took_long(self, data, tmp_path, fake, monkeypatch):
        """On a busy GPU the first ones of a site do."""
        class Clock:
            now = 0.

            def monotonic(self):
                return self.now

            perf_counter = monotonic

        clock, shown_at = Clock(), []

        def slow(learner, image, site):
            clock.now += .005 if (image, site) in shown_at else 5.
            shown_at.append((image, site))
            return look(learner, image, site)

        monkeypatch.setattr("fer_lib.live.pushing.time", clock)
        monkeypatch.setattr(view, "look", slow)
        run = Run(make_experiment(epochs=12, live="on", refresh_seconds=.5), data, tmp_path)
        asked = {0: (3, "stem"), 3: (3, "layer2.0.act1"), 6: (4, "layer2.0.act1"), 10: None}
        for blocks, _ in enumerate(watch(run)):
            clock.now += .5
            if blocks in asked:
                image, site = asked[blocks] or (4, "layer2.0.act1")
                fake.made[0].hear({"t": "look", "rid": f"{blocks}",
                                   "wanted": {"open": asked[blocks] is not None, "image": image, "site": site}})
        assert blocks == 11 and shown_at == [*[asked[0]] * 3, *[asked[3]] * 3, *[asked[6]] * 4]

    def test_the_front_ends_commands_act_and_are_answered(self, data, tmp_path, fake):
        run = Run(make_experiment(epochs=4, live="on"), data, tmp_path)
        sent = False
        with pytest.raises(Stopped):
            for _ in watch(run):
                front, = fake.made
                if not sent:
                    sent = True
                    commands = [{"kind": "flip", "site": "layer1.0.act2"}, {"kind": "lr", "value": .01},
                                {"kind": "bogus"}, {"kind": "lr", "value": -1}, {"kind": "evaluate"}, {"kind": "stop"}]
                    for k, command in enumerate(commands):
                        for _ in range(3):                  # the front end repeats itself; each acts once
                            front.hear({"t": "command", "rid": f"r{k}", "command": {**command, "id": f"c{k}"}})
        told = {content["id"]: content for content, _ in front.sent if content["t"] == "ack"}
        assert told["c0"]["text"].startswith("signs flipped at layer1.0.act2, now times −1, from step ")
        assert told["c1"]["text"].startswith("learning rate 0.01 from step ")
        assert told["c2"]["wrong"] and "unknown command 'bogus'" in told["c2"]["text"]
        assert told["c3"]["wrong"] and "0 to 1000" in told["c3"]["text"]
        assert "as trained" in told["c4"]["text"] and told["c5"]["text"].startswith("stopped after step")
        assert run.events["kind"].tolist() == ["flip", "lr", "evaluate", "evaluate", "stop"]
        assert run.steered and front.replaced.data == (run.path / "curve.png").read_bytes()

    def test_a_run_that_goes_on_shows_its_curves_from_before(self, data, tmp_path, fake):
        run = Run(make_experiment(epochs=3, live="on", method="periodic", flip_interval=2), data, tmp_path)
        for block in watch(run):
            if block.last_step == 16:
                break
        again = Run(run.experiment, data, tmp_path)
        list(watch(again))
        first, second = fake.made
        series = second.curves.series
        assert series.column("step").tolist() == list(range(1, 25)) and len(series.scores.points) == 3
        np.testing.assert_array_equal(series.column("loss"), again.history["loss"])
        assert series.column("flag").tolist() == [0.] * 8 + [1.] * 16, "T = 2: the flag is set in epochs 2 and 3"
        assert first.replaced is not None and second.curves.facts["flips"] == 1

    def test_an_error_in_the_loop_keeps_picture_and_record(self, data, tmp_path, fake):
        run = Run(make_experiment(live="on"), data, tmp_path)
        with pytest.raises(ZeroDivisionError):
            for _ in watch(run):
                raise ZeroDivisionError
        assert run.status == "interrupted" and (run.path / "checkpoint.safetensors").exists()

    def test_a_run_without_a_step_says_so(self, data, tmp_path, shown, monkeypatch):
        def full(*arguments, **keywords):
            raise RuntimeError("no memory")

        monkeypatch.setattr(engine, "Learner", full)
        with pytest.raises(RuntimeError, match="no memory"):
            list(watch(Run(make_experiment(), data, tmp_path)))
        assert shown == []


# --- feature maps ---


@pytest.mark.usefixtures("short_resnet")
def test_feature_maps_are_those_of_the_network_and_change_nothing(data):
    import torch

    learner = Learner(make_experiment(method="dynamic", w0=.003, w_gradient="exact"), data, torch.device("cpu"))
    for _ in range(5):
        learner.draw_epoch()
        learner.model.train()
        learner.train_step()
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    content, buffers = look(learner, 2, "layer2.0.act1")
    assert all(torch.equal(v, learner.model.state_dict()[k]) for k, v in before.items()) and learner.model.training
    assert list(learner.model.state_dict()) == list(before)
    image, pre, post, flipped = (np.frombuffer(b, np.uint8).reshape(p["count"], p["height"], p["width"])
                                 for p, b in zip(content["parts"], buffers))
    assert np.array_equal(image[0], data.splits["val"].images[2, 0])
    sign = 1 if float(learner.method.units["layer2.0.act1"].w_forward.flatten()[0]) >= 0 else -1
    signed = sign * (pre.astype(int) - 128)
    limit, most = (float(p["help"].split()[-1].lstrip("+")) for p in content["parts"][1:3])
    np.testing.assert_allclose(post / 255 * most, np.maximum(signed, 0) / 127 * limit, atol=.02 * limit)
    np.testing.assert_allclose(flipped / 255 * most, np.maximum(-signed, 0) / 127 * limit, atol=.02 * limit)
    assert f"step 5: image 2 is labelled {data.classes[int(data.splits['val'].samples['label'][2])]}" in content["text"]
    assert look(learner, 10**6, "stem")[0]["text"].startswith("step 5: image 15 ")


# --- a loop of one's own ---


def test_a_view_around_ones_own_loop(fake, shown):
    import torch

    w = torch.nn.Parameter(torch.tensor([.3, .3]))
    rates = []
    with View("mine", steps=40, steps_per_epoch=10, on={"lr": lambda c: rates.append(c.value)}) as own:
        for step in range(1, 41):
            if step == 20:
                w.data.neg_()
            own.update(step=step, loss=1 / step, w={"block": w}, macro_f1=.5 if step % 10 == 0 else None)
            front, = fake.made
            if step == 5:
                front.hear({"t": "command", "rid": "a", "command": {"kind": "lr", "value": .1, "id": "a"}})
            if step == 30:
                front.hear({"t": "command", "rid": "b", "command": {"kind": "stop", "id": "b"}})
            if own.stopped:
                break
    assert step == 31 and rates == [.1]
    series = own.curves.series
    assert series.steps == 31
    assert series.marks[:series.n_marks].tolist() == [[20, 0, -1, 1]] and len(series.scores.points) == 3
    assert series.column("w/block")[[0, -1]].tolist() == pytest.approx([.3, -.3])
    assert isinstance(front.replaced, Image) and front.settings["controls"] == ["pause", "stop", "lr"]


def test_a_headless_view_says_lines_and_leaves_a_picture_also_on_an_error(shown):
    said = []
    with pytest.raises(ValueError, match="mine"), View(steps=10, live="off", say=said.append) as own:
        own.update(step=1, loss=2.)
        own.update(step=2, loss=float("nan"))
        raise ValueError("mine")
    assert said[0].startswith("step 1/10 · loss 2 ·") and isinstance(shown[0], Image)


def test_a_view_names_what_is_wrong(shown):
    with pytest.raises(ValueError, match="no control is called 'explode'"):
        View(on={"explode": print})
    with pytest.raises(ParameterError, match="unknown live 'maybe'"):
        View(live="maybe")
    with pytest.raises(ValueError, match="the sites and their sizes were"), View(live="off") as own:
        own.update(step=1, loss=1., w={"a": .1})
        own.update(step=2, loss=1., w={"b": .1})


def test_a_paused_loop_waits(fake):
    with View("mine") as own:
        own.update(step=1, loss=1.)
        own.steering.send(Command("pause", id="p"))
        threading.Timer(.3, own.steering.send, [Command("resume", id="r")]).start()
        started = time.monotonic()
        own.update(step=2, loss=1.)
        assert time.monotonic() - started > .25


def test_the_readme_example_of_ones_own_loop_runs(tmp_path):
    """In a process of its own, without a notebook."""
    code = ("from fer_lib.live import View\nwith View(steps=3) as view:\n    for step in range(1, 4):\n"
            "        view.update(step=step, loss=1 / step, w={'block1': -.1 * step})\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "step 1/3 · loss 1" in done.stdout


def test_history_tables_of_a_series_draw(data):
    series = filled(rows(3_000, flips=(100, 900)), 50)
    history, flips = series.tables()
    assert len(history) == series.n <= CAPACITY and flips["step"].tolist() == [100, 900]
    assert set(history) >= {"step", "loss", "w_mean/a", "w_min/b", "w_max/c"} and isinstance(flips, pd.DataFrame)
    assert make_data and record
