"""The optimizer comes along: its grown state is the one that the student would have had in its teacher's place."""

import copy
import io
import warnings
from functools import partial

import pytest
import timm.optim
import timm.utils
import torch
import torch.nn.functional as F
from compare import same
from torch import nn

from net2net import GrowthError, deepen, grow_optimizer, history, random_pad, replay, verify, widen
from net2net.growth import Growth
from net2net.optimizer import _Step


class Net(nn.Module):
    """Residual, depthwise, grouped, concatenated, normalised in groups, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 1)
        )
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.fc = nn.Linear(10 * 4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        h = F.relu(self.bn(self.stem(x)))
        h = torch.tanh(h + self.branch(h))
        h = torch.cat([F.relu(self.depthwise(h)), self.scale * self.grouped(h)], 1)
        return self.out(torch.tanh(self.fc(F.max_pool2d(h, 2).flatten(1))))


X = torch.Generator().manual_seed(5)
BATCHES = [
    (torch.randn(6, 3, 4, 4, generator=X, dtype=torch.float64), torch.randint(3, (6,), generator=X)) for _ in range(4)
]


@pytest.fixture
def teacher(randomise):
    return randomise(Net()).double()


def wider(model, **options):
    return widen(model, BATCHES[0][0], factor=2, **{"noise": 0, **options})


def backward(model, batch):
    model.train()
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()


def in_its_place(make, teacher, steps):
    """Train a teacher, and let a student's optimizer see, at each step, the gradients of the student grown from the
    teacher as it is then. Returns the teacher's optimizer and the state that the student's has, by parameter name.
    """
    student = wider(teacher)
    ours, theirs = make(teacher.named_parameters()), make(student.named_parameters())
    for batch in BATCHES[:steps]:
        student.load_state_dict(replay(history(student), teacher).state_dict())
        for model, optimizer in ((teacher, ours), (student, theirs)):
            backward(model, batch)
            optimizer.step()
    return ours, {name: theirs.state[p] for name, p in student.named_parameters() if p in theirs.state}


def compare(state, wanted, names, tolerance):
    """Max-abs and relative error of each tensor, with what a teacher's state would be without the rules as a check."""
    assert sum(bool(s) for s in wanted.values()) == len(state) > 0
    for parameter, own in state.items():
        expected = wanted[names[parameter]]
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            if not isinstance(value, torch.Tensor):
                assert own[key] == value
                continue
            assert own[key].shape == value.shape
            assert own[key].dtype == value.dtype
            scale = float(value.abs().max())
            assert scale > 0 or key == "step_size"
            error = float((own[key] - value).abs().max())
            assert error <= tolerance * scale, f"{names[parameter]} {key}: {error:.1e} of {scale:.1e}"


T = timm.optim
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "dampening": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "maximize": True}),
    "adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {"eps": 1e-20}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.3}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "rmsprop_centered": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9, "eps": 1e-20}),
    "rmsprop_momentum": (torch.optim.RMSprop, {"momentum": 0.9, "eps": 1e-20}),
    "rprop": (torch.optim.Rprop, {}),
    "rmsprop_tf": (T.RMSpropTF, {"centered": True, "lr_in_momentum": False}),
    "sgdw": (T.SGDW, {"momentum": 0.9, "weight_decay": 0.1}),
    "nadamw": (T.NAdamW, {}),
    "adamw_timm": (T.AdamWLegacy, {}),
    "lion": (T.Lion, {}),
    "lamb": (T.Lamb, {"max_grad_norm": None}),  # a norm over all gradients is another one in the student
    "adamp": (T.AdamP, {}),
    "nadam_legacy": (T.NAdamLegacy, {}),
    "radam_legacy": (T.RAdamLegacy, {}),
    "adabelief": (T.AdaBelief, {}),
    "adan": (T.Adan, {}),
    "adopt": (T.Adopt, {"eps": 1e-20, "clip_exp": 0.25}),
    "laprop": (T.LaProp, {"eps": 1e-20}),
    "sgdp": (T.SGDP, {"momentum": 0.9}),
    "muon_timm": (T.Muon, {"verbose": False}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_that_of_a_student_in_its_teachers_place(teacher, name):
    kind, options = OPTIMIZERS[name]
    optimizer, wanted = in_its_place(lambda p: kind(p, lr=1e-3, **options), teacher, steps=4)
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    assert type(grown) is kind
    # This one computes in float32.
    compare(grown.state, wanted, {p: n for n, p in student.named_parameters()}, 1e-6 if "radam_leg" in name else 1e-9)


# What is kept of normalised gradients is exact after one step, whatever eps is: they are scaled by the denominators.
@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adadelta, {}),
        (T.RMSpropTF, {"momentum": 0.9}),
        (T.RMSpropTF, {"momentum": 0.9, "centered": True, "lr_in_momentum": False}),
    ],
)
def test_normalised_gradients_with_any_eps(teacher, kind, options, eps):
    optimizer, wanted = in_its_place(lambda p: kind(p, lr=1e-2, eps=eps, **options), teacher, steps=1)
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    compare(grown.state, wanted, {p: n for n, p in student.named_parameters()}, 1e-9)


