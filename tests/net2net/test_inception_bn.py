"""The paper's network: what its text says about depth, width and layers, counted on the graph that autograd built."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from places import ROOT
from torch import nn

from net2net.inception_bn import TABLES, ConvBNReLU, InceptionBN, inception_bn, init_weights
from training import network
from training.config import load

NARROW = 0.3**0.5


def build(name="inception_bn", **options):
    """On the meta device: shapes and graphs without data."""
    with torch.device("meta"):
        return inception_bn(name, **options).train()


def run(model, size=224):
    image = torch.empty(2, model.stem[0].conv.in_channels, size, size, device="meta", requires_grad=True)
    return image, model(image)


def is_convolution(node):
    return node.name() == "ConvolutionBackward0"


def weight_layers(model, size=224):
    """Convolutions on the shortest and on the longest path from input to output; the classifier is not counted."""
    image, logits = run(model, size)

    @cache
    def count(node):
        if getattr(node, "variable", None) is image:
            return 0, 0
        below = [found for node, _ in node.next_functions if node is not None and (found := count(node))]
        if not below:
            return None  # a parameter: paths start at the input
        here = is_convolution(node)
        return min(low for low, _ in below) + here, max(high for _, high in below) + here

    return count(logits.grad_fn)


def sizes(model, part=""):
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(part))


@pytest.mark.parametrize(("extra_pairs", "longest"), [(0, 47), (1, 69), (2, 91), (4, 135)])
def test_has_25_weight_layers_on_the_shortest_path_and_47_on_the_longest(extra_pairs, longest):
    assert weight_layers(build(extra_pairs=extra_pairs)) == (25, longest)
    assert weight_layers(build("inception_bn_28", extra_pairs=extra_pairs), 28) == (25, longest)


@pytest.mark.parametrize("extra_pairs", [0, 2])
def test_every_convolution_is_followed_by_its_own_batch_norm_and_relu(extra_pairs):
    model = build(extra_pairs=extra_pairs)
    _, logits = run(model)
    users, seen, queue = {}, set(), [logits.grad_fn]
    while queue:
        node = queue.pop()
        for before, _ in node.next_functions:
            users.setdefault(before, []).append(node.name())
            if before is not None and before not in seen:
                seen.add(before)
                queue.append(before)
    convolutions = [node for node in seen if is_convolution(node)]
    norms = [node for node in seen if node.name() == "NativeBatchNormBackward0"]
    assert len(convolutions) == len(norms) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all(users[node] == ["NativeBatchNormBackward0"] for node in convolutions)
    assert all(users[node] == ["ReluBackward0"] for node in norms)


def test_each_path_ends_in_vertical_horizontal_pairs():
    for name, path in build(extra_pairs=2).inception.named_modules():
        kernels = [m.kernel_size for m in path.modules() if isinstance(m, nn.Conv2d)]
        if name.endswith(".middle"):
            assert kernels == [(1, 1)] + [(3, 1), (1, 3)] * 3
        elif name.endswith(".long"):
            assert kernels == [(1, 1), (3, 3)] + [(3, 1), (1, 3)] * 3
        elif name.endswith(".short"):
            assert kernels == [(1, 1), (3, 3)]


@pytest.mark.parametrize("name", ["inception_bn", "inception_bn_2015"])
@pytest.mark.parametrize("width", [1, NARROW])
def test_grids_of_a_224_image_are_28_14_and_7(name, width):
    model = build(name, width=width, num_classes=1000)
    grids = []
    for module in (model.stem, *model.inception):
        module.register_forward_hook(lambda module, inputs, output: grids.append(tuple(output.shape[2:])))
    _, logits = run(model)
    assert logits.shape == (2, 1000)
    fours = 5 if name == "inception_bn_2015" else 6
    # Stride 2 in 3c and 4e, whose output is already on the next grid.
    assert grids == [(28, 28)] * 3 + [(14, 14)] * fours + [(7, 7)] * 3


def test_grids_of_a_28_image_are_7_4_and_2():
    model = build("inception_bn_28", num_classes=10)
    grids = []
    for module in (model.stem, *model.inception):
        module.register_forward_hook(lambda module, inputs, output: grids.append(tuple(output.shape[2:])))
    image, logits = run(model, 28)
    assert image.shape == (2, 1, 28, 28)
    assert logits.shape == (2, 10)
    assert grids == [(7, 7)] * 3 + [(4, 4)] * 6 + [(2, 2)] * 3


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("inception_bn", 0.3, 0.302), ("inception_bn_28", 0.29, 0.33), ("inception_bn_2015", 0.301, 0.302)],
)
def test_the_narrow_teacher_keeps_30_percent_of_the_modules(name, low, high):
    kept = sizes(build(name, width=NARROW), "inception.") / sizes(build(name), "inception.")
    assert low <= kept <= high


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("width", [NARROW, 2**0.5])
def test_width_scales_every_convolution_in_the_modules_and_nothing_else(name, width):
    standard, other = (dict(build(name, width=w).named_modules()) for w in (1, width))
    assert list(standard) == list(other)
    stem = TABLES[name].stem.channels[-1]
    for key, module in standard.items():
        if not isinstance(module, nn.Conv2d):
            continue
        wide = other[key]
        assert (wide.kernel_size, wide.stride, wide.padding) == (module.kernel_size, module.stride, module.padding)
        if key.startswith("stem."):
            assert (wide.in_channels, wide.out_channels) == (module.in_channels, module.out_channels)
        else:
            assert wide.out_channels == round(module.out_channels * width)
            assert other[key.replace(".conv", ".bn")].num_features == wide.out_channels
            from_stem = key.startswith("inception.3a.") and module.in_channels == stem
            assert wide.in_channels == (stem if from_stem else pytest.approx(module.in_channels * width, abs=3))
    assert other["classifier"].out_features == standard["classifier"].out_features


TENSOR_CORES = [f"inception_bn{kind}" for kind in ("", "_28_full", "_2015")]


@pytest.mark.parametrize("name", TENSOR_CORES)
@pytest.mark.parametrize("width", [NARROW, 1.0, 2**0.5])
@pytest.mark.parametrize("extra_pairs", [0, 2])
def test_rounded_widths_are_multiples_of_eight(name, width, extra_pairs):
    options = {"extra_pairs": extra_pairs} if extra_pairs and name != "inception_bn_2015" else {}
    model = build(name, width=width, multiple_of=8, **options)
    convolutions = {key: m for key, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    odd = {
        key: m for key, m in convolutions.items() if m.out_channels % 8 or (m.in_channels % 8 and key != "stem.0.conv")
    }
    assert not odd
    plain = {k: m for k, m in build(name, width=width, **options).named_modules() if isinstance(m, nn.Conv2d)}
    assert all(abs(m.out_channels - plain[key].out_channels) <= 4 for key, m in convolutions.items())
    assert (width == 1) == (plain.keys() == convolutions.keys() and sizes(model) == sizes(build(name, **options)))


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_rounded_widths_keep_the_paper_s_share_of_the_parameters_to_a_point(name):
    narrow, standard, wide = (sizes(build(name, width=w, multiple_of=8), "inception.") for w in (NARROW, 1, 2**0.5))
    assert narrow / standard == pytest.approx(0.30, abs=0.01)
    assert wide / standard == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_a_rounded_student_is_nowhere_narrower_than_its_teacher(name):
    nets = [dict(build(name, width=w, multiple_of=8).state_dict()) for w in (NARROW, 1, 2**0.5)]
    for teacher, student in pairwise(nets):
        assert teacher.keys() == student.keys()
        for key, tensor in teacher.items():
            assert all(a <= b for a, b in zip(tensor.shape, student[key].shape, strict=True)), key


def test_the_published_table_has_11_million_parameters_in_10_modules():
    model = build("inception_bn_2015")
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == pytest.approx(11.3e6, rel=0.005)
    assert len(model.inception) == 10
    outputs = [sum(p.shape[0] for p in last_convolutions(module)) for module in model.inception]
    # 3c and 4e pass their input (320 and 608 channels) through the pooling branch.
    assert outputs == [256, 320, 576 - 320, 576, 576, 608, 608, 1056 - 608, 1024, 1024]
    assert model.classifier.in_features == 1024


def test_the_paths_have_the_widths_of_the_published_table():
    published = {row.name: row for row in TABLES["inception_bn_2015"].modules}
    for row in TABLES["inception_bn"].modules:
        source = published[row.name.replace("4d2", "4d")]  # the 11th module is one more like 4d
        assert (row.stride, row.short, row.long) == (source.stride, source.single, source.double)
        assert row.middle == ((source.bare // 2, source.bare) if source.bare else source.single)


def last_convolutions(module):
    for path in module.children():
        weights = [m.weight for m in path.modules() if isinstance(m, nn.Conv2d)]
        if weights:
            yield weights[-1]


def test_extra_pairs_only_where_there_are_pairs():
    with pytest.raises(ValueError, match="no vertical-horizontal pairs"):
        inception_bn("inception_bn_2015", extra_pairs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"extra_pairs": -1}, "extra_pairs"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"name": "inception"}, "inception_bn_2015"),
    ],
)
def test_refuses_what_it_cannot_build(options, message):
    with pytest.raises(ValueError, match=message):
        inception_bn(**options)


def test_options_reach_the_layers():
    model = InceptionBN(TABLES["inception_bn_28"], num_classes=7, in_channels=3, bn_momentum=0.01)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.01, 1e-3)}
    assert all(m.conv.bias is None for m in model.modules() if isinstance(m, ConvBNReLU))


def test_starts_from_he_initialisation():
    torch.manual_seed(0)
    weight = inception_bn("inception_bn_28").inception[4].short[1].conv.weight  # 24x16x3x3
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)
    layer = ConvBNReLU(4, 400, (1, 3)).apply(init_weights)
    assert layer.conv.weight.std().item() == pytest.approx((2 / 12) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("init", "spread"), [("he", (2 / 9) ** 0.5), ("pytorch", (1 / 9 / 3) ** 0.5)])
def test_the_random_initialisation_is_the_configs(init, spread):
    """Standard deviation times the root of the fan-in's channels: He's is sqrt(2), PyTorch's 1 / sqrt(3)."""
    config = load(ROOT / "configs" / "laptop" / "standard.yaml", [f"model.init={init}"])
    torch.manual_seed(0)
    weight = network.build(config.model, config.data).stem[2].conv.weight
    assert weight.shape[1:] == (16, 3, 3)
    assert weight.std().item() * 16**0.5 == pytest.approx(spread, rel=0.05)
