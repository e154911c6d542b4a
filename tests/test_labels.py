"""Classes by name: spellings, what is no class, and --classes on any source."""

import numpy as np
import pytest
from source_trees import dropped, images, labels, pack, photo, samples, save
from test_packed import SMALL, make_plan

from data_prep.labels import (
    EIGHT_CLASSES,
    NO_CLASS,
    NOT_SELECTED,
    expression,
    name_classes,
    parse_class_names,
    select_classes,
    soft_labels,
)
from data_prep.packed import CLASSES, DataError, Rejected
from data_prep.writer import write

# Orders in which published sets list their classes
ORDERS = {
    "AffectNet": "Neutral Happy Sad Surprise Fear Disgust Anger Contempt",
    "AffectNet folders": "Anger Contempt Disgust Fear Happy Neutral Sad Surprise",
    "FER2013": "Angry Disgust Fear Happy Sad Surprise Neutral",
    "FER2013 folders": "angry disgust fear happy neutral sad surprise",
    "FER+": "neutral happiness surprise sadness anger disgust fear contempt",
    "RAF-DB": "Surprise Fear Disgust Happiness Sadness Anger Neutral",
    "CK+48": "anger contempt disgust fear happy sadness surprise",
    "Aff-Wild2": "Neutral Anger Disgust Fear Happiness Sadness Surprise",
}


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_becomes_the_canonical_one(order):
    names = ORDERS[order].split()
    naming = name_classes({str(i): name for i, name in enumerate(names)})
    assert naming.classes == tuple(name for name in EIGHT_CLASSES if name in naming.classes)
    assert len(naming.classes) == len(names)
    for i, name in enumerate(names):
        assert naming.classes[naming.code(str(i))] == expression(name)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("Anger", "anger"), (" ANGRY ", "anger"), ("6 - sadness", "sad"), ("0_Neutral", "neutral"), ("Joy", "happy"),
     ("Suprised", "surprise"), ("fearful", "fear"), ("1.happy", "happy"), ("mad", None), ("", None), ("7", None)],
)  # fmt: skip
def test_spellings(spelling, name):
    assert expression(spelling) == name


def test_labels_that_name_no_expression_are_left_out_by_rule():
    naming = name_classes({"0": "Neutral", "1": "Happy", "8": "None", "9": "Uncertain", "10": "No-Face", "7": "Other"})
    assert naming.classes == ("neutral", "happy")
    assert naming.code("10") == Rejected(NO_CLASS, "No-Face", bad=False)
    assert naming.code("11") == Rejected("unknown label", "11")
    assert naming.shown["9"] == "(left out: Uncertain)" and naming.shown["1"] == "happy"


def test_other_names_stay_as_they_are():
    assert name_classes(["truck", "Other", "bird", "happy"]).classes == ("happy", "Other", "bird", "truck")
    assert name_classes(["zebra", "Ape"]).classes == ("Ape", "zebra")
    assert name_classes(["happy", "sad", "angry", "bored", "none"]).classes == ("happy", "sad", "anger", "bored")


def test_a_misspelt_label_in_a_table_is_no_new_class():
    naming = name_classes(["happy", "sad", "angry", "hapy"], others=False)
    assert naming.classes == ("happy", "sad", "anger")
    assert naming.code("hapy") == Rejected("unknown label", "hapy")


def test_nothing_but_no_classes_is_refused():
    with pytest.raises(DataError, match="name no class .found: none"):
        name_classes(["none"])


def test_class_names_by_order_and_by_label():
    assert parse_class_names("a, b,c", ["1", "10", "2"]) == {"1": "a", "2": "b", "10": "c"}
    assert parse_class_names("2=b,1=a", ["1", "2"]) == {"1": "a", "2": "b"}
    with pytest.raises(DataError, match="2 names for 3 labels"):
        parse_class_names("a,b", ["0", "1", "2"])
    with pytest.raises(DataError, match="no name for the label '1'"):
        parse_class_names("0=a", ["0", "1"])


