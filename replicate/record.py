"""Copy the small files of finished runs into results/, which git holds and every published figure is drawn from.

    python -m replicate.record                              # runs/long
    python -m replicate.record long long-held-out           # folders of runs/, as python -m replicate.study writes them
    python -m replicate.record long --seeds 1 2 3 4 5       # not the seed 0 that a figure trains by itself

Left out of run.json: a student's history (30 KB of maps), which follows from its seed and is in its checkpoint.
"""

import argparse
import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import Any

from experiments import seed_of, unlike_its_end, without_seed
from experiments.output import script
from experiments.paths import to_folder
from replicate.stage import ROOT, read_json
from training.config import differences
from training.files import write_atomic
from training.manifest import is_manifest


def record(runs: Path, results: Path, seeds: list[int]) -> tuple[list[Path], dict[Path, str]]:
    """Copy runs/<arm>/seed<k>/ to results/<arm>/seed<k>/; returns the recorded folders, and why others are left out."""
    recorded: list[Path] = []
    left_out: dict[Path, str] = {}
    for manifest in sorted(runs.glob("*/seed*/run.json")):
        folder = manifest.parent
        if seeds and folder.name not in {f"seed{seed}" for seed in seeds}:
            continue
        facts, metrics = read_json(manifest), folder / "metrics.csv"
        target = results / folder.relative_to(runs)
        if isinstance(facts.get("status"), str) and facts["status"] != "finished":
            left_out[folder] = "not finished"
        elif not is_manifest(facts):
            left_out[folder] = "its run.json is not a run's manifest"
        elif not metrics.is_file():
            left_out[folder] = "its metrics.csv is missing"
        elif (own := facts["config"].get("seed", seed_of(folder))) != seed_of(folder):
            left_out[folder] = f"a run of seed {own}: it is a copy, or misnamed"
        elif not (last := _last_row(metrics)):
            left_out[folder] = "its metrics.csv has no row"
        elif why := unlike_its_end(facts, last):
            left_out[folder] = why
        elif other := _of_another_config(facts["config"], target):
            left_out[folder] = other
        else:
            target.mkdir(parents=True, exist_ok=True)
            write_atomic(target / "metrics.csv", metrics.read_bytes())
            if isinstance(growth := facts.get("growth"), dict):
                growth.pop("history", None)
            write_atomic(target / "run.json", json.dumps(facts, indent=1).encode() + b"\n")
            recorded.append(target)
    return recorded, left_out


def _last_row(metrics: Path) -> dict[str, str]:
    rows: list[dict[str, str]] = []
    with metrics.open(newline="", errors="replace") as file, contextlib.suppress(csv.Error):  # a field without an end
        rows = list(csv.DictReader(file))
    return rows[-1] if rows else {}


def _of_another_config(config: dict[str, Any], target: Path) -> str:
    """Why a run is not another seed of the arm's recorded runs; empty if it is."""
    for there in sorted(target.parent.glob("seed*/run.json")):
        known = read_json(there).get("config")
        if there.parent == target or not isinstance(known, dict):
            continue
        keys = differences(without_seed(known), without_seed(config))
        if keys:
            found = ", ".join(f"{key} is {config.get(key)!r} and there {known.get(key)!r}" for key in keys[:3])
            return f"another config than {there.parent}: {found}"
    return ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=["long"], help="below --runs (default: long)")
    parser.add_argument("--runs", type=to_folder, default=Path("runs"))
    parser.add_argument("--results", type=to_folder, default=ROOT / "results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="K", help="default: all that there are")
    arguments = parser.parse_args(argv)
    code = 0
    for name in arguments.folders:
        recorded, left_out = record(arguments.runs / name, arguments.results / name, arguments.seeds)
        for folder in recorded:
            print(f"recorded {folder}")
        for folder, why in left_out.items():
            print(f"left out {folder}: {why}", file=sys.stderr)
        if not recorded:
            code = 2
            print(f"no finished run in {arguments.runs / name}", file=sys.stderr)
    return code


if __name__ == "__main__":
    script(main)
