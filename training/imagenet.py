"""ImageNet-1k as people have it on disk: found, read in place, checked.

    python -m training.imagenet check /data/imagenet            # everything, every image decoded; before any training
    python -m training.imagenet check /data/imagenet --fast     # names and numbers only, as train.py at its start
    python -m training.imagenet sort-val /data/imagenet         # val/ as the archive unpacks -> class folders

Four layouts are read where they lie (docs/imagenet.md): class folders, torchvision's tar files, WebDataset shards and
Hugging Face parquet. In each of them image number i is the same image, and a label is a class's place in the sorted
class names (wnids): a run does not depend on the layout, and a checkpoint of one evaluates on another.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import errno
import hashlib
import io
import os
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from training.errors import DataError
from training.processes import cpus, parallel
from training.tars import Member, index, is_image

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000
SPLITS = ("train", "val")
ALSO_VAL = ("val", "validation")
TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE = "LOC_val_solution.csv"
WNID = re.compile(r"(?:^|_)(n\d{8})(?:_|$)")  # in an image's name: n01440764_10026, ILSVRC2012_val_00000293_n01440764
DAMAGED = (OSError, SyntaxError, ValueError, IndexError, KeyError, EOFError)  # and, of Pillow's own modules:
DAMAGED += (struct.error, zlib.error, Image.DecompressionBombError)
OPEN_TARS = 128  # per process; there are sets of 1,024 shards, and 1,024 open files is a common limit


class Unreadable(Exception):
    """An image's bytes are there, but they are not an image, or not a whole one."""


def decode(data: bytes) -> Image.Image:
    """The image of a file's contents, in RGB; its EXIF orientation is ignored, as it was in training all along."""
    with reading():
        return Image.open(io.BytesIO(data)).convert("RGB")


@contextmanager
def reading() -> Iterator[None]:
    """Turns what Pillow raises for damaged files into `Unreadable`."""
    try:
        yield
    except DAMAGED as error:
        said = str(error)
        raise Unreadable("not an image" if "cannot identify" in said else said or type(error).__name__) from error


def quiet() -> None:
    """Stop Pillow's warnings about odd but readable files (broken EXIF, transparent palettes) in this process."""
    warnings.filterwarnings("ignore", module="PIL")


class Strings:
    """Many short strings in one tensor: worker processes then share them, and a million cost no million objects."""

    def __init__(self, items: Iterable[str]):
        encoded = [os.fsencode(item) for item in items]
        self.ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)
        self.text = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.text[self.ends[i] : self.ends[i + 1]].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        text, ends = self.text.numpy().tobytes(), self.ends.tolist()
        return (os.fsdecode(text[start:end]) for start, end in pairwise(ends))


class Reader:
    """The images of one split in a fixed order: by class, then by name.

    `reader[i]` is (the file's bytes, its label). Objects are small, and may be sent to other processes.
    """

    layout = ""

    def __init__(self, root: Path, split: str, labels: Sequence[int], files: Sequence[str], classes: Sequence[str]):
        """`files` (without folders) and `labels` are in the order that `self.order`, the sorted one, points into."""
        if not files:
            raise DataError(f"{root}: there is no image in the {split} set ({self.layout}).")
        self.root, self.split, self.classes = root, split, list(classes)
        self.declared: list[str] = []  # the classes' names by the numbers that they have in the data, where it has any
        stems = [os.path.splitext(file)[0] for file in files]
        self.order = sorted(range(len(files)), key=lambda k: (labels[k], stems[k]))
        self.labels = torch.tensor([labels[k] for k in self.order], dtype=torch.int32)
        self.files = Strings(files[k] for k in self.order)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        return self.read(i), int(self.labels[i])

    def name(self, i: int) -> str:
        """class/file, the same in every layout but for the file's extension."""
        return f"{self.classes[self.labels[i]]}/{self.files[i]}"

    def filename(self, i: int) -> str:
        """Where the image is, for messages."""
        return f"{self.split}/{self.name(i)}"

    def read(self, i: int) -> bytes:
        """The file's contents; an OSError if they cannot be had."""
        raise NotImplementedError


