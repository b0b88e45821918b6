"""What results/claims.yaml may say; that file defines the metrics and what a verdict takes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from figures.curves import Problem

Seeds = list[int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Rule(Strict):
    """A metric of one arm against another, and where its interval is to lie."""

    runs: str  # a folder of results/
    metric: Literal["start", "final", "area", "train_area", "speedup", "best_rate"]
    arm: str
    against: str | None = None
    rate: float | None = None  # of `arm`
    against_rate: float | Literal["best"] | None = None  # a number: of `arm` too
    of: str | None = None  # speedup: whose last accuracy, less `points`, is the level
    points: float | None = None
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = Field(None, strict=False)
    target: float | None = None
    seeds: Seeds | None = None  # else the claim's, else everybody's

    @model_validator(mode="after")
    def _sound(self) -> Rule:
        if sum(rule is not None for rule in (self.above, self.below, self.within)) != 1:
            raise ValueError("expected one of above, below and within")
        needs = {"speedup": ["of", "points"], "best_rate": ["rate"]}.get(self.metric, [])
        of_rate = self.metric == "best_rate" or isinstance(self.against_rate, float)
        needs += ["rate"] if of_rate else ["against"]
        if lacks := [key for key in needs if getattr(self, key) is None]:
            raise ValueError(f"a test of this kind needs {' and '.join(dict.fromkeys(lacks))}")
        if self.target is not None and self.above is None:
            raise ValueError("a target is for a test with above")
        return self


class Claim(Strict):
    section: str
    says: str
    parts: list[str]  # of python -m replicate.study
    tests: list[Rule] = Field(min_length=1)
    seeds: Seeds | None = None


class Rules(Strict):
    seeds: Seeds = Field(min_length=1)
    rates: list[float] = Field(min_length=2)  # a grid has runs at all of them
    claims: dict[str, Claim]
    headline: Claim


def read(file: Path) -> Rules:
    """The rules, or a Problem that says what is wrong with them."""
    try:
        return Rules.model_validate(yaml.safe_load(file.read_text()))
    except OSError:
        raise Problem(f"There is no {file}: name the folder that holds claims.yaml and the runs.") from None
    except yaml.YAMLError as error:
        raise Problem(f"{file} is not valid YAML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Problem(f"{file}: {where}: {first['msg']}; results/claims.yaml shows what is expected.") from None
