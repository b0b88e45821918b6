"""What growth reaches beyond plain networks: groups, channels taken apart, and operations that only hold them back."""

import copy
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from catalogue import EVEN, WindowAttention, between, depthwise, in_groups
from compare import certify, distinct, learns, parameters, same
from nets import conv, images
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from net2net import GrowthError, explain, grow_optimizer, history, random_pad, replay, summary, widen

timm = pytest.importorskip("timm")


def standardised(weight):
    return F.batch_norm(weight.flatten(1)[None], None, None, training=True).view_as(weight)


@pytest.mark.parametrize("name", EVEN)
def test_channels_that_are_normalised_together_grow_by_whole_numbers(name, randomise):
    teacher, x = randomise(EVEN[name]()).double(), images(3, 4, 4)
    with pytest.raises(GrowthError, match=r"'make' to 9: .* normalised together.* a multiple of 8"):
        widen(teacher, x, widths={"make": 9})
    certify(teacher, widen(teacher, x, widths={"make": 24}), x)
    certify(teacher, widen(teacher, x, 2, noise=0.3, exact=True), x)


@pytest.mark.parametrize("factor", [1.5, 2, 2.6])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_heads_are_copied_whole(fused, factor, randomise):
    teacher = randomise(between(lambda m, h: m.attention(h), attention=WindowAttention(8, 2, fused))).double()
    x = images(3, 4, 4)
    distinct(teacher, x)
    student = widen(teacher, x, factor, verify=False)
    heads = round(2 * factor)
    assert student.attention.num_heads == heads
    assert student.attention.qkv.weight.shape == (3 * heads * 4, round(8 * factor))
    assert student.attention.proj.weight.shape == (round(8 * factor), heads * 4)
    assert student.attention.table.shape == (5, heads)
    certify(teacher, student, x)
    learns(student, x)


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize(
    ("norm", "grouping"), [("B0", {}), ("B2", {}), ("S0", {"groups": 4}), ("S0a", {"group_size": 2}), ("S1", {})]
)
def test_an_evolved_norm_takes_as_many_channels_as_are_asked_for(norm, grouping, factor, randomise):
    """Those of groups divide by a deviation of each group, the others keep a running variance that they copy into."""
    layer = getattr(timm.layers.evo_norm, f"EvoNorm2d{norm}")(32, **grouping)
    teacher = randomise(between(lambda m, h: m.norm(h), make=conv(3, 32, 1), read=conv(32, 5, 1), norm=layer)).double()
    x = images(3, 4, 4)
    student = widen(teacher, x, factor, verify=False)
    assert student.make.out_channels == 32 * factor
    certify(teacher, student, x)


def by_var_mean(w):
    var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (w - mean) / torch.sqrt(var + 1e-10)


def one_dimension_at_a_time(w):
    w = w - w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return w / std.expand_as(w)


def by_rsqrt(w):
    return 3 * (w - w.mean((1, 2, 3), keepdim=True)) * (w.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).rsqrt()


def centred_alone(w):
    return w - w.flatten(1).mean(1).view(-1, 1, 1, 1)


def in_place(w):
    w = w.clone().mul_(0.5)
    w.sub_(w.mean((1, 2, 3), keepdim=True))
    return w / w.std((1, 2, 3), keepdim=True)


