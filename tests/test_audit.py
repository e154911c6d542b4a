"""The audit: every planted flaw is found, with its rows, and none on a clean set; its files and command."""

import errno
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from source_trees import photo

from data_prep import disk, near
from data_prep.__main__ import main
from data_prep.audit import audit_packed, read_audit
from data_prep.audit_page import write_audit
from data_prep.check import check
from data_prep.packed import CLASSES, SPLITS, DataError, Plan
from data_prep.writer import write

SIZES = {"train": 70, "val": 21, "test": 21}
CLEAN = {"leaks", "duplicates", "conflicting_labels", "near_leaks", "near_duplicates", "subjects", "constant", "blank",
         "sizes", "labels", "soft_labels", "ranges", "classes", "published"}  # fmt: skip


def take(rows: pd.DataFrame, split: str, images: dict[str, np.ndarray]) -> np.ndarray:
    return images[split][rows.index.to_numpy()]


def clean_set() -> tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]]:
    """Drawn faces, all different, five an imagined person: uint8 (n, 3, 48, 48) and samples with every column."""
    images, samples, first = {}, {}, 0
    for split, n in SIZES.items():
        numbers = np.arange(first, first + n)
        first += n
        images[split] = np.stack([photo(number).transpose(2, 0, 1) for number in numbers])
        label = numbers % 7
        samples[split] = pd.DataFrame(
            {
                "label": label,
                "soft": pd.Series(list((0.7 * np.eye(7)[label] + 0.3 / 7).astype(np.float32)), dtype=object),
                "valence": np.linspace(-1, 1, n),
                "arousal": np.where(numbers % 5, 0.5, np.nan),
                "au12": np.where(numbers % 3, numbers % 6, -1),
                "subject": numbers // 7,
                "width": np.full(n, 100),
                "height": np.full(n, 120),
                "source": pd.Series([f"{split}/{number}.png" for number in numbers], dtype=object),
            }
        )
    return images, samples


def pack(out: Path, images: dict[str, np.ndarray], samples: dict[str, pd.DataFrame], **changes) -> Path:
    counts = {split: dict(zip(CLASSES, np.bincount(np.arange(n) % 7).tolist())) for split, n in SIZES.items()}
    facts = dict(name="faces", title="Faces <drawn> & packed", licence="none", release="1", files={})
    plan = Plan(classes=CLASSES, shape=(3, 48, 48), samples=samples, decode=partial(take, images=images), **facts)
    write(replace(plan, **{"published": counts, **changes}), out)
    return out


def rows(audit, name: str) -> list[tuple]:
    found = audit.rows(name)
    return list(zip(found["split"], found["row"]))


def statuses(audit) -> dict[str, str]:
    return dict(zip(audit.summary()["check"], audit.summary()["status"]))


@pytest.fixture
def plain(tmp_path) -> Path:
    return pack(tmp_path / "plain", *clean_set())


# --- what is found --------------------------------------------------------------------------------------------------


def test_a_clean_set_has_no_flaw(plain):
    audit = audit_packed(plain)
    assert statuses(audit) == dict.fromkeys(CLEAN, "ok") and audit.found == []
    assert audit.numbers["leaks"] == {"val": 0, "test": 0, "test_in_val": 0}
    assert audit.numbers["near"]["complete"] and audit.numbers["near"]["groups"] == 0
    assert len(audit.images) == 112 and (audit.images[["copies", "near"]] == -1).all(axis=None)


def test_copies_across_splits_are_leaks_and_of_other_labels_conflicts(tmp_path):
    images, samples = clean_set()
    images["val"][3] = images["train"][3]  # same label: 73 % 7 = 3
    images["test"][5] = images["train"][9]  # 96 % 7 = 5, 9 % 7 = 2
    images["test"][7], images["test"][8] = images["val"][0], images["val"][3]
    images["train"][20] = images["train"][6]  # both label 6
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.found == ["leaks", "duplicates", "conflicting_labels"]
    assert audit.numbers["leaks"] == {"val": 1, "test": 2, "test_in_val": 2}
    assert audit.numbers["duplicate_groups"] == 4 and audit.numbers["surplus"] == 5
    assert audit.numbers["conflicting_groups"] == 2  # train 9 = test 5; train 3 = val 3 = test 8 (label 1)
    leaks = audit.rows("leaks")
    assert rows(audit, "leaks") == [("val", 3), ("test", 5), ("test", 7), ("test", 8)]
    assert leaks["equals_split"].tolist() == ["train", "train", "val", "train"]
    assert leaks["equals_row"].tolist() == [3, 9, 0, 3]
    assert set(rows(audit, "conflicting_labels")) == {
        ("train", 9), ("test", 5), ("train", 3), ("val", 3), ("test", 8)}  # fmt: skip
    assert set(rows(audit, "duplicates")) - set(rows(audit, "conflicting_labels")) == {
        ("train", 20), ("train", 6), ("test", 7), ("val", 0)}  # fmt: skip


