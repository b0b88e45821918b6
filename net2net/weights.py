"""Weights in files that run no code when they are read: safetensors, and PyTorch's own format without its pickles."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from net2net.errors import GrowthError
from net2net.record import entries_of
from net2net.wider import history

KEY = "net2net"  # of the record in a file's metadata
ZIPPED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
INSIDE = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def save_weights(path: str | os.PathLike[str], student: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors, with its `history` as JSON in the file's metadata.

    The file is replaced in one step: after a kill or a full disk there is the old one or the new one. A tensor with
    several names is written once. Raises `GrowthError` for a state that is no tensor, which safetensors cannot hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise GrowthError(f"save_weights writes safetensors: give {path.name!r} the suffix .safetensors")
    for name, value in student.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise GrowthError(
                f"{name!r} is a {type(value).__name__}, and safetensors holds tensors only: use torch.save"
            )
        if value.is_meta:
            raise GrowthError(f"{name!r} is on the meta device and has no values to save")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_model(student, str(temporary), metadata={KEY: json.dumps(history(student)), "format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors lets nobody else read it
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise GrowthError(f"cannot write {path}: {_first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, for `load_state_dict`. Nothing in the file is run.

    path  .safetensors, or .pt, .pth, .bin, .ckpt, .tar as by `torch.save`

    A state dict is found under the usual keys of a checkpoint ("state_dict", "model_state_dict", "model", "module"),
    and loses the prefixes of DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") if all its names have
    them; what `save_weights` wrote is taken as it is. Tensors are on the CPU. Raises `GrowthError` for a file that
    holds more than tensors and plain data, holds no state dict, or is damaged; `FileNotFoundError` if there is none.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Another name of a tensor, as save_model notes it.
        weights.update(
            {name: weights[kept] for name, kept in metadata.items() if kept in weights and name not in weights}
        )
        return weights if KEY in metadata else _bare(weights)
    return _bare(_state_dict(_unpickled(path), path))


def load_record(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The record that `save_weights` or a checkpoint of train.py holds, for `replay`: empty for a model never grown.

    Raises `GrowthError` for a file that was not written by either.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            record = (file.metadata() or {}).get(KEY)
    else:
        saved = _unpickled(path)
        record = saved.get("history") if isinstance(saved, Mapping) else None
    if record is None:
        raise GrowthError(f"{path} holds no record of a growth: it was not written by net2net.save_weights or train.py")
    return [dict(entry) for entry in entries_of(record)]


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise GrowthError(f"{path} is damaged or not safetensors ({_first_line(error)})") from None


def _unpickled(path: Path) -> Any:
    if path.suffix not in ZIPPED:
        raise GrowthError(f"{path} is of no known kind: expected .safetensors, {', '.join(ZIPPED)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, of files that are refused then
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), None)
        why = wants.strip() if wants else _first_line(error)
        raise GrowthError(
            f"{path} holds more than tensors and plain data, which is read by running code in it; nothing was run "
            f"({why[:200]}): ask for its state dict, best as safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # missing, not allowed: not for what is in it
            raise
        raise GrowthError(f"{path} is damaged or was not written by torch.save ({_first_line(error)[:200]})") from None


def _state_dict(saved: Any, path: Path) -> dict[str, torch.Tensor]:
    inside = saved
    while isinstance(inside, Mapping):
        if inside and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in inside.items()):
            return dict(inside)
        inside = next((inside[key] for key in INSIDE if isinstance(inside.get(key), Mapping)), None)
    held = f"the keys {', '.join(map(repr, list(saved)[:8]))}" if isinstance(saved, Mapping) else type(saved).__name__
    raise GrowthError(f"{path} holds no state dict: expected names and tensors, or those under {INSIDE}; found {held}")


def _bare(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((p for p in PREFIXES if weights and all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