def test_muon_and_what_the_optimizer_does_not_train(teacher):
    def make(named):
        return torch.optim.Muon([(n, p) for n, p in named if p.ndim == 2], lr=1e-3)

    optimizer, wanted = in_its_place(make, teacher, steps=3)
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    assert grown.param_groups[0]["param_names"] == ["fc.weight", "out.weight"]
    compare(grown.state, wanted, {p: n for n, p in student.named_parameters()}, 1e-9)


def test_the_rules_on_a_small_example():
    """Three copies of unit 1: its row's momentum by 3, its second moment by 9, what reads it not at all."""
    teacher = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.1)
    backward_of = teacher(torch.randn(4, 2, generator=X, dtype=torch.float64)).square().mean()
    backward_of.backward()
    optimizer.step()
    for seed in range(50):
        student = widen(teacher, torch.zeros(1, 2).double(), widths={"0": 4}, seed=seed, noise=0)
        if history(student)[-1]["spaces"][0]["copies_of"] == [1, 1]:
            break
    grown = grow_optimizer(optimizer, student, teacher=teacher)
    old, new = ([optimizer.state[p] for p in teacher.parameters()], [grown.state[p] for p in student.parameters()])
    g, n = [0, 1, 1, 1], torch.tensor([1.0, 3, 3, 3], dtype=torch.float64)
    assert torch.equal(new[0]["exp_avg"], old[0]["exp_avg"][g] / n[:, None])
    assert torch.equal(new[0]["exp_avg_sq"], old[0]["exp_avg_sq"][g] / n[:, None] ** 2)
    assert torch.equal(new[1]["exp_avg_sq"], old[1]["exp_avg_sq"][g] / n**2)
    assert torch.equal(new[2]["exp_avg"], old[2]["exp_avg"][:, g])
    assert torch.equal(new[2]["exp_avg_sq"], old[2]["exp_avg_sq"][:, g])
    assert torch.equal(new[3]["exp_avg"], old[3]["exp_avg"])


# ---- the optimizer that comes back


def trained(teacher, kind=torch.optim.Adam, named=True, **options):
    named_parameters = list(teacher.named_parameters())
    norms = [(n, p) for n, p in named_parameters if p.ndim < 2]
    rest = [(n, p) for n, p in named_parameters if p.ndim >= 2]
    groups = [{"params": rest, "lr": 0.01}, {"params": norms, "weight_decay": 0.0}]
    if not named:
        groups = [{**group, "params": [p for _, p in group["params"]]} for group in groups]
    optimizer = kind(groups, **{"lr": 0.1, **options})
    for batch in BATCHES:
        backward(teacher, batch)
        optimizer.step()
    return optimizer


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict()), [[id(p) for p in g["params"]] for g in optimizer.param_groups]


