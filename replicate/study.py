"""The study of the paper's claims: the figures' arms with five seeds, and sweeps on held-out training images.

    python -m replicate.study --dry-run            # what there is, what it costs
    python -m replicate.study sweep_rate           # one part of it; without a name all, in this order
    python -m replicate.record laptop-1000-held-out     # then into results/, a part's folder of runs each

What each part consists of stands in experiments/study.yaml. Running it again goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from experiments import Part, study
from experiments.output import script
from experiments.paths import to_folder
from experiments.reading import YamlError
from replicate.launch import add_launcher, check, start
from replicate.stage import CONFIGS, ROOT, Stage, ordered
from training.errors import ConfigError


def stages(part: Part, runs: Path, seeds: tuple[int, ...] = ()) -> list[Stage]:
    """The runs of a part, in the order of their seeds, so that one whole repetition is there first."""
    named = {**{arm: {"arm": arm} for arm in part.arms}, **part.variants}
    planned = []
    for seed in seeds or part.seeds:
        repetition = []
        for name, variant in named.items():
            changes = {**part.set, **{key: value for key, value in variant.items() if key != "arm"}}
            overrides = tuple(f"{key}={_text(value)}" for key, value in changes.items())
            repetition.append(Stage.of(part.scale, name, seed, runs / part.folder, overrides, base=variant["arm"]))
        planned += ordered(repetition)
    return planned


def overview(parts: dict[str, Part], runs: Path, seeds: tuple[int, ...]) -> int:
    """Print a line for each part: its runs, how many are done, and what the others take."""
    rows, every = [("part", "runs", "done here", "recorded", "core-hours left")], {}
    try:
        for name, part in parts.items():
            planned = {stage.folder: stage for stage in stages(part, runs, seeds)}
            every |= {folder: (part, stage) for folder, stage in planned.items()}
            rows.append((name, *_counted([(part, stage) for stage in planned.values()])))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    rows.append(("all, each run once", *_counted(every.values())))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for name, *cells in rows:
        print("  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]))
    print("\nDone here: in --runs, with checkpoints. Recorded: in results/, of which figures and claims are made.")
    print("Hours are of one CPU core, by the fastest recorded run of each arm. --dry-run PART lists a part's runs.")
    return 0


def _counted(planned: Iterable[tuple[Part, Stage]]) -> tuple[str, str, str, str]:
    """Runs, those that are done here, those that are recorded, and the core-hours of those that are not done here."""
    planned = list(planned)
    left = [stage.seconds() for _, stage in planned if not stage.finished]
    recorded = sum(
        replace(stage, folder=ROOT / "results" / part.folder / stage.name).finished for part, stage in planned
    )
    hours = "unknown" if None in left else f"{sum(left) / 3600:.1f}"
    return str(len(planned)), str(len(planned) - len(left)), str(recorded), hours


def _text(value: object) -> str:
    """A value as it is written after --set."""
    return value if isinstance(value, str) else json.dumps(value)


def main(argv: list[str] | None = None) -> int:
    try:
        parts = study()
    except YamlError as error:
        print(error, file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="K", help="default: the part's own")
    parser.add_argument("--runs", type=to_folder, default=Path("runs"), help="where runs are written (default: runs)")
    add_launcher(parser)
    arguments = parser.parse_args(argv)
    for name in arguments.parts:
        if name not in parts:
            parser.error(f"there is no part {name!r} of the study; there are {', '.join(parts)}")
    check(parser, arguments)
    if arguments.dry_run and not arguments.parts and arguments.launcher == "local":
        return overview(parts, arguments.runs, tuple(dict.fromkeys(arguments.seeds)))
    arguments.configs, arguments.set = CONFIGS, []
    code = 0
    for name in arguments.parts or parts:
        try:
            planned = stages(parts[name], arguments.runs, tuple(dict.fromkeys(arguments.seeds)))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        if arguments.dry_run or arguments.launcher == "print":
            print(f"{name}:")
        ended = start(parser, arguments, planned, arguments.runs / parts[name].folder / ".slurm")
        code = code or ended
        if ended > 1:  # stopped, or there is no data; 1 is a run that failed, which says nothing of the next part's
            break
    return code


if __name__ == "__main__":
    script(main)
