"""How fast does training run here? python -m fer_lib.benchmark_speed [--out speed.json]

Every figure is measured in one process on random images, and reported as a ratio to what stands beside it: the plain
loop as people write it, the engine without and with captured steps, many runs at once, AutoReLU against ReLU.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fer_lib import activations
from fer_lib.data import PackedDataset, Split
from fer_lib.engine import Learner, build_optimizer, choose_device, train
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.files import write_json
from fer_lib.models import build_model
from fer_lib.runs import processor_name

CLASSES = 7
# figure -> (target, whether it is a floor or a ceiling), as stated in the project's design before any measurement
TARGETS = {"captured": (8., ">="), "many": (25., ">="), "exact": (1.02, "<="), "literal": (1.05, "<=")}


def random_faces(n: int, side: int, held_out: int = 512) -> PackedDataset:
    """A packed data set of noise, in memory: what a step costs doesn't depend on what the images show."""
    rng = np.random.default_rng(0)
    splits = {name: Split(rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8),
                          pd.DataFrame({"label": rng.integers(0, CLASSES, count)}))
              for name, count in (("train", n), ("val", held_out), ("test", held_out))}
    manifest = {"name": "noise", "classes": [str(k) for k in range(CLASSES)], "content_sha256": "",
                "image": {"channels": 1, "height": side, "width": side},
                "normalization": {"mean": [.5], "std": [.29]}}
    return PackedDataset(Path("noise"), manifest, splits)


class Pictures(Dataset):
    """One image an index, through transforms: `pil` as PIL images, else as tensors (torchvision's v2)."""

    def __init__(self, split: Split, pil: bool):
        self.images, self.labels, self.pil = split.images, split.samples["label"].to_numpy(), pil
        first = [] if not pil else [v2.ToImage()]
        self.transform = v2.Compose([*first, v2.ToDtype(torch.float32, scale=True), v2.Normalize([.5], [.29])])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[k][0]) if self.pil else torch.from_numpy(self.images[k])
        return self.transform(image), int(self.labels[k])


