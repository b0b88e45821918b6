"""Images in tables: parquet files, as on the Hugging Face hub, and what `datasets`' save_to_disk writes."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.data.imagenet.labels import check_numbers, in_order
from training.data.imagenet.readers import ALSO_VAL, SPLITS, Reader, of_split
from training.data.imagenet.tars import contents, no_pipe
from training.errors import DataError

SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk: of several splits, of one


def parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files of a split: beside each other, in data/ or default/, or in a folder of the split's name."""
    places = [root / above for above in ("", "data", "default")]
    places += [place / name for place in places for name in ("train", *ALSO_VAL)]
    found = [path for place in places for path in place.glob("*.parquet") if not path.name.startswith(".")]
    for path in found:
        no_pipe(path)
    return of_split(root, found, split)


def saved_to_disk(root: Path) -> bool:
    return any((root / inner / name).is_file() for inner in ("", "train") for name in SAVED)


class TableReader(Reader):
    """One split of a table with the columns image and label, by `datasets`, which makes an Arrow copy of parquet once.

    Not timm's ReaderHfds: it asks for splits named train and validation alone, and a row without an image ends it.
    """

    def __init__(self, root: Path, split: str, declared: Sequence[str] = ()):
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{root} holds parquet or Arrow files, and reading them needs the package `datasets`: "
                "pip install datasets, or the extra `cluster` of this repository."
            ) from None
        datasets.utils.logging.disable_progress_bar()
        datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said below
        self.layout = "datasets' save_to_disk" if saved_to_disk(root) else "Hugging Face parquet"
        try:
            rows = _saved(root, split) if saved_to_disk(root) else _parquet(root, split)
            self.rows = rows.with_format(None).cast_column("image", datasets.Image(decode=False))
        except (ValueError, KeyError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
            said = " ".join(str(error.__cause__ or error).split())[:300]
            raise DataError(f"{root}: the {split} split of these files cannot be opened: {said}") from error
        table = self.rows.data
        labels = table.column("label").to_pylist()
        strange = next((k for k, label in enumerate(labels) if type(label) is not int), None)
        if strange is not None:
            raise DataError(
                f"{root}: the label in row {strange} of {split} is {labels[strange]!r}: expected a class's number, "
                "from 0 on (`datasets`: class_encode_column makes numbers of names)."
            )
        if not labels:
            raise DataError(f"{root}: there is no image in the {split} set ({self.layout}).")
        check_numbers(labels, f"{root}, {split}")
        paths = [
            os.path.basename(path or "")
            for chunk in table.column("image").chunks
            for path in chunk.field("path").to_pylist()  # not by row: that would read each image for its name
        ]
        kind = self.rows.features["label"]
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
        image = self.rows[int(self.order[i])]["image"]
        if image is None:
            return b""  # which is no image, and said to be none
        return image["bytes"] if image["bytes"] else contents(self.root / (image["path"] or ""))

    def filename(self, i: int) -> str:
        return f"{self.root} ({self.split}, row {int(self.order[i])}): {self.files[i]}"


def _parquet(root: Path, split: str) -> Any:
    import datasets
    from pyarrow import parquet

    files = parquet_files(root, split)
    if not files:
        raise DataError(
            f"{root} has parquet files, but none of the {split} set: their names should contain "
            f"{' or '.join(ALSO_VAL) if split == 'val' else split}."
        )
    for file in files:  # of each file itself: a column that its metadata promises and that is not there becomes nulls
        try:
            schema = parquet.read_schema(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as parquet: {error}") from None
        _has_columns(str(file), schema.names)
        kind = schema.field("image").type
        if "binary" not in str(kind) or "list" in str(kind):
            raise DataError(
                f"{file}: the column image holds {kind}: expected the files' bytes (`datasets`: cast_column('image', "
                "Image()) and to_parquet put them in)."
            )
    # As they are named, not as patterns; and not by their folder, in which a README or a script could say otherwise.
    return datasets.load_dataset("parquet", data_files={split: [glob.escape(str(file)) for file in files]}, split=split)


def _saved(root: Path, split: str) -> Any:
    import datasets

    names = ALSO_VAL if split == "val" else (split,)
    there = next((root / name for name in names if (root / name / "state.json").is_file()), None)
    if there is None:
        known = sorted(path.parent.name for path in root.glob("*/state.json"))
        raise DataError(
            f"{root} was written by save_to_disk and has {'the splits ' + ', '.join(known) if known else 'one split'}: "
            f"expected {' and '.join(SPLITS)} (`datasets`: train_test_split, or a DatasetDict of these names)."
        )
    rows = datasets.load_from_disk(str(there))
    _has_columns(str(there), rows.column_names)
    return rows


def _has_columns(where: str, columns: Sequence[str]) -> None:
    if not {"image", "label"} <= set(columns):
        raise DataError(
            f"{where}: the columns are {', '.join(columns)}: expected image and label; rename them (`datasets`: "
            "rename_column)."
        )
