"""What a student takes over from its teacher besides its function: how its tensors lie in memory and what users noted
on them, hooks, modes, and the integers that modules keep of their widths."""

import copy
import os
import threading
import types
import warnings
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from compare import certify, grown, same, shapes
from nets import Net, conv, images
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import mobilenet_v3_small, shufflenet_v2_x0_5

import net2net
from net2net import history, replay, verify, widen


def small():
    parts = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU()
    return nn.Sequential(*parts, nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGES = torch.randn(2, 3, 8, 8)


def widened(model, x=IMAGES):
    return net2net.widen(model, x, 1.5)


def padded(model, x=IMAGES):
    return net2net.random_pad(model, x, 1.5)


def deepened(model, x=IMAGES):
    return net2net.deepen(model, x, {"2": [3], "4": [1]}, [x])


def replayed(model, x=IMAGES):
    return net2net.replay(net2net.history(net2net.widen(model, x, 1.5)), model)


def deepened_again(model, x=IMAGES):
    return net2net.replay(net2net.history(deepened(model, x)), model)


GROWN = [widened, padded, deepened, replayed, deepened_again]


@pytest.mark.parametrize("grow", GROWN)
def test_kernels_lie_in_memory_as_the_teachers(grow):
    for layout in (torch.channels_last, torch.contiguous_format):
        student = grow(small().to(memory_format=layout))
        kernels = [p for p in student.parameters() if p.ndim == 4]
        assert len(kernels) >= 3
        for kernel in kernels:
            assert kernel.is_contiguous(memory_format=layout)
            assert kernel.stride() == kernel.detach().to(memory_format=layout).contiguous(memory_format=layout).stride()


def test_three_dimensional_and_depthwise_kernels_and_transposed_ones():
    volume = nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 1)).to(
        memory_format=torch.channels_last_3d
    )
    student = net2net.widen(volume, torch.randn(2, 2, 4, 4, 4), 2)
    assert student[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not student[0].weight.is_contiguous()
    net = mobilenet_v3_small(num_classes=5).to(memory_format=torch.channels_last)  # depthwise kernels, gates
    student = net2net.widen(net, torch.randn(2, 3, 32, 32), 1.5)
    for (name, old), new in zip(net.named_parameters(), student.parameters(), strict=True):
        if old.ndim == 4:
            fresh = torch.empty(new.shape).to(memory_format=torch.channels_last)
            assert new.stride() == fresh.stride(), name
    # A weight that lies transposed, as some loaders leave it.
    linear = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    linear[0].weight = nn.Parameter(torch.randn(4, 6).t())
    student = net2net.widen(linear, torch.randn(2, 4), 2)
    assert student[0].weight.stride() == (1, 12)
    assert net2net.verify(linear, student, torch.randn(5, 4)).relative < 1e-6


class Tagged(nn.Parameter):
    """As frameworks derive their own, e.g. for sharding."""


@pytest.mark.parametrize("grow", GROWN)
def test_tags_of_parameters_and_hooks_of_modules_come_along(grow):
    model = small()
    model[0].weight.no_decay = True
    model[3].weight.optim = {"lr": 0.1}
    model[5].weight = Tagged(model[5].weight.detach())
    seen = []
    model[5].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    student = grow(model)
    tags = {name: vars(p) for name, p in student.named_parameters() if vars(p)}
    assert sorted(map(str, tags.values())) == ["{'no_decay': True}", "{'optim': {'lr': 0.1}}"]
    (copied,) = (p.optim for p in student.parameters() if hasattr(p, "optim"))
    assert copied is not model[3].weight.optim
    assert sum(type(p) is Tagged for p in student.parameters()) == 1
    seen.clear()
    student(IMAGES)
    assert len(seen) == 1


@pytest.mark.parametrize("grow", [widened, deepened])
def test_hooks_of_parameters_are_named(grow):
    model = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grow(model)
    model[0].weight.register_hook(lambda gradient: gradient * 0.5)
    model[5].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.warns(UserWarning, match=r"hooks on parameters \(0\.weight, 5\.bias\) stay with the teacher"):
        grow(model)


def mobile_net():
    net = timm.create_model("mobilenetv3_small_050", num_classes=5).to(memory_format=torch.channels_last)
    return net, images(3, 32, 32, dtype=torch.float32), {"blocks.0.0.bn1.act": [3]}


def shuffle_net():
    return shufflenet_v2_x0_5(num_classes=5).bfloat16(), images(3, 32, 32, dtype=torch.bfloat16), {"conv1.2": [3]}


def vision_transformer():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_classes=5)
    return net.double(), images(3, 32, 32), {"blocks.0": ["block"]}


