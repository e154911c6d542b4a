"""AutoReLU in one kernel each way (Triton), for CUDA. fer_lib.activations holds the formulas and the plain version.

Forward reads x and writes y once, as ReLU does. Backward of the exact and modelled gradients reads the upstream
gradient and y, as ReLU's does. The literal gradient of w is rounding error, so its kernel rounds where autograd of the
plain version rounds: no product is fused with the sum that it enters, quotients are correctly rounded, and the two sums
over a channel, which would cancel exactly, stay two.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

W_MIN, W_MAX = tl.constexpr(2.0**-80), tl.constexpr(2.0**80)    # as in fer_lib.activations
SMALL, LARGE = tl.constexpr(2.0**-100), tl.constexpr(2.0**120)
BLOCK = 1024            # elements of a tile
PROGRAMS = 528          # at most, for a sum over channels: four for each of an H100's multiprocessors


SUMMED = 16_384         # values that the literal gradient adds up for one w, at most: up to here its rounding error is
#                         known to be as large as the plain version's


def fits(x: Tensor, w: Tensor, gradient: str) -> bool:
    """Whether the kernels cover these: x float32 or half, dense, on the current CUDA device; w float32, scalar, per
    channel or per element; for "literal", sums of at most SUMMED values.
    """
    if gradient == "literal" and x.numel() > SUMMED * w.numel():
        return False
    here = x.is_cuda and x.get_device() == torch.cuda.current_device()
    types = x.dtype in (torch.float32, torch.bfloat16, torch.float16) and w.dtype == torch.float32
    return here and types and w.is_contiguous() and 0 < x.numel() < 2**31 and _layout(x, w) is not None


def auto_relu(x: Tensor, w: Tensor, cliff: float, divide_by: str, gradient: str, w_gradient: Tensor | None) -> Tensor:
    """`activations.auto_relu` for what `fits`. w_gradient: what w receives with "modelled"."""
    return _auto_relu(x, w, w_gradient, cliff, divide_by == "abs", gradient == "literal")


def _layout(x: Tensor, w: Tensor) -> tuple[int, int] | None:
    """(size, inner): the element at memory offset k belongs to w[k // inner % size]. None where no such pair exists.

    The kernels are compiled for each pair: with powers of two the index costs nothing.
    """
    rows = x.is_contiguous()
    if not (rows or x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return None
    if w.numel() == 1:
        return 1, 1
    if x.dim() == 4 and tuple(w.shape) == (x.shape[1], 1, 1):
        return x.shape[1], x.shape[2] * x.shape[3] if rows else 1
    return (w.numel(), 1) if rows and w.shape == x.shape[1:] else None


@torch.library.custom_op("fer_lib::auto_relu", mutates_args=(), schema="(Tensor x, Tensor w, Tensor? w_gradient, "
                         "float cliff, bool by_abs, bool literal) -> Tensor")
def _auto_relu(x, w, w_gradient, cliff, by_abs, literal):
    """An operator of its own, so that torch.compile takes the kernels as they are, rounding and all."""
    return _forward(x, w, cliff, by_abs, literal)


@torch.library.custom_op("fer_lib::auto_relu_backward", mutates_args=(), schema="(Tensor upstream, Tensor x_or_y, "
                         "Tensor w, float cliff, bool by_abs, bool literal) -> (Tensor, Tensor)")
def _auto_relu_backward(upstream, x_or_y, w, cliff, by_abs, literal):
    if literal:
        return _literal(upstream, x_or_y, w, cliff, by_abs)
    return _signed(upstream, x_or_y, w, by_abs)


@_auto_relu.register_fake
def _(x, w, w_gradient, cliff, by_abs, literal):
    return torch.empty_like(x)


@_auto_relu_backward.register_fake
def _(upstream, x_or_y, w, cliff, by_abs, literal):
    return torch.empty_like(x_or_y), torch.empty_like(w)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, w, w_gradient, *ctx.settings = inputs
    # literal needs x for the two sums of dL/dw, the pointwise form only where its output is not 0
    ctx.save_for_backward(x if ctx.settings[-1] else output, w, w_gradient)


def _backward(ctx, upstream: Tensor) -> tuple:
    x_or_y, w, w_gradient = ctx.saved_tensors
    dx, dw = _auto_relu_backward(upstream, x_or_y, w, *ctx.settings)
    return dx, dw if w_gradient is None else w_gradient, None, None, None, None


_auto_relu.register_autograd(_backward, setup_context=_keep)


def _signed(upstream: Tensor, y: Tensor, w: Tensor, by_abs: bool) -> tuple[Tensor, Tensor]:
    """(dL/dx, 0) of the pointwise form."""
    size, inner = _layout(y, w)
    upstream, dx, dw = _like(upstream, y), torch.empty_like(y), torch.empty_like(w)
    _signed_backward[(triton.cdiv(y.numel(), BLOCK),)](upstream, y, w, dx, dw, y.numel(), size, inner, by_abs, BLOCK)
    return dx, dw


def _literal(upstream: Tensor, x: Tensor, w: Tensor, cliff: float, by_abs: bool) -> tuple[Tensor, Tensor]:
    """(dL/dx, dL/dw) of eq. 2 as written, with the rounding of its autograd."""
    size, inner = _layout(x, w)
    rows = x.numel() // size                # elements that share a w
    block_c = 1 if inner > 1 else min(64, triton.next_power_of_2(size))
    block_r = BLOCK // block_c
    groups, tiles = triton.cdiv(size, block_c), triton.cdiv(rows, block_r)
    splits = min(triton.cdiv(tiles, 2), triton.cdiv(PROGRAMS, groups))
    upstream, dx, dw = _like(upstream, x), torch.empty_like(x), torch.empty_like(w)
    sums = torch.empty(2, splits, size, dtype=torch.float32, device=x.device)
    _literal_backward[(groups, splits)](upstream, x, w, dx, sums, rows, size, inner, cliff, cliff != math.inf, by_abs,
                                        block_r, block_c, enable_fp_fusion=False)
    _finish[(triton.cdiv(size, 8),)](sums, w, dw, splits, size, by_abs, 128, 8, enable_fp_fusion=False)
    return dx, dw


def _forward(x: Tensor, w: Tensor, cliff: float, by_abs: bool, literal: bool) -> Tensor:
    size, inner = _layout(x, w)
    y = torch.empty_like(x)
    _forward_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, w, y, x.numel(), size, inner, cliff, cliff != math.inf, by_abs,
                                                      literal, BLOCK, enable_fp_fusion=False)
    return y


def _like(upstream: Tensor, x: Tensor) -> Tensor:
    """The upstream gradient in x's memory layout."""
    return upstream if upstream.stride() == x.stride() else torch.empty_like(x).copy_(upstream)


@triton.jit
def _sign(w):
    """+1 or -1, sign(0) = +1; NaN stays NaN."""
    return tl.where(w < 0, -1.0, tl.where(w >= 0, 1.0, w))


@triton.jit
def _magnitude(w):
    """|w| within [W_MIN, W_MAX]; NaN stays NaN."""
    a = tl.abs(w)
    a = tl.where(a < W_MIN, W_MIN, a)
    return tl.where(a > W_MAX, W_MAX, a)


@triton.jit
def _quotient(a, d, r):
    """a / d, correctly rounded, from r = 1 / d, without the GPU's slow division (Markstein 1990).

    Within an ulp where a or the quotient is so small (2^-100) or large that a remainder leaves the range of float32.
    """
    q = a * r
    better = tl.fma(tl.fma(-q, d, a), r, q)
    best = tl.fma(tl.fma(-better, d, a), r, better)
    return tl.where((tl.minimum(tl.abs(a), tl.abs(q)) > SMALL) & (tl.abs(q) < LARGE), best, q)


@triton.jit
def _forward_kernel(x_ptr, w_ptr, y_ptr, n, size: tl.constexpr, inner: tl.constexpr, cliff, CUT: tl.constexpr,
                    BY_ABS: tl.constexpr, LITERAL: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + k, mask=k < n, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + k // inner % size)
    sign, magnitude = _sign(w), _magnitude(w)
    product = x * (magnitude * sign)
    value = product if LITERAL else x * sign
    outside = value <= 0
    if CUT:
        outside = outside | (product >= cliff)
    value = tl.where(outside, 0.0, value)
    if LITERAL:
        value = tl.div_rn(value, magnitude if BY_ABS else magnitude * sign)
    elif not BY_ABS:
        value = value * sign
    tl.store(y_ptr + k, value.to(y_ptr.dtype.element_ty), mask=k < n)


@triton.jit
def _signed_backward(upstream_ptr, y_ptr, w_ptr, dx_ptr, dw_ptr, n, size: tl.constexpr, inner: tl.constexpr,
                     BY_ABS: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dw_ptr + k, tl.zeros([BLOCK], tl.float32), mask=k < size)      # w has at most as many elements as x
    upstream = tl.load(upstream_ptr + k, mask=k < n, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + k, mask=k < n, other=0.0).to(tl.float32)
    if BY_ABS:
        upstream = upstream * _sign(tl.load(w_ptr + k // inner % size))
    tl.store(dx_ptr + k, tl.where(y != 0, upstream, 0.0).to(dx_ptr.dtype.element_ty), mask=k < n)


@triton.jit
def _w_gradient(w, of_product, of_divisor, BY_ABS: tl.constexpr):
    """dL/dw from the two sums, which all but cancel: added in autograd's order, 0 outside [W_MIN, W_MAX]."""
    sign, a = _sign(w), tl.abs(w)
    total = of_product + (of_divisor * sign if BY_ABS else of_divisor)
    return tl.where((a >= W_MIN) & (a <= W_MAX), total, 0.0)


@triton.jit
def _literal_backward(upstream_ptr, x_ptr, w_ptr, dx_ptr, sums_ptr, rows, size: tl.constexpr, inner: tl.constexpr,
                      cliff, CUT: tl.constexpr, BY_ABS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """dL/dx, and for each split and w the two sums of dL/dw: by the product x w, and by the divisor."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split, splits = tl.program_id(1), tl.num_programs(1)
    w = tl.load(w_ptr + c, mask=c < size, other=1.0)
    signed = _magnitude(w) * _sign(w)
    divisor = _magnitude(w) if BY_ABS else signed
    inverse = tl.div_rn(tl.full([BLOCK_C], 1.0, tl.float32), divisor)[None, :]
    divisor = divisor[None, :]
    of_product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    of_divisor = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(split * BLOCK_R, rows, splits * BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        k = (r // inner * size)[:, None] * inner + c[None, :] * inner + (r % inner)[:, None]
        inside = (r < rows)[:, None] & (c < size)[None, :]
        upstream = tl.load(upstream_ptr + k, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + k, mask=inside, other=0.0).to(tl.float32)
        product = x * signed[None, :]
        outside = product <= 0
        if CUT:
            outside = outside | (product >= cliff)
        passed = tl.where(outside, 0.0, _quotient(upstream, divisor, inverse))      # dL/d(x w)
        tl.store(dx_ptr + k, (passed * signed[None, :]).to(dx_ptr.dtype.element_ty), mask=inside)
        of_product += passed * x
        y = _quotient(tl.where(outside, 0.0, product), divisor, inverse)
        of_divisor += -upstream * _quotient(y, divisor, inverse)
    first, second = tl.sum(of_product, 0), tl.sum(of_divisor, 0)
    tl.store(sums_ptr + split * size + c, first, mask=c < size)
    tl.store(sums_ptr + (splits + split) * size + c, second, mask=c < size)


@triton.jit
def _finish(sums_ptr, w_ptr, dw_ptr, splits, size, BY_ABS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """dL/dw from the sums (2, splits, size)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    of_product = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    of_divisor = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        k, inside = s[:, None] * size + c[None, :], (s < splits)[:, None] & (c < size)[None, :]
        of_product += tl.load(sums_ptr + k, mask=inside, other=0.0)
        of_divisor += tl.load(sums_ptr + splits * size + k, mask=inside, other=0.0)
    w = tl.load(w_ptr + c, mask=c < size, other=1.0)
    tl.store(dw_ptr + c, _w_gradient(w, tl.sum(of_product, 0), tl.sum(of_divisor, 0), BY_ABS), mask=c < size)