class FolderReader(Reader):
    """`<split>/<class>/<image>`.

    Not timm's ReaderImageFolder: that one passes over folders which it may not list, as if they were empty, keeps
    Python objects for each image in each worker, and does not sort classes as strings.
    """

    layout = "class folders"

    def __init__(self, root: Path, split: str, declared: Sequence[str] = ()):
        self.folder = _split_folder(root, split)
        entries = _scan(self.folder)
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        loose = sum(is_image(entry.name) for entry in entries)
        if loose and split == "val":
            raise DataError(
                f"{self.folder} holds {_n(loose, 'image')} outside of class folders, as they come out of the archive: "
                f"run `python -m training.imagenet sort-val {root}`, which moves them where they belong."
            )
        if loose:
            raise DataError(
                f"{self.folder} holds {_n(loose, 'image')} outside of class folders: move what belongs there."
            )
        tars = sum(entry.name.endswith(".tar") for entry in entries)
        if tars and not classes:
            raise DataError(
                f"{self.folder} holds {_n(tars, 'tar file')} and no class folder: unpack each one into a folder of its "
                f"name, or give the folder that has {TRAIN_TAR}, which is read without unpacking."
            )
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network file system's delay, not work
            listed = list(pool.map(self._images, classes))
        labels = [label for label, names in enumerate(listed) for _ in names]
        super().__init__(root, split, labels, [name for names in listed for name in names], classes)
        del self.order

    def _images(self, name: str) -> list[str]:
        return [entry.name for entry in _scan(self.folder / name) if is_image(entry.name)]

    def read(self, i: int) -> bytes:
        with open(f"{self.folder}/{self.name(i)}", "rb") as file:
            return file.read()

    def filename(self, i: int) -> str:
        return f"{self.folder}/{self.name(i)}"


class TarReader(Reader):
    """Images inside tar files, read by their offset.

    Not timm's ReaderImageInTar: it reads the whole of the tar files to index them, writes the index beside them, and
    keeps about 2 kB an image and worker. Nor its WebDataset reader, whose order depends on the number of workers.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        labels: Sequence[int],
        members: Sequence[Member],
        classes: Sequence[str],
        layout: str,
    ):
        self.layout = layout
        super().__init__(root, split, labels, [os.path.basename(m.name) for m in members], classes)
        self.tars = sorted({member.tar for member in members})
        number = {tar: k for k, tar in enumerate(self.tars)}
        ordered = [members[k] for k in self.order]
        self.tar = torch.tensor([number[m.tar] for m in ordered], dtype=torch.int32)
        self.offset = torch.tensor([m.offset for m in ordered])
        self.size = torch.tensor([m.size for m in ordered])
        self._open: dict[int, int] = {}
        del self.order

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def read(self, i: int) -> bytes:
        tar, offset, size = (int(x[i]) for x in (self.tar, self.offset, self.size))
        if tar not in self._open:
            if len(self._open) >= OPEN_TARS:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(self.tars[tar], os.O_RDONLY)
        try:
            data = os.pread(self._open[tar], size, offset)  # no position in the file: nothing to share by mistake
            if len(data) != size:
                raise OSError(errno.EIO, "the file has become shorter than it was", self.tars[tar])
        except OSError:
            os.close(self._open.pop(tar))  # it may have been replaced: to be opened anew
            raise
        return data

    def filename(self, i: int) -> str:
        return f"{self.tars[int(self.tar[i])]}: {self.files[i]}"


class ParquetReader(Reader):
    """Hugging Face parquet, by timm's ReaderHfds (which has `datasets` make an Arrow copy of it once)."""

    layout = "Hugging Face parquet"

    def __init__(self, root: Path, split: str, declared: Sequence[str] = ()):
        try:
            import datasets
            from timm.data.readers.reader_hfds import ReaderHfds
        except ImportError:
            raise DataError(
                f"{root} holds parquet files, and reading them needs the package `datasets`: "
                "pip install datasets, or the extra `cluster` of this repository."
            ) from None
        datasets.utils.logging.disable_progress_bar()
        name = "train" if split == "train" else "validation"
        try:
            self.rows = ReaderHfds(str(root), split=name)
        except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
            said = " ".join(str(error).split())[:300]
            raise DataError(f"{root}: the {name} split of these parquet files cannot be opened: {said}") from error
        table = self.rows.dataset.data
        labels = table.column("label").to_pylist()
        paths = [
            os.path.basename(path or "")
            for chunk in table.column("image").chunks
            for path in chunk.field("path").to_pylist()  # not by row: that would read each image for its name
        ]
        kind = self.rows.dataset.features["label"]
        if not declared and isinstance(kind, datasets.ClassLabel):
            declared = kind.names
        stems = [os.path.splitext(path)[0] or f"{row:08d}" for row, path in enumerate(paths)]
        labels, classes, names = _classes(labels, stems, declared)
        # Hugging Face puts the class behind the name (n01440764_10026_n01440764.JPEG); it is in the folder's name.
        endings = [os.path.splitext(path)[1] or ".JPEG" for path in paths]
        files = [
            stem.removesuffix(f"_{classes[label]}") + ending
            for stem, ending, label in zip(stems, endings, labels, strict=True)
        ]
        super().__init__(root, split, labels, files, classes)
        self.declared = names
        self.order = torch.tensor(self.order)

    def read(self, i: int) -> bytes:
        image, _ = self.rows[int(self.order[i])]
        return image.read()

    def filename(self, i: int) -> str:
        return f"{self.root} ({self.split}, row {int(self.order[i])}): {self.files[i]}"


