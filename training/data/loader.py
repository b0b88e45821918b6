"""Images on their way to the device: read, decoded and augmented by worker processes, normalised there.

Which images come when is `Order`'s, a function of (seed, epoch); how an image is cropped, flipped and coloured is a
function of (seed, epoch, index), in augment.py. Neither knows how many workers, processes or resumes there were.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from training.data.augment import Preparation, draw_of
from training.data.decode import Unreadable, backend, silence_pillow, torchcodec
from training.data.imagenet.check import DataReport, check
from training.data.imagenet.readers import SPLITS, Reader, fingerprint
from training.data.imagenet.tars import contents
from training.data.order import Batch, Order
from training.data.pool import Pool
from training.data.workers import beside_training, context
from training.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, scaled to 0..1
RETRIES = (1.0, 5.0, 15.0, 30.0)  # seconds before a file that cannot be read is tried again
REPLACEMENTS = 10  # for one image
FIRST = 32  # images in a task of `first_images`

Task = tuple[str, int, list[int]]  # split, epoch, the images' indices
Faults = list[tuple[str, str]]  # path, reason
Result = tuple[torch.Tensor, torch.Tensor, Faults, int, str]  # images, labels, ..., images replaced, what ended it


class ChunkDataset(Dataset):
    """What a worker does: a task in, its chunk of images uint8 [b, size, size, 3] and labels int64 [b] out."""

    def __init__(self, readers: dict[str, Reader], preparation: Preparation, seed: int, root: str):
        self.readers, self.preparation, self.seed, self.root = readers, preparation, seed, root
        self.retries = RETRIES

    def __getitem__(self, task: Task) -> Result:
        split, epoch, indices = task
        size = self.preparation.size
        images = torch.zeros(len(indices), size, size, 3, dtype=torch.uint8)
        labels = torch.full((len(indices),), -1)
        pixels = images.numpy()
        faults: Faults = []
        replaced = 0
        try:
            with warnings.catch_warnings():
                silence_pillow()
                for place, index in enumerate(indices):
                    before = len(faults)
                    if split == "train":
                        pixels[place], labels[place] = self._train(epoch, index, faults)
                        replaced += len(faults) > before
                    else:
                        self._val(index, pixels[place], labels, place, faults)
        except DataError as error:  # as text: an exception would come out with the worker's traceback for its message
            return images[:0], labels[:0], faults, replaced, str(error)
        return images, labels, faults, replaced, ""

    def _train(self, epoch: int, index: int, faults: Faults) -> tuple[np.ndarray, int]:
        """An image, or the next one that can be decoded, augmented as the first would have been."""
        reader, draw = self.readers["train"], draw_of(self.seed, epoch, index)
        for attempt in range(REPLACEMENTS + 1):
            i = (index + attempt) % len(reader)
            try:
                return self.preparation.train(self._read(reader, i), draw), int(reader.labels[i])
            except Unreadable as error:
                faults.append((reader.filename(i), str(error)))
        raise DataError(
            f"{REPLACEMENTS + 1} images in a row cannot be decoded, the last one {faults[-1][0]} ({faults[-1][1]}): "
            f"`python -m training.data check {self.root}` finds all of them; fetch them again."
        )

    def _val(self, index: int, pixels: np.ndarray, labels: torch.Tensor, place: int, faults: Faults) -> None:
        """An image; one that cannot be decoded stays black, with the label -1, which no answer is."""
        reader = self.readers["val"]
        try:
            pixels[:] = self.preparation.val(self._read(reader, index))
            labels[place] = int(reader.labels[index])
        except Unreadable as error:
            faults.append((reader.filename(index), str(error)))

    def _read(self, reader: Reader, i: int) -> bytes:
        """A file that cannot be read at all is not one damaged file among a million: it is waited for, then the end."""
        for pause in (*self.retries, None):
            try:
                return reader.read(i)
            except OSError as error:
                if pause is None:
                    gone = "cannot be read" if Path(self.root).is_dir() else "is gone"
                    raise DataError(
                        f"The data folder {self.root} {gone}: {reader.filename(i)}: {error.strerror or error} (tried "
                        f"{len(self.retries) + 1} times). Mount it or put it back and run the same command again: it "
                        "goes on from the last checkpoint."
                    ) from None
                time.sleep(pause)
        raise AssertionError  # the last pause is None


class ImageData:
    """ImageNet for one process of `world`: `Data` of training/data/source.py."""

    def __init__(
        self,
        data: Any,
        seed: int,
        batch_size: int,
        chunk: int,
        device: torch.device,
        *,
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
        report: DataReport | None = None,
    ):
        """`data` is a config's section `ImageNetDataConfig`; `local_world` processes share this machine's cores.

        `report` is what `check` found of the data, where somebody has looked already: it lists two thousand folders.
        """
        self.workers = beside_training(local_world) if data.workers is None else data.workers
        if self.workers:
            context()  # its imports take seconds: begun now, they are done when the first worker is needed
        if data.decode == "torchcodec":
            torchcodec()  # said here, where it is missing, and not by each worker
        report = report or check(data.folder, data.classes, data.train_images, data.val_images, fast=True)
        if report.problems:
            raise DataError("\n".join(report.problems))
        readers, self.device, self.rank, self.world = report.readers, device, rank, world
        self.order = Order(len(readers["train"]), seed, batch_size, chunk, rank, world)
        self._whole = Order(len(readers["train"]), seed, batch_size, chunk)
        self.fingerprint, found = identity(report, data.folder)
        self.val_images = self.all_val_images = len(readers["val"])
        decoded = backend(data.decode, data.resize)
        self.facts = {"source": data.name, **found, "workers": self.workers, "decode": decoded}
        preparation = Preparation(
            *(data.image_size, data.crop_fraction, data.min_area, data.color_jitter, data.flip),
            *(data.decode, data.resize),
        )
        self._work = ChunkDataset(readers, preparation, seed, str(data.folder))
        # Of a whole row of pixels: on a CPU, three numbers at a time is five times slower.
        self._row = [torch.tensor(x, device=device).mul(255).repeat(data.image_size) for x in (MEAN, STD)]
        self.fault_count = 0  # images of this process that another one was taken for
        self._reported: set[str] = set()
        self._new: list[str] = []
        self._pool = Pool(self._work, self.workers, device.type == "cuda", str(data.folder))
        atexit.register(self.close)

    def stream(self, step: int) -> Iterator[Batch]:
        """This process's chunks of mini-batch `step`, of the one after it, and so on without end."""
        return self._on_device(self._batches(self._pool.submit(self._tasks(step))))

    def _tasks(self, step: int) -> Iterator[Task]:
        for number in itertools.count(step):
            epoch, chunks = self.order.chunks(number)
            for indices in chunks:
                yield "train", epoch, indices.tolist()

    def validation(self, whole: bool = False) -> Iterator[Batch]:
        """This process's share of the validation set; over all processes each image comes once."""
        mine = range(self.rank, self.val_images, self.world)
        # All workers at work, in chunks no larger than training's, which are known to fit the device.
        chunk = max(1, min(self.order.chunk, -(-len(mine) // max(1, self.workers))))
        tasks = (("val", 0, list(mine[k : k + chunk])) for k in range(0, len(mine), chunk))
        return self._on_device(self._batches(self._pool.submit(tasks)))

    def first_images(self, n: int) -> torch.Tensor:
        """The first `n` training images in the order of the first epoch, augmented; the same on every process."""
        steps = range(min(-(-n // self.order.batch_size), self.order.per_epoch))
        indices = [i for step in steps for chunk in self._whole.chunks(step)[1] for i in chunk.tolist()][:n]
        tasks = [("train", 0, indices[k : k + FIRST]) for k in range(0, len(indices), FIRST)]
        return torch.cat([images for images, _ in self._on_device(self._batches(self._pool.submit(tasks)))])

    def faults(self) -> list[str]:
        """Images that could not be decoded since the last call, "path: reason", each one once."""
        new, self._new = self._new, []
        return new

    def close(self) -> None:
        """End the workers."""
        atexit.unregister(self.close)
        self._pool.close()

    def _batches(self, results: Iterator[Result]) -> Iterator[Batch]:
        """Chunks uint8 [b, size, size, 3] in (pinned) memory; notes what could not be read."""
        for images, labels, faults, replaced, problem in results:
            self.fault_count += replaced
            for path, reason in faults:
                if path not in self._reported:
                    self._reported.add(path)
                    self._new.append(f"{path}: {reason}")
            if problem:
                raise DataError(problem)
            yield images, labels

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.device.type != "cuda":
            for images, labels in batches:
                yield self._normalised(images), labels
            return
        # Copying and normalising run on a stream of their own, one chunk ahead of what the consumer computes.
        side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream
        side.wait_stream(current(self.device))
        ready: tuple[Batch, torch.cuda.Event] | None = None
        for images, labels in batches:
            with torch.cuda.stream(side):
                there = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
                upcoming = (self._normalised(there[0]), there[1]), side.record_event()
            if ready is not None:
                yield wait_and_record(*ready, current(self.device))
            ready = upcoming
        if ready is not None:
            yield wait_and_record(*ready, current(self.device))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [b, S, S, 3] -> float32 [b, 3, S, S], which is in channels_last order as it comes."""
        mean, std = self._row
        rows = images.flatten(2).float().sub_(mean).div_(std)
        return rows.view(images.shape).permute(0, 3, 1, 2)


def identity(report: DataReport, folder: Path) -> tuple[str, dict[str, Any]]:
    """The fingerprint of the images that `check` found in a folder, and what run.json says of them."""
    facts = dict(report.facts)
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts["resized"] = json.loads(contents(folder / "resize.json"))["settings"]
    marks = ":".join(fingerprint(report.readers[split]) for split in SPLITS)
    return hashlib.sha256(marks.encode()).hexdigest(), facts


def wait_and_record(batch: Batch, done: torch.cuda.Event, stream: torch.cuda.Stream) -> Batch:
    """A batch that another stream made, for use on this one: after it is done, and not to be reused before this is."""
    stream.wait_event(done)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch
