"""torch.compile of a training pass: one graph for each region and none more, and the same numbers."""

import copy
import shutil

import pytest
import steps
import torch
from nets import SHORT
from places import CONFIGS
from torch.nn import functional as F

import net2net
from net2net.inception_bn import TABLES, ConvBNReLU, InceptionBN
from training.batchnorm import GroupedBatchNorm2d, group_batch_norms
from training.compilation import compiled, regions
from training.config import differences, flatten, load

# Dynamo hides this warning of its own by a filter, which does not work where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
TINY = SHORT._replace(modules=SHORT.modules[2:])  # one module, with its stride
SMALL = (*("training.batch_size=24", "training.bn_batch_size=4", "model.width=0.15", "optimizer.lr=1e-4"),)
# The arms differ in what is compiled by depth and by what is trained beside the student; the rest are widths.
KINDS = {"standard": (0, False), "deeper": (2, False), "teacher_prediction": (0, True)}


@pytest.fixture
def graphs(monkeypatch):
    """What dynamo hands over, in order; nothing is generated of it."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    found, real = [], torch.compile

    def backend(graph, example_inputs):
        found.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend, **options))
    yield found
    torch.compiler.reset()


@pytest.fixture
def made(monkeypatch):
    """A function that makes an arm's training step, and its mini-batches."""
    monkeypatch.setitem(TABLES, "inception_bn_28", TINY)

    def make(arm, *overrides, dtype=torch.float32):
        step, _, batches = steps.make(arm, *SMALL, *overrides, layers=["inception.3c"], dtype=dtype)
        return step, batches

    return make


def skipped(batches, n):
    for _ in range(n):
        next(batches)
    return batches


def breaks():
    return dict(torch._dynamo.utils.counters["graph_break"])


# ---- graphs


def test_every_arm_is_of_a_kind_that_is_tried_here():
    for file in sorted((CONFIGS / "arms").glob("*.yaml")):
        config = load(CONFIGS / "smoke" / file.name)
        kind = min(config.model.extra_pairs, 2), config.teacher_prediction is not None
        assert kind in KINDS.values(), file.stem
    for arm, kind in KINDS.items():
        config = load(CONFIGS / "smoke" / f"{arm}.yaml")
        assert (config.model.extra_pairs, config.teacher_prediction is not None) == kind


# 4: plain batch norm; 12: over three groups
@pytest.mark.parametrize(("arm", "images_per_pass"), [("standard", 4), *((arm, 12) for arm in KINDS)])
def test_the_training_pass_is_one_graph(graphs, made, arm, images_per_pass):
    step, batches = made(arm, "training.compile=true", f"training.images_per_pass={images_per_pass}")
    assert any(isinstance(m, GroupedBatchNorm2d) for m in step.model.modules()) == (images_per_pass > 4)
    for number in range(2):
        step(number, batches)
    assert not breaks()
    assert len(graphs) == 1  # and no second one for another pass or step
    convolutions = [m for m in step.trained.modules() if isinstance(m, torch.nn.Conv2d)]
    if step.prediction:
        convolutions += [m for m in step.prediction.teacher.modules() if isinstance(m, torch.nn.Conv2d)]
    found = [n for n in graphs[0].graph.nodes if n.op == "call_function" and "conv2d" in str(n.target)]
    assert len(found) == len(convolutions)  # all of the network is in it


@pytest.mark.parametrize("arm", ["standard", "teacher_prediction"])
def test_by_modules_each_region_is_one_graph(graphs, made, arm):
    step, batches = made(arm, "training.compile=modules", "training.images_per_pass=12")
    names = list(step.model.state_dict())
    for number in range(2):
        step(number, batches)
    assert not breaks()
    assert len(graphs) == len(regions(step.trained)) == 2
    assert list(step.model.state_dict()) == names
    inside = sum(isinstance(m, torch.nn.Conv2d) for region in regions(step.trained) for m in region.modules())
    found = [n for g in graphs for n in g.graph.nodes if n.op == "call_function" and "conv2d" in str(n.target)]
    assert len(found) == inside
    # A begun run goes on without: the checkpoint is an eager one's.
    eager, others = made(arm, "training.compile=false", "training.images_per_pass=12")
    state = copy.deepcopy(step.state_dict())  # whose tensors the optimizer would else go on with
    eager.model.load_state_dict(state["model"])
    eager.load_state_dict(state)
    assert not differences(*(flatten(one.config) for one in (step, eager)))
    for one, mini_batches in ((step, batches), (eager, others)):
        one(2, mini_batches if one is step else skipped(mini_batches, 2 * 24 // 4))
    for name, value in step.model.state_dict().items():
        torch.testing.assert_close(eager.model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", ["widen", "deepen"])
def test_a_grown_net_is_one_graph(graphs, how):
    """With what the library leaves in it: what is compiled is a student as it comes, not one built anew."""
    teacher, x = InceptionBN(TINY, num_classes=10, width=0.15), torch.randn(8, 1, 28, 28)
    if how == "deepen":
        student = net2net.deepen(teacher, x, {"inception.*.middle.2": [(3, 1), (1, 3)]}, calibration=[x])
    else:
        student = net2net.widen(teacher, x, 1.5)
    forward = compiled(group_batch_norms(student, 4), True)
    F.cross_entropy(forward(x), torch.arange(8)).backward()
    assert len(graphs) == 1
    assert not breaks()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_break_would_be_seen(graphs):
    class Breaks(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x + 1

    compiled(torch.nn.Sequential(torch.nn.Linear(2, 2), Breaks(), torch.nn.Linear(2, 2)), True)(torch.zeros(1, 2))
    assert breaks()


# ---- numbers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules that torch.compile imports
def test_traced_steps_are_the_eager_ones(made, monkeypatch):
    """Forward and backward as inductor would be given them: running statistics that are written in place, too."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend="aot_eager", **options))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the logits, which the loss is taken of
    torch.compiler.reset()
    found = []
    for how in ("false", "true"):
        step, batches = made("standard", f"training.compile={how}", "training.images_per_pass=12", dtype=torch.float64)
        for number in range(2):
            step(number, batches)
        state = step.model.state_dict() | {f"grad of {n}": p.grad for n, p in step.model.named_parameters()}
        found.append(state | {"losses": step.losses, "correct": step.correct})
    same(*found)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_compiled_layer_is_the_eager_one():
    """With kernels that inductor generates, which takes minutes for a network on a CPU: its one kind of layer."""
    torch.compiler.reset()
    layer = group_batch_norms(ConvBNReLU(3, 4, (3, 3)).double(), 4)
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    found = []
    for how in (False, True):
        own = copy.deepcopy(layer)
        images = x.clone().requires_grad_()
        out = compiled(own, how)(images)
        out.square().sum().backward()
        found.append({"out": out, "images": images.grad} | dict(own.named_buffers()))
        found[-1] |= {name: parameter.grad for name, parameter in own.named_parameters()}
    same(*found)
    torch.compiler.reset()


def same(eager, ours):
    assert eager.keys() == ours.keys()
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
