"""Random graphs: each is widened into the same function, or refused in a sentence.

A graph is plain data, so that hypothesis can shrink it to the smallest that fails and print it as a forward pass.
`NET2NET_FUZZ=5000 make fuzz` tries that many graphs instead of the few that every run of the tests tries.
"""

import os
import re
from collections import Counter
from typing import Any, NamedTuple

import compare
import torch
import torch.nn.functional as F
from compare import parameters, same, shapes, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import images
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from net2net import GrowthError, UnsupportedOperation, explain, history, random_pad, widen

BUDGET = int(os.environ.get("NET2NET_FUZZ", 0))


def fuzz(examples):
    """Always the same few graphs, or as many as the environment says, other ones each time."""
    return settings(
        max_examples=BUDGET or examples,
        derandomize=not BUDGET,
        print_blob=bool(BUDGET),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Node(NamedTuple):
    """One operation: which values it reads and makes, by their numbers; value 0 is the network's input."""

    op: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    options: dict[str, Any]


class Graph(NamedTuple):
    nodes: list[Node]
    outputs: list[int]

    def __repr__(self):
        lines = []
        for k, node in enumerate(self.nodes):
            arguments = [*(f"v{i}" for i in node.reads), *(f"{key}={value!r}" for key, value in node.options.items())]
            lines.append(f"{', '.join(f'v{i}' for i in node.makes)} = {node.op}({', '.join(arguments)})  # layer {k}")
        return "\n".join(["", *lines, f"return {', '.join(f'v{i}' for i in self.outputs)}"])

    def __deepcopy__(self, memo):
        return self  # a model is copied often, and nothing changes its graph


class Constant(nn.Module):
    """Adds a buffer, or multiplies by a parameter."""

    def __init__(self, shape, learned):
        super().__init__()
        if learned:
            self.constant = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("constant", torch.zeros(shape))

    def forward(self, h):
        return h * self.constant if isinstance(self.constant, nn.Parameter) else h + self.constant


SPLITS = {
    "chunk": lambda y, heads: [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in y.chunk(3, -1)],
    "three first": lambda y, heads: y.view(*y.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(),
    "width known": lambda y, heads: [t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in y.chunk(3, -1)],
}


class SelfAttention(nn.Module):
    """Of tokens [N, L, C], with heads of width 2, and its shortcut."""

    def __init__(self, width, heads, split, core):
        super().__init__()
        self.heads, self.split, self.core = heads, split, core
        self.qkv, self.out = nn.Linear(width, 6 * heads), nn.Linear(2 * heads, width)

    def forward(self, x):
        q, k, v = SPLITS[self.split](self.qkv(x), self.heads)
        if self.core == "fused":
            h = F.scaled_dot_product_attention(q, k, v)
        elif self.core == "einsum":
            h = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        else:
            h = (q @ k.mT).softmax(-1) @ v
        return x + self.out(h.transpose(1, 2).flatten(2))


class WholeAttention(nn.Module):
    """torch's own layer, and a shortcut."""

    def __init__(self, width, heads, bias):
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True, bias=bias)

    def forward(self, x):
        return x + self.inner(x, x, x, need_weights=False)[0]


class Product(nn.Module):
    """A linear layer that is written as a product with its weight [out, in]."""

    def __init__(self, inputs, outputs, how):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.zeros(outputs, inputs)), how

    def forward(self, x):
        if self.how == "einsum":
            return torch.einsum("...c,dc->...d", x, self.weight)
        return x @ self.weight.t() if self.how == "right" else (self.weight @ x.mT).mT


class Recurrent(nn.Module):
    """One of torch's recurrent layers on tokens, from zeros that it makes itself; its last state, too."""

    def __init__(self, kind, width, hidden, layers, bidirectional):
        super().__init__()
        make = getattr(nn, kind)
        self.inner = make(width, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x):
        begin = x.new_zeros(self.inner.num_layers * (1 + self.inner.bidirectional), len(x), self.inner.hidden_size)
        several = isinstance(self.inner, nn.LSTM)
        made, state = self.inner(x, (begin, begin) if several else begin)
        return made, (state[0] if several else state)[-1]


LAYERS = {
    "recurrent": Recurrent,
    "self_attention": SelfAttention,
    "whole_attention": WholeAttention,
    "product": Product,
    "conv": nn.Conv2d,
    "conv_transpose": nn.ConvTranspose2d,
    "linear": nn.Linear,
    "batch_norm": nn.BatchNorm2d,
    "batch_norm_1d": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "prelu": nn.PReLU,
    "constant": Constant,
}


def channels(h):
    """The dimension that holds them: the last of tokens [N, L, C], else the first after the batch."""
    return 2 if h.ndim == 3 else 1


