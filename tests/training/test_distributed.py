"""Several processes of one run: the same steps as one process makes, in float64, where rounding is out of the way."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from jobs import DEADLINE, SMALL, Job, distance, finish, float64, manifest, rows, state
from nets import SHORT
from places import ROOT

from net2net.inception_bn import TABLES
from training.batchnorm import Statistics
from training.config import load
from training.data.source import open_data
from training.evaluation import evaluate
from training.network import build
from training.session import Session
from training.step import TrainStep

NEAR = 1e-9  # relative; float64 rounds at 1e-16 and the net makes 1e-12 of it, a difference of substance is 1e-2
STUDENT = (*SMALL, "model.width=0.4", "training.steps=3", "growth.calibration_images=16")


def student(folder):
    return (*STUDENT, f"growth.teacher={folder / 'teacher' / 'checkpoint.pt'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one process: a teacher and its student."""
    folder = tmp_path_factory.mktemp("distributed")
    finish("standard", folder / "teacher", *SMALL, patches=(float64,))
    finish("wider", folder / "student", *student(folder), patches=(float64,))
    return folder


def equal(a, b):
    """Metrics and all of the state, but for rounding, and no column missing."""
    assert [row["step"] for row in rows(a)] == [row["step"] for row in rows(b)]
    found, where = distance(state(a), state(b))
    assert found < NEAR, where


# ---- the same steps


@pytest.mark.parametrize("world", [2, 4])  # 4: of six chunks, two processes have two and two have one
def test_several_processes_make_the_steps_of_one(folder, tmp_path, world):
    job = Job("standard", tmp_path / "run", *SMALL, world=world, patches=(float64,))
    assert job.wait() == [0] * world
    equal(folder / "teacher", job.out)
    assert manifest(job.out)["result"]["val_images"] == 21  # which 2 and 4 do not divide
    assert job.errors() == [""] * world  # no warnings of torch's either
    assert not list(job.out.glob(".*"))


def test_a_student_grown_by_one_of_several_processes_makes_the_steps_of_one(folder, tmp_path):
    out = finish("wider", tmp_path / "run", *student(folder), world=2, patches=(float64,))
    equal(folder / "student", out)
    first, was = state(out, "step0.pt"), state(folder / "student", "step0.pt")
    assert first["step"] == 0
    assert distance(first, was)[0] < NEAR
    for key, tensor in first["model"].items():  # the average of the weights begins at the grown ones
        assert torch.equal(tensor, first["ema"][key]), key


@pytest.mark.parametrize("arm", ["wider", "deeper"])
def test_every_process_carries_the_teachers_optimizer_state(folder, tmp_path, arm):
    carried = (*student(folder), "growth.optimizer=carried", "model.width=0.4" if arm == "wider" else "model.width=0.3")
    one = finish(arm, tmp_path / "one", *carried, patches=(float64,))
    two = finish(arm, tmp_path / "two", *carried, world=2, patches=(float64,))
    equal(one, two)
    assert state(two, "step0.pt")["optimizer"]["state"]  # or else there was nothing to carry


def test_the_share_of_an_uneven_deal_is_what_makes_it_equal(folder, tmp_path):
    """That the comparison above sees a mistake: without the weights of the chunks it fails."""
    out = finish("standard", tmp_path / "run", *SMALL, world=4, patches=(float64, unweighted))
    assert distance(state(folder / "teacher"), state(out))[0] > 1e-6


def unweighted(rank):
    original = Statistics.__init__

    def init(self, model, session, passes, chunks):
        original(self, model, session, passes, chunks)
        self.weight = 1 / session.world

    Statistics.__init__ = init


@pytest.mark.parametrize("how", ["true", "modules"])
def test_compiled_passes_on_several_processes_make_the_steps_of_an_eager_one(tmp_path, how):
    """Three chunks on each process in two passes: one without, one with an exchange of gradients at its end."""
    options = *SMALL, "training.steps=2", "training.eval_every=2"
    one = finish("standard", tmp_path / "one", *options, patches=(float64, short))
    job = Job(
        *("standard", tmp_path / "two", *options, "training.images_per_pass=8", f"training.compile={how}"),
        world=2,
        patches=(float64, short, traced),
    )
    assert job.wait() == [0, 0], job.errors()
    equal(one, job.out)
    graphs = 2 if how == "modules" else 1  # the stem and a module
    assert job.errors() == ["a graph\n" * graphs * 2] * 2  # for passes of two sizes


