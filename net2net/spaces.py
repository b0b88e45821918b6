"""Remapping inference: one forward pass on the meta device finds the channel spaces of a model (sec 2.3).

The paper asks for "a remapping inference algorithm that makes a forward pass through the graph, querying each operation
in the graph about how to make the remapping functions consistent". This is it, in three notions:

space     an unknown map g from new channels to old ones. Everything that must be remapped alike shares one space.
axis      one dimension of one tensor, written as a sequence of blocks (space, repeat): the space's channels in order,
          each repeated `repeat` times in a row. A convolution's output is [(s, 1)], a concatenation [(s, 1), (t, 1)],
          its flattening over H x W positions [(s, HW), (t, HW)]. `None` stands for a dimension that is never remapped.
tie       two axes that must be remapped alike, solved as a term unification: spaces are merged, and split where the
          blocks of the two axes end at different places.

What an operation does to axes is written in `net2net.rules`; nothing here knows about operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError, UnsupportedOperation
from net2net.recording import Call, Recording, on_meta, place


class Space:
    """An unknown map over `width` channels; `alias`: the axis that it turned out to be; `fixed`: why it cannot grow."""

    __slots__ = ("alias", "fixed", "width")

    def __init__(self, width: int, fixed: str | None = None):
        self.width = width
        self.alias: Axis | None = None
        self.fixed = fixed


Block = tuple[Space, int]
Axis = tuple[Block, ...]


def resolve(axis: Axis) -> Axis:
    """The axis in terms of spaces that are not aliases."""
    if all(space.alias is None for space, _ in axis):
        return axis
    blocks: list[Block] = []
    for space, repeat in axis:
        if space.alias is None:
            blocks.append((space, repeat))
        else:
            blocks.extend((s, r * repeat) for s, r in _flat(space))
    return tuple(blocks)


def _flat(space: Space) -> Axis:
    """An alias' spaces; it is shortened to them, because chains of aliases grow long where spaces are split often."""
    blocks: list[Block] = []
    stack = [(space, 1)]
    while stack:
        each, repeat = stack.pop()
        if each.alias is None:
            blocks.append((each, repeat))
        else:
            stack.extend((s, r * repeat) for s, r in reversed(each.alias))
    space.alias = tuple(blocks)
    return space.alias


def length(axis: Axis) -> int:
    return sum(space.width * repeat for space, repeat in axis)


def fix(axis: Axis | None, reason: str) -> None:
    """Forbid the axis to grow; the first reason given is kept."""
    for space, _ in resolve(axis or ()):
        space.fixed = space.fixed or reason


def split(space: Space, *at: int) -> None:
    """Divide an unaliased space at the given channels."""
    ends = [0, *at, space.width]
    space.alias = tuple((Space(end - start, space.fixed), 1) for start, end in pairwise(ends))


