"""The study's sweeps as figures: what rate, how much noise, which optimizer state, and when to grow.

Accuracies are of the last 10,000 training images, which these runs were not trained on. A sweep that was not run is
left out, with a line that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import SPARE, looks
from figures import metrics
from figures.curves import Problem, Results, Run
from figures.metrics import ENOUGH, Estimate, estimate
from figures.style import in_style, save

SHORT, LONG = "laptop-1000-held-out", "laptop-long-held-out"
OTHER = (SPARE[0], SPARE[3])  # what is no arm of the figures has no arm's colour
NOISE = {
    "wider_noise_0": "none",
    "wider_noise_1": "1 %",
    "wider_noise_3": "3 %",
    "wider_noise_10": "10 %",
    "wider_exact": "5 %,\nexact",
    "narrow_continued": "teacher,\ntrained on",
}


class Missing(Exception):
    """A sweep that has no runs."""


def rate(results: Results, axes: list[Axes]) -> None:
    """Final accuracy by initial rate, as a fraction of the rate from scratch. From a student's accuracy its teacher's,
    of the same seed, is subtracted."""
    panels = (("wider", "random_pad"), ("deeper",), ("standard", "deeper_random_init"))
    drawn = False
    for ax, arms in zip(axes, panels, strict=True):
        for place, arm in enumerate(arms):
            grid = {x: runs for x, runs in results.rates(SHORT, arm).items() if len(runs) >= ENOUGH}
            if len(grid) < 2:
                continue
            found = [estimate([_gain(run, results) for run in runs.values()]) for runs in grid.values()]
            label, colour, line, marker = looks()[arm]
            steps = max(run.rows.step.iloc[-1] for runs in grid.values() for run in runs.values())
            label += f"\n{steps:,} mini-batches, {_n(map(len, grid.values()))}"
            beside = [x * 1.1**place for x in grid]  # else its bars would hide the other arm's
            _bars(ax, beside, found, color=colour, ls=line, marker=marker, label=label, capsize=2)
            drawn = True
        ax.set(xscale="log", xlabel="initial rate / the one from scratch")
        ax.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
        ax.minorticks_off()
        if ax.lines:
            _legend(ax)
        else:
            ax.text(0.5, 0.5, "baselines: not run", transform=ax.transAxes, ha="center", color="0.5")
            ax.set_yticks([])
    axes[0].set_title("(a) wider students, at the end")
    axes[1].set_title("(b) deeper students, at the end")
    axes[2].set(title="(c) from scratch, at the end", ylabel="held-out accuracy (%)")
    for ax in axes[:2]:
        ax.set_ylabel("held-out accuracy, points above the teacher's")
        ax.axhline(0, color="0.4", lw=0.8)
    if axes[2].lines:
        axes[2].set_ylim(top=100)  # an interval of Student's may reach over it
    if not drawn:
        raise Missing("rate")


def _n(seeds: Iterable[int]) -> str:
    fewest, *_, most = sorted([*seeds] * 2)
    return f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}"


def _legend(ax: Axes) -> None:
    """Below the panel, where no curve is."""
    ax.legend(loc="upper left", bbox_to_anchor=(-0.04, -0.2), handlelength=2.6)


def _bars(ax: Axes, x: list[float], found: list[Estimate], **look: Any) -> None:
    """Means with their intervals."""
    spread = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    ax.errorbar(x, [one.mean for one in found], spread, **look)


def _gain(run: Run, results: Results) -> float:
    """A student's final accuracy minus its teacher's; a net from scratch has no teacher to subtract."""
    teacher = run.config.get("growth.teacher")
    return metrics.final(run) - (metrics.final(_teacher(run, teacher, results)) if teacher else 0)


def _teacher(run: Run, teacher: str, results: Results) -> Run:
    """A run's teacher: of the same seed, from the same folder."""
    folder, seed = run.folder.parents[1], int(run.folder.name.removeprefix("seed"))
    try:
        return results.arm(folder.name, teacher)[seed]
    except KeyError:
        raise Problem(f"{run.folder} has no finished teacher {folder / teacher}/seed{seed} beside it.") from None


