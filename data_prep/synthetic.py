"""`synthetic`, the embedded default data set: drawn faces with known action units, expressions, people and nuisances.

    recipe = PRESETS["standard"]                          # or Recipe(seed=3, n_train=20_000, size=64)
    samples = draw_samples(recipe, "train")               # labels and parameters, one row an image, no pixels
    images = render_samples(recipe, "train", 0, 512)      # uint8 (512, 1, 48, 48), any range, always the same bytes
    face = render_face({12: 1., 6: .8})                   # uint8 (48, 48): move one AU and see the face

An expression is a combination of action units (EMFACS; Ekman and Friesen 1983), `PROTOTYPE`, with a strength, now and
then blended with a second one. `data_prep.faces` turns the AUs into a picture. Everything follows from the recipe and
its seed: on one machine the same recipe gives the same bytes, on any number of threads and however a split is cut into
ranges. Another CPU or torch version may round a few pixels differently.

Labels: a share `wrong` of the training labels, an exact count, is replaced by one of the six others with equal chance;
validation and test labels are right and their classes balanced. `true_label` keeps the label meant.
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.faces import (
    AUS,
    BOB,
    CARD,
    CURLY,
    FRINGE,
    HAND,
    LONG,
    RECEDING,
    SCARF,
    SHORT,
    STILL,
    SUNGLASSES,
    draw_faces,
    geometry_of,
)
from data_prep.packed import CLASSES, SPLITS

EXPRESSIONS = CLASSES
AFFECTNET_SHARE = np.array([.264, .474, .090, .050, .022, .013, .087])  # of AffectNet's training set, these seven
COLUMN = {au: i for i, au in enumerate(AUS)}
SAMPLE_COLUMNS = (
    "label", "true_label", "valence", "arousal", *(f"au{au}" for au in AUS), "subject", "source",
)  # what the packed format keeps of draw_samples


@dataclass(frozen=True)
class Combination:
    """The AUs of an expression with their relative strengths."""

    always: dict[int, float] = field(default_factory=dict)
    one_of: dict[int, float] = field(default_factory=dict)  # exactly one of these, equal chances
    sometimes: dict[int, tuple[float, float]] = field(default_factory=dict)  # (strength, chance), each by its own coin


PROTOTYPE = {
    "neutral": Combination(),
    "happy": Combination({6: .9, 12: 1.}, sometimes={25: (.8, .6), 26: (.35, .2)}),
    "sad": Combination({1: 1., 4: .6, 15: 1.}, sometimes={17: (.7, .4), 7: (.4, .2)}),
    "surprise": Combination({1: 1., 2: 1., 5: 1., 25: .8, 26: 1.}),
    "fear": Combination({1: 1., 2: .6, 4: .6, 5: 1., 20: 1., 25: .8}, sometimes={26: (.35, .3)}),
    "disgust": Combination({9: 1., 15: .7}, one_of={16: .9, 17: .9}, sometimes={4: (.4, .3), 7: (.5, .3)}),
    "anger": Combination({4: 1., 5: .5, 7: .9, 23: 1.}, sometimes={25: (.9, .25), 17: (.5, .2)}),
}
VALENCE_AROUSAL = {
    "neutral": (0., 0.), "happy": (.8, .4), "sad": (-.7, -.4), "surprise": (.2, .8), "fear": (-.6, .8),
    "disgust": (-.75, .3), "anger": (-.7, .65),
}  # at full strength, both in -1..1

# Hair by style, each value drawn uniformly from its range (lengths in frame units, y down; brows lie at -.42).
HAIR = {
    SHORT: dict(hairline=(-.88, -.76), part=(-.5, .5), fall=(0., .25), temple=(.9, 2.2), recess=(0., .08),
                ragged=(.002, .012), volume=(0., .09), curl=(0., .012), length=(-1., -1.)),
    LONG: dict(hairline=(-.92, -.80), part=(-.3, .3), fall=(.10, .45), temple=(1.2, 2.4), recess=(0., 0.),
               ragged=(0., .006), volume=(.04, .13), curl=(0., .020), length=(.7, 1.7)),
    FRINGE: dict(hairline=(-.64, -.55), part=(-.3, .3), fall=(0., .06), temple=(.4, 1.0), recess=(0., 0.),
                 ragged=(.008, .028), volume=(.03, .10), curl=(0., .010), length=(-1., .6)),
    RECEDING: dict(hairline=(-1.10, -.92), part=(0., 0.), fall=(0., 0.), temple=(.9, 1.5), recess=(.05, .22),
                   ragged=(.002, .010), volume=(0., .03), curl=(0., .010), length=(-1., -1.)),
    CURLY: dict(hairline=(-.86, -.74), part=(0., 0.), fall=(0., .05), temple=(.8, 1.6), recess=(0., .04),
                ragged=(.010, .022), volume=(.10, .24), curl=(.015, .045), length=(-1., .3)),
    SCARF: dict(hairline=(-.80, -.66), part=(0., 0.), fall=(0., .05), temple=(.9, 1.5), recess=(0., 0.),
                ragged=(0., 0.), volume=(.05, .10), curl=(0., 0.), length=(1.7, 1.7)),
    BOB: dict(hairline=(-.90, -.76), part=(-.4, .4), fall=(.05, .40), temple=(1.0, 2.2), recess=(0., 0.),
              ragged=(0., .008), volume=(.06, .14), curl=(0., .015), length=(.35, .75)),
}
STYLE_SHARE = {  # short, long, fringe, receding, curly, scarf, bob
    "masculine": [.62, .06, .09, .14, .08, .01, 0.],
    "feminine": [.10, .40, .11, 0., .10, .07, .22],
}

KNOBS = {  # name: lowest, highest, meaning
    "seed": (0, 2**32 - 1, "which data set of this recipe"),
    "size": (16, 512, "side of an image, pixels"),
    "n_train": (7, 10**8, "training images"),
    "n_val": (7, 10**8, "validation images"),
    "n_test": (7, 10**8, "test images"),
    "people": (0, 10**7, "people in each split; 0 = one for ten images"),
    "imbalance": (0., 1., "training classes: share ~ AffectNet's to this power (0 = balanced, 1 = AffectNet's)"),
    "wrong": (0., .8, "share of training labels that are wrong, an exact count"),
    "low": (0., 1., "weakest strength of an expression"),
    "high": (0., 1., "greatest strength of an expression"),
    "blend": (0., 1., "chance that a second expression is mixed in"),
    "stray": (0., 1., "chance of each unrelated AU"),
    "lean": (0., .6, "left/right asymmetry of brows and mouth corners: sd of the relative difference"),
    "pose": (0., 1.5, "scale of all head angles; 1 = sd of .10 roll, .24 yaw, .13 pitch (radians)"),
    "profile": (0., 1., "chance of a near-profile view (yaw .6 to .95 radians)"),
    "occlusion": (0., 1., "chance of sunglasses, a hand or a card in front of the face"),
    "noise": (0., 20., "scale of the sensor noise; 1 = median 1.5 grey levels of 255"),
}


def _check_knob(name: str, value: float, whole: bool) -> None:
    lowest, highest, meaning = KNOBS[name]
    number = isinstance(value, (int, np.integer)) or (not whole and isinstance(value, (float, np.floating)))
    if isinstance(value, bool) or not number or not lowest <= value <= highest:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} = {value!r} must be {kind} from {lowest} to {highest} ({meaning})")


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split = {split!r} must be one of {', '.join(SPLITS)}")
    return split


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the data set; `KNOBS` says what each means and which values are allowed (ValueError)."""

    seed: int = 0
    size: int = 48
    n_train: int = 4000
    n_val: int = 700
    n_test: int = 700
    people: int = 0
    imbalance: float = 1.
    wrong: float = .08
    low: float = .6
    high: float = 1.
    blend: float = .15
    stray: float = .03
    lean: float = .15
    pose: float = .4
    profile: float = .03
    occlusion: float = .06
    noise: float = 1.

    def __post_init__(self) -> None:
        for knob in fields(self):
            _check_knob(knob.name, getattr(self, knob.name), whole=knob.type is int)
        if self.low > self.high:
            raise ValueError(f"low = {self.low} must not be above high = {self.high}")

    def count(self, split: str) -> int:
        """Images in a split (ValueError for another name)."""
        return {"train": self.n_train, "val": self.n_val, "test": self.n_test}[_known_split(split)]


