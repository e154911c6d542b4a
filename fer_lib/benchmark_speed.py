"""How fast does training run here? python -m fer_lib.benchmark_speed [--out speed.json] [--packed DIR]

Every figure is measured in one process and reported as a ratio to what stands beside it: the plain loop as people write
it (DataLoader workers, PIL transforms, `.item()` each step; also with tensor transforms, and timm's where it is
installed), the engine without and with recorded and compiled steps, many runs at once, AutoReLU against ReLU, images
that stream against images on the device, small sets against large ones. Images are noise but for --packed, a packed
data set that is trained resident and streamed.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from fer_lib.data import DataError, PackedDataset, Split, open_packed
from fer_lib.engine import Learner, Precision, build_optimizer, choose_device, train
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.files import RecordError, write_json
from fer_lib.models import build_model
from fer_lib.runs import processor_name
from fer_lib.time_profile import profile_steps

CLASSES = 7


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio: to what `against` names. target: as the project's design states it, set before any
    measurement; `floor` says that the ratio must be at least that, else at most. seconds: a step, or None.
    """

    section: str
    figure: str
    ratio: float
    against: str
    target: float | None = None
    floor: bool = True
    seconds: float | None = None
    images_per_second: float | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if (self.ratio >= self.target) == self.floor or self.ratio == self.target else "missed"


def random_faces(n: int, side: int, held_out: int = 64) -> PackedDataset:
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


def _loader(e: Experiment, data: PackedDataset, pil: bool, device: torch.device) -> DataLoader:
    return DataLoader(Pictures(data.splits["train"], pil), e.batch_size, shuffle=True, drop_last=True,
                      num_workers=min(12, os.cpu_count() or 1), pin_memory=device.type == "cuda",
                      persistent_workers=True)


