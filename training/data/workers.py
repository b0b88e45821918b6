"""Worker processes: how many the job has cores for, and how they are started and end."""

from __future__ import annotations

import atexit
import concurrent.futures
import multiprocessing
import multiprocessing.util
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.errors import DataError

SOCKET_PATH, SOCKET_NAME = 107, 24  # the longest path of a socket; "/listener-" and random letters, with some to spare
# What asks a job to stop goes to all its processes; the one that saves must not lose its workers to it.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
NICE = 10  # a worker's: it has a tenth of a core that the main thread wants too, and all of one that nobody wants


def context() -> BaseContext:
    """How worker processes start: forked from a small server, not from us.

    A fork of a process that has threads (CUDA, NCCL, the pinning of memory) can hang on a lock that one of them held.
    The server imports our modules once, so that a worker is there in milliseconds all the same.
    """
    main = sys.modules["__main__"]
    script = Path(getattr(main, "__file__", None) or "").stem
    # Each worker runs the script's imports again, unless the server already has them.
    again = [script] if script and getattr(main, "__spec__", None) is None else []
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["training.data.loader", *again])
    start_server()
    return made


def start_server() -> None:
    """Start the server that processes are forked from, if there is none, deaf to what stops a job.

    A blocked signal stays blocked in the server and all that it forks: without that, a SIGUSR1 to the whole job ends
    the server, and processes whose server is gone are taken for dead. The tracker first: starting it unblocks them.
    """
    _short_temporary_folder()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _short_temporary_folder() -> None:
    """The server listens on a socket in the temporary folder, and a socket's path has some 100 characters at most."""
    folder = multiprocessing.util.get_temp_dir()
    if len(os.fsencode(folder)) + SOCKET_NAME <= SOCKET_PATH:
        return
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        with suppress(OSError):
            short = tempfile.mkdtemp(prefix="pymp-", dir=place)
            break
    else:
        raise DataError(
            f"The temporary folder {folder} has too long a name for sockets, and no other one can be written: set "
            "TMPDIR to one of at most 60 characters."
        )
    multiprocessing.process.current_process()._config["tempdir"] = short
    atexit.register(shutil.rmtree, short, ignore_errors=True)


def init_worker(number: int = 0) -> None:
    """In a worker: signals are for the process that it works for, which goes first, and it ends when that one does."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # where a sandbox forbids it
        os.nice(NICE)
    # The server lives as long as its workers, so that a worker which waits for the server's end would wait for ever.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def beside_training(local_world: int = 1) -> int:
    """How many workers each of `local_world` processes starts: its share of the cores, less one for its main thread,
    which launches a GPU's kernels and should find a core whenever it wants one."""
    return max(1, cpus(local_world) - 1)


def cpus(local_world: int = 1) -> int:
    """The cores that each of `local_world` processes on this machine may use, at least 1: the job's, not the machine's.

    The smallest of: the cores that the process may run on, the cgroup's quota, what Slurm gave the task or node, and
    what the launcher leaves to each process of stages that run side by side.
    """
    on_node = _integer("SLURM_CPUS_ON_NODE")
    per_task = _integer("SLURM_CPUS_PER_TASK")
    # Processes that are a Slurm task each have a task's cores each; those that share a task (torchrun) share its cores.
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_NTASKS_PER_NODE") or ""
    match = re.match("[1-9][0-9]{0,8}", tasks)
    sharing = max(1, local_world // int(match[0])) if match else local_world
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [allowed / (sharing if per_task and allowed <= per_task else local_world)]
    if on_node:
        shares.append(on_node / local_world)
    if per_task:
        shares.append(per_task / sharing)
    if left := _integer("TRAIN_CORES"):
        shares.append(left)
    quota = cgroup_quota()
    if quota is not None:
        shares.append(quota / local_world)
    return max(1, int(min(shares)))


def _integer(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


def cgroup_quota(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores by cpu.max (cgroup version 2): the least of the process's own cgroup and those above it; None: no limit."""
    quotas = []
    with suppress(OSError):
        path = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
        place = mounted / path.strip("/")
        while place == mounted or mounted in place.parents:
            with suppress(OSError, ValueError):  # "max", no limit, is no number
                limit, period = (place / "cpu.max").read_text().split()
                quotas.append(int(limit) / int(period))
            place = place.parent
    return min(quotas, default=None)


def parallel(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int, what: str) -> Iterator[Any]:
    """`work` of each job, in order, by so many processes (0: by this one), under a progress bar."""
    with tqdm(total=len(jobs), desc=what, disable=None, leave=False) as bar:
        if not workers:
            for job in jobs:
                yield work(job)
                bar.update()
            return
        pool = concurrent.futures.ProcessPoolExecutor(workers, context(), _adopt, (work,))
        waiting: list[concurrent.futures.Future] = []
        try:
            for job in jobs:
                waiting.append(pool.submit(_adopted, job))
                if len(waiting) > 8 * workers:  # not all at once: what is waiting could not be stopped
                    yield waiting.pop(0).result()
                    bar.update()
            while waiting:
                yield waiting.pop(0).result()
                bar.update()
        except BrokenProcessPool:
            raise DataError(
                f"A process that worked on {what} was killed, most often because memory ran out: run the same command "
                "again with fewer --workers."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _adopt(work: Callable[[Any], Any]) -> None:
    init_worker()
    global _work
    _work = work


def _adopted(job: Any) -> Any:
    return _work(job)
