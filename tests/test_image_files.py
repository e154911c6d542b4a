"""Image files: what may be opened, how bytes become pixels, splits, and the record of what is left out."""

import io
import os
import pickle
import shutil
import struct
import zlib
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st
from PIL import Image, ImageOps
from source_trees import dropped, images, photo, samples, save

from data_prep import image_files, paths, shards
from data_prep.check import check
from data_prep.image_files import plan_images
from data_prep.images import UNREADABLE, decode_files, decode_image, fit
from data_prep.labels import name_classes
from data_prep.packed import DataError, Dropped, Rejected
from data_prep.paths import MISSING, REFUSED, Located, Root
from data_prep.writer import write
from fer_lib.data import open_packed

# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Path:
    """root/a/1.jpg, links inside and out, a pipe, an empty file; outside/secret.jpg beside the root."""
    root = tmp_path / "root"
    save(root / "a" / "1.jpg", photo(1))
    save(tmp_path / "outside" / "secret.jpg", photo(2))
    (root / "in.jpg").symlink_to("a/1.jpg")
    (root / "out.jpg").symlink_to("../outside/secret.jpg")
    (root / "way").symlink_to("../outside")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "dead.jpg").symlink_to("gone.jpg")
    os.mkfifo(root / "pipe.jpg")
    save(root / "empty.jpg", b"")
    return root


REFUSALS = {
    "../outside/secret.jpg": (REFUSED, "leads out of the source"),
    "a/../a/1.jpg": (REFUSED, "leads out of the source"),
    "/etc/passwd": (REFUSED, "absolute"),
    "C:/x.jpg": (REFUSED, "absolute"),
    "a\\1.jpg": (REFUSED, "back-slash"),
    "a/1.jpg\0": (REFUSED, "NUL byte"),
    "": (REFUSED, "empty"),
    "\udcff.jpg": (REFUSED, "not UTF-8"),
    "x" * 5000: (REFUSED, "name too long"),
    "out.jpg": (REFUSED, "a link leads out"),
    "way/secret.jpg": (REFUSED, "a link leads out"),
    "a/2.jpg": (MISSING, "a/2.jpg"),
    "a/1.jpg/b": (MISSING, "a/1.jpg/b"),
    "loop.jpg": (REFUSED, "Too many levels"),
    "dead.jpg": (MISSING, "dead.jpg"),
    "a": ("not a regular file", "a"),
    "pipe.jpg": ("not a regular file", "pipe.jpg"),
    "empty.jpg": ("image file is empty", "empty.jpg"),
}


@pytest.mark.parametrize("path", REFUSALS, ids=lambda path: ascii(path[:20]))
def test_paths_that_are_not_opened(tree, path):
    reason, detail = REFUSALS[path]
    found = Root(tree).locate(path)
    assert isinstance(found, Rejected) and found.bad
    assert found.reason == reason and detail.lower() in found.detail.lower() and len(found.detail) < 300
    found.text.encode()


def test_paths_that_are_opened(tree):
    size = (tree / "a" / "1.jpg").stat().st_size
    for path in ("a/1.jpg", "in.jpg"):
        found = Root(tree).locate(path)
        assert isinstance(found, Located) and (found.path, found.size) == (path, size)


