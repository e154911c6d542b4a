"""Notebooks executed by papermill, one kernel each, in workers that can be told to leave.

Nothing here imports torch: a worker only talks to its kernel.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distributed import get_worker

from fer_lib.files import RecordError, write_atomically
from fer_lib.late_imports import without_grammar
from fer_lib.workspace import Workspace

NOTEBOOK = "notebooks/04_train.ipynb"
START_ATTEMPTS = 3      # of a kernel: several that start in one moment can pick the same port
LOOK_SECONDS = .5       # between two looks whether the work is still wanted
AGAIN_SECONDS = 15.     # a kernel that was interrupted between two cells didn't notice

# what a piece of work answers beside "" (it ended well) and a sentence of what went wrong
INTERRUPTED = "interrupted"         # it was told to leave; its checkpoint is written
BUSY = "another process trains it"  # fer_lib.locks
DIED = "the kernel died (out of memory, or killed)"


class Interrupted(Exception):
    """The notebook was told to leave, before or between its cells."""


class Kernel:
    """The kernel of one notebook, which any thread may stop as the notebook's interrupt button does."""

    def __init__(self):
        self.left = threading.Event()
        self.client = None                              # nbclient's, while it executes
        self.stderr = None                              # a file for what its process says beside its cells

    def stop(self) -> None:
        """Interrupt what runs, and start no other cell."""
        self.left.set()
        with contextlib.suppress(AttributeError, ProcessLookupError):   # no kernel yet, or no more
            os.kill(self.client.km.provisioner.pid, signal.SIGINT)

    def engine(self) -> type:
        """For papermill: its own engine, with this kernel to be stopped."""
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import NBClientEngine

        kernel = self

        class Client(PapermillNotebookClient):
            def execute_cell(self, *args, **kwargs):
                if kernel.left.is_set():
                    raise Interrupted
                return super().execute_cell(*args, **kwargs)

        class Stoppable(NBClientEngine):
            @classmethod
            def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, extra_arguments=(), **_):
                kernel.client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None,
                                       extra_arguments=extra_arguments, log=logging.getLogger("papermill"))
                kernel.client.execute(stderr=kernel.stderr)

        return Stoppable


def run_notebook(notebook: Path, target: Path, parameters: dict[str, object], root: Path,
                 kernel: Kernel | None = None) -> None:
    """Execute a notebook by papermill from the project's root, quietly. Raises PapermillExecutionError, and Interrupted
    where `kernel` was stopped outside of its cells.
    """
    with without_grammar():
        import papermill  # late: it takes a while, and only some commands need it
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines

    kernel = kernel or Kernel()
    papermill_engines.register("stoppable", kernel.engine())
    logging.getLogger("papermill").setLevel(logging.CRITICAL)     # its errors come as exceptions
    quiet_kernel = ["--IPKernelApp.log_level=50"]       # else each warns of TCP, which is loopback here, and of stops
    for attempt in range(1, START_ATTEMPTS + 1):
        again = False
        with tempfile.TemporaryFile() as kernel.stderr:
            try:
                papermill.execute_notebook(notebook, target, parameters, progress_bar=False, cwd=root,
                                           engine_name="stoppable", extra_arguments=quiet_kernel)
                return
            except DeadKernelError:
                raise
            except RuntimeError as error:               # it didn't start: another took its ports in that moment
                if kernel.left.is_set():
                    raise Interrupted from None
                again = str(error).startswith("Kernel d") and attempt < START_ATTEMPTS
                if not again:
                    raise
            finally:
                if not again:                           # else it told of a port, and does no harm
                    kernel.stderr.seek(0)
                    sys.stderr.write(kernel.stderr.read().decode(errors="replace"))


_at_work = 0                                            # pieces of work in this worker


def at_work() -> int:
    """In a worker: how many pieces of work it does now."""
    return _at_work


@contextlib.contextmanager
def leaving(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `stop` when the Dask task that this is in isn't wanted any more; the event says whether it was called.

    That is where the batch command cancelled it, or is gone, or the worker closes: its scheduler is gone, or its time.
    """
    global _at_work
    told, ended = threading.Event(), threading.Event()
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return worker.status.name in ("running", "paused") and task is not None and task.state == "executing"

    def watch() -> None:
        again = 0.
        while not ended.wait(LOOK_SECONDS):
            if time.monotonic() >= again and (told.is_set() or not wanted()):
                told.set()
                stop()
                again = time.monotonic() + AGAIN_SECONDS

    thread = threading.Thread(target=watch, daemon=True)
    _at_work += 1
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()
        _at_work -= 1


def execute(parameters: dict[str, object], workspace: Workspace, target: Path) -> str:
    """Run the training notebook with these parameters in a kernel of its own; the executed notebook goes to `target`.

    Returns "", INTERRUPTED, BUSY, DIED or the one sentence of what went wrong. Runs in a Dask worker.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)     # else it tells of each message that was not awaited
    kernel = Kernel()
    folder = Path(tempfile.mkdtemp(dir=get_worker().local_directory))
    try:
        with leaving(kernel.stop) as told:
            said = _execute(parameters, workspace, folder / target.name, kernel)
            if said != BUSY and (folder / target.name).exists():    # the other process makes the notebook
                write_atomically(target, lambda p: shutil.copyfile(folder / target.name, p))
            return INTERRUPTED if told.is_set() and said else said
    except RecordError as error:
        return f"RecordError: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _execute(parameters: dict[str, object], workspace: Workspace, target: Path, kernel: Kernel) -> str:
    with without_grammar():
        from papermill import PapermillExecutionError
    from nbclient.exceptions import DeadKernelError

    os.environ.update(OMP_NUM_THREADS=str(parameters["threads"]), JUPYTER_PREFER_ENV_PATH="1",
                      FER_PACKED=str(workspace.packed), FER_RUNS=str(workspace.runs))   # the kernel's, on any machine
    try:
        run_notebook(workspace.root / NOTEBOOK, target, parameters, workspace.root, kernel)
    except Interrupted:
        return INTERRUPTED
    except PapermillExecutionError as error:
        return BUSY if error.ename == "Busy" else f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return DIED
    except OSError as error:
        return f"can't write the executed notebook: {error.strerror or error}; make room and start the study again"
    return ""
