"""A student that predicts its teacher's hidden layers: what the paper tried first, without a speedup (sec 2.1).

"Several convolutional hidden layers of the student network were provided as input to new, learned, convolutional
layers. The cost function was modified to include terms encouraging the output of these auxiliary layers to be close to
a corresponding layer in the teacher network." It resembles FitNets (Romero et al., 2014), in one stage. Kernel sizes,
layers and weights are not in the paper: 1x1 is our choice, the rest is in the config.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from training.config import TeacherPredictionConfig
from training.errors import ConfigError


class Prediction(nn.Module):
    """The student, and on each of its named layers a convolution that predicts the teacher's layer: what is trained."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, options: TeacherPredictionConfig, images: torch.Tensor, seed: int
    ):
        """`images` [B, C, H, W]: to see what the layers return."""
        super().__init__()
        self.student, self.weight = student, options.weight
        self.chunk: int | None = None  # images whose errors go by their own variance; None: the whole batch
        # In a list, which keeps it from being a submodule: its parameters are no part of what is trained, and it never
        # leaves evaluation mode.
        self._teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)]
        self._seen: dict[str, list[torch.Tensor]] | None = None  # only while a pass of ours goes on
        for side, model in (("student", student), ("teacher", self.teacher)):
            for layer in options.layers:
                try:
                    module = model.get_submodule(layer)
                except AttributeError:
                    raise ConfigError(
                        f"teacher_prediction.layers: the {side} has no layer {layer!r}; it has "
                        + ", ".join(name for name, _ in model.named_modules() if name.count(".") == 1)
                    ) from None
                module.register_forward_hook(self._look(side))
        mode = student.training
        student.eval()
        with torch.no_grad():
            pairs = self._layers(images)[1]
        student.train(mode)
        for layer, (mine, theirs) in zip(options.layers, pairs, strict=True):
            if mine.ndim != 4 or mine.shape[2:] != theirs.shape[2:]:
                raise ConfigError(
                    f"teacher_prediction.layers: {layer!r} returns {list(mine.shape[1:])} in the student and "
                    f"{list(theirs.shape[1:])} in its teacher: expected [channels, height, width], the latter two equal"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.predictors = nn.ModuleList(
                nn.Conv2d(mine.shape[1], theirs.shape[1], kernel_size=1) for mine, theirs in pairs
            )

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def _look(self, side: str) -> Any:
        return lambda module, arguments, output: self._seen[side].append(output) if self._seen else None

    def _layers(self, images: torch.Tensor) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        self._seen = seen = {"student": [], "teacher": []}
        logits = self.student(images)
        with torch.no_grad():
            self.teacher(images)
        self._seen = None
        pairs = list(zip(seen["student"], seen["teacher"], strict=True))
        return logits, pairs

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, classes], and what the loss gains: the weighted mean over the layers of the squared errors, as
        fractions of the variance of what is predicted."""
        logits, pairs = self._layers(images)
        errors = [
            self._error(predictor(mine), theirs)
            for predictor, (mine, theirs) in zip(self.predictors, pairs, strict=True)
        ]
        return logits, self.weight * torch.stack(errors).mean()

    def _error(self, predicted: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        chunk = self.chunk or len(theirs)
        parts = zip(predicted.split(chunk), theirs.split(chunk), strict=True)
        errors = [(ours - wanted).square().mean() / wanted.var() for ours, wanted in parts]
        return errors[0] if len(errors) == 1 else torch.stack(errors).mean()