def tied_words():
    def run(m, x):
        return m.words_out(m.act(m.back(m.act(m.hidden(m.words(x))))))

    parts = {"words": nn.Embedding(9, 8), "hidden": nn.Linear(8, 12), "back": nn.Linear(12, 8), "act": nn.ReLU()}
    net = Net(run, **parts, words_out=nn.Linear(8, 9, bias=False))
    net.words_out.weight = net.words.weight
    return net, torch.arange(8).view(2, 4), None


def weight_normed():
    net = small()
    for k in (0, 3):
        parametrizations.weight_norm(net[k])
    parametrizations.spectral_norm(net[5])
    return net, IMAGES, {"2": [3]}


class Hook:
    def __call__(self, *args, **kwargs):
        pass


def dressed(net):
    """With something of all that users hang on modules, parameters and buffers."""
    for k, module in enumerate(net.modules()):
        module.training, module.note = k % 2 == 0, {"of": [f"module {k}"]}
        if k % 3 == 0:
            module.register_forward_hook(Hook(), with_kwargs=True, always_call=True)
            module.register_forward_pre_hook(Hook(), prepend=True)
            module.register_state_dict_pre_hook(Hook())
            module.register_state_dict_post_hook(Hook())
            module.register_load_state_dict_pre_hook(Hook())
            module.register_load_state_dict_post_hook(Hook())
            module.register_buffer("extra", torch.full((3,), float(k)), persistent=False)
        if k % 4 == 1:
            module.register_full_backward_pre_hook(Hook())
            module.register_full_backward_hook(Hook())
    for k, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(k % 3 > 0)
        parameter._no_weight_decay, parameter.optim = k % 2 == 0, {"lr": k}
    for k, buffer in enumerate(net.buffers()):
        buffer.tag = f"buffer {k}"
    return net


def hung_on(net, renamed=lambda name: name):
    """All of that by name, with the dtypes, devices and layouts; and which names are one parameter."""
    parameters = {
        renamed(name): (type(p), p.dtype, p.device, p.requires_grad, p.is_leaf, vars(p), p.stride() == ordered(p))
        for name, p in net.named_parameters(remove_duplicate=False)
    }
    shared = {}
    for name, p in net.named_parameters(remove_duplicate=False):
        shared.setdefault(id(p), []).append(renamed(name))
    modules, buffers = {}, {}
    for name, module in net.named_modules():
        tables = [table for key, table in vars(module).items() if "hooks" in key and isinstance(table, dict)]
        hooks = [[type(getattr(hook, "hook", hook)) for hook in table.values()] for table in tables]
        modules[renamed(name)] = (type(module), module.training, getattr(module, "note", None), hooks)
        for key, b in module.named_buffers(recurse=False):
            kept = key not in module._non_persistent_buffers_set
            buffers[renamed(f"{name}.{key}".removeprefix("."))] = (b.dtype, b.device, vars(b), kept)
    return parameters, buffers, modules, sorted(shared.values())


def ordered(kernel):
    """The strides of its shape in channels last."""
    return torch.empty(kernel.shape, memory_format=torch.channels_last).stride() if kernel.ndim == 4 else None


def drawn(module):
    for parameter in module.parameters(recurse=False):
        parameter.normal_()


@pytest.mark.parametrize("make", [mobile_net, shuffle_net, vision_transformer, tied_words, weight_normed])
def test_all_that_users_hang_on_a_net_comes_along(make):
    net, x, sites = make()
    dressed(net)
    before = copy.deepcopy(hung_on(net))
    students = [net2net.widen(net, x, 2), net2net.random_pad(net, x, 2, init=drawn)]
    students += [net2net.replay(net2net.history(students[0]), net)]
    assert shapes(students[0]) == shapes(students[2]) != shapes(net)
    for student in students:
        assert hung_on(student) == before
    if sites is not None:
        deep = net2net.deepen(net, x, sites, [x])
        (site,) = sites

        def inside(name):  # what was there is the first of the modules that are there now
            return f"{site}.0{name.removeprefix(site)}" if f"{name}.".startswith(f"{site}.") else name

        for student in (deep, net2net.replay(net2net.history(deep), net)):
            for old, new in zip(hung_on(net, inside)[:3], hung_on(student)[:3], strict=True):
                assert {name: new[name] for name in old} == old
            added = student.get_submodule(f"{site}.1")
            assert {p.dtype for p in added.parameters()} == {next(net.parameters()).dtype}
            assert {m.training for m in added.modules()} == {net.get_submodule(site).training}
    assert hung_on(net) == before


