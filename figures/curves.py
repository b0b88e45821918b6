"""From a folder of runs to curves. Accuracies are fractions in the files and percent from here on.

<root>/<arm>/seed<k>/metrics.csv    one row per evaluation, the first at step 0
<root>/<arm>/seed<k>/run.json       its "status" says whether the run is finished
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import OPERATIONAL, method_of, seed_of, unlike_its_end, without_seed
from experiments import Figure as Plot

COLUMNS = ["step", "images", "wall_s", "lr", "train_loss", "train_top1", "val_loss", "val_top1"]
EXPECTED = f"expected are the columns {','.join(COLUMNS)} and one row per evaluation"


FREE = {"seed", "figures", *OPERATIONAL}  # what the runs of one arm may differ in
# What the arms of one figure have in common, which is what makes a scale.
SCALE = ("model.name", "data.name", "data.validation", "data.val_images", "data.image_size", "optimizer.lr")
SCALE += ("schedule.name", "schedule.decay_rate", "schedule.decay_steps", "training.batch_size", "training.eval_every")
SCALE += ("schedule.warmup_steps", "training.ema_decay", "training.ema_warmup", "training.label_smoothing", "data.flip")
SCALE += ("data.crop_fraction", "data.min_area", "data.color_jitter", "training.precision")


class Problem(Exception):
    """What the user must put right, in one sentence."""


@dataclass(frozen=True)
class Run:
    """One seed of one arm: `rows` has step, images, wall_s, train and val (percent); train may be missing at step 0.

    `info` is what run.json holds.
    """

    rows: pd.DataFrame
    info: dict[str, Any]
    folder: Path

    @property
    def finished(self) -> bool:
        return self.info["status"] == "finished"

    def frozen(self) -> Run:
        """The run with the validation accuracy of step 0 in every row: nothing was learned."""
        return replace(self, rows=self.rows.assign(val=self.rows.val.iloc[0]))

    @property
    def config(self) -> dict[str, Any]:
        """The run's config, as dotted keys."""
        return self.section("config")

    @property
    def teacher(self) -> str | None:
        """The arm that it grew from, or whose layers it predicts."""
        return self.config.get("growth.teacher") or self.config.get("teacher_prediction.teacher")

    def section(self, key: str) -> dict[str, Any]:
        """What run.json holds under a key."""
        found = self.info.get(key)
        return found if isinstance(found, dict) else {}

    @property
    def smoke(self) -> bool:
        return self.config.get("data.name") == "generated"


def read_arms(plot: Plot, root: Path, partial: bool = False) -> dict[str, list[Run]]:
    """The runs of the figure's arms; refuses whatever would draw a curve that nobody trained.

    Only seeds that all arms have: a student is as good as the teacher of its seed, so means are over the same teachers.
    `partial`: all seeds. An unfinished run is refused; with `partial` it is drawn as far as it is, with a warning.
    """
    wanted = [arm for arm in plot.curves if arm not in plot.optional or read_seeds(root / arm)]
    arms = {arm: _read_arm(plot, root, arm, partial) for arm in dict.fromkeys([*wanted, plot.teacher])}
    first, *others = [next(iter(runs.values())) for runs in arms.values()]
    for other in others:
        _same(first, other, SCALE, "are of two scales and have no place in one figure")
        _same_data(first, other)
    if not partial:
        arms = _paired(plot, root, arms)
    return {arm: list(runs.values()) for arm, runs in arms.items()}


def read_there(plot: Plot, root: Path) -> dict[str, list[Run]]:
    """The runs that are there of the figure's arms, finished or not."""
    there = {arm: list(read_seeds(root / arm).values()) for arm in plot.curves}
    if not any(there.values()):
        raise Problem(f"There are no runs of {plot.name} in {root}.")
    return {arm: runs for arm, runs in there.items() if runs}


def mean_last(runs: list[Run], panel: str) -> float:
    """The last accuracy, mean over the finished seeds; over what there is where none is finished."""
    ended = [run for run in runs if run.finished] or runs
    return sum(run.rows[panel].iloc[-1] for run in ended) / len(ended)


