"""explain, register_rule, and the verification that widen and deepen do by themselves."""

import pytest
import torch
from nets import Net, conv
from torch import nn
from torchvision.models import resnet18

import net2net
from net2net import rules
from net2net.growth import Growth
from net2net.trace import Trace

pytestmark = pytest.mark.quick


def test_explain_lists_spaces_readers_reasons_and_sites():
    found = net2net.explain(resnet18(num_classes=10), torch.randn(2, 3, 64, 64))
    first, last = found.spaces[0], found.spaces[-1]
    assert (first.width, first.fixed) == (64, None)
    assert first.made_by == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]  # tied by the residual additions
    assert set(first.read_by) == {"layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"}
    assert (last.width, last.made_by, last.fixed) == (10, ["fc"], "they are the network's output")
    assert found.sites["relu"] == "64 channels, batch norm, relu"
    assert "layer1.0.relu" not in found.sites  # called twice
    table = str(found)
    assert "conv1, layer1.0.conv2, layer1.1.conv2" in table
    assert "deepen after:" in table


def test_what_explain_calls_growable_grows_and_what_it_names_as_fixed_is_refused():
    model, x = (
        nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 2)),
        torch.ones(3, 4),
    )
    for space in net2net.explain(model, x).spaces:
        ask = {space.made_by[0]: space.width + 1}
        if space.fixed is None:
            assert net2net.widen(model, x, widths=ask).get_submodule(space.made_by[0]).out_features == space.width + 1
        else:
            with pytest.raises(net2net.GrowthError, match=r"softmax|output"):
                net2net.widen(model, x, widths=ask)
    assert "deepen after: nowhere" in str(net2net.explain(model, x))


def test_register_rule_by_name_and_by_function(monkeypatch):
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    model = Net(lambda m, x: m.c(torch.special.erfcx(m.b(torch.special.i0(m.a(x))))),
                a=conv(3, 4, 1), b=conv(4, 4, 1), c=conv(4, 2, 1))  # fmt: skip
    x = torch.randn(2, 3, 5, 5)
    with pytest.raises(net2net.UnsupportedOperation, match=r"'special_i0'.*net2net\.register_rule"):
        net2net.widen(model, x, 1.5, strict=True)
    net2net.register_rule(torch.special.i0, "relu")  # every element by itself
    with pytest.raises(net2net.UnsupportedOperation, match="special_erfcx"):
        net2net.explain(model, x, strict=True)

    def element_by_element(trace, call):
        return list(call.inputs[0].axes)

    net2net.register_rule(torch.special.erfcx, element_by_element)
    student = net2net.widen(model, x, 1.5)
    assert (student.a.out_channels, student.b.out_channels) == (6, 6)
    for operation, rule, words in (
        (torch.fft.fft, "relux", "no rule called 'relux'; .*e.g. relu"),
        (torch.fft.fft, None, "None is no rule"),
        (3, "relu", "3 is no operation"),
    ):
        with pytest.raises(net2net.GrowthError, match=words):
            net2net.register_rule(operation, rule)


def test_a_fault_in_a_rule_is_reported_and_is_no_missing_rule(monkeypatch):
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())

    def faulty(*arguments):
        return {}["axes"]

    model, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(5, 3)
    monkeypatch.setattr(rules.elementwise, "broadcast", faulty)
    with pytest.warns(UserWarning, match=r"rule for 'gelu' in module '1' failed with KeyError: 'axes' \(please report"):
        student = net2net.widen(model, x, 1.5)
    assert [layer.out_features for layer in student if isinstance(layer, nn.Linear)] == [4, 9, 2]
    with pytest.raises(net2net.UnsupportedOperation, match=r"rule failed on this use .* KeyError: 'axes'"):
        net2net.widen(model, x, 1.5, strict=True)
    net2net.register_rule("gelu", faulty)
    with pytest.warns(UserWarning, match=r"KeyError: 'axes' \(it was registered by register_rule\)") as caught:
        found = net2net.explain(model, x)
    assert len(caught) == 1  # and none that says that there is no rule
    assert found.unknown == {"gelu": ["1"]}
    net2net.register_rule("gelu", lambda trace, call: [None])
    short = r"ValueError: it returned \[1\] axes: expected \[2\], one for .* \(it was registered by register_rule\)"
    with pytest.warns(UserWarning, match=short):
        net2net.explain(model, x)


class Doubled(nn.Linear):
    """Another layer in training mode, by its own code or by its `train`."""

    def __init__(self, asks):
        super().__init__(4, 4)
        self.asks, self.extra = asks, False

    def train(self, mode=True):
        self.extra = mode and not self.asks
        return super().train(mode)

    def forward(self, x):
        x = super().forward(x)
        return super().forward(x) if self.extra or (self.asks and self.training) else x


class Asking(nn.Linear):
    def forward(self, x):
        return super().forward(x + 1 if self.training else x)


def test_training_mode_is_recorded_where_code_asks_for_it():
    x, plain = torch.randn(5, 3), [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU()]
    trace = Trace(nn.Sequential(*plain, nn.Linear(4, 2)), x)
    assert trace.training_calls is trace.calls
    for last in (Asking(4, 2), nn.Sequential(Doubled(True), nn.Linear(4, 2)), nn.Sequential(Doubled(False))):
        trace = Trace(nn.Sequential(*plain, last), x)
        assert len(trace.training_calls) > len(trace.calls)
    with pytest.raises(net2net.GrowthError, match="forward pass on the meta device failed"):
        Trace(nn.Sequential(nn.Linear(3, 4)), torch.randn(5, 2))
    assert not hasattr(nn.Module, "training")  # what listened is gone


def test_a_student_that_moved_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(Growth, "_shared", lambda growth, name: [])
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(
        net2net.GrowthError, match=r"does not compute its teacher's function: max-abs error .* relative"
    ):
        net2net.widen(model, x, 2.0)
    assert net2net.verify(model, net2net.widen(model, x, 2.0, verify=False), x).relative > 0.01


def test_verification_needs_values():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.empty(5, 3, device="meta")
    with pytest.raises(net2net.GrowthError, match=r"on the meta device .* verify=False"):
        net2net.widen(model, x, 2.0)
    assert net2net.widen(model, x, 2.0, verify=False)[0].out_features == 8


def test_warnings_point_at_the_line_that_called(monkeypatch):
    model = Net(lambda m, x: m.b(torch.special.i0(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2), off=nn.Linear(4, 4))
    x = torch.randn(5, 3)
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    with pytest.warns(UserWarning, match="no rule says how channels pass through 'special_i0'") as caught:
        net2net.explain(model, x)
    net2net.register_rule(torch.special.i0, "relu")
    for grow in (net2net.widen, net2net.random_pad):
        with pytest.warns(UserWarning, match="reads 'off.weight'") as more:
            grow(model, x, 2)
        caught.list.extend(more.list)
    with pytest.warns(UserWarning, match="reads 'off.weight'") as more:
        net2net.explain(model, x)
    assert {each.filename for each in (*caught, *more)} == {__file__}
