"""Transformers: heads as whole copies however they are split off, and the width of the embedding by whole factors."""

import pytest
import torch
import torch.nn.functional as F
from catalogue import SPLITS, Attention, block
from compare import certify
from nets import Net, images
from torch import nn

from net2net import GrowthError, explain, verify, widen


def test_explain_says_which_factors():
    net = block(Attention(*SPLITS["rotated halves"][:1])).double()
    rows = {row.made_by[0]: row for row in explain(net, images(7, 5)).spaces}
    assert (rows["embed"].how, rows["up"].how) == ("by whole factors: 2, 3, …", "by any factor")
    assert "by whole factors: 2, 3, …" in str(explain(net, images(7, 5)))
    assert rows["fc"].how == "they are the network's output"


def test_one_of_several_splits_that_can_grow_is_enough(randomise):
    """Without a product over d either part may be the channels: that which is taken for them first."""
    teacher = Net(lambda m, x: m.read(m.make(x).view(len(x), 3, 4).flip(1).sin().flatten(1)),
                  make=nn.Linear(5, 12), read=nn.Linear(12, 3))  # fmt: skip
    x = torch.randn(6, 5, dtype=torch.float64)
    with pytest.raises(GrowthError, match="counts on their width"):  # 4 is written into its code
        widen(randomise(teacher).double(), x, 2)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_fast_path_of_torchs_transformer(norm_first, randomise):
    layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=norm_first)
    teacher = Net(lambda m, x: m.fc(m.encoder(m.embed(x)).mean(1)), embed=nn.Linear(5, 8), fc=nn.Linear(8, 3),
                  encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))  # fmt: skip
    teacher, x = randomise(teacher).double().eval(), images(7, 5)
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


@pytest.mark.parametrize(
    "own",
    [("h", "kvh"), ("nh", "nkv"), ("num_heads", "num_kv_heads"), ("n_h", "n_kv"), None],
)
def test_keys_and_values_that_several_queries_share(own, randomise):
    """Grouped-query attention, written out or torch's own, with heads under any of their names."""

    class Grouped(nn.Module):
        def __init__(self, heads=4, shared=2):
            super().__init__()
            for key, value in zip(own or (), (heads, shared), strict=False):
                setattr(self, key, value)
            self.i, self.q, self.o = nn.Linear(3, 10), nn.Linear(10, heads * 6), nn.Linear(heads * 6, 3)
            self.k, self.v = nn.Linear(10, shared * 6), nn.Linear(10, shared * 6)

        def forward(self, x):
            x = self.i(x)
            q, k, v = (f(x).view(*x.shape[:2], -1, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
            if own:
                times = getattr(self, own[0]) // getattr(self, own[1])
                k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not own)
            return self.o(y.transpose(1, 2).flatten(2))

    for heads, shared in ((4, 2), (6, 3), *([] if own else [(4, 1), (4, 4)])):
        model, x = randomise(Grouped(heads, shared)).double(), torch.randn(2, 5, 3).double()
        for factor in (1.5, 2):
            new = int(shared * factor) if shared > 1 else 1
            student = widen(model, x, factor)
            grew = int(heads * factor) if shared == 1 else heads // shared * new
            assert (student.q.out_features, student.k.out_features) == (grew * 6, new * 6)
            assert verify(model, student, x).relative < 1e-12


@pytest.mark.parametrize("own", [("num_heads", "n_groups"), ("h", "b"), ("a", "kv_heads"), ("a", "b")])
def test_heads_under_names_of_which_one_says_nothing(own, randomise):
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, own[0], 4)
            setattr(self, own[1], 2)
            self.i, self.q, self.o = nn.Linear(3, 10), nn.Linear(10, 24), nn.Linear(24, 3)
            self.k, self.v = nn.Linear(10, 12), nn.Linear(10, 12)

        def forward(self, x):
            x = self.i(x)
            heads, shared = (getattr(self, key) for key in own)
            q = self.q(x).view(*x.shape[:2], heads, 6).transpose(1, 2)
            k, v = (f(x).view(*x.shape[:2], shared, 6).transpose(1, 2) for f in (self.k, self.v))
            k, v = (t.repeat_interleave(heads // shared, 1) for t in (k, v))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model = randomise(Grouped()).double()
    student = widen(model, images(5, 3), 2)
    assert (student.q.out_features, student.k.out_features) == (48, 24)
    assert (getattr(student, own[0]), getattr(student, own[1])) == (8, 4)
    certify(model, student, images(5, 3))


class Rearrange(nn.Module):
    """What einops' layer of this name keeps, and makes copies of itself of: [N, L, (h d)] -> [N, h, L, d]."""

    def __init__(self, **axes_lengths):
        super().__init__()
        self.axes_lengths, self._axes_lengths = axes_lengths, tuple(axes_lengths.items())

    def forward(self, x):
        return x.reshape(*x.shape[:2], dict(self._axes_lengths)["h"], -1).transpose(1, 2)

    def __getstate__(self):
        return {"axes_lengths": self.axes_lengths}

    def __setstate__(self, state):
        self.__init__(**state["axes_lengths"])


def test_layers_that_copies_of_are_made_anew_grow(randomise):
    def run(m, x):
        q, k, v = (m.heads(each(x)) for each in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Net(run, heads=Rearrange(h=2), **{key: nn.Linear(3, 8) for key in "qkv"}, o=nn.Linear(8, 2))
    student = widen(randomise(net).double(), images(5, 3), 2)
    assert (student.heads.axes_lengths, student.heads._axes_lengths) == ({"h": 4}, (("h", 4),))
    certify(net, student, images(5, 3))


def last_of(m, x):
    return m.o(m.b(m.a(x))[:, [-1], :])


def test_the_last_token_by_a_list(randomise):
    model = randomise(Net(last_of, a=nn.Linear(3, 8), b=nn.Linear(8, 8), o=nn.Linear(8, 2))).double()
    student = widen(model, images(5, 3), 2)
    assert (student.a.out_features, student.b.out_features) == (16, 16)
    certify(model, student, images(5, 3))


class OneKey(nn.Module):
    """Multi-query attention: one head of keys and values, spread over all heads of queries."""

    def __init__(self, spread):
        super().__init__()
        self.num_heads, self.spread = 4, spread
        self.i, self.q, self.kv, self.o = nn.Linear(3, 10), nn.Linear(10, 24), nn.Linear(10, 12), nn.Linear(24, 3)

    def forward(self, x):
        x = self.i(x)
        q = self.q(x).view(*x.shape[:2], self.num_heads, 6).transpose(1, 2)
        k, v = (self.spread(t.unsqueeze(1), self.num_heads, q) for t in self.kv(x).chunk(2, -1))
        return self.o(F.scaled_dot_product_attention(q, torch.cat([k, k], 2), torch.cat([v, v], 2)).mT.flatten(1, 2).mT)


SPREADS = {
    "expand": lambda t, n, q: t.expand(-1, n, -1, -1),
    "expand_as": lambda t, n, q: t.expand_as(q),
    "repeat": lambda t, n, q: t.repeat(1, n, 1, 1),
}


@pytest.mark.parametrize("name", SPREADS)
def test_one_head_of_keys_spread_over_those_of_queries(name, randomise):
    model = randomise(OneKey(SPREADS[name])).double()
    student = widen(model, images(5, 3), 2)
    assert (student.num_heads, student.q.out_features, student.kv.out_features) == (8, 48, 12)
    certify(model, student, images(5, 3))
