"""Net2DeeperNet: inserted layers are the identity, in evaluation mode and on the calibration batch in training mode."""

import copy
import json
import pickle
from collections import OrderedDict
from functools import partial

import nets
import pytest
import torch
import torch.nn.functional as F
from compare import certify, distinct, same, weights
from nets import Net, conv
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from net2net import GrowthError, deepen, history, random_pad, replay, verify, widen
from net2net.inception_bn import inception_bn

pytestmark = pytest.mark.quick

PAIR = [(3, 1), (1, 3)]
images = partial(nets.images, batch=4)


def layer(inputs, outputs, kernel=3, eps=1e-5, momentum=0.1):
    return nn.Sequential(conv(inputs, outputs, kernel), nn.BatchNorm2d(outputs, eps, momentum), nn.ReLU(inplace=True))


def normalised():
    parts = [layer(3, 5), nn.MaxPool2d(2), layer(5, 4, (1, 3), eps=1e-3), nn.Flatten(), nn.Dropout(), nn.Linear(24, 3)]
    return nn.Sequential(*parts)


@pytest.mark.parametrize("kernels", [[3], [5], [(3, 1)], [(1, 5)], [1], PAIR, PAIR * 2, [(3, 5), 7]], ids=str)
def test_preserves_the_function(kernels, randomise):
    teacher, x = randomise(normalised()).double(), images(3, 5, 6)
    distinct(teacher, x)
    student = deepen(teacher, x, {"0": kernels, "2": kernels}, [x])
    certify(teacher, student, x, single=True)
    assert verify(teacher, student, images(3, 5, 6, seed=2)).relative <= 1e-10  # on other inputs just as well
    assert [type(m) for m in student[0]] == [nn.Sequential] * (1 + len(kernels))


def test_preserves_single_precision_when_built_in_it(randomise):
    teacher, x = randomise(normalised()), images(3, 5, 6).float()
    student = deepen(teacher, x, {"*.2": PAIR * 2}, [x])
    assert {tensor.dtype for tensor in student.parameters()} == {torch.float32}
    for train in (False, True):
        assert verify(teacher, student, x, train=train, dtype=torch.float32).relative <= 1e-5


@pytest.mark.parametrize(
    ("build", "shape", "kernels"),
    [
        (lambda: nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 2)), (3, 4, 5), [3, (1, 3)]),
        (lambda: nn.Sequential(conv(3, 5), nn.ReLU6(), conv(5, 2)), (3, 4, 5), [3]),
        (lambda: nn.Sequential(conv(3, 5), nn.Hardtanh(), conv(5, 2)), (3, 4, 5), [3]),
        (lambda: nn.Sequential(conv(3, 5), nn.Hardtanh(-0.3, 0.7), conv(5, 2)), (3, 4, 5), [3, 3]),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), (6,), [1, 1]),
        (lambda: nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Conv1d(5, 2, 1)), (2, 9), [3, 5]),
        (lambda: nn.Sequential(nn.Conv3d(2, 5, 3), nn.ReLU(), nn.Conv3d(5, 2, 1)), (2, 4, 3, 5), [3, (1, 3, 5)]),
        (lambda: nn.Sequential(conv(3, 6, groups=3), nn.ReLU(), conv(6, 2)), (3, 4, 5), [3]),
    ],
)
def test_preserves_the_function_without_batch_norm(build, shape, kernels, randomise):
    teacher, x = randomise(build()).double(), images(*shape)
    with torch.no_grad():
        teacher[0].weight *= 5  # so that both ends of a hardtanh or ReLU6 are reached
    student = deepen(teacher, x, {"1": kernels})
    certify(teacher, student, x)
    added = list(student[1])[1:]
    assert len(added) == len(kernels)
    for new in added:
        linear, activation = new
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in new.modules())
        assert linear.bias.count_nonzero() == 0
        assert linear.weight.count_nonzero() == len(linear.weight)
        assert all(p.requires_grad for p in new.parameters())
        values = torch.linspace(-9, 9, 99)
        assert torch.equal(activation(values), teacher[1](values))


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Linear(6, 5), lambda: nn.Sequential(nn.Conv1d(1, 5, 2), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten())],
)
def test_preserves_batch_norm_on_one_dimension_or_none(build, randomise):
    first = build()
    sites = {"0.2": [3]} if isinstance(first, nn.Sequential) else {"2": [1]}
    norm = nn.BatchNorm1d(25 if isinstance(first, nn.Sequential) else 5)
    teacher, x = randomise(nn.Sequential(first, norm, nn.ReLU(), nn.Linear(norm.num_features, 2))).double(), images(6)
    if isinstance(first, nn.Sequential):
        x = x[:, None]
    certify(teacher, deepen(teacher, x, sites, [x]), x)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 1), (1, 3)])
