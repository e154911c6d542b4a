"""The audit's files: audit.html for people, contact_sheets/ with some images of each class, audit.json for programs.

The page holds its pictures itself and needs no network. Pictures show the packed images, so these files lie beside
them and are as private as they are.
"""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep import disk
from data_prep.audit import Audit, Check
from data_prep.packed import SHEET_NAME, SHEETS, SPLITS

SEED = 0  # of which images a sheet shows
PER_SPLIT, COLUMNS = 24, 12  # images of a class and split on a sheet, at most, and in a row
ALL_TILES = 3000  # images on all sheets together, so that a thousand classes do not make a page of a gigabyte
TILE = 64  # pixels at most
EXAMPLES, IN_EXAMPLE = 8, 4  # groups of images that a finding shows, and images of each
ROWS = 20  # of a finding's table

_MARKS = {"ok": "fine", "found": "found", "note": "note", "skipped": "not looked at"}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --found: #b3261e; --ok: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --found: #ff8a80; --ok: #7bd69b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.found { color: var(--found); font-weight: 600; } .ok { color: var(--ok); }
figure { display: inline-block; margin: .3rem .8rem .8rem 0; vertical-align: top; }
figcaption { font-size: .8rem; max-width: 22rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
"""


def write_audit(audit: Audit, out: Path) -> None:
    """Writes the files into `out`, audit.json last: where it is, the others are whole."""
    pictures = {split: _open(audit.directory / split / "images.npy") for split in SPLITS}
    with disk.writing(out):
        (out / SHEETS).mkdir(parents=True, exist_ok=True)
        (out / "audit.json").unlink(missing_ok=True)
        for path in (out / SHEETS).iterdir():
            if SHEET_NAME.fullmatch(path.name):
                path.unlink()
    sheets = []
    for label, name in enumerate(audit.manifest["classes"]):
        counts, sheet = contact_sheet(audit, pictures, label)
        if sheet is None:
            continue
        path = out / SHEETS / f"{label:03d}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:60]}.png"
        disk.write_file(path, [_encoded(sheet, "PNG")], scratch=True)
        sheets.append((name, counts, sheet))
    page = "".join(_page(audit, pictures, sheets))
    disk.write_file(out / "audit.html", [page.encode("utf-8", "replace")])
    disk.write_json(out / "audit.json", audit.as_json())


# --- pictures -------------------------------------------------------------------------------------------------------


def _open(path: Path) -> np.ndarray:
    with suppress(ValueError):  # an empty file cannot be mapped
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return np.load(path, allow_pickle=False)


def contact_sheet(
    audit: Audit, pictures: dict[str, np.ndarray], label: int
) -> tuple[dict[str, int], Image.Image | None]:
    """Images of a class, drawn by seed from each split and shown in the order of the set: train above val above test.

    Returns how many are shown of each split, and the sheet (None if the class has no image).
    """
    shown, rows = {}, []
    most = min(PER_SPLIT, max(ALL_TILES // (len(SPLITS) * len(audit.manifest["classes"])), 1))
    for number, split in enumerate(SPLITS):
        here = audit.images[(audit.images["split"] == split) & (audit.images["label"] == label)]["row"].to_numpy()
        drawn = np.random.default_rng([SEED, number, label]).permutation(len(here))[:most]
        tiles = [tile(pictures[split][row]) for row in here[np.sort(drawn)]]
        rows += [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)] + [[]] * bool(tiles)
        shown[split] = len(tiles)
    return shown, (_pasted(rows[:-1]) if rows else None)


def tile(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W) as a picture of at most TILE pixels a side; other than 1 or 3 channels are averaged to grey."""
    if len(image) == 3:
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    else:
        picture = Image.fromarray(image[0] if len(image) == 1 else image.mean(0).astype(np.uint8))
    if max(picture.size) > TILE:
        picture.thumbnail((TILE, TILE), Image.Resampling.BILINEAR)
    return picture.convert("RGB")


def _pasted(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Tiles of one size in rows, two pixels apart; an empty row is a gap."""
    width, height = next(one.size for row in rows for one in row)
    tops = np.cumsum([0, *(height + 2 if row else 8 for row in rows)])
    sheet = Image.new("RGB", (max(map(len, rows)) * (width + 2), int(tops[-1])), (128, 128, 128))
    for top, row in zip(tops.tolist(), rows):
        for column, one in enumerate(row):
            sheet.paste(one, (column * (width + 2), top))
    return sheet


def _encoded(picture: Image.Image, format: str) -> bytes:
    red, green, blue = (band.tobytes() for band in picture.split())
    buffer = io.BytesIO()
    picture = picture.convert("L") if red == green == blue else picture
    picture.save(buffer, format, **({"quality": 88} if format == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def _img(picture: Image.Image, alt: str) -> str:
    content = base64.b64encode(_encoded(picture, "JPEG")).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/jpeg;base64,{content}" {size} alt="{_text(alt)}"/>'


# --- the page -------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Escaped, without control characters and halves of characters, which names from a disk may contain."""
    return escape(re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(value)))


def _page(audit: Audit, pictures: dict[str, np.ndarray], sheets: Sequence[tuple]) -> Iterator[str]:
    title = _text(f"Audit of {audit.manifest['title']}")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
    yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    yield from _overview(audit)
    for name in audit.found:
        yield from _finding(audit, pictures, name, audit.checks[name])
    yield "<h2>Some images of each class</h2>\n<p>Drawn by seed, train above val above test. Does each row show its "
    yield "class, and do the splits look alike?</p>\n"
    for name, counts, sheet in sheets:
        shown = ", ".join(f"{count} of {split}" for split, count in counts.items() if count)
        yield f"<figure>{_img(sheet, f'images of the class {name}: {shown}')}"
        yield f"<figcaption>{_text(name)}: {shown}</figcaption></figure>\n"
    yield "</main>\n</body>\n</html>\n"


def _overview(audit: Audit) -> Iterator[str]:
    counts = audit.images["split"].value_counts()
    sizes = ", ".join(f"{split} {counts.get(split, 0):,}" for split in SPLITS)
    made = "These faces are drawn, of no real person." if audit.manifest.get("drawn") else ""
    yield f"<p>{sizes} images, content <code>{_text(audit.manifest['content_sha256'][:12])}</code>. {made}</p>\n"
    yield f"<p><strong>{len(audit.found)} of {len(audit.checks)} checks found something.</strong> "
    yield "Nearly equal images are found by likeness: look at the pictures before you believe them.</p>\n"
    yield "<table>\n<thead><tr><th>check</th><th>result</th><th>what it says</th></tr></thead>\n<tbody>\n"
    for name, check in audit.checks.items():
        linked = f'<a href="#{name}">{_text(check.title)}</a>' if check.status == "found" else _text(check.title)
        yield f'<tr><td>{linked}</td><td class="{check.status}">{_MARKS[check.status]}</td>'
        yield f"<td>{_text(check.sentence)}</td></tr>\n"
    yield "</tbody>\n</table>\n<h2>Images by class</h2>\n"
    yield from _class_counts(audit)
    before = audit.manifest.get("dropped", {})
    if before:
        reasons = "; ".join(f"{n:,} x {why}" for why, n in before.items())
        yield f"<p>Left out while packing: {_text(reasons)}.</p>\n"


def _class_counts(audit: Audit) -> Iterator[str]:
    found, published = audit.numbers["class_counts"], audit.numbers["published"]
    table = pd.DataFrame({split: found[split] for split in SPLITS}).rename_axis("class").reset_index()
    for split in SPLITS:
        if published.get(split):
            table[f"{split}, published"] = table["class"].map(published[split]).astype("Int64")
    yield from _table(table)


def _finding(audit: Audit, pictures: dict[str, np.ndarray], name: str, check: Check) -> Iterator[str]:
    yield f'<h2 id="{name}">{_text(check.title)}</h2>\n<p>{_text(check.sentence)}.</p>\n'
    for group in _examples(check.rows):
        strip = _pasted([[tile(pictures[split][row]) for split, row, _ in group]])
        words = [f"{split} {row}" + (f" ({label})" if label else "") for split, row, label in group]
        yield f"<figure>{_img(strip, 'images ' + ', '.join(words))}"
        yield f"<figcaption>{_text((' ~ ' if name.startswith('near') else ' = ').join(words))}</figcaption></figure>\n"
    yield from _table(check.rows.head(ROWS))
    if len(check.rows) > ROWS:
        yield f"<p>and {len(check.rows) - ROWS:,} more: <code>audit_packed(...).rows('{name}')</code></p>\n"


def _examples(rows: pd.DataFrame) -> list[list[tuple[str, int, str]]]:
    """Groups of (split, row, class) to show side by side."""
    if not {"split", "row"} <= set(rows):
        return []
    shown = rows.assign(**{"class": rows["class"] if "class" in rows else ""})
    if "equals_split" in rows:
        pairs = shown.head(EXAMPLES).to_dict("records")
        return [[(r["split"], r["row"], r["class"]), (r["equals_split"], r["equals_row"], r["equals_class"])]
                for r in pairs]  # fmt: skip
    key = next((name for name in ("copies", "near") if name in rows), None)
    grouped = [part for _, part in shown.groupby(key, sort=False)][:EXAMPLES] if key else []
    grouped = grouped or [shown.iloc[[i]] for i in range(min(EXAMPLES, len(shown)))]
    return [list(part[["split", "row", "class"]].head(IN_EXAMPLE).itertuples(index=False)) for part in grouped]


def _table(rows: pd.DataFrame) -> Iterator[str]:
    if not len(rows):
        return
    yield "<table>\n<thead><tr>" + "".join(f"<th>{_text(name)}</th>" for name in rows) + "</tr></thead>\n<tbody>\n"
    for row in rows.itertuples(index=False):
        yield "<tr>" + "".join(_cell(value) for value in row) + "</tr>\n"
    yield "</tbody>\n</table>\n"


def _cell(value: object) -> str:
    if isinstance(value, int | np.integer):
        return f'<td class="number">{value:,}</td>'
    if isinstance(value, float | np.floating):
        return f'<td class="number">{value:g}</td>'
    return f"<td>{_text('' if value is pd.NA else value)}</td>"
