"""Tables of image paths and labels: csv in the dialects that people really have, and parquet.

    table = read_table(path, ["image", "label"])
    table.rows["label"], table.rows["_row"]      # text, and the line of each row (1 = the header)
    table.dropped                                # a record for every line that could not be used

Only the wanted columns are kept, one line in memory at a time. One line is one row: a quoted field cannot hold a line
end, so that a lone quote costs its own line and no other. Nothing in a table is ever evaluated.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.packed import DataError, Dropped, Rejected, file_sha256
from data_prep.paths import shown

MAX_LINE_BYTES = 1 << 20  # 100 times what a row with a face's landmarks needs
DELIMITERS = (",", "\t", ";", "|")
PARQUET_ROWS = 65_536  # read at once

_SAMPLED_LINES = 20


@dataclass(frozen=True)
class Table:
    """What was read: `name` as in dropped.parquet, its `sha256`, `rows` (text columns and the int64 `_row`), the lines
    that were dropped, and what a user should know about the reading."""

    name: str
    sha256: str
    rows: pd.DataFrame
    dropped: list[Dropped]
    notes: tuple[str, ...] = ()


def read_table(
    path: Path,
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    without_header: Sequence[str] = (),
    delimiter: str = "",
    name: str = "",
    split_up: tuple[str, int] = ("", 1),
) -> Table:
    """The wanted columns (any case, spaces around allowed) and those optional ones that are there, as text.

    `without_header` names all columns of a csv that has no header; it is used if none of these names is in the first
    line. `delimiter` is guessed if it is not given; a space stands for any run of white space. `split_up` = (column, n)
    says that some copies cut the column's values into n fields. DataError if the file is no such table or lacks a
    wanted column, and then the sentence says which it has.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file")
    name = name or path.name
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path, wanted, optional, name)
    return _read_csv(path, wanted, optional, list(without_header), delimiter, name, split_up)


def table_columns(path: Path) -> list[str]:
    """The names of a table's columns; DataError if it has none."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return [str(column) for column in _open_parquet(path).schema_arrow.names]
    lines = first_lines(path)
    return [field.strip() for field in split_line(lines[0], _delimiter(lines)) or []]


def numbers(column: pd.Series) -> np.ndarray:
    """Text -> float64; NaN for what is no finite number."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    cut = column.astype("string").str.contains("\0", regex=False, na=False)  # pandas < 3.1 reads a text up to its NUL
    return np.where(np.isfinite(values) & ~cut.to_numpy(bool), values, np.nan)


def _places(path: Path, columns: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Wanted name -> position; an optional column that is missing is left out."""
    names = [column.strip().casefold() for column in columns]
    missing = [name for name in wanted if name.strip().casefold() not in names]
    if missing:
        found = ", ".join(shown(column.strip()) for column in columns)[:200] or "nothing"
        raise DataError(f"{path} has no column {missing[0]!r}; it has: {found}")
    places = {}
    for name in (*wanted, *optional):
        here = [place for place, column in enumerate(names) if column == name.strip().casefold()]
        if len(here) > 1:
            raise DataError(f"{path} has the column {name!r} {len(here)} times; rename all but one")
        if here:
            places[name] = here[0]
    return places


# --- csv ------------------------------------------------------------------------------------------------------------


def _read_csv(
    path: Path,
    wanted: Sequence[str],
    optional: Sequence[str],
    bare: list[str],
    delimiter: str,
    name: str,
    split_up: tuple[str, int],
) -> Table:
    lines = first_lines(path)
    delimiter = delimiter or _delimiter(lines)
    header = [field.strip() for field in split_line(lines[0], delimiter) or []]
    with_header = not bare or bool({column.casefold() for column in header} & {column.casefold() for column in bare})
    columns = header if with_header else bare
    column, parts = split_up
    while parts > 1 and len(columns) > 1 and not columns[-1]:
        columns.pop()  # a spreadsheet pads the header to the width of the rows
    places = _places(path, columns, wanted, optional)
    reader = _CsvReader(path, delimiter, len(columns), places)
    if column in columns:
        reader.split_up = columns.index(column), parts
    rows = reader.read(skip_header=with_header)
    notes = ()
    if reader.latin_lines:
        notes = (f"{name}: {reader.latin_lines:,} line(s) are not UTF-8 and were read as Latin-1",)
    dropped = [Dropped("", name, line, why) for line, why in reader.faults]
    return Table(name, reader.digest.hexdigest(), rows, dropped, notes)


class _CsvReader:
    """One pass over a csv: its hash, its rows, its faults (line, why), and how many lines were not UTF-8."""

    def __init__(self, path: Path, delimiter: str, width: int, places: dict[str, int]) -> None:
        self._path, self._delimiter, self._width, self._places = path, delimiter, width, places
        self.digest, self.faults, self.latin_lines = hashlib.sha256(), [], 0
        self.split_up = 0, 1  # the place of a column, and the number of fields that its value may be cut into

    def read(self, skip_header: bool) -> pd.DataFrame:
        columns: dict[str, list[str]] = {name: [] for name in self._places}
        row_lines = []
        for line, text in self._lines():
            fields = self._fields(line, text) if line > 1 or not skip_header else None
            if fields is not None:
                row_lines.append(line)
                for name, place in self._places.items():
                    columns[name].append(fields[place].strip())
        return _text_frame(columns, row_lines)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines; of one that is too long only the start."""
        with open(self._path, "rb") as file:
            line = 0
            while text := file.readline(MAX_LINE_BYTES + 1):
                line += 1
                self.digest.update(text)
                rest = text
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 1)
                    self.digest.update(rest)
                yield line, text

    def _fields(self, line: int, text: bytes) -> list[str] | None:
        """A row's fields; None for a blank line and for one that goes to `faults`."""
        if len(text) > MAX_LINE_BYTES:
            self.faults.append((line, Rejected("line is too long", f"over {MAX_LINE_BYTES >> 20} MB")))
            return None
        decoded, latin = _decode(text)
        self.latin_lines += latin
        decoded = decoded.removeprefix("\ufeff").rstrip("\r\n")
        if not decoded.strip():
            return None
        fields = split_line(decoded, self._delimiter)
        place, parts = self.split_up
        if fields and parts > 1 and len(fields) == self._width + parts - 1:
            fields[place : place + parts] = [";".join(fields[place : place + parts])]
        if fields is None:
            self.faults.append((line, Rejected("quotes do not match", shown(decoded[:60]))))
        elif len(fields) != self._width:
            self.faults.append((line, Rejected("wrong number of fields", f"{len(fields)} instead of {self._width}")))
            return None
        return fields


