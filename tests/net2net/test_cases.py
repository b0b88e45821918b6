"""Models that people have: what they keep between passes, return, wrap themselves in, and call that has no rule."""

import functools
import random
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import certify, grown
from nets import Net, conv, images
from torch import nn
from torch.nn.utils import prune

import net2net
from net2net import GrowthError, deepen, explain, history, random_pad, replay, verify, widen
from net2net.rules import RULES


def net_of(run, **parts):
    """`a` makes 4 channels, `b` reads them; what lies between is the test's."""
    torch.manual_seed(0)
    return Net(run, a=conv(3, 4), b=conv(4, 6), c=conv(6, 2), **parts).double()


# What a model keeps.


def grid(m, x):
    if getattr(m, "grid", None) is None:
        m.grid = torch.arange(x.shape[-1], dtype=x.dtype)
    return m.c(F.relu(m.b(F.relu(m.a(x)) + m.grid)))


def memo(m, x):
    if not hasattr(m, "memo"):
        m.memo = {}
    key = tuple(x.shape[-2:])
    if key not in m.memo:
        m.memo[key] = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in key), indexing="ij")).to(x)
    return m.c(F.relu(m.b(F.relu(m.a(x)) * m.memo[key].sum(0))))


def anchors(m, x):
    h = F.relu(m.b(F.relu(m.a(x))))
    if getattr(m, "shape", None) != h.shape[2:]:
        m.shape, m.anchors = h.shape[2:], [torch.zeros(n, dtype=x.dtype) for n in h.shape[2:]]
    return m.c(h) + m.anchors[1]


@pytest.mark.parametrize("ran", [False, True], ids=["new", "after a pass"])
@pytest.mark.parametrize("run", [grid, memo, anchors])
def test_what_is_made_in_the_first_pass_is_no_obstacle(run, ran):
    net, x = net_of(run), images(3, 4, 5)
    if ran:
        net(x)
    student = grown(net, x)
    assert (student.a.out_channels, student.b.out_channels) == (8, 12)


def kept(m, x):
    m.last = F.relu(m.a(x))
    return m.c(F.relu(m.b(m.last)))


def listed(m, x):
    m.features = [F.relu(m.a(x))]
    m.features.append({"b": F.relu(m.b(m.features[0]))})
    return m.c(m.features[1]["b"])


def held_by_an_object(m, x):
    m.kept = SimpleNamespace(h=F.relu(m.a(x)))
    return m.c(F.relu(m.b(m.kept.h)))


@pytest.mark.parametrize("run", [kept, listed, held_by_an_object])
def test_activations_that_a_model_keeps_are_no_obstacle(run):
    net, x = net_of(run), images(3, 4, 5)
    net(x).sum().backward()
    assert grown(net, x).a.out_channels == 8
    assert verify(net, deepen(net, x, {"b": [replaceable()]}), x).relative < 1e-9
    assert random_pad(net, x, 2).a.out_channels == 8


def replaceable():
    return net2net.Layer(3, maxout=2)


def test_old_weight_norm_after_a_step():
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.a)
    net(x).sum().backward()
    grown(net, x)


# What a pass changes.


@pytest.mark.parametrize(
    "start", [lambda x: x.mul_(2), lambda x: x.__imul__(3), lambda x: x[0].add_(1) if x.ndim else x]
)
def test_inputs_are_the_callers(start):
    def run(m, x):
        start(x)
        return m.c(F.relu(m.b(F.relu(m.a(x)))))

    net, x = net_of(run), images(3, 4, 5)
    grown(net, x)
    net, x = net.float(), x.float()
    student = widen(net, x, 2)
    assert verify(net, student, x, dtype=torch.float32).relative < 1e-5
    before = x.clone()
    deepen(net, x, {"b": [replaceable()]})
    assert torch.equal(x, before)


def test_streams_of_random_numbers_go_on(monkeypatch):
    draws = []

    def run(m, x):
        draw = torch.rand(()) + random.random()
        draws.append(None if draw.is_meta else float(draw))  # a tensor would be taken away again
        return m.c(F.relu(m.b(F.dropout(F.relu(m.a(x)), 0.1, m.training))))

    net, x = net_of(run), images(3, 4, 5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the streams of all GPUs are reseeded"))
    before = (torch.get_rng_state(), random.getstate())
    student = widen(net, x, 2)
    verify(net, student, x, train=True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert len(set(draws) - {None}) == 1  # the same for both models


@pytest.mark.parametrize("factor", [1.5, 2])
def test_a_student_made_in_inference_mode_can_be_trained(factor):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    with torch.inference_mode():
        students = [widen(net, x, factor), random_pad(net, x, factor), deepen(net, x, {"b": [replaceable()]})]
    for student in students:
        student(x).sum().backward()
        torch.optim.SGD(student.parameters(), 0.1).step()
    assert not any(tensor.is_inference() for tensor in students[0].state_dict().values())


def test_a_teacher_made_in_inference_mode_grows():
    with torch.inference_mode():
        net = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))))
    student = widen(net, images(3, 4, 5), 2)
    student(images(3, 4, 5)).sum().backward()
    certify(net, student, images(3, 4, 5))


# What their code keeps outside of them.


def memo_of(make):
    """A net whose forward pass takes a table from outside, and a function that says what is kept there by now."""
    table, kept = make()

    def run(m, x):
        return m.c(F.relu(m.b(F.relu(m.a(x)) + table(x.shape[-1], x.dtype))))

    return net_of(run), kept


def in_a_memo():
    memo = functools.lru_cache(lambda n, dtype: torch.arange(n, dtype=dtype))
    return memo, lambda: memo.cache_info().currsize


def in_a_closure():
    cache = {}

    def table(n, dtype):
        if (n, dtype) not in cache:
            cache[n, dtype] = [torch.arange(n, dtype=dtype)]
        return cache[n, dtype][0]

    return table, lambda: len(cache)


def in_a_default():
    def table(n, dtype, kept=[]):  # noqa: B006
        if not kept:
            kept.append(torch.arange(n, dtype=dtype))
        return kept[0]

    return table, lambda: len(table.__defaults__[0])


GRID = None


def in_a_global():
    def table(n, dtype):
        global GRID
        if GRID is None:
            GRID = torch.arange(n, dtype=dtype)
        return GRID

    globals()["GRID"] = None
    return table, lambda: 0 if GRID is None else 1


class Tables:
    shared: dict = {}  # noqa: RUF012
    of = {}  # noqa: RUF012

    def __init__(self):
        self.own = {}

    def get(self, n, dtype):
        self.shared[n] = self.own[n] = torch.arange(n, dtype=dtype)
        return self.shared[n]


def in_an_object():
    Tables.shared.clear()
    tables = Tables()
    return tables.get, lambda: len(tables.own) + len(Tables.shared)


def widened(net, x):
    return widen(net, x, 2)


def deepened(net, x):
    return deepen(net, x, {"b": [replaceable()]})


@pytest.mark.parametrize("act", [widened, explain, deepened, lambda net, x: verify(net, net, x, dtype=torch.float32)])
@pytest.mark.parametrize("make", [in_a_memo, in_a_closure, in_a_default, in_a_global, in_an_object])
def test_nothing_is_left_in_what_code_keeps_outside_of_a_model(make, act):
    """A table without data, or in another precision, would be found there by the next pass of the teacher."""
    net, kept = memo_of(make)
    x = images(3, 4, 5)
    act(net, x)
    assert kept() == 0
    before = net(x)  # in float64, with the table that it makes now
    act(net, x)
    assert torch.equal(net(x), before)
    assert kept() > 0 or make is in_a_memo
    assert grown(net, x).a.out_channels == 8


def test_hooks_of_the_caller_see_his_passes_alone():
    seen = []
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    net.a.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(x)
    student = grown(net, x)
    assert [len(output) for output in seen] == [3]
    student(x)
    assert [output.shape[1] for output in seen] == [4, 8]


# What is written, and how exactly.


