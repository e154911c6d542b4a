"""Records that are damaged: whoever reads them says so in a sentence."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CPU, make_data, make_experiment, sampled, short, write_packed
from PIL import Image

from fer_lib import calibrate, engine, predict, records, robustness
from fer_lib.files import RecordError
from fer_lib.live.follower import Follower
from fer_lib.records import read_records
from fer_lib.runs import Run, open_run, record
from fer_lib.workspace import Workspace

FILES = ("experiment.json", "environment.json", "result.json", "epochs.parquet", "flips.parquet", "history.parquet",
         "model.safetensors", "robustness.parquet")
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut off": lambda content: content[:len(content) // 2],
    "other bytes": lambda content: content[:len(content) // 2] + b"\xff\x00\x13" + content[len(content) // 2 + 3:],
    "an empty object": lambda content: b"{}",
    "a list": lambda content: b"[1]",
    "null": lambda content: b"null"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(workspace, a run's path, a copy of it finished and measured, a copy of it after one of two epochs)."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        patch.setattr(engine, "BLOCK_SECONDS", 600.)    # the first block is the first epoch, also on a slow machine
        for name in ("fer_lib", "notebooks"):
            (folder / name).mkdir()
        patch.chdir(folder)
        patch.setenv("FER_RUNS", str(folder / "runs"))
        patch.setenv("FER_PACKED", str(folder / "packed"))
        write_packed(folder / "packed" / "tiny", make_data(soft=True))
        workspace = Workspace(folder, folder / "packed", folder / "runs")
        run = opened(workspace)
        next(blocks := record([run], CPU))
        blocks.close()
        assert not run.finished and (run.path / "checkpoint.safetensors").exists()
        shutil.copytree(run.path, folder / "half")
        list(record([opened(workspace)], CPU))
        assert quiet(robustness.main, [str(run.path), "--device", "cpu"])[0] == 0
        Image.new("L", (16, 16)).save(folder / "face.png")
        shutil.copytree(run.path, folder / "whole")
        assert {path.name for path in run.path.iterdir()} >= set(FILES)
        yield workspace, run.path, folder / "whole", folder / "half"


def opened(workspace: Workspace) -> Run:
    return open_run(make_experiment(method="dynamic", epochs=2, data="tiny", study="s"), workspace)


def quiet(main: Callable[[list[str]], int], words: list[str]) -> tuple[int, str]:
    """(exit code, stderr)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        return main(words), said.getvalue()


def readers(workspace: Workspace, run: Path) -> dict[str, Callable[[], object]]:
    def command(main: Callable[[list[str]], int], *words: object) -> Callable[[], None]:
        def call() -> None:
            code, said = quiet(main, [str(word) for word in words])
            if code:
                raise RecordError(said)
        return call

    def tables() -> None:
        again = opened(workspace)
        lengths = [len(table) for table in (again.epochs, again.history, again.flips)]
        assert not again.finished or lengths[0] and lengths[1]

    return {"predict": command(predict.main, run, workspace.root / "face.png"),
            "calibrate": command(calibrate.main, run, "--batches", 1),
            "robustness": command(robustness.main, run, "--device", "cpu"),
            "export": command(records.main, "export", run.parent, "--out", workspace.root / "small"),
            "records": lambda: read_records(run.parent),
            "tables": tables,
            "monitor": lambda: Follower(run).update(),
            "training": lambda: list(record([opened(workspace)], CPU))}


def sentences(workspace: Workspace, run: Path, whole: Path, file: str) -> dict[tuple[str, str], str]:
    """By damage of a file and reader, the one sentence of those that need it: it names the file or the run."""
    said = {}
    for damage, damaged in DAMAGES.items():
        for name, read in readers(workspace, run).items():
            restore(run, whole)
            content = damaged((run / file).read_bytes())
            (run / file).unlink() if content is None else (run / file).write_bytes(content)
            try:
                read()
            except Exception as error:
                assert hasattr(error, "_render_traceback_"), (damage, name, repr(error))
                said[damage, name] = sentence = str(error).strip()
                assert "\n" not in sentence and "Traceback" not in sentence, (damage, name, sentence)
                gone = damage == "missing" and file == "result.json"        # then it is no run
                assert gone or file in sentence or run.name in sentence, (damage, name, sentence)
    return said


def restore(run: Path, whole: Path) -> None:
    shutil.rmtree(run)
    shutil.copytree(whole, run)


@pytest.mark.parametrize("file", sampled(FILES, FILES[::2].__contains__))
def test_no_reader_of_a_damaged_record_ends_in_a_traceback(place, file):
    workspace, run, whole, _ = place
    said = sentences(workspace, run, whole, file)
    by = {"model.safetensors": "predict", "experiment.json": "monitor"}.get(file, "records")
    assert {damage for damage, name in said if name == by} >= {"empty", "cut off", "a list"}


@pytest.mark.parametrize("file, by", [("log/epochs.jsonl", "training"), ("log/events.jsonl", "training"),
                                      ("log/steps.json", "monitor"), ("checkpoint.safetensors", "training"),
                                      ("result.json", "training")])
def test_no_reader_of_a_damaged_unfinished_run_ends_in_a_traceback(place, file, by):
    workspace, run, _, half = place
    said = sentences(workspace, run, half, file)
    assert {"empty", "cut off"} <= {damage for damage, name in said if name == by} or file == "log/events.jsonl"


def test_whole_records_are_read_by_all(place):
    workspace, run, whole, half = place
    restore(run, half)
    list(record([opened(workspace)], CPU))
    assert opened(workspace).finished
    restore(run, whole)
    for read in readers(workspace, run).values():
        read()
