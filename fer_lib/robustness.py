"""How finished runs stand corrupted images, and how far their confidence can be trusted (claim C16):

    python -m fer_lib.robustness runs/STUDY

The kept weights of each finished run below the folder (those of the chosen epoch, as trained) classify the test split
as it is and under each of fer_lib.corruptions. Into the run's directory goes

    robustness.parquet    a row for each corruption: kind ("none": the split as it is), severity (0: the same), n,
                          macro_f1, accuracy, nll, ece, brier, version of the corruptions

which fer_lib.records reads and exports with the other tables. What is done already is skipped.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lib.activations import AutoReLU
from fer_lib.corruptions import KINDS, SEVERITIES, VERSION, corrupted
from fer_lib.data import DataError, DeviceSplit, PackedDataset, open_packed
from fer_lib.engine import Precision, choose_device, fast_layout
from fer_lib.experiment import Experiment, ParameterError
from fer_lib.files import MEASURE_AGAIN, RecordError, read_json, reading, results_below, write_table
from fer_lib.metrics import confusion_matrix, scores
from fer_lib.predict import load_trained
from fer_lib.workspace import Workspace, find_workspace

FILE = "robustness.parquet"
BINS = 15               # of confidence (Guo et al. 2017)
SETS = [("none", 0), *((kind, severity) for kind in KINDS for severity in SEVERITIES)]
SETS_BYTES = 2 ** 31    # of corrupted images that are kept at a time, on the device
BATCH_PIXELS = {"cuda": 2 ** 22, "cpu": 2 ** 19}


def calibration_error(p: Tensor, label: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: the mean over bins m of |accuracy - confidence|, weighted by their images.

    ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|, where B_m holds the images whose largest probability is in
    ((m - 1) / bins, m / bins] (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3). p (N, K), label
    (N,).
    """
    confidence, prediction = p.double().max(1)
    bin = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = F.one_hot(bin, bins).double().T @ ((prediction == label).double() - confidence)
    return float(gap.abs().sum() / len(p))


def brier_score(p: Tensor, label: Tensor) -> float:
    """The mean over images of sum_k (p_k - [k = label])^2, from 0 to 2 (Brier 1950). p (N, K), label (N,)."""
    return float((p.double() - F.one_hot(label, p.shape[1])).square().sum(1).mean())


def measures(logits: Tensor, label: Tensor) -> dict[str, float]:
    """A row's numbers, from logits (N, K)."""
    logits = logits.double()
    found = scores(confusion_matrix(logits.argmax(1), label, logits.shape[1]).cpu().numpy(),
                   float(F.cross_entropy(logits, label)))
    p = logits.softmax(1)
    return {"n": found.n, "macro_f1": found.macro_f1, "accuracy": found.accuracy, "nll": found.loss,
            "ece": calibration_error(p, label), "brier": brier_score(p, label)}


@dataclass(frozen=True)
class Finished:
    """A finished run's directory and the experiment in it."""

    path: Path
    head: dict
    data_hash: str
    data: str

    @property
    def done(self) -> bool:
        """Whether it was measured with the corruptions of this version."""
        if not (self.path / FILE).exists():
            return False
        with reading(self.path / FILE, MEASURE_AGAIN):
            return set(pd.read_parquet(self.path / FILE)["version"]) == {VERSION}


def finished_runs(folder: Path) -> list[Finished]:
    """Those below the folder that no reader steered. Raises RecordError where there are none."""
    found = []
    for path in results_below(folder):
        result = read_json(path)
        with reading(path):
            finished = result["status"] == "finished" and not result["steered"]
        if finished:
            head = read_json(path.parent / "experiment.json")
            with reading(path.parent / "experiment.json"):
                found.append(Finished(path.parent, head, head["data_hash"], head["experiment"]["data"]))
    if not found:
        raise RecordError(f"no finished run below '{folder}': name a folder of runs, such as runs/quick")
    return found


