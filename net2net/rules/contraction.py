"""Operations that end one channel space and start another: convolutions and matrix products with a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from net2net.recording import RECURRENT, Call
from net2net.rules.elementwise import broadcast
from net2net.rules.opaque import opaque
from net2net.spaces import Axis, Space, cut, fix, length, tie

if TYPE_CHECKING:
    from net2net.trace import Trace, Value


def _layer(trace: Trace, call: Call, out_dim: int, in_dim: int, channels: int) -> list[Axis | None]:
    """A layer that sums its input over dimension `channels` with a weight of dimensions (`out_dim`, `in_dim`)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    axes = trace.axes_of(x)
    channels %= x.ndim
    w = trace.layer_weight(call, weight, out_dim, in_dim) if x is not weight else None
    if w is None:  # what it makes can grow; how what it sums over would depends on how it is computed
        w = trace.computed_weight(weight, out_dim, call.where)
        fix(axes[channels], f"{call.where} sums over them with a weight that is computed")
    tie(axes[channels], w[in_dim], f"{call.where} reads them from the network's input or a tensor that cannot follow")
    if bias is not None:
        _bias(trace, call, bias, w[out_dim])
    out = list(axes)
    out[channels] = w[out_dim]
    return out


def _bias(trace: Trace, call: Call, bias: torch.Tensor, made: Axis | None) -> None:
    *rest, own = trace.axes_of(bias) or [None]
    if bias.ndim and (made is None or bias.shape[-1] == length(made)):
        tie(own, made, f"the bias of {call.where} cannot follow them")
    else:  # one number for all
        rest.append(own)
    for axis in rest:
        fix(axis, f"the bias of {call.where} is spread over others")


def convolution(trace: Trace, call: Call) -> list[Axis | None]:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    transposed = call.name.startswith("conv_transpose")
    groups = call.get(6, "groups", 1)
    channels = x.ndim - (weight.ndim - 1)  # an image without a batch dimension has its channels first
    through = list(trace.axes_of(x))
    for k, dim in enumerate(range(channels + 1, x.ndim)):
        if weight.shape[2 + k] > 1 or _along(call, 3, "stride", k) != 1 or _along(call, 4, "padding", k):
            fix(through[dim], f"{call.where} slides along them")
            through[dim] = None
    if groups == 1:
        out = _layer(trace, call, *((1, 0) if transposed else (0, 1)), channels)
    else:
        out = _grouped(trace, call, groups, channels)
    return [*out[: channels + 1], *through[channels + 1 :]]


def _along(call: Call, position: int, keyword: str, dim: int) -> int:
    """A number of a convolution's along one dimension of its image; a single one is for all of them."""
    given = call.get(position, keyword, 1 if keyword == "stride" else 0)
    if isinstance(given, str):  # "same" or "valid", which add nothing to a kernel of one tap
        return 0
    return given if isinstance(given, int) else given[dim if len(given) > 1 else 0]


