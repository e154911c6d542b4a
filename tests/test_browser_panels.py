"""The lesson notebooks' panels in a real JupyterLab, and their pages from disk: what a reader moves, clicks and sees.

The cells are the notebooks' own functions on small tables, so that the test needs no training.
"""

import time

import nbformat
import pytest
from jupyterlab import ROOT, Page, needs_browser
from nbformat.v4 import new_code_cell, new_notebook

from fer_lib import site

pytestmark = needs_browser
SLIDERS = '''from fer_lib import w_figures
w_figures.panel(4000, 1e-4, lr=1e-3, w0=.02, noise=1e-10).show("auto", alt="w")'''
DIAGRAM = '''import math, torch, pandas as pd
from fer_lib import placement_figures
from fer_lib.flip_effects import effects
from fer_lib.models import build_model
from fer_lib.site_statistics import every_site
model = build_model("resnet18", width=.05)
pairs, flips = effects(model, torch.randn(8, 1, 32, 32), torch.arange(8) % 7, True)
table = pd.DataFrame([{"step": k, "site": site, "mean": .1, "sd": 1., "zeros": .5, "flipped": math.nan, "w": math.nan}
                      for k in (1, 2) for site in every_site(model)])
placement_figures.clickable(model, pairs, flips, table).show("auto")'''


@pytest.fixture(scope="module")
def page(browser, shared_place):
    """One notebook with the slider panel and the diagram, run."""
    notebook = shared_place.fresh().notebook("panels.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell(SLIDERS), new_code_cell(DIAGRAM)], metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}}), notebook)
    context = browser.new_context(viewport={"width": 1300, "height": 1500})
    page = Page(context, shared_place.lab, "panels.ipynb")
    page.run_all()
    yield page
    assert page.errors == []
    context.close()
    shared_place.lab.end_sessions()


@pytest.mark.alone
def test_a_slider_moves_w_its_flips_and_the_sentence(page):
    said = page.look_at(".fer-panel .fer-said")
    before = said.inner_text()
    assert "flips in 4,000 forward passes" in before
    page.page.locator(".fer-panel .js-plotly-plot .scatterlayer").first.wait_for(timeout=60_000)
    traced = "document.querySelector('.fer-panel .js-plotly-plot .scatterlayer .js-line')?.getAttribute('d')"
    drawn = page.page.evaluate(traced)
    page.page.evaluate("""() => new MutationObserver(() => window.moved = performance.now()).observe(
        document.querySelector('.fer-panel .fer-said').parentElement, {childList: true, subtree: true})""")
    page.page.locator(".fer-panel .noUi-handle").first.focus()
    begun = page.page.evaluate("performance.now()")
    page.page.keyboard.press("ArrowRight")
    page.page.wait_for_function("window.moved", timeout=20_000)
    assert said.inner_text() != before and page.page.evaluate(traced) != drawn
    assert page.page.evaluate("window.moved") - begun < 1500, "ms; 200 is aimed at on a quiet machine"
    page.page.get_by_role("button", name="AdamW").click()
    page.page.wait_for_function("document.querySelector('.fer-panel .fer-said').innerText.startsWith('No flip') || "
                                "document.querySelector('.fer-panel .fer-said').innerText.includes('flip')")


@pytest.mark.alone
def test_a_click_or_a_key_on_the_diagram_chooses_a_site(page):
    place = page.look_at(".fer.clickable")
    page.page.wait_for_function("Number(document.querySelector('.fer.clickable')?.dataset.draws) >= 1", timeout=60_000)
    facts, chosen = place.locator(".facts"), place.locator(".site.chosen")
    assert place.locator(".site").count() == 29 and facts.inner_text().startswith("layer1.0.act1, ReLU after bn1")
    for act, site_name in ((lambda: place.locator("[data-site='layer2.1.act2']").click(), "layer2.1.act2"),
                           (lambda: (page.page.keyboard.press("ArrowRight"), page.page.keyboard.press("Enter")),
                            "layer3.0.act1")):
        draws = int(place.get_attribute("data-draws"))
        act()
        page.page.wait_for_function(f"Number(document.querySelector('.fer.clickable').dataset.draws) > {draws}")
        assert facts.inner_text().startswith(f"{site_name}, ") and chosen.get_attribute("data-site") == site_name
        assert chosen.count() == 1 and chosen.get_attribute("aria-pressed") == "true"
        assert int(place.get_attribute("data-last")) < 1500, "ms; 200 is aimed at on a quiet machine"
    assert place.locator(".plot .bars path").count() > 5 and place.locator(".plot .scatterlayer .trace").count() == 3


@pytest.mark.alone
def test_the_saved_notebook_holds_no_data_of_the_panels(page):
    page.save()
    text = (page.lab.project / "notebooks" / "panels.ipynb").read_text()
    assert len(text) < 100_000 and "bdata" not in text


def test_the_pages_open_from_disk_without_a_network(browser, tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("07_dynamic.ipynb", "08_placement.ipynb", "results"):      # test_site.py makes all pages
        (tmp_path / "notebooks" / name).symlink_to(ROOT / "notebooks" / name)
    site.build(tmp_path / "notebooks", tmp_path / "site")
    context = browser.new_context(offline=True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.get_by_role("link", name="The life of w").last.click()
    page.wait_for_url("**/07_dynamic.html")
    page.locator("summary", has_text="is alive").click()
    time.sleep(.3)
    sizes = page.eval_on_selector_all("img", "all => all.map(e => e.complete && e.naturalWidth)")
    assert len(sizes) >= 6 and all(size > 100 for size in sizes)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
    page.locator("a[rel=next]").click()
    page.wait_for_url("**/08_placement.html")
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
