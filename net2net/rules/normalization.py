"""Normalisation: parameters and statistics share the map of the channels that they belong to (sec 2.3)."""

from __future__ import annotations

import torch

from net2net.recording import Call
from net2net.spaces import Axis, Trace, fix, tie


def batch_norm(trace: Trace, call: Call) -> list[Axis | None]:
    axes = call.inputs[0].axes
    for axis in (axes[0], *axes[2:]):
        fix(axis, f"{call.where} averages over them")
    arguments = ("running_mean", "running_var", "weight", "bias")
    for position, keyword in enumerate(arguments, start=1):
        tensor = call.get(position, keyword)
        if isinstance(tensor, torch.Tensor):
            tie(axes[1], trace.axes_of(tensor)[0], f"{call.where} has a {keyword} for each of them")
    return list(axes)


RULES = {"batch_norm": batch_norm}
