"""Training and validation images in memory, and the order in which they come.

Which images are in mini-batch `step`, and how they are augmented, depends on (seed, epoch, index) alone, not on what
was drawn before: so a resumed run goes on with exactly the batches it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as transforms

from training import fashion_mnist
from training.config import ConfigError
from training.config import Data as DataConfig

Batch = tuple[torch.Tensor, torch.Tensor]

HELD_OUT = 10_000
MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training pixels, scaled to 0..1
NUM_CLASSES = 10


class Data:
    """Mini-batches of normalised images [B, 1, 28, 28] (float32) and labels [B] (int64)."""

    def __init__(self, data: DataConfig, seed: int, batch_size: int, device: torch.device):
        if data.name == "generated":
            train, test = _generated(12_000, seed=1), _generated(2_000, seed=2)
        else:
            root = fashion_mnist.ensure(Path(data.root)).parents[1]
            train, test = fashion_mnist.load(root, train=True), fashion_mnist.load(root, train=False)
        if data.validation == "held_out":
            train, test = tuple(t[:-HELD_OUT] for t in train), tuple(t[-HELD_OUT:] for t in train)
        if data.val_images > len(test[0]):
            raise ConfigError(f"data.val_images: {data.val_images} asked for, but {data.name} has {len(test[0])}")
        if batch_size > len(train[0]):
            raise ConfigError(f"training.batch_size: {batch_size} is more than the {len(train[0])} training images")
        self.images, self.labels = (t.to(device) for t in train)
        self.val_images, self.val_labels = (t[: data.val_images].to(device) for t in test)
        self.seed, self.batch_size, self.flip = seed, batch_size, data.flip
        self.per_epoch = len(self.images) // batch_size
        self._epoch = -1

    def batch(self, step: int) -> Batch:
        """Mini-batch number `step`, counted from 0 over all epochs; the last, incomplete one of an epoch is dropped."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.images), generator=generator)
            self._flipped = torch.rand(len(self.images), generator=generator) < 0.5
            self._epoch = epoch
        index = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        images, labels = _normalise(self.images[index]), self.labels[index]
        if self.flip:
            flipped = self._flipped[index].to(images.device)
            images[flipped] = transforms.horizontal_flip(images[flipped])
        return images, labels

    def first(self, n: int) -> torch.Tensor:
        """The first `n` training images in the order of the first epoch."""
        batches = range(min(math.ceil(n / self.batch_size), self.per_epoch))
        return torch.cat([self.batch(step)[0] for step in batches])[:n]

    def validation(self, batch_size: int = 500) -> Iterator[Batch]:
        """Every validation image exactly once, in order."""
        for images, labels in zip(self.val_images.split(batch_size), self.val_labels.split(batch_size), strict=True):
            yield _normalise(images), labels


def _normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(255).sub_(MEAN).div_(STD)


def _generated(n: int, seed: int) -> Batch:
    """Images that need no download, for tests and smoke runs: one random pattern per class, shifted, under noise."""
    patterns = torch.rand(NUM_CLASSES, 28, 28, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (n,), generator=generator)
    images = 0.4 * patterns[labels] + 0.6 * torch.rand(n, 28, 28, generator=generator)
    return (images[:, None] * 255).to(torch.uint8), labels
