"""What grows, and by which maps: from what was asked to a growth that repeats the teacher's forward pass."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from math import ceil, inf, isclose, lcm, prod
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch

from net2net.errors import GrowthError, whole
from net2net.growth import Along, Channels, Growth
from net2net.kept import Kept, Size, integers, reads
from net2net.names import aliases, inside, naming, owner, within
from net2net.recording import SIZED, Call, Recording, local, place, tensors
from net2net.seeds import generator_for
from net2net.spaces import Axis, Space, fix, length, resolve
from net2net.tensors import check_memory
from net2net.trace import Trace

Maps = dict[Space, torch.Tensor]


def plan_growth(
    trace: Trace,
    example_inputs: Any,
    factor: float | None,
    widths: Mapping[str, int] | None = None,
    modules: str | Sequence[str] | None = None,
    seed: int = 0,
    multiple_of: int = 1,
) -> Growth:
    """Grow what was asked on the meta device. Where the student's pass differs, hold those channels and try again."""
    kept = Kept(trace)
    multiple_of = whole(multiple_of, "multiple_of=")
    if multiple_of < 1 or (multiple_of > 1 and widths is not None):
        raise GrowthError(
            f"multiple_of= is {multiple_of}: expected a number of channels of at least 1"
            if multiple_of < 1
            else "multiple_of= rounds what factor= asks for; widths= says each width itself"
        )
    anew = True
    while True:
        scale = None if factor is None else Scale(trace, factor, multiple_of)
        targets = _named_targets(trace, widths) if _by_name(factor, widths, modules) else _targets(scale, modules)
        producers = trace.producers()
        _check_memory(trace, targets, producers)
        maps = {
            space: _evenly(space.width, width)
            if space in trace.uniform
            else _draw(space.width, width, seed, producers[space][0])
            for space, width in targets.items()
        }
        growth = _growth(trace, maps, producers, scale)

        def size(axis: Axis, targets: Mapping[Space, int] = targets) -> int:
            return _size(axis, targets)

        read: set[tuple[str, str]] = set()

        def tried(growth: Growth = growth, maps: Maps = maps, read: set = read) -> tuple[Growth, Conflict | None]:
            noted = growth.noting(kept.follow, kept.unclear)
            return noted, find_conflict(trace, noted, maps, example_inputs, kept.follow, read)

        kept.find(size, anew)
        while True:
            noted, conflict = tried()
            if conflict is None:
                kept.release(sorted(read), size, lambda tried=tried: tried()[1] is None)
                noted = growth.noting(kept.follow, kept.unclear)
                noted.stayed = _stayed(trace, maps, scale, modules)
                _name_unread(trace, {space.width for space in maps})
                return noted
            better, worse = partial(_further, tried, conflict), partial(_less_far, tried, conflict)
            if not (
                _supposed(trace, kept, conflict, size, better)
                or kept.doubt_unless(conflict.call.module, size, worse)
                or kept.blame(size, better)
            ):
                break
        further = partial(_gets_further, trace, example_inputs, producers, scale, kept, conflict)
        anew = _hold(trace, maps, conflict, kept, further)  # with other widths the numbers are looked at again
        if not anew and not kept.doubt(conflict.call.module, everywhere=True):
            call = conflict.call
            raise GrowthError(
                f"the wider model's forward pass is not its teacher's: at {call.name!r} in {place(call.module)}, "
                f"{conflict.why}"
            )


def _further(tried: Callable, conflict: Conflict) -> bool:
    """Whether a student gets further in its forward pass than to a conflict."""
    return conflict.passed(tried()[1])


def _less_far(tried: Callable, conflict: Conflict) -> bool:
    """Whether a student does not even get as far as to a conflict."""
    after = tried()[1]
    return after is not None and after.at < conflict.at


def _gets_further(
    trace: Trace,
    example_inputs: Any,
    producers: dict[Space, list[str]],
    scale: Scale | None,
    kept: Kept,
    conflict: Conflict,
    maps: Maps,
) -> bool:
    """Whether a student that grows by these maps gets further than to a conflict."""
    kept.find(partial(_size, widths={space: len(g) for space, g in maps.items()}), anew=False)
    growth = _growth(trace, maps, producers, scale).noting(kept.follow, kept.unclear)
    return conflict.passed(find_conflict(trace, growth, maps, example_inputs))