def evaluate_runs(runs: Sequence[Finished], workspace: Workspace, device: torch.device,
                  say: Callable[[str], None]) -> dict[Path, str]:
    """Measure the runs and write their tables; by directory, why some could not be."""
    failed: dict[Path, str] = {}
    groups: dict[tuple[str, str], list[Finished]] = {}
    for run in runs:
        groups.setdefault((run.data_hash, run.data), []).append(run)
    for (data_hash, name), members in groups.items():
        try:
            data = open_packed(workspace.data_path(name))
            if data.hash != data_hash:
                raise DataError(f"'{name}' holds other images than these runs were trained on: pack that data again")
            if "test" not in data.splits:
                raise DataError(f"'{name}' has no test split")
        except DataError as error:
            failed |= {run.path: str(error) for run in members}
            continue
        for run, table in _tables(members, data, device, failed):
            write_table(run.path / FILE, table)
            by_kind = table.groupby(table["kind"] == "none")["macro_f1"].mean()
            say(f"{run.path.name}: macro-F1 {by_kind[True]:.3f}, corrupted {by_kind[False]:.3f}, ECE "
                f"{table['ece'].iloc[0]:.3f}")
    return failed


def _tables(runs: Sequence[Finished], data: PackedDataset, device: torch.device,
            failed: dict[Path, str]) -> Iterator[tuple[Finished, pd.DataFrame]]:
    """The runs' tables as they get ready: with the last part of the corrupted sets, usually the only one."""
    images = torch.from_numpy(data.splits["test"].images)
    rows: dict[Path, list[dict]] = {run.path: [] for run in runs}
    most = max(1, SETS_BYTES // images.nbytes)
    for start in range(0, len(SETS), most):
        part = SETS[start:start + most]
        seen = torch.cat([(corrupted(images, *one) if one[1] else images).to(device) for one in part])
        for run in runs:
            if run.path in failed:
                continue
            try:
                found = _evaluated(run, data, seen, device)
            except (RecordError, ParameterError) as error:
                failed[run.path] = str(error)
                continue
            rows[run.path] += [{"kind": kind, "severity": severity, **row} for (kind, severity), row in
                               zip(part, found, strict=True)]
            if len(rows[run.path]) == len(SETS):
                yield run, pd.DataFrame(rows.pop(run.path)).assign(version=VERSION)


@torch.no_grad()
def _evaluated(run: Finished, data: PackedDataset, seen: Tensor, device: torch.device) -> list[dict[str, float]]:
    """The run's measures on consecutive test splits, uint8 (sets * N, C, H, W) on the device."""
    model, head = load_trained(run.path)
    e = Experiment.from_mapping(head["experiment"])
    use_evaluated_w(model, e)
    precision = Precision(e.precision, device)
    precision.apply()
    layout = fast_layout(model, device)
    model = model.to(device, precision.dtype).to(memory_format=layout)
    test = data.splits["test"]
    split = DeviceSplit(test, data.manifest, e, device, precision.dtype, {id(test): seen})     # placed already
    logits = []
    for batch in seen.split(max(1, BATCH_PIXELS[device.type] // (seen.shape[-1] * seen.shape[-2]))):
        with precision.autocast():
            logits.append(model(split.normalised(batch).contiguous(memory_format=layout)))
    return [measures(one, split.labels) for one in torch.cat(logits).split(len(split))]


def use_evaluated_w(model: nn.Module, e: Experiment) -> None:
    """With w_eval "raw" the chosen epoch was evaluated with w as the optimiser had left it: take that one.

    Raises RecordError where it isn't among the weights.
    """
    units = [m for m in model.modules() if isinstance(m, AutoReLU)]
    if units and e.w_eval == "raw":
        if e.w_gradient == "modelled":
            raise RecordError("the modelled w of a run with w_eval 'raw' is not kept with its weights: train it with "
                              "w_eval 'shared'")
        for unit in units:
            unit.w_forward.copy_(unit.w)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fer_lib.robustness", description="Measure finished runs under "
                                     "corruptions of the test split, and their calibration.")
    parser.add_argument("runs", type=Path, help="a folder of runs, such as runs/quick, or one run's directory")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    args = parser.parse_args(argv)
    say = lambda text: print(text, flush=True)                                              # noqa: E731
    try:
        device, runs = choose_device(args.device), finished_runs(args.runs)
        todo = [run for run in runs if args.again or not run.done]
        say(f"{len(runs)} finished runs, {len(runs) - len(todo)} measured before, {len(todo)} to measure")
        failed = evaluate_runs(todo, find_workspace(), device, say)
    except (RecordError, ParameterError) as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustness: interrupted; what was measured is kept, start the same command again to go on",
              file=sys.stderr)
        return 130
    for path, sentence in failed.items():
        print(f"robustness: {path.name}: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