@pytest.mark.parametrize("empty", [lambda h: h[:, :0], lambda h: h.new_zeros(len(h), 0, *h.shape[2:])])
def test_a_record_is_read_back(empty, tmp_path):
    def run(m, x):
        h = F.relu(m.a(x))
        return m.c(F.relu(m.b(torch.cat([empty(h), h, empty(x)], 1))))

    net, x = net_of(run), images(3, 4, 5)
    student = grown(net, x)
    assert student.a.out_channels == 8
    net2net.save_weights(tmp_path / "s.safetensors", student)
    again = replay(net2net.load_record(tmp_path / "s.safetensors"), net)
    assert verify(student, again, x).max_abs == 0


def test_a_record_that_cannot_be_read_back_is_refused(monkeypatch):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    monkeypatch.setattr("net2net.growth.Growth.record", lambda growth: {"spaces": [{"from": 4, "to": 4}]})
    with pytest.raises(GrowthError, match=r"not a record of net2net\.widen"):
        widen(net, x, 2)


@pytest.mark.parametrize(
    "convert", [lambda h: h.float(), lambda h: h.to(torch.float32), lambda h: h + torch.ones(1, dtype=torch.float32)]
)
def test_code_that_asks_for_a_precision_is_compared_in_the_one_asked_for(convert):
    net, x = (
        net_of(lambda m, x: m.c(F.relu(m.b(convert(F.relu(m.a(x)))))).to(torch.float32)).float(),
        images(3, 4, 5).float(),
    )
    certificate = verify(net, widen(net, x, 2), x)
    assert certificate.dtype == "float64"
    assert certificate.relative < 1e-6  # the weights of the student are float32


def test_a_model_that_runs_in_its_own_precision_alone_is_compared_in_that():
    table = torch.eye(6)

    def run(m, x):
        return torch.einsum("nchw,cd->ndhw", F.relu(m.b(F.relu(m.a(x)))), table) + m.c(m.b(m.a(x))).mean()

    net, x = net_of(run).float(), images(3, 4, 5).float()
    certificate = verify(net, widen(net, x, widths={"a": 8}), x)
    assert (certificate.dtype, certificate.relative < 1e-5) == ("float32", True)
    with pytest.raises(GrowthError, match=r"the teacher does not run on these inputs: RuntimeError"):
        verify(net, net, torch.ones(2, 2))


def test_rounding_that_an_ill_conditioned_net_blows_up_is_told_from_a_fault(monkeypatch):
    """Two large numbers nearly cancel: in float32 the student's weights divided by three no longer sum up to one."""

    def run(m, x):
        return m.c(F.relu(x)) * 1e-6 + 1e6 * (m.b(m.a(x)) - m.b(m.a(x).double().float() * (1 + 2e-7)).detach())

    torch.manual_seed(0)
    net = Net(lambda m, x: m.c(m.b(m.a(x))) - m.shift, a=nn.Linear(3, 4), b=nn.Linear(4, 6), c=nn.Linear(6, 2))
    net.shift = nn.Parameter(torch.zeros(4, 2))
    x = 1000 * torch.rand(4, 3)
    with torch.no_grad():
        net.double()
        net.shift.copy_(net(x.double()) * (1 - 1e-6))
        net.float()
    with pytest.warns(UserWarning, match=r"ill-conditioned.*grown in float64 it is its teacher's"):
        widen(net, x, 3, seed=1)
    monkeypatch.setattr(net2net.growth.Growth, "_shared", lambda growth, name: [])
    with pytest.raises(GrowthError, match="Please report"):
        widen(net, x, 3, seed=1)


# What has no rule.

UNRULED = {
    "special_erfcx": lambda m, h: torch.special.erfcx(h),
    "diff": lambda m, h: h.diff(dim=2, prepend=h[:, :, :1]),
    "special_i0": lambda m, h: torch.special.i0(h),
}


@pytest.mark.parametrize("name", UNRULED)
def test_what_no_rule_covers_stays_and_is_named(name):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(UNRULED[name](m, F.relu(m.a(x))))))), images(3, 4, 5)
    with pytest.warns(UserWarning, match=f"no rule .*'{name}' in the model's own forward"):
        student = grown(net, x)
    assert history(student)[0]["unknown"] == {name: [""]}
    with pytest.warns(UserWarning, match="no rule"):
        table = explain(net, x)
    assert (table.unknown, f"  {name}  in the model's own forward" in str(table)) == ({name: [""]}, True)
    for act in (widen, random_pad):
        with pytest.raises(net2net.UnsupportedOperation, match=name):
            act(net, x, 2, strict=True)
    with pytest.raises(net2net.UnsupportedOperation, match=name):
        explain(net, x, strict=True)
    assert (student.a.out_channels, student.b.out_channels) == (4, 12)
    assert verify(student, replay(history(student), net), x).max_abs == 0


