"""The packed format: what is written, what survives a stop, what `check` notices."""

import errno
import hashlib
import json
import os
import re
import shutil
import tracemalloc
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data_prep import disk, join, shards, writer
from data_prep.check import check
from data_prep.join import LEAK, LEAK_OF_VAL, REPEAT
from data_prep.packed import (
    CLASSES,
    SPLITS,
    DataError,
    Dropped,
    Plan,
    Rejected,
    Resized,
    file_sha256,
    partial_directory,
)
from data_prep.writer import write

SHAPE = (2, 4, 4)
SIZES = {"train": 2500, "val": 300, "test": 200}  # 3 + 1 + 1 chunks of at most 1,024 rows


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def decode(rows: pd.DataFrame, split: str) -> list[np.ndarray | Rejected]:
    """The image of each row's `_seed`; a negative one stands for a broken input."""
    return [image_of(seed) if seed >= 0 else Rejected("broken", str(seed)) for seed in rows["_seed"]]


@dataclass
class CountingDecode:
    """`decode` that counts rows and can be stopped in its n-th call."""

    stop_in_call: int = 0
    calls: int = 0
    rows: int = 0

    def __call__(self, rows: pd.DataFrame, split: str) -> list[np.ndarray | Rejected]:
        self.calls += 1
        if self.calls == self.stop_in_call:
            raise KeyboardInterrupt
        self.rows += len(rows)
        return decode(rows, split)


def make_plan(sizes: dict[str, int] = SIZES, **changes) -> Plan:
    """Images with seeds 0, 1, 2, ... over the splits, soft labels in two classes."""
    samples, start = {}, 0
    for split in SPLITS:
        seeds = np.arange(start, start := start + sizes[split])
        soft = [np.eye(7, dtype=np.float32)[seed % 7] * 0.5 + np.eye(7, dtype=np.float32)[0] * 0.5 for seed in seeds]
        samples[split] = pd.DataFrame(
            {
                "label": seeds % 7,
                "soft": pd.Series(soft, dtype=object),
                "valence": seeds / 3000,
                "source": pd.Series([f"toy.csv:{seed + 2}" for seed in seeds], dtype=object),
                "_row": seeds + 2,
                "_seed": seeds,
            }
        )
    facts = dict(name="toy", title="Toy", licence="none", release="1", files={"toy.csv": "00"}, options={"knob": 1})
    return replace(Plan(classes=CLASSES, shape=SHAPE, samples=samples, decode=decode, **facts), **changes)


def with_seeds(plan: Plan, split: str, rows: list[int], seeds: list[int]) -> Plan:
    samples = {name: table.copy() for name, table in plan.samples.items()}
    samples[split].loc[rows, "_seed"] = seeds
    return replace(plan, samples=samples)


