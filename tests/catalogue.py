"""The small nets in which something grows or stays: how each is built, an example's shape, and what becomes of it.

`test_catalogue.py` asks the same of all of them; other tests take some for what they are about.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from nets import Net, conv
from torch import nn


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one example
    factors: tuple[float, ...]
    grown: dict[str, Callable[[float], Any]]  # what an attribute of the student is, for a factor
    other: tuple[int, ...] | None = None  # the shape of another example that it computes the same of


def any_factor(width, step=1):
    """Widths in steps of so many channels."""
    return lambda factor: step * round(width * factor / step)


def whole_factor(width):
    return lambda factor: width * (int(factor) if factor == int(factor) else 1)


def stays(width):
    return lambda factor: width


# Nets of every kind of layer.


def plain_convolutions():
    return nn.Sequential(
        conv(3, 5), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 3, stride=2, bias=False), nn.BatchNorm2d(7), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout2d(), conv(7, 4, (3, 1), padding_mode="reflect"), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip


def encoder_decoder():
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.PReLU(), nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.BatchNorm2d(4, affine=False), nn.PReLU(4), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(4, 5, 3, bias=False), nn.BatchNorm2d(5, track_running_stats=False), nn.Conv2d(5, 3, 1),
    )  # fmt: skip


def head(m, x):
    return m.fc(x.mean((2, 3)))


def residual():
    def run(m, x):
        h = F.relu(m.a(x))
        h = F.relu(m.bn(m.b(h)) + h)
        y = m.c(F.relu(m.d(h)))
        y += h  # in place
        return head(m, y)

    return Net(run, a=conv(3, 6), b=conv(6, 6), bn=nn.BatchNorm2d(6), c=conv(4, 6), d=conv(6, 4), fc=nn.Linear(6, 3))


def dense():
    def run(m, x):
        h = m.a(x)
        h = torch.cat([h, F.relu(m.b(h))], 1)
        h = torch.cat([m.c(m.bn(h)), x, h], dim=1)
        return head(m, F.relu(h))

    return Net(run, a=conv(3, 4), b=conv(4, 5), c=conv(9, 2), bn=nn.BatchNorm2d(9), fc=nn.Linear(14, 3))


def concatenated_images():
    """Side by side, or as a longer batch, both images need the same channels."""

    def run(m, x):
        h = F.relu(m.d(torch.cat([m.a(x), m.b(x)], dim=-1)))
        return head(m, torch.cat([h, m.c(torch.cat([x, x], -1))]))

    return Net(run, a=conv(3, 4), b=conv(3, 4), c=conv(3, 5), d=conv(4, 5), fc=nn.Linear(5, 3))


def sums_of_concatenations():
    """The boundaries of 4 + 2 and 3 + 3 channels, against 6: all three are split."""

    def run(m, x):
        h = torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.c(x), m.d(x)], 1) + m.e(x)
        return head(m, F.relu(m.bn(h)))

    parts = {name: conv(3, n) for name, n in {"a": 4, "b": 2, "c": 3, "d": 3, "e": 6}.items()}
    return Net(run, **parts, bn=nn.BatchNorm2d(6), fc=nn.Linear(6, 3))


def gated():
    def run(m, x):
        h = F.relu(m.a(x))
        gate = m.up(F.silu(m.down(F.adaptive_avg_pool2d(h, 1)))).sigmoid()
        mask = m.mask(h).sigmoid()  # one channel, spread over all
        return head(m, h * gate * mask * m.scale + m.shift)

    return Net(
        run,
        **{"a": conv(3, 6), "down": conv(6, 2, 1), "up": conv(2, 6, 1), "mask": conv(6, 1), "fc": nn.Linear(6, 3)},
        scale=nn.Parameter(torch.ones(6, 1, 1)),
        shift=nn.Parameter(torch.ones(1)),
    )


def one_module_twice():
    def run(m, x):
        h = m.bn(m.b(F.relu(m.bn(m.b(m.a(x))))))
        return m.fc(m.again(F.relu(h)).mean((2, 3)))

    b = conv(5, 5)
    return Net(run, a=conv(3, 5), b=b, again=b, bn=nn.BatchNorm2d(5), fc=nn.Linear(5, 3))


def two_inputs_two_outputs():
    def run(m, x, y):
        h, g = F.relu(m.a(x)), F.relu(m.b(y))
        return {"main": head(m, h + g), "features": (m.c(h), m.d(g * h).flatten(1))}

    return Net(run, a=conv(3, 6), b=conv(2, 6), c=conv(6, 4), d=conv(6, 1), fc=nn.Linear(6, 3))


def linear_follows_flattened_convolution():
    """The 48 outputs of a linear layer, added to 6 channels of 2 x 4 positions."""

    def run(m, x):
        flat = F.relu(m.a(x)).flatten(1)
        return m.fc(F.relu(m.lin(m.pre(x.flatten(1))) + flat) + flat)

    return Net(run, a=conv(3, 6), pre=nn.Linear(24, 2), lin=nn.Linear(2, 48), fc=nn.Linear(48, 3))


def with_itself(m, x):
    h = m.a(x)
    h = m.b(torch.cat([h, h], 1)) + h + h
    return head(m, h * h)


def channels_last(m, x):
    h = m.lin(m.a(x).permute(0, 2, 3, 1))
    return head(m, F.gelu(h).permute(0, 3, 1, 2))


def single_channels(m, x):
    """Dimensions of size 1 that hold a channel beside some that do not."""
    h = m.a(x).sin()
    return m.fc(m.lin(m.b(h).flatten(1)).tanh()).squeeze(1)


MODELS = {
    "plain convolutions": (plain_convolutions, (3, 11, 8)),
    "perceptron": (lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), (6,)),
    "convolution, flatten, linear": (lambda: nn.Sequential(
        conv(3, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3)), (3, 6, 8)),
    "one dimension": (lambda: nn.Sequential(
        nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.PReLU(5), nn.Conv1d(5, 4, 1), nn.Flatten(), nn.Linear(32, 3)),
        (2, 10)),
    "three dimensions": (lambda: nn.Sequential(
        nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.ReLU6(), nn.Conv3d(3, 2, 1), nn.Flatten(), nn.Linear(16, 3)),
        (1, 4, 4, 4)),
    "encoder, decoder": (encoder_decoder, (3, 4, 6)),
    "residual": (residual, (3, 5, 4)),
    "dense": (dense, (3, 5, 4)),
    "concatenated images": (concatenated_images, (3, 4, 3)),
    "sums of concatenations": (sums_of_concatenations, (3, 4, 3)),
    "gated": (gated, (3, 4, 3)),
    "one module twice": (one_module_twice, (3, 4, 3)),
    "linear follows flattened convolution": (linear_follows_flattened_convolution, (3, 2, 4)),
    "with itself": (lambda: Net(with_itself, a=conv(3, 4), b=conv(8, 4), fc=nn.Linear(4, 3)), (3, 4, 3)),
    "channels last": (lambda: Net(channels_last, a=conv(3, 5), lin=nn.Linear(5, 4), fc=nn.Linear(4, 3)), (3, 4, 3)),
    "single channels": (lambda: Net(
        single_channels, a=conv(1, 1), b=conv(1, 2), lin=nn.Linear(16, 1), fc=nn.Linear(1, 1)), (1, 2, 4)),
    "groups": (lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 8, groups=2), nn.ReLU(), conv(8, 5),
                                     nn.Flatten(), nn.Linear(40, 3)), (3, 2, 4)),
    "densenet": (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=7), (3, 32, 40)),
}  # fmt: skip


# Between two convolutions.


def between(run, inputs=8, **parts):
    """`run` between a convolution of 8 channels and one that reads `inputs`, a ReLU and a classifier."""

    def forward(m, x):
        return m.fc(F.relu(m.bn(m.read(run(m, F.silu(m.make(x)))))).mean((2, 3)))

    around = {"make": conv(3, 8), "read": conv(inputs, 5), "bn": nn.BatchNorm2d(5), "fc": nn.Linear(5, 3)}
    return Net(forward, **around | parts)


def depthwise(multiplier):
    n = 8 * multiplier
    return between(lambda m, h: m.norm(m.dw(h)), n, dw=conv(8, n, groups=8), norm=nn.BatchNorm2d(n))


def depthwise_of_depthwise():
    return between(lambda m, h: m.b(m.a(h)), 32, a=conv(8, 16, groups=8), b=conv(16, 32, groups=16))


def inverted_residual():
    def run(m, h):
        return h + m.project(F.relu6(m.norm(m.dw(F.relu6(m.expand(h))))))

    return between(run, expand=conv(8, 12, 1), dw=conv(12, 12, groups=12), norm=nn.BatchNorm2d(12),
                   project=conv(12, 8, 1))  # fmt: skip


def in_groups(groups):
    return between(lambda m, h: m.grouped(h), 12, grouped=conv(8, 12, groups=groups))


def transposed_in_groups(groups):
    return between(lambda m, h: m.grouped(h), 12, grouped=nn.ConvTranspose2d(8, 12, 2, stride=2, groups=groups))


def groups_of_groups():
    """4 groups after 2 after 3 of what an addition ties: the finest partition of all."""

    def run(m, h):
        h = m.up(h)
        return m.four(F.relu(m.two(h) + m.three(h)))

    return between(run, 8, up=conv(8, 12), two=conv(12, 12, groups=2), three=conv(12, 12, groups=3),
                   four=conv(12, 8, groups=4))  # fmt: skip


def resnext():
    def run(m, h):
        for stage in (m.first, m.second):
            h = F.relu(h + stage(h))
        return h

    def block():
        return nn.Sequential(conv(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 12, groups=4),
                             nn.BatchNorm2d(12), nn.ReLU(), conv(12, 8, 1), nn.BatchNorm2d(8))  # fmt: skip

    return between(run, first=block(), second=block())


def squeeze_and_excite():
    def run(m, h):
        gate = m.up(F.relu(m.down(h.mean((2, 3))))).sigmoid()
        return h * gate.view(*gate.shape, 1, 1).expand_as(h)

    return between(run, down=nn.Linear(8, 3), up=nn.Linear(3, 8))


def split_attention():
    """Radix 2, as in ResNeSt: a softmax over two branches."""

    def run(m, h):
        h = m.branches(h)
        n, c = h.shape[0], h.shape[1] // 2
        parts = h.view(n, 2, c, *h.shape[2:])
        gate = m.gate(parts.sum(1).mean((2, 3))).view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, -1)
        return (h * gate[:, :, None, None]).view(n, 2, c, *h.shape[2:]).sum(1)

    return between(run, 6, branches=conv(8, 12, groups=2), gate=nn.Linear(6, 12))


def shuffle(h, groups):
    n, c, *size = h.shape
    return h.view(n, groups, c // groups, *size).transpose(1, 2).reshape(n, c, *size)


def shuffled_groups():
    def run(m, h):
        return m.b(shuffle(m.a(h), 4))

    return between(run, a=conv(8, 8, groups=2), b=conv(8, 8, groups=4))


def shuffle_unit():
    """ShuffleNet v2: one half passes, the other is transformed, and both are shuffled."""

    def run(m, h):
        for unit in (m.first, m.second):
            kept, changed = h.chunk(2, dim=1)
            h = shuffle(torch.cat((kept, unit(changed)), dim=1), 2)
        return h

    first, second = (nn.Sequential(conv(4, 4, 1), nn.ReLU(), conv(4, 4, groups=4)) for _ in range(2))
    return between(run, first=first, second=second)


def halves(h):
    return h.shape[1] // 2


def add_half_in_place(m, h):
    h = h.clone()
    h[:, : halves(h)].add_(h[:, halves(h) :] * 0.5)
    return h


def add_shifted_half_in_place(m, h):
    h = h.clone()
    h[:, : halves(h)].sub_(h[:, halves(h) // 2 : halves(h) // 2 * 3] * 0.5)
    return h


def overwrite_four(m, h):
    h = h.clone()
    h[:, :4].cos_()
    return h


def places(m, h):
    """The four best of each image."""
    return m.score(h).flatten(1).argsort(1)[:, :4]


def last(layer, h):
    """A layer that looks at the last dimension, on the channels of an image."""
    return layer(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# In how large steps the 8 channels of `make` grow (None: in others), and the net.
GROWS = {
    "depthwise": (1, lambda: depthwise(1)),
    "depthwise, 2 outputs each": (1, lambda: depthwise(2)),
    "depthwise of depthwise": (1, depthwise_of_depthwise),
    "inverted residual": (1, inverted_residual),
    "scaled and shifted by features of its own": (1, lambda: between(
        lambda m, h: (lambda scale, shift: h * (1 + scale) + shift)(*m.film(h.mean((2, 3), True)).chunk(2, 1)),
        film=conv(8, 16, 1))),
    "an update of low rank": (1, lambda: between(
        lambda m, h: h + m.up(m.down(h)) / 2, down=conv(8, 2, 1), up=conv(2, 8, 1))),
    "experts, weighted": (1, lambda: between(
        lambda m, h: sum(g * e(h) for g, e in zip(m.gate(h).softmax(1).split(1, 1), m.experts, strict=True)),
        gate=conv(8, 2, 1), experts=nn.ModuleList([conv(8, 8), conv(8, 8, 1)]))),
    "running averages": (1, lambda: between(lambda m, h: (h * h.exp()).cumsum(2) / h.exp().cumsum(2))),
    "called by torch.func": (1, lambda: between(
        lambda m, h: torch.func.functional_call(m.more, dict(m.more.named_parameters()), (h,)), more=conv(8, 8))),
    "2 groups": (2, lambda: in_groups(2)),
    "4 groups": (2, lambda: in_groups(4)),
    "groups of groups": (1, groups_of_groups),
    "2 groups, transposed": (2, lambda: transposed_in_groups(2)),
    "4 groups, transposed": (2, lambda: transposed_in_groups(4)),
    "groups after transposed groups": (2, lambda: between(
        lambda m, h: m.b(m.a(h)), a=nn.ConvTranspose2d(8, 12, 3, padding=1, groups=2), b=conv(12, 8, groups=4)
    )),
    "resnext": (1, resnext),
    "squeeze and excite": (1, squeeze_and_excite),
    "split attention": (2, split_attention),
    "shuffle": (2, lambda: between(lambda m, h: shuffle(h, 4))),
    "shuffled groups": (2, shuffled_groups),
    "shuffle unit": (2, shuffle_unit),
    "unflatten": (2, lambda: between(lambda m, h: h.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))),
    "two groupings": (2, lambda: between(lambda m, h: shuffle(shuffle(h, 2), 2))),
    "heads": (2, lambda: between(lambda m, h: h.view(len(h), 2, 2, -1, *h.shape[2:]).transpose(1, 2).flatten(1, 3))),
    "chunk": (2, lambda: between(lambda m, h: torch.cat(h.chunk(4, 1)[::-1], 1))),
    "chunk in unequal parts": (None, lambda: between(lambda m, h: torch.cat(h.chunk(3, 1)[::-1], 1))),
    "gated linear unit": (2, lambda: between(lambda m, h: (lambda a, b: a * b.sigmoid())(*h.chunk(2, 1)), 4)),
    "split": (2, lambda: between(lambda m, h: torch.cat(h.split(halves(h), 1)[::-1], 1))),
    "split in unequal parts": (1, lambda: between(
        lambda m, h: torch.cat(h.split([halves(h) // 2, h.shape[1] - halves(h) // 2], dim=1)[::-1], 1)
    )),
    "slices": (2, lambda: between(lambda m, h: torch.cat([h[:, halves(h) :].sin(), h[:, : halves(h)]], 1))),
    "slices added": (2, lambda: between(lambda m, h: h[:, halves(h) :].sin() - h[:, : halves(h)], 4)),
    "slices shifted by a quarter": (2, lambda: between(
        lambda m, h: h[:, : -(halves(h) // 2)] * h[:, halves(h) // 2 :], 6
    )),
    "slices around": (2, lambda: between(
        lambda m, h: torch.cat([h[:, : halves(h) // 2].sin(), h[:, halves(h) // 2 : halves(h)], h[:, halves(h) :]], 1)
    )),
    "first channel": (None, lambda: between(lambda m, h: h * h[:, :1] + h[:, -1:])),
    "narrow": (2, lambda: between(lambda m, h: h.narrow(1, halves(h), halves(h)) * h.narrow(1, 0, halves(h)).sin(), 4)),
    "stack and sum": (1, lambda: between(lambda m, h: torch.stack([h, h.sin(), m.other(h)]).sum(0), other=conv(8, 8))),
    "stack and flatten": (1, lambda: between(lambda m, h: torch.stack([h, h.sin()], 2).flatten(1, 2), 16)),
    "pixel shuffle": (2, lambda: between(lambda m, h: F.pixel_shuffle(h, 2), 2)),
    "repeat by expand": (1, lambda: between(
        lambda m, h: h.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2) * torch.cat([h.sin(), h], 1), 16
    )),
    "maxout": (2, lambda: between(lambda m, h: torch.cat([h.view(h.shape[0], 2, -1, *h.shape[2:]).amax(1)] * 2, 1))),
    "maxout of neighbours": (2, lambda: between(
        lambda m, h: torch.cat([h.view(len(h), -1, 2, *h.shape[2:]).amax(2)] * 2, 1)
    )),
    "mean of neighbours": (2, lambda: between(
        lambda m, h: h.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1)
    )),
    "copied into another": (1, lambda: between(lambda m, h: torch.zeros_like(h).copy_(h.sin()))),
    "pooled and put back": (1, lambda: between(
        lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2, output_size=h.shape[2:])
    )),
    "columns and back": (1, lambda: between(
        lambda m, h: F.fold(F.unfold(h, 3, padding=1).sin(), h.shape[2:], 3, padding=1)
    )),
    "columns": (1, lambda: between(
        lambda m, h: m.of_columns(F.unfold(h, 2))[..., None], of_columns=nn.Conv1d(32, 8, 1)
    )),
    "windows": (1, lambda: between(lambda m, h: h.unfold(2, 2, 1).amax(-1))),
    "sampled at places of its own": (1, lambda: between(
        lambda m, h: F.grid_sample(h, m.places(h).permute(0, 2, 3, 1).tanh(), align_corners=False), places=conv(8, 2)
    )),
    "regions": (1, lambda: between(
        lambda m, h: torchvision.ops.roi_align(h, torch.tensor([[0, 0, 0, 2, 3], [1, 1, 0, 2, 2]]).to(h), 2)
    )),
    "shuffled by torch": (2, lambda: between(lambda m, h: F.channel_shuffle(h, 4))),
    "halves gated by torch": (2, lambda: between(lambda m, h: F.glu(h, 1), 4)),
    "moved and back": (1, lambda: between(lambda m, h: h.movedim(1, -1).sin().movedim((3, 1), (1, 2)))),
    "rows selected": (1, lambda: between(lambda m, h: h.index_select(2, torch.tensor([2, 0])))),
    "rows gathered": (1, lambda: between(lambda m, h: h.gather(2, (h > 0).long()))),
    "taken along": (1, lambda: between(lambda m, h: torch.take_along_dim(h, h.argsort(2), 2))),
    "largest rows": (1, lambda: between(
        lambda m, h: h.topk(2, 2).values + h.sort(2, descending=True)[0][:, :, 1:3] * h.cummax(2)[1][:, :, :2].sin()
    )),
    "stacks and splits that are named after their dimension": (2, lambda: between(
        lambda m, h: torch.hstack(torch.hsplit(h, 2)[::-1]) * torch.dstack(torch.dsplit(h, (1,))[::-1])
        + torch.vstack(torch.vsplit(h, (1, 2)))
    )),
    "named otherwise": (1, lambda: between(
        lambda m, h: F.threshold(h, 0.1, 0.5) + h.arctan().sinc() * torch.greater(h, 0) + F.softmin(h, 2).cumprod(3)
    )),
    "less its median": (1, lambda: between(lambda m, h: h - h.flatten(2).median(2).values[:, :, None, None])),
    "a spatial transformer": (1, lambda: between(
        lambda m, h: h + F.grid_sample(
            h, F.affine_grid(m.theta(h.mean((2, 3))).view(-1, 2, 3), h.size(), align_corners=False), align_corners=False
        ),
        theta=nn.Linear(8, 6),
    )),
    "a triangle of pixels": (1, lambda: between(lambda m, h: h.triu(-1) + h.tril().sin())),
    "places for all channels": (1, lambda: between(
        lambda m, h: h.flatten(2).gather(2, places(m, h)[:, None].expand(-1, h.shape[1], -1))[..., None],
        score=conv(8, 1),
    )),
    "places for all channels, by repeat": (1, lambda: between(
        lambda m, h: h.flatten(2).gather(2, places(m, h)[:, None].repeat(1, h.shape[1], 1))[..., None], score=conv(8, 1)
    )),
    "place of each image": (1, lambda: between(
        lambda m, h: h.flatten(2).mT[torch.arange(len(h)), places(m, h)[:, 0]][..., None, None], score=conv(8, 1)
    )),
    "indices that stand apart": (1, lambda: between(lambda m, h: h[torch.arange(len(h)), ..., 1][..., None])),
    "edges of a graph": (1, lambda: between(
        lambda m, h: h + torch.zeros_like(h).index_add_(0, torch.tensor([0, 1, 1]), h[torch.tensor([2, 0, 1])])
    )),
    "scattered": (1, lambda: between(
        lambda m, h: torch.zeros_like(h).scatter_add(2, (h > 0).long(), h) + h.scatter(2, (h > 0).long(), h.sin())
    )),
    "scattered for all channels": (1, lambda: between(
        lambda m, h: h.flatten(2).scatter_reduce(
            2, places(m, h)[:, None].expand(-1, h.shape[1], -1), h.flatten(2)[..., :4], "amax"
        )[..., None],
        score=conv(8, 1),
    )),
    "rows put": (1, lambda: between(
        lambda m, h: h.index_copy(2, torch.tensor([0]), h[:, :, 1:2]).index_fill(3, torch.tensor([1]), 0.5)
    )),
    "half added in place": (2, lambda: between(add_half_in_place)),
    "shifted half added in place": (2, lambda: between(add_shifted_half_in_place)),
}  # fmt: skip

COUNTED = " in the model's own forward counts on their width"  # behind the name of the operation


def overwrite_one(m, h):
    h[:, 0] = 0
    return h


def deviation_of_each_pixel(m, h):
    return h * h.std(1, keepdim=True)


def groups_summed(m, h):
    return h.view(len(h), 2, -1, *h.shape[2:]).sum(2).repeat_interleave(halves(h), 1)


def averaged_over(m, h):
    return F.batch_norm(h.transpose(1, 2), None, None, training=True).transpose(1, 2)


ORDER = [1, 0, 3, 2, 5, 4, 7, 6]

# What lies between them, why the 8 channels of `make` stay, and how many `read` has to read.
HELD = {
    "sum": (lambda m, h: h - h.sum(1, keepdim=True), "'sum' in the model's own forward reduces over them"),
    "share of a sum": (lambda m, h: h / h.abs().sum(axis=1, keepdim=True), "'sum' in .* reduces over them"),
    "sum of all": (lambda m, h: h - h.sum(), "'sum' in the model's own forward reduces over them"),
    "deviation": (deviation_of_each_pixel, "'std' in the model's own forward reduces over them"),
    "groups summed": (groups_summed, "'view'" + COUNTED),
    "softmax": (lambda m, h: F.softmax(h, dim=1), "'softmax' in the model's own forward needs every one of them as it"),
    "cumsum": (lambda m, h: h.cumsum(1), "'cumsum' in the model's own forward needs every one of them as it is"),
    "in place through a view": (lambda m, h: (h[:, : halves(h)].cumsum_(1), h)[1], "'cumsum_?' in"),
    "layer norm": (lambda m, h: F.layer_norm(h, h.shape[1:]), "'layer_norm' in the model's own forward needs"),
    "permuted": (lambda m, h: h[:, ORDER], "'__getitem__' in the model's own forward picks"),
    "permuted by a tensor": (lambda m, h: h[:, torch.tensor(ORDER)], "'__getitem__' in the model's own forward picks"),
    "scattered": (lambda m, h: h.scatter(1, (h > 0).long(), h.sin()), "'scatter' in the model's own forward puts"),
    "added to some": (
        lambda m, h: h.index_add(1, torch.tensor([1]), h[:, :1].sin()), "'index_add' in the model's own forward puts"),
    "selected": (lambda m, h: h.index_select(1, torch.tensor(ORDER)), "'index_select' in the model's own forward"),
    "gathered": (lambda m, h: h.gather(1, (h > 0).long()), "'gather' in the model's own forward picks some of them"),
    "windows of them": (lambda m, h: h.unfold(1, 2, 1).amax(-1), "'unfold' in the model's own forward windows", 7),
    "sorted": (lambda m, h: h.sort(1).values, "'sort' in the model's own forward needs every one of them as it is"),
    "a triangle of them": (lambda m, h: last(torch.tril, h), "'tril' in the model's own forward needs every one"),
    "joined with a constant": (
        lambda m, h: h + torch.arange(8.0)[:, None, None], "'add' in the model's own forward joins them"),
    "padded and cut": (lambda m, h: F.pad(h, (0, 0, 0, 0, 1, -1)), "'pad' in the model's own forward pads them"),
    "matmul": (lambda m, h: last(lambda h: h @ torch.ones(8, 8).to(h), h), "'matmul' in the model's own forward sums"),
    "matmul of two": (lambda m, h: (h.flatten(2) @ h.flatten(2).mT @ h.flatten(2)).view(h.shape), "'matmul' in"),
    "one overwritten": (overwrite_one, "'__setitem__' in the model's own forward overwrites a part"),
    "some in place": (overwrite_four, "counts on their width"),
    "every second": (lambda m, h: h[:, ::2] * h[:, 1::2], "takes some of them", 4),
    "every second, twice": (lambda m, h: h[:, ::2].repeat(1, 2, 1, 1), "takes some of them"),
    "one for all": (lambda m, h: h * h[:, 1].unsqueeze(1), "'__getitem__' in the model's own forward takes one"),
    "unbind": (lambda m, h: torch.stack(h.unbind(1)[::-1], 1), "'unbind' in the model's own forward takes them apart"),
    "groups of 2 channels": (lambda m, h: shuffle(h, halves(h)), ""),
    "shuffle and identity": (lambda m, h: h + shuffle(h, 2), ""),
    # Shapes stay the same here, the channels do not.
    "pooled over": (
        lambda m, h: F.avg_pool3d(h, (3, 1, 1), 1, (1, 0, 0)), "'avg_pool3d' in the model's own forward pools over"),
    "a pooled dimension": (lambda m, h: last(lambda h: F.max_pool2d(h, 3, 1, 1), h), "'max_pool2d' in"),
    "a resampled dimension": (lambda m, h: last(lambda h: F.interpolate(h, (h.shape[2], 8)), h), "resamples them"),
    "normalised along another": (averaged_over, "averages over them"),
    # Their number is written into the code.
    "divided by the width": (lambda m, h: h / h.shape[1], "'div'" + COUNTED),
    "by the square root of all": (lambda m, h: h * h.numel() ** -0.5, "'mul'" + COUNTED),
    "the width added": (
        lambda m, h: h * torch.rsqrt(torch.mean(h * h, 2, keepdim=True) + h.shape[1]), "'add'" + COUNTED),
    "a branch": (lambda m, h: h.relu() if h.shape[1] == 8 else h, "'relu'" + COUNTED),
    "a branch of two": (lambda m, h: h.relu() if h.shape[1] == 8 else h.sigmoid(), "'relu'" + COUNTED),
    "view": (lambda m, h: h.view(3, 8, *h.shape[2:]), "'view'" + COUNTED),
    "view of any batch": (lambda m, h: h.sin().view(-1, 8, *h.shape[2:]), "'view'" + COUNTED),
    "view in parts": (lambda m, h: h.view(-1, 2, 4, *h.shape[2:]).transpose(1, 2).reshape(h.shape), COUNTED),
    "reshape": (
        lambda m, h: h.cos().reshape(3, 4, 2, *h.shape[2:]).transpose(1, 2).reshape(h.shape), "'reshape'" + COUNTED),
    "split sizes": (lambda m, h: torch.cat(h.split([6, 2], 1)[::-1], 1), "'split'" + COUNTED),
    "slices": (lambda m, h: torch.cat([h[:, 6:], h[:, :6]], 1), "'__getitem__'" + COUNTED),
    "narrow": (
        lambda m, h: torch.cat([h.narrow(1, -2, 2), h.narrow(1, 0, h.shape[1] - 2)], 1), "'narrow'" + COUNTED),
}  # fmt: skip


class WindowAttention(nn.Module):
    """Self-attention over positions, written with a product of its own or with torch's."""

    def __init__(self, channels, heads, fused):
        super().__init__()
        self.num_heads, self.width, self.fused = heads, channels, fused
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.randn(5, heads))
        self.register_buffer("index", torch.arange(16 * 16).view(16, 16) % 5)

    def forward(self, h):
        x = h.flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            out = (q @ k.transpose(-2, -1) / 2 + bias).softmax(dim=-1) @ v
        return h + self.proj(out.transpose(1, 2).reshape(n, length, self.width)).transpose(1, 2).view(h.shape)


