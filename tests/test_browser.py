"""The live view in a real JupyterLab in headless Chromium: what a reader sees and does, while cells run.

These need a Chromium or Chrome: without one they are skipped, and fail where CI is set. Those that measure how long a
control takes to act run alone.
"""

import base64
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jupyterlab import REST, ROOT, Page, Place, let_rest, needs_browser, set_parameters

from fer_lib.experiment import Experiment
from fer_lib.live import monitor
from fer_lib.runs import open_run, record
from fer_lib.workspace import Workspace, find_workspace

OLDEST = Path(sys.prefix) / "ipykernel-oldest"          # `make test` puts the oldest admitted ipykernel there
OLDEST_VERSION = "7.4.0"
pytestmark = needs_browser


@pytest.fixture(params=["newest", "oldest"] if version("ipykernel") != OLDEST_VERSION else ["newest"])
def either(request, tmp_path_factory):
    """A JupyterLab whose kernels run the newest ipykernel that is admitted here, and one with the oldest."""
    if request.param == "newest":
        yield request.getfixturevalue("place")
        return
    assert OLDEST.is_dir() or not os.environ.get("CI"), "make test installs the oldest ipykernel for this"
    if not OLDEST.is_dir():
        pytest.skip("the oldest ipykernel is not here: make test installs it")
    found = subprocess.run([sys.executable, "-c", "import ipykernel; print(ipykernel.__version__)"], text=True,
                           env={**os.environ, "PYTHONPATH": str(OLDEST)}, capture_output=True, check=True).stdout
    assert found.strip() == OLDEST_VERSION
    place = Place(tmp_path_factory.mktemp("oldest"), str(OLDEST))
    yield place
    place.lab.stop()


def pictures(page: Page) -> list[bytes]:
    """PNGs in the saved notebook's training cell; there must be no widget in it."""
    page.save()
    text = (page.lab.project / "notebooks" / page.notebook).read_text()
    assert "widget-view" not in text and len(text) <= 300_000
    cell = next(c for c in page.saved().cells if "watch(run)" in c.source)
    return [base64.b64decode(o["data"]["image/png"]) for o in cell.outputs if "image/png" in o.get("data", {})]


def press(key: str, times: int = 1):
    def act(element):
        element.focus()
        for _ in range(times):
            element.press(key)
    return act


def fill(text: str):
    def act(element):
        element.click(click_count=3)
        element.press_sequentially(text)
        element.press("Enter")
    return act


# --- one run, watched and steered ---


