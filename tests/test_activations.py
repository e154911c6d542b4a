"""Activations against a float64 reference of their own, plus the properties that the training loop relies on."""

import math
import shutil
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fer_lib.activations import AutoReLU, CliffReLU, SignFlip, auto_relu, cliff_relu, sign_flip

INF, NAN = math.inf, math.nan
EPS = 2.0**-24  # half a unit in the last place of float32: the relative error of one operation
SMALLEST = 2.0**-149  # of float32's denormals
DIVIDE_BY = ["abs", "signed"]
GRADIENTS = ["literal", "exact", "modelled"]


def pointwise_reference(x, w, cliff, divide_by):
    """AutoReLU's value and dy/dx in float64, from the definition by cases; x and w hold float32 values, w broadcasts.

    Only the comparison with C rounds x w to float32 once, as any float32 implementation must.
    """
    value, slope = np.zeros(x.shape), np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        one_x = float(x[place])
        one_w = float(np.broadcast_to(w, x.shape)[place])
        sign = -1.0 if one_w < 0 else 1.0
        size = min(max(abs(one_w), 2.0**-80), 2.0**80)
        with np.errstate(over="ignore"):
            cut = cliff != INF and float(np.float32(sign * one_x * size)) >= cliff
        if math.isnan(one_x) or (sign * one_x > 0 and not cut):
            value[place] = one_x if divide_by == "signed" else sign * one_x
            slope[place] = 1.0 if divide_by == "signed" else sign
    return value, slope


def float32_between(low, high):
    return st.floats(low, high, width=32)


SPECIAL_W = [0.0, -0.0, SMALLEST, -SMALLEST, -1e-40, 1e-38, 1e-4, -1e-4, 0.1, -0.1, 0.9, 5.0, -5.0]


@st.composite
def cases(draw, special_x=(0.0, -0.0, NAN, INF, -INF, 1e30, -1e30)):
    """x (2, 3, 4) with values exactly at the cut, w (3, 1) and a cliff."""
    cliff = draw(st.sampled_from([0.5, 1.0, 6.0, INF]))
    w = draw(st.lists(st.sampled_from(SPECIAL_W) | float32_between(-2, 2), min_size=3, max_size=3))
    w = np.array(w, dtype=np.float32).reshape(3, 1)
    ordinary = float32_between(-64, 64)
    x = draw(st.lists(ordinary | st.sampled_from(special_x), min_size=24, max_size=24))
    x = np.array(x, dtype=np.float32).reshape(2, 3, 4)
    if cliff != INF and draw(st.booleans()):
        size = np.clip(np.abs(w.astype(np.float64)), 2.0**-80, 2.0**80)
        x[:, :, :1] = np.where(w < 0, -cliff, cliff) / size  # x w = C, but for the rounding of the quotient
    return x, w, cliff


def run(x, w, cliff, divide_by="abs", gradient="literal", upstream=None, **keywords):
    """y, dL/dx and dL/dw for L = sum(upstream * y)."""
    x = x.detach().clone().requires_grad_()
    w = w.detach().clone().requires_grad_()
    if gradient == "modelled":
        keywords.setdefault("noise", torch.ones_like(w))
    y = auto_relu(x, w, cliff, divide_by, gradient, **keywords)
    return y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y) if upstream is None else upstream)


# --- CliffReLU, eq. 1 ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cliff_relu_cuts_at_both_edges_and_keeps_nan(dtype):
    x = torch.tensor([-INF, -1, -0.0, 0, 0.5, 5.75, 6, 7, INF, NAN], dtype=dtype, requires_grad=True)
    y = cliff_relu(x, 6.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([0, 0, 0, 0, 0.5, 5.75, 0, 0, 0, NAN], dtype=dtype)
    assert_close(y.detach(), expected, rtol=0, atol=0, equal_nan=True)
    assert slope.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1]


