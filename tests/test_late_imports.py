"""What takes long to import and is not needed is not imported, is there for whoever asks, and changes nothing."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_data, write_packed
from test_engine import assert_same_bits, make_experiment, train_one

from fer_lib import engine, late_imports
from fer_lib.late_imports import unmarked, without_compiler, without_grammar

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
from collections import deque
from fer_lib.experiment import Experiment
from fer_lib.live import watch
from fer_lib.predict import load_trained
from fer_lib.runs import open_run, record
from fer_lib.workspace import find_workspace

for optimizer, method in (("adam", "dynamic"), ("adamw", "dropout+periodic"), ("sgd", "baseline")):
    run = open_run(Experiment(data="tiny", width=.05, batch_size=8, epochs=2, device="cpu", method=method,
                              optimizer=optimizer, checkpoint_seconds=0.), find_workspace())
    deque(record([run]), maxlen=0)
    load_trained(run.path)
print("loaded:", [m for m in sys.modules if m.startswith(("torch._dynamo", "torch._inductor", "rfc3987_syntax"))])

import torch
import torchvision
boxes = torch.tensor([[0., 0., 0., 4., 4.]])
pooled = torchvision.ops.roi_align(torch.ones(1, 2, 8, 8), boxes, 2)
torch.use_deterministic_algorithms(True)
print("pooled:", pooled.sum().item(), torchvision.ops.roi_align(torch.ones(1, 2, 8, 8), boxes, 2).sum().item())
print("asked:", sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"), "torch._dynamo" in sys.modules)
print("compiled:", torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def printed(program: str, **env: str) -> list[str]:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
def test_training_loads_no_compiler_and_whoever_wants_it_has_it(tmp_path):
    write_packed(tmp_path / "packed" / "tiny", make_data())
    assert printed(TRAIN, FER_PACKED=str(tmp_path / "packed"), FER_RUNS=str(tmp_path / "runs")) == [
        "loaded: []", "pooled: 8.0 8.0", "asked: True True", "compiled: 2.0"]


@pytest.mark.long
def test_the_batch_command_loads_no_compiler_and_papermill_no_grammar():
    """And the compiler's other names are there at once, where torchvision should ask for one."""
    assert printed("""
import sys
from fer_lib import kernels, studies
from fer_lib.late_imports import without_compiler, without_grammar
with without_grammar():
    import papermill
print("torch" in sys.modules, [m for m in sys.modules if m.startswith(("torch._dynamo", "rfc3987_syntax", "lark"))])

from jsonschema import FormatChecker
print(FormatChecker().conforms("2026-13-01", "date"), "iri" in FormatChecker.checkers)
import importlib
print(importlib.import_module("rfc3987_syntax").is_valid_syntax("iri", "http://example.org"))

with without_compiler():
    from torch._dynamo.utils import is_compile_supported
    print("torch._dynamo.eval_frame" in sys.modules)
    from torch._dynamo.utils import counters
    print(type(counters).__name__, "torch._dynamo.eval_frame" in sys.modules)
print(is_compile_supported("cpu"), type(sys.modules["torch._dynamo"]).__name__)
""") == ["True []", "False False", "True", "False", "defaultdict True", "True module"]


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_an_unmarked_optimiser_takes_torchs_steps(kind):
    """Parameters, state and hooks; nothing of the step is recorded for a backward pass."""
    found, called = [], []
    for make in (getattr(torch.optim, kind), unmarked(getattr(torch.optim, kind))):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        optimizer = make([{"params": [w], "weight_decay": .1}], lr=.05)
        optimizer.register_step_post_hook(lambda *args: called.append(1))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for k in range(5):
            optimizer.zero_grad(set_to_none=True)
            (w ** 3).sum().backward()
            optimizer.step()
            scheduler.step()
            if k == 2:
                optimizer.load_state_dict(optimizer.state_dict())
        state = [v for group in optimizer.state_dict()["state"].values() for v in group.values() if v is not None]
        found.append([w.detach(), *map(torch.as_tensor, state)])
        assert w.is_leaf and all(v.grad_fn is None for v in found[-1])
    assert len(called) == 10 and len(found[0]) == len(found[1]) >= 1
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert isinstance(optimizer, getattr(torch.optim, kind)) and type(optimizer).__name__ == kind


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_runs_have_the_bits_of_torchs_own_optimiser(optimizer, monkeypatch):
    e, data = make_experiment(method="dynamic", w0=.003, optimizer=optimizer, epochs=1), make_data()
    ours = train_one(e, data)
    monkeypatch.setattr(engine, "unmarked", lambda own: own)
    assert_same_bits(ours, train_one(e, data))


def test_a_compiler_that_is_there_stays():
    import torch._dynamo  # noqa: F401

    before = {name: sys.modules[name] for name in late_imports.COMPILER}
    with without_compiler():
        assert {name: sys.modules[name] for name in late_imports.COMPILER} == before
    assert {name: sys.modules[name] for name in late_imports.COMPILER} == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_grammar_is_absent_only_within(fails):
    was = sys.modules.pop(late_imports.GRAMMAR, None)
    try:
        with pytest.raises(ImportError) if fails else without_grammar():
            if fails:
                with without_grammar():
                    importlib.import_module(late_imports.GRAMMAR)
        assert late_imports.GRAMMAR not in sys.modules
    finally:
        if was:
            sys.modules[late_imports.GRAMMAR] = was
