"""What the command line works on: where a model, its weights and its inputs come from, and what the model costs.

Whatever can be wrong with what a user names is a `CommandError` of one sentence. Models of the user's own need PyTorch
and safetensors only; timm, torchvision and numpy are imported where they are named.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net.errors import GrowthError
from net2net.overview import few
from net2net.record import replay
from net2net.weights import load_record, load_weights, save_weights, shards, unpickled

Shape = tuple[int, ...]


class CommandError(Exception):
    """What was asked for cannot be had; one sentence that says what is wrong and what to do."""


@contextmanager
def attempt(what: str, where: bool = False) -> Iterator[None]:
    """Turns any error into a `CommandError` that begins with `what`; `where` adds the line of code that raised it."""
    try:
        yield
    except (CommandError, GrowthError):
        raise
    except (Exception, SystemExit) as error:  # a script that is called as a factory, and parses its own arguments
        said = " ".join(line.strip() for line in _first_lines(str(error)))
        text = f"{what}: {type(error).__name__}" + (f": {said}" if said else "")
        frames = traceback.extract_tb(error.__traceback__)
        if where and frames[-1].filename != __file__:
            text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
        raise CommandError(text) from error


def _first_lines(text: str) -> list[str]:
    """The first line of a message, and the next where that one only announces it."""
    lines = text.strip().splitlines()
    return lines[: 2 if lines and lines[0].rstrip().endswith(":") else 1]


@contextmanager
def staying() -> Iterator[None]:
    """No code of a model's ends the program without a word."""
    try:
        yield
    except SystemExit as error:
        raise CommandError(f"the model's own code ended the program (SystemExit: {error})") from error


