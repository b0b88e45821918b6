"""Train one arm of the experiments (paper, section 3): a teacher, a student grown from it, or a baseline.

    python train.py configs/laptop/standard.yaml                      # from scratch: teacher, baseline and reference
    python train.py configs/laptop/wider.yaml                         # Net2WiderNet student of teacher_narrow
    python train.py configs/laptop/wider.yaml --seed 3 --set optimizer.lr_scale=0.5 --out runs/try/wider

Reads a config, writes metrics.csv, run.json and checkpoint.pt into runs/<scale>/<arm>/seed<k>/. Ctrl-C or SIGTERM saves
and stops; the same command goes on from there, and ends as if it had never stopped, bit for bit on the same machine.
All arms run through this one loop; they differ in their config, and in what their first weights are.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.optim import RMSpropTF
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from training.config import Config, ConfigError, load
from training.data import Data
from training.fashion_mnist import DataError
from training.growth import build, grow
from training.run import Clock, Run, RunError

STEP0_BATCHES = 4  # mini-batches for the training accuracy before the first update


def train(config: Config, run: Run, teacher: Path | None, stop: Callable[[], bool]) -> None:
    """Train from the run's last checkpoint, or from the start, to the last step; raise `Stopped` if asked to stop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options, state = config.training, run.restore()
    data = Data(config.data, config.seed, options.batch_size, device)

    # The model is always built from its config; a student then takes over the weights that were grown from its teacher.
    torch.manual_seed(config.seed)
    model = build(config.model)
    if state is None:
        facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
        if config.growth is not None and teacher is not None:
            student, facts["growth"] = grow(config, model, teacher, data)
            model.load_state_dict(student.state_dict())
        run.start(**facts)
    else:
        model.load_state_dict(state["model"])
        run.start()
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(config, model)
    ema = ModelEmaV3(model, decay=options.ema_decay) if options.ema_decay else None
    mirror = Mirror(config, run, state["wandb_id"] if state else None)

    step, rows = 0, []
    losses = torch.zeros(options.eval_every, device=device)  # of the steps since the last evaluation; read only there
    correct = torch.zeros((), dtype=torch.int64, device=device)
    clock = Clock()
    if state is not None:
        step, rows, clock = state["step"], state["rows"], Clock(state["wall_s"])
        optimizer.load_state_dict(state["optimizer"])
        losses.copy_(state["losses"])
        correct.copy_(state["correct"])
        torch.set_rng_state(state["rng"])
        if ema:
            ema.module.load_state_dict(state["ema"])

    def save() -> None:
        check_finite(losses, step, options.eval_every, rows)
        run.save(
            {
                "step": step,
                "rows": rows,
                "wall_s": clock(),
                "model": model.state_dict(),
                "ema": ema.module.state_dict() if ema else None,
                "optimizer": optimizer.state_dict(),
                "losses": losses,
                "correct": correct,
                "rng": torch.get_rng_state(),
                "wandb_id": mirror.id,
                "history": run.manifest.get("growth", {}).get("history", []),  # of this model, from its teacher's
            }
        )

    bar = Bar(run, step, options.steps, options.batch_size)
    while True:
        due = step % options.eval_every == 0 or step == options.steps
        if due and (not rows or rows[-1]["step"] != step):
            since = step - rows[-1]["step"] if rows else 0
            check_finite(losses, step, options.eval_every, rows)
            if since:
                train_loss = float(losses[:since].double().mean())
                train_top1 = int(correct) / (since * options.batch_size)
            else:
                train_loss, train_top1 = before_training(model, data)
            val_loss, val_top1 = evaluate(ema.module if ema else model, data)
            rows.append(
                {
                    "step": step,
                    "images": step * options.batch_size,
                    "wall_s": round(clock(), 2),
                    "lr": learning_rate(config, min(step, options.steps - 1)),
                    "train_loss": train_loss,
                    "train_top1": train_top1,
                    "val_loss": val_loss,
                    "val_top1": val_top1,
                }
            )
            losses.zero_()
            correct.zero_()
            save()
            mirror.log(rows)
            bar.evaluated(rows[-1])
        if step == options.steps:
            break
        if stop():
            save()
            bar.close()
            raise Stopped(step)

        images, labels = data.batch(step)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        if ema:
            ema.update(model)
        losses[step % options.eval_every] = loss.detach()
        correct += (logits.detach().argmax(1) == labels).sum()
        step += 1
        bar.step(step)

    bar.close()
    mirror.finish()
    last = {k: rows[-1][k] for k in ("train_top1", "val_top1", "wall_s")}
    run.note(status="finished", result={"steps": step, "val_images": len(data.val_labels), **last})


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """RMSProp as TensorFlow's, which the paper used: eps inside the square root, mean square starting at one."""
    o = config.optimizer
    return RMSpropTF(
        model.parameters(), o.lr, alpha=o.decay, eps=o.eps, momentum=o.momentum, weight_decay=o.weight_decay
    )


