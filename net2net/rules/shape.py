"""Operations that move elements without changing them: concatenation, flattening, reordering of dimensions."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from net2net.recording import Call, slices
from net2net.rules.opaque import opaque
from net2net.spaces import Axis, Space, cut, fix, length, resolve, tie

if TYPE_CHECKING:
    from net2net.trace import Trace, Value


# The dimension of those that are named after it; a tensor that has fewer gets others first.
NAMED_DIMS = {
    **{"vstack": 0, "row_stack": 0, "hstack": 1, "column_stack": 1, "dstack": 2},
    **{"vsplit": 0, "hsplit": 1, "dsplit": 2},
}


def _named_dim(call: Call) -> int | None:
    dim, ndim = NAMED_DIMS[call.name], min(value.tensor.ndim for value in call.inputs)
    if call.name in ("hstack", "hsplit") and ndim == 1:
        return 0
    return dim if ndim >= max(2, dim + 1) else None


def concatenate(trace: Trace, call: Call) -> list[Axis | None]:
    dim = _named_dim(call) if call.name in NAMED_DIMS else call.get(1, "dim", call.kwargs.get("axis", 0))
    if dim is None:
        return opaque(trace, call)
    dim %= call.out.ndim
    # An empty vector fits beside everything, e.g. a cache that nothing is in yet.
    inputs = [value for value in call.inputs if value.tensor.ndim == call.out.ndim]
    out = list(inputs[0].axes)
    for value in inputs[1:]:
        for d in range(call.out.ndim):
            if d != dim and (out[d] is not None or value.axes[d] is not None):
                tie(out[d], value.axes[d], f"{call.where} lines them up with a tensor that cannot follow")
    if any(value.axes[dim] is not None for value in inputs):
        blocks: list = []
        for value in inputs:
            axis = value.axes[dim]
            blocks += axis if axis is not None else [(Space(value.tensor.shape[dim], "they are constant"), 1)]
        out[dim] = tuple(blocks)
    return out


def _merge(call: Call, dims: list[tuple[int, Axis | None]]) -> Axis | None:
    """The axis of several neighbouring dimensions (size, axis) flattened into one."""
    tracked = [i for i, (_, axis) in enumerate(dims) if axis is not None]
    if len(tracked) > 1:  # what cannot grow anyway need not be followed
        tracked = [i for i in tracked if not all(space.fixed for space, _ in resolve(dims[i][1] or ()))] or tracked[:1]
    if not tracked:
        return None
    wide = [i for i in tracked if dims[i][0] > 1]
    if len(tracked) > 1 and len(wide) == 1:  # beside a parameter's dimension of size 1, which then stays so
        for i in set(tracked) - set(wide):
            fix(dims[i][1], f"{call.where} drops the dimension of their single channel")
        tracked = wide
    i, *others = tracked
    for other in others:
        fix(dims[other][1], f"{call.where} merges two dimensions that both hold channels")
    outer, inner = (prod(n for n, _ in part) for part in (dims[:i], dims[i + 1 :]))
    axis = dims[i][1] or ()
    return tuple((space, repeat * inner) for space, repeat in axis) * outer


def _separate(trace: Trace, call: Call, axis: Axis, sizes: list[int], unsaid: int | None = None) -> list[Axis | None]:
    """One dimension that holds channels, in several of the given sizes: one of them goes on holding the channels.

    It is the first after which nothing but repeats of the channels lies: [C * HW] -> [C, HW] undoes a flattening;
    [C] -> [G, C / G] makes G groups, which then share one map. Where the code leaves one size to PyTorch (`unsaid`, its
    -1), as in [C] -> [-1, 2], it is that one. In a module that says how many heads it has, these are the channels, each
    as a whole; so it is elsewhere if nothing else can grow (`Trace.choices`).
    """
    repeats = [repeat for _, repeat in resolve(axis)]
    inner = [prod(sizes[at + 1 :]) for at in range(len(sizes))]
    options = [at for at, size in enumerate(sizes) if size != 1]
    undone = [at for at in options if not any(repeat % inner[at] for repeat in repeats)]
    said = [at for at in options if sizes[at] in _numbers_of_heads(trace, call).values()]
    if said:  # the last that could be meant, but for the last dimension where there is another: that is a head's width
        *others, at = said
        default = others[-1] if others and at == len(sizes) - 1 else at
    elif unsaid in options:
        default = unsaid
    elif undone:
        default = undone[0]
    else:
        default = None
    key = (call.module, tuple(sizes))
    at = trace.choices.get(key, default)
    if at is None:
        at = default = options[-1] if options else None
    if at is None:
        fix(axis, f"{call.where} takes them apart")
        return [None] * len(sizes)
    outer = prod(sizes[:at])
    parts: list[Axis | None] = [None] * len(sizes)
    if at in undone and at not in said:
        reason = f"{call.where} takes them apart"
        first, *others = cut(axis, [sizes[at] * inner[at]] * outer, reason)
        for other in others:
            tie(first, other, reason)
        parts[at] = tuple((space, repeat // inner[at]) for space, repeat in resolve(first))
    else:
        parts[at] = _heads(trace, call, axis, sizes[at], inner[at], outer)
    for path in _sizes_kept(trace, call, at, sizes[at]):
        trace.keeps(call.module, path, parts[at])
    rest = [default, *(other for other in reversed(options) if other != default)]
    trace.separated.setdefault(key, (at, rest, []))[2].append(parts[at] or ())
    return parts


def _heads(trace: Trace, call: Call, axis: Axis, heads: int, width: int, outer: int) -> Axis:
    """[outer * heads * width] -> […, heads, …]: these grow, each as a whole."""
    kept = _numbers_of_heads(trace, call)
    made = "attention heads" if heads in kept.values() else "groups"
    reason = f"{call.where} makes {made} of them"
    head: Axis = ((Space(heads), 1),)
    for part in cut(axis, [heads * width] * outer, reason):
        tie(part, tuple((space, repeat * width) for space, repeat in resolve(head)), reason)
    trace.in_steps(head, f"{call.where} makes {made} of {width} of them")
    for key, number in kept.items():
        if number == heads:
            trace.keeps(call.module, key, head)
    # What else the module may keep is the length of all heads together; whether it does shows when the student runs.
    together = tuple((space, width) for space, _ in head)
    for key, value in vars(trace.skeleton.get_submodule(call.module)).items():
        if type(value) is int and value == length(together):
            trace.keeps(call.module, key, together)
    return head


def _sizes_kept(trace: Trace, call: Call, at: int, size: int) -> list[str]:
    """Where a module that does nothing but take apart keeps this size: nn.Unflatten, and einops' Rearrange."""
    kept = vars(trace.skeleton.get_submodule(call.module))
    unflattened, named = kept.get("unflattened_size"), kept.get("_axes_lengths")
    if isinstance(unflattened, tuple) and unflattened[at : at + 1] == (size,):
        return [f"unflattened_size.{at}"]
    if isinstance(named, tuple):
        pairs = [(k, pair[0]) for k, pair in enumerate(named) if isinstance(pair, tuple) and pair[1:] == (size,)]
        # einops reads the former; a copy is made of the latter.
        return [path for k, name in pairs for path in (f"_axes_lengths.{k}.1", f"axes_lengths.{name}")]
    return []


