"""The growth again, from its record: the student's architecture in a new process, without a trace, inputs or pickles.

The record is `history(student)`: plain data that JSON can hold. For a widening it has the map of every channel space,
the tensors that follow it, and the seed and amount of the noise; random pad has the very same with another fill. For a
deepening it has the new layers of each site.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net import deeper, head
from net2net.errors import GrowthError
from net2net.fill import disturb, pad
from net2net.growth import WRONG_DATA, Growth, growth_of
from net2net.history import history, remember
from net2net.recording import cloned, tensors, unwrapped
from net2net.sites import located
from net2net.widths import get_number, is_whole

Record = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]

OPERATIONS = ("widen", "random_pad", "deepen", "new_head")


def replay(record: Record, teacher: nn.Module, *, init: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """Do to `teacher` again what a record says was done to its like.

        record = json.dumps(net2net.history(student))
        # … in a new process:
        student = net2net.replay(record, Teacher())
        student.load_state_dict(net2net.load_weights("student.safetensors"))

    record   `history(student)`, one entry of it, or either as JSON. What is in the teacher's own history already is
             not done twice.
    teacher  a model of the class and configuration that was grown, on any device but "meta"; it is left untouched.
             Its weights matter only for the result's: of the same weights it makes the same student, bit for bit, but
             for what was measured or random in the new layers of `deepen` (their batch norms get mean 0, variance 1).
    init     of `random_pad`, as was passed to it then: a function is no data, the record does not have it

    Returns a new model whose `history` is the teacher's and the record. Raises `GrowthError`, before anything is built,
    for what is not a record; and where the record names a tensor that the model lacks or has in another shape.
    """
    teacher = unwrapped(teacher)
    entries, done = entries_of(record), history(teacher)
    student = teacher
    for entry in entries[len(done) :] if entries[: len(done)] == done else entries:
        student = _REPEAT[entry["op"]](entry, student, init)
    return cloned(student) if student is teacher else student


def _fill(entry: Mapping[str, Any], model: nn.Module, init: Callable[[nn.Module], None] | None) -> nn.Module:
    """What `widen` and `random_pad` do once they know the growth."""
    growth = growth_of(entry, max((n for _, t in tensors(model) for n in t.shape), default=0))
    _check(growth, model)
    padding = entry["op"] == "random_pad"
    seed, noise, exact = entry.get("seed"), entry.get("noise", 0.0), entry.get("exact", False)
    if type(seed) is not int or type(exact) is not bool or type(noise) not in (int, float) or not 0 <= noise < math.inf:
        raise GrowthError(
            f"the record of {entry['op']} has seed {seed!r}, noise {noise!r} and exact {exact!r}: expected a whole "
            "number, a number of at least 0, and true or false"
        )
    student = growth.copied(model, divided=not padding, seed=seed)
    with torch.no_grad():
        if padding:
            pad(student, growth, init, seed)
        else:
            disturb(student, growth, noise, exact, seed)
    remember(student, copy.deepcopy(dict(entry)))
    return student


def _insert(entry: Mapping[str, Any], model: nn.Module, init: Any) -> nn.Module:
    """What `deepen` does once it knows the sites."""
    student = cloned(model)
    for site in inserted(entry):
        try:
            student.get_submodule(site.name)
        except AttributeError:
            raise GrowthError(
                f"the record deepens {site.name!r}, which this {type(model).__name__} does not have: give replay the "
                "class and configuration of the model that was grown"
            ) from None
    try:
        deeper.insert(student, entry["sites"])
    except GrowthError:
        raise
    except WRONG_DATA as error:
        raise GrowthError(f"this is not a record of net2net.deepen ({type(error).__name__}: {error})") from error
    remember(student, copy.deepcopy(dict(entry)))
    return student


def _renew(entry: Mapping[str, Any], model: nn.Module, init: Any) -> nn.Module:
    """What a `new_head` does once it knows the layers."""
    if type(entry.get("seed")) is not int:
        raise GrowthError(f"the record of a new head has seed {entry.get('seed')!r}: expected a whole number")
    student = head.replaced(model, head.heads_of(entry, model), entry["seed"])
    remember(student, copy.deepcopy(dict(entry)))
    return student


_REPEAT = {"widen": _fill, "random_pad": _fill, "deepen": _insert, "new_head": _renew}


def entries_of(record: Record) -> list[Mapping[str, Any]]:
    """A record's entries, oldest first, each with an operation that there is."""
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except ValueError as error:
            raise GrowthError(
                f"the record is not JSON ({error}): expected json.dumps(net2net.history(student))"
            ) from None
    entries = [record] if isinstance(record, Mapping) else record
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
        raise GrowthError(
            f"the record is a {type(record).__name__}: expected net2net.history(student), a list of dicts, or one"
        )
    for entry in entries:
        if entry.get("op") not in OPERATIONS:
            raise GrowthError(
                f"the record has an entry whose 'op' is {entry.get('op')!r}: this version knows {', '.join(OPERATIONS)}"
            )
    return list(entries)


