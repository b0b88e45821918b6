"""Train one arm of the experiments (paper, section 3): a teacher, a student grown from it, or a baseline.

    python train.py configs/laptop/standard.yaml                      # from scratch: teacher, baseline and reference
    python train.py configs/laptop/wider.yaml                         # Net2WiderNet student of teacher_narrow
    python train.py configs/laptop/wider.yaml --seed 3 --set optimizer.lr_scale=0.5 --out runs/try/wider
    torchrun --standalone --nproc-per-node 8 train.py configs/imagenet/wider.yaml       # eight GPUs, the same steps

Reads a config, writes metrics.csv, run.json and checkpoint.pt into runs/<scale>/<arm>/seed<k>/. Ctrl-C, SIGTERM or
SIGUSR1 saves and stops; the same command goes on from there, on any number of processes, and ends as if it had never
stopped: bit for bit for one process on the same CPU, but for rounding elsewhere.
All arms run through this one loop; they differ in their config, and in what their first weights are.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.optim import RMSpropTF, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from training.config import Config, ConfigError, load
from training.data import Batch, Data, Order, open_data
from training.distributed import Elsewhere, Processes, Statistics, lost_contact
from training.evaluation import before_training, evaluate
from training.fashion_mnist import DataError
from training.growth import OptimizerState, build, facts_of, grow, load_teacher
from training.prediction import Prediction
from training.report import Report
from training.run import Clock, Run, RunError, Stopped


def train(
    config: Config, run: Run | None, processes: Processes, teacher: Path | None, stop: Callable[[], bool]
) -> None:
    """Train from the run's last checkpoint, or from the start, to the last step; raise `Stopped` if asked to stop.

    `run` is the main process's; the others compute the same and write nothing.
    """
    options, device = config.training, processes.device
    state = processes.first(lambda: run.restore())
    data = open_data(config, device, processes.rank, processes.world, processes.local_world, processes.first)
    with contextlib.ExitStack() as closing:
        closing.callback(data.close)
        machine = {"processes": processes.world, "device": processes.device_name}
        processes.first(lambda: run.start({"fingerprint": data.fingerprint, **data.facts}, **machine))

        # The model is always built from its config; a student then takes over the weights grown from its teacher.
        torch.manual_seed(config.seed)
        model = build(config.model, config.data)
        prediction = predicting(config, run, model, teacher, data, processes) if config.teacher_prediction else None
        carried: OptimizerState = {}
        if state is not None:
            model.load_state_dict(state["model"])
        else:
            carried = processes.first(lambda: begin(config, run, model, prediction, teacher, data))
            processes.share(model)
        model.to(device, memory_format=torch.channels_last)
        update = Update(config, model, processes, data.order, prediction)
        step, rows, clock = 0, [], Clock()
        if state is not None:
            step, rows, clock = state["step"], state["rows"], Clock(state["wall_s"])
            update.restore(state)
        else:
            update.carry(carried)
        reports: list[Report] = []
        processes.first(lambda: reports.append(closing.enter_context(Report(run, state, rows))))
        report = reports[0] if reports else None

        kept = step if state is not None else None  # the step of the last checkpoint

        def save() -> None:
            nonlocal kept
            check_finite(update, processes, step, rows, kept)
            saved = {**update.state(), "step": step, "rows": rows, "wall_s": clock()}
            if run:  # the record that net2net's `load_record` looks for: how this model came to be
                saved |= {"wandb_id": report.id, "history": run.manifest.get("growth", {}).get("history", [])}
            processes.first(lambda: run.save(saved))
            kept = step

        batches = data.stream(step)
        while True:
            due = step % options.eval_every == 0 or step == options.steps
            if due and (not rows or rows[-1]["step"] != step):
                check_finite(update, processes, step, rows, kept)
                update.statistics.average(update.models)
                row = {"step": step, "images": step * options.batch_size, "wall_s": round(clock(), 2)}
                row["lr"] = learning_rate(config, min(step, options.steps - 1))
                if since := step - rows[-1]["step"] if rows else 0:
                    losses, cross_entropies, correct = update.totals()
                    row["train_loss"], row["objective"] = (
                        float(each[:since].double().mean()) for each in (cross_entropies, losses)
                    )
                    row["train_top1"] = int(correct) / (since * options.batch_size)
                else:
                    row["train_loss"], row["train_top1"] = before_training(model, data, processes, update.autocast)
                measured = evaluate(update.models[-1], data, processes, update.autocast, stop)
                report_faults(data, processes, run)
                if measured is None:
                    save()
                    raise Stopped(step)
                row["val_loss"], row["val_top1"] = measured
                rows.append(row)
                update.clear()
                save()
                if report:
                    report.evaluated(row)
            if step == options.steps:
                break
            if processes.agree(stop()):
                save()
                raise Stopped(step)
            update(step, batches)
            step += 1
            if report:
                report.step(step)
        whole = {}
        if data.all_val_images > data.val_images:  # once, at the end: what a final accuracy is worth
            measured = evaluate(update.models[-1], data, processes, update.autocast, stop, whole=True)
            if measured is None:
                raise Stopped(step)
            whole = {"all_val_images": data.all_val_images, "all_val_top1": measured[1]}

    processes.settle()
    if run:
        last = {k: rows[-1][k] for k in ("train_top1", "val_top1", "wall_s")}
        run.note(status="finished", result={"steps": step, "val_images": data.val_images, **last, **whole})


def predicting(
    config: Config, run: Run | None, model: nn.Module, teacher: Path | None, data: Data, processes: Processes
) -> Prediction:
    """The model with its predictions of a teacher's layers (sec 2.1), of the same teacher whenever the run goes on."""

    def read() -> nn.Module:
        net, _, saved = load_teacher(teacher, config.data)
        facts = facts_of(teacher, saved)
        before = run.manifest.get("teacher_prediction", facts)
        if before["teacher_sha256"] != facts["teacher_sha256"]:
            raise RunError(f"the teacher {teacher} is not the one that this run was begun with: choose another --out")
        run.note(teacher_prediction=facts)
        return net

    net = processes.first(read)
    return Prediction(model, net, config.teacher_prediction, data.first(2).cpu(), config.seed)