def test_a_rule_that_fails_is_no_fault_of_the_model(monkeypatch):
    monkeypatch.setitem(RULES, "relu", lambda trace, call: call.inputs[7])
    net, x = net_of(lambda m, x: m.c(F.silu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    with pytest.warns(UserWarning, match="'relu'"):
        assert grown(net, x).b.out_channels == 12
    with pytest.raises(net2net.UnsupportedOperation, match="its rule failed on this use"):
        explain(net, x, strict=True)


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Mean(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        return (x + y) / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


@pytest.mark.parametrize("run", [lambda h: Gate.apply(h), lambda h: Mean.apply(h, h * 2)])
def test_custom_autograd_functions_are_followed(run):
    apply = torch.autograd.Function.__dict__["apply"]
    student = grown(net_of(lambda m, x: m.c(F.relu(m.b(run(m.a(x)))))), images(3, 4, 5))
    assert student.a.out_channels == 8
    assert torch.autograd.Function.__dict__["apply"] is apply


def gate(a: torch.Tensor, b: torch.Tensor):
    return torch.tanh(a) * torch.sigmoid(b)


def halves(x: torch.Tensor, n: int):
    return torch.tanh(x[:, :n]) * torch.sigmoid(x[:, n:])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_functions_are_followed():
    call, (gated, split) = torch.jit.ScriptFunction.__call__, map(torch.jit.script, (gate, halves))
    student = grown(net_of(lambda m, x: m.c(gated(m.b(m.a(x)), m.d(x))), d=conv(3, 6)), images(3, 4, 5))
    assert (student.a.out_channels, student.b.out_channels, student.d.out_channels) == (8, 12, 12)
    net = net_of(lambda m, x: m.d(split(m.b(m.a(x)), m.b.out_channels // 2)), d=conv(3, 2))
    assert grown(net, images(3, 4, 5)).b.out_channels == 12
    assert torch.jit.ScriptFunction.__call__ is call


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.tanh(x.numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


HIDDEN = {
    "vmap": lambda h: torch.vmap(lambda row: row / row.norm())(h),
    "numpy": lambda h: Numpy.apply(h),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_code_that_cannot_be_followed_holds_what_was_there_before_and_no_more(name):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(HIDDEN[name](m.a(x)))))), images(3, 4, 5)
    with pytest.warns(UserWarning, match="code that cannot be followed|real forward pass"):
        student = grown(net, x)
    assert (student.a.out_channels, student.b.out_channels) == (4, 12)
    with pytest.raises(net2net.UnsupportedOperation, match="cannot be followed"):
        widen(net, x, 2, strict=True)


ROWS = {
    "hstack": (lambda a, b: torch.hstack((a, b)), 16),
    "vstack": (lambda a, b: torch.vstack((a, b)), 8),
    "hsplit": (lambda a, b: torch.hsplit(a, 2)[0] * torch.hsplit(b, 2)[1], 4),
    "vsplit": (lambda a, b: torch.vsplit(a, 2)[0] + b[:2], 8),
    "column_stack": (lambda a, b: torch.column_stack((a, b)), 16),
    "atleast_2d": (lambda a, b: torch.atleast_2d(a) + b, 8),
    "atleast_3d": (lambda a, b: torch.atleast_3d(a)[..., 0] + b, 8),
    "rrelu": (lambda a, b: F.rrelu(a) + nn.RReLU().eval()(b), 8),
    "quantile": (lambda a, b: a - a.quantile(0.5, dim=0, keepdim=True) + b.quantile(0.3, 0), 8),
    "quantiles": (lambda a, b: (a + b).quantile(torch.tensor([0.1, 0.5], dtype=a.dtype, device=a.device), 0), 8),
    "cosine_similarity": (lambda a, b: a * F.cosine_similarity(a, b, dim=0), 8),
    "nanmean": (lambda a, b: a - b.nanmean(0), 8),
    "two shuffles": (lambda a, b: F.channel_shuffle(F.channel_shuffle((a + b)[..., None], 2), 2)[..., 0], 8),
    "mse_loss": (lambda a, b: a * F.mse_loss(a, b) + F.l1_loss(a, b, reduction="none"), 8),
    "type": (lambda a, b: a.type(torch.FloatTensor).type(b.type()) + b, 8),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_is_done_to_rows_lets_channels_grow(name):
    run, width = ROWS[name]
    net = Net(lambda m, x: m.c(run(m.a(x), m.b(x))), a=nn.Linear(5, 8), b=nn.Linear(5, 8), c=nn.Linear(width, 3))
    student = widen(net.double(), images(5, batch=4), 2)
    assert (student.a.out_features, student.b.out_features) == (16, 16)
    certify(net, student, images(5, batch=4), evaluation=1e-6 if name == "type" else 1e-10)


def test_a_loss_in_the_forward_pass_says_nothing_of_rules(recwarn):
    net = Net(
        lambda m, x: (h := m.b(m.a(x).relu()), F.cross_entropy(h, h.argmax(1))), a=nn.Linear(5, 8), b=nn.Linear(8, 3)
    )
    assert grown(net.double(), images(5), strict=True).a.out_features == 16
    assert not recwarn


def test_kernels_of_one_tap_slide_along_nothing():
    """As MLP mixers have it, whose tokens are a convolution's channels and whose channels its length."""
    net = Net(lambda m, x: m.c(x + m.b(m.a(x))), a=nn.Linear(6, 8), b=nn.Conv1d(5, 5, 1), c=nn.Linear(8, 2)).double()
    net.a.in_features, net.a.weight = 8, nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    stem = nn.Sequential(nn.Linear(6, 8), net).double()
    assert grown(stem, images(5, 6))[1].a.weight.shape == (16, 16)
    for options in ({"stride": 2}, {"padding": 1}):
        run = lambda m, x: m.c(m.b(m.a(x)).mean(2))  # noqa: E731
        net = Net(run, a=nn.Linear(6, 8), b=nn.Conv1d(5, 7, 1, **options), c=nn.Linear(7, 2)).double()
        assert grown(net, images(5, 6)).a.out_features == 8


class Named(nn.Module):
    """Modules with two names each."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.r = nn.Linear(5, 8), nn.Linear(8, 2), nn.ReLU()
        self.layers, self.classifier, self.act = nn.ModuleList([self.a, nn.Linear(8, 8)]), self.head, self.r

    def forward(self, x):
        return self.classifier(self.act(self.layers[1](self.layers[0](x).tanh())))


def test_modules_are_found_by_any_of_their_names():
    net, x = Named().double(), images(5)
    assert widen(net, x, widths={"layers.0": 12}).a.out_features == 12
    assert widen(net, x, 2, modules="layers.0").a.out_features == 16
    student = widen(net, x, 2, modules="layers.*")
    assert (student.a.out_features, student.layers[1].out_features) == (16, 16)
    assert widen(net, x, 2, new_head={"classifier": 5}).head.out_features == 5
    assert len(deepen(net, x, {"act": [1]}).act) == 2
    with pytest.raises(GrowthError, match="modules= is empty"):
        widen(net, x, 2, modules=[])


def test_random_slopes_are_as_dropout():
    net = nn.Sequential(nn.Linear(5, 8), nn.RReLU(), nn.Linear(8, 3)).double()
    assert grown(net, images(5))[0].out_features == 16


def test_a_nested_tensor_has_no_shape():
    def run(m, x):
        rows = torch.nested.as_nested_tensor(list(m.a(x).unbind()))
        return m.b(torch.nested.to_padded_tensor(rows, 0.0))

    net = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    with pytest.raises(GrowthError, match="a nested tensor has no shape"):
        widen(net, torch.randn(4, 5), 2)


def test_an_empty_cache_is_concatenated():
    """As transformers' key-value caches begin: a tensor of one dimension and no entries."""
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(torch.cat([x.new_zeros(0), m.a(x)], -2))))), images(3, 4, 5)
    assert grown(net, x).a.out_channels == 8


# Channels that are taken apart, repeated and spread.


def unfolded(take_apart, **parts):
    """A generator: a vector of 128, an image of 8 channels, and a transposed convolution."""

    def run(m, x):
        return m.up(F.relu(take_apart(m, F.relu(m.make(x)))))

    torch.manual_seed(0)
    return Net(run, make=nn.Linear(5, 128), up=nn.ConvTranspose2d(8, 3, 2, 2), **parts).double()


@pytest.mark.parametrize(
    ("take_apart", "parts"),
    [
        (lambda m, h: h.view(len(h), -1, 4, 4), {}),
        (lambda m, h: h.unflatten(1, (m.channels, 4, 4)), {"channels": 8}),
        (lambda m, h: m.image(h), {"image": nn.Unflatten(1, (8, 4, 4))}),
        (lambda m, h: m.norm(m.image(h)), {"image": nn.Unflatten(1, (8, 4, 4)), "norm": nn.BatchNorm2d(8)}),
    ],
)
def test_a_vector_becomes_an_image(take_apart, parts):
    net, x = unfolded(take_apart, **parts), images(5)
    for factor, channels in ((1.5, 12), (2, 16)):
        student = grown(net, x, factor)
        assert (student.make.out_features, student.up.in_channels) == (16 * channels, channels)


def test_a_size_written_into_the_code_is_named():
    net, x = unfolded(lambda m, h: h.view(-1, 8, 4, 4)), images(5)
    with pytest.raises(GrowthError, match="'view' in the model's own forward counts on their width"):
        widen(net, x, 2)


SPREAD = {
    "depthwise transposed convolution": (lambda m, h: m.up(h), {"up": nn.ConvTranspose2d(4, 4, 2, 2, groups=4)}, 4),
    "with two outputs each": (lambda m, h: m.up(h), {"up": nn.ConvTranspose2d(4, 8, 2, 2, groups=4)}, 8),
    "pixel shuffle": (lambda m, h: F.pixel_shuffle(m.more(h), 2), {"more": conv(4, 16)}, 4),
    "pixel shuffle of a depthwise one": (
        lambda m, h: F.pixel_shuffle(m.more(h), 2), {"more": conv(4, 16, groups=4)}, 4),
    "repeat": (lambda m, h: h.repeat(1, 2, 1, 1), {}, 8),
    "repeat of a repeat": (lambda m, h: h.repeat(1, 2, 1, 1).repeat_interleave(2, 1), {}, 16),
    "blur with a buffer that is expanded": (
        lambda m, h: F.conv2d(h, m.kernel.expand(h.shape[1], 1, 3, 3), padding=1, groups=h.shape[1]),
        {"kernel": nn.Parameter(torch.rand(1, 1, 3, 3))}, 4),
    "blur with a kernel [3, 3] that is repeated as often as was noted": (
        lambda m, h: F.conv2d(h, m.kernel[None, None].repeat(m.channels, 1, 1, 1), padding=1, groups=m.channels),
        {"kernel": nn.Parameter(torch.rand(3, 3)), "channels": 4}, 4),
    "blur with a kernel that is made on the way": (
        lambda m, h: F.conv2d(h, torch.tensor([[1.0, 2.0]]).to(h).expand(h.shape[1], 1, 1, 2), groups=h.shape[1]),
        {}, 4),
    "between zeros, as a shortcut to more channels": (lambda m, h: F.pad(h, (0, 0, 0, 0, 2, 2)) + 1, {}, 8),
    "one half in the place of the other": (lambda m, h: swapped(h), {}, 4),
    "moved by a pixel into zeros": (lambda m, h: moved(h), {}, 4),
    "times ones": (lambda m, h: h * torch.ones(h.shape[1], 1, 1, dtype=h.dtype).mul(2), {}, 4),
    "in the frequencies": (lambda m, h: low_pass(h), {}, 4),
}  # fmt: skip


def swapped(h):
    half, made = h.shape[1] // 2, torch.empty_like(h)
    made[:, :half], made[:, half:] = h[:, half:], h[:, :half]
    return made


def moved(h):
    made = torch.zeros(h.shape, dtype=h.dtype, device=h.device)
    made[:, :, 1:] = h[:, :, :-1]
    return made


def low_pass(h):
    seen = torch.fft.rfft2(h)
    kept = torch.zeros_like(seen)
    kept[..., :2] = torch.view_as_complex(torch.view_as_real(seen[..., :2]) * 0.5)
    return torch.fft.irfft2(kept, s=h.shape[2:])


@pytest.mark.parametrize("name", SPREAD)
def test_channels_that_are_repeated_or_spread_grow(name):
    spread, parts, read = SPREAD[name]
    torch.manual_seed(0)
    net = Net(lambda m, x: m.o(F.relu(spread(m, F.relu(m.a(x))))), a=conv(3, 4), o=conv(read, 2), **parts).double()
    for factor in (1.5, 2):
        student = grown(net, images(3, 4, 6), factor)
        beside = 4 if "zeros, as" in name else 0
        assert (student.a.out_channels, student.o.in_channels) == (4 * factor, (read - beside) * factor + beside)


def changed(change):
    """Times one number for each channel, of which some are changed after they were all the same."""

    def run(m, h):
        factors = h.new_zeros(1, h.shape[1])
        return h * change(factors)[0][:, None, None]

    return run


PARTLY = {
    "an entry": lambda t: (t.__setitem__((0, 0), 1.0), t)[1],
    "as many as were counted": lambda t: (t.__setitem__((0, slice(2)), 1.0), t)[1],
    "a view": lambda t: (t[:, :2].fill_(1), t)[1],
    "a view of a view": lambda t: (t.view(2, -1)[0].add_(1), t)[1],
    "a part of a split": lambda t: (t.chunk(2, 1)[1].add_(1), t)[1],
    "the transposed": lambda t: (t.t()[0].add_(1), t)[1],
    "without its history": lambda t: (t.detach()[:, 0].add_(1), t)[1],
    "by their place": lambda t: (t.add_(torch.arange(t.shape[1])), t)[1],
    "by an index": lambda t: (t.scatter_(1, torch.tensor([[0]]), 1.0), t)[1],
    "summed up": lambda t: (t + 1).cumsum(1),
    "counted": lambda t: t + (t + 1).sum(),
    "of a size in the code": lambda t: torch.ones(1, 4, dtype=t.dtype),
}


@pytest.mark.parametrize("name", PARTLY)
def test_constants_that_are_changed_in_parts_hold_their_channels(name):
    run = changed(PARTLY[name])
    student = grown(net_of(lambda m, x: m.c(F.relu(m.b(run(m, F.relu(m.a(x))))))), images(3, 4, 5))
    assert (student.a.out_channels, student.b.out_channels) == (4, 12)


def test_a_vector_that_sums_over_channels_takes_noise():
    net = Net(lambda m, x: torch.einsum("nc,c->n", F.relu(m.a(x)), m.v), a=nn.Linear(5, 4))
    net.v = nn.Parameter(torch.randn(4))
    student = grown(net.double(), images(5))
    assert len(student.v.unique()) == len(student.v) == 8


def test_a_layer_of_two_inputs_sums_over_both():
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 4), "b": nn.Linear(5, 3), "both": nn.Bilinear(4, 3, 6), "o": nn.Linear(6, 2)}
    net, x = Net(lambda m, x: m.o(F.relu(m.both(F.relu(m.a(x)), m.b(x)))), **parts).double(), images(5)
    assert grown(net, x).both.weight.shape == (12, 8, 6)


# Weights that are computed from parameters.

SCALED = {
    "a learned rate": lambda m, w: w * 0.3,
    "a scale": lambda m, w: m.scale * w,
    "a scale of each output": lambda m, w: w / m.rows[:, None],
    "a scale of each input": lambda m, w: w.mul(m.columns),
    "a mask": lambda m, w: m.mask * w,
    "another weight": lambda m, w: w * m.other,
    "a cast and back": lambda m, w: (w.float().to(w) * 2.0).t().contiguous().t(),
    "a sum": lambda m, w: w + m.other,
    "noise": lambda m, w: w + m.other * m.mask,
    "a mask of a sum": lambda m, w: m.mask * (w - 0.5 * m.other),
    "a product with a sum": lambda m, w: (m.other + m.mask) * w,
    "a product of low rank on it": lambda m, w: w + 0.5 * m.tall @ m.flat,
    "a sum over and over": lambda m, w: (s := w + m.other) + s * 0.5,
}
HELD_BY_WEIGHTS = {
    "itself": lambda m, w: w * w,
    "what was made of it": lambda m, w: w * w.abs(),
    "one over it": lambda m, w: 1 / (w + 9),
    "a mask of its places": lambda m, w: w * (torch.arange(w.shape[1], dtype=w.dtype) > 1),
    "a share of it": lambda m, w: w / w.norm(dim=1, keepdim=True),
    "a sum with a number": lambda m, w: w + 1,
    "a sum with one of each output": lambda m, w: w + m.rows[:, None],
    "a sum with its own square": lambda m, w: w + (w * 2) * w,
    "the square of a sum": lambda m, w: (s := w + m.other) * s,
    "a sum over its norm": lambda m, w: (s := w + m.other) / s.norm(dim=1, keepdim=True),
    "a sum that bends": lambda m, w: F.softplus(w + m.other),
}


def scaled(make):
    torch.manual_seed(0)
    net = Net(lambda m, x: m.o(F.relu(F.linear(F.relu(m.a(x)), make(m, m.w), m.bias))),
              a=nn.Linear(5, 4), o=nn.Linear(6, 2))  # fmt: skip
    for name, shape in {
        "w": (6, 4),
        "bias": (6,),
        "scale": (),
        "rows": (6,),
        "columns": (4,),
        "other": (6, 4),
        "tall": (6, 2),
        "flat": (2, 4),
    }.items():
        net.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))
    net.register_buffer("mask", (torch.rand(6, 4) > 0.5).float())
    return net.double()


