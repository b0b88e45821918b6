"""Stages as Slurm jobs, through submitit: what a job does, what it waits for, what a cluster file says."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.reading import YamlError, read
from replicate.runner import STOP, spawn, torchrun
from replicate.stage import ROOT, Stage

SAVE_SECONDS = 120  # warning before the time limit: to save, and to be queued again
LEAVE_SECONDS = 60  # how long a job may take to leave the queue after it ended
PORT, PORTS = 10000, 20000  # where a job's processes meet: below what Linux gives to connections, 32768 and up
REQUEUES = 1000  # after time limits; a stage may need many


class SlurmError(Exception):
    """Nothing can be launched on Slurm like this; the message says why."""


# Options of sbatch that are not the cluster file's to give, with its key that says the same; "": the launcher sets it.
OURS = {
    **dict.fromkeys(("time", "time-min"), "minutes"),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"), "nodes"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus_per_gpu"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "mem_gb"),
    **{key: key for key in ("partition", "account", "qos", "constraint")},
    **dict.fromkeys(("signal", "requeue", "no-requeue", "dependency", "array", "kill-on-invalid-dep"), ""),
    **dict.fromkeys(("job-name", "output", "open-mode"), ""),
}
RESOURCES = ("gres", "tres-per-job", "tres-per-node", "tres-per-socket", "tres-per-task")  # of GPUs: gpus_per_node


class Cluster(BaseModel):
    """What one cluster wants to know. Nothing here has a default that belongs to one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)  # of one stage
    gpus_per_node: int = Field(ge=0)  # of one stage; 0: a CPU partition, one process per node
    cpus_per_gpu: int | None = Field(None, ge=1)
    cpus_per_node: int | None = Field(None, ge=1)  # instead of cpus_per_gpu
    mem_gb: float | None = Field(None, ge=0.1, le=1e6)  # per node
    # Time limit; a stage that needs longer is queued again and goes on.
    minutes: int = Field(ge=5, le=31 * 24 * 60)
    setup: list[str] = []  # shell lines before the command, e.g. module load
    sbatch: dict[str, str | int | bool] | None = None  # any other option of sbatch, without its dashes

    @property
    def processes(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def cpus(self) -> int | None:
        return self.cpus_per_node or (self.cpus_per_gpu and self.cpus_per_gpu * self.processes)


def _flag(key: str) -> str:
    return "--gpus" if key == "gpus_per_node" else f"--{key}"


def load_cluster(file: Path | None, flags: dict[str, Any]) -> Cluster:
    """The cluster file's keys, overridden by flags that were given."""
    values: Any = {}
    if file is not None:
        try:
            values = read(file, "cluster file")
        except YamlError as error:
            raise SlurmError(str(error)) from None
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        cluster = Cluster.model_validate({**values, **given})
    except ValidationError as error:
        raise SlurmError("\n".join(_explain(e, file, given) for e in error.errors())) from None
    for name, value in (cluster.sbatch or {}).items():
        _check_option(name, value, file)
    if cluster.cpus_per_gpu and cluster.cpus_per_node:
        raise SlurmError(f"{file}: cpus_per_gpu and cpus_per_node say the same thing twice; give one of them")
    return cluster


def _check_option(name: str, value: Any, file: Path | None) -> None:
    """That an option of sbatch is one, and not the launcher's own."""
    option = name.strip("-").replace("_", "-")
    own = "gpus_per_node" if option in RESOURCES and "gpu" in str(value).lower() else OURS.get(option)
    if own is not None:
        instead = (
            f"give {own}, the cluster file's own key, in its place" if own else "the launcher sets it: take it out"
        )
        raise SlurmError(f"{file}: sbatch: {name} cannot be given here: {instead}")
    if name.startswith("-") or not re.fullmatch("[a-z][a-z-]*[a-z]", option):
        known = len(option) > 1 and re.fullmatch("[a-z][a-z-]*[a-z]", option)
        raise SlurmError(
            f"{file}: sbatch: {name}: expected the long name of an option of sbatch, without its dashes: write "
            f"{option if known else 'mail-type for --mail-type, for example'}"
        )


def _explain(error: Any, file: Path | None, given: dict[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    where = _flag(key) if key in given else f"{file}: {key}"
    if error["type"] == "extra_forbidden":
        return f"{file}: unknown key {key!r}; valid keys: {', '.join(Cluster.model_fields)}"
    if error["type"] == "missing":
        return f"{file or 'Slurm'}: {key} is missing: give it in the cluster file, or with {_flag(key)}"
    message = (
        error["msg"]
        .replace("Input should be", "expected")
        .replace("a valid integer", "an integer")
        .replace("a valid ", "a ")
    )
    return f"{where}: {message}, got {error['input']!r} ({type(error['input']).__name__})"


class Job:
    """What one job runs on each of its nodes: torchrun, until the stage ends or Slurm wants the node back.

    Slurm announces a time limit with SIGUSR2 and a preemption or `scontrol requeue` with SIGTERM. The stage is then
    stopped, which saves it. Where Slurm does not queue the job again by itself, submitit is left to do it.
    """

    def __init__(self, stage: Stage, cluster: Cluster):
        self.stage, self.cluster = stage, cluster

    def __call__(self) -> None:
        from submitit import JobEnvironment

        environment, received, passed_on = JobEnvironment(), [], False
        submitits = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: received.append(number))
        first = environment.node == 0
        if first:
            self.stage.begin_log(f"Slurm job {environment.job_id}")
            self.stage.note(job=environment.job_id, host=environment.hostname, started=time.time())
        rank, address = str(environment.node), environment.hostnames[0]
        port = str(PORT + int(environment.raw_job_id) % PORTS)
        command = torchrun(self.stage.arguments, self.cluster.processes, self.cluster.nodes, rank, address, port)
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        torch = spawn(command, self.stage.log, OMP_NUM_THREADS=str(max(1, cpus // self.cluster.processes)))
        while torch.poll() is None:
            if received and not passed_on:
                torch.send_signal(STOP)
                passed_on = True
            time.sleep(0.2)
        if torch.returncode == 0 or self.stage.finished:
            return
        if not first:  # the first node may have the job queued again, and Slurm then ends this task with SIGTERM
            deadline = time.monotonic() + LEAVE_SECONDS
            while signal.SIGTERM not in received and time.monotonic() < deadline:
                time.sleep(0.2)
        elif signal.SIGUSR2 in received or (received and _state(environment.job_id) == "RUNNING"):
            submitits(signal.SIGUSR2, None)  # has the job queued again; does not return, unless with an error
        elif received:
            sys.exit(128 + received[0])  # cancelled, or queued again by Slurm
        why = self.stage.why(f"torchrun ended with {torch.returncode}")
        if first:
            self.stage.note(**self.stage.noted(), failed=why)
        sys.exit(f"{self.stage.name} failed: {why}")

    def checkpoint(self) -> Any:
        """Called by submitit before it queues the job again: the same once more, train.py goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _state(job: str) -> str:
    """A job's state; of an array its element's. (The last element's raw number is the whole array's.)"""
    command = ["squeue", "-h", "-j", job, "-o", "%T"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except subprocess.TimeoutExpired:
        return ""


class Queued(NamedTuple):
    """A job as squeue sees it."""

    state: str
    reason: str
    nodes: str


def queue(ids: Iterable[str]) -> dict[str, Queued]:
    """Those of the jobs that Slurm knows and that have not ended, in one call."""
    ids = sorted(set(ids))
    if not ids:
        return {}
    listed = ",".join(sorted({job.partition("_")[0] for job in ids}))
    try:
        squeue = subprocess.run(
            ["squeue", "--noheader", "--array", "--jobs", listed, "--format", "%i|%T|%r|%N"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"squeue does not answer: {error}") from None
    if squeue.returncode:
        if "Invalid job id" in squeue.stderr:  # a single job, and it is long gone
            return {}
        raise SlurmError(f"squeue does not answer: {(squeue.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    rows = [line.strip().split("|") for line in squeue.stdout.splitlines() if line.count("|") == 3]
    return {row[0]: Queued(*row[1:]) for row in rows if row[0] in ids}


def live(stages: Iterable[Stage]) -> dict[str, str]:
    """The job of each stage that has one in the queue, by the stage's name; waits for those that are just ending."""
    jobs = {stage.name: stage.noted()["job"] for stage in stages if "job" in stage.noted()}
    deadline = time.monotonic() + LEAVE_SECONDS
    queued = queue(jobs.values())
    while any(job.state == "COMPLETING" for job in queued.values()) and time.monotonic() < deadline:
        time.sleep(1)
        queued = queue(jobs.values())
    return {name: job for name, job in jobs.items() if job in queued}


# Submits some seeds of one arm, which may start when the dependency holds, and returns their job ids.
Submit = Callable[[list[Stage], str | None], list[str]]


def submit_all(stages: list[Stage], jobs: dict[str, str], submit: Submit) -> dict[str, str]:
    """Submit what is neither finished nor in the queue (`jobs`), teachers first; returns the new jobs by stage.

    The seeds of an arm are one array. Where the teachers are an array too, each seed waits for its own teacher
    (`aftercorr`, which goes by index in the array); where only some teachers still run, their students go alone.
    """
    jobs, new = dict(jobs), {}
    names = {stage.name for stage in stages if not stage.finished}
    missing = [stage for stage in stages if stage.name in names and stage.name not in jobs]
    for arm in dict.fromkeys(stage.arm for stage in stages):  # a plan has teachers before their students
        seeds = [stage for stage in missing if stage.arm == arm]
        dependent = [stage for stage in seeds if stage.teacher in names]
        free = [stage for stage in seeds if stage not in dependent]
        groups: list[tuple[list[Stage], str | None]] = [(free, None)] if free else []
        waits_for = [jobs[stage.teacher] for stage in dependent]
        array = waits_for[0].rpartition("_")[0] if dependent else ""
        if len(dependent) > 1 and waits_for == [f"{array}_{k}" for k in range(len(dependent))]:
            groups.append((dependent, f"aftercorr:{array}"))
        else:
            groups += [([stage], f"afterok:{job}") for stage, job in zip(dependent, waits_for, strict=True)]
        for group, dependency in groups:
            for stage, job in zip(group, submit(group, dependency), strict=True):
                jobs[stage.name] = new[stage.name] = job
    return new


def parameters(stage: Stage, cluster: Cluster, dependency: str | None) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor for one arm."""
    path = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    # srun does not take over sbatch's --cpus-per-task since Slurm 22.05.
    srun = ["--kill-on-bad-exit=1", *([f"--cpus-per-task={cluster.cpus}"] if cluster.cpus else [])]
    return {
        "job_name": f"{stage.scale}-{stage.arm}",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodes": cluster.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus,
        "mem": None if cluster.mem_gb is None else f"{round(cluster.mem_gb * 1024)}M",
        "time": cluster.minutes,
        "signal_delay_s": SAVE_SECONDS,
        "dependency": dependency,
        "setup": [*cluster.setup, path],
        "srun_args": srun,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **(cluster.sbatch or {})},
    }


def _executor(folder: Path) -> Any:
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise SlurmError("this needs submitit: pip install 'net2net[cluster]', or run make setup") from None

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # texts are made without Slurm too

    return Executor(folder, max_num_timeout=REQUEUES)


def sbatch_text(stages: list[Stage], cluster: Cluster, dependency: str | None, folder: Path) -> str:
    """The file that is submitted for these seeds of one arm."""
    executor = _executor(folder)
    executor.update_parameters(**parameters(stages[0], cluster, dependency))
    if len(stages) > 1:
        executor.parameters["map_count"] = len(stages)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def launch(stages: list[Stage], cluster: Cluster, folder: Path, say: Callable[[str], None]) -> None:
    """Submit what is missing; a second call at the same time waits for the first."""
    executor = _executor(folder)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    def submit(group: list[Stage], dependency: str | None) -> list[str]:
        executor.parameters.clear()
        executor.update_parameters(**parameters(group[0], cluster, dependency))
        try:
            jobs = executor.submit_array([Job(stage, cluster) for stage in group])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise SlurmError(f"sbatch refuses {group[0].scale}/{group[0].arm}: {reason}") from None
        for stage, job in zip(group, jobs, strict=True):
            if stage.noted().get("job") != job.job_id:  # it may have started already
                stage.note(job=job.job_id, submitted=time.time())
            say(f"{stage.name}: job {job.job_id}" + (f", {dependency}" if dependency else ""))
        return [job.job_id for job in jobs]

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs = live(stages)
        for stage in stages:
            if stage.name in jobs:
                say(f"{stage.name}: in the queue already, job {jobs[stage.name]}")
        elsewhere = [stage for stage in stages if stage.locked and stage.name not in jobs]
        left = with_students(elsewhere, stages)
        if left:
            say(f"left out, a process of this machine is training them or their teachers: {', '.join(left)}")
        new = submit_all([stage for stage in stages if stage.name not in left], jobs, submit)
    done = sum(stage.finished for stage in stages)
    say(f"{done} of {len(stages)} runs are finished, {len(jobs)} were in the queue, {len(new)} were submitted")


def with_students(some: list[Stage], stages: list[Stage]) -> list[str]:
    """The names of some stages and of all unfinished ones that start from them, directly or by way of others."""
    names = {stage.name for stage in some}
    for stage in stages:  # a plan has teachers before their students
        if stage.teacher in names and not stage.finished:
            names.add(stage.name)
    return [stage.name for stage in stages if stage.name in names]


def describe(stages: list[Stage], cluster: Cluster, folder: Path) -> str:
    """The torchrun line of each stage and the sbatch file of each submission, for reading and pasting."""
    parts = []
    shell = {"rank": "$SLURM_NODEID", "address": "$MASTER", "port": f"$(({PORT} + SLURM_JOB_ID % {PORTS}))"}
    for stage in stages:
        command = torchrun(stage.arguments, cluster.processes, cluster.nodes, **shell)
        words = [word if "$" in word else shlex.quote(word) for word in command]
        first = ['MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'] if cluster.nodes > 1 else []
        parts.append("\n".join([f"# {stage.name}", *first, f"cd {shlex.quote(os.getcwd())} && {' '.join(words)}"]))

    def submit(group: list[Stage], dependency: str | None) -> list[str]:
        arm = f"<job of {group[0].arm}>"
        if len(group) == 1:
            ids = [f"<job of {group[0].name}>"]
        else:
            ids = [f"{arm}_{k}" for k in range(len(group))]
        text = sbatch_text(group, cluster, dependency, folder)
        parts.append(f"# sbatch file of {', '.join(stage.name for stage in group)}\n{text.strip()}")
        return ids

    submit_all(stages, {}, submit)
    return "\n\n".join(parts)
