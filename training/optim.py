"""The optimizer, its learning rate, and the average of the weights."""

from __future__ import annotations

import math

import torch
from timm.optim import RMSpropTF, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from training.config import Config


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """RMSProp as TensorFlow's, which the paper used: eps inside the square root, mean square starting at one.

    Norms and biases are not decayed.
    """
    options = config.optimizer
    groups = param_groups_weight_decay(model, options.weight_decay)
    return RMSpropTF(groups, options.lr, alpha=options.decay, eps=options.eps, momentum=options.momentum)


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


class AveragedModel(ModelEmaV3):
    """timm's average of weights and buffers, by two launches a step.

    timm makes both state dicts anew in each of them, a thousand small operations of the host, and copies the counters
    of batch norm one by one.
    """

    def __init__(self, model: nn.Module, **options):
        super().__init__(model, **options)
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages, self._values = (
            list(t) for t in zip(*(p for p in pairs if p[0].is_floating_point()), strict=True)
        )
        self._copies, self._counters = ([p[side] for p in pairs if not p[0].is_floating_point()] for side in (0, 1))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        torch._foreach_lerp_(self._averages, self._values, weight=1.0 - decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._counters)
