"""examples/: they run, on generated images, and show what they say they show."""

import copy
import gzip
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from places import script
from torchvision.models import resnet18

import net2net


@pytest.fixture
def example(monkeypatch, tmp_path):
    """examples/grow_timm.py as a module, on generated images and without data/."""
    module = script("examples", "grow_timm.py")
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.chdir(tmp_path)
    raw = Path("data/FashionMNIST/raw")
    raw.mkdir(parents=True)
    patterns = torch.rand(10, 28, 28, generator=torch.Generator().manual_seed(0))
    for seed, (part, n) in enumerate({"train": 2_000, "t10k": 200}.items()):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(10, (n,), generator=generator)
        images = 255 * (0.4 * patterns[labels] + 0.6 * torch.rand(n, 28, 28, generator=generator))
        for name, header, numbers in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(raw / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + numbers.to(torch.uint8).numpy().tobytes())
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
    ("arguments", "named"),
    [(["--model", "resnet_of_mine"], "resnet_of_mine"), (["--steps", "1"], "1"), (["--data", "nowhere"], "nowhere")],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(example, capsys, arguments, named):
    with pytest.raises(SystemExit) as refused:
        example.main(arguments)
    assert refused.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert named in output.err


def test_a_resnet_is_widened_for_the_images_of_a_folder(tmp_path, capsys, randomise):
    """With torch and torchvision alone, weights from a file, and two classes of drawn images."""
    module = script("examples", "widen_resnet.py")
    for label, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (40, 40), tuple(c + 5 * k for c in colour)).save(tmp_path / "images" / label / f"{k}.png")
    torch.save({"model": randomise(resnet18()).state_dict()}, tmp_path / "r18.pth")
    options = ["--weights", str(tmp_path / "r18.pth"), "--size", "32", "--epochs", "1", "--batch", "6"]
    out = tmp_path / "wide.safetensors"
    module.main([str(tmp_path / "images"), *options, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "64 -> 96  layer1.0.conv1" in printed
    assert "new head: fc, 1000 -> 2 outputs" in printed
    student = net2net.replay(net2net.load_record(out), resnet18())
    student.load_state_dict(net2net.load_weights(out))
    assert student(torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)).shape == (2, 2)
    with pytest.raises(SystemExit) as refused:
        module.main([str(tmp_path / "none"), *options])
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
