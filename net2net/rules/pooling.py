"""Operations along the spatial dimensions: pooling, resampling, padding. Channels keep their axes."""

from __future__ import annotations

import torch

from net2net.spaces import Axis, Call, Trace, fix


def spatial(trace: Trace, call: Call) -> list[Axis | None]:
    if not isinstance(call.out, torch.Tensor):
        raise call.unsupported("it returns several tensors")
    value = call.inputs[0]
    out: list[Axis | None] = []
    for dim, axis in enumerate(value.axes):
        if axis is not None and call.out.shape[dim] != value.tensor.shape[dim]:
            fix(axis, f"{call.where} resizes them")
            axis = None
        out.append(axis)
    return out


NAMES = ["interpolate", "upsample", "pad"]
NAMES += [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)]

RULES = dict.fromkeys(NAMES, spatial)
