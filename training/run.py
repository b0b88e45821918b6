"""A run's folder: who may write in it, its checkpoint, its metrics, its manifest. Every file is replaced whole.

run.json        what was run: config, seeds, versions, teacher, growth, and how it ended
metrics.csv     one row per evaluation
checkpoint.pt   everything needed to go on; it holds the rows too, so that metrics and weights never disagree
progress.json   step and rate, for whoever watches
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pickle
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from training.config import Config, differences, flatten

COLUMNS = ("step", "images", "wall_s", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
FORMAT = 1


class RunError(Exception):
    """The run cannot start or go on; the message says why and what to do."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or not the one that is needed."""


class Run:
    """A run's folder, locked for this process as long as the object is open."""

    def __init__(self, folder: Path, config: Config):
        self.folder = folder
        self.config = config
        self.manifest: dict[str, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a+")
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}; choose another folder with --out") from None
        try:
            self._take_lock()
            self._open_manifest()
        except BaseException:
            self._lock.close()
            raise

    def _take_lock(self) -> None:
        try:
            # The kernel frees it when the process ends, however it ends: no stale locks.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise RunError(
                f"another process (pid {self._lock.read().strip() or 'unknown'}) is training in {self.folder}: "
                "wait for it, or choose another folder with --out"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _open_manifest(self) -> None:
        path = self.folder / "run.json"
        mine = flatten(self.config)
        if path.exists():
            try:
                self.manifest = json.loads(path.read_text())
                theirs = self.manifest["config"]
            except (ValueError, KeyError, TypeError):
                raise RunError(f"{path} is not a run's manifest: move {self.folder} away, or choose --out") from None
            if changed := differences(mine, theirs):
                listed = ", ".join(f"{k} ({theirs.get(k)!r} there, {mine.get(k)!r} now)" for k in changed)
                raise RunError(
                    f"{self.folder} holds a run of another config: {listed}. Nothing was touched; "
                    "use the old config, choose another folder with --out, or move that one away"
                )
        elif (self.folder / "checkpoint.pt").exists():
            raise RunError(f"{self.folder} has a checkpoint but no run.json: move it away, or choose --out")

    @property
    def finished(self) -> bool:
        return self.manifest.get("status") == "finished"

    def start(self, **facts: Any) -> None:
        """Write the manifest of a run that begins or goes on."""
        known = {key: self.manifest[key] for key in ("parameters", "growth") if key in self.manifest}
        self.manifest = {
            "status": "running",
            "config": flatten(self.config),
            "versions": versions(),
            "git": git_state(),
            "threads": torch.get_num_threads(),
            **known,
        }
        self.note(**facts)

    def note(self, **facts: Any) -> None:
        self.manifest.update(facts)
        write(self.folder / "run.json", json.dumps(self.manifest, indent=1).encode() + b"\n")

    def save(self, state: dict[str, Any]) -> None:
        """Checkpoint first, then the metrics that it holds."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "config": flatten(self.config), **state}, buffer)
        write(self.folder / "checkpoint.pt", buffer.getvalue())
        self._write_metrics(state["rows"])

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write(self.folder / "metrics.csv", text.getvalue().encode())

    def restore(self) -> dict[str, Any] | None:
        """The state to go on from, or None where the run has not begun."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        state = load_checkpoint(path, "run")
        self._write_metrics(state["rows"])  # a kill may have come between checkpoint and metrics
        return state

    def progress(self, step: int, rate: float) -> None:
        """Tell a watcher where the run is. Not worth an fsync, nor stopping for if it fails."""
        path = self.folder / "progress.json"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({"step": step, "steps": self.config.training.steps, "images_per_s": rate}))
            temporary.replace(path)
        except OSError:
            return


def load_checkpoint(path: Path, role: str) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"the {role}'s checkpoint {path} does not exist: train it first") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the {role}'s checkpoint {path} cannot be read, it is truncated or not a checkpoint ({first[:200]}): "
            "remove its folder and train it again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"the {role}'s checkpoint {path} was not written by this version of train.py")
    return state


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a kill or a full disk there is the old one or the new one, no half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}. The previous version of the file is intact; "
            "make room or give access, then run the same command again"
        ) from None


def versions() -> dict[str, str]:
    import timm
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def git_state() -> dict[str, Any]:
    """Commit of the checkout, and whether it had changes; empty where there is no git."""

    def git(*words: str) -> str:
        where = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


class Clock:
    """Seconds of training, over all calls that a run took."""

    def __init__(self, before: float = 0.0):
        self._start = time.monotonic() - before

    def __call__(self) -> float:
        return time.monotonic() - self._start
