"""What somebody sees of a run while it goes: a progress bar, and a copy of its rows in Weights & Biases."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import figures_of
from training.errors import RunError, Stopped
from training.runfolder import RunFolder


class Bar:
    """Progress: a bar on a terminal, a line an evaluation elsewhere, and a file for whoever started us."""

    def __init__(self, run: RunFolder, step: int):
        options = run.config.training
        self.run, self.steps, self.batch_size = run, options.steps, options.batch_size
        self.bar = tqdm(total=self.steps, initial=step, unit="step", desc=run.folder.parent.name, disable=None)
        self.mark, self.marked, self.rate = step, time.monotonic(), 0.0

    def step(self, step: int) -> None:
        self.bar.update()
        now = time.monotonic()
        if now - self.marked >= 1.0:
            self.rate = (step - self.mark) * self.batch_size / (now - self.marked)
            self.mark, self.marked = step, now
            self.run.write_progress(step, self.rate)

    def evaluated(self, row: dict[str, Any]) -> None:
        text = f"train {row['train_top1']:.2%}  val {row['val_top1']:.2%}"
        self.bar.set_postfix_str(text)
        self.run.write_progress(row["step"], self.rate)
        if self.bar.disable:
            print(f"step {row['step']}/{self.steps}  {text}  {row['wall_s']:.0f} s", flush=True)

    def close(self) -> None:
        self.bar.close()


class Mirror:
    """Copies the rows to Weights & Biases where asked for; metrics.csv is the record.

    A stage is one run there, whatever interruptions it took: its id is in run.json before it is made known there, and
    in the checkpoint. A kill can come between the checkpoint with a row and the sending of it, or after both, so on
    going on it is asked what has arrived, and the rest is sent again. Online the server says it. Offline nobody does
    before `wandb sync`: the files of earlier calls that were not synchronised yet are removed, and the rows that they
    held are all sent again into the new ones.
    """

    def __init__(self, run: RunFolder, rows: list[dict[str, Any]]):
        options = run.config.wandb
        self.wandb, self.id = None, run.manifest.get("wandb_id")
        if options.mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            raise RunError("wandb is not installed: pip install wandb, or use --set wandb.mode=disabled") from None

        if self.id is None:
            self.id = secrets.token_hex(4)
            run.note(wandb_id=self.id)
        scale, arm, seed = [*([""] * 3), *run.folder.parts][-3:]
        for folder in (run.folder / "wandb").glob(f"offline-run-*-{self.id}*"):
            if not list(folder.glob("*.synced")):
                _remove(folder)
        try:
            self.wandb = wandb.init(
                project=options.project,
                mode=options.mode,
                dir=run.folder,
                id=self.id,
                resume="allow" if options.mode == "online" else None,
                name=f"{arm}-{seed}",
                group="/".join([scale, *figures_of(arm)[:1]]),
                tags=[tag for tag in (*figures_of(arm), arm, seed) if tag],
                config=run.manifest["config"],
            )
        except wandb.Error as error:
            raise RunError(f"wandb does not start: {error}; use --set wandb.mode=offline or disabled") from None
        arrived = self.wandb.step
        for row in rows:
            if row["step"] >= arrived:
                self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        # Committed at once: otherwise wandb holds a row back until the next one comes, or a kill.
        self._call(lambda: self.wandb.log(row, step=row["step"], commit=True))

    def finish(self, failed: bool = False) -> None:
        self._call(lambda: self.wandb.finish(exit_code=int(failed)))

    def _call(self, action: Callable[[], None]) -> None:
        """A copy that fails is no reason to stop training."""
        if self.wandb is None:
            return
        try:
            action()
        except Exception as error:
            self.wandb = None
            print(
                f"train.py: wandb failed ({type(error).__name__}: {error}): no more rows are sent; "
                "they are in metrics.csv, and are sent when the run is interrupted and goes on",
                file=sys.stderr,
            )


def _remove(folder: Path) -> None:
    """Retried, as the process that wrote there may have been killed a moment ago, and its helper ends after it."""
    for pause in (0.1, 1.0, None):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            continue
        except OSError as error:
            if pause is None:
                raise RunError(f"cannot remove {folder}: {error.strerror}; its rows would be sent twice") from None
            time.sleep(pause)


class Progress:
    """Bar and mirror of a run: on its main rank. On the others it does nothing."""

    def __init__(self, run: RunFolder, step: int, rows: list[dict[str, Any]]):
        """`step` updates are done already, `rows` are their evaluations."""
        self.bar: Bar | None = None
        self.mirror: Mirror | None = None
        run.session.on_main(self._open, run, step, rows)

    def _open(self, run: RunFolder, step: int, rows: list[dict[str, Any]]) -> None:
        self.mirror = Mirror(run, rows)
        self.bar = Bar(run, step)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self.bar and self.mirror:
            self.bar.close()
            self.mirror.finish(failed=kind is not None and not issubclass(kind, Stopped))

    def stepped(self, step: int) -> None:
        """`step` updates are done."""
        if self.bar:
            self.bar.step(step)

    def evaluated(self, row: dict[str, Any]) -> None:
        if self.bar and self.mirror:
            self.mirror.log(row)
            self.bar.evaluated(row)
