"""Train one arm of the experiments (paper, section 3): a teacher, a student grown from it, or a baseline.

    python train.py configs/laptop/standard.yaml                      # from scratch: teacher, baseline and reference
    python train.py configs/laptop/wider.yaml                         # Net2WiderNet student of teacher_narrow
    python train.py configs/laptop/wider.yaml --seed 3 --set optimizer.lr_scale=0.5 --out runs/laptop/try/seed3
    torchrun --standalone --nproc-per-node 8 train.py configs/imagenet/wider.yaml       # eight GPUs, the same steps

Reads a config, writes metrics.csv, run.json and checkpoint.pt into runs/<scale>/<arm>/seed<k>/. Ctrl-C, SIGTERM,
SIGUSR1 or SIGHUP saves and stops; the same command goes on from there, on any number of processes, and ends as if it
had never stopped: bit for bit for one process on the same CPU, but for rounding elsewhere.
All arms run through this one loop; they differ in their config, and in what their first weights are.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.output import unbreakable_output
from experiments.paths import to_path
from training.config import Config, load
from training.data.source import images_now, open_data, with_counts
from training.device import float32_precision
from training.errors import DataError, FailedOnAnotherRank, Stopped, UserError
from training.progress import Progress
from training.runfolder import RunFolder
from training.session import Session, StopSignals
from training.student import teacher_of
from training.trainer import Trainer


def train(config: Config, session: Session, run: RunFolder, teacher: Path | None) -> None:
    """Train from the run's last checkpoint, or from the start, to the last step; raise `Stopped` if asked to stop.

    All ranks make the same steps; what is written, the main one writes.
    """
    saved = run.restore()
    ranks = {"rank": session.rank, "world": session.world, "local_world": session.local_world}
    with contextlib.closing(open_data(config, session.device, **ranks, on_main=session.on_main)) as data:
        run.start(data.fingerprint, data.facts)
        trainer = Trainer(with_counts(config, data), session, run, data, teacher)
        if saved:
            trainer.resume(saved)
        elif config.growth:
            trainer.grow()
        else:
            trainer.fresh()

        with Progress(run, trainer.step, trainer.rows) as progress:
            batches = data.stream(trainer.step)
            while True:
                if trainer.due:
                    progress.evaluated(trainer.evaluate())  # and save
                if trainer.done:
                    break
                if session.stop_requested():
                    trainer.save()
                    raise Stopped(trainer.step)
                if trainer.save_requested():
                    trainer.save()
                trainer.update(batches)
                progress.stepped(trainer.step)
        trainer.finish()


def run_to_the_end(config: Config, folder: Path, stop: Callable[[], bool]) -> None:
    """Train in `folder`, unless that is done; raise `Stopped` or a `UserError`, noted in run.json."""
    teacher = teacher_of(config, folder)
    with (
        Session(config.training.device, stop) as session,
        float32_precision(config.training.precision),
        RunFolder(folder, config, session) as run,
    ):
        if not run.finished:
            try:
                train(config, session, run, teacher)
            except Stopped:
                session.drain()
                raise
            except (UserError, RuntimeError) as error:
                error = session.failure(error)
                run.note_failure(error)
                raise error from None
            session.drain()
        elif session.is_main and (changed := changed_images(config, run)):
            print(f"train.py: warning: {changed}", file=sys.stderr)
        if session.is_main:
            print(f"{folder} is finished: {run.manifest['result']}")


def changed_images(config: Config, run: RunFolder) -> str:
    """What a finished run, which is left as it is, has to say of the images that it is now given; empty if nothing."""
    try:
        now = images_now(config)
    except DataError as error:
        return f"{run.folder} is finished, and its images are no longer there as they were: {error}"
    unlike = run.unlike(now) if now else ""
    return unlike and f"{run.folder} {unlike}; it is finished and stays so: to train on these, take another --out"


def default_folder(config: Path, seed: int) -> Path:
    """configs/<scale>/<arm>.yaml -> runs/<scale>/<arm>/seed<k>"""
    return Path("runs") / config.resolve().parent.name / config.stem / f"seed{seed}"


def main(argv: list[str] | None = None, orphaned: Callable[[], bool] = lambda: False) -> int:
    """`orphaned`: whether the process that started this run is gone; the run then stops as on SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=to_path, help="configs/<scale>/<arm>.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--seed", metavar="K", help="short for --set seed=K")
    parser.add_argument("--out", type=to_path, help="the run's folder (default: runs/<scale>/<arm>/seed<k>)")
    arguments = parser.parse_args(argv)

    with unbreakable_output("train.py", runs_on=True), StopSignals(orphaned) as stop:
        try:
            overrides = arguments.set + ([f"seed={arguments.seed}"] if arguments.seed is not None else [])
            config = load(arguments.config, overrides)
            run_to_the_end(config, arguments.out or default_folder(arguments.config, config.seed), stop)
            return 0
        except FailedOnAnotherRank:  # which has said why
            return 2
        except UserError as error:
            print(f"train.py: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"train.py: saved at step {stopped}; run the same command again to go on", file=sys.stderr)
            return stop.exit_code


if __name__ == "__main__":
    sys.exit(main())
