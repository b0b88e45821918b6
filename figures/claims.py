"""The study: the verdict on each of the paper's claims, by the rules of results/claims.yaml, and the sweeps.

    python -m figures.claims [RESULTS] [--out DIR]

Reads CSV, JSON and YAML, and writes claims.csv (a row per test), claims.md (the same for the README), pace.csv (how
long each arm takes to fixed levels), and the sweeps' figures and table (figures/sweeps.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from figures import metrics, sweeps
from figures.curves import Problem, Results, Run
from figures.metrics import ENOUGH, Estimate, estimate

DIFFERENCES = {  # of an arm and `against`, in points
    "start": lambda arm, against: metrics.start(arm) - metrics.last(against),
    "final": lambda arm, against: metrics.final(arm) - metrics.final(against),
    "area": lambda arm, against: _areas(arm, against, "val"),
    "train_area": lambda arm, against: _areas(arm, against, "train"),
}
COMMAND = "python -m replicate.study"
SYMBOLS = {"holds": " ✓", "refuted": " ✗", "not shown": " –", "not run": ""}


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
    wanted: int  # seeds
    state: str  # holds, refuted, not shown, not run


def judge(test: dict[str, Any], seeds: list[int], results: Results) -> Outcome:
    """What a test says of the runs that are there."""
    values, ratio = _values(test, seeds, results)
    found = estimate(list(values.values()), ratio) if len(values) >= ENOUGH else None
    rule, state = _state(test, found)
    return Outcome(_what(test), "x" if ratio else "points", rule, found, len(seeds), state)


def _values(test: dict[str, Any], seeds: list[int], results: Results) -> tuple[dict[int, float], bool]:
    """A value for each seed of which all runs are there, and whether it is a ratio."""
    metric, runs = test["metric"], test["runs"]
    ratio = metric == "speedup"
    if metric == "best_rate":
        return _against_best_rate(results.rates(runs, test["arm"]), test["rate"], seeds), ratio
    if metric not in DIFFERENCES and not ratio:
        known = ", ".join([*DIFFERENCES, "speedup", "best_rate"])
        raise Problem(f"claims.yaml has an unknown metric {metric!r}; there are {known}.")
    scratch = results.arm(runs, test["of"]) if ratio else {}

    def compare(arm: dict[int, Run], against: dict[int, Run]) -> dict[int, float]:
        there = [seed for seed in seeds if seed in arm and seed in against]
        if not ratio:
            return {seed: DIFFERENCES[metric](arm[seed], against[seed]) for seed in there}
        levels = {seed: metrics.last(scratch[seed]) - test["points"] for seed in there if seed in scratch}
        return {seed: metrics.speedup(arm[seed], against[seed], level) for seed, level in levels.items()}

    if test.get("against_rate") == "best":
        grid = results.rates(runs, test["against"])
        if not _whole(grid, seeds):
            return {}, ratio
        compared = [compare(results.arm(runs, test["arm"]), one) for one in grid.values()]
        return min(compared, key=lambda found: estimate(list(found.values()), ratio).mean if found else math.inf), ratio
    if "against_rate" in test:
        grid = results.rates(runs, test["arm"])
        return compare(grid.get(test["rate"], {}), grid.get(test["against_rate"], {})), ratio
    return compare(results.arm(runs, test["arm"]), results.arm(runs, test["against"])), ratio


def _whole(grid: dict[float, dict[int, Run]], seeds: list[int]) -> bool:
    """Only where every rate has every seed: the best of a part of them would be another rate's best."""
    return len(grid) > 1 and all(seed in runs for runs in grid.values() for seed in seeds)


def _against_best_rate(grid: dict[float, dict[int, Run]], rate: float, seeds: list[int]) -> dict[int, float]:
    if not _whole(grid, seeds) or rate not in grid:
        return {}
    finals = {one: {seed: metrics.final(runs[seed]) for seed in seeds} for one, runs in grid.items()}
    best = max(finals, key=lambda one: sum(finals[one].values()))
    return {seed: finals[rate][seed] - finals[best][seed] for seed in seeds}


def _state(test: dict[str, Any], found: Estimate | None) -> tuple[str, str]:
    low, high = test.get("within", [test.get("above"), test.get("below")])
    rule = f"in {low:g} … {high:g}" if "within" in test else f"> {low:g}" if low is not None else f"< {high:g}"
    if "target" in test:
        rule += f", mean ≥ {test['target']:g}"
    if found is None:
        return rule, "not run"
    inside = (low is None or found.low > low) and (high is None or found.high < high)
    if "within" in test:  # its ends belong to it
        inside = found.low >= low and found.high <= high
    if "target" in test:
        inside = inside and found.mean >= test["target"]
    outside = (low is not None and found.high < low) or (high is not None and found.low > high)
    return rule, "holds" if inside else "refuted" if outside else "not shown"


def _what(test: dict[str, Any]) -> str:
    arm = test["arm"] + (f" at rate {test['rate']:g}" if "rate" in test else "")
    if test["metric"] == "best_rate":
        return f"{test['runs']}: final, {arm} against its best rate"
    if (rate := test.get("against_rate")) == "best":
        against = f"{test['against']} at its best rate"
    else:
        against = test["against"] if rate is None else f"rate {rate:g}"
    metric = test["metric"]
    if metric == "speedup":
        metric = f"speedup to {test['of']}'s last - {test['points']:g}"
    return f"{test['runs']}: {metric}, {arm} against {against}"


