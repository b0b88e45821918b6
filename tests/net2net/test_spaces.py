"""Remapping inference: ties between axes as a term unification, and what a trace of a model finds."""

import random

import pytest
import torch
import torch.nn.functional as F
from nets import Net, conv
from torch import nn
from torch.nn.modules import module as torch_module

from net2net import GrowthError, UnsupportedOperation
from net2net.growth import Channels, Growth
from net2net.recording import function_name
from net2net.spaces import Space, length, resolve, split, tie
from net2net.trace import Trace

pytestmark = pytest.mark.quick


def blocks(axis):
    """The axis as [(width, repeat), …] once everything known is resolved."""
    return [(space.width, repeat) for space, repeat in resolve(axis)]


def free(axis):
    return not any(space.fixed for space, _ in resolve(axis))


def test_tied_spaces_become_one():
    s, t = Space(4), Space(4)
    tie(((s, 1),), ((t, 1),), "")
    assert resolve(((s, 1),)) == resolve(((t, 1),))
    assert free(((s, 1),))


def test_blocks_that_end_at_different_places_split_their_spaces():
    a, b = ((Space(3), 1), (Space(5), 1)), ((Space(4), 1), (Space(4), 1))
    tie(a, b, "")
    assert resolve(a) == resolve(b)
    assert blocks(a) == [(3, 1), (1, 1), (4, 1)]
    assert free(a)


def test_a_repeated_space_splits_where_a_channel_ends():
    s, t, u = Space(6), Space(8), Space(4)
    tie(((s, 2),), ((t, 1), (u, 1)), "")  # 6 channels of 2 positions against 8 + 4 positions
    assert blocks(((s, 2),)) == [(4, 2), (2, 2)]
    assert resolve(((s, 2),)) == resolve(((t, 1), (u, 1)))
    assert free(((s, 2),))


def test_an_unrepeated_space_is_the_repeated_one():
    flat, channels = Space(12), Space(3)
    tie(((flat, 1),), ((channels, 4),), "")
    assert resolve(((flat, 1),)) == ((channels, 4),)
    assert free(((flat, 1),))


def test_an_alias_of_a_repeated_space_multiplies_its_repeats():
    flat, channels = Space(12), Space(3)
    tie(((flat, 1),), ((channels, 4),), "")
    assert resolve(((flat, 5),)) == ((channels, 20),)


def test_a_boundary_inside_a_channel_fixes_both_axes():
    a, b = ((Space(4), 3),), ((Space(5), 1), (Space(7), 1))  # 5 is no multiple of 3
    tie(a, b, "no common boundary")
    assert {space.fixed for space, _ in (*resolve(a), *resolve(b))} == {"no common boundary"}


def test_an_axis_tied_to_itself_shifted_has_one_map_for_all():
    s, t = Space(3), Space(3)
    tie(((s, 1), (t, 1)), ((t, 1), (s, 1)), "")
    assert resolve(((s, 1),)) == resolve(((t, 1),))
    assert free(((s, 1),))


def test_a_space_tied_to_a_repeat_of_itself_cannot_grow():
    s, t = Space(4), Space(4)
    tie(((s, 2),), ((s, 1), (t, 1)), "overlap")
    assert all(space.fixed == "overlap" for space, _ in (*resolve(((s, 1),)), *resolve(((t, 1),))))


@pytest.mark.parametrize("order", [1, -1])
def test_fixed_travels_through_ties_aliases_and_splits(order):
    s, t, u = Space(4), Space(4, "it is the input"), Space(2)
    tie(*(((s, 1),), ((t, 1),))[::order], "")
    assert not free(((s, 1),))
    tie(((u, 2),), ((s, 1),), "")
    assert not free(((u, 1),))
    whole = Space(6, "it is the output")
    split(whole, 2)
    assert blocks(((whole, 1),)) == [(2, 1), (4, 1)]
    assert not any(free(((space, 1),)) for space, _ in resolve(((whole, 1),)))


