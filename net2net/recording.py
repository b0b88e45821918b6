"""One forward pass on the meta device (no data, no computation), written down operation by operation."""

from __future__ import annotations

import copy
import gc
import inspect
import random
import sys
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from numbers import Number
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError, UnsupportedOperation
from net2net.outside import Outside
from net2net.widths import fields, shallow

# Operations whose numbers are sizes: a grown model passes other ones. What they make is compared by its shape.
SIZED = """
zeros ones empty new new_empty new_zeros new_ones view reshape reshape_as view_as unflatten split split_with_sizes chunk
narrow expand broadcast_to repeat tile __getitem__
"""
SIZED = frozenset(SIZED.split())
# Arguments that grow with the model in other operations: where they are, by position and keyword.
GROWING = {
    **{f"{kind}{n}d": {6: "groups"} for kind in ("conv", "conv_transpose") for n in (1, 2, 3)},
    "layer_norm": {1: "normalized_shape"},
    "rms_norm": {1: "normalized_shape"},
    "group_norm": {1: "num_groups"},
    "affine_grid": {1: "size"},
    **{f"max_unpool{n}d": {5: "output_size"} for n in (1, 2, 3)},
    "new_full": {1: "size"},
    "full": {0: "size"},
    "multi_head_attention_forward": {3: "embed_dim_to_check", 4: "num_heads"},
}


@dataclass(slots=True, eq=False)
class Call:
    """One operation of a forward pass: what was called, where, on what.

    numbers  that it was given, but for those that GROWING names
    counts   numbers that may grow along: starts of slices, the groups of a normalisation
    sources  what made each tensor that it was given: (which call, which of its results), or a name
    inputs, axes, counted   what a `Trace` finds out: the tensors that it was given, the axes of its results, and the
             axes that its counts run along
    """

    name: str
    args: tuple
    kwargs: dict
    module: str
    out: Any = None
    numbers: list[Any] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    axes: list[list[Any]] = field(default_factory=list)
    counted: list[Any] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)

    def get(self, position: int | None, keyword: str, default: Any = None) -> Any:
        """An argument by position (None: keyword only) or keyword."""
        if position is not None and position < len(self.args):
            return self.args[position]
        return self.kwargs.get(keyword, default)

    @property
    def where(self) -> str:
        return f"{self.name!r} in {place(self.module)}"

    def unsupported(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"cannot follow the channels through {self.where}: {why}")


