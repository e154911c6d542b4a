"""A run's directory, the one truth about it: settings, history, flips, scores, checkpoint, environment.

    runs/<study>/<name>-<id>-seed<k>/
        experiment.json       the settings, the data's hash, the id
        environment.json      device, versions, precision and threads as used
        history.parquet       a row a step: loss, lr and by site w's mean, sd, min, max and one channel
        epochs.parquet        a row an epoch, split and mode: loss, macro-F1, accuracy, F1 by class, confusion matrix
        flips.parquet         a row a change of sign: step and epoch of the first forward with it, site, sign, share
        model.safetensors     the weights of the chosen epoch (best macro-F1 on val, as trained)
        result.json           status and numbers, written last
    and while it is unfinished checkpoint.safetensors and history/ (parts of the history).

A finished run is never trained again; an unfinished one goes on from its checkpoint to the same bits.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer_lib import engine
from fer_lib.checkpoint import read_state, write_state, write_weights
from fer_lib.data import PackedDataset, open_packed
from fer_lib.engine import Block, Precision
from fer_lib.experiment import SEMANTICS, Experiment
from fer_lib.files import RecordError, write_json, write_table
from fer_lib.workspace import Workspace

RECORD_FORMAT = 1
FLIP_COLUMNS = ["step", "epoch", "site", "sign", "share"]


class Diverged(RuntimeError):
    """The loss is no longer a number."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Run:
    """One experiment on one data set, and its directory. Makes nothing on disk before the first block."""

    def __init__(self, e: Experiment, data: PackedDataset, folder: Path):
        self.experiment, self.data = e, data
        self.id = e.id(data.hash)
        self.path = folder / e.study / f"{e.label}-{self.id}-seed{e.seed}"
        self.result = self._read_result()

    def _read_result(self) -> dict:
        try:
            result = json.loads((self.path / "result.json").read_text())
        except FileNotFoundError:
            return {"status": "new"}
        except json.JSONDecodeError:
            raise RecordError(f"'{self.path.name}/result.json' is damaged: delete that file to train the run "
                              "again") from None
        if result.get("format") != RECORD_FORMAT:
            raise RecordError(f"'{self.path.name}' is a record of format {result.get('format')}, this version reads "
                              f"{RECORD_FORMAT}: move it away to train the run again")
        return result

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

    @property
    def history(self) -> pd.DataFrame:
        """A row a step, as far as it is on disk."""
        if (self.path / "history.parquet").exists():
            return pd.read_parquet(self.path / "history.parquet")
        parts = sorted((self.path / "history").glob("*.parquet"))
        return pd.concat([pd.read_parquet(p) for p in parts], ignore_index=True) if parts else pd.DataFrame()

    @property
    def epochs(self) -> pd.DataFrame:
        """A row an epoch, split and mode; empty before the first checkpoint."""
        path = self.path / "epochs.parquet"
        return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=epoch_columns())

    @property
    def flips(self) -> pd.DataFrame:
        """A row a change of sign; empty before the first checkpoint."""
        path = self.path / "flips.parquet"
        return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=FLIP_COLUMNS)


def open_run(e: Experiment, workspace: Workspace) -> Run:
    """The run of this experiment. Raises ParameterError, DataError or RecordError before anything is trained."""
    data = open_packed(workspace.data_path(e.data))
    engine.check(e, data)
    return Run(e, data, workspace.runs)


def record(runs: Sequence[Run], device: torch.device | None = None) -> Iterator[Block]:
    """Train what is not finished and record it; yields the blocks. Leaving the loop keeps a resumable record.

    All runs share one device (by default that of the first experiment). Ctrl-C or SIGTERM: each run is checkpointed
    at the step it reached, then engine.Stopped is raised. Raises Diverged when a loss is no longer a number.
    """
    going = [run for run in runs if not run.finished]
    if not going:
        return
    device = device or engine.choose_device(going[0].experiment.device)
    recorders = [Recorder(run, device) for run in going]
    blocks = engine.train([(run.experiment, run.data) for run in going], device, [r.state for r in recorders])
    try:
        for block in blocks:
            recorders[block.run].add(block)
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


