"""What happens to runs on a cluster: kills, signals, full disks, lost processes, two jobs at once.

Each test makes its moment certain by a patch in the child. Afterwards the same command must end with what an
undisturbed run ends with, bit for bit.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import jobs
import pytest
import torch
from compare import same
from jobs import FAST, Job, call, finish, manifest, rows, state
from places import ROOT

import train
from training import files, lease, runfolder, trainer
from training.config import load
from training.errors import CheckpointError, DataError, RunError
from training.session import Session
from training.step import TrainStep


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run ends with, of one process and of two."""
    folder = tmp_path_factory.mktemp("whole")
    return {world: ending(finish("standard", folder / str(world), *FAST, world=world)) for world in (1, 2)}


def ending(out):
    found = jobs.ending(out)
    del found["config"]  # `keep` may differ
    return found


def resumed(out, whole, *overrides, world=1, **options):
    """The same command ends as if nothing had been."""
    finish("standard", out, *FAST, *overrides, world=world, **options)
    assert same(ending(out), whole[world])
    assert [int(row["step"]) for row in rows(out)] == [0, 2, 4, 6]
    assert manifest(out)["status"] == "finished"
    assert not list(out.glob(".*.tmp"))


def sentences(job):
    """What the processes said: no traceback, no warning, nothing but train.py's own lines."""
    for text in job.errors():
        assert all(line.startswith("train.py: ") for line in text.splitlines()), text
    return job.errors()


# ---- what is patched in the children


def before_step(rank, who, step, action):
    """`action(batches)` in process `who` before mini-batch `step`; what it returns is trained on."""
    original = TrainStep.__call__

    def call(self, now, batches):
        if rank == who and now == step:
            batches = action(batches) or batches
        original(self, now, batches)

    TrainStep.__call__ = call


def in_evaluation(rank, who=0, number=signal.SIGTERM, which=2):
    """A signal to process `who` in an evaluation, the second if no other, before its first images."""
    original, calls = trainer.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        if rank == who and len(calls) == which:
            os.kill(os.getpid(), number)
        return original(*arguments)

    trainer.evaluate = evaluate


def die(batches=None):
    os.kill(os.getpid(), signal.SIGKILL)


def be_told(batches, number):
    os.kill(os.getpid(), number)


def fill_disk(batches, room):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def not_a_number(batches):
    for images, labels in batches:
        yield images * float("nan"), labels


def lose_data(batches):
    raise DataError("shard-0007.tar is gone")


def lose_mind(batches):
    raise KeyError("a bug")


def in_write(rank, name, number, moment):
    """A kill around the replacement of a file, the `number`th time that it is written."""
    original, calls = Path.replace, []

    def replace(self, target):
        if self.name == f".{name}.tmp":
            calls.append(1)
            if rank == 0 and len(calls) == number:
                if moment == "half":
                    os.truncate(self, self.stat().st_size // 2)
                if moment == "after":
                    original(self, target)
                die()
        return original(self, target)

    Path.replace = replace


def unsteady_disk(rank):
    """Every third file comes to the disk at the second attempt only."""
    files.PAUSES = (0.0, 0.0)
    original, calls = os.fsync, []

    def fsync(fd):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        original(fd)

    os.fsync = fsync


def on_machine(rank, name, clock=0.0):
    platform.node = lambda: name
    lease.PATIENCE = 0.3
    real = time.time
    time.time = lambda: real() + clock


# ---- kills


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_two_is_killed(whole, tmp_path, rank):
    job = Job(
        "standard", tmp_path / "run", *FAST, world=2, patches=(partial(before_step, who=rank, step=3, action=die),)
    )
    codes = job.wait()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 2
    said = sentences(job)[1 - rank]
    assert "another process of this run ended: its own message says why, unless it was killed" in said
    assert "the same command goes on from the last checkpoint" in said
    if rank == 1:
        assert "killed" in manifest(job.out)["error"]
    assert state(job.out)["step"] == 2
    resumed(job.out, whole, world=2)


@pytest.mark.parametrize("moment", ["half", "before", "after"])
def test_a_kill_while_the_checkpoint_is_written(whole, tmp_path, moment):
    patch = partial(in_write, name="checkpoint.pt", number=3, moment=moment)
    job = Job("standard", tmp_path / "run", *FAST, patches=(patch,))
    assert job.wait() == [-signal.SIGKILL]
    assert state(job.out)["step"] == (4 if moment == "after" else 2)
    assert [int(row["step"]) for row in rows(job.out)] == [0, 2]  # metrics come after the checkpoint
    resumed(job.out, whole)


def test_a_kill_of_two_while_the_checkpoint_is_written(whole, tmp_path):
    patch = partial(in_write, name="checkpoint.pt", number=3, moment="after")
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(patch,))
    assert job.wait() == [-signal.SIGKILL, 2]
    sentences(job)
    resumed(job.out, whole, world=2)


