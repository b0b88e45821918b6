"""Exact symmetry breaking: the teacher's function to rounding, and copies that diverge in training."""

import pytest
import torch
from torch import nn

import net2net


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.GELU(),
        nn.Conv2d(4, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 5),
    )


@pytest.fixture
def teacher(randomise):
    return randomise(network()).double()


INPUTS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(16) % 5


def distances(teacher, student, layer):
    """How far each copied filter of a layer is from its original, relative to the original."""
    space = next(s for s in net2net.history(student)[0]["spaces"] if f"{layer}.weight" in s["made_by"])
    weight = student.get_submodule(layer).weight.detach()
    pairs = [(weight[space["from"] + i], weight[original]) for i, original in enumerate(space["copies_of"])]
    return torch.stack([(copy - original).norm() / original.norm() for copy, original in pairs])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("factor", [1.5, 3.5])
def test_the_function_is_preserved_to_rounding(teacher, train, factor):
    student = net2net.widen(teacher, INPUTS, factor, noise=0.5, exact=True)
    assert net2net.verify(teacher, student, INPUTS, train=train).relative < 1e-10
    assert distances(teacher, student, "0").max() == 0
    assert not torch.equal(student[5].weight, net2net.widen(teacher, INPUTS, factor)[5].weight)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3),
    ],
    ids=["sgd", "rmsprop", "adam"],
)
def test_copies_diverge_in_training_and_without_noise_they_do_not(teacher, optimizer):
    for noise, apart in ((0.0, False), (0.1, True)):
        student = net2net.widen(teacher, INPUTS, 2.0, noise=noise, exact=True).train()
        steps = optimizer(student.parameters())
        for _ in range(20):
            steps.zero_grad()
            nn.functional.cross_entropy(student(INPUTS), LABELS).backward()
            steps.step()
        for layer in ("0", "3", "5"):
            found = distances(teacher, student, layer)
            assert (found > 1e-4).all() if apart else (found < 1e-6).all(), (layer, found)
