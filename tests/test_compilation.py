"""torch.compile of the step: the same losses up to rounding, one compilation for all seeds, and when it is chosen."""

import warnings

import numpy as np
import pytest
import torch
from conftest import CPU, make_data, make_experiment, sampled
from test_capture import never
from test_engine import KINDS
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from fer_lib import compilation, engine
from fer_lib.compilation import compiles
from fer_lib.engine import Learner, check, train
from fer_lib.experiment import Experiment, ParameterError

CUDA = torch.device("cuda")


def gpu(function):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(function))


@pytest.mark.parametrize(("settings", "steps", "side", "expected"), [
    (dict(), 13_440, 48, False),
    (dict(compile_step="on"), 10, 48, True),
    (dict(compile_step="off"), 10 ** 7, 48, False),
    (dict(), 1_000_000, 48, True),
    (dict(), 100_000, 224, True),
    (dict(batch_size=512), 50_000, 48, True),
    (dict(deterministic=True), 10 ** 7, 48, False),
    (dict(method="dropout+periodic"), 10 ** 7, 48, False),
    (dict(method="gaussian_noise"), 10 ** 7, 48, False),
    (dict(method="shakedrop"), 10 ** 7, 48, False),
])
def test_long_runs_are_compiled(settings, steps, side, expected):
    assert compiles(Experiment(**settings), steps, (1, side, side), CUDA) == expected
    assert not compiles(Experiment(**settings), steps, (1, side, side), CPU)


def test_compiling_deterministic_kernels_is_refused():
    with pytest.raises(ParameterError, match="compile_step 'on' and deterministic exclude each other"):
        check(make_experiment(compile_step="on", deterministic=True), make_data())


def test_compiling_a_forward_that_draws_is_refused():
    with pytest.raises(ParameterError, match="compile_step 'on' can't be had with method 'dropout\\+periodic'"):
        check(make_experiment(compile_step="on", method="dropout+periodic"), make_data())


@pytest.mark.usefixtures("short_resnet")
@pytest.mark.parametrize("settings", sampled(
    [dict(), dict(augment="flip+affine+crop+erasing"), dict(method="periodic"),
     dict(method="dynamic", w_gradient="exact", labels="soft")], lambda one: "augment" in one or "labels" in one))
def test_what_is_compiled_is_one_graph_for_all_seeds_and_gives_the_bits(settings, monkeypatch):
    """On the CPU, with a compiler that runs the graph as it is."""
    monkeypatch.setattr(engine, "BLOCK_SECONDS", 600.)
    torch.compiler.reset()
    graphs = []

    def as_it_is(graph, inputs):
        graphs.append(graph)
        return graph.forward

    loss, data = torch.compile(Learner._loss, backend=as_it_is, dynamic=False), make_data(soft=True)
    for seed in range(2):
        plain, traced = (Learner(make_experiment(seed=seed, **settings), data, CPU) for _ in range(2))
        traced.loss = loss
        assert plain.block(0, never).loss.tolist() == traced.block(0, never).loss.tolist()
    assert len(graphs) == 1


@pytest.mark.usefixtures("short_resnet")
@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_a_compiler_that_fails_is_told(wanted, monkeypatch):
    torch.compiler.reset()

    def failing(graph, inputs):
        raise RuntimeError("no C compiler\nhere")

    monkeypatch.setattr(engine, "compiles", lambda *_: True)
    monkeypatch.setattr(engine, "compiled", lambda work: torch.compile(work, backend=failing))
    run = train([(make_experiment(compile_step=wanted), make_data())], CPU)
    if wanted == "on":
        with pytest.raises(ParameterError, match="^torch.compile failed: BackendCompilerFailed: .*compile_step off"):
            next(run)
    else:
        assert "torch.compile failed" in next(run).eager