class Results:
    """The runs below results/, read when they are asked for."""

    def __init__(self, root: Path):
        self.root = root
        self._read: dict[tuple[str, str], dict[int, Run]] = {}

    def arm(self, runs: str, arm: str) -> dict[int, Run]:
        """Finished runs by seed; none if there is no such folder."""
        if (runs, arm) not in self._read:
            found = {seed: run for seed, run in read_seeds(self.root / runs / arm).items() if run.finished}
            _one_arm(found)
            self._read[runs, arm] = found
        return self._read[runs, arm]

    def rates(self, runs: str, arm: str) -> dict[float, dict[int, Run]]:
        """An arm's runs by their rate, as a fraction of the one that training from scratch begins with."""
        number = re.compile(rf"{re.escape(arm)}_rate_[\d.]+")
        names = [arm, *(p.name for p in (self.root / runs).glob(f"{arm}_rate_*") if number.fullmatch(p.name))]
        found: dict[float, dict[int, Run]] = {}
        for name in names:
            for seed, run in self.arm(runs, name).items():
                at = found.setdefault(float(run.config.get("optimizer.lr_scale", math.nan)), {})
                if seed in at:
                    raise Problem(f"{run.folder} and {at[seed].folder} have the same rate: one of them is misnamed.")
                at[seed] = run
        return dict(sorted(found.items()))


def read_seeds(arm: Path) -> dict[int, Run]:
    """The runs in an arm's folder that have a curve, by their seed."""
    runs = {}
    folders = {seed: folder for folder in arm.glob("seed*") if (seed := seed_of(folder)) is not None}
    for seed, folder in sorted(folders.items()):
        run = _read_run(folder) if (folder / "metrics.csv").exists() else None
        if run and len(run.rows) > 1:
            runs[seed] = run
        else:  # a job that waits or has just begun
            print(f"warning: {folder} has no evaluation after step 0 yet and is left out", file=sys.stderr)
    return runs


def _paired(plot: Plot, root: Path, arms: dict[str, dict[int, Run]]) -> dict[str, dict[int, Run]]:
    """The seeds that all of them have, but for optional ones, which are drawn from what there is of these."""
    needed = [runs for arm, runs in arms.items() if arm not in plot.optional]
    common = set.intersection(*map(set, needed))
    lacking = {arm: sorted(set().union(*needed) - set(runs)) for arm, runs in arms.items()}
    said = "; ".join(f"{arm} lacks seed {', '.join(map(str, seeds))}" for arm, seeds in lacking.items() if seeds)
    if not common:
        raise Problem(f"{plot.name}: its arms in {root} have no seed in common ({said}): --partial draws them all.")
    if said:
        print(f"warning: {plot.name} is of the seeds that all its arms in {root} have: {said}", file=sys.stderr)
    paired = {arm: {seed: run for seed, run in runs.items() if seed in common} for arm, runs in arms.items()}
    return {arm: runs for arm, runs in paired.items() if runs}


def _read_arm(plot: Plot, root: Path, arm: str, partial: bool) -> dict[int, Run]:
    runs = read_seeds(root / arm)
    if not runs:
        command = f"python replicate/{plot.name}.py --scale {root.resolve().name}"
        raise Problem(f"{plot.name} needs {root / arm}/seed*/metrics.csv, which `{command}` writes.")
    _one_arm(runs)
    for run in runs.values():
        if run.finished:
            continue
        if partial:
            print(f'warning: {run.folder} is unfinished (its status is "{run.info["status"]}")', file=sys.stderr)
        else:
            raise Problem(
                f'{run.folder} is unfinished (its status is "{run.info["status"]}"): let it finish, or draw what there '
                "is with --partial."
            )
    lengths = sorted({int(run.rows.step.iloc[-1]) for run in runs.values() if run.finished})
    if len(lengths) > 1:
        steps = " and ".join(map(str, lengths))
        raise Problem(f"Finished seeds in {root / arm} end at different steps, {steps}, so they have no mean.")
    return runs


