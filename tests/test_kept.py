"""What a student takes over from its teacher besides its function: how its tensors lie in memory and what users noted
on them, hooks, modes, and the integers that modules keep of their widths."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

import net2net


def small():
    parts = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU()
    return nn.Sequential(*parts, nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGES = torch.randn(2, 3, 8, 8)


def widened(model, x=IMAGES):
    return net2net.widen(model, x, 1.5)


def padded(model, x=IMAGES):
    return net2net.random_pad(model, x, 1.5)


def deepened(model, x=IMAGES):
    return net2net.deepen(model, x, {"2": [3], "4": [1]}, [x])


def replayed(model, x=IMAGES):
    return net2net.replay(net2net.history(net2net.widen(model, x, 1.5)), model)


def deepened_again(model, x=IMAGES):
    return net2net.replay(net2net.history(deepened(model, x)), model)


GROWN = [widened, padded, deepened, replayed, deepened_again]


@pytest.mark.parametrize("grow", GROWN)
def test_kernels_lie_in_memory_as_the_teachers(grow):
    for layout in (torch.channels_last, torch.contiguous_format):
        student = grow(small().to(memory_format=layout))
        kernels = [p for p in student.parameters() if p.ndim == 4]
        assert len(kernels) >= 3
        for kernel in kernels:
            assert kernel.is_contiguous(memory_format=layout)
            assert kernel.stride() == kernel.detach().to(memory_format=layout).contiguous(memory_format=layout).stride()


def test_three_dimensional_and_depthwise_kernels_and_transposed_ones():
    volume = nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 1)).to(
        memory_format=torch.channels_last_3d
    )
    student = net2net.widen(volume, torch.randn(2, 2, 4, 4, 4), 2)
    assert student[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not student[0].weight.is_contiguous()
    net = mobilenet_v3_small(num_classes=5).to(memory_format=torch.channels_last)  # depthwise kernels, gates
    student = net2net.widen(net, torch.randn(2, 3, 32, 32), 1.5)
    for (name, old), new in zip(net.named_parameters(), student.parameters(), strict=True):
        if old.ndim == 4:
            fresh = torch.empty(new.shape).to(memory_format=torch.channels_last)
            assert new.stride() == fresh.stride(), name
    # A weight that lies transposed, as some loaders leave it.
    linear = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    linear[0].weight = nn.Parameter(torch.randn(4, 6).t())
    student = net2net.widen(linear, torch.randn(2, 4), 2)
    assert student[0].weight.stride() == (1, 12)
    assert net2net.verify(linear, student, torch.randn(5, 4)).relative < 1e-6


@pytest.mark.parametrize("grow", GROWN)
def test_dtype_gradients_and_modes_are_the_teachers(grow):
    model = small().double()
    model[0].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    model.train()
    model[1].eval()  # a frozen batch norm
    student = grow(model, IMAGES.double())
    old = {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    trained = [p.requires_grad for p in student.parameters()]
    frozen = [flag for flag in trained if not flag]
    assert len(frozen) == sum(not flag for flag, _ in old.values()) == 3
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    modes = {type(m): m.training for m in student.modules() if isinstance(m, (nn.BatchNorm2d, nn.AdaptiveAvgPool2d))}
    assert student.training
    assert modes[nn.AdaptiveAvgPool2d]
    assert not next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)).training


class Tagged(nn.Parameter):
    """As frameworks derive their own, e.g. for sharding."""


@pytest.mark.parametrize("grow", GROWN)
def test_tags_of_parameters_and_hooks_of_modules_come_along(grow):
    model = small()
    model[0].weight.no_decay = True
    model[3].weight.optim = {"lr": 0.1}
    model[5].weight = Tagged(model[5].weight.detach())
    seen = []
    model[5].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    student = grow(model)
    tags = {name: vars(p) for name, p in student.named_parameters() if vars(p)}
    assert sorted(map(str, tags.values())) == ["{'no_decay': True}", "{'optim': {'lr': 0.1}}"]
    (copied,) = (p.optim for p in student.parameters() if hasattr(p, "optim"))
    assert copied is not model[3].weight.optim
    assert sum(type(p) is Tagged for p in student.parameters()) == 1
    seen.clear()
    student(IMAGES)
    assert len(seen) == 1


@pytest.mark.parametrize("grow", [widened, deepened])
def test_hooks_of_parameters_are_named(grow):
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grow(model)
    model[0].weight.register_hook(lambda gradient: gradient * 0.5)
    model[5].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.warns(UserWarning, match=r"hooks on parameters \(0\.weight, 5\.bias\) stay with the teacher"):
        grow(model)


def test_a_model_whose_parameters_have_no_shape_yet():
    with pytest.raises(net2net.GrowthError, match=r"'0\.weight' has no shape yet: run the model once"):
        net2net.widen(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2)), torch.randn(2, 3), 2)
