"""Transformers: heads as whole copies however they are split off, and the width of the embedding by whole factors."""

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn

from net2net import GrowthError, explain, verify, widen

HEADS, WIDTH = 3, 4
INNER = HEADS * WIDTH


class Attention(nn.Module):
    """Self-attention over [N, L, C]; `split` makes q, k and v of [N, L, 3 * heads * d] or of its own layers."""

    def __init__(self, split, channels=8, heads="num_heads", separate=False, read=INNER, core=None):
        super().__init__()
        setattr(self, heads, HEADS)
        self.split, self.core = split, core or F.scaled_dot_product_attention
        self.qkv = nn.ModuleList(nn.Linear(channels, INNER) for _ in "qkv")
        if not separate:
            self.qkv = nn.Linear(channels, 3 * INNER)
        self.out = nn.Linear(read, channels)

    def forward(self, x):
        q, k, v = self.split(self, x)
        return self.out(self.core(q, k, v).transpose(1, 2).flatten(2))


def written_out(q, k, v):
    return (q @ k.mT / WIDTH**0.5).softmax(-1) @ v


def by_einsum(q, k, v):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / WIDTH**0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -1e9)
    return torch.einsum("...ij, ...jd -> ...id", scores.softmax(-1), v)


def rows_of_batches(q, k, v):
    n, h = q.shape[:2]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype, device=q.device), q, k.mT, alpha=0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (n, h))


def heads_of(t, heads):
    return t.view(*t.shape[:2], heads, -1).transpose(1, 2)


def halves_turned(t):
    a, b = t.chunk(2, -1)
    return torch.cat([-b, a], -1)


def turned(m, x):
    q, k, v = (heads_of(t, m.num_heads) for t in m.qkv(x).chunk(3, -1))
    return q + halves_turned(q), k * 0.5 + halves_turned(k), v


