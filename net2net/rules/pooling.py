"""Operations along the spatial dimensions: pooling, resampling, padding. Channels keep their axes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.spaces import Axis, Space, fix, tie

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


def grid_sample(trace: Trace, call: Call) -> list[Axis | None]:
    image, grid = call.inputs
    for axis in (*image.axes[2:], *grid.axes):
        fix(axis, f"{call.where} samples by them")
    return [image.axes[0], image.axes[1], *[None] * (call.out.ndim - 2)]


def roi(trace: Trace, call: Call) -> list[Axis | None]:
    """What torchvision pools from boxes of an image."""
    image, *others = call.inputs
    for axis in (image.axes[0], *image.axes[2:], *(axis for value in others for axis in value.axes)):
        fix(axis, f"{call.where} pools over them")
    return [None, image.axes[1], None, None]


def unfold(trace: Trace, call: Call) -> list[Axis | None]:
    """[N, C, H, W] -> [N, C * k, L] in torch.nn.functional; as a tensor's method windows along one dimension."""
    axes = list(call.inputs[0].axes)
    if len(call.args) > 2 or "dimension" in call.kwargs:
        dim = call.get(1, "dimension")
        if call.out.ndim == len(axes) + 1:
            return [*_mix(call, [dim], "windows"), None]
    for axis in axes[2:]:
        fix(axis, f"{call.where} windows them")
    taps = call.out.shape[1] // call.inputs[0].tensor.shape[1]
    return [axes[0], axes[1] and tuple((space, n * taps) for space, n in axes[1]), None]


def fold(trace: Trace, call: Call) -> list[Axis | None]:
    columns = call.inputs[0].axes
    if call.out.ndim != 4:
        raise call.unsupported("expected a batch")
    fix(columns[2], f"{call.where} makes pixels of them")
    channels = columns[1]
    if channels is not None:
        taps = call.inputs[0].tensor.shape[1] // call.out.shape[1]
        channels = ((Space(call.out.shape[1]), 1),)
        tie(columns[1], tuple((space, taps) for space, _ in channels), f"{call.where} makes pixels of them")
    return [columns[0], channels, None, None]


def pad(trace: Trace, call: Call) -> list[Axis | None]:
    """With a constant, channels are beside constants then, as in a concatenation."""
    sizes = call.get(1, "pad")  # (before, after) of the last dimension, then of the one before it, …
    beside = call.get(2, "mode", "constant") == "constant" and min(sizes, default=0) >= 0
    if not beside:
        return _mix(call, [-1 - i // 2 for i, size in enumerate(sizes) if size], "pads")
    out = list(call.inputs[0].axes)
    for at, around in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
        axis = out[-1 - at]
        if axis is not None and any(around):
            before, after = ([(Space(n, "they are constant"), 1)] if n else [] for n in around)
            out[-1 - at] = (*before, *axis, *after)
    return out


POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)]

POOLS += [f"{name}_with_indices" for name in POOLS if "max" in name]
UNPOOLS = [f"max_unpool{n}d" for n in (1, 2, 3)]

RULES = {
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(UNPOOLS, unpool),
    "interpolate": interpolate,
    "upsample": interpolate,
    **dict.fromkeys(("roi_align", "roi_pool"), roi),
    "grid_sample": grid_sample,
    "unfold": unfold,
    "fold": fold,
    "pad": pad,
}