def test_an_untracked_axis_fixes_the_other_and_the_first_reason_stays():
    s = Space(4)
    tie(((s, 1),), None, "first")
    tie(None, ((s, 1),), "second")
    assert s.fixed == "first"
    tie(None, None, "nothing to do")


def random_axis(rng, pool, size):
    """Blocks of new and of used spaces that add up to `size`."""
    axis = []
    while size:
        fits = [(s, r) for s in pool for r in (1, 2, 3, 4) if s.width * r <= size]
        if fits and rng.random() < 0.5:
            space, repeat = rng.choice(fits)
        else:
            repeat = rng.choice([r for r in (1, 1, 2, 3, 4) if r <= size])
            space = Space(rng.randint(1, size // repeat), "constant" if rng.random() < 0.05 else None)
            pool.append(space)
        axis.append((space, repeat))
        size -= space.width * repeat
    return tuple(axis)


def axis_map(axis, maps):
    """The map of an axis as a `Growth` makes it."""
    number = {space: k for k, space in enumerate(maps)}
    growth = Growth([Channels([], space.width, g) for space, g in maps.items()], {}, {})
    return growth.axis(tuple((number[s], repeat) if s in number else s.width * repeat for s, repeat in resolve(axis)))


def test_random_ties_end_and_hold_for_every_map():
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    grown = 0
    for _ in range(400):
        pool, ties = [], []
        for _ in range(rng.randint(1, 4)):
            size = rng.randint(1, 24)
            ties.append((random_axis(rng, pool, size), random_axis(rng, pool, size)))
        for a, b in ties:
            tie(a, b, "it cannot follow")
        roots = {space: None for pair in ties for axis in pair for space, _ in resolve(axis)}
        maps = {
            s: torch.cat([torch.arange(s.width), torch.randint(s.width, (rng.randint(1, 5),), generator=generator)])
            for s in roots
            if not s.fixed
        }
        grown += bool(maps)
        for a, b in ties:
            assert length(resolve(a)) == length(resolve(b)) == length(a)
            ours, theirs = axis_map(a, maps), axis_map(b, maps)
            assert torch.equal(ours.index, theirs.index)
            assert torch.equal(ours.copies, theirs.copies)
    assert grown > 100  # else the loop shows nothing


def test_axis_map_shifts_each_block_and_keeps_a_channels_positions_together():
    s, t, constant = Space(2), Space(3), Space(1)
    maps = {s: torch.tensor([0, 1, 1]), t: torch.tensor([0, 1, 2, 0, 0])}
    index, copies, fresh = axis_map(((s, 2), (constant, 1), (t, 1)), maps)
    assert index.tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 5, 5]
    assert copies.tolist() == [1, 1, 2, 2, 2, 2, 1, 3, 1, 1, 3, 3]
    assert fresh.nonzero().flatten().tolist() == [4, 5, 10, 11]


def axis_of(trace, name, dim):
    return resolve(trace.axes[name][dim])


IMAGE = torch.zeros(2, 3, 6, 5)


def trace_of(forward):
    return Trace(Net(forward, a=conv(3, 4), b=conv(4, 4)), IMAGE)


def test_a_layer_reads_the_space_that_the_one_before_it_makes():
    trace = trace_of(lambda m, x: m.b(m.a(x).relu()))
    assert axis_of(trace, "a.weight", 0) == axis_of(trace, "a.bias", 0) == axis_of(trace, "b.weight", 1)
    assert axis_of(trace, "b.weight", 0) != axis_of(trace, "b.weight", 1)
    assert free(axis_of(trace, "a.weight", 0))
    assert axis_of(trace, "b.weight", 0)[0][0].fixed == "they are the network's output"
    assert not free(axis_of(trace, "a.weight", 1))
    assert not any(free(axis_of(trace, "a.weight", dim)) for dim in (2, 3))
    assert list(trace.outputs) == [("a.weight", 0), ("b.weight", 0)]
    assert trace.contracted == {("a.weight", 1), ("b.weight", 1)}


def test_an_addition_ties_what_it_joins():
    trace = trace_of(lambda m, x: m.b((h := m.a(x)) + m.b(h)))
    assert axis_of(trace, "a.weight", 0) == axis_of(trace, "b.weight", 0) == axis_of(trace, "b.weight", 1)


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda h: torch.permute(h, (0, 2, 3, 1)).permute((0, 3, 1, 2)),
        lambda h: h.transpose(1, -1).transpose(-1, 1),
        lambda h: h.reshape(2, 4, -1).view(-1, 4, 30, 1),
        lambda h: h.unsqueeze(1).squeeze(1),
        lambda h: h.unsqueeze(-1).squeeze(-1),
        lambda h: h + h.mean((2, 3), keepdim=True),
        lambda h: h - h.mean(axis=(2, 3), keepdim=True),
        lambda h: h * h.amax(dim=(2, 3), keepdim=True).sigmoid(),
        lambda h: F.softmax(h, dim=-1),
        lambda h: F.pad(h, (1, 1, 0, 2)),
        lambda h: F.interpolate(h, scale_factor=2),
        lambda h: F.lp_pool2d(h, 2, 2),
        lambda h: torch.where(torch.tensor(True), h, h),
        lambda h: 1 - 2 / (1 + 2**h),
        lambda h: h.float().contiguous().clone(),
    ],
)
def test_channels_pass_through(between):
    trace = trace_of(lambda m, x: m.b(between(m.a(x))))
    assert axis_of(trace, "a.weight", 0) == axis_of(trace, "b.weight", 1)
    assert free(axis_of(trace, "a.weight", 0))