class Recorder:
    """Writes one run's record, block by block."""

    def __init__(self, run: Run, device: torch.device):
        self.run, self.e, self.path = run, run.experiment, run.path
        self.history: list[pd.DataFrame] = []
        self.epochs: list[dict] = []
        self.flips: list[pd.DataFrame] = []
        self.state: dict | None = None
        self.block: Block | None = None
        self.failed, self.seconds, self.images, self.saved_step = False, 0., 0, 0
        self.saved_at = time.monotonic()
        if (self.path / "checkpoint.safetensors").exists():
            self._resume()
        else:                                           # parts of an attempt that ended before its first checkpoint
            shutil.rmtree(self.path / "history", ignore_errors=True)
        self._write_head(device)

    def _write_head(self, device: torch.device) -> None:
        e = self.e
        write_json(self.path / "experiment.json", {
            "id": self.run.id, "semantics": SEMANTICS, "data": self.run.data.manifest["name"],
            "data_hash": self.run.data.hash, "drawn": self.run.data.drawn, "classes": self.run.data.classes,
            "image": self.run.data.image, "normalization": self.run.data.manifest["normalization"],
            "experiment": json.loads(e.to_json())})
        write_json(self.path / "environment.json", environment(e, device))
        self._write_result({"status": "running"})

    def _resume(self) -> None:
        """Cut the record back to the checkpoint's step: what came after will come again, bit for bit."""
        saved = read_state(self.path / "checkpoint.safetensors")
        self.state, step = saved["learner"], saved["learner"]["step"]
        self.seconds, self.images, self.saved_step = saved["seconds"], saved["images"], step
        for part in (self.path / "history").glob("*.parquet"):
            if int(part.stem.split("-")[0]) > step:
                part.unlink()
        epochs, flips = self.run.epochs, self.run.flips
        self.epochs = epochs[epochs["step"] <= step].to_dict("records")
        self.flips = [flips[flips["step"] <= step]]

    def add(self, block: Block) -> None:
        """Take a block in; checkpoint where it is time, finish where it is the last."""
        self.block = block
        self.history.append(history_table(block))
        self.epochs += epoch_rows(block, self.run.data.classes)
        self.flips.append(flip_table(block))
        self.seconds, self.images = self.seconds + block.seconds, self.images + block.images
        if not np.isfinite(block.loss).all():
            self.failed = True
            step = block.first_step + int(np.flatnonzero(~np.isfinite(block.loss))[0])
            raise Diverged(f"the loss of '{self.path.name}' is {block.loss[step - block.first_step]} at step {step}: "
                           f"the run has diverged; try a smaller lr than {self.e.lr:g}")
        if block.last:
            self.finish()
        elif time.monotonic() - self.saved_at >= self.e.checkpoint_seconds:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Everything needed to go on, written so that a crash at any moment leaves a consistent state."""
        if self.history:
            table = pd.concat(self.history, ignore_index=True)
            name = f"{table['step'].iloc[0]:09d}-{table['step'].iloc[-1]:09d}.parquet"
            write_table(self.path / "history" / name, table)
            self.history = []
        self._write_tables()
        write_state(self.path / "checkpoint.safetensors",
                    {"learner": self.block.state(), "seconds": self.seconds, "images": self.images})
        self.saved_at, self.saved_step = time.monotonic(), self.block.last_step

    def _write_tables(self) -> None:
        write_table(self.path / "epochs.parquet", pd.DataFrame(self.epochs, columns=epoch_columns()))
        write_table(self.path / "flips.parquet", pd.concat(self.flips, ignore_index=True))

    def stop(self, status: str, reason: str) -> None:
        """Keep what there is: a failed run's record ends at the failure, its checkpoint stays the last good one."""
        if self.block is None or self.run.finished:
            return
        if status == "interrupted" and self.block.last_step > self.saved_step:
            self.checkpoint()
        if status == "failed":
            write_table(self.path / "history" / f"{self.history[0]['step'].iloc[0]:09d}-failed.parquet",
                        pd.concat(self.history, ignore_index=True))
            self._write_tables()
        self._write_result({"status": status, "reason": reason, "step": self.block.last_step,
                            "steps": self.block.steps_per_epoch * self.e.epochs})

    def finish(self) -> None:
        """The final files, then result.json, then the leftovers go."""
        state = self.block.state()
        parts = sorted((self.path / "history").glob("*.parquet"))
        history = pd.concat([*map(pd.read_parquet, parts), *self.history], ignore_index=True)
        write_table(self.path / "history.parquet", history)
        self._write_tables()
        write_weights(self.path / "model.safetensors", state["best"]["weights"])
        flips = pd.concat(self.flips, ignore_index=True)
        speed = {"seconds": round(self.seconds, 3), "images_per_second": round(self.images / self.seconds, 1)}
        counts = {name: len(split) for name, split in self.run.data.splits.items()}
        self._write_result({"status": "finished", "n": counts, **speed,
                            **summary(self.e, pd.DataFrame(self.epochs), flips, self.block.steps_per_epoch)})
        (self.path / "checkpoint.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.path / "history", ignore_errors=True)

    def _write_result(self, values: dict) -> None:
        self.run.result = {"format": RECORD_FORMAT, "id": self.run.id, "study": self.e.study, "name": self.e.label,
                           "method": self.e.method, "seed": self.e.seed, "steered": False, **values}
        write_json(self.path / "result.json", self.run.result)


def history_table(block: Block) -> pd.DataFrame:
    """A row a step. Columns of w are `w_<statistic>/<site>`."""
    steps = np.arange(len(block.loss), dtype=np.int32)
    columns = {"step": block.first_step + steps, "epoch": np.full(len(steps), block.epoch, np.int32),
               "loss": block.loss, "lr": block.lr}
    for name, values in block.w.items():
        columns |= {f"w_{name}/{site}": values[:, k] for k, site in enumerate(block.sites)}
    return pd.DataFrame(columns)


def flip_table(block: Block) -> pd.DataFrame:
    """A row for each step and site where signs changed: new sign (+1, -1) and share of the site's signs."""
    rows = []
    for sign, turned in ((-1, block.turned_negative), (1, block.turned_positive)):
        for k, site in zip(*np.nonzero(turned)):
            rows.append((block.first_step + k, block.epoch, block.sites[site], sign, turned[k, site]))
    table = pd.DataFrame(rows, columns=FLIP_COLUMNS)
    table = table.astype({"step": np.int32, "epoch": np.int32, "site": str, "sign": np.int8, "share": np.float32})
    return table.sort_values(["step"], kind="stable", ignore_index=True)


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


def environment(e: Experiment, device: torch.device) -> dict:
    """What the numbers were made with. No host name, no path."""
    packages = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "device_type": device.type, "precision": Precision(e.precision, device).name,
            "threads": e.threads, "deterministic": e.deterministic, "cuda": torch.version.cuda,
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
