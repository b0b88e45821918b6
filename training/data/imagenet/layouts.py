"""Which layout a folder has: class folders, torchvision's tar files, WebDataset shards or Hugging Face parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from training.data.imagenet.labels import MOST_CLASSES, WNID, check_numbers, in_order, val_wnids, wnid_of
from training.data.imagenet.readers import (
    ALSO_VAL,
    SPLITS,
    TRAIN_TAR,
    VAL_TAR,
    FolderReader,
    ParquetReader,
    Reader,
    TarReader,
    counted,
    scan,
    split_folder,
)
from training.data.imagenet.tars import ENDINGS, index, is_image
from training.errors import DataError


def readers(root: str | Path) -> dict[str, Reader]:
    """The readers of "train" and "val", whatever the layout; `DataError` says what is wrong and how to put it right."""
    root = Path(root)
    make = _layout(root)
    train = make(root, "train", ())
    # Validation images may have a number for a label and no class in their name: it is that of the training images.
    return {"train": train, "val": make(root, "val", train.declared)}


def _layout(root: Path) -> Callable[[Path, str, Sequence[str]], Reader]:
    if not root.is_dir():
        above = next((parent for parent in root.parents if parent.is_file()), None)
        what = "does not exist, or its disk is not mounted"
        if root.exists():
            what = "is not a folder"
        elif above:
            what = f"cannot be there, for {above} is a file"
        raise DataError(f"The data folder {root} {what}: give the one that has ImageNet (--set data.root=FOLDER).")
    names = {entry.name for entry in scan(root)}
    if any(_inside(root, split) for split in SPLITS):
        return _shard_reader
    if names & set(SPLITS):
        return FolderReader
    if names & {TRAIN_TAR, VAL_TAR}:
        return _archive_reader
    if any(_shards(root, split) for split in SPLITS):
        return _shard_reader
    if any(name.endswith(".parquet") for name in names) or any((root / "data").glob("*.parquet")):
        return ParquetReader
    for folder in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"):  # Kaggle's
        if (root / folder / "train").is_dir():
            raise DataError(f"{root} has ImageNet further down: give {root / folder} instead.")
    some = ", ".join(sorted(names)[:6]) or "nothing"
    raise DataError(
        f"{root} holds {some}: no ImageNet in a layout that is known here. Expected train/ and val/ with a folder for "
        f"each class, or {TRAIN_TAR} and {VAL_TAR}, or tar shards (train and val in their names), or parquet files."
    )


def _inside(root: Path, split: str) -> list[Path]:
    """Tar shards in a folder of the split's name; those named after classes are a half-unpacked archive."""
    found = (sorted((root / name).glob("*.tar")) for name in (ALSO_VAL if split == "val" else (split,)))
    return [path for paths in found for path in paths if not WNID.search(path.stem)]


def _shards(root: Path, split: str) -> list[Path]:
    """The tar shards of a split: in a folder of its name, or with it in theirs."""
    words = "|".join(ALSO_VAL if split == "val" else (split,))
    pattern = re.compile(rf"(^|[^a-z])({words})[^a-z]", re.IGNORECASE)
    here = [p for p in sorted(root.glob("*.tar")) if pattern.search(p.name) and not p.name.startswith("ILSVRC2012_img")]
    return _inside(root, split) or here


def _archive_reader(root: Path, split: str, declared: Sequence[str]) -> Reader:
    """torchvision's layout: a tar of one tar for each class, a flat tar for validation, and the devkit."""
    path = root / (TRAIN_TAR if split == "train" else VAL_TAR)
    if not path.is_file():
        raise DataError(f"{root} has no {path.name}: put it there, beside the other one.")
    images = index([path])
    if split == "train":
        names = [os.path.splitext(os.path.basename(member.inner))[0] for member in images]
    else:
        wnids = val_wnids(root)
        names = [wnid_of(member.name, wnids, path) for member in images]
    classes = sorted(set(names))
    place = {name: k for k, name in enumerate(classes)}
    return TarReader(root, split, [place[name] for name in names], images, classes, "ILSVRC2012 tar files")


def _shard_reader(root: Path, split: str, declared: Sequence[str]) -> Reader:
    """WebDataset: each image with its label in a file beside it."""
    shards = _shards(root, split)
    if not shards:
        raise DataError(f"{root} has tar shards, but none of the {split} set: their names should contain {split}.")
    images = index(shards)
    if not images:
        raise DataError(f"The {counted(len(shards), 'shard')} {shards[0]} ... hold no image ({', '.join(ENDINGS)}).")
    for member in images:
        if member.label is None:
            sample = member.name.partition(".")[0]
            raise DataError(
                f"{member.tar}: {member.name} has no label: expected {sample}.cls, or a label in {sample}.json."
            )
    labels = [member.label for member in images]
    if min(labels) < 0 or max(labels) >= MOST_CLASSES:
        strange = next(m for m in images if not 0 <= m.label < MOST_CLASSES)
        check_numbers(labels, f"{strange.tar}: {strange.name}, {split}")
    wnids = {member.label: member.wnid for member in images if member.wnid}
    stems = [os.path.basename(member.name).partition(".")[0] for member in images]
    own = [wnids.get(k, "") for k in range(max(member.label for member in images) + 1)]
    labels, classes, names = in_order(labels, stems, own if all(own) else declared)
    reader = TarReader(root, split, labels, images, classes, "tar shards (WebDataset)")
    reader.declared = names
    return reader


def sort_val(root: Path) -> int:
    """Move the images that lie directly in val/ into their class folders; returns how many."""
    folder = split_folder(root, "val")
    loose = [entry.name for entry in scan(folder) if is_image(entry.name)]
    if not loose:
        return 0
    wnids = val_wnids(root)
    targets = {name: folder / wnid_of(name, wnids, folder) for name in loose}
    try:
        for target in set(targets.values()):
            target.mkdir(exist_ok=True)
        for name, target in tqdm(targets.items(), unit="image", disable=None):
            os.rename(folder / name, target / name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be sorted ({error.strerror}): make it writable, or copy it, and run the same command "
            "again; it goes on where it stopped."
        ) from None
    return len(loose)
