"""One set of worker processes for all that a rank reads: training, evaluations, the first images."""

from __future__ import annotations

import multiprocessing
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from training.data.workers import context, init_worker
from training.errors import DataError

PREFETCH = 2  # tasks for each worker
STALL = 900.0  # seconds without a result after which the data is given up
POLL = 5.0  # seconds after which workers from which nothing comes are looked after


class Pool:
    """Worker processes under a `DataLoader`, for several streams of tasks.

    The stream that is waited for is served first: an evaluation gets all workers, and as soon as its last tasks are
    handed out they go on with training. The workers start with the first result that is asked for and end when no
    stream is left.
    """

    def __init__(self, work: Dataset, workers: int, pin_memory: bool, where: str):
        """`workers`: 0 is this process itself; `where`: the data folder, for what is said of it."""
        self.work, self.workers, self.pin_memory, self.where = work, workers, pin_memory, where
        self._streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._submitted = 0
        self._waiting: weakref.ref[Stream] | None = None
        self._results: Iterator[tuple[int, Any]] | None = None
        self._processes: set[Any] = set()

    def submit(self, tasks: Iterable[Any]) -> Stream:
        """The results of `tasks`, which may be without end, in their order. Who drops the stream ends it."""
        stream = Stream(self, self._submitted, tasks)
        self._streams[self._submitted] = stream
        self._submitted += 1
        return stream

    def close(self) -> None:
        """End the workers and all streams."""
        for stream in list(self._streams.values()):
            stream.closed = True
        self._streams.clear()
        self._end()

    def drop(self, number: int) -> None:
        """End a stream; with the last one, the workers."""
        self._streams.pop(number, None)
        if not self._streams:
            self._end()

    def receive(self, stream: Stream) -> None:
        """Take in the next result, whichever stream's it is, while `stream` waits for one."""
        self._waiting = weakref.ref(stream)
        try:
            if self._results is None:
                self._start()
            try:
                number, result = self._next()
            except StopIteration:  # all that there was is done; what was submitted since is for new workers
                self._end()
                return
        except BaseException:
            self.close()  # what the workers had in hand is lost
            raise
        owner = self._streams.get(number)
        if owner is not None:  # else nobody wants it any more
            owner.under_way -= 1
            owner.ready.append(result)

    def _tasks(self) -> Iterator[tuple[int, Any]]:
        while (task := self._upcoming()) is not None:
            yield task

    def _upcoming(self) -> tuple[int, Any] | None:
        streams = [self._waiting() if self._waiting else None, *reversed(list(self._streams.values()))]
        stream = next((s for s in streams if s is not None and not s.closed and s.upcoming is not None), None)
        return None if stream is None else (stream.number, stream.take())

    def _start(self) -> None:
        options: dict[str, Any] = {}
        if self.workers:
            options = {
                "prefetch_factor": PREFETCH,
                "multiprocessing_context": context(),
                "worker_init_fn": init_worker,
                "timeout": POLL,
            }
        loader = DataLoader(
            Numbered(self.work),
            batch_size=None,  # a task is a chunk
            sampler=self._tasks(),
            num_workers=self.workers,
            collate_fn=identity,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it would draw from the global one, and a resumed run would differ
            **options,
        )
        before = set(multiprocessing.active_children())
        self._results = iter(loader)
        self._processes = set(multiprocessing.active_children()) - before

    def _end(self) -> None:
        self._results = None  # tells the workers to end, and waits
        for process in self._processes:
            if process.is_alive():
                process.kill()
        self._processes = set()

    def _next(self) -> tuple[int, Any]:
        began = time.monotonic()
        while True:
            try:
                with torch.inference_mode(False):  # mini-batches of training come while an evaluation waits for its own
                    return next(self._results)
            except (RuntimeError, OSError, EOFError) as error:
                self._look_after(error, time.monotonic() - began)

    def _look_after(self, error: Exception, waited: float) -> None:
        """Raise what `error`, in place of a result, means; return if it only means that none has come yet."""
        late = "DataLoader timed out" in str(error)
        # A broken connection is noticed before the end of the process that was at its other end.
        sentinels = [process.sentinel for process in self._processes]
        ended = wait(sentinels, 0 if late else 2) if sentinels else []
        if ended:
            raise DataError(
                f"A data worker was killed, most often because memory ran out: use fewer workers "
                f"(--set data.workers=N, now {self.workers}) or give the job more memory (a container: more /dev/shm). "
                "The same command goes on from the last checkpoint."
            ) from error
        if not late:
            raise error
        if waited > STALL:
            raise DataError(
                f"No image came for {waited:.0f} s: the data folder {self.where} does not answer. Once it does, "
                "the same command goes on from the last checkpoint."
            ) from error


class Stream(Iterator[Any]):
    """The results of tasks, in their order; made by `Pool.submit`."""

    def __init__(self, pool: Pool, number: int, tasks: Iterable[Any]):
        self.pool, self.number, self.closed = pool, number, False
        self._tasks = iter(tasks)
        self.upcoming = next(self._tasks, None)
        self.under_way = 0  # tasks that workers have, or whose results wait to be taken in
        self.ready: deque[Any] = deque()  # results that came while another stream was waited for

    def take(self) -> Any:
        task, self.upcoming = self.upcoming, next(self._tasks, None)
        self.under_way += 1
        return task

    def __next__(self) -> Any:
        while not self.ready and not self.closed and (self.under_way or self.upcoming is not None):
            self.pool.receive(self)
        if self.closed or not self.ready:
            self.close()
            raise StopIteration
        return self.ready.popleft()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.pool.drop(self.number)

    def __del__(self) -> None:
        self.close()


class Numbered(Dataset):
    """A worker's tasks and results, with the number of the stream that they belong to."""

    def __init__(self, work: Dataset):
        self.work = work

    def __getitem__(self, numbered: tuple[int, Any]) -> tuple[int, Any]:
        number, task = numbered
        return number, self.work[task]


def identity(result: Any) -> Any:
    return result
