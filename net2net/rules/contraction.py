"""Operations that end one channel space and start another: convolutions and matrix products with a weight."""

from __future__ import annotations

from net2net.spaces import Axis, Call, Space, Trace, fix, tie


def _layer(trace: Trace, call: Call, out_dim: int, in_dim: int, channels: int) -> list[Axis | None]:
    """A layer that sums its input over dimension `channels` with a weight of dimensions (`out_dim`, `in_dim`)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    axes, w = trace.axes_of(x), trace.weight(call, weight, out_dim, in_dim)
    channels %= x.ndim
    tie(axes[channels], w[in_dim], f"{call.where} reads them from the network's input or a tensor that cannot follow")
    if bias is not None:
        tie(trace.axes_of(bias)[0], w[out_dim], f"the bias of {call.where} cannot follow them")
    out = list(axes)
    out[channels] = w[out_dim]
    return out


def convolution(trace: Trace, call: Call) -> list[Axis | None]:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    transposed = call.name.startswith("conv_transpose")
    groups = call.get(6, "groups", 1)
    channels = x.ndim - (weight.ndim - 1)  # an image without a batch dimension has its channels first
    for axis in trace.axes_of(x)[channels + 1 :]:
        fix(axis, f"{call.where} slides along them")
    if groups != 1:
        # Its input is read in groups: the spaces on both sides stay as they are.
        out_dim, in_dim = (1, 0) if transposed else (0, 1)
        reason = f"the grouped convolution {call.where} reads or makes them"
        for axis in (trace.axes_of(x)[channels], *trace.weight(call, weight, out_dim, in_dim)):
            fix(axis, reason)
        if (bias := call.get(2, "bias")) is not None:
            fix(trace.axes_of(bias)[0], reason)
        out = list(trace.axes_of(x))
        out[channels] = ((Space(call.out.shape[channels], reason), 1),)
    else:
        out = _layer(trace, call, *((1, 0) if transposed else (0, 1)), channels)
    return [axis if dim <= channels else None for dim, axis in enumerate(out)]


def linear(trace: Trace, call: Call) -> list[Axis | None]:
    return _layer(trace, call, 0, 1, -1)


RULES = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "linear": linear,
}