SPLITS = {
    "chunk, view": (lambda m, x: [heads_of(t, m.n_head) for t in m.qkv(x).chunk(3, -1)], {"heads": "n_head"}),
    "split, view": (lambda m, x: [heads_of(t, m.heads) for t in (lambda y: y.split(y.shape[-1] // 3, 2))(m.qkv(x))],
                    {"heads": "heads"}),
    "the number of heads is what is left": (
        lambda m, x: [t.view(*t.shape[:2], -1, WIDTH).transpose(1, 2) for t in m.qkv(x).chunk(3, -1)],
        {"heads": "unused"}),
    "unflatten, unbind": (lambda m, x: m.qkv(x).unflatten(-1, (3, m.h, WIDTH)).permute(2, 0, 3, 1, 4).unbind(),
                          {"heads": "h"}),
    "view, index": (lambda m, x: (lambda y: (y[0], y[1], y[2]))(
        m.qkv(x).view(*x.shape[:2], 3, m.num_attention_heads, WIDTH).permute(2, 0, 3, 1, 4)),
        {"heads": "num_attention_heads"}),
    "as einops: '(k h d)' to 'k b h n d'": (
        lambda m, x: m.qkv(x).reshape(*x.shape[:2], 3, m.heads, WIDTH).permute(2, 0, 3, 1, 4), {"heads": "heads"}),
    "layers of their own": (lambda m, x: [heads_of(f(x), m.nhead) for f in m.qkv],
                            {"heads": "nhead", "separate": True}),
    "rotated halves": (turned, {}),
    "written out": (lambda m, x: [heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1)],
                    {"heads": "heads", "core": written_out}),
    "einsum": (lambda m, x: [heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1)],
               {"heads": "heads", "core": by_einsum}),
    "bmm": (lambda m, x: [heads_of(t, m.heads) for t in m.qkv(x).chunk(3, -1)],
            {"heads": "heads", "core": rows_of_batches}),
}  # fmt: skip


def block(attention, channels=8):
    """A transformer's block on images of positions, between an embedding and a classifier."""

    def forward(m, x):
        h = m.embed(x) + m.position[:, : x.shape[1]]
        h = h + m.attention(m.first(h))
        h = h + m.down(F.gelu(m.up(m.second(h))))
        return m.fc(m.last(h).mean(1))

    return Net(forward, embed=nn.Linear(5, channels), position=nn.Parameter(torch.randn(1, 9, channels)),
               first=nn.LayerNorm(channels), attention=attention, second=nn.LayerNorm(channels),
               up=nn.Linear(channels, 10), down=nn.Linear(10, channels), last=nn.LayerNorm(channels),
               fc=nn.Linear(channels, 3))  # fmt: skip


def sequences(length=7, batch=3, width=5):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def certify(teacher, student, x, limit=1e-10):
    for train in (False, True):
        certificate = verify(teacher, student, x, train=train)
        assert certificate.relative <= limit, certificate


@pytest.mark.parametrize("name", SPLITS)
def test_heads_grow_however_they_are_split_off(name, randomise):
    split, options = SPLITS[name]
    teacher, x = randomise(block(Attention(split, **options))).double(), sequences()
    for factor, heads, channels in ((4 / 3, 4, 8), (2, 6, 16)):
        student = widen(teacher, x, factor, verify=False, strict=True)
        assert student.attention.out.weight.shape == (channels, heads * WIDTH)
        assert student.position.shape == (1, 9, channels)
        assert student.up.weight.shape == (round(10 * factor), channels)
        certify(teacher, student, x)
    certify(teacher, student, sequences(length=4, batch=2))


def test_explain_says_which_factors():
    net = block(Attention(*SPLITS["rotated halves"][:1])).double()
    rows = {row.made_by[0]: row for row in explain(net, sequences()).spaces}
    assert (rows["embed"].how, rows["up"].how) == ("by whole factors: 2, 3, …", "by any factor")
    assert "by whole factors: 2, 3, …" in str(explain(net, sequences()))
    assert rows["fc"].how == "they are the network's output"


def test_one_of_several_splits_that_can_grow_is_enough(randomise):
    """Without a product over d either part may be the channels: that which is taken for them first."""
    teacher = Net(lambda m, x: m.read(m.make(x).view(len(x), 3, 4).flip(1).sin().flatten(1)),
                  make=nn.Linear(5, 12), read=nn.Linear(12, 3))  # fmt: skip
    x = torch.randn(6, 5, dtype=torch.float64)
    with pytest.raises(GrowthError, match="counts on their width"):  # 4 is written into its code
        widen(randomise(teacher).double(), x, 2)


class Layer(nn.Module):
    """nn.MultiheadAttention as cross-attention over [N, L, C]."""

    def __init__(self, channels=8, weights=False, average=True, source=None, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(channels, 2, batch_first=True, **options)
        self.weights, self.average = weights, average
        self.source = nn.Linear(channels, source) if source else nn.Identity()

    def forward(self, x):
        other = self.source(x.flip(1))
        out, weights = self.inner(x, other, other, need_weights=self.weights, average_attn_weights=self.average)
        return out if weights is None else out * weights.flatten(1).sin().mean(1)[:, None, None]


LAYERS = {
    "plain": {},
    "weights": {"weights": True},
    "weights of each head": {"weights": True, "average": False},
    "keys and values of another width": {"source": 6, "kdim": 6, "vdim": 6},
    "without bias": {"bias": False},
    "with a bias of keys and values": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("name", LAYERS)
def test_multi_head_attention_grows_by_whole_factors(name, randomise):
    teacher, x = randomise(block(Layer(**LAYERS[name]))).double(), sequences()
    student = widen(teacher, x, 1.5, verify=False)
    assert (student.attention.inner.embed_dim, student.up.out_features) == (8, 15)
    for factor in (2, 3):
        student = widen(teacher, x, factor, verify=False)
        inner = student.attention.inner
        assert (inner.embed_dim, inner.num_heads, inner.head_dim) == (8 * factor, 2 * factor, 4)
        assert inner.out_proj.weight.shape == (8 * factor, 8 * factor)
        certify(teacher, student, x)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_fast_path_of_torchs_transformer(norm_first, randomise):
    layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=norm_first)
    teacher = Net(lambda m, x: m.fc(m.encoder(m.embed(x)).mean(1)), embed=nn.Linear(5, 8), fc=nn.Linear(8, 3),
                  encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))  # fmt: skip
    teacher, x = randomise(teacher).double().eval(), sequences()
    student = widen(teacher, x, 2, verify=False).eval()
    assert student.encoder.layers[1].self_attn.in_proj_weight.shape == (48, 16)
    with torch.no_grad():  # nothing that looks at the operations, so that the fast path is taken
        assert torch.allclose(teacher(x), student(x), rtol=1e-10, atol=1e-12)
    certify(teacher, student, x)


def language_model(tied):
    def forward(m, ids):
        h = m.tokens(ids) + m.positions(torch.arange(ids.shape[1], device=ids.device))
        return F.linear(m.norm(h + m.down(m.up(h).relu())), m.tokens.weight if tied else m.head.weight)

    return Net(forward, tokens=nn.Embedding(11, 6), positions=nn.Embedding(9, 6), norm=nn.RMSNorm(6),
               up=nn.Linear(6, 8), down=nn.Linear(8, 6), head=nn.Linear(6, 11))  # fmt: skip


def test_tables_grow_along_their_rows_unless_they_are_read_out_with(randomise):
    ids = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))
    for tied in (False, True):
        teacher = randomise(language_model(tied)).double()
        student = widen(teacher, ids, 2, verify=False)
        width = 6 if tied else 12
        assert student.tokens.weight.shape == (11, width)
        assert (student.tokens.embedding_dim, student.positions.embedding_dim) == (width, width)
        assert student.up.out_features == 16
        certify(teacher, student, ids)
    held = [row.fixed for row in explain(teacher, ids).spaces if "tokens" in row.made_by and row.width == 6]
    assert held == ["'tokens.weight' sums over them in one place and is used otherwise in another"]
    bag = Net(lambda m, ids: m.fc(m.bag(ids)), bag=nn.EmbeddingBag(11, 6), fc=nn.Linear(6, 3)).double()
    student = widen(bag, ids, 1.5, verify=False)
    assert student.bag.weight.shape == (11, 9)
    certify(bag, student, ids)
    limited = Net(lambda m, ids: m.fc(m.table(ids)), table=nn.Embedding(11, 6, max_norm=1.0), fc=nn.Linear(6, 3))
    with pytest.raises(GrowthError, match="'embedding' in module 'table' limits the norm of each row"):
        widen(limited.double(), ids, 2)