def test_hooks_that_are_methods_are_the_students_own():
    net = small()
    net.seen = []
    net.note = types.MethodType(lambda self, module, inputs, output: self.seen.append(output.shape[1]), net)
    net[3].register_forward_hook(net.note)
    student = net2net.widen(net, IMAGES, 2)
    student(IMAGES)
    assert (net.seen, student.seen) == ([], [16])


def test_a_model_whose_parameters_have_no_shape_yet():
    with pytest.raises(net2net.GrowthError, match=r"'0\.weight' has no shape yet: run the model once"):
        net2net.widen(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2)), torch.randn(2, 3), 2)


class Own(nn.Sequential):
    """Copies itself in a way of its own, and not all of it."""

    def __deepcopy__(self, memo):
        new = Own(*copy.deepcopy(list(self), memo))
        memo[id(self)] = new
        return new.train(self.training)


@pytest.mark.parametrize("kind", [torch.fx.symbolic_trace, lambda model: Own(*model)])
def test_the_record_survives_copies_of_a_classs_own_making(kind):
    model, x = kind(small()), IMAGES
    once = net2net.widen(model, x, 1.5)
    twice = net2net.widen(once, x, 1.5, seed=1)
    assert [entry["op"] for entry in net2net.history(twice)] == ["widen", "widen"]
    again = net2net.replay(net2net.history(twice), model)
    assert same(again, twice)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    grown = net2net.grow_optimizer(optimizer, twice, teacher=model)
    assert {id(p) for p in grown.param_groups[0]["params"]} == {id(p) for p in twice.parameters()}
    padded = net2net.random_pad(twice, x, 1.5)
    assert len(net2net.history(padded)) == 3


class Block(nn.Module):
    """Keeps its widths as people do, and splits its channels by one of them."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.dim, self.hidden_dim, self.num_layers, self.kernel_size = dim, hidden, hidden, 3
        self.reduce, self.expand = nn.Linear(hidden, dim), nn.Linear(dim, hidden)

    def forward(self, x):
        return x + self.reduce(self.expand(x.reshape(-1, self.dim)).relu().view(-1, self.hidden_dim))


class Config:
    def __init__(self, **values):
        vars(self).update(values)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = Config(hidden_size=8, intermediate_size=20, vocab_size=8, num_hidden_layers=8, input_dim=6)
        self.dims, self.info = (8, 20), [{"module": "stem", "num_chs": 8, "reduction": 8}]
        self.num_features = self.depth = 8
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([Block(8, 20), Block(8, 20)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_integers_that_modules_keep_of_their_widths_follow(randomise):
    model, x = randomise(Blocks()), torch.randn(3, 6)
    student = net2net.widen(model, x, widths={"stem": 12, "blocks.0.expand": 26, "blocks.1.expand": 30})
    assert (student.num_features, student.depth) == (12, 8)
    assert (student.dims, student.info) == ((12, 20), [{"module": "stem", "num_chs": 12, "reduction": 8}])
    kept = vars(student.config)
    assert kept == {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 8, "num_hidden_layers": 8, "input_dim": 6}
    assert [(b.dim, b.hidden_dim, b.num_layers, b.kernel_size) for b in student.blocks] == [
        (12, 26, 20, 3),
        (12, 30, 20, 3),
    ]
    assert net2net.verify(model, student, x).relative < 1e-6
    entry = net2net.history(student)[0]
    # Two blocks grew differently: what the root keeps of them is not guessed, and named.
    assert sorted(entry["unclear"][""]) == ["config.intermediate_size", "dims.1"]
    again = net2net.replay(net2net.history(student), model)
    assert vars(again.config) == vars(student.config)
    assert (again.dims, again.info, again.num_features) == (student.dims, student.info, 12)
    # The teacher's own are untouched, lists and objects too.
    assert vars(model.config) == vars(Blocks().config)
    assert (model.dims, model.info[0]["num_chs"], model.num_features) == ((8, 20), 8, 8)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, partial(nn.BatchNorm2d, affine=False, track_running_stats=False)])
def test_norms_without_tensors_know_their_widths(norm, recwarn):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 6, 6)
    student = net2net.widen(model, x, 1.5)
    student(x)
    assert (model[1].num_features, student[1].num_features) == (8, 12)
    assert not recwarn  # instance norm compares them


def test_a_number_that_names_a_list_of_modules_is_what_the_last_of_them_makes():
    """As in CoaT: two stages of one width, of which one grows."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.info = [{"module": name, "num_chs": 8} for name in ("first", "second")]
            self.first = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
            self.second = nn.ModuleList([nn.Linear(8, 8)])

        def forward(self, x):
            for layer in (*self.first, *self.second):
                x = layer(x).relu()
            return x

    student = net2net.widen(Stages(), torch.randn(3, 6), 1.5)
    assert [each["num_chs"] for each in student.info] == [12, 8]


