"""Operations that mix elements in ways of their own: whatever they read stays as it is, which is always right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.spaces import fix

if TYPE_CHECKING:
    from net2net.trace import Trace


def opaque(trace: Trace, call: Call) -> list:
    for value in call.inputs:
        for axis in value.axes:
            fix(axis, f"{call.where} needs every one of them as it is")
    if isinstance(call.out, (tuple, list)):
        return [[None] * t.ndim for t in call.out if isinstance(t, torch.Tensor)]
    return [None] * call.out.ndim


NAMES = """
local_response_norm
conv_tbc rot90 outer cdist linalg_norm
affine_grid
bernoulli mv dot vdot diagonal
nonzero argwhere nms unique bucketize searchsorted multinomial
"""

RULES = dict.fromkeys(NAMES.split(), opaque)
