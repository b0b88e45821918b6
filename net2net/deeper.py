"""Net2DeeperNet (sec 2.4): insert layers that start as the identity.

After an activation phi with phi(phi(v)) = phi(v) a layer whose linear part is the identity changes nothing; nor does a
maxout layer whose pieces all are the identity, after anything. Where the layer has batch normalisation, its scale and
offset undo the normalisation, with statistics from a forward pass over training data. Residual blocks that start as the
identity are in `net2net.residual`.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net import residual
from net2net.certificate import confirm, float64
from net2net.errors import GrowthError, whole
from net2net.head import renew
from net2net.history import remember
from net2net.outside import Outside
from net2net.recording import (
    NoDropout,
    as_arguments,
    cloned,
    cloned_tensor,
    own_copy,
    rebuilt,
    seeded,
    uncompiled,
    undisturbed,
    unwrapped,
)
from net2net.sites import Kernel, Site, choose, located, spelled
from net2net.trace import Trace, traced

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Maxout(nn.Module):
    """The largest of each `pieces` consecutive channels: [N, C·pieces, …] to [N, C, …].

    Of equal pieces one alone gets the gradient, so that pieces that start equal, as in a new layer, become different.
    """

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % self.pieces:
            raise ValueError(
                f"maxout of {self.pieces} pieces needs a multiple of {self.pieces} channels, got {x.shape[1]}"
            )
        return x.unflatten(1, (-1, self.pieces)).max(2).values  # amax would share the gradient among equal pieces

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


class Onward(nn.Sequential):
    """nn.Sequential of a block, or another module that takes more than one argument, and what was inserted beside it:
    the module and its copies (`takes_all`) get the other arguments too."""

    def __init__(self, modules: Iterable[nn.Module], takes_all: Iterable[bool]):
        super().__init__(*modules)
        self.takes_all = tuple(takes_all)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for module, all_of_it in zip(self, self.takes_all, strict=True):
            x = module(x, *args, **kwargs) if all_of_it else module(x)
        return x

    def __getattr__(self, name: str) -> Any:
        """Code around a block may look at its attributes, as nn.TransformerEncoder does: those of the first."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "takes_all":  # not there yet
                raise
            return getattr(self[self.takes_all.index(True)], name)


