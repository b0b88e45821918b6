"""Batch norm over groups of images in one pass: equal to the groups one after the other, and known to the library."""

import copy

import pytest
import steps
import torch
from nets import SHORT
from torch import nn
from torch.nn import functional as F

import net2net
from net2net.inception_bn import TABLES, InceptionBN
from training.batchnorm import GroupedBatchNorm2d, Statistics, group_batch_norms, passes
from training.session import Session

GROUP, GROUPS = 4, 3


def images(n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 28, 28, dtype=dtype, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(n) % 10


def net():
    return InceptionBN(SHORT, width=0.25, num_classes=10)


@pytest.fixture(scope="module")
def trained():
    """A net after some steps, in float64: weights and running statistics as training leaves them."""
    torch.manual_seed(0)
    model = net().double().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(4):
        x, labels = images(16, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def chunked(model, x, labels):
    """Loss, gradients and buffers of the groups one after the other, as `Statistics` has them."""
    before = [b.clone() for b in model.buffers()]
    sums, total = [torch.zeros_like(b) for b in before], 0.0
    for part, own in zip(x.split(GROUP), labels.split(GROUP), strict=True):
        loss = F.cross_entropy(model(part), own) / GROUPS
        loss.backward()
        total += loss.detach()
        for buffer, start, mean in zip(model.buffers(), before, sums, strict=True):
            if buffer.is_floating_point():
                mean += buffer / GROUPS
                buffer.copy_(start)
            else:
                mean.copy_(buffer)
    for buffer, mean in zip(model.buffers(), sums, strict=True):
        buffer.copy_(mean)
    return total


def differences(one, other):
    """The largest difference of two lists of tensors, and relative to the largest entry of its tensor."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(one, other, strict=True)]
    return (
        max((a - b).abs().max().item() for a, b in pairs),
        max(((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item() for a, b in pairs),
    )


def test_a_pass_of_groups_is_the_groups_one_after_the_other(trained):
    x, labels = images(GROUP * GROUPS, seed=99)
    plain, grouped = copy.deepcopy(trained).train(), group_batch_norms(copy.deepcopy(trained), GROUP).train()
    wanted = chunked(plain, x, labels)
    loss = F.cross_entropy(grouped(x), labels)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-13)
    absolute, relative = differences([p.grad for p in grouped.parameters()], [p.grad for p in plain.parameters()])
    assert absolute < 1e-11
    assert relative < 1e-9
    floating = [[b for b in m.buffers() if b.is_floating_point()] for m in (grouped, plain)]
    assert differences(*floating)[1] < 1e-12
    assert all(
        torch.equal(a, b) for a, b in zip(grouped.buffers(), plain.buffers(), strict=True) if not a.is_floating_point()
    )
    one_group = copy.deepcopy(trained).train()  # the groups matter: over the whole batch it is something else
    F.cross_entropy(one_group(x), labels).backward()
    assert differences([p.grad for p in one_group.parameters()], [p.grad for p in plain.parameters()])[1] > 1e-3


def test_one_group_fewer_images_and_evaluation_are_plain_batch_norm_to_the_bit(trained):
    x, _ = images(GROUP * GROUPS, torch.float32)
    plain = copy.deepcopy(trained).float()
    for mode, n in ((True, GROUP), (True, GROUP - 1), (False, GROUP * GROUPS)):
        ours, theirs = group_batch_norms(copy.deepcopy(plain), GROUP).train(mode), copy.deepcopy(plain).train(mode)
        assert torch.equal(ours(x[:n]), theirs(x[:n]))
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_state_dict_and_modules_stay_those_of_the_plain_net(trained):
    plain = copy.deepcopy(trained)
    modules = dict(plain.named_modules())
    grouped = group_batch_norms(plain, GROUP)
    assert dict(grouped.named_modules()) == modules
    assert all(isinstance(m, GroupedBatchNorm2d) == isinstance(m, nn.BatchNorm2d) for m in grouped.modules())
    assert list(grouped.state_dict()) == list(trained.state_dict())
    net().double().load_state_dict(grouped.state_dict())
    assert "group_size=4" in repr(grouped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_memory_format_type_and_options_are_kept(dtype, options):
    torch.manual_seed(0)
    layer, plain = GroupedBatchNorm2d(6, 4, **options), nn.BatchNorm2d(6, **options)
    x = (3 + 2 * torch.randn(12, 6, 5, 5)).to(dtype).contiguous(memory_format=torch.channels_last)
    for model in (layer, plain):
        model.train(options.get("track_running_stats", True))  # without, evaluation takes the batch's statistics too
    out = layer(x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.cat([plain(part) for part in x.split(4)])
    torch.testing.assert_close(out, wanted, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.01)


def test_a_batch_that_is_no_number_of_groups_is_refused():
    layer = GroupedBatchNorm2d(6, 4)
    with pytest.raises(ValueError, match="groups of 4 images was given 10 in training mode: expected a multiple of 4"):
        layer(torch.zeros(10, 6, 3, 3))
    assert layer.eval()(torch.zeros(10, 6, 3, 3)).shape == (10, 6, 3, 3)


def test_a_cumulative_average_is_refused_by_name():
    with pytest.raises(ValueError, match="0: batch norm with momentum=None"):
        group_batch_norms(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), 4)


# ---- in the library


def grown_by(how, teacher, x):
    if how == "widen":
        return net2net.widen(teacher, x, 1.5)
    if how == "random_pad":
        return net2net.random_pad(teacher, x, 1.5)
    return net2net.deepen(teacher, x, {"inception.*.middle.2": [(3, 1), (1, 3)]}, calibration=[x])


@pytest.mark.parametrize("how", ["widen", "random_pad", "deepen"])
def test_the_library_grows_verifies_and_replays_it(trained, how):
    x, _ = images(GROUP * GROUPS, seed=7)
    plain, grouped = copy.deepcopy(trained), group_batch_norms(copy.deepcopy(trained), GROUP)
    theirs, ours = grown_by(how, plain, x), grown_by(how, grouped, x)
    if how != "random_pad":
        for train in (False, True):
            certificate = net2net.verify(grouped, ours, x, train=train)
            assert certificate.max_abs < 1e-10
            assert certificate.relative < 1e-9
    kinds = [type(m) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    assert kinds.count(GroupedBatchNorm2d) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    replayed = net2net.replay(net2net.history(ours), group_batch_norms(net().double(), GROUP))
    replayed.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(replayed.eval()(x), ours.eval()(x), rtol=1e-11, atol=1e-11)
    if how != "deepen":  # where batch norm takes its statistics does not change what is copied
        assert net2net.history(ours) == net2net.history(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_widened_net_that_is_wrong_over_groups_is_noticed(trained):
    """Statistics of one group for all: the certificate in training mode would not let it pass."""
    x, _ = images(GROUP * GROUPS, seed=7)
    grouped = group_batch_norms(copy.deepcopy(trained), GROUP)
    student = group_batch_norms(net2net.widen(grouped, x, 1.5), GROUP * GROUPS)
    assert net2net.verify(grouped, student, x).relative < 1e-9
    assert net2net.verify(grouped, student, x, train=True).relative > 1e-3


# ---- how many in a pass


@pytest.mark.parametrize(
    ("chunks", "chunk", "images", "wanted"),
    [
        (64, 32, 256, [8] * 8),
        (1, 128, 256, [1]),
        (2, 128, 256, [2]),
        (4, 512, 256, [1] * 4),  # one chunk is more than that
        (22, 32, 256, [8, 7, 7]),
        (11, 32, 256, [6, 5]),
        (64, 32, 32, [1] * 64),
        (64, 32, 4096, [64]),
    ],
)
def test_passes_are_few_and_as_equal_as_can_be(chunks, chunk, images, wanted):
    assert passes(chunks, chunk, images) == wanted


# ---- in training


SMALL = ("training.batch_size=24", "training.bn_batch_size=4")
LAYERS = ("inception.3a", "inception.3c")


@pytest.fixture
def step(trained, monkeypatch):
    """A function that makes two updates with so many images in a pass; returns the step and its gradients."""

    monkeypatch.setitem(TABLES, "inception_bn_28", SHORT)

    def take(images_per_pass, arm="standard", dtype=torch.float64):
        overrides = *SMALL, f"training.images_per_pass={images_per_pass}"
        made, _, batches = steps.make(arm, *overrides, layers=LAYERS, model=copy.deepcopy(trained), dtype=dtype)
        grads = []
        made.optimizer.register_step_pre_hook(
            lambda *_: grads.append([p.grad.clone() for p in made.trained.parameters()])
        )
        for number in range(2):
            made(number, batches)
        return made, grads

    return take


@pytest.mark.parametrize(("arm", "images_per_pass"), [("standard", 8), ("standard", 1000), ("teacher_prediction", 16)])
def test_how_many_images_a_pass_takes_changes_rounding_alone(step, arm, images_per_pass):
    one, wanted = step(4, arm)
    several, found = step(images_per_pass, arm)
    assert one.passes == [1] * 6
    assert several.passes == {8: [2] * 3, 16: [3] * 2, 1000: [6]}[images_per_pass]
    # The second step's gradients are of weights that differ by rounding already, and a net like this is sensitive.
    assert differences(found[0], wanted[0])[1] < 1e-6  # the loss is float32, as ever
    assert differences(found[1], wanted[1])[1] < 1e-5
    for ours, theirs in ((several.losses, one.losses), (several.cross_entropies, one.cross_entropies)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert several.correct == one.correct
    for ours, theirs in zip(several.models, one.models, strict=True):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
            if "num_batches" in name:
                assert a.item() == b.item() > 0


def test_with_one_chunk_in_a_pass_batch_norm_stays_as_it_is(step):
    assert {type(m) for m in step(4)[0].model.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}
    assert {type(m) for m in step(8)[0].model.modules() if isinstance(m, nn.BatchNorm2d)} == {GroupedBatchNorm2d}


def test_passes_of_different_size_count_by_their_chunks():
    statistics = Statistics(nn.BatchNorm1d(2), Session(), [4, 2], 6)
    mean = statistics.buffers[0]
    statistics.begin_step()
    for number, value in enumerate((3.0, 6.0)):
        mean.fill_(value)
        statistics.after_pass(number)
    assert mean.tolist() == [4.0, 4.0]