def test_the_kernel_is_one_at_the_centre_from_each_channel_to_itself(kernel, randomise):
    student = deepen(randomise(normalised()).double(), images(3, 5, 6), {"0": [kernel]}, [images(3, 5, 6)])
    weight = student[0][1].conv.weight
    assert weight.shape == (5, 5, *kernel)
    for out in range(5):
        for inp in range(5):
            taps = torch.zeros(kernel)
            taps[kernel[0] // 2, kernel[1] // 2] = float(out == inp)
            assert torch.equal(weight[out, inp], taps.double())


def test_batch_norm_undoes_the_statistics_of_its_own_input(randomise):
    """weight = sqrt(var + eps), not var; bias and running_mean = mean; every inserted layer has them (sec 2.4)."""
    teacher, x = randomise(nn.Sequential(layer(3, 5, eps=0.3, momentum=0.02), conv(5, 2))).double(), images(3, 5, 6)
    student = deepen(teacher, x, {"0": PAIR * 2}, [x])
    activations = copy.deepcopy(teacher[0]).train()(x)
    var, mean = torch.var_mean(activations, dim=(0, 2, 3), correction=0)
    for new in list(student[0])[1:]:
        assert (new.bn.eps, new.bn.momentum, new.bn.num_batches_tracked) == (0.3, 0.02, 0)
        assert new.conv.bias is None
        for tensor, wanted in (
            (new.bn.running_mean, mean),
            (new.bn.bias, mean),
            (new.bn.running_var, var),
            (new.bn.weight, (var + 0.3).sqrt()),
        ):
            torch.testing.assert_close(tensor, wanted, rtol=1e-12, atol=1e-12)
    certify(teacher, student, x)


def test_batch_norm_takes_its_settings_from_the_site(randomise):
    module = nn.Sequential(conv(3, 5), nn.BatchNorm2d(5, 1e-2, momentum=None), nn.ReLU(), conv(5, 2))
    student = deepen(randomise(module).double(), images(3, 5, 6), {"2": [3]}, [images(3, 5, 6)])
    assert (student[2][1].bn.eps, student[2][1].bn.momentum) == (1e-2, None)  # a cumulative average stays one

    def functional(m, x):
        return F.relu(F.batch_norm(m.a(x), m.mean, m.var, None, None, m.training, 0.7, 0.05))

    outer = nn.Sequential(Net(functional, a=conv(3, 5)), conv(5, 2))
    outer[0].register_buffer("mean", torch.zeros(5))
    outer[0].register_buffer("var", torch.ones(5))
    student = deepen(outer.double(), images(3, 5, 6), {"0": [3]}, [images(3, 5, 6)])
    assert (student[0][1].bn.eps, student[0][1].bn.momentum) == (0.05, 0.7)


def test_dead_channels_stay_dead_and_harmless(randomise):
    teacher, x = randomise(normalised()).double(), images(3, 5, 6)
    with torch.no_grad():
        teacher[0][1].weight[2] = 0
        teacher[0][1].bias[2] = -1
    student = deepen(teacher, x, {"0": PAIR}, [x])
    assert student[0][1].bn.running_var[2] == 0
    certify(teacher, student, x)


def test_calibration_batches_are_pooled(randomise):
    """The statistics are those of all examples together, also when batches differ in size and mean."""
    teacher = randomise(nn.Sequential(layer(3, 5), conv(5, 2))).double()
    batches = [images(3, 5, 6, batch=n, seed=n) * n + n for n in (2, 7, 3)]
    new = deepen(teacher, batches[0], {"0": [3]}, iter(batches))[0][1]
    teacher.train()
    # Each batch is normalised by its own statistics, as in training.
    var, mean = torch.var_mean(torch.cat([copy.deepcopy(teacher[0])(x) for x in batches]), (0, 2, 3), correction=0)
    torch.testing.assert_close(new.bn.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new.bn.running_var, var, rtol=1e-12, atol=1e-12)


def test_statistics_are_those_of_training_mode_without_dropout(randomise):
    def build(p):
        return nn.Sequential(conv(3, 5), nn.BatchNorm2d(5), nn.Dropout(p), layer(5, 4), conv(4, 2))

    def functional(m, x):
        return m.end(m.site(F.dropout(m.start(x), 0.9, m.training)))

    x = images(3, 5, 6)
    teacher, plain = (randomise(build(p)).double() for p in (0.9, 0.0))
    assert same(weights(deepen(teacher, x, {"3": [3]}, [x])), weights(deepen(plain, x, {"3": [3]}, [x])))
    teacher = randomise(Net(functional, start=conv(3, 5), site=layer(5, 4), end=conv(4, 2))).double()
    state = torch.get_rng_state()
    certify(teacher, deepen(teacher, x, {"site": [3]}, [x]), x)
    assert torch.equal(torch.get_rng_state(), state)


# Where the layers go


def test_globs_name_sites(randomise):
    parts = OrderedDict(a=layer(3, 4), b=nn.Sequential(layer(4, 4), layer(4, 4)), c=conv(4, 2))
    teacher, x = randomise(nn.Sequential(parts)).double(), images(3, 4, 5)

    def sites(pattern):
        return list(history(deepen(teacher, x, {pattern: [3]}, [x]))[-1]["sites"])

    assert sites("a") == ["a"]
    assert sites("*.2") == ["a.2"]
    assert sorted(sites("**.2")) == ["a.2", "b.0.2", "b.1.2"]
    assert sorted(sites("[!a].?")) == ["b.0", "b.1"]
    student = deepen(teacher, x, {"b.*": [3], "a": [1], "**.2": [(1, 3)]}, [x])
    certify(teacher, student, x)  # a site inside a site
    assert sum(isinstance(m, nn.Conv2d) for m in student.modules()) == 4 + 3 + 1 + 2


def test_a_module_that_ends_in_a_functional_activation_is_a_site(randomise):
    def block(m, x):
        return F.relu(m.bn(m.conv(x)), inplace=True)

    teacher = nn.Sequential(Net(block, conv=conv(3, 4), bn=nn.BatchNorm2d(4)), conv(4, 2))
    student = deepen(randomise(teacher).double(), images(3, 4, 5), {"0": PAIR}, [images(3, 4, 5)])
    certify(teacher, student, images(3, 4, 5))
    assert [list(dict(new.named_children())) for new in list(student[0])[1:]] == [["conv", "bn", "relu"]] * 2


def test_resnet_blocks_end_in_an_addition_and_get_no_batch_norm(randomise):
    teacher, x = randomise(nets.resnet18()).double(), images(3, 32, 40, batch=2)
    student = deepen(teacher, x, {"layer1.*": [3, (1, 3)], "relu": [3]}, [x])
    certify(teacher, student, x)
    assert [list(dict(student.layer1[0][i].named_children())) for i in (1, 2)] == [["conv", "relu"]] * 2
    assert list(dict(student.relu[1].named_children())) == ["conv", "bn", "relu"]


@pytest.mark.parametrize("width", [1, 0.3**0.5])
def test_a_deepened_inception_has_the_parameters_of_one_built_deep(width, randomise):
    teacher = randomise(inception_bn("inception_bn_28", width=width, num_classes=7)).double()
    deep, x = inception_bn("inception_bn_28", width=width, extra_pairs=2, num_classes=7).double(), images(1, 28, 28)
    student = deepen(teacher, x, {"inception.*.middle.2": PAIR * 2, "inception.*.long.3": PAIR * 2}, [x])
    ours, theirs = ({name: (t.shape, t.dtype) for name, t in m.state_dict().items()} for m in (student, deep))
    assert list(ours.items()) == list(theirs.items())
    certify(teacher, student, x)
    settings = [
        [(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)] for net in (student, deep)
    ]
    assert settings[0] == settings[1]
    deep.load_state_dict(student.state_dict())
    assert torch.equal(deep.eval()(x), student.eval()(x))


@pytest.mark.parametrize(
    "steps", [("deepen", "widen"), ("widen", "deepen"), ("deepen", "deepen"), ("widen", "deepen", "widen", "deepen")]
)
def test_operators_compose(steps, randomise):
    teacher, x = randomise(inception_bn("inception_bn_28", width=0.3, num_classes=7)).double(), images(1, 28, 28)
    student, site = teacher, "inception.4?.long.3"
    for i, step in enumerate(steps):
        if step == "deepen":
            # The second time the site is the Sequential that the first time left there.
            student = deepen(student, x, {site: PAIR}, [x])
        else:
            student = widen(student, x, 1.6, modules="inception", seed=i)
    certify(teacher, student, x)
    assert [entry["op"] for entry in history(student)] == list(steps)
    assert json.loads(json.dumps(history(student))) == history(student)


def test_a_module_with_several_names_is_deepened_under_all_of_them(randomise):
    site = layer(3, 4)
    teacher = Net(lambda m, x: m.end(m.again(x)), site=site, again=site, end=conv(4, 2))
    student = deepen(randomise(teacher).double(), images(3, 4, 5), {"site": [3]}, [images(3, 4, 5)])
    assert student.again is student.site
    assert len(student.site) == 2
    certify(teacher, student, images(3, 4, 5))


# The student as a module


def test_the_teacher_stays_as_it_was_and_shares_nothing(randomise):
    teacher, x = randomise(normalised()).double().train(), images(3, 5, 6)
    teacher[2].eval()
    before, modes, config = weights(teacher), [m.training for m in teacher.modules()], repr(teacher)
    student = deepen(teacher, x, {"0": PAIR, "2": [3]}, [x, x])
    assert same(weights(teacher), before)
    assert [m.training for m in teacher.modules()] == modes
    assert repr(teacher) == config
    assert history(teacher) == []
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())
    pointers = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in student.state_dict().values())


