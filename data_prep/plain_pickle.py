"""Reads the plain values of a pickle without unpickling: nothing in the file is imported or called.

    read_plain(content)    # {"labels": [6, 9, ...], "data": Array((10000, 3072), "u1", b"...")}

`pickletools.genops` lists the opcodes; those that build dict, list, tuple, bytes, text, int, bool and None are followed
here. A name (GLOBAL) is only a word on the stack. Two uses of names are recognised by their shape: a numpy array, whose
bytes are taken as they are, and `_codecs.encode`, how Python 3 writes bytes for Python 2. Anything else is refused.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.packed import DataError

MAX_OPCODES = 1_000_000  # 70,000 in a batch of CIFAR-10

_MARK = object()


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass
class Array:
    """A numpy array as it lies in the file; `dtype` is like "u1" or "i8"."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    content: bytes | None = None

    def bytes_as(self, dtype: str) -> np.ndarray | None:
        """The array, read-only; None if it is of another dtype or has another count of bytes than its shape."""
        if self.content is None or self.dtype != dtype:
            return None
        values = np.frombuffer(self.content, np.uint8)
        if len(values) != int(np.prod(self.shape, dtype=object)) * np.dtype(dtype).itemsize:
            return None
        return values.view(dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Dtype:
    code: str


_ARRAY = {_Name(f"{package}.multiarray", "_reconstruct") for package in ("numpy.core", "numpy._core")}
_ARRAY_CLASS, _DTYPE, _ENCODE = _Name("numpy", "ndarray"), _Name("numpy", "dtype"), _Name("_codecs", "encode")
_KNOWN = {*_ARRAY, _ARRAY_CLASS, _DTYPE, _ENCODE}
_DTYPES = {"u1", "|u1", "i4", "<i4", "i8", "<i8"}


def read_plain(content: bytes) -> object:
    """The pickled value; byte strings of Python 2 are bytes. DataError for anything that is not plain data."""
    try:
        return _Reader().read(content)
    except DataError:
        raise
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"is damaged or no pickle: {str(error).partition(chr(10))[0][:100]}") from error


