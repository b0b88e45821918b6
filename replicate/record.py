"""Copy the small files of finished runs into results/, which git holds and every published figure is drawn from.

    python -m replicate.record                              # runs/long
    python -m replicate.record long long-held-out           # folders of runs/, as python -m replicate.study writes them
    python -m replicate.record long --seeds 1 2 3 4 5       # not the seed 0 that a figure trains by itself

Left out of run.json: a student's history (30 KB of maps), which follows from its seed and is in its checkpoint.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from replicate.runner import ROOT


def record(runs: Path, results: Path, seeds: list[int]) -> tuple[list[Path], list[Path]]:
    """Copy runs/<arm>/seed<k>/ to results/<arm>/seed<k>/; returns the recorded folders and the unfinished ones."""
    recorded, unfinished = [], []
    for manifest in sorted(runs.glob("*/seed*/run.json")):
        folder = manifest.parent
        if seeds and folder.name not in {f"seed{seed}" for seed in seeds}:
            continue
        facts = json.loads(manifest.read_text())
        if facts.get("status") != "finished":
            unfinished.append(folder)
            continue
        target = results / folder.relative_to(runs)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "metrics.csv", target / "metrics.csv")
        facts.get("growth", {}).pop("history", None)
        (target / "run.json").write_text(json.dumps(facts, indent=1) + "\n")
        recorded.append(target)
    return recorded, unfinished


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=["long"], help="below --runs (default: long)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="K", help="default: all that there are")
    arguments = parser.parse_args(argv)
    code = 1
    for name in arguments.folders:
        recorded, unfinished = record(arguments.runs / name, arguments.results / name, arguments.seeds)
        for folder in recorded:
            print(f"recorded {folder}")
        for folder in unfinished:
            print(f"left out {folder}: not finished", file=sys.stderr)
        if recorded:
            code = 0
        else:
            print(f"no finished run in {arguments.runs / name}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
