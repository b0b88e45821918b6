"""What the claims are judged by: numbers of one run, of two runs of the same seed, and their mean over seeds.

Accuracies are in percent, areas too. results/claims.yaml defines each in a line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from figures.curves import Problem, Run

ENOUGH = 3  # seeds, below which there is no interval and no verdict


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


@cache
def _resamples(n: int) -> np.ndarray:
    """All of them where that is under a million, else as many as decide the third digit, the same ones every time."""
    if n <= 7:
        return np.array(list(itertools.product(range(n), repeat=n)))
    return np.random.default_rng(0).integers(n, size=(200_000, n))


def estimate(values: Sequence[float], ratio: bool = False) -> Estimate:
    """The mean of some seeds' values (of ratios: geometric) and its percentile interval over resamples of them.

    A ratio of 0 is an arm that never arrived: the geometric mean is then 0.
    """
    if not values:
        raise ValueError("expected the value of at least one seed, got none")
    with np.errstate(divide="ignore"):
        x = np.log(np.asarray(values, float)) if ratio else np.asarray(values, float)
    means = x[_resamples(len(x))].mean(axis=1)
    # Of a small number of discrete outcomes: the least one that 2.5 % (97.5 %) of them do not exceed.
    found = [x.mean(), *np.quantile(means, [0.025, 0.975], method="inverted_cdf")]
    mean, low, high = (math.exp(v) if ratio else float(v) for v in found)
    return Estimate(mean, low, high, len(x))


def start(run: Run) -> float:
    return float(run.rows.val.iloc[0])


def last(run: Run) -> float:
    return float(run.rows.val.iloc[-1])


def final(run: Run) -> float:
    """Accuracy after the last step on all validation images, of which the curve's evaluations see a part."""
    try:
        return 100 * float(run.info["result"]["all_val_top1"])
    except (KeyError, TypeError):
        raise Problem(f'{run.folder}/run.json has no "all_val_top1" under "result": train this run again.') from None


def area(run: Run, steps: float, panel: str = "val") -> float:
    """Mean accuracy over the mini-batches 0 to `steps`, trapezoids between evaluations."""
    rows = run.rows[run.rows.step <= steps].dropna(subset=panel)
    return float(np.trapezoid(rows[panel], rows.step) / (rows.step.iloc[-1] - rows.step.iloc[0]))


def arrival(run: Run, level: float, column: str = "step") -> float:
    """Mini-batches (or images, or seconds) to the first evaluation at or above `level`; infinite if there is none.

    A run that is there before its first mini-batch counts as having taken one interval between evaluations: what it
    really took cannot be known better, and a ratio needs something to divide by.
    """
    there = run.rows.index[run.rows.val >= level - 1e-9]
    return float(run.rows[column].iloc[max(1, there[0])]) if len(there) else math.inf


def speedup(arm: Run, against: Run, level: float) -> float:
    """Mini-batches of `against` over those of `arm` to `level`. Where one never arrives it is to the disadvantage of
    `arm`: 0 if that is `arm`, all of its mini-batches if it is `against`."""
    mine, theirs = arrival(arm, level), arrival(against, level)
    return 0.0 if math.isinf(mine) else min(theirs, float(against.rows.step.iloc[-1])) / mine


def operations(run: Run, images: float | None = None) -> float:
    """Floating-point operations of training on so many images (default: all of the run's)."""
    try:
        each = run.info["training_flops_per_image"]
    except KeyError:
        raise Problem(f'{run.folder}/run.json has no "training_flops_per_image": train this run again.') from None
    return each * (float(run.rows.images.iloc[-1]) if images is None else images)
