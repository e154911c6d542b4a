"""A run's directory, the one truth about it: settings, history, flips, scores, checkpoint, environment.

    runs/<study>/<name>-<id>-seed<k>/
        experiment.json       the settings, the data's hash, the id
        environment.json      device, versions, precision and threads as used
        history.parquet       a row a step: loss, lr and by site w's mean, sd, min, max and one channel
        epochs.parquet        a row an epoch, split and mode: loss, macro-F1, accuracy, F1 by class, confusion matrix
        flips.parquet         a row a change of sign: step and epoch of the first forward with it, site, sign, share
        events.parquet        a row for each thing that a reader did while it trained, where there was any
        model.safetensors     the weights of the chosen epoch (best macro-F1 on val, as trained)
        result.json           status and numbers, written last
    and while it is unfinished checkpoint.safetensors, log/ (fer_lib.steplog), requests/ (fer_lib.steering) and lock/
    (fer_lib.locks).

A finished run is never trained again; an unfinished one goes on from its checkpoint to the same bits. One process at a
time trains it, also where several machines share the disk: the others are told fer_lib.locks.Busy. A run whose
numbers a reader changed by hand (flips, lr, weight decay) moves to `...-steered`: it is not the experiment any more.
"""

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fer_lib import engine
from fer_lib.checkpoint import Background, copied, read_state, write_state, write_weights
from fer_lib.data import PackedDataset, open_packed, used_counts
from fer_lib.engine import Block, Precision
from fer_lib.experiment import SEMANTICS, Experiment
from fer_lib.files import RECORD_FORMAT, RecordError, read_table, write_atomically, write_json, write_table, writing
from fer_lib.locks import LOCK, RunLock
from fer_lib.records import read_result
from fer_lib.steering import CHANGES, REQUESTS, Steering
from fer_lib.steplog import FLIP_COLUMNS, LogReader, StepLog, block_rows, flip_table, history_table, read_lines
from fer_lib.workspace import Workspace
from fer_lib.world import ALONE, World

CHECKPOINT_SHARE = .01          # of the training time may go into checkpoints: where they take long they get rarer
EVENT_COLUMNS = ["step", "epoch", "kind", "site", "value"]