def _one_arm(runs: dict[int, Run]) -> None:
    """Refuse runs that are not the same arm with the seeds that their folders name."""
    for seed, run in runs.items():
        if (own := run.config.get("seed", seed)) != seed:
            raise Problem(f"{run.folder} holds a run of seed {own}: it is a copy, or misnamed.")
        method, own = method_of(run.folder.parent.name), run.config.get("growth.method") or ""
        if "training.steps" in run.config and method is not None and method != own:
            raise Problem(
                f"{run.folder} holds a run of another arm: its growth.method is {own or 'none'}, and "
                f"{run.folder.parent.name}'s is {method or 'none'}."
            )
    for run in runs.values():
        _of_its_teacher(run)
    first, *others = runs.values() or [None]
    for other in others:
        _same_data(first, other)
        keys = sorted((first.config.keys() | other.config.keys()) - FREE)
        _same(first, other, keys, "are not two seeds of one arm")


def _same(a: Run, b: Run, keys: Iterable[str], what: str) -> None:
    one, other = without_seed(a.config), without_seed(b.config)
    for key in keys:
        if (x := one.get(key)) != (y := other.get(key)):
            raise Problem(f"{a.folder} and {b.folder} {what}: {key} is {x} in the one, {y} in the other.")


def _same_data(a: Run, b: Run) -> None:
    for key, what in (("fingerprint", "names and labels"), ("resized", "sizes")):
        x, y = (run.section("data").get(key) for run in (a, b))
        if x != y and x and y:
            raise Problem(f"{a.folder} and {b.folder} were trained on other images: their {what} differ.")


def _of_its_teacher(run: Run) -> None:
    """Refuse a student beside a teacher that is not the one it grew from: the teacher was trained anew since."""
    was, arm = run.section("growth").get("teacher_val_top1"), run.config.get("growth.teacher")
    if type(was) not in (int, float) or not isinstance(arm, str) or "/" in arm:
        return
    folder = run.folder.parent.parent / arm / run.folder.name
    if not (folder / "run.json").is_file() or not (folder / "metrics.csv").is_file():
        return
    teacher = _read_run(folder)
    if teacher.finished and abs((now := teacher.rows.val.iloc[-1]) - 100 * was) > 1e-3:
        raise Problem(
            f"{run.folder} grew from a teacher of {100 * was:.2f} %, and {folder} ended at {now:.2f} %: that one was "
            "trained anew since, so train the student anew, too."
        )


def _read_run(folder: Path) -> Run:
    file = folder / "metrics.csv"
    try:
        table = pd.read_csv(file)
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise Problem(f"{file} is empty or cannot be read as CSV; {EXPECTED}.") from error
    if missing := [column for column in COLUMNS if column not in table]:
        raise Problem(f"{file} lacks {', '.join(missing)}; {EXPECTED}.")
    if table.empty:
        raise Problem(f"{file} has no rows; {EXPECTED}.")

    rows = table[["step", "images", "wall_s", "train_top1", "val_top1"]].apply(pd.to_numeric, errors="coerce")
    rows.columns = ["step", "images", "wall_s", "train", "val"]
    sound = rows.val.between(0, 1) & (rows.train.between(0, 1) | (rows.step == 0)) & rows.step.between(0, 1e15)
    if not sound.all():  # no mini-batch has run before step 0, so its training accuracy may be empty
        line = int(sound.argmin()) + 2  # the header is line 1
        raise Problem(f"{file}, line {line}, has no number as its step or no accuracy from 0 to 1; {EXPECTED}.")
    if not text.endswith("\n") or len({line.count(",") for line in text.splitlines() if line}) > 1:
        # A number that is cut is another number, and of a line with a field more pandas takes the second for the first.
        raise Problem(f"{file} has a line that is cut short or too long; {EXPECTED}.")
    again = rows.step[rows.step.diff() <= 0]  # a resume that replayed a part, or two runs in one file
    if len(again):
        raise Problem(f"{file} has step {again.iloc[0]:g} twice or out of order: it is not one run's record.")
    if rows.step[0] != 0:
        raise Problem(f"{file} begins at step {rows.step[0]:g}, but a curve begins at step 0.")
    rows[["train", "val"]] = (100 * rows[["train", "val"]]).round(6)  # else 0.57 would miss the level 57

    try:
        info = json.loads((folder / "run.json").read_text())
        info["status"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Problem(f'{folder}/run.json is missing or has no "status": is the run finished?') from error
    if info["status"] == "finished" and (why := unlike_its_end(info, table.iloc[-1].to_dict())):
        raise Problem(f"{folder} is not one run's record: {why}.")
    return Run(rows, info, folder)
