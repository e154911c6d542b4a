"""Shared by the tests: packed data of random images that are easily learnt, small experiments, a short ResNet.

`short_resnet` gives ResNet-18 one block a stage: the same sites and code, half the time. Tests of the sites themselves
use the real one.
"""

import gc
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")           # read when torch is imported; `make test` runs a worker a core

import hypothesis  # noqa: E402
import nbval.kernel
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fer_lib import engine, models
from fer_lib.data import PackedDataset, Split
from fer_lib.engine import Block, train
from fer_lib.experiment import Experiment

# the suite draws the same cases each time; long runs (FER_FUZZ_CASES) draw new ones
hypothesis.settings.register_profile("suite", derandomize=True)
if "FER_FUZZ_CASES" not in os.environ:
    hypothesis.settings.load_profile("suite")

# a shell that starts the tests in the background lets them ignore Ctrl-C, and all processes that they start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    nbval.kernel.start_new_kernel = started(nbval.kernel.start_new_kernel)


def started(start: Callable) -> Callable:
    """Kernels are started up to three times, as batch's are: a port that was free when it was chosen can be another's
    when the kernel comes to take it (jupyter_client issue 154).
    """
    def start_new_kernel(*args: object, **kwargs: object) -> tuple:
        for _ in range(2):
            with suppress(RuntimeError):
                return start(*args, **kwargs)
        return start(*args, **kwargs)
    return start_new_kernel


def pytest_collection_finish() -> None:
    """Modules and collected tests stay until the end: later searches for garbage leave them out."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cuts fuzz tests into parts for long runs (see `fuzzing`)."""
    mark = metafunc.definition.get_closest_marker("fuzz")
    if mark and mark.kwargs["parts"] > 1:
        metafunc.fixturenames.append("part")
        metafunc.parametrize("part", range(mark.kwargs["parts"]))


def sampled(values: Iterable, some: Callable[[object], bool]) -> list:
    """For parametrize: `some` of the values in make test, the rest in make stress."""
    return [v if some(v) else pytest.param(*v if isinstance(v, tuple) else [v], marks=pytest.mark.long) for v in values]


CPU = torch.device("cpu")
CLASSES = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger"]
SIZES = {"train": 64, "val": 16, "test": 16}
# eight steps an epoch; 64 px channels become 3
SMALL = dict(width=0.05, batch_size=8, lr=1e-3, epochs=2, device="cpu")


def make_split(n: int, rng: np.random.Generator, side: int, channels: int, soft: bool) -> Split:
    """Random pixels; the rows that belong to the label are dark."""
    labels = rng.integers(0, 7, n)
    labels[:7] = np.arange(7)[:n]
    images = rng.integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[:, label * 2 : label * 2 + 2] //= 4
    samples = pd.DataFrame({"label": labels.astype(np.int64)})
    if soft:
        rows = 0.5 * np.eye(7)[labels] + 0.5 * np.eye(7)[(labels + 1) % 7]
        samples["soft"] = list(rows.astype(np.float32))
    return Split(images, samples)


def make_data(seed: int = 0, sizes: dict[str, int] = SIZES, side: int = 16, channels: int = 1,
              soft: bool = False) -> PackedDataset:
    """A packed data set in memory."""
    rng = np.random.default_rng(seed)
    splits = {name: make_split(n, rng, side, channels, soft) for name, n in sizes.items()}
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(split.images.tobytes() + split.samples["label"].to_numpy().tobytes())
    pixels = splits["train"].images / 255
    manifest = {"format": 1, "name": "fake", "classes": CLASSES, "content_sha256": digest.hexdigest(),
                "image": {"channels": channels, "height": side, "width": side},
                "normalization": {"mean": pixels.mean((0, 2, 3)).tolist(), "std": pixels.std((0, 2, 3)).tolist()}}
    return PackedDataset(Path("fake"), manifest, splits)


def write_packed(folder: Path, data: PackedDataset) -> Path:
    """The data set on disk, as data_prep writes it."""
    entries = {}
    for name, split in data.splits.items():
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", split.images)
        split.samples.to_parquet(folder / name / "samples.parquet", index=False)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
                 for p in sorted((folder / name).iterdir())}
        entries[name] = {"n": len(split), "files": files}
    (folder / "manifest.json").write_text(json.dumps({**data.manifest, "splits": entries}))
    return folder


def make_experiment(**settings) -> Experiment:
    return Experiment(**{**SMALL, **settings})


