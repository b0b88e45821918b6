"""Operations along the spatial dimensions: pooling, resampling, padding. Channels keep their axes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from net2net.recording import Call
from net2net.spaces import Axis, Trace, fix


def _mix(call: Call, dims: Iterable[int], how: str) -> list[Axis | None]:
    """The axes of a result that is computed along `dims`: whatever lies there cannot grow."""
    if not isinstance(call.out, torch.Tensor):
        raise call.unsupported("it returns several tensors")
    out = list(call.inputs[0].axes)
    for dim in dims:
        fix(out[dim], f"{call.where} {how} them")
        out[dim] = None
    return out


def pool(trace: Trace, call: Call) -> list[Axis | None]:
    return _mix(call, range(-int(call.name[-2]), 0), "pools over")


def interpolate(trace: Trace, call: Call) -> list[Axis | None]:
    return _mix(call, range(2, call.inputs[0].tensor.ndim), "resamples")


def pad(trace: Trace, call: Call) -> list[Axis | None]:
    sizes = call.get(1, "pad")  # (before, after) of the last dimension, then of the one before it, …
    return _mix(call, [-1 - i // 2 for i, size in enumerate(sizes) if size], "pads")


POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)]

RULES = {**dict.fromkeys(POOLS, pool), "interpolate": interpolate, "upsample": interpolate, "pad": pad}
