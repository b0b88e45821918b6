"""Net2WiderNet and random pad: what becomes of every weight, on networks of many shapes with unkind parameters."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import nets
import pytest
import torch
import torchvision
from catalogue import (
    between,
    dense,
    encoder_decoder,
    gated,
    linear_follows_flattened_convolution,
    one_module_twice,
    plain_convolutions,
    residual,
    sums_of_concatenations,
    two_inputs_two_outputs,
)
from compare import certify, same, weights
from nets import conv
from torch import nn

from net2net import GrowthError, UnsupportedOperation, history, random_pad, verify, widen
from net2net.growth import AxisMap, balance
from net2net.inception_bn import inception_bn, init_weights
from net2net.tensors import normal

pytestmark = pytest.mark.quick
images = partial(nets.images, dtype=torch.float32)


@pytest.mark.parametrize("name", ["inception_bn_28", "inception_bn_2015"])
@pytest.mark.parametrize("factor", [2**0.5, 3.7])
def test_preserves_the_papers_networks(name, factor, randomise):
    width = 0.1 if name == "inception_bn_2015" else 0.5
    teacher, x = (
        randomise(inception_bn(name, width=width, num_classes=7)).double(),
        images(3 if width == 0.1 else 1, 28, 28),
    )
    certify(teacher, widen(teacher, x.double(), factor), x, single=True)


def test_preserves_resnet18(randomise):
    teacher, x = randomise(nets.resnet18()).double(), images(3, 32, 40).double()
    certify(teacher, widen(teacher, x, 1.5), x)


def test_preserves_googlenet_and_its_auxiliary_classifiers(randomise):
    """The heads run in training mode only; their parameters have to grow along."""
    teacher = randomise(torchvision.models.googlenet(num_classes=7, aux_logits=True, init_weights=False)).double()
    x = images(3, 64, 64).double()
    student = widen(teacher, x, 1.2, modules="inception4a")
    assert student.aux1.conv.conv.in_channels > teacher.aux1.conv.conv.in_channels
    certify(teacher, student, x)


def test_preserves_every_output_of_several_inputs(randomise):
    teacher = randomise(two_inputs_two_outputs()).double()
    inputs = (images(3, 4, 3).double(), images(2, 4, 3, seed=2).double())
    student = widen(teacher, inputs, 2.5)
    certify(teacher, student, inputs)
    certify(teacher, widen(teacher, dict(zip("xy", inputs, strict=True)), 2.5), inputs)
    assert student.d.out_channels == 1  # an output of one channel, too, keeps its width


def test_preserves_without_a_batch_dimension(randomise):
    teacher = randomise(nn.Sequential(conv(3, 5), nn.ReLU(), nn.MaxPool2d(2), conv(5, 2))).double()
    x = images(4, 6).double()
    assert teacher(x).shape == (2, 2, 3)
    certify(teacher, widen(teacher, x, 2.2), x)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_example_may_have_another_batch_size_than_later_inputs(batch, randomise):
    """Also 1, and also as many examples as channels."""
    teacher = randomise(
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 2))
    )
    student = widen(teacher.double(), images(3, 3, 4, batch=batch).double(), 2.5)
    certify(teacher, student, images(3, 3, 4, batch=5))


# What becomes of each weight


def test_the_papers_figure_2():
    """x1, x2 -> h1, h2 -> y with weights a, b, c, d and e, f. Unit 2 is copied; f becomes f/2 at both of its copies."""
    a, b, c, d, e, f = 2.0, 3.0, 5.0, 7.0, 11.0, 13.0
    teacher = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        teacher[0].weight.copy_(torch.tensor([[a, b], [c, d]]))
        teacher[0].bias.copy_(torch.tensor([-1.0, 4.0]))
        teacher[2].weight.copy_(torch.tensor([[e, f]]))
    copied = set()
    for seed in range(8):
        student = widen(teacher, torch.zeros(1, 2), widths={"0": 3}, seed=seed, noise=0)
        ((unit,),) = [space["copies_of"] for space in history(student)[-1]["spaces"]]
        copied.add(unit)
        incoming, bias = (([a, b], -1.0), ([c, d], 4.0))[unit]
        assert student[0].weight.tolist() == [[a, b], [c, d], incoming]
        assert student[0].bias.tolist() == [-1.0, 4.0, bias]
        assert student[2].weight.tolist() == [[[e / 2, f, e / 2], [e, f / 2, f / 2]][unit]]
        assert torch.equal(student[2].bias, teacher[2].bias)
    assert copied == {0, 1}


def test_every_weight_follows_the_maps(randomise):
    """U[k, j] = W[g(k), h(j)] / |{x : h(x) = h(j)}|, and batch norm the map of the layer that feeds it (sec 2.3)."""
    teacher = randomise(
        nn.Sequential(conv(3, 4, (3, 1)), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), nn.Flatten(), nn.Linear(18, 2))
    )
    student = widen(teacher, images(3, 2, 3), widths={"0": 11, "3": 5}, seed=3, noise=0)
    first, second = history(student)[-1]["spaces"]
    assert (first["made_by"], first["from"], first["to"]) == (["0.weight"], 4, 11)
    assert (second["made_by"], second["from"], second["to"]) == (["3.weight"], 3, 5)
    g, h = [*range(4), *first["copies_of"]], [*range(3), *second["copies_of"]]
    assert max(g.count(unit) for unit in g) > 2
    assert torch.equal(student[0].weight, teacher[0].weight[g])
    assert torch.equal(student[0].bias, teacher[0].bias[g])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(student[1], name), getattr(teacher[1], name)[g])
    shares = torch.tensor([float(g.count(unit)) for unit in g])
    assert torch.equal(student[3].weight, teacher[3].weight[h][:, g] / shares.view(-1, 1, 1))
    pixels = [6 * unit + pixel for unit in h for pixel in range(6)]
    shares = torch.tensor([float(h.count(unit)) for unit in h for _ in range(6)])
    assert torch.equal(student[5].weight, teacher[5].weight[:, pixels] / shares)


def test_concatenation_shifts_each_map_by_the_old_widths_before_it(randomise):
    teacher = randomise(dense())
    student = widen(teacher, images(3, 4, 3), widths={"a": 6, "b": 6, "c": 3}, noise=0)
    maps = {space["made_by"][0]: space["copies_of"] for space in history(student)[-1]["spaces"]}
    a, b, c = ([*range(n), *maps[f"{name}.weight"]] for name, n in (("a", 4), ("b", 5), ("c", 2)))
    order = [*c, *(2 + i for i in range(3)), *(5 + i for i in a), *(9 + i for i in b)]
    shares = torch.tensor([float(order.count(i)) for i in order])
    assert torch.equal(student.fc.weight, teacher.fc.weight[:, order] / shares)
    assert torch.equal(student.bn.running_var, teacher.bn.running_var[[*a, *(4 + i for i in b)]])


def test_maps_are_drawn_uniformly_with_replacement():
    teacher = nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 1))
    (space,) = history(widen(teacher, torch.zeros(1, 2), widths={"0": 10010}))[-1]["spaces"]
    counts = torch.bincount(torch.tensor(space["copies_of"]), minlength=10)
    assert counts.sum() == 10000
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_one_layers_draw_does_not_depend_on_what_else_grows():
    teacher, x = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]), torch.zeros(1, 8)

    def draws(**options):
        return {s["made_by"][0]: s["copies_of"] for s in history(widen(teacher, x, **options))[-1]["spaces"]}

    together, alone = draws(factor=2), draws(widths={"1": 16})
    assert alone["1.weight"] == together["1.weight"]
    assert together["0.weight"] != together["1.weight"] != together["2.weight"]
    assert draws(factor=2, seed=1) == draws(factor=2, seed=1) != together


def test_the_draws_take_nothing_from_the_global_generator(randomise):
    teacher, x = randomise(plain_convolutions()), images(3, 11, 8)
    state = torch.get_rng_state()
    for grow in (widen, random_pad):
        first = grow(teacher, x, 2, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert same(weights(first), weights(grow(teacher, x, 2, seed=5)))
        assert not same(weights(first), weights(grow(teacher, x, 2, seed=6)))
        torch.set_rng_state(state)


# Noise


def noisy():
    return nn.Sequential(conv(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, 5), nn.ReLU(), conv(6, 2, 1))


def test_noise_is_on_the_copies_only(randomise):
    teacher, x = randomise(noisy()), images(3, 4, 3)
    exact, student = (widen(teacher, x, 3, noise=noise, exact=False, seed=2) for noise in (0.0, 0.1))
    for name, tensor in student.state_dict().items():
        clean = exact.state_dict()[name]
        if name not in ("0.weight", "3.weight"):
            assert torch.equal(tensor, clean), name
            continue
        n = teacher.state_dict()[name].shape[0]
        assert torch.equal(tensor[:n], clean[:n])
        assert (tensor[n:] != clean[n:]).all()


def test_noise_is_elementwise_and_relative_to_each_filters_deviation(randomise):
    teacher = randomise(nn.Sequential(conv(20, 8, 7), conv(8, 2)))
    with torch.no_grad():
        teacher[0].weight *= torch.logspace(-3, 3, 8).view(-1, 1, 1, 1)
        teacher[0].weight += 5 * teacher[0].weight.std(dim=(1, 2, 3), keepdim=True)  # a mean that has to play no part
    exact, student = (widen(teacher, images(20, 4, 3), 4, noise=noise, exact=False) for noise in (0.0, 0.05))
    copies, filters = student[0].weight[8:], exact[0].weight[8:]
    noise = (copies - filters) / filters.std(dim=(1, 2, 3), keepdim=True)
    each = noise.flatten(1).std(dim=1)
    assert torch.allclose(each, torch.full_like(each, 0.05), rtol=0.1)
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise.mean().abs() < 0.002
    assert noise.flatten(1).unique(dim=0).shape == noise.flatten(1).shape  # two copies of one filter differ


def test_noise_breaks_the_symmetry_of_filters_with_one_weight():
    teacher = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    student = widen(teacher, torch.zeros(2, 1), 4, noise=0.1, exact=False)
    assert student[0].weight.unique().numel() == 12


def test_copies_differ_where_the_layer_that_reads_them_begins_with_zeros():
    teacher = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    nn.init.zeros_(teacher[2].weight)
    x = torch.randn(8, 4).double()
    student = widen(teacher, x, 2)
    assert torch.allclose(student(x), teacher(x), atol=1e-14)
    spread = student[2].weight.std().item()
    assert 0.2 < spread / (0.05 * 6**-0.5) < 2  # of a layer of that many inputs
    (student(x) ** 2).sum().backward()
    made, slopes = student[0].weight.detach(), student[0].weight.grad
    copies = [(a, b) for a in range(12) for b in range(a) if torch.equal(made[a], made[b])]
    assert copies
    assert all(not torch.equal(slopes[a], slopes[b]) for a, b in copies)


def test_growing_in_several_threads_at_once():
    teacher, x = torchvision.models.resnet18(num_classes=5).double(), torch.randn(2, 3, 32, 32).double()
    alone = [widen(teacher, x, 1.5, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda seed: widen(teacher, x, 1.5, seed=seed), range(3)))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert not hasattr(nn.Module, "training")


def test_noise_is_reproducible_and_changes_the_function_little(randomise):
    teacher, x = randomise(noisy()), images(3, 6, 5)
    student = widen(teacher, x, 2, noise=0.02, exact=False, seed=4)
    assert same(weights(student), weights(widen(teacher, x, 2, noise=0.02, exact=False, seed=4)))
    assert 1e-4 < verify(teacher, student, x).relative < 0.1


# Which layers grow


def test_modules_restricts_growth_as_in_the_paper(randomise):
    """Only the convolutions inside the Inception modules grow (sec 3.2): stem and class scores keep their widths."""
    teacher, x = (
        randomise(inception_bn("inception_bn_28", width=0.5, num_classes=7)).double(),
        images(1, 28, 28).double(),
    )
    student = widen(teacher, x, 2, modules="inception.*")
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d):
            before = teacher.get_submodule(name).out_channels
            assert module.out_channels == (before if name.startswith("stem.") else 2 * before)
    assert student.classifier.out_features == 7
    certify(teacher, student, x)
    some = widen(teacher, x, 2, modules=["inception.3a.long", "inception.4?.*.1.conv"])
    grown = {space["made_by"][0] for space in history(some)[-1]["spaces"]}
    fours = ("4a", "4b", "4c", "4d", "4e")
    assert grown == {
        *(f"inception.3a.long.{i}.conv.weight" for i in range(4)),
        *(f"inception.{four}.{path}.1.conv.weight" for four in fours for path in ("short", "middle", "long")),
    }


def test_a_layer_that_shares_its_channels_grows_along(randomise):
    teacher, x = randomise(residual()).double(), images(3, 5, 4).double()
    student = widen(teacher, x, 2, modules="b")
    assert [student.get_submodule(n).out_channels for n in "abcd"] == [12, 12, 12, 4]
    certify(teacher, student, x)


def test_widths_names_layers(randomise):
    teacher, x = randomise(residual()).double(), images(3, 5, 4).double()
    student = widen(teacher, x, widths={"b": 7, "d": 9})
    assert [student.get_submodule(n).out_channels for n in "abcd"] == [7, 7, 7, 9]
    certify(teacher, student, x)
    assert same(weights(widen(teacher, x, widths={"d": 4})), weights(teacher))  # nothing asked, nothing done


def test_factor_rounds_to_whole_channels():
    teacher = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 10), nn.Linear(10, 1))
    student = widen(teacher, torch.zeros(1, 2), 1.26)
    assert [layer.out_features for layer in student] == [4, 13, 1]
    assert same(weights(widen(teacher, torch.zeros(1, 2), 1)), weights(teacher))


# The student as a module


@pytest.mark.parametrize("grow", [widen, random_pad])
def test_the_teacher_stays_as_it_was_and_shares_nothing(grow, randomise):
    teacher, x = randomise(plain_convolutions()), images(3, 11, 8)
    teacher[3].eval()
    teacher.net2net_history = [{"op": "earlier"}]
    before, modes, config = weights(teacher), [m.training for m in teacher.modules()], repr(teacher)
    versions = {name: tensor._version for name, tensor in teacher.state_dict().items()}
    student = grow(teacher, x, 2)
    assert same(weights(teacher), before)
    assert {name: tensor._version for name, tensor in teacher.state_dict().items()} == versions
    assert [m.training for m in teacher.modules()] == modes
    assert repr(teacher) == config
    assert history(teacher) == [{"op": "earlier"}]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    pointers = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in student.state_dict().values())


@pytest.mark.parametrize("grow", [widen, random_pad])
def test_the_student_is_a_model_like_its_teacher(grow, randomise):
    teacher, x = randomise(plain_convolutions()), images(3, 11, 8)
    teacher[3].eval()
    teacher[7].weight.requires_grad_(False)
    student = grow(teacher, x, 2)
    assert type(student) is type(teacher)
    assert [type(m) for m in student.modules()] == [type(m) for m in teacher.modules()]
    assert [m.training for m in student.modules()] == [m.training for m in teacher.modules()]
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in teacher.parameters()]
    assert all(p.is_leaf and p.grad is None for p in student.parameters())
    assert [(student[i].in_channels, student[i].out_channels) for i in (0, 2, 7)] == [(3, 10), (10, 14), (14, 8)]
    assert student[3].num_features == 14
    assert (student[10].in_features, student[10].out_features) == (8, 10)
    assert str(student[2]) == "Conv2d(10, 14, kernel_size=(3, 3), stride=(2, 2), bias=False)"
    student.eval()
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(twin(x), student(x))
        assert history(twin) == history(student)
    other = grow(teacher, x, 2, seed=9).eval()
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(x), student(x))


def test_an_optimizer_step_trains_the_student(randomise):
    teacher, x = randomise(residual()), images(3, 5, 4)
    student = widen(teacher, x, 2, noise=0.05, exact=False).train()
    before = weights(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in student.named_parameters())


def test_layer_attributes_follow_in_every_kind_of_layer():
    student = widen(encoder_decoder(), images(3, 4, 6), 2)
    assert [(student[i].in_channels, student[i].out_channels) for i in (0, 2, 6, 8)] == [
        (3, 12),
        (12, 8),
        (8, 10),
        (10, 3),
    ]
    assert (student[1].num_parameters, student[4].num_parameters) == (1, 8)
    assert (student[3].num_features, student[7].num_features) == (8, 10)


def test_shared_modules_and_parameters_stay_shared(randomise):
    teacher = one_module_twice()
    teacher.extra = conv(5, 5)
    teacher.extra.weight = teacher.b.weight
    student = widen(randomise(teacher).double(), images(3, 4, 3).double(), 2)
    assert student.again is student.b
    assert student.extra.weight is student.b.weight
    assert student.extra.in_channels == 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_is_kept(dtype, randomise):
    teacher, x = randomise(plain_convolutions()).to(dtype), images(3, 11, 8).to(dtype)
    for student in (widen(teacher, x, 3.7, noise=0.1), random_pad(teacher, x, 3.7)):
        tensors = zip(student.state_dict().values(), teacher.state_dict().values(), strict=True)
        assert all(ours.dtype == theirs.dtype for ours, theirs in tensors)


def test_history_is_kept_and_is_json(randomise):
    teacher, x = randomise(noisy()), images(3, 4, 3)
    student = random_pad(widen(teacher, x, 2, noise=0.1, seed=3), x, widths={"0": 17})
    first, second = history(student)
    assert json.loads(json.dumps([first, second])) == [first, second]
    assert (first["op"], first["noise"], first["seed"]) == ("widen", 0.1, 3)
    assert (second["op"], [space["to"] for space in second["spaces"]]) == ("random_pad", [17])
    assert history(teacher) == []


def test_hooks_of_the_user_run_in_the_student_too(randomise):
    teacher, x = randomise(nn.Sequential(conv(3, 4), conv(4, 2))).double(), images(3, 4, 3).double()
    teacher[0].register_forward_hook(lambda module, inputs, output: output.relu())
    certify(teacher, widen(teacher, x, 2), x)


def test_a_model_on_the_meta_device_can_be_planned_without_data():
    with torch.device("meta"):
        teacher = inception_bn("inception_bn")
    student = widen(teacher, torch.zeros(1, 3, 224, 224), 2**0.5, modules="inception", verify=False)
    assert student.inception[0].short[1].conv.weight.shape == (91, 91, 3, 3)
    assert student.classifier.in_features == 453 + 498 + 317


# Random pad


def test_random_pad_takes_the_arguments_of_widen(randomise):
    teacher, x = randomise(residual()), images(3, 5, 4)
    for options in ({"widths": {"b": 7, "d": 9}}, {"factor": 2, "modules": "b", "seed": 3}):
        shapes = [[t.shape for t in grow(teacher, x, **options).parameters()] for grow in (widen, random_pad)]
        assert shapes[0] == shapes[1]


def test_random_pad_keeps_the_old_entries_in_place(randomise):
    teacher = randomise(dense())
    student = random_pad(teacher, images(3, 4, 3), widths={"a": 7, "b": 6, "c": 3})
    new, old = student.state_dict(), teacher.state_dict()
    for name in ("weight", "bias"):
        assert torch.equal(new[f"a.{name}"][:4], old[f"a.{name}"])
    assert torch.equal(new["b.weight"][:5, :4], old["b.weight"])
    kept = [0, 1, 2, 3, *(7 + i for i in range(5))]  # a's four, then b's five behind a's seven
    assert torch.equal(new["c.weight"][:2, kept], old["c.weight"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(new[f"bn.{name}"][kept], old[f"bn.{name}"])
        assert not torch.equal(new[f"bn.{name}"], widen(teacher, images(3, 4, 3), 1.5).state_dict()[f"bn.{name}"])
    kept = [0, 1, *(3 + i for i in range(3)), *(6 + i for i in range(4)), *(13 + i for i in range(5))]
    assert torch.equal(new["fc.weight"][:, kept], old["fc.weight"])
    assert torch.equal(new["fc.bias"], old["fc.bias"])


def test_random_pad_starts_new_batch_norm_channels_fresh(randomise):
    teacher = randomise(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 2)))
    teacher[1].num_batches_tracked.fill_(12)
    norm = random_pad(teacher, images(3, 4, 3), 2)[1]
    assert norm.weight[4:].tolist() == norm.running_var[4:].tolist() == [1.0] * 4
    assert norm.bias[4:].tolist() == norm.running_mean[4:].tolist() == [0.0] * 4
    assert norm.num_batches_tracked == 12


def test_random_pad_draws_new_entries_for_the_fan_in_of_the_wider_layer():
    teacher = nn.Sequential(conv(3, 16), conv(16, 24), nn.Flatten(), nn.Linear(96, 10))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(9)
    student = random_pad(teacher, images(3, 2, 2), 4)
    for name, fan_in in (("0", 3 * 9), ("1", 64 * 9), ("3", 96 * 4)):
        new = student.get_submodule(name).weight
        new = new[new != 9]
        assert new.numel() == student.get_submodule(name).weight.numel() - teacher.get_submodule(name).weight.numel()
        bound = fan_in**-0.5  # PyTorch's own: uniform
        assert bound * 0.98 < new.abs().max() <= bound
        assert new.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_random_pad_takes_another_initialisation():
    teacher = inception_bn("inception_bn_28", width=0.5, num_classes=7)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(9)
    student = random_pad(teacher, images(1, 28, 28), 2, init=init_weights, modules="inception")
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("inception.") and module.weight.numel() > 4000:
            new = module.weight[module.weight != 9]
            assert new.std().item() == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.1), name
    norms = [
        m for name, m in student.named_modules() if name.startswith("inception.") and isinstance(m, nn.BatchNorm2d)
    ]
    assert all(norm.weight[-1] == 1 and norm.bias[-1] == 0 for norm in norms)


def test_random_pad_never_passes_copies_off_as_random():
    """A parameter that its module cannot initialise would stay Net2Net's."""
    teacher, x = gated(), images(3, 4, 3)
    with pytest.raises(GrowthError, match=r"nothing initialises 'scale': Net has no reset_parameters\(\).*pass init="):
        random_pad(teacher, x, 2)
    student = random_pad(teacher, x, 2, init=lambda m: nn.init.constant_(m.scale, 3) if hasattr(m, "scale") else None)
    assert student.scale.flatten().tolist() == [1.0] * 6 + [3.0] * 6
    teacher.a.temperature = nn.Parameter(torch.ones(1))  # one that does not grow needs nothing
    random_pad(residual(), images(3, 5, 4), 2)


