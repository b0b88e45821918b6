"""Operations that treat every element alike: they keep the axes, and tie those of several arguments."""

from __future__ import annotations

import torch

from net2net.recording import Call
from net2net.spaces import Axis, Trace, Value, fix, tie


def _broadcast(trace: Trace, call: Call, values: list[Value], ndim: int) -> list[Axis | None]:
    """Axes of a result whose arguments are aligned at their last dimensions; equal dimensions are tied."""
    out: list[Axis | None] = []
    for dim in range(-ndim, 0):
        aligned = [v for v in values if v.tensor.ndim >= -dim]
        size = max(v.tensor.shape[dim] for v in aligned)
        reason = f"{call.where} joins them with a tensor that cannot follow"
        full = [v.axes[dim] for v in aligned if v.tensor.shape[dim] == size]
        for v in aligned:
            if v.tensor.shape[dim] != size:  # a single channel spread over many has to stay single
                fix(v.axes[dim], f"{call.where} broadcasts them")
        for other in full[1:]:
            tie(full[0], other, reason)
        out.append(full[0])
    return out


def elementwise(trace: Trace, call: Call) -> list[Axis | None]:
    return _broadcast(trace, call, call.inputs, call.out.ndim)


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


def softmax(trace: Trace, call: Call) -> list[Axis | None]:
    axes = list(call.inputs[0].axes)
    dim = call.get(1, "dim")
    if not isinstance(dim, int):
        raise call.unsupported("give its dim")
    fix(axes[dim], f"{call.where} normalises over them")
    axes[dim] = None
    return axes


def reduction(trace: Trace, call: Call) -> list[Axis | None]:
    """Mean, sum, extremes over dimensions: over channels they need every channel exactly once."""
    value = call.inputs[0]
    if not isinstance(call.out, torch.Tensor):
        raise call.unsupported("it returns several tensors; use amax or amin")
    dims = call.get(1, "dim", call.kwargs.get("axis"))
    if isinstance(dims, int):
        dims = (dims,)
    elif not isinstance(dims, (tuple, list)) or not dims:  # none, or a dtype in their place
        dims = range(value.tensor.ndim)
    dims = {d % value.tensor.ndim for d in dims}
    for dim in dims:
        fix(value.axes[dim], f"{call.where} reduces over them")
    if call.out.ndim == value.tensor.ndim:
        return [None if d in dims else axis for d, axis in enumerate(value.axes)]
    return [axis for d, axis in enumerate(value.axes) if d not in dims]


UNARY = """
relu relu6 hardtanh hardswish hardsigmoid silu mish gelu sigmoid tanh elu selu celu leaky_relu rrelu softplus softsign
log_sigmoid threshold hardshrink softshrink tanhshrink clamp clip clamp_min clamp_max neg abs exp expm1 log log1p sqrt
rsqrt square reciprocal sign erf sin cos floor ceil round dropout dropout1d dropout2d dropout3d alpha_dropout
feature_alpha_dropout bernoulli nan_to_num
"""
BINARY = """
add sub subtract mul multiply div divide true_divide __radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ rsub maximum
minimum pow __rpow__ addcmul lerp where
"""
COPIES = """
zeros_like ones_like full_like empty_like
contiguous clone detach to float half double bfloat16 type type_as cpu cuda requires_grad
"""


def constant(trace: Trace, call: Call) -> list[Axis | None]:
    """A new tensor of a size given in numbers."""
    return [None] * call.out.ndim


RULES = {
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"), constant),
    **dict.fromkeys((UNARY + BINARY).split(), elementwise),
    **dict.fromkeys(COPIES.split(), same),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), reduction),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    "prelu": prelu,
}