PACKED = {
    "a tuple": (lambda x: (x, x.mean(1, keepdim=True)), lambda found: found[0]),
    "a list": (lambda x: [x.mean(1, keepdim=True), x], lambda found: found[1]),
    "a dict": (lambda x: {"tokens": {"x": x}}, lambda found: found["tokens"]["x"]),
}


@pytest.mark.parametrize("kind", PACKED)
def test_integers_about_a_module_that_returns_several_tensors_follow(kind, randomise):
    """What the root keeps of its stages, as PiT does, whose stages return tokens beside the image."""
    pack, unpack = PACKED[kind]

    class Stage(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())

        def forward(self, x):
            return pack(self.layers(x))

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature_info = [{"num_chs": 8, "module": "first"}, {"num_chs": 20, "module": "second"}]
            self.first, self.second, self.head = Stage(6, 8), Stage(8, 20), nn.Linear(20, 5)

        def forward(self, x):
            return self.head(unpack(self.second(unpack(self.first(x)))))

    student = net2net.widen(randomise(Stages()), torch.randn(3, 6), 2)
    assert [info["num_chs"] for info in student.feature_info] == [16, 40]
    assert not net2net.history(student)[0].get("unclear")


@pytest.mark.parametrize("path", ["num_features", "info.0"])
def test_a_record_sets_integers_alone(path):
    (entry,) = net2net.history(net2net.widen(Blocks(), torch.randn(3, 6), widths={"stem": 12}))
    with pytest.raises(net2net.GrowthError, match=path):
        net2net.replay({**entry, "attributes": {"": {path: "12" if path == "num_features" else 12}}}, Blocks())


@pytest.mark.parametrize("path", ["info.1.num_chs", "config.missing", "forward", "config.__class__"])
def test_a_record_sets_nothing_that_is_not_there(path):
    (entry,) = net2net.history(net2net.widen(Blocks(), torch.randn(3, 6), widths={"stem": 12}))
    student = net2net.replay({**entry, "attributes": {"": {path: 12}}}, Blocks())
    assert (student.info, vars(student.config), "forward" in vars(student)) == (
        Blocks().info,
        vars(Blocks().config),
        False,
    )


class Spec(NamedTuple):
    channels: int
    stride: int


@dataclass(frozen=True)
class Frozen:
    hidden_dim: int


@dataclass(slots=True)
class Slots:
    hidden_dim: int


class ReadOnly:
    def __init__(self):
        vars(self)["hidden_dim"] = 8

    def __setattr__(self, key, value):
        raise AttributeError("read only")


class Attributes(dict):
    """What code of the web calls AttrDict; `copy.deepcopy` fails on it."""

    __getattr__ = dict.__getitem__


KEPT = {
    "named tuple": ("spec", Spec(8, 2), Spec(16, 2)),
    "named tuples": ("specs", [Spec(6, 2), Spec(8, 2)], [Spec(12, 2), Spec(16, 2)]),
    "frozen": ("cfg", Frozen(8), Frozen(16)),
    "slots": ("cfg", Slots(8), Slots(16)),
    "read only": ("cfg", ReadOnly(), {"hidden_dim": 16}),
    "attribute dict": ("cfg", Attributes(hidden_dim=8), {"hidden_dim": 16}),
    "mapping proxy": ("cfg", types.MappingProxyType({"hidden_dim": 8}), {"hidden_dim": 16}),
    "deque": ("channels", deque([6, 8]), deque([12, 16])),
    "size": ("feature_dims", torch.Size([6, 8]), torch.Size([12, 16])),
    "numpy": ("hidden_dim", np.int64(8), np.int64(16)),
    "nested": ("stage_dims", {"stem": {"out": 6}, "body": {"out": 8}}, {"stem": {"out": 12}, "body": {"out": 16}}),
    "in": ("in_features", 8, 16),
    "ftrs": ("num_ftrs", 8, 16),
    "in, last": ("final_conv_in", 8, 16),
    "no width": ("cfg", {"dims": {"kernel_size": 8}}, {"dims": {"kernel_size": 8}}),
    "an image's side": ("in_size", 8, 8),
}