# Refusals


@pytest.mark.parametrize("grow", [widen, random_pad])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either factor= or widths="),
        ({"factor": 2, "widths": {"a": 9}}, "either factor= or widths="),
        ({"widths": {"a": 9}, "modules": "a"}, "modules= restricts factor="),
        ({"factor": 0.9}, "factor must be at least 1 and finite, got 0.9"),
        ({"factor": float("nan")}, "factor must be at least 1"),
        ({"factor": float("inf")}, "factor must be at least 1"),
        ({"factor": 1e12}, r"the student would need .* GB on 'cpu', which has .*: .* would grow 1e\+12 times"),
        ({"factor": 1e30}, r"would grow 1e\+30 times; ask for less"),
        ({"factor": 2, "multiple_of": 10**25}, "the student would need"),
        ({"factor": 2, "new_head": 10**14}, "would make 100000000000000 outputs; ask for less"),
        ({"factor": 1.05}, "factor 1.05 adds no whole channel to any layer: the widest has 6"),
        ({"factor": 2, "modules": "stem"}, "no module matches 'stem'; the top level is a, b, bn, c, d, fc"),
        ({"factor": 2, "modules": ["a", "layers.*"]}, r"no module matches 'layers.\*'"),
        ({"factor": 2, "modules": "fc"}, "nothing can grow in fc: they are the network's output"),
        ({"factor": 2, "modules": "bn"}, "nothing can grow in bn"),
        ({"widths": {}}, "widths= is empty"),
        ({"widths": {"stem": 9}}, "widths names 'stem', which makes no channels; layers that do: a, b, d, c, fc"),
        ({"widths": {"bn": 9}}, "widths names 'bn', which makes no channels"),
        ({"widths": {"a": 5}}, "'a' has 6 channels already: cannot widen it to 5"),
        ({"widths": {"a": 7.5}}, "the width of 'a' must be a whole number of channels, got 7.5"),
        ({"widths": {"a": True}}, "the width of 'a' must be a whole number"),
        (
            {"widths": {"fc": 4}},
            "cannot widen 'fc': its channels have to stay as they are, they are the network's output",
        ),
        ({"widths": {"a": 8, "c": 9}}, r"'c' \(9\) and 'a' \(8\) share their channels: give both the same width"),
        ({"widths": {"a": 6, "c": 9}}, r"'c' \(9\) and 'a' \(6\) share their channels"),
    ],
)
def test_refuses_requests_that_make_no_sense(grow, options, message, randomise):
    teacher = randomise(residual())
    before = weights(teacher)
    with pytest.raises(GrowthError, match=message):
        grow(teacher, images(3, 5, 4), **options)
    assert same(weights(teacher), before)