def readers(root: str | Path) -> dict[str, Reader]:
    """The readers of "train" and "val", whatever the layout; `DataError` says what is wrong and how to put it right."""
    root = Path(root)
    make = _layout(root)
    train = make(root, "train", ())
    # Validation images may have a number for a label and no class in their name: it is that of the training images.
    return {"train": train, "val": make(root, "val", train.declared)}


def fingerprint(reader: Reader) -> str:
    """sha256 of which images there are, by label and name without extension: not of their contents.

    So it is the same wherever the data is mounted, in any layout, and after `training.resize`.
    """
    digest = hashlib.sha256()
    for label, file in zip(reader.labels.tolist(), reader.files, strict=True):
        digest.update(os.fsencode(f"{label}/{os.path.splitext(file)[0]}\n"))
    return digest.hexdigest()


# Finding the layout


def _layout(root: Path) -> Callable[[Path, str, Sequence[str]], Reader]:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist, or its disk is not mounted"
        raise DataError(f"The data folder {root} {what}: give the one that has ImageNet (--set data.root=FOLDER).")
    names = {entry.name for entry in _scan(root)}
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


def _split_folder(root: Path, split: str) -> Path:
    for name in ALSO_VAL if split == "val" else (split,):
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {split}/: expected train/ and val/ with a folder for each class in both.")


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error.strerror}): make it readable.") from None


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


def _classes(labels: list[int], stems: list[str], declared: Sequence[str]) -> tuple[list[int], list[str], list[str]]:
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
        names = [_wnid_of(member.name, wnids, path) for member in images]
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
        raise DataError(f"The {_n(len(shards), 'shard')} {shards[0]} ... hold no image (.jpg, .png).")
    for member in images:
        if member.label is None:
            sample = member.name.partition(".")[0]
            raise DataError(
                f"{member.tar}: {member.name} has no label: expected {sample}.cls, or a label in {sample}.json."
            )
    wnids = {member.label: member.wnid for member in images if member.wnid}
    stems = [os.path.basename(member.name).partition(".")[0] for member in images]
    own = [wnids.get(k, "") for k in range(max(member.label for member in images) + 1)]
    labels = [member.label for member in images]
    labels, classes, names = _classes(labels, stems, own if all(own) else declared)
    reader = TarReader(root, split, labels, images, classes, "tar shards (WebDataset)")
    reader.declared = names
    return reader


def val_wnids(root: Path) -> dict[int, str]:
    """The class of each validation image by the number in its name, from the devkit or Kaggle's file."""
    folders = [root, *root.resolve().parents[:3]]  # Kaggle's file lies three folders above its train/ and val/
    for folder in folders:
        if (folder / KAGGLE).is_file():
            with (folder / KAGGLE).open(newline="") as file:
                rows = csv.DictReader(file)
                return {_number(row["ImageId"]): row["PredictionString"].split()[0] for row in rows}
    from torchvision.datasets.imagenet import META_FILE, load_meta_file, parse_devkit_archive

    for folder in folders:
        if (folder / META_FILE).is_file():
            return dict(enumerate(load_meta_file(folder)[1], start=1))
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


def _number(name: str) -> int:
    match = re.search(r"_(\d{8})(?:\D|$)", name)
    return int(match[1]) if match else -1


def _wnid_of(name: str, wnids: dict[int, str], where: Path) -> str:
    wnid = wnids.get(_number(os.path.basename(name)))
    if wnid is None:
        raise DataError(f"{where}: {name} is no image of the validation set (ILSVRC2012_val_00000001.JPEG and so on).")
    return wnid


def sort_val(root: Path) -> int:
    """Move the images that lie directly in val/ into their class folders; returns how many."""
    folder = _split_folder(root, "val")
    loose = [entry.name for entry in _scan(folder) if is_image(entry.name)]
    if not loose:
        return 0
    wnids = val_wnids(root)
    targets = {name: folder / _wnid_of(name, wnids, folder) for name in loose}
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


