"""What the sites of a network see: features before the activation, and pictures of one face inside the network."""

import contextlib

import torch
from torch import Tensor

from fer_lib.engine import Learner
from fer_lib.methods.bn_negation import negated_parameters
from fer_lib.models import sites


@torch.no_grad()
def at_sites(learner: Learner, where: str, rows: slice, split: str = "val", training: bool = False) \
        -> dict[str, tuple[Tensor, Tensor]]:
    """By site, the feature (N, C, H, W) before it (BN's output) and after it, for these images of a held-out split.

    training: with the batch's own statistics, as a training forward has them; the running ones stay as they are.
    """
    model, seen = learner.model, {}
    kept = [b.clone() for b in model.buffers()]

    def hooks(name: str, site: torch.nn.Module) -> list:
        before = lambda module, inputs: seen.setdefault(name, [inputs[0].clone()]) and None     # noqa: E731
        after = lambda module, inputs, output: seen[name].append(output.clone()) and None       # noqa: E731
        return [site.register_forward_pre_hook(before), site.register_forward_hook(after)]

    with contextlib.ExitStack() as stack:
        for name, site in sites(model, where).items():
            for hook in hooks(name, site):
                stack.callback(hook.remove)
        was = model.training
        model.train(training)(learner.held_out[split].batch(rows))
        model.train(was)
    for buffer, value in zip(model.buffers(), kept):
        buffer.copy_(value)
    return {name: (found[0], found[1]) for name, found in seen.items()}


def affine(learner: Learner, where: str = "act1") -> tuple[Tensor, Tensor]:
    """Gamma and beta as the features see them, with the sign that the site gives: (channels of all sites,) each."""
    found = []
    for name in sites(learner.model, where):
        sign = learner.forced.get(name, 1.)
        found.append([sign * p.detach().clone() for p in negated_parameters(learner.model, name, "before_relu")])
    gamma, beta = zip(*found)
    return torch.cat(gamma), torch.cat(beta)
