"""FER2013, FER+, CIFAR-10 and Stanford Cars from end to end: counts as published, and the known flaws.

The data are no part of this repository. The tests look for them in $FER_REAL_DATA, otherwise in ../shared/data, where
`unpack.py LAYOUT OUT` writes them in the layout that users have them in, and say so where they are missing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep import ferplus
from data_prep.__main__ import main
from data_prep.audit import audit_packed, read_audit
from data_prep.check import check
from data_prep.fer2013 import PUBLISHED
from data_prep.join import LEAK, LEAK_OF_VAL

PLACE = Path(os.environ.get("FER_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not (PLACE / "unpack.py").is_file(), reason=f"real data are not at {PLACE} (FER_REAL_DATA names another place)"
)


def unpack(layout: str, out: Path) -> Path:
    subprocess.run([sys.executable, PLACE / "unpack.py", layout, out], check=True, timeout=600)
    return out


def pack(name: str, source: Path, out: Path, *options: str) -> dict:
    assert main([name, "--source", str(source), "--out", str(out), "--workers", "1", *options]) == 0
    assert check(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    return manifest


def sizes(manifest: dict) -> list[int]:
    return [manifest["splits"][split]["n"] for split in ("train", "val", "test")]


@pytest.fixture(scope="module")
def fer(request, tmp_path_factory) -> Path:
    """Unpacking fer2013.csv takes half a minute, so it is kept in pytest's cache as long as the data are the same."""
    folder = unpack("ferplus-csv", tmp_path_factory.mktemp("fer"))
    stamp = "-".join(str(p.stat().st_mtime_ns) for p in (PLACE / "unpack.py", *sorted(PLACE.glob("fer2013*"))))
    cache = getattr(request.config, "cache", None)      # pytest may run without one
    kept = (cache.mkdir("fer2013") if cache else tmp_path_factory.mktemp("unpacked")) / stamp
    if not kept.exists():
        half = unpack("fer2013-csv", kept.with_name(f"half-{os.getpid()}"))
        if not kept.exists():
            half.rename(kept)
    (folder / "fer2013.csv").symlink_to(kept / "fer2013.csv")
    return folder


@pytest.fixture(scope="module")
def packed_fer(fer) -> Path:
    pack("fer2013", fer / "fer2013.csv", fer / "packed")
    return fer / "packed"


def test_fer2013_has_the_published_counts(packed_fer):
    manifest = json.loads((packed_fer / "manifest.json").read_text())
    assert sizes(manifest) == [28_709, 3_589, 3_589] and manifest["dropped"] == {}
    assert {split: facts["class_counts"] for split, facts in manifest["splits"].items()} == PUBLISHED


def test_the_audit_finds_what_fer2013_is_known_for(packed_fer):
    found = read_audit(packed_fer)
    assert found["leaks"] == {"val": 280, "test": 288, "test_in_val": 44}
    assert (found["duplicate_groups"], found["surplus"], found["conflicting_groups"]) == (1_516, 1_853, 57)
    assert found["constant"] == 12
    assert found["checks"]["published"]["status"] == found["checks"]["labels"]["status"] == "ok"
    assert found["near"]["complete"] and found["near"]["groups"] > 1_000
    audit = audit_packed(packed_fer)
    assert audit.as_json() == found and len(audit.rows("constant")) == 12
    assert audit.rows("conflicting_labels")["copies"].nunique() == 57


def test_near_images_are_nearly_equal_to_the_eye(packed_fer):
    """Blurred by 3 x 3 pixels, pairs of near images differ far less than random pairs do."""
    rows = audit_packed(packed_fer).rows("near_duplicates").drop_duplicates("near", keep="last")
    first = audit_packed(packed_fer).rows("near_duplicates").drop_duplicates("near", keep="first")
    pictures = {split: np.load(packed_fer / split / "images.npy", mmap_mode="r") for split in PUBLISHED}

    def blurred(table: pd.DataFrame) -> np.ndarray:
        faces = np.stack([pictures[split][row][0] for split, row in zip(table["split"], table["row"])])
        faces = faces.reshape(-1, 16, 3, 16, 3).mean((2, 4)).reshape(len(table), -1)
        return (faces - faces.mean(1, keepdims=True)) / faces.std(1, keepdims=True)

    near = np.abs(blurred(first) - blurred(rows)).mean(1)
    other = np.abs(blurred(first) - np.roll(blurred(rows), 1, axis=0)).mean(1)
    assert np.median(near) < 0.25 < 0.5 < np.median(other)


def test_drop_leaks_leaves_none(fer, packed_fer):
    manifest = pack("fer2013", fer / "fer2013.csv", fer / "clean", "--drop-leaks")
    assert manifest["dropped"] == {LEAK: 568, LEAK_OF_VAL: 26}  # 18 of the 44 equal a training image too
    assert sizes(manifest) == [28_709, 3_309, 3_275]
    found = read_audit(fer / "clean")
    assert found["leaks"] == {"val": 0, "test": 0, "test_in_val": 0}
    assert found["before_packing"]["duplicates"]["test_in_val"] == 44
    assert found["checks"]["published"]["status"] == "note"


def test_ferplus_has_the_published_counts(fer):
    """One neutral training row of this copy has lost its place, and so its votes."""
    options = ["--votes", str(fer / "fer2013new.csv")]
    manifest = pack("ferplus", fer / "fer2013.csv", fer / "plus", *options)
    published = ferplus.PUBLISHED_MAJORITY
    assert sizes(manifest) == [25_060 - 1, published["val"]["all"], published["test"]["all"]]
    found = manifest["splits"]["train"]["class_counts"]
    assert {name: published["train"][name] - count for name, count in found.items() if name != "neutral"} == {
        name: 0 for name in found if name != "neutral"
    }
    assert published["train"]["neutral"] - found["neutral"] == 1
    assert read_audit(fer / "plus")["conflicting_groups"] == 0  # copies have the same votes


@pytest.mark.long
def test_cifar10_as_a_folder(tmp_path):
    source = unpack("cifar10-tree", tmp_path / "cifar")
    manifest = pack("image_folder", source, tmp_path / "packed", "--size", "32", "--val-share", "0")
    assert sizes(manifest) == [50_000, 0, 10_000] and manifest["dropped"] == {}
    assert set(manifest["splits"]["train"]["class_counts"].values()) == {5_000}
    assert set(manifest["splits"]["test"]["class_counts"].values()) == {1_000}
    found = read_audit(tmp_path / "packed")
    assert found["duplicate_groups"] == found["constant"] == 0
    assert 50 < found["near"]["leaks"]["test"] < 400  # about 3 % of test are known to be near copies, most less near


def test_cars_as_a_folder(tmp_path):
    source = unpack("cars-tree", tmp_path / "cars")
    manifest = pack("image_folder", source, tmp_path / "packed", "--val-share", "0.1")
    assert manifest["kept"] == manifest["inputs"] == 8_144 == sum(sizes(manifest))
    assert len(manifest["classes"]) == 196 and sizes(manifest)[2] == 0
    found = read_audit(tmp_path / "packed")
    assert found["duplicate_groups"] == found["conflicting_groups"] == 11
    assert len(list((tmp_path / "packed" / "contact_sheets").iterdir())) == 196
