"""Operations that mix elements in ways of their own: whatever they read stays as it is, which is always right."""

from __future__ import annotations

import torch

from net2net.recording import Call
from net2net.spaces import Trace, fix


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
pixel_shuffle pixel_unshuffle unfold fold grid_sample repeat repeat_interleave tile embedding
index_select gather take_along_dim bilinear conv_tbc rot90 tril triu masked_fill outer cdist linalg_norm
glu channel_shuffle rand_like randn_like lstm gru rnn_tanh rnn_relu
rrelu bernoulli _weight_norm mv dot vdot logsumexp prod median quantile diagonal aminmax nanmean cosine_similarity
cummax cummin
"""

RULES = dict.fromkeys(NAMES.split(), opaque)
