"""The two tables under a figure: steps to fixed validation accuracies, and where each arm starts and ends."""

import math

import pandas as pd

from experiments import Figure as Plot
from figures.curves import Run, mean_last


def levels(plot: Plot, arms: dict[str, list[Run]]) -> list[float]:
    """The fixed validation accuracies of a figure's table, the same for all its arms.

    The highest is the best accuracy that every from-scratch seed reached, rounded down to a half percent, so that
    there is something to compare with at every level. From there down to 4 points below the teacher's final
    accuracy (or below the highest level, if that is lower) in equal steps: the finest of 0.5, 1, 2, 5, 10 and 20
    points that makes at most eight levels.
    """
    best = min(run.rows.val.max() for run in arms[plot.scratch])
    top = max(0.5, math.floor(2 * best) / 2)
    low = max(0.5, min(top, mean_last(arms[plot.teacher], "val")) - 4)
    counts = {spacing: math.floor((top - low) / spacing) + 1 for spacing in (0.5, 1, 2, 5, 10, 20)}
    spacing, count = next((spacing, count) for spacing, count in counts.items() if count <= 8)
    return [top - spacing * k for k in reversed(range(count))]


def steps_table(plot: Plot, arms: dict[str, list[Run]]) -> pd.DataFrame:
    """Steps to each level: the first evaluation whose validation accuracy is at or above it, mean over seeds.

    `steps` is empty unless all seeds reached the level: a mean over the lucky ones would flatter the arm.
    `ratio`, the from-scratch arm's steps over this arm's, is empty also where a seed was there at step 0: a start
    took no steps to divide by.
    """
    records = []
    for level in levels(plot, arms):
        found = {
            arm: [run.rows.step[run.rows.val >= level].min() for run in arms[arm]] for arm in plot.curves if arm in arms
        }
        means = {arm: pd.Series(steps).mean(skipna=False) for arm, steps in found.items()}
        for arm, steps in found.items():
            at_start = sum(step == 0 for step in steps)
            records.append(
                {
                    "arm": arm,
                    "val_top1": level,
                    "seeds": len(steps),
                    "reached": sum(step >= 0 for step in steps),
                    "at_start": at_start,
                    "steps": round(means[arm], 1),
                    "ratio": math.nan if at_start else round(means[plot.scratch] / means[arm], 3),
                }
            )
    return pd.DataFrame(records)


def final_table(arms: dict[str, list[Run]]) -> pd.DataFrame:
    """Validation accuracy at step 0, lowest, best and last, and the last training accuracy; means over seeds."""
    records = []
    for arm, runs in arms.items():
        last = pd.Series([run.rows.val.iloc[-1] for run in runs])
        records.append(
            {
                "arm": arm,
                "seeds": len(runs),
                "finished": sum(run.finished for run in runs),
                "steps": min(int(run.rows.step.iloc[-1]) for run in runs),
                "val_start": sum(run.rows.val[0] for run in runs) / len(runs),
                "val_lowest": sum(run.rows.val.min() for run in runs) / len(runs),
                "val_best": sum(run.rows.val.max() for run in runs) / len(runs),
                "val_final": last.mean(),
                "val_final_std": last.std(),  # of the sample; empty for one seed
                "train_final": mean_last(runs, "train"),
            }
        )
    return pd.DataFrame(records).round(3)


def as_text(plot: Plot, steps: pd.DataFrame, finals: pd.DataFrame) -> str:
    """Both tables for the eye: one line per arm."""
    wide = steps.assign(cell=[_cell(row) for row in steps.itertuples()])
    wide = wide.pivot(index="arm", columns="val_top1", values="cell").reindex(plot.drawn(set(steps.arm)))
    wide.columns = [f"{level:g} %" for level in wide.columns]
    spread = ["" if math.isnan(std) else f" ± {std:.2f}" for std in finals.val_final_std]
    short = finals.drop(columns="val_final_std").set_index("arm")
    short = short.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    short["val_final"] += spread
    return (
        f"{plot.name}: mini-batches to the first evaluation at or above a validation accuracy\n"
        f"(not counting its teacher's; in brackets: steps of {plot.scratch} / steps of this arm)\n"
        f"{wide.rename_axis(None).to_string()}\n\n"
        f"{plot.name}: accuracy in percent, mean ± standard deviation over seeds\n"
        f"{short.rename_axis(None).to_string()}\n"
    )


def _cell(row) -> str:
    if row.reached < row.seeds:
        return f"not reached ({row.reached}/{row.seeds})"
    if row.at_start:
        return "at start" if row.at_start == row.seeds else f"{row.steps:.0f} ({row.at_start} at start)"
    return f"{row.steps:.0f}" if math.isnan(row.ratio) else f"{row.steps:.0f} ({row.ratio:.1f}x)"
