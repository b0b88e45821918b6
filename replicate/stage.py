"""What a stage is, one call of train.py, and which stages a figure consists of, teachers first.

A stage's result is not made again where it is there, and an unfinished stage goes on from its checkpoint: running a
script again *is* the resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import OPERATIONAL, SCALE, Config, differences, flatten, load
from training.errors import ConfigError
from training.files import write_atomic
from training.lease import PATIENCE, owner
from training.manifest import is_manifest, is_number

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
MARK = "=== attempt of "  # begins an attempt in log.txt


@dataclass
class Stage:
    """One arm with one seed."""

    scale: str
    arm: str
    config: Config
    folder: Path
    configs: Path = CONFIGS
    overrides: tuple[str, ...] = ()  # "key=value": keys that do not change what is trained, or what makes a variant
    base: str = ""  # the arm that this one is a variant of

    @classmethod
    def of(
        cls,
        scale: str,
        name: str,
        seed: int,
        folder: Path,
        overrides: tuple[str, ...] = (),
        *,
        base: str = "",
        configs: Path = CONFIGS,
    ) -> Stage:
        """A stage with its config read; its run is in `folder`, under its name."""
        config = load(configs / scale / f"{base or name}.yaml", [*overrides, f"seed={seed}"])
        return cls(scale, name, config, folder / name / f"seed{seed}", configs, overrides, base)

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.config.seed}"

    @property
    def file(self) -> Path:
        return self.configs / self.scale / f"{self.base or self.arm}.yaml"

    @property
    def arguments(self) -> list[str]:
        """The arguments of train.py."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        return [str(self.file), *sets, "--seed", str(self.config.seed), "--out", str(self.folder)]

    @property
    def chunks(self) -> int:
        """Parts of the batch that batch norm sees one by one: more processes than that have nothing to do."""
        return self.config.training.batch_size // self.config.training.chunk

    @property
    def steps(self) -> int:
        return self.config.training.steps

    @property
    def teacher(self) -> str | None:
        """The stage that has to be finished first; a checkpoint that is named by its path is there already."""
        return f"{self.config.teacher}/seed{self.config.seed}" if self.config.teacher_arm else None

    def manifest(self) -> dict[str, Any]:
        """What run.json says; nothing where it is none."""
        content = read_json(self.folder / "run.json")
        return content if is_manifest(content) else {}

    @property
    def finished(self) -> bool:
        return self._said_to_be_finished and (self.folder / "metrics.csv").is_file()

    @property
    def damaged(self) -> str:
        """What is wrong with its files, so that train.py would refuse it, and what to do; empty if nothing."""
        if os.access(self.folder / "run.json", os.R_OK) and not self.manifest():
            return "its run.json is not a run's manifest: move the folder away"
        if self._said_to_be_finished and not (self.folder / "metrics.csv").is_file():
            return "its run.json says finished, and its metrics.csv is gone: put it back, or remove the folder"
        return ""

    @property
    def _said_to_be_finished(self) -> bool:
        manifest = self.manifest()
        return manifest.get("status") == "finished" and not differences(manifest["config"], flatten(self.config))

    @property
    def step(self) -> int:
        return self.steps if self.finished else self.progress().get("step", 0)

    def progress(self) -> dict[str, Any]:
        return _typed(read_json(self.folder / "progress.json"))

    def note(self, **facts: Any) -> None:
        """Who runs the stage, in job.json, for `replicate status`; what train.py knows is in run.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "job.json", json.dumps(facts).encode() + b"\n")

    def noted(self) -> dict[str, Any]:
        return _typed(read_json(self.folder / "job.json"))

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def begin_log(self, by: str) -> None:
        """A line between this attempt and what earlier ones wrote."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(f"{MARK}{time.strftime('%Y-%m-%d %H:%M:%S')}, {by}\n")

    def why(self, otherwise: str) -> str:
        """Why the last attempt failed, from what it wrote into its log."""
        try:
            text = self.log.read_text(errors="replace")[-100_000:]
        except OSError:
            return otherwise
        lines = text.rpartition(MARK)[2].splitlines()[1:] if MARK in text else text.splitlines()
        lines = [line.strip() for line in lines if line.strip() and not line.startswith("train.py: warning: ")]
        ours = [line.removeprefix("train.py: ") for line in lines if line.startswith("train.py: ")]
        theirs = [re.sub(r"^\[rank\d+\]: ", "", line) for line in lines if "torch.distributed.elastic" not in line]
        raised = [line for line in theirs if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return [otherwise, *lines[-1:], *raised, *ours][-1]

    @property
    def locked(self) -> bool:
        """Whether a process is training in the folder now."""
        return locked(self.folder)

    def seconds(self) -> float | None:
        """An estimate: the time of a step in the fastest committed run of this arm and network, times the steps."""
        own, each = flatten(self.config), []
        same = [key for key in own if key.startswith("model.")] + ["data.name", "training.batch_size"]
        names = {self.arm, self.base or self.arm}
        for file in (file for name in names for file in (ROOT / "results").glob(f"*/{name}/seed*/run.json")):
            run = read_json(file)
            config = run.get("config", {})
            if is_manifest(run) and "result" in run and all(config.get(key, own[key]) == own[key] for key in same):
                each.append(run["result"]["wall_s"] / config["training.steps"])
        return min(each) * self.steps if each else None


def locked(folder: Path) -> bool:
    """Whether a process is training in the folder: one of this machine, or one elsewhere that beats in its lock."""
    lock = folder / "lock"
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, not ours to read, or a file system without locks: what is written in it decides
        pass
    holder = owner(lock)
    if not holder or holder.get("host") == os.uname().nodename:
        return False
    try:
        return time.time() - lock.stat().st_mtime < PATIENCE
    except OSError:
        return False


def _typed(noted: dict[str, Any]) -> dict[str, Any]:
    """The entries of job.json or progress.json that have the type which is written there."""
    kinds = dict.fromkeys(("step", "images_per_s", "started"), is_number)
    kinds |= dict.fromkeys(("job", "host", "failed"), lambda value: isinstance(value, str))
    return {key: value for key, value in noted.items() if key not in kinds or kinds[key](value)}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def known_scale(name: str, configs: Path, option: str = "--scale") -> str:
    """The name of a folder of `configs`; a shell may have completed it with a slash."""
    scale = name.rstrip("/")
    if len(Path(scale).parts) == 1 and scale not in (".", "..", "arms") and (configs / scale).is_dir():
        return scale
    there = ", ".join(sorted(path.parent.name for path in configs.glob(f"*/{SCALE}"))) or "none"
    what = f"{name!r} is a path, expected a name" if "/" in scale else f"there is no {configs.name}/{name}"
    raise ConfigError(f"{option}: {what}; there are {there}")


def plan(
    scale: str,
    arms: Iterable[str],
    seeds: Iterable[int],
    runs: Path,
    configs: Path = CONFIGS,
    overrides: Iterable[str] = (),
) -> list[Stage]:
    """The stages of a scale's arms and of their teachers, in the order in which they are best begun."""
    overrides = tuple(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key not in OPERATIONAL:
            raise ConfigError(
                f"--set {key}: here only what does not change the training may be set ({', '.join(OPERATIONAL)}); "
                "for the rest write a scale of your own, a folder beside the others in configs/"
            )
    stages = []
    for seed in seeds:
        wanted = list(arms)
        for arm in wanted:  # which grows: an arm of one's own may have a teacher that no figure names
            stages.append(Stage.of(scale, arm, seed, runs / scale, overrides, configs=configs))
            if stages[-1].config.teacher_arm and stages[-1].config.teacher not in wanted:
                wanted.append(stages[-1].config.teacher)
    return ordered(stages)


def ordered(stages: Iterable[Stage]) -> list[Stage]:
    """Each stage once: the one with the longest chain of students first, so teachers before their students."""
    named = {stage.name: stage for stage in stages}
    for stage in named.values():
        above, teacher = [stage.name], stage.teacher
        while teacher in named:
            if teacher in above:
                raise ConfigError(
                    f"{stage.file}: {stage.config.teacher!r}, its teacher, is or grows from the arm itself"
                )
            above.append(teacher)
            teacher = named[teacher].teacher

    def ahead(stage: Stage) -> float:
        """Cost of a stage and of the longest chain of students after it."""
        after = [ahead(other) for other in named.values() if other.teacher == stage.name]
        return (stage.seconds() or stage.steps) + max(after, default=0)

    return sorted(named.values(), key=lambda stage: -ahead(stage))
