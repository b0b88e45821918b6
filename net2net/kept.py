"""Integers that modules keep of their widths, beside their tensors: `num_features`, `hidden_dim`, `feature_info`.

Code that runs after a growth counts on them: timm's `reset_classifier` makes a layer of `num_features`. Which numbers
are widths shows in their names and in the trace: one that equals the old width of channels at the module that keeps it,
where all such channels grow to one width; what remains unclear is named. Numbers under any other name follow where the
student's forward pass needs it (`Kept.options`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from net2net.names import around, within
from net2net.recording import copied_value
from net2net.spaces import Axis, length, resolve
from net2net.trace import Trace, Value
from net2net.widths import fields, is_whole, parts

Size = Callable[[Axis], int]  # of an axis in the student

# Layers of torch whose numbers are read off their weights.
READ_OFF = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.PReLU)
OWN = """
in_channels out_channels groups in_features out_features num_features num_parameters kernel_size stride padding dilation
output_padding _reversed_padding_repeated_twice
"""
OWN = frozenset(OWN.split())
# What a number counts if one of these is in its name: not channels.
COUNTS = """
layer layers depth depths block blocks stage stages group groups kernel kernels stride strides patch patches img image
images window grid resolution length len seq sequence position positions vocab class classes label labels id ids version
step steps epoch epochs reduction ratio scale factor rate seed index indices indexes idx pad padding dilation expansion
cardinality height spatial max min capacity pretrained default batch beam token tokens timestep timesteps freq bins
shift end ends start cfg cfgs base
"""
COUNTS = frozenset(COUNTS.split())
HEADS = frozenset({"head", "heads", "nhead"})
# What a number counts that is a width: one of these, or a name that ends so.
WIDTHS = """
feature channel chan chans ch filter hiddens unit units plane emb embeds embedding neurons intermediate output outputs
input inputs out in inp state model ff ffn mlp inner bottleneck latent representation projection proj feat feats ftrs
normalized c cin cout inc outc nc nf ngf ndf nhid ninp nout nemb nz
"""
WIDTHS = frozenset(WIDTHS.split())
ENDS = ("dim", "dims", "planes", "channels", "chs", "features", "filters", "width", "widths", "hidden", "embd", "embed")
DEEP = 4  # lists of dicts of an object, and no deeper
LONG = 256  # a longer list is data


MODULES_OWN = frozenset(vars(nn.Module()))
# What comes from outside, where that has as many channels: they do not grow with those of the layers.
GIVEN = "in input inputs inp obs observation state data img image cond context text source src"
GIVEN = frozenset(GIVEN.split())
# What the layers make, whatever comes in.
INNER = "out output outputs hidden hiddens hid nhid inner mid intermediate latent ff ffn mlp bottleneck"
INNER = frozenset(INNER.split())
CHANNELS = frozenset({"dim", "dims", "channel", "channels", "chs", "feature", "features", "planes"})


class Kept:
    """Finds the numbers that follow, for the widths that a student is to have.

    After `find`: `follow` by module and path inside it, e.g. {"": {"feature_info.0.num_chs": 96}}; `unclear` likewise
    the paths of those for which it is not clear, because channels of that width grow differently there.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        known = {(module, key) for module, key, _ in trace.attributes}
        self._candidates = [
            (name, path, number, holder)
            for name, module in trace.model.named_modules()
            for path, number, holder in _candidates(module)
            if (name, path[0]) not in known
        ]
        self._evidence = _Evidence(trace)
        self._supposed: dict[tuple[str, str], Axis] = {}
        self._tried: set[tuple[str, str]] = set()
        self._doubted: set[str] = set()
        self._spare: set[tuple[str, str]] = set()

    def find(self, size: Size, anew: bool = True) -> None:
        """`size` is the length of an axis in the student. What was doubted is not, `anew`."""
        if anew:
            self._doubted.clear()
        self.follow: dict[str, dict[str, int]] = {}
        self.unclear: dict[str, list[str]] = {}
        grown = self._evidence.grown(size)
        for name, path, number, holder in self._candidates:
            if number not in grown:
                continue
            where = holder.get("module") if isinstance(holder, dict) else None
            key = next(part for part in reversed(path) if not part.isdigit())
            new = self._evidence.width(name, where, key, number, size)
            written = ".".join(path)
            if new is None or (new != number and (name in self._doubted or (name, written) in self._spare)):
                self.unclear.setdefault(name, []).append(written)
            elif new != number:
                self.follow.setdefault(name, {})[written] = new
        for (name, path), axis in self._supposed.items():
            self.unclear[name] = [each for each in self.unclear.get(name, []) if each != path]
            if not self.unclear[name]:
                del self.unclear[name]
            if size(axis) != length(axis):
                self.follow.setdefault(name, {})[path] = size(axis)

    def options(self, module: str, axes: Iterable[Axis], size: Size) -> dict[tuple[str, str], Axis]:
        """Numbers that a module keeps under whatever name and that are the length of one of these axes, which grow, but
        for those of which it was supposed before.

        By (where, path): "" is the module itself, other names those of modules in it that are not called, but whose
        methods are, e.g. for a relative position bias.
        """
        kept = self.trace.skeleton.get_submodule(module)
        grown = {length(axis): axis for axis in axes if size(axis) != length(axis)}
        if not grown or type(kept).__module__.startswith("torch.nn."):  # no code of their own for their use here
            return {}
        found = {}
        for where, one in kept.named_modules():
            name = within(module, where)
            if where and (name in self.trace.returned or type(one).__module__.startswith("torch.nn.")):
                continue
            done = self.follow.get(name, {})
            for path, n in integers(one):
                if n in grown and path not in done and (name, path) not in self._tried:
                    found[where, path] = grown[n]
        return found

    def suppose(self, numbers: dict[tuple[str, str], Axis]) -> None:
        """Let numbers (module, path) follow axes, from now on."""
        self._tried.update(numbers)
        self._supposed.update(numbers)

    def drop(self, numbers: Iterable[tuple[str, str]]) -> None:
        for each in numbers:
            del self._supposed[each]

    def release(self, read: Iterable[tuple[str, str]], size: Size, works: Callable[[], bool]) -> None:
        """Let go of the numbers (module, attribute) that the forward pass has read and does without: what it cuts to
        `x[:, -self.width:]` is as long as that only on longer inputs, so they may be no widths. Of a class together."""
        alike: dict[tuple[type, str], set[tuple[str, str]]] = {}
        for name, key in read:
            if key in self.follow.get(name, {}) and (name, key) not in self._supposed:
                alike.setdefault((type(self.trace.skeleton.get_submodule(name)), key), set()).add((name, key))
        for numbers in alike.values():
            self._spare |= numbers
            self.find(size, anew=False)
            if not works():
                self._spare -= numbers
                self.find(size, anew=False)

    def doubt(self, module: str, everywhere: bool = False) -> bool:
        """Let go of the numbers that may be why a student's forward pass differs in this module: its own, or if there
        are none, those of the nearest around it; or all. Whether there were any."""
        doubted = list(self.follow) if everywhere else [m for m in (module, *around(module)) if m in self.follow][:1]
        for name in doubted:
            self.unclear.setdefault(name, []).extend(self.follow.pop(name))
        self._doubted.update(doubted)
        self.drop([each for each in self._supposed if everywhere or each[0] in doubted])
        return bool(doubted)

    def doubt_unless(self, module: str, size: Size, worse: Callable[[], bool]) -> bool:
        """Likewise, unless a student gets less far so: then the numbers are needed as they are."""
        before = set(self._doubted), dict(self._supposed)
        if not self.doubt(module):
            return False
        if not worse():
            return True
        self._doubted, self._supposed = before
        self.find(size, anew=False)
        return False

    def blame(self, size: Size, better: Callable[[], bool]) -> bool:
        """Let go of the numbers of one module, wherever it is, if a student gets further so; if of none, of all."""
        before, names = set(self._doubted), list(self.follow)

        def let_go(modules: list[str]) -> bool:
            self._doubted = before.union(modules)
            self.find(size, anew=False)
            return better()

        if not names:
            return False
        if not let_go(names):
            self._doubted = before
            self.find(size, anew=False)
            return False
        return any(let_go([name]) for name in names) or let_go(names)