# How hard they are: macro-F1 on val, mean of the last 5 epochs (one core of an AMD EPYC, torch 2.14; ResNet
# [2, 2, 2, 2] with a 7x7/2 stem, Adam 1e-3, weight decay 1e-4, no augmentation).
PRESETS = {
    # width 16, batch 64, 24 epochs, seeds 0 and 1: F1 .60 and .59, training accuracy .98 and .99
    "standard": Recipe(),
    # for demonstrations: width 8, batch 32, 16 epochs = 400 steps, seeds 0 to 2: F1 .55, .46 and .59,
    # training accuracy .99, .99 and .95
    "quick": Recipe(
        n_train=800, n_val=350, n_test=350, imbalance=0., wrong=.05, low=.9, blend=.1, lean=.1, pose=.15, profile=0.,
        occlusion=0.,
    ),
}


# -------------------------------------------------------------------------------------------------- the interface
def draw_samples(recipe: Recipe, split: str) -> pd.DataFrame:
    """Labels and parameters of a split, one row an image: the `SAMPLE_COLUMNS` and all that shaped the picture.

    label, true_label, subject int64; valence, arousal and au* float32; source "drawn:<split>:<row>"; `strength` of
    the expression, the `second` one mixed in (index into EXPRESSIONS, -1 = none) with its `second_share`; `person_*`
    and `scene_*` (units: `data_prep.faces`). No subject is in two splits.
    """
    plan, n = _split_plan(recipe, _known_split(split)), recipe.count(split)
    blocks = [_draw_block(recipe, split, first) for first in range(0, n, BLOCK_ROWS)]
    au = np.concatenate([block.au for block in blocks])
    mood, scene = (
        {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        for tables in ([block.mood for block in blocks], [block.scene for block in blocks])
    )
    return pd.DataFrame(
        {"label": plan.label, "true_label": plan.true_label}
        | mood
        | {f"au{number}": au[:, i] for number, i in COLUMN.items()}
        | {"subject": plan.first_subject + plan.who, "source": [f"drawn:{split}:{i}" for i in range(n)]}
        | {f"person_{name}": values[plan.who].astype(np.float32) for name, values in plan.people.items()}
        | {f"scene_{name}": values.astype(np.float32) for name, values in scene.items()}
    )


def render_samples(recipe: Recipe, split: str, start: int, stop: int) -> np.ndarray:
    """Images start..stop of a split, uint8 (stop - start, 1, size, size).

    The bytes of an image do not depend on the range it is asked for in. Whole chunks are rendered (64 images up to
    48 px, fewer above), so ranges that begin and end at multiples of 64 waste nothing.
    """
    n = recipe.count(split)
    if not 0 <= start < stop <= n:
        raise ValueError(f"start = {start}, stop = {stop} must satisfy 0 <= start < stop <= {n}, {split}'s images")
    chunk = _chunk_rows(recipe.size)
    first = start - start % chunk
    images = [_render_chunk(recipe, split, row, min(row + chunk, n)) for row in range(first, stop, chunk)]
    return np.concatenate(images)[start - first:stop - first, None]


def render_face(au: dict[int, float], person_seed: int = 0, size: int = 48, **scene: float) -> np.ndarray:
    """One face with the given AUs (number: intensity 0..1): uint8 (size, size), frontal, plain light, no noise.

    `scene` changes single keys of `faces.STILL`: yaw=.4, light_x=-1., noise=.02, ...
    """
    for number, intensity in au.items():
        if number not in AUS or not 0 <= intensity <= 1:
            raise ValueError(f"AU {number}: {intensity} must be one of {AUS} with an intensity from 0 to 1")
    if unknown := set(scene) - set(STILL):
        raise ValueError(f"unknown scene key {min(unknown)!r}; known are {', '.join(STILL)}")
    _check_knob("size", size, whole=True)
    person = sample_people(1, np.random.default_rng(person_seed))
    intensities = np.zeros((1, len(AUS)))
    for number, intensity in au.items():
        intensities[0, COLUMN[number]] = intensity
    still = {name: np.array([value]) for name, value in (STILL | scene).items()}
    return draw_faces(geometry_of(intensities, person, still["lean"]), person, still, size, noise_seed=0)[0]


def contact_sheet(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], per_class: int = 12, scale: int = 2
) -> np.ndarray:
    """The first `per_class` images of each class, one row a class: uint8 (classes * side, per_class * side).

    images: uint8 (N, H, W) or (N, 1, H, W); side = H * scale; classes with fewer images leave black tiles.
    """
    images = np.asarray(images).reshape(len(images), *np.shape(images)[-2:])
    height, width = images.shape[1:]
    sheet = np.zeros((len(classes), per_class, height, width), np.uint8)
    for k in range(len(classes)):
        chosen = images[np.flatnonzero(np.asarray(labels) == k)[:per_class]]
        sheet[k, :len(chosen)] = chosen
    grid = sheet.transpose(0, 2, 1, 3).reshape(len(classes) * height, per_class * width)
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


