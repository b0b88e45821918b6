"""Launching: what Slurm would be given and in which order, what a cluster file may say, costs, and the status."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import experiments
from replicate import cost, launch, slurm, status
from replicate.runner import STOP, Runner, spawn, torchrun
from replicate.slurm import Queued, SlurmError, _state, load_cluster, submit_all, with_students
from replicate.stage import ROOT, plan
from training.config import flatten, load

SLURM = ["--gpus", "1", "--minutes", "30", "--partition", "p1"]


def stages_of(tmp_path, arms=("teacher_narrow", "wider"), seeds=(0, 1, 2)):
    return plan("smoke", arms, seeds, tmp_path)


def finish(stage, **more):
    """Make a stage look finished."""
    result = {"val_top1": 0.5, "wall_s": 90.0}
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / "metrics.csv").touch()
    write(stage, "run.json", {"status": "finished", "config": flatten(stage.config), "result": result, **more})


def write(stage, name, content):
    stage.folder.mkdir(parents=True, exist_ok=True)
    (stage.folder / name).write_text(json.dumps(content))


class Submissions:
    """Takes submissions as Slurm would, and keeps them."""

    def __init__(self):
        self.calls, self.next = [], 100

    def __call__(self, group, dependency):
        self.calls.append(([stage.name for stage in group], dependency))
        self.next += 1
        return [str(self.next)] if len(group) == 1 else [f"{self.next}_{k}" for k in range(len(group))]


# Order and dependencies


def test_arrays_wait_for_arrays_seed_by_seed(tmp_path):
    submit = Submissions()
    new = submit_all(stages_of(tmp_path), {}, submit)
    assert submit.calls == [
        ([f"teacher_narrow/seed{k}" for k in (0, 1, 2)], None),
        ([f"wider/seed{k}" for k in (0, 1, 2)], "aftercorr:101"),
    ]
    assert new["wider/seed2"] == "102_2"


def test_a_student_waits_for_nothing_once_its_teacher_is_finished(tmp_path):
    stages = stages_of(tmp_path)
    for stage in stages:
        if stage.name == "teacher_narrow/seed1":
            finish(stage)
    submit = Submissions()
    submit_all(stages, {}, submit)
    assert submit.calls == [
        (["teacher_narrow/seed0", "teacher_narrow/seed2"], None),
        (["wider/seed1"], None),
        (["wider/seed0", "wider/seed2"], "aftercorr:101"),  # by index in the arrays, not by seed
    ]


def test_students_of_jobs_in_the_queue_go_alone_where_the_indices_differ(tmp_path):
    jobs = {"teacher_narrow/seed0": "7_1", "teacher_narrow/seed1": "9", "wider/seed2": "8"}
    submit = Submissions()
    new = submit_all(stages_of(tmp_path), jobs, submit)
    assert submit.calls == [
        (["teacher_narrow/seed2"], None),
        (["wider/seed0"], "afterok:7_1"),
        (["wider/seed1"], "afterok:9"),
    ]
    assert sorted(new) == ["teacher_narrow/seed2", "wider/seed0", "wider/seed1"]


def test_an_array_in_the_queue_is_waited_for_as_one(tmp_path):
    jobs = {f"teacher_narrow/seed{k}": f"7_{k}" for k in (0, 1, 2)}
    submit = Submissions()
    submit_all(stages_of(tmp_path), jobs, submit)
    assert submit.calls == [([f"wider/seed{k}" for k in (0, 1, 2)], "aftercorr:7")]


def test_one_seed_is_no_array(tmp_path):
    submit = Submissions()
    submit_all(stages_of(tmp_path, seeds=(5,)), {}, submit)
    assert submit.calls == [(["teacher_narrow/seed5"], None), (["wider/seed5"], "afterok:101")]


def test_nothing_is_submitted_when_all_is_finished_or_queued(tmp_path):
    stages = stages_of(tmp_path, seeds=(0,))
    finish(stages[0])
    submit = Submissions()
    assert submit_all(stages, {"wider/seed0": "3"}, submit) == {}
    assert submit.calls == []


# submitit, with its own pretended Slurm


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """sbatch, srun and squeue that keep what they are given; returns the folder with the sbatch files, in order."""
    bin_, kept = tmp_path / "bin", tmp_path / "kept"
    bin_.mkdir()
    kept.mkdir()
    (kept / "queue").touch()
    scripts = {
        "srun": "true",
        "sbatch": f'n=$(ls {kept} | wc -l); cp "$1" {kept}/$n.sh; echo "Submitted batch job $n"',
        "squeue": f"cat {kept}/queue",
    }
    for name, text in scripts.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    return kept


def test_what_is_submitted_is_not_submitted_again(fake_slurm, tmp_path, capsys):
    command = ["--smoke", "--runs", str(tmp_path / "runs"), "--seeds", "0", "1", "--launcher", "slurm", *SLURM]
    assert launch.main("", ("fig4",), command) == 0
    assert "8 were submitted" in capsys.readouterr().out
    texts = [path.read_text() for path in sorted(fake_slurm.glob("*.sh"))]
    machines = {str(tmp_path): "TMP", sys.executable: "PYTHON", str(ROOT): "ROOT"}
    neutral = "".join(texts)
    for path, name in machines.items():
        neutral = neutral.replace(path, name)
    assert neutral == (ROOT / "tests" / "golden" / "sbatch.txt").read_text()  # so jobs in a queue stay what they are
    jobs = {f"{i}_{k}": "PENDING|Priority|" for i in range(1, 5) for k in (0, 1)}
    (fake_slurm / "queue").write_text("".join(f"{job}|{rest}\n" for job, rest in jobs.items()))
    assert launch.main("", ("fig4",), command) == 0
    assert "8 were in the queue, 0 were submitted" in capsys.readouterr().out
    (fake_slurm / "queue").write_text("")  # all cancelled
    assert launch.main("", ("fig4",), command) == 0
    assert "0 were in the queue, 8 were submitted" in capsys.readouterr().out


def test_what_grows_from_a_run_of_another_process_waits_with_it():
    """A student of its student, too, which would find no checkpoint of its teacher."""

    def stage(name, teacher=None, finished=False):
        return SimpleNamespace(name=name, teacher=teacher, finished=finished)

    stages = [stage("a"), stage("b", "a"), stage("c", "b"), stage("d", "a", finished=True), stage("e", "f"), stage("f")]
    assert with_students(stages[:1], stages) == ["a", "b", "c"]


def test_the_state_of_one_job_of_an_array(fake_slurm, tmp_path):
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho RUNNING\n[ $3 = 12_1 ] || echo RUNNING\n")
    assert _state("12_1") == "RUNNING"


def test_a_refusal_of_sbatch_is_passed_on_in_a_sentence(fake_slurm, tmp_path, capsys):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: p1' >&2\nexit 1\n")
    command = ["--smoke", "--runs", str(tmp_path / "runs"), "--launcher", "slurm", *SLURM]
    assert launch.main("", ("fig4",), command) == 2
    refusal = "sbatch refuses smoke/teacher_narrow: sbatch: error: invalid partition: p1\n"
    assert capsys.readouterr().err.endswith(refusal)  # after what sbatch itself said


def test_without_an_answer_of_squeue_nothing_is_submitted(fake_slurm, tmp_path, capsys):
    command = ["--smoke", "--runs", str(tmp_path / "runs"), "--launcher", "slurm", *SLURM]
    assert launch.main("", ("fig4",), command) == 0
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    before = len(list(fake_slurm.iterdir()))
    assert launch.main("", ("fig4",), command) == 2
    assert "squeue does not answer: slurm_load_jobs error: Unable to contact" in capsys.readouterr().err
    assert len(list(fake_slurm.iterdir())) == before


# Printing


def test_print_shows_what_would_run_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    runs = tmp_path / "runs"
    assert launch.main("", ("fig4",), ["--smoke", "--runs", str(runs), "--launcher", "print", *SLURM]) == 0
    out = capsys.readouterr().out
    assert not runs.exists()
    for arm in experiments.arms("fig4"):
        (line,) = [line for line in out.splitlines() if f"{arm}.yaml" in line]
        words = shlex.split(line)
        assert words[:2] == ["cd", os.getcwd()]
        assert words[3:6] == [sys.executable, "-m", "torch.distributed.run"]
        assert words[-5:] == [
            str(ROOT / "configs" / "smoke" / f"{arm}.yaml"), "--seed", "0", "--out", f"{runs}/smoke/{arm}/seed0",
        ]  # fmt: skip
    assert out.count("--dependency='afterok:<job of teacher_narrow/seed0>'") == 2
    assert "estimate, not measured: 600 us a layer" in out
    assert re.search(r"^total +4 ", out, re.MULTILINE)


def test_on_several_nodes_the_ranks_meet_on_the_first(tmp_path):
    cluster = slurm.Cluster(gpus_per_node=4, nodes=2, minutes=60, cpus_per_gpu=3, mem_gb=1.5, setup=["module load x"])
    text = slurm.describe(stages_of(tmp_path, seeds=(0,)), cluster, tmp_path / ".slurm")
    assert "--nnodes=2 --node-rank=$SLURM_NODEID --master-addr=$MASTER" in text
    for line in ("#SBATCH --cpus-per-task=12", "#SBATCH --nodes=2", "#SBATCH --mem=1536M", "module load x"):
        assert f"\n{line}\n" in text
    assert "--cpus-per-task=12 " in text.partition("srun")[2]


# The cluster file


def test_the_example_is_a_cluster():
    cluster = load_cluster(ROOT / "replicate" / "cluster.example.yaml", {})
    assert (cluster.processes, cluster.cpus) == (8, 128)


def test_the_status_for_other_programs_and_for_a_pipe_that_closes(tmp_path):
    command = f"{sys.executable} -m replicate status --scale smoke --runs {shlex.quote(str(tmp_path))}"
    found = json.loads(subprocess.run([*shlex.split(command), "--json"], cwd=ROOT, capture_output=True).stdout)
    assert len(found) == 8
    assert {run["state"] for run in found} == {"not started", "waiting"}
    assert {(run["step"], run["steps"]) for run in found} == {(0, 6)}
    script = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("0\n", "")


def test_flags_go_before_the_site_file(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("partition: a\ngpus_per_node: 8\nminutes: 60\n")
    cluster = load_cluster(file, {"partition": "b", "minutes": None, "gpus_per_node": 2})
    assert (cluster.partition, cluster.minutes, cluster.processes) == ("b", 60, 2)


GOOD = "gpus_per_node: 1\nminutes: 60"


@pytest.mark.parametrize("options", ["", "{}", "{mail-type: FAIL, mail_user: me, gres: 'lscratch:100'}"])
def test_options_of_sbatch_that_are_the_site_file_s_to_give(tmp_path, options):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"{GOOD}\nsbatch: {options}")
    given = slurm.parameters(plan("smoke", ["standard"], [0], tmp_path)[0], load_cluster(file, {}), None)
    assert ("gres" in given["additional_parameters"]) == ("gres" in options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus_per_node: 8\nminutes: 10\npartiton: x", "cluster.yaml: unknown key 'partiton'; valid keys: partition, "),
        ("gpus_per_node: 8", "minutes is missing: give it in the cluster file, or with --minutes"),
        ("gpus_per_node: 1\nminutes: 24:00:00", "minutes: expected an integer, got '24:00:00' (str)"),
        ("gpus_per_node: 1\nminutes: 1", "minutes: expected greater than or equal to 5, got 1"),
        (f"{GOOD}\nsbatch: {{time: 5}}", "sbatch: time cannot be given here: give minutes, the cluster file's own key"),
        (f"{GOOD}\nsbatch: {{gpus: 2}}", "sbatch: gpus cannot be given here: give gpus_per_node"),
        (f"{GOOD}\nsbatch: {{gres: 'gpu:a100:2'}}", "sbatch: gres cannot be given here: give gpus_per_node"),
        (f"{GOOD}\nsbatch: {{mem_per_gpu: 2G}}", "sbatch: mem_per_gpu cannot be given here: give mem_gb"),
        (f"{GOOD}\nsbatch: {{--requeue: true}}", "--requeue cannot be given here: the launcher sets it: take it out"),
        (
            f"{GOOD}\nsbatch: {{--mail-type: FAIL}}",
            "--mail-type: expected the long name of an option of sbatch, without",
        ),
        (f"{GOOD}\nsbatch: {{t: 5}}", "sbatch: t: expected the long name of an option of sbatch"),
        (f"{GOOD}\nsbatch: {{a b: 5}}", "sbatch: a b: expected the long name of an option of sbatch"),
        (f"{GOOD}\nmem_gb: .inf", "cluster.yaml: mem_gb: expected a finite number, got inf (float)"),
        (f"{GOOD}\nmem_gb: 0.0001", "cluster.yaml: mem_gb: expected greater than or equal to 0.1, got 0.0001 (float)"),
        ("minutes: 8", "gpus_per_node is missing: give it in the cluster file, or with --gpus"),
        ("gpus_per_node: '8'\nminutes: 10", "cluster.yaml: gpus_per_node: expected an integer, got '8' (str)"),
        ("gpus_per_node: -1\nminutes: 10", "greater than or equal to 0, got -1 (int)"),
        ("gpus_per_node: [", "cluster.yaml: not valid YAML: "),
        ("- 1", "cluster.yaml: expected keys and values, got list"),
        ("gpus_per_node: 1\nminutes: 10\ncpus_per_gpu: 1\ncpus_per_node: 1", "say the same thing twice"),
    ],
)
def test_a_wrong_site_file_is_refused_in_a_sentence(tmp_path, capsys, text, words):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    assert launch.main("", ("fig4",), ["--smoke", "--launcher", "print", "--cluster", str(file)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_a_site_file_that_is_not_there(tmp_path):
    with pytest.raises(SlurmError, match="cannot read this cluster file: No such file"):
        load_cluster(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "x"], "--partition is not read by --launcher local, only by --launcher slurm and print"),
        (["--launcher", "slurm", "--jobs", "2"], "--jobs is not read by --launcher slurm, only by --launcher local"),
        (["--processes", "0"], "--processes: expected at least 1, got 0"),
        (["--per-gpu", "0"], "--per-gpu: expected at least 1, got 0"),
        (["--launcher", "slurm", "--per-gpu", "2"], "--per-gpu is not read by --launcher slurm, only by"),
        (["--per-gpu", "2", "--processes", "2"], "--per-gpu: stages that share a GPU have one process each"),
    ],
)
def test_options_of_another_launcher_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as error:
        launch.main("", ("fig4",), ["--smoke", *arguments])
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def with_chunks(stage, chunks, monkeypatch):
    monkeypatch.setattr(type(stage), "chunks", chunks)
    return stage


@pytest.mark.parametrize(("chunks", "gpus", "processes"), [(8, 0, 1), (8, 8, 8), (8, 6, 4), (1, 8, 1), (8, 16, 8)])
def test_a_stage_takes_the_gpus_that_its_batch_can_be_shared_among(tmp_path, monkeypatch, chunks, gpus, processes):
    stage = with_chunks(stages_of(tmp_path)[0], chunks, monkeypatch)
    assert launch._processes(stage, None, gpus) == processes


def test_more_processes_than_the_batch_has_work_for_are_refused(tmp_path, monkeypatch, capsys):
    with_chunks(stages_of(tmp_path)[0], 2, monkeypatch)
    assert launch.main("", ("fig4",), ["--smoke", "--launcher", "print", "--gpus", "4", "--minutes", "10"]) == 2
    assert "4 processes, but" in (error := capsys.readouterr().err)
    assert "has work for 2" in error


# On this machine, with torchrun


def test_gpus_are_shared_out_and_given_back(tmp_path, monkeypatch):
    """Four GPUs and two processes each: two stages side by side, each with GPUs of its own."""
    stages = stages_of(tmp_path, arms=("teacher_narrow",))
    runner = Runner(stages, 4, 3, {stage.name: 2 for stage in stages}, ["0", "1", "5", "7"])
    seen = []

    class Pretended:
        pid, returncode = 1, 0

        def poll(self):
            return None

    def pretend(command, log, **environment):
        seen.append((environment["CUDA_VISIBLE_DEVICES"], environment["TRAIN_CORES"]))
        return Pretended()

    monkeypatch.setattr("replicate.runner.spawn", pretend)
    for stage in stages[:2]:
        assert runner._fits(stage)
        runner._start(stage)
    assert seen == [("0,1", "3"), ("5,7", "3")]
    assert not runner._fits(stages[2])
    finish(stages[0])
    runner._ended(*runner.running[stages[0].name])
    runner._start(stages[2])
    assert seen[2] == ("0,1", "3")
    runner.bar.close()


def test_several_stages_share_a_gpu_where_they_are_told_to(tmp_path, monkeypatch):
    made = []

    class Noted(Runner):
        def run(self):
            made.append((self.jobs, self.threads, set(self.processes.values()), self.gpus))
            return 0

    monkeypatch.setattr(launch, "Runner", Noted)
    monkeypatch.setattr(launch, "gpus_here", lambda: ["0", "1"])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    call = ["--scale", "gpu", "--seeds", "0", "1", "--runs", str(tmp_path)]
    assert launch.main("", ("fig4",), [*call, "--per-gpu", "3"]) == 0
    assert made == [(6, 2, {1}, ["0", "1"] * 3)]
    assert launch.main("", ("fig4",), [*call, "--processes", "1", "--jobs", "2"]) == 0
    assert made[1] == (2, 6, {1}, ["0", "1"])  # the cores of the machine, shared out among what runs at once


def test_gpus_that_are_shared_are_counted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "gpus_here", lambda: ["0", "1"])
    call = ["--scale", "gpu", "--seeds", "0", "1", "--runs", str(tmp_path), "--per-gpu", "3", "--dry-run"]
    assert launch.main("", ("fig4",), call) == 0
    assert "with all of 2 GPUs busy" in capsys.readouterr().out


def test_gpus_are_those_that_may_be_seen(monkeypatch):
    from replicate.runner import gpus_here

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpus_here() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nowhere")  # no nvidia-smi, as in a container that has what computing needs
    monkeypatch.setattr("replicate.runner.DEVICES", ("no-such-device*",))
    assert gpus_here() == []
    monkeypatch.setattr("replicate.runner.DEVICES", ("null",))
    monkeypatch.setattr("replicate.runner._gpus_of_torch", lambda: ["0", "1"])
    assert gpus_here() == ["0", "1"]


def test_the_command_is_understood_by_torchrun():
    from torch.distributed.run import parse_args

    one = parse_args(torchrun(["a.yaml", "--seed", "1"], 4)[3:])
    assert (one.nproc_per_node, one.standalone, one.signals_to_handle) == ("4", True, STOP.name)
    assert one.local_addr == "127.0.0.1"  # a host name that does not resolve would be waited for
    assert one.training_script_args == ["a.yaml", "--seed", "1"]
    two = parse_args(torchrun(["a.yaml"], 4, 2, "1", "node7", "20001")[3:])
    assert (two.nnodes, two.node_rank, two.master_addr, two.master_port) == ("2", 1, "node7", 20001)


CHILD = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: sys.exit(f"told {number}"))
print("ready", flush=True)
time.sleep(60)
"""


