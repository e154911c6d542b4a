"""The drawn faces: reproducible in any cut, labelled as stated, and moved by their action units."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_prep.faces import AUS, STILL
from data_prep.packed import SPLITS
from data_prep.synthetic import (
    EXPRESSIONS,
    KNOBS,
    PRESETS,
    PROTOTYPE,
    SAMPLE_COLUMNS,
    VALENCE_AROUSAL,
    Recipe,
    contact_sheet,
    draw_samples,
    render_face,
    render_samples,
)

SMALL = Recipe(n_train=150, n_val=70, n_test=70, people=12)


@pytest.fixture(scope="module")
def small_images() -> np.ndarray:
    return render_samples(SMALL, "train", 0, SMALL.n_train)


# ---------------------------------------------------------------------------------------------------- same bytes
def test_images_have_the_packed_shape_and_use_the_grey_scale(small_images):
    assert small_images.shape == (150, 1, 48, 48) and small_images.dtype == np.uint8
    assert np.all(small_images.std(axis=(1, 2, 3)) > 5)  # no blank picture
    assert small_images.min() < 20 and small_images.max() > 235


@pytest.mark.parametrize("cuts", [(0, 150), (0, 1, 63, 64, 65, 150), (0, 100, 150)])
def test_a_range_gives_the_same_bytes_however_the_split_is_cut(small_images, cuts):
    pieces = [render_samples(SMALL, "train", a, b) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), small_images)


def test_ranges_hold_above_48_pixels_where_a_chunk_is_part_of_a_block():
    recipe = replace(SMALL, size=90)
    whole = render_samples(recipe, "val", 0, 70)
    assert np.array_equal(render_samples(recipe, "val", 13, 67), whole[13:67])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_bytes_and_are_left_as_they_were(small_images, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.array_equal(render_samples(SMALL, "train", 0, 150), small_images)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_seed_and_the_split_change_the_pictures(small_images):
    assert not np.array_equal(render_samples(replace(SMALL, seed=1), "train", 0, 64), small_images[:64])
    assert not np.array_equal(render_samples(SMALL, "val", 0, 64), render_samples(SMALL, "test", 0, 64))


def test_every_image_has_its_own_noise():
    noisy, clean = (
        render_samples(replace(SMALL, noise=noise), "train", 0, 65)[[0, 1, 64]].reshape(3, -1).astype(int)
        for noise in (3., 0.)
    )
    correlation = np.corrcoef(noisy - clean)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < .2  # 64 is the first image of the next chunk


def test_samples_are_the_same_on_repeat_and_do_not_depend_on_the_size():
    first = draw_samples(SMALL, "train")
    assert first.equals(draw_samples(SMALL, "train"))
    assert first.equals(draw_samples(replace(SMALL, size=96), "train"))


# -------------------------------------------------------------------------------------------------------- labels
def test_samples_have_the_packed_columns_with_their_types():
    samples = draw_samples(SMALL, "val")
    types = samples.dtypes.astype(str).to_dict()
    assert set(SAMPLE_COLUMNS) <= set(samples.columns)
    assert all(types[name] == "int64" for name in ("label", "true_label", "subject"))
    assert all(types[name] == "float32" for name in ("valence", "arousal", *(f"au{au}" for au in AUS)))
    assert samples.source.tolist() == [f"drawn:val:{i}" for i in range(70)]
    assert not samples.isna().any(axis=None)


def test_train_follows_affectnet_and_val_and_test_are_balanced():
    recipe = Recipe(n_train=1000, n_val=70, n_test=700)
    counts = np.bincount(draw_samples(recipe, "train").true_label, minlength=7)
    assert counts.tolist() == [264, 474, 90, 50, 22, 13, 87]
    assert np.bincount(draw_samples(recipe, "val").label, minlength=7).tolist() == [10] * 7
    assert np.bincount(draw_samples(recipe, "test").label, minlength=7).tolist() == [100] * 7
    balanced = draw_samples(replace(recipe, imbalance=0., n_train=700), "train")
    assert np.bincount(balanced.true_label, minlength=7).tolist() == [100] * 7


def test_the_share_of_wrong_labels_is_an_exact_count_in_train_only():
    recipe = Recipe(n_train=900, n_val=70, n_test=70, wrong=.10, imbalance=0.)
    train = draw_samples(recipe, "train")
    wrong = train[train.label != train.true_label]
    assert len(wrong) == 90
    assert set(wrong.label) == set(range(7))
    for split in ("val", "test"):
        samples = draw_samples(recipe, split)
        assert (samples.label == samples.true_label).all()


def test_people_are_in_one_split_only_and_look_the_same_in_all_their_images():
    splits = {split: draw_samples(SMALL, split) for split in SPLITS}
    subjects = [set(samples.subject) for samples in splits.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) > 3
    tones = [set(samples.person_tone) for samples in splits.values()]
    assert sum(map(len, tones)) == len(set.union(*tones))  # nor the same person under another number
    person = [name for name in splits["train"].columns if name.startswith("person_")]
    assert (splits["train"].groupby("subject")[person].nunique() == 1).all(axis=None)
    assert splits["train"].groupby("subject").size().max() > 1


def test_each_expression_has_the_action_units_of_its_prototype():
    recipe = Recipe(n_train=1400, n_val=7, n_test=7, imbalance=0., blend=0., stray=0.)
    samples = draw_samples(recipe, "train")
    for k, name in enumerate(EXPRESSIONS):
        rows, combination = samples[samples.true_label == k], PROTOTYPE[name]
        for au in AUS:
            share = (rows[f"au{au}"] > 0).mean()
            if au in combination.always:
                assert share == 1, (name, au)
            elif au in combination.one_of:
                assert .3 < share < .7, (name, au)
            elif au in combination.sometimes:
                assert abs(share - combination.sometimes[au][1]) < .15, (name, au)
            else:
                assert share == 0, (name, au)


def test_disgust_has_exactly_one_of_au16_and_au17():
    recipe = Recipe(n_train=700, n_val=7, n_test=7, imbalance=0., blend=0., stray=0.)
    samples = draw_samples(recipe, "train")
    disgust = samples[samples.true_label == EXPRESSIONS.index("disgust")]
    assert ((disgust.au16 > 0) ^ (disgust.au17 > 0)).all()


def test_valence_and_arousal_blend_with_the_second_expressions_own_strength():
    recipe = Recipe(n_train=700, n_val=7, n_test=7, low=.3, high=.3, blend=1., imbalance=0.)
    samples = draw_samples(recipe, "train")
    table = np.array([VALENCE_AROUSAL[name] for name in EXPRESSIONS])
    share = samples.second_share.to_numpy()[:, None]
    expected = .3 * ((1 - share) * table[samples.true_label] + share * table[samples.second])
    error = samples[["valence", "arousal"]].to_numpy() - expected
    assert (samples.second >= 0).all()
    assert abs(error).max() < .3 and error.std() == pytest.approx(.05, rel=.15)


# ------------------------------------------------------------------------------------------------------ pictures
def darkest_row(face: np.ndarray, u: float, top: float, bottom: float) -> int:
    """Row of the darkest pixel in the column at u, between two heights (frame units)."""
    def pixel(position: float) -> int:
        return round((position + 1) / 2 * len(face))

    return pixel(top) + int(face[pixel(top):pixel(bottom), pixel(u)].argmin())


def mouth_bend(face: np.ndarray, side: int = 1) -> int:
    """Rows that the mouth's line lies higher near its corner than in the middle."""
    return darkest_row(face, 0., .40, .75) - darkest_row(face, .22 * side, .25, .75)


