"""summary, and new_head: what was grown as a table, and outputs for other classes."""

import copy
import json

import pytest
import torch
from nets import resnet18
from torch import nn
from torchvision.models import googlenet

import net2net

X = torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return resnet18(10)


def test_the_table_of_a_student(teacher):
    student = net2net.widen(teacher, X, 1.5, modules="layer1")
    found = net2net.summary(student, X, teacher)
    assert found.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (teacher, student))
    assert found.macs[0] < found.macs[1]
    text = str(found)
    for part in (
        "8 -> 12  layer1.0.conv1",
        f"{found.parameters[0]:,}",
        "MACs per example",
        "1  they are the network's output: fc",
        "outside modules=",
    ):
        assert part in text
    # Of the student alone the teacher's parameters are known by the record, its computations are not.
    alone = net2net.summary(student, X)
    assert (alone.parameters, alone.macs) == (found.parameters, (None, found.macs[1]))
    assert net2net.summary(student).macs == (None, None)
    assert net2net.summary(net2net.replay(json.dumps(net2net.history(student)), teacher)) == net2net.summary(student)


def test_the_table_of_several_growths_and_of_the_last_alone(teacher):
    wide = net2net.widen(teacher, X, widths={"layer4.0.conv1": 75})
    deep = net2net.deepen(wide, X, {"layer1.*": [3], "layer2.1": ["block"]}, [X], new_head=4)
    found = net2net.summary(deep, X)
    assert found.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (teacher, deep))
    text = str(found)
    assert "64 -> 75  layer4.0.conv1" in text
    assert "3 layers inserted:\n  after layer1.0  3x3\n  after layer1.1  3x3\n  after layer2.1  block" in text
    assert "new head: fc, 10 -> 4 outputs" in text
    last = net2net.summary(deep, teacher=wide)
    assert (last.grew, last.parameters[0]) == ([], sum(p.numel() for p in wide.parameters()))
    with pytest.raises(net2net.GrowthError, match="no growth on record"):
        net2net.summary(teacher)
    with pytest.raises(net2net.GrowthError, match="history is not the teacher's"):
        net2net.summary(wide, teacher=deep)


def features(model, x):
    """What the classifier reads."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.fc = nn.Identity()
    return model(x)


@pytest.mark.parametrize("grow", ["widen", "deepen"])
def test_a_new_head_on_a_preserved_body(grow, teacher, randomise):
    model = randomise(copy.deepcopy(teacher)).double()
    x = X.double()
    before = torch.random.get_rng_state()
    if grow == "widen":
        student = net2net.widen(model, x, 1.5, new_head=7)
    else:
        student = net2net.deepen(
            model, x, {"layer1.*": [3], "before fc": [net2net.Layer(1, maxout=2)]}, [x], new_head={"fc.1": 7}
        )
    assert torch.equal(torch.random.get_rng_state(), before)
    out = student.eval()(x)
    assert out.shape == (2, 7)
    out.sum().backward()
    head = student.fc if grow == "widen" else student.fc[1]
    assert (head.out_features, head.weight.requires_grad) == (7, True)
    bound = head.in_features**-0.5
    assert 0.9 * bound < head.weight.abs().max() <= bound  # as nn.Linear initialises itself, at the new width
    if grow == "widen":  # the body's channels are copies of the teacher's
        old, new = features(model, x), features(student, x)
        assert torch.allclose(new[:, :64], old, rtol=1e-10)
    again = net2net.replay(json.dumps(net2net.history(student)), model)
    same = [torch.equal(a, b) for a, b in zip(again.state_dict().values(), student.state_dict().values(), strict=True)]
    assert all(same) or grow == "deepen"  # whose statistics are not in the record
    assert torch.equal(again.get_submodule("fc" if grow == "widen" else "fc.1").weight, head.weight)
    assert model.fc.out_features == 10


class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_classes, self.num_labels, self.width = 6, 6, 6
        self.a, self.b = nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 6, 1)

    def forward(self, x):
        return {"logits": self.b(self.a(x).relu()).softmax(1), "x": x}


def test_heads_of_other_kinds():
    model = Labels()  # a convolution, in a dict, and numbers that modules keep of their classes
    student = net2net.widen(model, torch.randn(2, 2, 5), 1.5, new_head=3)
    assert student(torch.randn(2, 2, 5))["logits"].shape == (2, 3, 5)
    assert (student.num_classes, student.num_labels, student.b.out_channels) == (3, 3, 3)
    assert student.a.out_channels == 9
    model = googlenet(num_classes=10, init_weights=False, aux_logits=True)  # two more heads, in training alone
    student = net2net.widen(model, torch.randn(2, 3, 64, 64), 1.5, modules="conv2", new_head=4, verify=False)
    outputs = student.train()(torch.randn(2, 3, 64, 64))
    assert [tuple(out.shape) for out in outputs] == [(2, 4)] * 3


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 5)

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h), self.c(h)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (7, r"does not say which layer's outputs, give a dict: 'b' \(4 outputs\), 'c' \(5 outputs\)"),
        ({"a": 7}, r"names 'a', which does not make the outputs: 'b'"),
        ({"b": 0}, r"'b' needs a number of outputs of at least 1, got 0"),
        ({"b": "7"}, r"'b' needs a number of outputs of at least 1, got '7'"),
    ],
)
def test_what_a_new_head_cannot_be(asked, message):
    with pytest.raises(net2net.GrowthError, match=message):
        net2net.widen(Two(), torch.randn(2, 3), 2, new_head=asked)


def test_one_of_two_heads():
    student = net2net.widen(Two(), torch.randn(2, 3), 2, new_head={"b": 7})
    assert [y.shape[1] for y in student(torch.randn(2, 3))] == [7, 5]


def test_outputs_that_no_layer_makes():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    with pytest.raises(net2net.GrowthError, match="counts on the number of its outputs"):
        net2net.widen(model, torch.randn(2, 3), 2, new_head=5)


def test_the_record_of_a_new_head_fits_its_model():
    record = net2net.history(net2net.widen(Two(), torch.randn(2, 3), 2, new_head={"b": 7}))
    with pytest.raises(net2net.GrowthError, match="replaces 'b', a layer with 4 outputs"):
        net2net.replay(record[1], nn.Sequential(nn.Linear(3, 4)))
    for wrong in ({"heads": [3]}, {"heads": {"b": {"from": 4, "to": -1}}}, {"seed": None}):
        with pytest.raises(net2net.GrowthError, match="record of a new head"):
            net2net.replay([record[0], {**record[1], **wrong}], Two())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_an_optimizer_starts_anew_for_a_new_head(kind):
    model = Two()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.1, **options)
    sum(y.sum() for y in model(torch.randn(2, 3))).backward()
    optimizer.step()
    student = net2net.widen(model, torch.randn(2, 3), 2, new_head={"b": 7})
    grown = net2net.grow_optimizer(optimizer, student, teacher=model)
    parameters = {id(p) for group in grown.param_groups for p in group["params"]}
    assert parameters == {id(p) for p in student.parameters()}
    assert not any(s.any() for k, s in grown.state.get(student.b.weight, {}).items() if k != "step")
    assert grown.state[student.c.weight]
    sum(y.sum() for y in student(torch.randn(2, 3))).backward()
    grown.step()
    assert all(p.isfinite().all() for p in student.parameters())


class Experts(nn.Module):
    """Layers written as parameters of their own."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(*s)) for s in ((4, 6), (6, 5), (5, 2)))

    def forward(self, x):
        return (x @ self.w1).relu() @ self.w2 @ self.w3


