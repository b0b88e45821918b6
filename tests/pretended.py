"""A device that is none: tensors that say they are on it, lie in the CPU's memory and are computed there.

What a GPU would do otherwise than a CPU shows on it without one: an operation on tensors of two devices is refused, as
CUDA refuses it, and every place where the program would wait for the device is noted with file and line.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from places import ROOT
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten

# Their result is known on the host, or its shape depends on values: the host waits for it.
WAIT = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
}
WAIT |= {aten._unique2, aten.bincount, aten.item}
COPIES = {aten._to_copy, aten.copy_}
# These take indices from the host, and copy them first.
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}

_registered = False


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return Pretending.current is not None

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True


class _Module:
    """`torch.pretended`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:  # once registered it cannot be taken back: other tests of the process find none
        return Pretending.current is not None

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(self.is_available())

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        self.stream = torch.tensor([seed])

    manual_seed_all = manual_seed
    stream = torch.tensor([0])

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return self.stream

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.stream = state

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Generator(torch.Generator):
    """What cannot be registered for a device of Python's: the CPU's in its place."""

    def __new__(cls, device=None):
        return _REAL() if device is None or torch.device(device).type == NAME else _REAL(device)


_REAL = torch.Generator


def _tensor(real):
    """`torch.tensor`, which makes its result past any mode: made on the CPU and copied, as it is for a GPU."""

    def tensor(data, *, device=None, **options):
        there = device is not None and torch.device(device).type == NAME
        return real(data, **options).to(device) if there else real(data, device=device, **options)

    return tensor


def device() -> torch.device:
    global _registered
    if not _registered:
        _setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
        _registered = True
    return torch.device(NAME, 0)


class MixedDevices(Exception):
    """An operation was given tensors of both devices."""


class Tensor(torch.Tensor):
    """`inner`, on the CPU, under another device's name."""

    __slots__ = ("inner",)  # not among the attributes that somebody may have given a parameter, and that are copied

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool | None = None) -> Tensor:
        if requires_grad is not None:  # a parameter of this class is `nn.Parameter` for whoever makes another one
            return torch.nn.Parameter(inner, requires_grad)
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
        )
        self.inner = inner
        return self

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **_) -> str:
        return f"{NAME}:{self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def where() -> str:
    """The line of this project that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Pretending(TorchDispatchMode):
    """Within it, tensors can be put on the device; `waits` and `operations` count what was done there, by line."""

    current: Pretending | None = None

    def __init__(self, float64: bool = True) -> None:
        """`float64`: whether the device has it; MPS has not, and says so with this kind of error."""
        super().__init__()
        self.float64 = float64
        device()
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __enter__(self):
        self._before, Pretending.current = Pretending.current, self
        self._real = torch.Generator, torch.tensor
        # `module.to(dtype)` would else put the new values into the old parameters, past what is inside of them.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # The engine has threads for the devices that there were at its first backward pass: do without them.
        self._threads = torch.autograd.set_multithreading_enabled(False)
        self._threads.__enter__()
        torch.Generator, torch.tensor = _Generator, _tensor(torch.tensor)
        return super().__enter__()

    def __exit__(self, *exception):
        Pretending.current, (torch.Generator, torch.tensor) = self._before, self._real
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        self._threads.__exit__(None, None, None)
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def reset(self) -> None:
        self.waits.clear()
        self.operations.clear()


def computed(func, args, kwargs):
    """An operation, done on the CPU's tensors inside; noted and refused as a device of its own would have it."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Tensor)]
    here = [t for t in tensors if not isinstance(t, Tensor)]
    name, wanted = func.overloadpacket, kwargs.get("device")
    made_there = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if not there and not made_there:
        return func(*args, **kwargs)
    mode = Pretending.current
    if there and any(t.ndim for t in here) and name not in COPIES | INDEXED:
        raise MixedDevices(f"{where()}: {name} of {NAME} and {[(str(t.device), tuple(t.shape)) for t in here]}")
    crosses = name in COPIES and (bool(here) or not made_there)
    asynchronous = kwargs.get("non_blocking", False) or (name is aten.copy_ and len(args) > 2 and args[2])
    waits = name in WAIT or (crosses and not asynchronous)
    if name in INDEXED:
        indices = [t for t in args[1] if isinstance(t, torch.Tensor)]
        waits = waits or any(t.dtype in (torch.bool, torch.uint8) or not isinstance(t, Tensor) for t in indices)
    if mode is not None:
        mode.operations[str(name)] += 1
        if waits:
            mode.waits[f"{where()} {name}"] += 1

    unwrapped = pytree.tree_map(lambda value: value.inner if isinstance(value, Tensor) else value, (args, dict(kwargs)))
    inside_args, inside_kwargs = unwrapped
    inside_kwargs.pop("pin_memory", None)
    if made_there and wanted is not None:
        inside_kwargs["device"] = torch.device("cpu")
    out = func(*inside_args, **inside_kwargs)
    if name is aten.copy_ and not isinstance(args[0], Tensor):
        return args[0]
    if not made_there:
        return out
    if mode is not None and not mode.float64 and any(t.dtype == torch.float64 for t in pytree.tree_leaves(out)):
        raise TypeError(f"{where()}: {NAME} does not support float64")
    wrapped = pytree.tree_map(lambda value: Tensor(value) if isinstance(value, torch.Tensor) else value, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped
