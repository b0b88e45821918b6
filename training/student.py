"""From a teacher's checkpoint to a student of the config's architecture: what the arms of the figures start from."""

from __future__ import annotations

import copy
import difflib
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

import net2net
from experiments import looks, seed_of
from net2net.inception_bn import InceptionBN
from training.config import Config, DataConfig, ModelConfig, expanded
from training.data.source import Data
from training.errors import CheckpointError, ConfigError
from training.lease import dead, describe, owner
from training.network import INITIALISATIONS, build
from training.optim import make_optimizer
from training.runfolder import contents_of, load_checkpoint

PAIR = ((3, 1), (1, 3))
HEAD = "classifier"  # of the networks here


def teacher_of(config: Config, folder: Path) -> Path | None:
    """The teacher's checkpoint: its name in the config is a path, or an arm beside this one, of the same seed."""
    if config.teacher is None:
        return None
    if config.teacher_arm:
        path = folder.parent.parent / config.teacher_arm / f"seed{config.seed}" / "checkpoint.pt"
    else:
        path = expanded(config.teacher, "growth.teacher" if config.growth else "teacher_prediction.teacher")
    if path.resolve() == (folder / "checkpoint.pt").resolve():
        key = "growth.teacher" if config.growth else "teacher_prediction.teacher"
        raise ConfigError(
            f"{key}: {config.teacher!r} is this run itself, {path}: name the arm that it is to start from, or the path "
            "of another checkpoint"
        )
    return path


def load_teacher(checkpoint: Path, data: DataConfig) -> tuple[InceptionBN, ModelConfig, dict[str, Any]]:
    """The finished teacher in a checkpoint, by its averaged weights; its architecture; and all that is in there.

    It has the classes that it was trained on, whatever classes `data` has.
    """
    trainer = owner(checkpoint.with_name("lock"))
    busy = None if trainer is None or dead(trainer) else f"{describe(trainer)} is training it: run this one after it"
    try:
        saved = load_checkpoint(checkpoint, "teacher")
    except CheckpointError:
        if busy and not checkpoint.exists():
            raise CheckpointError(f"the teacher's checkpoint {checkpoint} does not exist yet: {busy}") from None
        if absent := _absent(checkpoint):
            raise CheckpointError(f"the teacher's checkpoint {checkpoint} {absent}") from None
        raise
    with contents_of(checkpoint, "teacher"):
        steps, last = saved["config"]["training.steps"], saved["rows"][-1]["step"] if saved["rows"] else None
        if saved["step"] != steps or last != steps:  # stopped in its last evaluation: no last row yet
            raise CheckpointError(
                f"the teacher {checkpoint} is not finished (step {saved['step']} of {steps}): "
                + (busy or "train it to its end first")
            )
        was = ModelConfig(**{k.removeprefix("model."): v for k, v in saved["config"].items() if k.startswith("model.")})
        weights = saved["ema"] or saved["model"]
        teacher = build(was, data, classes=len(weights[f"{HEAD}.bias"]))
        for name, tensor in teacher.state_dict().items():
            if weights[name].shape != tensor.shape:
                raise CheckpointError(
                    f"the teacher {checkpoint} was trained on other images: its {name} has shape "
                    f"{list(weights[name].shape)}, for images of {data.channels} channels it would be "
                    f"{list(tensor.shape)}"
                )
            if not weights[name].isfinite().all():
                raise CheckpointError(
                    f"the teacher {checkpoint} holds numbers that are not finite, in {name}: train it again, or give "
                    "another one"
                )
        teacher.load_state_dict(weights)
    return teacher, was, saved