def _supposed(trace: Trace, kept: Kept, conflict: Conflict, size: Size, better: Callable[[], bool]) -> bool:
    """Try to scale an integer that the module keeps and that equals a number of channels there, in all modules of its
    class that do the same. Whether the student's forward pass then gets further."""
    call = conflict.call
    if call.name not in SIZED and not call.counts:
        return False
    alike = {each.module: each for each in _siblings(trace, call, conflict.calls)}
    found = {module: kept.options(module, _lengths(each), size) for module, each in alike.items()}
    own = found[call.module]
    for one in (*own, *([None] if len(own) > 1 else [])):  # one number, or all of them
        numbers = {
            (within(module, where), path): axis
            for module, axes in found.items()
            for (where, path), axis in axes.items()
            if one is None or (where, path) == one
        }
        kept.suppose(numbers)
        kept.find(size, anew=False)
        if better():
            return True
        kept.drop(numbers)
    if own:
        kept.find(size, anew=False)
    return False


def _lengths(call: Call) -> list[Axis]:
    """The axes that a number of an operation can be the length of."""
    blocks = [axis for axes in (*(value.axes for value in call.inputs), *call.axes) for axis in axes if axis]
    counted = [axis for axis in call.counted if axis]
    return [*((*first, *part) for first in counted for part in blocks if first is not part), *blocks, *counted]