def plain_loop(e: Experiment, data: PackedDataset, device: torch.device, steps: int, pil: bool = True) -> float:
    """Seconds a step of the loop as people write it: DataLoader workers, one kernel at a time, `.item()` each step."""
    loader = DataLoader(Pictures(data.splits["train"], pil), e.batch_size, shuffle=True, drop_last=True,
                        num_workers=min(12, os.cpu_count() or 1), pin_memory=device.type == "cuda",
                        persistent_workers=True)
    model = build_model(num_classes=CLASSES).to(device).train()
    optimizer = build_optimizer(e, model)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> float:
        x, label = next(batches)
        loss = F.cross_entropy(model(x.to(device, non_blocking=True)), label.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(10):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


class Stride:
    """Learners that advance side by side, timed a stretch of steps at a time."""

    def __init__(self, learners: list[Learner], setting: Callable[[bool], None] = lambda on: None):
        self.learners, self.setting, self.seconds = learners, setting, []

    def stretch(self) -> float:
        """Seconds a step of all, over one stretch (a block's steps)."""
        self.setting(True)
        planned = min(learner.begin() for learner in self.learners)
        self.wait()
        started = time.perf_counter()
        for _ in range(planned):
            for learner in self.learners:
                learner.advance()
        self.wait()
        self.setting(False)
        return (time.perf_counter() - started) / planned

    def wait(self) -> None:
        for learner in self.learners:
            learner.lane.wait()


def side_by_side(strides: dict[str, Stride], stretches: int) -> dict[str, float]:
    """Median seconds a step by name, measured in alternation, after a stretch of warm-up each."""
    for stride in strides.values():
        stride.stretch()
    for _ in range(stretches):
        for stride in strides.values():
            stride.seconds.append(stride.stretch())
    return {name: statistics.median(stride.seconds) for name, stride in strides.items()}


def steps(e: Experiment, data: PackedDataset, device: torch.device, many: list[int], stretches: int) -> dict:
    """The plain loops, the engine eager and captured, and several captured runs: seconds a step, images a second."""
    images: dict = {}
    learner = lambda k, capture=True: Learner(  # noqa: E731
        Experiment(**{**vars(e), "seed": k}), data, device, None, capture, images)
    seconds = {"plain": plain_loop(e, data, device, 60), "plain, tensors": plain_loop(e, data, device, 60, pil=False)}
    strides = {"eager": Stride([learner(0, False)])}
    if device.type == "cuda":
        strides |= {"captured": Stride([learner(0)])} | {
            f"{n} runs": Stride([learner(k) for k in range(n)]) for n in many}
    seconds |= side_by_side(strides, stretches)
    runs = {name: len(strides[name].learners) if name in strides else 1 for name in seconds}
    return {name: {"ms": 1e3 * s, "images_per_second": runs[name] * e.batch_size / s,
                   "ratio": runs[name] * seconds["plain"] / s} for name, s in seconds.items()}


def handed_out(e: Experiment, data: PackedDataset, device: torch.device, runs: int) -> dict:
    """Images a second of `train` with its blocks and evaluations, from the second epoch on."""
    done, started = 0, 0.
    for block in train([(Experiment(**{**vars(e), "seed": k, "epochs": 3}), data) for k in range(runs)], device):
        done += block.images if started else 0
        if block.epoch == 2 and not started:
            started, done = time.perf_counter(), 0
    seconds = time.perf_counter() - started
    return {"runs": runs, "images_per_second": done / seconds}


def activation(e: Experiment, data: PackedDataset, device: torch.device, stretches: int) -> dict:
    """Step time with AutoReLU after each block's bn1, over ReLU's: bare (nothing but the activation) and whole."""
    images: dict = {}

    def learner(method: str, gradient: str = "literal", bare: bool = False) -> Learner:
        made = Learner(Experiment(**{**vars(e), "method": method, "w_gradient": gradient}), data, device, None, True,
                       images)
        if bare:                                        # no re-initialisation, no log of w and signs
            made.method.before_forward = lambda step, epoch: None
            made.log.sign_sizes, made.log.w = [], made.log.w[:, :0]
        return made

    def unfused(on: bool) -> None:
        activations.FUSED = not on

    strides = {"ReLU": Stride([learner("baseline")]), "ReLU again": Stride([learner("baseline")])}
    for gradient in ("literal", "exact"):
        strides |= {gradient: Stride([learner("dynamic", gradient, bare=True)]),
                    f"{gradient}, unfused": Stride([learner("dynamic", gradient, bare=True)], unfused),
                    f"{gradient}, whole method": Stride([learner("dynamic", gradient)])}
    seconds = side_by_side(strides, stretches)
    return {name: {"ms": 1e3 * s, "ratio": s / seconds["ReLU"]} for name, s in seconds.items()}


def environment(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "torch": torch.__version__, "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda, "python": sys.version.split()[0], "cpu_count": os.cpu_count()}


def measure(device: torch.device, many: list[int], stretches: int) -> Iterator[tuple[str, dict]]:
    """(section, figures), one after the other."""
    small, large = random_faces(64 * (448 if device.type == "cuda" else 6), 48), random_faces(4096, 112)
    yield "AutoReLU, 48 px, batch 64", activation(Experiment(epochs=100_000), small, device, stretches)
    if device.type == "cuda":
        e = Experiment(epochs=100_000, batch_size=512, precision="bf16")
        yield "AutoReLU, 112 px, batch 512, bf16", activation(e, large, device, stretches)
    for precision in ("auto", "bf16"):
        e = Experiment(epochs=100_000, precision=precision)
        yield f"48 px, batch 64, {precision}", steps(e, small, device, many, stretches)
    for runs in [1, max(many)] if device.type == "cuda" else [1]:
        yield f"as handed out, {runs} runs", handed_out(Experiment(), small, device, runs)


def show(section: str, figures: dict) -> None:
    print(section)
    for name, values in figures.items():
        shown = values if isinstance(values, dict) else {name: values}
        target = TARGETS.get("many" if name.endswith(" runs") else name, (None, ""))
        verdict = "" if target[0] is None or "ratio" not in shown else f"   target {target[1]} {target[0]}"
        print(f"  {name:<24} " + "   ".join(f"{k} {v:,.4g}" for k, v in shown.items()) + verdict, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.benchmark_speed", description=__doc__.split("\n\n")[1])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runs", default="4,8,16", help="numbers of runs at once, joined by commas")
    parser.add_argument("--stretches", type=int, default=7, help="timed stretches of steps for each figure")
    parser.add_argument("--out", type=Path, help="write the figures as JSON there")
    args = parser.parse_args(argv)
    try:
        device = choose_device(args.device)
    except ParameterError as error:
        print(f"benchmark_speed: {error}", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    result: dict = {"environment": environment(device)}
    print(result["environment"])
    for section, figures in measure(device, [int(n) for n in args.runs.split(",")], args.stretches):
        result[section] = figures
        show(section, figures)
        if args.out:
            write_json(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