def part(h, start, stop, of):
    """A slice between two channels, or between two fractions of all channels."""
    dim = channels(h)
    if of:
        start, stop = (h.shape[dim] * end // of for end in (start, stop))
    return h[(slice(None),) * dim + (slice(start, stop),)]


def shuffle(h, groups, width):
    """Channel shuffle; `width` channels in each group are written into the code, or with -1 left open."""
    return h.view(len(h), groups, width, *h.shape[2:]).transpose(1, 2).flatten(1, 2)


def attention(h):
    return F.softmax(h @ h.mT, dim=-1) @ h


def channels_last_norm(h):
    return F.layer_norm(h.permute(0, 2, 3, 1), h.shape[1:2]).permute(0, 3, 1, 2)


def add_in_place(h):
    """The second half to the first, in a copy."""
    h = h.clone()
    half = h.shape[1] // 2
    h[:, :half].add_(h[:, half : 2 * half], alpha=0.5)
    return h


def maxout(h):
    return h.view(len(h), 2, -1, *h.shape[2:]).amax(1)


def glu(h):
    a, b = h.chunk(2, 1)
    return a * b.sigmoid()


def repeated(h):
    return h.unsqueeze(1).expand(-1, 2, *h.shape[1:]).flatten(1, 2)


def padded(h, before, after):
    """Channels between constants."""
    return F.pad(h, (*(0, 0) * (h.ndim - 1 - channels(h)), before, after))


def filled(h, made):
    """Times a tensor of one number for each channel."""
    shape = [1] * h.ndim
    shape[channels(h)] = h.shape[channels(h)]
    one = {
        "expanded": lambda: h.new_ones([1] * h.ndim).expand(shape),
        "ones": lambda: torch.ones(shape, dtype=h.dtype, device=h.device) * 0.5,
        "repeated": lambda: torch.tensor([2.0], dtype=h.dtype, device=h.device).view([1] * h.ndim).repeat(shape),
    }[made]
    return h * one()


def shifted(h):
    """By one position, with zeros for the first."""
    made = torch.zeros_like(h) if h.shape[1] % 2 else h.new_zeros(h.shape)
    made[..., 1:] = h[..., :-1] if h.ndim == 4 else 0
    return made + h


def overwritten(h, how):
    """The first half of the channels by the second, or by zeros."""
    h, half = h.clone(), h.shape[1] // 2
    h[:, :half] = h[:, half : 2 * half] if how == "second" else 0
    return h


def blurred(h):
    kernel = torch.tensor([[0.0, 1, 0], [1, 2, 1], [0, 1, 0]], dtype=h.dtype, device=h.device)
    return F.conv2d(h, kernel[None, None].repeat(h.shape[1], 1, 1, 1), padding=1, groups=h.shape[1])


HALVES = {"add_in_place": add_in_place, "maxout": maxout, "glu": glu, "repeated": repeated}
FUNCTIONS = {
    **HALVES,
    "relu": F.relu,
    "relu_": torch.relu_,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "add": lambda a, b: a + b,
    "gate": lambda a, b: a * b.tanh(),
    "maximum": torch.maximum,
    "cat": lambda *hs: torch.cat(hs, channels(hs[0])),
    "stack_sum": lambda *hs: torch.stack(hs).sum(0),
    "interleave": lambda *hs: torch.stack(hs, 2).flatten(1, 2),
    "chunk": lambda h, parts: h.chunk(parts, channels(h)),
    "split": lambda h, sizes: h.split(sizes, channels(h)),
    "part": part,
    "shuffle": shuffle,
    "max_pool": lambda h: F.max_pool2d(h, 2),
    "avg_pool": lambda h: F.avg_pool2d(h, 2, ceil_mode=True),
    "squeeze": lambda h: h.mean((2, 3), keepdim=True),
    "mean": lambda h: h.mean((2, 3) if h.ndim == 4 else 1),
    "flatten": lambda h: h.flatten(1),
    "unflatten": lambda h, sizes: h.unflatten(1, sizes),
    "rows": lambda h, width: h.reshape(len(h), width, -1).mean(-1),
    "tokens": lambda h: h.flatten(2).transpose(1, 2),
    "untoken": lambda h, size: h.transpose(1, 2).unflatten(2, size),
    "softmax": lambda h, dim: h.softmax(dim),
    "gated": lambda h: F.glu(h, -1),
    "selected": lambda h, index: h.index_select(1, torch.tensor(index, device=h.device)),
    "attention": attention,
    "channels_last_norm": channels_last_norm,
    "padded": padded,
    "filled": filled,
    "shifted": shifted,
    "overwritten": overwritten,
    "blurred": blurred,
    "spectrum": lambda h: (
        torch.fft.fft2(h).real if h.ndim == 4 else torch.view_as_real(torch.fft.fft(h, dim=0))[..., 1]
    ),
    "over_width": lambda h: h / h.shape[channels(h)],
    "if_narrow": lambda h, limit: h.relu() if h.shape[channels(h)] <= limit else h,
}


class Net(nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict(
            {str(k): LAYERS[node.op](**node.options) for k, node in enumerate(graph.nodes) if node.op in LAYERS}
        )

    def run(self, k, values):
        """Append to the values what node k makes of them."""
        node = self.graph.nodes[k]
        if node.op in LAYERS:
            out = self.layers[str(k)](*(values[i] for i in node.reads))
        elif node.op == "again":
            out = self.layers[str(node.options["layer"])](*(values[i] for i in node.reads))
        elif node.op == "tied":  # an autoencoder's way back
            out = F.conv_transpose2d(*(values[i] for i in node.reads), self.layers[str(node.options["layer"])].weight)
        else:
            out = FUNCTIONS[node.op](*(values[i] for i in node.reads), **node.options)
        values += out if isinstance(out, tuple) else [out]

    def forward(self, x):
        values = [x.clone()]
        for k in range(len(self.graph.nodes)):
            self.run(k, values)
        outputs = [values[i] for i in self.graph.outputs]
        return outputs[0] if len(outputs) == 1 else outputs


class Builder:
    """Draws a graph node by node; zeros go through it on the way, because what can come next depends on shapes."""

    def __init__(self, draw):
        self.draw = draw
        self.net = Net(Graph([], []))
        self.values = [torch.zeros(2, 3, draw(st.integers(4, 6)), draw(st.integers(4, 6)))]

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def width(self):
        return self.pick(4, 6, 8, 3, 5, 12)  # few, so that values of one shape come about

    def add(self, op, *reads, **options):
        """Append a node; returns the number of the last value that it makes."""
        k, old = len(self.net.graph.nodes), len(self.values)
        if op in LAYERS:
            self.net.layers[str(k)] = LAYERS[op](**options).eval()
        self.net.graph.nodes.append(Node(op, reads, (), options))
        with torch.no_grad():
            self.net.run(k, self.values)
        made = tuple(range(old, len(self.values)))
        self.net.graph.nodes[k] = Node(op, reads, made, options)
        return made[-1]

    def shape(self, i):
        return tuple(self.values[i].shape[1:])

    def convolution(self, i, out=None, groups=1, kernel=None):
        kernel, dilation = kernel or self.pick(1, 3), self.pick(1, 2)
        return self.add("conv", i, in_channels=self.shape(i)[0], out_channels=out or self.width(), kernel_size=kernel,
                        stride=1 if out else self.pick(1, 1, 2), padding=kernel // 2 * dilation, dilation=dilation,
                        groups=groups, bias=self.pick(True, False))  # fmt: skip

    def norm(self, i):
        rank = len(self.shape(i))
        return self.add("batch_norm" if rank == 3 else "batch_norm_1d", i, num_features=self.shape(i)[0])

    def activate(self, i):
        return self.add(self.pick("relu", "silu", "sigmoid", "gelu", "relu_"), i)

    def residual(self, i):
        """A bottleneck, its middle grouped, depthwise or neither."""
        inner = self.pick(2, 4, 6)
        h = self.activate(self.norm(self.convolution(i, inner, kernel=1)))
        h = self.activate(self.convolution(h, inner, self.pick(1, 2, inner), 3))
        return self.add("add", i, self.norm(self.convolution(h, self.shape(i)[0], kernel=1)))

    def squeeze_and_excite(self, i):
        gate = self.activate(self.convolution(self.add("squeeze", i), self.pick(2, 3), kernel=1))
        return self.add("gate", i, self.convolution(gate, self.shape(i)[0], kernel=1))

    def shuffle_unit(self, i):
        """Half of the channels pass, the others are convolved, and all are shuffled."""
        half = self.shape(i)[0] // 2
        last = self.add("chunk", i, parts=2)
        changed = self.activate(self.convolution(last, half, self.pick(1, half)))
        return self.add("shuffle", self.add("cat", last - 1, changed), groups=2, width=-1)

    def separate(self, i, width):
        how = self.pick("chunk", "half", "split", "fractions", "literal")
        if how == "chunk":
            return self.add("chunk", i, parts=self.pick(2, 3))
        if how == "split":
            first = self.draw(st.integers(1, width - 1))
            return self.add("split", i, sizes=[first, width - first])
        of = {"half": 2, "fractions": 4 if width >= 4 else 2, "literal": 0}[how]
        start = self.draw(st.integers(0, (of or width) - 1))
        return self.add("part", i, start=start, stop=self.draw(st.integers(start + 1, of or width)), of=of)

    def join(self, i, op):
        """With other values, or itself, that have its shape, or for pairs one that broadcasts."""
        shape = self.shape(i)
        if op == "cat":
            rest = slice(1, None) if len(shape) == 3 else slice(-1)
            fits = [j for j in range(len(self.values)) if len(self.shape(j)) == len(shape)]
            fits = [j for j in fits if self.shape(j)[rest] == shape[rest]]
        elif op in ("add", "gate", "maximum"):
            fits = [j for j in range(len(self.values)) if len(self.shape(j)) == len(shape)]
            fits = [j for j in fits if all(n in (1, m) for n, m in zip(self.shape(j), shape, strict=True))]
        else:
            fits = [j for j in range(len(self.values)) if self.shape(j) == shape]
        fits = [j for j in fits if j != i] * 3 + [i]
        others = [self.pick(*fits) for _ in range(2 if op == "cat" and self.pick(False, False, True) else 1)]
        reads = [i, *others] if self.pick(True, False) or op == "gate" else [*others, i]
        return self.add(op, *reads)

    def constant(self, i):
        shape = self.shape(i)
        shapes = {3: [(shape[0], 1, 1), (1, 1, 1), shape], 2: [shape[-1:], shape], 1: [shape]}[len(shape)]
        return self.add("constant", i, shape=self.pick(*shapes), learned=self.pick(False, True))

    def step(self):
        """One more operation, or a few that belong together, on one of the last values."""
        i = len(self.values) - 1 - self.draw(st.integers(0, min(3, len(self.values) - 1)))
        shape = self.shape(i)
        width, size = shape[-1 if len(shape) == 2 else 0], self.values[i][0].numel()
        divisors = [g for g in range(2, width + 1) if width % g == 0]
        layers = [(k, node) for k, node in enumerate(self.net.graph.nodes) if node.op in LAYERS]
        same = [k for k, node in layers if self.shape(node.reads[0]) == shape]
        tied = [k for k, node in layers if node.op == "conv" and node.options["groups"] == 1]
        tied = [k for k in tied if self.net.graph.nodes[k].options["out_channels"] == width]
        moves = {
            "activate": lambda: self.activate(i),
            "add": lambda: self.join(i, "add"),
            "gate": lambda: self.join(i, "gate"),
            "maximum": lambda: self.join(i, "maximum"),
            "stack_sum": lambda: self.join(i, "stack_sum"),
            "constant": lambda: self.constant(i),
            "over_width": lambda: self.add("over_width", i),
            "filled": lambda: self.add("filled", i, made=self.pick("expanded", "ones", "repeated")),
            "padded": lambda: self.add("padded", i, before=self.pick(0, 1, 2), after=self.pick(0, 1)),
            "if_narrow": lambda: self.add("if_narrow", i, limit=width + self.draw(st.integers(0, 4))),
        }
        if size <= 432:
            moves["cat"] = lambda: self.join(i, "cat")
        if width > 1:
            moves["separate"] = lambda: self.separate(i, width)
        if same:
            moves["again"] = lambda: self.add("again", i, layer=self.pick(*same))
        if len(shape) == 3:
            moves |= {
                "convolution": lambda: self.convolution(i),
                "convolution, norm": lambda: self.activate(self.norm(self.convolution(i))),
                "depthwise": lambda: self.convolution(i, width * self.pick(1, 2), groups=width),
                "norm": lambda: self.norm(i),
                "prelu": lambda: self.add("prelu", i, num_parameters=self.pick(width, 1)),
                "squeeze": lambda: self.add("squeeze", i),
                "mean": lambda: self.add("mean", i),
                "flatten": lambda: self.add("flatten", i),
                "tokens": lambda: self.add("tokens", i),
                "rows": lambda: self.add("rows", i, width=width),
                "pool": lambda: self.add("avg_pool", i),
                "residual": lambda: self.residual(i),
                "squeeze_and_excite": lambda: self.squeeze_and_excite(i),
                "group_norm": lambda: self.add("group_norm", i, num_groups=1, num_channels=width),
                "channels_last_norm": lambda: self.add("channels_last_norm", i),
                "shifted": lambda: self.add("shifted", i),
                "overwritten": lambda: self.add("overwritten", i, how=self.pick("second", "zeros")),
                "blurred": lambda: self.add("blurred", i),
                "spectrum": lambda: self.add("spectrum", i),
                "softmax": lambda: self.add("softmax", i, dim=self.pick(1, 2)),
            }
            if min(shape[1:]) > 1:
                moves["pool"] = lambda: self.add(self.pick("max_pool", "avg_pool"), i)
            if max(shape[1:]) <= 3:
                moves["conv_transpose"] = lambda: self.add(
                    "conv_transpose", i, in_channels=width, out_channels=self.width(), kernel_size=2, stride=2
                )
            if divisors:
                moves["grouped"] = lambda: self.convolution(
                    i, (g := self.pick(*divisors)) * self.draw(st.integers(1, 4)), g
                )
                moves["shuffle"] = lambda: self.add(
                    "shuffle", i, groups=(g := self.pick(*divisors)), width=self.pick(-1, -1, width // g)
                )
            if width % 2 == 0:
                moves["shuffle_unit"] = lambda: self.shuffle_unit(i)
                moves["halves"] = lambda: self.add(self.pick(*HALVES), i)
            if tied and max(shape[1:]) <= 4:
                moves["tied"] = lambda: self.add("tied", i, layer=self.pick(*tied))
            if size <= 216:
                moves["interleave"] = lambda: self.join(i, "interleave")
        else:
            moves |= {
                "linear": lambda: self.add(
                    "linear", i, in_features=width, out_features=self.width(), bias=self.pick(True, False)
                ),
                "layer_norm": lambda: self.add("layer_norm", i, normalized_shape=width),
                "softmax": lambda: self.add("softmax", i, dim=-1),
            }
            moves["linear, activation"] = lambda: self.activate(moves["linear"]())
        if len(shape) == 2:
            sizes = [(h, shape[0] // h) for h in range(1, shape[0] + 1) if shape[0] % h == 0]
            moves |= {
                "mean": lambda: self.add("mean", i),
                "flatten": lambda: self.add("flatten", i),
                "untoken": lambda: self.add("untoken", i, size=self.pick(*sizes)),
                "attention": lambda: self.add("attention", i),
                "self_attention": lambda: self.add(
                    "self_attention", i, width=width, heads=self.pick(2, 3), split=self.pick(*SPLITS),
                    core=self.pick("fused", "einsum", "written out"),
                ),
                "whole_attention": lambda: self.add(
                    "whole_attention", i, width=width, heads=self.pick(1, *divisors), bias=self.pick(True, False)
                ),
                "product": lambda: self.add(
                    "product", i, inputs=width, outputs=self.width(), how=self.pick("einsum", "right", "left")
                ),
                "selected": lambda: self.add("selected", i, index=[shape[0] - 1, 0]),
                "recurrent": lambda: self.add(
                    "recurrent", i, kind=self.pick("LSTM", "GRU", "RNN"), width=width, hidden=self.pick(2, 3),
                    layers=self.pick(1, 2), bidirectional=self.pick(False, True),
                ),
            }  # fmt: skip
            if width % 2 == 0:
                moves["gated"] = lambda: self.add("gated", i)
        if len(shape) == 1:
            sizes = [n for n in (1, 2, 3) if width % n**2 == 0]
            moves["norm"] = lambda: self.norm(i)
            moves["unflatten"] = lambda: self.add(
                "unflatten", i, sizes=(self.pick(-1, -1, width // (n := self.pick(*sizes)) ** 2), n, n)
            )
        often = ("convolution", "convolution, norm", "linear", "linear, activation", "residual", "add", "cat",
                 "tokens", "self_attention", "whole_attention", "layer_norm")  # fmt: skip
        moves[self.pick(*[op for op in often if op in moves] * 3, *moves)]()


@st.composite
def graphs(draw):
    """A stem, some operations, and a classifier on every value that nothing reads (or seldom that value itself)."""
    builder = Builder(draw)
    builder.activate(builder.convolution(0))
    for _ in range(draw(st.integers(1, 8))):
        builder.step()
    nodes = builder.net.graph.nodes
    leaves = {i for node in nodes for i in node.makes} - {i for node in nodes for i in node.reads}
    outputs = []
    for i in sorted(leaves):
        if builder.pick(*[False] * 9, True):
            outputs.append(i)
            continue
        h = builder.add("mean", i) if len(builder.shape(i)) > 1 else i
        outputs.append(builder.add("linear", h, in_features=builder.shape(h)[0], out_features=3))
    return Graph(nodes, outputs), tuple(builder.values[0].shape[1:])


factors = st.sampled_from([2, 1.5]) | st.floats(1.3, 3)
seeds = st.integers(0, 3)


def build(drawn, randomise):
    graph, size = drawn
    return randomise(Net(graph)).double(), images(*size)


def certify(teacher, student, x):
    """On other images than the student was made with."""
    compare.certify(teacher, student, images(*x.shape[1:], batch=4, seed=2), evaluation=1e-9)


def refusal(error):
    """The kind of a refusal, which has to be one sentence about widths: every operation here has a rule, and runs."""
    message = str(error)
    assert not isinstance(error, UnsupportedOperation), message
    assert "\n" not in message, message
    assert not re.search("the forward pass (on the meta device )?failed", message), message
    return re.sub(r"'[^']*'|[\d.]+", "_", message.partition(":")[0])


def attempt(grow, *arguments, **options):
    """The student, or None and why not."""
    try:
        return grow(*arguments, **options, strict=True), "grown"
    except GrowthError as error:
        return None, refusal(error)


def test_the_function_is_preserved_or_the_graph_refused(randomise):
    results = Counter()

    @fuzz(70)
    @given(graphs(), factors, seeds)
    def check(drawn, factor, seed):
        teacher, x = build(drawn, randomise)
        before = weights(teacher)
        student, result = attempt(widen, teacher, x, factor, seed=seed, verify=False)
        results[result] += 1
        assert same(weights(teacher), before)
        if student is not None:
            assert parameters(student) > parameters(teacher)
            certify(teacher, student, x)

    check()
    print(*(f"\n{count:6d} {result}" for result, count in results.most_common()))
    # Else the graphs would say little; of a few that are drawn anew it may be less.
    assert results["grown"] > (0.5 if BUDGET else 0.7) * results.total()


@fuzz(30)
@given(graphs(), st.data())
def test_a_named_layer_gets_the_width_that_was_asked_for(randomise, drawn, data):
    teacher, x = build(drawn, randomise)
    layers = {k: m for k, m in teacher.named_modules() if hasattr(m, "out_channels") or hasattr(m, "out_features")}
    name = data.draw(st.sampled_from(sorted(layers)))
    width = width_of(layers[name]) + data.draw(st.integers(0, 8))
    student, _ = attempt(widen, teacher, x, widths={name: width}, verify=False)
    if student is not None:
        assert width_of(student.get_submodule(name)) == width
        certify(teacher, student, x)


def width_of(layer):
    if isinstance(layer, nn.MultiheadAttention):
        return layer.in_proj_weight.shape[0]
    weight = layer.weight_ih_l0 if isinstance(layer, nn.RNNBase) else layer.weight
    return weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0]


@fuzz(15)
@given(graphs(), factors, seeds, st.booleans())
def test_noise_changes_numbers_alone(randomise, drawn, factor, seed, exact):
    teacher, x = build(drawn, randomise)
    silent, result = attempt(widen, teacher, x, factor, seed=seed, verify=False)
    noisy, other = attempt(widen, teacher, x, factor, seed=seed, verify=False, noise=0.1, exact=exact)
    assert result == other
    if noisy is not None:
        assert shapes(noisy) == shapes(silent)
        assert history(noisy)[-1]["spaces"] == history(silent)[-1]["spaces"]
        if exact:
            certify(teacher, noisy, x)


def filled_with(number):
    def fill(module):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data.fill_(number)

    return fill


@fuzz(15)
@given(graphs(), factors, seeds)
def test_random_pad_keeps_what_was_there(randomise, drawn, factor, seed):
    """What two fillings have in common is old, and in its old order."""
    teacher, x = build(drawn, randomise)
    student, result = attempt(widen, teacher, x, factor, seed=seed, verify=False)
    (one, other), both = zip(
        *(attempt(random_pad, teacher, x, factor, seed=seed, init=filled_with(n)) for n in (1e3, -1e3)), strict=True
    )
    assert set(both) == {result}
    if student is not None:
        assert shapes(one) == shapes(other) == shapes(student)
        theirs, others = teacher.state_dict(), other.state_dict()
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor[tensor == others[name]], theirs[name].flatten()), name


@fuzz(15)
@given(graphs(), factors, factors, seeds)
def test_students_grow_again(randomise, drawn, first, second, seed):
    teacher, x = build(drawn, randomise)
    student, _ = attempt(widen, teacher, x, first, seed=seed, verify=False)
    if student is not None:
        again, _ = attempt(widen, student, x, second, seed=seed, verify=False)
        if again is not None:
            assert parameters(again) > parameters(student)
            certify(teacher, again, x)


class Standardised(nn.Conv2d):
    """A convolution of which each filter has mean 0 and deviation 1."""

    def forward(self, h):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * (var + 1e-4).rsqrt()
        return F.conv2d(h, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised(layer):
    layer.__class__ = Standardised if type(layer) is nn.Conv2d else type(layer)


class Masked(nn.Module):
    """Times a mask and a factor."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("mask", (torch.arange(weight.numel()).view(weight.shape) % 3 > 0).to(weight))

    def forward(self, weight):
        return weight * self.mask / 2


def masked(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Masked(layer.weight))


COMPUTED = {
    "masked": masked,
    "as it is": lambda layer: None,
    "weight norm": weight_norm,
    "along the inputs": lambda layer: weight_norm(layer, dim=1),
    "one norm for all": lambda layer: weight_norm(layer, dim=None),
    "standardised": standardised,
}


@fuzz(25)
@given(graphs(), factors, factors, st.lists(st.sampled_from(sorted(COMPUTED)), min_size=12, max_size=12), seeds)
def test_weights_that_are_computed_grow_and_grow_again(randomise, drawn, first, second, kinds, seed):
    teacher, x = build(drawn, randomise)
    layers = [m for m in teacher.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) or type(m) is nn.Linear]
    for layer, kind in zip(layers, kinds, strict=False):
        COMPUTED[kind](layer)
    student, _ = attempt(widen, teacher, x, first, seed=seed, verify=False)
    if student is not None:
        certify(teacher, student, x)
        again, _ = attempt(widen, student, x, second, seed=seed, verify=False)
        if again is not None:
            certify(teacher, again, x)


@fuzz(15)
@given(graphs())
def test_what_explain_says_can_grow_does(randomise, drawn):
    teacher, x = build(drawn, randomise)
    rows = explain(teacher, x).spaces
    student, _ = attempt(widen, teacher, x, 2, verify=False)
    grown = {name for row in rows if row.fixed is None for name in row.made_by}
    assert (student is not None) == bool(grown)
    for name in {name for row in rows for name in row.made_by} if grown else ():
        old, new = (width_of(model.get_submodule(name)) for model in (teacher, student))
        assert (new > old) == (name in grown), name


# Code that counts on numbers which its module keeps under any name: (module, features, number, number) -> features.
COUNTED = {
    "one part of two": lambda m, h, a, b: h.split([a(m), h.shape[-1] - a(m)], -1)[0],
    "parts in turn": lambda m, h, a, b: torch.cat(h.split([a(m), b(m) - a(m)], -1)[::-1], -1),
    "three parts": lambda m, h, a, b: (lambda q, k, v: torch.cat([q * k, v], -1))(
        *h.split([a(m), a(m), b(m) - 2 * a(m)], -1)),
    "heads": lambda m, h, a, b: F.normalize(h.view(*h.shape[:2], a(m), -1), dim=-1).reshape(*h.shape[:2], b(m)),
    "groups": lambda m, h, a, b: h + h.view(*h.shape[:2], a(m), b(m) // a(m)).mean(-1, True).expand(
        *(-1, -1, -1), b(m) // a(m)).reshape(*h.shape[:2], b(m)),
    "scaled": lambda m, h, a, b: h * b(m) ** -0.5,
    "some": lambda m, h, a, b: h[..., : a(m)],
    "one taken away": lambda m, h, a, b: h - h[..., a(m) - 1 : a(m)],
    "mean": lambda m, h, a, b: h - h.sum(-1, keepdim=True) / b(m),
    "added": lambda m, h, a, b: h + torch.ones(b(m), dtype=h.dtype, device=h.device),
    "repeated": lambda m, h, a, b: h.repeat(1, 1, a(m)),
}  # fmt: skip
NAMES = ("dim", "n", "k", "size", "qk", "embed_dim", "width", "cfg", "num_features", "num_heads", "head_dim", "step")


class Counting(nn.Module):
    """Operations on features, two of which may count on the same number, between two linear layers."""

    def __init__(self, width, operations, names, residual):
        super().__init__()
        self.first, self.residual, self.does = nn.Linear(width, 12), residual, []
        names = iter(names)
        with torch.no_grad():
            h = torch.zeros(1, 2, 12)
            for name, divisor in operations:
                if (there := h.shape[-1]) < 4:
                    break
                a, b = (self.keep(next(names), n) for n in (1 if there % divisor else there // divisor, there))
                self.does.append(lambda m, h, call=COUNTED[name], a=a, b=b: call(m, h, a, b))
                h = self.does[-1](self, h)
        self.last = nn.Linear(h.shape[-1], width)

    def keep(self, name, number):
        """As an attribute, in a list, or, if there is no name for it, as a constant of the code."""
        if name is None:
            return lambda m: number
        setattr(self, name, [number, 7] if name == "cfg" else number)
        return lambda m: getattr(m, name)[0] if name == "cfg" else getattr(m, name)

    def forward(self, x):
        h = self.first(x).relu()
        for does in self.does:
            h = does(self, h)
        return self.last(h) + x if self.residual else self.last(h)


@fuzz(25)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(COUNTED)), st.sampled_from((2, 3, 4))), min_size=1, max_size=3),
    st.permutations([*NAMES, None, None, None]),
    st.booleans(),
    st.sampled_from((1, 2)),
    factors,
)
def test_numbers_that_modules_keep_follow_or_hold_their_channels(randomise, operations, names, residual, n, factor):
    """And the search for those that do ends."""
    blocks = [Counting(6, operations, names, residual) for _ in range(n)]
    teacher, x = randomise(nn.Sequential(nn.Linear(3, 6), *blocks, nn.Linear(6, 2))).double(), images(5, 3)
    student, _ = attempt(widen, teacher, x, factor, verify=False)
    if student is not None:
        certify(teacher, student, x)


# What a weight can be computed by: linear in its parameters or not, along channels or not.
WEIGHED = {
    "sum": lambda m, a, b: a + b,
    "difference": lambda m, a, b: a - 0.5 * b,
    "product": lambda m, a, b: a * b,
    "masked": lambda m, a, b: a * m.mask + b,
    "share": lambda m, a, b: a / (b.abs() + 1),
    "flipped": lambda m, a, b: a.flip(2),
    "turned": lambda m, a, b: a.transpose(2, 3),
    "pointwise": lambda m, a, b: F.pad(a.sum((2, 3), keepdim=True), (1, 1, 1, 1)) + b,
    "seen as a matrix": lambda m, a, b: a.flatten(1).t().reshape(*a.shape[1:], len(a)).permute(3, 0, 1, 2),
    "stacked": lambda m, a, b: torch.stack((a, b)).mean(0),
    "joined": lambda m, a, b: torch.cat((a[..., :2], b[..., 2:]), 3),
    "of low rank": lambda m, a, b: (a.flatten(1)[:, :2] @ b.flatten(1)[:2]).view_as(a),
    "product of matrices": lambda m, a, b: (a.sum((2, 3)) @ b.flatten(1)).view_as(b),
    "rows": lambda m, a, b: a * m.rows.view(-1, 1, 1, 1),
    "columns": lambda m, a, b: a * m.columns.view(1, -1, 1, 1) + b,
    "more": lambda m, a, b: a + m.rows.view(-1, 1, 1, 1),
    "centred": lambda m, a, b: a - a.mean((2, 3), keepdim=True),
    "one more": lambda m, a, b: a + 1,
    "bent": lambda m, a, b: F.softplus(a),
    "filters at length one": lambda m, a, b: F.normalize(a.flatten(1), dim=1).view_as(a),
}


class Weighed(nn.Module):
    """A convolution whose weight is computed, step by step, and may be used a second time on the way."""

    def __init__(self, width, steps, again, by_hand):
        super().__init__()
        self.steps, self.again, self.by_hand = steps, again, by_hand
        self.kernels = nn.ParameterList(torch.empty(width, width, 3, 3) for _ in range(3))
        self.rows, self.columns = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("mask", torch.empty(width, width, 3, 3))

    def forward(self, x):
        found = list(self.kernels)
        for name, a, b in self.steps:
            found.append(WEIGHED[name](self, found[-1 - a % len(found)], found[-1 - b % len(found)]))
        weight = found[-1]
        if self.by_hand:
            n, _, h, w = x.shape
            made = (weight.flatten(1) @ F.unfold(x, 3, padding=1)).view(n, -1, h, w)
        else:
            made = F.conv2d(x, weight, padding=1)
        if self.again is not None:
            made = made + F.conv2d(x, found[self.again % len(found)], padding=1)
        return made


@fuzz(25)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(WEIGHED)), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4),
    st.none() | st.integers(0, 7),
    st.booleans(),
    factors,
    factors,
    seeds,
)
def test_weights_that_are_written_out_grow_or_stay(randomise, steps, again, by_hand, first, second, seed):
    layers = [Weighed(4, steps, again, by_hand) for _ in range(2)]
    teacher, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), *layers, nn.ReLU(), nn.Conv2d(4, 2, 1)), images(3, 4, 4)
    for p in teacher.parameters():
        nn.init.normal_(p, 0.3, 0.2)
    teacher = randomise(teacher).double()
    student, _ = attempt(widen, teacher, x, first, seed=seed, verify=False)
    if student is not None:
        certify(teacher, student, x)
        grown, _ = attempt(widen, student, x, second, seed=seed + 1, verify=False)
        if grown is not None:
            certify(teacher, grown, x)