@pytest.mark.parametrize("name", ["metrics.csv", "run.json"])
def test_a_kill_while_another_file_is_written(whole, tmp_path, name):
    job = Job("standard", tmp_path / "run", *FAST, patches=(partial(in_write, name=name, number=2, moment="half"),))
    assert job.wait() == [-signal.SIGKILL]
    resumed(job.out, whole)


def test_a_student_s_first_checkpoint_is_kept_though_a_kill_came_before_its_copy(tmp_path):
    teacher = finish("standard", tmp_path / "teacher", *FAST)
    overrides = (*FAST, "model.width=0.2", "training.keep=2", "growth.calibration_images=8")
    overrides += (f"growth.teacher={teacher / 'checkpoint.pt'}",)
    patch = partial(in_write, name="checkpoint.pt", number=1, moment="after")
    job = Job("wider", tmp_path / "student", *overrides, patches=(patch,))
    assert job.wait() == [-signal.SIGKILL]
    assert not (job.out / "step0.pt").exists()
    finish("wider", job.out, *overrides)
    assert state(job.out, "step0.pt")["step"] == 0
    assert sorted(path.name for path in job.out.glob("*.pt")) == ["checkpoint-00000004.pt", "checkpoint.pt", "step0.pt"]


# ---- asked to stop


@pytest.mark.parametrize(("where", "number"), [("a step", signal.SIGUSR1), ("an evaluation", signal.SIGTERM)])
def test_one_process_of_two_is_asked_to_stop(whole, tmp_path, where, number):
    if where == "a step":
        patch = partial(before_step, who=1, step=2, action=partial(be_told, number=number))
    else:
        patch = partial(in_evaluation, who=1, number=number)
    job = Job("standard", tmp_path / "run", *FAST, "training.eval_every=4", world=2, patches=(patch,))
    codes = job.wait()
    assert codes == [128 + signal.SIGTERM, 128 + number]  # the other one knows only that somebody was asked
    at = state(job.out)["step"]
    assert at in ((4,) if where == "an evaluation" else (3, 4))
    assert all(f"saved at step {at}; run the same command again to go on" in text for text in sentences(job))
    finish("standard", job.out, *FAST, "training.eval_every=4", world=2)
    assert [int(row["step"]) for row in rows(job.out)] == [0, 4, 6]
    found = ending(job.out)
    assert same(found["optimizer"], whole[2]["optimizer"])
    for key, tensor in whole[2]["model"].items():
        if "running" in key:  # averaged over the processes once more, at the stop: rounded once more
            assert torch.allclose(found["model"][key], tensor, rtol=1e-5)
        else:
            assert torch.equal(found["model"][key], tensor)


def test_asked_to_stop_before_the_first_evaluation_is_over(whole, tmp_path):
    job = Job("standard", tmp_path / "run", *FAST, patches=(partial(in_evaluation, which=1),))
    assert job.wait() == [128 + signal.SIGTERM]
    assert "saved at step 0" in sentences(job)[0]
    resumed(job.out, whole)


# ---- saving between evaluations


@pytest.mark.parametrize("world", [1, 2])
def test_checkpoints_by_time_change_nothing(whole, tmp_path, world):
    often = ("training.save_minutes=1e-9", "training.keep=9")
    patch = partial(before_step, who=0, step=5, action=die)
    job = Job("standard", tmp_path / "run", *FAST, *often, world=world, patches=(patch,))
    assert job.wait()[0] == -signal.SIGKILL
    assert state(job.out)["step"] == 5  # of two processes each second step, as they agree a step later: 1, 3, 5
    assert (job.out / "checkpoint-00000003.pt").exists()
    out = finish("standard", tmp_path / "undisturbed", *FAST, *often, world=world)
    assert same(ending(out), whole[world])
    if world == 1:  # of two, going on averages their statistics once more
        resumed(job.out, whole, *often)


