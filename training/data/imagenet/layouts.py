"""Which layout a folder has: class folders, torchvision's tar files, WebDataset shards or Hugging Face parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from training.data.imagenet.hugging_face import TableReader, parquet_files, saved_to_disk
from training.data.imagenet.labels import MOST_CLASSES, WNID, check_numbers, in_order, val_wnids, wnid_of
from training.data.imagenet.readers import (
    ALSO_VAL,
    PARTS,
    SPLITS,
    TRAIN_TAR,
    VAL_TAR,
    FolderReader,
    Reader,
    TarReader,
    counted,
    folders,
    of_split,
    one_val,
    scan,
    split_folder,
)
from training.data.imagenet.tars import ENDINGS, index, is_image
from training.errors import DataError

PACKED = (".zip", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
Make = Callable[[Path, str, Sequence[str]], Reader]


def readers(root: str | Path) -> dict[str, Reader]:
    """The readers of "train" and "val", whatever the layout; `DataError` says what is wrong and how to put it right."""
    root = Path(root)
    make = _layout(root)
    one_val(root)
    train = make(root, "train", ())
    # Validation images may have a number for a label and no class in their name: training images name the numbers.
    return {"train": train, "val": make(root, "val", train.declared)}


def _layout(root: Path) -> Make:
    if not root.is_dir():
        above = next((parent for parent in root.parents if parent.is_file()), None)
        what = "does not exist, or its disk is not mounted"
        if root.exists():
            what = "is not a folder: unpack it" if root.name.lower().endswith((".tar", *PACKED)) else "is not a folder"
        elif above:
            what = f"cannot be there, for {above} is a file"
        raise DataError(f"The data folder {root} {what}: give the one that has the images (--set data.root=FOLDER).")
    make = _known(root)
    if make is None:
        raise DataError(f"{root} {_unknown(root)}")
    return make


def _known(root: Path) -> Make | None:
    names = {entry.name for entry in scan(root)}
    if any(_inside(root, split) for split in SPLITS):
        return _shard_reader
    if saved_to_disk(root) or any(parquet_files(root, split) for split in SPLITS):
        return TableReader
    if names & {"train", *ALSO_VAL}:
        return FolderReader
    if names & {TRAIN_TAR, VAL_TAR}:
        return _archive_reader
    if any(_shards(root, split) for split in SPLITS):
        return _shard_reader
    return None


def _unknown(root: Path) -> str:
    """What a folder in none of the layouts has, and what to do about it."""
    inner = _further_down(root)
    if inner:
        return f"has images further down: give {inner} instead."
    entries = scan(root)
    names, inside = sorted(entry.name for entry in entries), sorted(folders(root, entries))
    some = ", ".join(names[:6]) or "nothing"
    parts = {name: PARTS.get(name.lower(), name.lower()) for name in inside}
    if "train" in parts.values():
        called = "; ".join(f"{name} -> {part}" for name, part in parts.items() if part in SPLITS and name != part)
        return f"holds {some}: the two parts have to be called train and val: rename or link them ({called})."
    packed = [name for name in names if name.lower().endswith(PACKED)]
    if packed:
        return f"holds {some}: {packed[0]} is packed: unpack it, or where it is a shard decompress it to a plain .tar."
    if any(name.lower().endswith(".tar") for name in names):
        return f"holds {some}: the names of tar shards have to tell which set they are of: train or val."
    loose = [name for name in names if is_image(name)]
    if loose or any(is_image(entry.name) for name in inside[:5] for entry in scan(root / name)):
        return (
            f"holds {some}: images that are not parted into a training and a validation set: expected "
            "train/<class>/<image> and val/<class>/<image>."
        )
    return (
        f"holds {some}: no images in a layout that is known here. Expected train/ and val/ with a folder for each "
        f"class, or {TRAIN_TAR} and {VAL_TAR}, or tar shards (train and val in their names), or parquet files."
    )


def _further_down(root: Path, depth: int = 3) -> Path | None:
    """The first folder below, by name, that has a layout: archives are unpacked into folders of their own."""
    for name in sorted(folders(root, scan(root)))[:20]:
        if not os.access(root / name, os.R_OK | os.X_OK):
            continue
        if _known(root / name):
            return root / name
        if depth > 1 and (found := _further_down(root / name, depth - 1)):
            return found
    return None


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (entry for entry in scan(folder) if entry.name.lower().endswith(".tar") and not entry.name.startswith("."))
    return sorted(Path(entry.path) for entry in found if entry.is_symlink() or entry.is_file())


def _inside(root: Path, split: str) -> list[Path]:
    """Tar shards in a folder of the split's name; those named after classes are a half-unpacked archive."""
    found = (_tars(root / name) for name in (ALSO_VAL if split == "val" else (split,)))
    return [path for paths in found for path in paths if not WNID.search(path.stem)]


def _shards(root: Path, split: str) -> list[Path]:
    """The tar shards of a split: in a folder of its name, or with it in theirs."""
    here = [path for path in _tars(root) if not path.name.startswith("ILSVRC2012_img")]
    return _inside(root, split) or of_split(root, here, split)


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
        names = " or ".join(ALSO_VAL) if split == "val" else split
        raise DataError(
            f"{root} has tar shards, but none of the {split} set: their names, or that of their folder, should contain "
            f"{names}, with no letter before or behind it."
        )
    images = index(shards)
    if not images:
        raise DataError(f"The {counted(len(shards), 'shard')} {shards[0]} ... hold no image ({', '.join(ENDINGS)}).")
    for member in images:
        if member.label is None and member.said:
            raise DataError(
                f"{member.tar}: the label of {member.name} is {member.said}: expected a class's number, from 0 on, in "
                f"{os.path.splitext(member.name)[0]}.cls, or as label in its .json."
            )
        if member.label is None:
            sample = os.path.splitext(member.name)[0]
            raise DataError(
                f"{member.tar}: {member.name} has no label: expected {sample}.cls, or a label in {sample}.json. Where "
                f"the name of its folder or tar file is its class, unpack it to {split}/<class>/."
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
