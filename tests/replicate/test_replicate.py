"""The scripts that run the stages of the figures: what they run, in which order, and what they do not run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import manifest
from places import ROOT

import experiments
from replicate import record
from replicate.launch import main
from replicate.runner import Runner, fetch_data
from replicate.stage import plan

ALL = experiments.arms()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The smoke scale with few images: the options that name it."""
    scale = tmp_path_factory.mktemp("configs") / "smoke"
    scale.mkdir()
    fewer = {
        "extends": f"{ROOT}/configs/smoke/base.yaml",
        "data": {"val_images": 20},
        "training": {"batch_size": 8},
        "arms": {arm: {"growth.calibration_images": 16} for arm in ("wider", "deeper")},  # and those that extend them
    }
    (scale / "base.yaml").write_text(json.dumps(fewer))
    return ["--scale", "smoke", "--configs", str(scale.parent)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, few):
    """All eight stages at smoke scale, run once."""
    folder = tmp_path_factory.mktemp("replicate")
    assert main("", ALL, [*few, "--runs", str(folder), "--jobs", "2"]) == 0
    return folder


def test_the_eight_runs_are_there_and_finished(smoke):
    manifests = [json.loads(path.read_text()) for path in sorted(smoke.glob("smoke/*/seed0/run.json"))]
    assert len(manifests) == 8
    assert all(manifest["status"] == "finished" for manifest in manifests)


def test_a_second_call_runs_nothing(smoke, few, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*")}
    assert main("", ALL, [*few, "--runs", str(smoke)]) == 0
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("*")} == before
    assert "starts" not in capsys.readouterr().out


