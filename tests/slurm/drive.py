"""Figure 4 at smoke scale through a real Slurm: dependencies, arrays, a requeue, a cancellation, a failure, and the
same metrics as on this machine. tools/test_slurm.sh starts the Slurm and calls this; plain `make test` does not.

python tests/slurm/drive.py FOLDER
"""

import os
import shutil
import sys
from pathlib import Path

from cluster import ROOT, Replication, check, run, say, submitted, wait

import experiments

TEACHER_STEPS = 120  # long enough to be interrupted
STAGES = [f"{arm}/seed0" for arm in experiments.arms("fig4")] + ["teacher_narrow/seed1", "wider/seed1"]

folder = Path(sys.argv[1])
configs = folder / "configs"
shutil.copytree(ROOT / "configs", configs)
with (configs / "smoke" / "base.yaml").open("a") as file:
    keys = f"training: {{steps: {TEACHER_STEPS}, eval_every: 10, batch_size: 8}}, data: {{val_images: 20}}"
    file.write(f"\narms:\n  teacher_narrow: {{{keys}}}\n")
local, slurm = Replication(folder / "local", configs), Replication(folder / "slurm", configs)
SLURM = ("--launcher", "slurm", "--gpus", "0", "--minutes", "30")
os.environ["OMP_NUM_THREADS"] = "1"

local.fig4("--seeds", "0", "1", "--jobs", "2")
say("the local runs are there")

# One folder is spoilt: that stage has to fail, and to say why.
spoilt = slurm.runs / "random_pad" / "seed0"
spoilt.mkdir(parents=True)
(spoilt / "run.json").write_text("{}")

first = submitted(slurm.pair(*SLURM, "--seeds", "0", "1"))
array = first["teacher_narrow/seed0"][0].partition("_")[0]
check(
    {name: job for name, (job, _) in first.items() if name.startswith("teacher")}
    == {f"teacher_narrow/seed{k}": f"{array}_{k}" for k in (0, 1)},
    "the seeds of the teacher are one array",
)
check(all(first[f"wider/seed{k}"][1] == f"aftercorr:{array}" for k in (0, 1)), "each student waits for its own teacher")
second = submitted(slurm.fig4(*SLURM))
check(set(second) == {"standard/seed0", "random_pad/seed0"}, "the figure's script submits only what is missing")
check(second["random_pad/seed0"][1] == f"afterok:{array}_0", "a student of a job in the queue waits for that job")
check(submitted(slurm.fig4(*SLURM)) == {}, "called again, it submits nothing")
state, text = slurm.status()["wider/seed0"]
check(state == "waiting" and "for teacher_narrow/seed0" in text and "Dependency" in text, f"status: {state}: {text}")

wait(lambda: (slurm.runs / "teacher_narrow/seed1/log.txt").exists(), "the second teacher is on its way")
run("scancel", f"{array}_1")
wait(lambda: f"{array}_1" not in run("squeue", "-h", "--array", "-o", "%i"), "the second teacher is cancelled")
state, text = slurm.status()["teacher_narrow/seed1"]
check(state == "stopped" and "left the queue" in text, f"status: {state}: {text}")
wait(lambda: first["wider/seed1"][0] not in run("squeue", "-h", "--array", "-o", "%i"), "its student left the queue")
third = submitted(slurm.pair(*SLURM, "--seeds", "0", "1"))
check(set(third) == {"teacher_narrow/seed1", "wider/seed1"}, "only the cancelled two are submitted again")

wait(lambda: slurm.step("teacher_narrow/seed0") >= 10, "the first teacher is on its way")
state, text = slurm.status()["teacher_narrow/seed0"]
check(state == "running" and f"job {array}_0" in text and f"of {TEACHER_STEPS}" in text, f"status: {state}: {text}")
run("scontrol", "requeue", f"{array}_0")
state, text = slurm.status()["teacher_narrow/seed0"]
check(state in ("waiting", "running"), f"status of the one that was queued again: {state}: {text}")

# What Slurm sends before the time limit is over; submitit has the job queued again.
again = third["teacher_narrow/seed1"][0]
wait(lambda: slurm.on_its_way("teacher_narrow/seed1"), "the second teacher is on its way again")
run("scancel", "--signal=USR2", again)

wait(lambda: "failed" in slurm.json("random_pad/seed0", "job.json"), "the spoilt stage has failed")
wait(lambda: second["random_pad/seed0"][0] not in run("squeue", "-h", "-o", "%i").split(), "its job has ended")
state, text = slurm.status()["random_pad/seed0"]
check(state == "failed" and "is not a run's manifest" in text, f"status says why: {state}: {text}")
ended = run("scontrol", "show", "job", second["random_pad/seed0"][0])
check("JobState=FAILED" in ended, "its job is FAILED for Slurm too")
shutil.rmtree(spoilt)
check(set(submitted(slurm.fig4(*SLURM))) == {"random_pad/seed0"}, "repaired, it is submitted again, alone")

wait(lambda: all(slurm.json(name, "run.json").get("status") == "finished" for name in STAGES), "all are finished")
found = slurm.status()
check(all(found[name][0] == "done" for name in STAGES), "status says so")
check(submitted(slurm.fig4(*SLURM)) == {}, "called at the end, the script submits nothing")
for name in STAGES:
    check(slurm.metrics(name) == local.metrics(name), f"{name}: the metrics are those of the local run")
    teacher = name.replace("wider", "teacher_narrow").replace("random_pad", "teacher_narrow")
    if teacher != name:
        ended = (slurm.runs / teacher / "run.json").stat().st_mtime
        check(ended <= slurm.json(name, "job.json")["started"], f"{name} started after its teacher had finished")
for name, expected, why in (
    ("teacher_narrow/seed0", 2, "queued again"),
    ("teacher_narrow/seed1", 3, "cancelled, and once out of time"),
):
    attempts = (slurm.runs / name / "log.txt").read_text().count("=== attempt of")
    check(attempts == expected, f"{name} took {attempts} attempts: {why}")
say("all is well")
