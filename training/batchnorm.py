"""Batch-norm statistics over the chunks of a mini-batch, and over the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from training.session import Session


class Statistics:
    """The running statistics of a model: of each step, the mean over its chunks.

    Each chunk's forward pass moves the running statistics r to (1 - m) r + m s. One after the other, as plain gradient
    accumulation does it, the last chunk would count most, and their number on a rank would change the result. Here
    each starts from the statistics of the step before, and the step's are the mean over its chunks. As this is linear
    in r, the ranks need not agree each step: averaged when somebody looks (`sync`), with the weight of the chunks that
    each had, they are what they would have been. The same holds for the averages of the weights' EMA.
    """

    def __init__(self, model: nn.Module, session: Session, chunks_here: int, chunks: int):
        """`chunks_here` of the mini-batch's `chunks` are this rank's."""
        self.session, self.weight, self.chunks_here = session, chunks_here / chunks, chunks_here
        self.buffers = _statistics_of(model)
        self.before, self.sums = ([torch.empty_like(b) for b in self.buffers if chunks_here > 1] for _ in range(2))

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the first forward pass of a step."""
        if self.chunks_here > 1:
            torch._foreach_copy_(self.before, self.buffers)

    @torch.no_grad()
    def after_chunk(self, chunk: int) -> None:
        """After the forward pass of this rank's chunk number `chunk` in this step."""
        if self.chunks_here == 1:
            return
        if chunk == 0:
            torch._foreach_copy_(self.sums, self.buffers)
        else:
            torch._foreach_add_(self.sums, self.buffers)
        if chunk == self.chunks_here - 1:
            torch._foreach_div_(self.sums, self.chunks_here)
            torch._foreach_copy_(self.buffers, self.sums)
        else:
            torch._foreach_copy_(self.buffers, self.before)

    @contextlib.contextmanager
    def synced(self, models: list[nn.Module]) -> Iterator[None]:
        """`sync` for a moment: each rank goes on with its own, which rounding would else have changed."""
        buffers = [buffer for model in models for buffer in _statistics_of(model)]
        before = [buffer.clone() for buffer in buffers] if self.session.world > 1 else []
        self.sync(models)
        yield
        if before:
            torch._foreach_copy_(buffers, before)

    @torch.no_grad()
    def sync(self, models: Iterable[nn.Module]) -> None:
        """Give every rank the mean of all over the running statistics of `models`."""
        if self.session.world == 1:
            return
        for model in models:
            buffers = _statistics_of(model)
            if not buffers:
                continue
            flat = torch.cat([buffer.flatten() for buffer in buffers]).double()
            self.session.all_reduce(flat.mul_(self.weight))
            for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))


def _statistics_of(model: nn.Module) -> list[torch.Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
