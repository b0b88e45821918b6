"""The study's parts: what they would train, and that a variant is trained as itself."""

import json

import pytest
import yaml
from jobs import ROOT

from replicate import study
from replicate.study import STUDY, Part, stages


@pytest.mark.parametrize("name", STUDY)
def test_every_run_of_a_part_has_its_teacher_in_it(name, tmp_path):
    planned = stages(STUDY[name], tmp_path)
    assert len({stage.folder for stage in planned}) == len(planned)
    names = {stage.name for stage in planned}
    assert all(stage.teacher in names for stage in planned if stage.teacher)


def test_sweeps_never_see_the_test_images(tmp_path):
    for name, part in STUDY.items():
        for stage in stages(part, tmp_path):
            assert stage.config.data.validation == ("held_out" if name.startswith("sweep") else "test")


def test_runs_that_two_parts_share_are_the_same(tmp_path):
    configs = {}
    for part in STUDY.values():
        for stage in stages(part, tmp_path):
            assert configs.setdefault(stage.folder, stage.config) == stage.config


def test_every_claim_is_about_runs_of_the_study(tmp_path):
    there = {(stage.folder.parts[-3], stage.arm) for part in STUDY.values() for stage in stages(part, tmp_path)}
    claims = yaml.safe_load((ROOT / "results" / "claims.yaml").read_text())["claims"]
    for claim in claims.values():
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
