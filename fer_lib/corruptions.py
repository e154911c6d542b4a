"""Corrupted images: ten kinds, five severities each, a pure function of the images, the kind and the severity.

Eight kinds and their constants are those of CIFAR-10-C (Hendrycks & Dietterich 2019, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", make_cifar_c.py), made for images of 32 px: strengths are taken as
they are, lengths in pixels grow with the side (48 px: times 1.5). Occlusion and rotation, which faces in the wild
suffer, are not in that set: their constants are ours, chosen before any run was looked at.

All is computed on the CPU, so that it is the same whatever device the networks are on, and rounded to uint8, as an
image file would be.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from fer_lib.data import TURN, stream, turned

SEED = 0
VERSION = 1             # raised by hand when a change alters a corrupted image
SIDE = 32               # pixels, of the images that the constants were made for
CHUNK = 256             # images at a time; another number draws other noise


def gaussian_noise(x: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """x + N(0, sd^2), an own draw for each value."""
    return x + sd * torch.randn(x.shape, generator=generator)


def shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Poisson(x * photons) / photons: white is `photons` counts."""
    return torch.poisson(x * photons, generator=generator) / photons


def gaussian_blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """sigma in pixels of a 32 px image."""
    sigma *= x.shape[-1] / SIDE
    return V.gaussian_blur(x, 2 * math.ceil(4 * sigma) + 1, sigma)


def motion_blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """The mean along a line to one side of each pixel, with half of a normal curve as weights, in a direction of its
    own for each image, within 45 degrees of the horizontal. sigma in pixels of a 32 px image.
    """
    sigma *= x.shape[-1] / SIDE
    angle = (torch.rand(len(x), generator=generator) * 2 - 1) * math.pi / 4
    direction = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    weights = torch.exp(-torch.arange(math.ceil(4 * sigma) + 1.).square() / (2 * sigma ** 2))
    return sum(w * moved(x, t * direction) for t, w in enumerate(weights / weights.sum()))


def moved(x: Tensor, by: Tensor) -> Tensor:
    """Each image moved by (dx, dy) pixels, bilinear, its edge repeated outside. by (N, 2)."""
    theta = torch.eye(2, 3).repeat(len(x), 1, 1)
    theta[:, :, 2] = -2 * by / torch.tensor([x.shape[-1], x.shape[-2]])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def brightness(x: Tensor, by: float, generator: torch.Generator) -> Tensor:
    """The V of HSV, a pixel's largest channel, raised by `by`; hue and saturation stay."""
    v = x.amax(1, keepdim=True)
    lit = (v + by).clamp(max=1)
    return torch.where(v > 0, x * lit / v, lit)


def contrast(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Each image's channels towards their means: (x - mean) * factor + mean."""
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * factor + mean


def jpeg(x: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Compressed and read again."""
    return V.jpeg((x * 255).round().to(torch.uint8), int(quality)) / 255


def pixelate(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Shrunk to `factor` of the side by averaging, and enlarged again by repeating pixels."""
    rows, columns = (box(n, int(n * factor)) for n in x.shape[-2:])
    return F.interpolate(rows @ x @ columns.T, x.shape[-2:], mode="nearest-exact")


def box(n: int, m: int) -> Tensor:
    """The matrix (m, n) that shrinks n pixels to m: each is the mean of those whose centres it covers."""
    distance = (torch.arange(n) + .5)[None] * m / n - (torch.arange(m) + .5)[:, None]       # in large pixels
    covered = ((distance > -.5) & (distance <= .5)).float()
    return covered / covered.sum(1, keepdim=True)


def occlusion(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A grey square, `share` of the image's side, anywhere inside the image."""
    h, w = x.shape[-2:]
    side = round(share * h)
    place = torch.rand(len(x), 2, generator=generator)
    top, left = ((place[:, k, None] * (n - side + 1)).floor() for k, n in enumerate((h, w)))
    rows, columns = torch.arange(h)[None], torch.arange(w)[None]
    hidden = ((rows >= top) & (rows < top + side))[:, :, None] & ((columns >= left) & (columns < left + side))[:, None]
    return x.masked_fill(hidden[:, None], .5)


def rotation(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turned by so much to the left or to the right, its edge repeated outside."""
    side = torch.randint(2, (len(x),), generator=generator) * 2. - 1
    return turned(x, torch.stack([side * degrees / TURN, torch.zeros(len(x))], 1))


# by kind: what it does to float images (N, C, H, W) in 0..1, and its constants from the mildest on
KINDS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (.04, .06, .08, .09, .10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "gaussian_blur": (gaussian_blur, (.4, .6, .7, .8, 1)),
    "motion_blur": (motion_blur, (1, 1.5, 2, 2, 2.5)),          # theirs too: 3 and 4 differ in the kernel's far tail
    "brightness": (brightness, (.05, .1, .15, .2, .3)),
    "contrast": (contrast, (.75, .5, .4, .3, .15)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
    "pixelate": (pixelate, (.95, .9, .85, .75, .65)),
    "occlusion": (occlusion, (.2, .3, .4, .5, .6)),
    "rotation": (rotation, (5, 10, 15, 20, 30)),
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupted(images: Tensor, kind: str, severity: int) -> Tensor:
    """uint8 images (N, C, H, W) on the CPU, corrupted. Raises ValueError for an unknown kind or severity."""
    if kind not in KINDS:
        raise ValueError(f"unknown corruption '{kind}' (choose one of {', '.join(KINDS)})")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is 1 to 5, not {severity}")
    change, constants = KINDS[kind]
    generator = torch.Generator().manual_seed(stream(SEED, kind, severity))
    parts = [change(part / 255, constants[severity - 1], generator) for part in images.split(CHUNK)]
    return torch.cat([(part.clamp(0, 1) * 255).round().to(torch.uint8) for part in parts])
