"""The paper's network, from its channel tables.

The paper (appendix B) describes its Inception as 3 convolution layers and 11 modules, each "a convolution layer
followed by three forked paths, the shortest of which involves only one more convolution and the longest of which
involves three more": 25 weight layers on the shortest path from input to output and 47 on the longest. `INCEPTION_BN`
is a network with exactly this shape, in the channel widths of Ioffe & Szegedy (2015). `INCEPTION_BN_2015` is the
network of that table as published (10 modules with pooling branches), for comparison with published accuracies.

    path      layers                                                                 weight layers
    short     1x1 entry -> 3x3                                                       2
    middle    1x1 entry -> 3x1 -> 1x3                                                3
    long      1x1 entry -> 3x3 -> 3x1 -> 1x3                                         4

Every convolution is followed by its own batch normalisation and ReLU (sec 3.3). In a module of stride 2 the last
convolution of each path carries the stride; in a vertical-horizontal pair each carries it along its own axis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class Stem(NamedTuple):
    """The three convolutions below the modules: `kernel` x `kernel` of stride 2, 1x1, 3x3; `pools`: a 3x3 max pool of
    stride 2 after the first, after the last. The width factor leaves them alone (sec 3.2)."""

    kernel: int
    channels: tuple[int, int, int]
    pools: tuple[bool, bool]


class Module(NamedTuple):
    """One Inception module: channels of (1x1 entry, path output) for each path."""

    name: str
    stride: int
    short: tuple[int, int]
    middle: tuple[int, int]
    long: tuple[int, int]


class Module2015(NamedTuple):
    """One module of the published table: bare 1x1 (0: none), (reduce, 3x3), (reduce, double 3x3), pooling branch."""

    name: str
    stride: int
    bare: int
    single: tuple[int, int]
    double: tuple[int, int]
    pool: str
    projection: int


class Table(NamedTuple):
    """A network: input channels it was made for, stem, modules."""

    in_channels: int
    stem: Stem
    modules: tuple[Module, ...] | tuple[Module2015, ...]


INCEPTION_BN = Table(
    3,
    Stem(7, (64, 64, 192), (True, True)),
    (
        Module("3a", 1, (64, 64), (32, 64), (64, 96)),
        Module("3b", 1, (64, 96), (32, 64), (64, 96)),
        Module("3c", 2, (128, 160), (128, 160), (64, 96)),
        Module("4a", 1, (64, 96), (112, 224), (96, 128)),
        Module("4b", 1, (96, 128), (96, 192), (96, 128)),
        Module("4c", 1, (128, 160), (80, 160), (128, 160)),
        Module("4d", 1, (128, 192), (48, 96), (160, 192)),
        Module("4d2", 1, (128, 192), (48, 96), (160, 192)),  # the 11th: the published table has ten
        Module("4e", 2, (128, 192), (128, 192), (192, 256)),
        Module("5a", 1, (192, 320), (176, 352), (160, 224)),
        Module("5b", 1, (192, 320), (176, 352), (192, 224)),
    ),
)

# The same shape for 28x28 grey images: stride 4 below the modules, grids of 7, 4 and 2.
INCEPTION_BN_28 = Table(
    1,
    Stem(3, (16, 16, 32), (False, True)),
    (
        Module("3a", 1, (16, 24), (12, 24), (16, 24)),
        Module("3b", 1, (16, 24), (12, 24), (16, 24)),
        Module("3c", 2, (24, 32), (24, 32), (16, 24)),
        Module("4a", 1, (16, 24), (16, 32), (16, 32)),
        Module("4b", 1, (16, 24), (16, 32), (16, 32)),
        Module("4c", 1, (24, 32), (12, 24), (24, 32)),
        Module("4d", 1, (24, 32), (8, 16), (24, 40)),
        Module("4d2", 1, (24, 32), (8, 16), (24, 40)),
        Module("4e", 2, (24, 32), (24, 32), (32, 48)),
        Module("5a", 1, (24, 48), (24, 48), (24, 40)),
        Module("5b", 1, (24, 48), (24, 48), (24, 40)),
    ),
)

# The paper's channels on 28x28 grey images: the stem above keeps grids of 7, 4 and 2 for the modules.
INCEPTION_BN_28_FULL = Table(1, Stem(3, (64, 64, 192), (False, True)), INCEPTION_BN.modules)

INCEPTION_BN_2015 = Table(
    3,
    Stem(7, (64, 64, 192), (True, True)),
    (
        Module2015("3a", 1, 64, (64, 64), (64, 96), "avg", 32),
        Module2015("3b", 1, 64, (64, 96), (64, 96), "avg", 64),
        Module2015("3c", 2, 0, (128, 160), (64, 96), "max", 0),
        Module2015("4a", 1, 224, (64, 96), (96, 128), "avg", 128),
        Module2015("4b", 1, 192, (96, 128), (96, 128), "avg", 128),
        Module2015("4c", 1, 160, (128, 160), (128, 160), "avg", 128),
        Module2015("4d", 1, 96, (128, 192), (160, 192), "avg", 128),
        Module2015("4e", 2, 0, (128, 192), (192, 256), "max", 0),
        Module2015("5a", 1, 352, (192, 320), (160, 224), "avg", 128),
        Module2015("5b", 1, 352, (192, 320), (192, 224), "max", 128),
    ),
)

TABLES = {
    "inception_bn": INCEPTION_BN,
    "inception_bn_28": INCEPTION_BN_28,
    "inception_bn_28_full": INCEPTION_BN_28_FULL,
    "inception_bn_2015": INCEPTION_BN_2015,
}


def init_weights(module: nn.Module) -> None:
    """The random initialisation of these networks, for `nn.Module.apply`: He et al. (2015) for ReLU nets.

    The paper does not name its own. `net2net.random_pad` takes this as `init=`.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear | nn.BatchNorm2d):
        module.reset_parameters()


