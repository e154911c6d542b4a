"""The paper's activations, each a function and a module: CliffReLU (eq. 1), AutoReLU (eq. 2), sign flip (Algorithm 1).

Hong & Jeong, "Dynamic Noise Injection for Facial Expression Recognition In-the-Wild", CVPR Workshops 2023, section 3.
"""

import importlib.util
import math
import warnings

import torch
from torch import Tensor, nn

DIVIDE_BY = ("abs", "signed")
GRADIENTS = ("literal", "exact", "modelled")
# |w| is used within [2^-80, 2^80]: w = 0 gives 0/0, and x w and the terms g x / w of dL/dw must stay in fp32's range
# (2^-149 to 2^128) with room for x and g. Powers of two, so that at w = 0 neither product nor quotient rounds.
W_MIN, W_MAX = 2.0**-80, 2.0**80
FUSED = True  # on CUDA AutoReLU is one kernel each way (fer_lib.fused); False: the plain version everywhere
TRITON = importlib.util.find_spec("triton") is not None


def cliff_relu(x: Tensor, cliff: float) -> Tensor:
    """CliffReLU, eq. 1: y = x if 0 < x < C else 0, element by element; dy/dx is 1 inside, 0 outside and at both edges.

    NaN stays NaN. C = inf means no upper cut, so +inf passes then and is 0 for every finite C. Half precision is
    compared in float32, and a C beyond the range of that counts as inf. ValueError unless cliff > 0.
    """
    _check_cliff(cliff)
    wide = _wide(x)  # fp16 would round the cliff, and refuses one above 65504
    outside = _outside(wide, wide, cliff)
    return torch.where(outside, 0, x)  # not where(inside, x, 0), which would turn NaN into 0


class CliffReLU(nn.Module):
    """`cliff_relu` (eq. 1) as a module, for x of any shape."""

    def __init__(self, cliff: float = 6.0):
        super().__init__()
        _check_cliff(cliff)
        self.cliff = cliff

    def forward(self, x: Tensor) -> Tensor:
        return cliff_relu(x, self.cliff)

    def extra_repr(self) -> str:
        return f"cliff={self.cliff}"


def auto_relu(
    x: Tensor,
    w: Tensor,
    cliff: float,
    divide_by: str = "abs",
    gradient: str = "literal",
    *,
    noise: Tensor | None = None,
    noise_scale: float = 2e-10,
) -> Tensor:
    """AutoReLU, eq. 2: y = CliffReLU(x w) / |w|, or / w with divide_by="signed".

    Point by point this is ReLU(sign(w) x), cut to 0 where |x w| >= C ("signed": x at the same places, so min(x, 0) for
    w < 0). dL/dw is therefore 0 almost everywhere, and `gradient` chooses what w receives:

    - "literal": plain autograd of eq. 2 as written. Its rounding error is what the paper's method runs on.
    - "exact": the true gradient, a tensor of zeros and never None, so that Adam still decays w.
    - "modelled": noise * noise_scale / max(|w|, 1e-8), whatever the loss; `noise` holds N(0, 1) draws of w's shape.

    x (N, C, H, W) or any shape; w broadcasts against it: (C, 1, 1) per channel, () scalar, (C, H, W) per element. y has
    the dtype and memory format of x; half precision is computed in float32, also under autocast. sign(0) is +1 and |w|
    is held within [2^-80, 2^80] (literal: zero gradient to w beyond), so no w gives NaN or inf; NaN stays NaN.
    ValueError for an unknown choice, a cliff not > 0, a w that does not broadcast, noise missing or misshapen.
    """
    _check_cliff(cliff)
    _check_choice("divide_by", divide_by, DIVIDE_BY)
    _check_choice("gradient", gradient, GRADIENTS)
    _check_broadcast("w", w, x)
    w_gradient = _modelled_gradient(w, noise, noise_scale) if gradient == "modelled" else None
    if FUSED and x.is_cuda and not TRITON:
        warnings.warn("Triton is not installed: AutoReLU is unfused and slower on CUDA", UserWarning, stacklevel=2)
    elif FUSED and x.is_cuda and (gradient == "literal" or not torch.compiler.is_compiling()):
        from fer_lib import fused  # late: without CUDA nothing needs Triton. torch.compile
        # joins the pointwise form with what stands beside it, which is faster still

        if fused.fits(x, w, gradient):
            return fused.auto_relu(x, w, cliff, divide_by, gradient, w_gradient)
    if gradient == "literal" and torch.compiler.is_compiling():
        from fer_lib import uncompiled  # its rounding error is the signal, and a compiler would make another

        return uncompiled.literal(x, w, cliff, divide_by)
    if gradient == "literal":
        return _literal(x, w, cliff, divide_by)
    return _SignedReLU.apply(x, w, w_gradient, cliff, divide_by)