def tree(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def images(directory, split: str) -> np.ndarray:
    return np.load(directory / split / "images.npy", mmap_mode="r", allow_pickle=False)


SMALL = {"train": 40, "val": 10, "test": 10}


# --- what is written ------------------------------------------------------------------------------------------------


def test_the_directory_holds_what_the_contract_says(tmp_path):
    plan = make_plan()
    manifest = write(plan, tmp_path / "toy")
    in_splits = {f"{split}/{name}" for split in SPLITS for name in ("images.npy", "samples.parquet")}
    assert set(tree(tmp_path / "toy")) == {"manifest.json", "dropped.parquet"} | in_splits
    assert json.loads((tmp_path / "toy" / "manifest.json").read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    for split in SPLITS:
        expected = np.stack([image_of(seed) for seed in plan.samples[split]["_seed"]])
        assert np.array_equal(images(tmp_path / "toy", split), expected)
        samples = pd.read_parquet(tmp_path / "toy" / split / "samples.parquet")
        assert samples["label"].tolist() == plan.samples[split]["label"].tolist()
        assert manifest["splits"][split]["n"] == SIZES[split]
        assert sum(manifest["splits"][split]["class_counts"].values()) == SIZES[split]
    schema = pq.read_schema(tmp_path / "toy" / "train" / "samples.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types == {
        "label": "int64",
        "soft": "list<element: float>",
        "valence": "float",
        "source": "string",
        "duplicate_group": "int64",
    }
    assert manifest["image"] == {"channels": 2, "height": 4, "width": 4}
    assert manifest["inputs"] == manifest["kept"] == 3000 and manifest["dropped"] == {}
    assert check(tmp_path / "toy") == []


def test_normalization_is_numpys(tmp_path):
    manifest = write(make_plan(), tmp_path / "toy")
    pixels = images(tmp_path / "toy", "train").astype(np.float64) / 255
    assert np.allclose(manifest["normalization"]["mean"], pixels.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(manifest["normalization"]["std"], pixels.std((0, 2, 3)), rtol=1e-12)


def test_content_hash_is_of_arrays_and_class_names_alone(tmp_path):
    plan = make_plan(SMALL)
    manifest = write(plan, tmp_path / "toy")
    digest = hashlib.sha256()
    for split in SPLITS:
        array = images(tmp_path / "toy", split)
        digest.update(split.encode() + np.array(array.shape, "<i8").tobytes() + array.tobytes())
        digest.update(plan.samples[split]["label"].to_numpy("<i8").tobytes())
        digest.update(np.stack(plan.samples[split]["soft"]).astype("<f4").tobytes())
    digest.update("\n".join(CLASSES).encode())
    assert manifest["content_sha256"] == digest.hexdigest()


def test_an_image_can_stand_in_the_content_hash_by_its_own(tmp_path):
    plan = make_plan(SMALL, hash_of="images")
    manifest = write(plan, tmp_path / "toy")
    digest = hashlib.sha256(b"images")
    for split in SPLITS:
        array = images(tmp_path / "toy", split)
        digest.update(split.encode() + np.array(array.shape, "<i8").tobytes())
        digest.update(b"".join(hashlib.sha256(image.tobytes()).digest() for image in array))
        digest.update(plan.samples[split]["label"].to_numpy("<i8").tobytes())
        digest.update(np.stack(plan.samples[split]["soft"]).astype("<f4").tobytes())
    digest.update("\n".join(CLASSES).encode())
    assert manifest["content_sha256"] == digest.hexdigest() and check(tmp_path / "toy") == []
    write(make_plan(SMALL), tmp_path / "pixels")
    assert images(tmp_path / "toy", "train").tobytes() == images(tmp_path / "pixels", "train").tobytes()
    tamper(tmp_path / "toy")
    assert "val/images.npy was changed after packing" in check(tmp_path / "toy")[0]


def decode_resized(rows: pd.DataFrame, split: str) -> list[Resized | Rejected]:
    return [Resized(image_of(seed), 100 + seed, 7) if seed >= 0 else Rejected("broken") for seed in rows["_seed"]]


def test_sizes_before_resizing_are_recorded_where_the_source_knows_them(tmp_path):
    plan = with_seeds(make_plan({"train": 20, "val": 5, "test": 0}, decode=decode_resized), "val", [1], [-1])
    manifest = write(plan, tmp_path / "toy")
    samples = pd.read_parquet(tmp_path / "toy" / "val" / "samples.parquet")
    assert samples["width"].tolist() == [120, 122, 123, 124] and set(samples["height"]) == {7}
    assert "width" in pq.read_schema(tmp_path / "toy" / "test" / "samples.parquet").names
    unsized = write(replace(plan, decode=decode), tmp_path / "unsized")
    assert "width" not in pq.read_schema(tmp_path / "unsized" / "val" / "samples.parquet").names
    assert unsized["content_sha256"] == manifest["content_sha256"]


def test_content_hash_changes_with_one_label(tmp_path):
    plan, other = make_plan(SMALL), make_plan(SMALL)
    other.samples["val"].loc[3, "label"] = 6
    assert write(plan, tmp_path / "a")["content_sha256"] != write(other, tmp_path / "b")["content_sha256"]


def test_workers_and_chunk_size_change_no_byte(tmp_path, monkeypatch):
    pids = {}
    for workers in (1, 2):
        (tmp_path / f"pids{workers}").mkdir()
        noting = partial(decode_noting_process, folder=tmp_path / f"pids{workers}")
        write(make_plan(decode=noting), tmp_path / str(workers), workers=workers)
        pids[workers] = {int(path.name) for path in (tmp_path / f"pids{workers}").iterdir()}
    assert pids[1] == {os.getpid()} and os.getpid() not in pids[2]
    monkeypatch.setattr(shards, "SHARD_BYTES", 32 * 100)
    write(make_plan(), tmp_path / "small")
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "small")


def decode_noting_process(rows: pd.DataFrame, split: str, folder: Path) -> list[np.ndarray | Rejected]:
    (folder / str(os.getpid())).touch()
    return decode(rows, split)


def test_no_file_names_the_machine_or_a_path(tmp_path):
    write(make_plan(SMALL), tmp_path / "toy")
    assert all(str(tmp_path).encode() not in content for content in tree(tmp_path / "toy").values())


def test_memory_does_not_grow_with_the_pixels(tmp_path):
    def peak(n: int) -> int:
        plan = make_plan({"train": n, "val": 10, "test": 10}, shape=(1, 64, 64), decode=blank)
        tracemalloc.start()
        write(plan, tmp_path / str(n))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = 2048, 8192
    assert peak(many) - peak(few) < 0.3 * (many - few) * 64 * 64


def blank(rows: pd.DataFrame, split: str) -> np.ndarray:
    return np.broadcast_to(rows.index.to_numpy(np.uint8)[:, None, None, None], (len(rows), 1, 64, 64))


# --- bad inputs -----------------------------------------------------------------------------------------------------


def test_rejected_rows_are_recorded_and_counts_add_up(tmp_path):
    before = Dropped("", "toy.csv", 1, Rejected("unknown Usage", "Other"))
    plan = with_seeds(make_plan(dropped=[before]), "val", [5, 7], [-1, -3])
    manifest = write(plan, tmp_path / "toy")
    assert manifest["dropped"] == {"broken": 2, "unknown Usage": 1} and manifest["bad_inputs"] == 3
    assert manifest["inputs"] == 3001 == manifest["kept"] + 3
    dropped = pd.read_parquet(tmp_path / "toy" / "dropped.parquet")
    assert dropped.to_numpy().tolist() == [
        ["", "toy.csv", 1, "unknown Usage: Other"],
        ["val", "toy.csv", 2507, "broken: -1"],
        ["val", "toy.csv", 2509, "broken: -3"],
    ]
    expected = np.stack([image_of(seed) for seed in plan.samples["val"]["_seed"] if seed >= 0])
    assert np.array_equal(images(tmp_path / "toy", "val"), expected)
    assert check(tmp_path / "toy") == []


def test_strict_names_file_row_and_value(tmp_path):
    plan = with_seeds(make_plan(), "val", [5, 7], [-1, -3])
    with pytest.raises(DataError, match=r"^toy\.csv:2507: broken: -1"):
        write(plan, tmp_path / "toy", strict=True)
    assert not (tmp_path / "toy").exists()
    write(plan, tmp_path / "toy")
    with pytest.raises(DataError, match="without 2 bad input"):
        write(plan, tmp_path / "toy", strict=True)


def test_strict_accepts_what_a_rule_leaves_out(tmp_path):
    by_rule = Dropped("val", "toy.csv", 3, Rejected("no votes", bad=False))
    manifest = write(make_plan(SMALL, dropped=[by_rule]), tmp_path / "toy", strict=True)
    assert manifest["dropped"] == {"no votes": 1} and manifest["bad_inputs"] == 0


def test_a_split_without_images_is_written_and_checked(tmp_path):
    manifest = write(make_plan({"train": 20, "val": 5, "test": 0}), tmp_path / "toy")
    assert manifest["splits"]["test"]["n"] == 0 and images(tmp_path / "toy", "train").shape == (20, *SHAPE)
    assert check(tmp_path / "toy") == []


def test_no_usable_image_is_an_error(tmp_path):
    plan = with_seeds(make_plan({"train": 3, "val": 0, "test": 0}), "train", [0, 1, 2], [-1, -2, -3])
    with pytest.raises(DataError, match=r"not one usable image .*3 x broken"):
        write(plan, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


# --- duplicates -----------------------------------------------------------------------------------------------------


def duplicated_plan(**options) -> Plan:
    """train 0 = train 3 = val 2; train 1 = test 4; val 6 = val 7 = test 5; all the others differ."""
    plan = with_seeds(make_plan(SMALL, **options), "train", [3], [0])
    plan = with_seeds(plan, "val", [2, 6, 7], [0, 900, 900])
    return with_seeds(plan, "test", [4, 5], [1, 900])


def groups(directory) -> dict[str, dict[int, int]]:
    found = {}
    for split in SPLITS:
        column = pd.read_parquet(directory / split / "samples.parquet")["duplicate_group"]
        found[split] = column[column >= 0].to_dict()
    return found


def test_equal_images_share_a_group_over_all_splits(tmp_path):
    manifest = write(duplicated_plan(), tmp_path / "toy")
    assert groups(tmp_path / "toy") == {"train": {0: 0, 1: 1, 3: 0}, "val": {2: 0, 6: 2, 7: 2}, "test": {4: 1, 5: 2}}
    assert manifest["duplicates"] == {
        "groups": 3,
        "surplus": 5,
        "groups_with_other_labels": 3,
        "val_in_train": 1,
        "test_in_train": 1,
        "test_in_val": 1,
    }


def test_drop_leaks_drops_val_and_test_images_that_are_in_train_and_test_images_that_are_in_val(tmp_path):
    manifest = write(duplicated_plan(drop_leaks=True), tmp_path / "toy")
    assert manifest["dropped"] == {LEAK: 2, LEAK_OF_VAL: 1} and manifest["options"]["drop_leaks"] is True
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 40, "val": 9, "test": 8}
    assert groups(tmp_path / "toy") == {"train": {0: 0, 3: 0}, "val": {5: 1, 6: 1}, "test": {}}
    dropped = pd.read_parquet(tmp_path / "toy" / "dropped.parquet")
    assert dropped[["row", "reason"]].to_numpy().tolist() == [[44, LEAK], [56, LEAK], [57, LEAK_OF_VAL]]
    assert check(tmp_path / "toy") == []


def test_an_image_in_all_three_splits_leaves_val_and_test_for_the_first_reason(tmp_path):
    plan = with_seeds(with_seeds(make_plan(SMALL, drop_leaks=True), "val", [2], [0]), "test", [4], [0])
    assert write(plan, tmp_path / "toy")["dropped"] == {LEAK: 2}


def test_dedup_keeps_the_first_of_each_group_within_a_split(tmp_path):
    manifest = write(duplicated_plan(dedup=True), tmp_path / "toy")
    assert manifest["dropped"] == {REPEAT: 2}
    dropped = pd.read_parquet(tmp_path / "toy" / "dropped.parquet")
    assert dropped[["split", "row"]].to_numpy().tolist() == [["train", 5], ["val", 49]]
    assert check(tmp_path / "toy") == []


# --- stopping and resuming ------------------------------------------------------------------------------------------


def test_a_stopped_run_renders_only_what_is_missing_and_ends_the_same(tmp_path):
    write(make_plan(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(decode=CountingDecode(stop_in_call=3)), tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    said, rest = [], CountingDecode()
    write(make_plan(decode=rest), tmp_path / "toy", say=said.append)
    assert rest.rows == 3000 - 2 * 1024
    assert said == ["resuming: 2 of 5 parts are there"]
    assert tree(tmp_path / "toy") == tree(tmp_path / "whole")
    assert not partial_directory(tmp_path / "toy").exists()


def test_parts_of_another_plan_are_not_used(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(decode=CountingDecode(stop_in_call=3)), tmp_path / "toy")
    said, again = [], CountingDecode()
    write(make_plan(decode=again, options={"knob": 2}), tmp_path / "toy", say=said.append)
    assert again.rows == 3000
    assert len(said) == 1 and "starting anew" in said[0]


@pytest.mark.parametrize("damaged", ["note", "pixels", "pixels cut off"])
def test_a_damaged_part_is_made_again(tmp_path, damaged):
    write(make_plan(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(decode=CountingDecode(stop_in_call=3)), tmp_path / "toy")
    parts = partial_directory(tmp_path / "toy")
    path = min(parts.glob("train-*.npz")) if damaged == "note" else shards.pixel_file(parts, "train")
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content[:-100] if damaged == "pixels cut off" else content)
    rest = CountingDecode()
    write(make_plan(decode=rest), tmp_path / "toy")
    assert rest.rows == 3000 - 1024
    assert tree(tmp_path / "toy") == tree(tmp_path / "whole")


def test_images_behind_one_that_is_left_out_move_up_and_a_stop_meanwhile_harms_nothing(tmp_path, monkeypatch):
    """Equal images and broken ones, so that gaps of several sizes lie anywhere; stopped when half has moved."""
    plan = with_seeds(make_plan(dedup=True), "train", [0, 1, 700, 1024, 1500, 1501, 2499], [-1, -1, 699, -1, 3, 4, -1])
    write(plan, tmp_path / "whole")
    expected = np.stack([image_of(seed) for i, seed in enumerate(plan.samples["train"]["_seed"])
                         if seed >= 0 and i not in (700, 1500, 1501)])  # fmt: skip
    assert np.array_equal(images(tmp_path / "whole", "train"), expected) and check(tmp_path / "whole") == []
    monkeypatch.setattr(join, "_BLOCK_BYTES", 3200)
    move_up = join._move_up

    def stopped(path, start, size, places):
        move_up(path, start, size, places[: len(places) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(join, "_move_up", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(plan, tmp_path / "toy")
    rest = CountingDecode()
    write(replace(plan, decode=rest), tmp_path / "toy")
    assert 0 < rest.rows <= 2048 and tree(tmp_path / "toy") == tree(tmp_path / "whole")


@pytest.mark.parametrize("full_at", ["val-000000000-000000300.npz", "images.npy", "manifest.json"])
def test_a_full_disk_gives_one_sentence_and_keeps_the_parts(tmp_path, monkeypatch, full_at):
    write(make_plan(), tmp_path / "whole")
    write_file, write_at = disk.write_file, disk.write_at

    def full_disk(path, blocks, scratch=False):
        def blocks_until_full():
            yield from blocks
            if path.name == full_at:
                raise OSError(errno.ENOSPC, "No space left on device")

        return write_file(path, blocks_until_full(), scratch)

    def full_for_pixels(path, offset, content):
        if path.name == full_at and path.parent.name == "val":
            with disk.writing(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write_at(path, offset, content)

    monkeypatch.setattr(disk, "write_file", full_disk)
    monkeypatch.setattr(disk, "write_at", full_for_pixels)
    with pytest.raises(DataError, match=rf"cannot write .*{full_at}: No space left on device; free space and run the"):
        write(make_plan(), tmp_path / "toy")
    monkeypatch.undo()
    parts = partial_directory(tmp_path / "toy")
    assert not (tmp_path / "toy").exists() and not list(parts.rglob("*.tmp"))
    rest = CountingDecode()
    write(make_plan(decode=rest), tmp_path / "toy")
    assert rest.rows == (0 if full_at == "manifest.json" else 500)
    assert tree(tmp_path / "toy") == tree(tmp_path / "whole")


def test_a_second_writer_is_refused(tmp_path):
    parts = partial_directory(tmp_path / "toy")
    parts.mkdir()
    with writer._locked(parts), pytest.raises(DataError, match="another process"):
        write(make_plan(SMALL), tmp_path / "toy")


# --- an --out that is already there ---------------------------------------------------------------------------------


def test_a_finished_directory_of_the_same_plan_is_left_as_it_is(tmp_path):
    first = write(make_plan(SMALL), tmp_path / "toy")
    said, again = [], CountingDecode()
    assert write(make_plan(SMALL, decode=again), tmp_path / "toy", say=said.append) == first
    assert again.calls == 0 and "left as it is" in said[0]


def test_another_plan_needs_overwrite(tmp_path):
    write(make_plan(SMALL), tmp_path / "toy")
    before = tree(tmp_path / "toy")
    with pytest.raises(DataError, match="--overwrite"):
        write(make_plan(SMALL, options={"knob": 2}), tmp_path / "toy")
    assert tree(tmp_path / "toy") == before
    assert write(make_plan(SMALL, options={"knob": 2}), tmp_path / "toy", overwrite=True)["options"]["knob"] == 2
    assert check(tmp_path / "toy") == [] and [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_the_old_data_stay_if_the_new_cannot_be_moved_into_place(tmp_path, monkeypatch):
    write(make_plan(SMALL), tmp_path / "toy")
    before, replace_path = tree(tmp_path / "toy"), os.replace

    def failing(old, new):
        if Path(old).name == "done":
            raise OSError(errno.EACCES, "Permission denied")
        replace_path(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(DataError, match="cannot write .*toy: Permission denied"):
            write(make_plan(SMALL, options={"knob": 2}), tmp_path / "toy", overwrite=True)
    assert tree(tmp_path / "toy") == before
    assert write(make_plan(SMALL, options={"knob": 2}), tmp_path / "toy", overwrite=True)["options"]["knob"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize("manifest", ["{", '{"format": 2}'])
def test_a_directory_that_cannot_be_read_names_the_way_out(tmp_path, manifest):
    write(make_plan(SMALL), tmp_path / "toy")
    (tmp_path / "toy" / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match="pack the data again with --overwrite"):
        write(make_plan(SMALL), tmp_path / "toy")
    write(make_plan(SMALL), tmp_path / "toy", overwrite=True)
    assert check(tmp_path / "toy") == []


def test_overwrite_refuses_to_remove_the_users_own_files(tmp_path):
    write(make_plan(SMALL), tmp_path / "toy")
    (tmp_path / "toy" / "thesis.txt").write_text("mine")
    write(make_plan(SMALL), tmp_path / "toy")
    before = tree(tmp_path / "toy")
    with pytest.raises(DataError, match="--overwrite would remove .*thesis.txt too"):
        write(make_plan(SMALL, options={"knob": 2}), tmp_path / "toy", overwrite=True)
    assert tree(tmp_path / "toy") == before


@pytest.mark.parametrize("change", [{"files": {"toy.csv": "01"}}, {"drop_leaks": True}, {"release": "2"}])
def test_inputs_and_options_make_another_plan(change):
    assert make_plan(SMALL, **change).sha256 != make_plan(SMALL).sha256


def test_a_label_makes_another_plan():
    other = make_plan(SMALL)
    other.samples["train"].loc[0, "label"] = 3
    assert other.sha256 != make_plan(SMALL).sha256


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(tmp_path, overwrite):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    sentences = {"home": "no packed directory", "other": "not made by data_prep", "file": "is a file"}
    for name, sentence in sentences.items():
        with pytest.raises(DataError, match=sentence):
            write(make_plan(SMALL), tmp_path / name, overwrite=overwrite)
    assert set(tree(tmp_path)) == {"home/thesis.txt", "other.partial/thesis.txt", "file"}
    assert set(tree(tmp_path).values()) == {b"mine"}


def test_a_truncated_directory_is_not_taken_for_finished(tmp_path):
    write(make_plan(SMALL), tmp_path / "toy")
    truncate(tmp_path / "toy")
    with pytest.raises(DataError, match="truncated"):
        write(make_plan(SMALL), tmp_path / "toy")


# --- check ----------------------------------------------------------------------------------------------------------


def truncate(directory):
    path = directory / "train" / "images.npy"
    path.write_bytes(path.read_bytes()[:-100])


def tamper(directory):
    path = directory / "val" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")


def edit(directory, change):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def tamper_and_forge(directory):
    tamper(directory)
    facts = file_sha256(directory / "val" / "images.npy")
    edit(directory, lambda m: m["splits"]["val"]["files"]["images.npy"].update(sha256=facts))


FLAWS = {
    "missing directory": (shutil.rmtree, "no packed directory"),
    "missing manifest": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "manifest cut": (lambda d: (d / "manifest.json").write_text('{"format"'), "damaged"),
    "manifest empty": (lambda d: edit(d, lambda m: m.pop("splits")), "incomplete or garbled"),
    "other version": (lambda d: edit(d, lambda m: m.update(format=2)), "format 2, this version reads 1"),
    "file gone": (lambda d: (d / "test" / "samples.parquet").unlink(), "samples.parquet is missing"),
    "dropped gone": (lambda d: (d / "dropped.parquet").unlink(), "dropped.parquet is missing"),
    "truncated": (truncate, "images.npy has .* bytes instead of .*truncated"),
    "one byte": (tamper, "val/images.npy was changed after packing"),
    "one byte, forged": (tamper_and_forge, "content hash"),
    "shape": (lambda d: edit(d, lambda m: m["image"].update(height=5)), "the manifest says uint8"),
    "fewer classes": (lambda d: edit(d, lambda m: m["classes"].pop()), "label 6 is outside 0..5"),
    "counts": (lambda d: edit(d, lambda m: m["splits"]["val"]["class_counts"].update(sad=0)), "counts of classes"),
    "n": (lambda d: edit(d, lambda m: m["splits"]["val"].update(n=9)), "has 10 rows, the manifest says 9"),
    "normalization": (lambda d: edit(d, lambda m: m["normalization"].update(mean=[0.5, 0.5])), "normalization"),
    "sum": (lambda d: edit(d, lambda m: m.update(inputs=61)), "do not add up"),
    "dropped": (lambda d: edit(d, lambda m: m.update(dropped={"x": 1}, inputs=61)), "the manifest says {'x': 1}"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_check_names_the_flaw(tmp_path, flaw):
    break_it, sentence = FLAWS[flaw]
    write(make_plan(SMALL), tmp_path / "toy")
    break_it(tmp_path / "toy")
    problems = check(tmp_path / "toy")
    assert problems and any(re.search(sentence, problem) for problem in problems), problems


def test_check_tells_of_an_unfinished_directory(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(decode=CountingDecode(stop_in_call=2)), tmp_path / "toy")
    assert "not finished" in check(tmp_path / "toy")[0]
