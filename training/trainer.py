"""The trainer of a run: start or resume, step, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.config import Config
from training.data.source import Batch, Data
from training.errors import FailedOnAnotherRank, RunError, Stopped
from training.evaluation import before_training, evaluate
from training.network import build, training_flops
from training.optim import learning_rate
from training.prediction import Prediction
from training.runfolder import RunFolder, contents_of
from training.session import Session
from training.step import TrainStep, failures_explained
from training.student import OptimizerState, facts_of, grow, load_teacher


class Trainer:
    """The model of a run and what belongs to it; `resume`, `grow` or `fresh` comes first."""

    def __init__(self, config: Config, session: Session, run: RunFolder, data: Data, teacher: Path | None):
        """`teacher`: the checkpoint to grow from, or the one whose layers are to be predicted."""
        self.config, self.session, self.run, self.data, self.teacher = config, session, run, data, teacher
        # The model is always built from its config; a student then takes over the weights grown from its teacher.
        torch.manual_seed(config.seed)
        self.model = build(config.model, config.data)
        self.prediction = self._prediction() if config.teacher_prediction else None
        self.step = 0  # updates that are done
        self.rows: list[dict[str, Any]] = []
        self.saved: int | None = None  # step of the last checkpoint

    # ---- where it begins

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        with contents_of(self.run.folder / "checkpoint.pt", "run"):
            self.model.load_state_dict(state["model"])
            seconds = float(state["wall_s"])
        self._ready(seconds)
        with contents_of(self.run.folder / "checkpoint.pt", "run"):
            self.train_step.load_state_dict(state)
        self.step, self.rows, self.saved = state["step"], state["rows"], state["step"]

    def grow(self) -> None:
        """Begin with a student of the teacher."""
        carried, facts = self.session.on_main(self._grow)
        self.run.note(**facts)
        self.session.broadcast(self.model)
        self._ready()
        self.train_step.load_grown_state(carried)

    def fresh(self) -> None:
        """Begin with random weights."""
        self.run.note(**self.session.on_main(self._cost))
        self.session.broadcast(self.model)
        self._ready()

    def _grow(self) -> tuple[OptimizerState, dict[str, Any]]:
        facts = self._cost()
        student, carried, facts["growth"] = grow(self.config, self.model, self.teacher, self.data)
        self.model.load_state_dict(student.state_dict())
        return carried, facts

    def _cost(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "training_flops_per_image": training_flops(self.model, self.prediction, self.config),
        }

    def _ready(self, seconds: float = 0.0) -> None:
        """The model has its weights: make what trains it. `seconds` of training have gone into it already."""
        self.model.to(self.session.device, memory_format=torch.channels_last)
        self.train_step = TrainStep(self.config, self.model, self.session, self.data.order, self.prediction)
        self._began, self._saved_at = time.monotonic() - seconds, time.monotonic()

    def _prediction(self) -> Prediction:
        """The model with its predictions of a teacher's layers (sec 2.1): the same teacher whenever the run goes on."""
        teacher = self.session.on_main(self._teacher_to_predict)
        images = self.data.first_images(2).cpu()
        return Prediction(self.model, teacher, self.config.teacher_prediction, images, self.config.seed)

    def _teacher_to_predict(self) -> nn.Module:
        teacher, _, saved = load_teacher(self.teacher, self.config.data)
        facts = facts_of(self.teacher, saved)
        before = self.run.manifest.get("teacher_prediction", facts)
        if before["teacher_sha256"] != facts["teacher_sha256"]:
            raise RunError(
                f"the teacher {self.teacher} is not the one that this run was begun with: choose another --out"
            )
        self.run.note(teacher_prediction=facts)
        return teacher

    # ---- the loop

    @property
    def done(self) -> bool:
        return self.step == self.config.training.steps

    @property
    def due(self) -> bool:
        """Whether to evaluate now; not where a run goes on that has the row already."""
        evaluated = bool(self.rows) and self.rows[-1]["step"] == self.step
        return not evaluated and (self.step % self.config.training.eval_every == 0 or self.done)

    def save_requested(self) -> bool:
        """Whether to save between two evaluations, by the main rank's clock; all ranks get the same answer."""
        minutes = self.config.training.save_minutes
        if minutes is None:
            return False
        waited = time.monotonic() - self._saved_at
        return self.session.any_rank(self.session.is_main and waited >= 60 * minutes, "save")

    def update(self, batches: Iterator[Batch]) -> None:
        with failures_explained(self.config):
            self.train_step(self.step, batches)
        self.step += 1

    def evaluate(self) -> dict[str, Any]:
        """Measure, and save; returns the row of the metrics. Raises `Stopped`, saved, where it is to stop meanwhile."""
        self._check_finite()
        self.train_step.sync()
        row = {"step": self.step, "images": self.step * self.config.training.batch_size}
        row["wall_s"] = round(self.seconds, 2)
        row["lr"] = learning_rate(self.config, min(self.step, self.config.training.steps - 1))
        row |= self._training_metrics()
        measured = self._evaluate()
        if measured is None:
            self.save()
            raise Stopped(self.step)
        row["val_loss"], row["val_top1"] = measured
        self.rows.append(row)
        self.train_step.clear_totals()
        self.save()
        return row

    def save(self) -> None:
        self._check_finite()
        state = self.train_step.state_dict()
        self.run.save({**state, "step": self.step, "rows": self.rows, "wall_s": self.seconds})
        self.saved, self._saved_at = self.step, time.monotonic()

    def finish(self) -> None:
        """Record the result, measured on the whole validation set."""
        last = {k: self.rows[-1][k] for k in ("train_top1", "val_top1", "wall_s")}
        result = {"steps": self.step, "val_images": self.data.val_images, **last}
        top1 = last["val_top1"]
        if self.data.all_val_images > self.data.val_images:
            measured = self._evaluate(whole=True)
            if measured is None:
                raise Stopped(self.step)
            top1 = measured[1]
        result |= {"all_val_images": self.data.all_val_images, "all_val_top1": top1}
        self.run.note(status="finished", result=result)

    @property
    def seconds(self) -> float:
        """Seconds of training, over all calls of the run."""
        return time.monotonic() - self._began

    def _training_metrics(self) -> dict[str, float]:
        since = self.step - self.rows[-1]["step"] if self.rows else 0
        if not since:
            loss, top1 = before_training(self.model, self.data, self.session, self.train_step.autocast)
            return {"train_loss": loss, "train_top1": top1}
        losses, cross_entropies, correct = self.train_step.totals()
        return {
            "train_loss": float(cross_entropies[:since].double().mean()),
            "train_top1": int(correct) / (since * self.config.training.batch_size),
            "objective": float(losses[:since].double().mean()),
        }

    def _evaluate(self, whole: bool = False) -> tuple[float, float] | None:
        step = self.train_step
        measured = evaluate(step.evaluated, self.data, self.session, step.autocast, whole)
        unreadable = [image for one in self.session.all_gather(self.data.faults()) for image in one]
        if unreadable:
            self.run.note_unreadable(unreadable)
        return measured

    def _check_finite(self) -> None:
        """Refuse to evaluate or save a model that has lost its numbers; the last checkpoint stays."""
        step, session = self.train_step, self.session
        advice = "try a lower optimizer.lr in another folder (--out)"
        bad = ~step.totals()[0].isfinite().cpu()
        if bad.any():
            first = int(bad.nonzero()[0])
            losses = session.all_gather(step.losses.cpu())
            ranks = [str(rank) for rank, one in enumerate(losses) if not one[first].isfinite()]
            where = f" (in process {', '.join(ranks)} of {session.world})" if session.world > 1 else ""
            every, began = self.config.training.eval_every, self.rows[-1]["step"] if self.rows else 0
            at = began // every * every + first
            what = f"the training loss is not a number at step {at}{where}"
            if at == 0 and self.teacher:  # no update has come before it
                advice = f"look at its teacher, {self.teacher}, whose numbers are too large"
        elif not torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all():
            what = f"the weights are not numbers after step {self.step - 1}"  # they are the same on all ranks
        else:
            return
        there = "there is no checkpoint yet" if self.saved is None else f"the checkpoint of step {self.saved} is kept"
        kind = RunError if session.is_main else FailedOnAnotherRank  # all ranks know; once is enough
        raise kind(f"{what}: {there}; {advice}")
