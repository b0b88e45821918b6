"""Every net of the catalogue: what grows there and what stays, the same function, a record and a random pad."""

import json
from operator import attrgetter

import pytest
import torch
from catalogue import CASES, HELD, MODELS
from compare import certify, distinct, learns, parameters, same, shapes, weights
from nets import images
from torch import nn

from net2net import GrowthError, history, random_pad, replay, verify, widen


def fill(module):
    """For parameters of classes that cannot initialise themselves."""
    if not hasattr(module, "reset_parameters"):
        for parameter in module.parameters(recurse=False):
            nn.init.ones_(parameter)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        pytest.param(name, factor, marks=[pytest.mark.quick] * (name in MODELS))
        for name, case in CASES.items()
        for factor in case.factors
    ],
)
def test_grows_as_the_catalogue_says(name, factor, randomise):
    case = CASES[name]
    teacher, x = randomise(case.build()).double(), images(*case.shape)
    distinct(teacher, x)
    before = weights(teacher)
    student = widen(teacher, x, factor, verify=False, strict=True)
    certify(teacher, student, x, single=name in MODELS)
    if case.other:
        certify(teacher, student, images(*case.other, batch=5, seed=2))
    assert parameters(student) > parameters(teacher)
    for attribute, wanted in case.grown.items():
        assert attrgetter(attribute)(student) == wanted(factor), attribute
    assert same(weights(teacher), before)
    if factor == case.factors[0]:
        assert same(replay(json.dumps(history(student)), teacher), student)
        padded = random_pad(teacher, x, factor, init=fill)
        assert shapes(padded) == shapes(student)
        assert history(padded)[-1]["spaces"] == history(student)[-1]["spaces"]
        assert not any(tensor.isnan().any() for tensor in padded.state_dict().values())
        assert verify(teacher, padded, x).relative > 1e-3
    learns(student, x)


@pytest.mark.parametrize("name", HELD)
def test_what_holds_channels_is_named(name, randomise):
    reason = HELD[name][1]
    teacher, x = randomise(CASES[f"held: {name}"].build()).double(), images(3, 4, 4)
    with pytest.raises(GrowthError, match=f"^nothing can grow in make: .*{reason}"):
        widen(teacher, x, 1.6, modules="make")
    refusal = f"cannot widen 'make': its channels have to stay as they are, .*{reason}|the 8 channels of 'make' follow"
    with pytest.raises(GrowthError, match=refusal):
        widen(teacher, x, widths={"make": 12})
    certify(teacher, widen(teacher, x, widths={"read": 11}), x)
    padded = random_pad(teacher, x, 1.5)
    assert torch.equal(padded.make.weight, teacher.make.weight)
