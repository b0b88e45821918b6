"""Forward passes that look at their widths, as numbers or on the way: a student is right, or refused."""

from functools import partial

import compare
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from catalogue import vector
from nets import Net, images
from torch import nn
from torch.nn.utils import prune

import net2net
from net2net import GrowthError, verify, widen

X = images(5, batch=6)
grown = partial(compare.grown, pad=True)


def paint(m, x):
    h, mask = m.a(x), torch.zeros(1, 8, dtype=x.dtype)
    mask[:, : h.shape[1]] = 1
    return m.o(h) * mask.sum()


def normalised_with_one_that_stays(m, x):
    a, b = m.a(x), m.b(x)
    return m.both(m.ln(torch.cat([a, b], 1))) + m.o(b / b.shape[1])


def branch_of_students_in_training(m, x):
    h = m.a(x)
    return m.o(h * 2 if m.training and h.shape[1] > 4 else h)


HELD = {
    "filled with the width": lambda m, x: m.o(m.a(x)) + m.a(x).new_full((1,), m.a(x).shape[1]),
    "the width in an array": lambda m, x: m.o(m.a(x)) + torch.as_tensor(np.full(1, m.a(x).shape[1], np.float64)),
    "the width in a slice": paint,
    "a branch in training": branch_of_students_in_training,
    "random slopes in evaluation, too": lambda m, x: m.o(F.rrelu(m.a(x), training=True)),
    "a limit in a module made on the way": lambda m, x: m.o(nn.Hardtanh(-m.a(x).shape[1], m.a(x).shape[1])(m.a(x))),
    "a loss that is summed": lambda m, x: m.o(m.a(x) * F.mse_loss(m.a(x), m.a(x) * 2, reduction="sum")),
    "logsumexp": lambda m, x: m.o(m.a(x) - m.a(x).logsumexp(1, keepdim=True)),
}


@pytest.mark.parametrize("name", HELD)
def test_what_hides_its_width_stays(name):
    with pytest.raises(
        GrowthError,
        match=r"nothing can grow: '\w+' .*(counts on their width|needs every one of them|reduces over them)",
    ):
        grown(vector(HELD[name]), X)
    if name not in ("the width in an array", "the width in a slice"):  # whose channels these are cannot be known
        net = vector(lambda m, x: m.end(m.b(HELD[name](m, x))), b=nn.Linear(2, 6), end=nn.Linear(6, 3))
        student = grown(net, X, 1.5)
        assert (student.a.out_features, student.b.out_features) == (4, 9)