@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_refuses_negative_noise(noise):
    with pytest.raises(GrowthError, match="expected at least 0, got"):
        widen(residual(), images(3, 5, 4), 2, noise=noise)


def test_refuses_to_name_a_width_that_follows_others():
    with pytest.raises(GrowthError, match=r"the 48 channels of 'lin' follow other layers' \(6 × 8\)"):
        widen(linear_follows_flattened_convolution(), images(3, 2, 4), widths={"lin": 50})
    with pytest.raises(GrowthError, match=r"the 6 channels of 'e' follow other layers' \(3 \+ 1 \+ 2\)"):
        widen(sums_of_concatenations(), images(3, 4, 3), widths={"e": 7})


class Fixed(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.run = conv(3, 8), conv(8, 4), forward
        self.width = 8

    def forward(self, x):
        return self.b(self.run(self, self.a(x)))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda m, h: torch.full((1,), 1 / h.shape[1]) * h, "'full' in the model's own forward counts on their width"),
        (lambda m, h: torch.ones(h.shape[1]).sum() * h, "'ones' in the model's own forward counts on their width"),
    ],
)
def test_refuses_code_that_computes_with_the_width(between, message):
    """Or the student would compute something else, or fail at its first batch."""
    with pytest.raises(GrowthError, match=message):
        widen(Fixed(between), images(3, 4, 3), 1.5)


