"""The session of one run: the ranks that take part in it (torchrun's, or this process alone), and what stops it.

What a run computes does not depend on the number of ranks. The mini-batch is a number of chunks
(`training.bn_batch_size` images, one forward pass each) that are dealt out to the ranks; gradients and batch-norm
statistics are averaged over the chunks, so that one rank with eight of them and eight with one each make the same
step, but for rounding.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from training.device import choose_device
from training.errors import FailedOnAnotherRank, RunError, Stopped, UserError

T = TypeVar("T")
MEETING = timedelta(minutes=10)  # the longest that they wait for each other to start: imports can take minutes
PATIENCE = 30.0  # seconds, after which it is said that they wait
TIMEOUT = timedelta(minutes=30)  # the longest that ranks wait for the main one, which grows the student, lists the data
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """Notes the signals that ask the run to stop; calling it tells whether one has come to this rank.

    `orphaned` tells that whoever started the run is gone, which asks it to stop as well.
    """

    def __init__(self, orphaned: Callable[[], bool] = lambda: False):
        self.orphaned = orphaned
        self.received: list[int] = []

    def __enter__(self) -> StopSignals:
        # nohup has SIGHUP ignored: the terminal may go, the run is to stay.
        heard = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        # Whoever started us may have blocked them, and that is inherited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return bool(self.received) or self.orphaned()

    @property
    def exit_code(self) -> int:
        """A shell's, of a process that a signal ended."""
        return 128 + (self.received[0] if self.received else signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in self.received:  # Ctrl-C a second time: at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received.append(number)


class Session:
    """This rank of the run: its device, what the ranks tell each other, and whether to stop."""

    def __init__(self, device: str = "auto", stop: Callable[[], bool] = lambda: False) -> None:
        """`device` is `training.device` of the config; `stop` tells whether this rank has been asked to stop."""
        self.stop = stop
        self.rank, self.world, self.local_rank, self.local_world = (
            _from_environment(name, default)
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        for rank, world, name in ((self.rank, self.world, ""), (self.local_rank, self.local_world, "LOCAL_")):
            if rank >= world:
                raise RunError(f"{name}RANK is {rank} and {name}WORLD_SIZE {world}: ranks are counted from 0")
        if self.world > 1 and not 0 < (port := _from_environment("MASTER_PORT", 29500)) < 65536:
            raise RunError(f"MASTER_PORT is {port}: expected a free port, from 1024 to 65535, as torchrun sets it")
        self.device = choose_device(device, self.local_rank)
        self.cuda = self.device.type == "cuda"
        if self.cuda:
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # all forward passes of a run have the same shape
        self._store: dist.Store | None = None
        self._votes: dict[str, tuple[torch.Tensor, dist.Work]] = {}  # under way, by what they are about
        self._on_main = False

    def __enter__(self) -> Session:
        if self.world > 1:
            # Both backends: tensors on the CPU (votes, messages) travel beside the GPUs' work, without waiting for it.
            backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
            told = threading.Timer(PATIENCE, self._tell_of_waiting)
            told.daemon = True
            told.start()
            try:
                self._store = next(rendezvous("env://", timeout=MEETING))[0]
                dist.init_process_group(
                    backend, store=self._store, rank=self.rank, world_size=self.world, timeout=TIMEOUT
                )
            except (RuntimeError, ValueError) as error:
                why = said(error)
                if self.world > self.local_world:
                    why += "; of several network interfaces GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose one"
                raise RunError(f"the {self.world} processes of this run do not find each other: {why}") from None
            finally:
                told.cancel()
        return self

    def _tell_of_waiting(self) -> None:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        print(
            f"train.py: process {self.rank} of {self.world} waits for the others at {place}, for {MEETING} at the "
            "most; if there are none, unset RANK, WORLD_SIZE and LOCAL_RANK",
            file=sys.stderr,
        )

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After a failure the other ranks may never come to the calls that are under way, and destroying waits for them.
        if self.world > 1 and (kind is None or issubclass(kind, Stopped)):
            dist.destroy_process_group()
            # DDP holds the group in a cycle, and so gloo's threads, which can abort an interpreter that ends first.
            atexit.register(gc.collect)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    # ---- what the ranks tell each other

    def on_main(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `function` on the main rank alone; all ranks get what it returns, or the error that it raises.

        For what only one may do: writing files, growing the student.
        """
        if self.world == 1 or self._on_main:  # a function that runs there may use others that do
            return function(*args, **kwargs)
        answer: list[Any] = [None, None]  # the value, and the message of an error
        error: Exception | None = None
        if self.is_main:
            self._on_main = True
            try:
                answer[0] = function(*args, **kwargs)
            except Exception as caught:  # of whatever kind: the others wait
                error, answer[1] = caught, str(caught) or type(caught).__name__
            finally:
                self._on_main = False
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if answer[1] is not None:
            raise FailedOnAnotherRank(answer[1])
        return answer[0]

    def broadcast(self, model: nn.Module) -> None:
        """Give all ranks the main one's parameters and buffers."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    # ---- stopping

    def stop_requested(self) -> bool:
        """Whether any rank is to stop; all ranks get the same answer at the same step."""
        return self.any_rank(self.stop())

    def any_rank(self, flag: bool, topic: str = "stop") -> bool:
        """Whether any rank's flag was set in the call before this one; all ranks get the same answer.

        Nobody waits: the votes of one call travel while the next mini-batch is computed.
        """
        if self.world == 1:
            return flag
        decided = self._await_vote(topic)
        if not decided:
            vote = torch.tensor(int(flag))
            self._votes[topic] = vote, dist.all_reduce(vote, dist.ReduceOp.MAX, async_op=True)
        return decided

    def drain(self) -> None:
        """Take in the votes that are still on their way, before ranks part."""
        for topic in list(self._votes):
            self._await_vote(topic)

    def _await_vote(self, topic: str) -> bool:
        if topic not in self._votes:
            return False
        vote, work = self._votes.pop(topic)
        work.wait()
        return bool(vote)

    # ---- failing

    def failure(self, error: Exception) -> Exception:
        """The error to raise where `error` ends this rank: if another rank is gone, the reason that it left, if any.

        An error of this rank's own is left in the store, for the main rank to find.
        """
        if isinstance(error, RuntimeError) and (what := broken_contact(error)):
            posted = "; ".join(self.posted_errors())
            if what == ENDED:
                posted = posted or "its own message says why, unless it was killed"
            why = f"{ENDED}: {posted}" if posted else f"{what}: {said(error)}"
            if not posted:
                self.post_error(RunError(why))
            return RunError(f"{why}; the same command goes on from the last checkpoint")
        if isinstance(error, UserError) and not isinstance(error, FailedOnAnotherRank):
            self.post_error(error)
        return error

    def post_error(self, error: Exception) -> None:
        """Leave why this rank ends alone, for the main one, which will find it gone."""
        if self._store is not None and not self.is_main:
            with contextlib.suppress(RuntimeError):  # the main rank, which hosts the store, is gone too
                self._store.set(f"ended/{self.rank}", str(error))

    def posted_errors(self) -> list[str]:
        """What ranks left in the store before they ended. On the main rank only: it hosts the store."""
        errors: list[str] = []
        if self._store is None or not self.is_main:  # torch prints its stack where the store is gone
            return errors
        with contextlib.suppress(RuntimeError):
            for rank in range(self.world):
                if self._store.check([f"ended/{rank}"]):
                    errors.append(f"process {rank}: {self._store.get(f'ended/{rank}').decode()}")
        return errors


def _from_environment(name: str, default: int) -> int:
    """One of the variables that torchrun sets; an empty one counts as not set."""
    text = os.environ.get(name, "").strip() or str(default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise RunError(
            f"the environment says {name}={text[:40]}: expected a whole number, as torchrun sets it; or unset it"
        )
    return int(text)


ENDED = "another process of this run ended"
LATE = "the processes of this run waited too long for one of them"
BROKEN = "the processes of this run cannot work together"
# By what stands in the errors of calls to other ranks. NCCL's own begin with its name, whatever went wrong.
SIGNS = {
    ENDED: ("connection closed", "closed by peer", "reset by peer", "broken pipe", "remote process"),
    LATE: ("timed out", "timeout"),
    BROKEN: ("nccl", "gloo"),
}


def broken_contact(error: RuntimeError) -> str | None:
    """What it means, if it is what is left of a call to other ranks."""
    if not dist.is_initialized():
        return None
    text = str(error).lower()
    return next((what for what, signs in SIGNS.items() if any(sign in text for sign in signs)), None)


def said(error: Exception) -> str:
    """An error's text in one line, without the stack of C++ that torch puts after it."""
    text = " ".join(re.split(r"Exception raised from|frame #0", str(error))[0].split())
    return (text if len(text) <= 500 else f"{text[:500]} …") or type(error).__name__
