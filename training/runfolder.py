"""A run's folder: who may write in it, its checkpoints, its metrics, its manifest. Every file is replaced whole.

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
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from training.background import Background
from training.config import OPERATIONAL, Config, differences, effective, flatten
from training.errors import CheckpointError, RunError, Stopped, UserError
from training.files import duplicate, patiently, write_atomic
from training.lease import Lease, Taken
from training.manifest import is_manifest
from training.session import Session

# train_loss: cross-entropy, in every row. objective: what was minimised, with label smoothing and auxiliary term; the
# mean over the steps since the row before, so that the first row has none.
COLUMNS = ("step", "images", "wall_s", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "objective")
FORMAT = 1  # of a checkpoint


def on_main(method: Callable) -> Callable:
    """A method that all ranks call and the main one runs: all get what it returns, or the error that it raises."""

    @functools.wraps(method)
    def call(self: RunFolder, *args: Any, **kwargs: Any) -> Any:
        return self.session.on_main(method, self, *args, **kwargs)

    return call


class RunFolder:
    """A run's folder, there on every rank; locked for this run's main rank as long as the context lasts."""

    def __init__(self, folder: Path, config: Config, session: Session):
        self.folder, self.config, self.session = folder, config, session
        self.manifest: dict[str, Any] = {}  # what run.json holds; kept up to date on the main rank
        self._lease: Lease | None = None
        self._saved: int | None = None  # step of checkpoint.pt
        # On a CPU it would take cores and memory from training, and gain nothing.
        self._background = Background() if session.device.type != "cpu" else None

    def __enter__(self) -> RunFolder:
        self.manifest = self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._await_writing()
        except Exception:
            if kind is None or issubclass(kind, Stopped):  # else the first error is the one to tell
                raise
        finally:
            if self._lease:
                self._lease.release()

    @on_main
    def _open(self) -> dict[str, Any]:
        """Take the lease, then read run.json."""
        try:
            patiently(functools.partial(self.folder.mkdir, parents=True, exist_ok=True))
            self._lease = patiently(functools.partial(Lease, self.folder))
        except Taken as taken:
            raise RunError(
                f"{taken} is training in {self.folder}: wait for it, or choose another folder with --out"
            ) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                manifest = self._read_manifest()
                if manifest.get("status") == "finished":  # somebody else's: to look at it takes no lock
                    return manifest
            taken = isinstance(error, FileExistsError)
            why = "it is a file, or a link that leads nowhere" if taken else error.strerror
            raise RunError(f"cannot write into {self.folder}: {why}; choose another folder with --out") from None
        try:
            return self._read_manifest()
        except BaseException:
            self._lease.release()
            raise

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        if not path.exists():
            if (self.folder / "checkpoint.pt").exists():
                raise RunError(f"{self.folder} has a checkpoint but no run.json: move it away, or choose --out")
            return {}
        try:
            manifest = json.loads(patiently(path.read_text))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            manifest = None
        if not is_manifest(manifest):
            raise RunError(f"{path} is not a run's manifest: move {self.folder} away, or choose --out")
        theirs, mine = manifest["config"], flatten(self.config)
        if changed := differences(mine, theirs):
            listed = ", ".join(f"{k} ({theirs.get(k)!r} there, {mine.get(k)!r} now)" for k in changed)
            raise RunError(
                f"{self.folder} holds a run of another config: {listed}. Nothing was touched; use the old config "
                f"(hash {config_hash(theirs)}, this one's is {config_hash(mine)}), "
                "choose another folder with --out, or move that one away"
            )
        if manifest.get("status") == "finished" and not (self.folder / "metrics.csv").is_file():
            raise RunError(
                f"{self.folder}: its run.json says finished, and its metrics.csv is gone: put it back, or remove the "
                "folder to train anew"
            )
        return manifest

    @property
    def finished(self) -> bool:
        return self.manifest.get("status") == "finished"

    def unlike(self, data: dict[str, Any]) -> str:
        """In what these data are not those that the run was begun on; empty if they are."""
        before = self.manifest.get("data", data)
        if before["fingerprint"] != data["fingerprint"]:
            return (
                f"was begun on other data: fingerprint {before['fingerprint'][:16]} there, "
                f"{data['fingerprint'][:16]} now ({_counts(before)}, now {_counts(data)})"
            )
        if before.get("resized") != data.get("resized"):  # names and labels are the same
            return f"was begun on {_pixels(before)}, now the data folder has {_pixels(data)}"
        return ""

    @on_main
    def start(self, fingerprint: str, facts: dict[str, Any]) -> None:
        """Note that the run begins or goes on, on these data; refuse other data than it began with."""
        data = {"fingerprint": fingerprint, **facts}
        if unlike := self.unlike(data):
            raise RunError(
                f"{self.folder} {unlike}. Nothing was touched; give it the old data (--set data.root=…), or choose "
                "another folder with --out"
            )
        # All that earlier calls noted stays, but for how the last one ended and what this one says anew.
        for key in ("error", "result"):
            self.manifest.pop(key, None)
        self.note(
            status="running",
            config=flatten(self.config),
            data=data,
            versions=versions(),
            git=git_state(),
            threads=torch.get_num_threads(),
            processes=self.session.world,
            device=self.session.device_name,
        )

    @on_main
    def note(self, **facts: Any) -> None:
        """Put `facts` into run.json."""
        self._note(**facts)

    def _note(self, **facts: Any) -> None:
        if facts.get("status") == "finished":
            self._await_writing()
        self._check_lease()
        self.manifest.update(facts)
        self._write("run.json", json.dumps(self.manifest, indent=1).encode() + b"\n")

    @on_main
    def note_unreadable(self, images: list[str]) -> None:
        """Name images that could not be read, in unreadable.txt too, and count them in run.json: each once, however
        often the run is resumed."""
        file = self.folder / "unreadable.txt"
        known = dict.fromkeys(os.fsdecode(patiently(file.read_bytes)).splitlines()) if file.exists() else {}
        new = dict.fromkeys(" ".join(image.splitlines()) for image in images)
        for image in (image for image in new if image not in known):
            print(
                f"train.py: cannot be decoded, taken for a wrong answer or left out of training: {image}",
                file=sys.stderr,
            )
        known |= new
        self._write(file.name, os.fsencode("".join(f"{image}\n" for image in known)))
        self.note(unreadable_images=max(self.manifest.get("unreadable_images", 0), len(known)))

    def note_failure(self, error: Exception) -> None:
        """Note in run.json why the run ends; by the main rank alone, as the others may be gone."""
        if self.session.is_main and self.manifest and isinstance(error, UserError):
            with contextlib.suppress(RunError):  # a full disk: the first error is the one to tell
                self._note(status="failed", error=str(error))

    @on_main
    def save(self, state: dict[str, Any]) -> None:
        """Checkpoint first, then the metrics that it holds.

        From a GPU it is copied now and written while training goes on; what goes wrong then is raised by the next call
        of this, or when the run ends.
        """
        self._check_lease()
        if self._background:
            self._background.start(self._save, state)
        else:
            self._save(state)

    def _await_writing(self) -> None:
        """Until the last checkpoint is on the disk."""
        if self._background:
            self._background.wait()

    def _save(self, state: dict[str, Any]) -> None:
        self._check_lease()
        # `history` is the record that net2net's `load_record` looks for: how this model came to be.
        history = self.manifest.get("growth", {}).get("history", [])
        whole = {"format": FORMAT, "config": flatten(self.config), **state, "history": history}
        buffer = io.BytesIO()
        torch.save({**whole, "wandb_id": self.manifest.get("wandb_id")}, buffer)
        self._keep_step0()  # a kill may have come between checkpoint and copy
        if self.config.training.keep > 1 and self._saved is not None and self._saved != state["step"]:
            self._duplicate("checkpoint.pt", f"checkpoint-{self._saved:08d}.pt")
        self._write("checkpoint.pt", buffer.getbuffer())
        self._saved = state["step"]
        for old in self._older()[self.config.training.keep - 1 :]:
            with contextlib.suppress(OSError):  # one too many does no harm
                old.unlink(missing_ok=True)
        self._keep_step0()
        self._write_metrics(state["rows"])

    @on_main
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
            own = flatten(self.config)
            if changed := differences(state.get("config", own), own):
                raise RunError(
                    f"{path} is another run's: its {', '.join(changed)} differ. Move it away, or choose another --out"
                )
            self._saved = state["step"] if path == newest else None
            if state.get("wandb_id"):
                self.manifest["wandb_id"] = state["wandb_id"]
            self._write_metrics(state["rows"])  # a kill may have come between checkpoint and metrics
            return state
        if complaints:
            raise complaints[0]
        return None

    def write_progress(self, step: int, rate: float) -> None:
        """Tell a watcher where the run is. Not worth waiting for the disk, nor stopping for if it fails."""
        if self._lease is None or self._lease.lost:
            return
        content = json.dumps({"step": step, "steps": self.config.training.steps, "images_per_s": rate})
        with contextlib.suppress(OSError):
            write_atomic(self.folder / "progress.json", content.encode(), only_writer=True)

    def _check_lease(self) -> None:
        if self._lease.lost:
            raise RunError(
                f"{self._lease.lost} has taken over {self.folder} while this one did not answer: it goes on there, "
                "this one stops and saves nothing"
            )

    def _keep_step0(self) -> None:
        if self._saved == 0 and self.config.growth is not None:
            self._duplicate("checkpoint.pt", "step0.pt")

    def _older(self) -> list[Path]:
        """The checkpoints before the newest one, latest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        self._write("metrics.csv", text.getvalue().encode())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        with _refusals_explained(self.folder / name):
            write_atomic(self.folder / name, content, durable=True, only_writer=True)

    def _duplicate(self, name: str, second_name: str) -> None:
        with _refusals_explained(self.folder / second_name):
            duplicate(self.folder / name, self.folder / second_name)