@pytest.mark.parametrize("foreach", [False, True])
def test_groups_options_and_names_are_kept_and_the_old_one_is_untouched(teacher, foreach):
    optimizer = trained(teacher, torch.optim.AdamW, foreach=foreach, lr=torch.tensor(0.1) if not foreach else 0.1)
    before = snapshot(optimizer)
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    assert same(snapshot(optimizer)[0], before[0])
    assert snapshot(optimizer)[1] == before[1]
    new = dict(student.named_parameters())
    for ours, theirs in zip(grown.param_groups, optimizer.param_groups, strict=True):
        assert [id(p) for p in ours["params"]] == [id(new[name]) for name in theirs["param_names"]]
        assert {k: v for k, v in ours.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}
    shared = {id(v) for s in optimizer.state.values() for v in s.values()}
    assert not shared & {id(v) for s in grown.state.values() for v in s.values()}  # the counts of steps neither
    # It steps, and the old one does not move with it.
    backward(student, BATCHES[0])
    grown.step()
    assert same(snapshot(optimizer)[0], before[0])


def test_its_state_is_saved_and_loaded(teacher):
    optimizer = trained(teacher)
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    file = io.BytesIO()
    torch.save(grown.state_dict(), file)
    file.seek(0)
    again = grow_optimizer(optimizer, copy.deepcopy(student))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert same(again.state_dict(), grown.state_dict())


def test_a_scheduler_of_the_old_optimizer_does_not_come_along(teacher):
    optimizer = trained(teacher)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("the teacher's hook"))
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student)
    scheduler = torch.optim.lr_scheduler.StepLR(grown, 1)
    backward(student, BATCHES[0])
    grown.step()
    scheduler.step()
    assert [group["lr"] for group in grown.param_groups] == pytest.approx([0.001, 0.01])


def test_a_new_schedule_begins_with_the_rate_that_is_set(teacher):
    """Not with that of the old one, which its schedule left in the groups."""
    optimizer = trained(teacher)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    grown = grow_optimizer(optimizer, wider(teacher))
    for group in grown.param_groups:
        group["lr"] = 0.003
    assert torch.optim.lr_scheduler.StepLR(grown, 1).get_last_lr() == [0.003, 0.003]


def test_what_a_class_of_optimizers_keeps_in_attributes_comes_along(teacher):
    class Own(torch.optim.SGD):
        def __init__(self, parameters, rho, **options):
            super().__init__(parameters, **options)
            self.rho = rho

        def step(self, closure=None):
            assert self.rho == 0.05
            return super().step(closure)

    student = wider(teacher)
    backward(student, BATCHES[0])
    grow_optimizer(Own(teacher.parameters(), 0.05, lr=0.1, momentum=0.9), student, teacher=teacher).step()


def test_an_optimizer_that_keeps_parameters_of_its_own_is_refused(teacher):
    student, optimizer = wider(teacher), torch.optim.SGD(teacher.parameters(), lr=0.1)
    optimizer.mine = list(teacher.parameters())
    with pytest.raises(GrowthError, match="SGD keeps parameters of its own in 'mine'"):
        grow_optimizer(optimizer, student, teacher=teacher)


def test_memory_layout_follows_the_student(teacher):
    optimizer = trained(teacher)
    student = wider(teacher).to(memory_format=torch.channels_last)
    grown = grow_optimizer(optimizer, student)
    for parameter, state in grown.state.items():
        assert state["exp_avg"].stride() == parameter.stride()


@pytest.mark.parametrize("named", [True, False])
def test_several_growths_in_a_row(teacher, named):
    optimizer = trained(teacher, named=named)
    x = BATCHES[0][0]
    middle = widen(teacher, x, widths={"stem": 6, "fc": 8}, seed=1)
    student = widen(middle, x, 2, seed=2)
    both = grow_optimizer(optimizer, student, teacher=teacher)
    one = grow_optimizer(optimizer, middle, teacher=teacher)
    assert same(both.state_dict(), grow_optimizer(one, student, teacher=middle).state_dict())
    if named:
        assert same(both.state_dict(), grow_optimizer(optimizer, student, history(student)).state_dict())


