"""Normalisation: parameters and statistics share the map of the channels that they belong to (sec 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from net2net.recording import Call
from net2net.rules.opaque import opaque
from net2net.spaces import Axis, Space, cut, fix, length, resolve, tie

if TYPE_CHECKING:
    from net2net.trace import Trace


def tie_arguments(trace: Trace, call: Call, axis: Axis | None, arguments: dict[str, int]) -> None:
    """Give the channels' map to those of the arguments (keyword: position) that are there."""
    for keyword, position in arguments.items():
        tensor = call.get(position, keyword)
        if isinstance(tensor, torch.Tensor):
            tie(axis, trace.axes_of(tensor)[0], f"{call.where} has a {keyword} for each of them")


def batch_norm(trace: Trace, call: Call) -> list[Axis | None]:
    axes = call.inputs[0].axes
    for axis in (axes[0], *axes[2:]):
        fix(axis, f"{call.where} averages over them")
    tie_arguments(trace, call, axes[1], {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4})
    module = trace.skeleton.get_submodule(call.module)
    bare = axes[1] is not None and len(call.inputs) == 1  # no tensor of the layer says how many there are
    if bare and isinstance(module, nn.modules.batchnorm._NormBase) and module.num_features == length(axes[1]):
        trace.keeps(call.module, "num_features", axes[1])
    return list(axes)


def layer_norm(trace: Trace, call: Call) -> list[Axis | None]:
    """Mean and variance over the channels stay the same if every channel comes equally often."""
    axes = call.inputs[0].axes
    if len(call.get(1, "normalized_shape")) != 1:
        return opaque(trace, call)
    trace.evenly(axes[-1], f"{call.where} normalises over them")
    tie_arguments(trace, call, axes[-1], {"weight": 2, "bias": 3} if call.name == "layer_norm" else {"weight": 2})
    trace.keeps(call.module, "normalized_shape", axes[-1])
    return list(axes)


def group_norm(trace: Trace, call: Call) -> list[Axis | None]:
    """Groups grow as a whole, as many as the factor asks for: a copied group has the statistics of the one that it
    copies. Where their number has to stay (a single group, a number in code, groups that several layers make together)
    every channel in a group comes equally often instead, which keeps them, too."""
    value, groups = call.inputs[0], call.get(1, "num_groups")
    axis = value.axes[1]
    for other in (value.axes[0], *value.axes[2:]):
        fix(other, f"{call.where} averages over them")
    number: Axis | None = None
    if axis is not None:
        size = value.tensor.shape[1] // groups
        kept = vars(trace.skeleton.get_submodule(call.module)).get("num_groups") == groups
        if groups > 1 and kept and _hold_groups(axis, size):
            number = ((Space(groups), 1),)
            tie(axis, tuple((space, size) for space, _ in number), f"{call.where} normalises over groups of them")
            trace.keeps(call.module, "num_groups", number)
            trace.in_steps(number, f"{call.where} normalises over groups of {size}")
        else:
            cut(axis, [size] * groups, f"{call.where} normalises over groups of them")
            trace.evenly(axis, f"{call.where} normalises over them")
        trace.keeps(call.module, "num_channels", axis)
    tie_arguments(trace, call, axis, {"weight": 2, "bias": 3})
    call.counted.append(number)
    return list(value.axes)


def _hold_groups(axis: Axis, size: int) -> bool:
    """Whether each block of an axis is a number of whole groups, of channels that are free to come as groups."""
    return all(
        space.width * repeat % size == 0 and (repeat in (1, size) or size == 1) for space, repeat in resolve(axis)
    )


def weight_norm(trace: Trace, call: Call) -> list[Axis | None]:
    """A weight g * v / |v|, with a norm for each position along one dimension (-1: for all of it). Of parameters it is
    a weight like any other: v grows as that would, and g by how its norm changes."""
    v, g = call.inputs
    dim = call.get(2, "dim", 0)
    scaled = trace.scaled_weight(call, v.tensor, g.tensor, dim)
    if dim < 0 and not scaled:
        return opaque(trace, call)
    for d, (axis, scale) in enumerate(zip(v.axes, g.axes if dim >= 0 else [None] * len(v.axes), strict=True)):
        if d == dim:
            tie(axis, scale, f"{call.where} has a scale for each of them")
        else:
            fix(scale, f"{call.where} spreads it over others")
            if not scaled:
                fix(axis, f"{call.where} normalises over them")
    return list(v.axes)


RULES = {
    "_weight_norm": weight_norm,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
}