class Recording(TorchFunctionMode):
    """What a model does in one forward pass: `calls`, operation by operation. `skeleton`: it, on the meta device; with
    `real` a copy of it that is run for real, where the meta device cannot follow: code that looks at numbers.

    After `run`, `calls` ends with a call named "return", whose arguments are the model's outputs.
    """

    def __init__(self, skeleton: nn.Module, real: bool = False, outside: Outside | None = None):
        super().__init__()
        self.skeleton = skeleton
        self.real = real
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.names: dict[int, str] = {}
        for name, tensor in tensors(skeleton):
            self.names.setdefault(id(tensor), name)
        self.modules = {id(module): name for name, module in submodules(skeleton)}
        self.calls: list[Call] = []
        self.outside = outside or Outside(skeleton)  # the same for a copy, which has the same code
        self._sources: dict[int, Any] = {}
        self._stack: list[str] = []
        self._inputs: list[Any] = []  # keeps them alive: tensors are known by their id

    @property
    def module(self) -> str:
        """The name of the module whose forward is running."""
        return self._stack[-1] if self._stack else ""

    def run(self, example_inputs: Any, training: bool = False) -> list[Call]:
        """Run the skeleton; `GrowthError` where that fails, with `calls` until then."""
        args, kwargs = as_arguments(self._own(example_inputs))
        self.training = training
        self._stack.clear()
        self._sources.clear()
        self.calls = []
        for k, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
            if isinstance(leaf, torch.Tensor):
                self._inputs.append(leaf)
                self._sources[id(leaf)] = f"input {k}"
                self.input(leaf)
        hooks = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave),
        ]
        try:
            self.skeleton.train(training)
            devices = {p.device for p in self.skeleton.parameters()} if self.real else ()
            with torch.no_grad(), seeded(devices), followed_functions(), uncompiled(), self:
                output = self.skeleton(*args, **kwargs)
            self._return(output)
        except GrowthError:
            raise
        except Exception as error:
            where = place(self.module) + (" in training mode" if training else "")
            raise GrowthError(
                f"the forward pass{'' if self.real else ' on the meta device'} failed in {where}: "
                f"{type(error).__name__}: {first_line(error)} "
                f"(check the example inputs{taken_for(self.skeleton, example_inputs)})"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            self.outside.restore()
        return self.calls

    def _own(self, example_inputs: Any) -> Any:
        if not self.real:
            return pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="meta"), example_inputs)
        device = next((p.device for p in self.skeleton.parameters()), torch.device("cpu"))
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), own_copy(example_inputs))

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(self.modules.get(id(module), self.module))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    def _return(self, output: Any) -> None:
        call = Call("return", (output,), {}, "")
        for _, tensor in output_tensors(output):
            call.shapes.append(tuple(tensor.shape))
            call.sources.append(self._source(tensor))
        if not call.shapes:
            raise GrowthError("the model returns no tensor: there is no function to preserve")
        self.calls.append(call)

    def _source(self, tensor: torch.Tensor) -> Any:
        return self.names.get(id(tensor)) or self._sources.get(id(tensor))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name in ("requires_grad", "__set__"):
            grant_gradients(func, args, kwargs)
        given: list[torch.Tensor] = []
        numbers: list[Any] = []
        hidden = GROWING.get(name, {})
        for k, value in enumerate(args):
            if k not in hidden:
                _gather(value, given, numbers)
        for key, value in kwargs.items():
            if key not in hidden.values():
                _gather(value, given, numbers)
        if not given:
            with nullcontext() if self.real else torch.device("meta"):
                out = func(*args, **kwargs)
        results: list[torch.Tensor] = []
        call = Call(name, args, kwargs, self.module, numbers=numbers)
        if given:
            foreign = id(given[0]) not in self._sources and id(given[0]) not in self.names
            if foreign and not given[0].is_meta and func.__name__.endswith("_") and not func.__name__.endswith("__"):
                raise GrowthError(
                    f"{call.where} changes a tensor that is none of the model's parameters or buffers, nor made in a "
                    "way that can be followed: make it with torch.empty, not torch.FloatTensor, or register_buffer it"
                )
            self.before(call, given)  # operations in place change what is known of their argument
            out = self._run(name, func, args, kwargs, given)
        if isinstance(out, torch.Tensor):
            results.append(out)
        elif isinstance(out, (tuple, list)):
            _gather(out, results, [])
        if any(tensor.is_nested for tensor in results):
            raise GrowthError(f"cannot follow the channels through {call.where}: a nested tensor has no shape")
        call.out = out
        if not results:
            if given and not is_about(name):
                self.revealed(call)
            if name in ("__setitem__", "__set__"):
                call.counts = _counts(call)
                call.sources = [self._source(t) for t in given]
                self.overwritten(call)
                self.calls.append(call)
            return out
        call.sources = [self._source(t) for t in given]
        call.shapes = [tuple(t.shape) for t in results]
        call.counts = _counts(call)
        self.after(call, given, results)
        self.calls.append(call)
        at = len(self.calls)
        for k, tensor in enumerate(results):
            if id(tensor) not in self.names:
                self._sources[id(tensor)] = (at, k)
        return out

    def _run(self, name: str, func: Callable, args: tuple, kwargs: dict, given: list[torch.Tensor]) -> Any:
        if self.real:  # what dropout draws would depend on the widths, and all that is drawn after it
            if "dropout" in name and args:
                return args[0].clone()
            args, kwargs = without_dropout(name, args, kwargs)
            return func(*args, **kwargs)
        out = _shortcut(name, func, args, kwargs)
        if out is not None:
            return out
        if name == "type":  # the types that are named after a device would leave this one
            args, kwargs = pytree.tree_map(kind_of, (args, kwargs))
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if all(t.is_meta for t in given):
                raise
        # Constants that are no buffers, e.g. kept from an earlier pass, have been left where they are.
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._twin, (args, kwargs))
        return func(*args, **kwargs)

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta or not tensor.ndim:
            return tensor
        if id(tensor) not in self._twins:
            self._twins[id(tensor)] = tensor, torch.empty_like(tensor, device="meta")
        return self._twins[id(tensor)][1]

    def input(self, tensor: torch.Tensor) -> None:
        """Called with each tensor that the model is given."""

    def before(self, call: Call, given: list[torch.Tensor]) -> None:
        """Called before each operation that is given tensors."""

    def after(self, call: Call, given: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        """Called after each operation that makes tensors."""

    def revealed(self, call: Call) -> None:
        """Called after each operation that makes something else of a tensor's numbers, e.g. `item`."""

    def overwritten(self, call: Call) -> None:
        """Called when a part of a tensor was overwritten."""


# PyTorch's older names of types, of numbers on a device: `torch.FloatTensor`, "torch.cuda.HalfTensor".
_KINDS = {
    **{"FloatTensor": torch.float32, "DoubleTensor": torch.float64, "HalfTensor": torch.float16},
    **{"BFloat16Tensor": torch.bfloat16, "LongTensor": torch.int64, "IntTensor": torch.int32},
    **{"ShortTensor": torch.int16, "CharTensor": torch.int8, "ByteTensor": torch.uint8, "BoolTensor": torch.bool},
}


def kind_of(value: Any) -> Any:
    """The type of numbers that an older name of one says; anything else as it is."""
    name = value if isinstance(value, str) else getattr(value, "__name__", "") if isinstance(value, type) else ""
    return _KINDS.get(name.rpartition(".")[2], value)


def _gather(value: Any, given: list[torch.Tensor], numbers: list[Any]) -> None:
    if isinstance(value, torch.Tensor):
        given.append(value)
    elif value is None:
        return
    elif isinstance(value, (Number, str)):
        numbers.append(value)
    elif isinstance(value, (tuple, list)):
        for each in value:
            _gather(each, given, numbers)
    elif isinstance(value, slice):
        return
    else:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                given.append(leaf)
            elif isinstance(leaf, (Number, str)):
                numbers.append(leaf)
            elif hasattr(leaf, "tolist") and not isinstance(leaf, type):  # an array of numpy
                numbers.append(leaf.tolist())


# The meta device takes up to a millisecond for each of these, whose results are as their first argument.
POINTWISE = "relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish"
POINTWISE = frozenset(POINTWISE.split())
ARITHMETIC = ("add", "sub", "mul", "div")
ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _shortcut(name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
    """The result of frequent operations without calling them, where nothing is unusual about their arguments."""
    x = args[0] if args else kwargs.get("input")
    if name == "cat":
        return _concatenated(*args, **kwargs) if len(args) < 3 and kwargs.keys() <= {"dim"} else None
    if not isinstance(x, torch.Tensor) or not (x.is_meta and x.is_floating_point()):
        return None
    if name == "linear" and not kwargs and len(args) == 3:  # these two lay out their results anew
        return _summed(*args)
    if name == "layer_norm":
        return _normalised(*args, **kwargs)
    in_place = func.__name__.endswith("_")
    if name in ARITHMETIC and len(args) == 2 and not kwargs and isinstance(args[1], torch.Tensor):
        return _combined(x, args[1], in_place)
    if name in POINTWISE and not in_place and _is_dense(x):
        if any(value is True for value in args):
            return None
        return x if kwargs.get("inplace") else torch.empty_like(x)
    if not x.is_contiguous():
        return None
    if name in ("softmax", "log_softmax", "roll"):
        other = any(isinstance(value, torch.dtype) for value in (*args, kwargs.get("dtype")))
        return None if other else x.new_empty(x.shape)
    if name == "conv2d" and len(args) == 7 and not kwargs:
        return _convolved(*args)
    if name == "batch_norm":
        others = [t for t in (*args[1:5], *kwargs.values()) if isinstance(t, torch.Tensor) and t is not x]
        return x.new_empty(x.shape) if x.ndim > 1 and _alike(x, x.shape[1:2], *others) else None
    if name == "adaptive_avg_pool2d" and not kwargs and x.ndim == 4:
        size = args[1] if isinstance(args[1], (tuple, list)) else (args[1], args[1])
        fit = len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        return x.new_empty((*x.shape[:2], *size)) if fit else None
    if name == "multi_head_attention_forward":
        return _attended(*args, **kwargs)
    return None


def _is_dense(x: torch.Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _combined(x: torch.Tensor, y: torch.Tensor, in_place: bool) -> torch.Tensor | None:
    """What arithmetic returns where the result has the shape of one; None where it might raise an error."""
    full, other = (x, y) if x.numel() >= y.numel() else (y, x)
    spread = [1] * (full.ndim - other.ndim) + [*other.shape]
    if (y.dtype, y.device) != (x.dtype, x.device) or not (_is_dense(x) and _is_dense(y)):
        return None
    if len(spread) > full.ndim or any(n not in (1, m) for n, m in zip(spread, full.shape, strict=True)):
        return None
    if full is y and not (x.is_contiguous() and y.is_contiguous()) and sum(n > 1 for n in spread) > 1:
        return None  # the first of two orders in memory wins
    if other.shape == full.shape and x.stride() != y.stride():
        return None
    if not in_place:
        return torch.empty_like(full)
    # What it does to a parameter is counted.
    return x if full is x and not isinstance(x, nn.Parameter) and not x._is_view() else None


def _alike(x: torch.Tensor, shape: Iterable[int], *others: torch.Tensor) -> bool:
    """Whether tensors have one shape, and the type and device of another."""
    return all((t.shape, t.dtype, t.device) == (shape, x.dtype, x.device) for t in others)


def _summed(x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor | None:
    """What linear returns for [..., I]; None where it might raise an error."""
    if x.ndim < 1 or weight.ndim != 2 or not _alike(x, (weight.shape[0], x.shape[-1]), weight):
        return None
    if bias is not None and not _alike(x, weight.shape[:1], bias):
        return None
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _normalised(
    input: torch.Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, *rest: Any, **others: Any
) -> torch.Tensor | None:
    """What layer_norm returns; None where it might raise an error."""
    shape = tuple(normalized_shape)
    given = [t for t in (weight, bias) if t is not None]
    fit = shape and input.shape[-len(shape) :] == shape and _alike(input, shape, *given)
    return input.new_empty(input.shape) if fit else None


def _attended(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """What multi_head_attention_forward returns for one sequence [L, N, E], without masks and the like; None where it
    might raise an error."""
    given = ATTENTION.bind(*args, **kwargs).arguments
    x, heads, width = given["query"], given["num_heads"], given["embed_dim_to_check"]
    others = ("bias_k", "bias_v", "key_padding_mask", "attn_mask", "static_k", "static_v")
    if any(given.get(key) is not None for key in others):
        return None
    if any(given.get(flag) for flag in ("use_separate_proj_weight", "add_zero_attn", "is_causal")):
        return None
    if x is not given["key"] or x is not given["value"] or x.ndim != 3 or x.shape[2] != width or width % heads:
        return None
    shapes = {
        **{"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)},
        **{"out_proj_weight": (width, width), "out_proj_bias": (width,)},
    }
    for key, shape in shapes.items():
        if given[key] is not None and not _alike(x, shape, given[key]):
            return None
    if not given.get("need_weights", True):
        return x.new_empty(x.shape), None
    several = () if given.get("average_attn_weights", True) else (heads,)
    return x.new_empty(x.shape), x.new_empty((x.shape[1], *several, x.shape[0], x.shape[0]))


def _convolved(x: Any, weight: Any, bias: Any, *sizes: Any) -> torch.Tensor | None:
    """What conv2d returns for an image [N, C, H, W]; None where it might raise an error."""
    if not all(isinstance(n, tuple) and len(n) == 2 for n in sizes[:3]) or x.ndim != 4 or weight.ndim != 4:
        return None
    stride, padding, dilation, groups = sizes
    out, inner, *kernel = weight.shape
    if x.shape[1] != inner * groups or out % groups or (x.dtype, x.device) != (weight.dtype, weight.device):
        return None
    image = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return x.new_empty((x.shape[0], out, *image)) if min(image) > 0 else None


def _concatenated(parts: Any, dim: int = 0) -> torch.Tensor | None:
    """What cat returns for tensors of one kind; None where it might raise an error."""
    if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(t, torch.Tensor) for t in parts):
        return None
    first, shape = parts[0], list(parts[0].shape)
    if not shape or any((t.dtype, t.device, t.ndim) != (first.dtype, first.device, len(shape)) for t in parts):
        return None
    if not all(t.is_contiguous() for t in parts):
        return None
    dim %= len(shape)
    shape[dim] = sum(t.shape[dim] for t in parts)
    alike = all(t.shape[:dim] == first.shape[:dim] and t.shape[dim + 1 :] == first.shape[dim + 1 :] for t in parts)
    return first.new_empty(shape) if alike else None


def slices(shape: Iterable[int], index: Any) -> list[tuple[int, int, int] | int | None] | None:
    """A tensor's index, item by item, with `...` written out: (start, stop, step) of a slice, a whole number, None for
    a new dimension. None instead of the list for any other index."""
    shape = tuple(shape)
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or type(item) in (int, slice)) for item in items):
        return None
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(shape) - taken)
    sizes = iter(shape)
    found: list[Any] = []
    for item in items:
        if item is None:
            found.append(None)
        elif isinstance(item, int):
            found.append(item % next(sizes))
        else:
            found.append(item.indices(next(sizes)))
    return found


def _counts(call: Call) -> list[int]:
    if call.name == "__getitem__":
        items = slices(call.args[0].shape, call.args[1])
        if items is None:
            return [n for n in pytree.tree_leaves(call.args[1]) if type(n) is int]
        return [n for item in items if item is not None for n in ((item,) if isinstance(item, int) else item[::2])]
    if call.name == "__setitem__":  # nothing has its result's shape: where a slice stops, too
        items = slices(call.args[0].shape, call.args[1])
        return [n for item in items or () if item is not None for n in ((item,) if isinstance(item, int) else item)]
    if call.name == "narrow":
        start = call.get(2, "start")
        return [start % (call.get(0, "input").shape[call.get(1, "dim")] or 1)] if isinstance(start, int) else []
    if call.name == "group_norm":
        return [call.get(1, "num_groups")]
    return []


# What is asked of a tensor without looking at its numbers.
ABOUT = """
shape size dim ndim ndimension numel nelement dtype type device layout stride storage_offset data_ptr element_size
itemsize nbytes requires_grad grad grad_fn get_device names output_nr retains_grad dim_order __len__ __hash__ __repr__
__format__ __setitem__ __set__ __deepcopy__ result_type can_cast is_floating_point is_complex is_contiguous is_tensor
is_leaf
is_meta is_cuda is_cpu is_sparse is_quantized is_inference is_same_size is_signed is_conj is_neg is_pinned is_shared
is_mkldnn is_nested is_mps is_xpu is_sparse_csr is_storage register_hook untyped_storage broadcast_shapes
"""
ABOUT = frozenset(ABOUT.split())


def is_about(name: str) -> bool:
    return name in ABOUT or (name.startswith("_") and not name.startswith("__"))


class _Context:
    """What a custom autograd function is given in a forward pass of which there is no backward pass."""

    needs_input_grad = (False,) * 64

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    save_for_backward = save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = _nothing


def _followed(cls: type, *args: Any, **kwargs: Any) -> Any:
    defined = cls.setup_context is not torch.autograd.Function.setup_context
    return cls.forward(*args, **kwargs) if defined else cls.forward(_Context(), *args, **kwargs)


@contextmanager
def followed_functions() -> Iterator[None]:
    """Run what custom autograd functions do forward as any other code: autograd would hide it. So would `Variable` that
    it makes the same tensor again, and a scripted function what its code calls."""
    before, scripted = torch.autograd.Function.__dict__["apply"], torch.jit.ScriptFunction.__call__

    def unscripted(function: Any, *args: Any, **kwargs: Any) -> Any:
        code = getattr(function, "_torchdynamo_inline", None)  # of what it was made
        return scripted(function, *args, **kwargs) if code is None else code(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(_followed)
    torch.autograd.Variable.__new__ = lambda kind, data, *options, **named: data.detach()
    torch.jit.ScriptFunction.__call__ = unscripted
    try:
        yield
    finally:
        torch.autograd.Function.apply = before
        torch.jit.ScriptFunction.__call__ = scripted
        del torch.autograd.Variable.__new__


# Layers that use `training` for statistics of the batch or for dropout, and do nothing else with it.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BY_MODE = {kind.forward for kind in (nn.BatchNorm2d, nn.InstanceNorm2d, *_DROPOUTS)}
# Stochastic depth multiplies by one number for each image. Known by name: neither package is needed here.
_BY_MODE_ELSEWHERE = {
    ("torchvision.ops.stochastic_depth", "StochasticDepth.forward"),
    ("timm.layers.drop", "DropPath.forward"),
}


class Modes:
    """While it is entered: whether code asks a module for its mode, `training`, in a way that could make the operations
    of a forward pass other ones. Normalisation and dropout ask, and do the same operations in both."""

    def __init__(self, model: nn.Module):
        kinds = {type(module) for _, module in submodules(model)}
        self.matter = any(kind.train is not nn.Module.train or hasattr(kind, "training") for kind in kinds)

    def __enter__(self) -> Modes:
        def mode(module: nn.Module) -> bool:
            code = type(module).forward
            known = code in _BY_MODE or (code.__module__, getattr(code, "__qualname__", "")) in _BY_MODE_ELSEWHERE
            self.matter = self.matter or not known
            try:
                return vars(module)["training"]
            except KeyError:
                raise AttributeError(f"{type(module).__name__!r} object has no attribute 'training'") from None

        nn.Module.training = property(mode, lambda module, value: vars(module).__setitem__("training", value))
        return self

    def __exit__(self, *error: Any) -> None:
        del nn.Module.training


def place(module: str) -> str:
    return f"module {module!r}" if module else "the model's own forward"


_NAMES: dict[Any, str] = {}


def function_name(func: Callable) -> str:
    """The name of a torch function; `relu`, `relu_`, `Tensor.relu` and `functional.relu` are one operation."""
    name = _NAMES.get(func)
    if name is None:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a tensor's property
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if not name.startswith("__"):
            name = name.removesuffix("_")
        if len(_NAMES) < 10_000:
            _NAMES[func] = name
    return name


class Detached(TorchFunctionMode):
    """Copies tensors by their values alone, wherever `copy.deepcopy` meets one: those with a gradient history, which it
    refuses, and views, whose whole storage it would copy."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if (
            func is not torch.Tensor.__deepcopy__
            or isinstance(args[0], nn.Parameter)
            or args[0].layout != torch.strided
        ):
            return func(*args, **(kwargs or {}))
        tensor, memo = args[0], args[1]
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf)
        return memo[id(tensor)]


def own_copy(inputs: Any) -> Any:
    """Inputs for one pass of a model, which may change them: a tensor that comes twice is one again."""
    with Detached(), torch.no_grad():
        return copied_value(inputs, {})


@contextmanager
def seeded(devices: Iterable[torch.device]) -> Iterator[None]:
    """The same random numbers each time; the caller's streams, of the CPU and of these devices, go on as they were."""
    state, python = torch.default_generator.get_state(), random.getstate()
    numpy = getattr(sys.modules.get("numpy"), "random", None)  # what the model's code may use, if it is there at all
    drawn = numpy.get_state() if numpy else None
    others = {device: torch.get_device_module(device) for device in devices if device.type not in ("cpu", "meta")}
    states = {device: _stream(module.get_rng_state, device) for device, module in others.items()}
    try:
        random.seed(0)
        if numpy:
            numpy.seed(0)
        torch.default_generator.manual_seed(0)
        for device, module in others.items():
            generators = getattr(module, "default_generators", None)  # `manual_seed_all` would reach the others
            if generators:
                generators[device.index or 0].manual_seed(0)
            else:
                module.manual_seed(0)
        yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.set_state(drawn)
        torch.default_generator.set_state(state)
        for device, module in others.items():
            _stream(module.set_rng_state, device, states[device])


def _stream(access: Callable, device: torch.device, *state: torch.Tensor) -> Any:
    """Read or set the state of a device's random numbers; where there is only one such device, it is not named."""
    return access(*state) if device.type == "mps" else access(*state, device)


def uncompiled() -> AbstractContextManager:
    """Runs what torch.compile made of functions as it was before; a function that nothing compiled needs no dynamo."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class NoDropout(TorchFunctionMode):
    """Switches every dropout off, in modules and in calls of `functional.dropout`, whatever mode the model is in."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name in ("requires_grad", "__set__"):
            grant_gradients(func, args, kwargs)
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        args, kwargs = without_dropout(name, args, kwargs)
        return func(*args, **kwargs)


def grant_gradients(func: Callable, args: tuple, kwargs: dict) -> None:
    """A forward pass that asks for gradients of its own, e.g. for forces of an energy, has them from then on."""
    name = getattr(func, "__name__", "")
    asks = name == "requires_grad_" or (name == "__set__" and func.__self__ is torch.Tensor.requires_grad)
    if asks and False not in (*args[1:], *kwargs.values()):
        torch.set_grad_enabled(True)


# Operations with a dropout of their own: where its probability is.
DROPS = {"scaled_dot_product_attention": (4, "dropout_p"), "multi_head_attention_forward": (10, "dropout_p")}


RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def without_dropout(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of an operation that has a dropout of its own, with none of it; and of random slopes their mean."""
    if name == "rrelu":
        args, kwargs = args[:3], {**kwargs, "training": False}
    if name in DROPS or name in RECURRENT:  # a packed sequence is two arguments
        position, keyword = DROPS.get(name) or (5 if isinstance(args[3], bool) else 6, "dropout")
        if position < len(args):
            args = (*args[:position], 0.0, *args[position + 1 :])
        elif keyword in kwargs:
            kwargs = {**kwargs, keyword: 0.0}
    return args, kwargs


def as_arguments(example_inputs: Any) -> tuple[tuple, dict]:
    """Positional and keyword arguments from example inputs: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def taken_for(model: nn.Module, example_inputs: Any) -> str:
    """A hint for a model that does not run on a dict or list, which it may want as one argument; or ""."""
    args, kwargs = as_arguments(example_inputs)
    if isinstance(example_inputs, dict):
        try:
            inspect.signature(model.forward).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return ": a dict is taken for keyword arguments; put it into a tuple, (dict,), to pass it as one argument"
    if isinstance(example_inputs, list):
        return ": a list is taken for several arguments; put it into a tuple, (list,), to pass it as one"
    return ""


# What an output may hold beside tensors.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type, Enum)


def output_tensors(output: Any, name: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in what a model returns, with its place: in lists, dicts, dataclasses, and the fields of objects."""
    seen: set[int] = set()

    def visit(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(value, torch.Tensor):
            yield name, value
            return
        if isinstance(value, (*_PLAIN, FunctionType, MethodType)) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Mapping):
            inner = [(f"{name}[{key!r}]", each) for key, each in value.items()]
        elif isinstance(value, (tuple, list, set, frozenset, deque)):
            inner = [(f"{name}[{k}]", each) for k, each in enumerate(value)]
        else:
            held = fields(value)
            if held is None:
                raise GrowthError(
                    f"the model returns a {type(value).__name__} ({name}), in which tensors cannot be found: return "
                    "tensors, or lists, dicts and objects that have them in their fields"
                )
            inner = [(f"{name}.{key}", each) for key, each in held.items()]
        for place, each in inner:
            yield from visit(each, place)

    return visit(output, name)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what torch.compile, DistributedDataParallel, DataParallel or AveragedModel make of it.

    `GrowthError` with the cure for what has lost its modules' code: TorchScript and torch.export.
    """
    if not isinstance(model, nn.Module):
        raise GrowthError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    while "_orig_mod" in model._modules or isinstance(model, WRAPPERS):
        model = model._modules.get("_orig_mod") or model._modules["module"]
    for name, module in submodules(model):
        what = name and f" (in {place(name)})"
        if isinstance(module, torch.jit.ScriptModule):
            raise GrowthError(f"TorchScript{what} has its shapes compiled in: grow the model before torch.jit does it")
        if isinstance(module, torch.fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            raise GrowthError(
                f"an exported program{what} has its shapes compiled in: grow the model before torch.export"
            )
        if name and "_orig_mod" in module._modules:
            raise GrowthError(
                f"{place(name)} is compiled by torch.compile: grow the model first, then compile its part"
            )
    return model


# What they put before the names of parameters.
PREFIXES = ("module.", "_orig_mod.")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of what one process has, whatever its number of dimensions."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


def local(model: nn.Module) -> nn.Module:
    """The model with its synchronised batch norms made local, in place: on one process they compute the same."""
    for _, module in submodules(model):
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = _LocalBatchNorm
    return model


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """One growth at a time, whichever thread asks: a trace watches `nn.Module.training`, and draws are seeded.

    With the garbage collector paused: tracing makes many small objects, and looking through all of them takes longer.
    Outside `torch.inference_mode`: what is made in it cannot be trained.
    """
    with _ONE_AT_A_TIME:
        was = gc.isenabled()
        gc.disable()
        try:
            with torch.inference_mode(False):
                yield
        finally:
            if was:
                gc.enable()


def submodules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, without a generator for each level of a deep tree."""
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        inner = [(f"{name}.{key}" if name else key, m) for key, m in module._modules.items() if m is not None]
        stack += reversed(inner)


def tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer once, by name."""
    if not isinstance(model, nn.Module):
        raise GrowthError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    seen: set[int] = set()
    modules = list(submodules(model))
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules:
            for key, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{key}" if prefix else key, tensor


def rebuilt(model: nn.Module, make: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of the model with other parameters and buffers: `make` is given the name and tensor of each.

    The rest is copied as by `copy.deepcopy`, which shares what is shared; modules are taken apart here, because it
    takes longer over their empty hook tables and flags than all else together.
    """
    memo: dict[int, Any] = {}
    tagged = []
    for name, tensor in tensors(model):
        if isinstance(tensor, UninitializedTensorMixin):
            raise GrowthError(f"{name!r} has no shape yet: run the model once on real inputs, which gives it one")
        new = make(name, tensor)
        if isinstance(tensor, nn.Parameter):
            new = type(tensor)(new, tensor.requires_grad)
        if vars(tensor):
            tagged.append((tensor, new))
        memo[id(tensor)] = new
    with Detached():
        copied = _copied(model, memo)
        for tensor, new in tagged:  # attributes, e.g. for an optimizer's groups; `copy.deepcopy` loses them
            vars(new).update(copied_value(vars(tensor), memo))
    if "net2net_history" in vars(model) and "net2net_history" not in vars(copied):  # as torch.fx copies itself
        copied.net2net_history = copy.deepcopy(model.net2net_history)
    return copied


def copied_value(value: Any, memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy`; what that cannot copy is shared, e.g. a lock, an open file or a Python module."""
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever somebody's class raises
        for begun in list(memo)[known:]:
            del memo[begun]
    if type(value) in (list, tuple, set):
        return type(value)(copied_value(each, memo) for each in value)
    try:
        new = shallow(value)
    except Exception:
        return value
    memo[id(value)] = new
    if isinstance(value, dict):
        for key, each in dict.items(value):
            dict.__setitem__(new, key, copied_value(each, memo))
    for key, each in getattr(value, "__dict__", {}).items():
        vars(new)[key] = copied_value(each, memo)
    return new


def cloned_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def cloned(model: nn.Module) -> nn.Module:
    """A copy of the model with the same numbers; see `rebuilt`."""
    warn_of_hooks(model)
    return rebuilt(model, cloned_tensor)


def warn_of_hooks(model: nn.Module) -> None:
    """Name the hooks that cannot be copied: those of parameters, which are not part of a module."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    names = [name for name, p in model.named_parameters() if any(getattr(p, kind, None) for kind in kinds)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"hooks on parameters ({', '.join(names[:3])}{more}) stay with the teacher: register them on the student",
            stacklevel=2,
        )


_CONSTANT = (bool, int, float, str, type(None), torch.dtype, torch.device)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    if (
        hasattr(kind, "__deepcopy__")
        or kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__getstate__ is not nn.Module.__getstate__
        # PyTorch's own only fill in for old pickles; torch.compile puts a note of the time around them.
        or not kind.__setstate__.__module__.startswith(("torch.nn.modules.", "torch._dynamo."))
    ):
        try:
            return copy.deepcopy(module, memo)
        except Exception as error:
            raise GrowthError(
                f"a {kind.__name__} of the model says itself how it is copied, and cannot be: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    new = kind.__new__(kind)
    memo[id(module)] = new
    state = new.__dict__
    for key, value in module.__dict__.items():
        if key == "_compiled_call_impl":
            continue
        if type(value) in _CONSTANT or isinstance(value, _CONSTANT):
            state[key] = value
        elif key == "_modules":
            state[key] = {name: child if child is None else _copied(child, memo) for name, child in value.items()}
        elif type(value) in (dict, set, list, OrderedDict) and not value:
            state[key] = type(value)()
        elif type(value) in (tuple, list) and all(isinstance(each, _CONSTANT) for each in value):
            state[key] = type(value)(value)
        else:
            state[key] = copied_value(value, memo)
    return new


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without its data: every parameter and buffer is an empty tensor on the meta device."""
    return local(rebuilt(model, lambda name, tensor: torch.empty_like(tensor, device="meta")))
