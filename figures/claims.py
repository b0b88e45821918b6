"""The verdict on each of the paper's claims, by the rules of results/claims.yaml.

    python -m figures.claims [RESULTS] [--out DIR]

Reads CSV, JSON and YAML, and writes claims.csv (a row per test), claims.md (the same for docs/claims.md), verdicts.md
(a line per claim, for the README), verdicts.png (the tests with their intervals), cost.png (accuracy against all
operations spent), pace.csv (how long each arm takes to fixed levels), contrasts.csv (differences of final accuracies),
and the sweeps' figures and table (figures/sweeps.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.output import script
from experiments.paths import to_path
from experiments.reading import YamlError
from figures import evidence, metrics, rules, sweeps
from figures.curves import Problem, Results, Run
from figures.metrics import ENOUGH, SHOWN, Estimate, estimate
from figures.rules import Claim, Rule, Rules

DIFFERENCES = {  # of an arm and `against`, in points
    "start": lambda arm, against: metrics.start(arm) - metrics.last(against),
    "final": lambda arm, against: metrics.final(arm) - metrics.final(against),
    "area": lambda arm, against: _areas(arm, against, "val"),
    "train_area": lambda arm, against: _areas(arm, against, "train"),
}
SYMBOLS = {"holds": " ✓", "refuted": " ✗", "not shown": " –", "unfinished": " …", "not run": ""}


def _areas(arm: Run, against: Run, panel: str) -> float:
    steps = min(arm.rows.step.iloc[-1], against.rows.step.iloc[-1])
    return metrics.area(arm, steps, panel) - metrics.area(against, steps, panel)


@dataclass(frozen=True)
class Arm:
    """Finished runs by seed, and what they are called."""

    name: str
    runs: dict[int, Run]

    @property
    def rate(self) -> float:
        """Its initial rate as a fraction of the one that training from scratch begins with."""
        return _rate(self.runs)


def _rate(runs: dict[int, Run]) -> float:
    return float(next(iter(runs.values())).config.get("optimizer.lr_scale", math.nan)) if runs else math.nan


class Arms:
    """What the names in the rules stand for."""

    def __init__(self, of: Rules, results: Results):
        self.of, self.results = of, results

    def find(self, name: str, beside: Arm | None = None) -> Arm:
        """`beside`: the arm that a `control` is of. An arm without runs is one that was not run."""
        if name == "control":
            return self._control(beside)
        base, _, which = name.partition("@")
        own = Arm(base, self.results.arm(self.of.runs, base))
        if not which:
            return own
        config = own.rate if own.runs else _rate(self.results.arm(self.of.chosen_on, base))
        rate = self.chosen(base, but=config if which == "other" else None)
        runs = {} if rate is None else self.results.rates(self.of.runs, base).get(rate, {})
        at = "not chosen yet" if rate is None else f"{rate:g}"
        return Arm(f"{base} at its best {'other ' if which == 'other' else ''}rate ({at})", runs)

    def chosen(self, base: str, but: float | None = None) -> float | None:
        """The rate with the highest mean final accuracy over the seeds that all rates have; none if a rate has none."""
        grid = self.results.rates(self.of.chosen_on, base)
        if not set(grid) >= set(self.of.rates):
            return None
        shared = set.intersection(*(set(grid[rate]) for rate in self.of.rates))
        if not shared:
            return None
        means = {rate: sum(metrics.final(grid[rate][seed]) for seed in shared) for rate in self.of.rates if rate != but}
        return max(means, key=means.get)

    def _control(self, arm: Arm | None) -> Arm:
        """The arm's teacher, trained on at the arm's rate."""
        if arm is None or not arm.runs:
            return Arm("its control", {})
        teacher = next(iter(arm.runs.values())).config.get("growth.teacher")
        for folder in sorted((self.results.root / self.of.runs).glob("*/")):
            runs = self.results.arm(self.of.runs, folder.name)
            config = next(iter(runs.values())).config if runs else {}
            growth = tuple(config.get(f"growth.{key}") for key in ("method", "teacher"))
            if growth == ("continue", teacher) and config.get("optimizer.lr_scale") == arm.rate:
                return Arm(folder.name, runs)
        return Arm(f"{teacher}, trained on at rate {arm.rate:g}", {})

    def level(self, test: Rule, arm: Arm) -> Callable[[int], float | None]:
        """The level of a speedup for a seed, if what it is measured by is there."""
        scratch = self.find(test.of).runs if test.of else {}
        name = next(iter(arm.runs.values())).config.get("growth.teacher") if arm.runs else None
        teachers = self.results.arm(self.of.runs, name) if name else {}

        def of_seed(seed: int) -> float | None:
            if seed not in scratch or (test.way is not None and seed not in teachers):
                return None
            goal = metrics.converged(scratch[seed])
            if test.way is None:
                return goal - test.points
            begin = metrics.converged(teachers[seed])
            return begin + test.way * (goal - begin)

        return of_seed


@dataclass(frozen=True)
class Outcome:
    """One test of a claim."""

    metric: str
    arm: str
    against: str
    unit: str
    rule: str
    above: float | None  # what the interval has to lie above, and below
    below: float | None
    found: Estimate | None
    seeds: int  # that there are
    frozen: float | None  # what a student would be given that stayed as good as it was at step 0
    arrived: int | None  # speedup: seeds in which the arm reached the level at all
    wanted: int  # seeds that it takes
    state: str  # holds, refuted, not shown, unfinished (seeds are missing), not run

    @property
    def what(self) -> str:
        return f"{self.metric}, {self.arm} against {self.against}"


def judge(test: Rule, seeds: list[int], arms: Arms) -> Outcome:
    """What a test says of the runs that are there."""
    arm = arms.find(test.arm)
    against = arms.find(test.against, beside=arm)
    ratio = test.metric == "speedup"
    there = [seed for seed in seeds if seed in arm.runs and seed in against.runs]
    frozen = arrived = None
    if ratio:
        at = arms.level(test, arm)
        levels = {seed: level for seed in there if (level := at(seed)) is not None}
        values = [metrics.speedup(arm.runs[s], against.runs[s], level) for s, level in levels.items()]
        still = [metrics.speedup(arm.runs[s].frozen(), against.runs[s], level) for s, level in levels.items()]
        arrived = sum(metrics.arrived(arm.runs[s], level) for s, level in levels.items())
    else:
        difference = DIFFERENCES[test.metric]
        values = [difference(arm.runs[s], against.runs[s]) for s in there]
        still = [difference(arm.runs[s].frozen(), against.runs[s]) for s in there] if test.metric == "area" else []
    found = estimate(values, ratio) if len(values) >= SHOWN else None
    if found and still:
        frozen = estimate(still, ratio).mean
    rule, state = _state(test, found)
    if values and len(values) < len(seeds):
        state = "unfinished"
    elif found and ratio and state == "holds" and test.above is not None and arrived < found.n:
        state = "not shown"
    metric = test.metric
    if ratio:
        to = f"{test.way:.0%} of the way to {test.of}" if test.way is not None else f"{test.of} - {test.points:g}"
        metric = f"speedup to {to}"
    unit = "x" if ratio else "points"
    arrived = arrived if found else None
    bounds = test.within or (test.above, test.below)
    return Outcome(
        metric, arm.name, against.name, unit, rule, *bounds, found, len(values), frozen, arrived, len(seeds), state
    )


def _state(test: Rule, found: Estimate | None) -> tuple[str, str]:
    low, high = test.within or (test.above, test.below)
    rule = f"in {low:g} … {high:g}" if test.within else f"> {low:g}" if low is not None else f"< {high:g}"
    goal = -math.inf if test.target is None else test.target
    if test.target is not None:
        rule += f", mean ≥ {goal:g}"
    if found is None:
        return rule, "not run"
    inside = (low is None or found.low > low) and (high is None or found.high < high)
    if test.within:  # its ends belong to it
        inside = found.low >= low and found.high <= high
    outside = (low is not None and found.high < low) or (high is not None and found.low > high) or found.high < goal
    return rule, "holds" if inside and found.mean >= goal else "refuted" if outside else "not shown"


def verdict(outcomes: list[Outcome]) -> str:
    """Of a claim: yes if all tests hold, no if one is refuted, in part if some hold."""
    states = [outcome.state for outcome in outcomes]
    if "refuted" in states:
        return "no"
    if all(state == "holds" for state in states):
        return "yes"
    if set(states) <= {"not run", "unfinished"}:
        return "not run" if set(states) == {"not run"} else "unfinished"
    return "in part" if "holds" in states else "not shown"


Evaluated = dict[str, tuple[Claim, list[Outcome]]]


def evaluate(of: Rules, results: Results) -> Evaluated:
    """The claims and the headline, each with the outcomes of its tests."""
    arms = Arms(of, results)
    return {
        name: (claim, [judge(test, test.seeds or claim.seeds or of.seeds, arms) for test in claim.tests])
        for name, claim in {**of.claims, "headline": of.headline}.items()
    }


def table(evaluated: Evaluated) -> pd.DataFrame:
    """One row per test."""
    rows = []
    for name, (claim, outcomes) in evaluated.items():
        for outcome in outcomes:
            numbers = dict.fromkeys(("mean", "low", "high"))
            if outcome.found:
                numbers = {key: round(getattr(outcome.found, key), 3) for key in numbers}
            rows.append(
                {
                    "claim": name,
                    "section": claim.section,
                    "says": claim.says,
                    "metric": outcome.metric,
                    "arm": outcome.arm,
                    "against": outcome.against,
                    **numbers,
                    "n": outcome.seeds,
                    "frozen": None if outcome.frozen is None else round(outcome.frozen, 3),
                    "arrived": outcome.arrived,
                    "seeds": outcome.wanted,
                    "unit": outcome.unit,
                    "rule": outcome.rule,
                    "above": outcome.above,
                    "below": outcome.below,
                    "test": outcome.state,
                    "verdict": verdict(outcomes),
                    "shows": claim.shows,
                }
            )
    numbers = ("mean", "low", "high", "frozen", "above", "below")
    return pd.DataFrame(rows).astype({"n": "Int64", "arrived": "Int64", **dict.fromkeys(numbers, float)})


def ours(row: Any) -> str:
    """Mean, interval and number of seeds, for the eye; of a ratio also in how many the arm never got there."""
    if pd.isna(row.mean):
        return f"{row.n} of {row.seeds} seeds" if row.n else "not run"
    n = f"{row.n}" if row.n == row.seeds else f"{row.n} of {row.seeds}"
    low, high = (_number(x, row.unit).removesuffix("×") for x in (row.low, row.high))
    missed = "" if pd.isna(row.arrived) or row.arrived == row.n else f", {row.n - row.arrived} never arrived"
    return f"{_number(row.mean, row.unit)} [{low}, {high}], n = {n}{missed}"


def _number(x: float, unit: str) -> str:
    return f"{x:.1f}×" if unit == "x" else f"{x:+.2f}"


def _lines(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))


def markdown(rows: pd.DataFrame) -> str:
    """A row per test, for docs/claims.md: the claim, its verdict and its power stand in its first row."""
    lines = []
    for name, tests in rows.groupby("claim", sort=False):
        for i, row in enumerate(tests.itertuples()):
            first = f"**{name}** {row.says} ({row.section})" if i == 0 else ""
            frozen = "" if pd.isna(row.frozen) else _number(row.frozen, row.unit)
            what = f"{row.metric}: {row.arm} against {row.against}"
            ends = (f"**{row.verdict}**", row.shows) if i == 0 else ("", "")
            lines.append((first, what, ours(row) + SYMBOLS[row.test], frozen, row.rule, *ends))
    head = ("claim (paper's section)", "test", "ours, 95 % interval", "frozen", "holds if", "verdict", "can show")
    return _lines(head, lines)


def verdicts(rows: pd.DataFrame) -> str:
    """A line per claim, for the README: the number is that of the first test that the verdict hangs on."""
    lines = []
    for name, tests in rows.groupby("claim", sort=False):
        first = tests.iloc[0]
        rank = {"no": ["refuted"], "in part": ["not shown", "unfinished"]}.get(first.verdict, [])
        deciding = next((row for row in tests.itertuples() if row.test in rank), next(tests.itertuples()))
        number = "" if pd.isna(deciding.mean) else f"{deciding.metric}, {deciding.arm} against {deciding.against}: "
        lines.append((f"**{name}** {first.says} ({first.section})", f"**{first.verdict}**", number + ours(deciding)))
    return _lines(("claim (paper's section)", "verdict", "the number that it hangs on"), lines)


def as_text(rows: pd.DataFrame) -> str:
    """The table for a terminal."""
    blocks = []
    for name, tests in rows.groupby("claim", sort=False):
        first = tests.iloc[0]
        lines = [f"{name}  {first.says} (sec {first.section}): {first.verdict.upper()}"]
        lines += [
            f"     {row.metric}, {row.arm} against {row.against}: {ours(row)}  ({row.rule}: {row.test})"
            for row in tests.itertuples()
        ]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


# What the students of each figure are compared with: (arm, from scratch).
PAIRS = (
    ("wider", "standard"),
    ("random_pad", "standard"),
    ("narrow_continued", "standard"),
    ("narrow_again", "standard"),
    ("deeper", "deeper_random_init"),
    ("wider_sqrt2", "standard"),
    ("deeper_4pairs", "standard"),
    ("standard_again", "standard"),
    ("teacher_prediction", "standard"),
)
WAYS, POINTS = (50, 80, 90, 95, 100), (2, 1, 0.5, 0)


def pace(of: Rules, results: Results) -> pd.DataFrame:
    """Mini-batches, images, seconds and operations to levels: means over the seeds in which the arm reached them."""
    return pd.DataFrame([row for pair in PAIRS for row in _pace(of.runs, *pair, results)])


def _pace(runs: str, name: str, scratch: str, results: Results) -> Iterator[dict[str, Any]]:
    arms, againsts = results.arm(runs, name), results.arm(runs, scratch)
    seeds = sorted(arms.keys() & againsts.keys())
    if not seeds:
        return
    config = next(iter(arms.values())).config
    teacher = config.get("growth.teacher") or config.get("teacher_prediction.teacher")
    teachers = results.arm(runs, teacher) if teacher else {}
    levels = {f"{way} % of the way": way / 100 for way in WAYS} | {f"converged - {p:g} points": -p for p in POINTS}
    for title, x in levels.items():
        rows = []
        for seed in seeds:
            goal = metrics.converged(againsts[seed])
            if title.endswith("way"):
                if seed not in teachers or metrics.converged(teachers[seed]) >= goal:
                    continue
                begin = metrics.converged(teachers[seed])
                level = begin + x * (goal - begin)
            else:
                level = goal + x
            rows.append(_one(arms[seed], againsts[seed], teachers.get(seed), level))
        if not rows:
            continue
        table = pd.DataFrame(rows)
        arrived = table[table.arm_steps.ne(math.inf) & table.against_steps.ne(math.inf)]
        mean = arrived.mean()
        ratios = {
            "ratio_steps": mean.against_steps / mean.arm_steps,
            "ratio_operations": mean.against_teraflop / mean.arm_teraflop,
            "ratio_operations_with_teacher": mean.against_teraflop / mean.arm_and_teacher_teraflop,
        }
        if len(arrived) < len(rows):  # of the lucky seeds alone it would flatter the arm
            ratios = dict.fromkeys(ratios, math.nan)
        row = {"runs": runs, "arm": name, "against": scratch, "level": title, "seeds": len(rows)}
        row["both_reached"] = len(arrived)
        yield row | {key: round(value, 4) for key, value in {**ratios, **mean}.items()}


# Of final accuracies: what the prose goes by beside the claims.
CONTRASTS = [
    ("laptop-1000", "wider", "narrow_continued"),
    ("laptop-1000", "wider_best", "wider"),
    ("laptop-long", "wider", "teacher_narrow"),
    ("laptop-long", "wider", "narrow_continued"),
    ("laptop-long", "wider_best", "wider"),
    ("laptop-long", "standard_continued", "standard"),
    ("laptop-long", "deeper_random_init", "standard"),
    ("laptop-1000-held-out", "wider", "teacher_narrow"),
    ("laptop-1000-held-out", "wider_carried", "wider"),
    ("laptop-1000-held-out", "deeper_carried", "deeper"),
    ("laptop-1000-held-out", "random_pad_rate_0.3", "random_pad"),
    ("laptop-1000-held-out", "wider", "random_pad_rate_0.3"),
    ("laptop-long-held-out", "wider_rate_0.3_fast", "wider"),
    ("laptop-long-held-out", "narrow_continued", "wider_noise_0"),
    ("laptop-long-held-out", "wider_half", "standard"),
    ("laptop-long-held-out", "wider_again", "standard"),
]


def contrasts(results: Results) -> pd.DataFrame:
    """Differences of final accuracies of the same seed, in points, with their intervals."""
    rows = []
    for runs, name, other in CONTRASTS:
        arm, against = results.arm(runs, name), results.arm(runs, other)
        found = [DIFFERENCES["final"](arm[seed], against[seed]) for seed in sorted(arm.keys() & against.keys())]
        if len(found) >= ENOUGH:
            rows.append({"runs": runs, "arm": name, "against": other, **vars(estimate(found))})
    return pd.DataFrame(rows).round(2)


def _one(arm: Run, against: Run, teacher: Run | None, level: float) -> dict[str, float]:
    row: dict[str, float] = {}
    for key, run in (("arm", arm), ("against", against)):
        for column, name in (("step", "steps"), ("images", "images"), ("wall_s", "seconds")):
            row[f"{key}_{name}"] = metrics.arrival(run, level, column)
        row[f"{key}_teraflop"] = metrics.operations(run, row[f"{key}_images"]) / 1e12
    row["arm_and_teacher_teraflop"] = row["arm_teraflop"] + (metrics.operations(teacher) / 1e12 if teacher else 0)
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=to_path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=to_path, default=Path("figures/out"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        results = Results(arguments.results)
        of = rules.read(arguments.results / "claims.yaml")
        rows = table(evaluate(of, results))
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows.to_csv(arguments.out / "claims.csv", index=False, lineterminator="\n")
        (arguments.out / "claims.md").write_text(markdown(rows))
        (arguments.out / "verdicts.md").write_text(verdicts(rows))
        evidence.make(rows, of, results, arguments.out)
        pace(of, results).to_csv(arguments.out / "pace.csv", index=False, lineterminator="\n")
        contrasts(results).to_csv(arguments.out / "contrasts.csv", index=False, lineterminator="\n")
        sweeps.make(results, arguments.out)
    except (Problem, YamlError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: Cannot write into {arguments.out}: {error.strerror or error}.", file=sys.stderr)
        return 2
    print(as_text(rows))
    return 0


if __name__ == "__main__":
    script(main)