def package(name: str) -> Any:
    """A package that not every installation has."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise CommandError(f"cannot import {name}: {error}") from error
        raise CommandError(f"{error.name} is not installed: pip install {error.name}") from None
    except Exception as error:  # e.g. a torchvision built for another torch
        raise CommandError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def build(spec: str, arguments: Mapping[str, Any], *, pretrained: bool = False, seed: int = 0) -> nn.Module:
    """The model that `timm:NAME`, `torchvision:NAME` or `package.module:factory` names, on the CPU, in evaluation mode.

    arguments   are passed to its factory
    pretrained  with its published weights, which may be downloaded; else its own random initialisation, seeded
    """
    source, _, name = spec.partition(":")
    if not source or not name:
        raise CommandError(
            f"{spec!r} does not say where the model comes from: expected timm:NAME, torchvision:NAME or "
            f"package.module:factory, e.g. timm:{name or source or 'resnet18'}"
        )
    make = {"timm": _timm, "torchvision": _torchvision}.get(source, partial(_factory, source))(name, pretrained)
    failed = f"cannot make {spec}" if not pretrained else f"no pretrained weights for {spec}, --weights takes a file"
    with torch.random.fork_rng(devices=[]), attempt(failed, where=True):
        torch.default_generator.manual_seed(seed)
        model = make(**arguments)
    if not isinstance(model, nn.Module):
        raise CommandError(f"{spec} returns {type(model).__name__}: expected a torch.nn.Module")
    if empty := next((name for name, tensor in model.named_parameters() if tensor.is_meta), None):
        raise CommandError(f"{spec} makes {empty!r} on the meta device, without numbers: expected a model on the CPU")
    return model.eval()


def _timm(name: str, pretrained: bool) -> Callable[..., Any]:
    timm = package("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return partial(timm.create_model, name, pretrained=pretrained)


def _torchvision(name: str, pretrained: bool) -> Callable[..., Any]:
    models = package("torchvision").models
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    if pretrained:
        return partial(models.get_model, name, weights="DEFAULT")
    # These two warn unless they are told whether to initialise themselves.
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return lambda **arguments: models.get_model(name, weights=None, **{**options, **arguments})


def _unknown(source: str, name: str, known: list[str]) -> CommandError:
    near = difflib.get_close_matches(name.lower(), known, 3)
    hint = f"did you mean {' or '.join(f'{source}:{n}' for n in near)}?" if near else f"it has {len(known)} others"
    return CommandError(f"{source} has no model {name!r}; {hint}")


def _factory(source: str, name: str, pretrained: bool) -> Callable[..., Any]:
    spec = f"{source}:{name}"
    if pretrained:
        raise CommandError(
            f"--pretrained is for timm and torchvision: give {spec} a file with --weights, or --model-arg what it takes"
        )
    if "/" in source or source.startswith(".") or source.endswith(".py"):
        likely = source.removesuffix(".py").strip("./").replace("/", ".") or "package.module"
        raise CommandError(f"{spec} names a file: expected a module as in `import`, e.g. {likely}:{name}")
    try:
        found: Any = importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise CommandError(f"cannot import {source} for {spec}: {error}") from error
        near = difflib.get_close_matches(source, ["timm", "torchvision"], 1)
        hint = f"did you mean {near[0]}:{name}?" if near else "is it installed, or in the current folder?"
        raise CommandError(f"there is no module {error.name!r} for {spec}; {hint}") from None
    except (Exception, SystemExit) as error:
        raise CommandError(f"cannot import {source} for {spec}: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CommandError(f"{source} has no {name!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{spec} is a {type(found).__name__}: expected a function or class that returns a model")
    return found


class Loaded(NamedTuple):
    """A model, and where its weights are from as plain data: {"file", "sha256"}, {"pretrained": true} or {"seed"}; and
    what was chosen on the way."""

    model: nn.Module
    weights: dict[str, Any]
    notes: list[str]


def load(
    spec: str, arguments: Mapping[str, Any], *, weights: Path | None, key: str | None, pretrained: bool, seed: int
) -> Loaded:
    """A model with its weights. Those of a student of this package come with its record, which is replayed first."""
    if weights is None:
        model = build(spec, arguments, pretrained=pretrained, seed=seed)
        return Loaded(model, {"pretrained": True} if pretrained else {"seed": seed}, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = read_weights(weights, key)
    notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
    model = build(spec, arguments, seed=seed)
    if history := read_record(weights)["history"]:
        model = regrow(history, model, weights)
    notes += fill(model, state, weights)
    found = {"file": weights.resolve().name, "sha256": _sha256(weights)}
    return Loaded(model, found if key is None else {**found, "key": key}, notes)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for part in shards(path):
        with part.open("rb") as file:
            each = hashlib.file_digest(file, "sha256")
        if part == path:
            return each.hexdigest()
        digest.update(each.digest())
    return digest.hexdigest()


def regrow(history: list[Any], teacher: nn.Module, path: Path) -> nn.Module:
    """What the record in `path` makes of a teacher."""
    try:
        with attempt(f"the record of {path} cannot be replayed on this model"):
            return replay(history, teacher)
    except GrowthError as error:
        raise CommandError(f"the record of {path}: {error}") from error


def read_weights(path: Path, key: str | None = None) -> dict[str, Any]:
    if not path.exists():
        likely = path.with_name(f"{path.name}.safetensors")
        raise CommandError(f"there is no file {path}" + (f"; did you mean {likely}?" if likely.exists() else ""))
    with attempt(f"cannot read the weights in {path}"):
        return load_weights(path, key)


def fill(model: nn.Module, state: Mapping[str, Any], path: Path) -> list[str]:
    """Load weights, all of them, or say which do not fit. Names can have a beginning that the model's do not have, as
    in a checkpoint of Lightning; what was taken and what was left out is returned as notes."""
    own, notes = model.state_dict(), []
    if own and not own.keys() <= state.keys():
        first = next(iter(own))
        beginnings = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
        fitting = [p for p in beginnings if all(p + name in state for name in own)]
        if len(fitting) > 1:
            names = " or ".join(p.removesuffix(".") for p in fitting)
            raise CommandError(f"{path} fits the model more than once: --weights-key {names} takes one")
        if fitting:
            left = [name for name in state if not name.startswith(fitting[0])]
            notes = [f"took what is called {fitting[0]}* in {path}" + (f", without {few(left)}" if left else "")]
            state = {k.removeprefix(fitting[0]): v for k, v in state.items() if k.startswith(fitting[0])}
    shapes = [
        f"{key} has shape {list(state[key].shape)}, the model's {list(value.shape)}"
        for key, value in own.items()
        if isinstance(value, torch.Tensor) and isinstance(state.get(key), torch.Tensor)
        if state[key].shape != value.shape
    ]
    faults = [few(shapes, 2)] if shapes else []
    if not shapes:
        with attempt(f"the weights in {path} do not fit the model"):
            missing, unexpected = model.load_state_dict(dict(state), strict=False)
        faults += [f"it has no {few(missing)}"] if missing else []
        faults += [f"the model has no {few(unexpected)}"] if unexpected else []
    if faults:
        raise CommandError(f"the weights in {path} do not fit the model: {'; '.join(faults)}")
    return notes


def read_record(path: Path) -> dict[str, Any]:
    """The record that belongs to a file of weights: in its own metadata, or in the .json beside it.

    A dict with `history`, as of `net2net.history`, empty where there is none; and what `write_student` put beside it.
    """
    record: dict[str, Any] = {"history": []}
    if path.is_dir() or path.suffix == ".json":
        return record
    beside = path.with_suffix(".json")
    if beside.is_file():
        content = None
        with attempt(f"cannot read {beside}"), suppress(ValueError):  # lines of JSON, e.g. a log of the training
            content = json.loads(beside.read_text())
        if isinstance(content, list):
            content = {"history": content}
        history = content.get("history") if isinstance(content, dict) else None
        # Another file of that name can be anybody's, e.g. of the names of classes.
        if isinstance(history, list) and all(isinstance(entry, dict) and "op" in entry for entry in history):
            record = content
    with suppress(GrowthError):  # weights without a record
        inside = load_record(path)
        if record["history"] and record["history"] != inside:
            raise CommandError(f"the records in {path} and {beside} differ: remove the one that is not its own")
        record["history"] = inside
    return record


def write_student(path: Path, student: nn.Module, record: dict[str, Any]) -> list[Path]:
    """Write the weights, with the history in their metadata, and the record beside them; each is all or nothing."""
    beside, part = path.with_suffix(".json"), path.with_name(f".{path.stem}.json.part{os.getpid()}")
    with attempt(f"cannot write {path}"):
        save_weights(path, student)
        try:
            part.write_text(json.dumps(record, indent=1) + "\n")
            os.replace(part, beside)
        finally:
            part.unlink(missing_ok=True)
    return [path, beside]


class Inputs(NamedTuple):
    """What a model is run on: a file of examples, or random numbers in the shape of one.

    shape  of one example, e.g. (3, 224, 224); None for what the model is known for
    """

    shape: Shape | None
    batch: int
    file: Path | None
    seed: int
    spec: str

    def of(self, model: nn.Module) -> torch.Tensor:
        """[batch, …], on the model's device."""
        if self.file is not None:
            examples = read_tensor(self.file)[: self.batch]
        else:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (self.batch, *(self.shape or self._known(model)))
            with attempt(f"cannot make {self.batch} examples of {'x'.join(map(str, shape[1:]))}"):
                examples = torch.randn(shape, generator=generator, device="cpu")
        return as_the_model(examples, model)

    def _known(self, model: nn.Module) -> Shape:
        config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)  # timm's
        size = config.get("input_size") if isinstance(config, dict) else None
        if size:
            return tuple(size)
        if self.spec.startswith("torchvision:"):
            return (3, 299, 299) if self.spec == "torchvision:inception_v3" else (3, 224, 224)
        raise CommandError(f"{self.spec} does not say what it takes: give the shape of one example, --input 3x224x224")

    def __str__(self) -> str:
        return (
            f"the first {self.batch} examples of {self.file}"
            if self.file
            else f"{self.batch} random examples (seed {self.seed})"
        )