def test_cliff_relu_without_a_cliff_is_relu():
    x = torch.tensor([-INF, -1, 0, 2, 1e30, INF, NAN])
    assert_close(cliff_relu(x, INF), torch.relu(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cliff", [1e6, 1e38])
def test_a_cliff_beyond_the_range_of_x_cuts_only_inf(cliff):
    x = torch.tensor([2.0, 60000, INF], dtype=torch.float16)
    assert cliff_relu(x, cliff).tolist() == [2, 60000, 0]


def test_half_precision_does_not_round_the_cliff():
    x = torch.tensor([6.1015625], dtype=torch.float16)  # fp16's nearest value to 6.103 too
    assert cliff_relu(x, 6.103).item() == x.item()


# --- AutoReLU, eq. 2: values and gradients ---


@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@settings(max_examples=150, deadline=None)
@given(case=cases(), upstream=float32_between(-4, 4))
def test_exact_and_modelled_equal_the_reference(divide_by, case, upstream):
    x, w, cliff = case
    value, slope = pointwise_reference(x, w, cliff, divide_by)
    for gradient in ("exact", "modelled"):
        upstreams = torch.full(x.shape, upstream)
        y, dx, dw = run(torch.from_numpy(x), torch.from_numpy(w), cliff, divide_by, gradient, upstreams)
        np.testing.assert_array_equal(y.double().numpy(), value)
        np.testing.assert_array_equal(dx.double().numpy(), upstream * slope)
        floor = np.maximum(np.abs(w.astype(np.float64)), 1e-8)
        np.testing.assert_allclose(dw.double().numpy(), 0 if gradient == "exact" else 2e-10 / floor, rtol=4 * EPS)


@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@settings(max_examples=150, deadline=None)
@given(case=cases(), upstream=float32_between(-4, 4))
def test_literal_equals_the_reference_within_rounding(divide_by, case, upstream):
    x, w, cliff = case
    value, slope = pointwise_reference(x, w, cliff, divide_by)
    upstreams = torch.full(x.shape, upstream)
    y, dx, _ = run(torch.from_numpy(x), torch.from_numpy(w), cliff, divide_by, "literal", upstreams)
    size = np.maximum(np.abs(w.astype(np.float64)), 2.0**-80)
    lost = SMALLEST / size  # what the product loses where it is denormal
    with np.errstate(invalid="ignore"):
        allowed = np.where(np.isfinite(value), 2.1 * EPS * np.abs(value) + lost, 0)
        same = (y.double().numpy() == value) | (np.isnan(value) & np.isnan(y.numpy()))
        assert (same | (np.abs(y.double().numpy() - value) <= allowed)).all()
        kept = ~(np.abs(x * size) < 2.0**-126)  # where the product does not underflow; NaN counts as kept
    expected = upstream * slope
    assert (np.abs(dx.double().numpy() - expected)[kept] <= 2.1 * EPS * np.abs(expected)[kept] + SMALLEST).all()


@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@settings(max_examples=150, deadline=None)
@given(case=cases(special_x=(0.0, -0.0, 1e4, -1e4)), upstream=float32_between(-4, 4))
def test_literal_gives_w_rounding_error_only(divide_by, case, upstream):
    x, w, cliff = case
    upstreams = torch.full(x.shape, upstream)
    _, _, dw = run(torch.from_numpy(x), torch.from_numpy(w), cliff, divide_by, "literal", upstreams)
    size = np.clip(np.abs(w.astype(np.float64)), 2.0**-80, 2.0**80)
    value, _ = pointwise_reference(x, w, cliff, divide_by)
    terms = np.abs(upstream * value) / size
    rounding = (8 + 4) * EPS * terms.sum(axis=(0, 2), keepdims=True)[0]  # 8 terms added; 4 operations each
    lost = 8 * 4 * (1 + abs(upstream)) * (1 + np.abs(x).max()) * SMALLEST / size**2  # where a product is denormal
    assert (np.abs(dw.double().numpy()) <= rounding + lost).all()


def test_literal_rounding_error_is_there_and_grows_like_one_over_w():
    x = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ws = [torch.full((16, 1, 1), w0) for w0 in (0.3, 3e-2, 3e-3, 3e-4)]
    size = [run(x, w, INF, upstream=upstream)[2].abs().mean() for w in ws]
    growth = [larger / smaller for smaller, larger in zip(size, size[1:], strict=False)]
    assert size[0] > 0 and all(5 < ratio < 20 for ratio in growth)  # each step is a w ten times smaller


@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@pytest.mark.parametrize("w0", [1e-4, -1e-4, 0.1, 0.9, -5.0])
@pytest.mark.parametrize("cliff", [1.0, 6.0, INF])
def test_literal_is_bitwise_the_written_formula(divide_by, w0, cliff):
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(8, 4, 5, 5, generator=generator) * 3 / abs(w0)).requires_grad_()
    w = (w0 * (1 + torch.rand(4, 1, 1, generator=generator))).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator)
    product = x * w
    written = torch.where((product <= 0) | (product >= cliff), 0, product) / (w.abs() if divide_by == "abs" else w)
    dx, dw = torch.autograd.grad(written, (x, w), upstream)
    found = run(x, w, cliff, divide_by, "literal", upstream)
    assert torch.equal(found[0], written) and torch.equal(found[1], dx) and torch.equal(found[2], dw)
    assert dw.count_nonzero() > 0  # else this compares zeros


