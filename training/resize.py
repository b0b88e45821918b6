"""A smaller copy of ImageNet, made once, because decoding is what limits training (docs/imagenet.md).

    python -m training.resize /data/imagenet /data/imagenet-256

Reads any layout, writes class folders: each image with its short side at 256 as a JPEG of quality 95, under its own
name; those that are no larger are copied as they are. Stopped or killed, the same command goes on where it was. What
was done is recorded in `resize.json` beside train/ and val/; every run that trains from there names it in its run.json.

A file that cannot be decoded is copied as it is: training then deals with it as it would have with the original.
"""

from __future__ import annotations

import argparse
import shutil
import sys

from experiments.output import script
from experiments.paths import to_path
from training.data.imagenet.resize import explained, resize
from training.errors import DataError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=to_path, help="ImageNet, in any of the layouts")
    parser.add_argument("target", type=to_path, help="a new folder, or one that this command did not finish")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: the job's cores)")
    options = parser.parse_args(argv)
    try:
        record = resize(options.source, options.target, options.short_side, options.quality, options.workers)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(explained(error, options.target), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    now, images = record["now"], record["images"]
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