def test_soft_labels_are_normalised_or_refused():
    nan = float("nan")
    soft, why = soft_labels(np.array([[1, 3], [0.5, 0.5], [0, 0], [nan, 1], [-1, 2], [1e308, 1e308]]))
    assert soft.dtype == np.float32 and soft[:2].tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert [None if one is None else one.text for one in why] == [
        None, None, "unusable soft label: sum 0", "unusable soft label: not a number",
        "unusable soft label: a negative share", "unusable soft label: sum inf",
    ]  # fmt: skip


# --- --classes ------------------------------------------------------------------------------------------------------


def test_classes_select_and_reorder_with_soft_labels(tmp_path):
    plan = make_plan(SMALL, label_mapping={"0": "neutral", "3": "surprise", "6": "anger"})
    manifest = write(select_classes(plan, ["Anger", "neutral"]), tmp_path / "toy")
    assert manifest["classes"] == ["anger", "neutral"] and manifest["options"]["classes"] == ["anger", "neutral"]
    assert manifest["label_mapping"] == {"0": "neutral", "3": "(surprise: not selected)", "6": "anger"}
    seeds = [seed for seed in range(SMALL["train"]) if seed % 7 in (0, 6)]
    kept = samples(tmp_path / "toy", "train")
    assert kept["source"].tolist() == [f"toy.csv:{seed + 2}" for seed in seeds]
    assert kept["label"].tolist() == [0 if seed % 7 == 6 else 1 for seed in seeds]
    assert np.stack(kept["soft"]).tolist() == [[0.5, 0.5] if seed % 7 == 6 else [0, 1] for seed in seeds]
    assert manifest["dropped"] == {NOT_SELECTED.reason: 60 - manifest["kept"]} and manifest["bad_inputs"] == 0
    assert dropped(tmp_path / "toy")[0] == ["train", "toy.csv", 3, "class not selected"]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [(["happy", "joyless"], "'joyless' is no class of Toy .it has: neutral, happy"), (["happy"], "two or more"),
     (["happy", "Happiness"], "two or more different")],
)  # fmt: skip
def test_classes_that_are_none_are_refused(wanted, sentence):
    with pytest.raises(DataError, match=sentence):
        select_classes(make_plan(SMALL), wanted)


def test_published_counts_follow_the_selection():
    published = {"train": dict(zip(CLASSES, range(7), strict=True)), "val": {"all": 3}}
    plan = select_classes(make_plan(SMALL, published=published), ["fear", "happy"])
    assert plan.published == {"train": {"happy": 1, "fear": 4}}


def test_classes_of_the_drawn_set_are_the_same_faces(tmp_path):
    tiny = ["--n-train", "50", "--n-val", "14", "--n-test", "14", "--size", "16", "--workers", "1"]
    from data_prep.__main__ import main

    assert main(["synthetic", *tiny, "--out", str(tmp_path / "all")]) == 0
    assert main(["synthetic", *tiny, "--out", str(tmp_path / "two"), "--classes", "sad,happy"]) == 0
    for split in ("train", "val", "test"):
        whole = samples(tmp_path / "all", split)["label"]
        chosen = whole.isin([CLASSES.index("sad"), CLASSES.index("happy")]).to_numpy()
        assert np.array_equal(images(tmp_path / "two", split), images(tmp_path / "all", split)[chosen])
        assert labels(tmp_path / "two", split) == [CLASSES[label] for label in whole[chosen]]


def test_classes_on_a_folder(tmp_path):
    for number in range(12):
        save(tmp_path / "raw" / ["Happy", "Sad", "Angry"][number % 3] / f"{number}.png", photo(number))
    manifest = pack("image_folder", tmp_path / "raw", tmp_path / "out", "--classes", "angry,happy", "--size", "16")
    assert manifest["classes"] == ["anger", "happy"] and manifest["dropped"] == {"class not selected": 4}