def misfit(growth: Growth, name: str, shape: Sequence[int]) -> str | None:
    """What a record expects of a tensor that has another shape; None where it fits."""
    wanted: list[Any] = list(shape)
    for dim, how in growth.tensors.get(name, {}).items():
        if dim >= len(shape):
            return f"at least {dim + 1} dimensions"
        wanted[dim] = sum(b if isinstance(b, int) else growth.spaces[b[0]].width * b[1] for b in how.blocks)
    return None if wanted == list(shape) else str(tuple(wanted))


def _check(growth: Growth, model: nn.Module) -> None:
    what = f"this {type(model).__name__}"
    advice = "give replay the class and configuration of the model that was grown"
    found = dict(tensors(model))
    for name in (*growth.tensors, *growth.scales):
        if name not in found:
            wrapped = f"module.{name}" in found and f"; pass its .module, this {type(model).__name__} is around it"
            raise GrowthError(f"the record grows {name!r}, which {what} does not have: {advice}{wrapped or ''}")
        if found[name].is_meta:
            raise GrowthError(
                f"{name!r} is on the meta device and has no values to copy: give replay a model with weights"
            )
        if wanted := misfit(growth, name, found[name].shape):
            shape = tuple(found[name].shape)
            raise GrowthError(f"the record grows {name!r} from shape {wanted}, and in {what} it is {shape}: {advice}")
    for g, (v, dim) in growth.scales.items():
        norms = [n if d == dim else 1 for d, n in enumerate(found[v].shape)] if dim >= 0 else []
        if list(found[g].shape) != norms:
            raise GrowthError(f"the record takes {g!r} for the scales of {v!r} along {dim}, and it is none: {advice}")
    # A record can come from a file: it sets numbers that are there, and nothing else of a module.
    for name, values in growth.attributes.items():
        for key, value in values.items():
            try:
                was = get_number(model.get_submodule(name), key)
            except AttributeError:
                continue  # kept from the first forward pass on
            if was is None:
                continue
            old, new = ([x] if is_whole(x) else x for x in (was, value))
            if not all(isinstance(x, (list, tuple)) and all(is_whole(n) for n in x) for x in (old, new)):
                raise GrowthError(f"the record sets {name}.{key} from {was!r} to {value!r}: expected whole numbers")


class Inserted(NamedTuple):
    """A site of a record of `deepen`: the module at `name` becomes entry `place` of a sequence of `length`."""

    name: str
    place: int
    length: int


def inserted(entry: Mapping[str, Any]) -> Iterator[Inserted]:
    """What a record of `deepen` inserts, in the order in which it does."""
    try:
        for key, layers in entry["sites"].items():
            before, name = located(key)
            yield Inserted(name, len(layers) if before else 0, len(layers) + 1)
    except WRONG_DATA as error:
        raise GrowthError(f"this is not a record of net2net.deepen ({type(error).__name__}: {error})") from error