def _timed(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Seconds a step, after ten."""
    for k in range(10):
        step(k)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for k in range(steps):
        step(k)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / steps


def plain_loop(e: Experiment, data: PackedDataset, device: torch.device, steps: int, pil: bool = True) -> float:
    """Seconds a step of the loop as people write it: DataLoader workers, one kernel at a time, `.item()` each step."""
    return _timed(plain_step(e, data, device, pil), steps, device)


def plain_step(e: Experiment, data: PackedDataset, device: torch.device, pil: bool = True) -> Callable[[int], float]:
    """That loop's body."""
    model = build_model(num_classes=CLASSES).to(device).train()
    optimizer = build_optimizer(e, model)
    batches = itertools.chain.from_iterable(itertools.repeat(_loader(e, data, pil, device)))

    def step(k: int) -> float:
        x, label = next(batches)
        loss = F.cross_entropy(model(x.to(device, non_blocking=True)), label.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


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


def timm_loop(e: Experiment, data: PackedDataset, device: torch.device, steps: int) -> float:
    """Seconds a step of timm's training recipe: its ResNet-18 and optimiser, channels_last, autocast, its loss meter's
    `.item()` each 50 steps. Raises ImportError where timm is not installed.
    """
    timm, optim = (importlib.import_module(name) for name in ("timm", "timm.optim"))    # no dependency of this project
    side = data.image[1]
    model = timm.create_model("resnet18", num_classes=CLASSES, in_chans=1).to(device, memory_format=torch.channels_last)
    optimizer = optim.create_optimizer_v2(model, opt="adam", lr=e.lr, weight_decay=e.weight_decay)
    loader = _loader(e, data, pil=False, device=device)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    assert side == next(batches)[0].shape[-1]

    def step(k: int) -> None:
        x, label = (v.to(device, non_blocking=True) for v in next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=e.precision == "bf16"):
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if k % 50 == 0:
            loss.item()

    return _timed(step, steps, device)


def steps(e: Experiment, data: PackedDataset, device: torch.device, many: list[int], stretches: int,
          compile_step: bool) -> Iterator[Row]:
    """The plain loops, the engine eager, recorded and compiled, and several runs at once."""
    section = f"{data.image[1]} px, batch {e.batch_size}, {e.precision.replace('auto', 'default precision')}"
    Precision("auto", device).apply()                   # torch's own default: TF32 in convolutions
    plain = plain_loop(e, data, device, 60)
    loops = {"plain loop": plain, "plain loop, tensor transforms": plain_loop(e, data, device, 60, pil=False)}
    try:
        loops["timm's recipe"] = timm_loop(e, data, device, 60)
    except ImportError:
        print("  (timm is not installed: its recipe is left out)")
    rate = lambda s, n=1: n * e.batch_size / s                                              # noqa: E731
    for name, seconds in loops.items():
        yield Row(section, name, plain / seconds, "plain loop", None, True, seconds, rate(seconds))
    images: dict = {}
    learner = lambda k, way: Learner(                                                       # noqa: E731
        replace(e, seed=k, compile_step="on" if way == "compiled" else "off"), data, device, None, way != "eager",
        images)
    strides, counts = {"eager": Stride([learner(0, "eager")])}, {"eager": 1}
    for way in (["recorded"] + ["compiled"] * compile_step) * (device.type == "cuda"):
        for n in (1, *many):
            name = f"{way}, {n} runs at once" if n > 1 else f"{way} step, one run"
            strides[name], counts[name] = Stride([learner(k, way) for k in range(n)]), n
    for name, seconds in side_by_side(strides, stretches).items():
        n = counts[name]
        target = None if name == "eager" else 8. if n == 1 else 25. if n == max(many) else None
        yield Row(section, name, n * plain / seconds, "plain loop", target, True, seconds, rate(seconds, n))


def activation(e: Experiment, data: PackedDataset, device: torch.device, stretches: int,
               compile_step: bool) -> Iterator[Row]:
    """Step time with AutoReLU after each block's bn1, over ReLU's: by itself, and the whole method."""
    images: dict = {}
    way = "compiled" if compile_step else "recorded" if device.type == "cuda" else "eager"
    section = (f"AutoReLU, {data.image[1]} px, batch {e.batch_size}, "
               f"{e.precision.replace('auto', 'default precision')}, {way}")

    def learner(method: str, gradient: str = "literal", bare: bool = False) -> Learner:
        made = Learner(replace(e, method=method, w_gradient=gradient, compile_step="on" if compile_step else "off"),
                       data, device, None, True, images)
        if bare:                                        # no re-initialisation, no log of w and signs
            made.method.before_forward = lambda step, epoch: None
            made.log.sign_sizes, made.log.w = [], made.log.w[:, :0]
        return made

    def unfused(on: bool) -> None:
        activations.FUSED = not on

    strides = {"ReLU": Stride([learner("baseline")]), "ReLU again": Stride([learner("baseline")])}
    # where literal is unfused it is not compiled either: nothing new to measure
    for gradient in ("exact", "literal") if not compile_step or _literal_is_fused(e, data) else ("exact",):
        strides[gradient] = Stride([learner("dynamic", gradient, bare=True)])
        if not compile_step:
            strides |= {f"{gradient}, whole method": Stride([learner("dynamic", gradient)])} | (
                {f"{gradient}, unfused": Stride([learner("dynamic", gradient, bare=True)], unfused)}
                if device.type == "cuda" else {})
    limits = {"exact": 1.02, "literal": 1.05} if device.type == "cuda" else {"exact": 1.3, "literal": 1.3}
    seconds = side_by_side(strides, stretches)
    for name, s in seconds.items():
        yield Row(section, name, s / seconds["ReLU"], "ReLU", limits.get(name), False, s)


def _literal_is_fused(e: Experiment, data: PackedDataset) -> bool:
    """Whether the kernels cover the first site, which has a quarter of the image's side."""
    from fer_lib.fused import SUMMED  # late: it needs Triton

    return e.batch_size * (data.image[1] // 4) ** 2 <= SUMMED


def streaming(e: Experiment, data: PackedDataset, device: torch.device, seconds: float, rounds: int) -> Iterator[Row]:
    """Images a second of `train` with images from the disk, over images on the device, in alternation."""
    gigabytes = len(data.splits["train"]) * math.prod(data.image) / 1e9
    section = f"{gigabytes:.2g} GB at {data.image[1]} px, batch {e.batch_size}, {e.precision}"
    rates: dict[str, list[float]] = {"device": [], "disk": []}
    for _ in range(rounds):
        for place, found in rates.items():
            found.append(_rate(replace(e, image_place=place), data, device, seconds))
    resident, streamed = (statistics.median(found) for found in rates.values())
    yield Row(section, "images on the device", 1., "images on the device", None, True, e.batch_size / resident,
              resident)
    yield Row(section, "images from the disk", streamed / resident, "images on the device", .9, True,
              e.batch_size / streamed, streamed)


def _rate(e: Experiment, data: PackedDataset, device: torch.device, seconds: float) -> float:
    """Images a second of one run as `train` hands it out, over that time, after a second of warm-up."""
    started, images, begun = time.perf_counter(), 0, None
    for block in train([(e, data)], device):
        now = time.perf_counter()
        if begun is None:
            begun = now if now - started > 1. and block.first_step > 300 else None
            continue
        images += block.images
        if now - begun > seconds:
            break
    return images / (now - begun)


def linear(e: Experiment, device: torch.device, sizes: list[int], presented: int) -> Iterator[Row]:
    """Time an image of `train`, evaluations included, for data sets of these sizes; the first stands for 1."""
    found: dict[int, float] = {}
    for n in sizes:
        data, epochs = random_faces(n, 48), 1 + max(1, round(presented / n))
        started, images = None, 0
        for block in train([(replace(e, epochs=epochs), data)], device):
            if started is not None:
                images += block.images
            elif block.epoch > 1 or epochs == 2 and block.first_step > 300:
                started = time.perf_counter()           # after the first epoch, or the first steps of a long one
        found[n] = (time.perf_counter() - started) / images
    for n, seconds in found.items():
        ratio = seconds / found[sizes[0]]
        yield Row("time an image, by the size of the data set", f"{n:,} images", ratio, f"{sizes[0]:,} images",
                  1.1 if n != sizes[0] else None, False, seconds * e.batch_size, 1 / seconds)


def handed_out(e: Experiment, data: PackedDataset, device: torch.device, runs: int) -> Iterator[Row]:
    """Images a second of `train` with its blocks and evaluations, after the first epoch of all runs."""
    done, started = 0, 0.
    for block in train([(replace(e, seed=k, epochs=3), data) for k in range(runs)], device):
        done += block.images
        if block.epoch == 1:
            started, done = time.perf_counter(), 0
    seconds = time.perf_counter() - started
    yield Row(f"as handed out by train, {e.precision.replace('auto', 'default precision')}", f"{runs} runs", 1.,
              "itself", None, True, runs * e.batch_size * seconds / done, done / seconds)


def profiles(e: Experiment, data: PackedDataset, device: torch.device) -> dict:
    """Where a step's time goes (fer_lib.time_profile): before, in the plain loop, and after, recorded and compiled."""
    step = plain_step(e, data, device)
    found = {"plain loop": profile_steps(lambda: step(0), 20)}
    for way in ("recorded", "compiled"):
        for method in ("baseline", "dynamic"):
            for precision in ("auto", "bf16"):
                if way == "compiled" and (method, precision) != ("baseline", "bf16"):
                    continue
                one = Learner(replace(e, method=method, precision=precision,
                                      compile_step="on" if way == "compiled" else "off"), data, device)
                Stride([one]).stretch()
                one.begin()
                found[f"{way}, {method}, {Precision(precision, device).name}"] = profile_steps(one.advance, 20)
    return found


def environment(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "torch": torch.__version__, "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda, "python": sys.version.split()[0], "cpu_count": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


MOST = 1000
PARTS = ("steps", "activations", "trained", "streaming", "sizes", "profile")


def measure(device: torch.device, many: list[int], stretches: int, packed: Path | None,
            parts: Sequence[str] = PARTS) -> Iterator[Row]:
    """The rows, one after the other."""
    cuda = device.type == "cuda"
    endless = Experiment(epochs=100_000)
    small = random_faces(64 * (448 if cuda else 6), 48)
    if "steps" in parts:
        for precision in ("auto", "bf16") if cuda else ("auto",):
            yield from steps(replace(endless, precision=precision), small, device, many, stretches, cuda)
    if "activations" in parts:
        for compile_step in (False, True) if cuda else (False,):
            yield from activation(endless, small, device, stretches, compile_step)
        large, e = random_faces(4096, 112), replace(endless, batch_size=512, precision="bf16")
        for compile_step in (False, True) if cuda else ():
            yield from activation(e, large, device, stretches, compile_step)
    if "trained" in parts and cuda:
        for n in (1, max(many)):
            yield from handed_out(Experiment(precision="bf16"), small, device, n)
    if "streaming" in parts and cuda:
        yield from streaming(replace(endless, precision="bf16"), random_faces(300_000, 48), device, 4., 3)
        if packed:
            e = replace(endless, batch_size=512, precision="bf16")
            yield from streaming(e, open_packed(packed), device, 8., 2)
    if "sizes" in parts and cuda:
        yield from linear(Experiment(precision="bf16"), device, [5_000, 30_000, 300_000], 300_000)


def line(row: Row) -> str:
    seconds = "" if row.seconds is None else f"{1e3 * row.seconds:10.3f} ms"
    rate = "" if row.images_per_second is None else f"{row.images_per_second:12,.0f} images/s"
    target = "" if row.target is None else f"target {'>=' if row.floor else '<='} {row.target:g}: {row.verdict}"
    return f"  {row.figure:<32}{seconds:>13}{rate:>22}{row.ratio:9.3f} x {row.against:<16} {target}".rstrip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.benchmark_speed", description=__doc__.split("\n\n")[1])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runs", default="24", help="numbers of runs at once, joined by commas")
    parser.add_argument("--stretches", type=int, default=3, help="timed stretches of steps for each figure")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, joined by commas (default: all)")
    parser.add_argument("--packed", type=Path, help="a packed data set to train resident and streamed")
    parser.add_argument("--out", type=Path, help="write the figures as JSON there")
    args = parser.parse_args(argv)
    try:
        device = choose_device(args.device)
        many = [int(n) for n in args.runs.split(",")]
        if args.packed:
            open_packed(args.packed)
    except (ParameterError, DataError) as error:
        print(f"benchmark_speed: {error}", file=sys.stderr)
        return 2
    except ValueError:
        many = []
    parts = args.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    wrong = (f"--runs takes whole numbers from 1 to {MOST} joined by commas, not '{args.runs}'"
             if not many or not all(1 <= n <= MOST for n in many) else
             f"--stretches takes a whole number from 1 to {MOST}, not {args.stretches}"
             if not 1 <= args.stretches <= MOST else
             f"--parts has an unknown part '{unknown[0]}' (choose from {', '.join(PARTS)})" if unknown else
             f"'{args.out}' is there and holds something else: name another file for --out"
             if args.out and os.path.exists(args.out) and not _own(args.out) else "")
    if wrong:
        print(f"benchmark_speed: {wrong}", file=sys.stderr)
        return 2
    try:
        _report(device, many, args.stretches, args.packed, parts, args.out)
    except RecordError as error:
        print(f"benchmark_speed: {error}", file=sys.stderr)
        return 2
    return 0


def _own(path: Path) -> bool:
    """Whether this is what `--out` wrote before."""
    try:
        return {"environment", "stretches", "rows"} <= set(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return False


def _report(device: torch.device, many: Sequence[int], stretches: int, packed: Path | None, parts: Sequence[str],
            out: Path | None) -> None:
    """Print each figure when it is measured; `out` holds those so far. Raises RecordError, at once where it can't be
    written at all.
    """
    torch.backends.cudnn.benchmark = True
    facts, section = environment(device), ""
    found: dict[str, object] = {"environment": facts, "stretches": stretches, "rows": (rows := [])}

    def keep() -> None:
        if out:
            write_json(out, found)

    keep()
    print(", ".join(f"{k} {v}" for k, v in facts.items()))
    for row in measure(device, many, stretches, packed, parts):
        if row.section != section:
            section = row.section
            print(section)
        print(line(row), flush=True)
        rows.append({**asdict(row), "verdict": row.verdict})
        keep()
    if device.type == "cuda" and "profile" in parts:
        found["profile"] = profiles(Experiment(epochs=100_000), random_faces(64 * 448, 48), device)
        for name, one in found["profile"].items():
            print(f"  {name}: {one['step_us']:,.0f} us a step, GPU busy {one['busy_us']:,.0f} us in "
                  f"{one['kernels']:.0f} kernels: " + ", ".join(f"{k} {v:.0f}" for k, v in one["by_kind"].items()))
        keep()
    judged = [row for row in rows if row["verdict"]]
    print(f"{sum(row['verdict'] == 'met' for row in judged)} of {len(judged)} targets met")


if __name__ == "__main__":
    sys.exit(main())
