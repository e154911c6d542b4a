"""A run while it is unfinished: one binary row a step, and a line of JSON an epoch's score or event, appended.

    log/steps.json      the sites and the row's fields
    log/steps           the rows
    log/epochs.jsonl    rows of epochs.parquet
    log/events.jsonl    rows of events.parquet

Appending costs the same at any length, readers on the same or another machine follow the files as they grow, and going
on from a checkpoint cuts them back to its step. At the end they become the record's tables.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fer_lib.files import RecordError, reading, write_atomically, write_json, writing

W_STATISTICS = ("mean", "sd", "min", "max", "channel")
SIGNS = ("negative", "turned_negative", "turned_positive")
FLIP_COLUMNS = ["step", "epoch", "site", "sign", "share"]
CHUNK = 65_536          # rows that are read together


def row_type(sites: list[str], has_w: bool) -> np.dtype:
    """A step's row. seconds: of training so far; memory: bytes; w (statistic, site); signs (SIGNS, site), shares."""
    fields = [("step", "<i4"), ("epoch", "<i4"), ("seconds", "<f8"), ("memory", "<f8"), ("loss", "<f8"), ("lr", "<f8"),
              ("signs", "<f4", (len(SIGNS), len(sites)))]
    if has_w:
        fields.append(("w", "<f8", (len(W_STATISTICS), len(sites))))
    return np.dtype(fields)


def block_rows(block, seconds: float = 0.) -> np.ndarray:
    """An engine.Block's steps as rows. `seconds`: of training before it."""
    rows = np.zeros(len(block.loss), row_type(block.sites, bool(block.w)))
    steps = np.arange(1, len(rows) + 1)
    rows["step"], rows["epoch"] = block.first_step - 1 + steps, block.epoch
    rows["seconds"] = seconds + block.seconds * steps / max(1, len(rows))
    rows["memory"], rows["loss"], rows["lr"] = block.memory, block.loss, block.lr
    for k, name in enumerate(SIGNS):
        rows["signs"][:, k] = getattr(block, name)
    for k, name in enumerate(W_STATISTICS if block.w else ()):
        rows["w"][:, k] = block.w[name]
    return rows