def _grouped(trace: Trace, call: Call, groups: int, channels: int) -> list[Axis | None]:
    """A convolution in groups. Depthwise, it grows by more groups; else every group grows alike, by one shared map."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    transposed = call.name.startswith("conv_transpose")
    depthwise = weight.shape[0] == groups if transposed else weight.shape[1] == 1
    if trace.is_parameter(weight):
        w = trace.weight(call, weight, *((1, 0) if transposed and not depthwise else (0, 1)))
    elif weight.shape[1] == 1 and not transposed:  # a filter for each channel, e.g. the same one, spread over all
        w = trace.computed_weight(weight, 0, call.where)
    else:
        return opaque(trace, call)
    axes = trace.axes_of(x)
    reason = f"the grouped convolution {call.where} reads them in a way that cannot follow"
    made = w[0]
    if transposed and depthwise:  # [groups, multiplier, ...]
        fix(w[1], "each group of a depthwise convolution reads a single channel")
        tie(w[0], axes[channels], reason)
        made = tuple((space, repeat * weight.shape[1]) for space, repeat in w[0])
        trace.makes(weight, weight.shape[1])
    elif transposed:  # [inputs, outputs of a group, ...]
        tie(w[0], axes[channels], reason)
        first, *others = cut(w[0], [weight.shape[0] // groups] * groups, reason)
        for other in others:
            tie(first, other, reason)
        made = (w[1] or ()) * groups
        trace.makes(weight, groups)
    elif depthwise:
        fix(w[1], "each group of a depthwise convolution reads a single channel")
        multiplier = weight.shape[0] // groups
        if axes[channels] is None:
            fix(w[0], reason)
        else:
            tie(w[0], tuple((space, repeat * multiplier) for space, repeat in axes[channels]), reason)
    else:
        for axis, into in ((axes[channels], groups), (w[0], groups)):
            if axis is not None:
                first, *others = cut(axis, [length(axis) // into] * into, reason)
                for other in others:
                    tie(first, other, reason)
        tie(w[1], cut(axes[channels], [weight.shape[1]], reason)[0] if axes[channels] is not None else None, reason)
    if bias is not None:
        _bias(trace, call, bias, made)
    out = list(axes)
    out[channels] = made
    return out


def bilinear(trace: Trace, call: Call) -> list[Axis | None]:
    """[N, …, I] and [N, …, J] with a weight [O, I, J], which sums over both."""
    first, second, weight = (call.get(n, name) for n, name in enumerate(("input1", "input2", "weight")))
    if not trace.is_parameter(weight):
        return opaque(trace, call)
    made, *summed = trace.factor(call, weight, [0], [1, 2])
    for x, axis in zip((first, second), summed, strict=True):
        tie(
            trace.axes_of(x)[-1],
            axis,
            f"{call.where} reads them from the network's input or a tensor that cannot follow",
        )
    bias = call.get(3, "bias")
    if bias is not None:
        _bias(trace, call, bias, made)
    before = [([*x.shape[:-1]], trace.axes_of(x)[:-1]) for x in (first, second)]
    return [*broadcast(call, before, call.out.ndim - 1), made]


def recurrent(trace: Trace, call: Call) -> list[list[Axis | None]]:
    """torch's recurrent layers. Hidden units of all layers and directions lie along one dimension of the states, so
    that they share one map; a weight makes them several times, once for each gate."""
    packed = not isinstance(call.args[3], bool)
    x, states, weights, biased, layers = call.args[:5] if not packed else (call.args[0], *call.args[2:6])
    both = call.args[8 if packed else 7]
    states = list(states) if isinstance(states, (tuple, list)) else [states]
    ways = 2 if both else 1
    each = len(weights) // (layers * ways)
    if not all(trace.is_parameter(w) for w in weights):
        return opaque(trace, call)
    hidden: Axis = ((Space(weights[1].shape[1]), 1),)
    cells = hidden
    if each == (5 if biased else 3):  # a projection of the cells is what comes out
        cells = ((Space(weights[each - 1].shape[1]), 1),)
        trace.keeps(call.module, "proj_size", hidden)
    for value in (trace.axes_of(x), *map(trace.axes_of, states)):
        for axis in value[:-1]:
            fix(axis, f"{call.where} needs every one of them as it is")
    for state, axis in zip(states, (hidden, cells), strict=False):
        tie(trace.axes_of(state)[-1], axis, f"{call.where} begins with a state that cannot follow")
    read = trace.axes_of(x)[-1]
    trace.keeps(call.module, "input_size", read)
    trace.keeps(call.module, "hidden_size", cells)
    for layer in range(layers):
        for way in range(ways):
            own = weights[(layer * ways + way) * each :][:each]
            if cells is not hidden:
                made, summed = trace.weight(call, own.pop(), 0, 1)
                tie(made, hidden, f"{call.where} makes its states of them")
                tie(cells, summed, f"{call.where} projects them")
            _cell(trace, call, read, hidden, cells, own)
        read = hidden * ways
    axes = (read, hidden, cells)
    return [[*[None] * (t.ndim - 1), axis] for t, axis in zip(call.out, axes, strict=False)]


def cell(trace: Trace, call: Call) -> list:
    """One step of such a layer."""
    x, states, *weights = call.args[:6]
    states = list(states) if isinstance(states, (tuple, list)) else [states]
    weights = [w for w in weights if w is not None]
    if not all(trace.is_parameter(w) for w in weights):
        return opaque(trace, call)
    hidden: Axis = ((Space(weights[1].shape[1]), 1),)
    leading = [([*t.shape[:-1]], trace.axes_of(t)[:-1]) for t in (x, *states)]
    for state in states:
        tie(trace.axes_of(state)[-1], hidden, f"{call.where} begins with a state that cannot follow")
    read = trace.axes_of(x)[-1]
    trace.keeps(call.module, "input_size", read)
    trace.keeps(call.module, "hidden_size", hidden)
    _cell(trace, call, read, hidden, hidden, weights)
    results = [call.out] if isinstance(call.out, torch.Tensor) else list(call.out)
    axes = [[*broadcast(call, leading, t.ndim - 1), hidden] for t in results]
    return axes[0] if isinstance(call.out, torch.Tensor) else axes


def _cell(trace: Trace, call: Call, read: Axis | None, hidden: Axis, cells: Axis, weights: list[torch.Tensor]) -> None:
    """Tie what the weights (of the input, of the state, and their biases) make, gate by gate, to the cells."""
    size, reason = length(cells), f"{call.where} makes gates of them"
    sources = (
        (read, f"{call.where} reads them from the network's input or a tensor that cannot follow"),
        (hidden, reason),
    )
    for weight, (source, why) in zip(weights, sources, strict=False):
        made, summed = trace.weight(call, weight, 0, 1)
        tie(source, summed, why)
        for gate in cut(made, [size] * (length(made) // size), reason):
            tie(gate, cells, reason)
    for bias in weights[2:]:
        (own,) = trace.axes_of(bias)
        for gate in cut(own, [size] * (length(own) // size), reason):
            tie(gate, cells, reason)


def pack(trace: Trace, call: Call) -> list[list[Axis | None]]:
    """[T, N, …] to [all steps, …] and the number of sequences at each step, or back."""
    value, down = call.inputs[0], call.name == "_pack_padded_sequence"
    for axis in value.axes[: 2 if down else 1]:
        fix(axis, f"{call.where} needs every one of them as it is")
    rest = value.axes[2 if down else 1 :]
    return [[*[None] * (1 if down else 2), *rest], [None]]


def linear(trace: Trace, call: Call) -> list[Axis | None]:
    return _layer(trace, call, 0, 1, -1)


def matmul(trace: Trace, call: Call) -> list[Axis | None]:
    """A product [..., l, k] and [..., k, n]. Where one of them is a weight it is a layer, which sums over k. Of two
    computed tensors k stays, and everything else can grow, e.g. heads."""
    a, b = (trace.value_of(t) for t in call.args[:2]) if len(call.args) > 1 else (call.inputs[0], call.inputs[-1])
    return _product(trace, call, a, b)


def _product(trace: Trace, call: Call, a: Value, b: Value) -> list[Axis | None]:
    if min(a.tensor.ndim, b.tensor.ndim) < 2:
        return opaque(trace, call)
    left, right = (trace.is_parameter(value.tensor) for value in (a, b))
    if not left and not right:  # computed from parameters, which the other is not
        left, right = (one.constant and not other.constant for one, other in ((a, b), (b, a)))
    if left != right and trace.is_parameter((b if right else a).tensor) and _stacked(a.tensor, b.tensor):
        terms = [_letters(value.tensor.ndim, *ends) for value, ends in ((a, "lk"), (b, "kn"))]
        return _contracted(trace, call, terms, _letters(call.out.ndim, *"ln"), [a, b])
    made = None
    if left != right and min(a.tensor.ndim, b.tensor.ndim) == 2:
        reason = f"{call.where} reads them from the network's input or a tensor that cannot follow"
        weight, output, summed = (b, -1, -2) if right else (a, -2, -1)
        output, summed = output % weight.tensor.ndim, summed % weight.tensor.ndim
        made = trace.layer_weight(call, weight.tensor, output, summed)
        if made is not None:
            tie(a.axes[-1] if right else b.axes[-2], made[summed], reason)
    if made is None:
        for axis in (a.axes[-1], b.axes[-2]):
            fix(axis, f"{call.where} sums over them")
    return [*_leading(trace, call, [a, b], call.out.ndim), a.axes[-2], b.axes[-1]]


def _stacked(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a product is one of matrices of the same number, e.g. with a weight for each expert."""
    leading = zip(reversed(a.shape[:-2]), reversed(b.shape[:-2]), strict=False)
    return min(a.ndim, b.ndim) > 2 and all(n == m for n, m in leading)


