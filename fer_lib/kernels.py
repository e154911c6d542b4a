"""Notebooks executed by papermill, one kernel each, in worker processes that can be stopped.

Nothing here imports torch: a worker only talks to its kernel.
"""

import contextlib
import logging
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

NOTEBOOK = "notebooks/04_train.ipynb"
START_ATTEMPTS = 3      # of a kernel: several that start in one moment can pick the same port


def run_notebook(notebook: Path, target: Path, parameters: dict[str, object], root: Path) -> None:
    """Execute a notebook by papermill from the project's root, quietly. Raises PapermillExecutionError."""
    import papermill  # late: it takes seconds, and only some commands need it
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)     # its errors come as exceptions
    quiet_kernel = ["--IPKernelApp.log_level=50"]       # else each warns of TCP, which is loopback here, and of stops
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            papermill.execute_notebook(notebook, target, parameters, progress_bar=False, cwd=root,
                                       extra_arguments=quiet_kernel)
            return
        except DeadKernelError:
            raise
        except RuntimeError as error:                   # it didn't start: another took its ports in that moment
            if not str(error).startswith("Kernel d") or attempt == START_ATTEMPTS:
                raise


_stopping = threading.Event()                           # in a worker: start no other run


def stopping() -> bool:
    """In a worker: whether the batch command has stopped."""
    return _stopping.is_set()


def heed(batch: Connection) -> None:
    """In a new worker: Ctrl-C is the batch command's alone; when that stops, or dies, stop this worker's kernel."""
    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            batch.recv()                                # nothing is ever sent: it ends with the other side
        _stopping.set()
        os.kill(os.getpid(), signal.SIGINT)

    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)     # else it tells of each message that was not awaited
    threading.Thread(target=watch, daemon=True).start()


def execute(parameters: dict[str, object], root: Path, target: Path) -> str:
    """Run the training notebook with these parameters in a kernel of its own; the executed notebook goes to `target`.

    Returns "" or the one sentence of what went wrong. Runs in a worker, where one SIGINT stops the kernel as the
    notebook's interrupt button does.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return "not started" if _stopping.is_set() else _execute(parameters, root, target)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _execute(parameters: dict[str, object], root: Path, target: Path) -> str:
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError

    os.environ.update(OMP_NUM_THREADS=str(parameters["threads"]), JUPYTER_PREFER_ENV_PATH="1")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_notebook(root / NOTEBOOK, target, parameters, root)
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return "the kernel died (out of memory, or killed); start the study again to go on from the last checkpoint"
    except OSError as error:
        return f"can't write the executed notebook: {error.strerror or error}; make room and start the study again"
    return ""
