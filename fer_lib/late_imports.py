"""Imports that nobody here needs, left for whoever does, so that processes start sooner.

    torch._dynamo    the compiler, imported with one of torchvision's operators and by each optimiser's first method:
                     1.4 of the 5.7 s until a run's end on 800 small images
    rfc3987_syntax   a grammar of international addresses, imported with the schema of notebooks, which has none: 1.7 s

What is left out is imported when it is asked for. Nothing here imports torch. (AMD EPYC, torch 2.14, 2026-11-30)
"""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

COMPILER = ("torch._dynamo", "torch._dynamo.utils")
ASKED = "is_compile_supported"          # by torchvision's roi_align, when regions are pooled
GRAMMAR = "rfc3987_syntax"
MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


class _Later(ModuleType):
    """Stands for a module of the compiler: a function that asks it when it is called, any other name at once."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):       # `inspect` looks for each module's file
            raise AttributeError(name)
        if name != ASKED:
            _take_away()
            return getattr(importlib.import_module(self.__name__), name)
        return lambda *args: getattr(importlib.import_module(self.__name__), name)(*args)


def _take_away() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """For `import torchvision` (0.26 to 0.29)."""
    if not set(COMPILER) & set(sys.modules):
        sys.modules.update({name: _Later(name) for name in COMPILER})
    try:
        yield
    finally:
        _take_away()


@functools.cache
def unmarked(optimizer: type) -> type:
    """The optimiser's class without the marks that tell torch.compile to leave its methods as they are: their first use
    imports the compiler, and no optimiser is compiled here. A step stays outside of autograd, as the mark has it, too.
    """
    from torch import no_grad

    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in (*MARKED, "step")}
    return type(optimizer.__name__, (optimizer,), plain | {"step": no_grad()(plain["step"])})


@contextlib.contextmanager
def without_grammar() -> Iterator[None]:
    """For `import nbformat`, or what imports it: jsonschema then checks all formats but international addresses."""
    absent = GRAMMAR not in sys.modules
    if absent:
        sys.modules[GRAMMAR] = None     # as if it were not installed
    try:
        yield
    finally:
        if absent and sys.modules.get(GRAMMAR) is None:
            sys.modules.pop(GRAMMAR, None)              # another thread may have done so