def _numbers_of_heads(trace: Trace, call: Call) -> dict[str, int]:
    """The numbers of heads that the running module keeps, by attribute."""
    found = vars(trace.skeleton.get_submodule(call.module)).items()
    return {key: value for key, value in found if type(value) is int and value > 1 and NUMBER_OF_HEADS.fullmatch(key)}


NUMBER_OF_HEADS = re.compile(
    r"_?(n|num|nb|number_of)?_?(\w+_)?heads?|n?_?h|nhead|(n|num)_?(kv|q)|(kv|q)_?h|n?h_?(kv|q)"
)


def reshape(trace: Trace, call: Call) -> list[Axis | None]:
    """Dimensions kept, merged with their neighbours, or taken apart."""
    value, new = call.inputs[0], list(call.out.shape)
    old = list(zip(value.tensor.shape, value.axes, strict=True))
    out: list[Axis | None] = []
    i, j = 0, 0
    while j < len(new):
        # A size of 1 is one that was there, or a new one; others gather dimensions until both sides have one product.
        group = [old[i]] if i < len(old) and (new[j] != 1 or old[i][0] == 1) else []
        sizes = [new[j]]
        i, j = i + len(group), j + 1
        while (a := prod(size for size, _ in group)) != (b := prod(sizes)):
            if a < b:
                group.append(old[i])
                i += 1
            else:
                sizes.append(new[j])
                j += 1
        if len(sizes) == 1:
            out.append(_merge(call, group))
        elif len(group) == 1 and group[0][1] is not None:
            unsaid = _unsaid(call)
            out += _separate(trace, call, group[0][1], sizes, None if unsaid is None else unsaid - (j - len(sizes)))
        else:
            for _, axis in group:
                fix(axis, f"{call.where} takes them apart")
            out += [None] * len(sizes)
    for _, axis in old[i:]:
        fix(axis, f"{call.where} drops the dimension of their single channel")
    return out


