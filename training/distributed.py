"""The processes of one run: those that torchrun started, one per GPU, or this one alone.

What a run computes does not depend on their number. The mini-batch is a number of chunks (`training.bn_batch_size`
images, one forward pass each) that are dealt out to the processes; gradients and batch-norm statistics are averaged
over the chunks, so that one process with eight of them and eight with one each make the same step, but for rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from training.run import RunError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # the longest that the others wait: one grows the student, reads the data's index


class Elsewhere(RunError):
    """Another process of this run failed, and has said why."""


class Processes:
    """Rank, number and device of this process among those of the run; what they tell each other."""

    def __init__(self) -> None:
        self.rank, self.world, self.local_rank, self.local_world = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        self.cuda = torch.cuda.is_available()
        if self.cuda and self.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"process {self.local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}: "
                "start at most one process per GPU (torchrun --nproc-per-node)"
            )
        self.device = torch.device("cuda", self.local_rank) if self.cuda else torch.device("cpu")
        if self.cuda:
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # all forward passes of a run have the same shape
        self._vote: tuple[torch.Tensor, dist.Work] | None = None
        self._board: dist.Store | None = None

    def __enter__(self) -> Processes:
        if self.world > 1:
            # Both backends: tensors on the CPU (votes, messages) travel beside the GPUs' work, without waiting for it.
            backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
            try:
                self._board = next(rendezvous("env://", timeout=TIMEOUT))[0]
                dist.init_process_group(
                    backend, store=self._board, rank=self.rank, world_size=self.world, timeout=TIMEOUT
                )
            except (RuntimeError, ValueError) as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise RunError(f"the {self.world} processes of this run do not find each other: {why}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After a failure the others may never come to the calls that are under way: leave without a word.
        if self.world > 1 and kind is None:
            dist.destroy_process_group()

    def confess(self, error: Exception) -> None:
        """Say why this process ends alone, for the main one, which will find it gone."""
        if self._board is not None and not self.main:
            with contextlib.suppress(RuntimeError):  # the board was in a process that is gone too
                self._board.set(f"ended/{self.rank}", str(error))

    def confessions(self) -> list[str]:
        """What those said that ended alone; only the main process looks, which the board lives as long as."""
        said: list[str] = []
        if self._board is None or not self.main:  # torch dumps its stack where the board is gone
            return said
        with contextlib.suppress(RuntimeError):
            for rank in range(self.world):
                if self._board.check([f"ended/{rank}"]):
                    said.append(f"process {rank}: {self._board.get(f'ended/{rank}').decode()}")
        return said

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    @property
    def main(self) -> bool:
        return self.rank == 0

    def first(self, action: Callable[[], T]) -> T:
        """What `action()` returns on the main process; an error there is raised on all of them.

        For what only one may do: writing files, growing the student.
        """
        if self.world == 1:
            return action()
        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.main:
            try:
                told[0] = action()
            except Exception as caught:  # of whatever kind: the others wait
                error, told[1] = caught, str(caught) or type(caught).__name__
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if told[1] is not None:
            raise Elsewhere(told[1])
        return told[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, wish: bool) -> bool:
        """Whether any process wished so when asked the last time; all of them get the same answer.

        Nobody waits: the votes of one call travel while the next mini-batch is computed.
        """
        if self.world == 1:
            return wish
        decided = False
        if self._vote is not None:
            flag, work = self._vote
            work.wait()
            decided = bool(flag)
        if decided:
            self._vote = None
        else:
            flag = torch.tensor(int(wish))
            self._vote = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)
        return decided

    def settle(self) -> None:
        """Take in the vote that is still on its way."""
        if self._vote is not None:
            self._vote[1].wait()
            self._vote = None

    def share(self, model: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)


class Statistics:
    """The batch-norm statistics of a model over the chunks of a mini-batch, and over the processes.

    Each chunk's forward pass moves the running statistics r to (1 - m) r + m s. One after the other, as plain gradient
    accumulation does it, the last chunk would count most, and their number on a process would change the result. Here
    each starts from the statistics of the step before, and the step's are the mean over its chunks. As this is linear
    in r, the processes need not agree each step: averaged when somebody looks (`average`), with the weight of the
    chunks that each had, they are what they would have been. The same holds for the averages of the weights' EMA.
    """

    def __init__(self, model: nn.Module, processes: Processes, chunks_here: int, chunks: int):
        self.processes, self.weight, self.here = processes, chunks_here / chunks, chunks_here
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.before, self.sums = ([torch.empty_like(b) for b in self.buffers if chunks_here > 1] for _ in range(2))

    @torch.no_grad()
    def passed(self, chunk: int) -> None:
        """After chunk number `chunk` of this process's in this step."""
        if self.here == 1:
            return
        if chunk == 0:
            torch._foreach_copy_(self.sums, self.buffers)
        else:
            torch._foreach_add_(self.sums, self.buffers)
        if chunk == self.here - 1:
            torch._foreach_div_(self.sums, self.here)
            torch._foreach_copy_(self.buffers, self.sums)
        else:
            torch._foreach_copy_(self.buffers, self.before)

    @torch.no_grad()
    def remember(self) -> None:
        """Before the first forward pass of a step."""
        if self.here > 1:
            torch._foreach_copy_(self.before, self.buffers)

    @torch.no_grad()
    def average(self, models: Iterable[nn.Module]) -> None:
        """Give every process the mean of all over the running statistics of `models`."""
        if self.processes.world == 1:
            return
        for model in models:
            buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            if not buffers:
                continue
            flat = torch.cat([buffer.flatten() for buffer in buffers]).double()
            self.processes.sum(flat.mul_(self.weight))
            for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))


def lost_contact(error: RuntimeError) -> bool:
    """Whether this is what is left of a call to a process that is no more."""
    text = str(error).lower()
    return dist.is_initialized() and any(
        sign in text for sign in ("gloo", "nccl", "connection closed", "connection reset", "timed out", "peer")
    )
