"""Files are whole or absent; states come back as they were; a full or damaged disk is one sentence."""

import errno
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import mounted
from safetensors import SafetensorError

from fer_lib.checkpoint import read_state, read_weights, write_state, write_weights
from fer_lib.files import RecordError, read_json, read_table, reading, write_atomically, write_json, write_table


def test_a_file_appears_whole_and_without_a_temporary(tmp_path):
    path = tmp_path / "new" / "a.txt"

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
        temporary.write_text("whole")

    write_atomically(path, write)
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error"), ValueError("x")],
                         ids=lambda e: type(e).__name__)
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(RecordError if isinstance(error, OSError) else type(error)):
        write_atomically(path, write)
    assert path.read_text() == '{\n "old": 1\n}\n' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")], ids=str)
def test_a_full_disk_is_one_sentence_with_the_way_out(tmp_path, error):
    def write(temporary: Path) -> None:
        raise error

    with pytest.raises(RecordError) as caught:
        write_atomically(tmp_path / "run" / "a.json", write)
    assert str(caught.value) == (
        "can't write 'run/a.json': the disk is full; what was recorded before is kept: make room or set FER_RUNS to "
        "another folder, then start the same command again")
    assert caught.value._render_traceback_() == [f"RecordError: {caught.value}"]


def test_a_disk_that_fails_otherwise_is_named(tmp_path):
    def write(temporary: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(RecordError, match="can't write '.*/a.json': Permission denied; what was recorded"):
        write_atomically(tmp_path / "a.json", write)


@pytest.fixture
def small_disk(tmp_path):
    """1 MiB of memory as a disk."""
    with mounted(tmp_path / "disk", "1m") as place:
        yield place


def test_a_disk_that_is_really_full(small_disk):
    path = small_disk / "run" / "checkpoint.safetensors"
    write_state(path, {"step": 1})
    big = torch.zeros(1_000_000)
    table = pd.DataFrame({"x": torch.rand(1_000_000, dtype=torch.float64).numpy()})
    for write, value in ((write_state, {"w": big}), (write_weights, {"w": big}), (write_table, table),
                         (write_json, ["x" * 2_000_000])):
        with pytest.raises(RecordError, match="^can't write 'run/checkpoint.safetensors': the disk is full; "):
            write(path, value)
        assert read_state(path) == {"step": 1} and list(path.parent.iterdir()) == [path]


def same(a: object, b: object) -> bool:
    """Equal in value and in every type, tensors bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return [*a] == [*b] and all(type(j) is type(k) and same(a[j], b[k]) for j, k in zip(a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_a_state_comes_back_as_it_was(tmp_path):
    shared = torch.arange(6.).reshape(2, 3)
    state = {"optimizer": {"state": {0: {"step": torch.tensor(3.), "w": shared.T}, 1: {"w": shared}, 10: {}},
                           "param_groups": [{"lr": 1e-3, "betas": (.9, .999), "fused": None, "params": [0, 1]}]},
             "best": -math.inf, "worst": math.inf, "none": math.nan, "flag": True, "count": 2 ** 60, "text": "ü/'\n",
             "empty": [(), {}, []], "tensor": {"tensor": "no path"}, "a": {"b/c": torch.zeros(0, dtype=torch.int64)},
             "half": torch.tensor([1.5], dtype=torch.bfloat16), "mask": torch.tensor([True, False])}
    write_state(tmp_path / "a.safetensors", state)
    back = read_state(tmp_path / "a.safetensors")
    assert same(back, state)
    assert not same(back, {**state, "flag": 1})         # the comparison itself is strict


def test_a_state_that_is_replaced_while_it_is_read_is_one_state(tmp_path):
    """Another process writes states of many sizes: what is read is one of them."""
    program = """
import sys, itertools, torch
from pathlib import Path
from fer_lib.checkpoint import write_state
for k in itertools.count():
    write_state(Path(sys.argv[1]), {"step": k, "w": torch.full((1 + k % 7 * 5000,), float(k))})
    print(k, flush=True)
"""
    path = tmp_path / "checkpoint.safetensors"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        steps = [-1]
        while steps[-1] < 60:
            state = read_state(path)
            assert len(state["w"]) == 1 + state["step"] % 7 * 5000 and (state["w"] == state["step"]).all()
            steps.append(state["step"])
        writer.kill()
    assert steps == sorted(steps)


def test_a_state_of_something_else_is_refused(tmp_path):
    with pytest.raises(TypeError, match="not set at '/a/1'"):
        write_state(tmp_path / "a.safetensors", {"a": [1, {2}]})
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_is_one_sentence(tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    write_state(path, {"w": torch.zeros(100)})
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:20], b"", b"\xff" * 400):
        path.write_bytes(damaged)
        with pytest.raises(RecordError) as caught:
            read_state(path)
        text = str(caught.value)
        assert text.startswith("'run/checkpoint.safetensors' is damaged (") and "\n" not in text
        assert text.endswith("): delete that file to start the run anew")
    path.unlink()
    write_weights(path, {"w": torch.zeros(1)})
    with pytest.raises(RecordError, match="is damaged"):
        read_state(path)


def test_weights_come_back_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    weights = {"a": torch.rand(3, 4).T, "b": torch.tensor(7)}
    write_weights(path, weights)
    assert same(read_weights(path), weights)
    path.write_bytes(path.read_bytes()[:-5])
    for _ in range(2):                                  # damaged, then missing
        with pytest.raises(RecordError, match="no readable weights in 'run/model.safetensors'"):
            read_weights(path)
        path.unlink(missing_ok=True)


def test_what_cannot_be_read_says_how_and_the_way_out(tmp_path):
    path = tmp_path / "run" / "a.json"
    path.parent.mkdir()
    with pytest.raises(RecordError, match="^'run/a.json' is missing: delete its folder to train the run again$"):
        read_json(path)
    for text in ("", "{", "[1]", "null", "\xff"):
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(RecordError, match="^'run/a.json' is damaged: look$"):
            read_json(path, "look")
    path.unlink()
    path.mkdir()
    with pytest.raises(RecordError, match=r"^'run/a.json' can't be read \(Is a directory\): look$"):
        read_json(path, "look")
    with pytest.raises(RecordError, match="^'run/b.parquet' is missing: look$"):
        read_table(path.with_name("b.parquet"), "look")
    with pytest.raises(RecordError, match="^another sentence$"), reading(path):
        raise RecordError("another sentence")


def test_a_name_that_is_too_long_is_a_sentence(tmp_path):
    with pytest.raises(RecordError, match="can't write '.*: File name too long; "):
        write_json(tmp_path / ("x" * 300), {})
