"""Where a model can be deepened: the sites of `net2net.deepen`, checked against its forward pass (sec 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from net2net import residual
from net2net.errors import GrowthError
from net2net.names import aliases, matches
from net2net.recording import Call
from net2net.trace import Trace, Value

IDEMPOTENT = ("relu", "relu6", "hardtanh")
# What else is asked for often, and why it is refused.
NOT_IDEMPOTENT = (
    *("sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu"),
    *("hardswish", "hardsigmoid", "softplus", "softsign"),
)
BEFORE = "before "
# What may lie between an activation and a site before a module: each number after it is one before it, or dropped out.
PASSES = (
    *residual.RESHAPES,
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
)


@dataclass(frozen=True)
class Layer:
    """One layer for `deepen` to insert.

    kernel     its size, odd: one number, or one per spatial dimension; 1 for [N, C]
    dilation   likewise; the shape is kept
    depthwise  each channel by itself (as many groups as channels)
    maxout     make the layer a maxout layer with so many linear pieces per channel (sec 2.4), after which no activation
               is needed: it starts as the identity after anything. 0: whatever the site ends in
    """

    kernel: int | tuple[int, ...] = 3
    dilation: int | tuple[int, ...] = 1
    depthwise: bool = False
    maxout: int = 0


Kernel = int | tuple[int, ...] | Layer | Mapping[str, Any] | str


def located(key: str) -> tuple[bool, str]:
    """A site's key as whether it is before its module, and the module's name or pattern."""
    return key.startswith(BEFORE), key.removeprefix(BEFORE)


def spelled(key: str) -> str:
    """A site's key as in "cannot deepen after 'layer1'"."""
    before, name = located(key)
    return f"{'before' if before else 'after'} {name!r}"