# Checking


@dataclass
class Report:
    """What `check` found; no problems: the data may be trained on."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    readers: dict[str, Reader] = field(default_factory=dict)


def check(
    root: str | Path,
    classes: int = CLASSES,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    fast: bool = False,
    workers: int | None = None,
) -> Report:
    """Whether the data is complete; unless `fast`, every image is decoded too, by `workers` processes."""
    report = Report()
    try:
        report.readers = readers(root)
    except DataError as error:
        report.problems.append(str(error))
        return report
    train, val = (report.readers[split] for split in SPLITS)
    report.facts = {
        "layout": train.layout,
        "classes": len(train.classes),
        "train_images": len(train),
        "val_images": len(val),
    }
    for some, other in ((train, val), (val, train)):
        missing = sorted(set(some.classes) - set(other.classes))
        if missing:
            number = _n(len(missing), "class", "classes")
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
            report.problems.append(
                f"{root}: {number} of {some.split} not in {other.split} ({names}): both need the same class names; "
                "restore or rename what is missing."
            )
    for reader, images in ((train, train_images), (val, val_images)):
        counts = Counter(reader.labels.tolist())
        least = min(range(len(reader.classes)), key=lambda k: counts[k])
        if len(reader.classes) != classes:
            report.problems.append(
                f"{root}: {reader.split} has {_n(len(reader.classes), 'class', 'classes')} where {classes:,} were "
                f"expected: {_more_or_less(len(reader.classes), classes, 'data.classes')}"
            )
        if len(reader) != images:
            advice = _more_or_less(len(reader), images, f"data.{reader.split}_images")
            report.problems.append(
                f"{root}: {reader.split} has {_n(len(reader), 'image')} where {images:,} were expected (fewest in "
                f"class {reader.classes[least]}: {counts[least]}): {advice}"
            )
        elif not counts[least]:
            report.problems.append(f"{root}: there is no image of the class {reader.classes[least]} in {reader.split}.")
    if not fast:
        for reader in (train, val):
            report.unreadable += unreadable(reader, workers)
        if report.unreadable:
            shown = report.unreadable[:20]
            more = len(report.unreadable) - len(shown)
            report.problems.append(
                f"{_n(len(report.unreadable), 'image')} of {len(train) + len(val):,} cannot be read: fetch these files "
                "again (training would take another image in place of one, validation count it as a wrong answer):\n  "
                + "\n  ".join(shown)
                + (f"\n  and {more:,} more; --list FILE writes all of them" if more else "")
            )
    return report


def _more_or_less(found: int, expected: int, key: str) -> str:
    if found < expected:
        return f"copy or unpack again what is missing (or set {key}, if this smaller set is what you want)."
    return f"remove what does not belong to it (or set {key}, if this larger set is what you want)."


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def unreadable(reader: Reader, workers: int | None = None) -> list[str]:
    """ "path: reason" of every image that cannot be read or decoded."""
    blocks = [range(start, min(start + 64, len(reader))) for start in range(0, len(reader), 64)]
    test = partial(_try, reader)
    return [
        line for lines in parallel(test, blocks, cpus() if workers is None else workers, reader.split) for line in lines
    ]


def _try(reader: Reader, block: range) -> list[str]:
    quiet()
    found = []
    for i in block:
        try:
            decode(reader.read(i))
        except OSError as error:
            found.append(f"{reader.filename(i)}: {error.strerror or error}")
        except Unreadable as error:
            found.append(f"{reader.filename(i)}: {error}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="is it complete, and can every image be read?")
    command.add_argument("root", type=Path)
    command.add_argument("--fast", action="store_true", help="names and numbers only")
    command.add_argument("--classes", type=int, default=CLASSES, help="expected (default: %(default)s)")
    command.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="expected (default: %(default)s)")
    command.add_argument("--val-images", type=int, default=VAL_IMAGES, help="expected (default: %(default)s)")
    command.add_argument("--workers", type=int, help="processes (default: the job's cores)")
    command.add_argument("--list", type=Path, metavar="FILE", help="write all unreadable images into FILE")
    command = commands.add_parser("sort-val", help="move val/'s images into class folders")
    command.add_argument("root", type=Path)
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
        counts = (options.classes, options.train_images, options.val_images)
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
    # As a module of its own name: what is sent to other processes must be found there.
    from training import imagenet

    __spec__ = None  # else each worker warns that it imports this module a second time
    sys.exit(imagenet.main())