class Scale:
    """What a factor makes of each width: whole channels, or where these come in steps, e.g. as groups, whole steps.

    The nearest is taken, of two the narrower; `multiple_of` rounds up instead.
    """

    def __init__(self, trace: Trace, factor: float, multiple_of: int = 1):
        self.trace = trace
        self.factor = factor
        self.multiple_of = multiple_of
        self.whole = isinstance(factor, Real) and float(factor).is_integer()
        self.steps = trace.steps()

    def channels(self, space: Space) -> int:
        """A space's width in channels of its layer."""
        return space.width * self.steps.get(space, 1)

    def wanted(self, space: Space) -> int:
        """The channels that were asked for."""
        return -(-round(self.channels(space) * self.factor) // self.multiple_of) * self.multiple_of

    def width(self, space: Space) -> int:
        """The new width of a space: what comes nearest."""
        if space in self.trace.uniform:
            return round(space.width * self.factor) if self.whole else space.width
        step = self.steps.get(space, 1)
        nearest = round(space.width * self.factor) if step == 1 else ceil(space.width * self.factor - 0.5)
        if self.multiple_of == 1:
            return nearest
        whole = lcm(step, self.multiple_of)
        up = -(-self.wanted(space) // whole) * whole // step
        return up if step == 1 or up <= 2 * nearest else nearest

    def why(self, space: Space) -> str:
        """Why a space has another width than was asked for; "" where it has not."""
        wanted = self.wanted(space)
        if wanted == self.width(space) * self.steps.get(space, 1):
            return ""
        if space in self.trace.uniform:
            return f"asked for {wanted}: by whole-number factors only, because they are normalised together"
        step, why = self.steps.get(space, 1), self.trace.why_steps(space)
        if self.multiple_of > 1 and wanted % step == 0:
            return (
                f"asked for {wanted}: in steps of {step} that would be more than twice as many as by the factor alone"
            )
        return f"asked for {wanted}: in steps of {step}" + (f", {why}" if why else "")


def _stayed(trace: Trace, maps: Maps, scale: Scale | None, modules: str | Sequence[str] | None) -> list[dict[str, Any]]:
    """The channel spaces that do not grow, and why; their widths in channels of their layers."""
    patterns = [modules] if isinstance(modules, str) else modules
    chosen = _chosen(trace, patterns)

    def why(space: Space, weights: list[str]) -> str:
        if scale is None:
            return "not asked for"
        if patterns is not None and chosen.isdisjoint(weights):
            return "outside modules="
        if space in trace.uniform and not scale.whole:
            return "by whole-number factors only"
        return scale.why(space) or f"times {scale.factor:g} it is no whole channel more"

    steps, found = trace.steps(), []
    for space, weights in trace.producers().items():
        if space not in maps:
            width, reason = space.width * steps.get(space, 1), space.fixed or why(space, weights)
            part = space in trace.uniform and found and found[-1]["made_by"] == weights
            if part and found[-1]["reason"] == reason:  # of a layer whose channels are normalised in groups
                width += found.pop()["width"]
            found.append({"made_by": weights, "width": width, "reason": reason})
    return found


def _name_unread(trace: Trace, widths: set[int]) -> None:
    """Warn of parameters that no forward pass has read, if they have a dimension of a width that grows."""
    shapes = {name: tensor.shape for name, tensor in trace.skeleton.named_parameters()}
    names = [name for name in trace.unread_parameters if widths.intersection(shapes[name])]
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        warnings.warn(
            f"no forward pass with these example inputs reads {', '.join(map(repr, names[:4]))}{more}: they stay as "
            "they are, and calls of the student that reach them may not fit; give example inputs that do",
            stacklevel=5,  # the caller of what `undisturbed` decorates
        )


def _growth(trace: Trace, maps: Maps, producers: dict[Space, list[str]], scale: Scale | None) -> Growth:
    number = {space: k for k, space in enumerate(maps)}
    widths = {space: len(g) for space, g in maps.items()}

    def blocks(axis: Axis) -> tuple[tuple[int, int] | int, ...]:
        found: list[Any] = []
        for space, repeat in resolve(axis):
            if space in number:
                found.append((number[space], repeat))
            elif found and isinstance(found[-1], int):
                found[-1] += space.width * repeat
            elif space.width:  # a tensor of no channels can be concatenated
                found.append(space.width * repeat)
        return tuple(found)

    grown: dict[str, dict[int, Along]] = {}
    for name, axes in trace.axes.items():
        for dim, axis in enumerate(axes):
            if axis is not None and _grows(axis, maps):
                role = "sums" if (name, dim) in trace.contracted else "follows"
                role = "makes" if (name, dim) in trace.outputs else role
                grown.setdefault(name, {})[dim] = Along(role, blocks(axis))
    attributes: dict[str, dict[str, Any]] = {}
    for module, key, axis in trace.attributes:
        if _grows(axis, maps):
            was = getattr(trace.skeleton.get_submodule(module), key, None)
            size = _size(axis, widths)
            attributes.setdefault(module, {})[key] = [size] if isinstance(was, (tuple, list)) else size
    spaces = [
        Channels(producers.get(space, []), space.width, g, scale.why(space) if scale else "")
        for space, g in maps.items()
    ]
    held: dict[str, int] = {}
    for space in producers:
        if space.fixed and space not in maps:
            kind = _kind(space.fixed)
            held[kind] = held.get(kind, 0) + 1
    scales = {g: (v, dim) for g, (v, dim) in trace.scales.items() if v in grown}
    standardised = {
        name: correction or 0
        for name, correction in trace.standardised.items()
        if any(how.role == "sums" for how in grown.get(name, {}).values())
    }
    return Growth(spaces, grown, attributes, held, unknown=trace.unknown, scales=scales, standardised=standardised)


def _size(axis: Axis, widths: Mapping[Space, int]) -> int:
    return sum(widths.get(s, s.width) * repeat for s, repeat in resolve(axis))


class Conflict(NamedTuple):
    """The first call of a forward pass at which a student does something else than its teacher's, and why; its place,
    in evaluation mode or training mode."""

    call: Call
    calls: Sequence[Call]
    why: str
    at: tuple[bool, int]

    def passed(self, after: Conflict | None) -> bool:
        """Whether another student's first conflict, if any, comes later."""
        return after is None or after.at > self.at


def find_conflict(
    trace: Trace,
    growth: Growth,
    maps: Maps,
    example_inputs: Any,
    numbers: dict[str, dict[str, int]] | None = None,
    read: set[tuple[str, str]] | None = None,
) -> Conflict | None:
    """Where a student does not repeat its teacher's forward pass: the same operations, with the same numbers, on
    tensors that have grown by the maps. A model can look at its widths in ways that no map can follow, e.g.
    `x / x.shape[1]`, `view(-1, 64)`, or a branch.

    The student has no data, unless its teacher had to be run with some. `read`: filled with those of the `numbers` that
    modules keep which its code reads.
    """
    if trace.real:
        student = local(growth.copied(trace.model))
    else:
        student = growth.emptied(trace.model)
    recording = Recording(student, trace.real, trace.outside)
    with reads(student, numbers or {}) as seen:
        conflict = _conflict(trace, recording, maps, example_inputs)
    if read is not None:
        read.update(seen)
    return conflict


def _conflict(trace: Trace, recording: Recording, maps: Maps, example_inputs: Any) -> Conflict | None:
    widths = {space: len(g) for space, g in maps.items()}
    for training, theirs in ((False, trace.calls), (True, trace.training_calls)):
        if theirs is None or (training and theirs is trace.calls):
            continue
        why = "its numbers, shapes or connections do not grow along"
        try:
            done = _first_difference(theirs, recording.run(example_inputs, training), widths, trace.real)
        except GrowthError as error:
            why = str(error)
            done = _first_difference(theirs, recording.calls, widths, trace.real)
            done = len(recording.calls) if done is None else done
        if done is not None:
            return Conflict(theirs[min(done, len(theirs) - 1)], theirs, why, (training, done))
    return None


def _hold(trace: Trace, maps: Maps, conflict: Conflict, kept: Kept, further: Callable[[Maps], bool]) -> bool:
    """Fix the channels at the place where a student's forward pass differs, for another try. Whether any grew there.

    further     whether a student that grows by fewer maps gets further in its forward pass
    """
    call, theirs = conflict.call, conflict.calls
    reason = f"{call.name!r} in {place(call.module)} counts on their width"
    # What the operation reads and makes; if none of that grows, what its module computes: widths can travel.
    inside = [c for c in theirs if not call.module or f"{c.module}.".startswith(f"{call.module}.")]
    unclear = {
        n
        for path, n in integers(trace.skeleton.get_submodule(call.module))
        if path in kept.unclear.get(call.module, ())
    }
    own = _growing(trace, call, maps)
    alike = [each for each in _siblings(trace, call, theirs) if _growing(trace, each, maps) == own]
    for calls in (alike, inside):
        axes = [axis for c in calls for each in (*(v.axes for v in c.inputs), *c.axes) for axis in each]
        axes = [axis for axis in axes if axis is not None and _grows(axis, maps)]
        # First the axes whose width equals an integer of the module that could not be told to follow or to stay.
        if axes:
            axes = [axis for axis in axes if length(axis) in unclear] or axes
            spaces = list(dict.fromkeys(space for axis in axes for space, _ in resolve(axis) if space in maps))
            for space in _needed(spaces, maps, further) if calls is inside else spaces:
                fix(((space, 1),), reason)
            trace.settle_groups()
            return True
    return False


def _needed(spaces: list[Space], maps: Maps, further: Callable[[Maps], bool]) -> list[Space]:
    """Those of them that have to stay for a student to get further, halving for as long as one half is enough."""

    def enough_to_hold(part: list[Space]) -> bool:
        return further({space: g for space, g in maps.items() if space not in part})

    if not enough_to_hold(spaces):
        return spaces
    while len(spaces) > 1:
        half = len(spaces) // 2
        enough = next(filter(enough_to_hold, (spaces[:half], spaces[half:])), None)
        if enough is None:
            break
        spaces = enough
    return spaces


def _siblings(trace: Trace, call: Call, calls: Sequence[Call]) -> list[Call]:
    """A call and those that do the same in other modules of its class: they would be the next to fail."""
    own: dict[str, list[Call]] = {}
    for each in calls:
        own.setdefault(each.module, []).append(each)
    at = next((k for k, each in enumerate(own[call.module]) if each is call), 0)
    kind = type(trace.skeleton.get_submodule(call.module))
    if kind.__module__.startswith("torch.nn."):  # which have no code of their own for their use here
        return [call]
    return [
        each[at]
        for module, each in own.items()
        if at < len(each) and each[at].name == call.name and type(trace.skeleton.get_submodule(module)) is kind
    ]


def _growing(trace: Trace, call: Call, maps: Maps) -> list[bool]:
    """Which dimensions grow of what a call reads and makes, and of what its module is given."""
    given = (value.axes for value in trace.given.get(call.module, ()) if value is not None)
    axes = (axis for each in (*(value.axes for value in call.inputs), *call.axes, *given) for axis in each)
    return [axis is not None and _grows(axis, maps) for axis in axes]


def _first_difference(
    teacher: Sequence[Call], student: Sequence[Call], widths: Mapping[Space, int], real: bool
) -> int | None:
    """The first call at which a student does something else than its teacher's, grown to the widths; for `real` numbers
    up to rounding, which moves what is computed from a sum."""

    def size(n: int, axis: Axis | None) -> int:
        return n if axis is None else _size(axis, widths)

    for at, (a, b) in enumerate(zip(teacher, student, strict=False)):
        if (a.name, a.module, a.sources) != (b.name, b.module, b.sources):
            return at
        grows = any(axis is not None for axes in a.axes for axis in axes)
        sized = a.name in SIZED and (grows or any(value.tracked for value in a.inputs))
        if not (sized or a.numbers == b.numbers or (_close if real else _same)(a.numbers, b.numbers)):
            return at
        if [tuple(map(size, shape, axes)) for shape, axes in zip(a.shapes, a.axes, strict=True)] != b.shapes:
            return at
        if [size(n, axis) for n, axis in zip_longest(a.counts, a.counted[: len(a.counts)])] != b.counts:
            return at
    return None if len(teacher) == len(student) else min(len(teacher), len(student))


def _same(a: list[Any], b: list[Any]) -> bool:
    return repr(a) == repr(b)  # NaN is itself here


def _close(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        isclose(x, y, rel_tol=1e-3, abs_tol=1e-4) if type(x) is float and type(y) is float else x == y
        for x, y in zip(a, b, strict=True)
    )


def _by_name(factor: float | None, widths: Mapping[str, int] | None, modules: str | Sequence[str] | None) -> bool:
    """Whether widths are given by name; `GrowthError` for arguments that do not go together or are no such."""
    if (factor is None) == (widths is None):
        raise GrowthError("say how far to widen by either factor= or widths=, e.g. factor=1.5")
    if widths is not None:
        if modules is not None:
            raise GrowthError("modules= restricts factor=; widths= names its modules itself")
        if not isinstance(widths, Mapping):
            raise GrowthError(
                f"widths= is {widths!r}: expected a dict of layers and widths, e.g. {{'layer1.conv1': 96}}"
            )
        return True
    if not isinstance(factor, Real):
        raise GrowthError(f"factor= is {factor!r}: expected a number, e.g. 1.5")
    if not 1 <= factor < inf:
        raise GrowthError(f"factor must be at least 1 and finite, got {factor}: this package only grows models")
    return False


def _called(trace: Trace) -> dict[str, str]:
    """What the weights that make channels are called."""
    producers = trace.producers()
    called = naming(trace.skeleton, producers.values())
    return {weight: called(weight) for weights in producers.values() for weight in weights}


def _names(trace: Trace, called: Mapping[str, str]) -> dict[str, str]:
    """What can be named: modules, by whatever name, with their first one; and weights that go by themselves."""
    return {**aliases(trace.skeleton), **{own: own for own in called.values()}}


def _chosen(trace: Trace, patterns: Sequence[str] | None) -> set[str]:
    """The weights that match a pattern, or whose modules do, or lie inside one that does."""
    if not patterns:
        return set()
    called = _called(trace)
    names = _names(trace, called)
    chosen = {first for name, first in names.items() if any(inside(name, pattern) for pattern in patterns)}
    return {weight for weight, own in called.items() if not chosen.isdisjoint((own, owner(weight)))}


def _targets(scale: Scale, modules: str | Sequence[str] | None) -> dict[Space, int]:
    """The new width of every space that a factor makes grow."""
    trace, factor = scale.trace, scale.factor
    patterns = [modules] if isinstance(modules, str) else modules
    if patterns is not None:
        if not isinstance(patterns, Sequence) or not all(isinstance(each, str) for each in patterns):
            raise GrowthError(f"modules= is {modules!r}: expected a pattern or a list of them, e.g. 'layer1.*'")
        names = _names(trace, _called(trace))
        for pattern in patterns:
            if not any(inside(name, pattern) for name in names):
                top = [name for name in names if name and "." not in name] or ["a model without children"]
                raise GrowthError(f"no module matches {pattern!r}; the top level is {', '.join(top)}")
        if not patterns:
            raise GrowthError("modules= is empty: name at least one, e.g. 'layer1.*'")
    chosen = _chosen(trace, patterns)
    targets = {
        space: scale.width(space)
        for space, weights in trace.producers().items()
        if not space.fixed
        and (scale.whole or space not in trace.uniform)
        and (patterns is None or not chosen.isdisjoint(weights))
    }
    for space in list(targets):
        targets.update((other, scale.width(other)) for other in trace.uniform.get(space, ()))
    if not targets:
        where = "" if patterns is None else f" in {', '.join(patterns)}"
        reasons = _kinds([space.fixed for space in trace.producers() if space.fixed])
        if not scale.whole and any(space in trace.uniform for space in trace.producers()):
            reasons.append(f"a whole-number factor would do where channels are normalised together, {factor} does not")
        if not reasons and trace.unknown:  # e.g. the fake quantisation of weights
            names = ", ".join(map(repr, trace.unknown))
            cure = ": grow the model before it is prepared for quantisation" if "fake_quant" in names else ""
            reasons.append(f"what its layers read and make passes through {names}, which no rule covers{cure}")
        raise GrowthError(f"nothing can grow{where}: {'; '.join(reasons) or 'no layer makes channels there'}")
    grown = {space: width for space, width in targets.items() if width > space.width}
    if (factor > 1 or scale.multiple_of > 1) and not grown:
        widest = max(targets, key=scale.channels)
        why = scale.why(widest)
        raise GrowthError(
            f"factor {factor} adds no whole channel to any layer: the widest has {scale.channels(widest)}"
            + (f", {why}" if why else "")
        )
    return grown


def _check_memory(trace: Trace, targets: Mapping[Space, int], producers: Mapping[Space, list[str]]) -> None:
    """Refuse a student that no memory of this machine holds, before a map is drawn: a system can kill what tries."""
    if not targets:
        return
    needed = {torch.device("cpu"): 8 * sum(targets.values())}  # the maps
    for name, tensor in tensors(trace.model):
        axes = zip(tensor.shape, trace.axes.get(name, [None] * tensor.ndim), strict=True)
        numbers = prod(n if axis is None else _size(axis, targets) for n, axis in axes)
        needed[tensor.device] = needed.get(tensor.device, 0) + numbers * tensor.element_size()
    space = max(targets, key=lambda space: targets[space] / space.width)
    layer = naming(trace.skeleton, producers.values())(producers[space][0]) if space in producers else "a layer"
    for device, size in needed.items():
        check_memory(device, size, f"{layer!r} would grow {targets[space] / space.width:.4g} times")


def _kind(reason: str) -> str:
    """A reason without the module that it names."""
    return re.sub(r" in module '[^']*'", "", reason)


def _kinds(reasons: Sequence[str]) -> list[str]:
    """Reasons without those that differ from another by the module alone."""
    kinds: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        kinds.setdefault(_kind(reason), []).append(reason)
    return [its[0] + (f" (and {len(its) - 1} more like this)" if its[1:] else "") for its in kinds.values()]


def _named_targets(trace: Trace, widths: Mapping[str, int]) -> dict[Space, int]:
    if not widths:
        raise GrowthError("widths= is empty: name at least one layer, e.g. {'layer1.conv1': 96}")
    for name in widths:
        if not isinstance(name, str):
            raise GrowthError(f"widths names {name!r}: expected names of layers, e.g. {{'layer1.conv1': 96}}")
    called, made = _called(trace), {}
    for name, dim in trace.outputs:
        made.setdefault(called.get(name, owner(name)), (name, dim))
    names = list(made)
    for name, dim in trace.outputs:  # a module whose weights go by themselves stands for the first of them
        made.setdefault(owner(name), (name, dim))
    targets: dict[Space, tuple[int, str]] = {}
    named: set[Space] = set()
    first = aliases(trace.skeleton)
    for module, width in {first.get(name, name): width for name, width in widths.items()}.items():
        if module not in made:
            near = difflib.get_close_matches(module, names, 5) or names
            rest = f" and {len(near) - 8} more" if len(near) > 8 else ""
            raise GrowthError(
                f"widths names {module!r}, which makes no channels; layers that do: {', '.join(near[:8])}{rest}"
            )
        name, dim = made[module]
        axis = trace.made(name, dim)
        if isinstance(width, bool) or not isinstance(width, Integral):
            raise GrowthError(f"the width of {module!r} must be a whole number of channels, got {width!r}")
        current = sum(space.width * repeat for space, repeat in axis)
        if width < current:
            raise GrowthError(f"{module!r} has {current} channels already: cannot widen it to {width}")
        space = axis[0][0]
        units = current // space.width  # how often a space comes, in a grouped convolution or before one
        if all(other in trace.uniform.get(space, ()) for other, _ in axis) and not (space.fixed or width % current):
            # In parts, because they are normalised in groups: all of them by one factor.
            width, current, units = width // current * space.width, space.width, 1
        elif any(other is not space for other, _ in axis) or width % units:
            if width == current:
                continue
            parts = " + ".join(f"{s.width} × {repeat}" if repeat > 1 else str(s.width) for s, repeat in axis)
            fixed = next((f" ({s.fixed})" for s, _ in axis if s.fixed), "")
            hint = f"a multiple of {units}" if all(s is space for s, _ in axis) else "widen those, or use factor="
            if all(other in trace.uniform.get(space, ()) for other, _ in axis):
                hint = f"normalised together, they take a multiple of {current}"
            raise GrowthError(f"the {current} channels of {module!r} follow other layers' ({parts}): {hint}{fixed}")
        width, current = int(width) // units, space.width
        if space.fixed and width > current:
            raise GrowthError(f"cannot widen {module!r}: its channels have to stay as they are, {space.fixed}")
        if targets.get(space, (width, ""))[0] != width:
            other_width, other = targets[space]
            if space not in named:
                raise GrowthError(f"{module!r} and {other!r} are normalised together: widen both by the same factor")
            raise GrowthError(
                f"{module!r} ({width}) and {other!r} ({other_width}) share their channels: give both the same width"
            )
        if space in trace.uniform and width % current:
            raise GrowthError(
                f"cannot widen {module!r} to {width * units}: its channels are normalised together, and each has to "
                f"come equally often; give a multiple of {current * units}"
            )
        targets[space] = (width, module)
        named.add(space)
        for other in trace.uniform.get(space, ()):
            same = other.width * width // current
            if targets.get(other, (same, ""))[0] != same:
                raise GrowthError(
                    f"{module!r} and {targets[other][1]!r} are normalised together: widen both by the same factor"
                )
            targets[other] = (same, module)
    return {space: width for space, (width, _) in targets.items() if width > space.width}


def _draw(old: int, new: int, seed: int, name: str) -> torch.Tensor:
    """The random map g of sec 2.3: the identity for the first `old` channels, then uniform with replacement."""
    copies = torch.randint(old, (new - old,), generator=generator_for(seed, "map", name), device="cpu")
    return torch.cat([torch.arange(old, device="cpu"), copies])


def _evenly(old: int, new: int) -> torch.Tensor:
    """A map under which each channel comes equally often: what normalising over the channels needs."""
    return torch.arange(old, device="cpu").repeat(new // old)


def _grows(axis: Axis, maps: Maps) -> bool:
    return any(space in maps for space, _ in resolve(axis))
