"""A copy of the images at a smaller size, made in a way that can be stopped at any time."""

from __future__ import annotations

import errno
import io
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import Image, features

from training.data.decode import Unreadable, decode, pillow_errors, silence_pillow
from training.data.imagenet.check import warnings
from training.data.imagenet.layouts import readers
from training.data.imagenet.readers import SPLITS, FolderReader, Reader, fingerprint
from training.data.imagenet.tars import no_pipe
from training.data.workers import cpus, parallel
from training.errors import DataError
from training.files import write_atomic

RECORD = "resize.json"
BLOCK = 64  # images in a job
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Done(NamedTuple):
    """What became of one job's images."""

    already: int  # there from before
    written: int
    copied: int  # no larger than asked for
    unreadable: list[tuple[int, str]]  # index, reason; not there yet


def resize(source: Path, target: Path, short_side: int = 256, quality: int = 95, workers: int | None = None) -> dict:
    """Make or complete `target`; returns its record. `DataError` says what is wrong and what to do."""
    try:
        return _resize(source, target, short_side, quality, workers)
    except OSError as error:
        if error.errno in FULL:
            raise DataError(
                f"The disk of {target} is full: make room, or give a folder on another disk (ImageNet at 256 pixels "
                "takes about 60 GB). The same command goes on where this one stopped."
            ) from None
        why = f"{error.filename or target}: {error.strerror or error}"
        raise DataError(f"{why}. Once that is put right, the same command goes on.") from None


def _resize(source: Path, target: Path, short_side: int, quality: int, workers: int | None) -> dict:
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise DataError(f"{target} lies in {source}: give a folder outside of the original.")
    originals = readers(source)
    for reader in originals.values():
        twice = next((i for i in range(1, len(reader)) if reader.name(i) == reader.name(i - 1)), None)
        if twice is not None:  # in their order equal names are neighbours
            raise DataError(
                f"{source}: two images of {reader.split} would both be {reader.name(twice)} in the copy "
                f"({reader.filename(twice - 1)} and {reader.filename(twice)}): give them names of their own."
            )
    settings = {
        "short_side": short_side,
        "quality": quality,
        "subsampling": "4:2:0",
        "filter": "lanczos",
        "source": {split: fingerprint(originals[split]) for split in SPLITS},
    }
    record = _begin(target, settings)
    counts = {"already": 0, "written": 0, "copied": 0}
    for split in SPLITS:
        reader = originals[split]
        for name in reader.classes:
            (target / split / name).mkdir(parents=True, exist_ok=True)
        blocks = [range(start, min(start + BLOCK, len(reader))) for start in range(0, len(reader), BLOCK)]
        work = partial(_convert, reader, target / split, short_side, quality)
        for done in parallel(work, blocks, cpus() if workers is None else workers, f"{split}, {BLOCK} at a time"):
            for key in counts:
                counts[key] += getattr(done, key)
            if done.unreadable:
                # Recorded first, written then: once a file is there it is not looked at again.
                record["unreadable"] += [f"{reader.filename(i)}: {reason}" for i, reason in done.unreadable]
                _write(target, record)
                for i, _ in done.unreadable:
                    write_atomic(target / split / reader.name(i), reader.read(i))
    for split in SPLITS:
        _verify(originals[split], target)
    images = {split: len(originals[split]) for split in SPLITS}
    record |= {"complete": True, "images": images, "unreadable": sorted(set(record["unreadable"]))}
    _write(target, record)
    return record | {"now": counts, "warnings": warnings(originals)}


def _begin(target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a target, a new one if the folder is new or empty."""
    path = target / RECORD
    record: dict[str, Any] = {"settings": settings, "made_with": [], "complete": False, "unreadable": []}
    no_pipe(path)
    if path.exists():
        try:
            record = json.loads(path.read_text())
            differ = [key for key, value in settings.items() if record["settings"].get(key) != value]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise DataError(f"{path} is damaged: remove {target} and start again, or give another folder.") from None
        if differ == ["source"]:
            raise DataError(f"{target} was made from other images (its {RECORD} says so): give another folder.")
        if differ:
            was = ", ".join(f"{key} {record['settings'].get(key)} instead of {settings[key]}" for key in differ)
            raise DataError(f"{target} was made with {was}: give another folder, or the same settings.")
    elif target.is_dir() and any(target.iterdir()):
        raise DataError(f"{target} is not empty and has no {RECORD}, so it is not ours: give a new folder.")
    made_with = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
    if made_with not in record["made_with"]:
        record["made_with"].append(made_with)
    target.mkdir(parents=True, exist_ok=True)
    _write(target, record)
    return record


def _write(target: Path, record: dict[str, Any]) -> None:
    write_atomic(target / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def _convert(reader: Reader, folder: Path, short_side: int, quality: int, block: range) -> Done:
    """The images of `block` that are not there yet."""
    silence_pillow()
    already, written, copied, unreadable = 0, 0, 0, []
    for i in block:
        path = folder / reader.name(i)
        if path.exists():  # then it is whole
            already += 1
            continue
        data = reader.read(i)
        try:
            smaller = _smaller(data, short_side, quality)
        except Unreadable as error:
            unreadable.append((i, str(error)))
            continue
        write_atomic(path, data if smaller is None else smaller)
        copied += smaller is None
        written += smaller is not None
    return Done(already, written, copied, unreadable)


def _smaller(data: bytes, short_side: int, quality: int) -> bytes | None:
    """The resized image as a JPEG file; None: it is no larger than that."""
    with pillow_errors():
        size = Image.open(io.BytesIO(data)).size
        image = decode(data)  # of small ones too: to find those that are damaged
    if min(size) <= short_side:
        return None
    scale = short_side / min(size)
    # Lanczos keeps the detail that training's own resize then filters once more.
    image = image.resize([max(short_side, round(side * scale)) for side in size], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _verify(original: Reader, target: Path) -> None:
    copy = FolderReader(target, original.split)
    if fingerprint(copy) != fingerprint(original):
        missing = sorted({*map(original.name, range(len(original)))} - {*map(copy.name, range(len(copy)))})
        what = f"{missing[0]} is missing" if missing else "there are images that the original does not have"
        raise DataError(
            f"{target} has {len(copy):,} images of {original.split} where {len(original):,} were expected, and {what}: "
            "run the same command again; if that does not help, remove the folder."
        )
    for i in range(len(copy)):
        if not os.path.getsize(copy.filename(i)) and original.read(i):
            raise DataError(f"{copy.filename(i)} is empty: remove it and run the same command again.")