def test_the_student_is_a_model_like_its_teacher(randomise):
    teacher, x = randomise(normalised()).double().train(), images(3, 5, 6)
    teacher[0][1].eval()  # a frozen batch norm stays frozen
    teacher[2].eval()
    teacher[0][0].weight.requires_grad_(False)
    student = deepen(teacher, x, {"0": PAIR, "2": [3]}, [x])
    assert type(student) is type(teacher)
    assert [m.training for m in student[0][0].modules()] == [True, True, False, True]
    assert all(m.training for new in list(student[0])[1:] for m in new.modules())
    assert not any(m.training for m in student[2].modules())
    assert not student[0][0][0].weight.requires_grad
    for name, tensor in student.state_dict().items():
        old = name.replace("0.0.", "0.", 1) if name.startswith("0.0.") else name.replace("2.0.", "2.", 1)
        if old in teacher.state_dict() and name[:3] in ("0.0", "2.0", "5.w", "5.b"):
            assert torch.equal(tensor, teacher.state_dict()[old])
    student.eval()
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(twin(x), student(x))


def test_an_optimizer_step_trains_the_new_layers(randomise):
    teacher, x = randomise(normalised()).double(), images(3, 5, 6)
    student = deepen(teacher, x, {"0": PAIR}, [x]).train()
    before = weights(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student(x).square().sum().backward()
    optimizer.step()
    changed = [name for name, p in student.named_parameters() if not torch.equal(p, before[name])]
    assert {"0.1.conv.weight", "0.1.bn.weight", "0.1.bn.bias", "0.2.conv.weight"} <= set(changed)


# Refusals


def ends_in(activation):
    return nn.Sequential(conv(3, 4), activation, conv(4, 2))


def twice(m, x):
    return m.end(m.site(m.site(x)))


class Reached(nn.Module):
    """Holds its layers in a plain list, too, which no surgery on modules can know."""

    def __init__(self):
        super().__init__()
        self.site, self.end = layer(3, 4), conv(4, 2)
        self.layers = [self.site, self.end]

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


CALIBRATION = [images(3, 4, 5)]


@pytest.mark.parametrize(
    ("model", "sites", "calibration", "message"),
    [
        (ends_in(nn.Sigmoid()), {"1": [3]}, None, "'1': its output comes from 'sigmoid', and applying that twice"),
        (ends_in(nn.GELU()), {"1": [3]}, None, "'gelu', and applying that twice is not"),
        (ends_in(nn.LeakyReLU()), {"1": [3]}, None, "'leaky_relu', and applying that twice"),
        (ends_in(nn.PReLU()), {"1": [3]}, None, "'prelu', and applying that twice"),
        (ends_in(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), {"1": [3]}, None, "'max_pool2d', not from an activation"),
        (ends_in(nn.ReLU()), {"0": [3]}, None, "not from an activation; a site must end in relu, relu6, hardtanh"),
        (ends_in(nn.ReLU()), {"1": [2]}, None, "with kernel 2: expected an odd size or 2 of them"),
        (ends_in(nn.ReLU()), {"1": [(3, 2)]}, None, r"with kernel \(3, 2\): expected an odd size"),
        (ends_in(nn.ReLU()), {"1": [(3, 1, 1)]}, None, r"with kernel \(3, 1, 1\): expected an odd size or 2 of them"),
        (ends_in(nn.ReLU()), {"1": [-3]}, None, "with kernel -3"),
        (ends_in(nn.ReLU()), {"1": [True]}, None, "with kernel True"),
        (ends_in(nn.ReLU()), {"1": 3}, None, "'1' asks for 3: expected a list of kernels"),
        (ends_in(nn.ReLU()), {"1": []}, None, r"'1' asks for \[\]: expected a list of kernels"),
        (ends_in(nn.ReLU()), {}, None, "sites= is empty"),
        (ends_in(nn.ReLU()), {"relu*": [3]}, None, r"no module matches the site 'relu\*'; the top level is 0, 1, 2"),
        (ends_in(nn.ReLU()), {"1": [3], "*": [3]}, None, r"two site patterns match '1': '\*' and one before it"),
        (ends_in(layer(4, 4)), {"1": [3]}, None, "'1' has batch normalisation: pass calibration="),
        (ends_in(layer(4, 4)), {"1": [3]}, [], "no batches: pass at least one"),
        (ends_in(layer(4, 4)), {"1": [3]}, CALIBRATION[0], r"one Tensor: pass batches, e.g. \[batch\]"),
        (Net(twice, site=layer(3, 3), end=conv(3, 2)), {"site": [3]}, CALIBRATION, "is called 2 times a pass"),
        (Net(lambda m, x: m.end(x), site=nn.ReLU(), end=conv(3, 2)), {"site": [3]}, None, "pass never calls it"),
        (
            Net(lambda m, x: m.end(x if m.training else m.site(x)), site=layer(3, 3), end=conv(3, 2)),
            {"site": [3]},
            CALIBRATION,
            "cannot measure the statistics of 'site': it is not called in training mode",
        ),
        (
            Net(lambda m, x: m.end(m.site(x)[0]), site=Net(lambda m, x: (x.relu(), x)), end=conv(3, 2)),
            {"site": [3]},
            None,
            "its output is not one tensor that an activation made",
        ),
        (
            Net(lambda m, x: m.site(m.lin(x.permute(0, 2, 3, 1))), lin=nn.Linear(3, 4), site=nn.ReLU()),
            {"site": [3]},
            None,
            r"output has shape \(4, 4, 5, 4\), channels along dimension 3; expected \[N, C\]",
        ),
        (Reached(), {"site": [3]}, CALIBRATION, "'site': the forward pass does not reach the new layers"),
        (
            Net(lambda m, x: m.end(m.site(x)) * m.site[0].weight.sum(), site=layer(3, 4), end=conv(4, 2)),
            {"site": [3]},
            CALIBRATION,
            "the deeper model does not run, as if code outside a site uses it otherwise than by calling it.*'weight'",
        ),
    ],
)  # fmt: skip
def test_refuses_a_site_with_its_reason_and_leaves_the_model_as_it_was(model, sites, calibration, message, randomise):
    randomise(model).double().train()
    before = weights(model)
    with pytest.raises(GrowthError, match=message):
        deepen(model, CALIBRATION[0], sites, calibration)
    assert same(weights(model), before)
    assert model.training
    assert history(model) == []


def test_refuses_channels_without_a_batch_dimension():
    with pytest.raises(GrowthError, match="channels along dimension 0"):
        deepen(ends_in(nn.ReLU()), torch.zeros(3, 4, 5), {"1": [3]})
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(GrowthError, match=r"with kernel 3: expected 1"):
        deepen(model, torch.zeros(2, 3), {"1": [3]})
    with pytest.raises(GrowthError, match=r"shape \(2, 5, 4\), channels along dimension 2"):
        deepen(model, torch.zeros(2, 5, 3), {"1": [1]})


def labelled(x):
    return DataLoader(TensorDataset(x, torch.arange(len(x))), 2)


class Pair(nn.Module):
    """Takes two arguments, as those of a pair of images."""

    def __init__(self):
        super().__init__()
        self.first, self.last = layer(3, 4), conv(4, 2)

    def forward(self, x, y=None, scale=1.0):
        return self.last(self.first(x if y is None else x + y)) * scale


def test_batches_of_a_data_loader_have_labels_behind(randomise):
    teacher, x = randomise(normalised()).double(), images(3, 5, 6, batch=6)
    student = deepen(teacher, x[:2], {"0": [3]}, labelled(x))
    again = deepen(teacher, x[:2], {"0": [3]}, [x[:2], x[2:4], x[4:]])
    assert same(weights(student), weights(again))
    teacher = randomise(Pair()).double()
    pairs = DataLoader(TensorDataset(x, x.flip(0), torch.arange(6)), 3)
    student = deepen(teacher, (x, x), {"first": [3]}, pairs)  # two arguments, and labels behind
    again = deepen(teacher, (x, x), {"first": [3]}, [(x[:3], x.flip(0)[:3]), (x[3:], x.flip(0)[3:])])
    assert same(weights(student), weights(again))
    named = [{"x": x, "y": x, "labels": torch.arange(6)}]
    student = deepen(teacher, {"x": x, "y": x}, {"first": [3]}, named)
    assert same(weights(student), weights(deepen(teacher, (x, x), {"first": [3]}, [[x, x]])))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"image": images(3, 5, 6)}], "batch 0 of calibration= is not as the example inputs, 1 argument"),
        ([images(3, 5, 6), "text"], "batch 1 of calibration= is not as the example inputs"),
        ([images(2, 5, 6)], "does not run on batch 0 of calibration=: RuntimeError"),
        ([images(3, 5, 6).float()], "does not run on batch 0 of calibration=: RuntimeError"),
        (5, "calibration= is one int: pass batches"),
        ("images.npy", "calibration= is one str: pass batches"),
    ],
    ids=str,
)
def test_batches_that_are_none(batches, message):
    with pytest.raises(GrowthError, match=message):
        deepen(normalised().double(), images(3, 5, 6), {"0": [3]}, batches)


