import sys

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def server():
    """The server that runs, stages and data workers are forked from is there before any of them asks for one."""
    if jobs := sys.modules.get("jobs"):
        jobs.serve()


@pytest.fixture
def randomise():
    """Gives a model parameters and batch-norm statistics as far from their defaults as training could take them.

    A fresh network is too kind a test: its batch norms are the identity, and their maps could be anything.
    """

    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in model.parameters():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
            for name, tensor in model.named_buffers():
                if name.endswith("running_var"):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                elif tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return model

    return fill


@pytest.fixture(autouse=True)
def same_draws():
    """The library leaves the random streams alone, so each test begins its own."""
    torch.manual_seed(0)