class AutoReLU(nn.Module):
    """`auto_relu` (eq. 2) as a module. shape of w: (C, 1, 1) per channel, () scalar, (C, H, W) per element.

    Training uses `w`, evaluation `w_forward`: the w of the last training forward, because raw w just after an optimiser
    step has mixed signs near 0. The dynamic method writes `w_forward` before each training forward. With
    gradient="modelled", w is a buffer that the method writes at each step, and no parameter.
    UserWarning for w0 outside (0, 1); ValueError for w0 that is 0, NaN or infinite.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        w0: float = 0.1,
        cliff: float = 6.0,
        divide_by: str = "abs",
        gradient: str = "literal",
    ):
        super().__init__()
        _check_cliff(cliff)
        _check_choice("divide_by", divide_by, DIVIDE_BY)
        _check_choice("gradient", gradient, GRADIENTS)
        _check_w0(w0)
        self.w0, self.cliff, self.divide_by, self.gradient = w0, cliff, divide_by, gradient
        w = torch.full(shape, float(w0))
        if gradient == "modelled":
            self.register_buffer("w", w)
        else:
            self.w = nn.Parameter(w)
        self.register_buffer("w_forward", w.clone())

    def forward(self, x: Tensor) -> Tensor:
        # modelled has exact's forward, and its w is no parameter: the method that writes w adds the noise
        gradient = "exact" if self.gradient == "modelled" else self.gradient
        return auto_relu(x, self.w if self.training else self.w_forward, self.cliff, self.divide_by, gradient)

    def extra_repr(self) -> str:
        return (
            f"shape={tuple(self.w.shape)}, w0={self.w0}, cliff={self.cliff}, "
            f"divide_by={self.divide_by!r}, gradient={self.gradient!r}"
        )


def sign_flip(x: Tensor, sign: Tensor) -> Tensor:
    """Algorithm 1's "feature *= -1": y = sign x, exact, in the dtype and memory format of x.

    x (N, C, H, W) or any shape; sign holds +1 or -1 and broadcasts against x, as () or (C, 1, 1); else ValueError.
    """
    _check_broadcast("sign", sign, x)
    return x * sign.to(x.dtype)


class SignFlip(nn.Module):
    """`sign_flip` as a module: the buffer `sign`, () or (C, 1, 1), starts at +1; the method that flips writes it.

    It acts in evaluation too: a network is evaluated as it was trained last.
    """

    def __init__(self, shape: tuple[int, ...] = ()):
        super().__init__()
        self.register_buffer("sign", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return sign_flip(x, self.sign)

    def extra_repr(self) -> str:
        return f"shape={tuple(self.sign.shape)}"  # not the sign itself: printing a model must not wait for the GPU


def _literal(x: Tensor, w: Tensor, cliff: float, divide_by: str) -> Tensor:
    """Eq. 2 as written."""
    wide = _wide(x)
    w = _bounded(w, wide.dtype)
    divisor = w.abs() if divide_by == "abs" else w
    return (cliff_relu(wide * w, cliff) / divisor).to(x.dtype)


class _SignedReLU(torch.autograd.Function):
    """AutoReLU's pointwise form and its true gradient in x; w receives `w_gradient`, or zeros where that is None.

    The backward pass needs no mask of its own: y is not 0 exactly where x passed, and the next layer keeps y anyway.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor, w_gradient: Tensor | None, cliff: float, divide_by: str) -> Tensor:
        sign = _sign(w).to(x.dtype)
        signed = x * sign
        wide = _wide(x)
        product = wide * _bounded(w, wide.dtype)  # eq. 2's own, so that the cut is literal's
        return torch.where(_outside(signed, product, cliff), 0, signed if divide_by == "abs" else signed * sign)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, w, w_gradient, _, ctx.divide_by = inputs
        ctx.save_for_backward(output, w, w_gradient)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple:
        y, w, w_gradient = ctx.saved_tensors
        if ctx.divide_by == "abs":
            upstream = upstream * _sign(w).to(upstream.dtype)
        x_gradient = torch.where(y != 0, upstream, 0)
        return x_gradient, torch.zeros_like(w) if w_gradient is None else w_gradient, None, None, None


