"""One value in a small .npy file, read a million times: parsed here, without pickle, header by header from a cache.

numpy.load takes most of its time to parse the header, of which a data set has a handful of different ones. Arrays of
objects are refused as by numpy.load(allow_pickle=False): nothing is ever unpickled.
"""

import io
import os
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy_format

from data_prep.packed import Rejected

MAX_BYTES = 4096  # of a file with one value
FAULT = "annotation is no single value"
PICKLED = "annotation holds pickled objects"

_OPEN = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read_value(path: str) -> str | Rejected:
    """The single number or text in a .npy file, as text; links are not followed. FileNotFoundError without a file."""
    try:
        file = os.open(path, _OPEN)
    except FileNotFoundError:
        raise
    except OSError as error:
        return Rejected("annotation cannot be opened", error.strerror)
    try:
        content = os.read(file, MAX_BYTES + 1)
    except OSError as error:
        return Rejected("annotation cannot be opened", error.strerror)
    finally:
        os.close(file)
    return parse_value(content)


def parse_value(content: bytes) -> str | Rejected:
    """The single number or text in the bytes of a .npy file, as text without spaces around it."""
    if len(content) > MAX_BYTES:
        return Rejected(FAULT, f"over {MAX_BYTES:,} bytes")
    start = _data_start(content)
    if not start:
        return Rejected(FAULT, "no npy file")
    dtype = _header(content[:start])
    if isinstance(dtype, Rejected):
        return dtype
    if len(content) - start != dtype.itemsize:
        return Rejected(FAULT, f"{len(content) - start} bytes of data instead of {dtype.itemsize}")
    return _text(content[start:], dtype)


def _text(data: bytes, dtype: np.dtype) -> str | Rejected:
    if dtype.kind == "S":
        return data.rstrip(b"\0").decode("latin-1").strip()
    if dtype.kind == "U":
        try:  # not by numpy, which raises SystemError for what is no Unicode
            return data.decode("utf-32-be" if dtype.str.startswith(">") else "utf-32-le").rstrip("\0").strip()
        except UnicodeDecodeError:
            return Rejected(FAULT, "not Unicode")
    return str(np.frombuffer(data, dtype).item())


def _data_start(content: bytes) -> int:
    """Where the data begin; 0 if this is no npy file."""
    if content[:6] != b"\x93NUMPY":
        return 0
    size = 2 if content[6:7] == b"\1" else 4
    start = 8 + size + int.from_bytes(content[8 : 8 + size], "little")
    return start if start <= len(content) else 0


@lru_cache(1024)
def _header(head: bytes) -> np.dtype | Rejected:
    """The type of the value that follows a header."""
    file = io.BytesIO(head)
    try:
        shape, _, dtype = _READERS[npy_format.read_magic(file)](file)
    except Exception as error:  # numpy evaluates the header as a literal: what that raises on garbage is not limited
        return Rejected(FAULT, f"npy header ({type(error).__name__})")
    if dtype.hasobject:
        return Rejected(PICKLED)
    if any(side != 1 for side in shape):
        return Rejected(FAULT, f"shape {shape}"[:60])
    if dtype.kind not in "USiuf":
        return Rejected(FAULT, f"type {dtype}"[:60])
    return dtype