@pytest.mark.parametrize("name", SCALED)
def test_weights_that_are_scaled_entry_by_entry_grow(name):
    net, x = scaled(SCALED[name]), images(5)
    student = widen(net, x, 2)
    assert student.w.shape == (12, 8)
    again = widen(student, x, 1.5, seed=1)
    for train in (False, True):
        assert verify(net, again, x, train=train).relative < (1e-6 if "cast" in name else 1e-12)
    assert verify(again, replay(history(again), net), x).max_abs == 0


@pytest.mark.parametrize("name", HELD_BY_WEIGHTS)
def test_weights_that_are_computed_otherwise_hold_what_they_read(name):
    student = grown(scaled(HELD_BY_WEIGHTS[name]), images(5))
    assert (student.a.out_features, student.w.shape) == (4, (12, 4))


KERNELS = {
    "a branch of another size": lambda m, x: F.conv2d(x, m.w + F.pad(m.point, (1, 1, 1, 1)), padding=1),
    "twice, once mirrored": lambda m, x: F.conv2d(x, m.w, padding=1) - F.conv2d(x, m.w.flip(3), padding=1),
    "less its sum": lambda m, x: F.conv2d(x, m.w, padding=1) - F.conv2d(x, m.w.sum((2, 3), keepdim=True)),
    "less its mean": lambda m, x: F.conv2d(x, m.w - m.w.mean((2, 3), keepdim=True), padding=1),
    "by hand": lambda m, x: (m.w.view(m.w.size(0), -1) @ F.unfold(x, 3, padding=1)).view(len(x), -1, *x.shape[2:]),
    "by hand, transposed": lambda m, x: (F.unfold(x, 3, padding=1).transpose(1, 2) @ m.w.flatten(1).t())
    .transpose(1, 2).reshape(len(x), -1, *x.shape[2:]),
    "splines": lambda m, x: F.linear(
        torch.stack([x, x.tanh(), x.square()], 2).permute(0, 3, 4, 1, 2).flatten(3),
        (m.splines * m.point[..., 0]).view(len(m.splines), -1)).permute(0, 3, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_are_computed_grow(name, factor, randomise):
    layer = Net(KERNELS[name])
    shapes = {"w": (6, 4, 3, 3), "point": (6, 4, 1, 1), "splines": (6, 4, 3)}
    for key, shape in shapes.items():
        layer.register_parameter(key, nn.Parameter(torch.empty(shape)))
        nn.init.normal_(getattr(layer, key))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(6, 2, 1))
    student = grown(randomise(net).double(), images(3, 6, 6), factor)
    assert (student[0].out_channels, student[5].in_channels) == (4 * factor, 6 * factor)


def test_a_computed_weight_that_something_else_reads_stays():
    def run(m, x):
        weight = m.w + m.other
        return m.o(F.relu(F.linear(F.relu(m.a(x)), weight, m.bias) + F.linear(weight, m.reads)[:, 0]))

    net = scaled(None)
    net.run, net.reads = run, nn.Parameter(torch.rand(1, 4).double())
    student = grown(net, images(5))
    assert (student.a.out_features, student.w.shape) == (4, (12, 4))


def test_one_weight_cannot_be_scaled_and_a_scale():
    net = scaled(lambda m, w: w * m.other)
    run = net.run
    net.run = lambda m, x: run(m, x) + m.o(F.relu(F.linear(F.relu(m.a(x)), m.other, m.bias)))
    assert grown(net, images(5)).a.out_features == 4


def test_pruned_layers_grow():
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    prune.l1_unstructured(net.b, "weight", 0.5)
    prune.random_structured(net.a, "weight", 0.5, dim=1)
    student = grown(net, x)
    assert (student.a.out_channels, student.b.weight_mask.shape) == (8, (12, 8, 3, 3))


# Recurrent layers.


def read_by(recurrent, width=8, pick=lambda made, state: made):
    def run(m, x):
        made, state = m.r(F.relu(m.a(x)))
        return m.o(pick(made, state[0] if isinstance(state, tuple) else state))

    torch.manual_seed(0)
    return Net(run, a=nn.Linear(5, 6), r=recurrent, o=nn.Linear(width, 2)).double()


RECURRENT = {
    "LSTM": lambda: read_by(nn.LSTM(6, 8, batch_first=True)),
    "GRU in both directions": lambda: read_by(nn.GRU(6, 4, 2, batch_first=True, bidirectional=True)),
    "RNN without biases": lambda: read_by(nn.RNN(6, 8, 2, bias=False, nonlinearity="relu")),
    "dropout between the layers": lambda: read_by(nn.LSTM(6, 8, 3, batch_first=True, dropout=0.5)),
    "the last state": lambda: read_by(nn.GRU(6, 8, 2, batch_first=True), pick=lambda made, state: state[-1]),
    "directions added": lambda: read_by(
        nn.GRU(6, 8, bidirectional=True), pick=lambda made, state: sum(made.chunk(2, -1))
    ),
}


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_grow(name, factor):
    net, x = RECURRENT[name](), images(4, 5)
    student = grown(net, x, factor)
    assert (student.r.hidden_size, student.r.input_size) == (net.r.hidden_size * factor, 6 * factor)
    again = replay(history(student), net)
    assert verify(student, again, x).max_abs == 0
    student(x).sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_state_that_is_given_or_returned_holds_the_hidden_units():
    net, x = read_by(nn.LSTM(6, 8, batch_first=True)), images(4, 5)
    net.run = lambda m, x: (lambda made, states: (m.o(made), states[1]))(*m.r(F.relu(m.a(x))))
    assert grown(net, x).r.hidden_size == 8
    net.run = lambda m, x, h: m.o(m.r(F.relu(m.a(x)), (h, h))[0])
    assert grown(net, (x, images(3, 8, batch=1))).r.hidden_size == 8


@pytest.mark.parametrize("options", [{}, {"bias": False, "batch_first": True}, {"bidirectional": True}])
def test_projected_states_grow_and_so_do_their_cells(options):
    layer, ways = nn.LSTM(6, 8, 2, proj_size=3, **options), 2 if "bidirectional" in options else 1
    net, x = read_by(layer, width=3 * ways), images(4, 5)
    for factor, states in ((1.5, 4), (2, 6)):
        student = grown(net, x, factor)
        assert (student.r.hidden_size, student.r.proj_size, student.r.input_size) == (8 * factor, states, 6 * factor)
        assert verify(student, replay(history(student), net), x).max_abs == 0
    net.run = lambda m, x: (lambda made, states: (m.o(made), states[1]))(*m.r(F.relu(m.a(x))))
    held = grown(net, x)  # the cells are an output
    assert (held.r.hidden_size, held.r.proj_size) == (8, 6)


def test_pooling_is_undone_to_a_size_of_all_dimensions():
    def run(m, x):
        h = m.a(x)
        pooled, places = m.pool(h)
        return m.o(m.unpool(pooled, places, output_size=h.size()))

    net = Net(run, a=conv(3, 4), pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2), o=conv(4, 2))
    assert grown(net.double(), images(3, 4, 6), 2).a.out_channels == 8