@pytest.mark.quick
@pytest.mark.parametrize("at", ["", "1."])
def test_a_parameter_that_is_a_layer_to_its_module_goes_by_its_own_name(at):
    model, x = Experts() if not at else nn.Sequential(nn.Linear(4, 4), Experts()), torch.randn(3, 4)
    rows = {row.made_by[0]: row for row in net2net.explain(model, x).spaces}
    assert [rows[f"{at}w{k}"].read_by for k in (1, 2, 3)] == [[f"{at}w2"], [f"{at}w3"], []]
    for student in (
        net2net.widen(model, x, widths={f"{at}w2": 10}),
        net2net.widen(model, x, 2, modules=f"{at}w2"),
        net2net.widen(model, x, 2, modules=[f"{at}w2*"]),
    ):
        found = net2net.summary(student)
        assert [(row["made_by"], row["from"], row["to"]) for row in found.grew] == [([f"{at}w2"], 5, 10)]
        assert [f"{at}w1"] in [row["made_by"] for row in found.stayed]
    assert student.get_parameter(f"{at}w2").shape == (6, 10)
    with pytest.raises(net2net.GrowthError, match=f"layers that do: .*{at}w1"):
        net2net.widen(model, x, widths={f"{at}w": 8})
    first = net2net.widen(model, x, widths={at.rstrip("."): 8})  # the module is its first
    assert first.get_parameter(f"{at}w1").shape == (4, 8)
    if not at:
        with pytest.raises(net2net.GrowthError, match="the top level is w1, w2, w3"):
            net2net.widen(model, x, 2, modules="w")


@pytest.mark.quick
def test_a_layer_of_pytorch_goes_by_its_name_whatever_its_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 6, proj_size=5), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0])

    found = net2net.explain(Net(), torch.randn(5, 3, 4)).spaces
    assert [row.made_by for row in found] == [["rnn"], ["rnn"], ["fc"]]


@pytest.mark.quick
def test_a_summary_of_what_does_not_belong_together_says_so():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    student = net2net.widen(model, x, 2)
    with pytest.raises(net2net.GrowthError, match=r"with '2.weight', and teacher= does not have it: pass the model"):
        net2net.summary(student, x, model[:1])
    with pytest.raises(net2net.GrowthError, match=r"'0.weight', and teacher= has it with \(5, 4\), not \(6, 4\)"):
        net2net.summary(student, x, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(net2net.GrowthError, match="teacher= is the student itself, or has been grown as far: pass"):
        net2net.summary(student, x, student)
    with pytest.warns(UserWarning, match="multiply-accumulates of the student are not known: .*RuntimeError") as said:
        assert net2net.summary(student, torch.randn(3, 5)).macs == (None, None)
    assert said[0].filename == __file__