def test_a_root_that_is_a_link_itself(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    assert isinstance(Root(tmp_path / "link").locate("a/1.jpg"), Located)


def test_other_case_and_extension_only_when_asked_for(tree):
    save(tree / "b" / "2.PNG", photo(2))
    save(tree / "b" / "3.jpg", photo(3))
    save(tree / "b" / "3.png", photo(3))
    save(tree / "b" / "u\u0308.jpg", photo(4))
    assert isinstance(Root(tree).locate("b/2.jpg"), Rejected)
    loose = Root(tree, any_extension=True)
    assert loose.locate("b/2.jpg").path == loose.locate("b/2.png").path == "b/2.PNG"
    assert loose.locate("b/3.jpg").path == "b/3.jpg"
    assert loose.locate("b/3.bmp").reason == MISSING  # two candidates: neither is taken
    assert loose.locate("b/\u00fc.jpg").path == "b/u\u0308.jpg"
    assert loose.locate("gone/1.jpg").reason == MISSING
    assert loose.locate("b/gone.jpg") == Rejected(MISSING, "b/gone.jpg")
    assert loose.locate("out.png").reason == REFUSED


def test_a_file_that_is_too_large_is_not_read(tree, monkeypatch):
    monkeypatch.setattr(paths, "MAX_FILE_BYTES", 100)
    assert Root(tree).locate("a/1.jpg").reason == "image file is too large"


# --- decoding -------------------------------------------------------------------------------------------------------


def encoded(image: np.ndarray | Image.Image, format: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("colour", [True, False])
def test_lossless_formats_keep_every_pixel(format, colour):
    image = photo(3, colour=colour)
    found = decode_image(encoded(image, format, **({"lossless": True} if format == "WEBP" else {})))
    expected = image if colour else np.stack([image] * 3, 2)
    assert found.dtype == torch.uint8 and np.array_equal(found.permute(1, 2, 0), expected)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("source", ["RGB", "L"])
def test_jpeg_is_pillows_within_one_level(source, grey):
    content = encoded(photo(3, 100, colour=source == "RGB"), "JPEG", quality=85)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("L" if grey else "RGB")).astype(int)
    found = decode_image(content, grey).numpy().astype(int)
    found = found[0] if grey else found.transpose(1, 2, 0)
    assert found.shape == expected.shape and abs(found - expected).max() <= 1


def test_other_modes():
    face = Image.fromarray(photo(3))
    grey = face.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(decode_image(encoded(deep, "PNG"), grey=True)[0], grey)
    assert np.array_equal(decode_image(encoded(deep, "TIFF"), grey=True)[0], grey)
    assert np.array_equal(decode_image(encoded(grey.convert("1"), "PNG"), grey=True)[0] > 0, grey.convert("1"))
    palette = face.convert("P")
    assert np.array_equal(decode_image(encoded(palette, "PNG")).permute(1, 2, 0), palette.convert("RGB"))
    with_alpha = face.convert("RGBA")
    with_alpha.putalpha(7)
    assert np.array_equal(decode_image(encoded(with_alpha, "PNG")).permute(1, 2, 0), face)
    assert decode_image(encoded(face.convert("CMYK"), "JPEG")).shape == (3, 48, 48)
    for mode in ("F", "I"):
        assert decode_image(encoded(grey.convert(mode), "TIFF")).reason == "pixels are neither 8 nor 16 bits"


def test_of_several_frames_the_first_is_taken():
    first, second = (Image.fromarray(photo(n, colour=False)) for n in (1, 2))
    for format in ("GIF", "TIFF", "WEBP"):
        settings = {"lossless": True} if format == "WEBP" else {}
        content = encoded(first, format, save_all=True, append_images=[second], **settings)
        assert np.array_equal(decode_image(content, grey=True)[0], first), format


@pytest.mark.parametrize("turn", range(0, 10))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_pillows(turn, format):
    image = Image.fromarray(photo(5, 64)[:40])
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encoded(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    with Image.open(io.BytesIO(content)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    found = decode_image(content).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == expected.shape and abs(found - expected).max() <= 1


def png_that_promises(width: int, height: int) -> bytes:
    """A few bytes whose header says that they are a huge image."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [9_000, 10_000, 100_000])
def test_decompression_bombs_are_not_decoded(tmp_path, side):
    save(tmp_path / "bomb.png", png_that_promises(side, side))
    rows = pd.DataFrame({"_path": ["bomb.png"]})
    (why,) = decode_files(rows, root=str(tmp_path), size=16)
    assert why.reason == "image has too many pixels"


BROKEN = {
    "nothing of an image": (b"hello", UNREADABLE),
    "html": (b"<!DOCTYPE html><html>404</html>", UNREADABLE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", UNREADABLE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNREADABLE),
    "half a jpeg": (lambda: encoded(photo(1), "JPEG")[:700], UNREADABLE),
    "jpeg without its end": (lambda: encoded(photo(1), "JPEG")[:-20], UNREADABLE),
    "half a png": (lambda: encoded(photo(1), "PNG")[:700], UNREADABLE),
    "half a tiff": (lambda: encoded(photo(1), "TIFF")[:700], UNREADABLE),
    "half a webp": (lambda: encoded(photo(1), "WEBP")[:300], UNREADABLE),
    "png with a wrong checksum": (lambda: encoded(photo(1), "PNG").replace(b"IDAT", b"IDAt"), UNREADABLE),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_broken_files_are_rejected(flaw):
    content, reason = BROKEN[flaw]
    found = decode_image(content() if callable(content) else content)
    assert isinstance(found, Rejected) and found.reason == reason and found.bad
    assert "0x" not in found.text  # addresses would differ from run to run


@fuzz(
    60,
    format=st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
)
def test_mutated_files_are_pixels_or_a_reason(format, flips, keep):
    content = bytearray(encoded(photo(1, 24), format))
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    found = decode_image(bytes(content[: int(keep * len(content)) or 1]))
    assert isinstance(found, Rejected) or (found.dtype == torch.uint8 and found.shape[0] == 3)


# --- crop and size --------------------------------------------------------------------------------------------------


def ramp(width: int, height: int) -> torch.Tensor:
    """Channel 0 holds x, channel 1 holds y."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(np.stack([x, y]).astype(np.uint8))


@pytest.mark.parametrize(
    ("box", "margin", "left", "top", "side"),
    [
        ((20, 30, 40, 50), 0.0, 20, 30, 20),
        ((20, 30, 40, 50), 0.1, 18, 28, 24),
        ((20, 30, 40, 40), 0.0, 20, 25, 20),  # a square of the longer side
        ((0, 0, 20, 20), 0.25, 0, 0, 30),  # moved inside
        ((90, 70, 110, 90), 0.0, 80, 60, 20),
        ((-50, -50, 300, 300), 0.0, 20, 0, 80),  # no larger than the image
        ((10.4, 10.4, 10.6, 10.6), 0.0, 10, 10, 1),
    ],
)
def test_boxes_become_squares_inside_the_image(box, margin, left, top, side):
    image = ramp(100, 80)
    found = fit(image, np.array(box, float), side, margin)
    assert np.array_equal(found.pixels, image[:, top : top + side, left : left + side])
    assert (found.width, found.height) == (side, side)


@pytest.mark.parametrize("box", [(100, 0, 120, 20), (-20, 0, 0, 20), (0, 80, 10, 90)])
def test_boxes_outside_the_image_are_rejected(box):
    assert fit(ramp(100, 80), np.array(box, float), 8, 0.5).reason == "box outside the image"


def test_whole_images_are_stretched_as_torchvision_does():
    found = fit(ramp(100, 50), np.full(4, np.nan), 20, 0.0)
    pixels = found.pixels.astype(int)
    assert pixels.shape == (2, 20, 20) and pixels[0, 0, 0] == 2 and pixels[0, 0, -1] == 97
    assert abs(pixels[1, -1, 0] - 48) <= 1 and (found.width, found.height) == (100, 50)


# --- the plan -------------------------------------------------------------------------------------------------------


def options(*given: str, **flags):
    parser = ArgumentParser()
    image_files.add_arguments(parser, size=16, **flags)
    return parser.parse_args(["--source", ".", *given])


def make_rows(root: Path, n: int = 12, **columns) -> pd.DataFrame:
    """n faces under root, labels 0, 1, 2 in turn."""
    for number in range(n):
        save(root / f"{number}.png", photo(number))
    given = {"path": [f"{number}.png" for number in range(n)], "label": [str(number % 3) for number in range(n)]}
    return pd.DataFrame({**given, **columns})


def make_plan(root: Path, rows: pd.DataFrame, *given: str, flags: dict | None = None, **facts):
    naming = facts.pop("naming", None) or name_classes({"0": "Happy", "1": "Sad", "2": "Angry", "3": "None"})
    known = dict(root=root, name="toy", title="Toy", licence="none", release="1", **facts)
    return plan_images(options(*given, **(flags or {})), rows, naming=naming, **known)


def packed(plan, out: Path) -> dict:
    manifest = write(plan, out)
    assert check(out) == []
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    return manifest


def test_the_manifest_says_what_was_done(tmp_path):
    rows = make_rows(tmp_path / "raw", split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    plan = make_plan(tmp_path / "raw", rows, settings={"list": "manual"}, files={"x.csv": "00"})
    manifest = packed(plan, tmp_path / "out")
    assert manifest["classes"] == ["happy", "sad", "anger"]
    assert manifest["label_mapping"] == {"0": "happy", "1": "sad", "2": "anger", "3": "(left out: None)"}
    assert manifest["image"] == {"channels": 3, "height": 16, "width": 16}
    assert manifest["options"] == {
        "size": 16, "grey": False, "crop": "whole image, stretched to a square", "val_share": 0.1, "test_share": 0.0,
        "split_seed": 0, "max_per_class": None, "list": "manual", "drop_leaks": False, "dedup": False,
    }  # fmt: skip
    assert list(manifest["source"]["files"]) == ["x.csv", "12 image files, by name and size"]
    assert {split: facts["n"] for split, facts in manifest["splits"].items()} == {"train": 6, "val": 3, "test": 3}
    with Image.open(tmp_path / "raw" / "7.png") as image:
        expected = fit(torch.from_numpy(np.array(image)).permute(2, 0, 1), np.full(4, np.nan), 16, 0).pixels
    assert np.array_equal(images(tmp_path / "out", "val")[1], expected)
    data = open_packed(tmp_path / "out")
    assert data.classes == ["happy", "sad", "anger"] and data.image == (3, 16, 16)


def test_every_row_that_is_left_out_is_recorded(tmp_path):
    rows = make_rows(tmp_path / "raw")
    rows = rows.assign(file="list.csv", row=range(2, 14), x0=1.0, y0=1.0, x1=30.0, y1=30.0)
    rows.loc[1, "path"] = "../secret.png"
    rows.loc[2, "path"] = "gone.png"
    rows.loc[3, "label"] = "3"
    rows.loc[4, "label"] = "9"
    rows.loc[5, "x1"] = 1.0
    rows.loc[6, "y1"] = np.nan
    rows.loc[7, ["x0", "x1"]] = [500.0, 600.0]
    rows.loc[8, ["x0", "y0", "x1", "y1"]] = np.nan
    save(tmp_path / "raw" / "9.png", b"junk")
    before = Dropped("", "list.csv", 14, Rejected("wrong number of fields"))
    plan = make_plan(tmp_path / "raw", rows, "--val-share", "0", dropped=[before], flags={"boxes": True})
    manifest = packed(plan, tmp_path / "out")
    assert dropped(tmp_path / "out") == [
        ["", "list.csv", 14, "wrong number of fields"],
        ["", "list.csv", 3, "path refused: leads out of the source: ../secret.png"],
        ["", "list.csv", 4, "image file is missing: gone.png"],
        ["", "list.csv", 7, "box without area: 1,1,1,30"],
        ["", "list.csv", 8, "box is not four numbers"],
        ["", "list.csv", 5, "no expression class: None"],
        ["", "list.csv", 6, "unknown label: 9"],
        ["train", "list.csv", 9, "box outside the image: 7.png (500,1,600,30 in 48 x 48)"],
        ["train", "list.csv", 11, "unreadable image: 9.png (cannot identify image file)"],
    ]
    assert manifest["inputs"] == 13 and manifest["kept"] == 4 and manifest["bad_inputs"] == 8
    kept = samples(tmp_path / "out", "train")
    assert kept["source"].tolist() == ["list.csv:2", "list.csv:10", "list.csv:12", "list.csv:13"]
    assert kept["image"].tolist() == ["0.png", "8.png", "10.png", "11.png"]
    assert manifest["options"]["crop"].startswith("square around the box, margin 0.1")


@pytest.mark.long
def test_workers_and_chunks_change_no_byte(tmp_path, monkeypatch):
    """The workers are fresh processes, which must know the formats that Pillow loads late."""
    rows = make_rows(tmp_path / "raw", 30, label="0").assign(label=[str(n % 3) for n in range(30)])
    for n, format in enumerate(("TIFF", "WEBP", "GIF")):
        (tmp_path / "raw" / rows["path"][n]).write_bytes(encoded(photo(n), format))
    rows = pd.concat([rows, rows.assign(x0=5, y0=6, x1=30, y1=40)], ignore_index=True)
    rows = rows.sort_values("path", kind="stable")  # two faces an image
    plan = make_plan(tmp_path / "raw", rows, "--grey", flags={"boxes": True})
    assert pickle.loads(pickle.dumps(plan.decode)).keywords == plan.decode.keywords
    found = {}
    for name, workers, size in (("one", 1, 4 << 20), ("two", 2, 16 * 16 * 16), ("small", 1, 1)):
        monkeypatch.setattr(shards, "SHARD_BYTES", size)
        found[name] = write(plan, tmp_path / name, workers=workers)
    assert found["one"] == found["two"] == found["small"] and found["two"]["kept"] == 60


def test_soft_labels_subjects_and_values_are_kept(tmp_path):
    soft = [[0.2, 0.2, 0.4]] * 11 + [[0, 0, 0]]
    subject = ["S2", "S1", ""] * 4
    rows = make_rows(tmp_path / "raw", soft=soft, subject=subject, valence=np.linspace(-1, 1, 12)).drop(columns="label")
    manifest = packed(make_plan(tmp_path / "raw", rows, "--val-share", "0"), tmp_path / "out")
    kept = samples(tmp_path / "out", "train")
    assert np.allclose(np.stack(kept["soft"]), [[0.25, 0.25, 0.5]] * 11) and set(kept["label"]) == {2}
    assert kept["subject"].tolist() == [1, 0, -1] * 3 + [1, 0] and kept["valence"].iat[0] == -1
    assert manifest["dropped"] == {"unusable soft label": 1}


# --- identity -------------------------------------------------------------------------------------------------------


def test_copies_of_the_data_are_the_same_plan(tmp_path):
    rows = make_rows(tmp_path / "raw")
    shutil.copytree(tmp_path / "raw", tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    one, other = make_plan(tmp_path / "raw", rows), make_plan(tmp_path / "copy", rows)
    assert one.sha256 == other.sha256 and one.stamp != other.stamp
    assert packed(one, tmp_path / "a") == packed(other, tmp_path / "b")


def test_another_size_is_another_plan_and_another_time_starts_a_stopped_run_anew(tmp_path):
    rows, said = make_rows(tmp_path / "raw", split=["train", "train", "val"] * 4), []
    plan = make_plan(tmp_path / "raw", rows)

    def stopping(rows, split):
        if split == "val":
            raise KeyboardInterrupt
        return plan.decode(rows, split)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(replace(plan, decode=stopping), tmp_path / "out", say=said.append)
    os.utime(tmp_path / "raw" / "3.png", (1, 1))
    changed = make_plan(tmp_path / "raw", rows)
    assert changed.sha256 == plan.sha256
    write(changed, tmp_path / "out", say=said.append)
    assert said[0] == "resuming: 1 of 2 parts are there" and "starting anew" in said[1] and len(said) == 2
    with open(tmp_path / "raw" / "3.png", "ab") as file:
        file.write(b"!")
    assert make_plan(tmp_path / "raw", rows).sha256 != plan.sha256


def test_an_image_newer_than_the_finished_directory_is_mentioned(tmp_path):
    rows, said = make_rows(tmp_path / "raw"), []
    packed(make_plan(tmp_path / "raw", rows), tmp_path / "out")
    write(make_plan(tmp_path / "raw", rows), tmp_path / "out", say=said.append)
    later = (tmp_path / "out" / "manifest.json").stat().st_mtime + 60
    os.utime(tmp_path / "raw" / "3.png", (later, later))
    write(make_plan(tmp_path / "raw", rows), tmp_path / "out", say=said.append)
    assert said[0].endswith("left as it is") and "newer than it" in said[1]


def test_a_disk_that_is_too_small_is_told_before_the_start(tmp_path, monkeypatch):
    plan = make_plan(tmp_path / "raw", make_rows(tmp_path / "raw"))
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match="packing needs up to 0.00 GB .* free space, choose an --out on another disk"):
        write(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- splits ---------------------------------------------------------------------------------------------------------


def splits_of(plan) -> dict[str, list[str]]:
    return {split: plan.samples[split]["source"].tolist() for split in plan.samples}


def test_shares_are_cut_in_each_class_by_seed_and_not_by_order(tmp_path):
    rows = make_rows(tmp_path / "raw", 60)
    shares = ("--val-share", "0.2", "--test-share", "0.1")
    one = splits_of(make_plan(tmp_path / "raw", rows, *shares))
    other = splits_of(make_plan(tmp_path / "raw", rows.sample(frac=1, random_state=0), *shares))
    assert {split: len(found) for split, found in one.items()} == {"train": 42, "val": 12, "test": 6}
    assert {split: sorted(found) for split, found in one.items()} == {s: sorted(found) for s, found in other.items()}
    for found, count in ((one["val"], 4), (one["test"], 2)):
        assert np.bincount([int(path.removesuffix(".png")) % 3 for path in found]).tolist() == [count] * 3
    assert splits_of(make_plan(tmp_path / "raw", rows, "--split-seed", "1"))["val"] != one["val"]


def test_a_split_of_the_source_stays_and_groups_stay_together(tmp_path):
    given = ["test"] * 12 + [""] * 48
    rows = make_rows(tmp_path / "raw", 60, split=given, group=[f"film {n // 6}" for n in range(60)])
    found = splits_of(make_plan(tmp_path / "raw", rows, "--val-share", "0.3", "--test-share", "0.5"))
    assert found["test"] == [f"{n}.png" for n in range(12)] and len(found["val"]) in (12, 18)
    films = {split: {int(path.removesuffix(".png")) // 6 for path in paths} for split, paths in found.items()}
    assert not films["train"] & films["val"]


def test_subject_folds_are_disjoint_balanced_and_cover_everybody(tmp_path):
    subject = [f"S{int(n ** 0.5):03d}" for n in range(60)]  # 8 subjects of 1 to 13 images
    rows = make_rows(tmp_path / "raw", 60, subject=subject)
    seen, val = [], []
    for fold in range(4):
        given = ("--split-by-subject", "4", "--fold", str(fold))
        plan = make_plan(tmp_path / "raw", rows, *given, flags={"subjects": True})
        people = {split: set(plan.samples[split]["subject"]) for split in plan.samples}
        assert not people["train"] & people["val"] and not people["test"] & (people["train"] | people["val"])
        assert 13 <= len(plan.samples["test"]) <= 17
        assert plan.options["split_by_subject"] == 4 and plan.options["fold"] == fold
        seen.append(plan.samples["test"]["source"].tolist())
        val.append(plan.samples["val"]["source"].tolist())
    assert sorted(sum(seen, [])) == sorted(rows["path"]) and val == [*seen[1:], seen[0]]


@pytest.mark.parametrize(
    ("given", "subject", "sentence"),
    [
        (("9",), ["a", "b", "c"] * 4, "only 3 subjects"),
        (("3", "--fold", "3"), ["a", "b", "c"] * 4, "--fold 3 is outside 0..2"),
        (("3",), [""] * 12, "does not say"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(tmp_path, given, subject, sentence):
    rows = make_rows(tmp_path / "raw", subject=subject)
    with pytest.raises(DataError, match=sentence):
        make_plan(tmp_path / "raw", rows, "--split-by-subject", *given, flags={"subjects": True})


def test_unknown_subjects_are_left_out_of_folds(tmp_path):
    rows = make_rows(tmp_path / "raw", subject=["a", "b", "c", ""] * 3)
    plan = make_plan(tmp_path / "raw", rows, "--split-by-subject", "3", flags={"subjects": True})
    assert [drop.why.text for drop in plan.dropped] == ["subject unknown (--split-by-subject)"] * 3
    assert not any(drop.why.bad for drop in plan.dropped)


def test_max_per_class_draws_training_images_only(tmp_path):
    rows = make_rows(tmp_path / "raw", 60, split=["train"] * 45 + ["val"] * 15)
    one, again, other = (
        make_plan(tmp_path / "raw", rows, "--max-per-class", "4", "--split-seed", seed) for seed in "001"
    )
    assert np.bincount(one.samples["train"]["label"]).tolist() == [4, 4, 4] and len(one.samples["val"]) == 15
    assert splits_of(one) == splits_of(again) != splits_of(other)
    assert one.samples["train"]["source"].tolist() == sorted(one.samples["train"]["source"], key=lambda s: int(s[:-4]))
    assert len(one.dropped) == 33
    assert {drop.why for drop in one.dropped} == {Rejected("over --max-per-class", bad=False)}


@pytest.mark.parametrize("given", [["--size", "0"], ["--size", "x"], ["--val-share", "1.5"], ["--max-per-class", "0"]])
def test_options_out_of_range_are_refused(given):
    with pytest.raises(SystemExit, match="2"):
        options(*given)