def test_signed_division_is_min_x_0_for_negative_w_and_abs_is_the_flip():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    for gradient in GRADIENTS:
        signed, slope, _ = run(x, torch.tensor(-0.25), INF, "signed", gradient)
        assert signed.tolist() == x.clamp(max=0).tolist() and slope.tolist() == [1, 1, 0, 0, 0]
        absolute, slope, _ = run(x, torch.tensor(-0.25), INF, "abs", gradient)
        assert absolute.tolist() == torch.relu(-x).tolist() and slope.tolist() == [-1, -1, 0, 0, 0]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@pytest.mark.parametrize("cliff", [6.0, INF])
def test_any_w_gives_finite_values_and_gradients(gradient, divide_by, cliff):
    sizes = torch.tensor([0.0, SMALLEST, 1e-40, 1.2e-38, 1e-30, 2.0**-80, 1e-20, 1e-4, 1.0, 1e20, 1e30, 3.4e38, INF])
    w = torch.cat([sizes, -sizes])[:, None]
    x = torch.tensor([-1e3, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e3]).expand(len(w), -1)
    for found in run(x, w, cliff, divide_by, gradient, torch.full(x.shape, 100.0)):
        assert found.isfinite().all()
    y, _, dw = run(x, w, cliff, divide_by, gradient)
    assert (y[0] == torch.relu(x[0])).all()  # sign(0) is +1
    assert (y[len(sizes)] == torch.relu(x[0])).all()  # sign(-0.0) too
    if gradient == "literal":
        assert dw[w.abs() < 2.0**-80].count_nonzero() == dw[w.abs() > 2.0**80].count_nonzero() == 0


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@pytest.mark.parametrize("w", [0.1, -0.1, 0.0, 2.0])
def test_nan_stays_and_inf_is_cut_only_by_a_finite_cliff(gradient, divide_by, w):
    passing = INF if w >= 0 else -INF
    x = torch.tensor([NAN, passing, -passing])
    kept = abs(passing) if divide_by == "abs" else passing
    for cliff, expected in ((6.0, [NAN, 0, 0]), (INF, [NAN, kept, 0])):
        y, _, _ = run(x, torch.tensor(w), cliff, divide_by, gradient)
        assert_close(y, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@pytest.mark.parametrize("cliff", [6.0, INF])
def test_a_diverged_w_shows(gradient, divide_by, cliff):
    y, _, _ = run(torch.tensor([-1.0, 1.0]), torch.tensor(NAN), cliff, divide_by, gradient)
    assert y.isnan().all()


def test_the_sign_of_a_float64_w_that_float32_cannot_hold_counts():
    w = torch.tensor(-1e-300, dtype=torch.float64)
    for gradient in GRADIENTS:
        assert run(torch.tensor([-2.0, 2.0]), w, 6.0, gradient=gradient)[0].tolist() == [2, 0]


# --- what w receives ---


def test_exact_gradient_is_a_zero_tensor_that_adam_decays():
    site = AutoReLU((3, 1, 1), w0=0.1, gradient="exact")
    adam = torch.optim.Adam(site.parameters(), lr=1e-2, weight_decay=1e-4)
    site(torch.randn(2, 3, 4, 4)).sum().backward()
    assert site.w.grad.shape == (3, 1, 1) and site.w.grad.count_nonzero() == 0
    adam.step()
    # Adam makes of any L2 term, however small, a step of lr
    assert_close(site.w.detach(), torch.full((3, 1, 1), 0.1 - 1e-2), rtol=1e-3, atol=0)


def test_modelled_gradient_is_the_noise_over_w_whatever_the_loss():
    w = torch.tensor([0.5, -1e-4, 1e-12, 0.0])[:, None]
    noise = torch.tensor([1.0, -2.0, 3.0, 0.5])[:, None]
    x = torch.randn(4, 5)
    expected = noise * 3e-9 / torch.tensor([0.5, 1e-4, 1e-8, 1e-8])[:, None]
    for upstream in (torch.zeros(4, 5), torch.randn(4, 5)):
        _, _, dw = run(x, w, 6.0, "abs", "modelled", upstream, noise=noise, noise_scale=3e-9)
        assert_close(dw, expected, rtol=1e-6, atol=0)
    _, _, dw = run(x, w, 6.0, "abs", "modelled", noise=noise)
    assert_close(dw, expected / 15, rtol=1e-6, atol=0)  # the default scale, 2e-10
    tiny = torch.tensor(1e-6, dtype=torch.float16)  # in fp16 2e-10 would be 0
    _, _, dw = run(x.half(), tiny, 6.0, "abs", "modelled", noise=torch.tensor(1.0))
    assert dw.dtype == torch.float16 and dw.item() == pytest.approx(2e-4, rel=0.1)


@pytest.mark.parametrize("noise", [None, torch.ones(3), torch.ones(())])
def test_modelled_gradient_refuses_missing_or_misshapen_noise(noise):
    with pytest.raises(ValueError, match=r"\(3, 1, 1\), got (None|shape)"):
        auto_relu(torch.ones(2, 3, 4, 4), torch.ones(3, 1, 1), 6.0, gradient="modelled", noise=noise)


# --- dtypes, shapes, memory formats ---


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(gradient, dtype, autocast):
    x = (torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3)) * 1e-2).to(dtype)
    w = torch.full((3, 1, 1), -1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y, dx, dw = run(x, w, 6.0, gradient=gradient, upstream=torch.ones_like(x))
    assert y.dtype == dx.dtype == dtype and dw.dtype == torch.float32
    assert torch.equal(y, torch.relu(-x))
    assert torch.equal(dx, -(x < 0).to(dtype))
    naive = (x * w.to(dtype)).clamp(min=0) / w.abs().to(dtype)
    assert not torch.equal(naive, torch.relu(-x))  # what is avoided: fp16 underflows, bf16 rounds


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_half_precision_is_cut_where_float32_would_be(gradient):
    x = torch.tensor([6.1015625], dtype=torch.float16)
    assert run(x, torch.tensor(1.0), 6.103, gradient=gradient)[0].item() == x.item()
    assert run(x, torch.tensor(1.0), 6.1015, gradient=gradient)[0].item() == 0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_dtypes_of_x_and_w_are_their_own(gradient):
    half, single, double = torch.float16, torch.float32, torch.float64
    for x_type, w_type in ((double, double), (double, single), (single, half), (single, double)):
        x = torch.linspace(-2, 2, 9, dtype=x_type)
        y, dx, dw = run(x, torch.tensor([0.3], dtype=w_type), 6.0, gradient=gradient)
        assert y.dtype == dx.dtype == x_type and dw.dtype == w_type
        tolerance = 4 * torch.finfo(x_type).eps  # float64 is not computed in float32
        assert_close(y, torch.relu(x), rtol=tolerance, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("divide_by", DIVIDE_BY)
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 5)])
def test_w_broadcasts_as_a_loop_over_its_elements_would(gradient, divide_by, shape):
    generator = torch.Generator().manual_seed(4)
    x, upstream = torch.randn(2, 2, 3, 4, 5, generator=generator) * 20
    w, noise = torch.randn(2, *shape, generator=generator)
    y, dx, dw = run(x, w, 6.0, divide_by, gradient, upstream, noise=noise)
    value, slope = pointwise_reference(x.numpy(), w.numpy(), 6.0, divide_by)
    assert dw.shape == w.shape
    np.testing.assert_allclose(y.double().numpy(), value, rtol=4 * EPS)
    np.testing.assert_allclose(dx.double().numpy(), upstream.double().numpy() * slope, rtol=4 * EPS)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 1, 3, 1, 1), (2, 3, 4, 4)])
