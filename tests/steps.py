"""The training step of an arm at the smoke scale, without a run around it."""

import copy
import threading

import torch
from places import ROOT

from training.config import load
from training.data.source import open_data
from training.network import build
from training.prediction import Prediction
from training.session import Session
from training.step import TrainStep

DRAWING = threading.Lock()  # PyTorch's generator is one of all threads


def make(arm, *overrides, layers, session=None, model=None, dtype=torch.float32):
    """The step and its mini-batches, from the first on. A teacher's prediction is of `layers`, by a copy of the net."""
    file = ROOT / "configs" / "smoke" / f"{arm}.yaml"
    if arm == "teacher_prediction":
        overrides = (*overrides, f"teacher_prediction.layers=[{', '.join(layers)}]")
    config, session = load(file, ["training.eval_every=2", "data.val_images=20", *overrides]), session or Session()
    data, prediction = open_data(config, session.device, session.rank, session.world), None
    if model is None:
        with DRAWING:
            torch.manual_seed(0)
            model = build(config.model, config.data)
    model.to(dtype)
    if config.teacher_prediction:
        teacher, images = copy.deepcopy(model), data.first_images(2).cpu().to(dtype)
        prediction = Prediction(model, teacher, config.teacher_prediction, images, 0).to(dtype)
    model.to(session.device, memory_format=torch.channels_last)
    step = TrainStep(config, model, session, data.order, prediction)
    step.losses, step.cross_entropies = step.losses.to(dtype), step.cross_entropies.to(dtype)
    return step, data, ((images.to(dtype), labels) for images, labels in data.stream(0))