def test_a_branch_that_fails_at_another_width_holds_the_channels_before_it(randomise):
    teacher = randomise(between(lambda m, h: h.sin() if h.shape[1] == 8 else m.missing(h))).double()
    x = images(3, 4, 3).double()
    student = widen(teacher, x, 1.6)
    assert (student.make.out_channels, student.read.out_channels) == (8, 8)
    certify(teacher, student, x)


@pytest.mark.parametrize("grow", [widen, random_pad])
@pytest.mark.parametrize(
    ("between", "x", "error"),
    [
        (lambda m, h: h.cumsum(1), images(3, 4, 3), GrowthError),
        (lambda m, h: torch.special.erfcx(h), images(3, 4, 3), UnsupportedOperation),
        (lambda m, h: h.view(3, 2, 4, 4, 3).sum(2).repeat(1, 4, 1, 1), images(3, 4, 3), GrowthError),
        (lambda m, h: torch.special.i0(h / h.shape[1]), images(3, 4, 3), UnsupportedOperation),
        (lambda m, h: h, images(2, 4, 3), GrowthError),
        (lambda m, h: h if h.shape[2] < 9 else m.missing, images(3, 9, 3), GrowthError),
    ],
)
def test_a_refusal_leaves_the_model_as_it_was(grow, between, x, error, randomise):
    teacher = randomise(Fixed(between)).train()
    teacher.a.eval()
    before = weights(teacher)
    with pytest.raises(error) as caught:
        grow(teacher, x, 1.5, strict=True)
    assert caught.type is error
    assert same(weights(teacher), before)
    assert (teacher.training, teacher.a.training) == (True, False)
    assert not teacher._forward_hooks
    assert history(teacher) == []


@pytest.mark.parametrize("count", [1, 15, 16, 33, 64, 101])
def test_noise_of_a_large_tensor_is_drawn_in_parts_and_is_the_same(count, monkeypatch):
    whole = torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    monkeypatch.setattr("net2net.tensors.BLOCK", 16)
    parts = normal(torch.empty(count), torch.Generator().manual_seed(3))
    assert torch.equal(parts, whole.float())
    columns = whole.view(-1, 1).expand(-1, 24)
    axis = AxisMap(torch.arange(count) % 7, *[torch.empty(0)] * 2)
    balanced = balance(columns.clone(), axis)
    monkeypatch.undo()
    assert torch.equal(balanced, balance(columns.clone(), axis))
    for channel in range(min(7, count)):
        assert balanced[channel::7].mean().abs() < 1e-15
