"""The notebooks as pages: every link resolves, nothing comes from a network, formulas and pictures are in the page."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fer_lib import site
from fer_lib.mathml import mathml

ROOT = Path(__file__).parents[1]


class Reader(HTMLParser):
    """What a page refers to, and its ids."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.ids, self.pictures, self.tags = [], [], set(), [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "href" in found:
            self.loaded.append(found["href"])
        self.loaded += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]
        if tag == "img":
            self.pictures.append(found)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Reader]:
    out = tmp_path_factory.mktemp("site") / "site"
    return {path.name: Reader(path.read_text()) for path in site.build(ROOT / "notebooks", out)} | {"": out}


def test_every_notebook_has_a_page_that_lists_all(pages):
    names = {f"{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(pages) - {"", "index.html"} == names
    for name, page in pages.items():
        if name:
            assert names | {"index.html"} <= set(page.links)


def test_every_link_resolves_and_nothing_is_loaded(pages):
    out = pages[""]
    for name, page in pages.items():
        for target in page.links if name else []:
            path, _, anchor = target.partition("#")
            assert not re.match(r"\w+:|//", target), f"{name} links to {target}"
            assert not path or (out / path).is_file(), f"{name}: {target}"
            if anchor and (not path or path in pages):
                assert anchor in pages[path or name].ids, f"{name}: {target}"
        if name:
            assert all(source.startswith("data:image/") for source in page.loaded), name
            assert not page.tags & {"script", "link", "iframe", "object", "embed"}
            assert not re.search(r"url\(|@import", (out / name).read_text().partition("</style>")[0])


def test_pictures_are_in_the_pages_with_their_words(pages):
    stored = {path.stem: nbformat.read(path, 4).cells for path in (ROOT / "notebooks").glob("*.ipynb")}
    count = {name: sum("image/png" in o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs)
             for name, cells in stored.items()}
    shown = [picture for name, page in pages.items() if name for picture in page.pictures]
    assert len(shown) >= sum(count.values()) > 10
    for name in ("07_dynamic", "08_placement"):                                 # the last is the screenshot
        own = pages[f"{name}.html"].pictures
        assert len(own) == count[name] + 1 > 4 and all(len(p.get("alt", "")) > 20 for p in own)


def test_what_is_alive_in_jupyterlab_has_a_screenshot(pages):
    for path in (ROOT / "notebooks").glob("0[78]*.ipynb"):
        assert (ROOT / "notebooks" / "results" / "screens" / f"{path.stem}.png").stat().st_size < 150_000
        assert "is alive: see a picture" in (pages[""] / f"{path.stem}.html").read_text()
    assert "is alive: see a picture" in (pages[""] / "04_train.html").read_text()


def notebook(folder: Path, text: str, run: bool = True) -> Path:
    """A folder with one notebook."""
    output = new_output("display_data", {"image/png": base64.b64encode(b"\x89PNG").decode()},
                        metadata={"image/png": {"alt": "a dot"}})
    code = new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(1)", execution_count=1 if run else None, outputs=[output])
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell(text), code]), folder / "one.ipynb")
    return folder


def test_links_formulas_and_marks_of_a_page(tmp_path):
    text = ("# One & only\n\n**A promise.** See [two](#formula), [a file](data.yml), [nowhere](gone.txt), "
            "[the paper](https://doi.org/1).\n\n## Formula\n\n$$y = \\frac{x}{|w|}$$ costs `$5` and $x_1^2$")
    folder = notebook(tmp_path / "notebooks", text)
    (folder / "data.yml").write_text("a: 1")
    index, page = site.build(folder, tmp_path / "out")
    html = page.read_text()
    assert '<math display="block"><mrow><mi>y</mi><mo>=</mo><mfrac>' in html and "<code>$5</code>" in html
    assert '<math display="inline">' in html and "NBVAL" not in html and 'alt="a dot"' in html
    assert 'href="files/data.yml"' in html and (tmp_path / "out" / "files" / "data.yml").read_text() == "a: 1"
    assert 'the paper <span class="address">(https://doi.org/1)</span>' in html
    assert "nowhere" in html and "gone.txt" not in html
    assert "One &amp; only" in index.read_text() and "A promise." in index.read_text()


def test_what_cannot_be_a_page_is_a_sentence(tmp_path, capsys, monkeypatch):
    for text, run, said in (("no title", True, "doesn't begin with a title"), ("# T\n\n**P.**", False, "was not run"),
                            ("# T\n\n**P.**\n\n$\\bogus$", True, "'\\bogus' in the formula")):
        with pytest.raises(ValueError, match=re.escape(said)):
            site.build(notebook(tmp_path / "notebooks", text, run), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    monkeypatch.chdir(ROOT)
    assert site.main(["--out", str(tmp_path / "mine")]) == 2
    assert "holds other files than a site" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("tex, found", [
    (r"a \cdot \beta", "<mrow><mi>a</mi><mo>⋅</mo><mi>β</mi></mrow>"),
    (r"0 < x", "<mrow><mn>0</mn><mo>&lt;</mo><mi>x</mi></mrow>"),
    (r"x_{t+1}^2", "<msubsup><mi>x</mi><mrow><mi>t</mi><mo>+</mo><mn>1</mn></mrow><mn>2</mn></msubsup>"),
    (r"\text{if not}", "<mtext>if not</mtext>"), (r"\sqrt{v}", "<msqrt><mrow><mi>v</mi></mrow></msqrt>"),
    (r"\hat m", '<mover accent="true"><mi>m</mi><mo>^</mo></mover>'),
    (r"\begin{cases} x & 0 < x \\ 0 & \text{else}\end{cases}", "<mtd><mrow><mtext>else</mtext></mrow></mtd></mtr>")])
def test_formulas_become_mathml(tex, found):
    assert found in mathml(tex)


@pytest.mark.parametrize("tex, said", [(r"\frac{1}", "ends where something is due"), (r"{x", "lacks its }"),
                                       (r"\begin{array}{c}x\end{array}", "'array' in the formula")])
def test_a_formula_that_is_not_understood_is_a_sentence(tex, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        mathml(tex)