@pytest.fixture
def at_backward(monkeypatch):
    """A function that sets what happens when a backward pass is compiled. The passes stay as they are."""
    compile, happens = torch.compile, []

    def forward(graph, inputs):
        return make_boxed_func(graph.forward)

    def backward(graph, inputs):
        happens[0]()
        return forward(graph, inputs)

    torch.compiler.reset()
    compilation.compiled.cache_clear()
    monkeypatch.setattr(engine, "compiles", lambda *_: True)
    monkeypatch.setattr(torch, "compile", lambda work, dynamic, options: compile(
        work, dynamic=dynamic, backend=aot_autograd(fw_compiler=forward, bw_compiler=backward)))
    yield happens.append
    compilation.compiled.cache_clear()
    torch.compiler.reset()


@pytest.mark.usefixtures("short_resnet")
@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_a_compiler_that_fails_at_the_backward_pass_is_told(wanted, at_backward):
    """Before the forward pass was taken: a plain step goes on with the same bits."""
    def fail():
        raise RuntimeError("full disk\nhere")

    at_backward(fail)
    data = make_data()
    run = train([(make_experiment(compile_step=wanted), data)], CPU)
    if wanted == "on":
        with pytest.raises(ParameterError, match="^torch.compile failed: BackendCompilerFailed: .*compile_step off"):
            next(run)
        return
    blocks = list(run)
    plain = list(train([(make_experiment(), data)], CPU, capture=False))
    assert "torch.compile failed" in blocks[0].eager
    assert [b.loss.tolist() for b in blocks] == [b.loss.tolist() for b in plain]
    for key, value in plain[-1].network.model.state_dict().items():
        assert torch.equal(value, blocks[-1].network.model.state_dict()[key])


@pytest.mark.usefixtures("short_resnet")
def test_the_compilers_advice_on_the_backward_pass_is_not_shown(at_backward):
    """torch says once that TF32 is not on; where the forward pass came from its cache, it is here."""
    said = []

    def warn():
        said.append(1)
        warnings.warn_explicit("TF32 is not enabled", UserWarning, "compile_fx.py", 1, "torch._inductor.compile_fx")

    at_backward(warn)
    blocks = list(train([(make_experiment(compile_step="on"), make_data())], CPU))
    assert said and blocks[-1].last


@gpu
@pytest.mark.usefixtures("short_resnet")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["baseline", "periodic", "dynamic", "augmentation"])
def test_compiled_steps_equal_plain_ones_up_to_rounding(kind, precision, monkeypatch):
    """The loss of step 1 within 1e-5 (fp32) or .02 (bf16). From there Adam makes steps of about lr out of gradients
    that are rounding alone, so that step 8 is only near: within a tenth.
    """
    settings = {**KINDS[kind], "device": "cuda", "precision": precision, "epochs": 1, "width": .25}
    if "dynamic" in settings.get("method", ""):
        settings["w_gradient"] = "exact"                # literal is rounding error itself
    data = make_data(soft=True, side=24)
    losses = {}
    for wanted in ("on", "off"):
        blocks = list(train([(make_experiment(compile_step=wanted, **settings), data)], CUDA))
        assert not blocks[0].eager
        losses[wanted] = np.concatenate([b.loss for b in blocks])
    gap = abs(losses["on"] - losses["off"]) / losses["off"]
    bound = 1e-5 if precision == "fp32" else .02
    print(kind, precision, gap)
    assert gap[0] < bound and gap[7] < .1
    assert compilation.compiled(Learner._loss) is compilation.compiled(Learner._loss)


@gpu
@pytest.mark.filterwarnings("ignore::UserWarning")      # the compiler's advice
def test_the_compiled_literal_gradient_is_the_kernels_own():
    """w after ten steps with all else at rest: compiled or not, the same rounding error."""
    from fer_lib.activations import auto_relu

    torch.manual_seed(0)
    x, upstream = (torch.randn(16, 8, 6, 6, device="cuda") for _ in range(2))
    w = torch.full((8, 1, 1), .013, device="cuda")
    gradients = []
    for call in (auto_relu, torch.compile(auto_relu)):
        leaf = w.clone().requires_grad_()
        call(x, leaf, 6.).backward(upstream)
        gradients.append(leaf.grad)
    assert gradients[0].any() and torch.equal(*gradients)
