"""Where data and records lie: `packed/` and `runs/` in the project's folder, or where FER_PACKED and FER_RUNS say."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of one project. `root` is the nearest folder above that holds `fer_lib` and `notebooks`."""

    root: Path
    packed: Path
    runs: Path

    def data_path(self, data: str) -> Path:
        """A name is a folder of `packed`; anything with a separator is a path, seen from the root."""
        if "/" in data or os.sep in data or data in (".", ".."):
            return self.root / Path(data).expanduser()
        return self.packed / data


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace of the current folder, so that notebooks work from wherever their kernel was started."""
    start = (start or Path.cwd()).resolve()
    root = next((p for p in (start, *start.parents) if (p / "fer_lib").is_dir() and (p / "notebooks").is_dir()), start)
    place = lambda name, default: Path(os.environ.get(name) or root / default).expanduser().absolute()  # noqa: E731
    return Workspace(root, place("FER_PACKED", "packed"), place("FER_RUNS", "runs"))
