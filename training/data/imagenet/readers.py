"""The images of one split in a fixed order, read where they lie.

In every layout image number i is the same image, and a label is a class's place in the sorted class names (wnids): a
run does not depend on the layout, and a checkpoint of one evaluates on another.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from training.data.imagenet.labels import check_numbers, in_order
from training.data.imagenet.tars import Member, is_image
from training.errors import DataError

SPLITS = ("train", "val")
ALSO_VAL = ("val", "validation")
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
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
        self.folder = split_folder(root, split)
        entries = scan(self.folder)
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        loose = sum(is_image(entry.name) for entry in entries)
        if loose and split == "val":
            raise DataError(
                f"{self.folder} holds {counted(loose, 'image')} outside of class folders, as they come out of the "
                f"archive: run `python -m training.imagenet sort-val {root}`, which moves them where they belong."
            )
        if loose:
            raise DataError(
                f"{self.folder} holds {counted(loose, 'image')} outside of class folders: move what belongs there."
            )
        tars = sum(entry.name.endswith(".tar") for entry in entries)
        if tars and not classes:
            raise DataError(
                f"{self.folder} holds {counted(tars, 'tar file')} and no class folder: unpack each one into a folder "
                f"of its name, or give the folder that has {TRAIN_TAR}, which is read without unpacking."
            )
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a network file system's delay, not work
            listed = list(pool.map(self._images, classes))
        deeper = next((name for name, images in zip(classes, listed, strict=True) if not images), None)
        if deeper and (self.folder / deeper / "images").is_dir():
            raise DataError(
                f"{self.folder / deeper} has its images in a folder images/, as tiny-imagenet's archive does: move "
                f"them up, so that they are {self.folder.name}/<class>/<image>."
            )
        if split == "val" and classes == ["images"]:
            raise DataError(
                f"{self.folder} has all its images in one folder images/, as tiny-imagenet's archive does: move each "
                "one into a folder of its class (val_annotations.txt tells which)."
            )
        labels = [label for label, names in enumerate(listed) for _ in names]
        super().__init__(root, split, labels, [name for names in listed for name in names], classes)
        del self.order

    def _images(self, name: str) -> list[str]:
        return [entry.name for entry in scan(self.folder / name) if is_image(entry.name)]

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
            from pyarrow import parquet
            from timm.data.readers.reader_hfds import ReaderHfds
        except ImportError:
            raise DataError(
                f"{root} holds parquet files, and reading them needs the package `datasets`: "
                "pip install datasets, or the extra `cluster` of this repository."
            ) from None
        datasets.utils.logging.disable_progress_bar()
        name = "train" if split == "train" else "validation"
        try:
            # Of the file itself: a column that its metadata promises and that is not there would come as nulls.
            columns = parquet.read_schema(min([*root.glob("*.parquet"), *root.glob("data/*.parquet")])).names
            if not {"image", "label"} <= set(columns):
                raise DataError(
                    f"{root}: the columns of these parquet files are {', '.join(columns)}: expected image and label; "
                    "rename them (`datasets`: rename_column)."
                )
            self.rows = ReaderHfds(str(root), split=name)
        except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
            said = " ".join(str(error).split())[:300]
            raise DataError(f"{root}: the {name} split of these parquet files cannot be opened: {said}") from error
        table = self.rows.dataset.data
        labels = table.column("label").to_pylist()
        strange = next((k for k, label in enumerate(labels) if type(label) is not int), None)
        if strange is not None:
            raise DataError(
                f"{root}: the label in row {strange} of {split} is {labels[strange]!r}: expected a class's number, "
                "from 0 on (`datasets`: class_encode_column makes numbers of names)."
            )
        check_numbers(labels, f"{root}, {split}")
        paths = [
            os.path.basename(path or "")
            for chunk in table.column("image").chunks
            for path in chunk.field("path").to_pylist()  # not by row: that would read each image for its name
        ]
        kind = self.rows.dataset.features["label"]
        if not declared and isinstance(kind, datasets.ClassLabel):
            declared = kind.names
        stems = [os.path.splitext(path)[0] or f"{row:08d}" for row, path in enumerate(paths)]
        labels, classes, names = in_order(labels, stems, declared)
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


def fingerprint(reader: Reader) -> str:
    """sha256 of which images there are, by label and name without extension: not of their contents.

    So it is the same wherever the data is mounted, in any layout, and after `training.resize`.
    """
    digest = hashlib.sha256()
    for label, file in zip(reader.labels.tolist(), reader.files, strict=True):
        digest.update(os.fsencode(f"{label}/{os.path.splitext(file)[0]}\n"))
    return digest.hexdigest()


def split_folder(root: Path, split: str) -> Path:
    for name in ALSO_VAL if split == "val" else (split,):
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {split}/: expected train/ and val/ with a folder for each class in both.")


def scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error.strerror}): make it readable.") from None


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