STANDARDISED = [standardised, by_var_mean, one_dimension_at_a_time, by_rsqrt, centred_alone, in_place]


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed; by the default with a gain for each filter."""

    def __init__(self, inputs, outputs, compute=None, groups=1):
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        self.compute = compute

    def forward(self, x):
        if self.compute is None:
            flat = self.weight.reshape(1, self.out_channels, -1)
            flat = F.batch_norm(flat, None, None, weight=(self.gain * 0.3).view(-1), training=True, eps=1e-3)
            weight = flat.reshape_as(self.weight)
        else:
            weight = self.gain * self.compute(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1, groups=self.groups)


LAYERS = {
    **{run.__name__: partial(Standardised, compute=run) for run in STANDARDISED},
    "with a gain inside": Standardised,
    "StdConv2d of timm": partial(timm.layers.StdConv2d, kernel_size=3, padding=1),
    "ScaledStdConv2d of timm": partial(timm.layers.ScaledStdConv2d, kernel_size=3, padding=1),
    "padded ScaledStdConv2d": partial(timm.layers.ScaledStdConv2dSame, kernel_size=3),
}


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_standardised_weights_grow_in_what_they_read_and_make(kind, factor, randomise):
    layer = LAYERS[kind]
    net = between(
        lambda m, h: m.grouped(F.relu(m.dw(F.relu(m.plain(h))))), make=layer(3, 8), plain=layer(8, 8),
        dw=layer(8, 8, groups=8), grouped=layer(8, 8, groups=2), read=layer(8, 5),
    )  # fmt: skip
    teacher, x = randomise(net).double(), images(3, 4, 4)
    for _ in range(2):
        learns(teacher, x)
    distinct(teacher, x)
    student = widen(teacher, x, factor)
    wide = [round(n * factor) for n in (8, 8, 8, 8, 5)]
    made = [getattr(student, name).out_channels for name in ("make", "plain", "dw", "grouped", "read")]
    assert made == wide
    assert student.read.in_channels == wide[3]
    certify(teacher, student, x)
    certify(teacher, widen(teacher, x, factor, noise=0), x)
    assert same(replay(json.dumps(history(student)), teacher), student)
    for statistic in (torch.mean, partial(torch.var, correction=int(kind in ("one_dimension_at_a_time", "in_place")))):
        old, new = (statistic(net.read.weight, dim=(1, 2, 3)) for net in (teacher, student))
        assert torch.allclose(old, new[:5], rtol=1e-10)
    learns(student, x)
    padded = random_pad(teacher, x, factor, init=lambda m: hasattr(m, "gain") and nn.init.ones_(m.gain))
    assert padded.read.in_channels == wide[3]


def test_copies_of_a_standardised_filter_are_one_until_they_are_trained(randomise):
    """To the bit: what rounding makes of a difference grows from layer to layer."""
    net = between(
        lambda m, h: m.b(m.a(h)),
        make=nn.Conv2d(3, 8, 1),
        a=Standardised(8, 8),
        b=Standardised(8, 8),
        read=nn.Conv2d(8, 5, 1),
    )
    teacher, x = randomise(net), images(3, 4, 4).float()
    student = widen(teacher, x, 2, noise=0)
    for name in ("a", "b"):
        weight, space = (
            student.get_submodule(name).weight,
            next(s for s in history(student)[0]["spaces"] if s["made_by"][0] == f"{name}.weight"),
        )
        assert torch.equal(weight[8:], weight[space["copies_of"]])
    learns(student, x)
    assert len(student.a.weight.flatten(1).unique(dim=0)) == 16


def deviation_alone(m, h):
    return F.conv2d(h, m.ws.weight / m.ws.weight.std((1, 2, 3), keepdim=True), padding=1)


def shifted(m, h):
    return F.conv2d(h, by_rsqrt(m.ws.weight) + 0.1, padding=1)


def shifted_by_batch_norm(m, h):
    flat = F.batch_norm(m.ws.weight.flatten(1)[None], None, None, bias=m.ws.bias, training=True)
    return F.conv2d(h, flat.view_as(m.ws.weight), padding=1)


def also_as_it_is(m, h):
    return F.conv2d(h, by_rsqrt(m.ws.weight), padding=1) + m.ws(h)


def also_computed_otherwise(m, h):
    return F.conv2d(h, by_rsqrt(m.ws.weight), padding=1) * m.ws.weight.abs().mean()


def in_both_corrections(m, h):
    w = m.ws.weight
    return F.conv2d(h, by_var_mean(w), padding=1) + F.conv2d(h, one_dimension_at_a_time(w), padding=1)


def mean_of_another(m, h):
    return F.conv2d(h, by_rsqrt(m.ws.weight) - m.ws.weight.mean((1, 2, 3), keepdim=True), padding=1)


def weight_normalised_as_well(m, h):
    return F.conv2d(h, torch._weight_norm(by_rsqrt(m.ws.weight), m.g, 0), padding=1)


def for_each_input(m, h):
    w = m.ws.weight
    return F.conv2d(h, (w - w.mean((0, 2, 3), keepdim=True)) / w.std((0, 2, 3), keepdim=True), padding=1)


def reads_where_filters_lie(m, h):
    return F.conv_transpose2d(h, by_rsqrt(m.ws.weight), padding=1)


def by_sum_of_squares(m, h):
    w = m.ws.weight - m.ws.weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(h, w / w.square().sum((1, 2, 3), keepdim=True).sqrt(), padding=1)


ODD = [
    *(deviation_alone, shifted, shifted_by_batch_norm, also_as_it_is, also_computed_otherwise, in_both_corrections),
    *(mean_of_another, weight_normalised_as_well, for_each_input, reads_where_filters_lie, by_sum_of_squares),
]


@pytest.mark.parametrize("run", ODD)
def test_what_is_no_standardisation_of_each_filter_holds_what_the_layer_reads(run, randomise):
    net = between(run, ws=conv(8, 8), g=nn.Parameter(torch.rand(8, 1, 1, 1)))
    teacher, x = randomise(net).double(), images(3, 4, 4)
    distinct(teacher, x)
    student = widen(teacher, x, 2)
    assert (student.make.out_channels, student.read.out_channels) == (8, 10)
    certify(teacher, student, x)


def test_an_optimizer_of_a_standardised_weight_is_refused_where_its_layer_reads_more(randomise):
    teacher, x = randomise(between(lambda m, h: m.ws(h), ws=Standardised(8, 8))).double(), images(3, 4, 4)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    teacher(x).square().mean().backward()
    optimizer.step()
    with pytest.raises(GrowthError, match=r"'ws\.weight', and where a weight is normalised"):
        grow_optimizer(optimizer, widen(teacher, x, widths={"make": 12}), teacher=teacher)
    student = widen(teacher, x, widths={"ws": 12})
    assert grow_optimizer(optimizer, student, teacher=teacher).state[student.ws.weight]["exp_avg"].shape[0] == 12


NORMED = {
    "parametrized": weight_norm,
    "with a hook": lambda layer: nn.utils.weight_norm(layer),
    "along the inputs": lambda layer: weight_norm(layer, dim=1),
    "one norm for all": lambda layer: weight_norm(layer, dim=None),
    "one norm for all, with a hook": lambda layer: nn.utils.weight_norm(layer, dim=None),
}


def normed(wrap, randomise, steps=2):
    """Convolutions, plain, in groups, transposed, over one dimension, and a linear layer, trained for a few steps."""

    def run(m, h):
        h = m.up(F.relu(m.grouped(F.relu(m.dw(h)))))
        return m.line(F.relu(h).flatten(2)).unflatten(2, h.shape[2:])

    net = randomise(between(
        run, 6, dw=conv(8, 8, groups=8), grouped=conv(8, 8, groups=2), up=nn.ConvTranspose2d(8, 7, 3, padding=1),
        line=nn.Conv1d(7, 6, 3, padding=1),
    )).double()  # fmt: skip
    for name in ("make", "dw", "grouped", "up", "line", "read", "fc"):
        setattr(net, name, wrap(getattr(net, name)))
    with torch.no_grad():
        for name, g in net.named_parameters():
            if name.endswith(("weight_g", "original0")):
                g.mul_(torch.rand_like(g) + 0.5)
    x = images(3, 4, 4)
    for _ in range(steps):
        learns(net, x)
    return net, x


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("kind", NORMED)
def test_layers_under_weight_norm_grow_in_what_they_read_and_make(kind, factor, randomise):
    teacher, x = normed(NORMED[kind], randomise)
    distinct(teacher, x)
    student = widen(teacher, x, factor)
    wide = [round(n * factor) for n in (8, 8, 8, 7, 6, 5)]
    assert [student.make.out_channels, student.dw.groups, student.grouped.out_channels, student.up.out_channels,
            student.line.out_channels, student.fc.in_features] == wide  # fmt: skip
    certify(teacher, student, x)
    assert same(replay(json.dumps(history(student)), teacher), student)
    learns(student, x)
    certify(teacher, widen(teacher, x, factor, noise=0.5), x)
    rows = [row.how for row in explain(teacher, x).spaces]
    assert set(rows[:-1]) == {"by any factor", "in steps of 2"}
    # Without noise the weights are those of a plain layer, divided.
    student = widen(teacher, x, factor, noise=0)
    made = next(s for s in history(student)[-1]["spaces"] if s["made_by"][0].startswith("line."))
    index = torch.tensor([*range(6), *made["copies_of"]])
    divided = teacher.read.weight[:, index] / torch.bincount(index)[index].view(-1, 1, 1)
    assert torch.allclose(student.read.weight[:5], divided, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", NORMED)
def test_random_pad_keeps_the_weights_of_layers_under_weight_norm(kind, randomise):
    teacher, x = normed(NORMED[kind], randomise)
    teacher(x)
    student = random_pad(teacher, x, 2)
    student(x)
    assert torch.allclose(student.read.weight[:5, :6], teacher.read.weight, rtol=1e-12, atol=1e-14)
    new = student.read.weight[5:].std() / nn.Conv2d(12, 10, 3).weight.std()
    assert 0.7 < new < 1.4 or "one norm" in kind  # there the scale is the old weights' own


def computed(m, h):
    return F.conv2d(h, torch._weight_norm(m.v * 2, m.g, 0), padding=1)


def scale_elsewhere(m, h):
    return m.wn(h) * m.wn.parametrizations.weight.original0.mean()


def filters_elsewhere(m, h):
    return m.wn(h) * m.wn.parametrizations.weight.original1.mean()


def two_scales_of_one(m, h):
    return F.conv2d(h, torch._weight_norm(m.v, m.g, 0) + torch._weight_norm(m.w, m.g, 0), padding=1)


@pytest.mark.parametrize("run", [computed, scale_elsewhere, filters_elsewhere, two_scales_of_one])
def test_what_else_uses_the_parts_of_a_weight_holds_its_inputs(run, randomise):
    def filters():
        return nn.Parameter(torch.randn(8, 8, 3, 3))

    net = between(run, wn=weight_norm(conv(8, 8)), v=filters(), w=filters(), g=nn.Parameter(torch.rand(8, 1, 1, 1)))
    teacher, x = randomise(net).double(), images(3, 4, 4)
    distinct(teacher, x)
    student = widen(teacher, x, 1.5)
    assert (student.make.out_channels, student.read.out_channels) == (8, 8)
    certify(teacher, student, x)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_of_weight_norm_is_carried_where_norms_stay_and_else_refused(kind, randomise):
    net = between(lambda m, h: m.wn(h), wn=weight_norm(conv(8, 8)))
    teacher, x = randomise(net).double(), images(3, 4, 4)
    optimizer = kind(teacher.parameters(), lr=1e-3, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    teacher(x).square().mean().backward()
    optimizer.step()
    student = widen(teacher, x, widths={"wn": 12}, noise=0)
    grown = grow_optimizer(optimizer, student, teacher=teacher)
    copies = torch.bincount(torch.tensor([*range(8), *history(student)[-1]["spaces"][0]["copies_of"]]))
    key = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    for old, new in zip(teacher.wn.parametrizations.weight.parameters(),
                        student.wn.parametrizations.weight.parameters(), strict=True):  # fmt: skip
        part = optimizer.state[old][key] / copies.view(-1, 1, 1, 1)
        assert torch.equal(grown.state[new][key][:8], part)
    student = widen(teacher, x, widths={"make": 12})
    with pytest.raises(
        GrowthError, match=r"'wn\.parametrizations\.weight\.original0', and where a weight is normalised"
    ):
        grow_optimizer(optimizer, student, teacher=teacher)
    forgetful = torch.optim.SGD(teacher.parameters(), lr=1e-3)  # has nothing to carry
    assert len(grow_optimizer(forgetful, student, teacher=teacher).param_groups[0]["params"]) == 11


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wrap", [spectral_norm, nn.utils.spectral_norm])
def test_a_layer_under_spectral_norm_stays_and_the_rest_grows(wrap, training, randomise):
    teacher, x = randomise(between(lambda m, h: m.sn(h), sn=wrap(conv(8, 8)))).double(), images(3, 4, 4)
    learns(teacher, x)
    teacher.train(training)
    student = widen(teacher, x, 1.5)
    assert (student.make.out_channels, student.sn.out_channels, student.read.out_channels) == (8, 8, 8)
    reasons = {row["made_by"][0]: row["reason"] for row in summary(student).stayed}
    assert all(reasons[name].startswith("spectral norm in module 'sn' needs") for name in ("make", "sn"))
    own = {name: tensor for name, tensor in teacher.state_dict().items() if name.startswith("sn")}
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in own.items())
    certify(teacher, student, x)


@pytest.mark.parametrize(("groups", "asked"), [(1, 18), (2, 18), (4, 20), (8, 24)])
def test_transposed_convolutions_take_widths_in_channels(groups, asked, randomise):
    layer = nn.ConvTranspose2d(8, 16 if groups == 8 else 12, 2, stride=2, groups=groups)
    net = between(lambda m, h: m.up(h), layer.out_channels, up=layer)
    teacher, x = randomise(net).double(), images(3, 4, 4)
    rows = {row.made_by[-1]: row.width for row in explain(teacher, x).spaces}
    assert rows["up"] == (8 if groups == 8 else 12)  # depthwise, they are those of the first layer that makes them
    student = widen(teacher, x, widths={"up": asked})
    assert student.up.out_channels == student.read.in_channels == asked
    certify(teacher, student, x)


def test_whole_groups_are_copied_under_group_norm(randomise):
    teacher, x = randomise(between(lambda m, h: m.gn(h), gn=nn.GroupNorm(4, 8))).double(), images(3, 4, 4)
    student = widen(teacher, x, 1.5)
    assert (student.gn.num_groups, student.gn.num_channels, student.make.out_channels) == (6, 12, 12)
    certify(teacher, student, x)
    learns(student, x)


NORMALISED = {
    "one group": (lambda m, h: m.norm(h), {"norm": nn.GroupNorm(1, 12)}, 1),
    "their number is in code": (lambda m, h: F.group_norm(h, 4, m.scale), {"scale": nn.Parameter(torch.rand(12))}, 4),
}


@pytest.mark.parametrize("kind", NORMALISED)
def test_channels_in_a_group_come_equally_often_where_the_number_of_groups_stays(kind, randomise):
    """A mean over a group of twelve is that of its student where every channel comes k times, and of no eighteen."""
    run, parts, groups = NORMALISED[kind]
    net = between(run, make=conv(3, 12), read=conv(12, 5), **{k: copy.deepcopy(v) for k, v in parts.items()})
    teacher, x = randomise(net).double(), images(3, 4, 4)
    row = explain(teacher, x).spaces[0]
    assert (row.width, row.made_by, row.how) == (12, ["make"], "by whole factors: 2, 3, …")
    student = widen(teacher, x, 2)
    assert student.make.out_channels == 24
    assert getattr(student, "norm", nn.GroupNorm(groups, 24)).num_groups == groups
    certify(teacher, student, x)
    learns(student, x)
    student = widen(teacher, x, 1.5)
    assert (student.make.out_channels, student.read.out_channels) == (12, 8)
    assert {"made_by": ["make"], "width": 12, "reason": "by whole-number factors only"} in summary(student).stayed
    certify(teacher, student, x)


def test_two_layers_normalised_in_groups_across_their_border_grow_together(randomise):
    net = between(
        lambda m, h: m.norm(torch.cat([h, m.more(h)], 1)), make=conv(3, 6), more=conv(6, 10),
        norm=nn.GroupNorm(4, 16), read=conv(16, 5),
    )  # fmt: skip
    teacher, x = randomise(net).double(), images(3, 4, 4)
    student = widen(teacher, x, 3)
    assert (student.make.out_channels, student.more.out_channels, student.norm.num_groups) == (18, 30, 4)
    certify(teacher, student, x)
    assert [(r["made_by"], r["from"], r["to"]) for r in summary(student).grew][:2] == [
        (["make"], 6, 18),
        (["more"], 10, 30),
    ]
    with pytest.raises(GrowthError, match="normalised together, they take a multiple of 10"):
        widen(teacher, x, widths={"more": 15})
    assert widen(teacher, x, widths={"more": 20}).make.out_channels == 12


@pytest.mark.parametrize(
    ("groups", "channels", "factor", "multiple_of", "to", "note"),
    [
        (8, 64, 1.5, 1, 96, ""),
        (4, 8, 1.2, 1, 10, ""),
        (3, 12, 1.5, 1, 16, "asked for 18: in steps of 4"),
        (3, 12, 1.7, 1, 20, ""),
        (6, 24, 1.5, 8, 40, ""),
        (3, 9, 1.5, 8, 24, "asked for 16: in steps of 3"),
        (2, 14, 1.1, 8, 14, "asked for 16: in steps of 7"),  # 56 would be far from 15
    ],
)
def test_groups_grow_as_a_whole_and_a_width_that_is_none_is_named(groups, channels, factor, multiple_of, to, note):
    net = between(
        lambda m, h: m.norm(h), make=conv(3, channels), norm=nn.GroupNorm(groups, channels), read=conv(channels, 5)
    ).double()
    x = images(3, 4, 4)
    row = explain(net, x).spaces[0]
    assert (row.width, row.how) == (channels, f"in steps of {channels // groups}")
    student = widen(net, x, factor, multiple_of=multiple_of)
    assert student.make.out_channels == student.norm.num_channels == to
    assert student.norm.num_groups == to * groups // channels
    certify(net, student, x)
    found = summary(replay(json.dumps(history(student)), net))
    assert found == summary(student)
    said = [row.get("note", "") for row in found.grew if row["made_by"] == ["make"]]
    said += [row["reason"] for row in found.stayed if row["made_by"] == ["make"]]
    assert len(said) == 1
    assert said[0].startswith(note) if note else not said[0]
    assert f"normalises over groups of {channels // groups}" in said[0] or not note
    assert not note or note in str(found)


def test_attributes_of_grouped_convolutions_follow(randomise):
    x = images(3, 4, 3, dtype=torch.float32)
    student = widen(randomise(depthwise(2)), x, 1.5)
    assert (student.dw.groups, student.dw.in_channels, student.dw.out_channels) == (12, 12, 24)
    assert student.dw.weight.shape == (24, 1, 3, 3)
    student = widen(randomise(in_groups(4)), x, 2)
    assert (student.grouped.groups, student.grouped.in_channels, student.grouped.out_channels) == (4, 16, 24)
    assert student.grouped.weight.shape == (24, 4, 3, 3)


def test_groups_share_one_map_and_divide_by_their_own_copies(randomise):
    """U[k, j] = W[g(k), h(j)] / copies of h(j) within the group, not over all groups."""
    teacher = randomise(nn.Sequential(conv(3, 6), conv(6, 4, groups=2), conv(4, 2))).double()
    student = widen(teacher, images(3, 4, 3), 2, noise=0)
    first, second = (student[i].weight for i in (0, 1))
    within = [next(j for j in range(3) if torch.equal(first[i], teacher[0].weight[j])) for i in range(6)]
    assert within[:3] == [0, 1, 2]
    for i in range(6):  # the second group copies the same of its own channels
        assert torch.equal(first[6 + i], teacher[0].weight[3 + within[i]])
    shares = torch.tensor([within.count(j) for j in within]).view(-1, 1, 1)
    old = teacher[1].weight
    for group in range(2):
        assert torch.equal(second[4 * group : 4 * group + 2], old[2 * group : 2 * group + 2][:, within] / shares)


# Image sizes at which each is quick; factors beside.
REAL = {
    "mobilenetv2_100": (48, 1.5, 2),
    "regnety_002": (32, 1.5),
    "resnest14d": (48, 1.5, 2),
    "ese_vovnet19b_dw": (48, 1.5, 2),
    "convnext_atto": (64, 1.5, 2),
    "shufflenet_v2_x0_5": (64, 1.5, 2),
    "mnasnet0_5": (48, 1.5, 2),
    "squeezenet1_1": (48, 1.5, 2),
    "convnextv2_atto": (64, 2),
    "resnet50_gn": (32, 1.5),
    "vit_tiny_patch16_224": (224, 1.5, 2),
    "efficientvit_b0": (64, 1.5),
}


def build(name):
    if hasattr(torchvision.models, name):
        return getattr(torchvision.models, name)(num_classes=7)
    return timm.create_model(name, num_classes=7)


@pytest.mark.parametrize(("name", "factor"), [(name, factor) for name in REAL for factor in REAL[name][1:]])
def test_real_networks_grow(name, factor, randomise):
    size = REAL[name][0]
    teacher, x = randomise(build(name)).double(), images(3, size, size, batch=2)
    student = widen(teacher, x, factor, verify=False)
    assert parameters(student) > 1.3 * parameters(teacher)
    certify(teacher, student, x, training=1e-8)  # deep, and normalised by two images: badly conditioned
    learns(student, x)
