"""Net2DeeperNet (sec 2.4): insert layers that start as the identity.

After an activation phi with phi(phi(v)) = phi(v) a layer whose linear part is the identity changes nothing. Where the
layer has batch normalisation, its scale and offset undo the normalisation, with statistics from a forward pass over
training data.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from net2net.errors import GrowthError
from net2net.spaces import Call, Trace, as_arguments
from net2net.wider import remember

Kernel = int | tuple[int, ...]

IDEMPOTENT = ("relu", "relu6", "hardtanh")
# What else is asked for often, and why it is refused.
NOT_IDEMPOTENT = (
    "sigmoid tanh gelu silu mish elu selu celu leaky_relu prelu rrelu hardswish hardsigmoid softplus softsign".split()
)
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def deepen(
    model: nn.Module,
    example_inputs: Any,
    sites: Mapping[str, Sequence[Kernel]],
    calibration: Iterable[Any] | None = None,
) -> nn.Module:
    """A deeper model that computes the same function: Net2DeeperNet (paper sec 2.4).

    Each site `m` becomes `nn.Sequential(m, layer, layer, …)`, one new layer per kernel: an identity convolution (an
    identity `nn.Linear` where the site's output is [N, C]), batch normalisation if the site has it, the site's activation.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts
    sites           kernels to insert, by module name or glob ("*" stops at dots, "**" does not), e.g.
                    {"layer1.*.relu": [3, (1, 3)]}. A kernel is an odd size or one per spatial dimension; 1 for [N, C].
                    The site's output must come straight from a ReLU, ReLU6 or hardtanh.
    calibration     batches of training inputs, each as `example_inputs`, to measure the batch-norm statistics on; needed
                    if the sites have batch normalisation

    Returns a new model of the same class on the same device. The function is preserved exactly in evaluation mode; in
    training mode on a single calibration batch up to the precision of its statistics. No noise is needed. An optimizer of
    the old model does not know the new parameters: build a new one. Raises `GrowthError` for a site that cannot be
    deepened, with the reason.
    """
    trace = Trace(model, example_inputs)
    chosen = _choose(trace, sites)
    student = copy.deepcopy(model)
    blocks = {name: _Site(trace, name, kernels) for name, kernels in chosen.items()}
    normalised = [name for name, site in blocks.items() if site.norm is not None]
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if normalised:
        if calibration is None:
            raise GrowthError(
                f"the site {normalised[0]!r} has batch normalisation: pass calibration=, batches of training inputs"
            )
        moments = _measure(model, normalised, calibration)
    for name, site in blocks.items():
        old = student.get_submodule(name)
        tensor = next(old.parameters(), next(student.parameters(), torch.empty(0)))
        layers = [site.layer(kernel, old, tensor, moments.get(name)) for kernel in site.kernels]
        parent, _, leaf = name.rpartition(".")
        grown = nn.Sequential(old, *layers).train(old.training)
        setattr(student.get_submodule(parent), leaf, grown)
    remember(student, {"op": "deepen", "sites": {name: [list(k) for k in site.kernels] for name, site in blocks.items()}})
    return student


class _Site:
    """A place to insert layers after: checked, with what a layer there needs to look like."""

    def __init__(self, trace: Trace, name: str, kernels: Sequence[Kernel]):
        self.name = name
        values = trace.sites.get(name, [])
        if len(values) != 1:
            raise GrowthError(
                f"cannot deepen after {name!r}: "
                + ("the forward pass never calls it" if not values else f"it is called {len(values)} times a pass")
            )
        value = values[0]
        if value is None or value.call is None:
            raise GrowthError(f"cannot deepen after {name!r}: its output is not one tensor that an activation made")
        self.call: Call = value.call
        if self.call.name not in IDEMPOTENT:
            known = self.call.name in NOT_IDEMPOTENT
            raise GrowthError(
                f"cannot deepen after {name!r}: its output comes from {self.call.name!r}"
                + (", and applying that twice is not applying it once" if known else ", not from an activation")
                + f"; a site must end in {', '.join(IDEMPOTENT)}"
            )
        self.channels, self.ndim = (value.tensor.shape[1] if value.tensor.ndim > 1 else 0), value.tensor.ndim
        if self.ndim not in NORMS:
            raise GrowthError(
                f"cannot deepen after {name!r}: its output has shape {tuple(value.tensor.shape)}, "
                "expected [N, C] or [N, C, …] with one to three spatial dimensions"
            )
        before = self.call.inputs[0].call
        self.norm = before if before is not None and before.name == "batch_norm" else None
        self.kernels = [self._kernel(kernel) for kernel in kernels]

    def _kernel(self, kernel: Kernel) -> tuple[int, ...]:
        spatial = self.ndim - 2
        sizes = (kernel,) * max(spatial, 1) if isinstance(kernel, int) else tuple(kernel)
        good = all(type(k) is int and k > 0 and k % 2 for k in sizes) and len(sizes) == max(spatial, 1)
        if not good or (spatial == 0 and sizes != (1,)):
            wanted = "1" if spatial == 0 else f"an odd size or {spatial} of them"
            raise GrowthError(f"cannot deepen after {self.name!r} with kernel {kernel!r}: expected {wanted}")
        return sizes

    def layer(
        self,
        kernel: tuple[int, ...],
        old: nn.Module,
        like: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> nn.Module:
        """One layer that is the identity on this site's output; `like` gives device and precision."""
        options = {"bias": self.norm is None, "device": like.device, "dtype": like.dtype}
        channels = self.channels
        linear: nn.Module
        if self.ndim == 2:
            linear = nn.Linear(channels, channels, **options)
        else:
            padding = tuple(k // 2 for k in kernel)
            linear = CONVOLUTIONS[self.ndim](channels, channels, kernel, padding=padding, **options)
        parts = OrderedDict([("linear" if self.ndim == 2 else "conv", linear)])
        with torch.no_grad():
            linear.weight.zero_()
            centre = tuple(k // 2 for k in kernel) if self.ndim > 2 else ()
            diagonal = torch.arange(channels)
            linear.weight[(diagonal, diagonal, *centre)] = 1
            if linear.bias is not None:
                linear.bias.zero_()
            if self.norm is not None and moments is not None:
                eps = self.norm.get(7, "eps", 1e-5)
                norm = NORMS[self.ndim](channels, eps, self.norm.get(6, "momentum", 0.1), device=like.device)
                mean, var = moments
                norm.to(like.dtype)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                # From the stored variance, so that rounding it cancels: (x - mean) / sqrt(var + eps) is undone exactly.
                norm.weight.copy_((norm.running_var.double() + eps).sqrt())
                norm.bias.copy_(norm.running_mean)
                parts["bn"] = norm
        parts["relu" if self.call.name.startswith("relu") else "act"] = self._activation()
        return nn.Sequential(parts)

    def _activation(self) -> nn.Module:
        if self.call.name == "hardtanh":
            return nn.Hardtanh(self.call.get(1, "min_val", -1.0), self.call.get(2, "max_val", 1.0))
        return nn.ReLU6() if self.call.name == "relu6" else nn.ReLU()


def _choose(trace: Trace, sites: Mapping[str, Sequence[Kernel]]) -> dict[str, Sequence[Kernel]]:
    names = [name for name, _ in trace.skeleton.named_modules() if name]
    chosen: dict[str, Sequence[Kernel]] = {}
    for pattern, kernels in sites.items():
        matched = [name for name in names if _matches(name.split("."), pattern.split("."))]
        if not matched:
            raise GrowthError(f"no module matches the site {pattern!r}")
        for name in matched:
            if name in chosen:
                raise GrowthError(f"two site patterns match {name!r}: {pattern!r} and one before it")
            chosen[name] = kernels
    # A site inside another is wrapped first, so that the names of both stay valid.
    return dict(sorted(chosen.items(), key=lambda item: -item[0].count(".")))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _measure(
    model: nn.Module, names: list[str], calibration: Iterable[Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and (biased) variance per channel of the outputs of some modules, over all batches, in float64.

    The model normalises by the batch's own statistics meanwhile, as in training, where the new layers have to be the
    identity too; dropout is off.
    """
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    count = dict.fromkeys(names, 0)
    mean: dict[str, torch.Tensor] = {}
    square: dict[str, torch.Tensor] = {}  # summed squared deviations from the mean

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            x = output.detach().double().transpose(0, 1).flatten(1)
            n, m = x.shape[1], x.mean(1)
            s = (x - m[:, None]).square().sum(1)
            if name not in mean:
                count[name], mean[name], square[name] = n, m, s
                return
            total = count[name] + n
            delta = m - mean[name]
            mean[name] = mean[name] + delta * (n / total)
            square[name] = square[name] + s + delta.square() * (count[name] * n / total)
            count[name] = total

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(look(name))
    with torch.no_grad():
        for batch in calibration:
            args, kwargs = as_arguments(batch)
            model(*args, **kwargs)
    if not mean:
        raise GrowthError("calibration= has no batches: pass at least one batch of training inputs")
    return {name: (mean[name], square[name] / count[name]) for name in names}