def _absent(checkpoint: Path) -> str:
    """Why there is no file, and what is meant instead; empty where there is one."""
    if checkpoint.is_dir():
        there = sorted(checkpoint.glob("checkpoint.pt")) or sorted(checkpoint.glob("seed*/checkpoint.pt"))
        return f"is a folder: give the file that a run has, {there[0] if there else 'of which there is none in it'}"
    if checkpoint.exists():
        return ""
    if checkpoint.name == "checkpoint.pt" and seed_of(checkpoint.parent) is None:
        return "does not exist: train it first"
    if checkpoint.name == "checkpoint.pt":
        arm, runs = checkpoint.parent.parent.name, checkpoint.parent.parent.parent
        beside = {path.name for path in runs.iterdir() if path.is_dir()} if runs.is_dir() else set()
        near = [] if arm in looks() else difflib.get_close_matches(arm, sorted({*looks(), *beside} - {arm}), 1)
        return "does not exist: train it first" + (f", or was {near[0]!r} meant?" if near else "")
    files = {path.name for path in checkpoint.parent.iterdir()} if checkpoint.parent.is_dir() else set()
    near = difflib.get_close_matches(checkpoint.name, sorted(files), 1)
    return "does not exist: " + (f"was {near[0]!r} meant?" if near else "give an arm, or a checkpoint that is there")


OptimizerState = dict[str, dict[str, Any]]  # by name of the parameter
CERTIFIED = 32  # images that teacher and student are compared on, in float64: at 224 pixels 256 would take minutes


def grow(
    config: Config, reference: nn.Module, checkpoint: Path, data: Data
) -> tuple[nn.Module, OptimizerState, dict[str, Any]]:
    """The student grown from the teacher in `checkpoint`, its optimizer's state, and the record for `run.json`.

    `reference` is the student's architecture, as built for training from scratch: it says how wide each layer becomes,
    and the student must come out with exactly its parameters. The record holds the teacher's checksum, what was done,
    and the certificates: of the growth as it was (with its noise), and without noise, where it has to be exact. The
    optimizer's state is empty unless `growth.optimizer` is "carried". With `growth.new_head` the classifier has
    random weights and the classes of the data: the certificates are of what is below it.
    """
    growth = config.growth
    teacher, was, saved = load_teacher(checkpoint, config.data)
    classes = teacher.get_submodule(HEAD).out_features, config.data.classes
    if classes[0] != classes[1] and not growth.new_head:
        raise CheckpointError(
            f"the teacher {checkpoint} tells {classes[0]} classes apart, and the data have {classes[1]}: "
            "growth.new_head=true gives the student a classifier of random weights"
        )
    batch = data.first_images(growth.calibration_images if growth.method == "net2deeper" else CERTIFIED).cpu()
    few = batch[:CERTIFIED]

    def student(noise: float) -> nn.Module:
        if growth.method == "continue":
            return copy.deepcopy(teacher)
        if growth.method == "net2deeper":
            pairs = PAIR * (config.model.extra_pairs - was.extra_pairs)
            sites = {"inception.*.middle.2": pairs, "inception.*.long.3": pairs}
            return net2net.deepen(teacher, few, sites, calibration=[batch])
        widths = {
            name: module.out_channels
            for name, module in reference.named_modules()
            if isinstance(module, nn.Conv2d) and name.startswith("inception.")
        }
        if growth.method == "random_pad":
            return net2net.random_pad(
                teacher, few, widths=widths, init=INITIALISATIONS[config.model.init], seed=config.seed
            )
        return net2net.widen(
            teacher, few, widths=widths, noise=noise, exact=growth.exact and noise > 0, seed=config.seed
        )

    try:
        grown = student(growth.noise)
        # What is certified has the teacher's classifier; what is trained may have a new one, which the history tells.
        trained = grown
        if growth.new_head:
            heads = {HEAD: dict(zip(("from", "to"), classes, strict=True))}
            trained = net2net.replay({"op": "new_head", "seed": config.seed, "heads": heads}, grown)
        _same_architecture(trained, reference)
        carried = {}
        if growth.optimizer == "carried":
            if saved.get("predictors"):
                raise CheckpointError(
                    f"the teacher {checkpoint} was trained with layers that predict its own teacher's, and its "
                    "optimizer holds theirs: use growth.optimizer=fresh"
                )
            if config.optimizer.momentum and not saved["config"].get("optimizer.momentum"):
                raise CheckpointError(
                    f"the teacher {checkpoint} was trained without momentum, and optimizer.momentum is "
                    f"{config.optimizer.momentum:g}: there is none to carry; use growth.optimizer=fresh"
                )
            with contents_of(checkpoint, "teacher"):
                optimizer = make_optimizer(config, teacher)
                optimizer.load_state_dict(saved["optimizer"])
            carried = _carried(optimizer, teacher, trained)
    except net2net.GrowthError as error:
        why = _mismatch(config, was) or error
        raise CheckpointError(f"the teacher {checkpoint} cannot be grown into this model: {why}") from None
    record = {
        **facts_of(checkpoint, saved),
        "method": growth.method,
        "history": net2net.history(trained),
        "error": _certificates(teacher, grown, few),
    }
    if growth.method == "net2deeper":
        record["calibration_images"] = len(batch)  # of a small set fewer than the config asks for
    if growth.method == "net2wider":
        record["error_without_noise"] = _certificates(teacher, student(0.0), few) if growth.noise else record["error"]
    return trained, carried, record


