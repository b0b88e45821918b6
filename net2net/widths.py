"""What a module keeps of its widths beside its tensors: a layer's own numbers, and any number by its path."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm


def note_widths(module: nn.Module) -> None:
    """Bring a layer's own record of its widths up to date with its weight."""
    recompute(module)
    layers = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.PReLU)
    weight = _weight(module) if isinstance(module, layers) else None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group per channel
            module.groups = weight.shape[0]
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group per channel
            module.groups = weight.shape[0] // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in (weight, module.running_mean):
            if tensor is not None:
                module.num_features = len(tensor)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


def recompute(module: nn.Module) -> None:
    """Bring up to date what the older weight normalisation and pruning keep of their last pass."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            setattr(module, hook.name, hook.compute_weight(module))
        elif isinstance(hook, BasePruningMethod):
            setattr(module, hook._tensor_name, hook.apply_mask(module))


def _weight(module: nn.Module) -> torch.Tensor:
    """A layer's weight. Where it is computed that changes nothing, as a power iteration does in training mode."""
    if not is_parametrized(module, "weight"):
        return module.weight
    parts = [(part, part.training) for part in module.parametrizations["weight"].modules()]
    try:
        module.parametrizations["weight"].eval()
        return module.weight
    finally:
        for part, mode in parts:
            part.training = mode


def get_number(module: nn.Module, path: str) -> Any:
    """A number that a module keeps, or a list of them; see `Growth.attributes`. AttributeError if there is none."""
    found: Any = module
    for part in path.split("."):
        try:
            if isinstance(found, (list, tuple)):
                found = found[int(part)]
            else:
                found = found[part] if isinstance(found, dict) else vars(found)[part]
        except (LookupError, TypeError, ValueError):
            raise AttributeError(path) from None
    return found


def set_number(module: nn.Module, path: str, value: Any) -> None:
    """Set such a number; lists, tuples and dicts on the way to it are made anew."""
    key, *rest = path.split(".")
    value = tuple(value) if isinstance(value, list) else value
    setattr(module, key, _with(vars(module)[key], rest, value) if rest else value)


def _with(container: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    key, *rest = path
    if isinstance(container, (list, tuple)):
        items = list(container)
        items[int(key)] = _with(items[int(key)], rest, value)
        return type(container)(items)
    if isinstance(container, dict):
        new = copy.copy(container)
        new[key] = _with(container[key], rest, value)
        return new
    setattr(container, key, _with(vars(container)[key], rest, value))
    return container
