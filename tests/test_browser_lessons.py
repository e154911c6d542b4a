"""The lessons' sliders in a real JupyterLab in headless Chromium: they act, and soon."""

import nbformat
import pytest
from jupyterlab import Page, needs_browser, set_parameters

pytestmark = [*needs_browser, pytest.mark.alone, pytest.mark.long]     # test_browser_panels has a sample

# in the page: move a control, and say after how many milliseconds the chart and the sentence changed for the last time
MOVE = """async (panel, [label, key]) => {
  const box = [...panel.querySelectorAll('.widget-slider, .widget-toggle-buttons')].find(
    e => e.querySelector('.widget-label').textContent.trim() === label);
  const began = performance.now(), changed = {};
  const watch = new MutationObserver(() => changed.chart = performance.now() - began);
  watch.observe(panel.querySelector('.js-plotly-plot'), {subtree: true, childList: true, attributes: true});
  const said = panel.querySelector('.fer-said').textContent;
  const knob = box.querySelector('.noUi-handle');
  if (knob) { knob.focus(); knob.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})); }
  else [...box.querySelectorAll('button')].find(b => b.textContent.trim() === key).click();
  while (performance.now() - began < 5000 && !(changed.last > began && performance.now() - changed.last > 400)) {
    await new Promise(done => setTimeout(done, 5));
    if (!changed.said && panel.querySelector('.fer-said').textContent !== said)
      changed.said = performance.now() - began;
    changed.last = began + Math.max(changed.said ?? 0, changed.chart ?? 0);
  }
  watch.disconnect();
  return [changed.said ?? null, changed.chart ?? null];
}"""


def wait_until_all_has_run(lesson: Page) -> None:
    """The kernel is idle between two cells too: here for two seconds on end."""
    lesson.page.wait_for_function("""() => {
      const idle = document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle');
      if (!idle) window.idleSince = performance.now();
      return performance.now() - (window.idleSince ??= performance.now()) > 2000;
    }""", timeout=120_000)


@pytest.fixture(scope="module")
def lesson(browser, shared_place):
    """02_activations, run in a page."""
    shared_place.fresh()
    set_parameters(shared_place.notebook("02_activations.ipynb"), steps=10, short=2)
    context = browser.new_context(viewport={"width": 1300, "height": 1150})
    page = Page(context, shared_place.lab, "02_activations.ipynb")
    page.run_all()
    yield page
    context.close()
    shared_place.lab.end_sessions()


def test_the_function_plots_follow_every_control_within_a_fifth_of_a_second(lesson):
    panel = lesson.look_at(".fer-panel")
    lesson.page.wait_for_selector(".fer-panel .js-plotly-plot .scatterlayer", timeout=60_000)
    wait_until_all_has_run(lesson)
    panel.scroll_into_view_if_needed()
    said = panel.locator(".fer-said")
    assert "w = -0.8" in said.inner_text()
    panel.evaluate(MOVE, ["w", "ArrowRight"])                      # the first draw is not timed
    assert "w = -0.75" in said.inner_text()
    moves = [("w", "ArrowRight")] * 5 + [("C", "ArrowLeft")] * 3 + [("divide_by", "signed"), ("site", "layer4.0.act1")]
    found = [panel.evaluate(MOVE, move) for move in moves]
    print("milliseconds (sentence, chart):", [[round(t) if t else t for t in pair] for pair in found])
    assert all(chart for (name, _), (_, chart) in zip(moves, found) if name != "C"), found     # the cliff is outside
    delays = sorted(max(said or 0, chart or 0) for said, chart in found)
    assert delays[0] > 0, found
    assert delays[len(delays) // 2] <= 200 and delays[-1] <= 1000, found
    assert "layer4.0.act1: with w = -0.5" in said.inner_text() and "|x| = 9" in said.inner_text()
    assert not lesson.errors


def test_the_picture_stays_when_the_notebook_is_saved_and_the_sliders_do_not(lesson):
    lesson.page.wait_for_selector(".fer-panel .js-plotly-plot .scatterlayer", timeout=60_000)
    lesson.save()
    path = lesson.lab.project / "notebooks" / lesson.notebook
    cell = next(c for c in nbformat.read(path, 4).cells if "panel.show(live" in c.source)
    pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1 and pictures[0].metadata["image/png"]["alt"]
    assert path.stat().st_size < 500_000
