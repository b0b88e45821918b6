"""What a run is: an arm at a scale, two YAML files under configs/, overridden by `--set`, validated.

`configs/laptop/wider.yaml` names the arm configs/arms/wider.yaml at the scale configs/laptop/base.yaml. Keys are set in
this order, the last one counts: the scale; the arms that the arm extends and the arm itself, each followed by what the
scale's `arms:` says of it. A scale that extends another comes after all of that other's, its arms included: what `long`
says of the steps holds for every arm. A file of that very name, where there is one, comes in their place and may
extend them.
Every key of every file is a field below; an unknown key or a wrong value is a `ConfigError` that names file and key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments import OPERATIONAL, OWN, paths
from experiments.reading import YamlError, parse, read
from training.errors import ConfigError


def expanded(text: str | Path, where: str) -> Path:
    """`experiments.paths.expanded`, of what stands in a config; `where` is its key."""
    try:
        return paths.expanded(text)
    except paths.PathError as error:
        raise ConfigError(f"{where}: {error}") from None


LARGE = 1e6  # for factors: far above any that trains, far below where float32 ends


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    name: Literal["inception_bn", "inception_bn_28", "inception_bn_28_full", "inception_bn_2015"]
    width: float = Field(ge=0.01, le=16)  # scales the channels inside the Inception modules only
    extra_pairs: int = Field(ge=0, le=100)  # vertical-horizontal pairs added after every pair
    multiple_of: int = Field(1, gt=0, le=256)  # what the scaled channels are rounded to; tensor cores like eights
    init: Literal["he", "pytorch"] = "he"  # the random initialisation, of new nets and of what random pad adds
    bn_momentum: float = Field(gt=0, le=1)


class GrowthConfig(Section):
    teacher: str  # an arm of the same scale and seed, or the path of a checkpoint
    method: Literal["net2wider", "random_pad", "net2deeper", "continue"]  # continue: the teacher itself, as a control
    # net2wider: of each filter's standard deviation, on copies only; with more than 1 the noise is what is left of them
    noise: float = Field(ge=0, le=1)
    exact: bool  # net2wider: the noise goes on the weights that read the copies, in amounts that cancel
    optimizer: Literal["fresh", "carried"]  # carried: the teacher's optimizer state, grown along
    # net2deeper: the batch that the batch-norm statistics are measured on, in memory as a whole
    calibration_images: int = Field(gt=1, le=16_384)
    new_head: bool = False  # a classifier of random weights, for another number of classes than the teacher's


class TeacherPredictionConfig(Section):
    """Sec 2.1: layers of the student that are to predict its teacher's, by one more term of the loss."""

    teacher: str  # as in `growth`
    layers: list[str] = Field(min_length=1)  # modules that student and teacher have
    weight: float = Field(gt=0, le=LARGE)  # of the mean error, as a fraction of what there is to predict, in the loss


class MemoryDataConfig(Section):
    """Small grey images that are held in memory, on the device."""

    name: Literal["fashion_mnist", "generated"]
    root: str
    validation: Literal["test", "held_out"]  # held_out: the last 10,000 training images, to make choices on
    val_images: int = Field(gt=0)  # the first so many of them
    flip: bool

    @property
    def folder(self) -> Path:
        return expanded(self.root, "data.root")

    classes: ClassVar[int] = 10
    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 28


class ImageNetDataConfig(Section):
    """JPEG files, read and augmented by worker processes (training/data/loader.py)."""

    name: Literal["imagenet", "folder"]  # folder: one's own images, in any of the same layouts
    root: str
    # What has to be there, so that an incomplete copy is found before training, not after; null, for a folder of one's
    # own: what is found, which run.json records.
    classes: int | None = Field(gt=1)
    train_images: int | None = Field(gt=0)
    val_images: int | None = Field(gt=0)
    image_size: int = Field(gt=0, le=4096)
    crop_fraction: float = Field(gt=0, le=1)  # validation: side of the centre crop over the resized image's short side
    min_area: float = Field(gt=0, le=1)  # training: random-resized crop of at least this part of the image
    flip: bool
    color_jitter: float = Field(ge=0, le=LARGE)  # brightness, contrast and saturation by up to this fraction; 0: off
    # What decodes JPEGs, and what resizes, colours and flips. By the latter pixels differ: a begun run keeps both.
    # torchcodec, which is no dependency, gives the pixels that Pillow does, in less time.
    decode: Literal["pillow", "torchcodec"] = "pillow"
    resize: Literal["pillow", "torch"] = "pillow"
    workers: int | None = Field(
        ge=0, le=1024
    )  # a process's; 0: it reads itself; null: its share of the job's cores less one

    channels: ClassVar[int] = 3

    @property
    def folder(self) -> Path:
        return expanded(self.root, "data.root")


CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")  # endings of what is a file, not an arm
COUNTS = ("classes", "train_images", "val_images")  # what a folder of one's own leaves open

DataConfig = Annotated[MemoryDataConfig | ImageNetDataConfig, Field(discriminator="name")]


class OptimizerConfig(Section):
    lr: float = Field(gt=0, le=LARGE)  # initial rate of training from scratch
    lr_scale: float = Field(gt=0, le=LARGE)  # a student's initial rate as a fraction of it (appendix A)
    decay: float = Field(ge=0, lt=1)  # of RMSProp's mean square
    momentum: float = Field(ge=0, lt=1)
    eps: float = Field(gt=0, le=LARGE)  # inside the square root
    weight_decay: float = Field(ge=0, le=LARGE)
    clip_norm: float = Field(ge=0, le=1e30)  # of the whole gradient; 0: off


class ScheduleConfig(Section):
    name: Literal["cosine", "exponential"]
    warmup_steps: int = Field(ge=0)
    decay_rate: float = Field(gt=0, le=1)  # exponential: the rate is multiplied by this ...
    decay_steps: int = Field(gt=0)  # ... every so many steps, smoothly


class TrainingConfig(Section):
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=1)  # global, whatever the number of processes
    # Images that batch norm takes its statistics over, a chunk; null: the whole mini-batch. The mini-batch is so many
    # chunks on any number of processes: what a run computes does not depend on the machine.
    bn_batch_size: int | None = Field(gt=1)
    # Images that a forward pass takes at the most: several chunks of `bn_batch_size`, each normalised by itself. It is
    # the machine's matter, not the experiment's; null: chunks up to 256 images where that
    # saves launches (a GPU, compiled or without CUDA graphs), else one.
    images_per_pass: int | None = Field(None, gt=1)
    eval_every: int = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=1)
    ema_decay: float = Field(ge=0, lt=1)  # average of the weights for evaluation; 0: off
    ema_warmup: bool  # decay = min(ema_decay, step / (9 + step)), as TensorFlow's
    precision: Literal["float32", "bfloat16"]  # of the forward and backward pass; the weights are float32
    # torch.compile of the training pass: as a whole, or module by module, which compiles faster
    compile: bool | Literal["modules"]
    # On a GPU, capture the training pass once and launch it as a whole: where the host is slower than the GPU.
    cuda_graphs: bool = False
    keep: int = Field(gt=0)  # so many checkpoints, the newest ones, beside a student's first
    save_minutes: float | None = Field(gt=0)  # a checkpoint whenever the last one is older; null: at evaluations only
    device: Literal["auto", "cuda", "cpu"]  # auto: a GPU where there is one, or where the scheduler granted one

    @property
    def chunk(self) -> int:
        return self.bn_batch_size or self.batch_size


class WandbConfig(Section):
    mode: Literal["disabled", "offline", "online"]
    project: str