def test_deepen_gives_new_layers_to_the_group_before_them(randomise):
    teacher = randomise(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    ).double()
    teacher[4].bias.requires_grad_(False)
    x = BATCHES[0][0]
    matrices = [(n, p) for n, p in teacher.named_parameters() if p.ndim > 1]
    vectors = [(n, p) for n, p in teacher.named_parameters() if p.ndim == 1 and p.requires_grad]
    optimizer = torch.optim.Adagrad([{"params": matrices}, {"params": vectors, "lr": 0.5}], initial_accumulator_value=1)
    backward(teacher, BATCHES[0])
    optimizer.step()
    student = widen(deepen(teacher, x, {"2": [3, 3]}, [x]), x, 2)
    grown = grow_optimizer(optimizer, student, teacher=teacher)
    weights = ["0.weight", "2.1.conv.weight", "2.2.conv.weight", "4.weight"]
    norms = ["1.weight", "1.bias", *(f"2.{k}.bn.{end}" for k in (1, 2) for end in ("weight", "bias"))]
    assert [group["param_names"] for group in grown.param_groups] == [weights, norms]
    names = {p: n for n, p in student.named_parameters()}
    assert [[names[p] for p in group["params"]] for group in grown.param_groups] == [weights, norms]
    assert all((grown.state[p]["sum"] == 1).all() for n, p in student.named_parameters() if n.startswith("2."))
    backward(student, BATCHES[0])
    grown.step()


def test_each_of_several_optimizers_gets_the_new_layers_near_its_own():
    """Of two players, of matrices and vectors, and one for each parameter."""
    x = torch.randn(5, 4, generator=X, dtype=torch.float64)
    player = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))  # noqa: E731
    teacher = nn.Sequential(player(), player()).double()
    student = deepen(teacher, x, {"1.1": [1]})
    names = {p: n for n, p in student.named_parameters()}
    first, second = (torch.optim.Adam(part.parameters()) for part in teacher)
    matrices = torch.optim.Muon([p for p in teacher.parameters() if p.ndim == 2])
    vectors = torch.optim.SGD([p for p in teacher.parameters() if p.ndim == 1], lr=0.1)
    every = [torch.optim.SGD([p], lr=0.1) for p in teacher.parameters()]

    def added(*optimizers):
        grown = (grow_optimizer(optimizer, student, teacher=teacher) for optimizer in optimizers)
        found = [names[p] for each in grown for group in each.param_groups for p in group["params"]]
        return [name for name in found if name.startswith("1.1.")]

    weight, bias = "1.1.1.linear.weight", "1.1.1.linear.bias"
    assert [added(one) for one in (first, second, matrices, vectors)] == [[], [weight, bias], [weight], [bias]]
    assert sorted(added(*every)) == [bias, weight]


@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True), T.Adahessian])
def test_optimizers_that_note_every_parameter_go_on_with_new_ones(kind):
    x = torch.randn(5, 4, generator=X)
    teacher = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = kind(teacher.parameters())

    def step(net, optimizer):
        optimizer.zero_grad()
        net(x).square().sum().backward(create_graph=hasattr(optimizer, "set_hessian"))
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cycle between a parameter and its gradient
        step(teacher, optimizer)
        student = deepen(teacher, x, {"1": [1]})
        before = student[1][1].linear.weight.clone()
        step(student, grow_optimizer(optimizer, student, teacher=teacher))
    assert not torch.equal(student[1][1].linear.weight, before)


def test_muon_takes_matrices_alone():
    teacher = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    student = deepen(teacher, torch.randn(5, 4), {"1": [1]})
    with pytest.warns(UserWarning, match="'1.1.linear.bias' is no matrix, which is all that Muon takes"):
        grown = grow_optimizer(torch.optim.Muon(teacher.parameters()), student, teacher=teacher)
    assert [p.ndim for p in grown.param_groups[0]["params"]] == [2, 2, 2]


