"""Records of a study's quick size, made where a notebook has none: drawn faces, a narrow network, seconds on a CPU."""

import time
from collections.abc import Callable, Mapping, Sequence

from fer_lib.runs import open_run, record
from fer_lib.studies import read_study
from fer_lib.workspace import Workspace


def make_quick(workspace: Workspace, studies: Mapping[str, Sequence[str]], say: Callable[[str], None]) -> None:
    """Train these arms (none named: all) of these studies at their quick size, in this process; what is finished stays.
    Records go to runs/STUDY-quick, as `python -m fer_lib.batch FILE --size quick` writes them.

    Raises ParameterError, DataError or RecordError as `studies.read_study` and `runs.open_run` do.
    """
    for name, arms in studies.items():
        file = workspace.root / "notebooks" / "studies" / f"{name}.yml"
        study, start = read_study(file, size="quick", arms=list(arms) or None), time.monotonic()
        runs = [open_run(e, workspace) for e in study.experiments]
        going = [run for run in runs if not run.finished]
        for run in going:
            for _ in record([run]):
                pass
        seconds = time.monotonic() - start
        say(f"{study.name}: {len(runs)} runs on drawn faces, {len(going)} trained now in {seconds:.0f} s")
