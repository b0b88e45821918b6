"""The study's parts: what they would train, and that a variant is trained as itself."""

import json
from pathlib import Path

import pytest
import yaml
from jobs import ROOT

from replicate import study
from replicate.study import STUDY, Part, stages


@pytest.fixture(scope="module")
def planned():
    """The stages of every part."""
    return {name: stages(part, Path("runs")) for name, part in STUDY.items()}


def test_every_run_of_a_part_has_its_teacher_in_it(planned):
    for part in planned.values():
        assert len({stage.folder for stage in part}) == len(part)
        names = {stage.name for stage in part}
        assert all(stage.teacher in names for stage in part if stage.teacher)


def test_sweeps_never_see_the_test_images(planned):
    for name, part in planned.items():
        for stage in part:
            assert stage.config.data.validation == ("held_out" if name.startswith("sweep") else "test")


def test_runs_that_two_parts_share_are_the_same(planned):
    configs = {}
    for part in planned.values():
        for stage in part:
            assert configs.setdefault(stage.folder, stage.config) == stage.config


def test_every_claim_is_about_runs_of_its_parts(planned):
    rules = yaml.safe_load((ROOT / "results" / "claims.yaml").read_text())
    for claim in (*rules["claims"].values(), rules["headline"]):
        there = {(stage.folder.parts[-3], stage.arm) for name in claim["parts"] for stage in planned[name]}
        for test in claim["tests"]:
            for arm in filter(None, (test["arm"], test.get("against"))):
                assert (test["runs"], arm) in there, (test["runs"], arm)


def test_a_variant_is_trained_as_itself_and_once(tmp_path, monkeypatch, capsys):
    part = Part("smoke", "few", (3,), ("teacher_narrow",), {"half": ("teacher_narrow", "optimizer.lr_scale=0.5")})
    monkeypatch.setattr(study, "STUDY", {"few": part})
    assert study.main(["few", "--runs", str(tmp_path), "--jobs", "2"]) == 0
    manifest = json.loads((tmp_path / "few" / "half" / "seed3" / "run.json").read_text())
    assert (manifest["status"], manifest["config"]["optimizer.lr_scale"]) == ("finished", 0.5)
    capsys.readouterr()
    assert study.main(["--runs", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("finished") == 2


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        study.main(["nonsense"])
    assert ended.value.code == 2
    assert "there is no part 'nonsense'" in capsys.readouterr().err
