"""AutoReLU's kernels against the plain version: the same bits, and for the literal dL/dw rounding error of one size."""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from fer_lib import activations
from fer_lib.activations import AutoReLU, auto_relu

gpu_only = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
OLD_INTERPRETER = torch.__version__ < TorchVersion("2.12") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
no_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SHAPES = {"channel": (5, 1, 1), "scalar": (), "element": (5, 6, 7)}
EXTREME = [0., -0., 1e-39, -1e-39, 1e-20, 2.0**-80, 2.0**80, 1e30, math.inf, -math.inf, math.nan]


def gpu(function):
    for mark in gpu_only:
        function = mark(function)
    return function


def results(x, w, upstream, fused: bool, **settings) -> tuple[torch.Tensor, ...]:
    """(y, dL/dx, dL/dw)."""
    x, w = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), w.detach().clone().requires_grad_()
    before, activations.FUSED = activations.FUSED, fused
    try:
        y = auto_relu(x, w, **settings)
        y.backward(upstream)
    finally:
        activations.FUSED = before
    return y.detach(), x.grad, w.grad


def inputs(device, dtype, layout, shape, size=(3, 5, 6, 7)):
    x, upstream = (torch.randn(size, device=device).mul(8).to(dtype) for _ in range(2))
    if layout == "channels_last":
        x, upstream = (v.contiguous(memory_format=torch.channels_last) for v in (x, upstream))
    return x, upstream, torch.ones(shape, device=device)


def fused_kernels():
    """fer_lib.fused, which needs Triton."""
    from fer_lib import fused

    return fused


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.nan_to_num(123.), b.nan_to_num(123.)) \
        and torch.equal(a.isnan(), b.isnan())


CASES = list(itertools.product(["float32", "bfloat16", "float16"], ["contiguous", "channels_last"], SHAPES,
                               ["abs", "signed"], ["literal", "exact"], [6., math.inf]))


@gpu
@pytest.mark.parametrize(("dtype", "layout", "shape", "divide_by", "gradient", "cliff"), CASES)
def test_kernels_give_the_plain_bits(dtype, layout, shape, divide_by, gradient, cliff):
    torch.manual_seed(0)
    x, upstream, w = inputs("cuda", getattr(torch, dtype), layout, SHAPES[shape])
    for scale in (.3, -.3, 1e-5, -1e-5):
        w_now = w * scale * (1 + .1 * torch.rand_like(w))
        settings = dict(cliff=cliff, divide_by=divide_by, gradient=gradient)
        plain, fused = (results(x, w_now, upstream, on, **settings) for on in (False, True))
        assert same_bits(plain[0], fused[0]) and same_bits(plain[1], fused[1])
        assert plain[2].shape == fused[2].shape and plain[2].dtype == fused[2].dtype
        if gradient == "exact":
            assert not fused[2].any()
        else:                                           # both are rounding error of sums of this size
            bound = 1e-5 * (upstream.float() * x.float()).abs().sum() / abs(scale)
            assert fused[2].abs().max() < bound and plain[2].abs().max() < bound


@gpu
@pytest.mark.parametrize("gradient", ["literal", "exact"])
@pytest.mark.parametrize("divide_by", ["abs", "signed"])
def test_extreme_numbers_give_the_plain_bits(gradient, divide_by):
    values = torch.tensor([*EXTREME, 1., -1., 7.], device="cuda")
    x = values.repeat(4, 1).reshape(4, len(values), 1, 1)
    for w in EXTREME:
        settings = dict(cliff=6., divide_by=divide_by, gradient=gradient)
        w_now, upstream = torch.full((len(values), 1, 1), w, device="cuda"), torch.ones_like(x)
        plain, fused = (results(x, w_now, upstream, on, **settings) for on in (False, True))
        assert same_bits(plain[0], fused[0])
        if gradient == "exact":
            assert same_bits(plain[1], fused[1])
        else:                                           # an ulp where a quotient nearly leaves float32's range
            torch.testing.assert_close(plain[1], fused[1], rtol=3e-7, atol=1e-44, equal_nan=True)
            assert torch.equal(plain[2].isfinite(), fused[2].isfinite())


@gpu
def test_modelled_noise_reaches_w_and_what_no_kernel_covers_is_plain():
    x, upstream, w = inputs("cuda", torch.float32, "contiguous", SHAPES["channel"])
    noise = torch.randn_like(w)
    plain, fused = (results(x, w, upstream, on, cliff=6., gradient="modelled", noise=noise) for on in (False, True))
    assert all(same_bits(a, b) for a, b in zip(plain, fused)) and fused[2].any()
    wide = x.double()[:, :, ::2]                        # float64, and not dense
    plain, fused = (results(wide, w.double(), upstream.double()[:, :, ::2], on, cliff=6.) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, fused))


@gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(64, 64, 12, 12), (64, 512, 2, 2), (64, 32, 16, 16)])
def test_the_literal_rounding_error_keeps_its_size(size, layout):
    """rms of |w| dL/dw over channels and 40 draws, within a factor 1.5 of the plain version's, for w of any size.

    Powers of two such as .5 round nothing: both are 0 there.
    """
    torch.manual_seed(1)
    x, upstream, w = inputs("cuda", torch.float32, layout, (size[1], 1, 1), size)
    assert fused_kernels().fits(x, w, "literal")
    assert not any(results(x, .5 * w, upstream, on, cliff=6.)[2].any() for on in (False, True))
    for scale in (.49, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        squares = torch.zeros(2, device="cuda", dtype=torch.float64)
        for _ in range(40):
            x, upstream, w = inputs("cuda", torch.float32, layout, (size[1], 1, 1), size)
            w = w * scale
            x = x / 8
            for on in (False, True):
                noise = results(x, w, upstream, on, cliff=6.)[2] * w
                squares[int(on)] += noise.double().square().mean()
        ratio = float((squares[1] / squares[0]).sqrt())
        print(f"{size} {layout} w = {scale:g}: rms {float((squares[0] / 40).sqrt()):.3g}, fused {ratio:.3f} of it")
        assert 1 / 1.5 < ratio < 1.5


def steps_with_a_flip(fused: bool, seeds: range = range(40)) -> list[int]:
    """Of 600, by seed, of runs with the kernel or with the plain version."""
    from fer_lib.benchmark_speed import random_faces
    from fer_lib.engine import train
    from fer_lib.experiment import Experiment

    data, steps = random_faces(64 * 100, 48), [0] * len(seeds)
    before, activations.FUSED = activations.FUSED, fused
    try:
        for block in train([(Experiment(method="dynamic", seed=seed, lr=1e-3, w0=.02, epochs=6, width=.5), data)
                            for seed in seeds], torch.device("cuda")):
            steps[block.run] += int((block.turned_negative + block.turned_positive).any(1).sum())
    finally:
        activations.FUSED = before
    return steps


@pytest.fixture(scope="module")
def fused_flips() -> list[int]:
    return steps_with_a_flip(True)


@pytest.fixture(scope="module")
def plain_flips() -> list[int]:
    return steps_with_a_flip(False)


@gpu
def test_all_runs_with_the_literal_kernel_flip(fused_flips):
    assert len(fused_flips) == 40 and min(fused_flips) > 0


@gpu
def test_literal_flips_over_40_seeds_cannot_be_told_apart(fused_flips, plain_flips):
    """At p = .001: a difference of 1.3 of 6.2 steps with a flip is seen half the time, and chance alone fails one time
    in a thousand. (20 seeds at p = .01: 1.5, and one in a hundred.) 300 runs each way differed by 0.00 [-0.29, +0.30]
    (H200, torch 2.11).
    """
    from scipy.stats import mannwhitneyu

    p = mannwhitneyu(fused_flips, plain_flips).pvalue
    print(f"flips fused {fused_flips}, plain {plain_flips}, p = {p:.3f}")
    assert min(plain_flips) > 0 and p > .001


@gpu
def test_the_literal_gradient_of_larger_sums_stays_unfused():
    """At 256 x 28 x 28 values a w, in channels_last, the fused error was .64 of the plain one (H100, torch 2.11)."""
    x, upstream, w = inputs("cuda", torch.float32, "channels_last", (64, 1, 1), (256, 64, 28, 28))
    assert not fused_kernels().fits(x, w, "literal") and fused_kernels().fits(x, w, "exact")
    assert same_bits(*(results(x, w, upstream, on, cliff=6.)[2] for on in (False, True)))


@gpu
def test_the_kernels_work_under_torch_compile():
    torch.manual_seed(0)
    module = AutoReLU((5, 1, 1)).cuda()
    x, upstream, _ = inputs("cuda", torch.float32, "contiguous", ())
    y = torch.compile(module)(x)
    assert torch.equal(y, module(x))


INTERPRETED = """
import itertools, math, torch
from fer_lib import activations, fused
torch.manual_seed(0)
def run(f, x, w, upstream):
    x, w = x.clone(memory_format=torch.preserve_format).requires_grad_(), w.clone().requires_grad_()
    y = f(x, w)
    y.backward(upstream)
    return y.detach(), x.grad, w.grad
for layout, shape, by, gradient, (cliff, scale) in itertools.product(
        (torch.contiguous_format, torch.channels_last), ((5, 1, 1), (), (5, 6, 7)), ("abs", "signed"),
        ("literal", "exact"), itertools.product((6., math.inf), (.3, -1e-3))):
    x, upstream = (torch.randn(3, 5, 6, 7).mul(8).contiguous(memory_format=layout) for _ in range(2))
    w = torch.full(shape, scale)
    if fused._layout(x, w) is None:
        assert layout == torch.channels_last and len(shape) == 3 and shape[1] > 1
        continue
    plain = run(lambda x, w: activations.auto_relu(x, w, cliff, by, gradient), x, w, upstream)
    kernel = run(lambda x, w: fused.auto_relu(x, w, cliff, by, gradient, None), x, w, upstream)
    assert torch.equal(plain[0], kernel[0]), (layout, shape, by, gradient)
    # the interpreter rounds a fused multiply-add twice, and the literal quotients need it
    torch.testing.assert_close(plain[1], kernel[1], rtol=3e-7 if gradient == "literal" else 0, atol=0)
    assert kernel[2].shape == w.shape and float((kernel[2] * w).abs().max()) < 1e-2
x, upstream, w = torch.randn(8, 5, 20, 20), torch.randn(8, 5, 20, 20), torch.full((5, 1, 1), .1)   # several splits
split = run(lambda x, w: fused.auto_relu(x, w, 6., "abs", "literal", None), x, w, upstream)
plain = run(lambda x, w: activations.auto_relu(x, w, 6., "abs", "literal"), x, w, upstream)
torch.testing.assert_close(plain[1], split[1], rtol=3e-7, atol=0)
assert float((split[2] * w).abs().max()) < 1e-2
"""


@no_triton
@pytest.mark.skipif(OLD_INTERPRETER, reason="the interpreter of Triton 3.6 (torch 2.11) fails with NumPy 2.4 and later")
def test_kernels_interpreted_on_the_cpu_give_the_plain_bits():
    """Triton's interpreter runs the kernels' own code in float32, so that a machine without a GPU tests them too."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
