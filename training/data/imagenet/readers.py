"""The images of one split in a fixed order, read where they lie.

In every layout image number i is the same image, and a label is a class's place in the sorted class names (wnids): a
run does not depend on the layout, and a checkpoint of one evaluates on another.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.data.imagenet.tars import ENDINGS, Member, contents, is_image, no_others
from training.errors import DataError

SHOWN = 3  # names in a message
SPLITS = ("train", "val")
ALSO_VAL = ("val", "validation", "valid")
# What other programs call the two parts.
PARTS = {"training": "train", "testing": "val", "test": "val", "dev": "val", "eval": "val", "valid": "val"}
# What Synology, macOS, ext4 and Windows leave in folders.
LITTER = (
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
    "#recycle",
    "__MACOSX",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
)
WORDS = {
    split: re.compile(rf"(^|[^a-z])({'|'.join(words)})([^a-z]|$)", re.IGNORECASE)
    for split, words in (("train", ("train",)), ("val", ALSO_VAL))
}
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
ARCHIVED = re.compile(r"ILSVRC20\d\d_val_\d{8}")  # an image of ImageNet's validation set, by its name
OPEN_TARS = 128  # per process; there are sets of 1,024 shards, and 1,024 open files is a common limit


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
        self.others: tuple[int, list[str]] = (0, [])  # files beside the images that are passed over, the first by name
        self.declared: list[str] = []  # the classes' names by the numbers that they have in the data, where it has any
        stems = [os.path.splitext(file)[0] for file in files]
        self.order = sorted(range(len(files)), key=lambda k: (labels[k], stems[k], files[k]))
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


class _Listed(NamedTuple):
    images: list[str]
    others: list[str]
    deeper: str | None  # a folder in it that holds images too


class FolderReader(Reader):
    """`<split>/<class>/<image>`.

    Not timm's ReaderImageFolder: that one passes over folders which it may not list, as if they were empty, keeps
    Python objects for each image in each worker, and does not sort classes as strings.
    """

    layout = "class folders"

    def __init__(self, root: Path, split: str, declared: Sequence[str] = ()):
        self.folder = split_folder(root, split)
        if split == "val" and os.path.samefile(self.folder, root / "train"):
            raise DataError(f"{self.folder} and {root / 'train'} are the same folder: expected other images in val/.")
        entries = scan(self.folder)
        classes = sorted(folders(self.folder, entries))
        loose = sorted(entry.name for entry in entries if is_image(entry.name))
        outside = f"{self.folder} holds {counted(len(loose), 'image')} outside of class folders"
        if any(map(ARCHIVED.match, loose)) and split == "val":
            raise DataError(
                f"{outside}, as they come out of the archive: run `python -m training.data sort-val {root}`, which "
                "moves them where they belong."
            )
        if loose:
            one = "it into its class's folder" if len(loose) == 1 else "each one into its class's folder"
            raise DataError(f"{outside}, such as {loose[0]}: move {one}: {self.folder.name}/<class>/{loose[0]}.")
        tars = sum(entry.name.endswith(".tar") for entry in entries)
        if tars and not classes:
            raise DataError(
                f"{self.folder} holds {counted(tars, 'tar file')} and no class folder: unpack each one into a folder "
                f"of its name, or give the folder that has {TRAIN_TAR}, which is read without unpacking."
            )
        _no_class_twice(self.folder, [entry for entry in entries if entry.name in set(classes)])
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network file system's delay, not work
            listed = list(pool.map(self._listed, classes))
        inner = (Path(name, found.deeper) for name, found in zip(classes, listed, strict=True) if found.deeper)
        deeper = next(inner, None)
        if deeper and deeper.name == "images":
            raise DataError(
                f"{self.folder / deeper.parent} has its images in a folder images/, as tiny-imagenet's archive does: "
                f"move them up, so that they are {self.folder.name}/<class>/<image>."
            )
        if deeper:
            raise DataError(
                f"{self.folder / deeper} holds images, one folder too deep: expected {self.folder.name}/<class>/"
                "<image>. Move them up, each class into a folder of its own."
            )
        if split == "val" and classes == ["images"]:
            raise DataError(
                f"{self.folder} has all its images in one folder images/, as tiny-imagenet's archive does: move each "
                "one into a folder of its class (val_annotations.txt tells which)."
            )
        if classes and not any(found.images for found in listed):
            holds = ", ".join(sorted(entry.name for entry in scan(self.folder / classes[0]))[:4]) or "nothing"
            raise DataError(
                f"{self.folder} has {counted(len(classes), 'folder')} and no image in any of them ({classes[0]} holds "
                f"{holds}): expected {self.folder.name}/<class>/<image>, with the endings {', '.join(ENDINGS)}."
            )
        labels = [label for label, found in enumerate(listed) for _ in found.images]
        super().__init__(root, split, labels, [name for found in listed for name in found.images], classes)
        others = [*_others(entries), *(path for found in listed for path in found.others)]
        self.others = len(others), others[:SHOWN]
        del self.order

    def _listed(self, name: str) -> _Listed:
        folder = self.folder / name
        entries = scan(folder)
        images = [entry.name for entry in entries if is_image(entry.name)]
        if len(images) < len(entries):
            no_others((entry.name for entry in entries), folder)
        deeper = (
            inner for inner in folders(folder, entries) if any(is_image(entry.name) for entry in scan(folder / inner))
        )
        return _Listed(images, _others(entries) if len(images) < len(entries) else [], next(deeper, None))

    def read(self, i: int) -> bytes:
        return contents(f"{self.folder}/{self.name(i)}")

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


def fingerprint(reader: Reader) -> str:
    """sha256 of the images' labels and names without extension, not of their contents.

    So it is the same wherever the data is mounted, in any layout, and after `training.data resize`.
    """
    digest = hashlib.sha256()
    for label, file in zip(reader.labels.tolist(), reader.files, strict=True):
        digest.update(os.fsencode(f"{label}/{os.path.splitext(file)[0]}\n"))
    return digest.hexdigest()


def split_folder(root: Path, split: str) -> Path:
    for name in ALSO_VAL if split == "val" else (split,):
        if (root / name).is_dir():
            return root / name
    there = sorted(folders(root, scan(root)))
    like = next((name for name in there if PARTS.get(name.lower(), name.lower()) == split), None)
    raise DataError(
        f"{root} has no folder {split}/ (it has {', '.join(there[:6]) or 'none'}): expected train/ and val/ with a "
        "folder for each class in both."
        + (f" If {like} is meant, rename it, or link it: ln -s {like} {root / split}" if like else "")
    )


def _others(entries: list[os.DirEntry]) -> list[str]:
    """The files that are no images by their names, but for hidden ones and litter of other systems."""
    named = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in LITTER]
    return sorted(entry.path for entry in named if not is_image(entry.name) and not entry.is_dir())


def one_val(root: Path) -> None:
    """That there is one folder of validation images, by whichever name; others may be links to it, or empty."""
    found = [root / name for name in ALSO_VAL if (root / name).is_dir() and scan(root / name)]
    if len({os.path.realpath(folder) for folder in found}) > 1:
        raise DataError(
            f"{' and '.join(map(str, found))} are both there: expected one folder of validation images. Move the "
            "others out of it, or rename them."
        )


def _no_class_twice(folder: Path, entries: list[os.DirEntry]) -> None:
    """That no two classes are one folder, by links."""
    if not any(entry.is_symlink() for entry in entries):
        return
    seen: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        other = seen.setdefault(os.path.realpath(entry.path), entry.name)
        if other != entry.name:
            raise DataError(
                f"{folder / other} and {folder / entry.name} are the same folder, one by a link: two classes need "
                "images of their own. Remove one of them, or let it lead where its images are."
            )


def of_split(root: Path, files: Iterable[Path], split: str) -> list[Path]:
    """Those of a split's files: in a folder of its name, or with it in theirs."""
    found = []
    for path in sorted(set(files)):
        within = path.relative_to(root)
        folder = next((name for name in within.parts[:-1] if name in ("train", *ALSO_VAL)), None)
        splits = [name for name, words in WORDS.items() if words.search(folder or path.name)]
        if len(splits) > 1:
            raise DataError(
                f"{path}: its name has both train and val in it: rename it, so that it is clear which set it is of."
            )
        if split in splits:
            found.append(path)
    return found


def folders(folder: Path, entries: list[os.DirEntry]) -> list[str]:
    """The names of the folders in a folder, but for hidden ones and litter of other systems."""
    found = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name in LITTER:
            continue
        try:
            if entry.is_dir():
                found.append(entry.name)
            elif entry.is_symlink() and not is_image(entry.name):
                os.stat(entry.path)
        except OSError as error:  # also a link to itself
            raise DataError(
                f"{folder / entry.name} is a link that leads nowhere ({error.strerror}): mount or restore what it "
                "stands for, or remove it."
            ) from None
    return found


def scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error.strerror}): make it readable.") from None


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