@undisturbed()
def deepen(
    model: nn.Module,
    example_inputs: Any,
    sites: Mapping[str, Sequence[Kernel]],
    calibration: Iterable[Any] | None = None,
    *,
    init: Callable[[nn.Module], Any] | None = None,
    new_head: int | Mapping[str, int] | None = None,
    seed: int = 0,
    verify: bool = True,
) -> nn.Module:
    """A deeper model that computes the same function: Net2DeeperNet (paper sec 2.4).

    Each site `m` becomes `nn.Sequential(m, layer, layer, …)`, one new layer per kernel: an identity convolution (an
    identity `nn.Linear` where the site's output is [N, C]), batch normalisation if the site has it right before its
    activation, and that activation. A site "before m" becomes `nn.Sequential(layer, …, m)`.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts
    sites           what to insert, by module name or glob ("*" stops at dots, "**" does not), e.g.
                    {"layer1.*": [3, (1, 3)], "before layer2.*.conv2": [Layer(5, depthwise=True)]}. `net2net.explain`
                    lists the sites of a model. Each entry is one of

                    - a kernel, an odd size or one per spatial dimension; 1 for [N, C]
                    - a `Layer`, or a dict of its fields: dilated, depthwise or maxout layers
                    - "block": a new residual block, see below

                    For a kernel the site's output must come straight from a ReLU, ReLU6 or hardtanh (functions and
                    clamps count as modules do), or be the largest of several linear pieces (maxout): then the new
                    layer is a maxout layer, too, with the identity in every piece. "before m" is for what `m` reads,
                    where no module of its own returns it: `self.m(F.relu(…))`, or one ReLU module that is called
                    several times. Dropout (of ReLU), max pooling and changes of shape may lie in between.
    calibration     batches of training inputs, to measure the batch-norm statistics on; needed if the sites have batch
                    normalisation. Each is as `example_inputs`, and may have more behind, e.g. the labels of a
                    `DataLoader`; it is put where the model is
    init            for new residual blocks: applied to each of their modules, as by `nn.Module.apply`, after the
                    module's own `reset_parameters` where it has one
    new_head        as in `widen`: outputs for another number of classes
    seed            of the new residual blocks' and the new head's weights; nothing else is random
    verify          compare both models on the example inputs and raise if the function has moved further than rounding
                    explains

    "block" follows a residual block, a module that computes x + f(x) or relu(x + f(x)) on one shape, by another of its
    kind, freshly initialised except that f ends in zeros. These are the last normalisation's weight and bias where f
    ends in one (through layers without bias, gates and smooth activations), else a layer scale, else the last layer's.
    So it is in pre-activation nets with ReLU, f = conv(relu(bn(…))): there a normalisation that starts at zero would
    never get a gradient. Every addition to the shortcut counts (attention, then an MLP).

    A new layer is as wide as the one below it. Widen it for more (the last paragraph of sec 2.4):

        deep = deepen(model, x, {"layer1": [3]}, calibration)
        wide = widen(deep, x, widths={"layer1.1.conv": 96})

    Returns a new model of the same class on the same device. The function is preserved exactly in evaluation mode, and
    in training mode on a single calibration batch up to the precision of its statistics. A block preserves it in both.
    No noise is needed. An optimizer of the old model does not know the new parameters: see `grow_optimizer`, or build a
    new one. Raises `GrowthError` for a site that cannot be deepened, with the reason.
    """
    if init is not None and not callable(init):
        raise GrowthError(f"init= is a {type(init).__name__}: expected a function that initialises a module")
    seed, model = whole(seed, "seed="), unwrapped(model)
    trace = traced(model, example_inputs, name_unknown=False)
    plan = {key: Site(trace, key, layers).plan for key, layers in choose(trace, sites).items()}
    normalised = [key for key, layers in plan.items() if any(layer.get("norm") for layer in layers)]
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if normalised:
        if calibration is None:
            raise GrowthError(
                f"the site {normalised[0]!r} has batch normalisation: pass calibration=, batches of training inputs"
            )
        if isinstance(calibration, (torch.Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
            raise GrowthError(f"calibration= is one {type(calibration).__name__}: pass batches, e.g. [batch]")
        moments = _measure(model, normalised, calibration, example_inputs)
    student = cloned(model)
    added = insert(student, plan, moments)
    for key, layers in plan.items():
        for k, layer in enumerate(layers):
            if "block" in layer:
                residual.initialise(added[key][k], layer["block"], key, k, seed, init)
    remember(student, {"op": "deepen", "seed": seed, "sites": plan})
    new = [(key, layer) for key, layers in added.items() for layer in layers]
    grown = _reached(student, example_inputs, new, trace.real)
    if verify:
        confirm(model, student, example_inputs)
    return student if new_head is None else renew(student, grown, example_inputs, new_head, seed)


def insert(
    model: nn.Module,
    sites: Mapping[str, Sequence[Mapping[str, Any]]],
    moments: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> dict[str, list[nn.Module]]:
    """Put layers into `model` itself, in the order of `sites`; returns the new modules of each site.

    sites    as in the record of `deepen`, `history(student)[i]["sites"]`: for each "name" or "before name" a list of
             {"kernel", "dilation", "depthwise", "maxout", "channels", "norm", "activation"}, or of {"block": [names of
             parameters that are zero]}. Plain data that says all about the architecture: applied to a new model of the
             teacher's architecture it gives the student's, without inputs or a trace.
    moments  mean and variance of each channel at the sites with batch normalisation; without, its statistics are 0 and
             1, and it is the identity in evaluation mode alone

    Where the model's batch norms are synchronised between processes, so are the new ones. New blocks are copies, with
    the weights of the block before them except for the zeros: the identity, too.
    """
    moments = moments or {}
    # Before anything is inserted into what they copy.
    copies = {
        key: [_again(model.get_submodule(key)) if "block" in layer else None for layer in layers]
        for key, layers in sites.items()
        if any("block" in layer for layer in layers)
    }
    synchronised = [m.process_group for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    added: dict[str, list[nn.Module]] = {}
    for key, layers in sites.items():
        before, name = located(key)
        old = model.get_submodule(name)
        like = next(old.parameters(), next(model.parameters(), torch.empty(0)))
        new: list[nn.Module] = []
        for k, layer in enumerate(layers):
            if "block" in layer:
                residual.clear(copies[key][k], layer["block"])
            made = copies[key][k] if "block" in layer else _identity(layer, like, moments.get(key))
            if synchronised and "block" not in layer:
                made = nn.SyncBatchNorm.convert_sync_batchnorm(made, synchronised[0])
            new.append(made)
        # A module can have several names: put the deeper one under each of them.
        places = [(m, own) for m in model.modules() for own, child in m._modules.items() if child is old]
        layout = _memory_format(model)
        for layer in new:
            layer.train(old.training)
            if layout is not None:
                layer.to(memory_format=layout)
        parts, alike = [old, *new], [True, *("block" in layer for layer in layers)]
        if before:
            parts, alike = [*new, old], [*alike[1:], True]
        onward = _takes_more(old) or any("block" in layer for layer in layers)
        grown = Onward(parts, alike) if onward else nn.Sequential(*parts)
        grown.training = old.training  # and what is inside `old` keeps its own
        for parent, own in places:
            parent._modules[own] = grown
        added[key] = new
    return added


def _takes_more(module: nn.Module) -> bool:
    """Whether it may be called with more than one argument."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return len(parameters) > 1 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters)


def _again(block: nn.Module) -> nn.Module:
    return rebuilt(block, lambda name, tensor: tensor.detach().clone())


def _memory_format(model: nn.Module) -> torch.memory_format | None:
    """Channels last where a model's kernels are; kernels of size 1 do not tell."""
    for weight in model.parameters():
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
        if layout is not None and weight.is_contiguous() != weight.is_contiguous(memory_format=layout):
            return None if weight.is_contiguous() else layout
    return None


def _identity(
    layer: Mapping[str, Any], like: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor] | None
) -> nn.Module:
    """One layer that is the identity on what has passed its activation; `like` gives device and precision."""
    channels, kernel, pieces = layer["channels"], tuple(layer["kernel"]), max(layer["maxout"], 1)
    options = {"bias": layer["norm"] is None, "device": like.device, "dtype": like.dtype}
    outputs = channels * pieces
    linear: nn.Module
    # Without their own random initialisation: it would be overwritten, and move the caller's generator on.
    if not kernel:
        linear = nn.utils.skip_init(nn.Linear, channels, outputs, **options)
    else:
        dilation = tuple(layer["dilation"])
        options["padding"] = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
        options |= {"dilation": dilation, "groups": channels if layer["depthwise"] else 1}
        linear = nn.utils.skip_init(CONVOLUTIONS[len(kernel)], channels, outputs, kernel, **options)
    parts = OrderedDict([("conv" if kernel else "linear", linear)])
    with torch.no_grad():
        linear.weight.zero_()
        centre = tuple(k // 2 for k in kernel)
        rows = torch.arange(outputs, device="cpu")  # the pieces of a channel lie together
        columns = torch.zeros_like(rows) if layer["depthwise"] else rows // pieces
        linear.weight[(rows, columns, *centre)] = 1
        if linear.bias is not None:
            linear.bias.zero_()
        if layer["norm"] is not None:
            eps, momentum = layer["norm"]["eps"], layer["norm"]["momentum"]
            norm = NORMS[len(kernel)](outputs, eps, momentum, device=like.device)
            norm.to(like.dtype)
            if moments is not None:
                norm.running_mean.copy_(moments[0].repeat_interleave(pieces))
                norm.running_var.copy_(moments[1].repeat_interleave(pieces))
            # From the stored variance, so that rounding it cancels: (x - mean) / sqrt(var + eps) is undone exactly.
            norm.weight.copy_((float64(norm.running_var) + eps).sqrt())
            norm.bias.copy_(norm.running_mean)
            parts["bn"] = norm
    if layer["maxout"]:
        parts["maxout"] = Maxout(pieces)
    elif isinstance(layer["activation"], str):
        parts["relu"] = nn.ReLU6() if layer["activation"] == "relu6" else nn.ReLU()
    else:
        parts["act"] = nn.Hardtanh(*layer["activation"][1:])
    return nn.Sequential(parts)


def _reached(student: nn.Module, example_inputs: Any, added: list[tuple[str, nn.Module]], real: bool) -> Trace:
    """Refuse a student whose forward pass goes around the new layers, e.g. by reaching into the module at the site.
    Returns its trace."""
    reason = "code outside it uses it otherwise than by calling it, e.g. asks for its class"
    names = {module: name for name, module in student.named_modules()}
    try:
        trace = Trace(student, example_inputs, strict=False, real=real)
    except GrowthError as error:
        lost = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, AttributeError) else None
        for site, layer in added if lost else ():
            grown = student.get_submodule(names[layer].rpartition(".")[0])
            if hasattr(grown[-1 if located(site)[0] else 0], lost) and not hasattr(grown, lost):
                raise GrowthError(
                    f"cannot deepen {spelled(site)}: code outside it reads its attribute {lost!r}, which the "
                    f"nn.Sequential in its place does not have; a site at another module, e.g. 'before' the next one, "
                    "leaves this one as it is"
                ) from error
        said = str(error).partition(" (check the example inputs")[0]  # on which the teacher ran
        raise GrowthError(
            f"the deeper model does not run, as if {reason.replace('it', 'a site', 1)}: {said}"
        ) from error
    for site, layer in added:
        if len(trace.returned.get(names[layer], [])) != 1:
            raise GrowthError(
                f"cannot deepen {spelled(site)}: the forward pass does not reach the new layers ({reason})"
            )
    return trace


def _taken(batch: Any, example_inputs: Any, number: int) -> Any:
    """What the model is given of a batch: what is in the place of the example inputs; labels may follow."""
    wanted = example_inputs if isinstance(example_inputs, (tuple, list, dict)) else (example_inputs,)
    if isinstance(wanted, dict):
        missing = [key for key in wanted if key not in batch] if isinstance(batch, Mapping) else list(wanted)
        if missing:
            found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise GrowthError(
                f"batch {number} of calibration= has no {missing[0]!r}, which the example inputs have; it has {found}"
            )
        return {key: batch[key] for key in wanted}
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    first = parts[0] if parts else None
    if len(parts) < len(wanted) or isinstance(first, torch.Tensor) != isinstance(wanted[0], torch.Tensor):
        found = f"{len(parts)} of them" if isinstance(first, torch.Tensor) else f"a {type(batch).__name__}"
        raise GrowthError(
            f"batch {number} of calibration= is not as the example inputs, {len(wanted)} argument"
            f"{'s' if len(wanted) > 1 else ''} of the model: it is {found}"
        )
    return parts[: len(wanted)]


def _measure(
    model: nn.Module, keys: list[str], calibration: Iterable[Any], example_inputs: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and (biased) variance per channel at some sites, over all batches, in float64.

    The model normalises by the batch's own statistics meanwhile, as in training, where the new layers have to be the
    identity too; dropout is off.
    """
    model = rebuilt(model, cloned_tensor).train()
    devices = list(dict.fromkeys(p.device for p in model.parameters())) or [torch.device("cpu")]
    outside = Outside(model)  # before there are hooks of ours
    count = dict.fromkeys(keys, 0)
    mean: dict[str, torch.Tensor] = {}
    square: dict[str, torch.Tensor] = {}  # summed squared deviations from the mean

    def see(key: str, seen: torch.Tensor) -> None:
        x = float64(seen.detach()).transpose(0, 1).flatten(1)
        n, m = x.shape[1], x.mean(1)
        s = (x - m[:, None]).square().sum(1)
        if key not in mean:
            count[key], mean[key], square[key] = n, m, s
            return
        total = count[key] + n
        delta = m - mean[key]
        mean[key] = mean[key] + delta * (n / total)
        square[key] = square[key] + s + delta.square() * (count[key] * n / total)
        count[key] = total

    def look(key: str) -> None:
        before, name = located(key)
        module = model.get_submodule(name)
        if before:
            module.register_forward_pre_hook(lambda module, inputs: see(key, inputs[0]))
        else:
            module.register_forward_hook(lambda module, inputs, output: see(key, output))

    for key in keys:
        look(key)
    batches = 0
    for batch in calibration:
        args, kwargs = as_arguments(own_copy(_taken(batch, example_inputs, batches)))
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(devices[0]), (args, kwargs))
        try:
            with torch.no_grad(), uncompiled(), NoDropout(), seeded(devices):
                model(*args, **kwargs)
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")
            raise GrowthError(
                f"the model does not run on batch {batches} of calibration=: {type(error).__name__}: {said}"
            ) from error
        finally:
            outside.restore()
        batches += 1
    if not batches:
        raise GrowthError("calibration= has no batches: pass at least one batch of training inputs")
    for key in keys:
        if key not in mean:
            name = located(key)[1]
            raise GrowthError(f"cannot measure the statistics of {name!r}: it is not called in training mode")
        if not (mean[key].isfinite().all() and square[key].isfinite().all()):
            raise GrowthError(
                f"the activations of {located(key)[1]!r} are not finite on calibration=: look for NaN and infinity in "
                "its batches and in the model's weights"
            )
    return {key: (mean[key], square[key] / count[key]) for key in keys}
