"""What the code of a model keeps outside of it: memos of functions, dicts and lists of a Python module or a class.

A pass without data, or in another precision, must not leave its tensors there: the next forward pass of the caller's
model, which looks them up, would fail.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

DEEP = 3  # of dicts in dicts, and no deeper
LONG = 10_000  # a longer list or dict is data
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
FOREIGN = ("torch", "builtins", "functools", "collections", "typing", "math", "numpy", "abc", "dataclasses")


class Outside:
    """The places outside a model in which the code of its forward pass could keep a tensor, with what is in them now;
    `restore` takes away the tensors that have come since."""

    def __init__(self, model: nn.Module):
        self._seen: set[int] = set()
        self._kept: list[tuple[dict | list, dict | list]] = []  # what can hold a tensor, and what was in it
        self._names: dict[tuple[int, str], tuple[dict, Any]] = {}  # of a Python module, with what they meant
        self._cells: list[tuple[CellType, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._memos: list[tuple[Any, Any]] = []
        kinds: dict[type, None] = {}
        for module in model.modules():
            kinds.update(dict.fromkeys(type(module).__mro__))
            for key, value in vars(module).items():
                if key in HOOKS:
                    for hook in value.values():
                        self._visit(hook, DEEP)
                elif isinstance(value, (FunctionType, MethodType, functools.partial)) or _is_memo(value):
                    self._visit(value, DEEP)
        for kind in kinds:
            self._visit(kind, DEEP)

    def _visit(self, value: Any, deep: int) -> None:
        kind = type(value)
        if kind in _PLAIN or deep < 0 or id(value) in self._seen:
            return
        if kind is FunctionType:
            self._function(value)
        elif isinstance(value, (dict, list)):
            self._container(value, deep)
        elif isinstance(value, (nn.Module, torch.Tensor, ModuleType)):
            return
        elif _is_memo(value):
            self._seen.add(id(value))
            self._memos.append((value, _misses(value)))
            self._visit(getattr(value, "__wrapped__", None), DEEP)
        elif isinstance(value, type):
            if not _foreign(value):
                self._seen.add(id(value))
                self._classes.append((value, dict(vars(value))))
                for inner in list(vars(value).values()):
                    self._visit(inner, deep)
        elif isinstance(value, (staticmethod, classmethod, MethodType)):
            self._visit(value.__func__, deep)
            self._visit(getattr(value, "__self__", None), deep - 1)
        elif isinstance(value, functools.partial):
            for inner in (value.func, *value.args, *value.keywords.values()):
                self._visit(inner, deep - 1)
        elif isinstance(value, property):
            self._visit(value.fget, deep)
        elif not _foreign(kind) and (attributes := _attributes(value)) is not None:
            self._visit(kind, deep)
            self._visit(attributes, deep - 1)

    def _container(self, value: dict | list, deep: int) -> None:
        self._seen.add(id(value))
        if (dict if isinstance(value, dict) else list).__len__(value) < LONG:
            held = _held(value)
            self._kept.append((value, held))
            for inner in held.values() if isinstance(held, dict) else held:
                if isinstance(inner, (dict, list)):
                    self._visit(inner, deep - 1)

    def _function(self, value: FunctionType) -> None:
        """What its code can reach: its defaults, its closure, and the names of its Python module that it uses."""
        self._seen.add(id(value))
        if _foreign(value):
            return
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not set yet
                self._cells.append((cell, cell.cell_contents))
                self._visit(cell.cell_contents, DEEP)
        for inner in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), value.__dict__):
            self._visit(inner, DEEP)
        space, names = value.__globals__, set(_names(value.__code__))
        for name in names & space.keys():
            found = space[name]
            self._names[id(space), name] = space, found
            if isinstance(found, ModuleType):
                if not _foreign(found):
                    for inner in names & vars(found).keys():
                        self._names[id(vars(found)), inner] = vars(found), vars(found)[inner]
                        self._visit(vars(found)[inner], DEEP)
            else:
                self._visit(found, DEEP)

    def restore(self) -> None:
        for memo, misses in self._memos:
            if _misses(memo) != misses:
                memo.cache_clear()
        for place, was in self._kept:
            now = _held(place)
            if isinstance(place, list):
                if not _alike(now, was) and any(map(_holds_tensor, now)):
                    place[:] = was
            elif not _alike(now.values(), was.values()):
                for key, value in now.items():
                    if value is not was.get(key, _MISSING) and _holds_tensor(value):
                        if key in was:
                            place[key] = was[key]
                        else:
                            del place[key]
        for kind, was in self._classes:
            for key, value in list(vars(kind).items()):
                if value is not was.get(key, _MISSING) and _holds_tensor(value):
                    setattr(kind, key, was[key]) if key in was else delattr(kind, key)
        for (_, name), (space, was) in self._names.items():
            if space.get(name, was) is not was and _holds_tensor(space[name]):
                space[name] = was
        for cell, was in self._cells:
            with suppress(ValueError):
                if cell.cell_contents is not was and _holds_tensor(cell.cell_contents):
                    cell.cell_contents = was


_PLAIN = frozenset({int, float, str, bytes, bool, type(None), tuple, torch.dtype, torch.device, torch.Size})
_MISSING = object()


def _foreign(value: Any) -> bool:
    """Whether something is torch's or the standard library's, and keeps no tensors of a model."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    return name.partition(".")[0] in FOREIGN


def _is_memo(value: Any) -> bool:
    return any("cache_clear" in vars(kind) for kind in type(value).__mro__)


def _held(value: dict | list) -> dict | list:
    """A copy of what is in a dict or list. One of a class of its own may make what it is asked for: it is not asked."""
    return dict(dict.items(value)) if isinstance(value, dict) else list(list.__iter__(value))


def _attributes(value: Any) -> dict | None:
    """Without a `__getattr__`, which may raise whatever it likes."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def _misses(memo: Any) -> Any:
    try:
        return memo.cache_info().misses
    except (AttributeError, TypeError):  # somebody's own, of which it cannot be known
        return _MISSING


@functools.lru_cache(maxsize=10_000)
def _names(code: CodeType) -> tuple[str, ...]:
    """The names that code uses, and that of the functions in it."""
    inner = (name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant))
    return (*code.co_names, *inner)


def _alike(now: Iterable[Any], was: Iterable[Any]) -> bool:
    return len(now) == len(was) and all(a is b for a, b in zip(now, was, strict=True))


def _holds_tensor(value: Any, deep: int = DEEP) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if deep < 0 or isinstance(value, (str, bytes, type, FunctionType, ModuleType, nn.Module)):
        return False
    if isinstance(value, dict):
        return any(_holds_tensor(each, deep - 1) for each in dict.values(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_holds_tensor(each, deep - 1) for each in value)
    return any(_holds_tensor(each, deep - 1) for each in (_attributes(value) or {}).values())


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Afterwards no tensor is left in what the code of a model keeps outside of it."""
    outside = Outside(model)
    try:
        yield
    finally:
        outside.restore()