def test_a_site_with_parameters_of_its_own_is_found_by_its_new_name(randomise):
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    teacher = randomise(nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2))).double()
    x = torch.randn(5, 3, generator=X, dtype=torch.float64)
    optimizer = torch.optim.SGD(teacher.named_parameters(), lr=0.1, momentum=0.9)
    teacher(x).square().sum().backward()
    optimizer.step()
    student = deepen(teacher, x, {"1": [1], "1.1": [1]})
    grown = grow_optimizer(optimizer, student)
    fresh = torch.optim.SGD(student.named_parameters(), lr=0.1, momentum=0.9)
    assert grown.param_groups[0]["param_names"] == fresh.param_groups[0]["param_names"]
    old, new = teacher[1][0].weight, student.get_parameter("1.0.0.weight")
    assert torch.equal(grown.state[new]["momentum_buffer"], optimizer.state[old]["momentum_buffer"])
    assert len(grown.state) == len(optimizer.state) == 6
    fresh.load_state_dict(grown.state_dict())  # by position: the groups are in the student's order


def test_random_pad_keeps_the_old_and_starts_the_new_safely(teacher):
    optimizer = trained(teacher)
    student = random_pad(teacher, BATCHES[0][0], 2, init=lambda m: m.scale.fill_(1) if isinstance(m, Net) else None)
    grown = grow_optimizer(optimizer, student)
    old, new = optimizer.state[teacher.fc.weight], grown.state[student.fc.weight]
    rows, columns = Growth.of(history(student)[-1]).axes("fc.weight").values()
    fresh = rows.fresh[:, None] | columns.fresh
    assert int((~fresh).sum()) == teacher.fc.weight.numel()
    for key, fill in (("exp_avg", 0.0), ("exp_avg_sq", float(old["exp_avg_sq"].mean()))):
        assert torch.equal(new[key][~fresh], old[key].flatten())  # both in the order of rows, then columns
        assert (new[key][fresh] == fill).all()
    backward(student, BATCHES[0])
    before = student.fc.weight.detach().clone()
    grown.step()
    assert float((student.fc.weight.detach() - before).abs().max()) < 0.1  # the learning rate is 0.01


# ---- refusals


def test_what_leads_elsewhere_is_refused(teacher, randomise):
    named, plain = trained(teacher), trained(teacher, named=False)
    student = wider(teacher)
    twice = wider(student)
    with pytest.raises(GrowthError, match="does not know its parameters' names: pass teacher="):
        grow_optimizer(plain, student)
    with pytest.raises(GrowthError, match=r"is none of the teacher's"):
        grow_optimizer(plain, student, teacher=randomise(Net()))
    with pytest.raises(GrowthError, match=r"the optimizer's is \(6, 1, 1\): pass teacher= or growth="):
        grow_optimizer(named, twice)
    with pytest.raises(
        GrowthError, match=r"makes 'scale' of shape \(12, 1, 1\) of 'scale', and the student has it with \(24, 1, 1\)"
    ):
        grow_optimizer(named, twice, history(twice)[0])
    with pytest.raises(GrowthError, match="the student has no growth on record"):
        grow_optimizer(named, teacher)
    with pytest.raises(GrowthError, match="does not begin with the teacher's"):
        grow_optimizer(plain, wider(Net().double(), seed=7), teacher=twice)
    with pytest.raises(GrowthError, match="teacher= is the student itself, or has been grown as far: pass the model"):
        grow_optimizer(plain, student, teacher=student)
    with pytest.raises(GrowthError, match=r"got a list"):
        grow_optimizer([named], student)
    with pytest.raises(GrowthError, match="'op' is 'shrink'"):
        grow_optimizer(named, student, {"op": "shrink"})


def test_sites_before_a_module_move_it_to_the_end():
    layers = [{}, {}]
    step = _Step(
        {
            "op": "deepen",
            "sites": {"before a.b": layers, "a": layers},
        }
    )
    assert step.renamed("a.b.weight") == "a.0.b.2.weight"
    assert step.renamed("ab.weight") == "ab.weight"
    assert step.added() == ["a.0.b.0.", "a.0.b.1.", "a.1.", "a.2."]