class _Reader:
    """A stack machine over the opcodes that are allowed."""

    def __init__(self) -> None:
        self._stack: list = []
        self._memo: dict[int, object] = {}

    def read(self, content: bytes) -> object:
        for count, (opcode, value, _) in enumerate(pickletools.genops(content)):
            if opcode.name == "STOP":
                break
            if count >= MAX_OPCODES:
                raise DataError(f"has more than {MAX_OPCODES:,} opcodes")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise DataError(f"holds more than plain data (opcode {opcode.name}), which is not run")
            action(self, value)
        if len(self._stack) != 1:
            raise DataError("is damaged: its opcodes do not end in one value")
        return self._stack[0]

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self, count: int) -> tuple:
        if count > len(self._stack):
            raise DataError("is damaged: an opcode needs a value that is not there")
        found = self._stack[len(self._stack) - count :]
        if any(value is _MARK for value in found):
            raise DataError("is damaged: an opcode needs a value that is not there")
        del self._stack[len(self._stack) - count :]
        return tuple(found)

    def pop_to_mark(self) -> tuple:
        for count, value in enumerate(reversed(self._stack)):
            if value is _MARK:
                found = self.pop(count)
                self._stack.pop()
                return found
        raise DataError("is damaged: a mark is missing")

    def top(self, kind: type) -> object:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise DataError(f"is damaged: no {kind.__name__} where an opcode needs one")
        return self._stack[-1]

    def memoize(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.top(object)

    def extend(self, values: tuple) -> None:
        self.top(list).extend(values)

    def set_items(self, pairs: tuple) -> None:
        if len(pairs) % 2 or not all(isinstance(key, str | bytes | int) for key in pairs[::2]):
            raise DataError("is damaged: a dict without keys")
        self.top(dict).update(zip(pairs[::2], pairs[1::2], strict=True))

    def name(self, module: object, name: object) -> None:
        found = _Name(_text(module), _text(name))
        if found not in _KNOWN:
            raise DataError(f"asks for {found.module}.{found.name}"[:100] + ", which plain data do not need: not run")
        self.push(found)

    def reduce(self) -> None:
        """A call: by its shape an array, a dtype or the bytes of a text; nothing is called."""
        name, arguments = self.pop(2)
        if name in _ARRAY and len(arguments) == 3 and arguments[0] == _ARRAY_CLASS:
            self.push(Array())
        elif name == _DTYPE and len(arguments) == 3 and isinstance(arguments[0], str | bytes):
            self.push(_Dtype(_text(arguments[0])))
        elif name == _ENCODE and len(arguments) == 2 and _text(arguments[1]) in ("latin1", "latin-1"):
            self.push(arguments[0].encode("latin-1"))
        else:
            raise DataError("holds more than plain data (a call), which is not run")

    def build(self) -> None:
        """The state of an array or of a dtype."""
        (state,) = self.pop(1)
        if isinstance(self.top(object), _Dtype) and isinstance(state, tuple):
            if len(state) > 1 and state[1] in (">", b">"):
                raise DataError("holds numbers in an order of bytes that is not read")
            return
        array = self.top(Array)
        version, shape, dtype, fortran, content = state
        usable = (
            version == 1
            and isinstance(content, bytes)
            and isinstance(dtype, _Dtype)
            and dtype.code in _DTYPES
            and not fortran
        )
        if not usable or not all(type(side) is int and side >= 0 for side in shape):
            raise DataError("holds an array of a kind that is not read")
        array.shape, array.dtype, array.content = tuple(shape), dtype.code.lstrip("<|"), content


def _text(value: object) -> str:
    if not isinstance(value, str | bytes):
        raise DataError("is damaged: no text where an opcode needs one")
    return value.decode("latin-1") if isinstance(value, bytes) else value


_Action = Callable[[_Reader, object], None]
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda reader, value: None),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1"], _Reader.push),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE"], _Reader.push),
    **dict.fromkeys(["BINBYTES", "SHORT_BINBYTES", "BINBYTES8"], _Reader.push),
    # genops shows strings of Python 2 as Latin-1 text
    **dict.fromkeys(["SHORT_BINSTRING", "BINSTRING"], lambda reader, value: reader.push(value.encode("latin-1"))),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT", "MEMOIZE"], _Reader.memoize),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], lambda reader, place: reader.push(reader._memo[place])),
    "NONE": lambda reader, value: reader.push(None),
    "NEWTRUE": lambda reader, value: reader.push(True),
    "NEWFALSE": lambda reader, value: reader.push(False),
    "EMPTY_DICT": lambda reader, value: reader.push({}),
    "EMPTY_LIST": lambda reader, value: reader.push([]),
    "EMPTY_TUPLE": lambda reader, value: reader.push(()),
    "MARK": lambda reader, value: reader.push(_MARK),
    "TUPLE": lambda reader, value: reader.push(reader.pop_to_mark()),
    "TUPLE1": lambda reader, value: reader.push(reader.pop(1)),
    "TUPLE2": lambda reader, value: reader.push(reader.pop(2)),
    "TUPLE3": lambda reader, value: reader.push(reader.pop(3)),
    "APPEND": lambda reader, value: reader.extend(reader.pop(1)),
    "APPENDS": lambda reader, value: reader.extend(reader.pop_to_mark()),
    "SETITEM": lambda reader, value: reader.set_items(reader.pop(2)),
    "SETITEMS": lambda reader, value: reader.set_items(reader.pop_to_mark()),
    "GLOBAL": lambda reader, value: reader.name(*value.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, value: reader.name(*reader.pop(2)),
    "REDUCE": lambda reader, value: reader.reduce(),
    "BUILD": lambda reader, value: reader.build(),
}
