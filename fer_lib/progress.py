"""Progress of training as one plain line every few seconds: for terminals, batch logs and notebooks alike."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fer_lib.engine import Block
from fer_lib.methods import steers_signs


def follow(blocks: Iterable[Block], say: Callable[[str], None], seconds: float = 5.) -> Iterator[Block]:
    """Pass blocks on and `say` a line for the first, every `seconds` and the last of each run.

    The line: step, epoch, loss of the latest block, validation macro-F1, steps with a sign flip, speed, time left.
    """
    seen: dict[int, dict] = {}
    said = -math.inf
    started = time.monotonic()
    for block in blocks:
        facts = seen.setdefault(block.run, {"f1": math.nan, "flips": 0, "images": 0, "from": block.first_step,
                                             "loss": math.nan, "eager": ""})
        if block.eager and not facts["eager"]:
            facts["eager"] = block.eager
            say(f"slower than it could be: {block.eager}")
        facts["flips"] += int(np.any(block.turned_negative + block.turned_positive > 0, axis=1).sum())
        facts["images"] += block.images
        for v in block.evaluations:
            if (v.split, v.mode) == ("val", "trained"):
                facts["f1"] = v.scores.macro_f1
        facts["loss"] = float(np.mean(block.loss)) if len(block.loss) else facts["loss"]
        if block.last or time.monotonic() - said >= seconds:
            said = time.monotonic()
            say(line(block, facts, said - started, len(seen)))
        yield block


def line(block: Block, facts: dict, elapsed: float, runs: int) -> str:
    """`step 96/300 · epoch 4/12 · loss 1.43 · val F1 0.31 · 5 flips · 1,200 images/s · 6 s left`"""
    total = block.steps_per_epoch * block.experiment.epochs
    done = block.last_step - facts["from"] + 1
    flips = facts["flips"] or steers_signs(block.experiment.method)
    parts = [f"step {block.last_step}/{total}", f"epoch {block.epoch}/{block.experiment.epochs}",
             f"loss {facts['loss']:.3f}",
             "" if math.isnan(facts["f1"]) else f"val macro-F1 {facts['f1']:.3f}",
             f"{facts['flips']} step{'s' * (facts['flips'] != 1)} with a flip" if flips else "",
             f"{facts['images'] / elapsed:,.0f} images/s",
             f"{elapsed * (total - block.last_step) / max(done, 1):.0f} s left" if total > block.last_step
             else f"{elapsed:.0f} s"]
    name = [f"{block.experiment.label} seed {block.experiment.seed}"] if runs > 1 else []
    return " · ".join([*name, *filter(None, parts)])
