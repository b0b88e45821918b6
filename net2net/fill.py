"""What goes into the new entries: noise on copies (sec 2.3), or a random initialisation (sec 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import suppress

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from net2net.errors import GrowthError
from net2net.growth import AxisMap, Growth, balance
from net2net.names import owner
from net2net.recording import cloned_tensor, rebuilt, tensors
from net2net.seeds import generator_for
from net2net.tensors import along, blocks_of, get_tensor, normal


@torch.no_grad()
def disturb(student: nn.Module, growth: Growth, noise: float, exact: bool, seed: int) -> None:
    """Break the symmetry of the copies, on the weights that make them or, exactly, on those that read them."""
    if not noise:
        return
    role, add = ("sums", _disturb_readers) if exact else ("makes", _disturb_copies)
    norms = growth.norms(student)
    for name, dim, axis in growth.each(student, role):
        if exact and name in growth.standardised:  # its copies differ already, by as much as they can
            continue
        add(get_tensor(student, name), dim, axis, noise, generator_for(seed, "noise", name))
    growth.rescale(student, norms)


@torch.no_grad()
def pad(student: nn.Module, growth: Growth, init: Callable[[nn.Module], None] | None, seed: int) -> None:
    """Put a random initialisation of the student wherever its teacher had no entry."""
    grown = {name for name, _ in tensors(student) if growth.axes(name)}
    fresh = initialised(student, grown, init, generator_for(seed, "init", ""))
    norms = growth.norms(student)
    for (name, tensor), (_, random) in zip(tensors(student), tensors(fresh), strict=True):
        if growth.axes(name) and random.isnan().any():
            module = student.get_submodule(owner(name))
            raise GrowthError(
                f"nothing initialises {name!r}: {type(module).__name__} has no reset_parameters() that does; "
                "pass init=, a function that initialises a module"
            )
        old = torch.ones((), dtype=torch.bool, device="cpu")
        for dim, axis in growth.axes(name).items():
            old = old & ~axis.fresh.view(along(dim, tensor.ndim))
        tensor.copy_(torch.where(old.to(tensor.device), tensor, random.to(tensor.device)))
    growth.rescale(student, norms, old=True)


@torch.no_grad()
def initialised(
    module: nn.Module, names: Container[str], init: Callable[[nn.Module], None] | None, generator: torch.Generator
) -> nn.Module:
    """A copy with a random initialisation: each module's own, then `init`. What neither sets of `names` is NaN.

    On the CPU, with its generator alone: the draw depends on no device and disturbs no generator of one.
    """
    fresh = rebuilt(module, cloned_tensor).cpu()
    for name, tensor in tensors(fresh):
        if name in names and tensor.is_floating_point():
            tensor.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        fresh.apply(_reset)
        if init is not None:
            fresh.apply(init)
    return fresh


def _disturb_copies(weight: torch.Tensor, dim: int, axis: AxisMap, noise: float, generator: torch.Generator) -> None:
    """Add element-wise normal noise to the copied filters, relative to each filter's standard deviation (sec 2.3)."""
    rows, fresh = weight.movedim(dim, 0), axis.fresh.to(weight.device)
    rows[fresh] += noise * _spread(rows[fresh]) * normal(rows[fresh], generator)


def _disturb_readers(weight: torch.Tensor, dim: int, axis: AxisMap, noise: float, generator: torch.Generator) -> None:
    """Add noise along the dimension that a layer sums over, with mean zero over the copies of each channel.

    What the layer computes stays the same as long as the copies are equal; each copy then gets a gradient of its own.
    """
    columns = weight.movedim(dim, 0)
    if not columns.numel():  # a layer of no channels
        return
    draw = normal(columns, generator)
    filters = columns.transpose(0, 1) if columns.ndim > 1 else columns[None]  # a vector is one filter
    spread = _spread(filters)
    # Filters that begin as zeros, at the end of a residual block, would give all copies one gradient for ever.
    spread = torch.where(spread > 0, spread, filters[:1].numel() ** -0.5)
    draw *= noise * (spread.transpose(0, 1) if columns.ndim > 1 else spread[0])
    columns += balance(draw, axis)


def _spread(filters: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each filter [n, …] -> [n, 1, …]; of a single weight, which has none, its size."""
    if filters[:1].numel() > 1:
        scale = torch.cat([filters[rows].flatten(1).std(dim=1, correction=0) for rows in blocks_of(filters)])
    else:
        scale = filters.flatten().abs()
    return scale.view(along(0, filters.ndim))


def _reset(module: nn.Module) -> None:
    # Attention in torch keeps its own under another name.
    for name in ("reset_parameters", "_reset_parameters"):
        if hasattr(module, name):
            with parametrize.cached():  # a weight that is computed, which the module takes for its own
                getattr(module, name)()
                drawn = module.weight if parametrize.is_parametrized(module, "weight") else None
            if drawn is not None:
                with suppress(NotImplementedError):  # a parametrization without an inverse
                    module.weight = drawn
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    weight = getattr(module, hook.name).detach()
                    getattr(module, f"{hook.name}_v").copy_(weight)
                    getattr(module, f"{hook.name}_g").copy_(torch.norm_except_dim(weight, 2, hook.dim))
            return