@contextlib.contextmanager
def _refusals_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. The previous version of the file is intact; "
            "make room or give access, then run the same command again"
        ) from None


def load_checkpoint(path: Path, role: str) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    try:
        state = patiently(lambda: torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise CheckpointError(f"the {role}'s checkpoint {path} does not exist: train it first") from None
    except IsADirectoryError:
        raise CheckpointError(
            f"the {role}'s checkpoint {path} is a folder: give the file that a run has, {path / 'checkpoint.pt'}"
        ) from None
    except Exception as error:  # there is no kind that damaged bytes do not raise
        why = _first_line(error)
        if "Weights only load failed" in why:  # and how to run the code in it, which is not to be run
            why = "it is no file of torch.save, or holds more than tensors, numbers and words"
        advice = "remove its folder and train it again" if path.name == "checkpoint.pt" else "is it the right file?"
        raise CheckpointError(
            f"the {role}'s checkpoint {path} cannot be read, it is truncated or not a checkpoint ({why}): {advice}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"the {role}'s checkpoint {path} was not written by this version of train.py")
    with contents_of(path, role):
        sound = isinstance(state["step"], int) and isinstance(state["rows"], list) and state["config"]["training.steps"]
        if not sound or not isinstance(state["model"], dict):
            raise TypeError("step, rows, config or model")
    return state


@contextlib.contextmanager
def contents_of(path: Path, role: str) -> Iterator[None]:
    """For what reads a checkpoint's parts: train.py wrote them all, but somebody may have changed the file."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the {role}'s checkpoint {path} does not hold what this version of train.py writes into one "
            f"({type(error).__name__}: {_first_line(error)}): use one that was not changed, or train it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def config_hash(config: dict[str, Any]) -> str:
    """A short name for a flat config, but for the keys that may change between two calls of one run."""
    kept = {key: value for key, value in effective(config).items() if key not in OPERATIONAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _counts(data: dict[str, Any]) -> str:
    return f"{data.get('train_images')} + {data.get('val_images')} images"


def _pixels(data: dict[str, Any]) -> str:
    resized = data.get("resized")
    if not resized:
        return "the original images"
    return f"images resized to {resized.get('short_side')} pixels, JPEG quality {resized.get('quality')}"


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
    """Commit of the checkout, and whether it had changes.

    A copy without its .git is told by $NET2NET_COMMIT, in the words of `git describe --always --abbrev=40 --dirty`;
    where that is not set either, nothing is known.
    """

    def git(*words: str) -> str:
        where = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        commit, dirty, _ = os.environ.get("NET2NET_COMMIT", "").partition("-dirty")
        return {"commit": commit, "dirty": bool(dirty)} if commit else {}
