"""examples/: they run, on generated images, and show what they say they show."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch

from training import data, fashion_mnist

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def example(monkeypatch, tmp_path):
    """examples/grow_timm.py as a module, on generated images and without data/."""
    spec = importlib.util.spec_from_file_location("grow_timm", ROOT / "examples" / "grow_timm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(fashion_mnist, "ensure", lambda root: root / "FashionMNIST" / "raw")
    monkeypatch.setattr(fashion_mnist, "load", lambda root, train: data._generated(2_000 if train else 200, 2 - train))
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.chdir(tmp_path)
    return module


def test_a_grown_timm_net_goes_on_where_its_teacher_was(example, monkeypatch, capsys):
    made, initialise = [], example.initialise

    def spy(net):
        made.append(copy.deepcopy(net))
        made.append(copy.deepcopy(initialise(net)))
        return net

    monkeypatch.setattr(example, "initialise", spy)
    example.main(["--steps", "50", "--seed", "3", "--out", "new/result.json"])

    result = json.loads(Path("new/result.json").read_text())
    assert result["relative_error"] < 1e-6
    teacher, student, scratch = (result["arms"][arm] for arm in ("teacher", "student", "scratch"))
    assert teacher["accuracy"]["50"] > 25  # it has learned: without, the next line would say nothing
    assert student["accuracy"]["50"] == pytest.approx(teacher["accuracy"]["50"], abs=0.5)
    assert list(student["accuracy"]) == ["50", "75"]
    assert list(scratch["accuracy"]) == ["0", "25", "50", "75"]
    assert scratch["accuracy"]["0"] < 20

    grown, fresh = (dict(net.named_parameters()) for net in made)
    assert {k: p.shape for k, p in grown.items()} == {k: p.shape for k, p in fresh.items()}
    for module in made[1].modules():  # He et al.'s spread for the grown widths, not for those of the teacher
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.weight.shape[0] // module.groups
            error = 4 / module.weight.numel() ** 0.5
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=error)
    assert student["parameters"] == scratch["parameters"] > 2 * teacher["parameters"]
    assert capsys.readouterr().out.count("\n") == 7


@pytest.mark.parametrize("name", ["regnety_002", "regnety_008_tv"])
def test_the_net_from_scratch_is_initialised_as_timm_does_it(example, randomise, name):
    """No handicap, and nothing left of the training: tensor by tensor the spread that a stock net has."""
    torch.manual_seed(0)
    stock = timm.create_model(name, num_classes=10, in_chans=1)
    again = example.initialise(randomise(copy.deepcopy(stock))).state_dict()
    for key, tensor in stock.state_dict().items():
        if (tensor == tensor.flatten()[0]).all():
            assert torch.equal(again[key], tensor), key
        else:
            ratio = again[key].std() / tensor.std()
            assert ratio == pytest.approx(1, abs=4 / tensor.numel() ** 0.5), key
            assert not torch.equal(again[key], tensor), key


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--model", "resnet_of_mine"], "resnet_of_mine"), (["--steps", "1"], "1")]
)
def test_what_it_cannot_do_is_refused_in_one_sentence(example, capsys, arguments, named):
    with pytest.raises(SystemExit) as refused:
        example.main(arguments)
    assert refused.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert named in output.err