@pytest.mark.alone
def test_the_chart_grows_and_every_control_acts_while_the_cell_is_busy(either, context):
    set_parameters(either.notebook("04_train.ipynb"), epochs=400)
    page = Page(context, either.lab, "04_train.ipynb")
    page.run_all()
    first = page.chart()
    later = page.chart(int(first["steps"]) + 40)
    assert int(later["draws"]) > int(first["draws"]) and int(later["points"]) > int(first["points"])
    busy = page.page.locator(".jp-CodeCell", has_text="watch(run)").locator(".jp-InputPrompt")
    assert busy.inner_text() == "[*]:"

    delays = {}

    def use(selector, act=lambda element: element.click()):
        seconds, said = page.command(f".fer {selector}", act)
        delays.setdefault(selector, []).append(seconds)
        return said

    for k in range(4):
        assert "signs flipped at all sites" in use("button.flip")
        page.page.locator("select.flip-site").first.select_option("layer2.1.act2")
        assert "signs flipped at layer2.1.act2" in use("button.flip")
        page.page.locator("select.flip-site").first.select_option("all")
        assert "learning rate" in use("input.lr", press("ArrowRight" if k % 2 else "ArrowLeft"))
        assert f"weight decay 0.000{2 + k} " in use("input.weight_decay-value", fill(f"{2 + k}e-4"))
    assert "learning rate 0.0005 " in use("input.lr-value", fill("5e-4"))
    assert "val macro-F1" in use("button.evaluate")
    assert "checkpoint saved" in use("button.checkpoint")
    assert "channel 3" in use("input.channel", fill("3"))
    path, _ = either.result()
    assert (path / "checkpoint.safetensors").exists() and path.name.endswith("-steered")

    assert "paused after step" in use("button.pause")
    time.sleep(.7)
    step = page.page.locator(".fer").first.get_attribute("data-step")
    page.page.locator(".fer details summary").first.click()                 # feature maps work in a pause too
    page.page.wait_for_function("Number(document.querySelector('.fer').dataset.maps) >= 1", timeout=10_000)
    assert page.page.locator(".fer .maps figure").count() == 4
    assert "is labelled" in page.page.locator(".fer details .facts").first.inner_text()
    fill("5")(page.page.locator(".fer details input.image").first)
    page.page.wait_for_function("document.querySelector('.fer details .facts').textContent.includes('image 5 ')",
                                timeout=10_000)
    assert page.page.locator(".fer").first.get_attribute("data-step") == step
    assert "going on after step" in use("button.pause")
    before = int(page.page.locator(".fer").first.get_attribute("data-map-step"))
    page.page.wait_for_function(f"Number(document.querySelector('.fer').dataset.mapStep) > {before}", timeout=10_000)

    all_delays = [d for own in delays.values() for d in own]
    print({k: [round(d, 3) for d in own] for k, own in delays.items()})
    assert len(all_delays) >= 20
    assert np.median(all_delays) <= .3 and max(all_delays) <= 1., delays

    assert "stopped after step" in use("button.stop")
    path, result = either.wait_for_status("interrupted")
    page.page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)
    assert pictures(page) == [(path / "curve.png").read_bytes()]
    assert result["steered"] and (path / "checkpoint.safetensors").exists()
    kinds = [json.loads(line)["kind"] for line in (path / "log" / "events.jsonl").read_text().splitlines()]
    assert {"flip", "lr", "weight_decay", "evaluate", "checkpoint", "watch_channel", "pause", "resume",
            "stop"} == set(kinds)
    error, = (o for c in page.saved().cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error")
    assert error.ename == "Stopped" and len(error.traceback) == 1, "one sentence, and the cells below wait"
    assert page.errors == []
    page.page.close()


@pytest.fixture(scope="module")
def training(browser, shared_place):
    """(the place, a page in which 04_train is at work): looked at by one test, interrupted by the next."""
    shared_place.fresh()
    set_parameters(shared_place.notebook("04_train.ipynb"), epochs=400)
    let_rest(shared_place.notebook("04_train.ipynb"))
    context = browser.new_context(viewport={"width": 1300, "height": 1150})
    page = Page(context, shared_place.lab, "04_train.ipynb")
    page.run_all()
    yield shared_place, page
    context.close()
    shared_place.lab.end_sessions()


@pytest.mark.long
def test_hover_zoom_legend_and_themes(training):
    _, page = training
    page.chart(80)
    plot = page.look_at(".fer .plot")
    axis = "e => e._fullLayout.xaxis.range"
    box = plot.bounding_box()
    # the w panel: about half way down, left of the legend
    x, y = box["x"] + 92 + .4 * (box["width"] - 106), box["y"] + .57 * box["height"]
    page.page.mouse.move(x, y - 2)
    tip = page.page.locator(".fer .tip").first
    for dy in [*range(-70, 70, 5)] * 3:                                     # until the pointer is near a line
        page.page.mouse.move(x, y + dy)
        time.sleep(.1)                                                      # plotly looks every so often
        if tip.is_visible() and "w = " in tip.inner_text():
            break
    assert "w = " in tip.inner_text() and "epoch" in tip.inner_text()
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    page.page.mouse.move(x + 90, y, steps=5)
    page.page.mouse.up()
    zoomed = plot.evaluate(axis)
    assert zoomed[0] > 5
    plot.locator(".legendtoggle").nth(1).click()
    time.sleep(.7)                                                          # a double click would hide all the others
    hidden = "e => e._fullData.filter(t => t.visible === 'legendonly').map(t => t.name)"
    assert plot.evaluate(hidden) == ["macro-F1 as trained"]
    draws = int(plot.get_attribute("data-draws"))
    page.page.wait_for_function(f"Number(document.querySelector('.fer .plot').dataset.draws) > {draws + 2}")
    assert plot.evaluate(axis) == zoomed and plot.evaluate(hidden) == ["macro-F1 as trained"]
    light = plot.evaluate("e => e._fullLayout.paper_bgcolor")
    page.menu("Settings", "Theme")
    page.page.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    page.page.wait_for_function(f"document.querySelector('.fer .plot')._fullLayout.paper_bgcolor !== '{light}'")
    page.menu("Settings", "Theme")
    page.page.locator(".lm-Menu-item", has_text="JupyterLab Light").first.click()
    page.page.wait_for_function(f"document.querySelector('.fer .plot')._fullLayout.paper_bgcolor === '{light}'")
    assert page.errors == []


# --- what stays ---


@pytest.mark.long
def test_interrupt_is_a_clean_stop_and_an_error_keeps_picture_and_record(training, context):
    place, page = training
    page.chart(20)
    page.menu("Kernel", "Interrupt Kernel")
    path, result = place.wait_for_status("interrupted")
    page.page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)
    assert pictures(page) == [(path / "curve.png").read_bytes()]
    assert result["reason"] == "Stopped" and not result["steered"]
    error, = (o for c in page.saved().cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error")
    assert error.ename == "Stopped" and len(error.traceback) == 1
    assert page.errors == []
    place.lab.end_sessions()
    page.page.close()

    notebook = place.notebook("04_train.ipynb")
    text = notebook.read_text()
    assert text.count(REST) == 1
    notebook.write_text(text.replace(REST, f"{REST}; assert block.last_step < {result['step'] + 300}, 'mine'"))
    page = Page(context, place.lab, "04_train.ipynb")
    page.run_all()
    again = page.chart(result["step"] + 1)              # it goes on from the checkpoint, with the curves from before
    assert int(again["points"]) > result["step"]
    deadline = time.monotonic() + 240                  # up to 300 steps, with a rest after each where steps are slow
    while result.get("reason") != "GeneratorExit" and time.monotonic() < deadline:
        time.sleep(.2)
        path, result = place.result()
    assert result["status"] == "interrupted" and result["reason"] == "GeneratorExit"
    page.page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)
    assert pictures(page) == [(path / "curve.png").read_bytes()]
    assert page.errors == []
    page.page.close()