def _letters(ndim: int, row: str, column: str) -> str:
    return "".join(chr(0x4E00 + k) for k in reversed(range(ndim - 2))) + row + column


def addmm(trace: Trace, call: Call) -> list[Axis | None]:
    """A product, and a first argument that is added to it, e.g. a bias."""
    first, a, b = (
        trace.value_of(call.get(n, name))
        for n, name in enumerate(("input", *(("batch1", "batch2") if call.name == "baddbmm" else ("mat1", "mat2"))))
    )
    out = _product(trace, call, a, b)
    return broadcast(call, [([*call.out.shape], out), ([*first.tensor.shape], first.axes)], call.out.ndim)


def einsum(trace: Trace, call: Call) -> list[Axis | None]:
    """Each letter is one axis. One that is summed over stays, unless a single weight sums over it."""
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    read, arrow, made = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    terms, values = read.split(","), [trace.value_of(t) for t in operands]
    if not arrow or any(len(set(term)) != len(term) for term in (t.replace("...", "") for t in terms)):
        return opaque(trace, call)
    if any("." in part for part in (*terms, made)):  # dimensions that are not named
        terms, made = _named(terms, made, [value.tensor.ndim for value in values])
    return _contracted(trace, call, terms, made, values)


def tensordot(trace: Trace, call: Call) -> list[Axis | None]:
    """Pairs of dimensions of two tensors are summed over: an equation in which both have one letter."""
    a, b = (trace.value_of(call.get(n, name)) for n, name in enumerate("ab"))
    dims, ndim = call.get(2, "dims", 2), a.tensor.ndim
    if isinstance(dims, int):
        dims = range(ndim - dims, ndim), range(dims)
    elif not isinstance(dims, (tuple, list)):
        return opaque(trace, call)
    left = [chr(0x4E00 + d) for d in range(ndim)]
    right = [chr(0x4E00 + ndim + d) for d in range(b.tensor.ndim)]
    for one, other in zip(*((d,) if isinstance(d, int) else d for d in dims), strict=True):
        right[other] = left[one]
    made = [letter for letter in (*left, *right) if (letter in left) != (letter in right)]
    return _contracted(trace, call, ["".join(left), "".join(right)], "".join(made), [a, b])


