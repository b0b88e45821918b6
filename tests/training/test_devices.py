"""What a GPU would do otherwise than a CPU, seen on a pretended device: two devices in one operation, and waiting.

Whether it is fast, and what the kernels compute, only a GPU can tell (tests/training/test_gpu.py, bench/gpu.py).
"""

import contextlib
import copy

import pretended
import pytest
import steps
import torch
from nets import SHORT
from places import ROOT
from pretended import MixedDevices, Pretending
from torch.nn import functional as F

import net2net
import train as script
from net2net.certificate import ROUNDING, confirm
from net2net.inception_bn import TABLES, InceptionBN
from training.config import load
from training.device import float32_precision
from training.evaluation import before_training, evaluate
from training.optim import make_optimizer
from training.session import Session

CONFIGS = ROOT / "configs" / "smoke"
SMALL = (
    *("training.batch_size=24", "training.bn_batch_size=4", "training.images_per_pass=12", "data.val_images=20"),
    *("training.eval_every=2", "model.width=0.15"),
)
LAYERS = ("inception.3a", "inception.3c")

VIEWS = {  # and what else launches nothing
    *("view", "detach", "t", "alias", "expand", "as_strided", "permute", "transpose", "slice", "select", "split"),
    *("split_with_sizes", "unsqueeze", "squeeze", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "unbind"),
    *("empty_strided", "new_empty", "new_empty_strided", "view_as", "reshape", "unfold"),
}
BUDGET = 50  # eager; compiled they are a few


@pytest.fixture
def device():
    with Pretending() as device:
        yield device


def small(**options):
    torch.manual_seed(0)
    return InceptionBN(SHORT, num_classes=10, width=0.5, **options).to(memory_format=torch.channels_last)


# ---- the pretended device itself


def test_it_computes_what_the_cpu_does(device):
    model = small().double()
    x, labels = torch.randn(8, 1, 28, 28, dtype=torch.double), torch.arange(8)
    there = copy.deepcopy(model).to(pretended.device())
    loss, wanted = (
        F.cross_entropy(net(*given), target)
        for net, *given, target in (
            (there, x.to(pretended.device()), labels.to(pretended.device())),
            (model, x, labels),
        )
    )
    loss.backward()
    wanted.backward()
    assert loss.device.type == pretended.NAME
    torch.testing.assert_close(loss.cpu(), wanted)
    for ours, theirs in zip(there.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-12)


def test_it_refuses_tensors_of_two_devices(device):
    there, here = torch.ones(3, device=pretended.device()), torch.ones(3)
    for operation in (lambda: there + here, lambda: torch.cat([here, there]), lambda: there.add_(here)):
        with pytest.raises(MixedDevices, match=r"test_devices\.py"):
            operation()
    assert (there + torch.tensor(1.0)).cpu().tolist() == [2.0] * 3  # as CUDA: a number may come from anywhere


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t.cpu(),
        lambda t: bool(t.sum()),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.equal(t, t),
        lambda t: t.copy_(torch.zeros(3)),
        lambda t: t[torch.tensor([0, 1])],
        lambda t: torch.tensor(1.0, device=t.device),
    ],
)
def test_it_notes_where_the_program_waits(device, wait):
    there = torch.ones(3, device=pretended.device())
    device.reset()
    wait(there)
    assert sum(device.waits.values()) == 1
    assert next(iter(device.waits)).startswith("tests/training/test_devices.py:")


@pytest.mark.parametrize(
    "go_on",
    [
        lambda t: t.sum() + 1,
        lambda t: torch.where(t > 0, t, -t),
        lambda t: torch.zeros(3).to(t.device, non_blocking=True),
        lambda t: t.copy_(torch.zeros(3), non_blocking=True),
        lambda t: t.to(torch.float64),
    ],
)
def test_it_notes_nothing_where_it_does_not(device, go_on):
    there = torch.ones(3, device=pretended.device())
    device.reset()
    go_on(there)
    assert not device.waits


# ---- training


@pytest.fixture
def training(device, monkeypatch):
    """A function that makes a training step of an arm on the device, with its data."""

    monkeypatch.setitem(TABLES, "inception_bn_28", SHORT)

    def make(arm, *overrides, **options):
        session = Session()
        session.device = pretended.device()
        step, data, _ = steps.make(arm, *SMALL, *overrides, layers=LAYERS, session=session, **options)
        for group in step.optimizer.param_groups:
            group["foreach"] = True  # what timm's default comes to on CUDA (tests/training/test_gpu.py)
        return step, data

    return make


@pytest.mark.parametrize("arm", ["standard", "deeper", "teacher_prediction"])
def test_a_step_waits_for_nothing(device, training, arm):
    step, data = training(arm, "optimizer.clip_norm=2.0", "training.label_smoothing=0.1", "training.ema_warmup=true")
    batches = data.stream(0)
    step(0, batches)  # the optimizer's state is made
    device.reset()
    step(1, batches)
    assert not device.waits
    # An optimizer and an average that went through the parameters one by one would launch thousands.
    assert sum(n for name, n in device.operations.items() if "_foreach_" in name) < 30
    # The budget of a pass over three groups, for a layer: convolution, batch norm, ReLU, forward and backward.
    parts = [step.trained, *([step.prediction.teacher] if step.prediction else [])]
    layers = sum(isinstance(m, torch.nn.Conv2d) for part in parts for m in part.modules())
    launches = sum(n for name, n in device.operations.items() if name.removeprefix("aten.") not in VIEWS)
    assert launches <= BUDGET * layers * len(step.passes) + 150, launches / layers / len(step.passes)


