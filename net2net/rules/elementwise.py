"""Operations that treat every element alike: they keep the axes, and tie those of several arguments."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.rules.opaque import opaque
from net2net.spaces import Axis, fix, tie

if TYPE_CHECKING:
    from net2net.trace import Trace


def broadcast(call: Call, values: list[tuple[list[int], list[Axis | None]]], ndim: int) -> list[Axis | None]:
    """Axes of a result whose arguments (shape, axes) are aligned at their last dimensions; equal ones are tied."""
    out: list[Axis | None] = []
    for dim in range(-ndim, 0):
        aligned = [(shape[dim], axes[dim]) for shape, axes in values if len(shape) >= -dim]
        size = max(n for n, _ in aligned)
        full = [axis for n, axis in aligned if n == size]
        for n, axis in aligned:
            if n != size:  # a single channel spread over many has to stay single
                fix(axis, f"{call.where} broadcasts them")
        for other in full[1:]:
            tie(full[0], other, f"{call.where} joins them with a tensor that cannot follow")
        out.append(full[0])
    return out


def elementwise(trace: Trace, call: Call) -> list[Axis | None]:
    return broadcast(call, [(v.tensor.shape, v.axes) for v in call.inputs], call.out.ndim)


def broadcast_tensors(trace: Trace, call: Call) -> list[list[Axis | None]]:
    axes = broadcast(call, [(v.tensor.shape, v.axes) for v in call.inputs], call.out[0].ndim)
    return [list(axes) for _ in call.out]


def prelu(trace: Trace, call: Call) -> list[Axis | None]:
    x, weight = call.inputs
    if weight.tensor.numel() == 1:
        fix(weight.axes[0], "it is one slope for all channels")
    else:
        tie(x.axes[1], weight.axes[0], f"{call.where} has a slope for each of them")
    return list(x.axes)


def same(trace: Trace, call: Call) -> list[Axis | None]:
    """The first argument's axes, whatever else is passed (a dtype, a device, another tensor's type)."""
    return list(call.inputs[0].axes)


def along(trace: Trace, call: Call) -> list:
    """An operation along one or several dimensions, e.g. softmax or a sort: what lies there stays as it is.

    The places that some also return are among the same neighbours.
    """
    position = 2 if call.name in ("normalize", "roll", "topk") else 1
    default = {"normalize": 1, "sort": -1, "argsort": -1, "topk": -1}.get(call.name)
    dims = call.get(position, "dim", call.kwargs.get("dims", default))
    if isinstance(dims, int):
        dims = call.args[1:] if call.name == "flip" and len(call.args) > 2 else (dims,)
    if not isinstance(dims, (tuple, list)):
        raise call.unsupported("give its dim")
    axes = list(call.inputs[0].axes)
    for dim in dims:
        fix(axes[dim], f"{call.where} needs every one of them as it is")
        axes[dim] = None
    return axes if isinstance(call.out, torch.Tensor) else [list(axes) for _ in call.out]


def reduced(call: Call) -> set[int]:
    """The dimensions that a mean, sum or such is taken over."""
    ndim = call.inputs[0].tensor.ndim
    dims = call.get(2 if call.name in ("norm", "linalg_vector_norm") else 1, "dim", call.kwargs.get("axis"))
    if isinstance(dims, bool):  # var(x, unbiased)
        dims = None
    if isinstance(dims, int):
        dims = (dims,)
    elif not isinstance(dims, (tuple, list)) or not dims:  # none, or a dtype in their place
        dims = range(ndim)
    return {d % ndim for d in dims}


def reduction(trace: Trace, call: Call) -> list:
    """Mean, sum, extremes over dimensions. Over channels, a mean or variance stays the same where every channel comes
    equally often, an extreme wherever every channel comes at all; a sum or norm needs every channel exactly once."""
    value, dims = call.inputs[0], reduced(call)
    results = [call.out] if isinstance(call.out, torch.Tensor) else list(call.out)
    biased = call.kwargs.get("correction") == 0 or call.get(2, "unbiased") is False
    for dim in dims:
        reason = f"{call.where} reduces over them"
        if call.name == "mean" or (biased and call.name in ("var", "std", "var_mean", "std_mean")):
            trace.evenly(value.axes[dim], reason)
        elif not _is_extreme(call):
            fix(value.axes[dim], reason)
        elif len(results) > 1 and not results[1].is_floating_point():  # of copies it says which one: nobody may ask
            reason = f"{call.where} tells the places of their extremes"
            trace.unread(results[1], partial(fix, value.axes[dim], reason))
    if results[0].ndim == value.tensor.ndim:
        axes = [None if d in dims else axis for d, axis in enumerate(value.axes)]
    else:
        axes = [axis for d, axis in enumerate(value.axes) if d not in dims]
    return axes if isinstance(call.out, torch.Tensor) else [list(axes) for _ in results]


def difference(trace: Trace, call: Call) -> list[Axis | None]:
    """A loss of two tensors, element by element; of all the mean or the sum."""
    shapes = [(v.tensor.shape, v.axes) for v in call.inputs]
    axes = broadcast(call, shapes, max(len(shape) for shape, _ in shapes))
    if call.out.ndim == len(axes):
        return axes
    mean = call.get(None, "reduction", "mean") == "mean" and call.get(None, "size_average") is not False
    for axis in axes:
        if mean:
            trace.evenly(axis, f"{call.where} reduces over them")
        else:
            fix(axis, f"{call.where} reduces over them")
    return []


def quantile(trace: Trace, call: Call) -> list[Axis | None]:
    """Over one dimension or all; of several quantiles there is one after the other along a new first dimension."""
    value, dim = call.inputs[0], call.get(2, "dim")
    if dim is None:
        return opaque(trace, call)
    fix(value.axes[dim], f"{call.where} reduces over them")
    axes: list[Axis | None] = [None if axis is value.axes[dim] else axis for axis in value.axes]
    if not call.get(3, "keepdim", False):
        del axes[dim]
    return [None] * (call.out.ndim - len(axes)) + axes


def cosine(trace: Trace, call: Call) -> list[Axis | None]:
    """A similarity along one dimension, for each position of the others."""
    dim = call.get(2, "dim", 1)
    ndim = max(value.tensor.ndim for value in call.inputs)
    axes = broadcast(call, [(v.tensor.shape, v.axes) for v in call.inputs], ndim)
    fix(axes[dim], f"{call.where} reduces over them")
    return [axis for d, axis in enumerate(axes) if d != dim % ndim]


def _is_extreme(call: Call) -> bool:
    """Whether a reduction gives a number that is among those that it reduces, whichever of its copies."""
    if call.name in ("norm", "linalg_vector_norm"):
        return call.get(1, "ord", call.kwargs.get("p")) in (inf, -inf)
    return call.name in EXTREMES


def extreme(trace: Trace, call: Call) -> list:
    """`max`, `min` and `median`: of two tensors, or along a dimension, with a place beside each value."""
    if isinstance(call.get(1, "other"), torch.Tensor):
        return elementwise(trace, call)
    return reduction(trace, call)


UNARY = """
relu relu6 hardtanh hardswish hardsigmoid silu mish gelu sigmoid tanh elu selu celu leaky_relu softplus softsign
log_sigmoid threshold _threshold hardshrink softshrink tanhshrink clamp clip clamp_min clamp_max neg abs exp expm1 log
log1p sqrt rsqrt square reciprocal sign erf sin cos floor ceil round dropout dropout1d dropout2d dropout3d alpha_dropout
feature_alpha_dropout nan_to_num zero fill isnan isfinite isinf logical_not
real imag conj conj_physical resolve_conj angle
tan asin acos atan sinh cosh asinh acosh atanh log2 log10 exp2 erfc erfinv logit trunc frac sgn
positive absolute negative __neg__ __invert__ bitwise_not
arcsin arccos arctan arcsinh arccosh arctanh deg2rad rad2deg sinc lgamma digamma fix signbit isposinf isneginf isreal
special_expit special_logit special_log1p special_expm1 special_exp2 special_erf special_erfc special_ndtr
"""
BINARY = """
add sub subtract mul multiply div divide true_divide __radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ rsub maximum
minimum pow __pow__ __rpow__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
addcmul addcdiv lerp gt lt ge le eq ne logical_and logical_or logical_xor
greater greater_equal less less_equal not_equal arctan2 float_power ldexp logaddexp2 heaviside isclose
atan2 fmod remainder floor_divide hypot xlogy copysign fmax fmin logaddexp __mod__ __floordiv__ __rfloordiv__
copy complex polar __and__ __rand__ __or__ __ror__ __xor__ bitwise_and bitwise_or bitwise_xor masked_fill
"""
COPIES = """
zeros_like ones_like full_like empty_like
contiguous clone detach data to float half double bfloat16 type type_as cpu cuda requires_grad
bool byte char short int long alias cfloat cdouble resolve_neg
"""
ALONG = "softmax softmin log_softmax normalize cumsum logcumsumexp cumprod cummax cummin flip roll sort argsort topk"
EXTREMES = frozenset(["amax", "amin", "aminmax", "max", "min", "all", "any", "_is_all_true", "_is_any_true"])
REDUCTIONS = """
mean nanmean sum amax amin aminmax var std var_mean std_mean norm linalg_vector_norm argmax argmin logsumexp prod nansum
count_nonzero all any _is_all_true _is_any_true
"""


def fourier(trace: Trace, call: Call) -> list[Axis | None]:
    """A Fourier transform: along its dimensions all is needed, whatever lies along the others is transformed alike."""
    ndim, several = call.inputs[0].tensor.ndim, call.name[-1] in "2n"
    dims = call.get(1 if call.name.endswith("shift") else 2, "dim")
    if dims is None:
        sizes = call.get(1, "s") if call.name.endswith("n") else None
        dims = range(ndim) if call.name.endswith("shift") else (-1,)
        if several:
            dims = (-2, -1) if call.name.endswith("2") else range(-len(sizes), 0) if sizes else range(ndim)
    axes = list(call.inputs[0].axes)
    for dim in (dims,) if isinstance(dims, int) else dims:
        fix(axes[dim], f"{call.where} needs every one of them as it is")
        axes[dim] = None
    return axes


def as_pairs(trace: Trace, call: Call) -> list[Axis | None]:
    """Complex numbers as two real ones along a last dimension, or back."""
    axes = call.inputs[0].axes
    if call.name == "view_as_real":
        return [*axes, None]
    fix(axes[-1], f"{call.where} makes numbers of two of them")
    return list(axes[:-1])


FOURIER = [f"fft_{kind}{way}fft{n}" for kind in ("", "i") for way in ("", "r", "h") for n in ("", "2", "n")]


def noise(trace: Trace, call: Call) -> list[Axis | None]:
    """Random numbers, or slopes, of a tensor's shape. In training mode each copy may have its own, as in dropout."""
    drawn = call.name != "rrelu" or call.get(3, "training", False)
    return same(trace, call) if trace.training or not drawn else opaque(trace, call)


def constant(trace: Trace, call: Call) -> list[Axis | None]:
    """A new tensor of a size given in numbers."""
    return [None] * call.out.ndim


def where(trace: Trace, call: Call) -> list:
    """Of a condition alone it returns the places where that holds."""
    return elementwise(trace, call) if isinstance(call.out, torch.Tensor) else opaque(trace, call)


RULES = {
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"), constant),
    **dict.fromkeys((UNARY + BINARY).split(), elementwise),
    **dict.fromkeys(COPIES.split(), same),
    **dict.fromkeys(REDUCTIONS.split(), reduction),
    **dict.fromkeys(ALONG.split(), along),
    **dict.fromkeys(("max", "min", "median", "nanmedian"), extreme),
    **dict.fromkeys((*FOURIER, "fft_fftshift", "fft_ifftshift"), fourier),
    **dict.fromkeys(("view_as_real", "view_as_complex"), as_pairs),
    **dict.fromkeys(("rand_like", "randn_like", "rrelu"), noise),
    **dict.fromkeys(("quantile", "nanquantile"), quantile),
    "cosine_similarity": cosine,
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), difference),
    "where": where,
    "broadcast_tensors": broadcast_tensors,
    "prelu": prelu,
}
