"""The order in which images come.

Which images are in a mini-batch, and how they are augmented, depends on (seed, epoch, index) alone, not on what was
drawn before, by whom, or on how many processes share the work: a resumed run goes on with exactly the batches that it
would have had, on another number of GPUs too.
"""

from __future__ import annotations

import torch

from training.errors import ConfigError

Batch = tuple[torch.Tensor, torch.Tensor]  # images, labels


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

    def shuffle(self, epoch: int) -> torch.Generator:
        """Shuffle for an epoch; returns the generator, for what else is to be drawn once an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self._order, self._epoch = torch.randperm(self.n, generator=generator), epoch
        return generator

    def chunks(self, step: int) -> tuple[int, list[torch.Tensor]]:
        """The epoch of mini-batch `step`, counted from 0, and this process's chunks of it: indices [chunk] each."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self.shuffle(epoch)
        chunks = self._order[place * self.batch_size :][: self.batch_size].split(self.chunk)
        return epoch, [chunks[i] for i in self.mine]
