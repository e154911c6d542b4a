"""The source `synthetic`: every knob of a `Recipe` as an option, and its drawing as a packing plan."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import faces, synthetic
from data_prep.packed import CLASSES, SPLITS, DataError, Plan, file_sha256
from data_prep.synthetic import KNOBS, PRESETS, SAMPLE_COLUMNS, Recipe, draw_samples, render_samples

LICENCE = "Drawn by this project, of no real person: free under the project's own licence."
ACCESS = "Nothing to download: the faces are computed."


def add_arguments(parser: ArgumentParser) -> None:
    """One option a knob; what is not given comes from the preset."""
    parser.add_argument("--preset", choices=list(PRESETS), default="standard", help="values not given (standard)")
    for knob in fields(Recipe):
        lowest, highest, meaning = KNOBS[knob.name]
        option = "--" + knob.name.replace("_", "-")
        parser.add_argument(option, type=type(knob.default), help=f"{meaning}; {lowest} to {highest}")
    # One process: a worker imports torch (2 s of CPU) before it draws 2,000 images a second. On two idle cores the
    # quick preset takes 7 s with one or two workers (4 and 7 s of CPU), the standard one 6 and 7 s (5 and 9 s of CPU);
    # 20,000 images take 12 and 11 s.
    parser.set_defaults(workers=1)


def plan(options: Namespace) -> Plan:
    """What to draw; DataError for a value outside its range. The drawing code is an input like any other."""
    given = {knob.name: getattr(options, knob.name) for knob in fields(Recipe)}
    try:
        recipe = replace(PRESETS[options.preset], **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise DataError(str(error)) from error
    standard = options.preset == "standard"
    code = [Path(module.__file__) for module in (synthetic, faces)]
    return Plan(
        name="synthetic" if standard else f"synthetic-{options.preset}",
        title="Drawn faces (7 classes)" if standard else f"Drawn faces, {options.preset} preset (7 classes)",
        classes=CLASSES,
        shape=(1, recipe.size, recipe.size),
        samples={split: _samples(recipe, split) for split in SPLITS},
        decode=partial(draw_rows, recipe=recipe),
        licence=LICENCE,
        release="drawn by data_prep.synthetic",
        files={path.name: file_sha256(path) for path in code},
        options=asdict(recipe),
        drawn=True,
    )


def _samples(recipe: Recipe, split: str) -> pd.DataFrame:
    samples = draw_samples(recipe, split)[list(SAMPLE_COLUMNS)]
    return samples.assign(_position=np.arange(len(samples)))  # rows may be left out later, by --classes


def draw_rows(rows: pd.DataFrame, split: str, recipe: Recipe) -> np.ndarray:
    """Images of rows in order, uint8 (n, 1, size, size)."""
    position = rows["_position"].to_numpy()
    return render_samples(recipe, split, int(position[0]), int(position[-1]) + 1)[position - position[0]]