def dark_mouth(face: np.ndarray) -> int:
    """Dark pixels around the mouth."""
    half = len(face) // 2
    return int((face[int(1.35 * half):int(1.9 * half), int(.7 * half):int(1.3 * half)] < 40).sum())


PEOPLE = (1, 2, 3, 5, 8)


@pytest.mark.parametrize("seed", PEOPLE)
def test_au12_raises_the_mouths_corners_and_au15_lowers_them(seed):
    rest, smile, frown = (mouth_bend(render_face(au, seed, size=96)) for au in ({}, {12: 1.}, {15: 1.}))
    assert smile >= rest + 2
    assert frown <= rest - 2


@pytest.mark.parametrize("seed", PEOPLE)
def test_au26_opens_the_mouth(seed):
    assert dark_mouth(render_face({26: 1.}, seed, 96)) > dark_mouth(render_face({}, seed, 96)) + 50


@pytest.mark.parametrize("au", AUS)
def test_every_action_unit_is_seen_at_48_pixels(au):
    change = np.abs(render_face({au: 1.}, 1).astype(int) - render_face({}, 1))
    assert (change > 15).sum() >= 8, f"AU{au} changes {(change > 15).sum()} pixels"


def test_lean_makes_the_two_sides_differ():
    even, one_sided = (render_face({12: .9}, 1, size=96, lean=lean) for lean in (0., .6))
    assert abs(mouth_bend(even, 1) - mouth_bend(even, -1)) <= 1
    assert mouth_bend(one_sided, 1) >= mouth_bend(one_sided, -1) + 2