class ConvBNReLU(nn.Sequential):
    """Convolution with "same" padding, batch normalisation, ReLU: one "complete layer" of the paper (sec 3.3)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        *,
        bn_momentum: float = 0.1,
    ):
        padding = (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False),
                bn=nn.BatchNorm2d(out_channels, eps=1e-3, momentum=bn_momentum),
                relu=nn.ReLU(inplace=True),
            )
        )


class Paths(nn.Module):
    """Branches on one input, concatenated along the channels."""

    def __init__(self, paths: OrderedDict[str, nn.Module]):
        super().__init__()
        for name, path in paths.items():
            self.add_module(name, path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([path(x) for path in self.children()], dim=1)


class InceptionBN(nn.Module):
    """An Inception network with batch normalisation, built from a channel table.

    `width` scales the channels of every convolution in the modules and nothing else (sec 3.2), and rounds them to a
    multiple of `multiple_of`: tensor cores work in eights, and are slower on other numbers. `extra_pairs` adds that
    many vertical-horizontal pairs after every pair (sec 3.3). Parts: `stem`, `inception.<module>.<path>`, `classifier`;
    a pair that was followed by extra pairs is `nn.Sequential(layer, *extra)`, which is also what `net2net.deepen` makes
    of it, so that a grown network and one built deep have the same parameter names. `init` is applied to every module;
    None leaves PyTorch's own initialisation.

    Input [N, in_channels, H, W], output logits [N, num_classes].
    """

    def __init__(
        self,
        table: Table = INCEPTION_BN,
        *,
        width: float = 1.0,
        extra_pairs: int = 0,
        num_classes: int = 1000,
        in_channels: int | None = None,
        bn_momentum: float = 0.1,
        multiple_of: int = 1,
        init: Callable[[nn.Module], None] | None = init_weights,
    ):
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        if multiple_of < 1:
            raise ValueError(f"multiple_of must be positive, got {multiple_of}")
        if extra_pairs < 0:
            raise ValueError(f"extra_pairs must not be negative, got {extra_pairs}")
        if extra_pairs and isinstance(table.modules[0], Module2015):
            raise ValueError("the published 2015 table has no vertical-horizontal pairs: extra_pairs must be 0")

        def layer(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> ConvBNReLU:
            return ConvBNReLU(inputs, outputs, kernel, stride, bn_momentum=bn_momentum)

        def scaled(channels: int) -> int:
            return max(1, round(channels * width / multiple_of)) * multiple_of

        def pair(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            """A vertical and a horizontal layer, and after the latter the extra pairs."""
            horizontal: nn.Module = layer(outputs, outputs, (1, 3), (1, stride))
            if extra_pairs:
                extra = [layer(outputs, outputs, kernel) for _ in range(extra_pairs) for kernel in ((3, 1), (1, 3))]
                horizontal = nn.Sequential(horizontal, *extra)
            return [layer(inputs, outputs, (3, 1), (stride, 1)), horizontal]

        def module(inputs: int, row: Module) -> tuple[nn.Module, int]:
            (se, so), (me, mo), (le, lo) = ((scaled(e), scaled(o)) for e, o in (row.short, row.middle, row.long))
            short = [layer(inputs, se, (1, 1)), layer(se, so, (3, 3), (row.stride, row.stride))]
            middle = [layer(inputs, me, (1, 1)), *pair(me, mo, row.stride)]
            long = [layer(inputs, le, (1, 1)), layer(le, lo, (3, 3)), *pair(lo, lo, row.stride)]
            paths = {"short": short, "middle": middle, "long": long}
            return Paths(OrderedDict((k, nn.Sequential(*v)) for k, v in paths.items())), so + mo + lo

        def module_2015(inputs: int, row: Module2015) -> tuple[nn.Module, int]:
            bare, projection = (scaled(c) if c else 0 for c in (row.bare, row.projection))
            (sr, so), (dr, do) = ((scaled(r), scaled(o)) for r, o in (row.single, row.double))
            stride = (row.stride, row.stride)
            paths: OrderedDict[str, nn.Module] = OrderedDict()
            if bare:
                paths["bare"] = layer(inputs, bare, (1, 1))
            paths["one_3x3"] = nn.Sequential(layer(inputs, sr, (1, 1)), layer(sr, so, (3, 3), stride))
            paths["two_3x3"] = nn.Sequential(
                layer(inputs, dr, (1, 1)), layer(dr, do, (3, 3)), layer(do, do, (3, 3), stride)
            )
            pool = nn.MaxPool2d if row.pool == "max" else nn.AvgPool2d
            paths["pool"] = nn.Sequential(pool(3, stride=row.stride, padding=1))
            if projection:
                paths["pool"].append(layer(inputs, projection, (1, 1)))
            return Paths(paths), bare + so + do + (projection or inputs)

        stem, (first, second, third) = table.stem, table.stem.channels
        parts: list[nn.Module] = [
            layer(in_channels or table.in_channels, first, (stem.kernel, stem.kernel), (2, 2)),
            *([nn.MaxPool2d(3, stride=2, padding=1)] if stem.pools[0] else []),
            layer(first, second, (1, 1)),
            layer(second, third, (3, 3)),
            *([nn.MaxPool2d(3, stride=2, padding=1)] if stem.pools[1] else []),
        ]
        self.stem = nn.Sequential(*parts)
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        channels = third
        for row in table.modules:
            build = module_2015 if isinstance(row, Module2015) else module
            modules[row.name], channels = build(channels, row)
        self.inception = nn.Sequential(modules)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        if init is not None:
            self.apply(init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inception(self.stem(x))
        return self.classifier(self.pool(x).flatten(1))


def inception_bn(name: str = "inception_bn", **options) -> InceptionBN:
    """Build the network called `name` (a key of `TABLES`); `options` are those of `InceptionBN`."""
    if name not in TABLES:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(TABLES)}")
    return InceptionBN(TABLES[name], **options)