def test_evaluation_waits_once_and_saving_does_not(device, training):
    step, data = training("standard")
    step(0, data.stream(0))
    device.reset()
    with torch.no_grad():  # views of a device written in Python do not go with inference mode
        evaluate.__wrapped__(step.evaluated, data, step.session, contextlib.nullcontext)
    lines = {where.split()[0] for where in device.waits}  # at its end, for the counts
    assert len(lines) <= 2
    assert all(line.startswith("training/evaluation.py") for line in lines), device.waits
    device.reset()
    step.state_dict()
    assert not device.waits
    before_training(step.model, data, step.session, contextlib.nullcontext)
    assert all(where.startswith("training/evaluation.py") for where in device.waits), device.waits


def test_optimizer_and_average_launch_a_few_kernels_whatever_the_number_of_layers(device, training):
    counts = []
    for pairs in (0, 2):
        model = small(extra_pairs=pairs)
        step, data = training("standard", "training.ema_decay=0.99", model=model)
        step(0, data.stream(0))
        device.reset()
        step.optimizer.step()
        step.ema.update(model, 2)
        counts.append(sum(device.operations.values()))
    assert len(list(model.parameters())) > 2 * 36
    assert counts[0] <= 2 * 11 + 2  # two groups of parameters; the average's weights and its counters
    assert counts[0] == counts[1]


# ---- growing


GROWN = {
    "widen": lambda model, x: net2net.widen(model, x, 1.5),
    "widen with noise": lambda model, x: net2net.widen(model, x, 1.5, noise=0.02),
    "random_pad": lambda model, x: net2net.random_pad(model, x, 1.5),
    "deepen": lambda model, x: net2net.deepen(model, x, {"inception.*.middle.2": [(3, 1), (1, 3)]}, calibration=[x]),
}


@pytest.mark.parametrize("how", list(GROWN))
def test_growing_keeps_to_the_device_and_gives_what_the_cpu_gives(device, how):
    config = load(CONFIGS / "standard.yaml", SMALL)
    teacher, x, labels = small().double(), torch.randn(8, 1, 28, 28, dtype=torch.double), torch.arange(8)
    found = []
    for place in ("cpu", pretended.device()):
        model, images = copy.deepcopy(teacher).to(place), x.to(place)
        optimizer = make_optimizer(config, model)
        F.cross_entropy(model(images), labels.to(place)).backward()
        optimizer.step()
        student = GROWN[how](model, images)
        grown = net2net.grow_optimizer(optimizer, student, teacher=model)
        assert {p.device for p in student.parameters()} == {torch.device(place)}
        assert {t.device for s in grown.state.values() for t in s.values() if t.ndim} == {torch.device(place)}
        for train in (False, True):
            certificate = net2net.verify(model, student, images, train=train)
            assert certificate.relative < (2 if "noise" in how or how == "random_pad" else 1e-9)
        F.cross_entropy(student(images), labels.to(place)).backward()
        grown.step()
        found.append([p.detach().cpu() for p in student.parameters()])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["widen", "deepen"])
def test_where_there_is_no_float64_growth_is_verified_in_float32_and_says_so(how):
    with Pretending(float64=False):
        x = torch.randn(8, 1, 28, 28).to(pretended.device())
        with pytest.raises(TypeError, match="does not support float64"):
            x.double()
        teacher = small().to(pretended.device())
        student = GROWN[how](teacher, x)  # which is verified
        for train in (False, True):
            certificate = net2net.verify(teacher, student, x, train=train)
            assert certificate.dtype == "float32"
            assert certificate.relative < ROUNDING[torch.float32]
        with torch.no_grad():
            student.classifier.bias.add_(1.0)
        sentence = r"float32\); expected a relative error of at most 0.0001. pretended has no float64: on the CPU"
        with pytest.raises(net2net.GrowthError, match=sentence):
            confirm(teacher, student, x, again=lambda _: pytest.fail("there is no float64 to grow it in"))


# ---- precision


def flags():
    """As kernels read them, and as programs do."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    read = [backend.fp32_precision == "tf32" for backend in (cudnn.conv, cudnn.rnn, matmul)]
    return *read, cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_is_not_tf32_and_what_was_set_is_set_again(precision, tmp_path, monkeypatch):
    seen = []
    before = flags()
    assert before[:4] == (True, True, False, True)  # PyTorch's own default for convolutions

    def trained(config, session, run, teacher):
        seen.append(flags())
        run.manifest["result"] = {}

    monkeypatch.setattr(script, "train", trained)
    config = load(CONFIGS / "standard.yaml", [f"training.precision={precision}"])
    script.run_to_the_end(config, tmp_path / "run", lambda: False)
    assert seen == [(*[False] * 5, before[-1]) if precision == "float32" else before]
    assert flags() == before
    with pytest.raises(ZeroDivisionError), float32_precision("float32"):
        1 / 0  # noqa: B018
    assert flags() == before


def test_growing_and_verifying_leave_the_precision_as_it_was():
    before = flags()
    torch.set_float32_matmul_precision("medium")
    try:
        asked, x = flags(), torch.randn(4, 1, 28, 28)
        teacher = small()
        net2net.verify(teacher, net2net.widen(teacher, x, 1.5), x)
        assert flags() == asked
    finally:
        torch.set_float32_matmul_precision(before[-1])
    assert flags() == before
