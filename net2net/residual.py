"""New residual blocks that start as the identity, for networks whose blocks compute x + f(x) (sec 2.4).

A copy of an existing block, freshly initialised, follows it. Wherever the block adds a branch to its input, the last
thing in the branch that can make it zero starts at zero: a normalisation, a layer scale, or else a layer. The copy is
then the identity, and of what it computes only the zeros are not random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net.errors import GrowthError
from net2net.fill import initialised
from net2net.recording import Call
from net2net.seeds import generator_for
from net2net.trace import Trace, Value

# Where operations take their weight and bias: position and keyword, None for no bias.
_WEIGHTS = ((1, "weight"), (2, "bias"))
LAYERS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _WEIGHTS),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _WEIGHTS),
    "multi_head_attention_forward": ((11, "out_proj_weight"), (12, "out_proj_bias")),
}
NORMS = {
    **dict.fromkeys(("batch_norm", "instance_norm"), ((3, "weight"), (4, "bias"))),
    **dict.fromkeys(("layer_norm", "group_norm"), ((2, "weight"), (3, "bias"))),
    "rms_norm": ((2, "weight"), None),
}
# What keeps every number and their order in memory: several that end at the first shape are the identity.
RESHAPES = (
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("contiguous", "clone"),
)
# What makes zeros of zeros and has a derivative there. ReLU has none: a normalisation that starts at zero before it
# would get no gradient, nor would the layer after it, ever.
KEEPS_ZERO = {
    *RESHAPES,
    *("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "flip", "roll", "neg"),
    *("__getitem__", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "expand", "expand_as"),
    *("repeat", "mean", "sum", "glu"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("silu", "gelu", "mish", "tanh", "elu", "selu", "celu", "leaky_relu", "prelu", "hardswish", "softsign"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate", "pixel_shuffle"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
SUMS = ("add", "__radd__", "__add__")
QUOTIENTS = ("div", "divide", "true_divide")
PRODUCTS = ("mul", "multiply", "__rmul__", "__mul__")


class End(NamedTuple):
    """What makes a tensor zero if it is: `rank` 0 a normalisation, 1 a layer scale, 2 a layer; least is best."""

    rank: int
    zeros: tuple[str, ...]


def activation_of(call: Call) -> str | list[Any] | None:
    """The activation that an operation is, if to apply it twice is to apply it once: "relu", "relu6" or ["hardtanh",
    least, largest]; as a clamp, too. None for anything else."""
    low, high = (call.get(1, key) for key in ("min", "threshold")), call.get(2, "max")
    low = next((each for each in low if each is not None), None)
    if call.name in ("relu", "relu6"):
        return call.name
    if call.name == "hardtanh":
        return ["hardtanh", call.get(1, "min_val", -1.0), call.get(2, "max_val", 1.0)]
    if call.name in ("clamp", "clip", "clamp_min") and _is_number(low):
        return "relu" if high is None and low == 0 else ["hardtanh", low, high] if _is_number(high) else None
    if call.name in ("threshold", "_threshold") and low == 0 and call.get(2, "value") == 0:
        return "relu"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def zeros(trace: Trace, name: str) -> list[str]:
    """The parameters, by their names inside the block, that make a block the identity when they are zero.

    Raises `GrowthError` with the reason if `name` is not a block that computes x + f(x), or an activation of it which,
    applied to what the block before it has passed through it already, does nothing.
    """
    try:
        return _zeros(trace, name)
    except GrowthError as error:
        parent = name.rpartition(".")[0]
        near = [n for n, _ in trace.skeleton.named_modules() if n.rpartition(".")[0] in (parent, name) and n != name]
        sibling = next((other for other in near if other and works(trace, other)), None)
        raise GrowthError(f"{error}" + (f"; {sibling!r} next to it is such a block" if sibling else "")) from None


def works(trace: Trace, name: str) -> bool:
    try:
        return bool(_zeros(trace, name))
    except GrowthError:
        return False


def _zeros(trace: Trace, name: str) -> list[str]:
    refused = f"cannot put a residual block after {name!r}: "
    values = trace.returned.get(name, [])
    if len(values) != 1:
        calls = "the forward pass never calls it" if not values else f"it is called {len(values)} times a pass"
        raise GrowthError(refused + calls)
    if name in trace.by_keyword:
        raise GrowthError(refused + "it is called by keyword: pass what it adds to as its first argument, by position")
    out, start = values[0], trace.given[name][0]
    if out is None or start is None or out.call is None:
        raise GrowthError(refused + "it does not make one tensor from one tensor")
    shapes = [tuple(v.tensor.shape) for v in (start, out)]
    if shapes[0] != shapes[1]:
        raise GrowthError(refused + f"its output {shapes[1]} does not have the shape of its input {shapes[0]}")
    activation = activation_of(out.call)
    branches = _branches(out.call.inputs[0] if activation else out, start, name)
    if not branches:
        raise GrowthError(refused + _not_a_sum(out.call.inputs[0].call if activation else out.call, name))
    module = trace.skeleton.get_submodule(name)
    names = {id(p): n for n, p in module.named_parameters()}
    found: list[str] = []
    for branch in branches:
        end = _end(branch, name, names, {})
        if end is None:
            made = f"{branch.call.name!r}" if branch.call else "a constant"
            raise GrowthError(
                refused + f"nothing can start at zero and be trained at the end of a branch that {made} makes: "
                "expected a normalisation, a layer scale or a layer, with parameters of its own"
            )
        found += [n for n in end.zeros if n not in found]
    return found


def _not_a_sum(last: Call | None, name: str) -> str:
    made = last.name if last is not None else "its input"
    if made in SUMS:
        return "neither side of the addition at its end is its own input (the shortcut is a projection, for instance)"
    before = last.inputs[0].call if last is not None and last.inputs else None
    if before is not None and before.name in SUMS and _inside(before, name):
        return f"the {made!r} after the addition at its end does something to what has passed through it already"
    return f"it ends in {made!r}, not in an addition to its own input"


def _tensor(call: Call, position: int, keyword: str) -> Value | None:
    """What is known of an argument."""
    tensor = call.get(position, keyword)
    return next((v for v in call.inputs if v.tensor is tensor), None)


def _inside(call: Call | None, block: str) -> bool:
    return call is not None and f"{call.module}.".startswith(f"{block}.")


def _branches(value: Value, start: Value, block: str) -> list[Value] | None:
    """What is added to `start` on the way to `value`; None if that is not a chain of additions to it in the block."""
    known: dict[int, list[Value] | None] = {}

    def walk(value: Value) -> list[Value] | None:
        if value is start:
            return []
        if id(value) not in known:
            known[id(value)] = None
            known[id(value)] = step(value)
        return known[id(value)]

    def step(value: Value) -> list[Value] | None:
        call = value.call
        if call is None or not _inside(call, block):
            return None
        if call.name in RESHAPES and value.tensor.dtype == call.inputs[0].tensor.dtype:
            return walk(call.inputs[0])
        if call.name in SUMS and len(call.inputs) == 2 and call.kwargs.get("alpha", 1) == 1:
            for side, other in (call.inputs, reversed(call.inputs)):
                before = walk(side) if side.tensor.shape == value.tensor.shape else None
                if before is not None:
                    return [*before, other]
        return None

    return walk(value)


def _end(value: Value, block: str, names: dict[int, str], known: dict[int, End | None]) -> End | None:
    """The last parameters of a block, among those in `names`, with which a tensor can start at zero and be trained."""
    if id(value) not in known:
        known[id(value)] = None
        known[id(value)] = _last(value, block, names, known)
    return known[id(value)]


def _last(value: Value, block: str, names: dict[int, str], known: dict[int, End | None]) -> End | None:
    call = value.call
    if call is None or not _inside(call, block):
        return None
    if call.name in NORMS or call.name in LAYERS:
        weight, bias = (NORMS.get(call.name) or LAYERS[call.name])[:2]
        given = [call.get(*at) for at in (weight, bias) if at is not None]
        if call.name in LAYERS:
            given[0] = _scale(call, given[0])
        tensors = [t for t in given if t is not None]
        if call.name in LAYERS and len(tensors) == 1 and call.name != "multi_head_attention_forward":
            data = _tensor(call, 0, "input")
            before = _end(data, block, names, known) if data is not None else None
            if before is not None and before.rank == 0:  # without a bias the layer makes zeros of zeros
                return before
        if given[0] is None or any(id(t) not in names for t in tensors):
            return None
        return End(0 if call.name in NORMS else 2, tuple(names[id(t)] for t in tensors))
    if call.name in SUMS or call.name in ("cat", "concat"):
        ends = [_end(v, block, names, known) for v in call.inputs]
        if len(call.inputs) < 2 or any(end is None for end in ends):
            return None
        return End(max(end.rank for end in ends), tuple(dict.fromkeys(n for end in ends for n in end.zeros)))
    if call.name in PRODUCTS:
        ends = [_gain(v, names) or _end(v, block, names, known) for v in call.inputs]
        # Where both factors are zero for one reason, as in a gate without biases, neither ever gets a gradient.
        alone = [
            end
            for k, end in enumerate(ends)
            if end is not None
            and not any(_vanishes(v, {*end.zeros}, block, names) for n, v in enumerate(call.inputs) if n != k)
        ]
        return min(alone, key=lambda end: end.rank, default=None)
    of_number = call.name in QUOTIENTS and len(call.inputs) == 1 and call.get(0, "input") is call.inputs[0].tensor
    if (call.name in KEEPS_ZERO and call.inputs) or of_number:
        return _end(call.inputs[0], block, names, known)
    return None


def _scale(call: Call, weight: torch.Tensor) -> torch.Tensor:
    """What makes a layer's weight zero: itself, or its scale under weight normalisation."""
    made = next((v.call for v in call.inputs if v.tensor is weight), None)
    return made.get(1, "g") if made is not None and made.name == "_weight_norm" else weight