def test_w_and_sign_that_would_widen_x_are_refused(shape):
    x = torch.ones(1, 3, 2, 2)
    with pytest.raises(ValueError, match="does not broadcast against x"):
        auto_relu(x, torch.ones(shape), 6.0)
    with pytest.raises(ValueError, match="does not broadcast against x"):
        sign_flip(x, torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 5)])
@pytest.mark.parametrize("function", [*GRADIENTS, "cliff_relu", "sign_flip"])
def test_channels_last_is_kept_forward_and_backward(function, shape, dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last).requires_grad_()
    w = torch.full(shape, -0.5, requires_grad=function in GRADIENTS)
    if function == "cliff_relu":
        y = cliff_relu(x, 6.0)
    elif function == "sign_flip":
        y = sign_flip(x, w)
    else:
        y = auto_relu(x, w, 6.0, gradient=function, noise=torch.ones(shape))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("function", [*GRADIENTS, "cliff_relu"])
def test_channels_last_gradient_even_from_a_contiguous_upstream(function):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.full((3, 1, 1), 0.5)
    y = cliff_relu(x, 6.0) if function == "cliff_relu" else auto_relu(x, w, 6.0, gradient=function, noise=w)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.is_contiguous(memory_format=torch.channels_last)


# --- sign flip, Algorithm 1 ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sign_flip_is_exact_and_keeps_the_dtype(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype).requires_grad_()
    sign = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    y = sign_flip(x, sign)
    assert y.dtype == dtype
    assert torch.equal(y, torch.stack([x[:, 0], -x[:, 1], -x[:, 2]], dim=1))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, sign.to(dtype).expand_as(x))
    assert torch.equal(sign_flip(x, torch.tensor(-1.0)), -x)


