"""ImageNet-1k as people have it on disk: found, read in place, checked.

    python -m training.imagenet check /data/imagenet            # everything, every image decoded; before any training
    python -m training.imagenet check /data/imagenet --fast     # names and numbers only, as train.py at its start
    python -m training.imagenet sort-val /data/imagenet         # val/ as the archive unpacks -> class folders

Four layouts are read where they lie (docs/imagenet.md): class folders, torchvision's tar files, WebDataset shards and
Hugging Face parquet.
"""

from __future__ import annotations

import argparse
import sys

from experiments.output import script
from experiments.paths import to_path
from training.data.imagenet.check import CLASSES, TRAIN_IMAGES, VAL_IMAGES, check
from training.data.imagenet.layouts import sort_val
from training.errors import DataError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="is it complete, and can every image be read?")
    command.add_argument("root", type=to_path)
    command.add_argument("--fast", action="store_true", help="names and numbers only")
    command.add_argument("--classes", type=int, default=CLASSES, help="expected (default: %(default)s)")
    command.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="expected (default: %(default)s)")
    command.add_argument("--val-images", type=int, default=VAL_IMAGES, help="expected (default: %(default)s)")
    command.add_argument("--own", action="store_true", help="one's own images: any number of classes and images")
    command.add_argument("--workers", type=int, help="processes (default: the job's cores)")
    command.add_argument("--list", type=to_path, metavar="FILE", help="write all unreadable images into FILE")
    command = commands.add_parser("sort-val", help="move val/'s images into class folders")
    command.add_argument("root", type=to_path)
    options = parser.parse_args(argv)
    try:
        if options.command == "sort-val":
            moved = sort_val(options.root)
            print(
                f"{moved:,} images moved into class folders"
                if moved
                else "nothing to move: no image lies in val/ itself"
            )
            return 0
        counts = (None,) * 3 if options.own else (options.classes, options.train_images, options.val_images)
        report = check(options.root, *counts, fast=options.fast, workers=options.workers)
        if options.list:
            options.list.write_text("".join(f"{line}\n" for line in report.unreadable))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.problems:
        return 2
    facts = report.facts
    print(
        f"{options.root}: {facts['layout']}, {facts['classes']:,} classes, {facts['train_images']:,} + "
        f"{facts['val_images']:,} images; "
        + ("names and numbers are right" if options.fast else "every image can be read")
    )
    return 0


if __name__ == "__main__":
    script(main)