def _contracted(trace: Trace, call: Call, terms: list[str], made: str, values: list[Value]) -> list[Axis | None]:
    """The axes of what an equation makes: a letter for each dimension of each tensor, and of the result."""
    axes: dict[str, Axis | None] = {}
    weights = [k for k, value in enumerate(values) if trace.is_parameter(value.tensor)]
    sums = None
    if len(weights) == 1 and len(values) > 1:
        (k,) = weights
        others = {letter for n, term in enumerate(terms) if n != k for letter in term}
        summed = [d for d, letter in enumerate(terms[k]) if letter in others and letter not in made]
        makes = [d for d, letter in enumerate(terms[k]) if letter not in others and letter in made]
        if all(letter in others or letter in made for letter in terms[k]):
            sums = summed
            trace.factor(call, values[k].tensor, makes, summed)
    for k, (term, value) in enumerate(zip(terms, values, strict=True)):
        for d, letter in enumerate(term):
            axis = value.axes[d]
            if letter not in made and (sums is None or (k == weights[0] and d not in sums)):
                fix(axis, f"{call.where} sums over them")
            if letter in axes and (axis is not None or axes[letter] is not None):
                tie(axes[letter], axis, f"{call.where} joins them with a tensor that cannot follow")
            axes.setdefault(letter, axis)
    return [axes[letter] for letter in made]


def _named(terms: list[str], made: str, ndims: list[int]) -> tuple[list[str], str]:
    """An equation with a letter for each of the dimensions that `...` stands for, the last the same in all."""
    more = [ndim - len(term.replace("...", "")) if "." in term else 0 for term, ndim in zip(terms, ndims, strict=True)]
    letters = [chr(0x4E00 + k) for k in range(max(more, default=0))]
    terms = [term.replace("...", "".join(letters[len(letters) - n :])) for term, n in zip(terms, more, strict=True)]
    return terms, made.replace("...", "".join(letters))


def embedding(trace: Trace, call: Call) -> list[Axis | None]:
    """Rows of a table, or sums of rows: what lies along a row are channels; which rows there are stays."""
    index, weight = call.get(0, "input"), call.get(1, "weight")
    if index.is_floating_point():  # torch.embedding takes them the other way round
        index, weight = weight, index
    if not trace.is_parameter(weight) or weight.ndim != 2:
        return opaque(trace, call)
    for axis in trace.axes_of(index):
        fix(axis, f"{call.where} looks them up")
    rows, row = trace.factor(call, weight, [1], [])
    fix(rows, "they are the rows of a table")
    if weight is call.get(1, "weight") and call.get(3, "max_norm") is not None:
        fix(row, f"{call.where} limits the norm of each row")
    trace.keeps(call.module, "embedding_dim", row)
    return [*[None] * (call.out.ndim - 1), row]


def attention(trace: Trace, call: Call) -> list[Axis | None]:
    """Scaled dot-product attention: heads attend each by itself, so that whole heads can be copied."""
    q, k, v = (trace.value_of(call.get(n, name)) for n, name in enumerate(("query", "key", "value")))
    mask = call.get(3, "attn_mask")
    masks = [trace.value_of(mask)] if isinstance(mask, torch.Tensor) else []
    for axis in (*q.axes[-2:], *k.axes[-2:], v.axes[-2], *(axis for m in masks for axis in m.axes[-2:])):
        fix(axis, f"{call.where} needs every one of them as it is")
    leading = [([*value.tensor.shape[:-2]], value.axes[:-2]) for value in (q, k, v, *masks)]
    if call.get(None, "enable_gqa"):  # each head of keys and values is there for several queries' in a row
        for sizes, axes in leading[1:3]:
            times = q.tensor.shape[-3] // sizes[-1] if sizes[-1] > 1 else 1
            sizes[-1] *= times
            axes[-1] = axes[-1] and tuple((space, n * times) for space, n in axes[-1])
    return [*broadcast(call, leading, call.out.ndim - 2), None, v.axes[-1]]