def noise(results: Results, axes: list[Axes]) -> None:
    """A wider student's final accuracy for each amount of noise, minus the same seed's without noise."""
    base = results.arm(LONG, "wider_noise_0")
    if len(base) < ENOUGH:
        raise Missing("noise")
    shared = {arm: sorted(results.arm(LONG, arm).keys() & base.keys()) for arm in NOISE}
    shared = {arm: seeds for arm, seeds in shared.items() if len(seeds) >= ENOUGH}
    n = _n(map(len, shared.values()))
    for ax, of, title in zip(axes, (metrics.start, metrics.final), ("(a) at step 0", "(b) at the end"), strict=True):
        for x, (arm, seeds) in enumerate(shared.items()):
            found = [of(results.arm(LONG, arm)[seed]) - of(base[seed]) for seed in seeds]
            colour = looks().get(arm, looks()["wider"]).colour  # they are all wider students, but for the teacher
            ax.plot([x - 0.15] * len(found), found, "o", color=colour, mfc="white", ms=3)
            _bars(ax, [x], [estimate(found)], fmt="D", color=colour)
        ax.axhline(0, color="0.4", lw=0.8)
        ax.set(title=f"{title}, {n}", ylabel="held-out accuracy, points above no noise")
        ax.set_xticks(range(len(shared)), [NOISE[arm] for arm in shared])


def optimizer(results: Results, axes: list[Axes]) -> None:
    """Accuracy gained since step 0, with the teacher's optimizer state carried over and with a fresh one."""
    variants = {"": ("fresh, 0.1", "-"), "_rate_0.3": ("fresh, 0.3", ":"), "_carried": ("carried, 0.1", "--"),
                "_carried_rate_0.3": ("carried, 0.3", "-.")}  # fmt: skip
    drawn = False
    for ax, letter, arm in zip(axes, "ab", ("wider", "deeper"), strict=True):
        for end, (label, line) in variants.items():
            runs = results.arm(SHORT, f"{arm}{end}")
            if len(runs) >= ENOUGH:
                colour = OTHER[0] if "carried" in end else looks()[arm].colour
                _curves(ax, [_since_start(run) for run in runs.values()], colour, line, label)
                drawn = drawn or "carried" in end
        title = f"({letter}) {looks()[arm].label}: optimizer state, rate"
        ax.set(title=title, xlabel="mini-batches", ylabel="held-out accuracy, points above step 0")
        if ax.lines:
            _legend(ax)
        ax.axhline(0, color="0.4", lw=0.8)
    if not drawn:
        raise Missing("optimizer")


def _as_it_is(arm: str) -> tuple[str, None, str, str, Any]:
    return arm, None, looks()[arm].label, looks()[arm].colour, looks()[arm].line


WIDER = looks()["wider"].colour
SCRATCH, NARROW = _as_it_is("standard"), _as_it_is("teacher_narrow")
TIMELINES = (  # arm, its teacher, label, colour, line
    (
        SHORT,
        "(a) laptop-1000: grown after 400 or 1,000",
        SCRATCH,
        NARROW,
        ("wider", "teacher_narrow", "grown after 1,000, from 1/10", WIDER, "-"),
        ("wider_early", "teacher_narrow_early", "after 400, from 1/10", OTHER[0], "--"),
        ("wider_early_rate_0.3", "teacher_narrow_early", "after 400, from 3/10", OTHER[1], "-."),
    ),
    (
        LONG,
        "(b) laptop-long: at the plateau, or halfway",
        SCRATCH,
        NARROW,
        ("wider_rate_0.3_fast", "teacher_narrow", "grown after 1,800, from 3/10", WIDER, "-"),
        ("wider_half", "teacher_narrow_half", "after 900, same schedule", OTHER[0], "--"),
        ("wider_again", "teacher_narrow", "after 1,800, schedule begun again", OTHER[1], "-."),
    ),
)


