"""Passes that are captured and replayed, without a GPU: a pretended capture keeps the call, its replay calls it again.

What CUDA makes of it: bench/gpu.py's check "replayed_equals_eager".
"""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import steps
import torch
from compare import same
from nets import SHORT
from places import CONFIGS

from net2net.inception_bn import TABLES
from training import graphs
from training.config import load
from training.errors import RunError
from training.graphs import WARM_UP, Replayed, capture, gradients_in_one
from training.network import build
from training.session import Session

SMALL = (
    *("training.batch_size=20", "training.bn_batch_size=4", "training.cuda_graphs=true"),
    *("model.width=0.15", "training.label_smoothing=0.1"),
)


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def captured(monkeypatch):
    """The sizes that were captured; a replay reads nothing but the tensors that the capture was given."""
    sizes = []

    def pretended(run, images, labels, stream):
        sizes.append(len(images))
        return lambda: run(images, labels)

    monkeypatch.setattr(graphs, "capture", pretended)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return sizes


@pytest.fixture
def after(monkeypatch):
    """A function that makes some steps of an arm, by replayed passes or not, and gives what they left behind."""
    monkeypatch.setitem(TABLES, "inception_bn_28", SHORT._replace(modules=SHORT.modules[2:]))

    def make(arm, graphs, *overrides, session=None):
        if session is None:
            session = Session()
            session.cuda = graphs
        step, _, batches = steps.make(arm, *SMALL, *overrides, layers=["inception.3c"], session=session)
        assert step.replays == graphs
        for number in range(6):
            step(number, batches)
        return step

    return make


@pytest.mark.parametrize("arm", ["standard", "teacher_prediction"])
@pytest.mark.parametrize("images_per_pass", [4, 8, 20])  # passes of one size, of two, a single one
def test_replayed_passes_make_the_same_steps(captured, after, arm, images_per_pass):
    options = f"training.images_per_pass={images_per_pass}", "optimizer.clip_norm=1.0"
    ours, theirs = after(arm, True, *options), after(arm, False, *options)
    assert captured == {4: [4], 8: [8, 4], 20: [20]}[images_per_pass]
    assert same(ours.state_dict(), theirs.state_dict())


class Rank(Session):
    """One of two, in a thread of its own."""

    both, told = threading.Barrier(2, timeout=60), [None, None]

    def __init__(self, rank):
        super().__init__("cpu")
        self.rank, self.world, self.cuda = rank, 2, True

    def all_reduce(self, tensor):
        self.told[self.rank] = tensor.clone()
        self.both.wait()
        tensor.copy_(self.told[0] + self.told[1])
        self.both.wait()
        return tensor


def test_two_ranks_sum_their_gradients_and_make_the_step_of_one(captured, after):
    options = "training.batch_size=16", "training.label_smoothing=0.0"
    alone = after("standard", True, *options).state_dict()
    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(lambda rank: after("standard", True, *options, session=Rank(rank)), range(2)))
        ours, others = pool.map(lambda step: step.state_dict(), ranks)
    for name, wanted in alone["model"].items():
        if wanted.is_floating_point():  # the counters of batch norm are each rank's own
            torch.testing.assert_close(ours["model"][name], wanted, rtol=2e-3, atol=2e-4)
        assert torch.equal(ours["model"][name], others["model"][name])
    torch.testing.assert_close(ours["losses"], alone["losses"], rtol=1e-3, atol=1e-4)


def test_gradients_lie_in_one_tensor_each_in_its_own_format():
    config = load(CONFIGS / "smoke" / "standard.yaml")
    model = build(config.model, config.data).to(memory_format=torch.channels_last)
    flat = gradients_in_one(model.parameters())
    flat += 1
    for parameter in model.parameters():
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.data_ptr() % 512 == flat.data_ptr() % 512
        assert bool((parameter.grad == 1).all())


def test_a_pass_that_cannot_be_captured_is_told(monkeypatch):
    class Graph(contextlib.nullcontext):
        replay = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: graph)

    def run(images, labels):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pytest.raises(RunError, match=r"not permitted when stream is capturing; .*cuda_graphs=false"):
        capture(run, torch.ones(1), torch.ones(1), None)


def test_the_first_passes_are_run_as_they_are(captured):
    runs = []
    replayed = Replayed(lambda images, labels: runs.append((images.item(), labels.item())), torch.device("cpu"))
    for number in range(WARM_UP + 2):
        replayed(torch.tensor([float(number)]), torch.tensor([number]))
        assert len(captured) == (number >= WARM_UP)
    assert runs == [(number, number) for number in range(WARM_UP + 2)]