def split_line(text: str, delimiter: str) -> list[str] | None:
    """The fields of one csv line, quotes removed; None where they make no sense. " " = any white space, no quotes."""
    if delimiter == " ":
        return text.split()
    if '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return None


def _decode(text: bytes) -> tuple[str, bool]:
    """A line as text, and whether it was Latin-1."""
    try:
        return text.decode("utf-8"), False
    except UnicodeDecodeError:
        return text.decode("latin-1"), True


def first_lines(path: Path) -> list[str]:
    """The first lines that are not blank, to sniff at; DataError for what is no csv in a usable encoding."""
    with open(path, "rb") as file:
        start = file.read(MAX_LINE_BYTES)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; save it as csv in UTF-8")
    if b"\r" in start and b"\n" not in start:
        raise DataError(f"{path} has the line ends of old Macintosh files; save it anew with usual ones")
    lines = [_decode(line)[0].removeprefix("\ufeff").rstrip("\r") for line in start.split(b"\n")[:_SAMPLED_LINES]]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def _delimiter(lines: Sequence[str]) -> str:
    """The one that cuts all sampled lines into equally many fields, else the most frequent one of the first line."""
    for delimiter in DELIMITERS:
        widths = {len(split_line(line, delimiter) or []) for line in lines}
        if len(widths) == 1 and min(widths) > 1:
            return delimiter
    return max(DELIMITERS, key=lines[0].count)


def _text_frame(columns: dict[str, list[str]], lines: Iterable[int]) -> pd.DataFrame:
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    return frame.assign(_row=np.array(list(lines), np.int64))


# --- parquet --------------------------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no readable parquet file: {str(error).partition(chr(10))[0][:120]}") from error


def _read_parquet(path: Path, wanted: Sequence[str], optional: Sequence[str], name: str) -> Table:
    """Values become text, so that both kinds of tables are checked in one way; the first row is line 2, as in a csv."""
    with _open_parquet(path) as file:
        names = [str(column) for column in file.schema_arrow.names]
        places = _places(path, names, wanted, optional)
        _refuse_nested(path, file.schema_arrow, places)
        columns: dict[str, list[str]] = {column: [] for column in places}
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=[names[place] for place in places.values()]):
                for column, place in places.items():
                    columns[column] += [_cell(value) for value in batch[names[place]].to_pylist()]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {str(error).partition(chr(10))[0][:120]}") from error
    rows = len(next(iter(columns.values()), []))
    return Table(name, file_sha256(path), _text_frame(columns, range(2, rows + 2)), [])


def _refuse_nested(path: Path, schema: pa.Schema, places: Mapping[str, int]) -> None:
    """DataError for a column whose cells are no text and no numbers; Hugging Face stores images so."""
    for name, place in places.items():
        kind = schema.field(place).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            raise DataError(
                f"{path}: the column {name!r} holds the images themselves, as Hugging Face's files do, and a table "
                "here holds paths; write each cell's 'bytes', which are a whole image file, to CLASS/NUMBER.jpg and "
                "pack that folder with image_folder (what numbers of classes mean is in the data set's card)"
            )
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            what = f"{str(kind)[:60]} in each cell instead of text or a number"
            raise DataError(f"{path}: the column {name!r} holds {what}")


def _cell(value: object) -> str:
    """A parquet value as text: missing = "", 3.0 = "3"."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
