"""Reads plain values from MATLAB files of version 5 (.mat up to MATLAB 7): numbers, texts, cells and structs.

    read_mat(path, ["annotations"])     # {"annotations": [{"fname": "00001.jpg", "class": array([14])}, ...]}

scipy.io.loadmat reads the same and more, but flipped bits in such a file can crash the process (a segmentation fault,
seen with scipy 1.17.1). Here every size is checked against the bytes that are there. Objects and
function handles are refused; nothing in a file is evaluated.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.packed import DataError

MAX_BYTES = 64 << 20  # of a file, and of what its compressed parts hold
MAX_DEPTH = 8  # cells in cells

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {16: "utf-8", 17: "utf-16"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)


def read_mat(path: Path, wanted: Sequence[str]) -> dict[str, object]:
    """The wanted variables that are there, in MATLAB's order (columns first).

    A struct array is a list of dicts, a cell array a list, a text a str, and numbers are a flat array. DataError for a
    file that is damaged or of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file")
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MB")
    if content.startswith(b"\x89HDF") or content[:19] == b"MATLAB 7.3 MAT-file":
        raise DataError(f"{path} is a .mat file of version 7.3; save it in MATLAB with '-v7'")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise DataError(f"{path} is no .mat file of version 5 to 7")
    try:
        return _Reader(order).variables(content[128:], wanted)
    except _DamagedError as error:
        raise DataError(f"{path} is damaged: {error}") from error


class _DamagedError(ValueError):
    """What is wrong in the bytes."""


@dataclass(frozen=True)
class _Element:
    type: int
    data: bytes


class _Reader:
    """Elements of one file; `order` is that of its bytes, "<" or ">"."""

    def __init__(self, order: str) -> None:
        self._order, self._left = order, MAX_BYTES

    def variables(self, content: bytes, wanted: Sequence[str]) -> dict[str, object]:
        found = {}
        for element in self._elements(content):
            if element.type == _COMPRESSED:
                inner = self._elements(self._decompress(element.data))
                if len(inner) != 1:
                    raise _DamagedError("a compressed variable is not one matrix")
                element = inner[0]
            if element.type == _MATRIX and element.data:
                parts = self._elements(element.data)
                name = parts[2].data.decode("latin-1") if len(parts) > 2 else ""
                if name in wanted:
                    if name in found:
                        raise _DamagedError(f"the variable {name} is there twice")
                    found[name] = self._matrix(parts, 0)
        return found

    def _decompress(self, data: bytes) -> bytes:
        machine = zlib.decompressobj()
        try:
            content = machine.decompress(data, self._left)
        except zlib.error as error:
            raise _DamagedError(str(error)[:80]) from error
        if machine.unconsumed_tail:
            raise _DamagedError(f"more than {MAX_BYTES >> 20} MB when unpacked")
        if not machine.eof:
            raise _DamagedError("a compressed variable ends too early")
        self._left -= len(content)
        return content

    def _elements(self, data: bytes) -> list[_Element]:
        """The elements that follow each other in `data`, each padded to 8 bytes."""
        found, at = [], 0
        while at < len(data):
            if len(data) - at < 8:
                raise _DamagedError("an element ends too early")
            first, size = struct.unpack_from(self._order + "II", data, at)
            if first >> 16:  # small: type, size and up to 4 bytes share 8 bytes
                kind, size, start, following = first & 0xFFFF, first >> 16, at + 4, at + 8
                if size > 4:
                    raise _DamagedError("a small element is too large")
            else:
                kind, start = first, at + 8
                following = start + size + (-size % 8 if kind != _COMPRESSED else 0)
            if start + size > len(data):
                raise _DamagedError("an element ends too early")
            found.append(_Element(kind, data[start : start + size]))
            at = following
        return found

    def _matrix(self, parts: list[_Element], depth: int) -> object:
        """The value of a matrix from its elements: flags, dimensions, name, contents."""
        if not parts:
            return np.zeros(0)
        if depth > MAX_DEPTH or len(parts) < 3 or len(parts[0].data) != 8:
            raise _DamagedError("a matrix without its flags, or nested too deeply")
        kind = struct.unpack_from(self._order + "I", parts[0].data)[0] & 0xFF
        shape = self._numbers(parts[1])
        if (shape < 0).any() or len(shape) < 2:
            raise _DamagedError("a matrix without dimensions")
        count, contents = int(np.prod(shape, dtype=object)), parts[3:]
        if kind == _CELL:
            return self._inner(contents, count, depth)
        if kind == _STRUCT:
            return self._structs(contents, count, depth)
        if kind == _CHAR:
            return self._text(contents, count)
        if kind in _NUMERIC:
            return self._numeric(contents, count)
        raise _DamagedError(f"holds more than numbers, texts, cells and structs (class {kind})")

    def _inner(self, contents: list[_Element], count: int, depth: int) -> list:
        if len(contents) != count or any(one.type != _MATRIX for one in contents):
            raise _DamagedError(f"{len(contents)} values where {count} are announced")
        return [self._matrix(self._elements(one.data), depth + 1) for one in contents]

    def _structs(self, contents: list[_Element], count: int, depth: int) -> list[dict]:
        if len(contents) < 2 or len(width := self._numbers(contents[0])) != 1 or width[0] < 1:
            raise _DamagedError("a struct without the names of its fields")
        joined, width = contents[1].data, int(width[0])
        fields = [joined[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(joined), width)]
        if len(set(fields)) != len(fields):
            raise _DamagedError("a struct has a field twice")
        values = self._inner(contents[2:], count * len(fields), depth)
        n = len(fields)
        return [dict(zip(fields, values[at : at + n], strict=True)) for at in range(0, len(values), n or 1)]

    def _text(self, contents: list[_Element], count: int) -> str:
        if not contents and not count:
            return ""
        (element,) = contents if len(contents) == 1 else [_Element(0, b"")]
        if element.type in _TEXTS:
            byte_order = "" if element.type == 16 else "-le" if self._order == "<" else "-be"
            text = element.data.decode(_TEXTS[element.type] + byte_order, "replace")
        else:
            codes = self._numbers(element)
            if codes.dtype.kind not in "iu" or (codes < 0).any() or (codes > 0xFFFF).any():
                raise _DamagedError("a text of no characters")
            text = "".join(map(chr, codes.tolist())).encode("utf-16", "replace").decode("utf-16", "replace")
        if len(text) != count:
            raise _DamagedError(f"a text of {len(text)} characters where {count} are announced")
        return text

    def _numeric(self, contents: list[_Element], count: int) -> np.ndarray:
        if len(contents) != 1:
            raise _DamagedError("a matrix of numbers without them, or of complex ones")
        values = self._numbers(contents[0])
        if len(values) != count:
            raise _DamagedError(f"{len(values)} numbers where {count} are announced")
        return values

    def _numbers(self, element: _Element) -> np.ndarray:
        if element.type not in _NUMBERS:
            raise _DamagedError(f"an element of type {element.type} where numbers are needed")
        dtype = np.dtype(self._order + _NUMBERS[element.type])
        if len(element.data) % dtype.itemsize:
            raise _DamagedError("a number is cut off")
        return np.frombuffer(element.data, dtype)
