"""docs/your-data.md: its configs and commands as they stand, on ten class folders; and what a config may leave open."""

import json
import re
import runpy
import shlex
import shutil
import sys

import numpy as np
import pytest
from jobs import rows
from PIL import Image
from places import ROOT

from training.data.__main__ import main
from training.data.imagenet.check import check

PAGE = ROOT / "docs" / "your-data.md"
CLASSES = [f"{word}s" for word in ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay"]]


def draw(root):
    """Ten classes of 4 + 1 images, JPEG and PNG, of different sizes."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 4), ("val", 1)):
        for label, name in enumerate(CLASSES):
            for k in range(images):
                path = root / split / name / f"{k}.{'png' if k == 1 else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 60, (70 + 3 * k, 80 + label, 3)) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("mine") / "images")


def python(words, monkeypatch):
    """`python <words>` in this process, which has imported torch; returns the exit code."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    return 0


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
def test_the_page_from_its_first_command_to_its_last(mine, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(mine, tmp_path / "data" / "mine")
    (tmp_path / "train.py").write_text((ROOT / "train.py").read_text())
    monkeypatch.chdir(tmp_path)
    commands = "".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)).splitlines()
    for text in commands:
        program, *words = shlex.split(text)
        assert program == "python"
        words += ["--configs", "configs"] * ("new-scale" in words)
        code, said = python(words, monkeypatch), capsys.readouterr()
        assert code == 0, f"{text}: {said.err}"
        if "check" in words:
            assert "10 classes, 40 + 10 images; every image can be read" in said.out
    assert len(commands) == 4
    teacher, student = (tmp_path / "runs" / "mine" / arm / "seed0" for arm in ("teacher_narrow", "wider"))
    for out in (teacher, student):
        run = json.loads((out / "run.json").read_text())
        assert run["status"] == "finished"
        assert (run["data"]["classes"], run["data"]["train_images"], run["data"]["val_images"]) == (10, 40, 10)
        assert run["config"]["data.classes"] is None
    first, last = (float(row["val_loss"]) for row in (rows(student)[0], rows(teacher)[-1]))
    assert first == pytest.approx(last, rel=0.02)  # but for the noise


def test_the_check_of_ones_own_images(mine, tmp_path, capsys):
    assert main(["check", str(mine), "--own", "--workers=0"]) == 0
    assert "class folders, 10 classes, 40 + 10 images; every image can be read" in capsys.readouterr().out
    broken = shutil.copytree(mine, tmp_path / "broken")
    (broken / "val" / "ants" / "0.jpg").unlink()
    assert main(["check", str(broken), "--own", "--fast"]) == 2
    assert "there is no image of the class ants in val" in capsys.readouterr().err
    shutil.rmtree(broken / "val" / "ants")
    assert main(["check", str(broken), "--own", "--fast"]) == 2
    assert "1 class of train not in val (ants)" in capsys.readouterr().err


def test_numbers_that_are_given_are_checked(mine):
    assert check(mine, None, 40, None, fast=True).problems == []
    assert "40 images where 41 were expected" in check(mine, None, 41, None, fast=True).problems[0]