def test_what_is_computed_along_time_lets_channels_grow():
    net = Net(lambda m, x: m.o(m.a(x).logcumsumexp(1)), a=nn.Linear(5, 4), o=nn.Linear(4, 2)).double()
    assert grown(net, images(3, 5), 1.5).a.out_features == 6
    near = Net(lambda m, x, near: m.o(torch.sparse.mm(near, m.a(x))), a=nn.Linear(5, 4), o=nn.Linear(4, 2)).double()
    x = images(5), torch.eye(3).double().to_sparse()
    with pytest.warns(UserWarning, match="was run on the example inputs"):  # no such product on the meta device
        student = widen(near, x, 1.5)
    assert student.a.out_features == 6
    assert verify(near, student, x).relative < 1e-12


def test_noise_in_training_alone_is_as_dropout():
    def run(m, x):
        h = m.a(x)
        return m.o(h + torch.randn_like(h) if m.training else h)

    student = widen(Net(run, a=nn.Linear(5, 4), o=nn.Linear(4, 2)), images(5, dtype=torch.float32), 1.5)
    assert student.a.out_features == 6


def test_noise_of_its_own_in_evaluation_holds_its_channels():
    parts = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 4), "o": nn.Linear(4, 2)}
    net = Net(lambda m, x: m.o((h := m.b(m.a(x))) + torch.randn_like(h)), **parts)
    (row,) = (row for row in explain(net, images(5, dtype=torch.float32)).spaces if row.made_by[0] == "b")
    assert row.how == "'randn_like' in the model's own forward needs every one of them as it is"


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_that_are_called_step_by_step_grow(kind):
    def run(m, x):
        state = None
        for step in x.unbind(1):
            state = m.r(F.relu(m.a(step)), state)
        return m.o(state[0] if isinstance(state, tuple) else state)

    torch.manual_seed(0)
    net = Net(run, a=nn.Linear(5, 6), r=kind(6, 8), o=nn.Linear(8, 2)).double()
    student = grown(net, images(4, 5), 1.5)
    assert (student.r.hidden_size, student.r.input_size, student.a.out_features) == (12, 9, 9)


def test_packed_sequences_grow():
    def run(m, x):
        packed = nn.utils.rnn.pack_padded_sequence(F.relu(m.a(x)), [4, 2, 1], batch_first=True)
        made, _ = nn.utils.rnn.pad_packed_sequence(m.r(packed)[0], batch_first=True)
        return m.o(made)

    net = read_by(nn.LSTM(6, 8, batch_first=True))
    net.run = run
    assert grown(net, images(4, 5), 1.5).r.hidden_size == 12


