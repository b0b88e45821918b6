"""Parts of the networks that several tests are made of."""

import torch
from torch import nn
from torchvision.models import resnet

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


class Narrow(resnet.ResNet):
    """A ResNet of torchvision's, of an eighth of its channels."""

    def __init__(self, block, layers, classes):
        super().__init__(block, layers)
        self.fc = nn.Linear(self.inplanes, classes)

    def _make_layer(self, block, planes, *arguments, **options):
        if planes == 64:  # the first of them: its shortcut is the stem's output
            self.inplanes = 8
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        return super()._make_layer(block, planes // 8, *arguments, **options)


def resnet18(classes=5):
    return Narrow(resnet.BasicBlock, [2, 2, 2, 2], classes)


def resnet50(classes=5):
    return Narrow(resnet.Bottleneck, [3, 4, 6, 3], classes)
