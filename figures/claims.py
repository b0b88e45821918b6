"""The study: the verdict on each of the paper's claims, by the rules of results/claims.yaml, and the sweeps.

    python -m figures.claims [RESULTS] [--out DIR]

Reads CSV, JSON and YAML, and writes claims.csv (a row per test), claims.md (the same for the README), pace.csv (how
long each arm takes to fixed levels), contrasts.csv (differences of final accuracies, with intervals), and the sweeps'
figures and table (figures/sweeps.py).
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

from figures import metrics, rules, sweeps
from figures.curves import Problem, Results, Run
from figures.metrics import ENOUGH, Estimate, estimate
from figures.rules import Claim, Rule, Rules

DIFFERENCES = {  # of an arm and `against`, in points
    "start": lambda arm, against: metrics.start(arm) - metrics.last(against),
    "final": lambda arm, against: metrics.final(arm) - metrics.final(against),
    "best_rate": lambda arm, against: metrics.final(arm) - metrics.final(against),
    "area": lambda arm, against: _areas(arm, against, "val"),
    "train_area": lambda arm, against: _areas(arm, against, "train"),
}
COMMAND = "python -m replicate.study"
SYMBOLS = {"holds": " ✓", "refuted": " ✗", "not shown": " –", "unfinished": " …", "not run": ""}


def _areas(arm: Run, against: Run, panel: str) -> float:
    steps = min(arm.rows.step.iloc[-1], against.rows.step.iloc[-1])
    return metrics.area(arm, steps, panel) - metrics.area(against, steps, panel)


@dataclass(frozen=True)
class Outcome:
    """One test of a claim."""

    what: str
    unit: str
    rule: str
    found: Estimate | None
    frozen: float | None  # what a student would be given that stayed as good as it was at step 0
    arrived: int | None  # speedup: seeds in which the arm reached the level at all
    wanted: int  # seeds
    state: str  # holds, refuted, not shown, unfinished (seeds are missing), not run


def judge(test: Rule, seeds: list[int], rates: list[float], results: Results) -> Outcome:
    """What a test says of the runs that are there."""
    values = _values(test, seeds, rates, results)
    ratio = test.metric == "speedup"
    found = estimate(list(values.values()), ratio) if len(values) >= ENOUGH else None
    rule, state = _state(test, found)
    if found and found.n < len(seeds):
        state = "unfinished"
    frozen = None
    if found and test.metric in ("area", "speedup") and test.rate is None:
        still = _values(test, seeds, rates, results, lambda run: run.frozen())
        frozen = estimate(list(still.values()), ratio).mean
    arrived = sum(value > 0 for value in values.values()) if found and ratio else None
    return Outcome(_what(test), "x" if ratio else "points", rule, found, frozen, arrived, len(seeds), state)


Runs = dict[int, Run]  # by seed


def _values(
    test: Rule, seeds: list[int], rates: list[float], results: Results, change: Callable[[Run], Run] = lambda run: run
) -> dict[int, float]:
    """A value for each seed of which all runs are there; `change`: what is done to the arm's first."""
    arm = results.arm(test.runs, test.arm)
    grid = results.rates(test.runs, test.arm)
    if test.rate is not None:
        arm = grid.get(test.rate, {})
    scratch = results.arm(test.runs, test.of) if test.of else {}

    def compare(against: Runs) -> dict[int, float]:
        there = [seed for seed in seeds if seed in arm and seed in against]
        if test.metric != "speedup":
            return {seed: DIFFERENCES[test.metric](change(arm[seed]), against[seed]) for seed in there}
        levels = {seed: metrics.last(scratch[seed]) - test.points for seed in there if seed in scratch}
        return {seed: metrics.speedup(change(arm[seed]), against[seed], level) for seed, level in levels.items()}

    def hardest(grid: dict[float, Runs], but: float | None = None) -> dict[int, float]:
        """Against the rate that leaves the least lead, of a grid in which every rate has every seed."""
        compared = [compare(runs) for rate, runs in grid.items() if rate != but]
        if not set(grid) >= set(rates) or any(len(found) < len(seeds) for found in compared):
            return {}
        return min(compared, key=lambda found: estimate(list(found.values()), test.metric == "speedup").mean)

    if test.metric == "best_rate":
        return hardest(grid, but=test.rate)
    if test.against_rate == "best":
        return hardest(results.rates(test.runs, test.against))
    return compare(results.arm(test.runs, test.against) if test.against else grid.get(test.against_rate, {}))


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


def _what(test: Rule) -> str:
    arm = test.arm + (f" at rate {test.rate:g}" if test.rate is not None else "")
    if test.metric == "best_rate":
        return f"{test.runs}: final, {arm} against the best other rate"
    against = test.against or f"rate {test.against_rate:g}"
    if test.against_rate == "best":
        against += " at its best rate"
    metric = f"speedup to {test.of}'s last - {test.points:g}" if test.metric == "speedup" else test.metric
    return f"{test.runs}: {metric}, {arm} against {against}"


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
    evaluated = {}
    for name, claim in {**of.claims, "headline": of.headline}.items():
        default = claim.seeds or of.seeds
        evaluated[name] = claim, [judge(test, test.seeds or default, of.rates, results) for test in claim.tests]
    return evaluated


def table(evaluated: Evaluated) -> pd.DataFrame:
    """One row per test."""
    rows = []
    for name, (claim, outcomes) in evaluated.items():
        for outcome in outcomes:
            numbers = dict.fromkeys(("mean", "low", "high", "n"))
            if outcome.found:
                numbers = {key: round(getattr(outcome.found, key), 3) for key in numbers}
            rows.append(
                {
                    "claim": name,
                    "section": claim.section,
                    "says": claim.says,
                    "metric": outcome.what,
                    **numbers,
                    "frozen": None if outcome.frozen is None else round(outcome.frozen, 3),
                    "arrived": outcome.arrived,
                    "seeds": outcome.wanted,
                    "unit": outcome.unit,
                    "rule": outcome.rule,
                    "test": outcome.state,
                    "verdict": verdict(outcomes),
                    "command": f"{COMMAND} {' '.join(claim.parts)}",
                }
            )
    return pd.DataFrame(rows).astype({"n": "Int64", "arrived": "Int64"})


def ours(row: Any) -> str:
    """Mean, interval and number of seeds, for the eye; of a ratio also in how many the arm never got there."""
    if pd.isna(row.n):
        return "not run"
    n = f"{row.n}" if row.n == row.seeds else f"{row.n} of {row.seeds}"
    low, high = (_number(x, row.unit).removesuffix("×") for x in (row.low, row.high))
    missed = "" if pd.isna(row.arrived) or row.arrived == row.n else f", {row.n - row.arrived} never arrived"
    return f"{_number(row.mean, row.unit)} [{low}, {high}], n = {n}{missed}"


def _number(x: float, unit: str) -> str:
    return f"{x:.1f}×" if unit == "x" else f"{x:+.2f}"


