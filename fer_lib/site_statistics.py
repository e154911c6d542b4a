"""What passes through each site, again and again while a network trains: a run's `sites.parquet`, made when asked for.

    table = record_sites(run)

Trains the run (or goes on) as `runs.record` does, and looks at the network between two blocks of steps, on the same
held-out images each time. No bit of the run changes, and a run that isn't asked for it pays nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from fer_lib.engine import Learner
from fer_lib.files import RecordError, read_table, write_table
from fer_lib.models import ACTIVATIONS, Site
from fer_lib.runs import Run, record

STATISTICS = ("mean", "sd", "zeros", "flipped", "w")
IMAGES = 64             # of val, the first


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within, a forward pass leaves by site [what arrives before the activation, what leaves it]."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for name, site in every_site(model).items():
        hooks += [site.register_forward_pre_hook(lambda m, inputs, n=name: seen.update({n: [inputs[0].clone()]})),
                  site.register_forward_hook(lambda m, inputs, output, n=name: seen[n].append(output.clone()))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def every_site(model: nn.Module) -> dict[str, Site]:
    """All sites by name, activations and linear ones, as they stand in the network."""
    return {m.name: m for m in model.modules() if isinstance(m, Site)}


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within, the network evaluates, but its batch norms use the batch's statistics as they do in training, and learn
    nothing of it.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    running = [(m.running_mean, m.running_var) for m in norms]
    model.eval()
    for m in norms:
        m.train()
        m.running_mean, m.running_var = m.running_mean.clone(), m.running_var.clone()
    try:
        yield
    finally:
        for m, (mean, var) in zip(norms, running):
            m.running_mean, m.running_var = mean, var
        model.train()


@torch.no_grad()
def look(learner: Learner, images: int = IMAGES) -> list[dict]:
    """A row for each site, of the network as it is now: mean and sd of what arrives, before the activation; the share
    of zeros that leaves a ReLU; the share of the site's signs that are -; the mean w. NaN where a site has none. Batch
    norms use these images' statistics, as a training step uses its batch's.
    """
    signs, weights = learner.method.signs(), learner.method.weights()
    with batch_statistics(learner.model), watched(learner.model) as seen, learner.precision.autocast():
        learner.model(learner.held_out["val"].batch(slice(0, images)).contiguous(memory_format=learner.layout))
    rows = []
    for name, (before, after) in seen.items():
        relu = every_site(learner.model)[name].kind in ACTIVATIONS
        rows.append({"step": learner.step, "site": name, "mean": float(before.mean()), "sd": float(before.std()),
                     "zeros": float((after == 0).float().mean()) if relu else float("nan"),
                     "flipped": float((signs[name] < 0).float().mean()) if name in signs else float("nan"),
                     "w": float(weights[name].mean()) if name in weights else float("nan")})
    return rows


def record_sites(run: Run, images: int = IMAGES, every: int = 5) -> pd.DataFrame:
    """Train the run and record its sites after each `every` steps and at the ends of epochs: rows as `look` gives them.

    The first look comes when the first block ends, and a slow machine looks more often: the values at a step are the
    same. A finished run is read. Raises RecordError where it was trained without this record.
    """
    path = run.path / "sites.parquet"
    if run.finished:
        if not path.exists():
            raise RecordError(f"'{run.path.name}' was trained without sites.parquet: delete its folder, and train it "
                              "with fer_lib.site_statistics.record_sites")
        return read_table(path)
    rows: list[dict] = []
    for block in record([run]):
        block.network.block_steps = every               # where a block is cut changes no bit
        if not rows or block.network.step > rows[-1]["step"]:
            rows += look(block.network, images)
    table = pd.DataFrame(rows)
    write_table(run.path / "sites.parquet", table)
    return table
