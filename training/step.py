"""One step of training: from a mini-batch to the next weights."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from training.batchnorm import IMAGES_PER_PASS, Statistics, group_batch_norms, passes
from training.compilation import compiled
from training.config import Config
from training.data.order import Batch, Order
from training.errors import RunError
from training.graphs import Replayed, gradients_in_one
from training.optim import AveragedModel, learning_rate, make_optimizer
from training.prediction import Prediction
from training.session import Session


class TrainStep:
    """Passes over this rank's part of the mini-batch, the optimizer, the average of the weights.

    A pass takes several chunks at a time, each with batch-norm statistics of its own.

    Nothing in a step waits for the device: losses and hits are added up there and read at the next evaluation.
    """

    def __init__(
        self, config: Config, model: nn.Module, session: Session, order: Order, prediction: Prediction | None = None
    ):
        options, device = config.training, session.device
        self.config, self.model, self.prediction, self.session = config, model, prediction, session
        self.trained = model  # with what is trained beside it
        if prediction:
            self.trained, prediction.chunk = prediction.to(device), options.chunk
            prediction.teacher.to(device, memory_format=torch.channels_last)
        self.replays = options.cuda_graphs and session.cuda
        # Chunks in each pass. With one, batch norm stays as it is, which takes more launches and less memory traffic.
        launches_count = session.cuda and (options.compile or not self.replays)
        fits = options.images_per_pass or (IMAGES_PER_PASS if launches_count else options.chunk)
        self.passes = passes(len(order.mine), options.chunk, fits)
        if max(self.passes) > 1:
            group_batch_norms(model, options.chunk)
        self.optimizer = make_optimizer(config, self.trained)
        warmup = {"use_warmup": options.ema_warmup, "warmup_gamma": 9.0, "warmup_power": 1.0}  # (step) / (9 + step)
        self.ema = AveragedModel(model, decay=options.ema_decay, **warmup) if options.ema_decay else None
        self.models = [model, self.ema.module] if self.ema else [model]
        self.statistics = Statistics(model, session, self.passes, order.chunks_per_batch)
        # DDP takes the mean over the ranks of what each sums over its chunks; wanted is the mean over all chunks.
        self.chunk_weight = session.world / order.chunks_per_batch
        self.forward: nn.Module = compiled(self.trained, options.compile)
        self.pass_ = self._pass
        if self.replays:
            self.gradients = gradients_in_one(self.trained.parameters())
            self.pass_ = Replayed(self._pass, device)
        elif session.world > 1:
            with warnings.catch_warnings():  # torch 2.13 has a new name for the argument, torch 2.11 has not
                warnings.simplefilter("ignore", FutureWarning)
                self.forward = DistributedDataParallel(
                    self.forward, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self.half = options.precision == "bfloat16"
        # Of each step since the last evaluation: what was minimised, and the cross-entropy in it.
        self.losses, self.cross_entropies = torch.zeros(2, options.eval_every, device=device)
        self.sums = torch.zeros(2, device=device)  # the same of this step
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def evaluated(self) -> nn.Module:
        """The model that counts: with averaged weights where there are any."""
        return self.models[-1]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.session.device.type, torch.bfloat16, enabled=self.half)

    def __call__(self, step: int, batches: Iterator[Batch]) -> None:
        options = self.config.training
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        if self.replays:
            self.gradients.zero_()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        self.sums.zero_()
        self.statistics.begin_step()
        for number, chunks in enumerate(self.passes):
            images, labels = joined(batches, chunks)
            images = images.contiguous(memory_format=torch.channels_last)
            parallel = isinstance(self.forward, DistributedDataParallel)
            last = number == len(self.passes) - 1
            with self.forward.no_sync() if parallel and not last else contextlib.nullcontext():
                self.pass_(images, labels)
            self.statistics.after_pass(number)
        if self.replays and self.session.world > 1:
            self.session.all_reduce(self.gradients).div_(self.session.world)
        for sums, value in zip((self.losses, self.cross_entropies), self.sums, strict=True):
            sums[step % options.eval_every] += value
        if self.config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model, step + 1 if options.ema_warmup else None)

    def _pass(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward and backward pass of several chunks: adds to the gradients and to the sums."""
        options = self.config.training
        weight = self.chunk_weight * (len(images) // options.chunk)
        with self.autocast():
            output = self.forward(images)
            logits, auxiliary = output if self.prediction else (output, None)
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
            plain = loss if not options.label_smoothing else F.cross_entropy(logits.detach(), labels)
            if auxiliary is not None:
                loss = loss + auxiliary.float()
        (loss * weight).backward()
        self.sums += torch.stack((loss.detach(), plain.detach())) * (weight / self.session.world)
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def load_grown_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Begin with the grown state of the teacher's optimizer, by name of the parameter."""
        for name, parameter in self.model.named_parameters():
            if name in state:
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.ndim else value
                    for key, value in state[name].items()
                }

    def totals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Since the last evaluation: each step's loss and cross-entropy, and the number of images classified right."""
        losses, cross_entropies, correct = (
            self.session.all_reduce(t.clone()) for t in (self.losses, self.cross_entropies, self.correct)
        )
        return losses, cross_entropies, correct

    def clear_totals(self) -> None:
        for sums in (self.losses, self.cross_entropies, self.correct):
            sums.zero_()

    def sync(self) -> None:
        """Give every rank the batch-norm statistics of all."""
        self.statistics.sync(self.models)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. Taking it changes nothing of what this rank goes on with, whenever it is taken."""
        with self.statistics.synced(self.models):
            weights = [copy.deepcopy(model.state_dict()) for model in self.models]
        losses, cross_entropies, correct = self.totals()
        return {
            "model": weights[0],
            "predictors": self.prediction.predictors.state_dict() if self.prediction else None,
            "ema": weights[1] if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "losses": losses,
            "cross_entropies": cross_entropies,
            "correct": correct,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All but the weights of the model, which are loaded before this object is made: the EMA is a copy of them."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.prediction:
            self.prediction.predictors.load_state_dict(state["predictors"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.session.is_main:  # they are sums over all ranks
            self.losses.copy_(state["losses"])
            # Checkpoints of before this column: their train_loss was the loss that is minimised.
            self.cross_entropies.copy_(state.get("cross_entropies", state["losses"]))
            self.correct.copy_(state["correct"])
        torch.set_rng_state(state["rng"])


@contextlib.contextmanager
def failures_explained(config: Config) -> Iterator[None]:
    """One sentence for what a machine lacks: a compiler, or memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}): take fewer images at once "
            "(--set training.images_per_pass=N, which changes no more than rounding), or train on more GPUs"
        ) from None
    except RuntimeError as error:
        if not (config.training.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"training.compile: torch.compile failed: {lines[0] if lines else type(error).__name__}; it needs a C++ "
            "compiler (g++, or the one that CXX names). --set training.compile=false goes on without, which changes "
            "no more than rounding"
        ) from None


def joined(batches: Iterator[Batch], chunks: int) -> Batch:
    """The next chunks in one batch."""
    images, labels = zip(*(next(batches) for _ in range(chunks)), strict=True)
    return (images[0], labels[0]) if chunks == 1 else (torch.cat(images), torch.cat(labels))