def spawn_child(log):
    process = spawn([sys.executable, "-c", CHILD], log)
    while "ready" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_torchrun_is_deaf_to_the_scheduler_and_listens_to_us(tmp_path):
    process = spawn_child(tmp_path / "log")
    for number in (signal.SIGTERM, signal.SIGUSR2):
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(STOP)
    assert process.wait(10) == 1
    assert f"told {int(STOP)}" in (tmp_path / "log").read_text()


def test_torchrun_is_told_when_we_are_killed(tmp_path):
    log = tmp_path / "log"
    here = str(Path(__file__).parent)
    code = f"import sys, os; sys.path.insert(0, {here!r}); from pathlib import Path; import test_launch\n"
    code += f"test_launch.spawn_child(Path({str(log)!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    deadline = time.monotonic() + 20
    while f"told {int(STOP)}" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("", "exit code 1"),
        ("something\nKilled\n", "Killed"),
        ("train.py: warning: 1 file is passed over\n", "exit code 1"),
        (
            "train.py: no data\nTraceback\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n==\n",
            "no data",
        ),
        ("[rank0]: ValueError: bad\n====\n x\n", "ValueError: bad"),
        ("train.py: earlier\n=== attempt of today, x\nRuntimeError: later\n", "RuntimeError: later"),
    ],
)
def test_the_reason_is_read_from_the_log_of_the_last_attempt(tmp_path, log, why):
    stage = stages_of(tmp_path)[0]
    stage.begin_log("in a test")
    with stage.log.open("a") as file:
        file.write(log)
    assert stage.why("exit code 1") == why


