"""What is run and what is drawn: data in YAML files, read here, without torch. Every other package reads these.

figures.yaml
    arms:                            # how each arm looks, in every figure and in the study's
      wider:
        label: Net2WiderNet          # in a legend that has no words of its own for it
        colour: "#0072B2"
        line: [0, [5, 2]]            # of matplotlib: "-", or [offset, [on, off, ...]]; default "-"
        marker: o                    # default: none
    figures:
      fig4:
        curves: {wider: ...}         # arm -> its words in the legend, in the order of the legend
        students: [wider]
        scratch: standard            # the arm that the students are compared with
        teacher: teacher_narrow      # its final accuracy is a line, whether or not it is a curve too
        teacher_label: Narrow teacher
        also: [...]                  # curves that are drawn where they were run, and that nobody trains for the figure

study.yaml
    parts, each runs of one scale in a folder of runs of its own:
      sweep_rate:
        scale: laptop                # a folder of configs/
        folder: laptop-held-out      # below runs/
        seeds: [1, 2, 3]
        arms: [teacher_narrow]       # as their configs say
        rates: {wider: [1, 0.3]}     # variants wider_rate_1, wider_rate_0.3: optimizer.lr_scale
        variants:                    # name -> an arm, and the keys in which the variant differs from it
          wider_exact: {arm: wider, growth.noise: 0.05, growth.exact: true}
        set: {data.validation: held_out}     # of all runs of the part

What an arm and a scale are stands in configs/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reading import YamlError, read

HERE = Path(__file__).parent

# Keys of a config that may differ between two calls that train the same run, and so between two seeds of one arm.
OPERATIONAL = (
    *("data.root", "data.workers", "training.images_per_pass", "training.compile", "training.keep"),
    *("training.save_minutes", "training.device"),
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
    curves: dict[str, str]  # arm -> words in the legend
    students: tuple[str, ...]
    scratch: str
    teacher: str
    teacher_label: str
    also: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """What has to be trained for it, teachers first."""
        needed = (self.teacher, self.scratch, *self.students, *self.curves)
        return tuple(arm for arm in dict.fromkeys(needed) if arm not in self.also)

    def drawn(self, there: Iterable[str]) -> list[str]:
        """The curves of those arms of which there are runs, in the order of the legend."""
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
def looks(file: Path = HERE / "figures.yaml") -> dict[str, Look]:
    return {name: _made(Look, file, f"arms: {name}", look) for name, look in _section(file, "arms").items()}


@cache
def figures(file: Path = HERE / "figures.yaml") -> dict[str, Figure]:
    found = {}
    for name, content in _section(file, "figures").items():
        figure = found[name] = _made(Figure, file, f"figures: {name}", {"name": name, **content})
        unknown = {figure.scratch, figure.teacher, *figure.curves, *figure.students} - looks(file).keys()
        if unknown:
            raise YamlError(f"{file}: figures: {name}: there is no entry in arms: for {', '.join(sorted(unknown))}")
    return found


@cache
def study(file: Path = HERE / "study.yaml") -> dict[str, Part]:
    found = {}
    for name, content in _section(file, "parts").items():
        rates = content.pop("rates", {})
        swept = {
            f"{arm}_rate_{rate:g}": {"arm": arm, "optimizer.lr_scale": float(rate)}
            for arm, each in rates.items()
            for rate in each
        }
        content["variants"] = {**swept, **content.get("variants", {})}
        found[name] = _made(Part, file, f"parts: {name}", content)
    return found


def arms() -> tuple[str, ...]:
    """All arms that the figures need, teachers first."""
    return tuple(dict.fromkeys(arm for figure in figures().values() for arm in figure.arms))


def figures_of(arm: str) -> list[str]:
    """The figures that an arm is a curve or the teacher of."""
    return [name for name, figure in figures().items() if arm in (*figure.curves, figure.teacher)]


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