class Site:
    """A place to insert layers at: checked, with the `plan` of what is inserted there, as `insert` takes it."""

    def __init__(self, trace: Trace, key: str, layers: Sequence[Kernel]):
        self.key = key
        self.before, self.name = located(key)
        self.value: Value | None = None
        if not isinstance(layers, (list, tuple)) or not layers:
            raise GrowthError(f"the site {key!r} asks for {layers!r}: expected a list of kernels, e.g. [3] or [(1, 3)]")
        self.trace = trace
        self.plan = [self._block() if layer == "block" else self._layer(layer) for layer in layers]

    @property
    def refused(self) -> str:
        return f"cannot deepen {spelled(self.key)}"

    def _block(self) -> dict[str, Any]:
        if self.before:
            raise GrowthError(f"{self.refused}: a 'block' goes after the block that it is like: name {self.name!r}")
        return {"block": residual.zeros(self.trace, self.name)}

    def _look(self) -> None:
        """Find the tensor at this site and what made it."""
        values = (self.trace.given if self.before else self.trace.returned).get(self.name, [])
        if len(values) != 1:
            why = f"it is called {len(values)} times a pass" if values else "the forward pass never calls it"
            if values and not self.before:
                why += "; a site can also be 'before NAME', of a module that reads it"
            raise GrowthError(f"{self.refused}: {why}")
        value = values[0]
        if value is None or value.call is None:
            which = "its input" if self.before else "its output"
            raise GrowthError(f"{self.refused}: {which} is not one tensor that an activation made")
        self.value = value
        self.call: Call = value.call
        if self.before:
            self.call = _through(value).call or value.call
        self.pieces = 1
        before = self.call.inputs[0].call if self.call.inputs else None
        pieces = _pieces(self.call)
        if pieces:
            self.pieces = len(pieces) if len(pieces) > 1 else _count(self.call)
            before = _through(pieces[0], residual.RESHAPES).call
        self.norm = before if before is not None and before.name == "batch_norm" else None
        if self.norm is not None:
            module = self.trace.skeleton.get_submodule(self.norm.module)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # As configured: what the call passes in evaluation mode stands for momentum=None, too.
                self.eps, self.momentum = module.eps, module.momentum
            else:
                self.eps, self.momentum = self.norm.get(7, "eps", 1e-5), self.norm.get(6, "momentum", 0.1)
        self.shape = tuple(value.tensor.shape)
        along = [dim for dim, axis in enumerate(value.axes) if axis is not None]
        self.misshapen = ""
        if not 2 <= len(self.shape) <= 5 or along not in ([], [1]):
            where = f", channels along dimension {', '.join(map(str, along))}" if along else ""
            self.misshapen = (
                f"its {'input' if self.before else 'output'} has shape {self.shape}{where}; "
                "expected [N, C] or [N, C, …] with one to three spatial dimensions"
            )

    def _layer(self, wanted: Kernel) -> dict[str, Any]:
        if self.value is None:
            self._look()
        layer = self._checked(wanted)
        pieces = layer.maxout or (self.pieces if self.pieces > 1 else 0)
        if not pieces and residual.activation_of(self.call) is None:
            known = self.call.name in NOT_IDEMPOTENT
            instead = "" if self.misshapen else f", or ask for a maxout layer, Layer({self._fitting()}, maxout=2)"
            block = not self.before and residual.works(self.trace, self.name)
            instead += ", or for a 'block'" if block else ""
            raise GrowthError(
                f"{self.refused}: its {'input' if self.before else 'output'} comes from {self.call.name!r}"
                + (", and applying that twice is not applying it once" if known else ", not from an activation")
                + f"; a site must end in {', '.join(IDEMPOTENT)}{instead}"
            )
        if self.misshapen:
            raise GrowthError(f"{self.refused}: {self.misshapen}")
        spatial = len(self.shape) - 2
        refused = f"{self.refused} with kernel {wanted if isinstance(wanted, Mapping) else layer.kernel!r}: expected "
        kernel = self._sizes(layer.kernel, spatial)
        if kernel is None or not all(k % 2 for k in kernel) or (spatial == 0 and kernel != (1,)):
            raise GrowthError(refused + ("1" if spatial == 0 else f"an odd size or {spatial} of them"))
        dilation = self._sizes(layer.dilation, spatial)
        if dilation is None or (spatial == 0 and dilation != (1,)):
            raise GrowthError(
                f"{refused}{'no dilation' if spatial == 0 else f'a positive dilation or {spatial} of them'}, "
                f"got {layer.dilation!r}"
            )
        if layer.depthwise and spatial == 0:
            raise GrowthError(f"{refused}depthwise=False, its output {self.shape} has no spatial dimensions")
        return {
            "kernel": list(kernel) if spatial else [],
            "dilation": list(dilation) if spatial else [],
            "depthwise": layer.depthwise,
            "maxout": pieces,
            "channels": self.shape[1],
            "norm": {"eps": self.eps, "momentum": self.momentum} if self.norm is not None else None,
            "activation": None if pieces else residual.activation_of(self.call),
        }

    def _checked(self, wanted: Kernel) -> Layer:
        names = [f.name for f in fields(Layer)]
        if isinstance(wanted, Mapping):
            if not set(wanted) <= set(names):
                unknown = ", ".join(sorted(set(map(str, wanted)) - set(names)))
                raise GrowthError(f"{self.refused} with {dict(wanted)!r}: a layer has {', '.join(names)}, no {unknown}")
            wanted = Layer(**wanted)
        layer = wanted if isinstance(wanted, Layer) else Layer(wanted)
        if isinstance(layer.kernel, str):
            raise GrowthError(f"{self.refused} with {layer.kernel!r}: expected a kernel, a Layer or 'block'")
        if type(layer.depthwise) is not bool:
            raise GrowthError(f"{self.refused} with {wanted!r}: expected depthwise to be True or False")
        if type(layer.maxout) is not int or layer.maxout < 0 or layer.maxout == 1:
            raise GrowthError(f"{self.refused} with {wanted!r}: expected maxout to be a number of pieces, at least 2")
        return layer

    @staticmethod
    def _sizes(given: Any, spatial: int) -> tuple[int, ...] | None:
        """One positive number per spatial dimension; None if that is not what was given."""
        count = max(spatial, 1)
        sizes = tuple(given) if isinstance(given, (list, tuple)) else (given,) * count
        return sizes if len(sizes) == count and all(type(n) is int and n > 0 for n in sizes) else None

    def _fitting(self) -> int:
        return 3 if len(self.shape) > 2 else 1

    def __str__(self) -> str:
        made = f"maxout of {self.pieces} pieces" if self.pieces > 1 else self.call.name
        return f"{self.shape[1]} channels, {'batch norm, ' if self.norm else ''}{made}"