# -------------------------------------------------------------------- a split: labels and people, then its blocks
BLOCK_ROWS = 64  # rows that share one random stream; a chunk that is drawn at once is a block or an even part of one


class SplitPlan(NamedTuple):
    """What is fixed for a split as a whole: labels (n,), who is in each image (n,), and the people (columns)."""

    true_label: np.ndarray
    label: np.ndarray
    who: np.ndarray
    people: dict[str, np.ndarray]
    first_subject: int


class Block(NamedTuple):
    """What is drawn anew for each image of a block: au (rows, len(AUS)) float32, columns of mood and of scene."""

    au: np.ndarray
    mood: dict[str, np.ndarray]
    scene: dict[str, np.ndarray]


@lru_cache(maxsize=len(SPLITS))
def _split_plan(recipe: Recipe, split: str) -> SplitPlan:
    n, number = recipe.count(split), SPLITS.index(split)
    rng = np.random.default_rng([recipe.seed, number])
    train = split == "train"
    true_label = draw_labels(n, recipe.imbalance if train else 0., rng)
    label = spoil(true_label, recipe.wrong if train else 0., rng)
    counts = [recipe.people or max(10, recipe.count(name) // 10) for name in SPLITS]
    who = rng.integers(0, counts[number], n)
    return SplitPlan(true_label, label, who, sample_people(counts[number], rng), sum(counts[:number]))


@lru_cache(maxsize=2)
def _draw_block(recipe: Recipe, split: str, first: int) -> Block:
    """Rows first .. first + BLOCK_ROWS of a split (fewer at its end), from their own random stream."""
    label = _split_plan(recipe, split).true_label[first:first + BLOCK_ROWS]
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split), 1 + first // BLOCK_ROWS])
    au, mood = sample_expressions(label, recipe, rng)
    return Block(au, mood, sample_scenes(len(label), recipe, rng))


def _chunk_rows(size: int) -> int:
    """Images drawn at once, a power of two <= BLOCK_ROWS: keeps a chunk's grids (130 bytes a pixel) in the cache."""
    return min(BLOCK_ROWS, 2 ** max(0, int(np.log2(BLOCK_ROWS * 48**2 / size**2))))


def _render_chunk(recipe: Recipe, split: str, start: int, stop: int) -> np.ndarray:
    plan, first = _split_plan(recipe, split), start - start % BLOCK_ROWS
    block, rows = _draw_block(recipe, split, first), slice(start - first, stop - first)
    person = {name: values[plan.who[start:stop]] for name, values in plan.people.items()}
    scene = {name: values[rows] for name, values in block.scene.items()}
    noise_seed = np.random.SeedSequence([recipe.seed, SPLITS.index(split), 0, start]).generate_state(1)[0]
    return draw_faces(geometry_of(block.au[rows], person, scene["lean"]), person, scene, recipe.size, int(noise_seed))


# ------------------------------------------------------------------------------------------------------- sampling
def draw_labels(n: int, imbalance: float, rng: np.random.Generator) -> np.ndarray:
    """n true labels, int64, in shuffled order: exact class counts, shares ~ AFFECTNET_SHARE ** imbalance."""
    share = AFFECTNET_SHARE**imbalance
    edges = np.round(np.r_[0, share.cumsum() / share.sum()] * n).astype(int)
    return rng.permutation(np.repeat(np.arange(len(share)), np.diff(edges)))


def spoil(label: np.ndarray, wrong: float, rng: np.random.Generator) -> np.ndarray:
    """Replace exactly round(wrong * n) of the labels by another class, any of the others with equal chance."""
    rows = rng.choice(len(label), round(wrong * len(label)), replace=False)
    spoilt = label.copy()
    spoilt[rows] = (label[rows] + rng.integers(1, len(EXPRESSIONS), len(rows))) % len(EXPRESSIONS)
    return spoilt


def sample_expressions(
    label: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """AU intensities (n, len(AUS)) float32 for the labels, and the columns that say how they came about.

    au = (1 - share) strength own + share strength' other, plus stray AUs; valence and arousal are mixed likewise.
    """
    n = len(label)
    strength, second_strength = rng.uniform(recipe.low, recipe.high, (2, n))
    second = (label + rng.integers(1, len(EXPRESSIONS), n)) % len(EXPRESSIONS)
    share = np.where(rng.random(n) < recipe.blend, rng.uniform(.15, .48, n), 0.)
    share = share * np.where(label == 0, .5, 1.)  # half an expression is no longer neutral
    own, other = (strength * (1 - share))[:, None], (second_strength * share)[:, None]
    au = own * draw_combinations(label, rng) + other * draw_combinations(second, rng)
    au += (rng.random(au.shape) < recipe.stray) * rng.uniform(.1, .4, au.shape)
    table = np.array([VALENCE_AROUSAL[name] for name in EXPRESSIONS])
    affect = own * table[label] + other * table[second] + rng.normal(0, .05, (n, 2))
    valence, arousal = np.clip(affect, -1, 1).astype(np.float32).T
    mood = dict(valence=valence, arousal=arousal, strength=strength.astype(np.float32),
                second=np.where(share > 0, second, -1), second_share=share.astype(np.float32))
    return np.clip(au, 0, 1).astype(np.float32), mood


def draw_combinations(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One AU vector per label (n, len(AUS)) from PROTOTYPE; each AU varies by a fifth of its strength."""
    au = np.zeros((len(label), len(AUS)))
    for k, name in enumerate(EXPRESSIONS):
        rows, combination = np.flatnonzero(label == k), PROTOTYPE[name]
        for number, strength in combination.always.items():
            au[rows, COLUMN[number]] = strength
        for number, (strength, chance) in combination.sometimes.items():
            au[rows, COLUMN[number]] = strength * (rng.random(len(rows)) < chance)
        if combination.one_of:
            choice = rng.choice(list(combination.one_of), len(rows))
            for number, strength in combination.one_of.items():
                au[rows, COLUMN[number]] = strength * (choice == number)
    return au * rng.normal(1, .2, au.shape).clip(.5, 1.5)


def sample_people(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Who they are, columns (n,): offsets on NEUTRAL, then tone, hair, beard, glasses and age (0..1)."""
    def normal(sd: float) -> np.ndarray:
        return rng.normal(0, sd, n)

    age, masculine = rng.beta(1.4, 1.8, n), rng.random(n) < .5
    tone = rng.beta(1.6, 1.25, n) * .48 + .34
    wrinkled = np.clip(age - .5, 0, 1)
    geometry = dict(
        brow_y=normal(.018).clip(-.05, .022), brow_in=normal(.016).clip(-.04, .016), brow_mid=normal(.012),
        brow_out=normal(.016), brow_dx=normal(.010), brow_thick=normal(.006) + np.where(masculine, .006, -.005),
        eye_u=normal(.014), eye_y=normal(.015), eye_w=normal(.012), eye_tilt=normal(.012), lid_up=normal(.008),
        lid_low=normal(.006), fold=.7 * age**2, bag=.6 * age**2, crow=.5 * wrinkled, fore_mid=.6 * wrinkled,
        fore_out=.6 * wrinkled, nose_len=normal(.022), nose_w=normal(.012) + np.where(masculine, .008, -.006),
        mouth_y=normal(.018), mouth_w=normal(.018), corner_y=normal(.012), lip_up=normal(.009), lip_low=normal(.010),
        head_w=normal(.035) + np.where(masculine, .02, -.015), taper=normal(.06) + np.where(masculine, -.07, .03),
        chin_y=normal(.03) + np.where(masculine, .02, -.02))
    return geometry | sample_hair(n, masculine, tone, age, rng) | dict(
        age=age, tone=tone, iris=rng.uniform(.08, .38, n),
        lips=np.where(masculine, rng.uniform(.08, .20, n), rng.uniform(.15, .40, n)),
        lash=np.where(masculine, .55, .85), goatee=(rng.random(n) < .3).astype(float),
        beard=np.where(masculine & (rng.random(n) < .45), rng.beta(1.2, 1.2, n), 0.),
        glasses=(rng.random(n) < .22).astype(float), frame=rng.uniform(.03, .25, n))


def sample_hair(
    n: int, masculine: np.ndarray, tone: np.ndarray, age: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Hair, columns (n,): style, the values of HAIR, albedo `hair`, and `bald` for some whose hairline recedes."""
    style = np.where(masculine, rng.choice(len(HAIR), n, p=STYLE_SHARE["masculine"]),
                     rng.choice(len(HAIR), n, p=STYLE_SHARE["feminine"]))
    ranges = {name: np.array([HAIR[k][name] for k in range(len(HAIR))])[style] for name in HAIR[SHORT]}
    values = {name: rng.uniform(low, high) for name, (low, high) in ((k, r.T) for k, r in ranges.items())}
    bald = (style == RECEDING) & (rng.random(n) < .45)
    values["hairline"] = np.where(bald, -1.4, values["hairline"])
    fair = rng.choice([.06, .12, .22, .42, .62], n, p=[.25, .25, .25, .15, .1])
    colour = np.where(tone > .55, fair, rng.uniform(.03, .12, n))
    grey = np.clip((age - .65) * 3, 0, 1)
    return values | dict(style=style.astype(float), bald=bald.astype(float), hair=colour + grey * (.62 - colour),
                         curl_rate=rng.uniform(8, 16, n))


def sample_scenes(n: int, recipe: Recipe, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How they were 'photographed', columns (n,) named as in faces.STILL; angles in radians."""
    def normal(sd: float, mean: float = 0.) -> np.ndarray:
        return rng.normal(mean, sd, n)

    pose, turned = recipe.pose, rng.random(n) < recipe.profile
    yaw = np.where(turned, rng.uniform(.6, .95, n) * rng.choice([-1, 1], n), normal(.24).clip(-.55, .55) * pose)
    occluded = rng.random(n) < recipe.occlusion
    return dict(
        roll=normal(.10) * pose, yaw=yaw, pitch=normal(.13).clip(-.35, .35) * pose, scale=rng.uniform(.92, 1.14, n),
        dx=normal(.05) - .10 * np.sin(yaw), dy=normal(.05), skew=normal(.02), mouth_skew=normal(.05),
        lean=normal(recipe.lean).clip(-.6, .6), gaze_x=normal(.022), gaze_y=normal(.012),
        light_x=normal(.55), light_y=normal(.35, -.45), ambient=rng.uniform(.40, .80, n),
        exposure=rng.uniform(.75, 1.12, n), gamma=rng.uniform(.8, 1.25, n), blur=rng.uniform(0, .8, n)**1.5,
        noise=rng.gamma(1.5, .005, n) * recipe.noise, back=rng.uniform(.05, .95, n), back_dx=normal(.2),
        back_dy=normal(.2), cloth=rng.uniform(.05, .9, n), phase=rng.uniform(0, 6.28, n),
        occluder=np.where(occluded, rng.choice([SUNGLASSES, HAND, HAND, CARD], n), 0).astype(float),
        occ_x=rng.uniform(-.5, .5, n), occ_y=rng.uniform(.25, .75, n), occ_angle=normal(.5))