@pytest.mark.parametrize("begin", ["zeros", "new_zeros"])
def test_recurrent_code_of_ones_own_begins_with_zeros(begin):
    """A convolutional LSTM, which joins an image with its state."""

    def run(m, x):
        size = (len(x), m.hidden, *x.shape[3:])
        h = c = torch.zeros(size, dtype=x.dtype, device=x.device) if begin == "zeros" else x.new_zeros(size)
        for image in x.unbind(1):
            i, f, o, g = m.gates(torch.cat([image, h], 1)).split(m.hidden, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return m.o(h)

    torch.manual_seed(0)
    net = Net(run, hidden=4, gates=conv(7, 16), o=conv(4, 2)).double()
    student = grown(net, images(2, 3, 4, 4))
    assert (student.hidden, student.gates.in_channels, student.gates.out_channels) == (8, 11, 32)


def test_complex_weights_grow_and_are_compared_with_their_imaginary_parts():
    """A Fourier layer, whose weight sums over the channels of the lowest frequencies."""

    def run(m, x):
        h = F.relu(m.a(x))
        seen = torch.fft.rfft2(h)
        made = torch.zeros(len(h), m.out_channels, *seen.shape[2:], dtype=torch.cdouble, device=h.device)
        made[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", seen[:, :, :2, :2], m.w)
        return m.o(F.relu(torch.fft.irfft2(made, s=h.shape[2:])))

    torch.manual_seed(0)
    net = Net(run, a=conv(3, 4), o=conv(6, 2), out_channels=6).double()
    net.w = nn.Parameter(torch.randn(4, 6, 2, 2, dtype=torch.cdouble))
    student = grown(net, images(3, 4, 5))
    assert (student.out_channels, student.w.shape) == (12, (8, 12, 2, 2))
    with torch.no_grad():
        student.w.imag.add_(1)
    assert verify(net, student, images(3, 4, 5)).relative > 1e-3


# What needs numbers.


class Detector(nn.Module):
    """As heads of detection nets: anchors and strides kept from the first pass, boxes that are kept by their scores."""

    def __init__(self, cached):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.neck, self.head = conv(3, 4, stride=1), conv(4, 6), conv(6, 5)
        self.cached, self.shape, self.grid, self.stride = cached, None, None, torch.tensor([4.0])

    def forward(self, x):
        h = self.head(F.silu(self.neck(F.silu(self.stem(x)))))
        if self.shape != h.shape or not self.cached:
            self.shape = h.shape
            rows, columns = (torch.arange(n, device=h.device, dtype=h.dtype) for n in h.shape[2:])
            self.grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
            self.strides = torch.full((1, self.grid.shape[1]), float(self.stride.item()), dtype=h.dtype)
        boxes, scores = h.flatten(2).split([4, 1], 1)
        boxes = (torch.cat([boxes[:, :2] + self.grid, boxes[:, 2:].exp()], 1) * self.strides).mT
        if boxes.device.type not in ("cpu", "cuda"):
            raise RuntimeError("no boxes on this device")
        return [each[keep[0] > 0.01 * float(keep.max())] for each, keep in zip(boxes, scores.sigmoid(), strict=True)]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ran", [False, True], ids=["new", "after a pass"])
def test_detection_nets_grow_below_their_heads(cached, ran):
    net, x = Detector(cached).double().eval().requires_grad_(False), images(3, 4, 5, batch=2)
    if ran:
        net(x)
    with pytest.warns(UserWarning, match="run on the example inputs"):
        student = grown(net, x, 1.5)
    assert (student.stem.out_channels, student.neck.out_channels, student.head.out_channels) == (6, 9, 5)
    assert all(torch.allclose(a, b) for a, b in zip(net(x), student(x), strict=True))


def positive(m, x):
    h = m.b(F.relu(m.a(x)))
    return m.c(F.relu(h) if x.mean().item() > -9 else h)


def masked(m, x):
    h = F.relu(m.b(F.relu(m.a(x))))
    return m.c(h)[x[:, :2] > 0]


def nonzero(m, x):
    h = m.c(F.relu(m.b(F.relu(m.a(x)))))
    keep = (h.amax((1, 2, 3)) > -9).nonzero().flatten()
    return h[keep] * float(h.max())


def some_pixels(m, x):
    h = F.relu(m.b(F.relu(m.a(x)))).permute(0, 2, 3, 1)
    return m.c(h[x.sum(1) > 0][:, :, None, None])


def their_places(m, x):
    h = F.relu(m.b(F.relu(m.a(x)))).permute(0, 2, 3, 1)
    return m.c(h[torch.where(x.sum(1) > 0)][:, :, None, None])


@pytest.mark.parametrize("run", [positive, masked, nonzero, some_pixels, their_places])
def test_code_that_looks_at_numbers_is_run(run):
    net, x = net_of(run), images(3, 4, 5)
    with pytest.warns(UserWarning, match="run on the example inputs"):
        student = grown(net, x)
    assert (student.a.out_channels, student.b.out_channels) == (8, 12)
    assert verify(student, replay(history(student), net), x).max_abs == 0
    with pytest.warns(UserWarning, match="run on the example inputs"):
        assert verify(net, deepen(net, x, {"b": [replaceable()]}), x).relative < 1e-9


def test_numbers_that_are_read_from_channels_hold_them():
    def run(m, x):
        h = F.relu(m.a(x))
        return m.c(F.relu(m.b(h))) * sum(h[0].tolist()[0][0])

    with pytest.warns(UserWarning, match="run on the example inputs"):
        student = grown(net_of(run), images(3, 4, 5))
    assert (student.a.out_channels, student.b.out_channels) == (4, 12)


# What they return.


@dataclass
class Result:
    logits: torch.Tensor
    loss: float | None = None


class Slotted:
    __slots__ = ("cache",)


def slotted(tensor):
    result = Slotted()
    result.cache = [tensor]
    return result


class Ordered(OrderedDict):
    pass


@pytest.mark.parametrize(
    "packed",
    [
        Result,
        slotted,
        lambda t: Ordered(y=t),
        lambda t: SimpleNamespace(deep={"y": [t]}),
        lambda t: torch.distributions.Normal(t, t.exp(), validate_args=False),
    ],
)
def test_outputs_are_found_in_objects(packed):
    def run(m, x):
        return packed(m.c(F.relu(m.b(F.relu(m.a(x))))))

    net, x = net_of(run), images(3, 4, 5)
    student = grown(net, x)
    assert (student.a.out_channels, student.c.out_channels) == (8, 2)


@pytest.mark.filterwarnings("ignore:no rule", "ignore:the model was run")
@pytest.mark.parametrize("made", [lambda t: torch.complex(t * 0, t), lambda t: t.to_sparse(), lambda t: [t, t > 0]])
def test_all_numbers_of_an_output_are_compared(made):
    def run(m, x):
        return made(m.c(F.relu(m.b(F.relu(m.a(x)))))[:, 0])

    net, x = net_of(run), images(3, 4, 5)
    student = widen(net, x, 2)
    assert verify(net, student, x).relative < 1e-9
    with torch.no_grad():
        student.c.bias += 1
    assert verify(net, student, x).relative > 1e-3


# What they are wrapped in.


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrappers_are_taken_off(wrap):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    student = widen(wrap(net), x, 2)
    assert (type(student), student.a.out_channels) == (Net, 8)
    assert verify(wrap(net), wrap(student), x).relative < 1e-9
    assert history(wrap(student)) == history(student)
    assert type(deepen(wrap(net), x, {"b": [replaceable()]})) is Net


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [functools.partial(torch.compile, backend="eager"), nn.DataParallel, torch.optim.swa_utils.AveragedModel]
)
def test_a_wrapped_model_goes_on_as_what_it_wraps(wrap, tmp_path):
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    student = widen(net, x, 2)
    assert verify(student, replay(history(student), wrap(net)), x).max_abs == 0
    net2net.save_weights(tmp_path / "s.safetensors", wrap(student))
    again = replay(net2net.load_record(tmp_path / "s.safetensors"), net)
    again.load_state_dict(net2net.load_weights(tmp_path / "s.safetensors"))
    assert torch.equal(again(x), student(x))
    assert str(net2net.summary(wrap(student), x, wrap(net))) == str(net2net.summary(student, x, net))
    for named in (False, True):  # AveragedModel has a copy of it
        optimizer = torch.optim.Adam(wrap(net).named_parameters() if named else net.parameters())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if named or wrap is not torch.optim.swa_utils.AveragedModel:
            further = net2net.grow_optimizer(optimizer, wrap(student), teacher=None if named else wrap(net))
            moments = [state["exp_avg"].shape for state in further.state.values()]
            assert moments == [p.shape for p in student.parameters()]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_functions_that_torch_compiled_are_followed():
    gate = torch.compile(lambda h: h * h.sigmoid(), backend="eager")
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(gate(m.a(x)))))), images(3, 4, 5)
    with torch.no_grad():
        net(x)
    assert grown(net, x).a.out_channels == 8
    kind = type("Compiled", (Net,), {"forward": torch.compile(lambda self, x: self.run(self, x), backend="eager")})
    net.__class__ = kind
    assert grown(net, x).a.out_channels == 8


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_has_lost_its_code_is_refused_with_the_cure():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3)
    with pytest.raises(GrowthError, match=r"TorchScript .*before torch\.jit"):
        widen(torch.jit.trace(net, x), x, 2)
    with pytest.raises(GrowthError, match=r"before torch\.export"):
        widen(torch.export.export(net, (x,)).module(), x, 2)
    with pytest.raises(GrowthError, match=r"module '0' is compiled .*first"):
        widen(nn.Sequential(torch.compile(net)), x, 2)
    with pytest.raises(GrowthError, match=r"expected a torch\.nn\.Module, got a function"):
        widen(lambda x: x, x, 2)


