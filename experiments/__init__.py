"""The experiments as data: YAML files that say what is run and drawn, read here, without torch, for all packages.

figures.yaml
    arms:                            # how each arm looks, in every figure and in the study's
      wider:
        label: Net2WiderNet          # in every legend
        colour: "#0072B2"
        line: [0, [5, 2]]            # of matplotlib: "-", or [offset, [on, off, ...]]; default "-"
        marker: o                    # default: none
    figures:
      fig4:
        curves: [wider, ...]         # in the order of the legend
        students: [wider]
        scratch: standard            # the arm that the students are compared with
        teacher: teacher_narrow      # its final accuracy is a line, whether or not it is a curve too
        also: [...]                  # drawn if there are runs of them; the figure's script does not train them

configs/arms/<arm>.yaml            # an arm of one's own (docs/your-experiment.md) may say the same of itself:
    figures: [fig4]                  # their scripts train it, and draw it where it was run
    look: {label: ..., colour: ..., line: ..., marker: ...}     # default: its name, a colour that no other arm has

study.yaml
    parts, each runs of one scale in a folder of runs of its own:
      sweep_rate:
        scale: laptop-1000           # a folder of configs/
        folder: laptop-1000-held-out      # below runs/
        seeds: [1, 2, 3]
        arms: [teacher_narrow]       # as their configs say
        rates: {wider: [1, 0.3]}     # variants wider_rate_1, wider_rate_0.3: optimizer.lr_scale
        variants:                    # name -> an arm, and the keys in which the variant differs from it
          wider_exact: {arm: wider, growth.noise: 0.05, growth.exact: true}
        set: {data.validation: held_out}     # of all runs of the part

What an arm and a scale are stands in configs/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reading import YamlError, read

HERE = Path(__file__).parent
ARMS = HERE.parent / "configs" / "arms"
OWN = ("figures", "look")  # keys of an arm's file that are read here and say nothing of what is trained
# For arms that name no colour: Paul Tol's muted scheme. figures.yaml has none of them.
SPARE = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#117733", "#DDCC77", "#661100")

# Keys of a config that may differ between two calls that train the same run, and so between two seeds of one arm.
OPERATIONAL = (
    *("data.root", "data.workers", "training.images_per_pass", "training.compile", "training.keep"),
    *("training.cuda_graphs", "training.save_minutes", "training.device"),
    *("wandb.mode", "wandb.project"),
)


class Look(NamedTuple):
    """How an arm is drawn."""

    label: str
    colour: str
    line: Any = "-"
    marker: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of the paper."""

    name: str
    curves: tuple[str, ...]  # arms, in the order of the legend
    students: tuple[str, ...]
    scratch: str
    teacher: str
    also: tuple[str, ...] = ()
    own: tuple[str, ...] = ()  # curves of arms whose own files name this figure

    @property
    def optional(self) -> tuple[str, ...]:
        """Curves without which it is drawn too."""
        return (*self.also, *self.own)

    @property
    def arms(self) -> tuple[str, ...]:
        """What has to be trained for it, teachers first."""
        needed = (self.teacher, self.scratch, *self.students, *self.curves)
        return tuple(arm for arm in dict.fromkeys(needed) if arm not in self.also)

    def drawn(self, there: Iterable[str]) -> list[str]:
        """The arms that have runs, in the order of the legend."""
        return [arm for arm in self.curves if arm in there]


@dataclass(frozen=True)
class Part:
    """Runs of one scale, in a folder of runs of their own: arms as their files say, and arms with other values."""

    scale: str
    folder: str  # below runs/
    seeds: tuple[int, ...]
    arms: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {"arm": ..., key: value}
    set: dict[str, Any] = field(default_factory=dict)  # of all of them


@cache
def looks(file: Path = HERE / "figures.yaml", folder: Path = ARMS) -> dict[str, Look]:
    """How each arm is drawn, one's own arms too."""
    found = {name: _look(file, f"arms: {name}", look) for name, look in _section(file, "arms").items()}
    for place, (arm, said) in enumerate(own_arms(folder).items()):
        path = folder / f"{arm}.yaml"
        if arm in found:
            raise YamlError(f"{path}: figures: and look: of {arm} stand in {file}")
        default = {"label": arm.replace("_", " "), "colour": SPARE[place % len(SPARE)], "marker": "*"}
        look = said.get("look") or {}
        if not isinstance(look, dict):
            raise YamlError(f"{path}: look: expected keys and values, got {look!r}")
        found[arm] = _look(path, "look", {**default, **look})
    return found


