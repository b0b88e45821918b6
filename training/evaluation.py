"""Loss and accuracy without learning: on the validation set, and on the first training images at step 0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional as F

from training.compilation import uncompiled
from training.data.source import Data
from training.errors import RunError
from training.session import Session

Autocast = Callable[[], AbstractContextManager]

STEP0_BATCHES = 4  # mini-batches that the training loss and accuracy of step 0 are measured on


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Data, session: Session, autocast: Autocast, whole: bool = False
) -> tuple[float, float] | None:
    """Loss and top-1 accuracy, each image once; None where any rank was asked to stop.

    `whole`: on all validation images that there are, where an evaluation looks at a part of them.
    """
    model.eval()
    tally = Tally(session, autocast)
    stopped = False
    for images, labels in data.validation(whole):
        tally.add(model, images, labels)
        if stopped := session.stop():
            break
    loss, correct, n, stops = tally.totals(stopped)
    if stops:
        return None
    if n != (expected := data.all_val_images if whole else data.val_images):
        raise RunError(f"the evaluation saw {n:.0f} of {expected} validation images")
    return loss / n, correct / n


@torch.no_grad()
def before_training(model: nn.Module, data: Data, session: Session, autocast: Autocast) -> tuple[float, float]:
    """Training loss and accuracy of step 0: the first mini-batches in training mode, without updating anything."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    tally = Tally(session, autocast)
    batches = data.stream(0)
    for _ in range(STEP0_BATCHES * len(data.order.mine)):
        tally.add(model, *next(batches))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    loss, correct, n, _ = tally.totals()
    return loss / n, correct / n


class Tally:
    """Summed loss, hits and images, on the device until somebody asks."""

    def __init__(self, session: Session, autocast: Autocast):
        self.session, self.autocast = session, autocast
        self.loss = torch.zeros((), dtype=torch.float64, device=session.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=session.device)
        self.n = 0

    def add(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        """`images` [B, C, H, W]; a label of -1 is no image's: it counts as one more that was not recognised."""
        with self.autocast(), uncompiled():
            logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        self.loss += F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1).double()
        self.correct += (logits.argmax(1) == labels).sum()
        self.n += len(labels)

    def totals(self, stopped: bool = False) -> list[float]:
        """Loss, hits, images, and how many ranks stopped early, over all ranks."""
        counts = torch.tensor([self.n, int(stopped)], dtype=torch.float64, device=self.loss.device)
        return self.session.all_reduce(torch.cat([self.loss[None], self.correct[None].double(), counts])).tolist()
