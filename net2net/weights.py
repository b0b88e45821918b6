"""Weights in files that run no code when they are read: safetensors, and PyTorch's own format without its pickles."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from net2net.errors import GrowthError
from net2net.history import history
from net2net.record import entries_of
from net2net.recording import PREFIXES, unwrapped

KEY = "net2net"  # of the record in a file's metadata
ZIPPED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
INSIDE = ("state_dict", "model_state_dict", "model", "module")


def save_weights(path: str | os.PathLike[str], student: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors, with its `history` as JSON in the file's metadata.

    The file is replaced in one step: after a kill or a full disk there is the old one or the new one. A tensor with
    several names is written once. Raises `GrowthError` for a state that is no tensor, which safetensors cannot hold.
    """
    if isinstance(path, nn.Module):
        raise GrowthError("save_weights takes the file first: save_weights('student.safetensors', student)")
    path, student = Path(path), unwrapped(student)
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
    except KeyError as error:  # safetensors' table of types
        raise GrowthError(f"cannot write {path}: safetensors has no {error.args[0]}: use torch.save") from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise GrowthError(f"cannot write {path}: {_first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Any]:
    """The tensors of a file by name, for `load_state_dict`. Nothing in the file is run.

    path  .safetensors, or .pt, .pth, .bin, .ckpt, .tar as by `torch.save`; or a folder of shards, or its *.index.json
    key   which state dict of several, e.g. "ema" or "state_dict_ema"; or the beginning of the names, e.g. "model"

    Without `key` a state dict is found under the usual ones of a checkpoint ("state_dict", "model_state_dict", "model",
    "module"), or where there is no other; a warning names what is beside it. It loses the prefixes of
    DistributedDataParallel and AveragedModel ("module.") and torch.compile ("_orig_mod.") if all its names have them;
    what `save_weights` wrote is taken as it is. Tensors are on the CPU. Raises `GrowthError` for a file that holds more
    than tensors and plain data, holds no state dict, or is damaged; `FileNotFoundError` if there is none.
    """
    path = Path(path)
    files = shards(path)
    if files != [path]:
        weights: dict[str, Any] = {}
        for file in files:
            part = load_weights(file)
            if again := weights.keys() & part.keys():
                raise GrowthError(f"{path}: two files have {sorted(again)[0]!r}; give one of them")
            weights.update(part)
        return _under(weights, key, path) if key is not None else weights
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Another name of a tensor, as save_model notes it.
        weights.update(
            {name: weights[kept] for name, kept in metadata.items() if kept in weights and name not in weights}
        )
        if key is not None:
            return _under(weights, key, path)
        return weights if KEY in metadata else _bare(weights)
    return _bare(_state_dict(unpickled(path), path, key))


def shards(path: Path) -> list[Path]:
    """The files of weights that a path stands for: itself, or those that an index lists, or those in a folder."""
    index = path if path.name.endswith(".index.json") else None
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) > 1:
            raise GrowthError(f"{path} has several indices, {', '.join(i.name for i in indices)}: give one of them")
        index = indices[0] if indices else None
        if index is None:
            # The same weights are often there in both formats.
            for suffix in (".safetensors", *ZIPPED):
                if files := sorted(path.glob(f"*{suffix}")):
                    return files
            raise GrowthError(f"{path} has no file of weights: expected .safetensors, {', '.join(ZIPPED)}")
    if index is None:
        return [path]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / name for name in names if Path(name).name == name]
        if len(files) != len(names) or not files:
            raise ValueError("'weight_map' has to name files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GrowthError(f"{index} is not an index of shards ({type(error).__name__}: {_first_line(error)})") from None
    return files


def load_record(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The record that `save_weights` or a checkpoint of train.py holds, for `replay`: empty for a model never grown.

    Raises `GrowthError` for a file that was not written by either.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            record = (file.metadata() or {}).get(KEY)
    else:
        saved = unpickled(path)
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
        with path.open("rb") as file:
            pointer = _pointer(file.read(40))
        raise GrowthError(f"{path} is damaged or not safetensors ({_first_line(error)}){pointer}") from None


def unpickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain data; no code in it is run."""
    if path.suffix not in ZIPPED:
        raise GrowthError(f"{path} is of no known kind: expected .safetensors, {', '.join(ZIPPED)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, of files that are refused then
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?) `?([\w.]+\.\w+)", str(error))
        with path.open("rb") as file:
            begins = file.read(40)
        if not begins.startswith((b"PK", b"\x80")):  # neither a zip file nor a pickle
            raise GrowthError(
                f"{path} was not written by torch.save: it begins with {begins!r}{_pointer(begins)}"
            ) from None
        raise GrowthError(
            f"{path} holds more than tensors and plain data ({wants[1] if wants else _first_line(error)[:200]}), which "
            "is read by running code in it; nothing was run. If you trust it, save its state dict alone: torch.save("
            f"torch.load(FILE, weights_only=False)[{_key(path)!r}], 'weights.pt'); of a whole model, .state_dict()"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # missing, not allowed: not for what is in it
            raise
        if "TorchScript" in str(error):
            raise GrowthError(
                f"{path} is TorchScript: save its state dict alone, "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
            ) from None
        raise GrowthError(f"{path} is damaged or was not written by torch.save ({_first_line(error)[:200]})") from None


def _key(path: Path) -> str:
    """Under which of the usual keys a file that is not read has its state dict, by the words in it."""
    words: set[Any] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
        words = {word for _, word, _ in pickletools.genops(file.read(name)) if isinstance(word, str)}
    return next((key for key in INSIDE if key in words), INSIDE[0])


def _state_dict(saved: Any, path: Path, key: str | None) -> dict[str, Any]:
    found = dict(_state_dicts(saved))
    if not found:
        held = (
            f"the keys {', '.join(map(repr, list(saved)[:8]))}" if isinstance(saved, Mapping) else type(saved).__name__
        )
        raise GrowthError(f"{path} holds no state dict: expected names and tensors; found {held}")
    if key in found:
        return found[key]
    usual = [k for k in found if not k or all(part in INSIDE for part in k.split("."))]
    chosen = min(usual, key=lambda k: [INSIDE.index(part) for part in k.split(".") if part], default=None)
    if chosen is None and len(found) == 1:
        (chosen,) = found
    if key is not None:
        return _under(found[chosen or next(iter(found))], key, path, list(found))
    if chosen is None:
        raise GrowthError(f"{path} holds several state dicts: choose one by key=, {' or '.join(map(repr, found))}")
    if others := [repr(k) for k in found if k != chosen]:
        warnings.warn(f"took {chosen!r} of {path}; key= takes {' or '.join(others)}", stacklevel=3)
    return found[chosen]


def _state_dicts(saved: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those inside a checkpoint, by their keys; an optimizer's or a generator's state is none."""
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        return
    tensors = [value for value in saved.values() if isinstance(value, torch.Tensor)]
    rest = [name for name, value in saved.items() if not isinstance(value, torch.Tensor)]
    if any(t.is_floating_point() for t in tensors) and all(name.endswith("_extra_state") for name in rest):
        yield ".".join(at), dict(saved)
    elif len(at) < 3:
        for name, value in saved.items():
            if "optim" not in name:
                yield from _state_dicts(value, (*at, name))


def _under(weights: dict[str, Any], key: str, path: Path, found: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors whose names begin with a key, without it."""
    prefix = f"{key}."
    under = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not under:
        names = [k for k in found if k] or list(dict.fromkeys(name.partition(".")[0] for name in weights))
        raise GrowthError(f"{path} has no {key!r}: expected one of {', '.join(map(repr, names[:8]))}")
    return under


def _bare(weights: dict[str, Any]) -> dict[str, Any]:
    counted = {name: value for name, value in weights.items() if name != "n_averaged"}  # AveragedModel's own
    while prefix := next((p for p in PREFIXES if counted and all(name.startswith(p) for name in counted)), None):
        weights = counted = {name.removeprefix(prefix): tensor for name, tensor in counted.items()}
    return weights


def _pointer(begins: bytes) -> str:
    """What to do where a file was cloned without its content."""
    return (
        ": a pointer of Git LFS, `git lfs pull` fetches the file" if begins.startswith(b"version https://git") else ""
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