def cut(axis: Axis, sizes: Iterable[int], reason: str) -> list[Axis]:
    """The axis in consecutive parts; `reason` is given where a part would end inside a repeated channel."""
    sizes = list(sizes)
    ends = list(accumulate(sizes))
    divided = True
    while divided:  # a space that comes several times can be divided again by a later part
        divided, offset = False, 0
        for space, repeat in resolve(axis):
            inside = [end - offset for end in ends if offset < end < offset + space.width * repeat]
            if any(end % repeat for end in inside):
                fix(axis, reason)
                return [((Space(size, reason), 1),) if size else () for size in sizes]
            if inside:
                split(space, *(end // repeat for end in inside))
                divided = True
                break
            offset += space.width * repeat
    parts: list[Axis] = []
    blocks = list(reversed(resolve(axis)))
    for size in sizes:
        part: list[Block] = []
        while size > 0:
            part.append(blocks.pop())
            size -= part[-1][0].width * part[-1][1]
        parts.append(tuple(part))
    return parts


def _alias(space: Space, axis: Axis) -> None:
    if space.fixed:
        fix(axis, space.fixed)
    space.alias = axis


def tie(a: Axis | None, b: Axis | None, reason: str) -> None:
    """Make two axes of equal length share their maps; `reason` is given where this forbids them to grow."""
    if a is None or b is None:
        fix(a or b, reason)
        return
    a, b = resolve(a), resolve(b)
    for one, other in ((a, b), (b, a)):  # a weight that was not seen before is all of the other axis at once
        if len(one) == 1 and one[0][1] == 1 and all(space is not one[0][0] for space, _ in other):
            _alias(one[0][0], other)
            return
    while a and b:
        (s, rs), (t, rt) = a[0], b[0]
        if s is t and rs == rt:
            a, b = a[1:], b[1:]
            continue
        m, n = s.width * rs, t.width * rt
        if m == n and (rs == rt or rs == 1 or rt == 1):
            # Of two spaces with different repeats the unrepeated one is the other, each channel repeated.
            if rs == 1 or rs == rt:
                _alias(s, ((t, rt // rs),))
            else:
                _alias(t, ((s, rs),))
        elif m > n and n % rs == 0:
            split(s, n // rs)
        elif n > m and m % rt == 0:
            split(t, m // rt)
        else:
            fix((a[0], b[0]), reason)
            if s is not t and m == n:
                a, b = a[1:], b[1:]
            else:  # the blocks end inside each other's channels: nothing of either axis can move
                fix(a, reason)
                fix(b, reason)
                return
        # A space may occur again further on in either axis: look again with what is known now.
        a, b = resolve(a), resolve(b)


@dataclass(slots=True, eq=False)
class Value:
    """What is known of one tensor: the axis of each dimension, and the call that made it."""

    tensor: torch.Tensor
    axes: list[Axis | None]
    call: Call | None = None

    @property
    def tracked(self) -> bool:
        return any(axis is not None for axis in self.axes)


class Trace(Recording):
    """The channel spaces of a model, found by running it once on the meta device (no data, no computation).

    After construction: `axes[name]` are the axes of each parameter and buffer; `outputs` the (name, dim) along which a
    weight makes channels; `contracted` those along which it sums over them; `sites[name]` the value that each
    call of a module returned, `entries[name]` the first tensor that it was given; `calls` what the forward pass did in
    evaluation mode, operation by operation, `training_calls` in training mode (None if that does not run on the meta
    device); `skeleton` a copy of the model whose parameters and buffers are on the meta device; `uniform` the spaces
    that grow by a whole number only, each channel equally often; `attributes` the (module, name, axis) of numbers that
    modules keep and that grow along.

    With `strict` an operation without a rule is an error; else nothing that it reads can grow.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, *, strict: bool = True):
        super().__init__(on_meta(model))
        from net2net.rules import RULES

        self._rules = RULES
        self._strict = strict
        self.axes: dict[str, list[Axis | None]] = {}
        self.outputs: dict[tuple[str, int], None] = {}  # in the order of the forward pass
        self.contracted: set[tuple[str, int]] = set()
        self.sites: dict[str, list[Value | None]] = {}
        self.entries: dict[str, list[Value | None]] = {}
        self.attributes: list[tuple[str, str, Axis]] = []
        self.uniform: dict[Space, list[Space]] = {}
        self._together: list[tuple[Axis, str]] = []
        self._used: set[str] = set()  # parameters and buffers that some operation read
        self._copied: set[str] = set()  # those read otherwise than as a weight that sums over channels
        self._values: dict[int, Value] = {}
        self.training_calls: list[Call] | None = None
        calls = self.run(example_inputs)
        sites, entries, self.sites, self.entries = self.sites, self.entries, {}, {}
        # Then training, where parts can be that evaluation never reaches (auxiliary classifiers), or other code.
        try:
            self.training_calls = self.run(example_inputs, training=True)
        except GrowthError as error:
            # Randomness that depends on data does not run on the meta device; all parameters are known anyway.
            known = self._used.issuperset(name for name, _ in self.skeleton.named_parameters())
            if error.__cause__ is None or not known:
                raise
        self.sites, self.entries, self.calls = sites, entries, calls
        self.skeleton.eval()
        # One tensor cannot be divided for one use and whole for another.
        for name, dim in self.contracted:
            if name in self._copied or (name, dim) in self.outputs:
                fix(self.axes[name][dim], f"{name!r} sums over them in one place and is used otherwise in another")
        self.uniform = self._groups()

    def _groups(self) -> dict[Space, list[Space]]:
        """Each space that has to grow evenly, with those that have to grow by the same factor (itself too)."""
        group: dict[Space, list[Space]] = {}
        for axis, _ in self._together:
            merged = {other: None for space, _ in resolve(axis) for other in group.get(space, [space])}
            for space in merged:
                group[space] = list(merged)
        for axis, reason in self._together:
            members = [other for space, _ in resolve(axis) for other in group[space]]
            if any(space.fixed for space in members):
                for space in members:
                    space.fixed = space.fixed or f"{reason}, and some of those cannot grow"
        return group

    def settle_groups(self) -> None:
        """What was fixed since the trace holds back all that has to grow by the same factor."""
        for members in self.uniform.values():
            why = next((space.fixed for space in members if space.fixed), None)
            for space in members if why else ():
                space.fixed = space.fixed or f"they are normalised together with some that cannot grow: {why}"

    def evenly(self, axis: Axis | None, reason: str) -> None:
        """Let an axis grow by a whole number only, every channel equally often."""
        if axis is not None:
            self._together.append((axis, reason))

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        super()._enter(module, inputs)
        if id(module) not in self.modules:  # one that the forward pass made
            return
        value = self._values.get(id(inputs[0])) if inputs and isinstance(inputs[0], torch.Tensor) else None
        self.entries.setdefault(self._stack[-1], []).append(value)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self._stack.pop()
        if id(module) in self.modules:
            value = self._values.get(id(output)) if isinstance(output, torch.Tensor) else None
            self.sites.setdefault(name, []).append(value)

    def _return(self, output: Any) -> None:
        """Forbid the network's output to grow."""
        super()._return(output)
        call = self.calls[-1]
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                for axis in self.axes_of(leaf):
                    fix(axis, "they are the network's output")
        call.axes = [[None] * len(shape) for shape in call.shapes]

    def input(self, tensor: torch.Tensor) -> None:
        self._values[id(tensor)] = Value(tensor, [None] * tensor.ndim)

    def before(self, call: Call, given: list[torch.Tensor]) -> None:
        call.inputs = [self.value_of(t) for t in given]

    def after(self, call: Call, given: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        read = [self.names[id(t)] for t in given if t is not call.out and id(t) in self.names]
        self._used.update(read)
        if not any(value.tracked for value in call.inputs):
            self._set(call, results, [[None] * tensor.ndim for tensor in results])
            return
        rule = self._rules.get(call.name) or (None if self._strict else self._rules["einsum"])
        if rule is None:
            raise UnsupportedOperation(
                f"no rule says how channels pass through {call.where} "
                f"(shapes {', '.join(str(tuple(t.shape)) for t in given)}): the model was left as it is; "
                "write it in other operations, or say how channels pass through it with net2net.register_rule"
            )
        axes = rule(self, call)
        self._set(call, results, axes if isinstance(call.out, (tuple, list)) else [axes])
        self._copied.update(name for name in read if read.count(name) > call.weights.count(name))

    def overwritten(self, call: Call) -> None:
        call.axes = []
        for value in call.inputs:
            for axis in value.axes:
                fix(axis, f"{call.where} overwrites a part of a tensor")

    def _set(self, call: Call, results: list[torch.Tensor], axes: list[list[Axis | None]]) -> None:
        call.axes = axes
        for tensor, its in zip(results, axes, strict=True):
            if id(tensor) not in self.names:  # a parameter or buffer updated in place keeps its own axes
                self._values[id(tensor)] = Value(tensor, its, call)

    def value_of(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor. A parameter or buffer starts with a space of its own along every dimension."""
        value = self._values.get(id(tensor))
        if value is None:
            name = self.names.get(id(tensor))
            if name is None and tensor.is_meta:
                raise UnsupportedOperation(
                    f"a tensor of shape {tuple(tensor.shape)} in {place(self.module)} comes from code that cannot be "
                    "followed, e.g. a scripted or custom autograd function: write it in plain torch operations"
                )
            axes: list[Axis | None] = [None] * tensor.ndim
            if name is not None:
                axes = [((Space(n), 1),) for n in tensor.shape]
                self.axes[name] = axes
            value = self._values[id(tensor)] = Value(tensor, axes)
        return value

    def keeps(self, module: str, key: str, axis: Axis | None) -> None:
        """Note that a module keeps the length of an axis in an attribute, if it has such a one."""
        if axis is not None and isinstance(vars(self.skeleton.get_submodule(module)).get(key), (int, tuple, list)):
            self.attributes.append((module, key, axis))

    def axes_of(self, tensor: torch.Tensor) -> list[Axis | None]:
        return self.value_of(tensor).axes

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter or buffer of the model, and not computed from one."""
        return id(tensor) in self.names

    def weight(self, call: Call, tensor: torch.Tensor, output: int, contracted: int) -> list[Axis | None]:
        """Axes of a weight that sums over dimension `contracted` and makes channels along `output`."""
        name = self.names[id(tensor)]
        self.outputs[name, output] = None
        self.contracted.add((name, contracted))
        call.weights.append(name)
        axes = self.axes_of(tensor)
        for dim, axis in enumerate(axes):
            if dim not in (output, contracted):
                fix(axis, "they are kernel taps")
        return axes

    def computed_weight(self, tensor: torch.Tensor, output: int, where: str) -> list[Axis | None]:
        """Axes of a weight that is computed from parameters, e.g. standardised: only what it makes can grow."""
        axes = self.axes_of(tensor)
        for dim, axis in enumerate(axes):
            if dim != output:
                fix(axis, f"{where} computes its weight")
        made = resolve(axes[output] or ())
        before, seen = [self.value_of(tensor)], set()
        while before:  # back to the parameters that it is computed from
            value = before.pop()
            name = self.names.get(id(value.tensor))
            if name is not None and value.tensor.ndim > 1:
                for dim, axis in enumerate(value.axes):
                    if made and resolve(axis or ()) == made:
                        self.outputs[name, dim] = None
            elif value.call is not None and id(value) not in seen:
                seen.add(id(value))
                before += value.call.inputs
        return axes

    def producers(self) -> dict[Space, list[str]]:
        """Each space that weights make, with the names of these weights, in the order of the forward pass."""
        found: dict[Space, list[str]] = {}
        for name, dim in self.outputs:
            for space, _ in resolve(self.axes[name][dim] or ()):
                found.setdefault(space, []).append(name)
        return found