@cache
def figures(file: Path = HERE / "figures.yaml", folder: Path = ARMS) -> dict[str, Figure]:
    found = {}
    looking = looks(file, folder)
    for name, content in _section(file, "figures").items():
        figure = found[name] = _made(Figure, file, f"figures: {name}", {"name": name, **content})
        for key in ("scratch", "teacher"):
            if not isinstance(getattr(figure, key), str):
                raise YamlError(f"{file}: figures: {name}: {key}: expected a word, got {getattr(figure, key)!r}")
        for key in ("curves", "students", "also"):
            if not _words(getattr(figure, key)):
                raise YamlError(f"{file}: figures: {name}: {key}: expected a list of arms")
        unknown = {figure.scratch, figure.teacher, *figure.curves, *figure.students, *figure.also} - looking.keys()
        if unknown:
            raise YamlError(f"{file}: figures: {name}: there is no entry in arms: for {', '.join(sorted(unknown))}")
    for arm, said in own_arms(folder).items():
        for name in said["figures"]:
            if name not in found:
                raise YamlError(f"{folder / arm}.yaml: figures: there is no {name}; there are {', '.join(found)}")
            curves = (*found[name].curves, arm)
            found[name] = replace(found[name], curves=curves, own=(*found[name].own, arm))
    return found


@cache
def own_arms(folder: Path = ARMS) -> dict[str, dict[str, Any]]:
    """What the files of one's own arms say of `OWN`; the other files there say nothing of it."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        said = {key: value for key, value in read(file, "arm").items() if key in OWN}
        if not said:
            continue
        if file.name == "base.yaml":
            raise YamlError(f"{file}: an arm cannot be called base, as every scale's own file is: rename it")
        said["figures"] = said.get("figures") or []
        if not _words(said["figures"]):
            raise YamlError(f"{file}: figures: expected a list, e.g. [fig4], got {said['figures']!r}")
        found[file.stem] = said
    return found


def method_of(arm: str, folder: Path = ARMS) -> str | None:
    """How an arm's net begins: its file's `growth.method`, "" where there is none; None for what is no arm's file."""
    file = folder / f"{arm}.yaml"
    if not file.is_file():
        return None
    said = read(file, "arm")
    growth, extends = said.get("growth", {}), said.get("extends")
    if isinstance(growth, dict) and "method" in growth:
        return str(growth["method"])
    inherits = isinstance(extends, str) and growth is not None
    return (inherits and method_of(Path(extends).stem, folder)) or ""


@cache
def study(file: Path = HERE / "study.yaml") -> dict[str, Part]:
    found = {}
    for name, content in _section(file, "parts").items():
        where, rates = f"parts: {name}", content.pop("rates", {})
        if not isinstance(rates, dict) or not all(
            isinstance(each, list) and all(_number(rate) for rate in each) for each in rates.values()
        ):
            raise YamlError(f"{file}: {where}: rates: expected numbers for each arm, e.g. wider: [1, 0.3]")
        swept = {
            f"{arm}_rate_{rate:g}": {"arm": arm, "optimizer.lr_scale": float(rate)}
            for arm, each in rates.items()
            for rate in each
        }
        variants = content.get("variants", {})
        for key, value in (("variants", variants), ("set", content.get("set", {}))):
            if not isinstance(value, dict):
                raise YamlError(f"{file}: {where}: {key}: expected keys and values, got {value!r}")
        for variant, changes in variants.items():
            if not isinstance(changes, dict) or not isinstance(changes.get("arm"), str):
                raise YamlError(f"{file}: {where}: variants: {variant}: expected arm: and the keys that differ from it")
        content["variants"] = {**swept, **variants}
        part = found[name] = _made(Part, file, where, content)
        if not isinstance(part.scale, str) or not isinstance(part.folder, str):
            raise YamlError(f"{file}: {where}: scale and folder: expected a word each")
        if not _words(part.arms):
            raise YamlError(f"{file}: {where}: arms: expected a list of arms, got {part.arms!r}")
        if not isinstance(part.seeds, tuple) or not all(type(seed) is int and seed >= 0 for seed in part.seeds):
            raise YamlError(f"{file}: {where}: seeds: expected a list of whole numbers, got {part.seeds!r}")
    return found


