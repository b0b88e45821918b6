"""`python -m replicate new-scale`: a scale for other images, by the rules of docs/your-data.md."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from places import ROOT

import experiments
from replicate import new_scale
from training.config import flatten, load
from training.data.imagenet.check import DataReport

PAGE = (ROOT / "docs" / "your-data.md").read_text()


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """A function that makes a scale for so many images; returns its exit code, what it said, and how to load an arm."""
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")

    def make(*words, images=126_689, problems=(), name="mine"):
        report = DataReport()
        report.facts = {"classes": 100, "train_images": images, "val_images": 5000}
        report.problems = list(problems)
        monkeypatch.setattr("training.data.imagenet.check.check", lambda *arguments, **options: report)
        words = [name, "--data", "/data/mine", "--configs", str(configs), *words]
        try:
            code = new_scale.main(words)
        except SystemExit as exit_:
            code = exit_.code
        said = capsys.readouterr()
        return code, said.out + said.err, lambda arm="standard": load(configs / name / f"{arm}.yaml")

    make.configs = configs
    return make


def test_the_page_s_table_is_what_the_rules_give(made):
    code, said, arm = made()
    assert code == 0
    assert "100 classes, 126,689 + 5,000 images" in said
    found = flatten(arm())
    there = flatten(load(ROOT / "configs" / "imagenet" / "standard.yaml"))
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([\d.,]+) \| ([\d.,]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for key, imagenet, mine in rows:
        assert there[key] == float(imagenet.replace(",", "")), key
        assert found[key] == float(mine.replace(",", "")), key
    assert (found["data.name"], found["data.root"], found["data.classes"]) == ("folder", "/data/mine", None)


def test_every_arm_can_be_read_and_one_that_takes_twice_as_long_still_does(made):
    _, _, arm = made()
    for name in experiments.looks():
        assert arm(name).data.root == "/data/mine"
    steps = arm().training.steps
    assert arm("standard_double").training.steps == 2 * steps
    assert arm("standard_double").schedule.decay_steps == 2 * arm().schedule.decay_steps


def test_an_arm_that_takes_twice_as_long_follows_what_was_set(made):
    _, _, arm = made("--set", "training.steps=200", "--set", "schedule.decay_steps=40")
    assert (arm("standard_double").training.steps, arm("standard_double").schedule.decay_steps) == (400, 80)


@pytest.mark.parametrize("images", [2, 20, 33, 500, 3200, 50_000, 1_281_167, 14_000_000])
def test_any_number_of_images_gives_a_scale_of_as_many_epochs(made, images):
    code, said, arm = made(images=images)
    assert code == 0, said
    training = arm().training
    assert training.steps == pytest.approx(100 * images / training.batch_size, rel=0.01, abs=1)
    assert training.batch_size % training.chunk == 0
    assert training.batch_size <= max(images, 2048)
    assert images / training.batch_size >= 100 or training.batch_size == min(32, images)
    if images == 1_281_167:
        same = flatten(load(ROOT / "configs" / "imagenet" / "standard.yaml"))
        assert {k for k, v in flatten(arm()).items() if v != same[k]} == {
            *("data.name", "data.root", "data.classes", "data.train_images", "data.val_images")
        }


def test_what_is_set_is_set_and_the_rest_follows_it(made):
    words = ["training.batch_size=640", "optimizer.lr=0.5", "data.image_size=96"]
    code, said, arm = made("--epochs", "10", *(word for value in words for word in ("--set", value)))
    assert code == 0, said
    config = arm()
    assert (config.optimizer.lr, config.data.image_size) == (0.5, 96)
    assert config.training.steps == pytest.approx(10 * 126_689 / 640, abs=1)
    assert config.training.eval_every == pytest.approx(126_689 / 640, abs=1)  # an epoch stays one
    assert config.schedule.decay_steps == pytest.approx(0.2 * 126_689 / 640, abs=1)  # a tenth of two


def test_what_depends_on_the_steps_follows_them(made):
    code, said, arm = made("--set", "training.steps=300")
    assert code == 0, said
    training, schedule = arm().training, arm().schedule
    assert (training.steps, training.eval_every, schedule.decay_steps) == (300, 124, 6)
    assert arm("standard_double").training.steps == 600
    code, said, arm = made("--set", "training.steps=3", name="short")
    assert code == 0, said
    assert (arm().training.steps, arm().training.eval_every, arm().schedule.decay_steps) == (3, 3, 1)


@pytest.mark.parametrize("epochs", ["1e-9", "1e6"])
def test_any_number_of_epochs_gives_a_scale_that_can_be_read(made, epochs):
    code, said, arm = made("--epochs", epochs)
    assert code == 0, said
    assert arm().training.ema_decay < 1
    assert arm().training.steps >= 1


@pytest.mark.parametrize(
    ("words", "options", "parts"),
    [
        (["--from", "gpu"], {}, ["--from gpu", "data.train_images", "imagenet"]),
        (["--from", "imagnet"], {}, ["--from: there is no configs/imagnet", "imagenet", "laptop"]),
        (["--from", "../configs/imagenet"], {}, ["--from: '../configs/imagenet' is a path", "imagenet", "laptop"]),
        ([], {"name": "laptop"}, ["is there already", "remove it first"]),
        ([], {"name": "arms"}, ["'arms'", "no scale"]),
        ([], {"name": "../up"}, ["'../up'", "letters"]),
        (["--epochs", "nan"], {}, ["--epochs nan", "positive"]),
        (["--epochs", "-1"], {}, ["--epochs -1", "positive"]),
        (["--epochs", "1e30"], {}, ["--epochs 1e+30", "at most 1,000,000"]),
        (["--epochs", "3", "--set", "training.steps=3"], {}, ["--set training.steps: --epochs says the same"]),
        (["--set", "data.root=/other"], {}, ["--set data.root: --data says where the images are: leave it out"]),
        (["--set", "data.classes=7"], {}, ["--set data.classes: --data is counted"]),
        (["--set", "data.val_images=7"], {}, ["--set data.val_images: --data is counted"]),
        (["--epochs", "1", "--set", "training.eval_every=60000"], {}, ["training.eval_every=60000", "at most as many"]),
        (["--epochs", "1", "--set", "schedule.warmup_steps=60000"], {}, ["warmup_steps=60000", "expected fewer"]),
        (["--set", "training.stepz=3"], {}, ["training.stepz", "did you mean 'training.steps'"]),
        (["--set", "growth=null"], {}, ["--set growth=null", "key of a section"]),
        (["--set", "seed=3"], {}, ["--set seed=3", "key of a section"]),
        (["--set", "training.batch_size=50"], {}, ["training.batch_size=50", "multiple of training.bn_batch_size"]),
        (["--set", "optimizer.lr=fast"], {}, ["optimizer.lr", "'fast'"]),
        (["--set", "data.name=generated"], {}, ["--set data.name: it is folder, whatever the layout"]),
        (
            ["--set", "training.batch_size=7", "--set", "training.bn_batch_size=7"],
            {"images": 6},
            ["training.batch_size=7: there are 6 training images"],
        ),
        ([], {"images": 1}, ["/data/mine", "two training images", "got 1"]),
        ([], {"problems": ["/data/mine: there is no image of the class ants in val"]}, ["class ants"]),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(made, words, options, parts):
    before = sorted(made.configs.rglob("*"))
    code, said, _ = made(*words, **options)
    assert code == 2
    for part in parts:
        assert part in said
    assert sorted(made.configs.rglob("*")) == before


def test_images_are_counted_where_they_lie(tmp_path, monkeypatch, capsys):
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for split, images in (("train", 3), ("val", 1)):
        for name in ("ants", "bees"):
            for k in range(images):
                path = tmp_path / "images" / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(path)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    words = ["mine", "--data", "$SCRATCH/images", "--configs", str(configs)]
    assert new_scale.main(words) == 0
    assert "2 classes, 6 + 2 images" in capsys.readouterr().out
    assert load(configs / "mine" / "wider.yaml").data.root == "$SCRATCH/images"
    words = ["again", "--data", "$NOWHERE/images", "--configs", str(configs)]
    assert new_scale.main(words) == 2
    assert "the variable $NOWHERE is not set" in capsys.readouterr().err