def response_norm(h):
    """The global response normalisation of ConvNeXt V2."""
    norm = h.norm(p=2, dim=(2, 3), keepdim=True)
    return h + h * norm / (norm.mean(dim=1, keepdim=True) + 1e-6)


# Statistics over all channels: equal copies of each, and no other map, leave them as they are.
EVEN = {
    "layer norm": lambda: between(lambda m, h: last(m.ln, h), ln=nn.LayerNorm(8)),
    "layer norm of a concatenation": lambda: between(
        lambda m, h: last(m.ln, torch.cat([h, m.c(h)], 1)), 20, c=conv(8, 12), ln=nn.LayerNorm(20)
    ),
    "rms norm": lambda: between(lambda m, h: last(m.ln, h), ln=nn.RMSNorm(8)),
    "mean": lambda: between(lambda m, h: h - h.mean(1, keepdim=True)),
    "variance": lambda: between(lambda m, h: h / h.var(1, correction=0, keepdim=True).add(1).sqrt()),
    "response norm": lambda: between(lambda m, h: response_norm(h)),
    "everything": lambda: between(
        lambda m, h: last(m.ln, m.attention(h)), attention=WindowAttention(8, 2, True), ln=nn.LayerNorm(8)
    ),
}


def vector(run, **parts):
    """`a` makes 4 numbers and `o` reads them; what lies between is the test's."""
    return Net(run, a=nn.Linear(5, 4), o=nn.Linear(4, 2), **parts).double()


