"""Names of modules and parameters, and the globs that they match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def owner(parameter: str) -> str:
    """The layer that has a parameter, also where it holds what the layer's weight is computed from."""
    return re.sub(r"(^|\.)parametrizations\..*|(^|\.)[^.]*$", "", parameter)


def naming(model: nn.Module, spaces: Iterable[Sequence[str]]) -> Callable[[str], str]:
    """How weights are called, from those that make each channel space: by their layer. By themselves where that is the
    whole model, or a module with parameters of its own for several spaces, as w1 and w2 of an expert; one of PyTorch's
    is a layer to everybody, whatever its parameters."""
    modules = dict(model.named_modules())
    own: dict[str, set[frozenset[str]]] = {}
    for weights in spaces:
        for module in {owner(weight) for weight in weights}:
            own.setdefault(module, set()).add(frozenset(weight for weight in weights if owner(weight) == module))
    several = {
        module
        for module, kinds in own.items()
        if len(kinds) > 1 and module in modules and not type(modules[module]).__module__.startswith("torch.nn.")
    }

    def called(weight: str) -> str:
        module, itself = owner(weight), re.sub(r"(^|\.)parametrizations\.([^.]+)\..*", r"\1\2", weight)
        return itself if not module or (module in several and itself != f"{module}.weight") else module

    return called


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a module's name matches a glob, both split at their dots; "**" stands for any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def inside(module: str, pattern: str) -> bool:
    """Whether a module matches the pattern, or lies inside one that does."""
    parts = module.split(".")
    return any(matches(parts[:n], pattern.split(".")) for n in range(1, len(parts) + 1))


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every module, with its first one, by which it goes here."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(m), name) for name, m in model.named_modules(remove_duplicate=False)}


def within(module: str, name: str) -> str:
    """The full name of a module by its name in another; "" is that one itself."""
    return ".".join(filter(None, (module, name)))


def around(module: str) -> list[str]:
    """The modules that a module is in, nearest first; the last is the whole model, ""."""
    parts = module.split(".") if module else []
    return [".".join(parts[:k]) for k in reversed(range(len(parts)))]
