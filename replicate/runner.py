"""Runs stages: each one a call of train.py, in a process of its own, as soon as its teacher is finished.

A stage whose result is there is not run again, and an unfinished one goes on from its checkpoint: running a script
again *is* the resume.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.config import Config, ConfigError, differences, flatten, load

ROOT = Path(__file__).resolve().parents[1]
REPORT_EVERY = 60.0  # seconds between lines where there is no terminal


@dataclass
class Stage:
    """One arm with one seed."""

    scale: str
    arm: str
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.config.seed}"

    @property
    def file(self) -> Path:
        return config_file(self.scale, self.arm)

    @property
    def steps(self) -> int:
        return self.config.training.steps

    @property
    def teacher(self) -> str | None:
        return f"{self.config.growth.teacher}/seed{self.config.seed}" if self.config.growth else None

    def manifest(self) -> dict[str, Any]:
        return _read_json(self.folder / "run.json")

    @property
    def finished(self) -> bool:
        manifest = self.manifest()
        return manifest.get("status") == "finished" and not differences(manifest["config"], flatten(self.config))

    @property
    def step(self) -> int:
        return self.steps if self.finished else _read_json(self.folder / "progress.json").get("step", 0)

    @property
    def locked(self) -> bool:
        """Whether a process is training in the folder now."""
        try:
            with (self.folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def seconds(self) -> float | None:
        """What the committed run of this arm took, if there is one of the same number of steps."""
        recorded = _read_json(ROOT / "results" / self.scale / self.arm / "seed0" / "run.json")
        if recorded.get("config", {}).get("training.steps") != self.steps:
            return None
        return recorded["result"]["wall_s"]


def config_file(scale: str, arm: str) -> Path:
    return ROOT / "configs" / scale / f"{arm}.yaml"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def plan(scale: str, arms: Iterable[str], seeds: Iterable[int], runs: Path) -> list[Stage]:
    """The stages, those on the longest way to the end first."""
    stages = {}
    for seed in seeds:
        for arm in arms:
            config = load(config_file(scale, arm), [f"seed={seed}"])
            stage = Stage(scale, arm, config, runs / scale / arm / f"seed{seed}")
            stages[stage.name] = stage
    for stage in stages.values():
        if stage.teacher and stage.teacher not in stages:
            raise ConfigError(f"{stage.file}: growth.teacher: {stage.config.growth.teacher!r} is no arm of this figure")

    def ahead(stage: Stage) -> float:
        """Cost of a stage and of the longest chain of students after it."""
        after = [ahead(other) for other in stages.values() if other.teacher == stage.name]
        return (stage.seconds() or stage.steps) + max(after, default=0)

    return sorted(stages.values(), key=lambda stage: -ahead(stage))


def _train(arguments: list[str], log: str, threads: int) -> None:
    """In a process of its own: train.py, its output in `log`, stopping when this script is gone."""
    import torch

    import train

    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    torch.set_num_threads(threads)
    parent = os.getppid()
    sys.exit(train.main(arguments, orphaned=lambda: os.getppid() != parent))


def _fetch_data(root: str) -> None:
    from training import fashion_mnist

    try:
        fashion_mnist.ensure(Path(root))
    except fashion_mnist.DataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


class Runner:
    """Keeps `jobs` stages running until none is left that can."""

    def __init__(self, stages: list[Stage], jobs: int, threads: int):
        self.stages, self.jobs, self.threads = stages, jobs, threads
        self.waiting = [stage for stage in stages if not stage.finished]
        self.running: dict[str, tuple[Stage, BaseProcess]] = {}
        self.failed: dict[str, str] = {}
        self.stopping = False
        # Forked from a server that has imported torch and timm once: that alone takes ten seconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train", "training.fashion_mnist"])
        self.bar = tqdm(total=sum(s.steps for s in stages), unit="step", disable=None, smoothing=0.05)
        self.reported = time.monotonic()

    def run(self) -> int:
        handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.bar.set_description_str("preparing")
            if not self._data():
                return 2
            self._show()
            while self.running or self._startable():
                while len(self.running) < self.jobs and not self.stopping and (ready := self._startable()):
                    self._start(ready[0])
                time.sleep(0.2)
                for stage, process in list(self.running.values()):
                    if not process.is_alive():
                        self._ended(stage, process)
                self._show()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.bar.close()
        return self._verdict()

    def _data(self) -> bool:
        """Get the data once, before several stages look for it at the same time."""
        for root in {s.config.data.root for s in self.waiting if s.config.data.name == "fashion_mnist"}:
            process = self.context.Process(target=_fetch_data, args=(root,))
            process.start()
            process.join()
            if process.exitcode != 0:
                return False
        return True

    def _startable(self) -> list[Stage]:
        if self.stopping:
            return []
        open_teachers = {s.name for s in self.waiting} | set(self.running) | set(self.failed)
        return [s for s in self.waiting if s.teacher not in open_teachers and not s.locked]

    def _start(self, stage: Stage) -> None:
        self.waiting.remove(stage)
        stage.folder.mkdir(parents=True, exist_ok=True)
        arguments = [str(stage.file), "--seed", str(stage.config.seed), "--out", str(stage.folder)]
        log = str(stage.folder / "log.txt")
        process = self.context.Process(target=_train, args=(arguments, log, self.threads), name=stage.name)
        process.start()
        self.running[stage.name] = (stage, process)
        self._say(f"{stage.name}: {'goes on at step ' + str(stage.step) if stage.step else 'starts'}")

    def _ended(self, stage: Stage, process: BaseProcess) -> None:
        del self.running[stage.name]
        if stage.finished:
            result = stage.manifest()["result"]
            self._say(
                f"{stage.name}: finished, validation accuracy {result['val_top1']:.2%} ({result['wall_s']:.0f} s)"
            )
        elif not self.stopping:
            lines = (stage.folder / "log.txt").read_text().strip().splitlines() or [f"exit code {process.exitcode}"]
            self.failed[stage.name] = lines[-1].removeprefix("train.py: ")
            self._say(f"{stage.name}: FAILED: {self.failed[stage.name]} (log: {stage.folder / 'log.txt'})")

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            return
        self.stopping = True
        for _, process in self.running.values():
            process.terminate()  # train.py saves and ends

    def _show(self) -> None:
        self.bar.n = sum(stage.step for stage in self.stages)
        parts = [f"{stage.arm} {stage.step / stage.steps:.0%}" for stage, _ in self.running.values()]
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
            return 130
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


def describe(stages: list[Stage], jobs: int) -> str:
    """The plan as a table, with what is known of the time."""
    rows, known, total = [], True, 0.0
    for stage in stages:
        seconds = stage.seconds()
        if stage.finished:
            state = "finished"
        elif stage.locked:
            state = f"running, step {stage.step}"
        elif stage.step:
            state = f"to go on at step {stage.step}"
        else:
            state = "to run" + (f" after {stage.teacher}" if stage.teacher else "")
        left = None if seconds is None else seconds * (1 - stage.step / stage.steps)
        known, total = known and left is not None, total + (left or 0)
        rows.append((stage.name, f"{stage.steps} steps", "?" if left is None else f"{left:.0f} s", state))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([c.ljust(w) for c, w in zip(row, widths, strict=False)] + [row[3]]) for row in rows]
    time_left = f"about {total / jobs / 60:.1f} min" if known else "time unknown: no recorded run to go by"
    return "\n".join([*lines, f"{len(stages)} runs, {jobs} side by side, {time_left} (as recorded in results/)"])


def main(description: str, arms: tuple[str, ...], argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop", help="a folder of configs/ (default: laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="K")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are written (default: runs)")
    parser.add_argument("--jobs", type=int, help="stages side by side (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is there already, run nothing")
    parser.add_argument("--smoke", action="store_true", help="short for --scale smoke: a few steps of every stage")
    arguments = parser.parse_args(argv)
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {arguments.jobs}")
    scale = "smoke" if arguments.smoke else arguments.scale
    if not (ROOT / "configs" / scale).is_dir():
        scales = ", ".join(sorted(p.name for p in (ROOT / "configs").iterdir() if p.is_dir()))
        parser.error(f"--scale: there is no configs/{scale}; there are {scales}")
    try:
        stages = plan(scale, arms, arguments.seeds, arguments.runs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    # Nets of this kind use one core each best: two runs of one thread see more images than one run of two threads.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = arguments.jobs or min(cores, len(stages))
    if arguments.dry_run:
        print(describe(stages, jobs))
        return 0
    return Runner(stages, jobs, max(1, cores // jobs)).run()
