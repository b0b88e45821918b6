"""Where deepen can insert, and what: functional sites, dilated, depthwise and maxout layers, residual blocks."""

import copy
import json
import math
from functools import partial

import compare
import nets
import pytest
import torch
import torch.nn.functional as F
import torchvision
from nets import Net, conv
from torch import nn

import net2net
from net2net import GrowthError, Layer, Maxout, deepen, explain, history, verify, widen
from net2net.deeper import insert

images = partial(nets.images, batch=4)


def certify(teacher, student, inputs, bound=1e-10):
    """Both modes, and that there is a function to preserve."""
    compare.distinct(copy.deepcopy(teacher), inputs, 1e-4)
    compare.certify(teacher, student, inputs, evaluation=bound, training=bound)


def sole(student, index=-1):
    (layers,) = history(student)[index]["sites"].values()
    return layers


def functional(m, x):
    return m.c(F.relu(m.bn(m.b(F.relu6(m.a(x))))))


def stem():
    return Net(functional, a=conv(3, 4), b=conv(4, 5), bn=nn.BatchNorm2d(5, 1e-2, 0.3), c=conv(5, 2))


# Kinds of layers


@pytest.mark.parametrize(
    ("layer", "weight", "padding"),
    [
        (Layer((3, 5)), (5, 5, 3, 5), (1, 2)),
        (Layer(3, dilation=2), (5, 5, 3, 3), (2, 2)),
        (Layer((5, 1), dilation=(3, 1)), (5, 5, 5, 1), (6, 0)),
        (Layer(5, depthwise=True), (5, 1, 5, 5), (2, 2)),
        (Layer((1, 3), dilation=(1, 3), depthwise=True), (5, 1, 1, 3), (0, 3)),
        (Layer(3, maxout=3), (15, 5, 3, 3), (1, 1)),
        (Layer((3, 1), dilation=2, depthwise=True, maxout=2), (10, 1, 3, 1), (2, 0)),
        ({"kernel": [3, 1], "depthwise": True}, (5, 1, 3, 1), (1, 0)),
        ({"kernel": 3, "dilation": 2}, (5, 5, 3, 3), (2, 2)),
    ],
)
@pytest.mark.parametrize("norm", [True, False])
def test_kinds_of_layers_preserve_the_function(layer, weight, padding, norm, randomise):
    parts = [conv(3, 5), *([nn.BatchNorm2d(5, 1e-3)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 9 * 7, 3)]
    teacher, x = randomise(nn.Sequential(*parts)).double(), images(3, 9, 7)
    # Flattened after the site: every position counts, a tap one pixel off is seen.
    site = str(len(parts) - 3)
    student = deepen(teacher, x, {site: [layer, layer]}, [x])
    certify(teacher, student, x)
    new = student.get_submodule(site)[1]
    assert (new.conv.weight.shape, new.conv.padding) == (weight, padding)
    assert new.conv.weight.count_nonzero() == len(new.conv.weight)
    assert hasattr(new, "bn") == norm
    assert json.loads(json.dumps(history(student))) == history(student)
    # The check itself: one pixel beside the centre is another function.
    with torch.no_grad():
        new.conv.weight.copy_(new.conv.weight.roll(1, dims=2 if weight[2] > 1 else 3))
    assert verify(teacher, student, x).relative > 1e-3


@pytest.mark.parametrize("dims", [1, 3])
def test_depthwise_and_dilated_layers_in_one_and_three_dimensions(dims, randomise):
    build = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
    teacher = randomise(nn.Sequential(build(2, 4, 3), norm(4), nn.Hardtanh(-0.5, 0.8), nn.Flatten())).double()
    x = images(2, *(7, 6, 8)[:dims])
    student = deepen(teacher, x, {"2": [Layer(3, depthwise=True), Layer(5, dilation=2), Layer(3, maxout=2)]}, [x])
    certify(teacher, student, x)
    depthwise, dilated, maxout = list(student[2])[1:]
    assert (depthwise.conv.groups, dilated.conv.dilation) == (4, (2,) * dims)
    assert isinstance(maxout.maxout, Maxout)


def test_a_layer_wider_than_the_one_below_is_deepen_then_widen(randomise):
    """The last paragraph of sec 2.4: any layer that is at least as wide as the one below it."""
    teacher, x = randomise(nets.resnet18()).double(), images(3, 32, 32, batch=2)
    deep = deepen(teacher, x, {"layer1": [3, (1, 3)]}, [x])
    wide = widen(deep, x, widths={"layer1.1.conv": 12})
    certify(teacher, wide, x)
    assert wide.layer1[1].conv.weight.shape == (12, 8, 3, 3)
    assert wide.layer1[2].conv.weight.shape == (8, 12, 1, 3)
    normed = deepen(teacher, x, {"relu": [3]}, [x])
    with_norm = widen(normed, x, widths={"relu.1.conv": 10})
    certify(teacher, with_norm, x)
    assert with_norm.relu[1].bn.num_features == 10


# Functional sites, and modules that are called several times


def test_before_a_module_whose_input_a_function_activates(randomise):
    teacher, x = randomise(stem()).double(), images(3, 6, 5)
    student = deepen(teacher, x, {"before c": [3, (1, 3)], "before b": [Layer(3, dilation=2)]}, [x])
    certify(teacher, student, x)
    assert [[n for n, _ in new.named_children()] for new in student.c[:2]] == [["conv", "bn", "relu"]] * 2
    assert [n for n, _ in student.b[0].named_children()] == ["conv", "relu"]
    assert (isinstance(student.b[0].relu, nn.ReLU6), isinstance(student.c[0].relu, nn.ReLU6)) == (True, False)
    assert torch.equal(student.c[2].weight, teacher.c.weight)
    norm = student.c[0].bn
    assert (norm.eps, norm.momentum) == (1e-2, 0.3)
    inner = copy.deepcopy(teacher).train()
    activations = F.relu(inner.bn(inner.b(F.relu6(inner.a(x)))))
    torch.testing.assert_close(norm.running_mean, activations.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    assert list(history(student)[-1]["sites"]) == ["before c", "before b"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_before_the_convolutions_of_a_residual_block_with_one_shared_relu(name, randomise):
    teacher, x = (
        randomise(getattr(nets, name)()).double(),
        images(3, 64, 64, batch=2),
    )  # 2 x 2 positions at the end: train mode needs several
    student = deepen(teacher, x, {"before layer[12].*.conv2": [3], "layer1.0": [(3, 1)]}, [x])
    certify(teacher, student, x, 1e-9)
    inside = student.layer1[0][0].conv2  # a site inside a site
    assert [n for n, _ in inside[0].named_children()] == ["conv", "bn", "relu"]
    assert inside[1].weight.shape == teacher.layer1[0].conv2.weight.shape
    depth = sum(isinstance(m, nn.Conv2d) for m in student.modules())
    assert depth == sum(isinstance(m, nn.Conv2d) for m in teacher.modules()) + {"resnet18": 5, "resnet50": 8}[name]


def test_before_and_after_one_module_and_under_several_names(randomise):
    site = nn.Sequential(conv(4, 4), nn.ReLU())
    teacher = Net(lambda m, x: m.end(m.again(F.relu(m.a(x)))), a=conv(3, 4), site=site, again=site, end=conv(4, 2))
    randomise(teacher).double()
    student = deepen(teacher, images(3, 4, 5), {"site": [3], "before site": [(1, 3)], "before site.0": [1]})
    certify(teacher, student, images(3, 4, 5))
    assert student.again is student.site
    assert sum(isinstance(m, nn.Conv2d) for m in student.modules()) == 3 + 3


@pytest.mark.parametrize(
    ("run", "works"),
    [
        (lambda m, x: m.c(F.max_pool2d(F.relu(m.a(x)), 2)), True),
        (lambda m, x: m.c(F.dropout(F.relu(m.a(x)), 0.5, m.training)), True),
        (lambda m, x: m.c(F.relu(m.a(x)).flatten(1).view(len(x), 4, 6, 6)), True),
        (lambda m, x: m.c(F.max_pool2d(F.hardtanh(m.a(x), -0.1, 0.1), 2)), True),
        (lambda m, x: m.c(F.dropout(F.relu6(m.a(x)), 0.5, m.training)), False),  # scales beyond six
        (lambda m, x: m.c(F.alpha_dropout(F.relu(m.a(x)), 0.5, m.training)), False),  # makes negative numbers
        (lambda m, x: m.c(F.relu(m.a(x)) - 0.1), False),
        (lambda m, x: m.c(F.avg_pool2d(F.relu(m.a(x)), 2)), False),
        (lambda m, x: m.c(-F.relu(m.a(x))), False),
        (lambda m, x: m.c(F.relu(m.a(x)).permute(0, 1, 3, 2)), False),
    ],
)
def test_what_may_lie_between_the_activation_and_the_module(run, works, randomise):
    teacher, x = randomise(Net(run, a=conv(3, 4), c=conv(4, 2))).double(), images(3, 6, 6)
    if not works:
        with pytest.raises(GrowthError, match="cannot deepen before 'c': its input comes from"):
            deepen(teacher, x, {"before c": [3]})
        return
    student = deepen(teacher, x, {"before c": [3]})
    certify(teacher, student, x)
    torch.manual_seed(0)
    expected = teacher.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(student.train()(x), expected)  # with the dropout on, too


def test_flattened_channels_get_a_linear_layer(randomise):
    teacher = Net(lambda m, x: m.c(F.relu(m.a(x)).flatten(1)), a=conv(3, 4), c=nn.Linear(4 * 4 * 5, 2))
    student = deepen(randomise(teacher).double(), images(3, 4, 5), {"before c": [1]})
    certify(teacher, student, images(3, 4, 5))
    assert student.c[0].linear.weight.shape == (80, 80)


def test_operations_without_a_rule_do_not_matter(randomise):
    def run(m, x):
        return m.c(F.relu(m.b(torch.special.erfcx(m.a(x)))))

    teacher, x = randomise(Net(run, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))).double(), images(3, 4, 5)
    with pytest.raises(net2net.UnsupportedOperation, match="special_erfcx"):
        widen(teacher, x, 2.0, strict=True)
    certify(teacher, deepen(teacher, x, {"before c": [3]}), x)


# Maxout


MAXOUT = {
    "amax": lambda m, x: m.bn(m.fc(x)).view(len(x), 5, 3, *x.shape[2:]).amax(2),
    "max of pieces in turns": lambda m, x: m.bn(m.fc(x)).unflatten(1, (3, 5)).max(1)[0],
    "values": lambda m, x: m.bn(m.fc(x)).reshape(len(x), 5, 3, *x.shape[2:]).max(dim=2).values,
    "maximum": lambda m, x: torch.maximum(
        torch.maximum(m.bn(m.fc(x))[:, :5], m.bn(m.fc(x))[:, 5:10]), m.bn(m.fc(x))[:, 10:]
    ),
}


@pytest.mark.parametrize("kind", MAXOUT)
@pytest.mark.parametrize("spatial", [True, False])
def test_a_maxout_site_gets_maxout_layers_of_as_many_pieces(kind, spatial, randomise):
    """Sec 2.4: "a matrix that is similar to identity, but with replicated columns"."""
    fc = conv(3, 15) if spatial else nn.Linear(3, 15)
    bn = nn.BatchNorm2d(15, 1e-2) if spatial else nn.BatchNorm1d(15, 1e-2)
    site = Net(MAXOUT[kind], fc=fc, bn=bn)
    end = conv(5, 2) if spatial else nn.Linear(5, 2)
    x = images(3, 4, 6) if spatial else images(3, batch=9)
    teacher = randomise(nn.Sequential(site, end)).double()
    for key, kernel in (("0", 3), ("before 1", (3, 1))):
        kernel = kernel if spatial else 1
        student = deepen(teacher, x, {key: [kernel, kernel]}, [x])
        certify(teacher, student, x)
        assert [layer["maxout"] for layer in sole(student)] == [3, 3]
    new = deepen(teacher, x, {"0": [1]}, [x])[0][1]
    assert [n for n, _ in new.named_children()][1:] == (["bn", "maxout"] if kind != "maximum" else ["maxout"])
    weight = (new.conv if spatial else new.linear).weight.flatten(1)
    assert torch.equal(weight, torch.eye(5).double().repeat_interleave(3, 0))


def test_a_pooling_is_no_maxout(randomise):
    for pool in (lambda x: x.amax((2, 3)), lambda x: x.flatten(2).amax(2), lambda x: x.flatten(2).max(2)[0]):
        teacher = Net(lambda m, x, pool=pool: m.c(pool(m.a(x))), a=conv(3, 4), c=nn.Linear(4, 2))
        with pytest.raises(GrowthError, match=r"not from an activation.* ask for a maxout layer, Layer\(1, maxout=2\)"):
            deepen(randomise(teacher).double(), images(3, 4, 5), {"before c": [1]})
    # Positions divided, not channels.
    teacher = Net(lambda m, x: m.c(m.a(x).view(len(x), 4, 4, 5).amax(2)), a=nn.Conv1d(3, 4, 1), c=nn.Conv1d(4, 2, 1))
    with pytest.raises(GrowthError, match="'amax', not from an activation"):
        deepen(randomise(teacher).double(), images(3, 20), {"before c": [1]})


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Identity])
def test_a_maxout_layer_works_after_anything(activation, randomise):
    teacher = nn.Sequential(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), activation()), conv(4, 2))
    student = deepen(randomise(teacher).double(), images(3, 4, 5), {"0": [Layer(3, maxout=2)] * 2}, [images(3, 4, 5)])
    certify(teacher, student, images(3, 4, 5))
    assert [isinstance(m, Maxout) for m in student[0][1]][-1]


