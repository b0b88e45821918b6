"""The data of the experiments: fetched, checked, made smaller.

    python -m training.data fetch --root data                   # Fashion-MNIST, its checksums compared
    python -m training.data check /data/imagenet                # everything, every image decoded; before any training
    python -m training.data check /data/imagenet --fast         # names and numbers only, as train.py at its start
    python -m training.data sort-val /data/imagenet             # val/ as the archive unpacks -> class folders
    python -m training.data resize /data/imagenet /data/imagenet-256

`check` and `resize` read ImageNet, or images of one's own, in four layouts (docs/imagenet.md): class folders,
torchvision's tar files, WebDataset shards and Hugging Face parquet.

`resize` makes a smaller copy, once, because reading images is what limits training. It writes class folders: each
image with its short side at 256 as a JPEG of quality 95, under its own name; one that is no larger is copied as it is.
Stopped or killed, the same command goes on where it was. What was done is recorded in `resize.json` beside train/ and
val/; every run that trains from there names it in its run.json. A file that cannot be decoded is copied as it is:
training then deals with it as it would have with the original.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.output import script
from experiments.paths import to_path
from training.data import fashion_mnist
from training.data.imagenet.check import CLASSES, TRAIN_IMAGES, VAL_IMAGES
from training.data.imagenet.check import check as checked
from training.data.imagenet.layouts import sort_val as sorted_val
from training.data.imagenet.resize import resize as resized
from training.errors import DataError


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (DataError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Too many open files" not in str(error):  # torch's, for a worker
            raise
        where = error.filename if isinstance(error, OSError) else None
        print(f"{where}: {error.strerror}" if where else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here" if options.run is resize else "stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fetch", help="Fashion-MNIST, from the first of three sources that has it")
    command.add_argument("--root", type=to_path, default=Path("data"), help="data folder (default: %(default)s)")
    command.set_defaults(run=fetch)

    command = commands.add_parser("check", help="is it complete, and can every image be read?")
    command.add_argument("root", type=to_path)
    command.add_argument("--fast", action="store_true", help="names and numbers only")
    command.add_argument("--classes", type=_whole(2), help=f"expected (default: {CLASSES:,}, with --own any)")
    command.add_argument("--train-images", type=_whole(1), help=f"expected (default: {TRAIN_IMAGES:,})")
    command.add_argument("--val-images", type=_whole(1), help=f"expected (default: {VAL_IMAGES:,})")
    command.add_argument("--own", action="store_true", help="one's own images: any number but for those given")
    command.add_argument("--workers", type=_whole(0, 1024), help="processes (default: the job's cores)")
    command.add_argument("--list", type=to_path, metavar="FILE", help="write all unreadable images into FILE")
    command.set_defaults(run=check)

    command = commands.add_parser("sort-val", help="move val/'s images into class folders")
    command.add_argument("root", type=to_path)
    command.set_defaults(run=sort_val)

    command = commands.add_parser("resize", help="a smaller copy, in class folders")
    command.add_argument("source", type=to_path, help="ImageNet, in any of the layouts")
    command.add_argument("target", type=to_path, help="a new folder, or one that this command did not finish")
    command.add_argument("--short-side", type=_whole(1, 65_535), default=256, help="pixels (default: %(default)s)")
    command.add_argument("--quality", type=_whole(1, 100), default=95, help="of the JPEG files (default: %(default)s)")
    command.add_argument("--workers", type=_whole(0, 1024), help="processes (default: the job's cores)")
    command.set_defaults(run=resize)
    return parser


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least:,} to {most:,}, got {text!r}")
        return int(text)

    return number


def fetch(options: argparse.Namespace) -> int:
    raw, how = fashion_mnist.fetched(options.root)
    print(f"Fashion-MNIST: four files, checksums right, in {raw} ({how})")
    return 0


def check(options: argparse.Namespace) -> int:
    if options.list:  # before hours of decoding
        try:
            options.list.open("a").close()
        except OSError as error:
            raise DataError(f"--list {options.list}: cannot be written ({error.strerror}): give a new file") from None
    given, imagenet = (options.classes, options.train_images, options.val_images), (CLASSES, TRAIN_IMAGES, VAL_IMAGES)
    counts = given if options.own else (own or whole for own, whole in zip(given, imagenet, strict=True))
    report = checked(options.root, *counts, fast=options.fast, workers=options.workers)
    if options.list:
        options.list.write_text("".join(f"{line}\n" for line in report.unreadable))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
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


def sort_val(options: argparse.Namespace) -> int:
    moved = sorted_val(options.root)
    print(f"{moved:,} images moved into class folders" if moved else "nothing to move: no image lies in val/ itself")
    return 0


def resize(options: argparse.Namespace) -> int:
    record = resized(options.source, options.target, options.short_side, options.quality, options.workers)
    now, images = record["now"], record["images"]
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{options.target}: {images['train']:,} + {images['val']:,} images, as many as in {options.source}; now "
        f"{now['written']:,} resized, {now['copied']:,} copied, {now['already']:,} there from before; "
        f"{shutil.disk_usage(options.target).free / 2**30:,.0f} GiB left on the disk"
    )
    for line in record["unreadable"]:
        print(f"cannot be decoded, copied as it is: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    script(main)
