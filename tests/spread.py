"""What each rank does in test_distributed.py, started by torchrun: spread.py TASK,TASK FOLDER [--cuda] [--rest]"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import Trained, make_data, make_experiment, short

from fer_lib import engine
from fer_lib.distributed import connect
from fer_lib.engine import Stopped
from fer_lib.runs import Run, record
from fer_lib.steering import Command, Steering
from fer_lib.world import World

# parts of unequal size in the evaluation, soft labels for those that use them
DATA = dict(sizes={"train": 32, "val": 17, "test": 15}, soft=True)
DYNAMIC = dict(method="dynamic", w0=0.003)
STEP = dict(flip_interval=3, flip_interval_unit="step")
CASES = {
    "baseline": dict(),
    "sgd, cosine": dict(optimizer="sgd", schedule="cosine", lr=0.05),
    "plateau": dict(schedule="plateau", schedule_epochs=1, lr=0.06, epochs=5),
    "dropout": dict(method="dropout"),
    "dropout, channels": dict(method="dropout", dropout_unit="channel", dropout_site="act1+head"),
    "periodic": dict(method="periodic", **STEP),
    "twin": dict(method="bn_negation", **STEP),
    "random flip": dict(method="random_flip"),
    "dynamic": dict(**DYNAMIC, w_gradient="exact"),
    "dynamic, element": dict(**DYNAMIC, w_gradient="exact", w_shape="element", w_mean="none", w_eval="raw"),
    "modelled": dict(method="dynamic", w0=0.002, w_gradient="modelled", w_noise_scale=1e-9, w_mean="none"),
    "combined": dict(method="dropout+dynamic", w0=0.003, w_gradient="exact", w_average_moments=True),
    "augmentation": dict(augment="flip+crop+erasing", balance="sampler"),
    "class weights": dict(balance="loss"),
    "class weights, smoothing": dict(balance="loss", label_smoothing=0.1),
    "soft labels": dict(labels="soft", balance="loss"),
    "noise and shake": dict(method="gaussian_noise+shakedrop"),
    "bn reset, share": dict(method="bn_reset", train_share=.6, balance="loss", epochs=4, **STEP),
    "shrink and perturb": dict(method="shrink_perturb", schedule="restarts", schedule_epochs=1, **STEP),
    "sampled labels": dict(labels="sampled", balance="loss"),
}
CASES = {name: {"precision": "fp64", **settings} for name, settings in CASES.items()}
# `make test` runs the others; these, whose code the others run too in part, are long tests
REST = ["dropout, channels", "twin", "dynamic, element", "class weights", "class weights, smoothing", "soft labels",
        "bn reset, share", "shrink and perturb", "sgd, cosine"]
# rounding itself: equal on the ranks, and near one process only at first
ROUNDED = {"baseline, fp32": dict(precision="fp32"), "literal": dict(**DYNAMIC, precision="fp32"),
           "bf16": dict(precision="bf16")}


def numbers(run: Trained) -> dict[str, np.ndarray]:
    """All that a run came to, by name."""
    found = {"loss": run.loss, "lr": run.lr, "w": run.w if run.blocks[0].w else np.zeros(0),
             "negative": np.concatenate([b.negative for b in run.blocks]), "macro_f1": np.array(run.macro_f1),
             "held_out_loss": np.array([v.scores.loss for b in run.blocks for v in b.evaluations]),
             "confusion": np.array([v.scores.confusion for b in run.blocks for v in b.evaluations])}
    return found | {f"model/{k}": v.cpu().numpy() for k, v in run.model.items() if "num_batches" not in k}


def device_of(world: World) -> torch.device:
    return torch.device("cuda", world.rank) if "--cuda" in sys.argv else torch.device("cpu")


def trained(world: World, **settings) -> Trained:
    e = make_experiment(**{"device": device_of(world).type, **settings})
    return Trained(list(engine.train([(e, make_data(**DATA))], device_of(world), world=world)))


def compare(world: World, folder: Path) -> None:
    rest = "--rest" in sys.argv
    for name, settings in (CASES | ROUNDED).items():
        if (name in REST) != rest:
            continue
        run = trained(world, **settings)
        np.savez(folder / f"{name} {world.rank}.npz", **numbers(run), first=[b.first_step for b in run.blocks],
                 eager=run.blocks[0].eager)


def resume(world: World, folder: Path) -> None:
    """Two records of one experiment: one in a go, one that rank 0's reader left twice."""
    e = make_experiment(method="dropout+dynamic", w0=0.003, epochs=2, augment="crop", device=device_of(world).type)
    for _ in record([Run(e, make_data(**DATA), folder / "whole")], device_of(world), world):
        pass
    for leave in (2, 3, None):                          # the second one in the second epoch
        blocks = record([Run(e, make_data(**DATA), folder / "parts")], device_of(world), world)
        try:
            for k, _ in enumerate(blocks):
                if world.rank == 0 and k == leave:
                    break
        except Stopped:
            assert world.rank and leave
        blocks.close()
        assert not world.any(False)


def stop(world: World, folder: Path) -> None:
    """SIGTERM on rank 1 alone, then a command on rank 0."""
    for case in ("signal", "steering"):
        steering, steps = Steering(), 0
        e = make_experiment(epochs=50, method="dropout", device=device_of(world).type)
        blocks = engine.train([(e, make_data(**DATA))], device_of(world), steering=[steering], world=world)
        with pytest.raises(Stopped):
            for block in blocks:
                steps = block.last_step
                if case == "signal" and world.rank == 1 and block.epoch == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                if case == "steering" and world.rank == 0 and block.epoch == 2 and not block.events:
                    for command in (Command("flip", "all"), Command("lr", value=0.5), Command("pause")):
                        steering.send(command)
                if case == "steering" and world.rank == 0 and steering.paused:
                    steering.send(Command("stop"))
        network = block.network
        signs = [s.forced.sign.item() for s in network.steerable().values() if s.forced]
        np.savez(folder / f"{case} {world.rank}.npz", steps=steps, taken=network.step, epoch=block.epoch, signs=signs,
                 lr=network.optimizer.param_groups[0]["lr"], **{k: v.cpu() for k, v in network.weights().items()})


def fail(world: World, folder: Path) -> None:
    """Rank 1 breaks within a step; rank 0 records."""
    e = make_experiment(epochs=100, checkpoint_seconds=0, device=device_of(world).type)
    for block in record([Run(e, make_data(**DATA), folder / "fail")], device_of(world), world):
        if world.rank == 1 and block.epoch == 3:
            (folder / "failing").touch()
            block.network.optimizer.step = lambda: 1 / 0


if __name__ == "__main__":
    short(pytest.MonkeyPatch())
    here = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device_of(here).type == "cuda":
        torch.cuda.set_device(device_of(here))
    connect(device_of(here), here)
    for task in sys.argv[1].split(","):
        {"compare": compare, "resume": resume, "stop": stop, "fail": fail}[task](here, Path(sys.argv[2]))
    dist.destroy_process_group()
