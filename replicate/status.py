"""Where every stage of every figure is: done, running, failed, waiting.

python -m replicate status                     # laptop scale, the seeds that are in runs/
python -m replicate status --scale imagenet --seeds 0 1 2
python -m replicate status --watch             # again every 10 seconds
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import experiments
from experiments.output import columns
from experiments.paths import to_folder
from experiments.reading import YamlError
from replicate.slurm import Queued, SlurmError, queue
from replicate.stage import CONFIGS, Stage, known_scale, plan
from training.config import differences, flatten
from training.errors import ConfigError

ALIVE_SECONDS = 120  # a training writes its progress every second or so, except in an evaluation
SILENT_SECONDS = 600


class State(NamedTuple):
    word: str  # done, running, failed, stopped, waiting, not started, unknown
    text: str


def states(stages: list[Stage], queue: dict[str, Queued] | None) -> dict[str, State]:
    """The state of each stage by its name, teachers before their students as `plan` has them.

    `queue` holds the jobs that have not ended; None: Slurm could not be asked.
    """
    found: dict[str, State] = {}
    for stage in stages:
        queued = (queue or {}).get(stage.noted().get("job", ""))
        found[stage.name] = _state(stage, queued, queue is not None, found.get(stage.teacher or ""))
    return found


def _state(stage: Stage, queued: Queued | None, answered: bool, teacher: State | None) -> State:
    manifest, noted = stage.manifest(), stage.noted()
    if stage.damaged:
        return State("failed", stage.damaged)
    if stage.finished:
        result = manifest["result"]
        return State("done", f"validation accuracy {result['val_top1']:.2%}, {duration(result['wall_s'])}")
    if manifest.get("status") == "finished":
        other = ", ".join(differences(manifest["config"], flatten(stage.config)))
        return State("failed", f"its folder holds a run of another config: {other}")
    job = noted.get("job")
    if queued and queued.state not in ("RUNNING", "COMPLETING"):
        behind = f"for {stage.teacher}, " if teacher and teacher.word != "done" else ""
        step = f", goes on at step {stage.step}" if stage.step else ""
        return State("waiting", f"{behind}job {job} {queued.state.lower()} ({queued.reason}){step}")
    if stage.locked or queued or ((not job or not answered) and _sign_of_life(stage, noted)):
        where = f"job {job} on {queued.nodes}" if queued else f"on {noted.get('host', 'this machine')}"
        return State("running", f"{_progress(stage, noted)}, {where}")
    if why := noted.get("failed") or (manifest.get("status") == "failed" and manifest.get("error")):
        return State("failed", f"{why} (log: {stage.log})")
    if job and not answered:
        return State("unknown", f"job {job}, and Slurm could not be asked; step {stage.step} of {stage.steps}")
    gone = f"; its job {job} has left the queue: cancelled or killed, or its teacher failed" if job else ""
    if stage.step or manifest.get("status") == "running":
        return State("stopped", f"at step {stage.step} of {stage.steps}{gone}; running the script again goes on")
    if gone:
        return State("stopped", f"before it began{gone}; running the script again submits it")
    if teacher and teacher.word != "done":
        return State("waiting", f"for {stage.teacher}" + (", which failed" if teacher.word == "failed" else ""))
    return State("not started", "")


def _age(stage: Stage) -> float | None:
    """Seconds since the last sign of life."""
    try:
        return max(0.0, time.time() - (stage.folder / "progress.json").stat().st_mtime)
    except OSError:
        return None


def _sign_of_life(stage: Stage, noted: dict) -> bool:
    """Whether another machine, whose lock may not be seen here, still writes into the folder."""
    elsewhere = "failed" not in noted and noted.get("host", os.uname().nodename) != os.uname().nodename
    return elsewhere and (age := _age(stage)) is not None and age < ALIVE_SECONDS


def _progress(stage: Stage, noted: dict) -> str:
    age, told = _age(stage), stage.progress()
    started = time.time() - noted.get("started", 0)
    if age is None or age > started:
        return f"starting, goes on at step {stage.step}" if stage.step else "starting"
    text = f"step {stage.step} of {stage.steps}"
    if rate := told.get("images_per_s"):
        left = (stage.steps - stage.step) * stage.config.training.batch_size / rate
        text += f", {rate:.0f} images/s, {duration(left)} left"
    if age > SILENT_SECONDS:
        text += f", no sign of life for {duration(age)}"
    return text


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def figures_of(stage: Stage) -> str:
    names = experiments.figures_of(stage.arm, stage.configs / "arms")
    return ", ".join(name.removeprefix("fig") for name in names)


def table(stages: list[Stage], found: dict[str, State]) -> str:
    rows = [("figure", "run", "state", "")]
    rows += [(figures_of(stage), stage.name, *found[stage.name]) for stage in stages]
    counts = Counter(state.word for state in found.values())
    total = ", ".join(f"{n} {word}" for word, n in counts.most_common())
    return "\n".join([*columns(rows), f"{len(stages)} runs: {total}"])


def as_json(stages: list[Stage], found: dict[str, State]) -> str:
    facts = [
        {
            "arm": stage.arm,
            "seed": stage.config.seed,
            "folder": str(stage.folder),
            "state": found[stage.name].word,
            "text": found[stage.name].text,
            "step": stage.step,
            "steps": stage.steps,
        }
        for stage in stages
    ]
    return json.dumps(facts, indent=1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replicate status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="laptop", help="a folder of configs/ (default: laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="K", help="(default: those that are in runs, or 0)")
    parser.add_argument("--runs", type=to_folder, default=Path("runs"), help="where runs are written (default: runs)")
    parser.add_argument("--configs", type=to_folder, default=CONFIGS, help="where scales are (default: configs)")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="again and again, every 10 seconds"
    )
    parser.add_argument("--json", action="store_true", help="a list with an object for each run, for other programs")
    arguments = parser.parse_args(argv)
    if arguments.watch is None:
        return _show(arguments)
    if not 0 < arguments.watch < 86400:  # nan is neither
        parser.error(f"--watch: expected seconds of a day, got {arguments.watch:g}")
    try:
        while (code := _show(arguments, "\033[H\033[2J" if sys.stdout.isatty() else "")) == 0:
            time.sleep(arguments.watch)
        return code
    except KeyboardInterrupt:
        return 0


def _show(arguments: argparse.Namespace, before: str = "") -> int:
    """Prints it once; 2 where it cannot be said; of a watch, 141 where nobody reads it any more."""
    try:
        scale = known_scale(arguments.scale, arguments.configs)
        there = {experiments.seed_of(folder) for folder in (arguments.runs / scale).glob("*/seed*")}
        seeds = arguments.seeds or sorted(there - {None}) or [0]
        arms = experiments.arms(folder=arguments.configs / "arms")
        stages = plan(scale, arms, seeds, arguments.runs, arguments.configs)
    except (ConfigError, YamlError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        queued = queue(stage.noted()["job"] for stage in stages if "job" in stage.noted() and not stage.finished)
    except SlurmError as error:
        print(f"{error}; what follows is from the runs' folders alone", file=sys.stderr)
        queued = None
    found = states(stages, queued)
    text = as_json(stages, found) if arguments.json else table(stages, found)
    try:
        print(f"{before}{text}", flush=True)
    except BrokenPipeError:  # of `status | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again when it ends
        return 0 if arguments.watch is None else 141
    return 0
