"""docs/your-experiment.md: its files and commands as they stand, in a copy of the checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from places import ROOT

import experiments
from experiments.reading import YamlError
from replicate.stage import plan
from training.config import ConfigError, load

PAGE = ROOT / "docs" / "your-experiment.md"
# Commands one after the other in one process, which imports torch once; what each printed, as JSON.
COMMANDS = """
import contextlib, io, json, runpy, sys

told = {}
for line, program, *words in json.load(sys.stdin):
    run = runpy.run_path
    if program == "-m":
        run, (program, *words) = runpy.run_module, words
    sys.argv = [program, *words]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            run(program, run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                sys.exit(f"{line}: ended with {ended.code}")
    told[line] = printed.getvalue()
print(json.dumps(told))
"""


def test_the_page_from_its_first_command_to_its_last(tmp_path):
    for folder in ("configs", "experiments", "figures", "net2net", "replicate", "training"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    with (tmp_path / "net2net" / "inception_bn.py").open("a") as code:  # the page says nothing of the network's depth
        code.write('TABLES["inception_bn_28"] = INCEPTION_BN_28._replace(modules=INCEPTION_BN_28.modules[1:3])\n')
    lines = []
    for kind, text in re.findall(r"```(yaml|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if kind == "yaml":
            file = tmp_path / re.match(r"# (\S+)\n", text)[1]
            with file.open("a") as end:  # of the study: an entry more
                end.write(text)
        else:
            lines += text.splitlines()
    words = [shlex.split(line) for line in lines]
    assert {program for program, *_ in words} == {"python"}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    given = json.dumps([[line, *rest] for line, (_, *rest) in zip(lines, words, strict=True)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        **{"cwd": tmp_path, "env": environment, "input": given, "capture_output": True, "text": True, "timeout": 600},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 8
    plan_, _, status, drawn, _, part, _, recorded = told.values()
    assert re.search(r"wider_noisy/seed0 .* waiting, for teacher_narrow/seed0", plan_)
    assert re.search(r"4 +wider_noisy/seed0 +done", status)
    assert "wider_noisy" in drawn
    assert (tmp_path / "figures" / "mine" / "fig4.png").exists()
    assert re.search(r"wider_noise_5/seed1 .* waiting, for teacher_narrow/seed1", part)
    assert "wider_rate_0.3/seed1" in recorded
    kept = json.loads((tmp_path / "results" / "my-noise" / "wider_noise_5" / "seed1" / "run.json").read_text())
    assert kept["config"]["growth.noise"] == 0.05


@pytest.fixture
def mine(tmp_path):
    """A folder of arms, and a function that writes one."""
    shutil.copytree(ROOT / "configs" / "arms", tmp_path / "arms")
    shutil.copytree(ROOT / "configs" / "smoke", tmp_path / "smoke")
    base = tmp_path / "smoke" / "base.yaml"
    base.write_text(base.read_text().replace("../laptop", str(ROOT / "configs" / "laptop")))
    return tmp_path, lambda name, text: (tmp_path / "arms" / f"{name}.yaml").write_text(text)


def test_figures_and_look_are_the_arms_own_and_are_not_inherited(mine):
    folder, write = mine
    write("one", "extends: wider.yaml\nfigures: [fig4, fig6]\nlook: {label: First}")
    write("two", "extends: one.yaml\nfigures: [fig4]")
    write("three", "extends: one.yaml")
    figures, looks = (read(folder=folder / "arms") for read in (experiments.figures, experiments.looks))
    assert figures["fig4"].own == ("one", "two")
    assert figures["fig6"].own == ("one",)
    assert figures["fig4"].curves[-2:] == ("one", "two")
    assert (looks["one"].label, looks["two"].label) == ("First", "two")
    assert len({look.colour for look in (looks["one"], looks["two"], *experiments.looks().values())}) > len(
        {look.colour for look in experiments.looks().values()}
    )
    assert "three" not in looks
    assert load(folder / "smoke" / "two.yaml").growth.method == "net2wider"


def test_a_teacher_of_ones_own_is_trained_too_and_a_checkpoint_is_there_already(mine):
    folder, write = mine
    write("small", "model: {width: 0.4}")
    write("grown", "extends: wider.yaml\ngrowth: {teacher: small}\nfigures: [fig4]")
    arms = experiments.arms("fig4", folder=folder / "arms")
    stages = [stage.name for stage in plan("smoke", arms, [0], folder / "runs", folder)]
    assert stages.index("small/seed0") < stages.index("grown/seed0")
    write("grown", "extends: wider.yaml\ngrowth: {teacher: some/where.pt}\nfigures: [fig4]")
    stages = {stage.arm: stage for stage in plan("smoke", ("grown",), [0], folder / "runs", folder)}
    assert list(stages) == ["grown"]
    assert stages["grown"].teacher is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("figures: [fig9]", "figures: there is no fig9; there are fig4, fig5, fig6"),
        ("figures: fig4", "figures: expected a list, e.g. [fig4], got 'fig4'"),
        ("figures: [fig4]\nlook: blue", "look: expected keys and values, got 'blue'"),
        ("figures: [fig4]\nlook: {colour: blue}", "look: colour: expected a colour such as \"#0072B2\", got 'blue'"),
        ("figures: [fig4]\nlook: {line: [0, [5]]}", "look: line: expected - or [0, [on, off, ...]]"),
        ("figures: [fig4]\nlook: {marker: star}", "look: marker: expected one of"),
        ("figures: [fig4]\nlook: {color: '#000000'}", "look: got an unexpected keyword argument 'color'"),
    ],
)
def test_what_an_arm_says_wrongly_of_itself_is_named(mine, text, words):
    folder, write = mine
    write("one", text)
    with pytest.raises(YamlError) as error:
        experiments.figures(folder=folder / "arms")
    assert "one.yaml" in str(error.value)
    assert words in str(error.value)


def test_an_arm_that_is_called_as_a_scales_file_is_refused(mine):
    folder, write = mine
    write("base", "extends: wider.yaml\nfigures: [fig4]")
    with pytest.raises(YamlError, match=r"base\.yaml: an arm cannot be called base"):
        experiments.own_arms(folder / "arms")


def test_figures_in_the_file_of_a_run_are_refused(mine):
    folder, _ = mine
    (folder / "smoke" / "one.yaml").write_text("extends: wider.yaml\nfigures: [fig4]")
    with pytest.raises(ConfigError, match=r"figures: stands in the file of an arm, configs/arms/one\.yaml"):
        load(folder / "smoke" / "one.yaml")