@pytest.mark.parametrize("inner", [torch.optim.SGD, T.Lamb, torch.optim.AdamW])
def test_lookahead_goes_on_around_a_grown_optimizer(teacher, inner):
    options = {"momentum": 0.9} if inner is torch.optim.SGD else {}
    optimizer = T.Lookahead(inner(teacher.parameters(), lr=0.01, **options), alpha=0.3, k=2)
    for batch in BATCHES:
        backward(teacher, batch)
        optimizer.step()
    student = wider(teacher)
    grown = grow_optimizer(optimizer, student, teacher=teacher)
    assert (type(grown), type(grown._base_optimizer)) == (T.Lookahead, inner)
    assert [(g["lookahead_k"], g["lookahead_alpha"], g["lookahead_step"]) for g in grown.param_groups] == [(2, 0.3, 4)]
    assert grown.param_groups is grown._base_optimizer.param_groups
    alone = grow_optimizer(optimizer._base_optimizer, student, teacher=teacher)
    for parameter, state in grown._base_optimizer.state.items():
        assert "lookahead_slow_buff" not in state
        assert all(torch.equal(state[k], v) for k, v in alone.state[parameter].items() if k in state and v is not None)
    for batch in BATCHES:
        backward(student, batch)
        grown.step()
    assert all(p.isfinite().all() for p in student.parameters())


class Wrapper(torch.optim.Optimizer):
    """As those of accelerate and schedule-free."""

    def __init__(self, base):
        self.base = base
        self.param_groups = base.param_groups


class ScheduleFree(torch.optim.SGD):
    """Keeps a second copy of the weights, which no rule knows."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["z"] = p.detach().clone()
        super().step(closure)


class NotOne:
    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Wrapper(torch.optim.SGD(p, lr=0.1)), r"^Wrapper wraps another optimizer: pass its 'base'"),
        (lambda p: NotOne(torch.optim.SGD(p, lr=0.1)), r"got a NotOne: pass its 'optimizer', and wrap the result"),
        (
            lambda p: ScheduleFree(p, lr=0.1),
            r"^ScheduleFree keeps 'z' of .*, and how it grows is not known: start a new",
        ),
        (lambda p: torch.optim.Adafactor(p), r"^Adafactor keeps '[a-z_]+' of .*: start a new optimizer"),
        (lambda p: T.Adafactor(p), r"^Adafactor keeps '[a-z_]+' of .*: start a new optimizer"),
        (lambda p: T.MADGRAD(p), r"^MADGRAD keeps '.*' of .*: start a new optimizer"),
        (lambda p: T.Muon(p, algo="adamuon", verbose=False), r"^Muon keeps '.*' of .*: start a new optimizer"),
        (lambda p: torch.optim.ASGD(p), r"^ASGD keeps 'ax' of .*: start a new optimizer"),
    ],
)
def test_what_has_no_rule_is_refused_in_one_sentence(teacher, make, message):
    optimizer = make(list(teacher.parameters()))
    for batch in BATCHES[:2]:
        backward(teacher, batch)
        getattr(optimizer, "base", getattr(optimizer, "optimizer", optimizer)).step()
    with pytest.raises(GrowthError, match=message) as refused:
        grow_optimizer(optimizer, wider(teacher), teacher=teacher)
    assert "\n" not in str(refused.value)


def test_the_average_of_the_weights_is_grown_from_the_record(teacher):
    """timm's ModelEmaV3 after some training: the record replayed on what it averages, then average on."""
    average = timm.utils.ModelEmaV3(teacher, decay=0.5)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05)
    for batch in BATCHES:
        backward(teacher, batch)
        optimizer.step()
        average.update(teacher)
    student = widen(teacher, BATCHES[0][0], 1.5)
    before = average.module
    average.module = replay(history(student), before)
    assert verify(before, average.module, BATCHES[0][0]).relative < 1e-12
    was = copy.deepcopy(average.module)
    average.update(student)
    triples = zip(*(m.parameters() for m in (average.module, was, student)), strict=True)
    assert all(torch.allclose(mean, (old + new) / 2) for mean, old, new in triples)
