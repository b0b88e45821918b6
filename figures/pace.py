"""How much sooner an arm is where the net from scratch gets, and by how much it ends higher: beside the claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from figures import metrics
from figures.curves import Results, Run
from figures.judging import DIFFERENCES
from figures.metrics import ENOUGH, estimate
from figures.rules import Rules

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


def pace(rules: Rules, results: Results) -> pd.DataFrame:
    """Mini-batches, images, seconds and operations to levels: means over the seeds in which the arm reached them."""
    return pd.DataFrame([row for pair in PAIRS for row in _pace(rules.runs, *pair, results)])


def _pace(runs: str, name: str, scratch: str, results: Results) -> Iterator[dict[str, Any]]:
    arms, againsts = results.arm(runs, name), results.arm(runs, scratch)
    seeds = sorted(arms.keys() & againsts.keys())
    if not seeds:
        return
    teacher = next(iter(arms.values())).teacher
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