def _through(value: Value, steps: Sequence[str] = PASSES) -> Value:
    """The tensor that an activation made, from one that has lost nothing of what the activation did to it since.

    Whatever keeps each number and drops some keeps phi(v) = v. ReLU's holds for what dropout leaves and scales, too.
    """
    start, dropped = value, False
    while value.call is not None and value.call.name in steps:
        dropped = dropped or "dropout" in value.call.name
        value = value.call.inputs[0]
        if value.tensor.dtype != start.tensor.dtype:
            return start
    return start if dropped and value.call is not None and residual.activation_of(value.call) != "relu" else value


def _pieces(call: Call) -> list[Value]:
    """The linear pieces of which a call takes the largest: one for each, or one tensor that holds them all; or none."""
    if call.name in ("maximum", "max") and len(call.inputs) == 2:
        if any(v.tensor.shape != call.out.shape for v in call.inputs):
            return []
        nested = [
            _pieces(v.call) if v.call is not None and v.call.name in ("maximum", "max") else [] for v in call.inputs
        ]
        return [piece for v, inner in zip(call.inputs, nested, strict=True) for piece in (inner or [v])]
    if call.name not in ("amax", "max") or len(call.inputs) != 1:
        return []
    return call.inputs if _count(call) else []


def _count(call: Call) -> int:
    """Over how many pieces of each channel, lying next to each other or in turns, a call takes the largest; or 0.

    The dimension that it reduces has to be one into which channels were divided: otherwise it may be a pooling.
    """
    value = call.inputs[0]
    dims = call.get(1, "dim")
    dim = dims[0] if isinstance(dims, (tuple, list)) and len(dims) == 1 else dims
    out = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
    if type(dim) is not int or out.ndim != value.tensor.ndim - 1 or value.call is None:
        return 0
    dim %= value.tensor.ndim
    whole = value.call.inputs[0].tensor.shape
    divided = value.call.name in ("view", "reshape", "unflatten") and len(whole) == out.ndim
    if not divided or dim not in (1, 2) or out.ndim < 2:
        return 0
    k = value.tensor.shape[dim]
    return k if k > 1 and whole == (out.shape[0], out.shape[1] * k, *out.shape[2:]) else 0


def choose(trace: Trace, sites: Mapping[str, Sequence[Kernel]]) -> dict[str, Sequence[Kernel]]:
    if not isinstance(sites, Mapping) or not all(isinstance(key, str) for key in sites):
        raise GrowthError(
            f"sites= is {sites!r}: expected a dict of module names and lists of kernels, e.g. {{'layer1.*': [3]}}"
        )
    if not sites:
        raise GrowthError("sites= is empty: name at least one module, e.g. {'layer1.*': [3]}")
    names = {name: first for name, first in aliases(trace.skeleton).items() if name}
    chosen: dict[str, Sequence[Kernel]] = {}
    for site, layers in sites.items():
        before, pattern = located(site)
        matched = {first: None for name, first in names.items() if matches(name.split("."), pattern.split("."))}
        if not matched:
            top = ", ".join(name for name in names if "." not in name)
            raise GrowthError(f"no module matches the site {site!r}; the top level is {top}")
        for name in matched:
            key = BEFORE + name if before else name
            if key in chosen:
                raise GrowthError(f"two site patterns match {key!r}: {site!r} and one before it")
            chosen[key] = layers
    # A site inside another is wrapped first, so that the names of both stay valid.
    return dict(sorted(chosen.items(), key=lambda item: -item[0].count(".")))
