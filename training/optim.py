"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from timm.optim import RMSpropTF, param_groups_weight_decay
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
    """Of mini-batch `step`; a student starts at a fraction of its teacher's initial rate (appendix A)."""
    schedule = config.schedule
    rate = config.optimizer.lr * config.optimizer.lr_scale
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.name == "cosine":
        done = (step - schedule.warmup_steps) / (config.training.steps - schedule.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate * schedule.decay_rate ** ((step - schedule.warmup_steps) / schedule.decay_steps)
