"""Verification: it sees every difference, and changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from nets import Net
from torch import nn

from net2net import Certificate, GrowthError, verify, widen
from net2net.trace import traced

pytestmark = pytest.mark.quick


def plus(*offsets):
    """The identity, with an offset added to each output."""
    return Net(lambda m, x: tuple(x + torch.tensor(offset) for offset in offsets))


X = torch.tensor([[1.0, 2.0, 4.0], [0.0, -8.0, 3.0]])


def test_measures_the_largest_error_and_relates_it_to_the_largest_output():
    certificate = verify(plus(0.0), plus([0.0, 0.5, -2.0]), X)
    assert certificate == Certificate(2.0, 0.25, 0.5, "eval", "float64")
    assert str(certificate) == "max-abs error 2.00e+00, relative 2.50e-01, top-1 agreement 50.00% (eval mode, float64)"
    assert verify(plus(0.0), plus(0.0), X)[:3] == (0.0, 0.0, 1.0)


def test_differences_that_cancel_are_seen():
    assert verify(plus(0.0), plus([1.0, -1.0, 0.0]), X).max_abs == 1


def test_every_output_counts():
    assert verify(plus(0.0, 0.0), plus(0.0, 1.0), X).max_abs == 1
    assert verify(plus(0.0, 0.0), plus(0.0, 1.0), X).top1_agreement == 1


@pytest.mark.parametrize("outputs", [(0.0, float("nan")), (float("nan"), 0.0), (0.0, [0.0, float("nan"), 0.0])])
def test_nan_never_passes(outputs):
    certificate = verify(plus(0.0, 0.0), plus(*outputs), X)
    assert not certificate.max_abs < 1e9
    assert not certificate.relative < 1e9


def test_a_teacher_of_zeros_has_no_scale_of_its_own():
    zero = Net(lambda m, x: x * 0)
    assert verify(zero, zero, X).relative == 0
    assert verify(zero, plus(1.0), X).relative > 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_last_layer_that_begins_with_zeros_is_no_obstacle(dtype, recwarn):
    """As of timm's MLP mixers and of diffusion transformers. Its noise cancels out, up to rounding."""
    net = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 2)).to(dtype)
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    for factor in (2, 3, 2):
        net = widen(net, torch.randn(4, 3, dtype=dtype), factor)
        assert net[4].weight.any()
    assert not recwarn


def test_precision_is_the_one_asked_for():
    teacher, student = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(torch.eye(3))
        student.weight.copy_(torch.eye(3) * (1 + 2**-20))
    assert verify(teacher, student, X).relative == 2**-20
    assert verify(teacher, student, X, dtype=torch.bfloat16) == Certificate(0.0, 0.0, 1.0, "eval", "bfloat16")
    assert teacher.weight.dtype == torch.float32


def test_training_mode_normalises_by_the_batch_and_keeps_dropout_off():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    other.load_state_dict(model.state_dict())
    other[1].running_mean += 1
    assert verify(model, other, X, train=True)[:2] == (0.0, 0.0)
    assert verify(model, other, X, train=True).mode == "train"
    assert verify(model, other, X).max_abs > 0
    functional = Net(lambda m, x: F.dropout(x, 0.5, m.training) + F.dropout2d(x[..., None], 0.5, m.training)[..., 0])
    assert verify(functional, functional, X, train=True).max_abs == 0


def test_neither_model_changes():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify(model, model, X, train=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model[1].training) == (True, False)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_inputs_are_a_tensor_a_tuple_or_keywords():
    model = Net(lambda m, a, b, scale=1: (a - b) * scale)
    for inputs in ((X, X * 2), {"a": X, "b": X * 2, "scale": 3}):
        assert verify(model, model, inputs).max_abs == 0
    indices = Net(lambda m, i: m.table(i), table=nn.Embedding(4, 3))
    assert verify(indices, indices, torch.tensor([0, 3])).max_abs == 0  # whole numbers stay so


def test_whole_numbers_and_single_numbers_can_be_compared():
    assert verify(Net(lambda m, x: x.argmax(-1)), Net(lambda m, x: x.argmax(-1) * 0), X).max_abs == 2
    assert verify(Net(lambda m, x: x > 0), Net(lambda m, x: x > 0), X).max_abs == 0
    assert verify(Net(lambda m, x: x.sum()), Net(lambda m, x: x.sum() + 1), X)[::2] == (1.0, 0.0, "float64")


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Net(lambda m, x: x[:, :2]), r"different shapes: \[\(2, 3\)\] and \[\(2, 2\)\]"),
        (plus(0.0, 0.0), r"different shapes: \[\(2, 3\)\] and \[\(2, 3\), \(2, 3\)\]"),
    ],
)
def test_refuses_outputs_that_do_not_compare(student, message):
    with pytest.raises(GrowthError, match=message):
        verify(plus(0.0), student, X)