# ---- what is told to whoever watches


@pytest.mark.parametrize("stream", ["full", "closed", "gone"])
def test_output_that_cannot_be_written_is_no_reason_to_stop(whole, tmp_path, stream):
    job = Job("standard", tmp_path / "run", *FAST, patches=(partial(broken_stdout, stream=stream),))
    assert job.wait() == [0]
    assert same(ending(job.out), whole[1])
    said = sentences(job)[0]
    assert said.count("cannot write to stdout") == (stream != "closed"), said


def broken_stdout(rank, stream):
    if stream == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif stream == "closed":
        os.close(1)
        sys.stdout = None
    else:
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
        os.close(reading)


# ---- a process fails alone, or all do


@pytest.mark.parametrize("room", [50_000, 1_000])  # 1,000: not even run.json can tell what happened
def test_the_disk_is_full(whole, tmp_path, room):
    patch = partial(before_step, who=0, step=3, action=partial(fill_disk, room=room))
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(patch,))
    assert job.wait() == [2, 2]
    said = sentences(job)
    assert f"cannot write {job.out / 'checkpoint.pt'}: File too large. The previous version" in said[0]
    assert "then run the same command again" in said[0]
    assert said[0].count("\n") == 1
    assert said[1] == ""  # once is enough
    assert state(job.out)["step"] == 2
    assert not list(job.out.glob(".*.tmp"))
    resumed(job.out, whole, world=2)


def test_one_process_s_loss_is_not_a_number(whole, tmp_path):
    patch = partial(before_step, who=1, step=3, action=not_a_number)
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(patch,))
    assert job.wait() == [2, 2]
    said = sentences(job)[0]
    assert "the training loss is not a number at step 3 (in process 1 of 2)" in said
    assert "the checkpoint of step 2 is kept" in said
    assert manifest(job.out)["status"] == "failed"
    assert state(job.out)["step"] == 2
    resumed(job.out, whole, world=2)  # had it been the memory's fault


def test_the_last_update_loses_the_weights(tmp_path):
    """The loss of every step was a number, and yet the model is worth nothing."""
    job = Job("standard", tmp_path / "run", *FAST, patches=(last_update_overflows,))
    assert job.wait() == [2]
    assert "the weights are not numbers after step 5: the checkpoint of step 4 is kept" in sentences(job)[0]
    assert state(job.out)["step"] == 4


def last_update_overflows(rank):
    original = TrainStep.__call__

    def call(self, step, batches):
        original(self, step, batches)
        if step == 5:
            next(self.model.parameters()).data.fill_(float("inf"))

    TrainStep.__call__ = call


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_cannot_go_on(whole, tmp_path, rank):
    patch = partial(before_step, who=rank, step=3, action=lose_data)
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(patch,))
    assert job.wait() == [2, 2]
    said = sentences(job)
    assert said[rank] == "train.py: shard-0007.tar is gone\n"
    assert "another process of this run ended" in said[1 - rank]
    assert "shard-0007.tar is gone" in manifest(job.out)["error"]
    if rank == 1:
        assert "process 1: shard-0007.tar is gone" in said[0]
    resumed(job.out, whole, world=2)


def test_one_process_cannot_even_begin(tmp_path):
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(no_data_here,))
    assert job.wait() == [2, 2]
    said = sentences(job)
    assert said[1] == "train.py: no images on this machine\n"
    assert "process 1: no images on this machine" in said[0]