class Diverged(RuntimeError):
    """The loss, w or a weight is no longer a number."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Run:
    """One experiment on one data set, and its directory. Makes nothing on disk before the first block.

    `steering` takes commands while it trains. path: where it isn't the experiment's own place, as for a steered run.
    """

    def __init__(self, e: Experiment, data: PackedDataset, folder: Path, path: Path | None = None):
        self.experiment, self.data = e, data
        self.id = e.id(data.hash)
        self.path = path or folder / e.study / f"{e.label}-{self.id}-seed{e.seed}"
        self.result = self._read_result()
        self.steering = Steering(self.path)

    @property
    def steered(self) -> bool:
        """Whether a reader's hand changed its numbers."""
        return self.result.get("steered", False)

    def move_aside(self) -> None:
        """From now on the record of a steered run: the experiment's own place is free for an unsteered one."""
        names = (f"{self.path.name}-steered{k or ''}" for k in (0, *range(2, 10_000)))
        target = next(p for p in map(self.path.with_name, names) if not p.exists())
        with writing(target):
            self.path.rename(target)
        self.path = self.steering.folder = target

    def _read_result(self) -> dict:
        try:
            return read_result(self.path / "result.json")
        except FileNotFoundError:
            return {"status": "new"}

    def reload(self) -> None:
        """Read result.json again: another process may have written it."""
        self.result = self._read_result()

    @property
    def status(self) -> str:
        """new, running (also after a crash), interrupted, failed or finished."""
        return self.result["status"]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def clear_halves(self) -> None:
        """Remove files that a killed process was writing: ours, and those of safetensors, which writes aside too."""
        for pattern in (".*.tmp", ".tmp??????"):
            for half in self.path.glob(pattern):
                half.unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Remove from a finished run what only an unfinished one needs; a process may be killed before it came to that.
        """
        with contextlib.suppress(OSError):              # a copy that can't be written is as good
            (self.path / "checkpoint.safetensors").unlink(missing_ok=True)
            self.clear_halves()
        for leftover in ("log", REQUESTS, LOCK):
            shutil.rmtree(self.path / leftover, ignore_errors=True)

    @property
    def steps(self) -> int:
        """From its beginning to its end."""
        e = self.experiment
        return used_counts(e, self.data)["train"] // e.batch_size * e.epochs

    @property
    def history(self) -> pd.DataFrame:
        """A row a step, as far as it is on disk."""
        found = self._steps("history.parquet", history_table)
        return found if len(found) else pd.DataFrame(columns=["step", "epoch", "loss", "lr"])

    def _steps(self, name: str, table) -> pd.DataFrame:
        """From the finished record, or from the log, which goes when the record is finished: then it is there."""
        path = self.path / name
        try:
            reader = None if path.exists() else LogReader(self.path)
            parts = [table(rows, reader.sites) for rows in reader.chunks()] if reader else []
        except FileNotFoundError:
            parts = []
        if parts:
            return pd.concat(parts, ignore_index=True)
        return read_table(path) if path.exists() or self.finished else pd.DataFrame()

    @property
    def epochs(self) -> pd.DataFrame:
        """A row an epoch, split and mode."""
        path = self.path / "epochs.parquet"
        if path.exists() or self.finished:
            return read_table(path)
        return pd.DataFrame(read_lines(self.path / "log" / "epochs.jsonl"), columns=epoch_columns())

    @property
    def flips(self) -> pd.DataFrame:
        """A row a change of sign."""
        found = self._steps("flips.parquet", flip_table)
        return found if len(found) else pd.DataFrame(columns=FLIP_COLUMNS)

    @property
    def events(self) -> pd.DataFrame:
        """A row for each thing that a reader did."""
        path = self.path / "events.parquet"
        if path.exists():
            return read_table(path)
        return pd.DataFrame(read_lines(self.path / "log" / "events.jsonl"), columns=EVENT_COLUMNS)


def open_run(e: Experiment, workspace: Workspace) -> Run:
    """The run of this experiment. Raises ParameterError, DataError or RecordError before anything is trained."""
    data = open_packed(workspace.data_path(e.data))
    engine.check(e, data)
    return Run(e, data, workspace.runs)


def reopen_run(path: Path, workspace: Workspace) -> Run:
    """The run of an existing directory, wherever it lies: a steered one, or one that a monitor shows.

    Raises RecordError where it is none, ParameterError or DataError where its experiment can't run here.
    """
    try:
        e = Experiment.from_mapping(json.loads((path / "experiment.json").read_text())["experiment"])
    except (OSError, json.JSONDecodeError, KeyError):
        raise RecordError(f"'{path.name}' is not a run's directory: it holds no readable experiment.json") from None
    data = open_packed(workspace.data_path(e.data))
    return Run(e, data, workspace.runs, path)


def record(runs: Sequence[Run], device: torch.device | None = None, world: World = ALONE) -> Iterator[Block]:
    """Train what is not finished and record it; yields the blocks. Leaving the loop keeps a resumable record.

    All runs share one device (by default that of the first experiment). Ctrl-C, SIGTERM or a reader's stop: each run is
    checkpointed at the step it reached, then engine.Stopped is raised. Raises Diverged when a loss, w or a weight is no
    longer a number, and Busy where another process trains one of them.

    world: one run on several processes. Rank 0 records it; the others take part, write nothing and answer no request.
    """
    for run in runs:
        if run.finished:
            run.clear_leftovers()
    going = [run for run in runs if not run.finished]
    if not going:
        return
    device = device or engine.choose_device(going[0].experiment.device)
    if world.rank:
        yield from _take_part(going[0], device, world)
        return
    writer = Background()
    with _together(world):
        recorders = _recorders(going, device, world, writer)
    going = [r.run for r in recorders]
    blocks = engine.train([(run.experiment, run.data) for run in going], device, [r.state for r in recorders],
                          [run.steering for run in going], world=world)
    try:
        for block in blocks:
            _take_in(recorders, block.together)
            yield block
    except Diverged as error:
        for r in recorders:
            r.stop("failed" if r.failed else "interrupted", str(error))
        raise
    except RecordError:
        raise                                           # the disk failed: writing more would fail again
    except BaseException as error:
        for r in recorders:
            r.stop("interrupted", type(error).__name__)
        raise
    finally:
        blocks.close()
        for r in recorders:
            r.close()
        writer.close()


def _recorders(runs: Sequence[Run], device: torch.device, world: World, writer: Background) -> list["Recorder"]:
    """Of each run that is ours now, but for those that another process has finished in the meantime."""
    recorders: list[Recorder] = []
    try:
        for run in runs:
            recorders.append(Recorder(run, device, writer, world, len(runs)))
        if world.size > 1 and runs[0].finished:
            raise RecordError(f"'{runs[0].path.name}' was finished by another process in this moment")
    except BaseException:
        for r in recorders:
            r.close()
        raise
    return [r for r in recorders if not r.run.finished]


def _take_part(run: Run, device: torch.device, world: World) -> Iterator[Block]:
    """What the ranks after 0 do. Closed with its loop, as rank 0's blocks are."""
    path = run.path / "checkpoint.safetensors"
    with _together(world):
        state = read_state(path)["learner"] if path.exists() else None
    yield from engine.train([(run.experiment, run.data)], device, [state], world=world)


