"""Net2WiderNet (sec 2.3), and its baseline "random pad" (sec 3.1).

Widening is three steps. The channel spaces are found (`net2net.spaces`). For each space that grows, a map g from its
new channels to its old ones is drawn. Then every parameter and buffer is filled by the maps of its axes. Net2WiderNet
and its baseline differ in the fill alone:

replicate   new entries are copies; what a layer sums over is divided by the replica counts; noise on the copies
random pad  old entries stay where they are; new rows and columns keep the student's own random initialisation
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net.certificate import confirm
from net2net.errors import GrowthError
from net2net.spaces import Axis, Space, Step, Trace, fix, place, resolve, skeleton

Maps = dict[Space, torch.Tensor]


class AxisMap(NamedTuple):
    """How one axis of a parameter grows, for its n' new positions.

    index   [n'] the old position each new one copies
    copies  [n'] the replication factor |{x : g(x) = g(j)}| of the channel at each new position
    fresh   [n'] whether the position is a copy, i.e. not the first of its channel
    """

    index: torch.Tensor
    copies: torch.Tensor
    fresh: torch.Tensor


def widen(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    noise: float = 0.0,
    exact: bool = False,
    seed: int = 0,
    verify: bool = True,
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
    noise           standard deviation of the normal noise added to the weights of the copies (never to the first), as
                    a fraction of the filter's own standard deviation. With 0 the function is preserved exactly, but
                    copies only diverge if training treats them differently, e.g. by dropout.
    exact           put the noise on the weights that read the copies instead, in amounts that cancel over the copies of
                    each channel: the function is preserved to rounding, and the copies diverge once trained
    seed            of the maps and the noise. Each layer's draw depends on the seed and its name only.
    verify          compare both models on the example inputs (without noise that is not exact), and raise if the
                    function has moved further than rounding explains

    Returns a new model of the same class on the same device. An optimizer of the old model does not know the new
    parameters: build a new one. Raises `GrowthError` if what was asked cannot grow, and `UnsupportedOperation` for an
    operation through which the channels cannot be followed.
    """

    if not 0 <= noise < inf:
        raise GrowthError(f"noise is a fraction of each filter's standard deviation: expected at least 0, got {noise}")
    record = {"op": "widen", "noise": noise, "exact": exact}
    student, grown, trace = _grow(model, example_inputs, factor, widths, modules, seed, _divide, record)
    if verify and not exact:
        confirm(model, student, example_inputs)
    if noise:
        noisy, disturb = (trace.contracted, _disturb_readers) if exact else (set(trace.outputs), _disturb_copies)
        with torch.no_grad():
            for name, tensor in _tensors(student):
                for dim, axis in grown.get(name, {}).items():
                    if (name, dim) in noisy:
                        disturb(tensor, dim, axis, noise, _generator(seed, "noise", name))
    if verify and exact:
        confirm(model, student, example_inputs)
    return student


def _divide(student: nn.Module, grown: dict[str, dict[int, AxisMap]], trace: Trace) -> None:
    """Divide what a layer sums over by the replica counts, the first copy's share too."""
    for name, tensor in _tensors(student):
        for dim, axis in grown.get(name, {}).items():
            if (name, dim) in trace.contracted:
                tensor.div_(axis.copies.to(tensor).view(_along(dim, tensor.ndim)))


def random_pad(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    init: Callable[[nn.Module], None] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The baseline of Net2WiderNet: the same wider model, padded with random weights (paper sec 3.1, "random pad").

    Old weights stay as they are; new rows and columns come from a random initialisation of the *wider* model (fan-in of
    the new shape), new batch-norm channels are weight 1, bias 0, mean 0, variance 1. The function is not preserved.

    init    is applied to every module of the wider model, as by `nn.Module.apply`, after each module's own
            `reset_parameters` where it has one; only the new rows and columns of what it does are kept.

    The other arguments, the result and the errors are those of `widen`.
    """

    def pad(student: nn.Module, grown: dict[str, dict[int, AxisMap]], trace: Trace) -> None:
        # On the CPU, with its generator alone: the draw depends on no device and disturbs no generator of one.
        fresh = copy.deepcopy(student).cpu()
        for name, tensor in _tensors(fresh):
            if grown.get(name) and tensor.is_floating_point():
                tensor.fill_(torch.nan)  # what stays so has no initialisation
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_generator(seed, "init", "").initial_seed())
            fresh.apply(_reset)
            if init is not None:
                fresh.apply(init)
        for (name, tensor), (_, random) in zip(_tensors(student), _tensors(fresh), strict=True):
            if grown.get(name) and random.isnan().any():
                module = student.get_submodule(owner(name))
                raise GrowthError(
                    f"nothing initialises {name!r}: {type(module).__name__} has no reset_parameters() that does; "
                    "pass init=, a function that initialises a module"
                )
            old = torch.ones((), dtype=torch.bool)
            for dim, axis in grown.get(name, {}).items():
                old = old & ~axis.fresh.view(_along(dim, tensor.ndim))
            tensor.copy_(torch.where(old.to(tensor.device), tensor, random.to(tensor.device)))

    return _grow(model, example_inputs, factor, widths, modules, seed, pad, {"op": "random_pad"})[0]


def _grow(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None,
    widths: Mapping[str, int] | None,
    modules: str | Sequence[str] | None,
    seed: int,
    fill: Callable[[nn.Module, dict[str, dict[int, AxisMap]], Trace], None],
    record: dict[str, Any],
) -> tuple[nn.Module, dict[str, dict[int, AxisMap]], Trace]:
    trace = Trace(model, example_inputs)
    while True:
        targets = _targets(trace, factor, widths, modules)
        producers = trace.producers()
        maps = {space: _draw(space.width, width, seed, producers[space][0]) for space, width in targets.items()}
        grown = {
            name: {
                dim: _axis_map(axis, maps) for dim, axis in enumerate(axes) if axis is not None and _grows(axis, maps)
            }
            for name, axes in trace.axes.items()
        }
        if _repeats(_cut(trace.skeleton, grown), example_inputs, trace, maps):
            break
    student = _cut(model, grown)
    with torch.no_grad():
        fill(student, grown, trace)
    spaces = [
        {"made_by": producers[space], "from": space.width, "to": len(g), "copies_of": g[space.width :].tolist()}
        for space, g in maps.items()
    ]
    remember(student, {**record, "seed": seed, "spaces": spaces})
    return student, grown, trace


def _repeats(student: nn.Module, example_inputs: Any, trace: Trace, maps: Maps) -> bool:
    """Whether a student (without data) repeats its teacher's forward pass: the same operations, with the same numbers,
    on tensors that have grown by the maps. A model can look at its widths in ways that no map can follow, e.g.
    `x / x.shape[1]`, `view(-1, 64)`, or a branch. The channels at the first such place are then fixed, for another try.
    """
    why, broke = "its numbers, shapes or connections do not grow along", False
    theirs = trace.steps
    try:
        student_trace = Trace(student, example_inputs)
        steps: Sequence[Step] = student_trace.steps
    except GrowthError as error:
        steps, why, broke = error.steps, str(error), True
    if not broke and _first_difference(theirs, steps, maps) is None:
        if trace.training_steps is None or student_trace.training_steps is None:
            return trace.training_steps is student_trace.training_steps
        theirs, steps = trace.training_steps, student_trace.training_steps
    done = _first_difference(theirs, steps, maps)
    if done is None and not broke:
        return True
    done = len(steps) if done is None else done
    step = theirs[min(done, len(theirs) - 1)]
    reason = f"{step.name!r} in {place(step.module)} counts on their width"
    # What the operation reads and makes; if none of that grows, all that its module does: widths can travel.
    inside = [s for s in theirs if f"{s.module}.".startswith(f"{step.module}.")]
    for steps in ([step], inside):
        axes = [axis for s in steps for each in (*(v.axes for v in s.inputs), *s.axes) for axis in each]
        if any(axis is not None and _grows(axis, maps) for axis in axes):
            break
    else:
        raise GrowthError(
            f"the wider model's forward pass is not its teacher's: at {step.name!r} in {place(step.module)}, {why}"
        )
    for axis in axes:
        fix(axis, reason)
    return False


def _first_difference(teacher: Sequence[Step], student: Sequence[Step], maps: Maps) -> int | None:
    """The first step at which a student does something else than its teacher's step, grown by the maps."""

    def size(n: int, axis: Axis | None) -> int:
        return n if axis is None else sum(len(maps.get(s, range(s.width))) * repeat for s, repeat in resolve(axis))

    for at, (a, b) in enumerate(zip(teacher, student, strict=False)):
        shapes = [tuple(map(size, shape, axes)) for shape, axes in zip(a.shapes, a.axes, strict=True)]
        skipped = [size(n, axis) for n, axis in a.skipped]
        expected = (a.name, a.module, a.numbers, shapes, skipped, a.sources)
        if expected != (b.name, b.module, b.numbers, b.shapes, [n for n, _ in b.skipped], b.sources):
            return at
    return None if len(teacher) == len(student) else min(len(teacher), len(student))


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
        return _named_targets(trace, widths)
    if not 1 <= factor < inf:
        raise GrowthError(f"factor must be at least 1 and finite, got {factor}: this package only grows models")
    patterns = [modules] if isinstance(modules, str) else modules
    if patterns is not None:
        names = [name for name, _ in trace.skeleton.named_modules()]
        for pattern in patterns:
            if not any(_inside(name, pattern) for name in names):
                raise GrowthError(f"no module matches {pattern!r}; the top level is {_children(trace.skeleton)}")
    targets = {
        space: round(space.width * factor)
        for space, weights in trace.producers().items()
        if not space.fixed
        and (patterns is None or any(_inside(owner(w), pattern) for w in weights for pattern in patterns))
    }
    if not targets:
        where = "" if patterns is None else f" in {', '.join(patterns)}"
        reasons = {space.fixed for space in trace.producers() if space.fixed}
        raise GrowthError(f"nothing can grow{where}: {'; '.join(sorted(reasons)) or 'no layer makes channels there'}")
    grown = {space: width for space, width in targets.items() if width > space.width}
    if factor > 1 and not grown:
        widest = max(space.width for space in targets)
        raise GrowthError(f"factor {factor} adds no whole channel to any layer: the widest has {widest}")
    return grown


def _named_targets(trace: Trace, widths: Mapping[str, int]) -> dict[Space, int]:
    if not widths:
        raise GrowthError("widths= is empty: name at least one layer, e.g. {'layer1.conv1': 96}")
    made: dict[str, tuple[str, int]] = {}
    for name, dim in trace.outputs:
        made.setdefault(owner(name), (name, dim))
    targets: dict[Space, tuple[int, str]] = {}
    for module, width in widths.items():
        if module not in made:
            raise GrowthError(f"widths names {module!r}, which makes no channels; layers that do: {', '.join(made)}")
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
            raise GrowthError(
                f"{module!r} ({width}) and {other!r} ({other_width}) share their channels: give both the same width"
            )
        targets[space] = (width, module)
    return {space: width for space, (width, _) in targets.items() if width > space.width}


def _draw(old: int, new: int, seed: int, name: str) -> torch.Tensor:
    """The random map g of sec 2.3: the identity for the first `old` channels, then uniform with replacement."""
    copies = torch.randint(old, (new - old,), generator=_generator(seed, "map", name))
    return torch.cat([torch.arange(old), copies])


def _generator(seed: int, purpose: str, name: str) -> torch.Generator:
    """A generator of its own for each draw: asking for one more layer changes no other layer's draw."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _grows(axis: Axis, maps: Maps) -> bool:
    return any(space in maps for space, _ in resolve(axis))


def _axis_map(axis: Axis, maps: Maps) -> AxisMap:
    """Put the maps of an axis' blocks one after the other, shifted by the old widths before them (sec 2.3)."""
    index, copies, fresh, offset = [], [], [], 0
    for space, repeat in resolve(axis):
        g = maps.get(space)
        if g is None:
            g = torch.arange(space.width)
        inner = torch.arange(repeat)
        index.append((offset + g[:, None] * repeat + inner).flatten())
        counts = torch.bincount(g, minlength=space.width)[g]
        copies.append(counts.repeat_interleave(repeat))
        fresh.append((torch.arange(len(g)) >= space.width).repeat_interleave(repeat))
        offset += space.width * repeat
    return AxisMap(torch.cat(index), torch.cat(copies), torch.cat(fresh))


def _cut(model: nn.Module, grown: dict[str, dict[int, AxisMap]]) -> nn.Module:
    """The student: a copy of the model with each parameter and buffer indexed by its maps."""
    student = skeleton(model)
    data = {}
    for name, tensor in _tensors(model):
        new = tensor.detach()
        for dim, axis in grown.get(name, {}).items():
            new = new.index_select(dim, axis.index.to(new.device))
        data[name] = new.clone() if new.data_ptr() == tensor.data_ptr() else new
    replaced: dict[int, torch.Tensor] = {}
    for name, empty in _tensors(student):
        if isinstance(empty, nn.Parameter):
            replaced[id(empty)] = nn.Parameter(data[name], requires_grad=empty.requires_grad)
        else:
            replaced[id(empty)] = data[name]
    for module in student.modules():
        for tensors in (module._parameters, module._buffers):
            for key, empty in tensors.items():
                if empty is not None:
                    tensors[key] = replaced[id(empty)]
        _note_widths(module)
    return student


def _note_widths(module: nn.Module) -> None:
    """Bring a layer's own record of its widths up to date with its weight."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
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
    columns += draw - sums[index] / axis.copies.to(draw).view(_along(0, draw.ndim))


def _spread(filters: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each filter [n, …] -> [n, 1, …]; of a single weight, which has none, its size."""
    flat = filters.flatten(1)
    scale = flat.std(dim=1, correction=0) if flat.shape[1] > 1 else flat[:, 0].abs()
    return scale.view(_along(0, filters.ndim))


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _along(dim: int, ndim: int) -> list[int]:
    """The shape in which a vector lies along dimension `dim` of a tensor with `ndim` dimensions."""
    return [-1 if d == dim else 1 for d in range(ndim)]


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
    """Append to the record of what was done to a model; see `history`."""
    model.net2net_history = [*copy.deepcopy(history(model)), entry]


def history(model: nn.Module) -> list[dict[str, Any]]:
    """What this package did to a model, oldest first: a list of plain dicts that JSON can hold."""
    return getattr(model, "net2net_history", [])