def test_a_sum_over_a_part_of_the_channels_fixes_them():
    def between(h):
        return h.view(2, 2, 2, 6, 5).sum(2, keepdim=True).view(2, 2, 6, 5).repeat(1, 2, 1, 1)

    trace = trace_of(lambda m, x: m.b(between(m.a(x))))
    assert "'sum' in the model's own forward reduces over them" in axis_of(trace, "a.weight", 0)[0][0].fixed


def test_channels_stay_at_a_layer_whose_weight_is_computed():
    trace = trace_of(lambda m, x: F.conv2d(m.a(x), m.b.weight.tanh()))
    assert "'conv2d' in the model's own forward" in axis_of(trace, "a.weight", 0)[0][0].fixed
    assert not any(free(axis_of(trace, "b.weight", dim)) for dim in (0, 1))


def parts(trace, name, dim):
    """The blocks of an axis as (number of the space, repeat): equal numbers share one map."""
    axis = axis_of(trace, name, dim)
    assert free(axis)
    order = list(dict.fromkeys(space for space, _ in axis))
    return [(order.index(space), space.width, repeat) for space, repeat in axis]


@pytest.mark.parametrize(
    ("between", "made", "read"),
    [
        (lambda h: h.view(2, 2, 2, 6, 5).flatten(1, 2), [(0, 2, 1)] * 2, [(0, 2, 1)] * 2),
        (lambda h: h.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2), [(0, 2, 1)] * 2, [(0, 2, 2)]),
        (
            lambda h: h.reshape(2, 4, 1, 6, 5).expand(2, 4, 2, 6, 5).flatten(1, 2)[:, :4],
            *[[(0, 2, 1), (1, 2, 1)], [(0, 2, 2)]],
        ),
        (lambda h: torch.cat(h.chunk(2, 1)[::-1], 1), [(0, 2, 1)] * 2, [(0, 2, 1)] * 2),
        (lambda h: torch.cat(h.split([1, 3], dim=1)[::-1], 1), [(0, 1, 1), (1, 3, 1)], [(0, 3, 1), (1, 1, 1)]),
        (lambda h: torch.cat([h[:, 1:], h[..., :1, :, :]], 1), [(0, 1, 1), (1, 3, 1)], [(0, 3, 1), (1, 1, 1)]),
        (lambda h: torch.cat([h[:, -1:], h.narrow(1, 0, 3)], 1), [(0, 3, 1), (1, 1, 1)], [(0, 1, 1), (1, 3, 1)]),
        (
            lambda h: torch.cat([h.narrow(1, -1, 1), h.narrow(-3, 0, 3)], 1),
            [(0, 3, 1), (1, 1, 1)],
            [(0, 1, 1), (1, 3, 1)],
        ),
        (lambda h: torch.stack([h, h.sin()]).sum(0), [(0, 4, 1)], [(0, 4, 1)]),
        (lambda h: torch.stack([h, h.sin()], 2).flatten(1, 2).chunk(2, 1)[1], [(0, 2, 1)] * 2, [(0, 2, 2)]),
        (lambda h: h * h.mean((2, 3), keepdim=True).expand_as(h), [(0, 4, 1)], [(0, 4, 1)]),
    ],
)
def test_channels_are_taken_apart_and_put_together(between, made, read):
    trace = trace_of(lambda m, x: m.b(between(m.a(x))))
    assert parts(trace, "a.weight", 0) == made
    assert parts(trace, "b.weight", 1) == read
    assert {s for s, _ in axis_of(trace, "b.weight", 1)} <= {s for s, _ in axis_of(trace, "a.weight", 0)}


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "made", "read"),
    [
        (2, 8, 12, [(0, 6, 1)] * 2, [(0, 4, 1)]),
        (4, 8, 4, [(0, 1, 1)] * 4, [(0, 2, 1)]),
        (8, 8, 8, [(0, 8, 1)], None),
        (4, 4, 12, [(0, 4, 3)], None),
    ],
)
def test_a_convolution_in_groups(groups, inputs, outputs, made, read):
    layers = [nn.Conv2d(3, inputs, 1), nn.Conv2d(inputs, outputs, 1, groups=groups), nn.Conv2d(outputs, 2, 1)]
    trace = Trace(nn.Sequential(*layers), IMAGE)
    assert parts(trace, "1.weight", 0) == parts(trace, "1.bias", 0) == parts(trace, "2.weight", 1) == made
    if read is None:
        assert (
            axis_of(trace, "1.weight", 1)[0][0].fixed == "each group of a depthwise convolution reads a single channel"
        )
        assert {s for s, _ in axis_of(trace, "1.weight", 0)} == {s for s, _ in axis_of(trace, "0.weight", 0)}
    else:
        assert parts(trace, "1.weight", 1) == read
        assert axis_of(trace, "0.weight", 0) == axis_of(trace, "1.weight", 1) * groups


