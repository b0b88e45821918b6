"""What other people's clusters have, through a real Slurm: images that only the nodes see, a machine that dies between
two evaluations, and a folder of runs that two users share. tools/test_slurm.sh calls this after drive.py.

python tests/slurm/shared.py FOLDER
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import ROOT, Replication, check, run, say, submitted, wait

sys.path.insert(0, str(ROOT / "tests"))
from images import make_folders

SLURM = ("--launcher", "slurm", "--gpus", "0", "--minutes", "30")
SAVE = 2.0  # seconds between checkpoints of the run that dies
GROUP, USERS = "n2n-test", ("n2n-test-a", "n2n-test-b")
folder = Path(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = "1"


def scale(name, text):
    """A scale beside the project's own."""
    configs = folder / f"configs-{name}"
    shutil.copytree(ROOT / "configs", configs)
    (configs / name).mkdir()
    (configs / name / "base.yaml").write_text(text)
    return configs


def node_local():
    """The images have a name on the nodes that nobody knows where the job is submitted."""
    images = make_folders(folder / "node" / "images")
    cluster = folder / "cluster.yaml"
    cluster.write_text(f"gpus_per_node: 0\nminutes: 30\nsetup:\n  - export NODE_DATA={images}\n")
    text = "extends: ../imagenet/base.yaml\n" + "".join(
        f"{line}\n"
        for line in (
            "model: {multiple_of: 1}",
            "data: {name: folder, classes: null, train_images: null, val_images: null, image_size: 64, workers: 0}",
            "training: {steps: 2, eval_every: 2, batch_size: 8, bn_batch_size: 8, precision: float32, compile: false}",
            "arms: {teacher_narrow: {model.width: 0.1}}",
        )
    )
    there = Replication(folder / "node-local", scale("photos", text), "photos")
    there.arms(
        "teacher_narrow", arguments=("--launcher", "slurm", "--cluster", str(cluster), "--set", "data.root=$NODE_DATA")
    )
    done = there.runs / "teacher_narrow" / "seed0"
    wait(lambda: there.json("teacher_narrow/seed0", "run.json").get("status") in ("finished", "failed"), "it has ended")
    facts = json.loads((done / "run.json").read_text())
    check(facts["status"] == "finished", "images that only the nodes see are checked and read in the job")
    check(facts["config"]["data.root"] == "$NODE_DATA", "the record says how they were named")
    check((facts["data"]["classes"], facts["data"]["train_images"]) == (4, 24), "and what was found there")


def death_between_evaluations():
    """A machine that dies, as far as Slurm can tell: nothing answers, and Slurm kills and queues it again."""
    text = (
        "extends: ../smoke/base.yaml\ndata: {val_images: 20}\n"
        f"training: {{steps: 150, eval_every: 150, batch_size: 8, save_minutes: {SAVE / 60}}}\n"
    )
    there = Replication(folder / "dies", scale("rarely", text), "rarely")
    job = submitted(there.arms("teacher_narrow", arguments=SLURM))["teacher_narrow/seed0"][0]
    run_folder = there.runs / "teacher_narrow" / "seed0"
    saved = run_folder / "checkpoint.pt"
    wait(
        lambda: saved.exists() and there.json("teacher_narrow/seed0", "progress.json").get("step", 0) > 0, "it is saved"
    )
    time.sleep(SAVE / 2)
    pids = [int(pid) for pid in run("pgrep", "-f", "--", f"--out {run_folder}").split()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    lost = time.time() - saved.stat().st_mtime
    check(lost < SAVE + 2, f"{lost:.1f} s of training are lost, of {SAVE:g} between two checkpoints")
    before = there.json("teacher_narrow/seed0", "progress.json")["step"]
    check(before < 150, f"it dies at step {before}, before its first evaluation")
    run("scontrol", "requeue", job)
    wait(lambda: there.json("teacher_narrow/seed0", "run.json").get("status") == "finished", "it is finished")
    local = Replication(folder / "lives", folder / "configs-rarely", "rarely")
    local.arms("teacher_narrow", arguments=("--jobs", str(os.cpu_count())))  # one thread each, as the job has
    check(
        there.metrics("teacher_narrow/seed0") == local.metrics("teacher_narrow/seed0"),
        "it ends as one that never died",
    )


def two_users():
    """One trains the teacher, the other looks at it and grows the student from it, in a folder of their group."""
    runs = folder / "group"
    runs.mkdir()
    shutil.chown(runs, group=GROUP)
    runs.chmod(0o2775)
    people = [
        Replication(runs, ROOT / "configs", user=name, group=GROUP, umask=0o002, env=environment(name))
        for name in USERS
    ]
    first, second = people
    first.arms("teacher_narrow", arguments=SLURM)
    wait(
        lambda: first.json("teacher_narrow/seed0", "run.json").get("status") == "finished", "the first user's is there"
    )
    state, text = second.status()["teacher_narrow/seed0"]
    check(state == "done", f"the other user sees it: {state}: {text}")
    check(set(submitted(second.pair(*SLURM))) == {"wider/seed0"}, "and submits the student alone")
    wait(lambda: second.json("wider/seed0", "run.json").get("status") == "finished", "the second user's is there")
    owners = [(first.runs / stage / "seed0" / "run.json").owner() for stage in ("teacher_narrow", "wider")]
    check(owners == list(USERS), "each has files of its own")
    check((first.runs / "wider" / "seed0" / "run.json").group() == GROUP, "which belong to the group")
    check(first.status()["wider/seed0"][0] == "done", "the first user sees the student")


def environment(name):
    return {**os.environ, "HOME": str(folder / name), "USER": name, "LOGNAME": name}


def others_can_read():
    """Whether another user reaches the interpreter and the checkout at all."""
    how = {"user": USERS[0], "group": GROUP, "cwd": ROOT, "env": environment(USERS[0]), "capture_output": True}
    try:
        return subprocess.run([sys.executable, "-c", "import torch, replicate"], **how).returncode == 0
    except PermissionError:
        return False


node_local()
death_between_evaluations()
run("groupadd", "--force", GROUP)
for name in USERS:
    subprocess.run(["useradd", "--no-create-home", "--gid", GROUP, name], capture_output=True)
    (folder / name).mkdir(exist_ok=True)
    shutil.chown(folder / name, name, GROUP)
try:
    if others_can_read():
        two_users()
    else:
        say("SKIPPED: two users of one folder, as others cannot read this checkout")
finally:
    for name in USERS:
        subprocess.run(["userdel", name], capture_output=True)
    subprocess.run(["groupdel", GROUP], capture_output=True)
say("all is well")
