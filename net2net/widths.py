"""What a module keeps of its widths beside its tensors: a layer's own numbers, and any number by its path."""

from __future__ import annotations

import copy
from collections import deque
from contextlib import suppress
from numbers import Integral
from types import MappingProxyType
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


def fields(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, those in slots too; None for one that has none of its own."""
    found = dict(getattr(value, "__dict__", None) or {})
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if key not in ("__dict__", "__weakref__") and hasattr(value, key):
                found[key] = getattr(value, key)
    return found or ({} if hasattr(value, "__dict__") else None)


def parts(container: Any) -> dict[str, Any] | None:
    """What is in a list, tuple, dict or object, by its part of a path; None for anything else."""
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return dict(zip(container._fields, container, strict=True))
    if isinstance(container, (list, tuple, deque)):
        return {str(k): item for k, item in enumerate(container)}
    if isinstance(container, (dict, MappingProxyType)):
        return {key: item for key, item in container.items() if isinstance(key, str)}
    return fields(container)


def is_whole(value: Any) -> bool:
    """Whether it is an int, or one of numpy's; a bool or an Enum is none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, int))


def get_number(module: nn.Module, path: str) -> Any:
    """A number that a module keeps, or a list of them; see `Growth.attributes`. AttributeError if there is none."""
    found: Any = module
    for part in path.split("."):
        inner = vars(found) if isinstance(found, nn.Module) else parts(found)
        if inner is None or part not in inner:
            raise AttributeError(path)
        found = inner[part]
    return found


def set_number(module: nn.Module, path: str, value: Any) -> None:
    """Set such a number; lists, tuples and dicts on the way to it are made anew. One that a module keeps from its first
    forward pass on, and has not yet, is left to that."""
    try:
        if get_number(module, path) is None:
            return
    except AttributeError:
        return
    key, *rest = path.split(".")
    _assign(module, key, _with(vars(module)[key], rest, tuple(value) if isinstance(value, list) else value))


def _with(container: Any, path: list[str], value: Any) -> Any:
    if not path:
        return type(container)(value) if is_whole(container) and is_whole(value) else value
    key, *rest = path
    new = _with((parts(container) or {})[key], rest, value)
    if isinstance(container, MappingProxyType):
        return MappingProxyType({**container, key: new})
    if isinstance(container, tuple):
        if hasattr(container, "_fields"):
            return container._replace(**{key: new})
        return type(container)((*container[: int(key)], new, *container[int(key) + 1 :]))
    if isinstance(container, (list, deque, dict)):
        anew = shallow(container)
        anew[key if isinstance(container, dict) else int(key)] = new
        return anew
    _assign(container, key, new)
    return container


def shallow(container: Any) -> Any:
    """As `copy.copy`, and of a dict whose class answers `__getattr__` with KeyError, which that does not expect."""
    try:
        return copy.copy(container)
    except KeyError:
        new = type(container).__new__(type(container))
        dict.update(new, container)
        if hasattr(container, "__dict__"):
            vars(new).update(vars(container))
        return new


def _assign(owner: Any, key: str, value: Any) -> None:
    """Set an attribute of what is the student's own, even if it is frozen or has checks that expect the old width."""
    with suppress(Exception):
        setattr(owner, key, value)
    if (fields(owner) or {}).get(key) is not value:
        if key in getattr(owner, "__dict__", ()):
            vars(owner)[key] = value
        else:
            object.__setattr__(owner, key, value)