@contextmanager
def reads(model: nn.Module, numbers: dict[str, Iterable[str]]) -> Iterator[set[tuple[str, str]]]:
    """Which of these attributes, by module, are read meanwhile. For a model that is not used afterwards."""
    hidden: dict[int, tuple[str, dict[str, Any]]] = {}
    for name, keys in numbers.items():
        own = vars(module := model.get_submodule(name))
        hidden[id(module)] = name, {key: own.pop(key) for key in keys if key in own and not hasattr(type(module), key)}
    seen: set[tuple[str, str]] = set()
    found = nn.Module.__getattr__

    def __getattr__(module: nn.Module, key: str) -> Any:  # what is not in a module's dictionary
        name, values = hidden.get(id(module), ("", {}))
        if key not in values:
            return found(module, key)
        seen.add((name, key))
        return values[key]

    nn.Module.__getattr__ = __getattr__
    try:
        yield seen
    finally:
        nn.Module.__getattr__ = found


def _candidates(module: nn.Module) -> Iterator[tuple]:
    own = OWN if isinstance(module, READ_OFF) else frozenset()
    seen: set[int] = set()
    for key, value in vars(module).items():
        if key not in MODULES_OWN and key not in own and not key.startswith("net2net_"):
            for path, number, holder in _integers(value, (key,), seen):
                if _is_width(path) and not _is_pixels(path[-1], vars(module) if holder is None else parts(holder)):
                    yield path, number, holder


