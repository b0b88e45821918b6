"""Operations that move elements without changing them: concatenation, flattening, reordering of dimensions."""

from __future__ import annotations

from math import prod

from net2net.spaces import Axis, Call, Space, Trace, fix, tie


def concatenate(trace: Trace, call: Call) -> list[Axis | None]:
    dim = call.get(1, "dim", call.kwargs.get("axis", 0)) % call.out.ndim
    out = list(call.inputs[0].axes)
    for value in call.inputs[1:]:
        for d in range(call.out.ndim):
            if d != dim and (out[d] is not None or value.axes[d] is not None):
                tie(out[d], value.axes[d], f"{call.where} lines them up with a tensor that cannot follow")
    if any(value.axes[dim] is not None for value in call.inputs):
        blocks: list = []
        for value in call.inputs:
            axis = value.axes[dim]
            blocks += axis if axis is not None else [(Space(value.tensor.shape[dim], "they are constant"), 1)]
        out[dim] = tuple(blocks)
    return out


def _merge(call: Call, dims: list[tuple[int, Axis | None]]) -> Axis | None:
    """The axis of several neighbouring dimensions (size, axis) flattened into one."""
    tracked = [i for i, (_, axis) in enumerate(dims) if axis is not None]
    if not tracked:
        return None
    if len(tracked) > 1:
        raise call.unsupported("it merges two dimensions that both hold channels")
    (i,) = tracked
    outer, inner = (prod(n for n, _ in part) for part in (dims[:i], dims[i + 1 :]))
    axis = dims[i][1] or ()
    return tuple((space, repeat * inner) for space, repeat in axis) * outer


def reshape(trace: Trace, call: Call) -> list[Axis | None]:
    """Dimensions kept or merged with their neighbours. Splitting a dimension that holds channels is an error."""
    value, new = call.inputs[0], list(call.out.shape)
    old = list(zip(value.tensor.shape, value.axes, strict=True))
    out: list[Axis | None] = []
    i = 0
    for n in new:
        # A size of 1 is one that was there, or a new one; others gather dimensions until their sizes multiply to it.
        group = [old[i]] if i < len(old) and (n != 1 or old[i][0] == 1) else []
        i += len(group)
        while prod(size for size, _ in group) < n and i < len(old):
            group.append(old[i])
            i += 1
        if prod(size for size, _ in group) == n:
            out.append(_merge(call, group))
            continue
        if any(axis is not None for _, axis in old):
            raise call.unsupported(
                f"it turns shape {tuple(value.tensor.shape)} into {tuple(new)}, splitting a dimension"
            )
        return [None] * len(new)
    for _, axis in old[i:]:
        fix(axis, f"{call.where} drops the dimension of their single channel")
    return out


def flatten(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    dims = list(zip(value.tensor.shape, value.axes, strict=True))
    start, end = (d % len(dims) for d in (call.get(1, "start_dim", 0), call.get(2, "end_dim", -1)))
    return [*value.axes[:start], _merge(call, dims[start : end + 1]), *value.axes[end + 1 :]]


def permute(trace: Trace, call: Call) -> list[Axis | None]:
    value = call.inputs[0]
    if call.name == "transpose":
        order = list(range(value.tensor.ndim))
        a, b = call.get(1, "dim0"), call.get(2, "dim1")
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


def unsqueeze(trace: Trace, call: Call) -> list[Axis | None]:
    out = list(call.inputs[0].axes)
    out.insert(call.get(1, "dim") % (len(out) + 1), None)
    return out


RULES = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    "flatten": flatten,
    **dict.fromkeys(("view", "reshape"), reshape),
    **dict.fromkeys(("permute", "transpose"), permute),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
}