def _outside(signed: Tensor, product: Tensor, cliff: float) -> Tensor:
    """Where eq. 1 gives 0: signed <= 0 or product >= C; False for NaN, and for +inf unless C is finite."""
    outside = signed <= 0
    if cliff != math.inf:
        # The difference, not product >= C: inf - inf is NaN. torch.compile takes a C that varies as a symbol, and
        # then this branch even for C = inf.
        outside = outside | (product - cliff >= 0)
    return outside


def _wide(x: Tensor) -> Tensor:
    """x in float32 at least. Autocast leaves pointwise arithmetic on float32 alone, so no autocast region is needed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sign(w: Tensor) -> Tensor:
    """+1 or -1, with sign(0) = sign(-0.0) = +1; NaN stays NaN."""
    w = w.detach()
    return torch.where(w < 0, -1, torch.where(w >= 0, 1, w))


def _bounded(w: Tensor, dtype: torch.dtype) -> Tensor:
    """w with |w| held within [W_MIN, W_MAX]: the same bits inside, no gradient outside."""
    return w.to(dtype).abs().clamp(W_MIN, W_MAX) * _sign(w).to(dtype)


def _modelled_gradient(w: Tensor, noise: Tensor | None, noise_scale: float) -> Tensor:
    if noise is None or noise.shape != w.shape:
        found = "None" if noise is None else f"shape {tuple(noise.shape)}"
        raise ValueError(f'gradient="modelled" needs noise of the shape of w, {tuple(w.shape)}, got {found}')
    wide = _wide(w.detach())  # fp16 holds neither 1e-8 nor 2e-10
    return (noise.detach().to(wide.dtype) * noise_scale / wide.abs().clamp_min(1e-8)).to(w.dtype)


def _check_cliff(cliff: float) -> None:
    if not cliff > 0:
        raise ValueError(f"cliff must be a number > 0 (inf: no cut), got {cliff!r}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _check_broadcast(name: str, small: Tensor, x: Tensor) -> None:
    fits = all(have in (1, want) for have, want in zip(small.shape[::-1], x.shape[::-1], strict=False))
    if small.dim() > x.dim() or not fits:
        raise ValueError(f"{name} of shape {tuple(small.shape)} does not broadcast against x of shape {tuple(x.shape)}")


def _check_w0(w0: float) -> None:
    if w0 == 0 or not math.isfinite(w0):
        raise ValueError(f"w0 must be finite and not 0, best inside (0, 1), got {w0!r}")
    if not 0 < w0 < 1:
        warnings.warn(
            f"w0 = {w0} is outside (0, 1); the paper, section 3.2.1: AutoReLU can be applied only if all w are "
            "initialized with a positive value, but less than 1",
            UserWarning,
            stacklevel=3,  # the line that builds the AutoReLU
        )
