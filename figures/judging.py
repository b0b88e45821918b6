"""What a test of a claim finds, and the verdict on the claim: which runs, which metric, how sure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from figures import metrics
from figures.curves import Results, Run
from figures.metrics import ENOUGH, SHOWN, Estimate, estimate
from figures.rules import Claim, Rule, Rules

MOST = 200  # seeds that are tried for what an answer would take
DIFFERENCES = {  # of an arm and `against`, in points
    "start": lambda arm, against: metrics.start(arm) - metrics.last(against),
    "final": lambda arm, against: metrics.final(arm) - metrics.final(against),
    "area": lambda arm, against: _areas(arm, against, "val"),
    "train_area": lambda arm, against: _areas(arm, against, "train"),
}


def _areas(arm: Run, against: Run, panel: str) -> float:
    steps = min(arm.rows.step.iloc[-1], against.rows.step.iloc[-1])
    return metrics.area(arm, steps, panel) - metrics.area(against, steps, panel)


@dataclass(frozen=True)
class Arm:
    """Finished runs by seed, and what they are called."""

    name: str
    runs: dict[int, Run]

    @property
    def rate(self) -> float:
        """Its initial rate as a fraction of the one that training from scratch begins with."""
        return _rate(self.runs)


def _rate(runs: dict[int, Run]) -> float:
    return float(next(iter(runs.values())).config.get("optimizer.lr_scale", math.nan)) if runs else math.nan


class Arms:
    """What the names in the rules stand for."""

    def __init__(self, rules: Rules, results: Results):
        self.rules, self.results = rules, results

    def find(self, name: str, beside: Arm | None = None) -> Arm:
        """`beside`: the arm whose control is meant by `control`. An arm that was not run has no runs."""
        if name == "control":
            return self._control(beside)
        base, _, which = name.partition("@")
        own = Arm(base, self.results.arm(self.rules.runs, base))
        if not which:
            return own
        config = own.rate if own.runs else _rate(self.results.arm(self.rules.chosen_on, base))
        rate = self.chosen(base, but=config if which == "other" else None)
        runs = {} if rate is None else self.results.rates(self.rules.runs, base).get(rate, {})
        at = "not chosen yet" if rate is None else f"{rate:g}"
        return Arm(f"{base} at its best {'other ' if which == 'other' else ''}rate ({at})", runs)

    def chosen(self, base: str, but: float | None = None) -> float | None:
        """The rate of the highest mean final accuracy over the seeds that all rates have; none if they are too few."""
        grid = self.results.rates(self.rules.chosen_on, base)
        if not set(grid) >= set(self.rules.rates):
            return None
        shared = set.intersection(*(set(grid[rate]) for rate in self.rules.rates))
        if len(shared) < ENOUGH:
            return None
        rates = [rate for rate in self.rules.rates if rate != but]
        means = {rate: sum(metrics.final(grid[rate][seed]) for seed in shared) for rate in rates}
        return max(means, key=means.get)

    def _control(self, arm: Arm | None) -> Arm:
        """The arm's teacher, trained on at the arm's rate."""
        if arm is None or not arm.runs:
            return Arm("its control", {})
        teacher = next(iter(arm.runs.values())).config.get("growth.teacher")
        for folder in sorted((self.results.root / self.rules.runs).glob("*/")):
            runs = self.results.arm(self.rules.runs, folder.name)
            config = next(iter(runs.values())).config if runs else {}
            growth = tuple(config.get(f"growth.{key}") for key in ("method", "teacher"))
            if growth == ("continue", teacher) and config.get("optimizer.lr_scale") == arm.rate:
                return Arm(folder.name, runs)
        return Arm(f"{teacher}, trained on at rate {arm.rate:g}", {})

    def hours(self, runs: dict[int, Run]) -> dict[str, float]:
        """Core-hours of a seed of an arm and of the teachers that it needs, by arm: of the seed that took least."""
        if not runs:
            return {}
        folders = {run.folder.parent.name for run in runs.values()}
        took = [seconds for run in runs.values() if (seconds := run.section("result").get("wall_s"))]
        teacher = next(iter(runs.values())).teacher
        mine = dict.fromkeys(folders, min(took, default=math.nan) / 3600)
        return mine | (self.hours(self.results.arm(self.rules.runs, teacher)) if teacher else {})

    def level(self, test: Rule, arm: Arm) -> Callable[[int], float | None]:
        """The level of a speedup by seed; None if a run that sets it is missing."""
        scratch = self.find(test.of).runs if test.of else {}
        name = next(iter(arm.runs.values())).config.get("growth.teacher") if arm.runs else None
        teachers = self.results.arm(self.rules.runs, name) if name else {}

        def of_seed(seed: int) -> float | None:
            if seed not in scratch or (test.way is not None and seed not in teachers):
                return None
            goal = metrics.converged(scratch[seed])
            if test.way is None:
                return goal - test.points
            begin = metrics.converged(teachers[seed])
            return begin + test.way * (goal - begin)

        return of_seed


@dataclass(frozen=True)
class Outcome:
    """One test of a claim."""

    metric: str
    arm: str
    against: str
    unit: str
    rule: str
    above: float | None  # what the interval has to lie above, and below
    below: float | None
    found: Estimate | None
    seeds: int  # that there are
    frozen: float | None  # what the test would give if the student's accuracy never changed after step 0
    arrived: int | None  # speedup: seeds in which the arm reached the level at all
    wanted: int  # seeds that it takes
    state: str  # holds, refuted, not shown, unfinished (seeds are missing), not run
    takes: int | None = None  # seeds that would decide it, if mean and spread stayed the same; None: over MOST
    hours: float = math.nan  # core-hours of each of them, the teachers' included


def judge(test: Rule, seeds: list[int], arms: Arms) -> Outcome:
    """What a test says of the runs that are there."""
    arm = arms.find(test.arm)
    against = arms.find(test.against, beside=arm)
    ratio = test.metric == "speedup"
    both = [seed for seed in seeds if seed in arm.runs and seed in against.runs]
    frozen = arrived = None
    if ratio:
        at = arms.level(test, arm)
        levels = {seed: level for seed in both if (level := at(seed)) is not None}
        values = [metrics.speedup(arm.runs[s], against.runs[s], level) for s, level in levels.items()]
        still = [metrics.speedup(arm.runs[s].frozen(), against.runs[s], level) for s, level in levels.items()]
        arrived = sum(metrics.arrived(arm.runs[s], level) for s, level in levels.items())
    else:
        difference = DIFFERENCES[test.metric]
        values = [difference(arm.runs[s], against.runs[s]) for s in both]
        still = [difference(arm.runs[s].frozen(), against.runs[s]) for s in both] if test.metric == "area" else []
    found = estimate(values, ratio) if len(values) >= SHOWN else None
    if found and still:
        frozen = estimate(still, ratio).mean
    missed = bool(ratio and found and arrived < found.n)
    rule, state = _state(test, found, missed)
    takes = None
    if values and len(values) < len(seeds):
        state, takes = "unfinished", len(seeds)
    elif state == "not shown":
        takes = _takes(test, values, ratio, missed)
    needed = [arm.runs, against.runs, arms.find(test.of).runs if test.of else {}]
    hours = sum({name: cost for runs in needed for name, cost in arms.hours(runs).items()}.values())
    metric = test.metric
    if ratio:
        to = f"{test.points:g} point below {test.of}" if test.way is None else f"{test.way:.0%} of the way to {test.of}"
        metric = f"speedup to {to}"
    unit = "x" if ratio else "points"
    arrived = arrived if found else None
    bounds = test.within or (test.above, test.below)
    there = (found, len(values), frozen, arrived, len(seeds))
    return Outcome(metric, arm.name, against.name, unit, rule, *bounds, *there, state, takes, hours)


def _state(test: Rule, found: Estimate | None, missed: bool = False) -> tuple[str, str]:
    """The rule in words, and what it says. `missed`: a seed never arrived, so that none can hold as faster."""
    low, high = test.within or (test.above, test.below)
    rule = f"in {low:g} … {high:g}" if test.within else f"> {low:g}" if low is not None else f"< {high:g}"
    goal = -math.inf if test.target is None else test.target
    if test.target is not None:
        rule += f", mean ≥ {goal:g}"
    if found is None:
        return rule, "not run"
    inside = (low is None or (found.low > low and not missed)) and (high is None or found.high < high)
    if test.within:  # its ends belong to it
        inside = found.low >= low and found.high <= high
    outside = (low is not None and found.high < low) or (high is not None and found.low > high) or found.high < goal
    return rule, "holds" if inside and found.mean >= goal else "refuted" if outside else "not shown"


def _takes(test: Rule, values: list[float], ratio: bool, missed: bool) -> int | None:
    """The seeds with which a test that is not shown would be decided, did mean and spread stay as they are."""
    more = range(len(values) + 1, MOST + 1)
    return next((n for n in more if _state(test, estimate(values, ratio, n), missed)[1] != "not shown"), None)


def verdict(outcomes: list[Outcome]) -> str:
    """The verdict on a claim: yes if all tests hold, no if one is refuted, in part if some hold."""
    states = [outcome.state for outcome in outcomes]
    if "refuted" in states:
        return "no"
    if all(state == "holds" for state in states):
        return "yes"
    if set(states) <= {"not run", "unfinished"}:
        return "not run" if set(states) == {"not run"} else "unfinished"
    return "in part" if "holds" in states else "not shown"


Evaluated = dict[str, tuple[Claim, list[Outcome]]]


def evaluate(rules: Rules, results: Results) -> Evaluated:
    """The claims and the headline, each with the outcomes of its tests."""
    arms = Arms(rules, results)
    return {
        name: (claim, [judge(test, claim.seeds or rules.seeds, arms) for test in claim.tests])
        for name, claim in {**rules.claims, "headline": rules.headline}.items()
    }
