"""Two pictures of the evidence: every test of the claims with its interval, and accuracy against what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments import looks
from figures import metrics
from figures.curves import Results, Run
from figures.metrics import ENOUGH
from figures.rules import Rules
from figures.style import in_style, save

# How a test looks by what it decides: in colours that no arm has, dark and filled where it is decided.
STATES = {
    "holds": {"color": "#222255", "marker": "o"},
    "refuted": {"color": "#A5203A", "marker": "X", "ms": 6},
    "not shown": {"color": "#b0b0b0", "marker": "o", "mfc": "white"},
    "unfinished": {"color": "#AAAA00", "marker": "s", "mfc": "white"},
}
PANELS = {  # title -> metrics
    "accuracy, points": ("start", "final"),
    "area under the curve, points": ("area", "train_area"),
    "mini-batches of the other / of ours": ("speedup",),
}
# Against the operations of all training, the teacher's included: (arm, its teacher), in one panel for each size.
COSTS = {
    "(a) to the standard size": (("standard", None), ("teacher_narrow", None), ("wider", "teacher_narrow"),
                                 ("random_pad", "teacher_narrow"), ("narrow_continued", "teacher_narrow")),
    "(b) beyond it": (("standard", None), ("wider_sqrt2", "standard"), ("deeper_4pairs", "standard"),
                      ("deeper", "standard"), ("standard_continued", "standard"), ("sqrt2_random_init", None)),
}  # fmt: skip


@in_style
def forest(rows: pd.DataFrame) -> Figure:
    """Mean and interval of every test that was run, and its threshold, by what it decides."""
    rows = rows[rows["mean"].notna()].assign(kind=lambda t: t.metric.str.split().str[0])
    panels = {title: rows[rows.kind.isin(kinds)] for title, kinds in PANELS.items()}
    heights = [max(1, len(part)) for part in panels.values()]
    figure = Figure(figsize=(7.2, 1.4 + 0.21 * sum(heights)), layout="constrained")
    for ax, (title, part) in zip(figure.subplots(3, 1, height_ratios=heights), panels.items(), strict=True):
        for y, row in enumerate(part.itertuples()):
            look = STATES[row.test]
            ax.plot([row.low, row.high], [y, y], color=look["color"], lw=1.6, solid_capstyle="butt")
            ax.plot(row.mean, y, **look)
            for bound in (row.above, row.below):  # one that a test has not is not drawn
                ax.plot(bound, y, "|", color="black", ms=9, mew=1.2)
        names = [
            f"{row.claim}   {row.arm} – {row.against}" + " (training)" * (row.kind == "train_area")
            for row in part.itertuples()
        ]
        if ratio := "speedup" in PANELS[title]:
            names = [name.replace(" – ", " / ") for name in names]
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(range(len(names)), names, fontsize=6.5)
        ax.set_ylim(max(1, len(names)) - 0.5, -0.5)
        ax.axvline(1 if ratio else 0, color="0.4", lw=0.8, zorder=0)
        ax.set_xlabel(title)
        if not len(part):
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color="0.5")
    handles = [figure.axes[0].plot([], [], **look, label=state)[0] for state, look in STATES.items()]
    handles += figure.axes[0].plot([], [], "|", color="black", ms=9, label="what it takes")
    figure.legend(handles=handles, loc="outside upper right", ncols=5)
    return figure


@in_style
def cost(results: Results, runs: str, seeds: Iterable[int]) -> Figure | None:
    """Accuracy against all floating-point operations spent, in teraFLOP; a student begins where its teacher stopped.

    `seeds` are those that all arms are to have: means over the same teachers.
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    drawn: dict[str, object] = {}
    for ax, (title, arms) in zip(figure.subplots(1, 2), COSTS.items(), strict=True):
        ends = []
        for arm, teacher in arms:
            found = results.arm(runs, arm)
            before = results.arm(runs, teacher) if teacher else {}
            both = [seed for seed in seeds if seed in found and (not teacher or seed in before)]
            if not both:
                continue
            spent = pd.DataFrame({seed: _spent(found[seed], before.get(seed)) for seed in both}).mean(axis=1)
            curve = pd.DataFrame({seed: found[seed].rows.set_index("step").val for seed in both}).dropna().mean(axis=1)
            look = looks()[arm]
            line = ax.plot(spent.loc[curve.index] / 1e12, curve, color=look.colour, ls=look.line, lw=1.3)[0]
            drawn[f"{look.label}, n = {len(both)}"] = line
            ends += [curve.iloc[-1]]
        ax.set(title=title, xlabel="teraFLOP of training, the teacher's included", ylabel="validation accuracy (%)")
        if ends:
            ax.set_ylim(min(ends) - 6, max(ends) + 1)
    if not drawn:
        return None
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3)
    return figure


def _spent(run: Run, teacher: Run | None) -> pd.Series:
    images = run.rows.set_index("step").images
    return images * metrics.operations(run, 1) + (metrics.operations(teacher) if teacher else 0)


def make(rows: pd.DataFrame, rules: Rules, results: Results, out: Path) -> None:
    """verdicts.png and cost.png (and PDF), of what there is."""
    if rows["mean"].notna().any():
        save(forest(rows), out, "verdicts")
    if len(results.arm(rules.runs, "standard")) >= ENOUGH and (figure := cost(results, rules.runs, rules.seeds)):
        save(figure, out, "cost")