def _unsaid(call: Call) -> int | None:
    """Which dimension of a result has the size that the code leaves to PyTorch, by -1."""
    first = 2 if call.name == "unflatten" else 1
    sizes = call.kwargs.get("sizes", call.kwargs.get("shape", call.args[first:]))
    sizes = list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)
    if -1 not in [size for size in sizes if isinstance(size, int)]:
        return None
    before = call.get(1, "dim") % call.inputs[0].tensor.ndim if first == 2 else 0
    return before + sizes.index(-1)


def flatten(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    dims = list(zip(value.tensor.shape, value.axes, strict=True))
    start, end = (d % len(dims) for d in (call.get(1, "start_dim", 0), call.get(2, "end_dim", -1)))
    return [*value.axes[:start], _merge(call, dims[start : end + 1]), *value.axes[end + 1 :]]


def permute(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    order = list(range(value.tensor.ndim))
    if call.name in ("t", "T", "H"):
        order.reverse()
    elif call.name in ("transpose", "swapaxes", "swapdims", "mT", "mH", "adjoint"):
        first, second = ("axis0", "axis1") if call.name == "swapaxes" else ("dim0", "dim1")
        whole = call.name in ("mT", "mH", "adjoint")
        a, b = (-1, -2) if whole else (call.get(1, first), call.get(2, second))
        order[a], order[b] = order[b], order[a]
    else:
        dims = call.kwargs.get("dims", call.args[1:])
        order = list(dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    return [value.axes[d] for d in order]


def squeeze(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    dims = call.get(1, "dim")
    every = range(value.tensor.ndim)
    chosen = every if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % value.tensor.ndim for d in chosen if value.tensor.shape[d] == 1}
    for d in gone:
        fix(value.axes[d], f"{call.where} drops the dimension of their single channel")
    return [axis for d, axis in enumerate(value.axes) if d not in gone]


def at_least(trace: Trace, call: Call) -> list[Axis | None]:
    """A vector gets a dimension before its own, a matrix one behind its two."""
    if isinstance(call.out, (tuple, list)):
        return opaque(trace, call)
    axes = list(call.inputs[0].axes)
    if call.out.ndim > len(axes) == 1:
        axes.insert(0, None)
    return axes + [None] * (call.out.ndim - len(axes))


def unsqueeze(trace: Trace, call: Call) -> list[Axis | None]:
    out = list(call.inputs[0].axes)
    out.insert(call.get(1, "dim") % (len(out) + 1), None)
    return out


def pieces(trace: Trace, call: Call) -> list[list[Axis | None]]:
    """Consecutive parts along a dimension. Parts of one size grow alike, so that equal parts stay equal."""
    value = call.inputs[0]
    dim = _named_dim(call) if call.name in NAMED_DIMS else call.get(2, "dim", call.kwargs.get("axis", 0))
    if dim is None:
        return opaque(trace, call)
    dim %= value.tensor.ndim
    sizes = [tensor.shape[dim] for tensor in call.out]
    axis, parts = value.axes[dim], [None] * len(sizes)
    if axis is not None:
        reason = f"{call.where} takes them apart"
        parts = cut(axis, sizes, reason)
        first = dict(reversed(list(zip(sizes, parts, strict=True))))
        for size, part in zip(sizes, parts, strict=True):
            if part is not first[size]:
                tie(first[size], part, reason)
    return [[part if d == dim else a for d, a in enumerate(value.axes)] for part in parts]


def unbind(trace: Trace, call: Call) -> list[list[Axis | None]]:
    value = call.inputs[0]
    dim = call.get(1, "dim", 0) % value.tensor.ndim
    fix(value.axes[dim], f"{call.where} takes them apart")
    return [[axis for d, axis in enumerate(value.axes) if d != dim] for _ in call.out]


def getitem(trace: Trace, call: Call) -> list[Axis | None]:
    """Slices with step 1, whole numbers, None and `...`."""
    value = call.inputs[0]
    items = slices(value.tensor.shape, call.args[1])
    if items is None:
        return _picked(trace, call, value)
    out: list[Axis | None] = []
    dims = iter(zip(value.tensor.shape, value.axes, strict=True))
    takes: list[Callable[[], None]] = []
    for item in items:
        if item is None:
            out.append(None)
            continue
        size, axis = next(dims)
        if isinstance(item, int):
            if axis is not None:
                takes.append(partial(fix, axis, f"{call.where} takes one of them"))
            call.counted.append(None)
            continue
        start, stop, step = item
        whole = item == (0, size, 1)
        before, part = None, axis if whole else None
        if not whole and axis is not None and step == 1 and start <= stop:
            sizes, reason = [start, stop - start, size - stop], f"{call.where} takes a part of them"
            if stop - start != 1:
                before, part, _ = cut(axis, sizes, reason)
            else:
                takes.append(partial(_take, call, out, (len(call.counted), len(out)), axis, sizes, reason))
        elif not whole:
            fix(axis, f"{call.where} takes some of them")
        call.counted += [before, None]
        out.append(part)
    if takes:  # what takes one channel may do so for the shape, as `zeros_like(x[:, :1])` does
        trace.unread(call.out, lambda: [take() for take in takes])
    return out


def _take(
    call: Call, out: list[Axis | None], places: tuple[int, int], axis: Axis, sizes: list[int], reason: str
) -> None:
    """Divide an axis, of which a slice is the middle part, once that is read."""
    counted, dim = places
    call.counted[counted], out[dim], _ = cut(axis, sizes, reason)


def _picked(trace: Trace, call: Call, value: Value) -> list[Axis | None]:
    """By tensors of places or a mask, e.g. the last word of each sentence: along other dimensions all is kept."""
    return opaque(trace, call) if (axes := _part(trace, call, value, call.args[1])) is None else axes


def _part(trace: Trace, call: Call, value: Value, index: Any) -> list[Axis | None] | None:
    """The axes of a part that tensors of places or a mask say; None for an index that does not say it so."""
    items = list(index) if isinstance(index, tuple) else [index]
    try:  # places can be a list
        items = [torch.tensor(item, device="cpu") if isinstance(item, list) else item for item in items]
    except (TypeError, ValueError):  # of tensors, or of slices
        return None
    tensors = [item for item in items if isinstance(item, torch.Tensor)]
    masks = [item for item in tensors if item.dtype in (torch.bool, torch.uint8)]
    others = [item for item in items if not isinstance(item, torch.Tensor)]
    if any(not (item is Ellipsis or type(item) is int or item == slice(None)) for item in others) or (
        not tensors or any(item.is_floating_point() for item in tensors) or (masks and len(tensors) > 1)
    ):
        return None
    taken = sum(mask.ndim for mask in masks) + len(tensors) - len(masks) + sum(item is not Ellipsis for item in others)
    if Ellipsis not in others:
        items.append(Ellipsis)
    at = next(k for k, item in enumerate(items) if item is Ellipsis)
    items[at : at + 1] = [slice(None)] * (value.tensor.ndim - taken)
    axes, kept, places = iter(value.axes), list[Axis | None](), set[int]()
    for item in items:
        if isinstance(item, slice):
            kept.append(next(axes))
            continue
        places.add(len(kept))
        for axis in [next(axes) for _ in range(item.ndim if masks and isinstance(item, torch.Tensor) else 1)]:
            fix(axis, f"{call.where} picks some of them")
        for axis in trace.axes_of(item) if isinstance(item, torch.Tensor) else []:
            fix(axis, f"{call.where} picks by them")
    start = min(places) if len(places) == 1 else 0  # where indices stand apart, what they pick comes first
    listed = 1 if masks else max(item.ndim for item in tensors)
    return [*kept[:start], *[None] * listed, *kept[start:]]


def overwrite(trace: Trace, call: Call, index: Any, new: Any) -> bool:
    """`x[index] = new` by tensors of places or a mask: along other dimensions both follow one map. False for any other
    index."""
    value, reason = call.inputs[0], f"{call.where} overwrites a part of a tensor"
    is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
    if is_mask and not (isinstance(new, torch.Tensor) and new.ndim):  # one number wherever it holds
        for own, its in zip(value.axes, trace.axes_of(index), strict=False):
            tie(own, its, reason)
        return True
    part = _part(trace, call, value, index)
    if part is None:
        return False
    if isinstance(new, torch.Tensor):
        its = trace.axes_of(new)
        if len(its) > len(part):
            return False
        for own, other, n in zip(part[len(part) - len(its) :], its, new.shape, strict=True):
            if n == 1 and own is not None and length(own) > 1:  # spread over all of them: equal for every copy
                fix(other, reason)
            else:
                tie(own, other, reason)
    return True


def index_put(trace: Trace, call: Call) -> list[Axis | None]:
    index = tuple(slice(None) if item is None else item for item in call.get(1, "indices"))
    if not overwrite(trace, call, index if len(index) > 1 else index[0], call.get(2, "values")):
        return opaque(trace, call)
    return list(call.inputs[0].axes)


def narrow(trace: Trace, call: Call) -> list[Axis | None]:
    value, dim, size = call.inputs[0], call.get(1, "dim"), call.get(3, "length")
    if not call.counts:
        return opaque(trace, call)
    (start,) = call.counts
    out, dim = list(value.axes), dim % value.tensor.ndim
    before = None
    if out[dim] is not None:
        rest = value.tensor.shape[dim] - start - size
        before, out[dim], _ = cut(out[dim], [start, size, rest], f"{call.where} takes a part of them")
    call.counted.append(before)
    return out


def expand(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    new = call.out.ndim - value.tensor.ndim
    out = [_spread(trace, call, None, n) for n in call.out.shape[:new]]
    for size, wanted, axis in zip(value.tensor.shape, call.out.shape[new:], value.axes, strict=True):
        out.append(axis if size == wanted else _spread(trace, call, axis, wanted))
    return out


def _spread(trace: Trace, call: Call, axis: Axis | None, copies: int) -> Axis | None:
    """A single channel, as many times as the code asks for: all are equal, so that any map will do for them. So it is
    for what else a constant or whole numbers, places in another tensor, have once, and for keys that all heads share;
    of anything else that is no channel."""
    value = call.inputs[0]
    free = value.constant or value.tensor.dtype in (torch.int64, torch.int32)
    if copies == 1 or not (axis or free or copies in _numbers_of_heads(trace, call).values()):
        return None
    fix(axis, f"{call.where} broadcasts them")
    return ((Space(copies), 1),)


def repeat(trace: Trace, call: Call) -> list[Axis | None]:
    """All of a dimension, several times in a row."""
    value = call.inputs[0]
    times = call.kwargs.get("repeats", call.kwargs.get("dims", call.args[1:]))
    times = list(times[0] if len(times) == 1 and not isinstance(times[0], int) else times)
    times = [1] * (call.out.ndim - len(times)) + times
    new = call.out.ndim - value.tensor.ndim
    out = [_spread(trace, call, None, n) for n in times[:new]]
    for size, n, axis in zip(value.tensor.shape, times[new:], value.axes, strict=True):
        out.append(_spread(trace, call, axis, n) if size == 1 and n > 1 else axis and axis * n)
    return out


def repeat_interleave(trace: Trace, call: Call) -> list[Axis | None]:
    """Each entry of a dimension, several times in a row."""
    value, times, dim = call.inputs[0], call.get(1, "repeats"), call.get(2, "dim")
    if not isinstance(times, int) or dim is None:
        return opaque(trace, call)
    out = list(value.axes)
    out[dim] = out[dim] and tuple((space, n * times) for space, n in out[dim])
    return out


def pixel_shuffle(trace: Trace, call: Call) -> list[Axis | None]:
    """[C * r * r, H, W] -> [C, H * r, W * r], or back: what becomes one channel shares a map, as with a flattening."""
    axes, down = list(call.inputs[0].axes), call.name == "pixel_unshuffle"
    area = call.get(1, "downscale_factor" if down else "upscale_factor") ** 2
    for axis in axes[-2:]:
        fix(axis, f"{call.where} mixes them with channels")
    channels = axes[-3]
    if channels is not None and down:
        channels = tuple((space, n * area) for space, n in channels)
    elif channels is not None:
        whole: Axis = ((Space(call.out.shape[-3]), 1),)
        tie(channels, tuple((space, area) for space, _ in whole), f"{call.where} makes pixels of them")
        trace.in_steps(whole, f"{call.where} makes pixels of {area} of them")
        channels = whole
    return [*axes[:-3], channels, None, None]


def channel_shuffle(trace: Trace, call: Call) -> list[Axis | None]:
    """Channel j of group k goes to place k of the j-th row: groups share one map."""
    axes, groups = list(call.inputs[0].axes), call.get(1, "groups")
    if axes[1] is not None:
        reason = f"{call.where} takes them apart"
        first, *others = cut(axes[1], [call.out.shape[1] // groups] * groups, reason)
        for other in others:
            tie(first, other, reason)
        axes[1] = tuple((space, n * groups) for space, n in resolve(first))
    return axes


def movedim(trace: Trace, call: Call) -> list[Axis | None]:
    ndim = call.inputs[0].tensor.ndim
    source, target = (
        [n] if isinstance(n, int) else list(n) for n in (call.get(1, "source"), call.get(2, "destination"))
    )
    order: dict[int, int] = {t % ndim: s % ndim for s, t in zip(source, target, strict=True)}
    rest = iter(d for d in range(ndim) if d not in order.values())
    return [call.inputs[0].axes[order[d] if d in order else next(rest)] for d in range(ndim)]


def glu(trace: Trace, call: Call) -> list[Axis | None]:
    """One half gates the other."""
    axes, dim = list(call.inputs[0].axes), call.get(1, "dim", -1)
    if axes[dim] is not None:
        reason = f"{call.where} takes them apart"
        first, second = cut(axes[dim], [call.out.shape[dim]] * 2, reason)
        tie(first, second, reason)
        axes[dim] = resolve(first)
    return axes


def select(trace: Trace, call: Call) -> list[Axis | None]:
    """Places along one dimension, the same ones for all others."""
    value, index, dim = call.inputs[0], call.inputs[1], call.get(1, "dim")
    fix(value.axes[dim], f"{call.where} picks some of them")
    for axis in index.axes:
        fix(axis, f"{call.where} picks by them")
    return [None if d == dim % value.tensor.ndim else axis for d, axis in enumerate(value.axes)]


def gather(trace: Trace, call: Call) -> list[Axis | None]:
    """A place along one dimension for each entry of an index."""
    value, index, dim = call.inputs[0], call.inputs[1], call.get(1 if call.name == "gather" else 2, "dim")
    if dim is None:
        return opaque(trace, call)
    out: list[Axis | None] = list(index.axes)
    for d, (n, axis, m, other) in enumerate(
        zip(value.tensor.shape, value.axes, index.tensor.shape, index.axes, strict=True)
    ):
        if d == dim % len(out) or n != m:
            fix(axis, f"{call.where} picks some of them")
            fix(other, f"{call.where} picks by them")
            out[d] = None
        elif axis is not None or other is not None:
            tie(axis, other, f"{call.where} picks by a tensor that cannot follow")
    return out


def put(trace: Trace, call: Call) -> list[Axis | None]:
    """Something is put, or added, at places along one dimension; along the others all of it lines up."""
    value, index = call.inputs[0], trace.value_of(call.get(2, "index"))
    source = call.get(3, "source" if call.name.startswith("index") else "src")
    dim = call.get(1, "dim") % value.tensor.ndim
    beside = [trace.value_of(source)] if isinstance(source, torch.Tensor) and source.ndim else []
    if index.tensor.ndim == value.tensor.ndim and not call.name.startswith("index"):
        beside.append(index)
    else:
        fix(index.axes[0] if index.axes else None, f"{call.where} puts something at them")
    fix(value.axes[dim], f"{call.where} puts something at some of them")
    for other in beside:
        for d, (n, axis, m, its) in enumerate(
            zip(value.tensor.shape, value.axes, other.tensor.shape, other.axes, strict=True)
        ):
            if d == dim or n != m:
                fix(axis, f"{call.where} puts something at some of them")
                fix(its, f"{call.where} puts them at some places")
            elif axis is not None or its is not None:
                tie(axis, its, f"{call.where} lines them up with a tensor that cannot follow")
    return [None if d == dim else axis for d, axis in enumerate(value.axes)]


def triangle(trace: Trace, call: Call) -> list[Axis | None]:
    axes = call.inputs[0].axes
    for axis in axes[-2:]:
        fix(axis, f"{call.where} needs every one of them as it is")
    return [*axes[:-2], None, None]


def stack(trace: Trace, call: Call) -> list[Axis | None]:
    out = list(call.inputs[0].axes)
    for value in call.inputs[1:]:
        for d, axis in enumerate(value.axes):
            if out[d] is not None or axis is not None:
                tie(out[d], axis, f"{call.where} lines them up with a tensor that cannot follow")
    out.insert(call.get(1, "dim", call.kwargs.get("axis", 0)) % call.out.ndim, None)
    return out


JOINS = ("cat", "concat", "concatenate")
PERMUTATIONS = ("permute", "transpose", "swapaxes", "swapdims", "t", "T", "H", "mT", "mH", "adjoint")

RULES = {
    **dict.fromkeys((*JOINS, "vstack", "row_stack", "hstack", "column_stack", "dstack"), concatenate),
    **dict.fromkeys(("atleast_1d", "atleast_2d", "atleast_3d"), at_least),
    "flatten": flatten,
    **dict.fromkeys(("view", "reshape", "reshape_as", "view_as", "unflatten"), reshape),
    **dict.fromkeys(PERMUTATIONS, permute),
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), pixel_shuffle),
    "channel_shuffle": channel_shuffle,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "vsplit", "hsplit", "dsplit"), pieces),
    "unbind": unbind,
    "glu": glu,
    "index_select": select,
    **dict.fromkeys(("gather", "take_along_dim"), gather),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), put),
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), put),
    **dict.fromkeys(("tril", "triu"), triangle),
    "__getitem__": getitem,
    "index_put": index_put,
    "narrow": narrow,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "stack": stack,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
}