def integers(module: nn.Module) -> list[tuple[str, int]]:
    """Every integer above 1 that a module keeps, with its path."""
    own = (item for item in vars(module).items() if item[0] not in MODULES_OWN and not item[0].startswith("net2net_"))
    return [(".".join(path), n) for key, value in own for path, n, _ in _integers(value, (key,), set())]


def _integers(value: Any, path: tuple[str, ...], seen: set[int], holder: Any = None) -> Iterator[tuple]:
    """(path, number, the container that it is in) of the integers in an attribute."""
    if is_whole(value):
        if value > 1:
            yield path, int(value), holder
        return
    if len(path) > DEEP:
        return
    if _is_plain_object(value):
        if id(value) in seen:  # shared by several modules, as a configuration is
            return
        seen.add(id(value))
    elif not isinstance(value, (list, tuple, deque, dict, MappingProxyType)) or len(value) > LONG:
        return
    for key, item in (parts(value) or {}).items():
        if "." not in key:
            yield from _integers(item, (*path, key), seen, value)


def _is_plain_object(value: Any) -> bool:
    """Whether it is an object of its own for each copy of the model, with attributes that can be set."""
    kind = type(value)
    if kind.__module__.startswith(("torch", "builtins", "numpy")) or callable(value):
        return False
    if isinstance(value, (list, tuple, deque, dict, Enum)) or fields(value) is None:
        return False
    return not hasattr(kind, "__deepcopy__") or copied_value(value, {}) is not value


def _is_width(path: tuple[str, ...]) -> bool:
    named = [words for part in path if (words := _words(part))]
    words = [word for its in named for word in its]
    if not words or words[-1] in HEADS:
        return False
    if words[-1] not in CHANNELS:  # what it counts is said last, or what all in a dict or object are is said before
        if COUNTS.intersection(named[-1]):
            return False
        if COUNTS.intersection(words) and all(its[-1] not in CHANNELS for its in named):
            return False
    if HEADS.intersection(words) and len(words) == 2 and {"dim", "size", "width"}.intersection(words):
        return False  # the width of one head
    if not any(word in WIDTHS or word.endswith(ENDS) for word in words):
        return False
    return not path[-2:][0].isdigit() or not path[-1].isdigit()  # a table of a constructor's arguments


def _is_pixels(key: str, beside: dict[str, Any] | None) -> bool:
    """Whether it is the width of an image: there is a height beside it."""
    return "width" in key.lower() and re.sub("(?i)width", lambda w: _like(w[0], "height"), key) in (beside or {})


def _like(word: str, other: str) -> str:
    """The other word, with capitals as the first has them."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _given(value: Value) -> tuple[set[int], set[int]]:
    """Of what is given to a module the sizes that are no axes, e.g. of the network's input; and of these the ones that
    could be its channels: of an image the first after the batch's, and the last if it is not as long as another."""
    shape = value.tensor.shape
    dims = {1 % len(shape), len(shape) - 1} if len(shape) > 1 and value.tensor.is_floating_point() else set()
    if len(shape) > 3 and shape[-1] == shape[-2]:
        dims.discard(len(shape) - 1)
    return tuple({shape[dim] for dim in some if not value.axes[dim]} for some in (range(len(shape)), dims))


