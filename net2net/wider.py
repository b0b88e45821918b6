"""Net2WiderNet (sec 2.3), and its baseline "random pad" (sec 3.1).

Widening is three steps. The channel spaces are found (`net2net.spaces`). For each space that grows, a map g from its
new channels to its old ones is drawn. Then every parameter and buffer is filled by the maps of its axes. Net2WiderNet
and its baseline differ in the fill alone:

replicate   new entries are copies; what a layer sums over is divided by the replica counts; noise on the copies
random pad  old entries stay where they are; new rows and columns keep the student's own random initialisation
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from math import inf, isclose
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net.certificate import confirm
from net2net.errors import GrowthError
from net2net.growth import Along, AxisMap, Channels, Growth, along, get_tensor, growth_of
from net2net.kept import Kept
from net2net.recording import SIZED, Call, Recording, local, place, tensors, uncollected, unwrapped
from net2net.spaces import Axis, Space, fix, resolve
from net2net.trace import Trace, traced

Maps = dict[Space, torch.Tensor]


@uncollected()
def widen(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    noise: float = 0.05,
    exact: bool = True,
    new_head: int | Mapping[str, int] | None = None,
    seed: int = 0,
    verify: bool = True,
    strict: bool = False,
) -> nn.Module:
    """A wider model that computes the same function: Net2WiderNet (paper sec 2.3).

    The first n channels of a widened layer are the old ones; each further one copies an old channel drawn at random
    with replacement. Every consumer divides its incoming weights by the number of copies. Layers that must share a map
    (by batch norm, addition, concatenation, several consumers) are found by running the model once on the meta device.
    Input and output of the network keep their width.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts
    factor          multiplies the width of every layer that can grow (rounded to whole channels), or
    widths          the new number of channels of some layers, by module name, e.g. {"layer1.conv1": 96}
    modules         restricts `factor` to modules that match a glob pattern ("*" stops at dots, "**" does not), and all
                    that is inside them; layers that share their channels with one of those grow along
    noise           standard deviation of normal noise that makes the copies of a channel diverge once trained, as a
                    fraction of each filter's own. With 0 copies stay equal for ever, unless training treats them
                    differently, e.g. by dropout: the student then has no more capacity than its teacher.
    exact           put the noise on the weights that read the copies, in amounts that cancel over the copies of each
                    channel: the function is preserved to rounding. False: on the weights that make the copies (never
                    the first), which moves the function, as in the paper
    new_head        for another number of classes: replace the layer that makes the outputs by one with so many of
                    them, initialised anew and trainable; all below it stays. A dict says it by layer, e.g. {"fc": 10}
    seed            of the maps and the noise. Each layer's draw depends on the seed and its name only.
    verify          compare both models on the example inputs (without noise that is not exact), and raise if the
                    function has moved further than rounding explains
    strict          raise `UnsupportedOperation` for an operation that no rule covers. Otherwise what it reads and makes
                    stays as it is; the operation is named in a warning, in the record and by `explain`.

    Returns a new model of the same class on the same device; what torch.compile or a data-parallel wrapper made of the
    model is taken off. An optimizer of the old model does not know the new parameters: see `grow_optimizer`, or build a
    new one. Raises `GrowthError` if what was asked cannot grow.

    A model whose code looks at numbers (`item`, `nonzero`) cannot be followed without data: it is then run on the
    example inputs, which takes the time and memory of real forward passes, with a warning.
    """

    if not isinstance(noise, Real) or not 0 <= noise < inf:
        raise GrowthError(
            f"noise is a fraction of each filter's standard deviation: expected at least 0, got {noise!r}"
        )
    exact, noise, seed = bool(exact and noise), float(noise), whole(seed, "seed=")
    model = unwrapped(model)
    trace, growth = _plan(model, example_inputs, factor, widths, modules, seed, strict)
    entry = {"op": "widen", "noise": noise, "exact": exact, "seed": seed, **growth.record()}

    def grown(teacher: nn.Module) -> nn.Module:
        student = growth.copied(teacher)
        growth.divide(student)
        if exact:
            disturb(student, growth, noise, exact, seed)
        return student

    student = grown(model)
    if verify:  # what training mode does is known from its numbers alone where the trace could not follow it
        confirm(model, student, example_inputs, trace.training_calls is None, grown)
    if not exact:
        disturb(student, growth, noise, exact, seed)
    remember(student, entry)
    if new_head is not None:
        from net2net.head import renew  # which imports this module

        student = renew(student, trace, example_inputs, new_head, seed)
    return student


@torch.no_grad()
def disturb(student: nn.Module, growth: Growth, noise: float, exact: bool, seed: int) -> None:
    """Break the symmetry of the copies, on the weights that make them or, exactly, on those that read them."""
    if not noise:
        return
    role, add = ("sums", _disturb_readers) if exact else ("makes", _disturb_copies)
    for name, dim, axis in growth.each(student, role):
        add(get_tensor(student, name), dim, axis, noise, _generator(seed, "noise", name))


@uncollected()
def random_pad(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    init: Callable[[nn.Module], None] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> nn.Module:
    """The baseline of Net2WiderNet: the same wider model, padded with random weights (paper sec 3.1, "random pad").

    Old weights stay as they are; new rows and columns come from a random initialisation of the *wider* model (fan-in of
    the new shape), new batch-norm channels are weight 1, bias 0, mean 0, variance 1. The function is not preserved.

    init    is applied to every module of the wider model, as by `nn.Module.apply`, after each module's own
            `reset_parameters` where it has one; only the new rows and columns of what it does are kept.

    The other arguments, the result and the errors are those of `widen`.
    """

    if init is not None and not callable(init):
        raise GrowthError(f"init= is a {type(init).__name__}: expected a function that initialises a module")
    seed = whole(seed, "seed=")
    model = unwrapped(model)
    _, growth = _plan(model, example_inputs, factor, widths, modules, seed, strict)
    student = growth.copied(model)
    pad(student, growth, init, seed)
    remember(student, {"op": "random_pad", "seed": seed, **growth.record()})
    return student


@torch.no_grad()
def pad(student: nn.Module, growth: Growth, init: Callable[[nn.Module], None] | None, seed: int) -> None:
    """Put a random initialisation of the student wherever its teacher had no entry."""
    # On the CPU, with its generator alone: the draw depends on no device and disturbs no generator of one.
    fresh = copy.deepcopy(student).cpu()
    for name, tensor in tensors(fresh):
        if growth.axes(name) and tensor.is_floating_point():
            tensor.fill_(torch.nan)  # what stays so has no initialisation
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_generator(seed, "init", "").initial_seed())
        fresh.apply(_reset)
        if init is not None:
            fresh.apply(init)
    for (name, tensor), (_, random) in zip(tensors(student), tensors(fresh), strict=True):
        if growth.axes(name) and random.isnan().any():
            module = student.get_submodule(owner(name))
            raise GrowthError(
                f"nothing initialises {name!r}: {type(module).__name__} has no reset_parameters() that does; "
                "pass init=, a function that initialises a module"
            )
        old = torch.ones((), dtype=torch.bool)
        for dim, axis in growth.axes(name).items():
            old = old & ~axis.fresh.view(along(dim, tensor.ndim))
        tensor.copy_(torch.where(old.to(tensor.device), tensor, random.to(tensor.device)))


def _plan(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None,
    widths: Mapping[str, int] | None,
    modules: str | Sequence[str] | None,
    seed: int,
    strict: bool,
) -> tuple[Trace, Growth]:
    """How the model grows: as asked, in all that then repeats the teacher's forward pass."""
    trace = traced(model, example_inputs, strict=strict)
    return trace, settle(trace, example_inputs, factor, widths, modules, seed)