@pytest.mark.parametrize(
    ("inputs", "batch", "message"),
    [
        ({"x": images(3, 4, 4)}, {"y": images(3, 4, 4)}, "has no 'x', which the example inputs have; it has y"),
        ({"x": images(3, 4, 4)}, images(3, 4, 4), "has no 'x', which the example inputs have; it has a Tensor"),
        ((images(3, 4, 4),) * 2, images(3, 4, 4), "the example inputs, 2 arguments of the model: it is 1 of them"),
    ],
)
def test_batches_that_are_not_as_the_example_inputs(inputs, batch, message):
    with pytest.raises(GrowthError, match=message):
        deepen(Pair().double(), inputs, {"first": [3]}, [batch])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: widen(m, x, "1.5"), "factor= is '1.5': expected a number"),
        (lambda m, x: widen(m, x, [2]), r"factor= is \[2\]: expected a number"),
        (lambda m, x: widen(m, x, 2, modules=3), "modules= is 3: expected a pattern"),
        (lambda m, x: widen(m, x, widths=["0"]), r"widths= is \['0'\]: expected a dict of layers"),
        (lambda m, x: widen(m, x, 2, noise="0.1"), "noise is a fraction of .* got '0.1'"),
        (lambda m, x: widen(m, x, 2, seed=0.5), "seed= is 0.5: expected a whole number"),
        (lambda m, x: widen("resnet18", x, 2), "expected a torch.nn.Module, got a str"),
        (lambda m, x: deepen(m, x, ["0"], [x]), r"sites= is \['0'\]: expected a dict of module names"),
        (lambda m, x: deepen(m, x, {0: [3]}, [x]), "sites= is .*: expected a dict of module names"),
        (lambda m, x: deepen(m, x, {"0": [3]}, [x], init="he"), "init= is a str: expected a function"),
        (lambda m, x: deepen(m, x, {"0": [3]}, [x], seed=None), "seed= is None: expected a whole number"),
        (lambda m, x: deepen(None, x, {"0": [3]}, [x]), "expected a torch.nn.Module, got a NoneType"),
        (lambda m, x: random_pad(m, x, 2, init=3), "init= is a int: expected a function"),
    ],
)
def test_arguments_of_the_wrong_type(call, message):
    with pytest.raises(GrowthError, match=message):
        call(normalised().double(), images(3, 5, 6))