class _Evidence:
    """The channels at each module, nearest first."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.at: dict[str, dict[str, list[Axis]]] = {}  # by module: what it reads, makes, and other channels
        self.given: dict[str, tuple[set[int], set[int]]] = {}  # by module, of what it reads; see `_given`
        for name, axes in trace.axes.items():
            owner = name.rpartition(".")[0]
            for dim, axis in enumerate(axes):
                side = "in" if (name, dim) in trace.contracted else "out" if (name, dim) in trace.outputs else "own"
                self._note(owner, side, axis)
        for side, values in (("in", trace.given), ("out", trace.returned), ("out", trace.several)):
            for name, calls in values.items():
                for value in calls:
                    if value is None:
                        continue
                    for axis in value.axes:
                        self._note(name, side, axis)
                    if side == "in":
                        for known, its in zip(self.given.setdefault(name, (set(), set())), _given(value), strict=True):
                            known.update(its)

    @cached_property
    def _names(self) -> set[str]:
        return {name for name, _ in self.trace.skeleton.named_modules()}

    @cached_property
    def within(self) -> dict[str, list[Axis]]:
        """By module: what the operations of its own forward touch."""
        found: dict[str, dict[int, Axis]] = {}
        positions = self.trace.positions()
        for call in self.trace.calls:
            for axes in (*(value.axes for value in call.inputs), *call.axes):
                found.setdefault(call.module, {}).update(
                    (id(axis), axis)
                    for axis in axes
                    if axis and not all(space in positions for space, _ in resolve(axis))
                )
        return {module: list(axes.values()) for module, axes in found.items()}

    def grown(self, size: Size) -> set[int]:
        """The widths of which some channels grow."""
        every = {id(a): a for sides in self.at.values() for axes in sides.values() for a in axes}
        return {length(axis) for axis in every.values() if size(axis) != length(axis)}

    def _note(self, module: str, side: str, axis: Axis | None) -> None:
        if axis:
            self.at.setdefault(module, {}).setdefault(side, []).append(axis)

    def width(self, module: str, where: Any, key: str, number: int, size: Size) -> int | None:
        """What becomes of a number: the width that all channels of that width grow to at the nearest place that has
        any; itself where none is near; None where they differ."""
        words = set(_words(key))
        side = "in" if words & {"in", "input", "inp"} else "out" if words & {"out", "output"} else None
        sizes, channels = self.given.get(module, ((), ()))
        if words & GIVEN and number in (sizes if "size" in words else channels):
            return number
        if ("width" in words and number in sizes) or (number in channels and not words & INNER):
            return None  # of an image, or of its channels; of what comes in, or of the layers
        for axes in self._tiers(module, where, side):
            new = {size(axis) for axis in axes if length(axis) == number}
            if new:
                return new.pop() if len(new) == 1 else None
        return None if isinstance(where, str) else number

    def _tiers(self, module: str, where: Any, side: str | None) -> Iterator[list[Axis]]:
        if isinstance(where, str) and where in self.trace.returned:
            yield self.at.get(where, {}).get("out", [])
            return
        if isinstance(where, str) and where in self._names:  # a list of modules: what the last of them returns
            yield [axis for child in self._children(where)[-1:] for axis in self.at.get(child, {}).get("out", [])]
        if side is not None:
            yield self.at.get(module, {}).get(side, [])
        yield [axis for axes in self.at.get(module, {}).values() for axis in axes]
        yield self.within.get(module, [])
        children = self._children(module)
        if side is not None:
            yield [axis for child in children for axis in self.at.get(child, {}).get(side, [])]
        yield [axis for child in children for axes in self.at.get(child, {}).values() for axis in axes]
        inside = f"{module}." if module else ""
        yield [a for name, sides in self.at.items() if name.startswith(inside) for axes in sides.values() for a in axes]

    def _children(self, module: str) -> list[str]:
        """The modules that it calls; a list of modules is no module that is called."""
        found: list[str] = []
        for name, _ in self.trace.skeleton.get_submodule(module).named_children():
            full = f"{module}.{name}" if module else name
            found += [full] if full in self.trace.returned else self._children(full)
        return found