def kernel(*shape):
    return nn.Parameter(torch.zeros(shape))


# Layers of 4 -> 6 channels that are written as products: [N, L, 4] to [N, L, 6].
PRODUCTS = {
    "x @ w": (lambda m, h: h @ m.w, (4, 6)),
    "x @ w.t()": (lambda m, h: h @ m.w.t(), (6, 4)),
    "w @ x": (lambda m, h: (m.w @ h.mT).mT, (6, 4)),
    "matmul": (lambda m, h: torch.matmul(h, m.w.detach().contiguous()), (4, 6)),
    "mm": (lambda m, h: torch.mm(h.flatten(0, 1), m.w).view(*h.shape[:2], -1), (4, 6)),
    "addmm": (lambda m, h: torch.addmm(m.b, h.flatten(0, 1), m.w).view(*h.shape[:2], -1), (4, 6)),
    "einsum": (lambda m, h: torch.einsum("nlc,cd->nld", h, m.w) + m.b, (4, 6)),
    "einsum, heads": (lambda m, h: torch.einsum("...c, hcd -> ...hd", h, m.w).flatten(2), (2, 4, 3)),
    "einsum, a list": (lambda m, h: torch.einsum("dc,nlc->nld", [m.w, h]), (6, 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_weight_are_layers(name, randomise):
    run, shape = PRODUCTS[name]
    teacher = Net(lambda m, x: m.read(run(m, m.make(x).relu()).relu()), make=nn.Linear(5, 4), read=nn.Linear(6, 3),
                  w=kernel(*shape), b=kernel(6))  # fmt: skip
    teacher, x = randomise(teacher).double(), sequences()
    student = widen(teacher, x, 1.5, verify=False, strict=True)
    assert (student.make.out_features, student.read.in_features) == (6, 9)
    certify(teacher, student, x)