def begin(
    config: Config, run: Run, model: nn.Module, prediction: Prediction | None, teacher: Path | None, data: Data
) -> OptimizerState:
    """Give a new run's model its first weights, and note where they are from; returns its optimizer's first state."""
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    facts["training_flops_per_image"] = training_flops(model, prediction, config)
    carried: OptimizerState = {}
    if config.growth is not None and teacher is not None:
        student, carried, facts["growth"] = grow(config, model, teacher, data, make_optimizer)
        model.load_state_dict(student.state_dict())
    run.note(**facts)
    return carried


def training_flops(model: nn.Module, prediction: Prediction | None, config: Config) -> int:
    """Floating-point operations of a training pass over one image: three forward passes (of a teacher that is only to
    be predicted: one), a multiplication and an addition counting as two. Convolutions and linear layers alone."""
    image = torch.zeros(1, config.data.channels, config.data.image_size, config.data.image_size)

    def forward(module: nn.Module) -> int:
        module.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image)
        return counter.get_total_flops()

    return 3 * forward(prediction) - 2 * forward(prediction.teacher[0]) if prediction else 3 * forward(model)


class Update:
    """One step of training: passes over this process's chunks of the mini-batch, the optimizer, the average of weights.

    Nothing in a step waits for the device: losses and hits are added up there and read at the next evaluation.
    """

    def __init__(
        self, config: Config, model: nn.Module, processes: Processes, order: Order, prediction: Prediction | None = None
    ):
        options, device = config.training, processes.device
        self.config, self.model, self.prediction, self.processes = config, model, prediction, processes
        self.trained = model  # with what is trained beside it
        if prediction:
            self.trained = prediction.to(device)
            prediction.teacher[0].to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(config, self.trained)
        warmup = {"use_warmup": options.ema_warmup, "warmup_gamma": 9.0, "warmup_power": 1.0}  # (step) / (9 + step)
        self.ema = ModelEmaV3(model, decay=options.ema_decay, **warmup) if options.ema_decay else None
        self.models = [model, self.ema.module] if self.ema else [model]  # the last one is what is evaluated
        self.chunks_here = len(order.mine)
        self.statistics = Statistics(model, processes, self.chunks_here, order.chunks_per_batch)
        self.share = processes.world / order.chunks_per_batch  # of a chunk in the mean that DDP takes over processes
        self.forward: nn.Module = torch.compile(self.trained) if options.compile else self.trained
        if processes.world > 1:
            with warnings.catch_warnings():  # torch 2.13 has a new name for the argument, torch 2.11 has not
                warnings.simplefilter("ignore", FutureWarning)
                self.forward = DistributedDataParallel(
                    self.forward, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        half = options.precision == "bfloat16"
        self.autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=half)
        # Of each step since the last evaluation: what was minimised, and the cross-entropy in it.
        self.losses, self.cross_entropies = torch.zeros(2, options.eval_every, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, step: int, batches: Iterator[Batch]) -> None:
        options = self.config.training
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.remember()
        for chunk in range(self.chunks_here):
            images, labels = next(batches)
            images = images.contiguous(memory_format=torch.channels_last)
            last = chunk == self.chunks_here - 1
            with contextlib.nullcontext() if last or self.processes.world == 1 else self.forward.no_sync():
                with self.autocast():
                    output = self.forward(images)
                    logits, extra = output if self.prediction else (output, None)
                    logits = logits.float()
                    loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
                    plain = loss if not options.label_smoothing else F.cross_entropy(logits.detach(), labels)
                    if extra is not None:
                        loss = loss + extra.float()
                (loss * self.share).backward()
            self.statistics.passed(chunk)
            for sums, value in ((self.losses, loss), (self.cross_entropies, plain)):
                sums[step % options.eval_every] += value.detach() * (self.share / self.processes.world)
            self.correct += (logits.detach().argmax(1) == labels).sum()
        if self.config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model, step + 1 if options.ema_warmup else None)

    def carry(self, state: OptimizerState) -> None:
        """Begin with what the teacher's optimizer remembered."""
        for name, parameter in self.model.named_parameters():
            if name in state:
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.ndim else value
                    for key, value in state[name].items()
                }

    def totals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Since the last evaluation: each step's loss and cross-entropy, and the number of images classified right."""
        losses, cross_entropies, correct = (
            self.processes.sum(t.clone()) for t in (self.losses, self.cross_entropies, self.correct)
        )
        return losses, cross_entropies, correct

    def clear(self) -> None:
        for sums in (self.losses, self.cross_entropies, self.correct):
            sums.zero_()

    def state(self) -> dict[str, Any]:
        self.statistics.average(self.models)
        losses, cross_entropies, correct = self.totals()
        return {
            "model": self.model.state_dict(),
            "predictors": self.prediction.predictors.state_dict() if self.prediction else None,
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "losses": losses,
            "cross_entropies": cross_entropies,
            "correct": correct,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.prediction:
            self.prediction.predictors.load_state_dict(state["predictors"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.processes.main:  # they are sums over all processes
            self.losses.copy_(state["losses"])
            # Checkpoints of before this column: their train_loss was the loss that is minimised.
            self.cross_entropies.copy_(state.get("cross_entropies", state["losses"]))
            self.correct.copy_(state["correct"])
        torch.set_rng_state(state["rng"])


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """RMSProp as TensorFlow's, which the paper used: eps inside the square root, mean square starting at one.

    Norms and biases are not decayed.
    """
    o = config.optimizer
    groups = param_groups_weight_decay(model, o.weight_decay)
    return RMSpropTF(groups, o.lr, alpha=o.decay, eps=o.eps, momentum=o.momentum)


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


def check_finite(update: Update, processes: Processes, step: int, rows: list[dict[str, Any]], kept: int | None) -> None:
    """Refuse to evaluate or save a model that has lost its numbers; the last checkpoint stays."""
    bad = ~update.totals()[0].isfinite().cpu()
    every, began = update.config.training.eval_every, rows[-1]["step"] if rows else 0
    if bad.any():
        first = int(bad.nonzero()[0])
        losses = processes.gather(update.losses.cpu())
        ranks = [str(rank) for rank, one in enumerate(losses) if not one[first].isfinite()]
        where = f" (in process {', '.join(ranks)} of {processes.world})" if processes.world > 1 else ""
        what = f"the training loss is not a number at step {began // every * every + first}{where}"
    elif not all(bool(parameter.isfinite().all()) for parameter in update.model.parameters()):
        what = f"the weights are not numbers after step {step - 1}"  # they are the same on all processes
    else:
        return
    there = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept"
    told = RunError if processes.main else Elsewhere
    raise told(f"{what}: {there}; try a lower optimizer.lr in another folder (--out)")


def report_faults(data: Data, processes: Processes, run: Run | None) -> None:
    """Name the images that could not be read, once each, and keep their number in run.json."""
    faults = [fault for one in processes.gather(data.faults()) for fault in one]
    if not faults:
        return
    if run:
        for fault in faults:
            print(
                f"train.py: cannot be decoded, taken for a wrong answer or left out of training: {fault}",
                file=sys.stderr,
            )
    processes.first(lambda: run.note(unreadable_images=run.manifest.get("unreadable_images", 0) + len(faults)))


def default_folder(config: Path, seed: int) -> Path:
    """configs/<scale>/<arm>.yaml -> runs/<scale>/<arm>/seed<k>"""
    return Path("runs") / config.resolve().parent.name / config.stem / f"seed{seed}"


def teacher_of(config: Config, folder: Path) -> Path | None:
    """The teacher's checkpoint: its name in the config is a path, or an arm beside this one, of the same seed."""
    if config.teacher is None:
        return None
    name = Path(config.teacher)
    if name.suffix or len(name.parts) > 1:
        return name
    return folder.parent.parent / name / f"seed{config.seed}" / "checkpoint.pt"


def failed(error: Exception, run: Run | None, processes: Processes) -> Exception:
    """Note in run.json why the run ends, for the other processes too; returns what is to be raised."""
    if isinstance(error, RuntimeError):
        if not lost_contact(error):
            return error
        reasons = processes.confessions()
        why = "; ".join(reasons) or "its own message says why, unless it was killed"
        error = RunError(f"another process of this run ended: {why}; the same command goes on from the last checkpoint")
    elif not isinstance(error, Elsewhere):
        processes.confess(error)
    if run and run.manifest:
        with contextlib.suppress(RunError):  # a full disk: the first error is the one to tell
            run.note(status="failed", error=str(error))
    return error


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
        if number in asked and number == signal.SIGINT:  # Ctrl-C a second time: at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(number)

    handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, handlers
    )  # whoever started us may have blocked them, and that is inherited
    try:
        overrides = arguments.set + ([f"seed={arguments.seed}"] if arguments.seed is not None else [])
        config = load(arguments.config, overrides)
        folder = arguments.out or default_folder(arguments.config, config.seed)
        with Processes() as processes, contextlib.ExitStack() as stack:
            opened: list[Run] = []
            processes.first(lambda: opened.append(stack.enter_context(Run(folder, config))))
            run = opened[0] if opened else None
            stopped: Stopped | None = None
            if not processes.first(lambda: run.finished):
                try:
                    train(config, run, processes, teacher_of(config, folder), lambda: bool(asked) or orphaned())
                except Stopped as caught:  # on all processes at the same step: they part as after the last one
                    stopped = caught
                    processes.settle()
                except (RunError, DataError, ConfigError, RuntimeError) as error:
                    raise failed(error, run, processes) from None
            if stopped is not None:
                raise stopped
            if run:
                print(f"{folder} is finished: {run.manifest['result']}")
            return 0
    except Elsewhere:
        return 2
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