class Config(Section):
    seed: int = Field(ge=0, lt=2**32)  # all that is random is drawn from numbers made of it, which have 64 bits
    model: ModelConfig
    growth: GrowthConfig | None
    teacher_prediction: TeacherPredictionConfig | None
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    wandb: WandbConfig

    @property
    def teacher(self) -> str | None:
        """What has to be trained before it, if anything."""
        wants = self.growth or self.teacher_prediction
        return wants.teacher if wants else None

    @property
    def teacher_arm(self) -> str | None:
        """The teacher, if it is an arm of the same scale; None if it is the path of a checkpoint, or there is none."""
        path = self.teacher and (len(Path(self.teacher).parts) > 1 or Path(self.teacher).suffix in CHECKPOINTS)
        return None if path else self.teacher

    @model_validator(mode="after")
    def _one_teacher(self) -> Config:
        if self.growth and self.teacher_prediction:
            raise ValueError("growth and teacher_prediction: a student has one of the two, the other is null")
        return self

    @model_validator(mode="after")
    def _torchcodec_gives_tensors(self) -> Config:
        if getattr(self.data, "decode", "") == "torchcodec" and self.data.resize != "torch":
            raise ValueError("data.resize: expected torch where data.decode is torchcodec, got 'pillow'")
        return self

    @model_validator(mode="after")
    def _complete_imagenet(self) -> Config:
        for key in COUNTS:
            if self.data.name == "imagenet" and getattr(self.data, key) is None:
                raise ValueError(f"data.{key}: null (as many as are found) is for data.name: folder, not for ImageNet")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Config:
        warmup, steps = self.schedule.warmup_steps, self.training.steps
        if warmup >= steps:
            raise ValueError(f"schedule.warmup_steps: expected less than training.steps, {steps}, got {warmup}")
        return self

    @model_validator(mode="after")
    def _each_layer_once(self) -> Config:
        layers = self.teacher_prediction.layers if self.teacher_prediction else []
        if twice := [name for name in layers if layers.count(name) > 1]:
            raise ValueError(f"teacher_prediction.layers: {twice[0]!r} is given twice: take one of them out")
        return self


SCALE = "base.yaml"  # in each folder of configs/: what its arms share


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The validated config of a file; `overrides` are "a.b=value" strings, their values written as in YAML."""
    values: dict[str, Any] = {}  # dotted key -> value
    origin: dict[str, str] = {}  # dotted key -> the file or override that set it
    try:
        _collect(Path(path), values, origin, ())
    except YamlError as error:
        raise ConfigError(str(error)) from None
    except (OSError, ValueError) as error:  # a name that is too long, or none
        raise ConfigError(
            f"{str(path)[:200]}: cannot read this config: {getattr(error, 'strerror', '') or error}"
        ) from None
    for override in overrides:
        key, sign, text = override.partition("=")
        key = key.strip()
        if not sign or not re.fullmatch(r"\w+(\.\w+)*", key):
            raise ConfigError(f"--set {override}: expected key=value, e.g. --set optimizer.lr=0.01")
        _put(values, origin, key, _value(text, f"--set {override}"), f"--set {override}")
    try:
        return Config.model_validate(_nested(values))
    except ValidationError as error:
        errors = _one_for_each_key(error.errors())
        raise ConfigError("\n".join(_explain(e, origin, str(path)) for e in errors)) from None


# Of `growth`, what only one method reads, and what stands for it in the flat config of the others, of whose runs it
# says nothing: for the last key what it is in the records of all of them, with which new ones are compared.
ONLY_OF = {
    "growth.noise": ("net2wider", None),
    "growth.exact": ("net2wider", None),
    "growth.calibration_images": ("net2deeper", 256),
}


def flatten(config: Config) -> dict[str, Any]:
    """The config as dotted keys; those that the method of growth does not read have the value of `ONLY_OF`."""
    flat: dict[str, Any] = {}
    _put(flat, {}, "", config.model_dump(), "")
    return effective(flat)


GONE = ("figures",)  # keys of older records, which said nothing of what is trained
ADDED = {  # keys that older records lack, and the value that stands for how it was then
    **{"data.decode": "pillow", "data.resize": "pillow", "model.multiple_of": 1, "model.init": "he"},
    "growth.new_head": False,
}


def effective(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config in the form that is compared: with the value of `ONLY_OF` for keys that its method of growth does
    not read; without keys that were added later and have the value that stands for how it was before."""
    method = flat.get("growth.method")
    unread = {key: value for key, (reader, value) in ONLY_OF.items() if key in flat and method != reader}
    known = {key: value for key, value in flat.items() if key not in GONE and (key not in ADDED or value != ADDED[key])}
    return {**known, **unread}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Dotted keys in which two flat configs would train different runs."""
    a, b = effective(a), effective(b)
    return [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and k not in OPERATIONAL]


def _collect(path: Path, values: dict[str, Any], origin: dict[str, str], above: tuple[Path, ...]) -> None:
    """What a file says, after what it extends."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself")
    if not path.exists() and (path.parent / SCALE).is_file() and path.suffix == ".yaml":
        _arm(path.parent, path.stem, values, origin, ())
        return
    if path.suffix != ".yaml" and not path.is_file():
        meant = path.with_name(f"{path.stem}.yaml")
        if meant.is_file() or ((meant.parent / SCALE).is_file() and not path.exists()):
            raise ConfigError(f"{path}: there is no such config; did you mean {meant}?")
    content = read(path, f"config (named by extends: in {above[-1].name})" if above else "config")
    if path.name == SCALE:
        content.pop("arms", None)
    for key in OWN:
        if key in content:
            raise ConfigError(f"{path}: {key}: stands in the file of an arm, configs/arms/{path.name}, not of a run")
    for parent in _extends(content, path):
        _collect(parent, values, origin, (*above, path.resolve()))
    _say(values, origin, content, path)