def markdown(rows: pd.DataFrame) -> str:
    """The README's table: the claim, its verdict and what runs it stand in its first row."""
    head = (
        "claim (paper's section)",
        "metric",
        "ours, 95 % interval",
        "frozen",
        "holds if",
        "verdict",
        f"`{COMMAND}` …",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, tests in rows.groupby("claim", sort=False):
        for i, row in enumerate(tests.itertuples()):
            first = f"**{name}** {row.says} ({row.section})" if i == 0 else ""
            decision = f"**{row.verdict}**" if i == 0 else ""
            parts = f"`{row.command.removeprefix(COMMAND).strip()}`" if i == 0 else ""
            frozen = "" if pd.isna(row.frozen) else _number(row.frozen, row.unit)
            cells = (first, row.metric, ours(row) + SYMBOLS[row.test], frozen, row.rule, decision, parts)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_text(rows: pd.DataFrame) -> str:
    """The table for a terminal."""
    blocks = []
    for name, tests in rows.groupby("claim", sort=False):
        first = tests.iloc[0]
        lines = [f"{name}  {first.says} (sec {first.section}): {first.verdict.upper()}"]
        lines += [f"     {row.metric}: {ours(row)}  ({row.rule}: {row.test})" for row in tests.itertuples()]
        lines.append(f"     {first.command}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


# What the students of each figure are compared with: (runs, arm, from scratch).
PAIRS = [
    (runs, arm, against)
    for runs in ("laptop", "laptop-long")
    for arm, against in (
        ("wider", "standard"),
        ("wider_best", "standard"),
        ("narrow_continued", "standard"),
        ("random_pad", "standard"),
        ("deeper", "deeper_random_init"),
        ("deeper_best", "deeper_random_init"),
        ("wider_sqrt2", "standard"),
        ("deeper_4pairs", "standard"),
        ("teacher_prediction", "standard"),
    )
]
WAYS, POINTS = (50, 80, 90, 95, 100), (2, 1, 0.5, 0)


def pace(results: Results) -> pd.DataFrame:
    """Mini-batches, images, seconds and operations to levels: means over the seeds in which the arm reached them."""
    return pd.DataFrame([row for pair in PAIRS for row in _pace(*pair, results)])


def _pace(runs: str, name: str, scratch: str, results: Results) -> Iterator[dict[str, Any]]:
    arms, againsts = results.arm(runs, name), results.arm(runs, scratch)
    seeds = sorted(arms.keys() & againsts.keys())
    if not seeds:
        return
    config = next(iter(arms.values())).config
    teacher = config.get("growth.teacher") or config.get("teacher_prediction.teacher")
    teachers = results.arm(runs, teacher) if teacher else {}
    levels = {f"{way} % of the way": way / 100 for way in WAYS} | {f"last - {p:g} points": -p for p in POINTS}
    for title, x in levels.items():
        rows = []
        for seed in seeds:
            goal = metrics.last(againsts[seed])
            if title.endswith("way"):
                if seed not in teachers or metrics.last(teachers[seed]) >= goal:
                    continue
                level = metrics.last(teachers[seed]) + x * (goal - metrics.last(teachers[seed]))
            else:
                level = goal + x
            rows.append(_one(arms[seed], againsts[seed], teachers.get(seed), level))
        if not rows:
            continue
        table = pd.DataFrame(rows)
        arrived = table[table.arm_steps.ne(math.inf)]  # `against` always does: no level is above its last accuracy
        mean = arrived.mean()
        ratios = {
            "ratio_steps": mean.against_steps / mean.arm_steps,
            "ratio_operations": mean.against_teraflop / mean.arm_teraflop,
            "ratio_operations_with_teacher": mean.against_teraflop / mean.arm_and_teacher_teraflop,
        }
        if len(arrived) < len(rows):  # of the lucky seeds alone it would flatter the arm
            ratios = dict.fromkeys(ratios, math.nan)
        row = {"runs": runs, "arm": name, "against": scratch, "level": title, "seeds": len(rows)}
        row["arm_reached"] = len(arrived)
        yield row | {key: round(value, 4) for key, value in {**ratios, **mean}.items()}


# Of final accuracies: what the prose goes by beside the claims.
CONTRASTS = [
    ("laptop", "wider", "narrow_continued"),
    ("laptop", "wider_best", "wider"),
    ("laptop-long", "wider", "teacher_narrow"),
    ("laptop-long", "wider", "narrow_continued"),
    ("laptop-long", "wider_best", "wider"),
    ("laptop-long", "standard_continued", "standard"),
    ("laptop-long", "deeper_random_init", "standard"),
    ("laptop-held-out", "wider", "teacher_narrow"),
    ("laptop-held-out", "wider_carried", "wider"),
    ("laptop-held-out", "deeper_carried", "deeper"),
    ("laptop-held-out", "random_pad_rate_0.3", "random_pad"),
    ("laptop-held-out", "wider", "random_pad_rate_0.3"),
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
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figures/out"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        results = Results(arguments.results)
        rows = table(evaluate(rules.read(arguments.results / "claims.yaml"), results))
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows.to_csv(arguments.out / "claims.csv", index=False, lineterminator="\n")
        (arguments.out / "claims.md").write_text(markdown(rows))
        pace(results).to_csv(arguments.out / "pace.csv", index=False, lineterminator="\n")
        contrasts(results).to_csv(arguments.out / "contrasts.csv", index=False, lineterminator="\n")
        sweeps.make(results, arguments.out)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: Cannot write into {arguments.out}: {error.strerror or error}.", file=sys.stderr)
        return 2
    print(as_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
