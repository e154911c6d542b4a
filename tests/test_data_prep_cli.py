"""The command line of data_prep: exit codes, one sentence an error, Ctrl-C, and the report."""

import errno
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import data_prep
from data_prep import fer2013, shards
from data_prep.__main__ import SOURCES, main

REPOSITORY = Path(data_prep.__file__).parents[1]


@pytest.fixture
def source(tmp_path) -> Path:
    """A fer2013.csv of 7 drawn images a split."""
    images = np.random.default_rng(0).integers(0, 256, (21, 48 * 48), np.uint8)
    usages = ["Training"] * 7 + ["PublicTest"] * 7 + ["PrivateTest"] * 7
    rows = [f"{i % 7},{' '.join(map(str, image))},{usages[i]}" for i, image in enumerate(images)]
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    return path


def fer(source: Path, out: Path, *options: str) -> list[str]:
    return ["fer2013", "--source", str(source), "--out", str(out), "--workers", "1", *options]


def sentences(capsys) -> list[str]:
    """What stderr says, without the progress bar."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return [line for line in err.replace("\r", "\n").split("\n") if line.startswith("data_prep: ")]


# --- commands -------------------------------------------------------------------------------------------------------


def test_list_names_every_source(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(SOURCES)
    assert max(map(len, lines)) <= 120
    assert [sum(line.split()[0] == word for line in lines) for word in ("licence:", "access:")] == [len(SOURCES)] * 2


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_the_seam_and_its_help(name, capsys):
    module = import_module(SOURCES[name][0])
    assert callable(module.plan) and callable(module.add_arguments) and module.LICENCE and module.ACCESS
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert "--out" in capsys.readouterr().out


def test_pack_then_check(source, tmp_path, capsys):
    assert main(fer(source, tmp_path / "out")) == 0
    report = capsys.readouterr().out
    assert "21 inputs = 21 kept + 0 dropped" in report
    assert "1 (4,965)" in report and "7 (28,709)" in report and "21 counts differ from the published" in report
    assert main(["check", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("ok: FER2013 (7 classes, official splits), train 7, val 7, test 7 images")


def test_check_prints_the_problem_and_fails(source, tmp_path, capsys):
    main(fer(source, tmp_path / "out"))
    (tmp_path / "out" / "test" / "images.npy").unlink()
    capsys.readouterr()
    assert main(["check", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'test' / 'images.npy'} is missing\n"


def test_dropped_rows_are_summed_up_by_reason(source, tmp_path, capsys):
    lines = source.read_text().split("\n")
    lines[4] = "9" + lines[4][1:]
    lines[5] = lines[5].replace(",", ",1 ", 1)
    lines[6] = "7" + lines[6][1:]
    source.write_text("\n".join(lines))
    assert main(fer(source, tmp_path / "out")) == 0
    report = capsys.readouterr().out
    assert "21 inputs = 18 kept + 3 dropped" in report
    assert "dropped 2: label outside 0..6" in report and "dropped 1: wrong number of pixels" in report


def test_module_runs_in_worker_processes(source, tmp_path):
    command = [sys.executable, "-m", "data_prep", *fer(source, tmp_path / "out", "--workers", "2")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "21 kept" in done.stdout, done.stderr
    assert main(fer(source, tmp_path / "in_process")) == 0
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("out", "in_process"))
    assert one == two


# --- the drawn set --------------------------------------------------------------------------------------------------

TINY = ["--n-train", "50", "--n-val", "14", "--n-test", "14", "--size", "16"]


def test_synthetic_packs_what_the_recipe_draws(tmp_path, monkeypatch, capsys):
    synthetic = import_module("data_prep.synthetic")
    monkeypatch.setattr(shards, "SHARD_BYTES", 16 * 16 * 20)  # several chunks a split
    assert main(["synthetic", "--preset", "quick", *TINY, "--seed", "5", "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    preset = synthetic.PRESETS["quick"]
    recipe = synthetic.Recipe(**{**vars(preset), "n_train": 50, "n_val": 14, "n_test": 14, "size": 16, "seed": 5})
    assert manifest["drawn"] is True and manifest["options"]["blend"] == preset.blend
    images = np.load(tmp_path / "out" / "train" / "images.npy", allow_pickle=False)
    assert np.array_equal(images, synthetic.render_samples(recipe, "train", 0, 50))
    samples = pd.read_parquet(tmp_path / "out" / "train" / "samples.parquet")
    assert {"true_label", "valence", "arousal", "subject", "au12"} <= set(samples)
    assert samples["label"].tolist() == synthetic.draw_samples(recipe, "train")["label"].tolist()
    assert main(["check", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("preset", "name", "title"),
    [
        ("standard", "synthetic", "Drawn faces (7 classes)"),
        ("quick", "synthetic-quick", "Drawn faces, quick preset (7 classes)"),
    ],
)
def test_the_manifest_names_the_preset(tmp_path, preset, name, title):
    assert main(["synthetic", "--preset", preset, *TINY, "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["name"], manifest["title"]) == (name, title)


def test_faces_of_an_older_generator_are_replaced_with_overwrite(tmp_path, monkeypatch, capsys):
    command = ["synthetic", *TINY, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as older:
        older.setattr(import_module("data_prep.synthetic_source"), "file_sha256", lambda path: "older")
        assert main(command) == 0
    old = (tmp_path / "out" / "manifest.json").read_text()
    sentences(capsys)
    assert main(command) == 2
    (sentence,) = sentences(capsys)
    assert "replace it with --overwrite" in sentence
    assert (tmp_path / "out" / "manifest.json").read_text() == old
    assert main([*command, "--overwrite"]) == 0
    assert main(["check", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "manifest.json").read_text() != old and not (tmp_path / "out.partial").exists()


def test_a_recipe_out_of_range_is_one_sentence(tmp_path, capsys):
    assert main(["synthetic", *TINY, "--wrong", "7", "--out", str(tmp_path / "out")]) == 2
    (sentence,) = sentences(capsys)
    assert "wrong = 7.0" in sentence


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_missing_source_is_one_sentence(tmp_path, capsys):
    assert main(fer(tmp_path / "nothing", tmp_path / "out")) == 2
    assert sentences(capsys) == [f"data_prep: --source {tmp_path / 'nothing'} does not exist"]


def test_strict_stops_at_the_bad_row(source, tmp_path, capsys):
    source.write_text(source.read_text().replace("\n3,", "\n9,", 1))
    assert main(fer(source, tmp_path / "out", "--strict")) == 2
    (sentence,) = sentences(capsys)
    assert sentence.startswith("data_prep: fer2013.csv:5: label outside 0..6: 9")


def test_an_existing_directory_is_kept_or_refused(source, tmp_path, capsys):
    assert main(fer(source, tmp_path / "out")) == 0
    assert sentences(capsys) == []
    assert main(fer(source, tmp_path / "out")) == 0
    (sentence,) = sentences(capsys)
    assert sentence.endswith("out already holds this data with these options: left as it is")
    assert main(fer(source, tmp_path / "out", "--dedup")) == 2
    assert "--overwrite" in sentences(capsys)[0]
    assert main(fer(source, tmp_path / "out", "--dedup", "--overwrite")) == 0


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_is_a_count(source, tmp_path, workers, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(fer(source, tmp_path / "out", "--workers", workers))


def test_a_full_disk_names_the_path_and_the_way_out(source, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(fer(source, tmp_path / "out")) == 2
    (sentence,) = sentences(capsys)
    assert str(tmp_path / "out.partial") in sentence
    assert sentence.endswith("free space and run the same command again: finished parts are kept")
    assert main(fer(source, tmp_path / "out")) == 0


def test_a_disk_that_cannot_be_read_is_one_sentence(source, tmp_path, monkeypatch, capsys):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(fer2013, "index_csv", broken)
    assert main(fer(source, tmp_path / "out")) == 2
    assert sentences(capsys) == [f"data_prep: {source}: Input/output error"]


def test_ctrl_c_exits_130_and_the_same_command_resumes(source, tmp_path, monkeypatch, capsys):
    decode, decoded = fer2013.decode_rows, []

    def interrupted(rows, split, path):
        if split == "val":
            signal.raise_signal(signal.SIGINT)
        return decode(rows, split, path)

    def counted(rows, split, path):
        decoded.append(split)
        return decode(rows, split, path)

    monkeypatch.setattr(fer2013, "decode_rows", interrupted)
    assert main(fer(source, tmp_path / "out")) == 130
    assert sentences(capsys) == ["data_prep: stopped; the same command picks up where it stopped"]
    monkeypatch.setattr(fer2013, "decode_rows", counted)
    assert main(fer(source, tmp_path / "out")) == 0
    assert decoded == ["val", "test"]
    assert sentences(capsys) == ["data_prep: resuming: 1 of 3 parts are there"]