def test_a_convolution_over_channels_as_positions_fixes_them():
    trace = Trace(Net(lambda m, x: m.b(m.a(x).transpose(1, 2)), a=conv(3, 4, 1), b=conv(6, 6)), IMAGE)
    assert axis_of(trace, "a.weight", 0)[0][0].fixed == "'conv2d' in module 'b' slides along them"


def test_parts_that_only_training_reaches_are_traced_too():
    trace = trace_of(lambda m, x: (m.a(x), m.b(m.a(x))) if m.training else m.a(x))
    assert axis_of(trace, "b.weight", 1) == axis_of(trace, "a.weight", 0)
    assert not trace.skeleton.training
    assert [len(calls) for calls in trace.returned.values()] == [1, 1]  # of the evaluation pass alone


def test_looking_at_a_parameter_is_not_using_it():
    def forward(m, x):
        assert {p.dtype for p in m.parameters()} == {x.dtype}
        return m.b(m.a(x)) if m.training else m.a(x)

    trace = trace_of(forward)
    assert axis_of(trace, "b.weight", 1) == axis_of(trace, "a.weight", 0)


def test_sites_hold_what_each_module_returned():
    trace = trace_of(lambda m, x: m.b(F.relu(m.b(m.a(x)))))
    assert [value.call.name for value in trace.returned["b"]] == ["conv2d", "conv2d"]
    assert [value.call.name for value in trace.returned["a"]] == ["conv2d"]


