"""The executed notebooks as a small static site: python -m fer_lib.site --out build/site

Pages open from disk without a network: style, pictures and formulas are in them, and no script. What moves in
JupyterLab is shown as a picture: those that the notebooks hold, and screenshots from notebooks/results/screens.
"""

import argparse
import base64
import re
import shutil
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat

from fer_lib.mathml import mathml
from fer_lib.workspace import find_workspace

STYLE = Path(__file__).with_name("site.css")
LINK = re.compile(r'(<a\s[^>]*?href=")([^"]*)("[^>]*>)(.*?)(</a>)', re.S)
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.S)


class SiteError(ValueError):
    """A page that can't be made; one sentence."""


@dataclass(frozen=True)
class Page:
    """One notebook. promise: the bold sentence below its title."""

    path: Path
    title: str
    promise: str
    cells: list

    @property
    def name(self) -> str:
        return f"{self.path.stem}.html"


def read_page(path: Path) -> Page:
    """Raises SiteError for a notebook without title, or with code that was not run."""
    notebook = nbformat.read(path, 4)
    first = notebook.cells[0].source if notebook.cells else ""
    found = re.match(r"# (.+)\n\n\*\*(.+?)\*\*", first, re.S)
    if not found:
        raise SiteError(f"'{path.name}' doesn't begin with a title and a promise in bold")
    if any(c.cell_type == "code" and c.source.strip() and not c.execution_count for c in notebook.cells):
        raise SiteError(f"'{path.name}' was not run to its end: run 'make notebooks' first")
    return Page(path, found[1].strip(), " ".join(found[2].split()), notebook.cells)


def build(notebooks: Path, out: Path) -> list[Path]:
    """Write the site into `out`, in place of what is there; the pages. Raises SiteError."""
    pages = [read_page(path) for path in sorted(notebooks.glob("*.ipynb"))]
    if not pages:
        raise SiteError(f"no notebooks in '{notebooks}'")
    if out.exists() and any(out.iterdir()) and not (out / "index.html").exists():
        raise SiteError(f"'{out}' holds other files than a site: choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    (out / "files").mkdir(parents=True)
    links = Links(notebooks, out, {page.path.name: page.name for page in pages})
    for k, page in enumerate(pages):
        before, after = pages[k - 1] if k else None, pages[k + 1] if k + 1 < len(pages) else None
        content = screen(page) + links.followed(body(page)) + turning(before, after)
        (out / page.name).write_text(shell(page.title, content, pages, page.name), encoding="utf-8")
    (out / "index.html").write_text(shell("The notebooks", index(pages), pages, "index.html"), encoding="utf-8")
    return [out / name for name in ("index.html", *(page.name for page in pages))]


class Links:
    """What a link in a notebook leads to on the site: another page, a copied file, or nowhere, then only words."""

    def __init__(self, notebooks: Path, out: Path, pages: dict[str, str]):
        self.notebooks, self.out, self.pages = notebooks, out, pages

    def followed(self, html: str) -> str:
        return LINK.sub(lambda m: self._one(m[1], m[2], m[3], m[4], m[5]), html)

    def _one(self, head: str, target: str, middle: str, words: str, tail: str) -> str:
        if re.match(r"[a-z]+:", target):                # the address stays readable, nothing is fetched
            return f'{words} <span class="address">({escape(target)})</span>'
        path, _, anchor = target.partition("#")
        if not path:
            return head + target + middle + words + tail
        if path in self.pages:
            return head + self.pages[path] + (f"#{anchor}" if anchor else "") + middle + words + tail
        source = self.notebooks / path
        if source.is_file():
            copy = self.out / "files" / source.name
            shutil.copyfile(source, copy)
            return f"{head}files/{copy.name}{middle}{words}{tail}"
        return words


def body(page: Page) -> str:
    """The notebook as HTML, without a page around it. Formulas are taken out before Markdown sees them."""
    from nbconvert import HTMLExporter

    notebook, formulas = nbformat.v4.new_notebook(cells=[nbformat.from_dict(c) for c in page.cells]), []

    def keep(m: re.Match) -> str:
        formulas.append(mathml(m[1] or m[2], display=m[1] is not None))
        return f"FORMULA{len(formulas) - 1}HERE"

    for cell in notebook.cells:
        if cell.cell_type == "code":                    # what only the test suite reads
            cell.source = re.sub(r"\A# NBVAL_\w+\n", "", cell.source)
        if cell.cell_type == "markdown":
            parts = re.split(r"(```.*?```|`[^`\n]*`)", cell.source, flags=re.S)
            cell.source = "".join(p if k % 2 else MATH.sub(keep, p) for k, p in enumerate(parts))
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(notebook)
    return re.sub(r"FORMULA(\d+)HERE", lambda m: formulas[int(m[1])], html)


def screen(page: Page) -> str:
    """A screenshot of what moves on the page, where there is one: its own, or the live view's."""
    results = page.path.parent / "results"
    path = results / "screens" / f"{page.path.stem}.png"
    if not path.exists() and any("watch(run)" in cell.source for cell in page.cells):
        path = results / "live_view.png"
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return ('<details class="screen"><summary>In JupyterLab a part of this page is alive: see a picture of it</summary>'
            f'<img src="data:image/png;base64,{data}" alt="Screenshot of the interactive part of this notebook in '
            'JupyterLab"></details>')


def turning(before: Page | None, after: Page | None) -> str:
    links = [f'<a href="{page.name}" rel="{rel}">{arrow.format(escape(page.title))}</a>'
             for page, rel, arrow in ((before, "prev", "← {}"), (after, "next", "{} →")) if page]
    return f'<nav class="turn" aria-label="pages before and after">{" ".join(links)}</nav>'


def index(pages: list[Page]) -> str:
    rows = "".join(f'<li><a href="{page.name}">{escape(page.title)}</a><br>{escape(page.promise)}</li>'
                   for page in pages)
    return ("<h1>Noise injection in facial expression recognition</h1><p>The study kit's notebooks, as they were run, "
            "to read without installing anything. To change a setting and run them, install the kit and start "
            f"<code>make lab</code>.</p><ol class='index'>{rows}</ol>")


def shell(title: str, content: str, pages: list[Page], here: str) -> str:
    """A whole page with the list of all beside it."""
    from pygments.formatters import HtmlFormatter

    current = ' aria-current="page"'
    entries = [("index.html", "Overview"), *((page.name, page.title) for page in pages)]
    items = "".join(f'<li><a href="{name}"{current if name == here else ""}>{escape(words)}</a></li>'
                    for name, words in entries)
    style = STYLE.read_text() + HtmlFormatter(style="default").get_style_defs(".highlight")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>'
            f'<a class="skip" href="#content">skip to the text</a><nav class="pages" aria-label="all pages">'
            f'<ul>{items}</ul></nav><main id="content">{content}</main></body></html>')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.site", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/site"), help="folder of the site (default: build/site)")
    args = parser.parse_args(argv)
    try:
        pages = build(find_workspace().root / "notebooks", args.out)
    except ImportError as error:
        print(f"site: the package {error.name} is missing: pip install '.[lab]'", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"site: {error}", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages; open {pages[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