def brighter(image: np.ndarray) -> np.ndarray:
    return np.minimum(image.astype(int) + 2, 255).astype(np.uint8)


def cropped(image: np.ndarray) -> np.ndarray:
    """Without its first row and column, scaled back."""
    picture = Image.fromarray(image.transpose(1, 2, 0)[1:, 1:]).resize((48, 48), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


@pytest.mark.parametrize("change", [brighter, cropped])
def test_a_near_copy_is_found_and_is_no_exact_one(tmp_path, change):
    images, samples = clean_set()
    images["val"][3] = change(images["train"][3])
    images["train"][20] = change(images["train"][6])
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.found == ["near_leaks", "near_duplicates"]
    assert rows(audit, "near_leaks") == [("val", 3)] and audit.rows("near_leaks")["equals_row"].tolist() == [3]
    assert rows(audit, "near_duplicates") == [("train", 3), ("val", 3), ("train", 6), ("train", 20)]
    assert audit.numbers["near"]["leaks"] == {"val": 1, "test": 0, "test_in_val": 0}
    assert audit.numbers["leaks"]["val"] == audit.numbers["duplicate_groups"] == 0


def test_an_exact_leak_is_not_counted_as_a_near_one_too(tmp_path):
    images, samples = clean_set()
    images["val"][3], images["train"][10] = images["train"][3], brighter(images["train"][3])
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert rows(audit, "leaks") == [("val", 3)] and rows(audit, "near_leaks") == []
    assert rows(audit, "near_duplicates") == [("train", 3), ("train", 10), ("val", 3)]


def test_constant_and_blank_images(tmp_path):
    images, samples = clean_set()
    images["train"][5] = np.array([10, 200, 30], np.uint8)[:, None, None]
    images["val"][2], images["val"][9] = 7, 7
    images["test"][1] = 99
    images["test"][1][:, 0] = 103
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert rows(audit, "constant") == [("train", 5), ("val", 2), ("val", 9)] and audit.numbers["constant"] == 3
    assert rows(audit, "blank") == [("test", 1)] and audit.numbers["blank"] == 1
    assert rows(audit, "duplicates") == [("val", 2), ("val", 9)] and audit.numbers["near"]["groups"] == 0


def test_a_person_in_two_splits(tmp_path):
    images, samples = clean_set()
    samples["val"].loc[4, "subject"] = 3
    samples["test"].loc[:, "subject"] = -1  # unknown persons are not one person
    samples["val"].loc[20, "subject"] = -1
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.found == ["subjects"] and audit.numbers["subjects_in_several_splits"] == 1
    assert audit.rows("subjects").to_dict("records") == [{"subject": 3, "train": 7, "val": 1, "test": 0}]


def test_values_out_of_range(tmp_path):
    images, samples = clean_set()
    samples["train"].loc[[3, 8], "valence"] = [1.5, -2.0]
    samples["test"].loc[2, "arousal"] = -5.0
    samples["val"].loc[6, "au12"] = 6.0
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.found == ["ranges"]
    found = audit.rows("ranges")
    assert list(zip(found["split"], found["row"], found["column"], found["value"])) == [
        ("train", 3, "valence", 1.5), ("train", 8, "valence", -2.0), ("test", 2, "arousal", -5.0),
        ("val", 6, "au12", 6.0)]  # fmt: skip


def rewritten(directory: Path, split: str, change) -> None:
    """Edits a split's samples behind the writer's back."""
    path = directory / split / "samples.parquet"
    samples = pd.read_parquet(path)
    change(samples)
    samples.to_parquet(path, index=False)


def test_labels_and_soft_labels_that_are_none(plain):
    def change(samples):
        samples.loc[4, "label"] = 7
        samples.at[5, "soft"] = np.full(7, 0.2, np.float32)
        samples.at[6, "soft"] = np.full(6, 1 / 6, np.float32)
        samples.at[7, "soft"] = np.array([-1, 2, 0, 0, 0, 0, 0], np.float32)

    rewritten(plain, "val", change)
    audit = audit_packed(plain)
    assert rows(audit, "labels") == [("val", 4)]
    assert rows(audit, "soft_labels") == [("val", 5), ("val", 6), ("val", 7)]
    assert audit.rows("soft_labels")["fault"].tolist() == [
        "sum 1.4", "not 7 numbers", "a share is negative or no number"]  # fmt: skip


def test_sizes_counts_and_missing_classes(tmp_path):
    images, samples = clean_set()
    samples["train"].loc[[1, 2], ["width", "height"]] = [[20, 23], [100, 201]]
    samples["train"].loc[3, ["width", "height"]] = [24, 24]
    samples["test"]["label"] = np.minimum(samples["test"]["label"], 5)
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.found == ["sizes", "classes", "published"]
    assert rows(audit, "sizes") == [("train", 1), ("train", 2)]
    assert audit.rows("classes").to_dict("records") == [{"split": "test", "class": "anger"}]
    found = audit.rows("published")
    assert list(zip(found["class"], found["n"], found["published"])) == [("disgust", 6, 3), ("anger", 0, 3)]


def test_counts_that_an_option_changed_are_no_flaw(tmp_path):
    images, samples = clean_set()
    images["val"][3] = images["train"][3]
    audit = audit_packed(pack(tmp_path / "out", images, samples, drop_leaks=True))
    assert audit.found == [] and statuses(audit)["published"] == "note"
    assert audit.numbers["before_packing"]["duplicates"]["val_in_train"] == 1


def test_what_the_data_do_not_say_is_skipped_and_not_passed(tmp_path):
    images, samples = clean_set()
    samples = {split: table[["label", "source"]] for split, table in samples.items()}
    audit = audit_packed(pack(tmp_path / "out", images, samples, published={}))
    skipped = {name for name, status in statuses(audit).items() if status == "skipped"}
    assert skipped == {"subjects", "sizes", "soft_labels", "ranges", "published"}
    assert audit.numbers["subjects_in_several_splits"] is None


def test_threads_and_blocks_change_nothing(tmp_path, monkeypatch):
    images, samples = clean_set()
    images["val"][3], images["test"][2] = images["train"][3], brighter(images["train"][8])
    out = pack(tmp_path / "out", images, samples)
    one = audit_packed(out).as_json()
    monkeypatch.setattr("data_prep.audit._BLOCK_BYTES", 3 * 48 * 48 * 8)
    assert audit_packed(out, workers=3).as_json() == one


def test_a_split_without_images(tmp_path):
    images, samples = clean_set()
    samples["test"] = samples["test"].iloc[:0]
    audit = audit_packed(pack(tmp_path / "out", images, samples, published={}))
    assert audit.found == []
    write_audit(audit, tmp_path / "out")
    assert read_audit(tmp_path / "out")["n"] == {"train": 70, "val": 21, "test": 0}


def test_a_directory_that_cannot_be_read_is_one_sentence(plain, tmp_path):
    path = plain / "train" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cannot be read"):
        audit_packed(plain)
    with pytest.raises(DataError, match="no packed directory"):
        audit_packed(tmp_path / "nothing")


# --- near images ----------------------------------------------------------------------------------------------------


def near_by_all_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> set[frozenset[int]]:
    """The groups, by comparing all pairs."""
    n = len(hashes)
    close = np.bitwise_count(hashes[:, None] ^ hashes) <= near.HAMMING
    close &= np.corrcoef(thumbnails.astype(float)) >= near.CORRELATION
    reach = close
    for _ in range(10):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return {frozenset(np.flatnonzero(row).tolist()) for row in reach[:n] if row.sum() > 1}


def groups_of(group: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(group == number).tolist()) for number in range(group.max() + 1)}