def multi_head_attention(trace: Trace, call: Call) -> list:
    """torch's whole layer: its width is that of all heads, so that both grow by the same whole factor."""
    position = ("query", "key", "value", "embed_dim", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
                "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")  # fmt: skip
    given = {name: call.get(n, name) for n, name in enumerate(position)}
    separate = call.get(17, "use_separate_proj_weight", False)
    static = any(isinstance(call.get(n, name), torch.Tensor) for n, name in ((21, "static_k"), (22, "static_v")))
    projections = [call.get(18 + n, f"{name}_proj_weight") for n, name in enumerate("qkv")]
    packed, heads = given["in_proj_weight"], given["num_heads"]
    weights = projections if separate else [packed]
    if static or not all(trace.is_parameter(w) for w in (*weights, given["out_proj_weight"])):
        return opaque(trace, call)
    size = given["query"].shape[-1] // heads
    head = ((Space(heads), 1),)
    every: Axis = ((head[0][0], size),)
    reason = f"{call.where} makes attention heads of them"
    inputs = [trace.axes_of(given[name]) for name in ("query", "key", "value")]
    read = f"{call.where} reads them from the network's input or a tensor that cannot follow"
    for weight, sources in zip(weights, [[x] for x in inputs] if separate else [inputs], strict=True):
        made, summed = trace.weight(call, weight, 0, 1)
        for part in cut(made, [heads * size] * len(sources), reason):
            tie(part, every, reason)
        for x in sources:
            tie(x[-1], summed, read)
    if given["in_proj_bias"] is not None:
        for part in cut(trace.axes_of(given["in_proj_bias"])[0], [heads * size] * 3, reason):
            tie(part, every, reason)
    for name in ("bias_k", "bias_v"):
        if given[name] is not None:
            first, second, own = trace.axes_of(given[name])
            tie(own, every, reason)
            fix(first, f"{call.where} spreads it over the batch")
            fix(second, f"{call.where} spreads it over the batch")
    out, back = trace.weight(call, given["out_proj_weight"], 0, 1)
    tie(back, every, reason)
    if given["out_proj_bias"] is not None:
        _bias(trace, call, given["out_proj_bias"], out)
    for x in inputs:
        for axis in x[:-1]:
            fix(axis, f"{call.where} needs every one of them as it is")
    for mask in (call.get(14, "key_padding_mask"), call.get(16, "attn_mask")):
        if isinstance(mask, torch.Tensor):
            for axis in trace.axes_of(mask):
                fix(axis, f"{call.where} needs every one of them as it is")
            if mask.ndim == 3:
                fix(head, f"{call.where} has a mask for each of them")
    # The layer takes its width for that of all heads together.
    trace.evenly((*(inputs[0][-1] or ()), *head, *(out or ())), f"{call.where} divides its width by its heads")
    for key, axis in {"num_heads": head, "embed_dim": out, "kdim": inputs[1][-1], "vdim": inputs[2][-1]}.items():
        trace.keeps(call.module, key, axis)
    averaged = call.get(23, "average_attn_weights", True)
    result, attention = call.out
    axes = [[*[None] * (result.ndim - 1), out]]
    if attention is not None:
        axes.append([None] * attention.ndim)
        if not averaged:
            axes[1][-3] = head
    return axes


def _leading(trace: Trace, call: Call, values: list[Value], ndim: int) -> list[Axis | None]:
    """The axes of a product's leading dimensions, which its arguments share."""
    return broadcast(call, [([*v.tensor.shape[:-2]], v.axes[:-2]) for v in values], ndim - 2)


RULES = {
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head_attention,
    **dict.fromkeys(("matmul", "bmm", "mm", "__matmul__", "linalg_matmul", "_sparse_mm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "einsum": einsum,
    "tensordot": tensordot,
    "bilinear": bilinear,
    **dict.fromkeys(RECURRENT, recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), cell),
    **dict.fromkeys(("_pack_padded_sequence", "_pad_packed_sequence"), pack),
    **dict.fromkeys(("embedding", "embedding_bag"), embedding),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "linear": linear,
}
