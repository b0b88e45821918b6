"""torch.compile of the training pass."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn


def compiled(model: nn.Module, how: bool | Literal["modules"]) -> nn.Module:
    """The model with a compiled forward and backward pass: of the whole, or of each module of the network by itself.

    The modules are compiled in place, keep their names, and go on being called by the model's own forward: a graph of
    ten layers compiles faster than one of hundreds. Shapes are fixed: a rank has one or two sizes of passes.
    """
    if not how:
        return model
    # All modules share the code of one forward, whose versions are counted against this limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    if how is True:
        return torch.compile(model, dynamic=False)
    for region in regions(model):
        if type(region) is nn.Sequential:
            region.__class__ = Region
        region.compile(dynamic=False)
    return model


class Region(nn.Sequential):
    """`nn.Sequential` with a forward of our own: PyTorch's, which `nn.Module.compile` skips, would run uncompiled."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x


def regions(model: nn.Module) -> list[nn.Module]:
    """The stem's layers as one, and each Inception module of the network."""
    network = getattr(model, "student", model)  # of a student that predicts its teacher's layers
    return [network.stem, *network.inception]


def uncompiled() -> AbstractContextManager:
    """Within it, compiled modules run as they are written.

    For evaluations: with other shapes, in another mode and without gradients each of them would be compiled again.
    """
    # Where nothing is compiled dynamo is not imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