def test_a_graph_of_torch_fx_keeps_its_history():
    x = images(3, 4, 5)
    traced = torch.fx.symbolic_trace(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).double())
    twice = widen(widen(traced, x, 1.5, seed=1), x, 1.5, seed=2)
    assert [entry["seed"] for entry in history(twice)] == [1, 2]
    assert verify(twice, replay(history(twice), traced), x).max_abs == 0
    assert verify(traced, twice, x).relative < 1e-9


def test_synchronised_batch_norm_on_a_cpu():
    net, x = net_of(lambda m, x: m.c(F.relu(m.n(m.b(F.relu(m.a(x)))))), n=nn.BatchNorm2d(6)), images(3, 4, 5)
    student = grown(nn.SyncBatchNorm.convert_sync_batchnorm(net), x)
    assert (type(student.n), student.n.num_features) == (nn.SyncBatchNorm, 12)


def test_a_net_that_wants_targets_in_training_is_compared_in_evaluation_alone():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets should not be None when in training mode")
            x = self.b(self.a(x).relu()).relu()
            best = int(x.mean((2, 3)).sum(1).argmax())  # a number that the meta device does not have
            return self.head(x)[best : best + 1]

    teacher, x = Detector().double().eval(), torch.randn(2, 3, 8, 8).double()
    with pytest.warns(UserWarning, match="example inputs"):
        student = net2net.widen(teacher, x, factor=2)
    assert student.a.out_channels == 16
    assert net2net.verify(teacher, student, x).relative < 1e-12
    with pytest.raises(GrowthError, match="the teacher does not run on these inputs: ValueError: targets"):
        net2net.verify(teacher, student, x, train=True)


class Refusing:
    __slots__ = ()

    def __getattr__(self, name):
        raise ValueError(f"{name}: not before I am complete")


class Lazy(dict):
    """As transformers keeps its models: each is imported when it is asked for."""

    def keys(self):
        return ["not installed"]

    def values(self):
        raise ImportError("not installed")

    items = __getitem__ = __iter__ = __len__ = lambda self, *key: self.values()


REFUSING, LAZY = Refusing(), Lazy(a=1)


def test_an_object_that_refuses_to_be_looked_at_is_left_alone():
    def run(m, x):
        return m.c(F.relu(m.b(F.relu(m.a(x))))) * (1 if REFUSING or LAZY is None else 2)

    student = grown(net_of(run), images(3, 4, 5))
    assert (student.a.out_channels, student.b.out_channels) == (8, 12)


# Kinds that small nets of several fields brought.

EXTREMES = {
    "max": lambda h: h.max(1, keepdim=True)[0],
    "torch.max": lambda h: torch.max(h, 1).values[:, None],
    "min": lambda h: h.min(1, keepdim=True).values,
    "aminmax": lambda h: torch.aminmax(h, dim=1, keepdim=True)[1],
    "the infinity norm": lambda h: torch.linalg.vector_norm(h, float("inf"), dim=1, keepdim=True),
    "of all": lambda h: h.max(),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_largest_of_channels_is_that_of_their_copies(name):
    student = grown(net_of(lambda m, x: m.c(m.b((h := m.a(x)) * EXTREMES[name](h)))), images(3, 4, 5))
    assert student.a.out_channels == 8


def test_the_place_of_the_largest_is_one_of_the_channels():
    student = grown(net_of(lambda m, x: m.c(m.b((h := m.a(x)) * h.max(1, keepdim=True)[1]))), images(3, 4, 5))
    assert (student.a.out_channels, student.b.out_channels) == (4, 12)


STATES = {
    "on the device": lambda m, x, shape: torch.zeros(shape).to(x.device).to(x),
    "as the input": lambda m, x, shape: torch.zeros(shape).type_as(x),
    "with a gradient": lambda m, x, shape: torch.zeros(shape, dtype=x.dtype).requires_grad_(),
    "of a weight": lambda m, x, shape: next(m.parameters()).new_zeros(shape),
    "of a weight's data": lambda m, x, shape: next(m.parameters()).data.new(*shape).zero_(),
    "filled later": lambda m, x, shape: torch.empty(shape, dtype=x.dtype).fill_(0),
    "as a Variable": lambda m, x, shape: torch.autograd.Variable(torch.zeros(shape, dtype=x.dtype)),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_recurrent_layer_begins_with_zeros_however_they_are_made(name, kind):
    def run(m, x):
        states = tuple(STATES[name](m, x, (1, len(x), m.hidden)) for _ in range(1 if kind is nn.GRU else 2))
        return m.o(m.r(x, states if kind is nn.LSTM else states[0])[0][:, -1])

    net = Net(run, r=kind(4, 8, batch_first=True), o=nn.Linear(8, 2)).double()
    net.hidden = 8
    assert grown(net, images(5, 4), 1.5).r.hidden_size == 12


BATCHED = {
    "bmm": lambda m, x: torch.bmm(torch.bmm(x, m.u).relu(), m.v),
    "matmul": lambda m, x: (x @ m.u).relu() @ m.v,
    "baddbmm": lambda m, x: torch.bmm(torch.baddbmm(m.w, x, m.u).relu(), m.v),
    "on the left": lambda m, x: (m.t @ (x @ m.u).mT.relu()).mT,
}


@pytest.mark.parametrize("name", BATCHED)
def test_a_weight_for_each_expert_grows(name):
    torch.manual_seed(0)
    net = Net(lambda m, x: BATCHED[name](m, x.expand(4, -1, -1)))
    for key, shape in {"u": (4, 5, 8), "v": (4, 8, 3), "w": (4, 1, 8), "t": (4, 3, 8)}.items():
        net.register_parameter(key, nn.Parameter(torch.randn(shape)))
    assert grown(net.double(), images(5)[:, :5].reshape(-1, 5)).u.shape == (4, 5, 16)


ROUTED = {
    "a mask": lambda out, mask, places, new: out.__setitem__(mask, new),
    "places": lambda out, mask, places, new: out.__setitem__(places, new),
    "added": lambda out, mask, places, new: out.__setitem__(places, out[places] + new),
    "index_put": lambda out, mask, places, new: out.index_put_((places,), new),
    "one number": lambda out, mask, places, new: out.__setitem__(mask, 0.5),
    "a row": lambda out, mask, places, new: out.__setitem__(places, new[:1]),
}


@pytest.mark.parametrize("name", ROUTED)
def test_rows_that_are_overwritten_by_a_mask_or_places_follow(name):
    def run(m, x):
        h = m.i(x)
        out, mask = torch.zeros_like(h), torch.arange(len(x)) % 3 == 0
        ROUTED[name](out, mask, mask.nonzero().squeeze(-1), m.e(h[mask]))
        return m.o(F.relu(h + out))

    net = Net(run, i=nn.Linear(4, 8), e=nn.Linear(8, 8), o=nn.Linear(8, 2)).double()
    with pytest.warns(UserWarning, match="was run on the example inputs"):
        student = grown(net, images(4))
    assert student.i.out_features == 16


def test_numbers_below_zero_set_to_zero_in_place_hold_nothing():
    def run(m, x):
        h = m.a(x)
        h[h < 0] = 0
        return m.c(m.b(h))

    assert grown(net_of(run), images(3, 4, 5)).a.out_channels == 8


def test_a_closure_that_keeps_the_teachers_layer_is_refused():
    net = net_of(lambda m, x: m.c(m.f(m.a(x))))
    net.f = lambda h: F.relu(net.b(h))
    with pytest.raises(GrowthError, match=r"'b.weight' is read in .* from this very model.*closure keeps it"):
        widen(net, images(3, 4, 5), 2)


def test_features_that_only_buffers_make_stay():
    net = Net(lambda m, x: m.o(F.relu(m.l((x @ m.fourier).cos()))), l=nn.Linear(8, 6), o=nn.Linear(6, 2))
    net.register_buffer("fourier", torch.randn(4, 8))
    student = grown(net.double(), images(4))
    assert (student.fourier.shape, student.l.in_features, student.l.out_features) == ((4, 8), 8, 12)


def test_parameters_that_no_pass_reaches_are_named():
    def run(m, x, mask=None):
        h = F.relu(m.a(x))
        return m.c(m.b(h if mask is None else torch.where(mask, m.token[:, None, None], h)))

    net, x = net_of(run), images(3, 4, 5)
    net.token = nn.Parameter(torch.randn(4, dtype=torch.float64))
    with pytest.warns(UserWarning, match="no forward pass with these example inputs reads 'token'"):
        widen(net, x, 2)
    mask = torch.rand(len(x), 1, 4, 5) < 0.5
    student = widen(net, (x, mask), 2)
    assert student.token.shape == (8,)
    assert verify(net, student, (x, mask)).relative < 1e-12


def test_a_default_device_is_the_callers():
    """As of scripts with torch.set_default_device("cuda"): what the library makes for itself stays on the CPU."""
    net, x = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))), images(3, 4, 5)
    with torch.device("meta"):
        student, padded = widen(net, x, 1.5), random_pad(net, x, 1.5)
        replayed = replay(history(student), net)
    for model in (student, padded, replayed):
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert verify(net, student, x).relative < 1e-12


