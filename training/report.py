"""What somebody sees of a run while it goes: a progress bar, and a copy of its rows in Weights & Biases."""

from __future__ import annotations

import shutil
import time
from typing import Any

from tqdm import tqdm

from training.run import Run, RunError


class Bar:
    """Progress: a bar on a terminal, a line an evaluation elsewhere, and a file for whoever started us."""

    def __init__(self, run: Run, step: int):
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
            self.run.progress(step, self.rate)

    def evaluated(self, row: dict[str, Any]) -> None:
        text = f"train {row['train_top1']:.2%}  val {row['val_top1']:.2%}"
        self.bar.set_postfix_str(text)
        self.run.progress(row["step"], self.rate)
        if self.bar.disable:
            print(f"step {row['step']}/{self.steps}  {text}  {row['wall_s']:.0f} s", flush=True)

    def close(self) -> None:
        self.bar.close()


class Mirror:
    """Copies the rows to Weights & Biases where asked for; metrics.csv is the record.

    A stage is one run there, whatever interruptions it took: the checkpoint holds the run's id. A kill can come between
    the checkpoint with a row and the sending of it, or after both, so on going on it is asked what has arrived, and the
    rest is sent again. Online the server says it. Offline nobody does before `wandb sync`: the files of earlier calls
    that were not synchronised yet are removed, and the rows that they held are all sent again into the new ones.
    """

    def __init__(self, run: Run, run_id: str | None, rows: list[dict[str, Any]]):
        self.wandb, self.id = None, run_id
        options, config = run.config.wandb, run.config
        if options.mode == "disabled":
            return
        import wandb

        scale, arm, seed = [*([""] * 3), *run.folder.parts][-3:]
        if run_id is not None and options.mode == "offline":
            for folder in (run.folder / "wandb").glob(f"offline-run-*-{run_id}"):
                if not list(folder.glob("*.synced")):
                    shutil.rmtree(folder)
        try:
            self.wandb = wandb.init(
                project=options.project,
                mode=options.mode,
                dir=run.folder,
                id=run_id,
                resume="allow",
                name=f"{arm}-{seed}",
                group="/".join([scale, *config.figures[:1]]),
                tags=[tag for tag in (*config.figures, arm, seed) if tag],
                config=run.manifest["config"],
            )
        except wandb.Error as error:
            raise RunError(f"wandb does not start: {error}; use --set wandb.mode=offline or disabled") from None
        self.id = self.wandb.id
        for row in rows:
            if row["step"] >= self.wandb.step:
                self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        if self.wandb is not None:
            self.wandb.log(row, step=row["step"])

    def finish(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
