"""A run's folder: who may write in it, its checkpoint, its metrics, its manifest. Every file is replaced whole.

run.json        what was run: config, data, seeds, versions, teacher, growth, and how it ended
metrics.csv     one row per evaluation
checkpoint.pt   everything needed to go on; it holds the rows too, so that metrics and weights never disagree
checkpoint-<step>.pt   the ones before it, `training.keep` in all: gone on from where the newest cannot be read
step0.pt        of a student: what was grown, before its first update
progress.json   step and rate, for whoever watches
lock            which process writes here
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from training.config import OPERATIONAL, Config, differences, effective, flatten
from training.lease import Lease, Taken

T = TypeVar("T")

# train_loss: cross-entropy, in every row. objective: what was minimised, with label smoothing and auxiliary term; the
# mean over the steps since the row before, so that the first row has none.
COLUMNS = ("step", "images", "wall_s", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "objective")
FORMAT = 1
# What a network file system says when it will be back: tried again after so many seconds each.
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EREMOTEIO}
PAUSES = (1.0, 3.0, 10.0)


class RunError(Exception):
    """The run cannot start or go on; the message says why and what to do."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or not the one that is needed."""


class Stopped(Exception):
    """The run was asked to stop, and saved at this step."""


class Run:
    """A run's folder, locked for this process as long as the object is open."""

    def __init__(self, folder: Path, config: Config):
        self.folder = folder
        self.config = config
        self.manifest: dict[str, Any] = {}
        self._saved: int | None = None  # step of checkpoint.pt
        try:
            patiently(lambda: folder.mkdir(parents=True, exist_ok=True))
            self._lease = patiently(lambda: Lease(folder))
        except Taken as taken:
            raise RunError(
                f"{taken} is training in {folder}: wait for it, or choose another folder with --out"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}; choose another folder with --out") from None
        try:
            self._open_manifest()
        except BaseException:
            self._lease.release()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lease.release()

    def _open_manifest(self) -> None:
        path = self.folder / "run.json"
        mine = flatten(self.config)
        if path.exists():
            try:
                self.manifest = json.loads(patiently(path.read_text))
                theirs = self.manifest["config"]
            except OSError as error:
                raise RunError(f"cannot read {path}: {error.strerror}") from None
            except (ValueError, KeyError, TypeError):
                raise RunError(f"{path} is not a run's manifest: move {self.folder} away, or choose --out") from None
            if changed := differences(mine, theirs):
                listed = ", ".join(f"{k} ({theirs.get(k)!r} there, {mine.get(k)!r} now)" for k in changed)
                raise RunError(
                    f"{self.folder} holds a run of another config: {listed}. Nothing was touched; use the old config "
                    f"(fingerprint {fingerprint(theirs)}, this one's is {fingerprint(mine)}), "
                    "choose another folder with --out, or move that one away"
                )
        elif (self.folder / "checkpoint.pt").exists():
            raise RunError(f"{self.folder} has a checkpoint but no run.json: move it away, or choose --out")

    @property
    def finished(self) -> bool:
        return self.manifest.get("status") == "finished"

    def start(self, data: dict[str, Any], **facts: Any) -> None:
        """Write the manifest of a run that begins or goes on; refuse other data than it began with."""
        before = self.manifest.get("data", data)
        if before["fingerprint"] != data["fingerprint"]:
            raise RunError(
                f"{self.folder} was begun on other data: fingerprint {before['fingerprint'][:16]} there, "
                f"{data['fingerprint'][:16]} now ({_counts(before)}, now {_counts(data)}). Nothing was touched; "
                "give it the old data (--set data.root=…), or choose another folder with --out"
            )
        # All that earlier calls noted stays, but for how the last one ended and what this one says anew.
        noted = {key: value for key, value in self.manifest.items() if key not in ("error", "result")}
        self.manifest = {
            **noted,
            "status": "running",
            "config": flatten(self.config),
            "data": data,
            "versions": versions(),
            "git": git_state(),
            "threads": torch.get_num_threads(),
        }
        self.note(**facts)

    def note(self, **facts: Any) -> None:
        self._check_lease()
        self.manifest.update(facts)
        write(self.folder / "run.json", json.dumps(self.manifest, indent=1).encode() + b"\n")

    def save(self, state: dict[str, Any]) -> None:
        """Checkpoint first, then the metrics that it holds."""
        self._check_lease()
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "config": flatten(self.config), **state}, buffer)
        newest = self.folder / "checkpoint.pt"
        self._keep_step0()  # a kill may have come between checkpoint and copy
        if self.config.training.keep > 1 and self._saved is not None and self._saved != state["step"]:
            _duplicate(newest, self.folder / f"checkpoint-{self._saved:08d}.pt")
        write(newest, buffer.getvalue())
        self._saved = state["step"]
        for old in self._older()[self.config.training.keep - 1 :]:
            with contextlib.suppress(OSError):  # one too many does no harm
                old.unlink(missing_ok=True)
        self._keep_step0()
        self._write_metrics(state["rows"])

    def _check_lease(self) -> None:
        if self._lease.lost:
            raise RunError(
                f"{self._lease.lost} has taken over {self.folder} while this one did not answer: it goes on there, "
                "this one stops and saves nothing"
            )

    def _keep_step0(self) -> None:
        if self._saved == 0 and self.config.growth is not None:
            _duplicate(self.folder / "checkpoint.pt", self.folder / "step0.pt")

    def _older(self) -> list[Path]:
        """The checkpoints before the newest one, latest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        write(self.folder / "metrics.csv", text.getvalue().encode())

    def restore(self) -> dict[str, Any] | None:
        """The state to go on from, or None where the run has not begun.

        Where the newest checkpoint cannot be read, it is the one before it: nothing is lost but time, as the
        mini-batches after it are the same again.
        """
        newest = self.folder / "checkpoint.pt"
        paths = ([newest] if newest.exists() else []) + self._older()
        complaints: list[CheckpointError] = []
        for path in paths:
            try:
                state = load_checkpoint(path, "run")
            except CheckpointError as error:
                complaints.append(error)
                continue
            for complaint in complaints:
                print(f"train.py: {complaint}; going on from {path.name}, step {state['step']}", file=sys.stderr)
            self._saved = state["step"] if path == newest else None
            self._write_metrics(state["rows"])  # a kill may have come between checkpoint and metrics
            return state
        if complaints:
            raise complaints[0]
        return None

    def progress(self, step: int, rate: float) -> None:
        """Tell a watcher where the run is. Not worth an fsync, nor stopping for if it fails."""
        if self._lease.lost:
            return
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
        state = patiently(lambda: torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise CheckpointError(f"the {role}'s checkpoint {path} does not exist: train it first") from None
    except Exception as error:  # there is no kind that damaged bytes do not raise
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

    def replace() -> None:
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

    _writing(path, temporary, replace)


def _duplicate(path: Path, name: Path) -> None:
    """Give a file a second name that stays when the first one is replaced; a copy where there are no hard links."""
    temporary = name.with_name(f".{name.name}.tmp")

    def duplicate() -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise
            shutil.copyfile(path, temporary)
        temporary.replace(name)

    _writing(name, temporary, duplicate)


def _writing(path: Path, temporary: Path, action: Callable[[], None]) -> None:
    try:
        patiently(action)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}. The previous version of the file is intact; "
            "make room or give access, then run the same command again"
        ) from None


def patiently(action: Callable[[], T]) -> T:
    """`action()`, again after a pause where the file system says that it is only away for a moment."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return action()


def fingerprint(config: dict[str, Any]) -> str:
    """A short name for a flat config, but for the keys that may change between two calls of one run."""
    kept = {key: value for key, value in effective(config).items() if key not in OPERATIONAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _counts(data: dict[str, Any]) -> str:
    return f"{data.get('train_images')} + {data.get('val_images')} images"


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
