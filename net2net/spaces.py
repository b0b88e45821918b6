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

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError, UnsupportedOperation


class Space:
    """An unknown map over `width` channels; `alias`: the axis that it turned out to be; `fixed`: why it cannot grow."""

    __slots__ = ("alias", "fixed", "width")

    def __init__(self, width: int, fixed: str | None = None):
        self.width = width
        self.alias: Axis | None = None
        self.fixed = fixed


# Operations whose numbers are sizes: a grown model passes other ones. What they make is compared by its shape.
SIZED = (
    "new_empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "view",
    "reshape",
    "reshape_as",
    "view_as",
    "unflatten",
    "split",
    "split_with_sizes",
    "chunk",
    "narrow",
    "expand",
    "__getitem__",
)

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


@dataclass
class Value:
    """What is known of one tensor: the axis of each dimension, and the call that made it."""

    tensor: torch.Tensor
    axes: list[Axis | None]
    call: Call | None = None

    @property
    def tracked(self) -> bool:
        return any(axis is not None for axis in self.axes)


@dataclass
class Call:
    """One operation of the forward pass, as its rule sees it."""

    name: str
    args: tuple
    kwargs: dict
    module: str
    inputs: list[Value] = field(default_factory=list)
    out: Any = None
    weights: list[str] = field(default_factory=list)
    skipped: list[tuple[int, Axis | None]] = field(default_factory=list)

    def get(self, position: int | None, keyword: str, default: Any = None) -> Any:
        """An argument by position (None: keyword only) or keyword."""
        if position is not None and position < len(self.args):
            return self.args[position]
        return self.kwargs.get(keyword, default)

    @property
    def where(self) -> str:
        return f"{self.name!r} in {place(self.module)}"

    def unsupported(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"cannot follow the channels through {self.where}: {why}")


class Step(NamedTuple):
    """One operation of a forward pass, as far as a grown model has to repeat it."""

    name: str
    module: str
    numbers: list[str]  # the numbers it was given, but for sizes, which grow
    shapes: list[tuple[int, ...]]  # of its results
    axes: list[list[Axis | None]]  # of its results
    skipped: list[tuple[int, Axis | None]]  # how much lies before a slice, along each dimension that is sliced
    sources: list[Any]  # what made its arguments: a place among the steps, or a name
    inputs: list[Value]


