"""Operations that end one channel space and start another: convolutions and matrix products with a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.rules.elementwise import broadcast
from net2net.rules.opaque import opaque
from net2net.spaces import Axis, cut, fix, length, tie

if TYPE_CHECKING:
    from net2net.trace import Trace, Value


def _layer(trace: Trace, call: Call, out_dim: int, in_dim: int, channels: int) -> list[Axis | None]:
    """A layer that sums its input over dimension `channels` with a weight of dimensions (`out_dim`, `in_dim`)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    axes = trace.axes_of(x)
    channels %= x.ndim
    if trace.is_parameter(weight):
        w = trace.weight(call, weight, out_dim, in_dim)
    else:  # computed from others: what it makes can grow, how what it sums over would depends on how
        w = trace.computed_weight(weight, out_dim, call.where)
        fix(axes[channels], f"{call.where} sums over them with a weight that is computed")
    tie(axes[channels], w[in_dim], f"{call.where} reads them from the network's input or a tensor that cannot follow")
    if bias is not None:
        _bias(trace, call, bias, w[out_dim])
    out = list(axes)
    out[channels] = w[out_dim]
    return out


def _bias(trace: Trace, call: Call, bias: torch.Tensor, made: Axis | None) -> None:
    *rest, own = trace.axes_of(bias) or [None]
    if bias.ndim and (made is None or bias.shape[-1] == length(made)):
        tie(own, made, f"the bias of {call.where} cannot follow them")
    else:  # one number for all
        rest.append(own)
    for axis in rest:
        fix(axis, f"the bias of {call.where} is spread over others")


def convolution(trace: Trace, call: Call) -> list[Axis | None]:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    transposed = call.name.startswith("conv_transpose")
    groups = call.get(6, "groups", 1)
    channels = x.ndim - (weight.ndim - 1)  # an image without a batch dimension has its channels first
    for axis in trace.axes_of(x)[channels + 1 :]:
        fix(axis, f"{call.where} slides along them")
    if groups == 1:
        out = _layer(trace, call, *((1, 0) if transposed else (0, 1)), channels)
    elif transposed and weight.shape[:1] != (groups,):
        out = opaque(trace, call)
    else:
        out = _grouped(trace, call, groups, channels)
    return [axis if dim <= channels else None for dim, axis in enumerate(out)]


def _grouped(trace: Trace, call: Call, groups: int, channels: int) -> list[Axis | None]:
    """A convolution in groups. Depthwise, it grows by more groups; else every group grows alike, by one shared map."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    transposed = call.name.startswith("conv_transpose")
    if trace.is_parameter(weight):
        w = trace.weight(call, weight, 0, 1)
    elif weight.shape[1] == 1 and not transposed:  # a filter for each channel, e.g. the same one, spread over all
        w = trace.computed_weight(weight, 0, call.where)
    else:
        return opaque(trace, call)
    axes = trace.axes_of(x)
    reason = f"the grouped convolution {call.where} reads them in a way that cannot follow"
    made = w[0]
    if transposed:  # [groups, multiplier, ...]
        fix(w[1], "each group of a depthwise convolution reads a single channel")
        tie(w[0], axes[channels], reason)
        made = tuple((space, repeat * weight.shape[1]) for space, repeat in w[0])
    elif weight.shape[1] == 1:
        fix(w[1], "each group of a depthwise convolution reads a single channel")
        multiplier = weight.shape[0] // groups
        if axes[channels] is None:
            fix(w[0], reason)
        else:
            tie(w[0], tuple((space, repeat * multiplier) for space, repeat in axes[channels]), reason)
    else:
        for axis, into in ((axes[channels], groups), (w[0], groups)):
            if axis is not None:
                first, *others = cut(axis, [length(axis) // into] * into, reason)
                for other in others:
                    tie(first, other, reason)
        tie(w[1], cut(axes[channels], [weight.shape[1]], reason)[0] if axes[channels] is not None else None, reason)
    if bias is not None:
        _bias(trace, call, bias, made)
    out = list(axes)
    out[channels] = made
    return out


def linear(trace: Trace, call: Call) -> list[Axis | None]:
    return _layer(trace, call, 0, 1, -1)


def matmul(trace: Trace, call: Call) -> list[Axis | None]:
    """A product of two computed tensors [..., l, k] and [..., k, n]: k stays, everything else can grow, e.g. heads."""
    a, b = (trace.value_of(t) for t in call.args[:2]) if len(call.args) > 1 else (call.inputs[0], call.inputs[-1])
    if min(a.tensor.ndim, b.tensor.ndim) < 2:
        return opaque(trace, call)
    for axis in (a.axes[-1], b.axes[-2]):
        fix(axis, f"{call.where} sums over them")
    return [*_leading(trace, call, [a, b], call.out.ndim), a.axes[-2], b.axes[-1]]


def attention(trace: Trace, call: Call) -> list[Axis | None]:
    """Scaled dot-product attention: heads attend each by itself, so that whole heads can be copied."""
    q, k, v = (trace.value_of(call.get(n, name)) for n, name in enumerate(("query", "key", "value")))
    mask = call.get(3, "attn_mask")
    masks = [trace.value_of(mask)] if isinstance(mask, torch.Tensor) else []
    for axis in (*q.axes[-2:], *k.axes[-2:], v.axes[-2], *(axis for m in masks for axis in m.axes[-2:])):
        fix(axis, f"{call.where} needs every one of them as it is")
    if call.get(None, "enable_gqa") and q.tensor.shape[-3] != k.tensor.shape[-3]:
        for value in (q, k, v):
            fix(value.axes[-3], f"{call.where} shares keys and values among groups of them")
    return [*_leading(trace, call, [q, k, v, *masks], call.out.ndim), None, v.axes[-1]]


def _leading(trace: Trace, call: Call, values: list[Value], ndim: int) -> list[Axis | None]:
    """The axes of a product's leading dimensions, which its arguments share."""
    return broadcast(call, [([*v.tensor.shape[:-2]], v.axes[:-2]) for v in values], ndim - 2)


RULES = {
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("matmul", "bmm", "__matmul__"), matmul),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "linear": linear,
}
