"""Is it still the same function? Teacher and student side by side, in float64."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError
from net2net.recording import NoDropout, as_arguments


class Certificate(NamedTuple):
    """How far a student's outputs are from its teacher's.

    max_abs         largest absolute difference of any output
    relative        `max_abs` over the largest absolute output of the teacher
    top1_agreement  fraction of rows in which both have the same largest entry (last dimension of the first output)
    mode            "eval" or "train": how batch normalisation was run
    dtype           in which precision
    """

    max_abs: float
    relative: float
    top1_agreement: float
    mode: str
    dtype: str

    def __str__(self) -> str:
        return (
            f"max-abs error {self.max_abs:.2e}, relative {self.relative:.2e}, "
            f"top-1 agreement {self.top1_agreement:.2%} ({self.mode} mode, {self.dtype})"
        )


def verify(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Any,
    *,
    train: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Certificate:
    """Compare two models on the same inputs.

    inputs  a tensor, a tuple of arguments or a dict of keyword arguments, with at least one example
    train   normalise by the statistics of the batch, as in training; dropout stays off in both modes
    dtype   precision of the comparison; both models are converted

    Works on copies: neither model changes, nor do its batch-norm statistics. Raises `GrowthError` if the outputs
    have different shapes.
    """
    ours, theirs = (_outputs(model, inputs, train, dtype) for model in (teacher, student))
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise GrowthError(f"teacher and student return different shapes: {shapes[0]} and {shapes[1]}")
    if not any(t.numel() for t in ours):
        raise GrowthError("the models return no numbers to compare: give inputs with at least one example")
    # As one vector, so that a NaN anywhere makes the errors NaN.
    a, b = (torch.cat([t.flatten().double() for t in outputs]) for outputs in (ours, theirs))
    max_abs, scale = float((a - b).abs().max()), float(a.abs().max())
    relative = max_abs / scale if scale else (0.0 if max_abs == 0 else float("inf"))
    a, b = ours[0].double(), theirs[0].double()
    agreement = float((a.argmax(-1) == b.argmax(-1)).double().mean()) if a.ndim else float(a == b)
    return Certificate(max_abs, relative, agreement, "train" if train else "eval", str(dtype).removeprefix("torch."))


# How far rounding may move the outputs of a deep network, relative to the largest, by the precision of its weights.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def confirm(teacher: nn.Module, student: nn.Module, example_inputs: Any, train: bool = False) -> None:
    """Raise `GrowthError`, with the numbers, if a student is further from its teacher than rounding explains; with
    `train` in training mode, too.

    In float32 first where the model is, which is fast; float64 decides where that is not enough.
    """
    tensors = [*pytree.tree_leaves(example_inputs), *teacher.parameters()]
    if any(t.is_meta for t in tensors if isinstance(t, torch.Tensor)):
        raise GrowthError("what is on the meta device has no values to verify with: pass real ones, or verify=False")
    dtypes = [p.dtype for p in teacher.parameters() if p.dtype in ROUNDING] or [torch.float32]
    own = max(dtypes, key=ROUNDING.__getitem__)
    first = own if own is torch.float32 else torch.float64
    for mode in (False, True) if train else (False,):
        certificate = verify(teacher, student, example_inputs, train=mode, dtype=first)
        if not certificate.relative <= ROUNDING[own]:
            certificate = verify(teacher, student, example_inputs, train=mode)
        if not certificate.relative <= ROUNDING[own]:
            raise GrowthError(
                f"the grown model does not compute its teacher's function: {certificate}; expected a relative error of "
                f"at most {ROUNDING[own]:g}. Please report the model; verify=False returns it all the same"
            )


def _outputs(model: nn.Module, inputs: Any, train: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    model = copy.deepcopy(model).to(dtype).train(train)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = as_arguments(
        pytree.tree_map_only(torch.Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else None), inputs)
    )
    # The same random numbers for both, where something else than dropout draws them, e.g. stochastic depth.
    with torch.no_grad(), NoDropout(), torch.random.fork_rng(devices={device} if device.type == "cuda" else ()):
        torch.manual_seed(0)
        output = model(*args, **kwargs)
    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