class Attending(nn.Module):
    """A transformer's layer, called with a mask and a keyword besides, and a parameter that nothing initialises."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.inner, self.out = nn.LayerNorm(dim), nn.Linear(dim, 12), nn.Linear(12, dim)
        self.shift = nn.Parameter(torch.randn(12))

    def forward(self, x, mask, scale=1.0):
        return x + self.out(torch.tanh(self.inner(self.norm(x)) * scale + self.shift) * mask)


class Attended(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.stem, self.layers = nn.Linear(3, dim), nn.ModuleList([Attending(dim), Attending(dim)])

    def forward(self, x):
        mask, x = (x[..., :1] > 0).to(x.dtype), self.stem(x)
        for k, layer in enumerate(self.layers):
            x = layer(x, mask, scale=k + 1.0)
        return x

    def _init_weights(self, module):
        if isinstance(module, Attending):
            nn.init.normal_(module.shift, std=0.02)


def test_a_block_that_is_called_with_more_than_one_argument(randomise):
    teacher, x = randomise(Attended()).double(), images(5, 3)
    with pytest.raises(GrowthError, match=r"nothing initialises 'shift' .*pass init=, .*transformers"):
        deepen(teacher, x, {"layers.1": ["block"]})
    student = deepen(teacher, x, {"layers.*": ["block", "block"]}, init=teacher._init_weights)
    certify(teacher, student, x)
    block = student.layers[1][2]
    assert 0 < block.shift.abs().max() < 0.2
    student(x).sum().backward()
    # Its layers see the mask and the keyword: the zeros at their ends get gradients from them.
    assert block.out.weight.grad.abs().max() > 0
    again = deepen(
        deepen(teacher, x, {"layers.0": ["block"]}, init=teacher._init_weights),
        x,
        {"layers.1": ["block"]},
        init=teacher._init_weights,
    )
    certify(teacher, again, x)
    rebuilt = replay(json.dumps(history(student)), teacher)
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(x), student(x))
    # With the last layers of the new blocks trained, mask and scale count.
    with torch.no_grad():
        block.out.weight.normal_()
    h = student.stem(x)
    mask = torch.ones(5, 1).double()
    assert not torch.equal(student.layers[1](h, mask, scale=2.0), student.layers[1](h, mask, scale=3.0))
    assert not torch.equal(student.layers[1](h, mask), student.layers[1](h, mask * 0))


def test_a_layer_after_a_module_that_is_called_with_more_than_one_argument(randomise):
    net = Net(lambda m, x: m.b(m.act(m.a(x), x.mean())), act=Net(lambda m, x, by: F.relu(x * by)),
              a=conv(3, 4), b=conv(4, 2))  # fmt: skip
    teacher, x = randomise(net).double(), images(3, 4, 4)
    certify(teacher, deepen(teacher, x, {"act": [3, (1, 3)]}), x)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    net = Net(lambda m, x: m.layer(x, src_key_padding_mask=torch.zeros(x.shape[:2], dtype=torch.bool)), layer=encoder)
    teacher, x = randomise(net).double(), images(5, 8)
    certify(teacher, deepen(teacher, x, {"layer": ["block"]}), x)


def test_calibration_leaves_its_batches_and_the_random_streams_alone(randomise):
    """A forward pass that works in place on what it is given, and draws numbers."""
    model = randomise(Net(lambda m, x: m.fc(m.act(m.norm(m.c(x.mul_(2)))).mean((2, 3))) + 0 * torch.rand(1),
                          c=conv(3, 4), norm=nn.BatchNorm2d(4), act=nn.ReLU(), fc=nn.Linear(4, 2)))  # fmt: skip
    x = torch.randn(4, 3, 5, 5)
    batch, before = x.clone(), torch.get_rng_state()
    deepen(model, x, {"act": [(3, 3)]}, calibration=[batch])
    assert torch.equal(batch, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_new_batch_norms_are_synchronised_where_the_teachers_are():
    parts = conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)
    plain = nn.Sequential(*copy.deepcopy(parts))
    teacher = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*parts)).double()
    x = images(3, 6, 6)
    student = deepen(teacher, x, {"2": [3]}, [x])
    assert type(student[2][1].bn) is nn.SyncBatchNorm
    assert verify(teacher, student, x).relative < 1e-12
    assert type(replay(history(student), plain)[2][1].bn) is nn.BatchNorm2d
