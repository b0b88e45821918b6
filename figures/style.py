"""How a figure looks: one colour, line and marker per arm in all figures; two panels, two that zoom, one legend."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments import Figure as Plot
from experiments import looks
from figures.curves import Run, mean_last

PANELS = {"train": "training accuracy (%)", "val": "validation accuracy (%)"}
ZOOM = 5.0  # points
RC = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 7.5,
    "legend.handlelength": 3.2,
    "pdf.fonttype": 42,  # text stays text: journals ask for it
}
in_style = matplotlib.style.context(RC, after_reset=True)  # nobody's own matplotlibrc shows in a figure


@in_style
def draw(
    plot: Plot,
    arms: dict[str, list[Run]],
    smoke: bool,
    style: Path | None = None,
    beside: tuple[str, dict[str, list[Run]]] | None = None,
) -> Figure:
    """Mean curve and range of the seeds from three seeds on; below that a thin line for each seed.

    The upper row shows the whole climb, the lower one the last points of it. A training accuracy is a mean over the
    mini-batches since the last evaluation; it stands at their end. `style`: a matplotlib style file laid over ours.
    `beside`: other runs of the same arms and what they are called, as thin lines of their means.
    """
    if style:
        _lay_over(style)
    there = plot.drawn(arms)
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=(1, 1.2))
    letters = iter("abcd")
    for row, zoomed in zip(grid, (False, True), strict=True):
        for axes, (panel, title) in zip(row, PANELS.items(), strict=True):
            handles = [_curve(axes, arm, arms[arm], panel, i) for i, arm in enumerate(there)]
            for arm in plot.drawn(beside[1]) if beside else []:
                mean = _seeds(beside[1][arm], panel).mean(axis=1)
                axes.plot(mean.index, mean, color=looks()[arm].colour, lw=0.6, alpha=0.7, zorder=1.6)
            teacher = mean_last(arms[plot.teacher], panel)
            handles.append(
                axes.axhline(teacher, color=looks()[plot.teacher].colour, lw=0.8, ls=(0, (1, 3)), zorder=1.5)
            )
            longest = max(run.rows.step.iloc[-1] for arm in there for run in arms[arm])
            axes.set_title(f"({next(letters)}) {title}" + (", the top of it" if zoomed else ""))
            axes.set_xlim(-0.02 * longest, 1.01 * longest)  # a marker at step 0 is seen whole
            axes.set_ylim(_top(plot, arms, panel, teacher) if zoomed else _whole(plot, arms, panel))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
            if zoomed:
                axes.set_xlabel("mini-batches (not counting its teacher's)")
            if smoke:  # in each panel, so that it cannot be cropped away
                mark = {"size": 19, "weight": "bold", "color": "0.4", "alpha": 0.6, "rotation": 25, "zorder": 9}
                centre = {"ha": "center", "va": "center", "transform": axes.transAxes}
                axes.text(0.5, 0.5, "smoke test: not a result", **mark, **centre)
    labels = [_label(looks()[arm].label, arms[arm]) for arm in there]
    labels.append(_label(f"teacher's final accuracy ({looks()[plot.teacher].label})", arms[plot.teacher]))
    if beside:
        handles.append(Line2D([], [], color="0.3", lw=0.6, alpha=0.7))
        labels.append(f"thin: {beside[0]}")
    band = {len(arms[arm]) >= 3 for arm in there}
    how = ["line: mean of n seeds, band: their minimum to maximum"] * (True in band)
    how += ["n < 3: one line per seed"] * (False in band)
    figure.legend(handles, labels, title="; ".join(how), loc="outside lower center", ncols=2)
    return figure


@in_style
def save(figure: Figure, folder: Path, name: str) -> None:
    """PNG and PDF. Nothing in them tells when or by which version they were made: same CSV, same bytes."""
    figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"Creator": None, "Producer": None, "CreationDate": None})


def _lay_over(style: Path) -> None:
    """matplotlib passes over a line that it does not know, with a warning in its log: here that is an error."""
    log, said = logging.getLogger("matplotlib"), logging.Handler()
    lines: list[str] = []
    said.emit = lambda record: lines.append(record.getMessage().strip().partition("\n")[0])
    log.addHandler(said)
    try:
        matplotlib.style.use(style)
    finally:
        log.removeHandler(said)
    if lines:
        raise ValueError(lines[0])


def _curve(axes: Axes, arm: str, runs: list[Run], panel: str, place: int):
    """Draws one arm and returns its legend handle. The first arms in the legend lie on top."""
    _, colour, line, marker = looks()[arm]
    look = {"color": colour, "ls": line, "marker": marker, "zorder": 3 - 0.1 * place}
    look["markevery"] = (0.03 * place, 0.15)  # never two arms' markers at one place
    width = 1.4 if marker else 0.9  # the narrow teacher is there for reference only
    if len(runs) < 3:
        curves = [_seeds([run], panel) for run in runs]
        lines = [axes.plot(curve.index, curve, lw=0.75 * width, **look)[0] for curve in curves]
        return lines[0]
    seeds = _seeds(runs, panel)
    low, high = seeds.min(axis=1), seeds.max(axis=1)
    band = axes.fill_between(seeds.index, low, high, color=colour, alpha=0.2, lw=0)
    return band, axes.plot(seeds.index, seeds.mean(axis=1), lw=width, **look)[0]


def _seeds(runs: list[Run], panel: str) -> pd.DataFrame:
    """A column for each seed, at the steps that all of them have: no jump in the mean where one ends."""
    return pd.concat([run.rows.set_index("step")[panel].dropna() for run in runs], axis=1, join="inner")


def _whole(plot: Plot, arms: dict[str, list[Run]], panel: str) -> tuple[float, float]:
    """From the lowest start, of the students or from scratch, to the best."""
    values = [run.rows[panel] for arm in plot.drawn(arms) for run in arms[arm]]
    best, lowest = max(v.max() for v in values), min(v.min() for v in values)
    return max(0.0, 10 * math.floor(lowest / 10)), min(100.5, best + max(0.5, 0.05 * (best - lowest)))


def _top(plot: Plot, arms: dict[str, list[Run]], panel: str, teacher: float) -> tuple[float, float]:
    """The last five points, more where a teacher or the end of a student lies below them."""
    best = max(run.rows[panel].max() for runs in arms.values() for run in runs)
    ends = min(run.rows[panel].iloc[-1] for arm in plot.students for run in arms[arm])
    bottom = max(0.0, math.floor(min(best - ZOOM, teacher - 0.5, ends - 0.5)))
    return bottom, min(100.5, best + 0.05 * (best - bottom))


def _label(text: str, runs: list[Run]) -> str:
    return f"{text}, n = {len(runs)}" + ("" if all(run.finished for run in runs) else " (unfinished)")