class StepLog:
    """The writer. Begins anew, or goes on after `step` of an earlier attempt, of whose events `events` are kept.
    epochs: how many rows of epochs.jsonl it had written until then, at least.

    Raises RecordError where it can't.
    """

    def __init__(self, run: Path, sites: list[str], has_w: bool, step: int = 0, events: int = 0, epochs: int = 0):
        self.folder, self.type = run / "log", row_type(sites, has_w)
        with writing(self.folder / "steps"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if step:
                self._cut_back(step, events, epochs)
            else:
                for name in ("steps", "epochs.jsonl", "events.jsonl"):
                    (self.folder / name).write_bytes(b"")
            self.files = {name: open(self.folder / name, "ab") for name in ("steps", "epochs.jsonl", "events.jsonl")}
        write_json(self.folder / "steps.json", {"sites": sites, "has_w": has_w})

    def _cut_back(self, step: int, events: int, epochs: int) -> None:
        """Drop what came after the checkpoint's step: it will come again, bit for bit."""
        path, size = self.folder / "steps", step * self.type.itemsize
        with reading(self.folder / "epochs.jsonl"):
            kept = {"epochs.jsonl": [row for row in read_lines(self.folder / "epochs.jsonl") if row["step"] <= step],
                    "events.jsonl": read_lines(self.folder / "events.jsonl")[:events]}
        short = ["steps"] if not path.exists() or path.stat().st_size < size else []
        least = {"epochs.jsonl": epochs, "events.jsonl": events}
        short += [name for name, rows in kept.items() if len(rows) < least[name]]
        if short:
            raise RecordError(f"'{self.folder.parent.name}/log/{short[0]}' is missing or shorter than its checkpoint "
                              "(an earlier version of this kit may have begun it): delete the run's folder to train "
                              "it anew")
        os.truncate(path, size)
        for name, rows in kept.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self.folder / name, lambda p, text=text: p.write_text(text))

    def add(self, rows: np.ndarray, epochs: list[dict], events: list[dict]) -> None:
        """Append; readers see it at once."""
        with writing(self.folder / "steps"):
            for name, data in (("steps", rows.tobytes()),
                               *((name, "".join(json.dumps(row) + "\n" for row in table).encode())
                                 for name, table in (("epochs.jsonl", epochs), ("events.jsonl", events)))):
                if data:
                    self.files[name].write(data)
                    self.files[name].flush()

    def sync(self) -> None:
        """Return when all is on the disk itself."""
        with writing(self.folder / "steps"):
            for file in self.files.values():
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class LogReader:
    """Follows a run's log as it grows, from any process. `restarted` counts how often it was cut back or begun anew.

    Raises FileNotFoundError where the run has taken no step, and RecordError.
    """

    def __init__(self, run: Path):
        self.folder = run / "log"
        self.rows_read, self.restarted, self._begun = 0, 0, None
        head = (self.folder / "steps.json").read_bytes()
        with reading(self.folder / "steps.json"):
            self.sites, self.has_w = (json.loads(head)[k] for k in ("sites", "has_w"))
            self.type = row_type(self.sites, self.has_w)

    def rows(self, limit: int = CHUNK) -> np.ndarray:
        """The next rows, at most `limit`; none where there is nothing new."""
        try:
            with open(self.folder / "steps", "rb") as f:
                available = os.fstat(f.fileno()).st_size // self.type.itemsize
                if available < self.rows_read:
                    self.rows_read, self.restarted = 0, self.restarted + 1
                f.seek(self.rows_read * self.type.itemsize)
                data = f.read(min(limit, available - self.rows_read) * self.type.itemsize)
        except FileNotFoundError:                       # the run has finished in this moment
            data = b""
        rows = np.frombuffer(data[:len(data) // self.type.itemsize * self.type.itemsize], self.type)
        self.rows_read += len(rows)
        return rows

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows to come, in pieces."""
        while len(rows := self.rows()):
            yield rows


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a .jsonl file; a last one that is being written is left out. Raises RecordError."""
    try:
        return parse_lines(path, path.read_bytes())[0]
    except FileNotFoundError:
        return []


def parse_lines(path: Path, data: bytes) -> tuple[list[dict], int]:
    """(The whole lines of what was read from the file, their bytes). Raises RecordError."""
    whole = data[:data.rfind(b"\n") + 1]
    with reading(path):
        rows = [dict(json.loads(line)) for line in whole.splitlines()]
    return rows, len(whole)


def history_table(rows: np.ndarray, sites: list[str]) -> pd.DataFrame:
    """Rows as history.parquet holds them. Columns of w are `w_<statistic>/<site>`."""
    columns = {name: rows[name] for name in ("step", "epoch", "loss", "lr")}
    if "w" in rows.dtype.names:
        columns |= {f"w_{name}/{site}": rows["w"][:, j, k] for j, name in enumerate(W_STATISTICS)
                    for k, site in enumerate(sites)}
    return pd.DataFrame(columns)


def flip_table(rows: np.ndarray, sites: list[str]) -> pd.DataFrame:
    """A row for each step and site where signs changed: new sign (+1, -1) and share of the site's signs."""
    found = []
    for sign, name in ((-1, "turned_negative"), (1, "turned_positive")):
        turned = rows["signs"][:, SIGNS.index(name)]
        found += [(rows["step"][k], rows["epoch"][k], sites[site], sign, turned[k, site])
                  for k, site in zip(*np.nonzero(turned))]
    table = pd.DataFrame(found, columns=FLIP_COLUMNS)
    table = table.astype({"step": np.int32, "epoch": np.int32, "site": str, "sign": np.int8, "share": np.float32})
    return table.sort_values(["step"], kind="stable", ignore_index=True)


def as_rows(history: pd.DataFrame, flips: pd.DataFrame, sites: list[str]) -> np.ndarray:
    """The inverse: rows from a finished run's tables, without seconds and memory."""
    has_w = any(c.startswith("w_mean/") for c in history)
    rows = np.zeros(len(history), row_type(sites, has_w))
    for name in ("step", "epoch", "loss", "lr"):
        rows[name] = history[name]
    for j, name in enumerate(W_STATISTICS if has_w else ()):
        for k, site in enumerate(sites):
            rows["w"][:, j, k] = history[f"w_{name}/{site}"]
    index: Mapping[str, int] = {site: k for k, site in enumerate(sites)}
    at = np.searchsorted(rows["step"], flips["step"])
    for row, site, sign, share in zip(at, flips["site"], flips["sign"], flips["share"]):
        rows["signs"][row, SIGNS.index("turned_negative" if sign < 0 else "turned_positive"), index[site]] = share
    change = rows["signs"][:, 1].astype(float) - rows["signs"][:, 2]
    rows["signs"][:, 0] = np.clip(np.cumsum(change, 0), 0, 1)
    return rows
