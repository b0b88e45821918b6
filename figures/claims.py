"""The verdict on each of the paper's claims, by the rules of results/claims.yaml.

    python -m figures.claims [RESULTS] [--out DIR]

Reads CSV, JSON and YAML, and writes claims.csv (a row per test), claims.md (the same for docs/claims.md), verdicts.md
(a line per claim, for the README), verdicts.png (the tests with their intervals), cost.png (accuracy against all
operations spent), pace.csv (how long each arm takes to fixed levels), contrasts.csv (differences of final accuracies),
and the sweeps' figures and table (figures/sweeps.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.output import script
from experiments.paths import to_folder, to_path
from experiments.reading import YamlError
from figures import evidence, rules, sweeps
from figures.curves import Problem, Results
from figures.judging import MOST, Evaluated, evaluate, verdict
from figures.pace import contrasts, pace

SYMBOLS = {"holds": " ✓", "refuted": " ✗", "not shown": " –", "unfinished": " …", "not run": ""}


def table(evaluated: Evaluated) -> pd.DataFrame:
    """One row per test."""
    rows = []
    for name, (claim, outcomes) in evaluated.items():
        for outcome in outcomes:
            numbers = dict.fromkeys(("mean", "low", "high"))
            if outcome.found:
                numbers = {key: getattr(outcome.found, key) for key in numbers}
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
                    "frozen": outcome.frozen,
                    "arrived": outcome.arrived,
                    "seeds": outcome.wanted,
                    "unit": outcome.unit,
                    "rule": outcome.rule,
                    "above": outcome.above,
                    "below": outcome.below,
                    "test": outcome.state,
                    "verdict": verdict(outcomes),
                    "shows": claim.shows,
                    "takes": outcome.takes,
                    "core_hours": outcome.hours,
                }
            )
    types = dict.fromkeys(("mean", "low", "high", "frozen", "above", "below", "core_hours"), "float")
    return pd.DataFrame(rows).astype(types | dict.fromkeys(("n", "arrived", "takes"), "Int64"))


def ours(row: Any) -> str:
    """Mean, interval and number of seeds, for the eye; of a ratio also in how many the arm never got there."""
    if pd.isna(row.mean):
        return f"{row.n} of {row.seeds} seeds" if row.n else "not run"
    n = f"{row.n}" if row.n == row.seeds else f"{row.n} of {row.seeds}"
    low, high = (_number(x, row.unit).removesuffix("×") for x in (row.low, row.high))
    missed = "" if pd.isna(row.arrived) or row.arrived == row.n else f", {row.n - row.arrived} never arrived"
    return f"{_number(row.mean, row.unit)} [{low}, {high}], n = {n}{missed}"


def price(row: Any) -> str:
    """What a decision would cost that the seeds do not give."""
    if row.test not in ("not shown", "unfinished"):
        return ""
    if not pd.isna(row.takes):
        return f"{row.takes} seeds, {(row.takes - row.n) * row.core_hours:.1f} h"
    if not pd.isna(row.arrived) and row.arrived < row.n:
        return "none while a seed never arrives"
    return f"over {MOST} seeds, {(MOST - row.n) * row.core_hours:.0f} h"


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
            lines.append((first, what, ours(row) + SYMBOLS[row.test], frozen, row.rule, *ends, price(row)))
    head = ("claim (paper's section)", "test", "ours, 95 % interval", "frozen", "holds if", "verdict", "can show")
    head += ("a decision takes",)
    return _lines(head, lines)


def verdicts(rows: pd.DataFrame) -> str:
    """A line per claim, for the README: how its tests came out, and the first one that decides the verdict."""
    lines = []
    for name, tests in rows.groupby("claim", sort=False):
        first = tests.iloc[0]
        rank = {"no": ["refuted"], "in part": ["not shown", "unfinished"]}.get(first.verdict, [])
        deciding = next((row for row in tests.itertuples() if row.test in rank), next(tests.itertuples()))
        counts = tests.test.value_counts()
        states = ", ".join(f"{counts[state]}{symbol}" for state, symbol in SYMBOLS.items() if state in counts)
        verdict = f"**{first.verdict}**: {states}"
        what = f"{deciding.metric}: {deciding.arm} against {deciding.against}"
        lines.append((f"**{name}** {first.says} ({first.section})", verdict, what, ours(deciding), deciding.rule))
    head = ("claim (paper's section)", "verdict, tests", "the test that it hangs on", "ours, 95 % interval", "holds if")
    return _lines(head, lines)


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=to_folder, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=to_path, default=Path("figures/out"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        results = Results(arguments.results)
        known = rules.read(arguments.results / "claims.yaml")
        rows = table(evaluate(known, results))
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows.round(3).to_csv(arguments.out / "claims.csv", index=False, lineterminator="\n")
        (arguments.out / "claims.md").write_text(markdown(rows))
        (arguments.out / "verdicts.md").write_text(verdicts(rows))
        evidence.make(rows, known, results, arguments.out)
        pace(known, results).to_csv(arguments.out / "pace.csv", index=False, lineterminator="\n")
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