def test_masks_that_numpy_draws_hold_nothing():
    def run(m, x):
        h = F.relu(m.a(x))
        if m.training:
            h = h * torch.as_tensor(np.random.rand(len(x)) < 0.5)[:, None, None, None]  # noqa: NPY002
        return m.c(m.b(h))

    np.random.seed(3)  # noqa: NPY002
    wanted = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    net = net_of(run).train()
    assert widen(net, images(3, 4, 5), 2).a.out_channels == 8
    assert np.random.rand() == wanted  # noqa: NPY002


def test_widths_of_numpy():
    net = net_of(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))))
    assert widen(net, images(3, 4, 5), widths={"a": np.int64(7)}).a.out_channels == 7


# Channels that a parameter is, and what is taken for its shape alone.

TAKEN = {
    "*_like of one channel": lambda m, h: h * torch.full_like(h[:, :1], 0.5) + h,
    "the shape of one channel": lambda m, h: h * torch.ones(h[:, :1].shape, dtype=h.dtype) + h,
    "the length of one": lambda m, h: h * h[:, 0].shape[0] / m.a.weight[0].numel(),
    "a coordinate beside them": lambda m, h: h + m.b(torch.cat([torch.ones_like(h[:, :1]), h], 1)),
}


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("name", TAKEN)
def test_one_channel_that_is_taken_for_its_shape_holds_nothing(name, factor):
    net, x = net_of(lambda m, x: m.c(TAKEN[name](m, m.a(x)).mean((2, 3)))), images(3, 4, 5)
    net.a, net.b, net.c = conv(3, 8), nn.Conv2d(9, 8, 1).double(), nn.Linear(8, 2).double()
    student = grown(net, x, factor)
    assert student.a.out_channels == student.c.in_features == 8 * factor


OF_PARAMETERS = {
    "a table": lambda m, x: m.table[x],
    "a weight by places": lambda m, x: m.words.weight[x],
    "a constant": lambda m, x: m.constant.expand(len(x), -1) * x[:, :1],
    "an image": lambda m, x: F.grid_sample(m.image, x.double().view(1, 4, 1, 2) / 9, align_corners=False)[0, ..., 0].T,
    "a stack, one by one": lambda m, x: [h := m.table[x], *(h := (h @ w).relu() for w in m.stack)][-1],
    "a stack that is unbound": lambda m, x: F.linear(F.linear(m.table[x], (u := m.stack.unbind(0))[0]), u[1]),
}


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_channels_that_a_parameter_is_grow(name):
    net = net_of(lambda m, x: m.o(OF_PARAMETERS[name](m, x).flatten(0, -2)))
    for key, shape in {"table": (9, 6), "constant": (1, 6), "image": (1, 6, 4, 4), "stack": (2, 6, 6)}.items():
        setattr(net, key, nn.Parameter(torch.randn(shape, dtype=torch.float64)))
    net.words, net.o = nn.Embedding(9, 6).double(), nn.Linear(6, 2).double()
    assert grown(net, torch.arange(8).view(4, 2), 1.5).o.in_features == 9


class Forces(nn.Module):
    """The derivative of what it predicts by its input; `by` attribute or method it asks for that."""

    def __init__(self, by):
        super().__init__()
        self.by, self.f = by, nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        if self.by == "attribute":
            x.requires_grad = True
        else:
            x.requires_grad_()
        return -torch.autograd.grad(self.f(x).sum(), x, create_graph=True)[0]


@pytest.mark.filterwarnings("ignore:the model was run on the example inputs")
@pytest.mark.parametrize("by", ["attribute", "method"])
def test_a_pass_that_asks_for_gradients_of_its_own(by, recwarn):
    net, x = Forces(by).double(), images(3)
    student = widen(net, x, 1.5)
    assert (student.f[0].out_features, student.f[2].out_features) == (12, 12)
    assert verify(net, student, x).relative < 1e-12
    assert verify(net, deepen(net, x, {"f.1": [net2net.Layer(1, maxout=2)]}), x).relative < 1e-12
    assert not x.requires_grad
    assert not [w for w in recwarn if "requires_grad=True to a scalar" in str(w.message)]


def test_a_table_that_buffers_look_up_keeps_its_places():
    """Relative positions as in timm's MaxViT: one-hot matrices sum over those of the table."""

    def forward(m, x):
        bias = torch.einsum("nixw,jyw->nijxy", torch.einsum("nhw,ixh->nixw", m.table, m.rows), m.columns)
        return m.o((m.a(x)[:, None] + bias.flatten(1).T).relu())

    net = net_of(forward)
    for name in ("rows", "columns"):
        net.register_buffer(name, torch.eye(7, dtype=torch.float64)[torch.arange(4)[:, None] + torch.arange(4)])
    net.table = nn.Parameter(torch.randn(8, 7, 7, dtype=torch.float64))
    net.a, net.o = nn.Linear(5, 8).double(), nn.Linear(8, 2).double()
    assert grown(net, images(5), 2).table.shape == (16, 7, 7)


@pytest.mark.quick
@pytest.mark.parametrize(("wrap", "kind"), [(lambda x: {"x": x}, "dict"), (lambda x: [x, x], "list")])
def test_a_dict_or_list_that_is_one_argument_goes_into_a_tuple(wrap, kind):
    class Gathered(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, batch):
            return self.b(self.a(batch["x"] if isinstance(batch, dict) else batch[0] + batch[1]).relu())

    model, one = Gathered(), wrap(torch.randn(5, 3))
    hint = rf"a {kind} is taken for .* arguments; put it into a tuple, \({kind},\), to pass it as one"
    for call in (net2net.widen, net2net.explain):
        with pytest.raises(GrowthError, match=rf"TypeError: .* \(check the example inputs: {hint}"):
            call(model, one, **({"factor": 2} if call is net2net.widen else {}))
    with pytest.raises(GrowthError, match=f"the teacher does not run on these inputs: TypeError: .*: {hint}"):
        net2net.verify(model, model, one)
    assert net2net.widen(model, (one,), 2).a.out_features == 8


def test_a_rest_of_heads_of_which_there_are_none_is_as_many_in_a_student():
    """As in Performers: so many heads are global, the others local, if there are any."""

    def forward(m, x):
        heads = m.a(x).unflatten(1, (-1, 4))
        parts = [heads[:, : m.wide], heads[:, m.wide :]]
        return m.o(torch.cat([part for part in parts if part.numel()], 1).flatten(1))

    net = net_of(forward)
    net.wide, net.a, net.o = 2, nn.Linear(5, 8).double(), nn.Linear(8, 2).double()
    assert grown(net, images(5), 2).a.out_features == 16