def test_pieces_that_start_equal_become_different():
    new = deepen(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(3, 4, 5).float(), {"1": [Layer(3, maxout=2)]})
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    for _ in range(2):
        new(images(3, 4, 5).float()).square().sum().backward()
        optimizer.step()
    first, second = new[1][1].conv.weight.unflatten(0, (4, 2)).unbind(1)
    assert (first != second).any(dim=(1, 2, 3)).all()


# Residual blocks


class PreAct(nn.Module):
    """Pre-activation (He et al., 2016): x + conv(act(bn(conv(act(bn(x))))))."""

    def __init__(self, inputs, outputs, stride=1, act=nn.ReLU):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.act = act()
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        preactivated = self.act(self.bn1(x))
        shortcut = x if self.project is None else self.project(preactivated)
        return self.conv2(self.act(self.bn2(self.conv1(preactivated)))) + shortcut


def preact(act=nn.ReLU):
    blocks = nn.Sequential(PreAct(4, 6, 2, act), PreAct(6, 6, 1, act), PreAct(6, 6, 1, act))
    return nn.Sequential(conv(3, 4), blocks, nn.BatchNorm2d(6), act(), conv(6, 2))


def encoder():
    # The fast path of torch's own has no steps to follow; a trace does not take it.
    return nn.Sequential(
        nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, batch_first=True), nn.Linear(8, 2)
    )


