"""Checkpoints that are written while training goes on: whole, in order, of the moment, and never silently lost."""

import threading

import jobs
import pytest
import torch
from compare import same
from jobs import FAST, ending, rows

from training.background import Background
from training.errors import RunError
from training.runfolder import RunFolder


@pytest.fixture
def in_background(monkeypatch):
    """Runs on the CPU write as those on a GPU do."""
    real = RunFolder.__init__

    def init(self, *arguments):
        real(self, *arguments)
        self._background = Background()

    monkeypatch.setattr(RunFolder, "__init__", init)


def call(out, *overrides):
    return jobs.call("standard", out, *FAST, *overrides)


def test_a_copy_is_of_the_moment_and_training_does_not_wait_for_the_job():
    background, go_on, seen = Background(), threading.Event(), []
    weight, rows = torch.ones(3), [1]

    def job(state):
        go_on.wait(30)
        seen.append(state)

    background.start(job, {"model": {"w": weight}, "rows": rows, "step": 7})
    weight.zero_()
    rows.append(2)
    assert not seen
    go_on.set()
    background.wait()
    assert seen[0]["model"]["w"].tolist() == [1.0] * 3
    assert (seen[0]["rows"], seen[0]["step"]) == ([1], 7)


def test_jobs_come_one_after_the_other():
    background, done = Background(), []
    for number in range(5):
        background.start(done.append, number)
    background.wait()
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("after", [lambda b: b.wait(), lambda b: b.start(print, 0)])
def test_an_error_is_raised_by_the_next_call_and_once(after):
    def job(state):
        raise RunError("the disk is full")

    background = Background()
    background.start(job, 0)
    with pytest.raises(RunError, match="the disk is full"):
        after(background)
    background.wait()


def test_a_run_ends_with_the_same_files(tmp_path, in_background, monkeypatch):
    assert call(tmp_path / "background", "training.keep=2") == 0
    monkeypatch.undo()
    assert call(tmp_path / "plain", "training.keep=2") == 0
    assert same(ending(tmp_path / "background"), ending(tmp_path / "plain"))
    names = [
        sorted(p.name for p in (tmp_path / run).iterdir() if p.suffix != ".json") for run in ("background", "plain")
    ]
    assert names[0] == names[1]
    assert [r["val_loss"] for r in rows(tmp_path / "background")] == [r["val_loss"] for r in rows(tmp_path / "plain")]


def test_a_checkpoint_that_could_not_be_written_ends_the_run(tmp_path, in_background, monkeypatch, capsys):
    real = RunFolder._write

    def write(self, name, data):
        if name == "checkpoint.pt" and self._saved == 0:
            raise RunError("cannot write checkpoint.pt: No space left on device")
        real(self, name, data)

    monkeypatch.setattr(RunFolder, "_write", write)
    assert call(tmp_path / "run") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert ending(tmp_path / "run")["step"] == 0  # the last one that was
    assert [row["step"] for row in rows(tmp_path / "run")] == ["0"]
    monkeypatch.setattr(RunFolder, "_write", real)
    assert call(tmp_path / "run") == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == ["0", "2", "4", "6"]
