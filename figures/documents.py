"""The tables of the README and the docs, from results/.

    python -m figures.documents             # after `make record`, which calls it

A table stands between two comments of its name, `<!-- arms -->` and `<!-- /arms -->`. In the tables of the study the
first cell of a row names an arm of the folder that the comment names, and the rest is filled in.
A number of a sentence is between `<!--final long: wider-->` (a metric of figures/judging.py, runs, an arm: the mean of
its seeds) and `<!--/-->`; with `wider - standard` for `wider` it is the mean of the differences of the same seed.
A mean of one arm is over the five seeds that all arms have, so that arms can be compared; a mean of differences is over
all seeds that both arms have (claim (b) asks for more seeds of three arms).
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import looks
from experiments.output import script
from experiments.reading import YamlError
from figures import metrics, rules
from figures.curves import Problem, Results, Run, read_seeds
from figures.judging import DIFFERENCES
from figures.metrics import SHOWN, estimate

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def planned() -> frozenset[int]:
    """The seeds that all arms have."""
    return frozenset(rules.read(ROOT / "results" / "claims.yaml").seeds)


def arms(runs: Path, names: list[str]) -> str:
    """A row for each arm: mean and standard deviation over the seeds."""
    head = ("arm", "mini-batches", "val. top-1 at step 0, %", "at the end, %", "on all 10,000 images, %")
    head += ("seeds", "parameters")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names:
        seeds = _seeds(runs / name)
        columns = (
            [run.rows.val.iloc[0] for run in seeds],
            [run.rows.val.iloc[-1] for run in seeds],
            [metrics.final(run) for run in seeds],
        )
        accuracies = [_spread(pd.Series(column)) for column in columns]
        size = f"{seeds[0].info['parameters'] / 1e6:.2f} M"
        cells = (f"`{name}`", f"{seeds[0].rows.step.iloc[-1]:.0f}", *accuracies, f"{len(seeds)}", size)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: pd.Series) -> str:
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def readme(text: str, results: Path) -> str:
    """The README with its verdicts as the results have them."""
    text = numbers(text, results)
    return _between(text, "verdicts", lambda _: (results / "figures" / "verdicts.md").read_text())


def replication(text: str, results: Path) -> str:
    """docs/replication.md with a row for every arm of the long scale that was run."""
    names = [arm for arm in looks() if list((results / "long").glob(f"{arm}/seed*/run.json"))]
    return _between(text, "arms", lambda _: arms(results / "long", names))


def claims(text: str, results: Path) -> str:
    """docs/claims.md with its table."""
    return _between(text, "claims", lambda _: (results / "figures" / "claims.md").read_text())


NUMBER = re.compile(r"(<!--(\w+) ([\w.-]+): ([\w.]+)(?: - ([\w.]+))?-->).*?(<!--/-->)", re.DOTALL)


def numbers(text: str, results: Path) -> str:
    """The text with its sentences' numbers as the results have them; "not run" where they have none."""
    there = Results(results)

    def fill(found: re.Match[str]) -> str:
        begin, metric, runs, name, other, end = found.groups()
        arm, against = there.arm(runs, name), there.arm(runs, other) if other else {}
        if other:
            values = [DIFFERENCES[metric](arm[seed], against[seed]) for seed in sorted(arm.keys() & against.keys())]
        else:
            values = [getattr(metrics, metric)(run) for seed, run in arm.items() if seed in planned()]
        return begin + _value(values, signed=bool(other)) + end

    return NUMBER.sub(fill, text)


def _value(values: list[float], signed: bool) -> str:
    if not values:
        return "not run"
    one = estimate(values)
    mean = f"{one.mean:+.2f}" if signed else f"{one.mean:.2f}"
    if signed and one.n >= SHOWN:
        mean += f" [{one.low:+.2f}, {one.high:+.2f}]"
    return f"{mean} (n = {one.n})"


def study(text: str, results: Path) -> str:
    """docs/study.md with its numbers, and how soon each student is where the net from scratch converges."""
    table = pd.read_csv(results / "figures" / "pace.csv")
    rows = [_pace(row) for row in table[table.level == "converged - 1 points"].itertuples()]
    head = "| arm | against | mini-batches | operations | operations, the teacher's counted | n |\n"
    return _between(numbers(text, results), "pace", lambda _: head + "|---" * 6 + "|\n" + "".join(rows))


def _pace(row: Any) -> str:
    ratios = (row.ratio_steps, row.ratio_operations, row.ratio_operations_with_teacher)
    missed = row.seeds - row.both_reached
    cells = [f"not all arrive: {row.both_reached} of {row.seeds}", "", ""] if missed else [f"{x:.1f}×" for x in ratios]
    return f"| `{row.arm}` | `{row.against}` | {' | '.join(cells)} | {row.seeds} |\n"


def sweeps(text: str, results: Path) -> str:
    """docs/sweeps.md with the numbers of its arms, at step 0 and at the end with the interval over seeds."""
    table = pd.read_csv(results / "figures" / "sweeps.csv").set_index(["runs", "arm"])

    def fill(runs: str) -> Callable[[str], str]:
        def row(found: re.Match[str]) -> str:
            if (runs, found[1]) not in table.index:
                raise Problem(f"docs/sweeps.md has a row for {found[1]}, of which results/{runs} has no three seeds.")
            of = table.loc[(runs, found[1])]
            return f"| `{found[1]}` | {of.start:.2f} | {of.final:.2f} [{of.final_low:.2f}, {of.final_high:.2f}] |"

        return lambda old: re.sub(r"^\| `([\w.]+)` \|.*$", row, old, flags=re.MULTILINE)

    for name, runs in re.findall(r"^<!-- (\w+: ([\w-]+)) -->$", text, re.MULTILINE):
        text = _between(text, name, fill(runs))
    return text


def documents(root: Path) -> dict[Path, Callable[[str], str]]:
    """What fills in each file's numbers."""
    filled = {"README.md": readme} | {f"docs/{f.__name__}.md": f for f in (claims, replication, study, sweeps)}
    return {root / file: functools.partial(fill, results=root / "results") for file, fill in filled.items()}


def _seeds(arm: Path) -> list[Run]:
    seeds = [run for seed, run in read_seeds(arm).items() if run.finished and seed in planned()]
    if not seeds:
        raise Problem(f"{arm} has no finished run: record it first (make record).")
    return seeds


def _between(text: str, name: str, fill: Callable[[str], str]) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name.split(':')[0]} -->"
    before, found, rest = text.partition(begin)
    old, closed, after = rest.partition(end)
    if not (found and closed):
        raise Problem(f"There is no table between {begin.strip()} and {end}.")
    return before + begin + fill(old) + end + after


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    try:
        for file, fill in documents(ROOT).items():
            old = file.read_text()
            if (new := fill(old)) != old:
                file.write_text(new)
                print(f"filled in {file.relative_to(ROOT)}")
    except (Problem, YamlError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    script(main)
