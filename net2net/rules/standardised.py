"""Weight standardisation: (w - mean) / deviation of each filter by itself, times what there is one of for each filter.

Such a weight is a weight like any other as long as mean and variance of each filter stay, and a student's can: over the
copies of a channel the shares of the weights differ by amounts that cancel, and these are as large as the variance
needs (`growth.py`). It is followed from the parameter to the layer that reads it, through the ways in which it is
written; what else is done with it holds the layer's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from net2net.recording import Call
from net2net.rules.elementwise import broadcast, reduced
from net2net.rules.normalization import tie_arguments

if TYPE_CHECKING:
    from net2net.spaces import Axis
    from net2net.trace import Trace


@dataclass(slots=True, eq=False)
class Filters:
    """What is computed from a parameter, filter by filter.

    at       the dimension along which the filters lie
    centred  whether each has mean 0
    mean     what it is the mean of, if it is no weight: of each filter, or on the way there over some dimensions
    spread   whether it is the same number for all of a filter
    same_as  what it was reshaped from
    """

    tensor: torch.Tensor
    name: str
    at: int = 0
    centred: bool = False
    mean: torch.Tensor | None = None
    spread: bool = False
    same_as: torch.Tensor | None = None

    @property
    def content(self) -> torch.Tensor:
        return self.tensor if self.same_as is None else self.same_as

    @property
    def is_weight(self) -> bool:
        return self.mean is None and not self.spread

    @property
    def is_statistic(self) -> bool:
        """Whether it is complete: a number for each filter."""
        return self.spread or (self.mean is not None and self.tensor.numel() == self.tensor.shape[self.at])


RESHAPES = frozenset({"view", "reshape", "flatten", "view_as", "reshape_as", "unsqueeze", "__getitem__"})
CASTS = frozenset({"to", "float", "double", "half", "bfloat16", "type", "type_as", "clone"})
STATISTICS = frozenset({"mean", "var", "std", "var_mean", "std_mean"})
SCALINGS = frozenset({"mul", "multiply", "div", "divide", "true_divide"})


def follow(trace: Trace, call: Call) -> list[list[Axis | None]] | None:
    """The axes of a call's results where it is a part of a standardisation; None where it is not."""
    found = [(k, f) for k, value in enumerate(call.inputs) if (f := trace.filters(value.tensor)) is not None]
    if not found:
        return None
    own, x = next(((k, f) for k, f in found if f.is_weight), found[0])
    if call.name in STATISTICS and own == 0:
        return _statistics(trace, call, x)
    if not isinstance(call.out, torch.Tensor) or id(call.out) in trace.names:
        return None
    if call.name in RESHAPES and own == 0:
        return _reshaped(trace, call, x)
    if call.name == "expand_as" and own == 1 and _one_each(trace, call.inputs[0].tensor, x):
        mean = trace.filters(call.inputs[0].tensor)
        return _noted(trace, x, Filters(call.out, x.name, x.at, mean=mean and mean.mean, spread=True))
    if not x.is_weight:
        return None
    if call.name in CASTS and own == 0:
        return _noted(trace, x, Filters(call.out, x.name, x.at, x.centred))
    if call.name == "batch_norm" and own == 0:
        return _normalised(trace, call, x)
    return _elementwise(trace, call, x, own)


def _noted(trace: Trace, x: Filters, made: Filters) -> list[list[Axis | None]]:
    """The axes of something in the shape of `x`."""
    trace.note(made)
    return [list(trace.axes_of(x.tensor))]


def _one_each(trace: Trace, tensor: torch.Tensor, x: Filters) -> bool:
    """Whether it has one number for each filter, or for all."""
    known = trace.filters(tensor)
    if known is not None and known.spread:
        return True
    shape = [1] * (x.tensor.ndim - tensor.ndim) + [*tensor.shape]
    return len(shape) == x.tensor.ndim and all(n == 1 for d, n in enumerate(shape) if d != x.at)


