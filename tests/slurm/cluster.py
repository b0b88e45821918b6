"""What the scripts of this folder share: calls that have to succeed, waiting, and a folder of runs."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGAN = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - BEGAN:5.1f} s] {text}", flush=True)


def run(*command, code=0, **options):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, **options)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
    return done.stdout


def check(truth, what):
    if not truth:
        raise SystemExit(f"FAILED: {what}\n{run('squeue', '--array')}")
    say(f"ok: {what}")


def wait(condition, what, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED: waited {seconds} s for: {what}\n{run('squeue', '--array')}")
        time.sleep(0.2)
    say(what)


class Replication:
    """One folder of runs, and the scripts called on it."""

    def __init__(self, runs, configs, scale="smoke", **how):
        """`how`: of `subprocess.run`, as whom and with which environment."""
        self.runs, self.where = runs / scale, ("--scale", scale, "--runs", str(runs), "--configs", str(configs))
        self.how = how

    def fig4(self, *arguments, code=0):
        return run(sys.executable, "replicate/fig4.py", *self.where, *arguments, code=code, **self.how)

    def pair(self, *arguments):
        """The narrow teacher and its wider student alone."""
        return self.arms("teacher_narrow", "wider", arguments=arguments)

    def arms(self, *names, arguments):
        text = f"import sys; from replicate.launch import main; sys.exit(main('', {names!r}))"
        return run(sys.executable, "-c", text, *self.where, *arguments, **self.how)

    def status(self):
        """{stage: (state, text)} as printed."""
        rows = run(sys.executable, "-m", "replicate", "status", *self.where, **self.how).splitlines()[1:-1]
        columns = [[*re.split(r"\s{2,}", row.strip(), maxsplit=3), ""] for row in rows]
        return {row[1]: (row[2], row[3]) for row in columns}

    def json(self, stage, name):
        path = self.runs / stage / name
        return json.loads(path.read_text()) if path.exists() else {}

    def on_its_way(self, stage):
        """Whether the attempt that runs now has made steps; cheaper than a call of `status`."""
        progress, started = self.runs / stage / "progress.json", self.json(stage, "job.json").get("started")
        return bool(started) and progress.exists() and progress.stat().st_mtime > started

    def metrics(self, stage):
        with (self.runs / stage / "metrics.csv").open() as lines:
            return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(lines)]

    def step(self, stage):
        path = self.runs / stage / "metrics.csv"
        return int(self.metrics(stage)[-1]["step"]) if path.exists() else -1


def submitted(output):
    """{stage: (job, dependency)} from what the script said."""
    return {m[1]: (m[2], m[3] or "") for m in re.finditer(r"^(\S+): job (\S+?)(?:, (\S+))?$", output, re.MULTILINE)}
