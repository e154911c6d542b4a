"""What a sudden flip at one site does to all that comes after it, in one network on one batch. Nothing is trained."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lib.site_statistics import every_site, watched


@contextmanager
def flipped(model: nn.Module, *names: str) -> Iterator[None]:
    """Within, what arrives at these sites has the other sign (Algorithm 1's feature *= -1). Raises ValueError for a
    name that no site has."""
    known = every_site(model)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown site '{name}' (choose from {', '.join(known)})")
    hooks = [known[name].register_forward_pre_hook(lambda module, inputs: (-inputs[0],)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def effects(model: nn.Module, x: Tensor, labels: Tensor, training: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(a row for each flipped site and each site that sees it, a row for each flipped site).

    First: moved, the root mean square over channels of how far the mean of what arrives there moves, in its standard
    deviations; spread, the ratio of standard deviations after and before, its geometric mean over channels; alike, the
    correlation of all values with and without the flip, each channel's mean taken out. The flipped site itself shows
    what leaves BN, already negated.
    Second: the share of zeros that leaves the flipped site, and the loss, before and with the flip; the share of
    predictions that change. training: batch norms use the
    batch's statistics, as they do at the step of the toggle; else their running ones. x (N, C, H, W) is the batch.
    """
    model = copy.deepcopy(model).train(training)       # a copy: looking must not teach batch norms
    with watched(model) as seen:
        plain = model(x)
    before, pairs, flips = {name: values for name, values in seen.items()}, [], []
    for name in before:
        with flipped(model, name), watched(model) as seen:
            logits = model(x)
        for other, (after, _) in seen.items():
            if not torch.equal(after, before[other][0]):
                pairs.append({"flipped": name, "site": other, **_change(before[other][0], after)})
        flips.append({"flipped": name, "zeros_before": _zeros(model, name, before), "zeros": _zeros(model, name, seen),
                      "loss_before": float(F.cross_entropy(plain, labels)),
                      "loss": float(F.cross_entropy(logits, labels)),
                      "changed": float((plain.argmax(1) != logits.argmax(1)).float().mean())})
    return pd.DataFrame(pairs), pd.DataFrame(flips)


def _zeros(model: nn.Module, name: str, seen: dict[str, list[Tensor]]) -> float:
    """NaN where no ReLU is."""
    return float((seen[name][1] == 0).float().mean()) if every_site(model)[name].act is not None else float("nan")


def _change(before: Tensor, after: Tensor) -> dict[str, float]:
    dims = [d for d in range(before.dim()) if d != 1]
    sd = before.std(dims).clamp_min(1e-12)
    moved = (after.mean(dims) - before.mean(dims)) / sd
    spread = (after.std(dims).clamp_min(1e-12) / sd).log().mean().exp()
    together = torch.stack([(t - t.mean(dims, keepdim=True)).flatten() for t in (before, after)])
    return {"moved": float(moved.square().mean().sqrt()), "spread": float(spread),
            "alike": float(torch.corrcoef(together)[0, 1])}
