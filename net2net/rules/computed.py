"""Weights that are computed from parameters, e.g. `mu + sigma * noise`, `weight.flip(3)` or `weight.view(out, -1)`.

A layer that sums over channels needs each copy's share of its weight. A computed weight is so divided where it is
linear in parameters that are: of a sum every term, of a product one factor. Which ones shows on the way back from the
layer to the parameters; what else reads them, or what was computed on the way, holds the channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from net2net.recording import Call
from net2net.rules.standardised import CASTS, SCALINGS
from net2net.spaces import Axis, Space, resolve

if TYPE_CHECKING:
    from net2net.trace import Trace, Value

# Operations that are linear in their first argument, and whose others are no tensors, or places.
LINEAR = """
neg negative contiguous detach data alias t T mT transpose permute swapaxes swapdims movedim moveaxis unsqueeze squeeze
view view_as reshape reshape_as flatten unflatten flip fliplr flipud roll narrow select index_select __getitem__
sum mean expand repeat tile unbind split split_with_sizes chunk tensor_split
"""
LINEAR = CASTS.union(LINEAR.split())
SUMS = frozenset({"add", "sub", "subtract", "cat", "concat", "concatenate", "stack"})
PRODUCTS = SCALINGS.union({"matmul", "__matmul__", "mm", "bmm"})


class Shares(NamedTuple):
    """What has to be divided for a weight to be.

    of      the (parameter or buffer, dimension)
    read    who reads what on the way: (its name, or the value that was computed; the call)
    """

    of: frozenset[tuple[str, int]]
    read: tuple[tuple[str | Value, Call], ...] = ()


def shares(trace: Trace, weight: Value, dim: int) -> Shares | None:
    """What to divide so that a computed weight is divided along a dimension; None if that is not known."""
    axis = weight.axes[dim]
    return None if axis is None else _shares(trace, weight, _spaces(axis), {})


def _spaces(axis: Axis) -> tuple[Space, ...]:
    return tuple(space for space, _ in resolve(axis))


def _shares(trace: Trace, value: Value, spaces: tuple[Space, ...], known: dict[int, Shares | None]) -> Shares | None:
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = found = _found(trace, value, spaces, known)
    return found


def _found(trace: Trace, value: Value, spaces: tuple[Space, ...], known: dict[int, Shares | None]) -> Shares | None:
    name, call = trace.named(value.tensor), value.call
    if name is not None:
        dims = [dim for dim, axis in enumerate(trace.axes[name]) if axis and _spaces(axis) == spaces]
        return Shares(frozenset({(name, dims[0])})) if len(dims) == 1 else None
    if call is None:
        return None
    terms = _terms(call)
    if terms is not None:
        return _together(trace, call, terms, [_shares(trace, term, spaces, known) for term in terms])
    if call.name in PRODUCTS and len(call.inputs) == len({_read(trace, each) for each in call.inputs}) == 2:
        factors = call.inputs[:1] if "div" in call.name else call.inputs
        each = [_together(trace, call, [factor], [_shares(trace, factor, spaces, known)]) for factor in factors]
        free = [its for its in each if its is not None]
        learned = dict(trace.skeleton.named_parameters())
        return next((its for its in free if all(name in learned for name, _ in its.of)), next(iter(free), None))
    return None


def _terms(call: Call) -> list[Value] | None:
    """The arguments that a result is the sum of, or is linear in; None for any other operation."""
    if call.name in SUMS:
        given = call.get(0, "tensors")
        count = len(given) if isinstance(given, (tuple, list)) else 2
        return call.inputs if len(call.inputs) == count else None  # a number is no share of anything
    if call.name in LINEAR or (call.name in SCALINGS and len(call.inputs) == 1):
        return call.inputs[:1]
    if call.name == "pad" and call.get(2, "mode", "constant") == "constant" and not call.get(3, "value", 0):
        return call.inputs[:1]
    return None


def _together(trace: Trace, call: Call, terms: list[Value], its: list[Shares | None]) -> Shares | None:
    known = [each for each in its if each is not None]
    if len(known) < len(its):
        return None
    read = [(_read(trace, term), call) for term in terms]
    return Shares(
        frozenset().union(*(each.of for each in known)), (*read, *(each for part in known for each in part.read))
    )


def _read(trace: Trace, value: Value) -> str | Value:
    """What is read: a parameter or buffer by its name, whichever view of it, or what was computed."""
    return trace.named(value.tensor) or value