@contextlib.contextmanager
def _together(world: World) -> Iterator[None]:
    """Where this fails on one rank no rank goes on to wait for it."""
    try:
        yield
    except RecordError:
        world.any(True)
        raise
    if world.any(False):
        raise engine.Stopped


def _take_in(recorders: Sequence["Recorder"], blocks: Sequence[Block]) -> None:
    """Record blocks of runs that advanced together. Raises Diverged for the first that did, after all are recorded."""
    failure = None
    for block in blocks:
        try:
            recorders[block.run].add(block)
        except Diverged as error:
            failure = failure or error
    if failure:
        raise failure


class Recorder:
    """Writes one run's record, block by block."""

    def __init__(self, run: Run, device: torch.device, writer: Background, world: World = ALONE, together: int = 1):
        self.run, self.e, self.together, self.writer = run, run.experiment, together, writer
        self.pending: Future | None = None              # of a checkpoint that is being written
        self.state: dict | None = None
        self.block: Block | None = None
        self.log: StepLog | None = None
        self.lock = RunLock(self.path)
        try:
            run.reload()                                # another process may have trained it since it was opened
            if run.finished:
                self.lock.release(forget=True)
            else:
                self._begin(device, world)
        except BaseException:
            self.lock.release()
            raise

    def _begin(self, device: torch.device, world: World) -> None:
        """Take up what is on disk, and say that the run goes on."""
        run = self.run
        run.clear_halves()
        self.failed, self.steered, self.events, self.epochs = False, run.steered, 0, 0
        self.seconds, self.images, self.saved_step, self.memory = 0., 0, 0, 0
        self.saved_at, self.interval = time.monotonic(), self.e.checkpoint_seconds
        if (self.path / "checkpoint.safetensors").exists():
            saved = read_state(self.path / "checkpoint.safetensors")
            self.state, self.saved_step = saved["learner"], saved["learner"]["step"]
            self.seconds, self.images = saved["seconds"], saved["images"]
            self.events, self.epochs = saved.get("events", 0), saved.get("epochs", 0)   # 0: an earlier version's
        shutil.rmtree(self.path / REQUESTS, ignore_errors=True)         # meant for an earlier process
        self._write_head(device, world)

    @property
    def path(self) -> Path:
        return self.run.path

    def _write_head(self, device: torch.device, world: World) -> None:
        e = self.e
        write_json(self.path / "experiment.json", {
            "id": self.run.id, "semantics": SEMANTICS, "data": self.run.data.manifest["name"],
            "data_hash": self.run.data.hash, "drawn": self.run.data.drawn, "classes": self.run.data.classes,
            "image": self.run.data.image, "normalization": self.run.data.manifest["normalization"],
            "splits": used_counts(e, self.run.data),
            "experiment": json.loads(e.to_json())})
        write_json(self.path / "environment.json", environment(e, device, world))
        self._write_result({"status": "running"})

    def add(self, block: Block) -> None:
        """Take a block in; checkpoint where it is time or asked for, finish where it is the last."""
        self.lock.verify()
        if self.pending and self.pending.done():
            self.settle()
        self.block = block
        if self.log is None:
            self.log = StepLog(self.path, block.sites, bool(block.w), self.saved_step, self.events, self.epochs)
        kinds = {event.kind for event in block.events}
        if kinds & set(CHANGES) and not self.steered:
            self._become_steered()                      # first: who reads of the change finds the run in its new place
        epochs = epoch_rows(block, self.run.data.classes)
        self.log.add(block_rows(block, self.seconds), epochs, [asdict(event) for event in block.events])
        self.epochs += len(epochs)
        self.seconds, self.images = self.seconds + block.seconds, self.images + block.images
        self.memory, self.events = max(self.memory, block.memory), self.events + len(block.events)
        if what := _gone_bad(block, self.path.name):
            self.failed = True
            kept = f"; its last checkpoint, of step {self.saved_step}, is kept" if self.saved_step else ""
            raise Diverged(f"{what}: the run has diverged{kept}; try a smaller lr than {self.e.lr:g}")
        if block.last:
            self.finish()
        elif "checkpoint" in kinds:
            self.checkpoint()
        elif time.monotonic() - self.saved_at >= self.interval and self.writer.idle:
            self.checkpoint(whole=not self.e.checkpoint_seconds)

    def _become_steered(self) -> None:
        self.settle()
        with self.lock.moving():
            self.run.move_aside()
            self.lock.run = self.path
        self.log.folder = self.path / "log"
        self.steered = True
        self._write_result({"status": "running"})

    def checkpoint(self, whole: bool = True) -> None:
        """Everything needed to go on, written so that a crash at any moment leaves a consistent state.

        Not `whole`, training goes on as soon as the state is copied, and what goes wrong then is raised with a later
        block.
        """
        self.settle()
        started = time.monotonic()
        self.lock.verify(now=True)
        state = {"learner": self.block.state(), "seconds": self.seconds, "images": self.images, "events": self.events,
                 "epochs": self.epochs}
        if whole:
            self._write_state(state)
        else:
            self.pending = self.writer.submit(self._write_state, copied(state))
        self.saved_at = time.monotonic()
        if self.e.checkpoint_seconds:                   # all runs of the group wait while each is copied
            cost = (self.saved_at - started) * self.together
            self.interval = max(self.e.checkpoint_seconds, cost / CHECKPOINT_SHARE)

    def _write_state(self, state: dict) -> None:
        self.log.sync()
        write_state(self.path / "checkpoint.safetensors", state)
        self.saved_step = state["learner"]["step"]

    def settle(self) -> None:
        """Wait until nothing is being written. Raises what went wrong."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def stop(self, status: str, reason: str) -> None:
        """Keep what there is: a failed run's record ends at the failure, its checkpoint stays the last good one.

        Where it broke off within a block, its state is of no step's end and the last checkpoint stays as well.
        """
        if self.run.finished or self.lock.lost:
            return
        self.settle()
        if status == "interrupted" and self.block is not None and self.block.network.whole \
                and self.block.last_step > self.saved_step:
            self.checkpoint()
        step = self.saved_step if self.block is None else self.block.last_step
        self._write_result({"status": status, "reason": reason, "step": step, "steps": self.run.steps})

    def close(self) -> None:
        if self.pending:
            wait([self.pending])                        # what went wrong was raised by now, or something else was
        if self.log is not None:
            self.log.close()
        self.lock.release()

    def finish(self) -> None:
        """The final files, then result.json, then the leftovers go."""
        self.settle()
        self.lock.verify(now=True)
        epochs, flips = self.run.epochs, self.run.flips
        _write_history(self.path / "history.parquet", LogReader(self.path))
        write_table(self.path / "epochs.parquet", epochs)
        write_table(self.path / "flips.parquet", flips)
        if self.events:
            write_table(self.path / "events.parquet", self.run.events)
        write_weights(self.path / "model.safetensors", self.block.state()["best"]["weights"])
        pace = {"seconds": round(self.seconds, 3), "images_per_second": round(self.images / self.seconds, 1),
                "peak_memory_bytes": self.memory, "runs_together": self.together}
        self.lock.verify(now=True)
        self._write_result({"status": "finished", "n": used_counts(self.e, self.run.data), **pace,
                            **summary(self.e, epochs, flips, self.block.steps_per_epoch)})
        self.log.close()
        self.lock.release(forget=True)
        self.run.clear_leftovers()

    def _write_result(self, values: dict) -> None:
        self.run.result = {"format": RECORD_FORMAT, "id": self.run.id, "study": self.e.study, "name": self.e.label,
                           "method": self.e.method, "seed": self.e.seed, "steered": self.steered, **values}
        write_json(self.path / "result.json", self.run.result)


def _gone_bad(block: Block, name: str) -> str:
    """What in the block is no longer a number, and at which step; empty where all are."""
    columns = [(f"the loss of '{name}'", block.loss)]
    if block.w:
        columns += [(f"w of '{name}' at {site}", mean) for site, mean in zip(block.sites, block.w["mean"].T)]
    found = [(int(np.flatnonzero(~np.isfinite(values))[0]), what, values) for what, values in columns
             if not np.isfinite(values).all()]
    if found:
        row, what, values = min(found, key=lambda one: one[0])          # the loss before w, of the same step
        return f"{what} is {values[row]} at step {block.first_step + row}"
    return f"'{block.broken}' of '{name}' is no longer finite at step {block.last_step}" if block.broken else ""


def _write_history(path: Path, reader: LogReader) -> None:
    """The whole history as one table, in pieces: memory stays flat at any length."""
    def write(p: Path) -> None:
        writer = None
        for rows in reader.chunks():
            table = pa.Table.from_pandas(history_table(rows, reader.sites), preserve_index=False)
            writer = writer or pq.ParquetWriter(p, table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()

    write_atomically(path, write)


def epoch_columns() -> list[str]:
    return ["epoch", "step", "split", "mode", "train_loss", "loss", "macro_f1", "accuracy", "n", "f1", "confusion"]


def epoch_rows(block: Block, classes: Sequence[str]) -> list[dict]:
    """A row for each split and mode; f1 by class (K,), confusion flattened (K * K,), rows the label."""
    return [{"epoch": block.epoch, "step": block.last_step, "split": v.split, "mode": v.mode,
             "train_loss": block.train_loss, "loss": v.scores.loss, "macro_f1": v.scores.macro_f1,
             "accuracy": v.scores.accuracy, "n": v.scores.n, "f1": v.scores.f1.tolist(),
             "confusion": v.scores.confusion.ravel().tolist()} for v in block.evaluations]


def summary(e: Experiment, epochs: pd.DataFrame, flips: pd.DataFrame, steps_per_epoch: int) -> dict:
    """The numbers of tables. `chosen`: at the epoch with the best macro-F1 on val, as trained, the first such epoch."""
    trained = epochs[(epochs["mode"] == "trained") & (epochs["split"] == "val")].set_index("epoch")
    chosen, last = int(trained["macro_f1"].idxmax()), int(trained.index.max())

    def at(epoch: int) -> dict:
        rows = epochs[epochs["epoch"] == epoch]
        scores = {f"{split}_{key}" + ("" if mode == "trained" else "_clean"): getattr(row, key)
                  for row in rows.itertuples() for split, mode in [(row.split, row.mode)]
                  for key in ("macro_f1", "accuracy", "loss")}
        return {"epoch": epoch, "train_loss": float(rows["train_loss"].iloc[0]), **scores}

    steps = flips["step"].unique()
    since = (e.epochs * steps_per_epoch - int(steps.max()) + 1) / steps_per_epoch if len(steps) else None
    return {"chosen": at(chosen), "last": at(last), "max_val_macro_f1": float(trained["macro_f1"].max()),
            "min_train_loss": float(epochs["train_loss"].min()), "steps": e.epochs * steps_per_epoch,
            "steps_per_epoch": steps_per_epoch,
            "flips": {"steps": len(steps), "first": int(steps.min()) if len(steps) else None,
                      "epochs_since_last": since}}


def environment(e: Experiment, device: torch.device, world: World = ALONE) -> dict:
    """What the numbers were made with. No host name, no path."""
    packages = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "device_type": device.type, "precision": Precision(e.precision, device).name,
            "threads": e.threads, "deterministic": e.deterministic, "processes": world.size, "cuda": torch.version.cuda,
            "python": platform.python_version(), "system": platform.system(), "machine": platform.machine(),
            "cpu_count": os.cpu_count(), "packages": {p: metadata.version(p) for p in packages},
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def processor_name() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
