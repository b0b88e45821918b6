"""What the rules of the claims may say; the file itself defines the metrics and what a verdict takes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments.reading import YamlError
from experiments.reading import read as read_yaml
from figures.curves import Problem

Seeds = list[int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Rule(Strict):
    """A metric of one arm against another, and where its interval is to lie."""

    metric: Literal["start", "final", "area", "train_area", "speedup"]
    arm: str = Field(pattern=r"^\w+(@best)?$")
    against: str = Field(pattern=r"^\w+(@best|@other)?$")
    of: str | None = Field(None, pattern=r"^\w+(@best)?$")  # speedup: the net from scratch that sets the level
    way: float | None = None  # the level: teacher's + way * (`of`'s converged accuracy - teacher's) ...
    points: float | None = None  # ... or `of`'s converged accuracy - points
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = Field(None, strict=False)
    target: float | None = None

    @model_validator(mode="after")
    def _sound(self) -> Rule:
        if sum(rule is not None for rule in (self.above, self.below, self.within)) != 1:
            raise ValueError("expected one of above, below and within")
        level = (self.way is not None) + (self.points is not None)
        if self.metric == "speedup" and (self.of is None or level != 1):
            raise ValueError("a speedup needs `of` and one of way and points")
        if self.metric != "speedup" and (self.of is not None or level):
            raise ValueError("of, way and points are for a speedup")
        if self.target is not None and self.above is None:
            raise ValueError("a target is for a test with above")
        return self


class Claim(Strict):
    section: str
    says: str
    shows: str  # the smallest effect that its tests can tell from their thresholds
    tests: list[Rule] = Field(min_length=1)
    seeds: Seeds | None = None


class Rules(Strict):
    runs: str  # a folder of results/
    chosen_on: str  # another one: where the best rate of an arm is chosen
    rates: list[float] = Field(min_length=2)  # the grid of the latter
    seeds: Seeds = Field(min_length=1)
    claims: dict[str, Claim]
    headline: Claim


def read(file: Path) -> Rules:
    """The rules, or a Problem that says what is wrong with them."""
    if not file.is_file():
        raise Problem(f"There is no {file}: name the folder that holds claims.yaml and the runs.")
    try:
        return Rules.model_validate(read_yaml(file, "file of claims"))
    except YamlError as error:
        raise Problem(f"{error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Problem(f"{file}: {where}: {first['msg']}; the file itself says what is expected.") from None
