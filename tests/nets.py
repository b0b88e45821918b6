"""Parts of the networks that several tests are made of."""

import torch
from torch import nn

from net2net.inception_bn import INCEPTION_BN_28


class Net(nn.Module):
    """Named parts under a forward pass `run(parts, x)`."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def conv(inputs, outputs, kernel=3, **options):
    """A convolution that keeps the size of its image."""
    return nn.Conv2d(inputs, outputs, kernel, padding="same", **options)


def images(*shape, batch=3, seed=1, dtype=torch.float64):
    """A batch of examples, always the same."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Three of the eleven modules, one of them with a stride: for what is the same for all of them.
SHORT = INCEPTION_BN_28._replace(modules=INCEPTION_BN_28.modules[:3])
