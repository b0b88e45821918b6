"""Operations that mix elements in ways of their own: whatever they read stays as it is, which is always right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from net2net.names import owner
from net2net.recording import Call, place
from net2net.spaces import fix

if TYPE_CHECKING:
    from net2net.trace import Trace


def opaque(trace: Trace, call: Call) -> list:
    where = _spectral(trace, call) or call.where
    for value in call.inputs:
        for axis in value.axes:
            fix(axis, f"{where} needs every one of them as it is")
    if isinstance(call.out, (tuple, list)):
        return [[None] * t.ndim for t in call.out if isinstance(t, torch.Tensor)]
    return [None] * call.out.ndim


def _spectral(trace: Trace, call: Call) -> str:
    """The spectral norm, in either of PyTorch's ways, whose power iteration a call is a step of; or ""."""
    if call.name != "mv":
        return ""
    module = trace.skeleton.get_submodule(call.module)
    hooks = module._forward_pre_hooks.values()
    if not any(isinstance(each, (_SpectralNorm, SpectralNorm)) for each in (module, *hooks)):
        return ""
    return f"spectral norm in {place(owner(f'{call.module}.weight'))}"


NAMES = """
local_response_norm
conv_tbc rot90 outer cdist linalg_norm
affine_grid
bernoulli mv dot vdot diagonal
cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div poisson_nll_loss gaussian_nll_loss
hinge_embedding_loss margin_ranking_loss soft_margin_loss multi_margin_loss multilabel_margin_loss
multilabel_soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss cosine_embedding_loss ctc_loss
pairwise_distance
nonzero argwhere nms unique bucketize searchsorted multinomial
"""

RULES = dict.fromkeys(NAMES.split(), opaque)