# --- modules ---


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("divide_by", DIVIDE_BY)
def test_auto_relu_module_uses_w_in_training_and_w_forward_in_evaluation(gradient, divide_by):
    site = AutoReLU((3, 1, 1), w0=0.25, cliff=2.0, divide_by=divide_by, gradient=gradient)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 8
    assert torch.equal(site.w, torch.full((3, 1, 1), 0.25)) and torch.equal(site.w_forward, site.w)
    with torch.no_grad():
        site.w.fill_(-0.5)
    assert torch.equal(site.w_forward, torch.full((3, 1, 1), 0.25))  # a copy, not a view of w
    same = "exact" if gradient == "modelled" else gradient
    assert torch.equal(site.train()(x), auto_relu(x, torch.full((3, 1, 1), -0.5), 2.0, divide_by, same))
    assert torch.equal(site.eval()(x), auto_relu(x, torch.full((3, 1, 1), 0.25), 2.0, divide_by, same))


def test_auto_relu_module_holds_a_parameter_unless_the_gradient_is_modelled():
    for gradient in GRADIENTS:
        site = AutoReLU((3, 1, 1), gradient=gradient)
        assert list(dict(site.named_parameters())) == ([] if gradient == "modelled" else ["w"])
        assert list(dict(site.named_buffers())) == (["w", "w_forward"] if gradient == "modelled" else ["w_forward"])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 5)])
def test_auto_relu_state_dict_round_trip(gradient, shape):
    old, new = AutoReLU(shape, gradient=gradient), AutoReLU(shape, w0=0.5, gradient=gradient)
    with torch.no_grad():
        old.w.copy_(torch.randn(shape))
        old.w_forward.copy_(torch.randn(shape))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.w, old.w) and torch.equal(new.w_forward, old.w_forward)


def test_sign_flip_module_starts_at_plus_one_and_acts_in_evaluation():
    x = torch.randn(2, 3, 4, 4)
    site = SignFlip((3, 1, 1))
    assert torch.equal(site(x), x) and not list(site.parameters())
    site.sign.neg_()
    assert torch.equal(site.train()(x), -x) and torch.equal(site.eval()(x), -x)
    new = SignFlip((3, 1, 1))
    new.load_state_dict(site.state_dict())
    assert torch.equal(new(x), -x)
    assert SignFlip().sign.shape == ()


def test_cliff_relu_module():
    x = torch.tensor([-1.0, 1.5, 3.0])
    assert CliffReLU(2.0)(x).tolist() == [0, 1.5, 0]
    assert CliffReLU()(torch.tensor([5.9, 6.0])).tolist() == pytest.approx([5.9, 0])


def test_repr_names_every_setting():
    site = AutoReLU((3, 1, 1), w0=0.2, cliff=INF, divide_by="signed", gradient="exact")
    assert repr(site) == "AutoReLU(shape=(3, 1, 1), w0=0.2, cliff=inf, divide_by='signed', gradient='exact')"
    assert repr(CliffReLU(2.0)) == "CliffReLU(cliff=2.0)"
    assert repr(SignFlip()) == "SignFlip(shape=())"


@pytest.mark.parametrize("cliff", [0.0, -1.0, NAN, -INF])
def test_a_cliff_that_is_not_positive_is_refused(cliff):
    x, w = torch.ones(2), torch.tensor(0.1)
    calls = (lambda: cliff_relu(x, cliff), lambda: CliffReLU(cliff), lambda: AutoReLU((), cliff=cliff))
    for call in (*calls, *(lambda g=g: auto_relu(x, w, cliff, gradient=g, noise=w) for g in GRADIENTS)):
        with pytest.raises(ValueError, match=f"cliff must be a number > 0.*got {cliff!r}"):
            call()