def short(rank):
    TABLES["inception_bn_28"] = SHORT._replace(modules=SHORT.modules[2:])


def traced(rank):
    """torch.compile without code generation, which would take minutes on a CPU; it says what it was given."""

    def backend(graph, example_inputs):
        print("a graph", file=sys.stderr, flush=True)
        return graph

    real = torch.compile
    torch.compile = lambda model, **options: real(model, backend=backend, **options)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_a_run_goes_on_on_another_number_of_processes(folder, tmp_path, before, after):
    out = tmp_path / "run"
    job = Job("standard", out, *SMALL, world=before, patches=(float64, stop_at_step_2))
    assert set(job.wait()) == {128 + signal.SIGTERM}
    assert state(out)["step"] == 2  # between two evaluations: the losses since the last one are kept too
    finish("standard", out, *SMALL, world=after, patches=(float64,))
    equal(folder / "teacher", out)


def stop_at_step_2(rank):
    original = TrainStep.__call__

    def call(self, step, batches):
        if rank == 0 and step == (1 if self.session.world == 1 else 0):  # several agree a step later
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, batches)

    TrainStep.__call__ = call


def test_the_statistics_that_are_evaluated_are_everybody_s(tmp_path):
    """The averaged model of the last checkpoint, evaluated here, has the accuracy and loss that two processes wrote.

    In float32: generated images are others where floats are drawn in float64.
    """
    config = load(ROOT / "configs" / "smoke" / "standard.yaml", SMALL)
    model = build(config.model, config.data)
    found = state(finish("standard", tmp_path / "run", *SMALL, world=2))
    model.load_state_dict(found["ema"])
    cpu = torch.device("cpu")
    loss, top1 = evaluate(model, open_data(config, cpu), Session(), torch.no_grad)
    assert top1 == found["rows"][-1]["val_top1"]
    assert loss == pytest.approx(found["rows"][-1]["val_loss"], rel=1e-5)


# ---- the deal


@pytest.mark.parametrize("images", [1, 2, 20, 21])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_validation_image_counts_once(images, world):
    config = load(ROOT / "configs" / "smoke" / "standard.yaml", [*SMALL, "training.bn_batch_size=2"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"val_images": images})})
    dealt = [open_data(config, torch.device("cpu"), rank, world) for rank in range(world)]
    seen = torch.cat([batch for data in dealt for batch, _ in data.validation()])
    assert len(seen) == images
    assert len(seen.flatten(1).unique(dim=0)) == images


def test_more_processes_than_chunks_are_refused(tmp_path):
    job = Job("standard", tmp_path / "run", *SMALL, "training.bn_batch_size=24", world=2)
    assert job.wait() == [2, 2]
    assert "2 processes, but a mini-batch of 24 images is 1 x 24" in job.errors()[0]
    assert "start fewer processes" in job.errors()[0]


# ---- torchrun itself


# What is registered first is called last. A thread of gloo that is still there then can abort its process.
THREADS_AT_THE_END = """
import atexit, os, pathlib

@atexit.register
def count():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    here = pathlib.Path(__file__).with_name(f"{os.getpid()}.threads")
    here.write_text(str(sum("gloo" in name for name in names)))
"""


def test_torchrun_runs_it(tmp_path):
    out = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "train.py"]
    overrides = [*SMALL, "training.steps=3"]
    arguments = [ROOT / "configs" / "smoke" / "standard.yaml", "--out", out]
    arguments += [word for override in overrides for word in ("--set", override)]
    (tmp_path / "sitecustomize.py").write_text(THREADS_AT_THE_END)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, *arguments], env=environment, capture_output=True, text=True, timeout=2 * DEADLINE
    )
    assert done.returncode == 0, done.stderr
    left = [path.read_text() for path in tmp_path.glob("*.threads")]
    assert left == ["0"] * 3  # of torchrun's own process and of the two that it starts
    assert [int(row["step"]) for row in rows(out)] == [0, 3]
    assert manifest(out)["status"] == "finished"
    assert done.stdout.count("is finished") == 1  # one of them writes
    assert not re.search("Traceback|Warning|destroy_process_group", done.stderr), done.stderr
