"""Net2WiderNet (sec 2.3), and its baseline "random pad" (sec 3.1).

Widening is three steps. The channel spaces are found (`net2net.spaces`). For each space that grows, a map g from its
new channels to its old ones is drawn. Then every parameter and buffer is filled by the maps of its axes. Net2WiderNet
and its baseline differ in the last step alone:

replicate   new entries are copies; what a layer sums over is divided by the replica counts (`growth.copied`); noise
random pad  old entries stay where they are; new rows and columns keep the student's own random initialisation
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

from torch import nn

from net2net.certificate import confirm
from net2net.errors import GrowthError, whole
from net2net.fill import disturb, pad
from net2net.head import renew
from net2net.history import remember
from net2net.plan import plan_growth
from net2net.recording import undisturbed, unwrapped
from net2net.trace import traced


@undisturbed()
def widen(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    multiple_of: int = 1,
    noise: float = 0.05,
    exact: bool = True,
    new_head: int | Mapping[str, int] | None = None,
    seed: int = 0,
    verify: bool = True,
    strict: bool = False,
) -> nn.Module:
    """A wider model that computes the same function: Net2WiderNet (paper sec 2.3).

    The first n channels of a widened layer are the old ones; each further one copies an old channel drawn at random
    with replacement. Every consumer divides its incoming weights by the number of copies. Layers that must share a map
    (by batch norm, addition, concatenation, several consumers) are found by running the model once on the meta device.
    Input and output of the network keep their width.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts; a list is as a
                    tuple. What is itself one argument goes into a tuple: ({"image": x},)
    factor          multiplies the width of every layer that can grow (rounded to whole channels; where they come as
                    groups or heads, to whole ones, and the record says so), or
    widths          the new number of channels of some layers, by module name, e.g. {"layer1.conv1": 96}; a parameter
                    that stands for a layer of its own, e.g. one of several in a module, goes by its own name
    modules         restricts `factor` to modules that match a glob pattern ("*" stops at dots, "**" does not), and all
                    that is inside them; layers that share their channels with one of those grow along
    multiple_of     round the widths that `factor` asks for up to a multiple, e.g. 8, which tensor cores are made for
    noise           standard deviation of normal noise that makes the copies of a channel diverge once trained, as a
                    fraction of each filter's own. With 0 copies stay equal for ever, unless training treats them
                    differently, e.g. by dropout: the student then has no more capacity than its teacher.
    exact           put the noise on the weights that read the copies, in amounts that cancel over the copies of each
                    channel: the function is preserved to rounding. False: on the weights that make the copies (never
                    the first), which moves the function, as in the paper
    new_head        for another number of classes: replace the layer that makes the outputs by one with so many of
                    them, initialised anew and trainable; all below it stays. A dict says it by layer, e.g. {"fc": 10}
    seed            of the maps and the noise. Each layer's draw depends on the seed and its name only.
    verify          compare both models on the example inputs (if `exact=False`, before the noise), and raise if the
                    function has moved further than rounding explains
    strict          raise `UnsupportedOperation` for an operation that no rule covers. Otherwise what it reads and makes
                    stays as it is; the operation is named in a warning, in the record and by `explain`.

    Returns a new model of the same class on the same device; what torch.compile or a data-parallel wrapper made of the
    model is taken off. An optimizer of the old model does not know the new parameters: see `grow_optimizer`, or build a
    new one. Raises `GrowthError` if what was asked cannot grow.

    A model whose code looks at numbers (`item`, `nonzero`) cannot be followed without data: it is then run on the
    example inputs, which takes the time and memory of real forward passes, with a warning.
    """

    if not isinstance(noise, Real) or not 0 <= noise < inf:
        raise GrowthError(
            f"noise is a fraction of each filter's standard deviation: expected at least 0, got {noise!r}"
        )
    exact, noise, seed = bool(exact and noise), float(noise), whole(seed, "seed=")
    model = unwrapped(model)
    trace = traced(model, example_inputs, strict=strict)
    growth = plan_growth(trace, example_inputs, factor, widths, modules, seed, multiple_of)
    entry = {"op": "widen", "noise": noise, "exact": exact, "seed": seed, **_rounding(multiple_of), **growth.record()}

    def grown(teacher: nn.Module) -> nn.Module:
        student = growth.copied(teacher, seed=seed)
        if exact:
            disturb(student, growth, noise, exact, seed)
        return student

    student = grown(model)
    if verify:  # training mode is compared too where the trace could not follow it
        confirm(model, student, example_inputs, trace.training_calls is None, grown, trace.writes_nothing)
    if not exact:
        disturb(student, growth, noise, exact, seed)
    remember(student, entry)
    if new_head is not None:
        student = renew(student, trace, example_inputs, new_head, seed)
    return student


@undisturbed()
def random_pad(
    model: nn.Module,
    example_inputs: Any,
    factor: float | None = None,
    widths: Mapping[str, int] | None = None,
    *,
    modules: str | Sequence[str] | None = None,
    multiple_of: int = 1,
    init: Callable[[nn.Module], None] | None = None,
    new_head: int | Mapping[str, int] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> nn.Module:
    """The baseline of Net2WiderNet: the same wider model, padded with random weights (paper sec 3.1, "random pad").

    Old weights stay as they are; new rows and columns come from a random initialisation of the *wider* model (fan-in of
    the new shape), new batch-norm channels are weight 1, bias 0, mean 0, variance 1. The function is not preserved.

    init    is applied to every module of the wider model, as by `nn.Module.apply`, after each module's own
            `reset_parameters` where it has one; only the new rows and columns of what it does are kept.

    The other arguments, the result and the errors are those of `widen`.
    """

    if init is not None and not callable(init):
        raise GrowthError(f"init= is a {type(init).__name__}: expected a function that initialises a module")
    seed = whole(seed, "seed=")
    model = unwrapped(model)
    trace = traced(model, example_inputs, strict=strict)
    growth = plan_growth(trace, example_inputs, factor, widths, modules, seed, multiple_of)
    student = growth.copied(model, divided=False)
    pad(student, growth, init, seed)
    remember(student, {"op": "random_pad", "seed": seed, **_rounding(multiple_of), **growth.record()})
    if new_head is not None:
        student = renew(student, trace, example_inputs, new_head, seed)
    return student


def _rounding(multiple_of: int) -> dict[str, int]:
    """What a record says of it: a replay has the maps, and needs no more."""
    return {"multiple_of": int(multiple_of)} if multiple_of != 1 else {}