def timm_model(name, **options):
    import timm

    return timm.create_model(name, num_classes=5, **options)


class Gated(nn.Module):
    """x + w2(silu(w1 norm(x)) * w3 norm(x)) without biases: a norm at zero would be zero in both factors for ever."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.w1, self.w3, self.w2 = (nn.Linear(*sizes, bias=False) for sizes in ((8, 12), (8, 12), (12, 8)))

    def forward(self, x):
        h = self.norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Normed(nn.Module):
    """A block of a vocoder: its last layer is under weight normalisation."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.c1, self.c2 = norm(nn.Conv1d(8, 8, 3, padding=1)), norm(nn.Conv1d(8, 8, 1))

    def forward(self, x):
        return x + self.c2(F.silu(self.c1(F.silu(x)))) / 2


def around(block, stem=None, head=None):
    return nn.Sequential(stem or nn.Linear(6, 8), block(), head or nn.Linear(8, 2))


IMAGE, VIT = (3, 32, 32), {"img_size": 32, "patch_size": 8, "depth": 3}
BLOCKS = {
    "resnet18": (nets.resnet18, IMAGE, "layer1.1", ["bn2.weight", "bn2.bias"]),
    "resnet50": (nets.resnet50, IMAGE, "layer2.2", ["bn3.weight", "bn3.bias"]),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
        IMAGE,
        "features.3",
        ["conv.3.weight", "conv.3.bias"],
    ),
    # Not the last normalisation: ReLU has no derivative at zero, it would never be trained.
    "preact": (preact, (3, 8, 8), "1.1", ["conv2.weight"]),
    "preact with silu": (lambda: preact(nn.SiLU), (3, 8, 8), "1.2", ["bn2.weight", "bn2.bias"]),
    "transformer": (
        encoder,
        (5, 6),
        "1",
        ["self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"],
    ),
    "vit": (
        lambda: timm_model("vit_tiny_patch16_224", **VIT),
        IMAGE,
        "blocks.1",
        ["attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias"],
    ),
    "vit with layer scale": (
        lambda: timm_model("vit_tiny_patch16_224", init_values=0.1, **VIT),
        IMAGE,
        "blocks.1",
        ["ls1.gamma", "ls2.gamma"],
    ),
    "gated": (lambda: around(Gated), (5, 6), "1", ["w2.weight"]),
    "weight norm": (
        lambda: around(Normed, nn.Conv1d(6, 8, 1), nn.Conv1d(8, 2, 1)),
        (6, 5),
        "1",
        ["c2.parametrizations.weight.original0", "c2.bias"],
    ),
    "convnext": (lambda: timm_model("convnext_atto"), IMAGE, "stages.0.blocks.0", ["gamma"]),
    "resnetv2": (
        lambda: timm_model("resnetv2_50", channels=(32, 64, 128, 256), stem_chs=8),
        IMAGE,
        "stages.1.blocks.1",
        ["conv3.weight"],
    ),
    "seresnet": (
        lambda: timm_model("seresnet18", channels=(8, 16, 32, 64)),
        IMAGE,
        "layer1.1",
        ["bn2.weight", "bn2.bias"],
    ),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_new_residual_block_is_the_identity_and_trains(kind, randomise):
    build, shape, site, zero = BLOCKS[kind]
    teacher, x = randomise(build()).double(), images(*shape, batch=2)
    state = torch.get_rng_state()
    student = deepen(teacher, x, {site: ["block"]}, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sole(student) == [{"block": zero}]
    certify(teacher, student, x, 1e-14)
    old, new = student.get_submodule(site)
    assert type(old) is type(new)
    assert str(old) == str(new)
    for (name, ours), theirs in zip(new.named_parameters(), old.parameters(), strict=True):
        if name in zero:
            assert not ours.any()
        else:
            assert not ours.isnan().any()
            assert not torch.equal(ours, theirs), name  # its own draw, not a copy
    for module in new.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0
    # What starts at zero gets a gradient and moves the function; after that so does everything. (A batch norm's scale
    # before another one only does once its own offset is not zero any more.)
    student.train()
    before = [p.detach().clone() for p in new.parameters()]
    optimizer = torch.optim.SGD(new.parameters(), lr=1e-2)
    target = torch.linspace(-1, 1, student(x).numel(), dtype=torch.float64).view_as(student(x))
    for step in range(3):
        optimizer.zero_grad()
        (student(x) * target).sum().backward()
        if step == 0:
            assert all(new.get_parameter(name).grad.any() for name in zero if "out_proj.bias" not in name)
        optimizer.step()
    assert verify(teacher, student, x, train=True).relative > 1e-12
    moved = [name for (name, p), old in zip(new.named_parameters(), before, strict=True) if not torch.equal(p, old)]
    assert set(zero) <= set(moved)
    assert len(moved) == len(before)


def test_blocks_and_layers_at_one_site_and_inside_it(randomise):
    teacher, x = randomise(nets.resnet18()).double(), images(*IMAGE, batch=2)
    student = deepen(teacher, x, {"layer1.1": ["block", (1, 3), "block"], "before layer1.1.conv2": [3]}, [x])
    certify(teacher, student, x)
    old, first, layer, second = student.layer1[1]
    assert isinstance(old.conv2, nn.Sequential)
    assert isinstance(first.conv2, nn.Conv2d)  # a copy of what the block was
    assert [n for n, _ in layer.named_children()] == ["conv", "relu"]
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_the_draw_of_a_block_depends_on_seed_and_site_alone(randomise):
    teacher, x = randomise(preact()), images(3, 8, 8).float()

    def weight(seed, sites=("1.2",)):
        torch.rand(seed + 1)
        return deepen(teacher, x, {site: ["block"] for site in sites}, seed=seed).get_submodule("1.2.1.conv1").weight

    assert torch.equal(weight(0), weight(0, ("1.1", "1.2")))
    assert not torch.equal(weight(0), weight(1))
    bound = (1 / (6 * 9)) ** 0.5  # as the module's own reset_parameters draws it
    assert 0.9 * bound < weight(0).abs().max() <= bound


def test_a_block_of_a_frozen_half_precision_teacher(randomise):
    teacher, x = randomise(nets.resnet18()).bfloat16().requires_grad_(False), images(*IMAGE, batch=2).bfloat16()
    new = deepen(teacher, x, {"layer1.1": ["block"]}, verify=False).layer1[1][1]
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in new.parameters())