UNUSUAL = {
    "transposed": lambda m, x: m.o(m.a(x).t().T),
    "transposed twice": lambda m, x: m.o(m.a(x)[None].mT.swapaxes(1, 2)[0]),
    "compared": lambda m, x: m.o(torch.where(m.a(x) > 0, m.a(x), m.a(x) / 3)),
    "a constant NaN": lambda m, x: m.o(m.a(x).nan_to_num(float("nan"))),
    "a layer norm made on the way": lambda m, x: m.o(F.layer_norm(m.a(x), m.a(x).shape[1:])),
    "a bias for all": lambda m, x: m.o(F.linear(x, m.a.weight, m.one)),
}


# Transformers.

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


def product(run, shape):
    return Net(lambda m, x: m.read(run(m, m.make(x).relu()).relu()), make=nn.Linear(5, 4), read=nn.Linear(6, 3),
               w=nn.Parameter(torch.zeros(shape)), b=nn.Parameter(torch.zeros(6)))  # fmt: skip


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
    "tensordot": (lambda m, h: torch.tensordot(h, m.w, 1) + m.b, (4, 6)),
    "tensordot, dimensions": (lambda m, h: torch.tensordot(m.w, h, dims=([1], [-1])).permute(1, 2, 0), (6, 4)),
    "linalg": (lambda m, h: torch.linalg.matmul(h, m.w), (4, 6)),
    "einsum, a list": (lambda m, h: torch.einsum("dc,nlc->nld", [m.w, h]), (6, 4)),
}