def test_the_plan_puts_teachers_first_and_shares_the_standard_net():
    stages = [stage.name for stage in plan("smoke", ALL, [0, 1], Path("nowhere"))]
    assert len(stages) == len(set(stages)) == 16
    for seed in (0, 1):
        assert stages.index(f"standard/seed{seed}") < stages.index(f"deeper_4pairs/seed{seed}")
        assert stages.index(f"teacher_narrow/seed{seed}") < stages.index(f"wider/seed{seed}")


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path, capsys):
    assert main("", ("fig5",), ["--smoke", "--runs", str(tmp_path / "runs"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "deeper/seed0" in out
    assert "waiting, for standard/seed0" in out
    assert not (tmp_path / "runs").exists()


def test_record_copies_the_small_files_of_finished_runs_only(smoke, tmp_path, capsys):
    unfinished = smoke / "smoke" / "wider" / "seed9"
    unfinished.mkdir()
    (unfinished / "run.json").write_text('{"status": "running"}')
    try:
        assert record.main(["smoke", "--runs", str(smoke), "--results", str(tmp_path)]) == 0
    finally:
        (unfinished / "run.json").unlink()
        unfinished.rmdir()
    recorded = tmp_path / "smoke" / "wider" / "seed0"
    assert sorted(p.name for p in recorded.iterdir()) == ["metrics.csv", "run.json"]
    facts, kept = (json.loads((folder / "run.json").read_text()) for folder in (smoke / "smoke/wider/seed0", recorded))
    del facts["growth"]["history"]  # 30 KB that follow from the seed
    assert kept == facts
    assert not (tmp_path / "smoke" / "wider" / "seed9").exists()
    assert "wider/seed9: not finished" in capsys.readouterr().err
    assert record.main(["none", "--runs", str(smoke), "--results", str(tmp_path)]) == 2


def test_a_failed_stage_is_named_and_holds_up_only_its_students(smoke, few, tmp_path, capsys):
    """The folder of the narrow teacher holds a run of another config."""
    folder = tmp_path / "smoke" / "teacher_narrow" / "seed0"
    folder.mkdir(parents=True)
    manifest = json.loads((smoke / "smoke" / "teacher_narrow" / "seed0" / "run.json").read_text())
    manifest["config"]["optimizer.lr"] = 0.5
    (folder / "run.json").write_text(json.dumps(manifest))
    assert main("", ("teacher_narrow", "standard", "wider"), [*few, "--runs", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "standard/seed0: finished" in captured.out
    assert "teacher_narrow/seed0 failed:" in captured.err
    assert "holds a run of another config: optimizer.lr (0.5 there" in captured.err
    assert "not run for want of their teachers: wider/seed0" in captured.err


def started(command):
    """As from a terminal, also where the tests themselves run under nohup, which has SIGHUP ignored."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=heard, **pipes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_call_that_is_stopped_before_anything_runs_is_a_sentence(few, tmp_path, number):
    """All its processes are told, also the one that runs are forked from, which is still importing."""
    process = started([sys.executable, "-m", "replicate", *few, "--runs", str(tmp_path)])
    own = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any(b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes() for child in own.read_text().split()):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert out.splitlines()[-1] == "stopped, 0 of 8 runs are finished; the same command goes on from here"


def test_a_download_is_given_up_when_the_call_is_stopped(tmp_path):
    ended = []

    class Stuck:
        exitcode = 1

        def __init__(self, **options): ...

        def start(self): ...

        def join(self, seconds=None): ...

        def is_alive(self):
            return not ended

        def terminate(self):
            ended.append(True)

    stages = plan("laptop", ["standard"], [0], tmp_path)
    assert not fetch_data(stages, SimpleNamespace(Process=Stuck), lambda: True)
    assert ended


def test_a_call_that_is_stopped_goes_on_later(few, tmp_path):
    """Ctrl-C stops the runs too, and so does a terminal that is closed, which tells all processes; after kill -9 they
    notice that nobody waits for them, save and stop."""
    command = [sys.executable, str(ROOT / "replicate" / "fig5.py"), *few, "--runs", str(tmp_path)]

    def written():
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("smoke/*/seed0/checkpoint.pt")}

    for number, send in ((signal.SIGINT, os.kill), (signal.SIGHUP, os.killpg), (signal.SIGKILL, os.kill)):
        before = written()
        process = started(command)
        while written() == before:
            assert process.poll() is None
            time.sleep(0.05)
        send(process.pid, number)
        out, errors = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert (process.returncode, errors) == (128 + number, "")
            assert out.splitlines()[-1].startswith("stopped, ")
        deadline = time.monotonic() + 60
        while any(stage.locked for stage in plan("smoke", experiments.arms("fig5"), [0], tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert main("", ("fig5",), [*few, "--runs", str(tmp_path)]) == 0


@pytest.mark.parametrize("teacher", ["own", "other"])
def test_an_arm_that_grows_from_itself_is_refused(tmp_path, capsys, teacher):
    for folder in ("mine", "arms"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine" / "base.yaml").write_text(f"extends: {ROOT}/configs/smoke/base.yaml\n")
    for name, its in (("own", teacher), ("other", "own")):
        (tmp_path / "arms" / f"{name}.yaml").write_text(f"extends: wider.yaml\ngrowth: {{teacher: {its}}}\n")
    arguments = ["--scale", "mine", "--configs", str(tmp_path), "--runs", str(tmp_path / "runs"), "--dry-run"]
    assert main("", ("own", "other"), arguments) == 2
    assert f"own.yaml: {teacher!r}, its teacher, is or grows from the arm itself" in capsys.readouterr().err


def test_what_does_not_run_is_not_read_again_and_again(tmp_path, monkeypatch):
    stages = plan("smoke", ALL, [0], tmp_path)
    runner = Runner(stages, 1, 1, {stage.name: 1 for stage in stages}, [])
    read = []
    monkeypatch.setattr("replicate.stage.read_json", lambda path: read.append(path) or {"step": 1})
    runner._show()
    assert read == []
    runner.running = {stages[0].name: (stages[0], None)}
    runner._show()
    assert {path.parent for path in read} == {stages[0].folder}
    assert runner.bar.n == 1


def test_wrong_arguments_are_refused_in_a_sentence(tmp_path, capsys):
    for arguments, words in (
        (
            ["--scale", "huge"],
            "there is no configs/huge; there are gpu, imagenet, laptop, laptop-1000, laptop-long, long, smoke",
        ),
        (["--scale", "../configs/smoke"], "--scale: '../configs/smoke' is a path, expected a name; there are gpu"),
        (["--scale", f"{ROOT}/configs/smoke/"], "is a path, expected a name; there are gpu"),
        (["--scale", ".."], "there is no configs/..; there are gpu"),
        (["--scale", ""], "there is no configs/; there are gpu"),
        (["--scale", "."], "there is no configs/.; there are gpu"),
        (["--scale", "arms"], "there is no configs/arms; there are gpu"),
        (["--jobs", "0"], "--jobs: expected at least 1"),
    ):
        try:
            code = main("", ALL, [*arguments, "--runs", str(tmp_path)])
        except SystemExit as error:
            code = error.code
        assert code == 2
        assert words in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_the_figures_of_a_smoke_run_are_drawn(smoke, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "figures", str(smoke / "smoke"), "--out", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    assert {f"fig{n}.{end}" for n in (4, 5, 6) for end in ("png", "pdf")} <= {p.name for p in tmp_path.iterdir()}


def test_record_takes_no_seed_of_another_config(smoke, tmp_path, capsys):
    """Else a figure's mean would be of two arms."""
    runs = tmp_path / "runs"
    for seed in (0, 1):
        shutil.copytree(smoke / "smoke" / "wider" / "seed0", runs / "smoke" / "wider" / f"seed{seed}")
    file = runs / "smoke" / "wider" / "seed1" / "run.json"
    facts = json.loads(file.read_text())
    facts["config"] |= {"seed": 1, "optimizer.lr": 0.5}
    file.write_text(json.dumps(facts))
    words = ["smoke", "--runs", str(runs), "--results", str(tmp_path / "results")]
    assert record.main(words) == 0
    assert "wider/seed1: another config than" in (said := capsys.readouterr().err)
    assert "optimizer.lr is 0.5 and there " in said
    assert not (tmp_path / "results" / "smoke" / "wider" / "seed1").exists()
    facts["config"] |= {
        "seed": 0,
        "optimizer.lr": manifest(runs / "smoke" / "wider" / "seed0")["config"]["optimizer.lr"],
    }
    file.write_text(json.dumps(facts))
    assert record.main(words) == 0
    assert "wider/seed1: a run of seed 0: it is a copy, or misnamed" in capsys.readouterr().err
    assert record.main(["nothing", *words]) == 2  # one of two folders has no run
    facts["config"]["seed"], facts["result"]["steps"] = 1, 5000
    file.write_text(json.dumps(facts))
    assert record.main(words) == 0
    assert "and its run.json says 5000" in capsys.readouterr().err
    facts["result"]["steps"] = manifest(runs / "smoke" / "wider" / "seed0")["result"]["steps"]
    file.write_text(json.dumps(facts))
    assert record.main(words) == 0
    assert (tmp_path / "results" / "smoke" / "wider" / "seed1" / "run.json").exists()
