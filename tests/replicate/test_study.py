"""The study's parts: what they would train, and that a variant is trained as itself."""

import json
import re
from pathlib import Path

import pytest
from places import ROOT

from experiments.reading import YamlError
from figures.rules import read
from replicate import launch, study
from replicate.study import Part, stages
from training.config import flatten
from training.runfolder import config_hash


@pytest.fixture(scope="module")
def planned():
    """The stages of every part."""
    return {name: stages(part, Path("runs")) for name, part in study.study().items()}


def test_every_run_is_of_the_config_that_it_was_of(planned):
    """By the ids that runs refuse another config with; begun ones go on."""
    recorded = json.loads((ROOT / "tests" / "golden" / "study.json").read_text())
    now = {f"{name}: {s.name}": config_hash(flatten(s.config)) for name, part in planned.items() for s in part}
    assert {name: now.get(name) for name in recorded} == recorded


def test_sweeps_never_see_the_test_images(planned):
    for name, part in planned.items():
        held_out = name.startswith("sweep") or name == "long_rates"
        for stage in part:
            assert stage.config.data.validation == ("held_out" if held_out else "test")


def test_runs_that_two_parts_share_are_the_same(planned):
    configs = {}
    for part in planned.values():
        for stage in part:
            assert configs.setdefault(stage.folder, stage.config) == stage.config


def test_every_claim_is_about_runs_of_the_study(planned):
    rules = read(ROOT / "results" / "claims.yaml")
    there = {(stage.folder.parts[-3], stage.arm) for part in planned.values() for stage in part}
    rates = {}
    for part in planned.values():
        for stage in part:
            if stage.folder.parts[-3] == rules.chosen_on:
                arm = re.sub(r"_rate_[\d.]+$", "", stage.arm)
                rates.setdefault(arm, set()).add(stage.config.optimizer.lr_scale)
    for claim in (*rules.claims.values(), rules.headline):
        for test in claim.tests:
            for name in filter(None, (test.arm, test.against, test.of)):
                arm, _, which = name.partition("@")
                assert arm == "control" or (rules.runs, arm) in there
                assert not which or rates[arm] == set(rules.rates), arm


def test_a_variant_is_trained_as_itself_and_once(tmp_path, monkeypatch, capsys):
    part = Part(
        "smoke", "few", (3,), ("teacher_narrow",), {"half": {"arm": "teacher_narrow", "optimizer.lr_scale": 0.5}}
    )
    monkeypatch.setattr(study, "study", lambda: {"few": part})
    assert study.main(["few", "--runs", str(tmp_path), "--jobs", "2"]) == 0
    manifest = json.loads((tmp_path / "few" / "half" / "seed3" / "run.json").read_text())
    assert (manifest["status"], manifest["config"]["optimizer.lr_scale"]) == ("finished", 0.5)
    written = (tmp_path / "few" / "half" / "seed3" / "metrics.csv").stat().st_mtime_ns
    assert study.main(["--runs", str(tmp_path), "--seeds", "3", "3"]) == 0
    assert (tmp_path / "few" / "half" / "seed3" / "metrics.csv").stat().st_mtime_ns == written
    capsys.readouterr()
    assert study.main(["few", "--runs", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done, ") == 2
    assert study.main(["--runs", str(tmp_path), "--dry-run"]) == 0
    head, line, whole, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["part", "runs", "done", "here", "recorded", "core-hours", "left"]
    assert (line.split(), whole.split()[-4:]) == (["few", "2", "2", "0", "0.0"], ["2", "2", "0", "0.0"])


def test_the_overview_tells_what_is_recorded_in_results(tmp_path, capsys):
    assert study.main(["--runs", str(tmp_path), "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]]
    assert all(row[-4] == row[-2] and row[-3] == "0" and float(row[-1]) > 0 for row in rows)  # all of it was run
    assert int(rows[-1][-4]) < sum(int(row[-4]) for row in rows[:-1])  # parts have runs in common


def test_a_run_that_fails_does_not_keep_the_next_part_from_running(tmp_path, monkeypatch, capsys):
    bad = Part("smoke", "bad", (3,), (), {"lost": {"arm": "wider", "growth.teacher": "nowhere.pt"}})
    good = Part("smoke", "good", (3,), ("teacher_narrow",))
    monkeypatch.setattr(study, "study", lambda: {"bad": bad, "good": good})
    assert study.main(["--runs", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "good" / "teacher_narrow" / "seed3" / "run.json").read_text())["status"] == "finished"


def test_every_run_of_a_part_has_its_teacher_before_it(planned):
    """As Slurm's dependencies need them."""
    for part in planned.values():
        assert len({stage.folder for stage in part}) == len(part)
        names = [stage.name for stage in part]
        assert all(names.index(stage.teacher) < names.index(stage.name) for stage in part if stage.teacher)


def test_on_gpus_each_run_has_one_of_its_own(tmp_path, monkeypatch):
    made = []

    class Made:
        def __init__(self, *arguments):
            made.append(arguments)

        def run(self):
            return 0

    monkeypatch.setattr(launch, "gpus_here", lambda: ["0", "1", "2"])
    monkeypatch.setattr(launch, "Runner", Made)
    assert study.main(["prediction", "--runs", str(tmp_path), "--seeds", "1", "2"]) == 0
    ((stages, jobs, _, processes, gpus),) = made
    assert (len(stages), jobs, gpus) == (4, 3, ["0", "1", "2"])
    assert set(processes.values()) == {1}  # batch norm over the whole mini-batch


def test_a_part_is_given_to_slurm_as_the_figures_are(tmp_path, capsys):
    site = ["--launcher", "print", "--gpus", "1", "--minutes", "30"]
    assert study.main(["sweep_when", "--runs", str(tmp_path), "--seeds", "1", *site]) == 0
    text = capsys.readouterr().out
    jobs = re.findall(r"job-name=\S*?-([\w.]+)$", text, re.MULTILINE)
    assert jobs == ["teacher_narrow", "teacher_narrow_early", "wider_early", "wider_early_rate_0.3"]
    assert text.count("--dependency=") == 2
    assert not list(tmp_path.iterdir())
    assert study.main(["sweep_when", "--runs", str(tmp_path), "--launcher", "print", "--gpus", "1"]) == 2
    assert "minutes is missing" in capsys.readouterr().err


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        study.main(["nonsense"])
    assert ended.value.code == 2
    assert "there is no part 'nonsense'" in capsys.readouterr().err


def test_a_study_that_cannot_be_read_is_refused_in_a_sentence(monkeypatch, capsys):
    def broken():
        raise YamlError("study.yaml: line 2: not valid YAML")

    monkeypatch.setattr(study, "study", broken)
    assert study.main(["--dry-run"]) == 2
    assert capsys.readouterr().err == "study.yaml: line 2: not valid YAML\n"
