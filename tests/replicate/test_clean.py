"""Every kind of folder that runs/ may hold: plan, status, figures and clean say the same of it."""

import fcntl
import json
import os

import pytest
from finished import write_run

import train
from experiments import seed_of
from figures.curves import read_seeds
from replicate import clean, record, status
from replicate.launch import with_seconds
from replicate.slurm import SlurmError
from replicate.stage import plan
from training.config import flatten

pytestmark = pytest.mark.quick

# kind -> what status calls it, whether it may be removed
KINDS = {
    "never begun": ("not started", False),
    "failed": ("failed", True),
    "running": ("running", False),
    "stale": ("stopped", True),
    "alive elsewhere": ("running", False),
    "finished": ("done", False),
    "another config": ("failed", False),
    "half-deleted": ("failed", True),
    "foreign": ("not started", False),
}


def make(kind, stage):
    """What a stage's folder of that kind holds; returns what must be kept open."""
    folder, manifest = stage.folder, {"status": "running", "config": flatten(stage.config)}
    if kind in ("finished", "another config"):
        write_run(folder, [10, 20], every=stage.config.training.steps)
    else:
        folder.mkdir(parents=True)
    done = {"status": "finished", "result": {"val_top1": 0.2, "wall_s": 1.5}}
    if kind == "failed":
        manifest |= {"status": "failed", "error": "there is no data"}
    if kind in ("finished", "half-deleted", "another config"):
        manifest |= done
    if kind == "another config":
        manifest["config"] |= {"optimizer.lr": 0.5}
    if kind == "foreign":
        (folder / "notes.md").write_text("mine")
        return None
    (folder / "run.json").write_text(json.dumps(manifest))
    lock = folder / "lock"
    if kind in ("stale", "alive elsewhere"):
        lock.write_text(json.dumps({"host": "another", "pid": 1, "count": 3}))
    if kind == "stale":
        os.utime(lock, (1e9, 1e9))
    if kind == "running":
        file = lock.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
    return None


@pytest.fixture
def runs(tmp_path):
    stages = dict(zip(KINDS, plan("smoke", ("standard",), range(len(KINDS)), tmp_path), strict=True))
    held = [make(kind, stage) for kind, stage in stages.items() if kind != "never begun"]
    yield tmp_path, stages
    for file in held:
        if file:
            file.close()


def test_plan_status_and_figures_agree(runs, capsys):
    root, stages = runs
    found = status.states(list(stages.values()), {})
    assert {kind: found[stage.name].word for kind, stage in stages.items()} == {
        k: word for k, (word, _) in KINDS.items()
    }
    planned = dict(zip(KINDS, with_seconds(list(stages.values()), 1).splitlines(), strict=False))
    for kind, text in planned.items():
        assert f" {KINDS[kind][0]}" in text
    assert "failed, its folder holds a run of another config: optimizer.lr" in planned["another config"]
    assert "failed, its run.json says finished, and its metrics.csv is gone" in planned["half-deleted"]
    drawn = read_seeds(root / "smoke" / "standard")
    assert {seed for seed, run in drawn.items() if run.finished} == {
        stages[kind].config.seed for kind in ("finished", "another config")
    }
    assert "is left out" in capsys.readouterr().err


