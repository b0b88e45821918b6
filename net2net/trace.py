"""A model's channel spaces from one forward pass: each operation's rule is asked, in order (sec 2.3)."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net import rules
from net2net.errors import GrowthError, UnsupportedOperation
from net2net.recording import (
    Call,
    Modes,
    Recording,
    cloned_tensor,
    first_line,
    is_about,
    local,
    on_meta,
    output_tensors,
    place,
    rebuilt,
    slices,
    submodules,
    tensors,
)
from net2net.rules import computed, standardised
from net2net.rules.elementwise import broadcast, reduction
from net2net.rules.shape import JOINS, overwrite
from net2net.rules.standardised import CASTS, SCALINGS, Filters
from net2net.spaces import Axis, Space, cut, fix, length, resolve

Read = tuple[str | int, int]
Separation = tuple[str, tuple[int, ...]]  # the module that takes channels apart, and into which sizes


@dataclass(slots=True, eq=False)
class Value:
    """What is known of one tensor: the axis of each dimension, and the call that made it.

    constant  it depends on no input of the model
    waits     likewise, or it holds places; its axes are of dimensions along which all is equal, so that any map will
              do, and are of no interest until it meets channels
    """

    tensor: torch.Tensor
    axes: list[Axis | None]
    call: Call | None = None
    constant: bool = False
    waits: bool = False

    @property
    def tracked(self) -> bool:
        return not self.waits and any(axis is not None for axis in self.axes)


class Trace(Recording):
    """The channel spaces of a model, found by running it once on the meta device (no data, no computation).

    After construction: `axes[name]` are the axes of each parameter and buffer; `outputs` the (name, dim) along which a
    weight makes channels; `contracted` those along which it sums over them; `returned[name]` the value that each
    call of a module returned, `several[name]` those of one that returns several, `given[name]` the first tensor that
    it was given; `by_keyword` the modules that are called without an argument by position; `calls` what the forward
    pass did in evaluation mode, operation by operation, `training_calls` in training mode (the very same if no code of
    the model asks for its mode; None if that does not run on the meta device); `model` the model, and `skeleton` a copy
    of it whose parameters and buffers are on the meta device;
    `scales` of weights under weight normalisation the name of g, with that of v and the dimension that keeps a norm;
    `standardised` the weights that are standardised, filter by filter, with the correction of their variance (None:
    it is not used);
    `uniform` the spaces that grow by a whole number only, each channel equally often; `attributes` the (module, name,
    axis) of numbers that modules keep and that grow along.

    Where a dimension that holds channels is taken apart, as in [heads * d] -> [heads, d], `choices` says which part
    goes on holding them; `separated` what was chosen, of what, and the parts.

    With `strict` an operation without a rule is an error; else nothing that it reads and makes can grow, and `unknown`
    has its name and where it was called; `failed` what an exception in a rule said. With `real` the pass is run with
    the inputs' numbers, on a copy.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        strict: bool = True,
        real: bool = False,
        choices: Mapping[Separation, int] | None = None,
    ):
        super().__init__(local(rebuilt(model, cloned_tensor)) if real else on_meta(model), real)
        self.model = model
        self._originals = {id(tensor): name for name, tensor in tensors(model)}
        self._rules = rules.RULES
        self._strict = strict
        self.unknown: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.choices = choices or {}
        self.separated: dict[Separation, tuple[int, list[int], list[Axis]]] = {}
        self._views: dict[int, tuple[torch.Tensor, str]] = {}  # of parameters, e.g. transposed, by their ids
        # What was there before the pass is a constant; of anything else it can be said what made it.
        self._before = _all_tensors() if real else {}
        self.axes: dict[str, list[Axis | None]] = {}
        self.outputs: dict[tuple[str, int], None] = {}  # in the order of the forward pass
        self.contracted: set[tuple[str, int]] = set()
        self.returned: dict[str, list[Value | None]] = {}
        self.given: dict[str, list[Value | None]] = {}
        self.several: dict[str, list[Value]] = {}
        self.by_keyword: set[str] = set()
        self.attributes: list[tuple[str, str, Axis]] = []
        self.uniform: dict[Space, list[Space]] = {}
        self._together: list[tuple[Axis, str]] = []
        self._steps: list[tuple[Axis, str]] = []
        self.scales: dict[str, tuple[str, int]] = {}
        self.standardised: dict[str, int | None] = {}
        self._filters: dict[int, Filters] = {}  # what is computed from parameters, filter by filter, by ids
        self._times: dict[str, int] = {}
        self._plain: set[str] = set()  # weights that some layer reads as they are
        self._used: set[str] = set()  # parameters and buffers that some operation read
        # Who reads what: (a name, or the id of a value that is computed; the id of the call).
        self._copied: dict[str, set[Read]] = {}  # of those read otherwise than as a weight that sums over channels
        self._shared: set[Read] = set()  # on the way to a weight that is computed
        self._on_the_way: dict[int, tuple[Value, Axis]] = {}
        self._values: dict[int, Value] = {}
        self._unread: dict[int, tuple[torch.Tensor, Callable[[], Any]]] = {}
        self._waiting: list[Value] = []
        self.training_calls: list[Call] | None = None
        for name, module in submodules(self.skeleton):
            if module._forward_hooks:
                module.register_forward_hook(partial(self._hooked, name))
        before = self._states()
        with Modes(self.skeleton) as modes:
            calls = self.run(example_inputs)
            self._hold_states(before)
        returned, given, self.returned, self.given = self.returned, self.given, {}, {}
        # Then training, where parts can be that evaluation never reaches (auxiliary classifiers), or other code.
        try:
            self.training_calls = self.run(example_inputs, training=True) if modes.matter else calls
        except GrowthError as error:
            # Randomness that depends on data does not run on the meta device; all parameters are known anyway.
            known = self._used.issuperset(name for name, _ in self.skeleton.named_parameters())
            if error.__cause__ is None or not known:
                raise
        self.returned, self.given, self.calls = returned, given, calls
        self.skeleton.eval()
        for name in [name for name in self.standardised if not self._stays_standardised(name)]:
            del self.standardised[name]
            for d, axis in enumerate(self.axes[name]):
                if d or (name, d) in self.contracted:
                    fix(axis, f"{name!r} is standardised over them in one place and used otherwise in another")
        for g, (v, dim) in list(self.scales.items()):
            if self._is_copied(g):
                self._unscale(g, v, dim)
        # One tensor cannot be divided for one use and whole for another.
        if self._on_the_way:
            for call in (*self.calls, *(self.training_calls or ())):
                for value in call.inputs:
                    _, axis = self._on_the_way.get(id(value), (None, None))
                    if axis is not None and (id(value), id(call)) not in self._shared:
                        fix(axis, f"{call.where} uses what is computed of a weight otherwise")
        for name, dim in self.contracted:
            if self._is_copied(name) or (name, dim) in self.outputs:
                fix(self.axes[name][dim], f"{name!r} sums over them in one place and is used otherwise in another")
        parameters = {name for name, _ in self.skeleton.named_parameters()}
        self._made_by_themselves(parameters)
        by_buffers = {space: its for space, its in self.producers().items() if parameters.isdisjoint(its)}
        for space in by_buffers.keys() - (self._trained() if by_buffers else ()):
            fix(((space, 1),), f"buffers make them ({by_buffers[space][0]!r}): copies would stay copies for ever")
        self.uniform = self._groups()

    def _made_by_themselves(self, parameters: set[str]) -> None:
        """Note parameters that are channels which no weight makes and some layer reads, e.g. a table or a constant that
        a network begins with, as makers of these."""
        made = self.producers()
        its = ((name, dim) for name, dim in self.contracted if name in parameters)
        read = {space for name, dim in its for space, _ in resolve(self.axes[name][dim] or ())}
        for name in (name for name in self.axes if name in parameters):
            for dim, axis in enumerate(self.axes[name]):
                spaces = {space for space, _ in resolve(axis or ())}
                if not spaces or (name, dim) in self.contracted or not spaces <= read or not spaces.isdisjoint(made):
                    continue
                if not any(space.fixed for space in spaces) or self.shape(name).numel() > length(axis):
                    self.outputs[name, dim] = None  # but for what scales the network's input, channel by channel

    def _states(self) -> list[tuple[str, nn.Module, str, torch.Tensor]]:
        """Tensors that modules keep as plain attributes: the module's name, the module, the attribute, the tensor."""
        return [
            (name, module, key, value)
            for name, module in submodules(self.skeleton)
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        ]

    def _hold_states(self, before: list[tuple[str, nn.Module, str, torch.Tensor]]) -> None:
        """Hold the channels of states that go from pass to pass and that an earlier pass has left: they are as long as
        the teacher's. What a pass only writes holds nothing."""
        for name, module, key, was in before:
            now = vars(module).get(key)
            value = self._values.get(id(now))
            if value is not None and was is not now and id(was) in self._values:
                reason = f"{place(name)} keeps them in {key!r}, where an earlier pass has left a tensor: reset it first"
                for space, _ in (each for axis in value.axes if axis for each in resolve(axis)):
                    space.fixed = reason

    def _trained(self) -> set[Space]:
        """The spaces along which parameters, and not buffers alone, make channels or follow them, vectors aside."""
        return {
            space
            for name, parameter in self.skeleton.named_parameters()
            for dim, axis in enumerate(self.axes.get(name, ()))
            if parameter.ndim > 1 and (name, dim) not in self.contracted
            for space, _ in resolve(axis or ())
        }

    @property
    def unread_parameters(self) -> list[str]:
        """Those that no forward pass with these inputs has read, in neither mode."""
        return [name for name, _ in self.skeleton.named_parameters() if name not in self._used]

    @property
    def writes_nothing(self) -> bool:
        """Whether the forward pass is known to leave the parameters alone, in both modes.

        Without numbers there is one way through the code. What it does to `.data` PyTorch does not count.
        """
        if self.real or self.training_calls is None or any(p._version for p in self.skeleton.parameters()):
            return False
        return not any(call.name == "data" for call in (*self.calls, *self.training_calls))

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

    def in_steps(self, axis: Axis, reason: str) -> None:
        """Note why channels grow several at a time, e.g. as whole groups, for the reader alone."""
        self._steps.append((axis, reason))

    def why_steps(self, space: Space) -> str:
        """The reason why a space's channels grow several at a time, as far as a rule gave one."""
        return next((reason for axis, reason in self._steps if any(s is space for s, _ in resolve(axis))), "")

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        super()._enter(module, inputs)
        if id(module) not in self.modules:  # one that the forward pass made
            return
        value = self._values.get(id(inputs[0])) if inputs and isinstance(inputs[0], torch.Tensor) else None
        if not inputs:
            self.by_keyword.add(self._stack[-1])
        self.given.setdefault(self._stack[-1], []).append(value)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self._stack.pop()
        if id(module) in self.modules:
            value = self._values.get(id(output)) if isinstance(output, torch.Tensor) else None
            self.returned.setdefault(name, []).append(value)
            if isinstance(output, (tuple, list, dict)):
                values = [self._values.get(id(leaf)) for leaf in pytree.tree_leaves(output)]
                self.several.setdefault(name, []).extend(value for value in values if value is not None)

    def _hooked(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """What a module's own hooks have made of its output is what it returns."""
        if isinstance(output, torch.Tensor) and name in self.returned:
            self.returned[name][-1] = self._values.get(id(output))

    def _return(self, output: Any) -> None:
        """Forbid the network's output to grow."""
        super()._return(output)
        call = self.calls[-1]
        for _, tensor in output_tensors(output):
            for axis in self.axes_of(tensor):
                fix(axis, "they are the network's output")
        call.axes = [[None] * len(shape) for shape in call.shapes]

    def input(self, tensor: torch.Tensor) -> None:
        self._values[id(tensor)] = Value(tensor, [None] * tensor.ndim)

    def before(self, call: Call, given: list[torch.Tensor]) -> None:
        looks = call.name not in LIKES and (not is_about(call.name) or call.name in ("__setitem__", "__set__"))
        call.inputs = [self.value_of(t) if looks else self._known(t) for t in given]

    def after(self, call: Call, given: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        read = [name for t in given if t is not call.out and (name := self.named(t))]
        self._used.update(read)
        if call.name in VIEWS and len(given) == len(read) == 1:
            self._views[id(results[0])] = results[0], read[0]
        if given and results and results[0] is given[0] and self._waiting:
            self._changed(call)
        joined = call.name in JOINS and any(value.waits for value in call.inputs)
        if call.name in FILLED or not (joined or any(value.tracked for value in call.inputs)):
            axes = self._waits(call, results)
            self._set(call, results, axes or [[None] * tensor.ndim for tensor in results], axes is not None)
            return
        made = standardised.follow(self, call)
        if made is not None:
            self._copies(call, {n: n for t in given if self.filters(t) is None and (n := self.named(t))})
            made_of = self._filters.get(id(results[0]))
            if call.name in (*SCALINGS, *CASTS) and made_of is not None and made_of.is_weight and not made_of.centred:
                self._views[id(results[0])] = results[0], made_of.name
            self._set(call, results, made)
            return
        filters = {id(v): self._filters.get(id(v.tensor)) for v in call.inputs if id(v.tensor) not in self._views}
        self._copies(call, {value: f.name for value, f in filters.items() if self._is_computed(f)})
        axes = self._ruled(call, given, results)
        scaled = self._scaled(call, given)
        if scaled is not None:
            self._views[id(results[0])] = results[0], self.named(scaled)
            axes = list(self.axes_of(scaled))
            read = [name for t in given if t is not scaled and (name := self.named(t))]
        self._set(call, results, axes if isinstance(call.out, (tuple, list)) else [axes])
        if id(results[0]) not in self._views or scaled is not None:
            self._copies(call, {name: name for name in read if read.count(name) > call.weights.count(name)})

    def _copies(self, call: Call, read: Mapping[str | int, str]) -> None:
        """Note that a call reads parameters or buffers, or what is computed from each."""
        for each, name in read.items():
            self._copied.setdefault(name, set()).add((each, id(call)))

    def _is_copied(self, name: str) -> bool:
        """Whether something reads a parameter or buffer that is no way to a weight that sums over channels."""
        return not self._copied.get(name, set()) <= self._shared

    def _scaled(self, call: Call, given: list[torch.Tensor]) -> torch.Tensor | None:
        """The weight that is scaled entry by entry, e.g. masked: what sums with the result sums with a weight."""
        if call.name not in (*SCALINGS, *CASTS) or not isinstance(call.out, torch.Tensor) or len(given) > 2:
            return None
        factors = given if call.name.startswith("mul") else given[:1]
        weights = [t for t in factors if t.ndim > 1 and t.shape == call.out.shape and self.named(t)]
        if not weights or len({self.named(t) for t in given}) < len(given) or id(call.out) in self.names:
            return None
        return next((t for t in weights if isinstance(t, nn.Parameter)), weights[0])

    def _waits(self, call: Call, results: list[torch.Tensor]) -> list[list[Axis | None]] | None:
        """The axes of a constant along dimensions in which all is equal, e.g. zeros that a recurrent layer begins with
        or a kernel that is repeated for every channel, or of places that are repeated; None for any other result."""
        if call.name in FILLED:
            return [[((Space(n), 1),) if n > 1 else None for n in results[0].shape]]
        if len(results) > 1 or not call.inputs:
            return None
        places = call.name in SPREADS and results[0].dtype in (torch.int64, torch.int32)
        if not places and not _is_constant(call):
            return None
        waiting = any(value.waits for value in call.inputs)
        if waiting and self._rules.get(call.name) is reduction:  # how many there are
            self._ruled(call, [value.tensor for value in call.inputs], results)
        if call.name not in SPREADS and not (call.name in CARRIES and waiting):
            return None
        axes = self._ruled(call, [value.tensor for value in call.inputs], results)
        return [axes] if any(axis is not None for axis in axes) else None

    def positions(self) -> set[Space]:
        """What lies along constants and is no channel that a weight makes, e.g. the pixels of an image of zeros."""
        along = {space for value in self._waiting for axis in value.axes if axis for space, _ in resolve(axis)}
        return along - self.producers().keys()

    def _changed(self, call: Call) -> None:
        """What is changed in place is no longer equal everywhere in what it is a part of."""
        tensor = call.inputs[0].tensor
        memory = tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None
        for value in self._waiting:
            if value.tensor is not tensor and value.tensor.untyped_storage()._cdata == memory:
                for axis in value.axes:
                    fix(axis, f"{call.where} changes a part of a constant")

    def named(self, tensor: torch.Tensor) -> str | None:
        """The parameter or buffer that a tensor is, or is a view of."""
        if self._is_standard(known := self._filters.get(id(tensor))):
            return known.name
        return self.names.get(id(tensor)) or self._views.get(id(tensor), (None, None))[1]

    def by_rule(self, call: Call) -> list:
        """The axes of an operation's result by the rule of its name."""
        return self._ruled(call, [value.tensor for value in call.inputs], [call.out])

    def filters(self, tensor: torch.Tensor) -> Filters | None:
        """What is known of a tensor that is a weight, or computed from one, filter by filter."""
        known = self._filters.get(id(tensor))
        if known is None and tensor.ndim > 1 and tensor.numel() > len(tensor) and id(tensor) in self.names:
            known = Filters(tensor, self.names[id(tensor)])
        return known

    def note(self, made: Filters) -> None:
        self._filters[id(made.tensor)] = made

    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter or buffer that was read."""
        return torch.Size(length(axis or ()) for axis in self.axes[name])

    def _is_standard(self, filters: Filters | None) -> bool:
        """Whether it is a weight that is standardised, in the parameter's own shape."""
        return filters is not None and filters.centred and filters.tensor.shape == self.shape(filters.name)

    def _is_computed(self, filters: Filters | None) -> bool:
        """Whether to use it says something of the parameter: not of statistics, which stay, or what a layer reads."""
        return filters is not None and not filters.is_statistic and not self._is_standard(filters)

    def _stays_standardised(self, name: str) -> bool:
        """Whether nothing but layers that sum over its further dimensions reads a weight, standardised."""
        used = self._is_copied(name) or name in self._plain or any(name == v for v, _ in self.scales.values())
        return not used and (name, 0) not in self.contracted

    def _ruled(self, call: Call, given: list[torch.Tensor], results: list[torch.Tensor]) -> list:
        """The axes of an operation's results by its rule; without one, what it reads and makes stays as it is."""
        rule = self._rules.get(call.name)
        shapes = ", ".join(str(tuple(t.shape)) for t in given)
        try:
            if rule is not None:
                axes = rule(self, call)
                made = axes if isinstance(call.out, (tuple, list)) else [axes]
                sizes, wanted = [len(its) for its in made], [t.ndim for t in results]
                if sizes == wanted:
                    return axes
                raise ValueError(f"it returned {sizes} axes: expected {wanted}, one for each dimension of a result")
            failure = call.unsupported(f"no rule covers it (shapes {shapes})")
        except UnsupportedOperation as error:
            failure = error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            failure = call.unsupported(f"its rule failed on this use (shapes {shapes}; {said})")
            whose = (
                "please report it" if rule.__module__.startswith("net2net.") else "it was registered by register_rule"
            )
            self.failed.setdefault(call.name, f"{call.where} failed with {said} ({whose})")
        if self._strict:
            raise UnsupportedOperation(
                f"{failure}: the model was left as it is; write it in other operations, or say how channels pass "
                "through it with net2net.register_rule"
            )
        places = self.unknown.setdefault(call.name, [])
        if call.module not in places:
            places.append(call.module)
        call.counted, call.weights = [], []
        self.revealed(call, f"no rule says how channels pass through {call.where}")
        made = [[None] * t.ndim for t in results]
        return made if isinstance(call.out, (tuple, list)) else made[0]

    def revealed(self, call: Call, reason: str = "") -> None:
        for value in call.inputs:
            for axis in value.axes:
                fix(axis, reason or f"{call.where} looks at their numbers")

    def overwritten(self, call: Call) -> None:
        """A part of a tensor is another one now: what lies along both has to follow one map."""
        call.axes = []
        value, others = call.inputs[0], call.inputs[1:]
        items = slices(value.tensor.shape, call.args[1]) if call.name == "__setitem__" else None
        reason = f"{call.where} overwrites a part of a tensor"
        if items is None and call.name == "__setitem__" and overwrite(self, call, *call.args[1:3]):
            value.waits = value.constant = False
            return
        if items is None or len(others) > 1 or any(type(item) is int for item in items):
            for axis in (axis for each in call.inputs for axis in each.axes):
                fix(axis, reason)
            return
        part, sizes = [], []
        dims = iter(zip(value.tensor.shape, value.axes, strict=True))
        for item in items:
            size, axis = (1, None) if item is None else next(dims)
            if item is not None:
                start, stop, step = item
                size = len(range(*item))
                before = None
                if axis is not None and step == 1 and start <= stop:
                    before, axis, _ = cut(axis, [start, stop - start, value.tensor.shape[len(part)] - stop], reason)
                elif axis is not None:
                    fix(axis, reason)
                    axis = None
                call.counted += [before, None if axis is None else (*(before or ()), *axis), None]
            part.append(axis)
            sizes.append(size)
        for each in others:
            if each.tensor.ndim > len(part):
                for axis in (*part, *each.axes):
                    fix(axis, reason)
            else:
                broadcast(call, [(sizes, part), ([*each.tensor.shape], each.axes)], len(part))
        value.waits = value.constant = False

    def _set(self, call: Call, results: list[torch.Tensor], axes: list[list[Axis | None]], waits: bool = False) -> None:
        call.axes = axes
        constant = _is_constant(call)
        for tensor, its in zip(results, axes, strict=True):
            if id(tensor) not in self.names:  # a parameter or buffer updated in place keeps its own axes
                made = self._values[id(tensor)] = Value(tensor, its, call, constant, waits)
                if waits:
                    self._waiting.append(made)

    def unread(self, tensor: torch.Tensor, read: Callable[[], Any]) -> None:
        """Call `read` as soon as anything reads the numbers of a tensor, and not its shape alone."""
        self._unread[id(tensor)] = tensor, read

    def value_of(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor that is read."""
        if id(tensor) in self._unread:
            self._unread.pop(id(tensor))[1]()
        return self._known(tensor)

    def _known(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor. A parameter or buffer starts with a space of its own along every dimension."""
        value = self._values.get(id(tensor))
        if value is None:
            name = self.names.get(id(tensor))
            if name is None and (original := self._originals.get(id(tensor))):
                raise GrowthError(
                    f"{original!r} is read in {place(self.module)} from this very model, and so it would be by every "
                    "copy: a lambda or a closure keeps it, or a forward that was replaced; make that a method"
                )
            if name is None and (tensor.is_meta or (self.real and id(tensor) not in self._before)):
                self._hidden(tensor)
            axes: list[Axis | None] = [None] * tensor.ndim
            if name is not None:
                axes = [((Space(n), 1),) for n in tensor.shape]
                self.axes[name] = axes
            value = self._values[id(tensor)] = Value(tensor, axes, constant=True)
        return value

    def _hidden(self, tensor: torch.Tensor) -> None:
        """Code that cannot be followed made a tensor: of whatever is there by now."""
        reason = (
            f"a tensor of shape {tuple(tensor.shape)} in {place(self.module)} comes from code that cannot be followed, "
            "e.g. torch.vmap or an operator of its own"
        )
        if self._strict:
            raise UnsupportedOperation(f"{reason}: use plain torch operations")
        places = self.unknown.setdefault("code that cannot be followed", [])
        if self.module not in places:
            places.append(self.module)
        for value in self._values.values():
            for axis in value.axes:
                fix(axis, reason)

    def keeps(self, module: str, key: str, axis: Axis | None) -> None:
        """Note that a module keeps the length of an axis in an attribute, if it has such a one; in a tuple or dict by
        a path, e.g. "sizes.0"."""
        value = vars(self.skeleton.get_submodule(module)).get(key.partition(".")[0])
        if axis is not None and isinstance(value, (int, tuple, list, dict)):
            self.attributes.append((module, key, axis))

    def axes_of(self, tensor: torch.Tensor) -> list[Axis | None]:
        return self.value_of(tensor).axes

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter or buffer of the model or a view of one, and not computed from one."""
        return self.named(tensor) is not None

    def weight(self, call: Call, tensor: torch.Tensor, output: int, contracted: int | None) -> list[Axis | None]:
        """Axes of a weight that sums over dimension `contracted` (None: over nothing) and makes channels along
        `output`."""
        axes = self.factor(call, tensor, [output], [] if contracted is None else [contracted])
        for dim, axis in enumerate(axes):
            if dim not in (output, contracted):
                fix(axis, "they are kernel taps")
        return axes

    def makes(self, weight: torch.Tensor, times: int) -> None:
        """Note that a weight makes so many channels for each of its positions along the dimension that makes them."""
        self._times[self.named(weight) or ""] = times

    def made(self, name: str, dim: int) -> Axis:
        """The channels that a weight makes along a dimension."""
        return resolve(self.axes[name][dim] or ()) * self._times.get(name, 1)

    def factor(self, call: Call, tensor: torch.Tensor, outputs: list[int], contracted: list[int]) -> list[Axis | None]:
        """The same for one with any number of either."""
        name = self.named(tensor) or ""
        axes = self.axes_of(tensor)
        own = {id(axis): dim for dim, axis in enumerate(self.axes[name])}  # a view has them in another order
        self.outputs.update(((name, own[id(axes[dim])]), None) for dim in outputs)
        self.contracted.update((name, own[id(axes[dim])]) for dim in contracted)
        call.weights.append(name)
        if id(tensor) not in self._filters or id(tensor) in self._views:
            self._plain.add(name)
        return axes

    def scaled_weight(self, call: Call, v: torch.Tensor, g: torch.Tensor, dim: int) -> bool:
        """Whether v is a parameter whose norm another one, g, makes up for. What the call makes is then a weight."""
        names = self.named(v), self.named(g)
        if None in names or self.axes_of(v) is not self.axes.get(names[0]):
            return False
        if self.scales.setdefault(names[1], (names[0], dim)) != (names[0], dim):  # of several weights
            self._copies(call, {names[1]: names[1]})
            return False
        self._views[id(call.out)] = call.out, names[0]
        return True

    def _unscale(self, g: str, v: str, dim: int) -> None:
        """Hold what g would have to make up for, because it is used otherwise, too."""
        del self.scales[g]
        for d, axis in enumerate(self.axes[v]):
            if d != dim:
                fix(axis, f"{v!r} is normalised over them, and its scale {g!r} is used otherwise in another place")

    def layer_weight(self, call: Call, tensor: torch.Tensor, output: int, contracted: int) -> list[Axis | None] | None:
        """Axes of a layer's weight, as by `weight`: of a parameter or buffer, or of what is computed from such so that
        it can be divided for the copies of what it sums over. None for any other."""
        if self.is_parameter(tensor):
            return self.weight(call, tensor, output, contracted)
        value = self.value_of(tensor)
        its = computed.shares(self, value, contracted) if value.constant else None
        if its is None:
            return None
        for dim, axis in enumerate(value.axes):
            if dim not in (output % tensor.ndim, contracted % tensor.ndim):
                fix(axis, "they are kernel taps")
        self._makes(value, output)
        self.contracted.update(its.of)
        self._plain.update(name for name, _ in its.of)
        for each, reader in ((value, call), *its.read):
            if isinstance(each, Value):
                self._on_the_way[id(each)] = each, value.axes[contracted]
            self._shared.add((each if isinstance(each, str) else id(each), id(reader)))
        return value.axes

    def computed_weight(self, tensor: torch.Tensor, output: int, where: str) -> list[Axis | None]:
        """Axes of a weight that is computed from parameters in any way: only what it makes can grow."""
        axes = self.axes_of(tensor)
        for dim, axis in enumerate(axes):
            if dim != output:
                fix(axis, f"{where} computes its weight")
        self._makes(self.value_of(tensor), output)
        return axes

    def _makes(self, weight: Value, output: int) -> None:
        """Note the parameters that a weight is computed from as makers of its channels."""
        made = resolve(weight.axes[output] or ())
        before, seen = [weight], set()
        while before:
            value = before.pop()
            name = self.names.get(id(value.tensor))
            if name is not None and value.tensor.ndim > 1:
                for dim, axis in enumerate(value.axes):
                    if made and resolve(axis or ()) == made:
                        self.outputs[name, dim] = None
            elif value.call is not None and id(value) not in seen:
                seen.add(id(value))
                before += value.call.inputs

    def steps(self) -> dict[Space, int]:
        """How many channels of the first layer that makes a space grow with each of its own, e.g. those of a group."""
        found: dict[Space, int] = {}
        for name, dim in self.outputs:
            own: dict[Space, int] = {}
            for space, repeat in self.made(name, dim):
                own[space] = own.get(space, 0) + repeat
            for space, repeat in own.items():
                found.setdefault(space, repeat)
        return found

    def producers(self) -> dict[Space, list[str]]:
        """Each space that weights make, with the names of these weights, in the order of the forward pass."""
        found: dict[Space, list[str]] = {}
        for name, dim in self.outputs:
            for space, _ in resolve(self.axes[name][dim] or ()):
                found.setdefault(space, []).append(name)
        return found


# Constants of one number, what repeats a constant, and what makes another of one.
FILLED = frozenset({"zeros", "ones", "full", "empty", "new", "new_zeros", "new_ones", "new_full", "new_empty"})
LIKES = frozenset({"zeros_like", "ones_like", "full_like", "empty_like"})
SPREADS = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "tile"})
CARRIES = """
unsqueeze squeeze transpose permute t T mT contiguous clone requires_grad zero fill cpu cuda to float double half
bfloat16 type type_as detach neg
__getitem__ mul multiply div divide true_divide add sub zeros_like ones_like
"""
CARRIES = frozenset(CARRIES.split())
# What only looks at a weight in another way, so that its result is that weight.
VIEWS = frozenset({"t", "T", "mT", "transpose", "permute", "swapaxes", "detach", "contiguous", "data", "alias"})


def _is_constant(call: Call) -> bool:
    """Whether what a call makes depends on no input of the model. `to` can be given another tensor."""
    read = call.inputs[:1] if call.name in CASTS else call.inputs
    return call.name in FILLED or all(value.constant for value in read)


def _all_tensors() -> dict[int, torch.Tensor]:
    return {id(each): each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}


def traced(model: nn.Module, example_inputs: Any, *, strict: bool = False, name_unknown: bool = True) -> Trace:
    """The trace of a model: without data, or where its code looks at numbers by a forward pass with the inputs' ones.

    Operations without a rule are named in a warning, unless they are of no interest.
    """
    try:
        trace = _chosen(model, example_inputs, strict)
    except GrowthError as error:
        tensors_given = [*pytree.tree_leaves(example_inputs), *model.parameters()]
        if error.__cause__ is None or any(t.is_meta for t in tensors_given if isinstance(t, torch.Tensor)):
            raise
        trace = _chosen(model, example_inputs, strict, real=True)
        warnings.warn(
            f"the model was run on the example inputs to follow its channels, which takes the time and memory of real "
            f"forward passes: {error}",
            stacklevel=4,
        )
    if not name_unknown:
        return trace
    for failure in trace.failed.values():
        warnings.warn(f"the rule for {failure}; what the operation reads and makes stays as it is", stacklevel=4)
    if unknown := {name: places for name, places in trace.unknown.items() if name not in trace.failed}:
        warnings.warn(
            "no rule says how channels pass through "
            + "; ".join(f"{name!r} in {_places(places)}" for name, places in unknown.items())
            + ": what they read and make stays as it is; net2net.register_rule says how, strict=True makes it an error",
            stacklevel=4,
        )
    return trace


def _chosen(model: nn.Module, example_inputs: Any, strict: bool, real: bool = False) -> Trace:
    """The trace in which the parts of what is taken apart hold their channels where most of them can grow.

    Of [heads * d] either can be the channels: which shows in what reads them, e.g. a product that sums over d.
    """
    trace = Trace(model, example_inputs, strict=strict, real=real)
    found: dict[Separation, dict[int, int]] = {}  # how many parts can grow, by what was chosen
    choices: dict[Separation, int] = {}
    while True:
        for key, (at, _, _) in trace.separated.items():
            found.setdefault(key, {})[at] = -_held(trace, key)
        untried = {
            key: others[0]
            for key, (_, options, _) in trace.separated.items()
            if max(found[key].values()) < 0 and (others := [at for at in options if at not in found[key]])
        }
        best = {key: max(counts, key=counts.__getitem__) for key, counts in found.items()}  # the first of equals
        if not untried and (choices == best or all(best[key] == at for key, (at, _, _) in trace.separated.items())):
            break
        choices = {**best, **untried}
        trace = Trace(model, example_inputs, strict=strict, real=real, choices=choices)
    # What is taken apart in several ways in one module, e.g. into few heads of keys and many of queries, goes together.
    for end in (-2, -1):
        held = [key for key in trace.separated if _held(trace, key) and len(key[1]) > 1]
        together = {
            key: len(key[1]) + end
            for key in held
            if key[1][end] > 1 and any(key != other and key[0] == other[0] for other in held)
        }
        if any(trace.separated[key][0] != at for key, at in together.items()):
            choices = {key: at for key, (at, _, _) in trace.separated.items()} | together
            other = Trace(model, example_inputs, strict=strict, real=real, choices=choices)
            if sum(_held(other, key) for key in other.separated) < sum(_held(trace, key) for key in trace.separated):
                trace = other
    return trace


def _held(trace: Trace, key: Separation) -> int:
    """How many of the parts of what is taken apart cannot grow."""
    return sum(any(space.fixed for space, _ in resolve(part)) for part in trace.separated[key][2])


def _places(modules: list[str]) -> str:
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return ", ".join(place(module) for module in modules[:3]) + more
