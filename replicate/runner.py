"""Running stages on this machine: each as soon as its teacher is finished."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replicate.stage import ROOT, Stage
from training.data.workers import STOPPING, start_server

REPORT_EVERY = 60.0  # seconds between lines where there is no terminal
GRACE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}  # seconds for the ranks to save in; torchrun's own 30 may be too few
STOP = signal.SIGUSR1  # asks torchrun to stop: it sends the same to its ranks, and train.py saves and ends


def _train(arguments: list[str], log: str, threads: int) -> None:
    """In a process of its own: train.py, its output in `log`, stopping when this script is gone."""
    import torch

    import train

    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.environ["TRAIN_CORES"] = str(threads)
    torch.set_num_threads(threads)
    parent = os.getppid()
    sys.exit(train.main(arguments, orphaned=lambda: os.getppid() != parent))


def fetch_data(stages: Iterable[Stage], context: BaseContext, stopping: Callable[[], bool] = lambda: False) -> bool:
    """Fashion-MNIST, here and once: several stages would fetch it at the same time, and nodes may have no network."""
    for root in {s.config.data.folder for s in stages if s.config.data.name == "fashion_mnist" and not s.finished}:
        process = _started(context.Process(target=_fetch, args=(root,)))
        try:
            while process.is_alive() and not stopping():
                process.join(0.2)
        finally:
            process.terminate()  # unless it is over
            process.join()
        if process.exitcode != 0:
            return False
    return True


def _fetch(root: Path) -> None:
    """In a process of its own: this one does without torch, whose import takes seconds."""
    from training.data.__main__ import main

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of what it cleans up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    with contextlib.redirect_stdout(None):
        sys.exit(main(["fetch", "--root", str(root)]))


def _started(process: BaseProcess) -> BaseProcess:
    start_server()
    process.start()
    return process


def torchrun(
    arguments: list[str], processes: int, nodes: int = 1, rank: str = "0", address: str = "", port: str = ""
) -> list[str]:
    """The command that trains a stage with so many processes on each node; `rank` is this node's."""
    where = ["--standalone", "--local-addr=127.0.0.1"]  # else a host name that does not resolve is waited for
    if nodes > 1:
        where = [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
    run = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={processes}"]
    return [*run, f"--signals-to-handle={STOP.name}", str(ROOT / "train.py"), *arguments]


def spawn(command: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """Start torchrun, its output in `log`. It stops when this process is gone.

    A scheduler or a terminal may send signals to every process there is. torchrun ignores them: one SIGTERM from
    the scheduler and another that torchrun passes on would look to train.py like somebody who cannot wait. torchrun
    is told once, with `STOP`, and the ranks listen to SIGTERM themselves.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def before() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if libc:
            libc.prctl(1, int(STOP))  # PR_SET_PDEATHSIG: sent to torchrun when its parent ends, however it ends

    with log.open("a") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**GRACE, **os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for us to pass on
            preexec_fn=before,
        )


class Torchrun:
    """A torchrun process with the interface of a `multiprocessing` one."""

    def __init__(self, popen: subprocess.Popen):
        self.popen = popen

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def terminate(self) -> None:
        self.popen.send_signal(STOP)

    @property
    def exitcode(self) -> int:
        return self.popen.returncode


DEVICES = ("nvidia[0-9]*", "kfd", "dxg")  # in /dev, where there is a GPU: NVIDIA's, AMD's, in Windows


def gpus_here() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name on this machine, without the seconds that importing torch takes."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):  # a container may have GPUs without it
        return _gpus_of_torch() if any(True for name in DEVICES for _ in Path("/dev").glob(name)) else []


def _gpus_of_torch() -> list[str]:
    ask = [sys.executable, "-c", "import torch; print(*range(torch.cuda.device_count()))"]
    return subprocess.run(ask, capture_output=True, text=True).stdout.split()


class Runner:
    """Keeps `jobs` stages running until none is left that can.

    With GPUs each stage has one for each of its `processes`; stages run side by side until no GPU is free. A GPU that
    `gpus` names several times is shared by stages of one process. `threads` is per process: the cores that it has for
    itself and its data workers.
    """

    def __init__(self, stages: list[Stage], jobs: int, threads: int, processes: dict[str, int], gpus: list[str]):
        self.stages, self.jobs, self.threads, self.processes, self.gpus = stages, jobs, threads, processes, gpus
        self.free, self.taken = list(gpus), dict[str, list[str]]()
        self.waiting = [stage for stage in stages if not stage.finished]
        self.running: dict[str, tuple[Stage, BaseProcess | Torchrun]] = {}
        self.failed: dict[str, str] = {}
        self.steps = {stage.name: stage.step for stage in stages}
        self.stopping = 0  # the signal that asked for it
        # Forked from a server that has imported torch and timm once: that alone takes ten seconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train"])
        self.bar = tqdm(total=sum(s.steps for s in stages), unit="step", disable=None, smoothing=0.05)
        self.reported = time.monotonic()

    def run(self) -> int:
        # nohup has SIGHUP ignored: the terminal may go, the runs are to stay.
        heard = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        handlers = {n: signal.signal(n, self._stop) for n in heard}
        try:
            self.bar.set_description_str("preparing")
            if not fetch_data(self.waiting, self.context, lambda: bool(self.stopping)) and not self.stopping:
                return 2
            self._show()
            while self.running or self._startable():
                while len(self.running) < self.jobs and (ready := [s for s in self._startable() if self._fits(s)]):
                    self._start(ready[0])
                self._wait()
                for stage, process in list(self.running.values()):
                    if not process.is_alive():
                        self._ended(stage, process)
                self._show()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.bar.close()
        return self._verdict()

    def _wait(self) -> None:
        """A second, or until a process has ended: the folders may be on a file system that many share."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until and all(process.is_alive() for _, process in self.running.values()):
            time.sleep(0.1)

    def _startable(self) -> list[Stage]:
        if self.stopping:
            return []
        open_teachers = {s.name for s in self.waiting} | set(self.running) | set(self.failed)
        return [s for s in self.waiting if s.teacher not in open_teachers and not s.locked]

    def _fits(self, stage: Stage) -> bool:
        return not self.gpus or len(self.free) >= self.processes[stage.name]

    def _start(self, stage: Stage) -> None:
        self.waiting.remove(stage)
        stage.begin_log("on this machine")
        processes = self.processes[stage.name]
        if self.gpus or processes > 1:
            environment = {"OMP_NUM_THREADS": str(self.threads), "TRAIN_CORES": str(self.threads)}
            if self.gpus:
                mine = self.taken[stage.name] = [self.free.pop(0) for _ in range(processes)]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            process = Torchrun(spawn(torchrun(stage.arguments, processes), stage.log, **environment))
            pid = process.popen.pid
        else:
            arguments = (stage.arguments, str(stage.log), self.threads)
            process = _started(self.context.Process(target=_train, args=arguments, name=stage.name))
            pid = process.pid
        stage.note(host=os.uname().nodename, pid=pid, started=time.time())
        self.running[stage.name] = (stage, process)
        if self.stopping:  # since before it was one of them
            process.terminate()
        self._say(f"{stage.name}: {'goes on at step ' + str(stage.step) if stage.step else 'starts'}")

    def _ended(self, stage: Stage, process: BaseProcess) -> None:
        del self.running[stage.name]
        self.steps[stage.name] = stage.step
        self.free += self.taken.pop(stage.name, [])
        if stage.finished:
            result = stage.manifest()["result"]
            self._say(
                f"{stage.name}: finished, validation accuracy {result['val_top1']:.2%} ({result['wall_s']:.0f} s)"
            )
        elif not self.stopping:
            self.failed[stage.name] = why = stage.why(f"exit code {process.exitcode}")
            stage.note(**stage.noted(), failed=why)
            self._say(f"{stage.name}: FAILED: {why} (log: {stage.log})")

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            return
        self.stopping = number
        for _, process in self.running.values():
            process.terminate()  # train.py saves and ends

    def _show(self) -> None:
        running = [stage for stage, _ in self.running.values()]
        self.steps.update({stage.name: stage.step for stage in running})  # what does not run is not read again
        self.bar.n = sum(self.steps.values())
        parts = [f"{stage.arm} {self.steps[stage.name] / stage.steps:.0%}" for stage in running]
        self.bar.set_description_str(", ".join(parts) or ("waiting" if self.waiting else "done"))
        if self.bar.disable and self.running and time.monotonic() - self.reported > REPORT_EVERY:
            self.reported = time.monotonic()
            print(f"{self.bar.n} of {self.bar.total} steps; running: {', '.join(parts)}", flush=True)

    def _say(self, line: str) -> None:
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.write(line)

    def _verdict(self) -> int:
        done = sum(stage.finished for stage in self.stages)
        if self.stopping:
            print(f"stopped, {done} of {len(self.stages)} runs are finished; the same command goes on from here")
            return 128 + self.stopping  # a shell's, of a process that a signal ended
        locked = [stage.name for stage in self.waiting if stage.locked]
        if locked:
            print(f"left alone, another process is training them: {', '.join(locked)}", file=sys.stderr)
        for name, why in self.failed.items():
            print(f"{name} failed: {why}", file=sys.stderr)
        if done == len(self.stages):
            print(f"all {done} runs are finished")
        left = [stage.name for stage in self.waiting if stage.name not in locked]
        if left:
            print(f"not run for want of their teachers: {', '.join(left)}", file=sys.stderr)
        return 0 if done == len(self.stages) else 1
