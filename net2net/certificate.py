"""Is it still the same function? Teacher and student side by side, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from net2net.errors import DoesNotRun, GrowthError
from net2net.kept import MODULES_OWN
from net2net.outside import left_alone
from net2net.recording import (
    NoDropout,
    as_arguments,
    cloned_tensor,
    first_line,
    function_name,
    kind_of,
    local,
    output_tensors,
    own_copy,
    rebuilt,
    seeded,
    taken_for,
    uncompiled,
    undisturbed,
    unwrapped,
)


class Certificate(NamedTuple):
    """How far a student's outputs are from its teacher's.

    max_abs         largest absolute difference of any output
    relative        the largest, of any output tensor, of its largest difference over its own largest absolute number of
                    the teacher; of a tensor whose numbers are all tiny beside the other outputs' over 1e-4 of theirs.
                    Over 1e-4 at least: a last layer that begins with zeros makes nothing but rounding.
                    Numbers that are the same in both and a million times larger than all that differ, e.g. a mask of
                    -1e9 or -inf, say nothing of the rest and are left out
    top1_agreement  fraction of rows in which both have the same largest entry (last dimension of the first output)
    mode            "eval" or "train": how batch normalisation was run
    dtype           in which precision: that asked for, or the models' own if their code does not run in that
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


@undisturbed()
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
    dtype   precision of the comparison; both models are converted, and what their code converts to float32 and such;
            on a device without float64 (MPS) their own, which the certificate names

    Works on copies: neither the models nor the inputs change, nor do batch-norm statistics or the streams of random
    numbers. Raises `GrowthError` if a model does not run on the inputs, or if the outputs have different shapes.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise GrowthError(f"verify compares in a floating-point precision, e.g. torch.float64, and got dtype={dtype!r}")
    return _compared(unwrapped(teacher), unwrapped(student), inputs, train, dtype)