def test_a_profile_view_is_drawn_turned():
    yaw = draw_samples(replace(SMALL, profile=1.), "train").scene_yaw
    assert (yaw.abs() >= .6).all() and (yaw > 0).any() and (yaw < 0).any()
    assert (draw_samples(replace(SMALL, profile=0.), "train").scene_yaw.abs() < .6).all()
    assert np.array_equal(render_samples(replace(SMALL, profile=1.), "val", 3, 9).shape, (6, 1, 48, 48))


def test_the_expression_can_be_read_from_the_pixels_of_new_people():
    recipe = replace(PRESETS["quick"], n_train=700, n_val=210)
    x, y = {}, {}
    for split in ("train", "val"):
        images = render_samples(recipe, split, 0, recipe.count(split)).reshape(recipe.count(split), -1).astype(float)
        x[split] = (images - images.mean(1, keepdims=True)) / images.std(1, keepdims=True)
        y[split] = draw_samples(recipe, split).true_label.to_numpy()
    gram = x["train"] @ x["train"].T + 1000 * np.eye(len(x["train"]))  # ridge regression on one-hot labels
    scores = x["val"] @ x["train"].T @ np.linalg.solve(gram, np.eye(7)[y["train"]] - 1 / 7)
    assert (scores.argmax(1) == y["val"]).mean() > .35  # chance is .14


def test_contact_sheet_puts_each_class_in_its_row():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 3, 4), np.uint8)
    sheet = contact_sheet(images, np.array([1, 0, 1, 1, 0, 1]), ("a", "b"), per_class=3, scale=2)
    assert sheet.shape == (2 * 3 * 2, 3 * 4 * 2)
    assert sheet[::6, ::8].tolist() == [[1, 4, 0], [0, 2, 3]]


# -------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("size", 8), ("size", 48.5), ("n_train", 0), ("n_val", True), ("people", -3), ("imbalance", 1.2),
     ("wrong", .9), ("low", -.1), ("high", 1.1), ("blend", float("nan")), ("stray", 2.), ("lean", .9), ("pose", -1.),
     ("profile", 1.5), ("occlusion", "often"), ("noise", -.1)],
)
def test_a_knob_outside_its_range_is_named_with_what_is_allowed(name, value):
    lowest, highest, meaning = KNOBS[name]
    with pytest.raises(ValueError) as error:
        Recipe(**{name: value})
    for part in (f"{name} = {value!r}", str(lowest), str(highest), meaning):
        assert part in str(error.value)


def test_every_knob_of_the_recipe_is_described():
    assert list(KNOBS) == list(Recipe.__dataclass_fields__)


def test_low_above_high_is_refused():
    with pytest.raises(ValueError, match=r"low = 0\.8 must not be above high = 0\.5"):
        Recipe(low=.8, high=.5)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (0, 151)])
def test_a_range_outside_the_split_is_refused(start, stop):
    with pytest.raises(ValueError, match="150"):
        render_samples(SMALL, "train", start, stop)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' must be one of train, val, test"):
        draw_samples(SMALL, "dev")


@pytest.mark.parametrize(("au", "scene"), [({3: .5}, {}), ({12: 1.5}, {}), ({12: 1.}, {"zoom": 2.})])
def test_render_face_refuses_what_it_does_not_know(au, scene):
    with pytest.raises(ValueError, match=r"AU 3|AU 12: 1\.5|'zoom'.*" + next(iter(STILL))):
        render_face(au, **scene)
