"""Copy the small files of finished runs into results/, which git holds and every published figure is drawn from.

python -m replicate.record --scale laptop
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from replicate.runner import ROOT

FILES = ("metrics.csv", "run.json")


def record(runs: Path, results: Path) -> tuple[list[Path], list[Path]]:
    """Copy runs/<arm>/seed<k>/ to results/<arm>/seed<k>/; returns the recorded folders and the unfinished ones."""
    recorded, unfinished = [], []
    for manifest in sorted(runs.glob("*/seed*/run.json")):
        folder = manifest.parent
        if json.loads(manifest.read_text()).get("status") != "finished":
            unfinished.append(folder)
            continue
        target = results / folder.relative_to(runs)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(folder / name, target / name)
        recorded.append(target)
    return recorded, unfinished


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args(argv)
    recorded, unfinished = record(arguments.runs / arguments.scale, arguments.results / arguments.scale)
    for folder in recorded:
        print(f"recorded {folder}")
    for folder in unfinished:
        print(f"left out {folder}: not finished", file=sys.stderr)
    if not recorded:
        print(f"no finished run in {arguments.runs / arguments.scale}: run `make figures` first", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