def _vanishes(value: Value, zero: set[str], block: str, names: dict[int, str]) -> bool:
    """Whether a tensor is zero where these parameters are."""
    call = value.call
    if names.get(id(value.tensor)) in zero:
        return True
    if call is None or not _inside(call, block) or not call.inputs:
        return False
    if call.name in NORMS or call.name in LAYERS:
        weight, bias = (NORMS.get(call.name) or LAYERS[call.name])[:2]
        given, offset = call.get(*weight), None if bias is None else call.get(*bias)
        if offset is not None and names.get(id(offset)) not in zero:
            return False
        made = given if given is None or call.name in NORMS else _scale(call, given)
        data = None if call.name in NORMS else _tensor(call, 0, "input")
        return names.get(id(made)) in zero or (data is not None and _vanishes(data, zero, block, names))
    if call.name in SUMS or call.name in ("cat", "concat"):
        return all(_vanishes(v, zero, block, names) for v in call.inputs)
    if call.name in PRODUCTS:
        return any(_vanishes(v, zero, block, names) for v in call.inputs)
    return call.name in KEEPS_ZERO and _vanishes(call.inputs[0], zero, block, names)


def _gain(value: Value, names: dict[int, str]) -> End | None:
    """A parameter that is multiplied by: a layer scale."""
    while value.call is not None and value.call.name in RESHAPES:
        value = value.call.inputs[0]
    return End(1, (names[id(value.tensor)],)) if id(value.tensor) in names else None