@pytest.mark.parametrize("kind", KEPT)
def test_integers_follow_wherever_they_are_kept(kind):
    key, value, wanted = KEPT[kind]

    def make():
        run = lambda m, x: m.head(m.body(m.stem(x).relu()).relu().mean((2, 3)))  # noqa: E731
        return Net(run, stem=conv(3, 6), body=conv(6, 8), head=nn.Linear(8, 4), **{key: value})

    teacher, before = make(), repr(value)
    student = widen(teacher, IMAGES, 2)
    for grown_one in (student, replay(history(student), make())):
        kept = getattr(grown_one, key)
        assert type(kept) is type(value)
        assert (vars(kept) if kind == "read only" else kept) == wanted
    assert (getattr(teacher, key) is value, repr(value)) == (True, before)


class Kept(nn.Module):
    def __init__(self, kept):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.kept = kept

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: (k for k in "ab"),
        lambda: np,
        lambda: os.fdopen(os.open(os.devnull, os.O_RDONLY)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: types.SimpleNamespace(x=x, n=[1])])
def test_what_cannot_be_copied_is_shared(make, wrap):
    thing = make()
    model = Kept(wrap(thing))
    student = widen(model, torch.randn(4, 3), 2)
    kept = getattr(student.kept, "x", student.kept)
    assert (kept[0] if isinstance(kept, list) else kept) in (thing,)
    if hasattr(model.kept, "n"):
        assert (student.kept.n, student.kept is model.kept, student.kept.n is model.kept.n) == ([1], False, False)
    if hasattr(thing, "close"):
        thing.close()


def test_a_class_that_cannot_copy_itself_is_named():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    with pytest.raises(net2net.GrowthError, match=r"a Own of the model says itself how it is copied.*not me"):
        widen(nn.Sequential(Own(3, 8), nn.Linear(8, 2)), torch.randn(4, 3), 2)


def test_a_parameter_with_a_weight_of_its_own():
    """As code of MAML does, whose inner steps hang `fast` weights on parameters."""
    model = Kept(None)
    model.a.weight.fast = model.a.weight * 2
    student = widen(model, torch.randn(4, 3), 2)
    assert torch.equal(student.a.weight.fast, model.a.weight.fast)


@pytest.mark.parametrize("made", [False, True])
def test_a_number_that_is_kept_from_the_first_pass_on(made):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            if made:
                self.n = None

        def forward(self, x):
            x = self.a(x).relu()
            if getattr(self, "n", None) is None:
                self.n = x.shape[-1]
            return self.b(x.view(-1, self.n))

    model, x = Lazy(), torch.randn(4, 3)
    model(x)
    student = widen(model, x, 2)
    assert student.n == 16
    fresh = replay(history(student), Lazy())
    assert getattr(fresh, "n", None) is None
    fresh(x)
    assert fresh.n == 16


def test_what_was_done_to_a_part_says_nothing_of_it_in_a_grown_whole():
    part = widen(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(4, 3), 2)
    whole = widen(nn.Sequential(part, nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 3), 2)
    assert (len(history(part)), len(history(whole)), history(whole[0])) == (1, 1, [])


class Counts(nn.Module):
    """A number that equals a width and counts something else, as a second run of the forward pass shows."""

    def __init__(self):
        super().__init__()
        self.dim = 4
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x).relu()) * self.dim


def test_a_number_that_the_forward_pass_needs_as_it_is_stays_and_is_named():
    model, x = Counts(), torch.randn(5, 3)
    student = net2net.widen(model, x, 2)
    assert (student.a.out_features, student.dim) == (8, 4)
    assert net2net.history(student)[0]["unclear"] == {"": ["dim"]}