def device_of(model: nn.Module) -> torch.device:
    return next((t.device for t in model.parameters()), torch.device("cpu"))


def as_the_model(examples: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """On its device, and real numbers in its precision: numpy's are float64 where nobody asked for another."""
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    kind = next(kinds, examples.dtype) if examples.is_floating_point() else examples.dtype
    return examples.to(device_of(model), kind)


def read_tensor(path: Path) -> torch.Tensor:
    """The one tensor in a .safetensors, .npy or .pt file, [N, …]; of several in it, the one called "images"."""
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    if path.suffix == ".npy":
        numpy = package("numpy")
        with attempt(f"cannot read {path}"):
            found: Any = torch.from_numpy(numpy.load(path, allow_pickle=False))
    elif path.suffix in (".safetensors", ".pt", ".pth"):
        with attempt(f"cannot read {path}"):
            if path.suffix == ".safetensors":
                found = package("safetensors.torch").load_file(path)
            else:
                found = unpickled(path)
    else:
        raise CommandError(f"{path}: expected a .safetensors, .npy or .pt file with one tensor of examples")
    if isinstance(found, dict):
        tensors = [t for t in found.values() if isinstance(t, torch.Tensor)]
        found = found.get("images", tensors[0] if len(tensors) == 1 else None)
    if not isinstance(found, torch.Tensor) or not found.ndim or not len(found):
        raise CommandError(f"{path}: expected one tensor of examples [N, …], or one that is called 'images'")
    return found


def calibration_files(path: Path) -> list[Path]:
    """The files of examples at `path`: itself, or in alphabetical order those in a folder."""
    if not path.exists():
        raise CommandError(f"there is no file or folder {path}")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".npy", ".pt", ".pth"))
    if not files:
        raise CommandError(
            f"{path} has no .safetensors, .npy or .pt file: save batches of preprocessed images there, [N, C, H, W]"
        )
    return files


def calibration_batches(files: list[Path], size: int, model: nn.Module | None = None) -> Iterator[torch.Tensor]:
    """Of so many images each, as the model takes them where one is given."""
    for file in files:
        images = read_tensor(file)
        if not images.is_floating_point():
            raise CommandError(f"{file} has {images.dtype}: expected images as the model takes them, normalised floats")
        yield from (images if model is None else as_the_model(images, model)).split(size)