def no_data_here(rank):
    if rank == 1:
        train.open_data = Mock(side_effect=DataError("no images on this machine"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_in_one_process_ends_the_other_one(tmp_path, rank):
    """It may show its traceback; nobody may wait for it."""
    patch = partial(before_step, who=rank, step=3, action=lose_mind)
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(patch,))
    codes = job.wait()
    assert (codes[rank], codes[1 - rank]) == (1, 2)
    assert "Traceback" not in job.errors()[1 - rank]
    assert "KeyError" in job.errors()[rank]


def test_a_bug_in_what_only_the_main_process_does_ends_the_other_one(tmp_path):
    job = Job("standard", tmp_path / "run", *FAST, world=2, patches=(cannot_save,))
    assert job.wait() == [1, 2]
    assert job.errors()[1] == ""


def cannot_save(rank):
    runfolder.write_atomic = lambda *arguments, **options: lose_mind(None)


# ---- what is found on going on


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped at step 3."""
    patch = partial(before_step, who=0, step=2, action=partial(be_told, number=signal.SIGTERM))
    job = Job("standard", tmp_path / "run", *FAST, patches=(patch,))
    assert job.wait() == [128 + signal.SIGTERM]
    assert state(job.out)["step"] == 3
    return job.out


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "lock"}


def test_what_earlier_calls_noted_stays_in_the_manifest(stopped):
    """All of it, known to this version or not; only how the last call ended is not this one's."""
    noted = {"unreadable_images": 7, "wandb_id": "abc", "a_key_of_another_version": [1, 2]}
    (stopped / "run.json").write_text(json.dumps({**manifest(stopped), **noted, "status": "failed", "error": "a bug"}))
    finish("standard", stopped, *FAST)
    after = manifest(stopped)
    assert {key: after[key] for key in noted} == noted
    assert after["status"] == "finished"
    assert "error" not in after


def test_other_data_are_refused_with_both_fingerprints(stopped, capsys, monkeypatch):
    before = content(stopped)
    from training.data import memory

    original = memory._generated
    monkeypatch.setattr(memory, "_generated", lambda n, seed: original(n, seed + 1))
    assert call("standard", stopped, *FAST) == 2
    error = capsys.readouterr().err
    was, now = re.search(r"fingerprint (\w{16}) there, (\w{16}) now", error).groups()
    assert was == manifest(stopped)["data"]["fingerprint"][:16] != now
    assert "--set data.root" in error
    after = content(stopped)
    assert json.loads(after.pop("run.json"))["status"] == "failed"
    assert after == {name: found for name, found in before.items() if name != "run.json"}


def test_other_pixels_under_the_same_names_are_refused(stopped, capsys):
    """A run on the original images that is to go on on their resized copy, which has the same names and labels."""
    content = manifest(stopped)
    content["data"]["resized"] = {"short_side": 256, "quality": 90}
    (stopped / "run.json").write_text(json.dumps(content))
    assert call("standard", stopped, *FAST) == 2
    error = capsys.readouterr().err
    assert (
        "was begun on images resized to 256 pixels, JPEG quality 90, now the data folder has the original images"
        in error
    )
    assert manifest(stopped)["data"]["resized"] == {"short_side": 256, "quality": 90}


def test_a_damaged_newest_checkpoint_is_passed_over(whole, tmp_path):
    out = finish("standard", tmp_path / "run", *FAST, "training.keep=3")
    names = ["checkpoint-00000002.pt", "checkpoint-00000004.pt", "checkpoint.pt"]
    assert sorted(path.name for path in out.glob("*.pt")) == names
    assert [state(out, name)["step"] for name in names] == [2, 4, 6]

    def damage(name):
        found = bytearray((out / name).read_bytes())
        middle = len(found) // 2
        found[middle : middle + 4096] = bytes(255 - byte for byte in found[middle : middle + 4096])  # a bad block
        (out / name).write_bytes(found)

    (out / "run.json").write_text(json.dumps({**manifest(out), "status": "running"}))
    damage("checkpoint.pt")
    damage("checkpoint-00000004.pt")
    job = Job("standard", out, *FAST, "training.keep=3")
    assert job.wait() == [0]
    said = sentences(job)[0]
    assert f"{out / 'checkpoint.pt'} cannot be read" in said
    assert said.count("going on from checkpoint-00000002.pt, step 2") == 2
    assert same(ending(out), whole[1])
    assert [int(row["step"]) for row in rows(out)] == [0, 2, 4, 6]


def test_whatever_a_checkpoint_holds_it_is_a_sentence(stopped):
    """Bytes lost, changed, exchanged: never a traceback."""
    good = (stopped / "checkpoint.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for attempt in range(60):
        bad = bytearray(good)
        place = int(torch.randint(len(bad), (), generator=generator))
        if attempt % 3 == 0:
            del bad[place:]
        elif attempt % 3 == 1:
            bad[place : place + 256] = torch.randint(256, (256,), generator=generator).tolist()
        else:
            bad = torch.randint(256, (attempt * 40,), dtype=torch.uint8, generator=generator).numpy().tobytes()
        (stopped / "bad.pt").write_bytes(bytes(bad))
        with contextlib.suppress(CheckpointError):
            runfolder.load_checkpoint(stopped / "bad.pt", "run")


# ---- the file system


def test_a_file_system_that_is_away_for_a_moment(whole, tmp_path):
    job = Job("standard", tmp_path / "run", *FAST, patches=(unsteady_disk,))
    assert job.wait() == [0]
    assert same(ending(job.out), whole[1])


def test_what_passes_is_tried_again_and_what_does_not_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    calls = []

    def failing(number, times):
        original = Path.replace
        calls.clear()

        def replace(self, target):
            calls.append(1)
            if len(calls) <= times:
                raise OSError(number, os.strerror(number))
            return original(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            with runfolder._refusals_explained(tmp_path / "file"):
                files.write_atomic(tmp_path / "file", str(number).encode(), durable=True)
        finally:
            monkeypatch.setattr(Path, "replace", original)

    for number in files.TRANSIENT:
        failing(number, 3)
        assert (tmp_path / "file").read_text() == str(number)
        assert len(calls) == 4
    with pytest.raises(RunError, match=r"cannot write .*file: Stale file handle\. The previous version"):
        failing(errno.ESTALE, 4)
    with pytest.raises(RunError, match="No space left"):
        failing(errno.ENOSPC, 1)
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_can_be_written_to(tmp_path, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_atomic(tmp_path / "file", b"content", durable=True)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_folder_that_can_be_written_and_not_read(tmp_path, monkeypatch):
    real = os.open

    def opened(path, *arguments, **options):
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    files.write_atomic(tmp_path / "file", b"content", durable=True)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_second_name_is_a_copy_where_there_are_no_hard_links(tmp_path, monkeypatch):
    """And stays what it was when the first one is replaced, as a link does."""

    def link(first, second):
        raise OSError(number, os.strerror(number))

    file, second = tmp_path / "file", tmp_path / "second"
    monkeypatch.setattr(os, "link", link)
    for number in sorted(files.NO_LINKS):
        file.write_bytes(b"%d" % number)
        files.duplicate(file, second)
        files.write_atomic(file, b"new")
        assert second.read_bytes() == b"%d" % number
    number = errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        files.duplicate(file, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "second"]
    assert second.read_bytes() != b"new"


@pytest.mark.parametrize(
    ("said", "state"),
    [("", {}), ("a1b2", {"commit": "a1b2", "dirty": False}), ("a1b2-dirty", {"commit": "a1b2", "dirty": True})],
)
def test_a_checkout_without_git_is_told_its_commit(monkeypatch, said, state):
    monkeypatch.setenv("NET2NET_COMMIT", said)
    for error in (FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")):
        monkeypatch.setattr(subprocess, "run", Mock(side_effect=error))
        assert runfolder.git_state() == state


# ---- two jobs in one folder


def test_two_jobs_of_one_machine(stopped):
    before = content(stopped)
    held = lease.Lease(stopped)
    job = Job("standard", stopped, *FAST, world=2)
    assert job.wait() == [2, 2]
    held.release()
    assert f"another process (pid {os.getpid()} on {platform.node()}) is training in {stopped}" in sentences(job)[0]
    assert "--out" in job.errors()[0]
    assert content(stopped) == before


def other_machine(folder, count=0, **more):
    said = {"host": "node7", "pid": 1, "job": "4711", "count": count, **more}
    (folder / "lock").write_text(f"{json.dumps(said):<255}\n")


def test_a_job_on_another_machine_that_lives(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "PATIENCE", 20.0)
    other_machine(tmp_path)
    beat = threading.Timer(0.2, other_machine, (tmp_path, 1))
    beat.start()
    assert call("standard", tmp_path, *FAST) == 2
    beat.join()
    error = capsys.readouterr().err
    assert "another process (pid 1 on node7, job 4711) is training in" in error
    assert not (tmp_path / "run.json").exists()


def test_a_job_on_another_machine_that_is_dead(tmp_path, capsys):
    other_machine(tmp_path)
    held = lease.Lease(tmp_path, patience=0.2)
    assert lease.owner(tmp_path / "lock")["host"] == platform.node()
    assert "pid 1 on node7, job 4711) was training in" in capsys.readouterr().err
    held.release()
    assert (tmp_path / "lock").read_text() == ""


def test_a_file_that_cannot_be_read_is_not_taken_for_a_free_one(tmp_path, monkeypatch):
    other_machine(tmp_path)

    def lost(self):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", lost)
    with pytest.raises(OSError, match="Permission denied"):
        lease.Lease(tmp_path, patience=0.1)


def test_a_job_that_was_thought_dead_finds_its_folder_taken_and_writes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    config = load(ROOT / "configs" / "smoke" / "standard.yaml", FAST)
    with runfolder.RunFolder(tmp_path, config, Session()) as mine:
        mine.start("0" * 64, {})
        other_machine(tmp_path)
        end = time.monotonic() + 20
        while mine._lease.lost is None and time.monotonic() < end:
            time.sleep(0.01)
        before = content(tmp_path)
        with pytest.raises(RunError, match=r"job 4711\) has taken over .* this one stops and saves nothing"):
            mine.save({"step": 0, "rows": []})
        with pytest.raises(RunError, match="has taken over"):
            mine.note(status="failed")
        mine.write_progress(3, 1.0)
        assert content(tmp_path) == before
    assert lease.owner(tmp_path / "lock")["host"] == "node7"  # it is not ours to remove


def test_another_run_s_checkpoint_is_not_gone_on_from(stopped, capsys):
    path = stopped / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["optimizer.lr"] = 0.5
    torch.save(state, path)
    before = content(stopped)
    assert call("standard", stopped, *FAST) == 2
    assert f"{path} is another run's: its optimizer.lr differ" in capsys.readouterr().err
    after = content(stopped)
    assert {name: after[name] for name in ("checkpoint.pt", "metrics.csv")} == {
        name: before[name] for name in ("checkpoint.pt", "metrics.csv")
    }


def test_images_that_cannot_be_read_count_once_however_often_a_run_is_resumed(tmp_path, capsys):
    config = load(ROOT / "configs" / "smoke" / "standard.yaml", FAST)
    a, b, c = "train/a.jpg: not an image", "val/b\n.jpg: it is cut short", "val/é.jpg: empty"
    for found, told, count in (([a, b], 2, 2), ([b, a, c], 1, 3), ([a], 0, 3)):
        with runfolder.RunFolder(tmp_path, config, Session()) as run:
            run.start("0" * 64, {})
            run.note_unreadable(found)
        assert capsys.readouterr().err.count("cannot be decoded") == told
        assert manifest(tmp_path)["unreadable_images"] == count
    lines = os.fsdecode((tmp_path / "unreadable.txt").read_bytes()).splitlines()
    assert lines == [a, b.replace("\n", " "), c]


def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_lock_of_a_dead_job_of_this_machine_is_free_at_once(tmp_path, capsys):
    other_machine(tmp_path, host=platform.node(), pid=gone())
    began = time.monotonic()
    lease.Lease(tmp_path, patience=30.0).release()
    assert time.monotonic() - began < 10
    assert capsys.readouterr().err == ""


def test_the_lock_of_a_killed_job_whose_worker_still_lives_is_waited_for(tmp_path):
    other_machine(tmp_path, host=platform.node(), pid=gone())
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-S", "-c", code, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    worker.stdout.readline()
    with pytest.raises(lease.Taken):
        lease.Lease(tmp_path, patience=0.2)
    threading.Timer(0.3, worker.stdin.close).start()
    lease.Lease(tmp_path, patience=30.0).release()
    worker.wait()
    worker.stdout.close()


def test_where_the_kernel_has_no_locks_the_file_decides(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    held = lease.Lease(tmp_path)
    with pytest.raises(lease.Taken, match=f"pid {os.getpid()} on"):
        lease.Lease(tmp_path)
    held.release()
    other_machine(tmp_path, host=platform.node(), pid=gone())
    lease.Lease(tmp_path).release()


# ---- other machines, other clocks


def test_a_job_goes_on_on_another_machine_whose_clock_is_behind(whole, tmp_path):
    patches = (partial(on_machine, name="node1"), partial(before_step, who=0, step=3, action=die))
    job = Job("standard", tmp_path / "run", *FAST, patches=patches)
    assert job.wait() == [-signal.SIGKILL]
    resumed(job.out, whole, patches=(partial(on_machine, name="node2", clock=-1e6),))
    assert "on node1) was training in" in (tmp_path / "run.0.log").read_text()
    times = [float(row["wall_s"]) for row in rows(job.out)]
    assert times == sorted(times)
    assert times[-1] < 1000


# ---- the teacher


def test_the_teacher_is_still_being_trained(stopped, tmp_path, capsys):
    teacher = f"growth.teacher={stopped / 'checkpoint.pt'}"
    held = lease.Lease(stopped)
    assert call("wider", tmp_path / "student", *FAST, teacher) == 2
    error = capsys.readouterr().err
    assert "is not finished (step 3 of 6): another process" in error
    assert f"(pid {os.getpid()} on {platform.node()}) is training it: run this one after it" in error
    (stopped / "checkpoint.pt").rename(stopped / "away.pt")
    assert call("wider", tmp_path / "student", *FAST, teacher) == 2
    assert "does not exist yet: another process" in capsys.readouterr().err
    held.release()
    assert call("wider", tmp_path / "student", *FAST, teacher) == 2
    assert "does not exist: train it first" in capsys.readouterr().err


def test_the_teacher_was_stopped_in_its_last_evaluation(tmp_path, capsys):
    job = Job("standard", tmp_path / "run", *FAST, "training.eval_every=6", patches=(in_evaluation,))
    assert job.wait() == [128 + signal.SIGTERM]
    assert state(job.out)["step"] == 6
    assert call("wider", tmp_path / "student", *FAST, f"growth.teacher={job.out / 'checkpoint.pt'}") == 2
    assert "is not finished (step 6 of 6): train it to its end first" in capsys.readouterr().err


def test_a_finished_run_without_its_metrics_is_not_taken_for_finished(tmp_path):
    out = finish("standard", tmp_path / "run")
    (out / "metrics.csv").rename(tmp_path / "kept.csv")
    again = Job("standard", out)
    assert again.wait() == [2]
    assert "its run.json says finished, and its metrics.csv is gone: put it back" in again.errors()[0]
    (tmp_path / "kept.csv").rename(out / "metrics.csv")
    assert Job("standard", out).wait() == [0]


def test_a_finished_run_says_where_its_images_have_changed_and_needs_none_of_them(folders, tmp_path, capsys):
    """It stays finished: with the images it was trained on, without any, and with others, which an unfinished one
    refuses."""
    keys = {"data.name": "folder", "data.root": folders, "data.image_size": 32, "data.workers": 0, "model.width": 0.1}
    keys |= {f"data.{key}": "null" for key in ("classes", "train_images", "val_images")}
    keys |= {"training.batch_size": 8, "training.bn_batch_size": 8, "training.steps": 1, "training.eval_every": 1}
    keys |= {"schedule.warmup_steps": 0, "training.compile": "false"}
    words = [str(ROOT / "configs" / "imagenet" / "teacher_narrow.yaml"), "--out", str(tmp_path / "run")]
    words += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    (folders / "train" / "list.txt").touch()
    assert train.main(words) == 0
    passed_over = f"train.py: warning: {folders}: 1 file beside the images, no images by name, passed over: "
    assert capsys.readouterr().err.startswith(f"{passed_over}{folders}/train/list.txt.\n")

    def again():
        capsys.readouterr()
        before = content(tmp_path / "run")
        assert train.main(words) == 0
        assert content(tmp_path / "run") == before
        out, err = capsys.readouterr()
        assert "is finished: " in out
        return err

    assert again() == ""
    image = next((folders / "train").rglob("*.JPEG"))
    image.rename(image.with_stem("another"))
    error = again()
    assert error.startswith(f"train.py: warning: {tmp_path / 'run'} was begun on other data: fingerprint ")
    assert "(24 + 12 images, now 24 + 12 images); it is finished and stays so" in error
    shutil.rmtree(folders / "val")
    assert "its images are no longer there as they were: " in again()
    shutil.rmtree(folders)
    assert again() == ""
    folders.mkdir()  # a mount point
    assert again() == ""
