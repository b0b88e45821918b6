"""Runs of train.py in processes of their own, as many as a run is to have, without torchrun's ten seconds for each.

They are forked from a server that has imported torch and timm once. A process of the tests has one such server, which
data workers and stages are forked from as well: it is there before any of them asks for one that has imported less.
Each run gets the variables that torchrun would set, and this process's tables of networks. A `patch` is a function of
the rank that changes something in there before train.py starts.
"""

import csv
import json
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
from places import ROOT

import train
from net2net.inception_bn import TABLES

DEADLINE = 120.0  # seconds; what takes a second here may take long where many tests run at once

context = multiprocessing.get_context("forkserver")


def serve():
    context.set_forkserver_preload(["train"])
    forkserver.ensure_running()


# A small network, and a mini-batch of six chunks.
SMALL = (
    "model.width=0.3",
    "training.batch_size=24",
    "training.bn_batch_size=4",
    "training.steps=6",
    "training.eval_every=3",
    "data.val_images=21",
    "optimizer.lr=1e-5",  # or else the deep net amplifies rounding a hundredfold in a step
)

# The smallest that is still a net, for what does not depend on it.
FAST = (
    "model.width=0.1",
    "training.batch_size=8",
    "training.bn_batch_size=4",
    "training.steps=6",
    "training.eval_every=2",
    "data.val_images=20",
)


def float64(rank):
    """Rounding then is far below what a difference of substance would make: the deep net amplifies float32's."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # images are made so, and logits


def _child(arguments, log, rank, world, port, tables, patches):
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if world > 1:
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    TABLES.update(tables)
    for patch in patches:
        patch(rank)
    code = train.main(arguments)
    raise SystemExit(code)


def call(arm, out, *overrides):
    """train.py in this process; returns its exit code."""
    config = ROOT / "configs" / "smoke" / f"{arm}.yaml"
    return train.main([str(config), "--out", str(out), *(w for o in overrides for w in ("--set", o))])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """A run of `world` processes that was started; their errors are in <out>.<rank>.log."""

    def __init__(self, arm, out, *overrides, world=1, patches=(), config=None):
        self.out = Path(out)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        config = config or ROOT / "configs" / "smoke" / f"{arm}.yaml"
        words = [str(config), "--out", str(out), *(w for o in overrides for w in ("--set", o))]
        port = free_port()
        self.logs = [Path(f"{out}.{rank}.log") for rank in range(world)]
        for log in self.logs:
            log.write_text("")
        self.processes = [
            context.Process(target=_child, args=(words, str(log), rank, world, port, TABLES, patches), daemon=True)
            for rank, log in enumerate(self.logs)
        ]
        for process in self.processes:
            process.start()

    def wait(self):
        """The processes' exit codes."""
        end = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.is_alive():
                process.kill()
        assert None not in codes, f"still running: {codes}, {self.errors()}"
        return codes

    def until(self, condition):
        """Wait for something that the run is to do."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, self.errors()
            assert any(process.is_alive() for process in self.processes), self.errors()
            time.sleep(0.01)

    def send(self, number, rank=None):
        for process in self.processes if rank is None else [self.processes[rank]]:
            os.kill(process.pid, number)

    def kill(self, rank=None):
        self.send(signal.SIGKILL, rank)

    def errors(self):
        """What each process wrote to stderr."""
        return [log.read_text() for log in self.logs]


def finish(arm, out, *overrides, **options):
    """Run to the end."""
    job = Job(arm, out, *overrides, **options)
    codes = job.wait()
    assert set(codes) == {0}, job.errors()
    return Path(out)


def rows(out):
    with (Path(out) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def manifest(out):
    return json.loads((Path(out) / "run.json").read_text())


def state(out, name="checkpoint.pt"):
    return torch.load(Path(out) / name, weights_only=True)


def ending(out):
    """Everything a run ends with, but for the seconds it took."""
    found = state(out)
    del found["wall_s"]
    found["rows"] = [{k: v for k, v in row.items() if k != "wall_s"} for row in found["rows"]]
    return found


def floats(found):
    """Every floating number in a checkpoint that is a run's, not the machine's, by its path in there."""
    flat = {}

    def walk(path, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}/{key}", inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(f"{path}/{index}", inner)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            flat[path] = value.double()
        elif isinstance(value, float) and not path.endswith("wall_s"):
            flat[path] = torch.tensor(value, dtype=torch.float64)

    walk("", {key: value for key, value in found.items() if key != "config"})
    return flat


def distance(a, b):
    """The largest relative difference between the floating numbers of two checkpoints, and where it is."""
    a, b = floats(a), floats(b)
    assert a.keys() == b.keys()
    return max((float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-3)), k) for k in a)
