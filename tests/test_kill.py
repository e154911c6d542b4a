"""A killed run, and a disk that really is full: the same command goes on, and ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import mounted

import data_prep
from data_prep.check import check
from data_prep.packed import CLASSES, DataError, Plan, partial_directory
from data_prep.writer import _locked, _note, write

REPOSITORY = Path(data_prep.__file__).parents[1]
CHAIN = 3  # kills of one directory, each in a run that picks up where the last was killed
ROWS, PARTS = 4800, 6  # 3,600 of them training images, in four parts
KILLS = int(os.environ.get("FER_KILLS", CHAIN))


def start(source: Path, out: Path) -> subprocess.Popen:
    """Packs with two workers, in a process group of its own."""
    command = [sys.executable, "-m", "data_prep", "fer2013", "--source", str(source), "--out", str(out), "--dedup"]
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--workers", "2"], cwd=REPOSITORY, env=environment, **silent)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A fer2013.csv of noise in which every 100th image is broken and every 150th is there twice."""
    rng = np.random.default_rng(0)
    lines = ["emotion,pixels,Usage"]
    for n in range(ROWS):
        pixels = " ".join(map(str, rng.integers(0, 256, 48 * 48)))
        pixels = lines[-1].split(",")[1] if n % 150 == 149 else pixels[:-9] if n % 100 == 50 else pixels
        lines.append(f"{n % 7},{pixels},{('Training', 'PublicTest', 'PrivateTest')[max(n - ROWS + 1200, 0) // 600]}")
    path = tmp_path_factory.mktemp("source") / "fer2013.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert start(source, out).wait() == 0
    assert check(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kept"] == ROWS - sum(manifest["dropped"].values()) and len(manifest["dropped"]) == 2
    return tree(out)


@pytest.mark.parametrize("chain", range(-(-KILLS // CHAIN)))
def test_killed_at_random_moments_it_ends_the_same(source, whole, tmp_path, chain):
    """SIGKILL to the whole group, as when memory runs out or the power fails; whatever is there then is never taken
    for a whole set. The moments are drawn by how far a run has come, and some milliseconds later, so that they hit the
    start, the decoding, the joining, the audit on any machine; if a run ends before, a new directory is begun."""
    rng = random.Random(chain)
    out, seen = tmp_path / "out", []
    for moment in sorted(rng.randrange(4 + PARTS) for _ in range(min(CHAIN, KILLS - chain * CHAIN))):
        moment = max(moment, progress(out) + 1)
        process = start(source, out)
        while progress(out) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        seen.append(f"{progress(out)} of {3 + PARTS}" + ", ended" * (process.returncode == 0))
        if out.exists():
            assert check(out) == []
            if process.returncode == 0:
                assert tree(out) == whole and not partial_directory(out).exists()
                shutil.rmtree(out)
    assert start(source, out).wait() == 0
    assert tree(out) == whole and not partial_directory(out).exists()
    print(f"killed at {'; '.join(seen)}")


def test_what_a_kill_after_the_end_left_goes_with_the_next_start_but_for_others_work(tmp_path):
    plan, out = make_plan(), tmp_path / "out"
    parts = partial_directory(out)
    write(plan, out)
    assert not parts.exists()
    for left in ({"plan.json": _note(plan)}, {}):       # killed before the removal, and at its end
        (parts / "done").mkdir(parents=True) if left else parts.mkdir()
        (parts / "lock").touch()
        for name, content in left.items():
            (parts / name).write_text(json.dumps(content))
        write(plan, out)
        assert not parts.exists()
    parts.mkdir()
    (parts / "plan.json").write_text(json.dumps({"plan_sha256": "another's"}))
    write(plan, out)
    assert (parts / "plan.json").exists()
    (parts / "plan.json").write_text(json.dumps(_note(plan)))
    with _locked(parts):                                # another process packs it anew with overwrite
        write(plan, out)
        assert (parts / "plan.json").exists()


def progress(out: Path) -> int:
    """How far a run came: 0 nothing, 1 begun, one more for each finished part, for joining, and for the rename."""
    parts = partial_directory(out)
    if out.exists():
        return 3 + PARTS
    joining = bool(list(parts.glob("done/*/*.parquet")))
    return parts.exists() + (1 + PARTS if joining else len(list(parts.glob("*.npz"))))


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "24m") as place:
        yield place


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes of the disk."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(max(free - leave, 0)))
    return disk / "filler"


N, SIDE = 3000, 48  # 7 MB


def blank(rows: pd.DataFrame, split: str) -> np.ndarray:
    return np.broadcast_to(rows.index.to_numpy(np.uint8)[:, None, None, None], (len(rows), 1, SIDE, SIDE))


def make_plan() -> Plan:
    rows = pd.DataFrame({"label": np.arange(N) % 7, "source": [f"toy.csv:{n + 2}" for n in range(N)]})
    facts = dict(name="toy", title="Toy", licence="none", release="1", files={})
    samples = {"train": rows, "val": rows[:0], "test": rows[:0]}
    return Plan(classes=CLASSES, shape=(1, SIDE, SIDE), samples=samples, decode=blank, **facts)


def test_too_little_space_is_said_before_the_start(small_disk):
    fill(small_disk, 7 << 20)
    with pytest.raises(DataError, match="packing needs up to 0.01 GB beside"):
        write(make_plan(), small_disk / "out")
    assert not (small_disk / "out").exists()


@pytest.mark.parametrize("leave_kb", [1000, 6000, 6900, 6960])
def test_a_disk_that_fills_up_on_the_way(small_disk, tmp_path, monkeypatch, leave_kb):
    """Somebody else fills it after the check, so that the first pixels, later ones, a note, or the joining fails."""
    monkeypatch.setattr("data_prep.disk.check_space", lambda folder, needed: None)
    filler = fill(small_disk, leave_kb << 10)
    out = small_disk / "out"
    with pytest.raises(DataError, match="No space left on device; free space and run the same command again") as said:
        write(make_plan(), out)
    print(said.value)
    assert not out.exists() and not list(small_disk.rglob("*.tmp"))
    filler.unlink()
    write(make_plan(), out)
    write(make_plan(), tmp_path / "elsewhere")
    assert tree(out) == tree(tmp_path / "elsewhere")