def arms(*names: str, folder: Path = ARMS) -> tuple[str, ...]:
    """All arms that the figures need, teachers first; where some are named, figures or single arms: what these need."""
    known = figures(folder=folder)
    needed = [arm for name in names or known for arm in (known[name].arms if name in known else (name,))]
    return tuple(dict.fromkeys(needed))


def seed_of(folder: Path) -> int | None:
    """The seed of a run's folder, seed<k>; None for any other name, such as seed00 or seed1.bak."""
    match = re.fullmatch("seed(0|[1-9][0-9]{0,9})", folder.name)
    return int(match[1]) if match and int(match[1]) < 2**32 else None


def unlike_its_end(info: dict[str, Any], last: Mapping[str, Any]) -> str:
    """Why the last row of a finished run's metrics.csv is not what run.json says the run ended with; empty if it is.

    They part where a file was cut, or is another run's, or where a kill came while both were copied.
    """
    config, result = info.get("config"), info.get("result")
    steps = config.get("training.steps") if isinstance(config, dict) else None
    said = dict(result) if isinstance(result, dict) else {}
    for key in ("val_top1", "train_top1", "all_val_top1"):
        value = said.get(key)
        if isinstance(value, (int, float)) and (value is True or not 0 <= value <= 1):
            return f"its run.json gives {key} as {value}, which is no accuracy from 0 to 1"
    for key, value in (("step", steps), ("step", said.get("steps")), *((k, said.get(k)) for k in MEASURED)):
        if type(value) in (int, float) and key in last:
            there, here = f"{_as_number(last[key]):.6g}", f"{_as_number(value):.6g}"
            if there != here:
                return f"its metrics.csv ends with {key} {there}, and its run.json says {here}"
    return ""


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


MEASURED = ("val_top1", "train_top1", "wall_s")  # in the last row and in the result


def without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """What all seeds of an arm have in common of a flat config: also where its teacher's path names the seed."""
    teacher = config.get("growth.teacher")
    if isinstance(teacher, str):
        parts = ("seed*" if part == f"seed{config.get('seed')}" else part for part in re.split(r"([/\\])", teacher))
        config = {**config, "growth.teacher": "".join(parts)}
    return {key: value for key, value in config.items() if key != "seed"}


def figures_of(arm: str, folder: Path = ARMS) -> list[str]:
    """The figures that an arm is a curve or the teacher of."""
    return [name for name, figure in figures(folder=folder).items() if arm in (*figure.curves, figure.teacher)]


def _section(file: Path, name: str) -> dict[str, Any]:
    section = read(file).get(name)
    if not isinstance(section, dict) or not all(isinstance(entry, dict) for entry in section.values()):
        raise YamlError(f"{file}: {name}: expected an entry of keys and values for each name")
    return section


def _made(kind: Any, file: Path, where: str, content: dict[str, Any]) -> Any:
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:  # a key too many, or one that is missing
        raise YamlError(f"{file}: {where}: {str(error).partition('() ')[2]}") from None


COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
MARKERS = (".", ",", "o", "v", "^", "<", ">", "s", "p", "P", "*", "h", "H", "+", "x", "X", "D", "d", "|", "_")


def _look(file: Path, where: str, content: dict[str, Any]) -> Look:
    look = _made(Look, file, where, content)
    dashes = look.line if isinstance(look.line, tuple) else ()
    pattern = dashes[1] if len(dashes) == 2 else None
    dashed = isinstance(pattern, list) and len(pattern) > 1 and all(_number(x) and x >= 0 for x in pattern)
    for key, good, expected in (
        ("label", isinstance(look.label, str) and look.label, "words for a legend"),
        ("colour", isinstance(look.colour, str) and COLOUR.fullmatch(look.colour), 'a colour such as "#0072B2"'),
        ("line", look.line in ("-", "--", "-.", ":") or (dashed and _number(dashes[0])), "- or [0, [on, off, ...]]"),
        ("marker", look.marker is None or look.marker in MARKERS, f"one of {' '.join(MARKERS)}"),
    ):
        if not good:
            raise YamlError(f"{file}: {where}: {key}: expected {expected}, got {content[key]!r}")
    return look


def _words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
