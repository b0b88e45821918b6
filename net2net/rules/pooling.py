"""Operations along the spatial dimensions: pooling, resampling, padding. Channels keep their axes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.spaces import Axis, fix, tie

if TYPE_CHECKING:
    from net2net.trace import Trace


def _mix(call: Call, dims: Iterable[int], how: str) -> list[Axis | None]:
    """The axes of a result that is computed along `dims`: whatever lies there cannot grow."""
    if not isinstance(call.out, torch.Tensor):
        raise call.unsupported("it returns several tensors")
    out = list(call.inputs[0].axes)
    for dim in dims:
        fix(out[dim], f"{call.where} {how} them")
        out[dim] = None
    return out


def pool(trace: Trace, call: Call) -> list:
    """With indices, these are places in the image of each channel, and are copied with it."""
    name = call.name.removesuffix("_with_indices")
    axes = list(call.inputs[0].axes)
    for dim in range(-int(name[-2]), 0):
        fix(axes[dim], f"{call.where} pools over them")
        axes[dim] = None
    return axes if isinstance(call.out, torch.Tensor) else [list(axes) for _ in call.out]


def unpool(trace: Trace, call: Call) -> list[Axis | None]:
    values, indices = call.inputs
    for one, other in zip(values.axes, indices.axes, strict=True):
        if one is not None or other is not None:
            tie(one, other, f"{call.where} puts them in places that cannot follow")
    return _mix(call, range(-int(call.name[-2]), 0), "fills")


def interpolate(trace: Trace, call: Call) -> list[Axis | None]:
    return _mix(call, range(2, call.inputs[0].tensor.ndim), "resamples")


def pad(trace: Trace, call: Call) -> list[Axis | None]:
    sizes = call.get(1, "pad")  # (before, after) of the last dimension, then of the one before it, …
    return _mix(call, [-1 - i // 2 for i, size in enumerate(sizes) if size], "pads")


POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)]

POOLS += [f"{name}_with_indices" for name in POOLS if "max" in name]
UNPOOLS = [f"max_unpool{n}d" for n in (1, 2, 3)]

RULES = {
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(UNPOOLS, unpool),
    "interpolate": interpolate,
    "upsample": interpolate,
    "pad": pad,
}