def as_many_heads_as_each_is_wide(m, x):
    x = m.emb(x)
    q, k, v = (layer(x).view(2, 3, heads, m.d) for layer, heads in ((m.q, m.h), (m.k, m.kv), (m.v, m.kv)))
    k, v = (t[:, :, :, None].expand(2, 3, m.kv, m.h // m.kv, m.d).reshape(2, 3, m.h, m.d) for t in (k, v))
    heads = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    x = x + m.read(heads.transpose(1, 2).reshape(2, 3, -1))
    return m.o(x + m.down(F.silu(m.gate(x)) * m.up(x)))


def test_heads_as_many_as_each_is_wide_are_found_where_all_in_the_module_have_them():
    """`h` and `d` are one number, so that `d` is taken for the number of heads first, which no width can fit."""
    layers = {"q": (8, 16), "k": (8, 8), "v": (8, 8), "read": (16, 8), "gate": (8, 10), "up": (8, 10), "down": (10, 8)}
    net = Net(as_many_heads_as_each_is_wide, emb=nn.Linear(5, 8), o=nn.Linear(8, 2))
    for name, sizes in layers.items():
        setattr(net, name, nn.Linear(*sizes))
    net.h, net.kv, net.d = 4, 2, 4
    student = grown(net.double(), torch.randn(2, 3, 5, dtype=torch.float64))
    assert (student.h, student.kv, student.d, student.q.out_features) == (8, 4, 4, 32)
    assert (student.emb.out_features, student.gate.out_features, student.up.out_features) == (16, 20, 20)


def test_a_number_that_moves_something_else_holds_only_the_channels_it_comes_from():
    def forward(m, x):
        a = m.a(x)
        return m.o(a) + m.end(m.b(x)) + x.mean() * a.shape[1]

    student = grown(vector(forward, b=nn.Linear(5, 6), end=nn.Linear(6, 2)), X)
    assert (student.a.out_features, student.b.out_features) == (4, 12)


class Attention(nn.Module):
    """The width of a head is what it is given over their number, as in many published nets."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads)
        heads = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return x + self.out(heads.transpose(1, 2).reshape(n, tokens, width))


def test_heads_that_cannot_grow_hold_none_of_the_same_class_that_can(randomise):
    """The last one's input is the network's output."""
    net = nn.Sequential(
        nn.Linear(3, 8), Attention(8, 2), nn.Linear(8, 6), Attention(6, 2), nn.Linear(6, 4), Attention(4, 2)
    )
    student = grown(randomise(net).double(), torch.randn(2, 5, 3, dtype=torch.float64))
    assert [student[k].num_heads for k in (1, 3, 5)] == [4, 4, 2]
    assert [student[k].qkv.out_features for k in (1, 3, 5)] == [48, 36, 12]


@pytest.mark.parametrize("options", [{"factor": 2}, {"factor": None, "widths": {"a": 8}}])
def test_what_is_normalised_together_with_channels_that_stay_stays(options):
    net = vector(normalised_with_one_that_stays, b=nn.Linear(5, 4), ln=nn.LayerNorm(8), both=nn.Linear(8, 2))
    with pytest.raises(GrowthError, match="counts on their width"):
        grown(net, X, **options)


def test_flipped_dimensions_given_one_by_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Net(lambda m, x: x.flip(2, 1)), nn.Conv2d(4, 2, 1)).double()
    with pytest.raises(GrowthError, match="'flip'"):
        widen(net, torch.randn(2, 3, 5, 5, dtype=torch.float64), 2)


class Heads(nn.Module):
    def __init__(self, inputs, heads, width):
        super().__init__()
        self.num_heads, self.width, self.linear = heads, width, nn.Linear(inputs, heads * width)

    def forward(self, x):
        return self.linear(x).view(*x.shape[:2], self.num_heads, self.width).transpose(1, 2)


def shared_keys(m, x):
    q, k, v = (heads(x[:, None].expand(-1, 3, -1) * 1) for heads in (m.q, m.k, m.v))
    return m.read(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def test_heads_that_share_keys_grow_as_whole_groups():
    net = vector(shared_keys, q=Heads(5, 4, 3), k=Heads(5, 2, 3), v=Heads(5, 2, 3), read=nn.Linear(12, 2))
    student = grown(net, X)
    heads = [(m.num_heads, m.width, m.linear.out_features) for m in (student.q, student.k, student.v)]
    assert heads == [(8, 3, 24), (4, 3, 12), (4, 3, 12)]
    assert student.read.in_features == 24


class FixedHeads(Heads):
    num_heads = property(lambda self: 2, lambda self, value: None)


def test_a_number_of_heads_that_is_computed_stays():
    def forward(m, x):
        q = m.q(x[:, None].expand(-1, 3, -1) * 1)
        return m.read(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))

    with pytest.raises(GrowthError, match="counts on their width"):
        grown(vector(forward, q=FixedHeads(5, 2, 3), read=nn.Linear(6, 2)), X)


def test_tensors_that_are_plain_attributes():
    net = vector(lambda m, x: m.o(m.a(x)))
    net.table = torch.arange(4.0)
    assert torch.equal(grown(net, X).table, net.table)
    prune.l1_unstructured(net.a, "weight", amount=0.5)
    with torch.no_grad():
        net(X)
    grown(net, X, pad=False)  # a pruned layer cannot initialise itself


def test_training_that_cannot_be_followed_is_measured():
    def forward(m, x):
        h = m.a(x)
        if m.training and torch.rand(()) < 2:
            h = h / h.norm(dim=1, keepdim=True)
        return m.o(h)

    with pytest.raises(GrowthError, match=r"does not compute its teacher's function.*train mode"):
        widen(vector(forward), X, 2)


def test_a_closure_over_the_teacher_is_refused_and_leaves_it_alone():
    net = vector(lambda m, x: m.o(m.hidden(m.a(x))), bn=nn.BatchNorm1d(4))
    net.hidden = lambda h: net.bn(h)
    with pytest.raises(GrowthError):
        widen(net, X.float(), 2)
    assert net.bn.num_batches_tracked == 0


def test_quantised_weights_are_refused_by_name():
    # What is divided among copies would be rounded anew.
    net = vector(lambda m, x: F.linear(F.linear(x, rounded(m.a.weight)).relu(), rounded(m.o.weight)))
    refused = pytest.raises(GrowthError, match=r"'fake_quantize_per_tensor_affine'.*before it is prepared for quant")
    with pytest.warns(UserWarning, match="fake_quantize_per_tensor_affine"), refused:
        widen(net.float(), X.float(), 2)


def rounded(weight):
    return torch.fake_quantize_per_tensor_affine(weight, 0.05, 0, -128, 127)


def test_arguments_of_another_kind_are_refused_in_a_sentence(tmp_path):
    net, x = vector(lambda m, x: m.o(m.a(x).relu())), X
    with pytest.raises(GrowthError, match="widths names 0: expected names of layers"):
        widen(net, x, widths={0: 8})
    student = widen(net, x, 2)
    for pair in ((net, student.to("meta")), (net.to("meta"), student)):
        with pytest.raises(GrowthError, match="on the meta device has no values to verify with"):
            verify(*pair, x)
    with pytest.raises(GrowthError, match="save_weights takes the file first"):
        net2net.save_weights(student, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="maxout of 3 pieces needs a multiple of 3 channels, got 8"):
        net2net.Maxout(3)(torch.randn(2, 8))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_of_no_channels():
    net = nn.Sequential(
        nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 0), nn.Linear(0, 3), nn.ReLU(), nn.Linear(3, 2)
    ).double()
    assert grown(net, X, 2)[0].out_features == 8
