"""How large is the rounding error that moves w? python -m fer_lib.calibrate RUN

Measures, on a finished run with the literal gradient, s = rms of dL/dw * |w| over elements and batches: the
`w_noise_scale` with which the modelled gradient, N(0, 1) * s / max(|w|, 1e-8), has the same size.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from fer_lib.activations import AutoReLU
from fer_lib.data import DataError, DeviceSplit, epoch_order, open_packed
from fer_lib.engine import Precision, choose_device
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.files import RecordError
from fer_lib.models import sites
from fer_lib.predict import load_trained
from fer_lib.workspace import find_workspace


def noise_scale(run: Path, packed: Path, device: torch.device, batches: int = 50) -> dict[str, float]:
    """s by site, and over all elements of all sites under "all". Nothing is trained: each batch sees the same weights.

    Raises RecordError where the run has no AutoReLU with the literal gradient, or was made from other data.
    """
    model, head = load_trained(run)
    e, data = Experiment.from_mapping(head["experiment"]), open_packed(packed)
    units = {name: site.act for name, site in sites(model).items() if isinstance(site.act, AutoReLU)}
    if not units or e.w_gradient != "literal":
        raise RecordError(f"'{run.name}' has no AutoReLU with the literal gradient: calibrate on a dynamic run")
    if data.hash != head["data_hash"]:
        raise RecordError(f"'{run.name}' was trained on other data than '{packed.name}' holds: pack that data again")
    precision = Precision(e.precision, device)
    split = DeviceSplit(data.splits["train"], data.manifest, e, device, precision.dtype)
    model.to(device, precision.dtype).train()
    precision.apply()
    with torch.no_grad():
        for unit in units.values():
            unit.w.copy_(unit.w_forward)
    squares = {name: torch.zeros(unit.w.numel(), dtype=torch.float64, device=device) for name, unit in units.items()}
    order = epoch_order(e, split.labels.cpu(), epoch=1)[:batches].to(split.images.device)
    for index in order:
        model.zero_grad()
        with precision.autocast():
            logits = model(split.batch(index))
        F.cross_entropy(logits.to(precision.dtype), split.labels[index.to(device)]).backward()
        for name, unit in units.items():
            squares[name] += (unit.w.grad * unit.w.detach().abs()).double().flatten().square()
    squares["all"] = torch.cat(list(squares.values()))
    return {name: float((s / len(order)).mean().sqrt()) for name, s in squares.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.calibrate", description=__doc__.split("\n\n")[1])
    parser.add_argument("run", type=Path, help="directory of a finished dynamic run, below runs/")
    parser.add_argument("--data", help="the packed data it was trained on (default: as recorded)")
    parser.add_argument("--batches", type=int, default=50, help="batches to average over")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    try:
        if args.batches < 1:
            raise ParameterError(f"--batches is at least 1, not {args.batches}")
        recorded = load_trained(args.run)[1]["experiment"]["data"]
        packed = find_workspace().data_path(args.data or recorded)
        found = noise_scale(args.run, packed, choose_device(args.device), args.batches)
    except (RecordError, DataError, ParameterError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    for name, s in found.items():
        print(f"{name:<16} {s:.2e}")
    print(f"use it: w_gradient = 'modelled', w_noise_scale = {found['all']:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
