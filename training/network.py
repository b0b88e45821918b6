"""The network of a config, and what training it costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from net2net.inception_bn import InceptionBN, inception_bn, init_weights
from training.config import Config, DataConfig, ModelConfig
from training.prediction import Prediction

INITIALISATIONS = {"he": init_weights, "pytorch": None}  # None: each module's own


def build(model: ModelConfig, data: DataConfig, classes: int | None = None) -> InceptionBN:
    """`classes`: where they are not the data's."""
    return inception_bn(
        model.name,
        width=model.width,
        extra_pairs=model.extra_pairs,
        num_classes=classes or data.classes,
        in_channels=data.channels,
        bn_momentum=model.bn_momentum,
        multiple_of=model.multiple_of,
        init=INITIALISATIONS[model.init],
    )


def training_flops(model: nn.Module, prediction: Prediction | None, config: Config) -> int:
    """Floating-point operations of a training pass over one image: three forward passes (of a teacher that is only to
    be predicted: one), a multiplication and an addition counting as two. Convolutions and linear layers alone."""
    image = torch.zeros(1, config.data.channels, config.data.image_size, config.data.image_size)

    def forward(module: nn.Module) -> int:
        module.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image)
        return counter.get_total_flops()

    return 3 * forward(prediction) - 2 * forward(prediction.teacher) if prediction else 3 * forward(model)
