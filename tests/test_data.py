"""Packed data: what is refused and how, batches, order, augmentation, labels."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, make_data, make_experiment

from fer_lib.data import (
    SIZE,
    TURN,
    Augmentation,
    DataError,
    DeviceSplit,
    epoch_order,
    erased,
    open_packed,
    sampled_labels,
    shifted,
    stream,
    turned,
    used_rows,
)


def edit_manifest(packed, edit) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    edit(manifest)
    (packed / "manifest.json").write_text(json.dumps(manifest))


def rewrite(packed, file: str, write) -> None:
    """Replace a file of the train split and note its new size, as a tool of one's own might."""
    write(packed / "train" / file)
    size = (packed / "train" / file).stat().st_size
    edit_manifest(packed, lambda m: m["splits"]["train"]["files"][file].update(bytes=size))


def labels_with(value: int):
    def write(path):
        samples = pd.read_parquet(path)
        samples.loc[3, "label"] = value
        samples.to_parquet(path, index=False)

    return write


def truncate(path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "absent": (lambda p: shutil.rmtree(p), "no packed data at .*data_prep"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "holds no manifest.json"),
    "manifest cut off": (lambda p: truncate(p / "manifest.json", 40), "manifest.json' is damaged"),
    "manifest of bytes": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json' is damaged"),
    "manifest a list": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json' is damaged"),
    "manifest without splits": (lambda p: edit_manifest(p, lambda m: m.pop("splits")), "manifest.json' is damaged"),
    "manifest without classes": (lambda p: edit_manifest(p, lambda m: m.pop("classes")), "manifest.json' is damaged"),
    "manifest without mean": (lambda p: edit_manifest(p, lambda m: m.pop("normalization")), "manifest.* is damaged"),
    "split without files": (lambda p: edit_manifest(p, lambda m: m["splits"]["val"].pop("files")), "is damaged"),
    "other version": (lambda p: edit_manifest(p, lambda m: m.update(format=2)), "format 2, .* reads format 1"),
    "images missing": (lambda p: (p / "val" / "images.npy").unlink(), "'val/images.npy'.*is missing"),
    "images cut off": (lambda p: truncate(p / "test" / "images.npy", 1000), "1,000 bytes long, not 4,224"),
    "samples cut off": (lambda p: truncate(p / "train" / "samples.parquet", 99), "'train/samples.parquet'.*99 bytes"),
    "samples no parquet": (lambda p: rewrite(p, "samples.parquet", lambda f: f.write_bytes(b"x" * 500)),
                           "can't be read"),
    "images no array": (lambda p: rewrite(p, "images.npy", lambda f: f.write_bytes(b"x" * 500)), "can't be read"),
    "pickled images": (lambda p: rewrite(p, "images.npy", lambda f: np.save(f, np.array([{}] * 64))), "can't be read"),
    "too few images": (lambda p: rewrite(p, "images.npy", lambda f: np.save(f, np.load(f)[:9])), "holds 9 images"),
    "other size": (lambda p: rewrite(p, "images.npy", lambda f: np.save(f, np.load(f)[..., :9])),
                   r"train holds images of shape \(1, 16, 9\)"),
    "float images": (lambda p: rewrite(p, "images.npy", lambda f: np.save(f, np.load(f) / 255)), "train"),
    "label 7": (lambda p: rewrite(p, "samples.parquet", labels_with(7)), "train has a label outside 0...6"),
    "label -1": (lambda p: rewrite(p, "samples.parquet", labels_with(-1)), "train has a label outside 0...6"),
    "no train": (lambda p: edit_manifest(p, lambda m: m["splits"].pop("train")), "empty train split"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data_is_refused_with_one_sentence_and_no_absolute_path(packed, damage):
    spoil, reason = DAMAGE[damage]
    spoil(packed)
    with pytest.raises(DataError, match=reason) as caught:
        open_packed(packed)
    shown, = caught.value._render_traceback_()
    assert "\n" not in shown and str(packed.parent) not in shown
    assert re.search("pack|data_prep", shown)                       # the way out


def test_packed_data_opens_as_it_was_written(packed):
    data, made = open_packed(packed), make_data(soft=True)
    assert list(data.splits) == ["train", "val", "test"] and data.image == (1, 16, 16) and not data.drawn
    assert data.hash == made.hash and data.classes == made.classes
    for name, split in data.splits.items():
        assert isinstance(split.images, np.memmap)
        np.testing.assert_array_equal(split.images, made.splits[name].images)
        np.testing.assert_array_equal(split.samples["label"], made.splits[name].samples["label"])


def test_training_writes_nothing_into_the_data(packed):
    before = {p: p.read_bytes() for p in packed.rglob("*.*")}
    data = open_packed(packed)
    DeviceSplit(data.splits["train"], data.manifest, make_experiment(), CPU, torch.float32).images[:] = 0
    assert {p: p.read_bytes() for p in packed.rglob("*.*")} == before


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_normalised(channels):
    data = make_data(channels=channels)
    split = DeviceSplit(data.splits["train"], data.manifest, make_experiment(), CPU, torch.float64)
    x = split.batch(slice(0, 64))
    assert x.shape == (64, channels, 16, 16)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(channels, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(channels, dtype=torch.float64))
    rows = torch.tensor([5, 2, 5])
    assert torch.equal(split.batch(rows), x[rows])
    assert split.batch(rows).dtype == torch.float64


def test_constant_images_give_no_nan():
    data = make_data()
    data.manifest["normalization"]["std"] = [0.0]
    split = DeviceSplit(data.splits["train"], data.manifest, make_experiment(), CPU, torch.float32)
    assert torch.isfinite(split.batch(slice(0, 4))).all()


def test_an_epoch_is_a_permutation_without_the_last_partial_batch():
    labels = torch.zeros(67, dtype=torch.long)
    order = epoch_order(make_experiment(), labels, 1)
    assert order.shape == (8, 8) and len(order.unique()) == 64
    assert torch.equal(order, epoch_order(make_experiment(method="dynamic"), labels, 1))
    for other in (dict(e=make_experiment(seed=1), epoch=1), dict(e=make_experiment(), epoch=2)):
        assert not torch.equal(order, epoch_order(labels=labels, **other))


def test_the_balanced_sampler_draws_classes_equally_often():
    labels = torch.tensor([0] * 9000 + [1] * 900 + [2] * 100)
    drawn = labels[epoch_order(make_experiment(balance="sampler"), labels, 1).flatten()]
    share = torch.bincount(drawn) / len(drawn)
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    plain = labels[epoch_order(make_experiment(), labels, 1).flatten()]
    assert torch.bincount(plain).tolist() == [9000, 900, 100]


def uneven_labels() -> torch.Tensor:
    """200, 60, 12 and 1 images of four classes, mixed."""
    labels = torch.repeat_interleave(torch.tensor([0, 1, 2, 5]), torch.tensor([200, 60, 12, 1]))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("share", [.1, .25, .5])
def test_a_share_of_the_training_split_is_drawn_class_by_class(share):
    labels = uneven_labels()
    rows = used_rows(make_experiment(train_share=share), labels)
    assert rows.tolist() == sorted(set(rows.tolist()))
    counts = torch.bincount(labels[rows])
    assert counts.tolist() == [round(200 * share), round(60 * share), max(1, round(12 * share)), 0, 0, 1]
    order = epoch_order(make_experiment(train_share=share), labels, 1)
    assert len(order) == len(rows) // 8 and set(order.flatten().tolist()) <= set(rows.tolist())
    assert len(order.unique()) == order.numel()


def test_the_share_is_the_seeds_whatever_the_arm_and_smaller_ones_lie_in_larger_ones():
    labels = uneven_labels()
    rows = lambda **settings: set(used_rows(make_experiment(**settings), labels).tolist())
    assert rows(train_share=.5, method="dropout", epochs=9) == rows(train_share=.5) != rows(train_share=.5, seed=1)
    assert rows(train_share=.1) < rows(train_share=.25) < rows(train_share=.5) < rows() == set(range(len(labels)))
    two = {tuple(epoch_order(make_experiment(train_share=.5), labels, k).flatten().tolist()) for k in (1, 2)}
    assert len(two) == 2


def test_the_balanced_sampler_draws_from_the_share_alone():
    labels = uneven_labels()
    e = make_experiment(train_share=.5, balance="sampler")
    drawn = epoch_order(e, labels, 1).flatten()
    assert set(drawn.tolist()) <= set(used_rows(e, labels).tolist())
    shares = torch.bincount(labels[drawn])[[0, 1, 2, 5]] / len(drawn)
    assert (shares - .25).abs().max() < .15


def test_streams_differ_by_seed_and_purpose():
    seeds = {stream(s, p, k) for s in range(20) for p in ("order", "augment", "labels") for k in range(20)}
    assert len(seeds) == 1200 and all(0 <= s < 2**63 for s in seeds)
    assert stream(1, 11) != stream(11, 1)


# --- augmentation ---

ORDER = torch.arange(64).reshape(2, 32)


def augmented(x: torch.Tensor, step: int = 0, epoch: int = 1, seed: int = 0, augment: str = "flip+crop+erasing"):
    e = make_experiment(augment=augment, seed=seed)
    return Augmentation(e, ORDER, epoch, CPU).apply(x.clone(), step)


def test_augmentation_is_a_pure_function_of_seed_and_epoch():
    x = torch.randn(32, 1, 24, 24)
    first = augmented(x)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(augmented(x), first) and torch.equal(torch.get_rng_state(), state)
    for other in (dict(step=1), dict(epoch=2), dict(seed=1)):
        assert not torch.equal(augmented(x, **other), first)


def test_flips_mirror_half_of_the_images():
    x = torch.randn(32, 3, 24, 24)
    y = torch.cat([augmented(x, step, epoch, augment="flip") for step in (0, 1) for epoch in range(10)])
    x = x.repeat(20, 1, 1, 1)
    same, mirrored = ((y == z).flatten(1).all(1) for z in (x, x.flip(-1)))
    assert (same ^ mirrored).all()
    assert 0.42 < mirrored.float().mean() < 0.58


def test_shifts_move_by_whole_pixels_and_repeat_the_edge():
    x = torch.arange(2 * 2 * 5 * 5.0).reshape(2, 2, 5, 5)
    y = shifted(x, torch.tensor([[2, -1], [0, 0]]))                 # dx = 2, dy = -1
    rows, columns = [0, 0, 1, 2, 3], [2, 3, 4, 4, 4]
    assert torch.equal(y[0], x[0][:, rows][:, :, columns])
    assert torch.equal(y[1], x[1])


def test_crops_shift_by_a_twelfth_of_the_side_at_most():
    x = torch.randn(32, 1, 24, 24)
    shifts = {(dx, dy): shifted(x, torch.tensor([[dx, dy]] * 32)) for dx in range(-3, 4) for dy in range(-3, 4)}
    seen = set()
    for epoch in range(20):
        y = augmented(x, epoch=epoch, augment="crop")
        for k in range(32):
            match = [by for by, z in shifts.items() if torch.equal(z[k], y[k])]
            assert len(match) == 1
            seen.add(match[0])
    assert seen == {(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)}


def test_turns_keep_the_centre_and_move_the_corners_by_the_angle():
    x = torch.zeros(2, 1, 65, 65)
    x[:, :, 32, 56] = 1                                             # right of the centre by 24 pixels
    y = turned(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    down, right = np.unravel_index(y[0, 0].argmax(), (65, 65))
    angle = np.degrees(np.arctan2(down - 32, right - 32))
    assert abs(abs(angle) - TURN) < 1.5 and np.hypot(down - 32, right - 32) == pytest.approx(24, abs=1)
    assert int(y[1, 0, 32].argmax()) - 32 == pytest.approx(24 * SIZE, abs=0.6)
    flat = torch.full((2, 3, 24, 32), 0.7)
    torch.testing.assert_close(turned(flat, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), flat)
    same = torch.randn(2, 1, 24, 32)
    torch.testing.assert_close(turned(same, torch.zeros(2, 2)), same)


def test_affine_draws_angles_and_sizes_of_their_own_and_leaves_the_others_draws():
    e = make_experiment(augment="affine+crop+erasing+flip")
    drawn = Augmentation(e, ORDER, 1, CPU)
    assert drawn.turn.shape == (2, 32, 2) and drawn.turn.abs().max() <= 1
    assert abs(float(drawn.turn.mean())) < 0.2 and float(drawn.turn.std()) == pytest.approx(3**-0.5, abs=0.1)
    without = Augmentation(make_experiment(augment="flip+crop+erasing"), ORDER, 1, CPU)
    for name in ("flip", "shift", "erase"):
        assert torch.equal(getattr(drawn, name), getattr(without, name))
    x = torch.randn(32, 1, 24, 24)
    assert not torch.equal(drawn.apply(x, 0), without.apply(x, 0))


def test_erasing_sets_one_rectangle_of_half_of_the_images_to_the_mean():
    x = torch.rand(32, 2, 48, 48) + 1
    hit, shares = [], []
    for epoch in range(20):
        y = augmented(x, epoch=epoch, augment="erasing")
        hidden = y == 0
        assert torch.equal(y[~hidden], x[~hidden]) and torch.equal(hidden[:, 0], hidden[:, 1])
        for mask in hidden[:, 0]:
            hit.append(bool(mask.any()))
            if hit[-1]:
                rows, columns = mask.any(1), mask.any(0)
                assert torch.equal(mask, rows[:, None] & columns[None])
                assert int((rows.int().diff() != 0).sum()) <= 2     # in one piece
                shares.append(float(mask.float().mean()))
    assert 0.42 < np.mean(hit) < 0.58
    assert max(shares) < 0.23 and np.mean(shares) > 0.03


def test_erasing_in_the_middle_hides_the_area_drawn():
    draws = torch.tensor([[0.1, 1.0, 0.5, 0.5, 0.5], [0.9, 1.0, 0.5, 0.5, 0.5]])
    y = erased(torch.ones(2, 1, 100, 100), draws)
    assert (y[0] == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (y[1] == 1).all()                                        # chance .9 of .5: spared


def test_no_augmentation_is_the_identity():
    x = torch.randn(32, 1, 24, 24)
    assert torch.equal(augmented(x, augment="none"), x)


# --- soft labels ---


def test_sampled_labels_follow_the_soft_labels():
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    order = torch.tensor([0, 1]).repeat(5000).reshape(100, 100)
    drawn = sampled_labels(make_experiment(), soft, order, 1)
    assert drawn.shape == order.shape
    of_first = torch.bincount(drawn[order == 0], minlength=3) / 5000
    torch.testing.assert_close(of_first, soft[0], atol=0.03, rtol=0)
    assert (drawn[order == 1] == 2).all()
    assert torch.equal(drawn, sampled_labels(make_experiment(), soft, order, 1))
    for other in (dict(e=make_experiment(), epoch=2), dict(e=make_experiment(seed=1), epoch=1)):
        assert not torch.equal(drawn, sampled_labels(soft=soft, order=order, **other))


def test_soft_labels_reach_the_loss_in_the_rows_order():
    from fer_lib.engine import Learner

    data = make_data(soft=True)
    learner = Learner(make_experiment(labels="soft"), data, CPU)
    learner.draw_epoch()
    rows = np.stack(data.splits["train"].samples["soft"].to_list())
    np.testing.assert_array_equal(learner.targets.numpy(), rows[learner.order.numpy()])
