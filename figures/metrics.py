"""What the claims are judged by: numbers of one run, of two runs of the same seed, and their mean over seeds.

Accuracies are in percent, areas too. results/claims.yaml defines each in a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from figures.curves import Problem, Run

SHOWN = 2  # seeds, below which a test has no number; whether it holds is said with all of them
ENOUGH = 3  # seeds, below which a sweep is not drawn and no rate is chosen


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float], ratio: bool = False, seeds: int | None = None) -> Estimate:
    """The mean of some seeds' values, and Student's 95 % interval; of ratios: both of their logarithms.

    One seed has no interval: its ends are infinite. `seeds`: as if there were so many, with this mean and this spread.
    """
    if not values:
        raise ValueError("expected the value of at least one seed, got none")
    x = np.log(np.asarray(values, float)) if ratio else np.asarray(values, float)
    n, mean = seeds or len(x), float(x.mean())
    reach = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n)) if len(x) > 1 else math.inf
    found = (mean, mean - reach, mean + reach)
    return Estimate(*((math.exp(v) for v in found) if ratio else found), n)


def start(run: Run) -> float:
    return float(run.rows.val.iloc[0])


def last(run: Run) -> float:
    return float(run.rows.val.iloc[-1])


def converged(run: Run) -> float:
    """Where the curve ends: the mean of the evaluations in the last tenth of the run."""
    steps = run.rows.step
    return float(run.rows.val[steps > 0.9 * steps.iloc[-1]].mean())


def final(run: Run) -> float:
    """Accuracy after the last step on all validation images; the curve's evaluations see a part of them."""
    try:
        return 100 * float(run.info["result"]["all_val_top1"])
    except (KeyError, TypeError, ValueError):
        raise Problem(f'{run.folder}/run.json has no "all_val_top1" under "result": train this run again.') from None


def area(run: Run, steps: float, panel: str = "val") -> float:
    """Mean accuracy over the mini-batches 0 to `steps`, trapezoids between evaluations."""
    rows = run.rows[run.rows.step <= steps].dropna(subset=panel)
    if len(rows) == 1:  # of training there is none at step 0
        return float(rows[panel].iloc[0])
    return float(np.trapezoid(rows[panel], rows.step) / (rows.step.iloc[-1] - rows.step.iloc[0]))


def arrival(run: Run, level: float, column: str = "step") -> float:
    """Mini-batches (or images, or seconds) to the first evaluation at or above `level`; infinite if there is none.

    A run that is there before its first mini-batch counts as having taken one interval between evaluations: what it
    really took cannot be known better, and a ratio needs something to divide by.
    """
    there = run.rows.index[run.rows.val >= level - 1e-9]
    return float(run.rows[column].iloc[max(1, there[0])]) if len(there) else math.inf


def speedup(arm: Run, against: Run, level: float) -> float:
    """Mini-batches to `level`: how many `against` takes for each of `arm`. A run that never arrives counts with all of
    its mini-batches; `arrived` tells whether it did."""
    mine, theirs = (min(arrival(run, level), float(run.rows.step.iloc[-1])) for run in (arm, against))
    return theirs / mine


def arrived(run: Run, level: float) -> bool:
    return math.isfinite(arrival(run, level))


def operations(run: Run, images: float | None = None) -> float:
    """Floating-point operations of training on so many images (default: all of the run's)."""
    try:
        each = float(run.info["training_flops_per_image"])
    except (KeyError, TypeError, ValueError):
        raise Problem(f'{run.folder}/run.json has no "training_flops_per_image": train this run again.') from None
    return each * (float(run.rows.images.iloc[-1]) if images is None else images)
