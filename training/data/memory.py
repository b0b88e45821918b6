"""Small grey images, all of them in the device's memory: Fashion-MNIST, and images that need no download."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch

from training.config import Config, MemoryDataConfig
from training.data import fashion_mnist
from training.data.order import Batch, Order
from training.errors import ConfigError

HELD_OUT = 10_000
MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training pixels, scaled to 0..1


class MemoryImages:
    """Small grey images [B, 1, 28, 28], all of them in the device's memory."""

    def __init__(self, config: Config, device: torch.device, rank: int = 0, world: int = 1):
        data: MemoryDataConfig = config.data
        if data.name == "generated":
            train, test = _generated(12_000, seed=1), _generated(2_000, seed=2)
        else:
            root = fashion_mnist.ensure(data.folder).parents[1]
            train, test = fashion_mnist.load(root, train=True), fashion_mnist.load(root, train=False)
        if data.validation == "held_out":
            train, test = tuple(t[:-HELD_OUT] for t in train), tuple(t[-HELD_OUT:] for t in train)
        if data.val_images > len(test[0]):
            raise ConfigError(f"data.val_images: {data.val_images} asked for, but {data.name} has {len(test[0])}")
        n, training = len(train[0]), config.training
        self.order = Order(n, config.seed, training.batch_size, training.chunk, rank, world)
        self._whole = Order(n, config.seed, training.batch_size, training.batch_size)
        self.fingerprint = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (*train, *test))).hexdigest()
        self.facts = {"source": data.name, "train_images": n, "val_images": data.val_images}
        self.device = device
        self.images, self.labels = (t.to(device) for t in train)
        self.val_images, self.all_val_images = data.val_images, len(test[0])
        self._val = [t[: data.val_images][rank::world].to(device) for t in test]
        self._all_val = [t[rank::world].to(device) for t in test]
        self.flip = data.flip
        self._epoch = -1

    def stream(self, step: int) -> Iterator[Batch]:
        while True:
            epoch, chunks = self.order.chunks(step)
            images, labels = self._take(epoch, torch.cat(chunks))  # all of them at once: one way to the device
            yield from zip(images.split(self.order.chunk), labels.split(self.order.chunk), strict=True)
            step += 1

    def _take(self, epoch: int, index: torch.Tensor) -> Batch:
        """The images at `index`, on the host; nothing here waits for the device."""
        if epoch != self._epoch:
            flipped = torch.rand(self.order.n, generator=self._whole.shuffle(epoch)) < 0.5
            self._flipped, self._epoch = sent(flipped, self.device), epoch
        index = sent(index, self.device)
        images, labels = _normalise(self.images[index]), self.labels[index]
        if self.flip:
            images = torch.where(self._flipped[index][:, None, None, None], images.flip(-1), images)
        return images, labels

    def first_images(self, n: int) -> torch.Tensor:
        steps = range(min(math.ceil(n / self._whole.batch_size), self._whole.per_epoch))
        return torch.cat([self._take(0, self._whole.chunks(step)[1][0])[0] for step in steps])[:n]

    def validation(self, whole: bool = False) -> Iterator[Batch]:
        val = self._all_val if whole else self._val
        for images, labels in zip(*(t.split(500) for t in val), strict=True):
            if not len(labels):  # more processes than images
                return
            yield _normalise(images), labels

    def faults(self) -> list[str]:
        return []

    def close(self) -> None:
        return


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on its way to the device: nobody waits for it to arrive."""
    if device.type == "cuda":  # from other memory than pinned one the copy would wait for the work before it
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(255).sub_(MEAN).div_(STD)


def _generated(n: int, seed: int) -> Batch:
    """Images that need no download, for tests and smoke runs: one random pattern per class, shifted, under noise."""
    patterns = torch.rand(MemoryDataConfig.classes, 28, 28, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(MemoryDataConfig.classes, (n,), generator=generator)
    images = 0.4 * patterns[labels] + 0.6 * torch.rand(n, 28, 28, generator=generator)
    return (images[:, None] * 255).to(torch.uint8), labels