def _compared(
    teacher: nn.Module, student: nn.Module, inputs: Any, train: bool, dtype: torch.dtype, shared: bool = False
) -> Certificate:
    """`shared`: neither writes into its parameters, so that they need no copy."""
    tensors = (*pytree.tree_leaves(inputs), *teacher.parameters(), *student.parameters())
    if any(t.is_meta for t in tensors if isinstance(t, torch.Tensor)):
        raise GrowthError("what is on the meta device has no values to verify with: pass real ones, or verify=False")
    own = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), dtype)
    ours, theirs, dtype = _both(teacher, student, inputs, train, dtype, own, shared)
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise GrowthError(f"teacher and student return different shapes: {shapes[0]} and {shapes[1]}")
    if not any(t.numel() for t in ours):
        raise GrowthError("the models return no numbers to compare: give inputs with at least one example")
    pairs = [(float64(a), float64(b)) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    errors = [_difference(a.flatten(), b.flatten()) for a, b in pairs]
    largest = max(scale for _, scale in errors)
    relative = max((error / max(scale, largest * SMALL, TINY) for error, scale in errors), key=_nan_last)
    max_abs = max((error for error, _ in errors), key=_nan_last)
    a, b = pairs[0]
    agreement = float((a.argmax(-1) == b.argmax(-1)).double().mean()) if a.ndim else float(a == b)
    return Certificate(max_abs, relative, agreement, "train" if train else "eval", str(dtype).removeprefix("torch."))


TINY = 1e-4  # outputs below this can be what rounding leaves of larger numbers
SMALL = 1e-4  # an output is measured by its own numbers unless they are so small a part of all outputs'


def _difference(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two vectors, NaN if any is, and the number that it is to be seen beside."""
    differ = a != b
    if not differ.any():
        finite = a[a.isfinite()].abs()
        return 0.0, float(finite.max()) if len(finite) else 0.0
    error = float((a - b)[differ].abs().max())
    own = float(a[differ].abs().max())
    beside = a.abs()[a.abs() <= own * 1e6] if own else a.abs()[a.isfinite()]
    return error, float(beside.max()) if len(beside) else own


def _nan_last(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _both(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Any,
    train: bool,
    dtype: torch.dtype,
    own: torch.dtype,
    shared: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.dtype]:
    """The outputs of two models, in one precision or, where that fails, in their own; and the precision."""
    for attempt in (dtype, None):
        which = "teacher"
        try:
            ours = _outputs(teacher, inputs, train, attempt, shared)
            which = "student"
            theirs = _outputs(student, inputs, train, attempt, shared)
            return ours, theirs, own if attempt is None else attempt
        except GrowthError:
            raise
        except Exception as error:
            if attempt is None or own is dtype:
                kind = DoesNotRun if which == "teacher" else GrowthError
                hint = taken_for(teacher, inputs) if which == "teacher" else _left_in(student)
                raise kind(
                    f"the {which} does not run on these inputs: {type(error).__name__}: {first_line(error)}{hint}"
                ) from error
    raise AssertionError  # the loop returns or raises


def _left_in(model: nn.Module) -> str:
    """Where earlier passes can have left tensors, which are as wide as a teacher's: a hint, or ""."""
    left = [
        repr(key) + (f" of module {name!r}" if name else "")
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in MODULES_OWN and any(isinstance(each, torch.Tensor) for each in pytree.tree_leaves(value))
    ]
    return f"; if {', '.join(left[:4])} keeps tensors of earlier passes, empty that first" if left else ""


def has_float64(device: torch.device) -> bool:
    """MPS has not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """In float64: where the tensor is, or on the CPU if its device has none."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


# How far rounding may move the outputs of a deep network, relative to the largest, by the precision of its weights.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def confirm(
    teacher: nn.Module,
    student: nn.Module,
    example_inputs: Any,
    train: bool = False,
    again: Callable[[nn.Module], nn.Module] | None = None,
    shared: bool = False,
) -> None:
    """Raise `GrowthError`, with the numbers, if a student is further from its teacher than rounding explains; with
    `train` in training mode, too. They are compared without copies of their parameters if these can be `shared`.

    In float32 first where the model is, which is fast; float64 decides where that is not enough and the device has it
    (MPS has not: there the tolerance of float32 decides). The weights of a
    student in float32 are rounded themselves, which can move the function of an ill-conditioned network: `again`, which
    grows the teacher once more, is then given it in float64, and there is a warning if that is right. In half precision
    it always is: rounding explains there what faults of some percent would do, too.
    """
    dtypes = [p.dtype for p in teacher.parameters() if p.dtype in ROUNDING] or [torch.float32]
    own = max(dtypes, key=ROUNDING.__getitem__)
    first = own if own is torch.float32 else torch.float64
    lacking = next((p.device for p in teacher.parameters() if not has_float64(p.device)), None)
    for mode in (False, True) if train else (False,):
        try:
            certificate = _compared(teacher, student, example_inputs, mode, first, shared)
        except DoesNotRun:
            if mode:  # detection nets want targets, batch norm more than one image: there is nothing to compare
                continue
            raise
        if not certificate.relative <= ROUNDING[own] and first is not torch.float64 and lacking is None:
            certificate = verify(teacher, student, example_inputs, train=mode)
        close = certificate.relative <= ROUNDING[own]
        if close and ROUNDING[own] < ROUNDING[torch.float16]:
            continue
        # What rounding weights to half precision explains is more than many faults: float64 decides there, too.
        exact = None
        if again is not None and own is not torch.float64 and lacking is None:
            precise = rebuilt(teacher, cloned_tensor).double()
            exact = verify(precise, again(precise), example_inputs, train=mode)
        precisely = exact is not None and exact.dtype == "float64"  # its code may not run in that
        right = precisely and exact.relative <= ROUNDING[torch.float64]
        if close and (right or not precisely):
            continue
        if right:
            kind = str(own).removeprefix("torch.")
            warnings.warn(
                f"rounding its weights to {kind} moves this ill-conditioned network's function by a relative "
                f"{certificate.relative:.1e} ({certificate.mode} mode); grown in float64 it is its teacher's, to "
                f"{exact.relative:.1e}",
                stacklevel=3,
            )
            continue
        if math.isnan(certificate.relative) and math.isnan(
            _compared(teacher, teacher, example_inputs, mode, first).relative
        ):
            raise GrowthError(
                f"the model's own outputs are not finite ({certificate.mode} mode), which no student can be compared "
                "with: look for NaN and infinity in its weights and in the inputs"
            )
        hint = f" {lacking.type} has no float64: on the CPU it is compared in that." if lacking else ""
        raise GrowthError(
            f"the grown model does not compute its teacher's function: {certificate}; expected a relative error of "
            f"at most {ROUNDING[own]:g}.{hint} Please report the model; verify=False returns it all the same"
        )


# What converts a tensor to a precision that its name says.
CASTS = ("float", "double", "half", "bfloat16")


class Precision(TorchFunctionMode):
    """Turns every conversion to a floating-point type, and every new tensor of one, into one of a given type."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> Precision:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._default)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function_name(func) in CASTS and isinstance(args[0], torch.Tensor):
            return args[0].to(self.dtype)
        if function_name(func) in ("cfloat", "cdouble"):
            return args[0].to(as_precise(torch.complex64, self.dtype))
        if function_name(func) == "type" and len(args) == 2:
            args = (args[0], kind_of(args[1]))
        args = tuple(self._converted(value) for value in args)
        return func(*args, **{key: self._converted(value) for key, value in (kwargs or {}).items()})

    def _converted(self, value: Any) -> Any:
        return as_precise(value, self.dtype) if isinstance(value, torch.dtype) else value


def as_precise(kind: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """A type of numbers in the precision of another, complex ones too; whole numbers stay."""
    if kind.is_complex:
        return torch.complex128 if dtype is torch.float64 else torch.complex64
    return dtype if kind.is_floating_point else kind


def _outputs(model: nn.Module, inputs: Any, train: bool, dtype: torch.dtype | None, shared: bool) -> list[torch.Tensor]:
    """What a copy of the model (with its parameters, if they are `shared`) returns for a copy of the inputs; in its own
    precision if `dtype` is None.
    """

    def copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
        keep = shared and isinstance(tensor, nn.Parameter) and not tensor.is_inference()
        return tensor.detach() if keep else cloned_tensor(name, tensor)

    model = local(rebuilt(model, copied)).train(bool(train))
    if dtype is not None:
        model._apply(lambda t: t.to(as_precise(t.dtype, dtype)))  # `to` would drop imaginary parts
    devices = list(dict.fromkeys(p.device for p in model.parameters())) or [torch.device("cpu")]
    args, kwargs = as_arguments(
        pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(devices[0], as_precise(t.dtype, dtype) if dtype else None), own_copy(inputs)
        )
    )
    # The same random numbers for both, where something else than dropout draws them, e.g. stochastic depth.
    precision = nullcontext() if dtype is None else Precision(dtype)
    with torch.no_grad(), left_alone(model), uncompiled(), NoDropout(), precision, seeded(devices):
        output = model(*args, **kwargs)
    return [_plain(tensor.detach()) for _, tensor in output_tensors(output)]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """All numbers of a tensor, which can be complex, sparse or quantised."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