def test_refuses_to_certify_nothing():
    nothing = Net(lambda m, x: None)
    with pytest.raises(GrowthError, match="no numbers to compare"):
        verify(nothing, nothing, X)
    with pytest.raises(GrowthError, match="at least one example"):
        verify(plus(0.0), plus(0.0), X[:0])


def no_grad(weight):
    with torch.no_grad():
        weight.clamp_(-0.1, 0.1)


def in_training(model, x):
    if model.training:
        model.a.weight.data.mul_(0.5)
    return model.b(model.a(x).relu())


def reads(change):
    return lambda model, x: (change(model.a.weight), model.b(model.a(x).relu()))[1]


WRITING = {
    "data": reads(lambda weight: weight.data.clamp_(-0.1, 0.1)),
    "no_grad": reads(no_grad),
    "detach": reads(lambda weight: weight.detach().mul_(0.5)),
    "training": in_training,
    "nothing": lambda model, x: model.b(model.a(x).relu()),
}


@pytest.mark.parametrize("how", WRITING)
def test_widening_compares_without_a_copy_only_what_nothing_writes_into(how, randomise):
    """The check of a student would else change its teacher, and a copy of both is half of the memory."""
    model = randomise(Net(WRITING[how], a=nn.Linear(3, 8), b=nn.Linear(8, 2)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    widen(model, X, 1.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert traced(model, X).writes_nothing == (how == "nothing")


def test_an_embedding_that_renormalises_its_rows_keeps_them():
    model = nn.Sequential(nn.Embedding(4, 8, max_norm=0.1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    before = model[0].weight.detach().clone()
    assert not traced(model, torch.tensor([1, 2])).writes_nothing
    widen(model, torch.tensor([1, 2]), 1.5)
    assert torch.equal(model[0].weight, before)


class Heads(nn.Module):
    """Boxes in pixels beside scores, or logits of which some are masked."""

    def __init__(self, mask=None):
        super().__init__()
        self.scores, self.boxes, self.mask = nn.Linear(4, 6), nn.Linear(4, 2), mask

    def forward(self, x):
        scores = self.scores(x)
        if self.mask is None:
            return {"boxes": 640 * self.boxes(x), "scores": 0.01 * scores}
        return scores.masked_fill(torch.arange(6) < 4, self.mask)


@pytest.mark.parametrize("mask", [None, -1e9, torch.finfo(torch.float64).min, -float("inf")])
def test_large_numbers_do_not_hide_a_difference_of_small_ones(mask):
    torch.manual_seed(0)
    teacher, x = Heads(mask), torch.randn(5, 4)
    other = Heads(mask)
    other.boxes = teacher.boxes
    assert verify(teacher, other, x).relative > 1e-3
    assert verify(teacher, teacher, x) == Certificate(0.0, 0.0, 1.0, "eval", "float64")


def test_a_model_that_masks_with_infinity_is_widened():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(F.relu(self.a(x))).masked_fill(torch.tensor([True, False, False]), -float("inf"))

    assert widen(Masked(), torch.randn(5, 4), 1.5).a.out_features == 9


def test_an_output_without_numbers_may_come_first():
    net = Net(
        lambda m, x: {"keep": x.new_zeros(0), "logits": m.b(F.relu(m.a(x)))}, a=nn.Linear(4, 6), b=nn.Linear(6, 3)
    )
    student = widen(net, torch.randn(5, 4), 1.5)
    assert verify(net, student, torch.randn(5, 4)).top1_agreement == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_no_fault(dtype, monkeypatch):
    """A rule that is wrong by some percent, which is what rounding the weights to bfloat16 could explain."""
    from net2net.rules import RULES

    torch.manual_seed(0)
    monkeypatch.setitem(RULES, "logcumsumexp", RULES["relu"])
    net = Net(
        lambda m, x: m.o(m.d(m.c(x).logcumsumexp(1)).relu()), c=nn.Linear(4, 8), d=nn.Linear(8, 8), o=nn.Linear(8, 2)
    )
    with pytest.raises(GrowthError, match="does not compute its teacher's function"):
        widen(net.to(dtype), torch.randn(5, 4, dtype=dtype), widths={"c": 9})