@dataclass
class Trained:
    """What a run left in memory: its blocks joined."""

    blocks: list[Block]

    @property
    def loss(self) -> np.ndarray:
        return np.concatenate([b.loss for b in self.blocks])

    @property
    def lr(self) -> np.ndarray:
        return np.concatenate([b.lr for b in self.blocks])

    @property
    def w(self) -> np.ndarray:
        """Mean w after each step, by site: (steps, sites)."""
        return np.concatenate([b.w["mean"] for b in self.blocks])

    @property
    def turned_negative(self) -> np.ndarray:
        return np.concatenate([b.turned_negative for b in self.blocks])

    @property
    def turned_positive(self) -> np.ndarray:
        return np.concatenate([b.turned_positive for b in self.blocks])

    @property
    def flip_steps(self) -> list[int]:
        """Steps, from 1, whose forward was the first with another sign anywhere."""
        turned = (self.turned_negative + self.turned_positive).any(1)
        return (np.flatnonzero(turned) + 1).tolist()

    @property
    def macro_f1(self) -> list[float]:
        return [v.scores.macro_f1 for b in self.blocks for v in b.evaluations]

    @property
    def model(self) -> dict[str, Tensor]:
        return self.blocks[-1].model()


def train_together(experiments: Sequence[Experiment], data: PackedDataset) -> list[Trained]:
    blocks = list(train([(e, data) for e in experiments], CPU))
    return [Trained([b for b in blocks if b.run == k]) for k in range(len(experiments))]


def train_one(e: Experiment, data: PackedDataset) -> Trained:
    return train_together([e], data)[0]


def assert_same_bits(a: Trained, b: Trained) -> None:
    """Losses, scores and every tensor of the models."""
    assert a.loss.tobytes() == b.loss.tobytes()
    assert a.macro_f1 == b.macro_f1
    assert a.model.keys() == b.model.keys()
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.LAYERS, "resnet18", (models.BasicBlock, [1, 1, 1, 1]))


HELD: list[socket.socket] = []


def free_port() -> int:
    """For a server of a moment later: below the ports that systems give to whoever asks for any, such as kernels.

    A datagram socket holds the number as long as this process lives, so that tests side by side don't take the same.
    """
    while True:
        with socket.socket() as s, socket.socket(type=socket.SOCK_DGRAM) as held, suppress(OSError):
            held.bind(("127.0.0.1", port := random.randrange(20_000, 32_000)))
            s.bind(("127.0.0.1", port))
            HELD.append(held.dup())
            return port


@pytest.fixture
def short_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are cut by steps alone: a busy machine makes none of them shorter."""
    monkeypatch.setattr(engine, "BLOCK_SECONDS", 600.)


@pytest.fixture
def data() -> PackedDataset:
    return make_data()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed data set on disk, with soft labels."""
    return write_packed(tmp_path / "packed" / "fake", make_data(soft=True))


@pytest.fixture(scope="session")
def kit() -> list:
    """The verdicts on the records that came with the kit: seconds, so once a process."""
    from fer_lib.study_records import judged  # here, as processes that import this file need no scipy
    from fer_lib.workspace import find_workspace

    return judged(find_workspace())


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A disk of that size, where this process may mount one."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk to fill, mounting is not allowed here ({done.stderr.decode().strip()[:60]})")
    try:
        yield place
    finally:
        gc.collect()                                    # an error that was caught may hold a file that is open there
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """With room for the first files of a run."""
    with mounted(tmp_path / "disk", "60k") as place:
        yield place


# --- a JupyterLab and a browser (jupyterlab.py), for the tests that look at notebooks ---


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Of each module: while it is open, an event loop runs in this thread."""
    from jupyterlab import find_browser, open_browser

    assert find_browser(), "CI must install a browser"
    with open_browser() as found:
        yield found


@pytest.fixture
def context(browser) -> Iterator[object]:
    """A browser's fresh profile, with a window a notebook fits in."""
    found = browser.new_context(viewport={"width": 1300, "height": 1150})
    yield found
    found.close()


@pytest.fixture(scope="session")
def shared_place(tmp_path_factory) -> Iterator[object]:
    from jupyterlab import Place

    found = Place(tmp_path_factory.mktemp("newest"))
    yield found
    found.lab.stop()


@pytest.fixture
def place(shared_place) -> Iterator[object]:
    """A running JupyterLab with notebooks as they come, no kernel and no run."""
    shared_place.lab.end_sessions()
    yield shared_place.fresh()
    shared_place.lab.end_sessions()
