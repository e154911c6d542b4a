"""EmotioNet: action units of photographs from the web; a table of addresses, the images downloaded by yourself.

    EmotioNet_FACS_aws_2020_24600.csv     columns URL, "URL orig", "'AU 1'", ...; 999 = unknown; quotes in odd places
    images/N_0000000001_00001.jpg         below --images: the file name is the last part of URL (or of URL orig)

The automatically labelled lists (tab-separated: URL, URL orig, AU 1 ... AU 60, no header) are read as well; that layout
is from descriptions only. Many addresses are dead, so rows without a file are left out by rule. Two addresses may end
in the same file name: then nobody knows whose image lies there, and all of these rows are left out. Nothing is
downloaded here. No official split: val and test are shares.
"""

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import image_files
from data_prep.action_units import NO_UNIT, NOTE, add_label_argument, labelled_by_unit
from data_prep.detect import Layout
from data_prep.image_files import plan_images, source_folder
from data_prep.packed import DataError, Dropped, Plan, Rejected
from data_prep.paths import Located, Root, shown
from data_prep.tables import Table, read_table, table_columns

UNITS = (1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26, 43)
LICENCE = "Research by a signed agreement; the photographs belong to their owners."
ACCESS = "By request to Ohio State University (A. Martinez, cbcsl.ece.ohio-state.edu/EmotionNetChallenge)."
VALUES = {"0": 0.0, "1": 1.0, "999": np.nan, "": np.nan}
DEAD = Rejected("image was not downloaded (dead address)", bad=False)
WITHOUT_HEADER = ["URL", "URL orig", *(f"AU {number}" for number in range(1, 61))]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of EmotioNet."""
    image_files.add_arguments(parser)
    parser.set_defaults(test_share=0.1)
    parser.add_argument("--images", type=Path, metavar="DIR", help="the downloaded images (images beside the table)")
    add_label_argument(parser)


def plan(options: Namespace) -> Plan:
    """What to pack; DataError if the table lacks a column or the images are not there."""
    source = _table(options.source)
    columns = _columns(source)
    bare = [] if "URL" in columns else WITHOUT_HEADER
    wanted = (
        [columns[name] for name in _wanted(columns)] if not bare else [name for name in _wanted(dict.fromkeys(bare))]
    )
    table = read_table(source, wanted, without_header=bare, delimiter="\t" if bare else "")
    given = table.rows.rename(columns={columns[name]: name for name in columns}) if not bare else table.rows
    root = source_folder(options.images or source.parent / "images")
    rows, dropped = _rows(table, given, root)
    units = [unit for unit in UNITS if f"au{unit}" in rows]
    naming, rows, unknown = labelled_by_unit(rows, options.label_au, units)
    return plan_images(
        options,
        rows,
        naming=naming,
        root=root,
        name="emotionet",
        title="EmotioNet, action units",
        licence=LICENCE,
        release="list without header" if bare else "table of addresses and action units",
        dropped=[*table.dropped, *dropped, *unknown],
        files={table.name: table.sha256},
        settings={"label_au": options.label_au},
        notes=[*([] if options.label_au else [NOTE]), *table.notes],
    )


def detect(path: Path) -> Layout | None:
    """A table with addresses and action units."""
    source = _table(path)
    found = _columns(source)
    known = "URL" in found and any(name.startswith("AU") for name in found)
    return Layout(f"{source.name} with URL and {len(found) - 1} more", ("--source", str(path))) if known else None


def _table(path: Path) -> Path:
    """The table, named itself or alone in a folder."""
    if path.is_dir():
        found = [child for child in sorted(path.iterdir()) if child.suffix.lower() in (".csv", ".txt", ".xlsx")]
        named = [child for child in found if "emotionet" in child.name.lower()] or found
        tables = [child for child in named if child.suffix.lower() != ".xlsx"] or named
        if len(tables) != 1:
            raise DataError(f"{path} holds {len(tables)} tables: name the one to read by --source FILE")
        path = tables[0]
    if path.suffix.lower() in (".xlsx", ".xls"):
        raise DataError(f"{path} is a spreadsheet: save it as csv in UTF-8")
    if not path.is_file():
        raise DataError(f"--source {path} does not exist")
    return path


def _columns(source: Path) -> dict[str, str]:
    """ "URL", "URL orig", "AU 1", ... -> the column as the table spells it, with quotes and spaces."""
    found: dict[str, str] = {}
    for column in table_columns(source):
        plain = " ".join(re.sub(r"['\"]", " ", column).split())
        unit = re.fullmatch(r"AU\s*0*(\d{1,2})", plain, re.IGNORECASE | re.ASCII)
        name = (
            f"AU {unit[1]}" if unit else {"url": "URL", "url orig": "URL orig"}.get(plain.casefold().replace("_", " "))
        )
        if name in found:
            raise DataError(f"{source} has the column {name} twice")
        if name:
            found[name] = column
    return found


def _wanted(columns: dict) -> list[str]:
    return [name for name in ("URL", "URL orig", *(f"AU {unit}" for unit in UNITS)) if name in columns]


def _plain(cell: str) -> str:
    """A cell without the quotes of its own."""
    return cell.strip().strip("'\"").strip()


def _file_name(address: str) -> str:
    """The last part of an address, as a download names the file; "" if there is none."""
    name = re.split(r"[?#]", _plain(address))[0].rstrip("/").rpartition("/")[2]
    return name if name not in (".", "..") and not set(name) & {"/", "\\", "\0"} else ""


def _rows(table: Table, given: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[Dropped]]:
    """The rows whose image is there, and why the others are not."""
    folder, dropped, kept = Root(root), [], []
    units = [unit for unit in UNITS if f"AU {unit}" in given]
    if not units:
        raise DataError(f"{table.name} has no columns of action units ('AU 1', ...)")
    addresses = [name for name in ("URL", "URL orig") if name in given]
    names = [list(dict.fromkeys(filter(None, map(_file_name, cells)))) for cells in given[addresses].to_numpy(object)]
    times = Counter(name for here in names for name in here)
    for i, here in enumerate(names):
        cells = [_plain(given[f"AU {unit}"].iat[i]) for unit in units]
        cells = [re.sub(r"\.0+$", "", cell) for cell in cells]
        found = [name for name in here if isinstance(folder.locate(name), Located)]
        wrong = next((cell for cell in cells if cell not in VALUES), None)
        if not here:
            why = Rejected("address without a file name", shown(_plain(given["URL"].iat[i])))
        elif not found:
            refused = folder.locate(here[0])
            why = DEAD if refused.reason == "image file is missing" else refused
        elif times[found[0]] > 1:
            why = Rejected("several addresses end in this file name", shown(found[0]))
        elif wrong is not None:
            why = Rejected("action unit is not 0, 1 or 999", shown(wrong))
        else:
            why = NO_UNIT if all(np.isnan(VALUES[cell]) for cell in cells) else None
        row = int(given["_row"].iat[i])
        if why:
            dropped.append(Dropped("", table.name, row, why))
        else:
            values = {f"au{unit}": VALUES[cell] for unit, cell in zip(units, cells, strict=True)}
            kept.append({"path": found[0], "file": table.name, "row": row, **values})
    columns = [f"au{unit}" for unit in units]
    return pd.DataFrame(kept, columns=["path", "file", "row", *columns]).astype(
        dict.fromkeys(columns, np.float32)
    ), dropped