def test_unknown_choices_are_refused_by_name():
    x, w = torch.ones(2), torch.tensor(0.1)
    for call in (lambda **kw: auto_relu(x, w, 6.0, **kw), lambda **kw: AutoReLU((), **kw)):
        with pytest.raises(ValueError, match=r"divide_by must be one of \('abs', 'signed'\), got 'w'"):
            call(divide_by="w")
        with pytest.raises(ValueError, match=r"gradient must be one of \('literal', 'exact', 'modelled'\), got 'none'"):
            call(gradient="none")


@pytest.mark.parametrize("w0", [1.0, 1.5, -0.1])
def test_w0_outside_0_1_warns_with_the_papers_sentence(w0):
    with pytest.warns(UserWarning, match="initialized with a positive value, but less than 1"):
        site = AutoReLU((), w0=w0)
    assert site.w.item() == pytest.approx(w0)


def test_w0_inside_0_1_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoReLU((), w0=0.02)


@pytest.mark.parametrize("w0", [0.0, -0.0, NAN, INF, -INF])
def test_w0_that_is_zero_or_not_finite_is_refused(w0):
    with pytest.raises(ValueError, match=f"w0 must be finite and not 0.*got {w0!r}"):
        AutoReLU((), w0=w0)


# --- torch.compile and CUDA graphs ---


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile anew, and taking the processor's word for what it can do: its own trials take ten seconds."""
    from torch._inductor import config  # late: it takes a second

    with config.patch({"cpp.vec_isa_ok": True}):
        torch.compiler.reset()
        yield


@needs_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_compiled_equals_eager_and_the_literal_rounding_error_is_never_compiled(gradient):
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(6)) * 20
    w, noise = torch.tensor([0.1, -1e-3, 0.9]).view(3, 1, 1), torch.randn(3, 1, 1)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))

    def step(x, w, noise):
        y = auto_relu(x, w, 6.0, "abs", gradient, noise=noise)
        return y, *torch.autograd.grad((y * upstream).sum(), (x, w))

    x, w = x.requires_grad_(), w.requires_grad_()
    y, dx, dw = step(x, w, noise)
    compiled = torch.compile(lambda x, w, noise: auto_relu(x, w, 6.0, "abs", gradient, noise=noise),
                             fullgraph=gradient != "literal")
    compiled_y = compiled(x, w, noise)
    compiled_dx, compiled_dw = torch.autograd.grad((compiled_y * upstream).sum(), (x, w))
    assert_close(compiled_y, y, rtol=1e-6, atol=0)
    assert_close(compiled_dx, dx, rtol=1e-6, atol=0)
    assert_close(compiled_dw, dw, rtol=1e-6 if gradient != "literal" else 0, atol=0)


@needs_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("function", ["cliff_relu", "exact"])
def test_compiled_with_several_cliffs_keeps_inf_for_an_infinite_one(function):
    x, w = torch.tensor([-1.0, 0.5, 1.0, 5.0, 7.0, INF, NAN]), torch.tensor(1.0)

    def call(x, cliff):
        return cliff_relu(x, cliff) if function == "cliff_relu" else auto_relu(x, w, cliff, gradient=function)

    compiled = torch.compile(call, fullgraph=True)
    for cliff in (6.0, 1.0, INF, 0.5):  # from the second on, torch.compile takes the cliff as a symbol
        assert_close(compiled(x, cliff), call(x, cliff), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_cuda_graph_replays_what_eager_computes(gradient):
    def step(x, w, noise):
        y = auto_relu(sign_flip(x, sign), w, 6.0, "abs", gradient, noise=noise)
        return y.detach(), *torch.autograd.grad(y, (x, w), x.detach())

    x = torch.randn(4, 3, 5, 5, device="cuda").mul(20).requires_grad_()
    w = torch.full((3, 1, 1), 0.1, device="cuda", requires_grad=True)
    noise, sign = torch.randn(3, 1, 1, device="cuda"), torch.ones((), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(x, w, noise)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, w, noise)
    for w0 in (0.5, -1e-3, 0.0):
        with torch.no_grad():
            w.fill_(w0)
            x.normal_(0, 20)
            sign.neg_()
        graph.replay()
        for found, expected in zip(captured, step(x, w, noise), strict=True):
            assert torch.equal(found, expected)