FAMILIES = {
    **dict.fromkeys(["test_resnet", "test_efficientnet", "test_byobnet", "mobilenetv3_small_050", "regnety_002"], 1.5),
    **dict.fromkeys(["densenet121", "ghostnet_050", "hgnetv2_b0", "starnet_s1"], 1.5),
    **dict.fromkeys(["test_vit", "test_convnext", "test_mambaout", "mobilevit_xxs", "levit_128s"], 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_timms_own_interface_works_on_a_student(name, randomise):
    model = timm.create_model(name, num_classes=7).eval()
    x = torch.randn(1, *model.default_cfg["input_size"])
    student = net2net.widen(model, x, FAMILIES[name], verify=False)
    assert student.num_features > model.num_features
    features = student.forward_features(x)
    assert student.num_features in features.shape
    assert student.head_hidden_size > model.head_hidden_size
    heads = student.get_classifier()
    for head in heads if isinstance(heads, tuple) else [heads]:  # of a distilled net
        linear = next(m for m in head.modules() if isinstance(m, nn.Linear))
        assert linear.in_features == student.head_hidden_size
    maps = student.forward_intermediates(x, intermediates_only=True)
    assert [y.shape[1] for y in maps] == [info["num_chs"] for info in student.feature_info]
    student.reset_classifier(5)  # what fine-tuning begins with
    out = student(x)
    assert out.shape == (1, 5)
    out.sum().backward()


# Numbers under whatever name, told by what the forward pass does with them.

NAMELESS = {
    "both parts of a split": (lambda m, h: h[:, : m.n_d].sum(1, keepdim=True) * h[:, m.n_d :], 9, 5, {"n_d": 4}),
    "a range": (lambda m, h: h[:, m.lo : m.hi], 12, 4, {"lo": 3, "hi": 7}),
    "a shape": (lambda m, h: h.view(-1, *m.start).flatten(1), 12, 12, {"start": (4, 3)}),
    "parts of one size": (lambda m, h: sum(h.split(m.k, 1)), 12, 4, {"k": 4}),
    "parts in a configuration": (lambda m, h: h.split(list(m.cfg.values()), 1)[1], 12, 8, {"cfg": {"u": 4, "v": 8}}),
}


@pytest.mark.parametrize("name", NAMELESS)
def test_a_number_that_the_forward_pass_counts_on_follows_under_any_name(name):
    take, made, read, numbers = NAMELESS[name]
    teacher = Net(lambda m, x: m.o(take(m, m.a(x).sigmoid())), a=nn.Linear(5, made), o=nn.Linear(read, 2), **numbers)
    x = images(5)
    if name == "both parts of a split":  # a sum needs every one of them
        teacher.run = lambda m, x: m.o(m.a(x).sigmoid()[:, m.n_d :]) + m.p(m.a(x).sigmoid()[:, : m.n_d])
        teacher.p = nn.Linear(4, 2)
    elif name == "a range":
        teacher.run = lambda m, x: m.o(m.a(x)[:, m.lo : m.hi]) + m.p(m.a(x))
        teacher.p = nn.Linear(12, 2)
    elif name == "parts in a configuration":
        teacher.run = lambda m, x: sum(
            f(h) for f, h in zip((m.p, m.o), m.a(x).split(list(m.cfg.values()), 1), strict=True)
        )
        teacher.p = nn.Linear(4, 2)
    student = grown(teacher.double(), x)
    assert student.a.out_features == 2 * made
    assert verify(student, replay(history(student), teacher), x).max_abs == 0
    assert {key: getattr(teacher, key) for key in numbers} == numbers


def test_numbers_elsewhere_are_no_reason_for_a_conflict():
    """A width written into the code of one module holds that; what others keep goes on following."""

    class Half(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.output_dim, self.fc = width, nn.Linear(5, 2 * width)

        def forward(self, x):
            h = self.fc(x)
            return h[:, : self.output_dim] * h[:, self.output_dim :].sigmoid()

    teacher = Net(lambda m, x: m.o(m.gate(x)) + m.p(m.b(x).view(-1, 3, 2).amax(1)),
                  gate=Half(4), b=nn.Linear(5, 6), o=nn.Linear(4, 2), p=nn.Linear(2, 2)).double()  # fmt: skip
    x = images(5)
    student = grown(teacher, x)
    assert (student.gate.output_dim, student.gate.fc.out_features, student.b.out_features) == (8, 16, 6)


def test_sizes_of_several_parts_follow_each_its_own():
    """A transformer block whose two branches come from one matrix, also at a factor that its heads cannot have."""

    def run(m, x):
        wide, q, k, v = m.make(m.norm(m.i(x))).split(m.in_split, -1)
        q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return m.o(m.i(x) + m.wide(wide.relu()) + m.proj(mixed))

    teacher = Net(run, i=nn.Linear(5, 6), norm=nn.LayerNorm(6), make=nn.Linear(6, 38), wide=nn.Linear(20, 6),
                  proj=nn.Linear(6, 6), o=nn.Linear(6, 2), in_split=[20, 6, 6, 6], num_heads=3).double()  # fmt: skip
    x = images(4, 5)
    for factor, split in ((1.5, [30, 8, 8, 8]), (2, [40, 12, 12, 12])):
        assert grown(teacher, x, factor).in_split == split


def test_of_equal_numbers_the_one_that_is_used_follows():
    """As TabNet: the width of its steps, of what it attends to and of its input are the same number."""

    def run(m, x):
        mask = torch.ones(x.shape, dtype=x.dtype)
        h = m.make(x * mask)
        for _ in range(2):
            mask = m.attend(h[:, m.n_d :]).softmax(-1)
            h = h + m.make(x * mask)
        return m.o(h[:, : m.n_d].relu())

    parts = {"make": nn.Linear(8, 16), "attend": nn.Linear(8, 8), "o": nn.Linear(8, 3)}
    teacher = Net(run, **parts, input_dim=8, attention_dim=8, n_d=8, n_a=8).double()
    x = images(8)
    for factor in (1.5, 2):
        student = grown(teacher, x, factor)
        assert (student.n_d, student.input_dim, student.make.out_features) == (8 * factor, 8, 16 * factor)


class Encoder(nn.Module):
    """Keeps which layer's features it gives, a number that is none of its widths."""

    def __init__(self):
        super().__init__()
        self.features = 6
        blocks = [conv(4, 6), conv(6, 4)] * 3
        self.layers = nn.ModuleList([conv(3, 4), *map(copy.deepcopy, blocks), nn.MaxPool2d(2)])

    def forward(self, x):
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if k <= self.features:
                early = x
        return early, x


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("blamed", [True, False], ids=["its module is found", "its module is not found"])
def test_a_number_that_is_no_width_and_another_module_that_fails(factor, blamed, randomise, monkeypatch):
    """Where it is not found that one module's numbers are at fault, all are let go of, and the search ends."""
    if not blamed:
        monkeypatch.setattr(net2net.kept.Kept, "blame", lambda *arguments: False)
    net = Net(lambda m, x: m.read(m.join(*m.encoder(x))), encoder=Encoder(), read=conv(4, 2),
              join=Net(lambda m, early, late: early + F.interpolate(late, scale_factor=2)))  # fmt: skip
    net, x = randomise(net).double(), images(3, 4, 4)
    student = widen(net, x, factor)
    certify(net, student, x)
    assert student.encoder.features == 6
    held = set() if blamed else {4}  # what the other module adds
    assert {layer.out_channels for layer in student.encoder.layers[:-1]} == {4 * factor, 6 * factor} | held


def test_the_search_ends_where_a_number_helps_one_call_and_another_of_the_same_module_fails():
    """The numbers of these parallel blocks, by which they split, also count what cannot grow by 1.5: heads."""
    net = timm.create_model("vit_pwee_patch16_reg1_gap_256", img_size=32, depth=2, num_classes=5)
    student = widen(net, images(3, 32, 32).float(), 1.5)
    grown = [
        new.in_proj.out_features - old.in_proj.out_features for new, old in zip(student.blocks, net.blocks, strict=True)
    ]
    assert (student.embed_dim, grown) == (net.embed_dim, [640, 640])  # what the MLPs hold inside
    assert widen(net, images(3, 32, 32).float(), 2).embed_dim == 2 * net.embed_dim


class Counting(nn.Module):
    """Keeps integers that equal its widths and are none; `fixed`: a part of it cannot grow."""

    def __init__(self, fixed):
        super().__init__()
        self.d = self.horizon = self.multiple = self.topk = self.n_fft = 8
        self.hidden_dim = self.inplanes = 8
        self.fixed = fixed
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.c(x.unflatten(1, (2, 4)).flatten(1) if self.fixed else x)


def test_integers_follow_by_a_name_that_says_a_width():
    student = widen(Counting(fixed=False), torch.randn(3, 3), 2)
    kept = vars(student)
    assert (kept["hidden_dim"], kept["inplanes"]) == (16, 16)
    assert {kept[key] for key in ("d", "horizon", "multiple", "topk", "n_fft")} == {8}


def test_what_cannot_grow_holds_nothing_that_is_only_as_wide_as_an_integer():
    student = widen(Counting(fixed=True), torch.randn(3, 3), 2)
    assert (student.a.out_features, student.b.out_features) == (16, 8)


def test_a_state_that_an_earlier_pass_left_holds_its_channels():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.c, self.o = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.state = self.seen = None

        def forward(self, x):
            self.seen = self.f(x).relu()
            state = torch.zeros_like(self.seen) if self.state is None else self.state
            self.state = torch.tanh(self.c(state) + self.seen).detach()
            return self.o(self.state)

    model, x = Policy(), torch.randn(2, 4)
    assert widen(model, x, 2).c.out_features == 16  # before any pass
    model(x)
    with pytest.raises(net2net.GrowthError, match="keeps them in 'state', where an earlier pass has left a tensor"):
        widen(model, x, 2)
    model.state = None  # what is only written, as `seen`, is no reason
    student = widen(model, x, 2)
    assert student.c.out_features == 16
    student.seen = None
    assert [student(x).shape for _ in range(2)] == [(2, 2)] * 2


class Mixed(nn.Module):
    """Splits its channels in its own way, as MixNet does, under a name that does not say a width."""

    def __init__(self, *splits):
        super().__init__()
        self.splits = list(splits)
        self.parts = nn.ModuleList(nn.Linear(n, n) for n in splits)

    def forward(self, x):
        return torch.cat([part(each) for part, each in zip(self.parts, x.split(self.splits, 1), strict=True)], 1)


def test_numbers_of_other_modules_of_the_class_follow_though_they_have_more(randomise):
    model = nn.Sequential(nn.Linear(5, 12), Mixed(6, 6), nn.Linear(12, 12), Mixed(3, 4, 5), nn.Linear(12, 3))
    student = widen(randomise(model).double(), images(5), 2)
    assert (student[1].splits, student[3].splits) == ([12, 12], [6, 8, 10])
    certify(model, student, images(5))


class Bias(nn.Module):
    """Is not called: its user takes what a method returns, as timm's attention does a relative position bias."""

    def __init__(self, heads):
        super().__init__()
        self.table, self.shape = nn.Parameter(torch.randn(9, heads)), (3, 3, heads)

    def add_to(self, scores):
        return scores + self.table.view(self.shape).permute(2, 0, 1)


def test_numbers_of_a_module_whose_methods_are_called_follow():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.qkv, self.bias, self.o = nn.Linear(5, 24), Bias(2), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
            return self.o((self.bias.add_to(q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model, x = Biased().double(), images(3, 5)
    student = widen(model, x, 2)
    assert (student.num_heads, student.bias.shape, student.bias.table.shape) == (4, (3, 3, 4), (9, 4))
    certify(model, student, x)


class Picture(nn.Module):
    """`width` is that of its images, `state_dim` and `n_channels` those of its input, as many as its layers have."""

    def __init__(self, crops):
        super().__init__()
        self.crops, self.width, self.height, self.mapWidth, self.mapHeight = crops, 8, 8, 8, 8
        self.state_dim = self.n_channels = self.observations = self.hidden_dim = 8
        self.a, self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.c(self.b(self.a(x).relu()).relu())
        return x[..., : self.width] if self.crops else x


@pytest.mark.parametrize("crops", [False, True])
def test_numbers_of_the_input_and_of_pixels_stay(crops):
    net, x = Picture(crops), torch.randn(2, 8, 8, 8)
    student = widen(net, x, 2)
    kept = {key: n for key, n in vars(student).items() if type(n) is int}
    assert (student.b.in_channels, kept.pop("hidden_dim")) == (16, 16)
    assert set(kept.values()) == {8}
    assert student(torch.randn(1, 8, 8, 12)).shape == net(torch.randn(1, 8, 8, 12)).shape


@pytest.mark.parametrize("needed", [False, True])
def test_a_number_that_is_read_and_that_the_pass_does_without_stays_and_is_named(needed):
    class Last(nn.Module):
        """Of the last `dim` words."""

        def __init__(self):
            super().__init__()
            self.dim = self.embed_dim = 6
            self.words, self.out = nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, words):
            x = self.words(words if needed else words[:, -self.dim :])
            return self.out(x.reshape(len(x), -1, self.dim).mean(1) if needed else x.mean(1))

    net = Last()
    student = widen(net, torch.randint(0, 9, (2, 4)), 2)
    assert (student.dim, student.embed_dim) == (12 if needed else 6, 12)
    assert verify(net, student, torch.randint(0, 9, (2, 20))).relative < 2e-7
    assert ("dim" in history(student)[0].get("unclear", {}).get("", [])) is not needed


def test_a_cache_of_an_earlier_pass_is_named():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.seen = nn.Linear(3, 8), nn.Linear(8, 2), {}

        def forward(self, x):
            x = self.a(x)
            if x.device not in self.seen:  # which the meta device is not
                self.seen[x.device] = torch.ones(x.shape[1], device=x.device)
            return self.b(x + self.seen[x.device])

    net, x = Cached(), torch.randn(2, 3)
    assert widen(net, x, 2).a.out_features == 16
    net(x)
    with pytest.raises(net2net.GrowthError, match="if 'seen' keeps tensors of earlier passes, empty that"):
        widen(net, x, 2)
