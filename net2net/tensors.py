"""What is done with single tensors: made in another shape, found by name, gone through in parts, drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import inf

import torch
from torch import nn

from net2net.errors import GrowthError


def empty_like(tensor: torch.Tensor, shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
    """An empty tensor of another shape, its dimensions in the same order in memory, e.g. channels last."""
    if tensor.ndim < 3 and tensor.is_contiguous():
        return tensor.new_empty(shape, device=device)
    natural = list(range(tensor.ndim))
    orders = [natural]
    if tensor.ndim in (4, 5):
        orders.append([0, *natural[2:], 1])  # by the strides themselves: a kernel of size 1 is contiguous in both
    orders.append(sorted(natural, key=lambda dim: -tensor.stride(dim)))
    order = next((each for each in orders if _strides(tensor.shape, each) == tensor.stride()), orders[-1])
    if order is natural:
        return tensor.new_empty(shape, device=device)
    return tensor.new_empty_strided(shape, _strides(shape, order), device=device)


def _strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor whose dimensions lie in the given order, the last one's entries side by side."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def get_tensor(model: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer by name."""
    module, _, key = name.rpartition(".")
    return getattr(model.get_submodule(module), key)


def check_memory(device: torch.device, size: int, why: str) -> None:
    """Refuse a student of so many bytes that the device could not hold it even alone: a system can kill what tries."""
    memory = inf
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise GrowthError(
            f"the student would need {size / 1e9:.4g} GB on {str(device)!r}, which has {memory / 1e9:.4g}: {why}; ask "
            "for less"
        )


BLOCK = 2**18  # numbers: what is made beside a large tensor is made for so many of them at a time


def blocks_of(tensor: torch.Tensor) -> Iterator[slice]:
    """Slices along the first dimension, of about `BLOCK` numbers each."""
    step = max(1, BLOCK // max(1, tensor[:1].numel()))
    return (slice(at, at + step) for at in range(0, len(tensor), step))


def normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Drawn on the CPU in float64, whatever it is for: the numbers depend on the generator alone, and on no default
    device."""
    drawn = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    flat, at = drawn.view(-1), 0
    while at < len(flat):
        end = (
            len(flat) if len(flat) - at < 2 * BLOCK else at + BLOCK
        )  # PyTorch draws sixteen together, or fewer at the end
        flat[at:end] = torch.randn(end - at, generator=generator, dtype=torch.float64, device="cpu")
        at = end
    return drawn.to(like.device)


def along(dim: int, ndim: int) -> list[int]:
    """The shape in which a vector lies along dimension `dim` of a tensor with `ndim` dimensions."""
    return [-1 if d == dim else 1 for d in range(ndim)]
