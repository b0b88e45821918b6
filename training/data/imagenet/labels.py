"""Which class an image is of, where no folder tells it: numbers, names, the devkit, Kaggle's file."""

from __future__ import annotations

import csv
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE = "LOC_val_solution.csv"
MOST_CLASSES = 1_000_000  # a larger label is an image's number or a hash, not a class
WNID = re.compile(r"(?:^|_)(n\d{8})(?:_|$)")  # in an image's name: n01440764_10026, ILSVRC2012_val_00000293_n01440764


def in_order(labels: list[int], stems: list[str], declared: Sequence[str]) -> tuple[list[int], list[str], list[str]]:
    """Labels in the order of the classes' names, these names in order, and the name of each label that was given.

    The names are the wnids in the images' own names, else those that the data declares for its labels, if they are
    wnids or in order already; where there are none of these the labels stand, and the classes are named after them.
    """
    found: dict[int, set[str]] = {}
    for label, stem in zip(labels, stems, strict=True):
        match = WNID.search(stem)
        found.setdefault(label, set()).add(match[1] if match else "")
    names = [min(found.get(k, {""})) if len(found.get(k, ())) == 1 else "" for k in range(max(found) + 1)]
    if not all(names) or len(set(names)) < len(names):
        names = list(declared)
        known = len(names) > max(found) and all(names) and len(set(names)) == len(names)
        if not known or not (all(map(WNID.fullmatch, names)) or names == sorted(names)):
            return labels, [f"{k:04d}" for k in range(max(found) + 1)], []
    classes = sorted(names)
    place = {name: k for k, name in enumerate(classes)}
    return [place[names[label]] for label in labels], classes, names


def val_wnids(root: Path) -> dict[int, str]:
    """The class of each validation image by the number in its name, from the devkit or Kaggle's file."""
    folders = [root, *root.resolve().parents[:3]]  # Kaggle's file lies three folders above its train/ and val/
    for folder in folders:
        if (folder / KAGGLE).is_file():
            return _kaggles(folder / KAGGLE)
    # Imported here because it takes seconds, for which neither workers nor other layouts should have to wait.
    from torchvision.datasets.imagenet import META_FILE, load_meta_file, parse_devkit_archive

    for folder in folders:
        if (folder / META_FILE).is_file():
            try:
                wnids = load_meta_file(folder)[1]
            except Exception as error:  # whatever unpickling makes of a file that torch did not write
                raise DataError(
                    f"{folder / META_FILE} is damaged, or not what torchvision made of the devkit "
                    f"({type(error).__name__}): remove it, and put {DEVKIT} in its place."
                ) from None
            return dict(enumerate(wnids, start=1))
        if (folder / DEVKIT).is_file():
            with tempfile.TemporaryDirectory() as scratch:  # torchvision writes beside the devkit: not into the data
                os.symlink((folder / DEVKIT).resolve(), Path(scratch) / DEVKIT)
                try:
                    parse_devkit_archive(scratch)
                except ImportError:
                    raise DataError(
                        f"The classes of the validation images are in {folder / DEVKIT}, and reading it needs the "
                        "package scipy: pip install scipy, or the extra `cluster` of this repository."
                    ) from None
                except RuntimeError:
                    raise DataError(
                        f"{folder / DEVKIT} is damaged (its md5 is not the original's): fetch it again."
                    ) from None
                return dict(enumerate(load_meta_file(scratch)[1], start=1))
    raise DataError(
        f"Nothing tells the classes of the validation images: put {DEVKIT} (from image-net.org) or {KAGGLE} (from "
        f"Kaggle) into {root} and run the same command again."
    )


def _kaggles(path: Path) -> dict[int, str]:
    """The class of each validation image, from Kaggle's table of bounding boxes."""
    found = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a byte order mark
            rows = csv.DictReader(file)
            if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
                raise DataError(
                    f"{path}: expected the columns ImageId and PredictionString, found "
                    f"{', '.join(rows.fieldnames or ()) or 'none'}: fetch it again."
                )
            for row in rows:
                words = (row["PredictionString"] or "").split()
                if not words:
                    raise DataError(
                        f"{path}, line {rows.line_num}: no class for {row['ImageId']} (PredictionString is empty): "
                        "fetch it again."
                    )
                found[_number(row["ImageId"] or "")] = words[0]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of text in UTF-8 ({error}): fetch it again.") from None
    return found


def check_numbers(labels: list[int], where: str) -> None:
    """Class numbers count from 0; -1, which often stands for "unknown", and what is larger than any set is an error."""
    least, most = min(labels), max(labels)
    if least < 0:
        count = sum(label < 0 for label in labels)
        raise DataError(
            f"{where}: {count:,} of {len(labels):,} images have the label {least}, and classes count from 0: these "
            "images have no class (the test set?), take them out or give them theirs."
        )
    if most >= MOST_CLASSES:
        raise DataError(f"{where}: the label {most} is no class's number: expected 0 to the number of classes - 1.")


def _number(name: str) -> int:
    match = re.search(r"_(\d{8})(?:\D|$)", name)
    return int(match[1]) if match else -1


def wnid_of(name: str, wnids: dict[int, str], where: Path) -> str:
    wnid = wnids.get(_number(os.path.basename(name)))
    if wnid is None:
        raise DataError(f"{where}: {name} is no image of the validation set (ILSVRC2012_val_00000001.JPEG and so on).")
    return wnid