def test_the_skeleton_holds_no_data_and_the_model_is_not_run():
    model = Net(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 4))
    model.a.register_forward_hook(lambda module, inputs, output: seen.append(output.device.type))
    seen = []
    trace = Trace(model.train(), IMAGE)
    assert {tensor.device.type for tensor in trace.skeleton.state_dict().values()} == {"meta"}
    assert set(seen) == {"meta"}
    assert model.training


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("relu", lambda x: x.relu()),
        ("relu", lambda x: F.relu(x, inplace=True)),
        ("relu", lambda x: torch.relu_(x)),
        ("add", lambda x: x + x),
        ("add", lambda x: x.add_(1)),
        ("__rsub__", lambda x: 1 - x),
    ],
)
def test_spellings_of_an_operation_have_one_name(name, run):
    class Names(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(function_name(func))
            return func(*args, **(kwargs or {}))

    names, x = [], torch.ones(2)
    with Names():
        run(x)
    assert names == [name]


def bessel(model, x):
    return model.b(torch.special.i0(model.a(x)))


def hidden(x):
    """Something that no mode sees."""
    with torch._C.DisableTorchFunction():
        return x * 2


@pytest.mark.parametrize(
    ("forward", "error", "words"),
    [
        (bessel, UnsupportedOperation, ["'special_i0'", "the model's own forward", "(2, 4, 6, 5)", "left as"]),
        (lambda m, x: m.b(torch.special.erfcx(m.a(x))), UnsupportedOperation, ["'special_erfcx'"]),
        (lambda m, x: m.b(hidden(m.a(x))), UnsupportedOperation, ["(2, 4, 6, 5)", "plain torch operations"]),
        (lambda m, x: m.b(x), GrowthError, ["module 'b'", "RuntimeError", "check the example inputs"]),
        (lambda m, x: m.b(m.a(x)) if x.sum() > 0 else m.a(x), GrowthError, ["the model's own forward", "meta"]),
        (lambda m, x: m.b(m.a(x)).shape, GrowthError, ["returns no tensor"]),
        (lambda m, x: [{"a": m.a(x), "b": (m.a(x), iter([]))}], GrowthError, ["list_iterator", "output[0]['b'][1]"]),
        (lambda m, x: m.b(x) if m.training else m.a(x), GrowthError, ["module 'b' in training mode"]),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_follow_and_leaves_nothing_behind(forward, error, words):
    hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    before = [dict(found) for found in hooks]
    with pytest.raises(error) as caught:
        trace_of(forward)
    assert all(word in str(caught.value) for word in words), caught.value
    assert [dict(found) for found in hooks] == before
    assert torch.ones(2).add(1).device.type == "cpu"  # and no mode is left on


def test_a_weight_that_is_used_in_two_ways_cannot_grow():
    """Divided for the one use, it would be too small for the other."""
    # A tied autoencoder: the convolution sums over dimension 1 of its weight, its transpose over dimension 0.
    trace = trace_of(lambda m, x: F.conv_transpose2d(m.a(x), m.a.weight))
    assert "sums over them in one place and is used otherwise in another" in axis_of(trace, "a.weight", 0)[0][0].fixed

    def run(m, x):
        h = m.make(x)
        return m.after(h * m.read.weight) + m.read(h)

    net = Net(run, make=nn.Linear(3, 4), read=nn.Linear(4, 1), after=nn.Linear(4, 2))
    trace = Trace(net, torch.zeros(2, 3))
    assert "'read.weight' sums over them" in axis_of(trace, "make.weight", 0)[0][0].fixed


def test_a_weight_used_twice_in_the_same_way_can_grow():
    trace = trace_of(lambda m, x: m.b(m.b(m.a(x)).relu()))
    assert axis_of(trace, "b.weight", 0) == axis_of(trace, "b.weight", 1)