# Costs

HEADER = "hardware,torch,model,width,extra_pairs,image_size,batch,precision,what,loop,images_per_s"


def measured(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "train_x.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def test_costs_come_from_the_measured_rows_of_one_gpu(tmp_path):
    stages = stages_of(tmp_path, seeds=(0,))
    teacher = next(s for s in stages if s.arm == "teacher_narrow")
    rows = measured(
        tmp_path / "bench",
        "cpu-1-thread,2,inception_bn_28,0.5477,0,28,32,float32,end_to_end,net2net,1",
        "gpu-a,2,inception_bn_28,0.5477,0,28,32,float32,step,net2net,2",
        "gpu-a,2,inception_bn_28,0.5477,0,28,32,float32,end_to_end,timm,3",
        "gpu-a,2,inception_bn_28,0.5477,0,28,256,float32,end_to_end,net2net,4",
        "gpu-a,2,inception_bn_28,0.5477,0,28,32,float32,end_to_end,net2net,10.0",
        "gpu-a,2,inception_bn_28,1.0,4,28,32,float32,end_to_end,net2net,20",
    )
    found = cost.costs(stages, rows)
    # 6 steps of 32 images, and 4 evaluations (before the first step and after every second) of 200 at a third
    assert found[teacher.name].hours == pytest.approx((6 * 32 + 4 * 200 / 3) / 10 / 3600)
    assert found[teacher.name].source == "measured, 10 images/s, gpu-a"
    assert found["wider/seed0"].source.startswith("estimate, not measured: 600 us a layer")


def test_an_estimate_is_of_the_work_or_of_the_launches_whichever_is_more(tmp_path):
    (stage,) = plan("smoke", ("standard",), (0,), tmp_path)
    found = cost.costs([stage], tmp_path / "nothing")[stage.name]
    layers = cost.forward_cost(stage.config)[1]
    assert layers == 3 + 11 * 9  # the stem's, and each module's: 2, 3 and 4 on its paths
    assert found.hours == pytest.approx((6 * 32 + 4 * 200 / 3) * layers * 600e-6 / 32 / 3600)


def test_the_assumptions_are_what_public_figures_come_to():
    """A published ResNet-50 rate times its operations; the operations of one of our layers times 6 us."""
    import torch
    import torchvision
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from net2net.inception_bn import ConvBNReLU

    with torch.device("meta"):
        resnet, image = torchvision.models.resnet50(), torch.empty(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        resnet(image).sum().backward()
    assert pytest.approx(2600 * counter.get_total_flops() / 2, rel=0.1) == cost.ASSUMED

    class Count(TorchDispatchMode):
        views = ("view", "detach", "t", "alias", "expand", "as_strided", "permute")
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += str(func.overloadpacket).removeprefix("aten.") not in self.views
            return func(*args, **(kwargs or {}))

    layer, x = ConvBNReLU(8, 8, (3, 3)), torch.randn(2, 8, 6, 6, requires_grad=True)
    with Count() as count:
        layer(x).sum().backward()
    assert pytest.approx(count.n * 60e-6, rel=0.5) == cost.LAUNCH


def test_a_large_pass_costs_fewer_launches():
    config = load(ROOT / "configs" / "imagenet" / "standard.yaml")
    assert cost.images_in_a_pass(config) == 256
    small = load(
        ROOT / "configs" / "imagenet" / "standard.yaml", ["training.bn_batch_size=16", "training.images_per_pass=16"]
    )
    assert cost.images_in_a_pass(small) == 16
    layers = cost.forward_cost(config)[1]
    assert cost.assumed_rate(config) == (pytest.approx(256 / (layers * 600e-6)), "600 us a layer")
    wide = load(ROOT / "configs" / "imagenet" / "wider_sqrt2.yaml")
    assert cost.assumed_rate(wide) == (pytest.approx(60e12 / (3 * cost.forward_cost(wide)[0])), "60 TFLOP/s")
    assert cost.assumed_rate(small) == (pytest.approx(16 / (layers * 600e-6)), "600 us a layer")


def test_flops_are_two_for_each_multiply_add():
    """Against a count by hand: output pixels times the weights of each convolution, and the classifier's."""
    import torch

    from net2net.inception_bn import inception_bn

    counted, size = 0, {}
    model = inception_bn("inception_bn_28", num_classes=10, in_channels=1).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o, name=name: size.update({name: o.shape[-1] * o.shape[-2]}))
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            counted += 2 * module.weight.numel() * size.get(name, 1)
    (stage,) = plan("smoke", ("standard",), (0,), Path("nowhere"))
    assert cost.forward_cost(stage.config)[0] == counted


def test_where_the_data_is_can_be_said_for_all_stages_and_what_is_trained_cannot(tmp_path, capsys):
    scale = ["--scale", "imagenet", "--runs", str(tmp_path / "runs")]
    assert launch.main("", ("fig4",), scale) == 2
    assert (
        "there is no folder data/imagenet here, where the images should be: --set data.root=FOLDER"
        in capsys.readouterr().err
    )
    found = ["--set", f"data.root={tmp_path}"]
    assert launch.main("", ("fig4",), [*scale, *SLURM, *found, "--launcher", "print"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(f"--set data.root={tmp_path} --seed 0") == 4
    assert captured.err == ""
    assert launch.main("", ("fig4",), [*scale, "--dry-run", "--set", "optimizer.lr=1.0"]) == 2
    assert "--set optimizer.lr: here only what does not change the training may be set" in capsys.readouterr().err


def test_data_on_the_nodes_alone_is_no_matter_of_the_node_that_submits(fake_slurm, tmp_path, capsys):
    """Neither its folder nor the variable in its path is there; the job has both, and train.py checks them in it."""
    scale = ["--scale", "imagenet", "--runs", str(tmp_path / "runs"), *SLURM, "--launcher", "slurm"]
    for root, words in (
        ("/nowhere/imagenet", "there is no folder"),
        ("$NODE_DISK/imagenet", "$NODE_DISK is not set here"),
    ):
        assert launch.main("", ("teacher_narrow",), [*scale, "--set", f"data.root={root}"]) == 0
        assert "note: " in (err := capsys.readouterr().err)
        assert words in err


def test_a_figure_names_the_cost_of_all_three(tmp_path, capsys):
    arguments = ["--scale", "imagenet", "--runs", str(tmp_path), "--dry-run", "--seeds", "0", "1"]
    assert launch.main("", ("fig4",), arguments) == 0
    together = re.search(r"figures 4, 5 and 6 together: 16 runs, ([\d.]+) GPU-hours", capsys.readouterr().out)[1]
    arms = experiments.arms()
    assert launch.main("", tuple(arms), arguments) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^total +16 +{together} ", out, re.MULTILINE)
    assert "together" not in out


def test_the_cost_is_per_arm_in_total_and_what_is_left(tmp_path, monkeypatch):
    rows = measured(tmp_path / "bench", "gpu-a,2,inception_bn_28,1.0,0,28,32,float32,end_to_end,net2net,0.01")
    monkeypatch.setattr(cost.costs, "__defaults__", (rows,))
    stages = plan("smoke", ("standard",), (0, 1), tmp_path / "runs")
    finish(stages[0])
    one = (6 * 32 + 4 * 200 / 3) / 0.01 / 3600  # 12.7 hours
    lines = cost.table(stages, 2).splitlines()
    assert lines[1].split()[:3] == ["standard", "2", f"{2 * one:.1f}"]
    assert lines[2].split() == ["total", "2", f"{2 * one:.1f}"]
    assert lines[3] == f"{one:.1f} GPU-hours are left to run; with all of 2 GPUs busy about {one / 2:.1f} hours"


# Status


@pytest.fixture
def six(tmp_path):
    """The stages of Figures 4 and 6, seed 0, by arm."""
    arms = dict.fromkeys(experiments.arms("fig4") + experiments.arms("fig6"))
    return {stage.arm: stage for stage in plan("smoke", arms, (0,), tmp_path)}


def state_of(six, arm, queued=None):
    return status.states(list(six.values()), {} if queued is None else queued)[six[arm].name]


def test_done_and_not_started_and_waiting(six):
    assert state_of(six, "standard") == ("not started", "")
    assert state_of(six, "wider") == ("waiting", "for teacher_narrow/seed0")
    finish(six["standard"])
    assert state_of(six, "standard") == ("done", "validation accuracy 50.00%, 90 s")
    assert state_of(six, "wider_sqrt2") == ("not started", "")


def test_running_with_rate_and_time_left(six):
    stage = six["standard"]
    stage.note(job="12_0", host="n1", started=time.time() - 60)
    write(stage, "run.json", {"status": "running", "config": {}})
    queued = {"12_0": Queued("RUNNING", "None", "n[1-2]")}
    assert state_of(six, "standard", queued) == ("running", "starting, job 12_0 on n[1-2]")
    write(stage, "progress.json", {"step": 2, "steps": 6, "images_per_s": 0.5})
    expected = "step 2 of 6, 0 images/s, 4 min left, job 12_0 on n[1-2]"
    assert state_of(six, "standard", queued) == ("running", expected)
    stage.note(job="12_0", host="n1", started=time.time() - 6000)
    old = time.time() - 1200
    os.utime(stage.folder / "progress.json", (old, old))
    assert "no sign of life for 20 min" in state_of(six, "standard", queued).text


def test_in_the_queue_with_slurms_reason(six):
    six["teacher_narrow"].note(job="11")
    six["wider"].note(job="12")
    queued = {"11": Queued("PENDING", "Priority", ""), "12": Queued("PENDING", "Dependency", "")}
    assert state_of(six, "teacher_narrow", queued) == ("waiting", "job 11 pending (Priority)")
    assert state_of(six, "wider", queued) == ("waiting", "for teacher_narrow/seed0, job 12 pending (Dependency)")


def test_failed_with_the_reason_and_stopped(six):
    teacher, standard = six["teacher_narrow"], six["standard"]
    write(teacher, "run.json", {"status": "failed", "error": "the loss is not a number", "config": {}})
    assert state_of(six, "teacher_narrow").text == f"the loss is not a number (log: {teacher.log})"
    assert state_of(six, "wider") == ("waiting", "for teacher_narrow/seed0, which failed")
    standard.note(job="12")
    assert state_of(six, "standard").word == "stopped"
    assert "its job 12 has left the queue" in state_of(six, "standard").text
    standard.note(job="12", failed="no room")
    assert state_of(six, "standard") == ("failed", f"no room (log: {standard.log})")


def test_where_slurm_cannot_be_asked_nothing_is_made_up(six):
    stage = six["standard"]
    stage.note(job="12", host="another", started=time.time() - 60)
    found = status.states(list(six.values()), None)
    assert found[stage.name] == ("unknown", "job 12, and Slurm could not be asked; step 0 of 6")
    write(stage, "progress.json", {"step": 2, "steps": 6, "images_per_s": 32.0})
    found = status.states(list(six.values()), None)
    assert found[stage.name] == ("running", "step 2 of 6, 32 images/s, 4 s left, on another")


def test_a_process_of_this_machine_is_seen_by_its_lock(six):
    import fcntl

    stage = six["standard"]
    stage.note(host=os.uname().nodename, started=time.time())
    with (stage.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state_of(six, "standard") == ("running", f"starting, on {os.uname().nodename}")


def test_the_command_names_shared_stages_once_and_imports_no_torch(six, tmp_path):
    finish(six["standard"])
    code = "import sys; from replicate import status\n"
    code += f"status.main(['--scale', 'smoke', '--runs', {str(tmp_path)!r}])\n"
    code += "assert 'torch' not in sys.modules and 'submitit' not in sys.modules"
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert re.search(r"^4, 5, 6 +standard/seed0 +done +validation accuracy 50.00%", out, re.MULTILINE)
    assert out.splitlines()[-1] == "8 runs: 5 not started, 2 waiting, 1 done"


def test_an_unknown_scale_is_refused_in_a_sentence(capsys):
    assert status.main(["--scale", "huge"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# The page about it


def test_the_commands_of_the_page_are_understood():
    page = (ROOT / "docs" / "cluster.md").read_text()
    commands = re.findall(r"^python (replicate/\S+|-m replicate) (.*)$", page, re.MULTILINE)
    assert len(commands) > 4
    for script, rest in commands:
        words = shlex.split(rest)
        if words[0] == "status":
            assert script == "-m replicate"
            continue
        arguments = launch._parser("").parse_args(words)
        launch.check(launch._parser(""), arguments)