class Trace(TorchFunctionMode):
    """The channel spaces of a model, found by running it once on the meta device (no data, no computation).

    After construction: `axes[name]` are the axes of each parameter and buffer; `outputs` the (name, dim) along which a
    weight makes channels; `contracted` those along which it sums over them; `sites[name]` the value that each
    call of a module returned, `entries[name]` the first tensor that it was given; `steps` what the forward pass did,
    operation by operation; `skeleton` a copy of the model whose parameters and buffers are on the meta device.

    With `strict` an operation without a rule is an error; else nothing that it reads can grow.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, *, strict: bool = True):
        super().__init__()
        from net2net.rules import RULES

        self._rules = RULES
        self._strict = strict
        self.skeleton = skeleton(model)
        self.names: dict[int, str] = {}
        self.axes: dict[str, list[Axis | None]] = {}
        self.outputs: list[tuple[str, int]] = []
        self.contracted: set[tuple[str, int]] = set()
        self.sites: dict[str, list[Value | None]] = {}
        self.entries: dict[str, list[Value | None]] = {}
        self.steps: list[Step] = []
        self.training_steps: list[Step] | None = None
        self._sources: dict[int, Any] = {}
        self._used: set[str] = set()  # parameters and buffers that some operation read
        self._copied: set[str] = set()  # those read otherwise than as a weight that sums over channels
        self._values: dict[int, Value] = {}
        self._stack: list[str] = []
        for name, tensor in self._tensors():
            self.names.setdefault(id(tensor), name)
        self._run(example_inputs)

    @property
    def module(self) -> str:
        """The name of the module whose forward is running."""
        return self._stack[-1] if self._stack else ""

    def _tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield from self.skeleton.named_parameters()
        yield from self.skeleton.named_buffers()

    def _run(self, example_inputs: Any) -> None:
        modules = {id(module): name for name, module in self.skeleton.named_modules()}
        args, kwargs = as_arguments(
            pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="meta"), example_inputs)
        )
        for k, tensor in enumerate(pytree.tree_leaves((args, kwargs))):
            if isinstance(tensor, torch.Tensor):
                self._values[id(tensor)] = Value(tensor, [None] * tensor.ndim)
                self._sources[id(tensor)] = f"input {k}"
        training = False

        def enter(module: nn.Module, inputs: Any) -> None:
            self._stack.append(modules.get(id(module), "?"))
            value = self._values.get(id(inputs[0])) if inputs and isinstance(inputs[0], torch.Tensor) else None
            self.entries.setdefault(self._stack[-1], []).append(value)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            value = self._values.get(id(output)) if isinstance(output, torch.Tensor) else None
            self.sites.setdefault(self._stack.pop(), []).append(value)

        hooks = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave),
        ]
        try:
            self.skeleton.eval()
            self._pass(args, kwargs)
            sites, entries, steps = self.sites, self.entries, self.steps
            # Then training, where parts can be that evaluation never reaches (auxiliary classifiers), or other code.
            training, self.sites, self.entries, self.steps = True, {}, {}, []
            self.skeleton.train()
            try:
                self._pass(args, kwargs)
                self.training_steps = self.steps
            except Exception:
                # Randomness that depends on data does not run on the meta device; all parameters are known anyway.
                if not self._used.issuperset(name for name, _ in self.skeleton.named_parameters()):
                    raise
            finally:
                self.sites, self.entries, self.steps = sites, entries, steps
        except GrowthError as error:
            error.steps = tuple(self.steps)
            raise
        except Exception as error:
            where = place(self.module) + (" in training mode" if training else "")
            failure = GrowthError(
                f"the forward pass on the meta device failed in {where}: {type(error).__name__}: {error} (check the "
                "example inputs; a branch that depends on data cannot be followed; constant tensors must be buffers)"
            )
            failure.steps = tuple(self.steps)
            raise failure from error
        finally:
            for hook in hooks:
                hook.remove()
            self.skeleton.eval()
        # One tensor cannot be divided for one use and whole for another.
        for name, dim in self.contracted:
            if name in self._copied or (name, dim) in self.outputs:
                fix(self.axes[name][dim], f"{name!r} sums over them in one place and is used otherwise in another")

    def _pass(self, args: tuple, kwargs: dict) -> None:
        self._stack.clear()
        with torch.no_grad(), torch.device("meta"), self:
            output = self.skeleton(*args, **kwargs)
        self._return(output)

    def _return(self, output: Any) -> None:
        """Forbid the network's output to grow."""
        shapes = []
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                shapes.append(tuple(leaf.shape))
                for axis in self.axes_of(leaf):
                    fix(axis, "they are the network's output")
            elif not isinstance(leaf, (int, float, complex, str, type(None))):
                raise GrowthError(
                    f"the model returns a {type(leaf).__name__}, in which its output tensors cannot be found: return "
                    "tensors, or tuples, lists and dicts of them"
                )
        if not shapes:
            raise GrowthError("the model returns no tensor: there is no function to preserve")
        sources = [self._sources.get(id(t)) for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
        axes: list[list[Axis | None]] = [[None] * len(shape) for shape in shapes]
        self.steps.append(Step("return", "", [], shapes, axes, [], sources, []))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        # In-place operations change what is known of their argument, so look before the call.
        inputs = [self.value_of(t) for t in tensors]
        out = func(*args, **kwargs)
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        call = Call(function_name(func), args, kwargs, self.module, inputs, out)
        if not results:
            if call.name in ("__setitem__", "__set__") and any(value.tracked for value in inputs):
                raise call.unsupported("it overwrites a part of a tensor")
            return out
        read = [self.names[id(t)] for t in tensors if t is not out and id(t) in self.names]
        self._used.update(read)
        tracked = any(value.tracked for value in inputs)
        numbers = _numbers(call, sizes=not tracked)
        sources = [self.names.get(id(t)) or self._sources.get(id(t)) for t in tensors]

        def finish(axes: list[list[Axis | None]]) -> None:
            for tensor, its in zip(results, axes, strict=True):
                self._set(tensor, its, call)
            shapes = [tuple(tensor.shape) for tensor in results]
            self.steps.append(Step(call.name, call.module, numbers, shapes, axes, call.skipped, sources, inputs))
            for k, tensor in enumerate(results):
                if id(tensor) not in self.names:
                    self._sources[id(tensor)] = (len(self.steps), k)

        if not tracked:
            finish([[None] * tensor.ndim for tensor in results])
            return out
        rule = self._rules.get(call.name) or (None if self._strict else self._rules["layer_norm"])
        if rule is None:
            raise UnsupportedOperation(
                f"no rule says how channels pass through {call.where} "
                f"(shapes {', '.join(str(tuple(t.shape)) for t in tensors)}): the model was left as it is; "
                "write it in other operations, or say how channels pass through it with net2net.register_rule"
            )
        axes = rule(self, call)
        finish(axes if isinstance(out, (tuple, list)) else [axes])
        self._copied.update(name for name in read if read.count(name) > call.weights.count(name))
        return out

    def _set(self, tensor: torch.Tensor, axes: list[Axis | None], call: Call) -> None:
        if id(tensor) not in self.names:  # a parameter or buffer updated in place keeps its own axes
            self._values[id(tensor)] = Value(tensor, axes, call)

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

    def axes_of(self, tensor: torch.Tensor) -> list[Axis | None]:
        return self.value_of(tensor).axes

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter or buffer of the model, and not computed from one."""
        return id(tensor) in self.names

    def weight(self, call: Call, tensor: torch.Tensor, output: int, contracted: int) -> list[Axis | None]:
        """Axes of a weight that sums over dimension `contracted` and makes channels along `output`."""
        name = self.names[id(tensor)]
        if (name, output) not in self.outputs:
            self.outputs.append((name, output))
        self.contracted.add((name, contracted))
        call.weights.append(name)
        axes = self.axes_of(tensor)
        for dim, axis in enumerate(axes):
            if dim not in (output, contracted):
                fix(axis, "they are kernel taps")
        return axes

    def producers(self) -> dict[Space, list[str]]:
        """Each space that weights make, with the names of these weights, in the order of the forward pass."""
        found: dict[Space, list[str]] = {}
        for name, dim in self.outputs:
            for space, _ in resolve(self.axes[name][dim] or ()):
                found.setdefault(space, []).append(name)
        return found


def _numbers(call: Call, sizes: bool) -> list[str]:
    """The numbers that a call was given; without `sizes`, but for those and the groups of a convolution, which grow."""
    if call.name in SIZED and not sizes:
        return []
    args, kwargs = call.args, dict(call.kwargs)
    if call.name.startswith("conv"):
        args = args[:6] + args[7:]
        kwargs.pop("groups", None)
    return [repr(x) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, (Number, str))]


def place(module: str) -> str:
    return f"module {module!r}" if module else "the model's own forward"


def function_name(func: Callable) -> str:
    """The name of a torch function; `relu`, `relu_`, `Tensor.relu` and `functional.relu` are one operation."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # a tensor's property
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name.startswith("__"):
        return name
    return name.removesuffix("_")


class NoDropout(TorchFunctionMode):
    """Switches every dropout off, in modules and in calls of `functional.dropout`, whatever mode the model is in."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if "dropout" in function_name(func):
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def as_arguments(example_inputs: Any) -> tuple[tuple, dict]:
    """Positional and keyword arguments from example inputs: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the model without its data: every parameter and buffer is an empty tensor on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