def settle(
    trace: Trace,
    example_inputs: Any,
    factor: float | None,
    widths: Mapping[str, int] | None = None,
    modules: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Growth:
    """Grow what was asked without data, and fix in the trace what turns out to count on its width, until all fits."""
    kept = Kept(trace)
    while True:
        targets = _targets(trace, factor, widths, modules)
        producers = trace.producers()
        maps = {
            space: _evenly(space.width, width)
            if space in trace.uniform
            else _draw(space.width, width, seed, producers[space][0])
            for space, width in targets.items()
        }
        growth = _growth(trace, maps, producers)
        kept.find(lambda axis, maps=maps: _size(axis, maps))
        while True:
            noted = growth.noting(kept.follow, kept.unclear)
            conflict = find_conflict(trace, noted, maps, example_inputs)
            if conflict is None:
                noted.stayed = _stayed(trace, maps, factor, modules)
                return noted
            if not kept.doubt(conflict.call.module):
                break
        _hold(trace, maps, conflict)


def _stayed(
    trace: Trace, maps: Maps, factor: float | None, modules: str | Sequence[str] | None
) -> list[dict[str, Any]]:
    """The channel spaces that do not grow, and why."""
    patterns = [modules] if isinstance(modules, str) else modules

    def why(space: Space, weights: list[str]) -> str:
        if factor is None:
            return "not asked for"
        if patterns is not None and not any(_inside(owner(w), pattern) for w in weights for pattern in patterns):
            return "outside modules="
        if round(space.width * factor) == space.width:
            return f"times {factor:g} it is no whole channel more"
        return "by whole-number factors only"

    return [
        {"made_by": weights, "width": space.width, "reason": space.fixed or why(space, weights)}
        for space, weights in trace.producers().items()
        if space not in maps
    ]


def _growth(trace: Trace, maps: Maps, producers: dict[Space, list[str]]) -> Growth:
    number = {space: k for k, space in enumerate(maps)}

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
            was = getattr(trace.skeleton.get_submodule(module), key)
            size = _size(axis, maps)
            attributes.setdefault(module, {})[key] = [size] if isinstance(was, (tuple, list)) else size
    spaces = [Channels(producers.get(space, []), space.width, g) for space, g in maps.items()]
    held: dict[str, int] = {}
    for space in producers:
        if space.fixed and space not in maps:
            kind = _kind(space.fixed)
            held[kind] = held.get(kind, 0) + 1
    return Growth(spaces, grown, attributes, held, unknown=trace.unknown)


def _size(axis: Axis, maps: Maps) -> int:
    return sum((len(maps[s]) if s in maps else s.width) * repeat for s, repeat in resolve(axis))


class Conflict(NamedTuple):
    """The first call of a forward pass at which a student does something else than its teacher's, and why."""

    call: Call
    calls: Sequence[Call]
    why: str


def find_conflict(trace: Trace, growth: Growth, maps: Maps, example_inputs: Any) -> Conflict | None:
    """Where a student does not repeat its teacher's forward pass: the same operations, with the same numbers, on
    tensors that have grown by the maps. A model can look at its widths in ways that no map can follow, e.g.
    `x / x.shape[1]`, `view(-1, 64)`, or a branch.

    The student has no data, unless its teacher had to be run with some.
    """
    if trace.real:
        student = local(growth.copied(trace.model))
        growth.divide(student)
    else:
        student = growth.emptied(trace.model)
    recording = Recording(student, trace.real)
    for training, theirs in ((False, trace.calls), (True, trace.training_calls)):
        if theirs is None:
            continue
        why = "its numbers, shapes or connections do not grow along"
        try:
            done = _first_difference(theirs, recording.run(example_inputs, training), maps, trace.real)
        except GrowthError as error:
            why = str(error)
            done = _first_difference(theirs, recording.calls, maps, trace.real)
            done = len(recording.calls) if done is None else done
        if done is not None:
            return Conflict(theirs[min(done, len(theirs) - 1)], theirs, why)
    return None


def _hold(trace: Trace, maps: Maps, conflict: Conflict) -> None:
    """Fix the channels at the place where a student's forward pass differs, for another try."""
    call, theirs, why = conflict
    reason = f"{call.name!r} in {place(call.module)} counts on their width"
    # What the operation reads and makes; if none of that grows, all that its module does: widths can travel.
    inside = [c for c in theirs if not call.module or f"{c.module}.".startswith(f"{call.module}.")]
    for calls in (_siblings(trace, call, theirs), inside):
        axes = [axis for c in calls for each in (*(v.axes for v in c.inputs), *c.axes) for axis in each]
        if any(axis is not None and _grows(axis, maps) for axis in axes):
            break
    else:
        raise GrowthError(
            f"the wider model's forward pass is not its teacher's: at {call.name!r} in {place(call.module)}, {why}"
        )
    for axis in axes:
        fix(axis, reason)
    trace.settle_groups()


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


def _first_difference(teacher: Sequence[Call], student: Sequence[Call], maps: Maps, real: bool) -> int | None:
    """The first call at which a student does something else than its teacher's, grown by the maps; for `real` numbers
    up to rounding, which moves what is computed from a sum."""

    def size(n: int, axis: Axis | None) -> int:
        return n if axis is None else _size(axis, maps)

    for at, (a, b) in enumerate(zip(teacher, student, strict=False)):
        if (a.name, a.module, a.sources) != (b.name, b.module, b.sources):
            return at
        sized = a.name in SIZED and any(value.tracked for value in a.inputs)
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


def _targets(
    trace: Trace,
    factor: float | None,
    widths: Mapping[str, int] | None,
    modules: str | Sequence[str] | None,
) -> dict[Space, int]:
    """The new width of every space that grows."""
    if (factor is None) == (widths is None):
        raise GrowthError("say how far to widen by either factor= or widths=, e.g. factor=1.5")
    if widths is not None:
        if modules is not None:
            raise GrowthError("modules= restricts factor=; widths= names its modules itself")
        if not isinstance(widths, Mapping):
            raise GrowthError(
                f"widths= is {widths!r}: expected a dict of layers and widths, e.g. {{'layer1.conv1': 96}}"
            )
        return _named_targets(trace, widths)
    if not isinstance(factor, Real):
        raise GrowthError(f"factor= is {factor!r}: expected a number, e.g. 1.5")
    if not 1 <= factor < inf:
        raise GrowthError(f"factor must be at least 1 and finite, got {factor}: this package only grows models")
    patterns = [modules] if isinstance(modules, str) else modules
    if patterns is not None:
        if not isinstance(patterns, Sequence) or not all(isinstance(each, str) for each in patterns):
            raise GrowthError(f"modules= is {modules!r}: expected a pattern or a list of them, e.g. 'layer1.*'")
        names = [name for name, _ in trace.skeleton.named_modules()]
        for pattern in patterns:
            if not any(_inside(name, pattern) for name in names):
                raise GrowthError(f"no module matches {pattern!r}; the top level is {_children(trace.skeleton)}")
    whole = float(factor).is_integer()
    targets = {
        space: round(space.width * factor)
        for space, weights in trace.producers().items()
        if not space.fixed
        and (whole or space not in trace.uniform)
        and (patterns is None or any(_inside(owner(w), pattern) for w in weights for pattern in patterns))
    }
    for space in list(targets):
        targets.update((other, round(other.width * factor)) for other in trace.uniform.get(space, ()))
    if not targets:
        where = "" if patterns is None else f" in {', '.join(patterns)}"
        reasons = _kinds([space.fixed for space in trace.producers() if space.fixed])
        if not whole and any(space in trace.uniform for space in trace.producers()):
            reasons.append(f"a whole-number factor would do where channels are normalised together, {factor} does not")
        raise GrowthError(f"nothing can grow{where}: {'; '.join(reasons) or 'no layer makes channels there'}")
    grown = {space: width for space, width in targets.items() if width > space.width}
    if factor > 1 and not grown:
        widest = max(space.width for space in targets)
        raise GrowthError(f"factor {factor} adds no whole channel to any layer: the widest has {widest}")
    return grown


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
    made: dict[str, tuple[str, int]] = {}
    for name, dim in trace.outputs:
        made.setdefault(owner(name), (name, dim))
    targets: dict[Space, tuple[int, str]] = {}
    asked: set[Space] = set()
    for module, width in widths.items():
        if module not in made:
            near = difflib.get_close_matches(module, made, 5) or list(made)
            rest = f" and {len(near) - 8} more" if len(near) > 8 else ""
            raise GrowthError(
                f"widths names {module!r}, which makes no channels; layers that do: {', '.join(near[:8])}{rest}"
            )
        name, dim = made[module]
        axis = resolve(trace.axes[name][dim] or ())
        if isinstance(width, bool) or not isinstance(width, int):
            raise GrowthError(f"the width of {module!r} must be a whole number of channels, got {width!r}")
        current = sum(space.width * repeat for space, repeat in axis)
        if width < current:
            raise GrowthError(f"{module!r} has {current} channels already: cannot widen it to {width}")
        space = axis[0][0]
        units = current // space.width  # how often a space comes, in a grouped convolution or before one
        if any(other is not space for other, _ in axis) or width % units:
            if width == current:
                continue
            parts = " + ".join(f"{s.width} × {repeat}" if repeat > 1 else str(s.width) for s, repeat in axis)
            fixed = next((f" ({s.fixed})" for s, _ in axis if s.fixed), "")
            hint = f"a multiple of {units}" if all(s is space for s, _ in axis) else "widen those, or use factor="
            raise GrowthError(f"the {current} channels of {module!r} follow other layers' ({parts}): {hint}{fixed}")
        width, current = width // units, space.width
        if space.fixed and width > current:
            raise GrowthError(f"cannot widen {module!r}: its channels have to stay as they are, {space.fixed}")
        if targets.get(space, (width, ""))[0] != width:
            other_width, other = targets[space]
            if space not in asked:
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
        asked.add(space)
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
    copies = torch.randint(old, (new - old,), generator=_generator(seed, "map", name))
    return torch.cat([torch.arange(old), copies])


def _evenly(old: int, new: int) -> torch.Tensor:
    """A map under which each channel comes equally often: what normalising over the channels needs."""
    return torch.arange(old).repeat(new // old)


def _generator(seed: int, purpose: str, name: str) -> torch.Generator:
    """A generator of its own for each draw: asking for one more layer changes no other layer's draw."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _grows(axis: Axis, maps: Maps) -> bool:
    return any(space in maps for space, _ in resolve(axis))


def _disturb_copies(weight: torch.Tensor, dim: int, axis: AxisMap, noise: float, generator: torch.Generator) -> None:
    """Add element-wise normal noise to the copied filters, relative to each filter's standard deviation (sec 2.3)."""
    rows, fresh = weight.movedim(dim, 0), axis.fresh.to(weight.device)
    rows[fresh] += noise * _spread(rows[fresh]) * _normal(rows[fresh], generator)


def _disturb_readers(weight: torch.Tensor, dim: int, axis: AxisMap, noise: float, generator: torch.Generator) -> None:
    """Add noise along the dimension that a layer sums over, with mean zero over the copies of each channel.

    What the layer computes stays the same as long as the copies are equal; each copy then gets a gradient of its own.
    """
    columns, index = weight.movedim(dim, 0), axis.index.to(weight.device)
    scale = _spread(columns.transpose(0, 1)).transpose(0, 1)
    draw = noise * scale * _normal(columns, generator)
    sums = torch.zeros_like(draw).index_add_(0, index, draw)
    columns += draw - sums[index] / axis.copies.to(draw).view(along(0, draw.ndim))


def _spread(filters: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each filter [n, …] -> [n, 1, …]; of a single weight, which has none, its size."""
    flat = filters.flatten(1)
    scale = flat.std(dim=1, correction=0) if flat.shape[1] > 1 else flat[:, 0].abs()
    return scale.view(along(0, filters.ndim))


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def whole(number: Any, name: str) -> int:
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise GrowthError(f"{name} is {number!r}: expected a whole number")
    return int(number)


def _reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a module's name matches a glob, both split at their dots; "**" stands for any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _inside(module: str, pattern: str) -> bool:
    """Whether a module matches the pattern, or lies inside one that does."""
    parts = module.split(".")
    return any(matches(parts[:n], pattern.split(".")) for n in range(1, len(parts) + 1))


def _children(model: nn.Module) -> str:
    return ", ".join(name for name, _ in model.named_children()) or "a model without children"


def remember(model: nn.Module, entry: dict[str, Any]) -> None:
    """Append to the record of what was done to a model; see `history`. It is read back first, as `replay` will."""
    if entry["op"] in ("widen", "random_pad"):
        growth_of(json.loads(json.dumps(entry)))
    model.net2net_history = [*copy.deepcopy(history(model)), entry]


def history(model: nn.Module) -> list[dict[str, Any]]:
    """What this package did to a model, oldest first: a list of plain dicts that JSON can hold."""
    return getattr(unwrapped(model), "net2net_history", [])
