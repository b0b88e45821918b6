"""What lies in runs/ and never trained: shown, and removed with --yes.

    python -m replicate clean                      # what would go, and why; removes nothing
    python -m replicate clean --yes

Removed are folders of runs that failed or were stopped before their first checkpoint, and half-deleted ones. What has a
checkpoint or metrics, what a process holds or a job waits for, and what train.py did not write stays.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from experiments import seed_of
from experiments.paths import to_folder
from replicate.slurm import SlurmError, queue
from replicate.stage import locked, read_json

OURS = {"run.json", "job.json", "log.txt", "lock", "progress.json", "wandb"}  # of a run that has no checkpoint
TRAINED = ("checkpoint.pt", "metrics.csv", "step0.pt")


def candidates(runs: Path) -> dict[Path, str]:
    """Folders <scale>/<arm>/seed<k> that hold nothing of worth, and why; the queue is not asked."""
    found = {}
    for folder in sorted(path for path in runs.glob("*/*/seed*") if seed_of(path) is not None and path.is_dir()):
        if folder.is_symlink():
            continue
        names = {path.name for path in folder.iterdir()}
        # A leftover of a replaced file is .<name>.<something>; anything else is not ours to remove.
        if any(name in TRAINED or name.startswith("checkpoint-") for name in names):
            continue
        if any(name not in OURS and not (name.startswith(".") and name[1:].startswith(tuple(OURS))) for name in names):
            continue
        if locked(folder):
            continue
        manifest, noted = read_json(folder / "run.json"), read_json(folder / "job.json")
        if manifest.get("status") == "finished":
            found[folder] = "its run.json says finished, and its checkpoint and metrics are gone"
        elif why := noted.get("failed") or manifest.get("error"):
            found[folder] = f"failed before it began: {why}"
        elif not names:
            found[folder] = "empty"
        else:
            found[folder] = "stopped before its first checkpoint"
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replicate clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=to_folder, default=Path("runs"), help="(default: runs)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dry-run", action="store_true", help="show only, which is the default")
    which.add_argument("--yes", action="store_true", help="remove what is shown")
    arguments = parser.parse_args(argv)
    if not arguments.runs.is_dir():
        parser.error(f"--runs: there is no folder {arguments.runs}")
    found = candidates(arguments.runs)
    jobs = {folder: str(read_json(folder / "job.json").get("job") or "") for folder in found}
    try:
        queued = queue(job for job in jobs.values() if job)
    except SlurmError as error:  # nobody knows which of them wait
        print(f"{error}; folders of jobs are left alone", file=sys.stderr)
        queued = {job: None for job in jobs.values() if job}
    found = {folder: why for folder, why in found.items() if jobs[folder] not in queued}
    for folder, why in found.items():
        if arguments.yes and not locked(folder):
            shutil.rmtree(folder)
        print(f"{'removed' if arguments.yes else 'would remove'} {folder}: {why}")
    if not found:
        print(f"nothing to remove in {arguments.runs}")
    elif not arguments.yes:
        print("--yes removes them")
    return 0