@pytest.mark.parametrize("clustered", [False, True])
def test_buckets_find_what_all_pairs_find(clustered):
    """Also where all hashes lie close together, so that buckets are full."""
    rng = np.random.default_rng(0)
    n = 600
    hashes = rng.integers(0, 1 << 63, n, np.uint64)
    if clustered:
        hashes = hashes[0] ^ (np.uint64(1) << rng.integers(0, 64, (n, 8)).astype(np.uint64)).sum(1, dtype=np.uint64)
    thumbnails = rng.integers(0, 256, (n, 256), np.uint8)
    for k in range(0, n - 1, 3):  # pairs that differ in 1 to 9 bits; at most 7 count
        flipped = rng.choice(64, 1 + k // 3 % 9, replace=False).astype(np.uint64)
        hashes[k + 1] = hashes[k] ^ np.bitwise_or.reduce(np.uint64(1) << flipped)
        thumbnails[k + 1] = thumbnails[k]
    found = near.group_near(hashes, thumbnails)
    assert found.complete and groups_of(found.group) == near_by_all_pairs(hashes, thumbnails)
    assert 100 < len(groups_of(found.group)) < 200


def test_too_many_alike_images_are_compared_in_part_and_it_says_so(monkeypatch):
    thumbnails = np.tile(np.arange(256, dtype=np.uint8), (500, 1))
    hashes = np.zeros(500, np.uint64)
    assert near.group_near(hashes, thumbnails).complete
    monkeypatch.setattr(near, "COMPARISONS", 4000)
    found = near.group_near(hashes, thumbnails)
    assert not found.complete and (found.group == 0).all()


def test_the_hash_ignores_brightness_and_contrast_and_sees_the_picture():
    faces = np.stack([photo(k, colour=False) for k in range(40)]).astype(np.float32)
    hashes = near.dhash(faces)
    assert np.array_equal(near.dhash(faces * 0.5 + 60), hashes) and len(set(hashes.tolist())) == 40
    steps = np.zeros((1, 8, 9), np.float32)
    steps[0, :, :4], steps[0, 0] = np.arange(4), np.arange(9)  # row 0 rises throughout, the others to column 3
    (value,) = near.dhash(steps)
    assert f"{int(value):064b}" == "1" * 8 + "11100000" * 7


# --- files ----------------------------------------------------------------------------------------------------------


def flawed(tmp_path: Path) -> Path:
    images, samples = clean_set()
    images["val"][3], images["test"][2] = images["train"][3], brighter(images["train"][8])
    samples["val"].loc[4, "subject"] = 3
    samples["train"].loc[3, "valence"] = np.inf
    samples["train"].loc[0, "source"] = "<b>\x01\ufffe.png"
    return pack(tmp_path / "flawed", images, samples)


def test_the_json_has_what_programs_ask_for(tmp_path):
    out = flawed(tmp_path)
    assert main(["audit", str(out)]) == 0
    found = json.loads((out / "audit.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert found == read_audit(out)
    assert found["leaks"] == {"val": 1, "test": 0, "test_in_val": 0}
    whole = ["audit", "duplicate_groups", "surplus", "conflicting_groups", "constant", "blank",
             "subjects_in_several_splits"]  # fmt: skip
    assert {type(found[name]) for name in whole} == {int}
    assert found["n"] == SIZES and found["class_counts"]["val"] == dict.fromkeys(CLASSES, 3)
    assert found["found"] == ["leaks", "duplicates", "near_leaks", "near_duplicates", "subjects", "ranges"]
    assert set(found["checks"]) == CLEAN
    for one in found["checks"].values():
        assert set(one) == {"title", "status", "count", "sentence", "rows", "rows_left_out"}
        assert (one["count"] > 0) == (one["status"] == "found")
    assert found["checks"]["leaks"]["rows"][0]["equals_source"] == "train/3.png"


def test_the_page_is_well_formed_and_holds_its_pictures(tmp_path):
    out = flawed(tmp_path)
    write_audit(audit_packed(out), out)
    page = ElementTree.fromstring((out / "audit.html").read_text().removeprefix("<!DOCTYPE html>\n"))
    assert page.find("head/title").text == "Audit of Faces <drawn> & packed"
    pictures = list(page.iter("img"))
    assert len(pictures) > len(CLASSES) and all(one.get("alt") for one in pictures)
    assert all(one.get("src").startswith("data:image/jpeg;base64,") for one in pictures)
    links = [one.get("href") for one in page.iter("a")]
    targets = {f"#{one.get('id')}" for one in page.iter() if one.get("id")}
    assert len(links) == 6 and set(links) <= targets
    text = (out / "audit.html").read_text()
    assert "http" not in text.split("<style>")[0] and "<script" not in text and "prefers-color-scheme: dark" in text
    assert {one.tag for one in page.iter()} & {"link", "script", "iframe"} == set()


def test_contact_sheets_show_images_of_their_class(plain):
    write_audit(audit_packed(plain), plain)
    sheets = sorted(path.name for path in (plain / "contact_sheets").iterdir())
    assert sheets == [f"{label:03d}-{name}.png" for label, name in enumerate(CLASSES)]
    with Image.open(plain / "contact_sheets" / "001-happy.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (50 + 8 + 50 + 8 + 50, 10 * 50, 3)  # 10, 3 and 3 images of 48 + 2 pixels, gaps of 8
    images, _ = clean_set()
    for place, row in ((0, 1), (1, 8), (9, 64)):
        assert np.array_equal(pixels[:48, 50 * place : 50 * place + 48], images["train"][row].transpose(1, 2, 0))
    assert np.array_equal(pixels[58:106, :48], images["val"][1].transpose(1, 2, 0))


def test_the_audit_is_the_same_each_time_and_replaces_itself(tmp_path):
    out = flawed(tmp_path)
    write_audit(audit_packed(out), out)
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "contact_sheets" / "099-old-class.png").write_bytes(b"")
    write_audit(audit_packed(out), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    assert str(tmp_path).encode() not in b"".join(first.values())


# --- the command ----------------------------------------------------------------------------------------------------


def test_exit_codes(plain, tmp_path, capsys):
    assert main(["audit", str(plain), "--strict"]) == 0
    assert "0 of 14 checks found something" in capsys.readouterr().out
    out = flawed(tmp_path)
    assert main(["audit", str(out)]) == 0
    assert main(["audit", str(out), "--strict"]) == 1
    assert "6 of 14 checks found something" in capsys.readouterr().out
    assert main(["audit", str(tmp_path / "nothing")]) == 2


def test_out_writes_elsewhere(plain, tmp_path):
    before = sorted(plain.rglob("*"))
    assert main(["audit", str(plain), "--out", str(tmp_path / "report" / "here")]) == 0
    assert sorted(plain.rglob("*")) == before
    assert {path.name for path in (tmp_path / "report" / "here").iterdir()} == {
        "audit.json", "audit.html", "contact_sheets"}  # fmt: skip


DRAWN = ["synthetic", "--n-train", "50", "--n-val", "14", "--n-test", "14", "--size", "16"]


def test_packing_ends_with_an_audit_and_a_stopped_one_is_made_up_for(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*DRAWN, "--out", str(out), "--no-audit"]) == 0
    assert not (out / "audit.json").exists() and "audit:" not in capsys.readouterr().out
    assert main([*DRAWN, "--out", str(out)]) == 0
    assert read_audit(out)["n"] == {"train": 50, "val": 14, "test": 14} and "audit:" in capsys.readouterr().out
    made = (out / "audit.json").stat().st_mtime_ns
    assert main([*DRAWN, "--out", str(out)]) == 0
    assert (out / "audit.json").stat().st_mtime_ns == made, "an audit of this content is not made again"


def test_overwrite_takes_the_audit_along_but_no_file_of_the_users(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*DRAWN, "--out", str(out)]) == 0
    (out / "audit.html.tmp").write_text("of an audit that was killed")
    (out / "contact_sheets" / "000-neutral.png.tmp").write_text("too")
    assert main([*DRAWN, "--seed", "9", "--out", str(out), "--overwrite"]) == 0
    assert check(out) == [] and not (out / "audit.html.tmp").exists()
    (out / "contact_sheets" / "thesis.png").write_text("mine")
    assert main([*DRAWN, "--seed", "8", "--out", str(out), "--overwrite"]) == 2
    assert "thesis.png too" in capsys.readouterr().err
    assert (out / "contact_sheets" / "thesis.png").read_text() == "mine"


def test_check_notices_an_audit_of_other_data(plain):
    write_audit(audit_packed(plain), plain)
    assert check(plain) == []
    found = json.loads((plain / "audit.json").read_text())
    (plain / "audit.json").write_text(json.dumps({**found, "content_sha256": "0"}))
    (problem,) = check(plain)
    assert "of other data" in problem


def test_a_full_disk_during_the_audit_is_one_sentence_and_the_data_stay(tmp_path, monkeypatch, capsys):
    def full(path, blocks, scratch=False):
        if path.name == "audit.html":
            with disk.writing(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        return write_file(path, blocks, scratch)

    write_file = disk.write_file
    monkeypatch.setattr(disk, "write_file", full)
    assert main([*DRAWN, "--out", str(tmp_path / "out")]) == 2
    assert "audit.html: No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert check(tmp_path / "out") == [] and read_audit(tmp_path / "out") is None
    assert main([*DRAWN, "--out", str(tmp_path / "out")]) == 0
    assert read_audit(tmp_path / "out") is not None


def test_every_split_is_looked_at():
    assert tuple(SIZES) == SPLITS


def test_images_that_differ_in_one_channel_are_not_equal(tmp_path):
    images, samples = clean_set()
    images["val"][3] = images["train"][3]
    images["val"][3][2] ^= 1
    audit = audit_packed(pack(tmp_path / "out", images, samples))
    assert audit.numbers["leaks"]["val"] == 0 and rows(audit, "near_leaks") == [("val", 3)]


def test_an_audit_that_was_cut_off_is_not_taken_for_the_one_before(plain, monkeypatch):
    audit = audit_packed(plain)
    write_audit(audit, plain)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.audit_page._page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_audit(audit, plain)
    assert read_audit(plain) is None