@pytest.mark.long
def test_a_watched_run_has_the_bits_of_a_headless_one_and_its_picture_stays(place, context, tmp_path):
    set_parameters(place.notebook("04_train.ipynb"), epochs=5, seed=5, device="cpu", refresh_seconds=.1)
    let_rest(place.notebook("04_train.ipynb"))          # it ends in seconds, and a page of a busy machine has to see it
    page = Page(context, place.lab, "04_train.ipynb")
    page.run_all()
    page.chart(30)
    page.look_at(".fer details summary").click()        # feature maps open: they must change nothing either
    path, _ = place.wait_for_status("finished", 90)
    page.page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)
    assert len(pictures(page)) == 1
    page.menu("Kernel", "Shut Down Kernel")
    page.page.close()
    again = Page(context, place.lab, "04_train.ipynb")  # re-opened, with a kernel that knows nothing
    assert again.look_at(".jp-OutputArea-output img").is_visible()
    assert "model not found" not in again.page.locator(".jp-Notebook").inner_text()
    assert again.errors == page.errors == []
    again.page.close()
    head = json.loads((path / "experiment.json").read_text())
    e = Experiment.from_mapping(head["experiment"])
    packed = find_workspace().packed
    run = open_run(e, Workspace(ROOT, packed, tmp_path))
    list(record([run]))
    for table in ("history", "flips", "epochs"):
        pd.testing.assert_frame_equal(pd.read_parquet(path / f"{table}.parquet"), getattr(run, table), check_exact=True)
    assert (path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


# --- the monitor ---


@pytest.mark.alone
@pytest.mark.long
def test_the_monitor_follows_and_stops_a_cell_whose_page_was_left(place, context):
    set_parameters(place.notebook("04_train.ipynb"), epochs=400)
    set_parameters(place.notebook("monitor.ipynb"), path=str(place.runs))
    page = Page(context, place.lab, "04_train.ipynb")
    page.run_all()
    page.chart(20)
    page.save()
    page.page.goto("about:blank")
    watching = Page(context, place.lab, "monitor.ipynb")
    watching.run_all()
    watching.look_at(".fer .card").click()
    first = int(watching.chart()["steps"])
    assert int(watching.chart(first + 40)["steps"]) > first
    watching.save()
    watching.reload()
    watching.look_at(".fer .card").click()              # the view is back, from the kernel that went on
    assert int(watching.chart(first + 60)["steps"]) > first
    seconds, said = watching.command(".fer .opened button.flip")
    assert "signs flipped at all sites" in said and seconds < 2
    seconds, said = watching.command(".fer .opened button.stop")
    assert "stopped after step" in said
    path, result = place.wait_for_status("interrupted")
    assert result["steered"] and path.name.endswith("-steered")
    watching.page.wait_for_function("document.querySelector('.fer .card')?.dataset.status === 'interrupted'")
    assert watching.page.locator(".fer table tbody tr").count() == 1
    assert watching.errors == [] and page.errors == []
    watching.page.close()
    page.page.close()
    assert "interrupted" in monitor(place.runs, live="off").summary()