READ = {"read.out_channels": any_factor(5)}
CASES = {
    **{name: Case(build, shape, (1.5, 3.7), {}) for name, (build, shape) in MODELS.items()},
    **{
        name: Case(build, (3, 4, 3), (1.5, 2, 2.6),
                   READ | ({"make.out_channels": any_factor(8, step)} if step else {}), (3, 6, 5))
        for name, (step, build) in GROWS.items()
    },
    **{
        f"{name} over all": Case(build, (3, 4, 4), (1.5, 2, 3), READ | {"make.out_channels": whole_factor(8)})
        for name, build in EVEN.items()
    },
    **{
        f"held: {name}": Case(
            lambda run=run, read=read: between(run, *read), (3, 4, 4), (1.5, 2), READ | {"make.out_channels": stays(8)}
        )
        for name, (run, _, *read) in HELD.items()
    },
    **{
        name: Case(lambda run=run: vector(run, one=nn.Parameter(torch.ones(1))), (5,), (2,),
                   {"a.out_features": any_factor(4)})
        for name, run in UNUSUAL.items()
    },
    **{
        f"heads: {name}": Case(
            lambda split=split, options=options: block(Attention(split, **options)), (7, 5), (4 / 3, 2),
            {"attention.out.in_features": any_factor(INNER, WIDTH), "attention.out.out_features": whole_factor(8),
             "position.shape": lambda f: (1, 9, whole_factor(8)(f)), "up.out_features": any_factor(10)}, (4, 5),
        )
        for name, (split, options) in SPLITS.items()
    },
    **{
        f"multi-head attention: {name}": Case(
            lambda options=options: block(Layer(**options)), (7, 5), (1.5, 2, 3),
            {"attention.inner.embed_dim": whole_factor(8), "attention.inner.num_heads": whole_factor(2),
             "attention.inner.head_dim": stays(4), "attention.inner.out_proj.in_features": whole_factor(8),
             "up.out_features": any_factor(10)},
        )
        for name, options in LAYERS.items()
    },
    **{
        name: Case(lambda run=run, shape=shape: product(run, shape), (7, 5), (1.5,),
                   {"make.out_features": any_factor(4), "read.in_features": any_factor(6)})
        for name, (run, shape) in PRODUCTS.items()
    },
}  # fmt: skip