def _arm(
    scale: Path, arm: str, values: dict[str, Any], origin: dict[str, str], above: tuple[Path, ...]
) -> dict[str, Path]:
    """Collects what an arm is at a scale; returns the arm's files, what it extends first."""
    file = scale / SCALE
    if file.resolve() in above:
        raise ConfigError(f"{file}: extends itself")
    content = read(file, "scale")
    changes = content.pop("arms", None) or {}
    if not isinstance(changes, dict) or not all(isinstance(change, dict) for change in changes.values()):
        raise ConfigError(f"{file}: arms: expected keys and values for each arm, e.g. wider: {{training.steps: 400}}")
    parents = _extends(content, file)
    lineage: dict[str, Path] = {}
    for parent in parents:
        lineage |= _arm(parent.parent, arm, values, origin, (*above, file.resolve()))
    _say(values, origin, content, file)
    if not parents:
        lineage = _lineage(arm, [scale, *(one.parent for one in reversed(above))], ())
    for name, of_arm in lineage.items():
        if not parents:
            said = read(of_arm)
            for key in ("extends", *OWN):
                said.pop(key, None)
            _say(values, origin, said, of_arm)
        _say(values, origin, changes.get(name, {}), file)
    return lineage


def _lineage(arm: str, scales: list[Path], below: tuple[str, ...]) -> dict[str, Path]:
    """The files of an arm and of the arms that it extends, from arms/ beside the scales, ancestors first."""
    shelves = [scale.parent / "arms" for scale in scales]
    file = next((shelf / f"{arm}.yaml" for shelf in reversed(shelves) if (shelf / f"{arm}.yaml").is_file()), None)
    if file is None:
        there = sorted({path.stem for shelf in shelves for path in shelf.glob("*.yaml")})
        near = difflib.get_close_matches(arm, there, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there) or 'none'}"
        raise ConfigError(f"{shelves[0] / arm}.yaml: there is no such arm; {hint}")
    if arm in below:
        raise ConfigError(f"{file}: extends itself")
    found: dict[str, Path] = {}
    for parent in _extends(read(file), file):
        found |= _lineage(parent.stem, scales, (*below, arm))
    return {**found, arm: file}


def _extends(content: dict[str, Any], path: Path) -> list[Path]:
    parents = content.pop("extends", [])
    parents = parents if isinstance(parents, list) else [parents]
    if wrong := [parent for parent in parents if not isinstance(parent, str)]:
        raise ConfigError(f"{path}: extends: expected a file or a list of files, got {wrong[0]!r}")
    return [path.parent / expanded(parent, f"{path}: extends") for parent in parents]


def _value(text: str, where: str) -> Any:
    """An override's value: as in YAML, except words that YAML would cut in two, as in data.root=/data/a: b."""
    try:
        value = parse(text, where)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    if value is None and text.strip().lower() not in ("", "~", "null"):  # a comment: data.root=#1
        return text.strip()
    flow = text.lstrip()[:1] in tuple("{['\"")
    return text.strip() if isinstance(value, (dict, list, str)) and not flow else value