def _reshaped(trace: Trace, call: Call, x: Filters) -> list[list[Axis | None]] | None:
    """[O, …] to [O, n], [1, O, n] and back; of means to whatever has a number for each filter."""
    filters, shape = x.tensor.shape[x.at], list(call.out.shape)
    index = call.args[1] if call.name == "__getitem__" else None
    if not all(
        i is None or i is Ellipsis or i == slice(None) for i in (index if isinstance(index, tuple) else [index])
    ):
        return None
    if x.is_statistic:
        at = shape.index(filters) if shape.count(filters) == 1 else None
    else:
        at = next((d for d, n in enumerate(shape) if n == filters and shape[:d] == [1] * d), None)
    if at is None or x.spread:
        return None
    whole = x.is_weight and call.out.shape == trace.shape(x.name)
    axes = list(trace.axes[x.name]) if whole else trace.by_rule(call)
    trace.note(Filters(call.out, x.name, at, x.centred, x.mean, same_as=x.content))
    return [axes]


def _statistics(trace: Trace, call: Call, x: Filters) -> list[list[Axis | None]] | None:
    """Those of each filter. A mean can be taken along one dimension after the other."""
    axes, dims = call.inputs[0].axes, reduced(call)
    results = [call.out] if isinstance(call.out, torch.Tensor) else list(call.out)
    keeps = results[0].ndim == len(axes)
    complete = all(n == 1 or d in dims for d, n in enumerate(x.tensor.shape) if d != x.at)
    # Of taps alone it is none.
    begun = call.name == "mean" and keeps and (x.mean is not None or min(dims, default=2) < 2)
    if x.at in dims or x.spread or not (complete or begun):
        return None
    correction = trace.standardised.get(x.name)
    if call.name != "mean":
        if x.mean is not None:
            return None
        unbiased = call.kwargs.get("correction", call.get(2, "unbiased"))
        if isinstance(call.get(1, "dim"), bool) or unbiased not in (None, 0, 1):
            return None
        unbiased = 1 if unbiased is None else int(unbiased)
        if correction not in (None, unbiased):
            return None
        correction = unbiased
    trace.standardised[x.name] = correction
    made = [None if d in dims else axis for d, axis in enumerate(axes)]
    at = x.at
    if not keeps:
        at -= sum(d < at for d in dims)
        made = [axis for d, axis in enumerate(axes) if d not in dims]
    if call.name in ("mean", "var_mean", "std_mean"):
        trace.note(Filters(results[-1], x.name, at, mean=x.content if x.mean is None else x.mean))
    return [list(made) for _ in results]


def _normalised(trace: Trace, call: Call, x: Filters) -> list[list[Axis | None]] | None:
    """A batch norm of [1, O, n], which has a mean and a variance for each filter."""
    kept = [call.get(n, name) for n, name in ((1, "running_mean"), (2, "running_var"), (4, "bias"))]
    correction = trace.standardised.get(x.name)
    if any(each is not None for each in kept) or not call.get(5, "training", False) or correction == 1:
        return None
    if x.at != 1 or x.tensor.shape[0] != 1:
        return None
    trace.standardised[x.name] = 0
    tie_arguments(trace, call, trace.axes_of(x.tensor)[1], {"weight": 3})
    return _noted(trace, x, Filters(call.out, x.name, 1, True))


def _elementwise(trace: Trace, call: Call, x: Filters, own: int) -> list[list[Axis | None]] | None:
    """Its mean taken off, or a factor for each filter."""
    if call.out.shape != x.tensor.shape or len(call.inputs) > 2:
        return None
    other = call.inputs[1 - own].tensor if len(call.inputs) == 2 else None
    one = other is None or _one_each(trace, other, x)
    known = None if other is None else trace.filters(other)
    if call.name in ("sub", "subtract") and own == 0 and one and known is not None and known.mean is x.content:
        if call.get(None, "alpha", 1) != 1:
            return None
        centred = True
    elif one and call.name in SCALINGS and (own == 0 or call.name.startswith("mul")):
        centred = x.centred
    else:
        return None
    broadcast(call, [(v.tensor.shape, v.axes) for v in call.inputs], call.out.ndim)
    return _noted(trace, x, Filters(call.out, x.name, x.at, centred))
