"""From the bytes of an image file to uint8 (C, size, size).

Bytes are broken or hostile until decoded: each fault is a `Rejected`, and nothing is decoded whose header promises more
than MAX_PIXELS. Formats: JPEG, PNG, BMP, TIFF, WebP, GIF and PPM; of several frames the first. EXIF orientation is
applied, 16-bit grey becomes 8-bit, transparency is ignored (as by torchvision's ImageFolder).
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from data_prep.packed import Rejected, Resized
from data_prep.paths import shown

Image.init()  # Pillow loads its plugins late, and asking for one that is not loaded is a KeyError
_READ = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "MPO")  # never those that start other programs (EPS)
FORMATS = tuple(name for name in _READ if name in Image.OPEN)
MAX_PIXELS = 64 << 20
UNREADABLE = "unreadable image"
BOX = ("_x0", "_y0", "_x1", "_y1")  # columns, in pixels of the image as it is shown; NaN = the whole image

_ORIENTATION = 0x0112  # EXIF tag; 1 = upright
_TURNS = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}  # axes of (C, H, W) to flip, 5..8 transposed


def decode_files(
    rows: pd.DataFrame, *, root: str, size: int, grey: bool = False, margin: float = 0.0
) -> list[Resized | Rejected]:
    """uint8 (C, size, size) of each row's `_path` below `root`, cropped to `BOX` where there is one, and how many
    pixels wide and high the image or the crop was.

    A box becomes a square of its longer side, with `margin` of that side added all round; it is moved and, where the
    image is smaller, shrunk to lie inside. Whole images are stretched to a square, as torchvision's Resize((S, S))
    does. Raises OSError where the disk fails, which is no fault of the image.
    """
    boxes = rows[list(BOX)].to_numpy(float) if BOX[0] in rows else np.full((len(rows), 4), np.nan)
    results, last, image = [], None, None
    with _quiet_single_thread():
        for path, box in zip(rows["_path"], boxes, strict=True):
            if path != last:  # several faces of one photograph follow each other
                last, image = path, _read(Path(root, path), grey)
            result = image if isinstance(image, Rejected) else fit(image, box, size, margin)
            results.append(_naming(path, result) if isinstance(result, Rejected) else result)
    return results


def _read(path: Path, grey: bool) -> Tensor | Rejected:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        return Rejected("image file cannot be opened", error.strerror)
    return decode_image(content, grey)


def _naming(path: str, why: Rejected) -> Rejected:
    """The reason with the file's name, for rows whose `source` is a line of a table."""
    return Rejected(why.reason, f"{shown(path)} ({why.detail})" if why.detail else shown(path), why.bad)


@contextmanager
def _quiet_single_thread() -> Iterator[None]:
    """One thread a process, since processes share the cores; bombs are errors, other warnings of no use to anybody."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        torch.set_num_threads(threads)


# --- decoding -------------------------------------------------------------------------------------------------------


def decode_image(content: bytes, grey: bool = False) -> Tensor | Rejected:
    """uint8 (1 or 3, H, W) from a file's bytes, upright."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return Rejected("image has too many pixels", f"{image.width} x {image.height}")
            turn = _orientation(image)
            pixels = _decode_jpeg(content, grey) if image.format in ("JPEG", "MPO") and image.mode != "CMYK" else None
            pixels = _decode_pillow(image, grey) if pixels is None else pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Rejected("image has too many pixels")
    except Exception as error:  # what decoders raise on broken bytes is not limited to OSError
        return Rejected(UNREADABLE, _first_words(error))
    return pixels if isinstance(pixels, Rejected) else _upright(pixels, turn)


def _decode_jpeg(content: bytes, grey: bool) -> Tensor | None:
    """By torchvision, None where it cannot.

    On one core, images/s by torchvision, Pillow, and Pillow's draft mode (resizing included): 100 -> 48 px 5.0, 2.5
    and 5.0 thousand, 224 -> 96 px 2.1, 1.3 and 2.2 thousand, 600 -> 96 px 520, 290 and 660. torchvision's pixels are
    Pillow's within one grey level; draft mode's differ by up to 18, and by another amount for each size of input.
    """
    try:
        # bytearray: torch takes no read-only memory
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(data, ImageReadMode.GRAY if grey else ImageReadMode.RGB)
    except RuntimeError:
        return None


def _decode_pillow(image: Image.Image, grey: bool) -> Tensor | Rejected:
    if image.mode in ("I", "F"):
        return Rejected("pixels are neither 8 nor 16 bits", f"mode {image.mode}")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return pixels[None] if grey else pixels.permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return found if found in _TURNS else 1


def _upright(image: Tensor, turn: int) -> Tensor:
    """Undoes an EXIF orientation on (C, H, W)."""
    if turn >= 5:
        image = image.transpose(1, 2)
    return image.flip(_TURNS[turn]) if _TURNS.get(turn) else image


def _first_words(error: Exception) -> str:
    """An error's first line without what differs from run to run, such as addresses."""
    return str(error).partition("\n")[0].partition(" <")[0][:100] or type(error).__name__


# --- crop and size --------------------------------------------------------------------------------------------------


def fit(image: Tensor, box: np.ndarray, size: int, margin: float) -> Resized | Rejected:
    """uint8 (C, size, size), antialiased; `box` is x0, y0, x1, y1, NaN = the whole image."""
    if not np.isnan(box[0]):
        square = _square(box, image.shape[2], image.shape[1], margin)
        if isinstance(square, Rejected):
            return square
        x, y, side = square
        image = image[:, y : y + side, x : x + side]
    _, height, width = image.shape
    return Resized(resize(image, [size, size], antialias=True).numpy(), width, height)


def _square(box: np.ndarray, width: int, height: int, margin: float) -> tuple[int, int, int] | Rejected:
    """Left, top and side of the square around a box, inside an image of this width and height."""
    x0, y0, x1, y1 = (float(value) for value in box)
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return Rejected("box outside the image", f"{x0:g},{y0:g},{x1:g},{y1:g} in {width} x {height}")
    side = min(max(x1 - x0, y1 - y0) * (1 + 2 * margin), width, height)
    side = max(math.floor(side + 0.5), 1)
    left, top = (math.floor((a + b - side) / 2 + 0.5) for a, b in ((x0, x1), (y0, y1)))
    return min(max(left, 0), width - side), min(max(top, 0), height - side), side