def when(results: Results, axes: list[Axes]) -> None:
    """Accuracy against all mini-batches, the teacher's too, for teachers stopped early and at their plateau."""
    grown = ("wider_early", "wider_half")
    if not any(len(results.arm(runs, arm)) >= ENOUGH for runs in (SHORT, LONG) for arm in grown):
        raise Missing("when")
    for ax, (folder, title, *curves) in zip(axes, TIMELINES, strict=True):
        for arm, teacher, label, colour, line in curves:
            runs = list(results.arm(folder, arm).values())
            if len(runs) < ENOUGH:
                continue
            before = _teacher(runs[0], teacher, results).rows.step.iloc[-1] if teacher else 0
            _curves(ax, runs, colour, line, label, before)
        ax.set(title=title, xlabel="mini-batches, the teacher's included", ylabel="held-out accuracy (%)")
        ax.set_ylim(74, max((line.get_ydata().max() for line in ax.lines), default=89) + 1)
        if ax.lines:
            _legend(ax)


INTERVAL = "bars: Student's 95 % interval of the mean of n seeds"
RANGE = "line: mean of n seeds, band: their minimum to maximum"
SWEEPS: dict[str, tuple[Callable[[Results, list[Axes]], None], int, str]] = {  # ..., its panels, what is drawn
    "sweep_rate": (rate, 3, INTERVAL),
    "sweep_noise": (noise, 2, f"circles: single seeds, diamonds: their mean, {INTERVAL}"),
    "sweep_optimizer": (optimizer, 2, RANGE),
    "sweep_when": (when, 2, RANGE),
}


def _since_start(run: Run) -> Run:
    """What was gained: seeds differ in their teachers' accuracy, which is not the student's doing."""
    return replace(run, rows=run.rows.assign(val=run.rows.val - metrics.start(run)))


def _curves(ax: Axes, runs: list[Run], colour: str, line: object, label: str, before: float = 0) -> None:
    """Mean and range of the seeds, whose number the legend tells."""
    table = pd.concat([run.rows.set_index("step").val for run in runs], axis=1, join="inner")
    x = table.index + before
    ax.fill_between(x, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.15, lw=0)
    ax.plot(x, table.mean(axis=1), color=colour, ls=line, label=f"{label}, n = {len(runs)}")


def table(results: Results) -> pd.DataFrame:
    """All arms of the sweeps: means over seeds, and the interval of the final accuracy."""
    rows = []
    for runs in (SHORT, LONG):
        for folder in sorted((results.root / runs).glob("*/")):
            found = list(results.arm(runs, folder.name).values())
            if len(found) < ENOUGH:
                continue
            one = estimate([metrics.final(run) for run in found])
            rows.append(
                {
                    "runs": runs,
                    "arm": folder.name,
                    "seeds": one.n,
                    "steps": int(found[0].rows.step.iloc[-1]),
                    "start": sum(map(metrics.start, found)) / len(found),
                    "lowest": sum(run.rows.val.min() for run in found) / len(found),
                    "final": one.mean,
                    "final_low": one.low,
                    "final_high": one.high,
                    "area": sum(metrics.area(run, run.rows.step.iloc[-1]) for run in found) / len(found),
                }
            )
    return pd.DataFrame(rows).round(2)


@in_style
def draw(name: str, results: Results) -> Figure:
    sweep, panels, how = SWEEPS[name]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    sweep(results, list(figure.subplots(1, panels, squeeze=False)[0]))
    figure.supxlabel(how, size=7.5)
    return figure


def make(results: Results, out: Path) -> None:
    """All that there is: a PNG and a PDF of each sweep, and sweeps.csv."""
    for name in SWEEPS:
        try:
            save(draw(name, results), out, name)
        except Missing as sweep:
            print(f"{name}: not drawn, there are not {ENOUGH} seeds of the sweep {sweep}", file=sys.stderr)
    table(results).to_csv(out / "sweeps.csv", index=False, lineterminator="\n")