def _say(values: dict[str, Any], origin: dict[str, str], content: dict[str, Any], file: Path) -> None:
    """Set what a file says. It may write a key as training.steps too, but not both ways at once."""
    said: set[str] = set()

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for inner, item in value.items():
                add(f"{key}.{inner}" if key else str(inner), item)
            return
        if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in said):
            raise ConfigError(f"{file}: {key}: is given twice, with a dot and in its section: take one of them out")
        said.add(key)

    add("", content)
    _put(values, origin, "", content, str(file))


def _put(values: dict[str, Any], origin: dict[str, str], key: str, value: Any, where: str) -> None:
    """Set a value; a mapping sets its keys one by one, so that `extends` merges section by section."""
    if isinstance(value, dict) and (value or not key):
        for inner, item in value.items():
            _put(values, origin, f"{key}.{inner}" if key else str(inner), item, where)
        return
    for other in list(values):  # a section replaced by a plain value (growth: null), or the other way round
        if other.startswith(f"{key}.") or key.startswith(f"{other}."):
            del values[other], origin[other]
    values[key] = value
    origin[key] = where


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a config can have."""
    keys = []
    for name, field in model.model_fields.items():
        sections = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)]
        inner = [key for t in sections if issubclass(t, BaseModel) for key in _keys(t, f"{prefix}{name}.")]
        keys += dict.fromkeys(inner) if inner else [f"{prefix}{name}"]
    return keys


def _one_for_each_key(errors: list[Any]) -> list[Any]:
    """Where a value may be of two kinds, pydantic has an error for each, with the kind behind the key."""
    merged: dict[Any, Any] = {}
    for error in errors:
        loc = error["loc"]
        of_kind = len(loc) > 1 and "".join(map(str, loc[-1:])).startswith(("bool", "literal["))
        key = loc[:-1] if of_kind else loc
        if before := merged.get(key):
            error = {**error, "msg": f"{before['msg']}, or {error['msg'].removeprefix('Input should be ')}"}
        merged[key] = {**error, "loc": key}
    return list(merged.values())


def _explain(error: Any, origin: dict[str, str], path: str) -> str:
    if not error["loc"]:  # of the config as a whole
        said = str(error["ctx"]["error"])
        return f"{origin.get(said.partition(':')[0], path)}: {said}"
    loc = [str(part) for part in error["loc"]]
    if error["type"] == "union_tag_invalid":
        loc, error = [*loc, "name"], {**error, "msg": f"expected {error['ctx']['expected_tags']}"}
        error["input"] = error["input"]["name"]
    elif error["type"] == "union_tag_not_found":
        loc, error = [*loc, "name"], {**error, "type": "missing"}
    elif loc[0] == "data" and len(loc) > 2:
        del loc[1]  # the kind of data, which pydantic puts between section and key
    key = ".".join(loc)
    where = origin.get(key) or next((o for k, o in origin.items() if k.startswith(f"{key}.")), "")
    above = [".".join(loc[:length]) for length in range(len(loc) - 1, 0, -1)]
    where = where or next((origin[k] for k in above if k in origin), path)
    if error["type"] == "extra_forbidden":
        known = _keys()
        written = next((k for k in origin if k.startswith(f"{key}.")), key)  # of an unknown section: one of its keys
        if written in known:  # of another kind of the section: data, whose name says which
            return f"{where}: {written}: not a key of this {written.partition('.')[0]}.name; take it out"
        leaf = {k.rpartition(".")[2]: k for k in known}
        near = difflib.get_close_matches(written, known, 1, 0.6) or [
            leaf[m] for m in difflib.get_close_matches(written.rpartition(".")[2], leaf, 1, 0.6)
        ]
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(known)}"
        return f"{where}: unknown key {key!r}; {hint}"
    if error["type"] == "missing" and loc[0] == "data" and "data.name" in origin and key != "data.name":
        return f"{origin['data.name']}: the key {key!r} is missing, which this data.name needs"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing"
    message = error["msg"].replace("Input should be", "expected").replace("a valid ", "a ").replace("a int", "an int")
    message = re.sub(r"a dictionary or .*", "keys and values", message)
    message = message.replace("a boolean", "true or false")
    value = error["input"]
    return f"{where}: {key}: {message}, got {value!r} ({type(value).__name__})"