def test_clean_shows_and_removes_what_never_began_and_nothing_else(runs, capsys):
    root, stages = runs
    before = {kind for kind, stage in stages.items() if stage.folder.exists()}
    assert clean.main(["--runs", str(root)]) == 0
    shown = capsys.readouterr().out
    assert {kind for kind, stage in stages.items() if f"would remove {stage.folder}:" in shown} == {
        kind for kind, (_, goes) in KINDS.items() if goes
    }
    assert "failed before it began: there is no data" in shown
    assert clean.main(["--runs", str(root), "--dry-run"]) == 0
    assert {kind for kind, stage in stages.items() if stage.folder.exists()} == before
    assert clean.main(["--runs", str(root), "--yes"]) == 0
    left = {kind for kind, stage in stages.items() if stage.folder.exists()}
    assert before - left == {kind for kind, (_, goes) in KINDS.items() if goes}
    capsys.readouterr()
    assert clean.main(["--runs", str(root), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_clean_leaves_a_job_s_folder_alone_while_nobody_can_say_whether_it_waits(tmp_path, capsys, monkeypatch):
    """And a link to a folder elsewhere, whatever is in there."""
    folders = [stage.folder for stage in plan("smoke", ("standard",), range(3), tmp_path / "runs")]
    for folder in folders[:2]:
        folder.mkdir(parents=True)
    (folders[0] / "job.json").write_text(json.dumps({"job": "4711"}))
    (tmp_path / "elsewhere").mkdir()
    folders[2].symlink_to(tmp_path / "elsewhere")

    def silent(jobs):
        assert list(jobs) == ["4711"]
        raise SlurmError("squeue does not answer: timed out")

    monkeypatch.setattr(clean, "queue", silent)
    assert clean.main(["--runs", str(tmp_path / "runs"), "--yes"]) == 0
    said = capsys.readouterr()
    assert said.err == "squeue does not answer: timed out; folders of jobs are left alone\n"
    assert said.out == f"removed {folders[1]}: empty\n"
    assert [folder.exists() for folder in folders] == [True, False, True]
    monkeypatch.setattr(clean, "queue", lambda jobs: {})  # it is there, and the job is not in it
    assert clean.main(["--runs", str(tmp_path / "runs"), "--yes"]) == 0
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_clean_names_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        clean.main(["--runs", str(tmp_path / "none")])
    assert ended.value.code == 2
    assert f"--runs: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


RESULT = {"val_top1": 0.5, "wall_s": 1.0}
NO_MANIFESTS = ["", "{", "[1]", "{}", "[" * 100_000, '{"status": "finished"}', '{"config": null}', '{"config": [1]}']
NO_MANIFESTS += [
    json.dumps({"status": "finished", "config": {}, "result": result})
    for result in (None, 5, "x", [], {}, *({**RESULT, key: value} for key in RESULT for value in (None, "x", [], True)))
]
NO_MANIFESTS += [json.dumps({"config": {}, "data": data}) for data in (None, [], {}, {"fingerprint": 5})]
NO_MANIFESTS += ['{"status": "finished", "config": {}, "result": {"val_top1": NaN, "wall_s": 1}}']


def test_a_manifest_that_is_none_is_refused_by_all_alike(tmp_path, capsys):
    (stage,) = plan("smoke", ("standard",), [0], tmp_path)
    for content in NO_MANIFESTS:
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "run.json").write_text(content)
        (stage.folder / "metrics.csv").write_text("step\n")
        state = status.states([stage], {})[stage.name]
        assert (state.word, state.text) == (
            "failed",
            "its run.json is not a run's manifest: move the folder away",
        ), content[:200]
        assert "failed, its run.json is not a run's manifest" in with_seconds([stage], 1)
        assert record.main(["smoke", "--runs", str(tmp_path), "--results", str(tmp_path / "results")]) == 2
        assert "its run.json is not a run's manifest" in capsys.readouterr().err
        assert train.main([str(stage.file), "--out", str(stage.folder)]) == 2
        assert "is not a run's manifest: move" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "x", [], {}, True, float("nan"), 10**400], ids=repr)
@pytest.mark.parametrize("key", ["started", "host", "job", "failed", "step", "images_per_s"])
def test_what_was_noted_in_another_type_is_passed_over(tmp_path, key, value):
    (stage,) = plan("smoke", ("standard",), [0], tmp_path)
    stage.folder.mkdir(parents=True)
    (stage.folder / "run.json").write_text(json.dumps({"status": "running", "config": flatten(stage.config)}))
    noted = {"started": 1.0, "host": "elsewhere", "job": "12", "step": 3, "images_per_s": 2.0}
    for name in ("job.json", "progress.json"):
        (stage.folder / name).write_text(json.dumps({**noted, key: value}))
    assert status.states([stage], {})[stage.name].word in ("stopped", "running", "failed")
    assert status.states([stage], None)[stage.name].word in ("stopped", "running", "failed", "unknown")
    assert with_seconds([stage], 1)


def test_only_folders_that_train_py_names_are_runs(tmp_path):
    names = ["seed", "seedx", "seed-1", "seed00", "seed1.5", "seed\u00b2", "seed\u0663", "Seed2", "seed0 b"]
    for name in [*names, "seed" + "9" * 30, "seed7"]:
        (tmp_path / "smoke" / "standard" / name).mkdir(parents=True)
    assert status.main(["--scale", "smoke", "--runs", str(tmp_path)]) == 0
    assert set(clean.candidates(tmp_path)) == {tmp_path / "smoke" / "standard" / "seed7"}
    assert [seed_of(tmp_path / name) for name in (*names, "seed0", "seed4294967295", "seed4294967296")] == [
        *[None] * len(names),
        *(0, 2**32 - 1, None),
    ]


def test_the_status_is_shown_again_and_again_until_it_is_stopped(runs, capsys, monkeypatch):
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("replicate.status.time.sleep", sleep)
    assert status.main(["--scale", "smoke", "--runs", str(runs[0]), "--seeds", "0", "--watch", "2"]) == 0
    assert naps == [2, 2, 2]
    assert capsys.readouterr().out.count("figure") == 3
