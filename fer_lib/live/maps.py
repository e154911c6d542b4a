"""Feature maps of one image at one site: before and after the activation, and what a flip of the signs there does."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fer_lib.engine import Learner
from fer_lib.models import Site, sites

CHANNELS = 16           # maps that are shown, the first of the site's


@contextlib.contextmanager
def seen_at(site: Site, flipped: bool) -> Iterator[list[Tensor]]:
    """Within, a forward pass leaves [before the activation, after it] of the site; `flipped`: with the other sign."""
    seen: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = -inputs[0] if flipped else inputs[0]
        seen.append(x.clone())                          # the activation works in place
        return (x,)

    hooks = [site.register_forward_pre_hook(before),
             site.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def look(learner: Learner, image: int, name: str) -> tuple[dict, list[bytes]]:
    """The message for the front end, for image number `image` of val. Changes nothing that training depends on."""
    split, site = learner.held_out["val"], sites(learner.model)[name]
    image = min(max(image, 0), len(split) - 1)
    x = split.batch(slice(image, image + 1))
    found = []
    learner.model.eval()
    for flipped in (False, True):
        with seen_at(site, flipped) as seen, learner.precision.autocast():
            logits = learner.model(x.contiguous(memory_format=learner.layout))
        found.append((*[t[0].float().cpu() for t in seen[:2]], logits[0].float().softmax(0).cpu()))
    learner.model.train()
    (before, after, p), (_, after_flipped, p_flipped) = found
    classes = learner.data.classes
    pixels = torch.from_numpy(learner.data.splits["val"].images[image]).float().mean(0, keepdim=True)
    limit, most = float(before.abs().max()) or 1., float(torch.maximum(after, after_flipped).max()) or 1.
    shown = min(CHANNELS, len(before))
    parts = [part("the image", "as the network sees it, without normalisation", pixels, 255., False, 96),
             part(f"before the activation (channels 0–{shown - 1} of {len(before)})",
                  f"batch normalisation's output, blue −{limit:.2g}, orange +{limit:.2g}", before[:shown], limit, True),
             part("after the activation", f"black 0, white {most:.2g}", after[:shown], most, False),
             part("after it, had the signs been flipped", "what the next layer would get", after_flipped[:shown], most,
                  False)]
    label = classes[int(split.labels[image])]
    best, other = int(p.argmax()), int(p_flipped.argmax())
    text = (f"step {learner.step}: image {image} is labelled {label}; seen as {classes[best]} ({p[best]:.2f}); with "
            f"the signs at {name} flipped, as {classes[other]} ({p_flipped[other]:.2f})")
    return ({"t": "maps", "step": learner.step, "text": text, "parts": [facts for facts, _ in parts]},
            [data for _, data in parts])


def part(name: str, help: str, maps: Tensor, limit: float, signed: bool, side: int = 44) -> tuple[dict, bytes]:
    """Maps (N, H, W) in one byte a value: 0..limit as 0..255, signed ones -limit..limit around 128."""
    data = (maps / limit * 127 + 128 if signed else maps / limit * 255).round().clamp(0, 255).to(torch.uint8)
    count, height, width = data.shape
    return ({"name": name, "help": help, "count": count, "height": height, "width": width, "signed": signed,
             "columns": 4, "side": side}, data.contiguous().numpy().tobytes())
