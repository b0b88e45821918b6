"""Net2DeeperNet (sec 2.4): insert layers that start as the identity.

After an activation phi with phi(phi(v)) = phi(v) a layer whose linear part is the identity changes nothing. Where the
layer has batch normalisation, its scale and offset undo the normalisation, with statistics from a forward pass over
training data.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from net2net.certificate import confirm
from net2net.errors import GrowthError
from net2net.recording import Call, NoDropout, as_arguments
from net2net.spaces import Trace
from net2net.wider import matches, remember

Kernel = int | tuple[int, ...]

IDEMPOTENT = ("relu", "relu6", "hardtanh")
# What else is asked for often, and why it is refused.
NOT_IDEMPOTENT = (
    *("sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu"),
    *("hardswish", "hardsigmoid", "softplus", "softsign"),
)
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def deepen(
    model: nn.Module,
    example_inputs: Any,
    sites: Mapping[str, Sequence[Kernel]],
    calibration: Iterable[Any] | None = None,
    *,
    verify: bool = True,
) -> nn.Module:
    """A deeper model that computes the same function: Net2DeeperNet (paper sec 2.4).

    Each site `m` becomes `nn.Sequential(m, layer, layer, …)`, one new layer per kernel: an identity convolution (an
    identity `nn.Linear` where the site's output is [N, C]), batch normalisation if the site has it right before its
    activation, and that activation.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts
    sites           kernels to insert, by module name or glob ("*" stops at dots, "**" does not), e.g.
                    {"layer1.*": [3, (1, 3)]}. A kernel is an odd size or one per spatial dimension; 1 for [N, C].
                    The site's output must come straight from a ReLU, ReLU6 or hardtanh.
    calibration     batches of training inputs, each as `example_inputs`, to measure the batch-norm statistics on;
                    needed if the sites have batch normalisation
    verify          compare both models on the example inputs and raise if the function has moved further than rounding
                    explains

    Returns a new model of the same class on the same device. The function is preserved exactly in evaluation mode; in
    training mode on a single calibration batch up to the precision of its statistics. No noise is needed. An optimizer
    of the old model does not know the new parameters: build a new one. Raises `GrowthError` for a site that cannot be
    deepened, with the reason.
    """
    trace = Trace(model, example_inputs)
    chosen = _choose(trace, sites)
    student = copy.deepcopy(model)
    blocks = {name: Site(trace, name, kernels) for name, kernels in chosen.items()}
    normalised = [name for name, site in blocks.items() if site.norm is not None]
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if normalised:
        if calibration is None:
            raise GrowthError(
                f"the site {normalised[0]!r} has batch normalisation: pass calibration=, batches of training inputs"
            )
        if isinstance(calibration, (torch.Tensor, Mapping)):
            raise GrowthError(f"calibration= is one {type(calibration).__name__}: pass batches, e.g. [batch]")
        moments = _measure(model, normalised, calibration)
    added: list[tuple[str, nn.Module]] = []
    for name, site in blocks.items():
        old = student.get_submodule(name)
        tensor = next(old.parameters(), next(student.parameters(), torch.empty(0)))
        layers = [site.layer(kernel, old, tensor, moments.get(name)) for kernel in site.kernels]
        # A module can have several names: put the deeper one under each of them.
        places = [(m, key) for m in student.modules() for key, child in m._modules.items() if child is old]
        grown = nn.Sequential(old, *(layer.train(old.training) for layer in layers))
        grown.training = old.training  # and what is inside `old` keeps its own
        for parent, key in places:
            parent._modules[key] = grown
        added += [(name, layer) for layer in layers]
    remember(
        student, {"op": "deepen", "sites": {name: [list(k) for k in site.kernels] for name, site in blocks.items()}}
    )
    _reached(student, example_inputs, added)
    if verify:
        confirm(model, student, example_inputs)
    return student


def _reached(student: nn.Module, example_inputs: Any, added: list[tuple[str, nn.Module]]) -> None:
    """Refuse a student whose forward pass goes around the new layers, e.g. by reaching into the module they follow."""
    reason = "code outside it uses it otherwise than by calling it"
    try:
        sites = Trace(student, example_inputs).sites
    except GrowthError as error:
        raise GrowthError(
            f"the deeper model does not run, as if {reason.replace('it', 'a site', 1)}: {error}"
        ) from error
    names = {module: name for name, module in student.named_modules()}
    for site, layer in added:
        if len(sites.get(names[layer], [])) != 1:
            raise GrowthError(
                f"cannot deepen after {site!r}: the forward pass does not reach the new layers ({reason})"
            )


class Site:
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
        shape = tuple(value.tensor.shape)
        channels = [dim for dim, axis in enumerate(value.axes) if axis is not None]
        if len(shape) not in NORMS or channels not in ([], [1]):
            where = f", channels along dimension {', '.join(map(str, channels))}" if channels else ""
            raise GrowthError(
                f"cannot deepen after {name!r}: its output has shape {shape}{where}; "
                "expected [N, C] or [N, C, …] with one to three spatial dimensions"
            )
        self.channels, self.ndim = shape[1], len(shape)
        before = self.call.inputs[0].call
        self.norm = before if before is not None and before.name == "batch_norm" else None
        if self.norm is not None:
            module = trace.skeleton.get_submodule(self.norm.module)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # As configured: what the call passes in evaluation mode stands for momentum=None, too.
                self.eps, self.momentum = module.eps, module.momentum
            else:
                self.eps, self.momentum = self.norm.get(7, "eps", 1e-5), self.norm.get(6, "momentum", 0.1)
        if isinstance(kernels, (int, str)) or not kernels:
            raise GrowthError(
                f"the site {name!r} asks for {kernels!r}: expected a list of kernels, e.g. [3] or [(1, 3)]"
            )
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
        # Without their own random initialisation: it would be overwritten, and move the caller's generator on.
        if self.ndim == 2:
            linear = nn.utils.skip_init(nn.Linear, channels, channels, **options)
        else:
            options["padding"] = tuple(k // 2 for k in kernel)
            linear = nn.utils.skip_init(CONVOLUTIONS[self.ndim], channels, channels, kernel, **options)
        parts = OrderedDict([("linear" if self.ndim == 2 else "conv", linear)])
        with torch.no_grad():
            linear.weight.zero_()
            centre = tuple(k // 2 for k in kernel) if self.ndim > 2 else ()
            diagonal = torch.arange(channels)
            linear.weight[(diagonal, diagonal, *centre)] = 1
            if linear.bias is not None:
                linear.bias.zero_()
            if self.norm is not None and moments is not None:
                norm = NORMS[self.ndim](channels, self.eps, self.momentum, device=like.device)
                mean, var = moments
                norm.to(like.dtype)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                # From the stored variance, so that rounding it cancels: (x - mean) / sqrt(var + eps) is undone exactly.
                norm.weight.copy_((norm.running_var.double() + self.eps).sqrt())
                norm.bias.copy_(norm.running_mean)
                parts["bn"] = norm
        parts["relu" if self.call.name.startswith("relu") else "act"] = self._activation()
        return nn.Sequential(parts)

    def _activation(self) -> nn.Module:
        if self.call.name == "hardtanh":
            return nn.Hardtanh(self.call.get(1, "min_val", -1.0), self.call.get(2, "max_val", 1.0))
        return nn.ReLU6() if self.call.name == "relu6" else nn.ReLU()


def _choose(trace: Trace, sites: Mapping[str, Sequence[Kernel]]) -> dict[str, Sequence[Kernel]]:
    if not sites:
        raise GrowthError("sites= is empty: name at least one module, e.g. {'layer1.*': [3]}")
    names = [name for name, _ in trace.skeleton.named_modules() if name]
    chosen: dict[str, Sequence[Kernel]] = {}
    for pattern, kernels in sites.items():
        matched = [name for name in names if matches(name.split("."), pattern.split("."))]
        if not matched:
            top = ", ".join(name for name in names if "." not in name)
            raise GrowthError(f"no module matches the site {pattern!r}; the top level is {top}")
        for name in matched:
            if name in chosen:
                raise GrowthError(f"two site patterns match {name!r}: {pattern!r} and one before it")
            chosen[name] = kernels
    # A site inside another is wrapped first, so that the names of both stay valid.
    return dict(sorted(chosen.items(), key=lambda item: -item[0].count(".")))


def _measure(
    model: nn.Module, names: list[str], calibration: Iterable[Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and (biased) variance per channel of the outputs of some modules, over all batches, in float64.

    The model normalises by the batch's own statistics meanwhile, as in training, where the new layers have to be the
    identity too; dropout is off.
    """
    model = copy.deepcopy(model).train()
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
    batches = 0
    with torch.no_grad(), NoDropout():
        for batch in calibration:
            args, kwargs = as_arguments(batch)
            model(*args, **kwargs)
            batches += 1
    if not batches:
        raise GrowthError("calibration= has no batches: pass at least one batch of training inputs")
    for name in names:
        if name not in mean:
            raise GrowthError(f"cannot measure the statistics of {name!r}: it is not called in training mode")
    return {name: (mean[name], square[name] / count[name]) for name in names}
