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
baddbmm einsum mm addmm multi_head_attention_forward
local_response_norm topk sort
unfold fold grid_sample embedding
index_select gather take_along_dim bilinear conv_tbc rot90 tril triu masked_fill outer cdist linalg_norm
glu rand_like randn_like lstm gru rnn_tanh rnn_relu
rrelu bernoulli mv dot vdot median quantile diagonal aminmax nanmean cosine_similarity
cummax cummin
"""

RULES = dict.fromkeys(NAMES.split(), opaque)
