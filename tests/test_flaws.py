"""Planted flaws: as many as asked for, where the table says, and the audit finds exactly those."""

from dataclasses import asdict

import numpy as np
import pytest
from test_audit import clean_set, pack

from data_prep.audit import audit_packed
from data_prep.flaws import NUMBERS, Flaws, expected, numbers, plant
from data_prep.packed import SPLITS, DataError

FLAWS = Flaws(val=4, test=3, test_in_val=2, near=3, conflicts=2, constant=2, swaps=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("flaws") / "plain", *clean_set())


def images(directory, split: str) -> np.ndarray:
    return np.load(directory / split / "images.npy", allow_pickle=False)


@pytest.mark.parametrize("seed", range(4))
def test_the_audit_finds_exactly_what_was_planted(plain, tmp_path, seed):
    planted = plant(plain, tmp_path / "flawed", FLAWS, seed)
    assert planted["flaw"].value_counts().to_dict() == asdict(FLAWS)
    found = audit_packed(tmp_path / "flawed")
    assert numbers(found.as_json()) == expected(planted)
    wanted = {(r.split, r.row) for r in planted.itertuples() if r.flaw in ("val", "test", "test_in_val")}
    assert set(zip(found.rows("leaks")["split"], found.rows("leaks")["row"])) == wanted


@pytest.mark.parametrize("flaw, wanted", [
    ("val", {"leaks.val": 2, "duplicate_groups": 2}), ("test", {"leaks.test": 2, "duplicate_groups": 2}),
    ("test_in_val", {"leaks.test_in_val": 2, "duplicate_groups": 2}), ("near", {"near.leaks.val": 2}),
    ("conflicts", {"duplicate_groups": 2, "conflicting_groups": 2}), ("constant", {"constant": 2}),
    ("swaps", {"subjects_in_several_splits": 4})])
def test_each_flaw_alone_is_found_as_itself(plain, tmp_path, flaw, wanted):
    planted = plant(plain, tmp_path / "flawed", Flaws(**{**dict.fromkeys(asdict(FLAWS), 0), flaw: 2}))
    assert expected(planted) == {**dict.fromkeys(NUMBERS, 0), **wanted}
    assert numbers(audit_packed(tmp_path / "flawed").as_json()) == expected(planted)


def test_all_else_stays_as_it_was(plain, tmp_path):
    planted = plant(plain, tmp_path / "flawed", FLAWS)
    touched = {split: set(planted.loc[planted["split"] == split, "row"]) for split in SPLITS}
    touched["train"] |= set(planted.loc[planted["flaw"] == "swaps", "like_row"])
    for split in SPLITS:
        before, after = images(plain, split), images(tmp_path / "flawed", split)
        assert set(np.flatnonzero((before != after).any((1, 2, 3)))) == touched[split]


def test_the_same_seed_plants_the_same_and_another_seed_other_rows(plain, tmp_path):
    one, same, other = (plant(plain, tmp_path / str(k), FLAWS, seed) for k, seed in enumerate((0, 0, 1)))
    assert one.equals(same) and not one.equals(other)


def test_more_flaws_than_images_is_one_sentence(plain, tmp_path):
    with pytest.raises(DataError, match="val has too few images that fit for so many flaws"):
        plant(plain, tmp_path / "flawed", Flaws(val=22))
    assert not (tmp_path / "flawed").exists()