def initialise(
    block: nn.Module, zero: list[str], site: str, number: int, seed: int, init: Callable[[nn.Module], Any] | None = None
) -> None:
    """Give a block random weights of its own, fresh batch-norm statistics, and zeros where it needs them.

    Each module's `reset_parameters` draws its weights, then `init` is applied to every module, as by
    `nn.Module.apply`. The draw depends on `seed`, the site and the block's number there, on no device, and moves no
    generator.
    """
    for parameter in block.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    if not any(parameter.is_meta for parameter in block.parameters()):
        names = {name for name, _ in block.named_parameters()}
        fresh = initialised(block, names, init, generator_for(seed, "init", f"{site} {number}"))
        for own, parameter in fresh.named_parameters():
            if own not in zero and parameter.isnan().any():
                owner = type(fresh.get_submodule(own.rpartition(".")[0])).__name__
                raise GrowthError(
                    f"nothing initialises {own!r} of the new block after {site!r}: {owner} has no reset_parameters() "
                    "that does; pass init=, which initialises a module (transformers' model._init_weights)"
                )
        block.load_state_dict(fresh.state_dict())
    clear(block, zero)


def clear(block: nn.Module, zero: list[str]) -> None:
    """Set the named parameters to zero."""
    with torch.no_grad():
        for name in zero:
            block.get_parameter(name).zero_()