class Scaled(nn.Module):
    """x + linear(x * slope), and nothing that initialises `slope`."""

    def __init__(self):
        super().__init__()
        self.slope, self.linear = nn.Parameter(torch.ones(6)), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(x * self.slope)


def test_code_around_a_block_may_look_at_its_attributes(randomise):
    """As nn.TransformerEncoder does, of its layers."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, batch_first=True)
    net = randomise(nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
    student = deepen(net.double(), images(5, 6), {"1.layers.0": ["block"]})
    assert len(student[1].layers[0]) == 2
    certify(net, student, images(5, 6))
    with pytest.raises(AttributeError, match="'TransformerEncoderLayer' object has no attribute 'absent'"):
        student[1].layers[0].absent  # noqa: B018


@pytest.mark.parametrize(
    "act",
    [
        *(lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: F.threshold(x, 0, 0)),
        *(lambda x: x.clamp(-0.5, 2), lambda x: torch.clip(x, 0, 6)),
    ],
)
def test_activations_written_as_clamps(act, randomise):
    net = randomise(Net(lambda m, x: m.b(act(m.a(x))), a=conv(3, 4), b=conv(4, 2))).double()
    certify(net, deepen(net, images(3, 4, 5), {"before b": [3]}), images(3, 4, 5))
    unbounded = Net(lambda m, x: m.b(m.a(x).clamp(min=m.a(x).mean())), a=conv(3, 4), b=conv(4, 2)).double()
    with pytest.raises(GrowthError, match="comes from 'clamp', not from an activation"):
        deepen(unbounded, images(3, 4, 5), {"before b": [3]})


def test_what_a_hook_makes_of_an_output_is_the_output(randomise):
    net = randomise(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))).double()
    net[1].register_forward_hook(lambda module, inputs, output: output - 1)
    with pytest.raises(GrowthError, match="its output comes from 'sub', not from an activation"):
        deepen(net, images(3, 4, 5), {"1": [3]}, verify=False)
    net[0].register_forward_hook(lambda module, inputs, output: None)  # one that only looks
    certify(net, deepen(net, images(3, 4, 5), {"1": [Layer(3, maxout=2)]}), images(3, 4, 5))
    certify(net, widen(net, images(3, 4, 5), 2), images(3, 4, 5))


def test_calibration_that_is_not_finite_is_named(randomise):
    net = randomise(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2))).double()
    with pytest.raises(GrowthError, match="the activations of '2' are not finite on calibration="):
        deepen(net, images(3, 4, 5), {"2": [3]}, [images(3, 4, 5) * math.nan])


def test_a_block_that_is_called_by_keyword_is_named():
    net = nets.Net(lambda m, x: m.out(m.block(x=m.stem(x))), stem=nn.Linear(4, 6), block=Scaled(), out=nn.Linear(6, 2))
    with pytest.raises(GrowthError, match="after 'block': it is called by keyword: pass what it adds to"):
        deepen(net, torch.randn(3, 4), {"block": ["block"]})


def test_what_nothing_initialises_needs_init(randomise):
    teacher, x = randomise(nn.Sequential(Scaled(), nn.Linear(6, 2))).double(), images(6)
    with pytest.raises(
        GrowthError, match=r"nothing initialises 'slope' of the new block after '0': Scaled has no reset.*init="
    ):
        deepen(teacher, x, {"0": ["block"]})

    def init(module):
        if isinstance(module, Scaled):
            nn.init.constant_(module.slope, 0.5)
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.bias)  # the zeros come last

    student = deepen(teacher, x, {"0": ["block"]}, init=init)
    assert (student[0][1].slope == 0.5).all()
    certify(teacher, student, x, 1e-14)


# The record


@pytest.mark.parametrize("through_json", [False, True])
def test_the_record_rebuilds_the_architecture_without_data(through_json, randomise):
    teacher, x = randomise(nets.resnet18()).double(), images(*IMAGE, batch=2)
    sites = {
        "before layer1.*.conv2": [Layer(3, dilation=2), Layer(3, maxout=2)],
        "layer2.1": ["block", Layer(3, depthwise=True)],
        "relu": [3],
        "layer1.1": ["block"],
    }
    student = deepen(deepen(teacher, x, sites, [x]), x, {"layer1.1": [(1, 3)], "layer2.1.0": ["block"]}, [x])
    entries = history(student)
    if through_json:
        entries = json.loads(json.dumps(entries))
    rebuilt = copy.deepcopy(teacher)
    for entry in entries:
        assert entry["op"] == "deepen"
        insert(rebuilt, entry["sites"])
    assert verify(teacher, rebuilt, x).relative <= 1e-10  # in evaluation mode the identity without statistics, too
    ours, theirs = ({k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (rebuilt, student))
    assert list(ours.items()) == list(theirs.items())
    rebuilt.load_state_dict(student.state_dict())
    assert str(rebuilt) == str(student)
    assert torch.equal(rebuilt.eval()(x), student.eval()(x))


# Refusals and what explain says


def after(activation):
    return nn.Sequential(nn.Sequential(conv(3, 4), activation), conv(4, 2))


class Twice(nn.Module):
    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.a, self.bn, self.act = conv(4, 4), nn.BatchNorm2d(4), act()

    def forward(self, x):
        return x + self.act(self.bn(self.a(x)))


def gelu_after(m, x):
    return F.gelu(x + m.a(x))


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(4, 4)
        self.register_buffer("table", torch.ones(4, 1, 1))

    def forward(self, x):
        return x + self.a(x) + self.table


def inside(block):
    return nn.Sequential(conv(3, 4), block, conv(4, 2))


@pytest.mark.parametrize(
    ("model", "sites", "message"),
    [
        (
            after(nn.Sigmoid()),
            {"0": [3]},
            r"'0': its output comes from 'sigmoid', and applying that twice is not applying it once; "
            r"a site must end in relu, relu6, hardtanh, or ask for a maxout layer, Layer\(3, maxout=2\)$",
        ),
        (inside(Net(gelu_after, a=conv(4, 4))), {"1": [3]}, r"'gelu'.*Layer\(3, maxout=2\)$"),
        (inside(Twice()), {"1": [3]}, "'add', not from an activation"),
        (inside(PreAct(4, 4)), {"1": [3]}, r"'add'.*Layer\(3, maxout=2\), or for a 'block'$"),
        (stem(), {"before a": [3]}, "before 'a': its input is not one tensor that an activation made"),
        (stem(), {"before bn": [3]}, r"before 'bn': its input comes from 'conv2d', not from an activation"),
        (stem(), {"before d": [3]}, "no module matches the site 'before d'; the top level is a, b, bn, c"),
        (stem(), {"before c": [3], "before [c]": [1]}, "two site patterns match 'before c'"),
        (stem(), {"before c": ["block"]}, "before 'c': a 'block' goes after the block that it is like: name 'c'"),
        (stem(), {"before c": [Layer(4)]}, "before 'c' with kernel 4: expected an odd size or 2 of them"),
        (after(nn.ReLU()), {"0": [Layer(3, dilation=0)]}, "expected a positive dilation or 2 of them, got 0"),
        (after(nn.ReLU()), {"0": [Layer(3, dilation=(1, 2, 3))]}, r"a positive dilation .* got \(1, 2, 3\)"),
        (after(nn.ReLU()), {"0": [Layer(3, maxout=1)]}, "expected maxout to be a number of pieces, at least 2"),
        (after(nn.ReLU()), {"0": [Layer(3, depthwise=2)]}, "expected depthwise to be True or False"),
        (after(nn.ReLU()), {"0": [{"kernel": 3, "groups": 4}]}, "a layer has kernel, dilation, .*, no groups"),
        (after(nn.ReLU()), {"0": ["blok"]}, "with 'blok': expected a kernel, a Layer or 'block'"),
        (after(nn.ReLU()), {"0": [3.0]}, "with kernel 3.0: expected an odd size"),
        (after(nn.ReLU()), {"0": Layer(3)}, r"'0' asks for Layer\(.*: expected a list of kernels"),
        (after(nn.ReLU()), {"0": "block"}, "'0' asks for 'block': expected a list of kernels"),
        (after(nn.ReLU()), {"0": ["block"]}, r"'0': its output \(4, 4, 6, 6\) does not have the shape of its input"),
        (
            preact(),
            {"1.*": ["block"]},
            r"after '1.0': its output \(4, 6, 3, 3\) does not .* its input \(4, 4, 6, 6\); '1.1' next to it is such",
        ),
        (preact(), {"1.1.bn1": ["block"]}, "it ends in 'batch_norm', not in an addition to its own input"),
        (inside(Twice()), {"1": ["block"]}, "nothing can start at zero and be trained .* a branch that 'relu' makes"),
        (inside(Net(gelu_after, a=conv(4, 4))), {"1": ["block"]}, "the 'gelu' after the addition at its end"),
        (inside(Table()), {"1": ["block"]}, "at the end of a branch that a constant makes"),
        (
            inside(Net(lambda m, x: m.p(x) + m.a(x), a=conv(4, 4), p=conv(4, 4))),
            {"1": ["block"]},
            r"neither side of the addition at its end is its own input \(the shortcut is a projection",
        ),
        (
            Net(lambda m, x: m.b(m.b(m.a(x))), a=conv(3, 4), b=Twice(nn.Identity)),
            {"b": ["block"]},
            "it is called 2 times a pass",
        ),
    ],
)  # fmt: skip
def test_refusals_say_why_and_what_works_instead(model, sites, message, randomise):
    with pytest.raises(GrowthError, match=message):
        deepen(randomise(model).double(), images(3, 6, 6), sites, [images(3, 6, 6)])


def test_vectors_have_no_kernels(randomise):
    model, x = randomise(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))).double(), images(6)
    for layer, message in (
        (Layer(), "expected 1"),
        (Layer(1, dilation=2), "expected no dilation, got 2"),
        (Layer(1, depthwise=True), r"expected depthwise=False, its output \(4, 5\) has no spatial dimensions"),
    ):
        with pytest.raises(GrowthError, match=message):
            deepen(model, x, {"1": [layer]})
    certify(model, deepen(model, x, {"1": [Layer(1, maxout=3)]}), x)


def test_code_that_reaches_into_the_module_after_the_new_layers_is_noticed(randomise):
    def run(m, x):
        return F.conv2d(F.relu(m.a(x)), m.c.weight) + m.c(F.relu(m.a(x)))

    model = randomise(Net(run, a=nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 2, 1))).double()
    with pytest.raises(GrowthError, match="cannot deepen before 'c': code outside it reads its attribute 'weight'"):
        deepen(model, images(3, 4, 5), {"before c": [3]})


def test_code_that_asks_for_an_attribute_or_the_class_of_a_site_is_named(randomise):
    def read(m, x):
        return m.c(m.act(m.a(x)) * m.act.max_val)

    def asked(m, x):
        if not isinstance(m.act, nn.ReLU6):
            raise TypeError(type(m.act).__name__)
        return m.c(m.act(m.a(x)))

    for run, said in (
        (read, "cannot deepen after 'act': .* reads its attribute 'max_val', which the .* 'before' the next one"),
        (asked, r"as if code outside a site uses it otherwise than by calling it, .*: TypeError: Sequential$"),
    ):
        model = randomise(Net(run, a=nn.Conv2d(3, 4, 1), act=nn.ReLU6(), c=nn.Conv2d(4, 2, 1))).double()
        with pytest.raises(GrowthError, match=said):
            deepen(model, images(3, 4, 5), {"act": [3]})


def test_every_site_that_explain_lists_can_be_deepened(randomise):
    """One at a time, as listed; the text says what it takes."""
    maxout = Net(lambda m, x: m.end(m.bn(m.fc(x)).view(len(x), 5, 3).amax(2)),
                 fc=nn.Linear(3, 15), bn=nn.BatchNorm1d(15), end=nn.Linear(5, 2))  # fmt: skip
    models = {
        "preact": (randomise(preact()), images(3, 8, 8).float()),
        "stem": (randomise(stem()), images(3, 6, 5).float()),
        "maxout": (randomise(maxout), images(3).float()),
    }
    listed = {kind: explain(model, x).sites for kind, (model, x) in models.items()}
    assert listed["stem"] == {"before b": "4 channels, relu6", "before c": "5 channels, batch norm, relu"}
    assert listed["maxout"] == {"before end": "5 channels, batch norm, maxout of 3 pieces"}
    assert listed["preact"]["1.1"] == "a 'block'"
    assert listed["preact"]["3"] == "6 channels, batch norm, relu"
    assert listed["preact"]["before 1.1.conv2"] == "6 channels, batch norm, relu"
    assert not {"1.0", "before 4", "1.1.act"} & set(listed["preact"])
    resnet = explain(nets.resnet18(), images(*IMAGE).float()).sites
    assert resnet["layer1.1"] == "8 channels, relu, or a 'block'"
    assert resnet["before layer1.1.conv2"] == "8 channels, batch norm, relu"
    for kind, sites in listed.items():
        model, x = models[kind]
        for site, what in sites.items():
            if "channels" in what:
                assert isinstance(deepen(model, x, {site: [1]}, [x]), nn.Module)
            if "block" in what:
                assert isinstance(deepen(model, x, {site: ["block"]}), nn.Module)
