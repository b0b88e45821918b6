"""A new classifier for another number of classes, when a student is to learn something else than its teacher.

The layer that makes the network's outputs is replaced by one with other outputs, initialised anew; all below it stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError
from net2net.history import remember
from net2net.kept import integers
from net2net.names import aliases, owner
from net2net.recording import Recording, cloned, local, on_meta, rebuilt
from net2net.seeds import generator_for
from net2net.spaces import Axis, resolve
from net2net.tensors import check_memory, empty_like
from net2net.trace import Trace
from net2net.widths import note_widths, set_number

CLASSES = {"class", "classes", "label", "labels", "outputs", "output", "out"}


def renew(student: nn.Module, trace: Trace, example_inputs: Any, new_head: Any, seed: int) -> nn.Module:
    """The student with the layers replaced that make its outputs, as in `trace`, and that on record."""
    heads = _plan(trace, new_head)
    new = replaced(student, heads, seed)
    _check(new, example_inputs, trace, heads)
    remember(new, {"op": "new_head", "seed": seed, "heads": heads})
    return new


def _plan(trace: Trace, new_head: int | Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The layers to replace: {module: {"from", "to"}}. `new_head` is the number of classes, or one for each layer."""
    found = _heads(trace)
    if isinstance(new_head, Mapping):
        first = aliases(trace.skeleton)
        wanted = {first.get(name, name): classes for name, classes in new_head.items()}
        for name in wanted:
            if name not in found:
                raise GrowthError(f"new_head names {name!r}, which does not make the outputs: {_said(found)}")
    else:
        if len(set(found.values())) != 1:
            raise GrowthError(f"new_head={new_head!r} does not say which layer's outputs, give a dict: {_said(found)}")
        wanted = dict.fromkeys(found, new_head)
    for name, classes in wanted.items():
        if type(classes) is not int or classes < 1:
            raise GrowthError(f"new_head: {name!r} needs a number of outputs of at least 1, got {classes!r}")
    return {name: {"from": found[name], "to": classes} for name, classes in wanted.items()}


def _said(found: Mapping[str, int]) -> str:
    layers = ", ".join(f"{name!r} ({classes} outputs)" for name, classes in found.items())
    return f"{layers} could be replaced" if found else "no linear layer or convolution makes them by itself"


def _heads(trace: Trace) -> dict[str, int]:
    """The linear layers and convolutions that make the outputs, in evaluation or training mode, and how many."""
    producers = trace.producers()
    found: dict[str, int] = {}
    for calls in (trace.calls, trace.training_calls or ()):
        for leaf in pytree.tree_leaves(calls[-1].args) if calls else ():
            for axis in _channels(trace, leaf) if isinstance(leaf, torch.Tensor) else ():
                blocks = resolve(axis or ())
                if len(blocks) != 1 or blocks[0][1] != 1:  # of what is concatenated or repeated no layer makes all
                    continue
                for weight in producers.get(blocks[0][0], ()):
                    module = trace.skeleton.get_submodule(owner(weight))
                    plain = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
                    its_own = weight.rpartition(".")[2] == "weight"  # and not computed from others
                    if plain and its_own and getattr(module, "groups", 1) == 1 and (weight, 0) in trace.outputs:
                        found[owner(weight)] = blocks[0][0].width
    return found


def _channels(trace: Trace, output: torch.Tensor) -> list[Axis | None]:
    """The axes of an output, or of what it was made of one by one, e.g. by a softmax, which knows no channels."""
    value = trace.value_of(output)
    while not value.tracked and value.call is not None:
        same = [each for each in value.call.inputs if each.tensor.shape == output.shape]
        if len(same) != 1:
            break
        (value,) = same
    return value.axes


def replaced(model: nn.Module, heads: Mapping[str, Mapping[str, int]], seed: int) -> nn.Module:
    """A copy of the model with new layers. Their draw depends on the seed and their names, and moves no generator."""
    rows = {f"{module}.{own}" if module else own: h["to"] for module, h in heads.items() for own in ("weight", "bias")}

    def make(name: str, tensor: torch.Tensor) -> torch.Tensor:
        data = tensor.detach()
        return empty_like(data, (rows[name], *data.shape[1:])) if name in rows else data.clone()

    for name, head in heads.items():
        weight = model.get_submodule(name).weight
        size = head["to"] * weight[0].numel() * weight.element_size()
        check_memory(weight.device, size, f"{name!r} would make {head['to']} outputs")
    student = rebuilt(model, make)
    for name, head in heads.items():
        layer = student.get_submodule(name)
        note_widths(layer)
        layer.requires_grad_(True)
        if not layer.weight.is_meta:
            fresh = rebuilt(layer, lambda name, tensor: torch.empty(tensor.shape))
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(generator_for(seed, "head", name).initial_seed())
                fresh.reset_parameters()
            layer.load_state_dict(fresh.state_dict())
        parts = name.split(".")
        for above in (".".join(parts[:n]) for n in range(len(parts))):
            module = student.get_submodule(above)
            for path, number in integers(module):
                words = set(re.findall("[a-z]+", path.lower()))
                if number == head["from"] and words & CLASSES and not words & {"cfg", "pretrained", "default"}:
                    set_number(module, path, head["to"])
    return student


def _check(student: nn.Module, example_inputs: Any, trace: Trace, heads: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse a student whose outputs differ from its teacher's otherwise than in their number."""
    sizes = {head["from"]: head["to"] for head in heads.values()}
    try:
        made = local(cloned(student)) if trace.real else on_meta(student)
        returned = Recording(made, trace.real).run(example_inputs)[-1]
    except GrowthError as error:
        raise GrowthError(f"new_head: the model counts on the number of its outputs: {error}") from error
    for old, new in zip(trace.calls[-1].shapes, returned.shapes, strict=True):
        if len(old) != len(new) or any(a != b and sizes.get(a) != b for a, b in zip(old, new, strict=True)):
            raise GrowthError(f"new_head: the outputs would be of shape {new} for {old}: name the layers in a dict")


def heads_of(entry: Mapping[str, Any], model: nn.Module) -> dict[str, dict[str, int]]:
    """What a record replaces, checked against the model."""
    heads = entry.get("heads")
    if not isinstance(heads, Mapping) or not all(
        isinstance(h, Mapping) and type(h.get("from")) is int and type(h.get("to")) is int and h["to"] > 0
        for h in heads.values()
    ):
        raise GrowthError("this is not a record of a new head: expected {module: {'from', 'to'}} under 'heads'")
    for name, head in heads.items():
        layer = dict(model.named_modules()).get(name)
        if not isinstance(getattr(layer, "weight", None), torch.Tensor) or layer.weight.shape[0] != head["from"]:
            raise GrowthError(
                f"the record replaces {name!r}, a layer with {head['from']} outputs, which this {type(model).__name__} "
                "does not have: give replay the class and configuration of the model that was grown"
            )
    return {name: dict(head) for name, head in heads.items()}