def verdict(outcomes: list[Outcome]) -> str:
    """Of a claim: yes if all tests hold, no if one is refuted, in part if some hold."""
    states = [outcome.state for outcome in outcomes]
    if "refuted" in states:
        return "no"
    if all(state == "holds" for state in states):
        return "yes"
    if all(state == "not run" for state in states):
        return "not run"
    return "in part" if "holds" in states else "not shown"


def evaluate(rules: dict[str, Any], results: Results) -> dict[str, tuple[dict[str, Any], list[Outcome]]]:
    """The claims and the headline, each with the outcomes of its tests."""
    evaluated = {}
    for name, claim in {**rules["claims"], "headline": rules["headline"]}.items():
        default = claim.get("seeds", rules["seeds"])
        evaluated[name] = claim, [judge(test, test.get("seeds", default), results) for test in claim["tests"]]
    return evaluated


def table(evaluated: dict[str, tuple[dict[str, Any], list[Outcome]]]) -> pd.DataFrame:
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
                    "section": claim["section"],
                    "says": claim["says"],
                    "metric": outcome.what,
                    **numbers,
                    "seeds": outcome.wanted,
                    "unit": outcome.unit,
                    "rule": outcome.rule,
                    "test": outcome.state,
                    "verdict": verdict(outcomes),
                    "command": f"{COMMAND} {' '.join(claim['parts'])}",
                }
            )
    return pd.DataFrame(rows).astype({"n": "Int64"})


def ours(row: Any) -> str:
    """Mean, interval and number of seeds, for the eye."""
    if pd.isna(row.n):
        return "not run"
    digits = ".1f" if row.unit == "x" else "+.2f"
    sign = "×" if row.unit == "x" else ""
    n = f"{row.n}" if row.n == row.seeds else f"{row.n} of {row.seeds}"
    return f"{row.mean:{digits}}{sign} [{row.low:{digits}}, {row.high:{digits}}], n = {n}"


def markdown(rows: pd.DataFrame) -> str:
    """The README's table: the claim, its verdict and what runs it stand in its first row."""
    head = ("claim (paper's section)", "metric", "ours, 95 % interval", "holds if", "verdict", f"`{COMMAND}` …")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, tests in rows.groupby("claim", sort=False):
        for i, row in enumerate(tests.itertuples()):
            first = f"**{name}** {row.says} ({row.section})" if i == 0 else ""
            decision = f"**{row.verdict}**" if i == 0 else ""
            parts = f"`{row.command.removeprefix(COMMAND).strip()}`" if i == 0 else ""
            cells = (first, row.metric, ours(row) + SYMBOLS[row.test], row.rule, decision, parts)
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
    """Mini-batches, images, seconds and operations to levels: means over the seeds in which both arms reached them."""
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
        both = table[table.arm_steps.ne(math.inf) & table.against_steps.ne(math.inf)]
        reached = {f"{key}_reached": int(table[f"{key}_steps"].ne(math.inf).sum()) for key in ("arm", "against")}
        mean = both.mean()
        ratios = {
            "ratio_steps": mean.against_steps / mean.arm_steps,
            "ratio_operations": mean.against_teraflop / mean.arm_teraflop,
            "ratio_operations_with_teacher": mean.against_teraflop / mean.arm_and_teacher_teraflop,
        }
        if reached["arm_reached"] < len(rows):  # of the lucky seeds alone it would flatter the arm
            ratios = dict.fromkeys(ratios, math.nan)
        row = {"runs": runs, "arm": name, "against": scratch, "level": title, "seeds": len(rows), **reached}
        yield row | {key: round(value, 4) for key, value in {**ratios, **mean}.items()}


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
        rows = table(evaluate(_rules(arguments.results / "claims.yaml"), results))
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows.to_csv(arguments.out / "claims.csv", index=False, lineterminator="\n")
        (arguments.out / "claims.md").write_text(markdown(rows))
        pace(results).to_csv(arguments.out / "pace.csv", index=False, lineterminator="\n")
        sweeps.make(results, arguments.out)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: Cannot write into {arguments.out}: {error.strerror or error}.", file=sys.stderr)
        return 2
    print(as_text(rows))
    return 0


def _rules(file: Path) -> dict[str, Any]:
    try:
        rules = yaml.safe_load(file.read_text())
    except OSError:
        raise Problem(f"There is no {file}: name the folder that holds claims.yaml and the runs.") from None
    except yaml.YAMLError as error:
        raise Problem(f"{file} is not valid YAML: {error}.") from None
    if not isinstance(rules, dict) or (missing := {"seeds", "claims", "headline"} - rules.keys()):
        lacks = f"the keys {', '.join(sorted(missing))}" if isinstance(rules, dict) else "keys and values"
        raise Problem(f"{file} lacks {lacks}: expected are seeds, claims and headline, as in results/claims.yaml.")
    return rules


if __name__ == "__main__":
    sys.exit(main())
