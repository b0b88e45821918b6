"""The order in which images come, and those that are held in memory.

Which images are in a mini-batch, and how they are augmented, depends on (seed, epoch, index) alone, not on what was
drawn before, by whom, or on how many processes share the work: a resumed run goes on with exactly the batches that it
would have had, on another number of GPUs too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torchvision.transforms.v2 import functional as transforms

from training import fashion_mnist
from training.config import Config, ImageNetData, MemoryData
from training.errors import ConfigError

Batch = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")

HELD_OUT = 10_000
MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training pixels, scaled to 0..1


class Order:
    """Which images are in which mini-batch, and which of its chunks are this process's."""

    def __init__(self, n: int, seed: int, batch_size: int, chunk: int, rank: int = 0, world: int = 1):
        """`n` training images; mini-batches of `batch_size`, forward passes of `chunk` images."""
        if batch_size > n:
            raise ConfigError(f"training.batch_size: {batch_size} is more than the {n} training images")
        if batch_size % chunk:
            raise ConfigError(
                f"training.bn_batch_size: {chunk} does not divide the mini-batch of {batch_size} (training.batch_size)"
            )
        self.chunks_per_batch = batch_size // chunk
        if world > self.chunks_per_batch:
            raise ConfigError(
                f"{world} processes, but a mini-batch of {batch_size} images is {self.chunks_per_batch} x {chunk} "
                "(training.batch_size, training.bn_batch_size): start fewer processes"
            )
        self.n, self.seed, self.batch_size, self.chunk = n, seed, batch_size, chunk
        self.per_epoch = n // batch_size  # the last, incomplete mini-batch of an epoch is dropped
        self.mine = range(rank, self.chunks_per_batch, world)
        self._epoch = -1

    def begin(self, epoch: int) -> torch.Generator:
        """Shuffle for an epoch; returns the generator, for what else is to be drawn once an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self._order, self._epoch = torch.randperm(self.n, generator=generator), epoch
        return generator

    def chunks(self, step: int) -> tuple[int, list[torch.Tensor]]:
        """The epoch of mini-batch `step`, counted from 0, and this process's chunks of it: indices [chunk] each."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self.begin(epoch)
        chunks = self._order[place * self.batch_size :][: self.batch_size].split(self.chunk)
        return epoch, [chunks[i] for i in self.mine]


class Data(Protocol):
    """Training and validation images of one process. Images are normalised, float32 [B, C, H, W]; labels int64 [B]."""

    order: Order
    fingerprint: str  # of which images there are: a resumed run must have the same
    facts: dict[str, Any]  # for run.json
    val_images: int  # looked at in each evaluation
    all_val_images: int  # in the whole validation set

    def stream(self, step: int) -> Iterator[Batch]:
        """This process's chunks of mini-batch `step`, of the one after it, and so on without end."""

    def first(self, n: int) -> torch.Tensor:
        """The first `n` training images in the order of the first epoch, the same on every process."""

    def validation(self, whole: bool = False) -> Iterator[Batch]:
        """This process's share of the evaluation's images, or of all there are; over all processes each comes once.

        The label of an image that could not be read is -1, which no answer is.
        """

    def faults(self) -> list[str]:
        """Images that could not be read since the last call, "path: reason", each one once."""

    def close(self) -> None: ...


def open_data(
    config: Config,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    first: Callable[[Callable[[], T]], T] = lambda action: action(),
) -> Data:
    """The data of one of `world` processes, `local_world` of which share this machine's cores.

    What `first` is called with is to run on one of them, for all.
    """
    data = config.data
    if isinstance(data, ImageNetData):
        from training.imagenet import check
        from training.pipeline import ImageData

        report = first(lambda: check(data.root, data.classes, data.train_images, data.val_images, fast=True))
        batch, chunk = config.training.batch_size, config.training.chunk
        share = {"rank": rank, "world": world, "local_world": local_world}
        return ImageData(data, config.seed, batch, chunk, device, **share, report=report)
    return MemoryImages(config, device, rank, world)


class MemoryImages:
    """Small grey images [B, 1, 28, 28], all of them in the device's memory."""

    def __init__(self, config: Config, device: torch.device, rank: int = 0, world: int = 1):
        data: MemoryData = config.data
        if data.name == "generated":
            train, test = _generated(12_000, seed=1), _generated(2_000, seed=2)
        else:
            root = fashion_mnist.ensure(Path(data.root)).parents[1]
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
        self.images, self.labels = (t.to(device) for t in train)
        self.val_images, self.all_val_images = data.val_images, len(test[0])
        self._val = [t[: data.val_images][rank::world].to(device) for t in test]
        self._all_val = [t[rank::world].to(device) for t in test]
        self.flip = data.flip
        self._epoch = -1

    def stream(self, step: int) -> Iterator[Batch]:
        while True:
            epoch, chunks = self.order.chunks(step)
            for index in chunks:
                yield self._take(epoch, index)
            step += 1

    def _take(self, epoch: int, index: torch.Tensor) -> Batch:
        if epoch != self._epoch:
            self._flipped = torch.rand(self.order.n, generator=self._whole.begin(epoch)) < 0.5
            self._epoch = epoch
        images, labels = _normalise(self.images[index]), self.labels[index]
        if self.flip:
            flipped = self._flipped[index].to(images.device)
            images[flipped] = transforms.horizontal_flip(images[flipped])
        return images, labels

    def first(self, n: int) -> torch.Tensor:
        steps = range(min(math.ceil(n / self._whole.batch_size), self._whole.per_epoch))
        return torch.cat([self._take(0, self._whole.chunks(step)[1][0])[0] for step in steps])[:n]

    def validation(self, whole: bool = False, batch_size: int = 500) -> Iterator[Batch]:
        val = self._all_val if whole else self._val
        for images, labels in zip(*(t.split(batch_size) for t in val), strict=True):
            if not len(labels):  # more processes than images
                return
            yield _normalise(images), labels

    def faults(self) -> list[str]:
        return []

    def close(self) -> None:
        return


def _normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(255).sub_(MEAN).div_(STD)


def _generated(n: int, seed: int) -> Batch:
    """Images that need no download, for tests and smoke runs: one random pattern per class, shifted, under noise."""
    patterns = torch.rand(MemoryData.classes, 28, 28, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(MemoryData.classes, (n,), generator=generator)
    images = 0.4 * patterns[labels] + 0.6 * torch.rand(n, 28, 28, generator=generator)
    return (images[:, None] * 255).to(torch.uint8), labels
