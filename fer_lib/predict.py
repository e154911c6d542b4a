"""A trained run on the reader's own picture: python -m fer_lib.predict RUN IMAGE

RUN is a run's directory with a model.safetensors; IMAGE a picture of one face, cropped about as in the training data.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from fer_lib.checkpoint import read_weights
from fer_lib.experiment import Experiment
from fer_lib.files import RecordError, read_json, reading
from fer_lib.methods import build_method
from fer_lib.models import build_model, load_weights


def load_trained(run: Path) -> tuple[nn.Module, dict]:
    """The network of a run at its chosen epoch, in evaluation mode on the CPU, and the run's experiment.json.

    The signs are those of the last training forward of that epoch. Raises RecordError where the record has no weights.
    """
    try:
        head = read_json(run / "experiment.json")
    except RecordError:
        raise RecordError(f"'{run}' is not a run's directory: it holds no readable experiment.json") from None
    if not (run / "model.safetensors").exists():
        raise RecordError(f"'{run}' has no model.safetensors: the run is not finished, or its weights were not kept")
    with reading(run / "experiment.json"):
        e = Experiment.from_mapping(head["experiment"])
        model = build_model(e.backbone, len(head["classes"]), head["image"][0], e.stem, e.width, e.share_activations)
        build_method(e.method, vars(e)).modify(model, input_shape(head))
    try:
        load_weights(model, read_weights(run / "model.safetensors"))
    except (RuntimeError, AttributeError) as error:
        raise RecordError(f"the weights in '{run}' don't fit its experiment.json ({str(error).splitlines()[0]})") \
            from None
    return model.float().eval(), head


def input_shape(head: dict) -> tuple[int, int, int]:
    """(C, H, W) that the run's network sees."""
    channels, height, width = head["image"]
    size = head["experiment"]["image_size"]
    return channels, size or height, size or width


def read_image(path: Path, shape: tuple[int, int, int], normalization: dict) -> torch.Tensor:
    """A picture as the network's input (1, C, H, W): centre square, resized with antialiasing, normalised.

    Raises RecordError for a file that is missing or no picture.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            picture = image.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise RecordError(f"no picture at '{path}'") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise RecordError(f"'{path}' can't be read as a picture: {error}") from None
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side)).resize((width, height), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.asarray(picture, dtype=np.float32)).reshape(height, width, channels).movedim(-1, 0) / 255
    mean, std = (torch.tensor(normalization[k], dtype=torch.float32)[:, None, None] for k in ("mean", "std"))
    return ((x - mean) / std.clamp_min(1 / 255))[None]


@torch.no_grad()
def probabilities(run: Path, picture: Path) -> dict[str, float]:
    """The run's probability of each class for one picture, the likeliest first."""
    model, head = load_trained(run)
    p = model(read_image(picture, input_shape(head), head["normalization"])).softmax(1)[0]
    return dict(sorted(zip(head["classes"], p.tolist()), key=lambda item: -item[1]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run, below runs/")
    parser.add_argument("image", type=Path, help="a picture of one face")
    args = parser.parse_args(argv)
    try:
        found = probabilities(args.run, args.image)
    except (RecordError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    for name, p in found.items():
        print(f"{name:<10} {p:.3f} {'#' * round(40 * p)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
