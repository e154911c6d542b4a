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

import pytest
from source_trees import photo, save

import data_prep
from data_prep.__main__ import main
from data_prep.check import check
from data_prep.packed import partial_directory

REPOSITORY = Path(data_prep.__file__).parents[1]
KILLS = int(os.environ.get("FER_KILLS", 3))     # 20 took 283 s on two busy cores


def start(source: Path, out: Path) -> subprocess.Popen:
    """Packs with two workers, in a process group of its own."""
    options = ["--size", "128", "--val-share", "0.2", "--test-share", "0.1", "--workers", "2"]
    command = [sys.executable, "-m", "data_prep", "image_folder", "--source", str(source), "--out", str(out), *options]
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, **silent)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Files of drawn faces, many of them links to one file, and some that are broken."""
    root = tmp_path_factory.mktemp("faces")
    for k in range(60):
        path = save(root / ("happy", "sad", "fear")[k % 3] / f"{k:04d}-0.jpg", photo(k, 200), quality=90)
        for copy in range(1, 10):
            os.link(path, path.with_name(f"{k:04d}-{copy}.jpg"))
    save(root / "happy" / "broken.jpg", b"no image")
    save(root / "sad" / "empty.jpg", b"")
    return root


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def parts(out: Path) -> int:
    return len(list(partial_directory(out).glob("*.npz")))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What an uninterrupted run makes, and how long it takes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    begin = time.monotonic()
    assert start(source, out).wait() == 0
    seconds = time.monotonic() - begin
    assert check(out) == []
    assert json.loads((out / "manifest.json").read_text())["kept"] == 600
    return tree(out), seconds


def test_killed_at_random_moments_it_ends_the_same(source, whole, tmp_path):
    """SIGKILL to the whole group, as when memory runs out or the power fails; whatever is there then is never taken
    for a whole set. Kills come after a random share of the time that an uninterrupted run takes, so that they hit the
    start, the decoding, the joining, the audit; whenever a run ends before its kill, a new directory is begun."""
    expected, seconds = whole
    rng = random.Random(0)
    out, done, seen = tmp_path / "out", 0, set()
    for k in range(KILLS):
        process = start(source, out)
        try:
            process.wait((0.3 + 0.75 * (k + rng.random()) / KILLS) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        seen.add(state(out))
        if out.exists():
            assert check(out) == []
            if process.returncode == 0:
                assert tree(out) == expected and not partial_directory(out).exists()
                done += 1
                shutil.rmtree(out)
    assert start(source, out).wait() == 0
    assert tree(out) == expected and not partial_directory(out).exists()
    assert "parts" in seen, f"no kill hit the decoding, only {seen}"
    print(f"{KILLS - done} of {KILLS} killed; states met: {sorted(seen)}")


def state(out: Path) -> str:
    """How far a run came."""
    if out.exists():
        return "whole" if (out / "audit.json").exists() else "not audited"
    if not partial_directory(out).exists():
        return "nothing"
    return "joining" if (partial_directory(out) / "done").exists() else "parts" if parts(out) else "begun"


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk to fill, mounting is not allowed here ({mounted.stderr.decode().strip()[:60]})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes of the disk."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(max(free - leave, 0)))
    return disk / "filler"


def sentence(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("data_prep: ")]
    return lines[-1]


TINY = ["synthetic", "--n-train", "3000", "--n-val", "70", "--n-test", "70", "--size", "48"]  # 7 MB


def test_too_little_space_is_said_before_the_start(small_disk, capsys):
    fill(small_disk, 8 << 20)
    assert main([*TINY, "--out", str(small_disk / "out")]) == 2
    assert "packing needs up to" in sentence(capsys) and not (small_disk / "out").exists()


@pytest.mark.parametrize("leave", [1, 5, 9, 13])
def test_a_disk_that_fills_up_on_the_way(small_disk, tmp_path, monkeypatch, capsys, leave):
    """Somebody else fills it after the check: with `leave` MB, the first shard, a later one, or the joining fails."""
    monkeypatch.setattr("data_prep.disk.check_space", lambda folder, needed: None)
    filler = fill(small_disk, leave << 20)
    out = small_disk / "out"
    assert main([*TINY, "--out", str(out), "--no-audit"]) == 2
    said = sentence(capsys)
    assert "No space left on device; free space and run the same command again" in said, said
    assert not out.exists() and not list(small_disk.rglob("*.tmp"))
    filler.unlink()
    assert main([*TINY, "--out", str(out), "--no-audit"]) == 0
    assert main([*TINY, "--out", str(tmp_path / "elsewhere"), "--no-audit"]) == 0
    assert tree(out) == tree(tmp_path / "elsewhere")
