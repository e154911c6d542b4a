"""`python -m data_prep detect PATH`: which source's layout a path holds.

A source module that can tell has

    detect(path: Path) -> Layout | None      quick, by a few names or the first lines; None = not mine

The sources that take any folder or table are asked only if no other knows the path.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from data_prep.packed import DataError

GENERIC = ("image_folder", "table")


@dataclass(frozen=True)
class Layout:
    """What a source recognised: the `evidence` in a few words, its command's arguments besides --out, and the name
    proposed for the packed directory ("" = the source's)."""

    evidence: str
    arguments: tuple[str, ...]
    out: str = ""


def detect(path: Path, sources: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, Layout]]:
    """(source, layout) of every source that knows the path; DataError if there is nothing at `path`."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    specific = [name for name in sources if name not in GENERIC]
    found = list(_ask(path, specific, sources))
    yield from found or _ask(path, [name for name in sources if name in GENERIC], sources)


def _ask(path: Path, names: list[str], sources: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, Layout]]:
    for name in names:
        module = import_module(sources[name][0])
        try:
            layout = module.detect(path) if hasattr(module, "detect") else None
        except (DataError, PermissionError, FileNotFoundError):
            continue  # not its layout, or none that may be read
        if layout:
            yield name, layout


def command(name: str, layout: Layout) -> str:
    """The command to run, ready for a shell."""
    out = f"packed/{layout.out or name}"
    return shlex.join(["python", "-m", "data_prep", name, *layout.arguments, "--out", out])