def learning_rate(config: Config, step: int) -> float:
    """The rate of mini-batch `step`; a student starts at a fraction of its teacher's initial rate (appendix A)."""
    schedule = config.schedule
    rate = config.optimizer.lr * config.optimizer.lr_scale
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.name == "cosine":
        done = (step - schedule.warmup_steps) / (config.training.steps - schedule.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate * schedule.decay_rate ** ((step - schedule.warmup_steps) / schedule.decay_steps)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss and top-1 accuracy over the whole validation set, each image once."""
    model.eval()
    loss, correct, n = 0.0, 0, 0
    for images, labels in data.validation():
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        n += len(labels)
    if n != len(data.val_labels):
        raise RunError(f"the evaluation saw {n} of {len(data.val_labels)} validation images")
    return loss / n, correct / n


@torch.no_grad()
def before_training(model: nn.Module, data: Data) -> tuple[float, float]:
    """Training loss and accuracy of step 0: the first mini-batches in training mode, without updating anything."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    loss, correct, n = 0.0, 0, 0
    for step in range(STEP0_BATCHES):
        images, labels = data.batch(step)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        n += len(labels)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return loss / n, correct / n


def check_finite(losses: torch.Tensor, step: int, eval_every: int, rows: list[dict[str, Any]]) -> None:
    """Refuse to evaluate or save a model whose loss is no number; the last checkpoint stays."""
    if not bool(losses.isfinite().all()):
        first = (rows[-1]["step"] if rows else 0) // eval_every * eval_every + int((~losses.isfinite()).nonzero()[0])
        kept = f"the checkpoint of step {rows[-1]['step']} is kept" if rows else "there is no checkpoint yet"
        raise RunError(f"the training loss is not a number at step {first}: {kept}; try a lower optimizer.lr")


class Stopped(Exception):
    """The run was asked to stop, and saved."""


class Bar:
    """Progress: a bar on a terminal, a line an evaluation elsewhere, and a file for whoever started us."""

    def __init__(self, run: Run, step: int, steps: int, batch_size: int):
        self.run, self.steps, self.batch_size = run, steps, batch_size
        self.bar = tqdm(total=steps, initial=step, unit="step", desc=run.folder.parent.name, disable=None)
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
    """Copies the rows to Weights & Biases where asked for; metrics.csv is the record."""

    def __init__(self, config: Config, run: Run, run_id: str | None):
        self.wandb, self.id, self.sent = None, run_id, -1
        if config.wandb.mode == "disabled":
            return
        import wandb

        scale, arm, seed = run.folder.parts[-3:] if len(run.folder.parts) >= 3 else ("", "", run.folder.name)
        try:
            self.wandb = wandb.init(
                project=config.wandb.project,
                mode=config.wandb.mode,
                dir=run.folder,
                id=run_id,
                resume="allow",
                name=f"{arm}-{seed}",
                group=scale,
                config=run.manifest["config"],
            )
        except wandb.Error as error:
            raise RunError(f"wandb does not start: {error}; use --set wandb.mode=offline or disabled") from None
        self.id = self.wandb.id

    def log(self, rows: list[dict[str, Any]]) -> None:
        if self.wandb is not None:
            self.wandb.log(rows[-1], step=rows[-1]["step"])

    def finish(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()


def default_folder(config: Path, seed: int) -> Path:
    """configs/<scale>/<arm>.yaml -> runs/<scale>/<arm>/seed<k>"""
    return Path("runs") / config.resolve().parent.name / config.stem / f"seed{seed}"


def teacher_of(config: Config, folder: Path) -> Path | None:
    """The teacher's checkpoint: `growth.teacher` is a path, or an arm beside this one, of the same seed."""
    if config.growth is None:
        return None
    name = Path(config.growth.teacher)
    if name.suffix or len(name.parts) > 1:
        return name
    return folder.parent.parent / name / f"seed{config.seed}" / "checkpoint.pt"


def main(argv: list[str] | None = None, orphaned: Callable[[], bool] = lambda: False) -> int:
    """`orphaned` tells that whoever started this run is gone, so that it should stop as if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="configs/<scale>/<arm>.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--seed", type=int, help="short for --set seed=K")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/<scale>/<arm>/seed<k>)")
    arguments = parser.parse_args(argv)

    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number in asked:  # a second time: at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(number)

    handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        overrides = arguments.set + ([f"seed={arguments.seed}"] if arguments.seed is not None else [])
        config = load(arguments.config, overrides)
        folder = arguments.out or default_folder(arguments.config, config.seed)
        with Run(folder, config) as run:
            if run.finished:
                print(f"{folder} is finished: {run.manifest['result']}")
                return 0
            try:
                train(config, run, teacher_of(config, folder), lambda: bool(asked) or orphaned())
            except (RunError, DataError, ConfigError) as error:
                if run.manifest:
                    run.manifest.update(status="failed", error=str(error))
                    run.note()
                raise
            print(f"{folder} is finished: {run.manifest['result']}")
            return 0
    except (RunError, DataError, ConfigError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        number = asked[0] if asked else signal.SIGTERM
        print(f"train.py: saved at step {stopped}; run the same command again to go on", file=sys.stderr)
        return 128 + number
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