def _mismatch(config: Config, teacher: ModelConfig) -> str:
    """Which key of the model the method cannot bring about from this teacher; empty where it is none of them."""
    model, method = config.model, config.growth.method
    if model.name != teacher.name:
        return f"model.name is {model.name}, the teacher's {teacher.name}: growth keeps it, take the same"
    if method == "net2deeper" and model.extra_pairs <= teacher.extra_pairs:
        return (
            f"model.extra_pairs is {model.extra_pairs}, the teacher's {teacher.extra_pairs}: growth.method=net2deeper "
            "adds pairs, so it must be more than the teacher's"
        )
    if method != "net2deeper" and model.extra_pairs != teacher.extra_pairs:
        return (
            f"model.extra_pairs is {model.extra_pairs}, the teacher's {teacher.extra_pairs}: growth.method={method} "
            "keeps them, take the same"
        )
    if method in ("net2deeper", "continue") and model.width != teacher.width:
        return (
            f"model.width is {model.width:g}, the teacher's {teacher.width:g}: growth.method={method} keeps it, "
            "take the same"
        )
    if model.width < teacher.width:
        return (
            f"model.width is {model.width:g}, the teacher's {teacher.width:g}: growth.method={method} makes nets "
            "wider, so it must not be less"
        )
    if model.multiple_of != teacher.multiple_of:
        return f"model.multiple_of is {model.multiple_of}, the teacher's {teacher.multiple_of}: take the same"
    return ""


def _carried(optimizer: torch.optim.Optimizer, teacher: nn.Module, student: nn.Module) -> OptimizerState:
    """The teacher's optimizer state for the student's parameters; new layers have none."""
    owner = teacher
    if net2net.history(student) != net2net.history(teacher):
        optimizer, owner = net2net.grow_optimizer(optimizer, student, teacher=teacher), student
    return {name: dict(optimizer.state[p]) for name, p in owner.named_parameters() if p in optimizer.state}


def facts_of(checkpoint: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """Which teacher it was, for `run.json`."""
    return {
        "teacher": str(checkpoint),
        "teacher_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "teacher_val_top1": saved["rows"][-1]["val_top1"],
    }


def _certificates(teacher: nn.Module, student: nn.Module, batch: torch.Tensor) -> list[dict[str, Any]]:
    return [net2net.verify(teacher, student, batch, train=train)._asdict() for train in (False, True)]


def _same_architecture(grown: nn.Module, reference: nn.Module) -> None:
    ours, wanted = ({k: tuple(t.shape) for k, t in m.state_dict().items()} for m in (grown, reference))
    for key in [*wanted, *ours]:
        if ours.get(key) != wanted.get(key):
            raise net2net.GrowthError(
                f"{key} would have shape {ours.get(key)}, the config's model has {wanted.get(key)} "
                "(None: no such parameter); is it the right teacher?"
            )
