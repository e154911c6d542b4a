"""Shared by the tests of sources: drawn faces as image files in somebody's layout, packed and compared with the record.

    photo(7)                                        # uint8 (48, 48): drawn face number 7, all different
    save(tmp_path / "train/happy/7.jpg", photo(7))  # makes the folders
    manifest = pack("image_folder", tmp_path, out)  # the command; the directory is checked, and that counts add up
    dropped(out)                                    # [[split, file, row, reason], ...]
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import check
from data_prep.packed import SPLITS
from data_prep.synthetic import PRESETS, render_samples


@lru_cache
def _faces() -> np.ndarray:
    return render_samples(PRESETS["quick"], "train", 0, 128)[:, 0]


def photo(number: int, side: int = 48, colour: bool = True) -> np.ndarray:
    """Face `number` (0..127), uint8 (side, side, 3), tinted so that colour channels differ, or (side, side)."""
    face = Image.fromarray(_faces()[number]).resize((side, side), Image.Resampling.BICUBIC)
    grey = np.asarray(face)
    return np.stack([grey, 255 - (255 - grey) // 2, grey // 2], 2) if colour else grey


def save(path: Path, image: np.ndarray | bytes, **settings) -> Path:
    """Writes an image (the format follows from the extension), or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        Image.fromarray(image).save(path, **settings)
    return path


def write_csv(path: Path, header: str, *rows: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join([header, *rows]) + end).encode(encoding))
    return path


def pack(name: str, source: Path, out: Path, *options: str, workers: int = 1) -> dict:
    """Runs `python -m data_prep NAME --source SOURCE --out OUT` without the audit, which takes as long as the rest and
    is run on every source by test_detect and test_detect_sets; returns the manifest."""
    command = [name, "--source", str(source), "--out", str(out), "--no-audit", "--workers", str(workers)]
    command += map(str, options)
    assert main(command) == 0
    assert check(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    assert len(dropped(out)) == sum(manifest["dropped"].values())
    return manifest


def refused(capsys, name: str, source: Path, out: Path, *options: str) -> str:
    """The one sentence with which the command fails."""
    capsys.readouterr()
    assert main([name, "--source", str(source), "--out", str(out), "--workers", "1", *map(str, options)]) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("data_prep: ")]
    assert len(lines) == 1 and not out.exists()
    return lines[0].removeprefix("data_prep: ")


def dropped(out: Path) -> list[list]:
    return pd.read_parquet(out / "dropped.parquet").to_numpy().tolist()


def samples(out: Path, split: str) -> pd.DataFrame:
    return pd.read_parquet(out / split / "samples.parquet")


def images(out: Path, split: str) -> np.ndarray:
    return np.load(out / split / "images.npy", allow_pickle=False)


def labels(out: Path, split: str) -> list[str]:
    """The class name of each image of a split."""
    classes = json.loads((out / "manifest.json").read_text())["classes"]
    return [classes[label] for label in samples(out, split)["label"]]


def sources(out: Path) -> dict[str, list[str]]:
    """The `source` of each image by split."""
    return {split: samples(out, split)["source"].tolist() for split in SPLITS}
