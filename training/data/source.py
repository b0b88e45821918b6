"""What every kind of data offers to a run, and the one place where a config's section becomes data."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch

from training.config import COUNTS, Config, ImageNetDataConfig
from training.data.imagenet.check import DataReport, check
from training.data.loader import ImageData, identity
from training.data.memory import MemoryImages
from training.data.order import Batch, Order
from training.errors import ConfigError, DataError

T = TypeVar("T")


class Data(Protocol):
    """Training and validation images of one process. Images are normalised, float32 [B, C, H, W]; labels int64 [B]."""

    order: Order
    fingerprint: str  # of the set of images: a resumed run must have the same
    facts: dict[str, Any]  # for run.json
    val_images: int  # looked at in each evaluation
    all_val_images: int  # in the whole validation set

    def stream(self, step: int) -> Iterator[Batch]:
        """This process's chunks of mini-batch `step`, of the one after it, and so on without end."""

    def first_images(self, n: int) -> torch.Tensor:
        """The first `n` training images in the order of the first epoch, the same on every process."""

    def validation(self, whole: bool = False) -> Iterator[Batch]:
        """This process's share of the evaluation's images, or of all there are; over all processes each comes once.

        The label of an image that could not be read is -1, which no answer is.
        """

    def faults(self) -> list[str]:
        """Images that could not be read since the last call, "path: reason", each one once."""

    def close(self) -> None: ...


def open_data(
    config: Config,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    on_main: Callable[[Callable[[], T]], T] = lambda action: action(),
) -> Data:
    """The data of one of `world` processes, `local_world` of which share this machine's cores.

    What `on_main` is called with is to run on one of them, for all.
    """
    data = config.data
    if isinstance(data, ImageNetDataConfig):
        report = on_main(lambda: _checked(data))
        if not report.problems and not data.folder.exists():  # the main process, which has looked, is on another node
            raise DataError(
                f"there is no {data.folder} on {platform.node()}, a node of this job: data on the nodes' own disks has "
                "to be copied to each of them, in the cluster file's setup with srun --ntasks-per-node=1"
            )
        batch, chunk = config.training.batch_size, config.training.chunk
        share = {"rank": rank, "world": world, "local_world": local_world}
        return ImageData(data, config.seed, batch, chunk, device, **share, report=report)
    return MemoryImages(config, device, rank, world)


def _checked(data: ImageNetDataConfig) -> DataReport:
    report = check(data.folder, data.classes, data.train_images, data.val_images, fast=True)
    for warning in report.warnings:
        print(f"train.py: warning: {warning}", file=sys.stderr)
    return report


def images_now(config: Config) -> dict[str, Any] | None:
    """What run.json would say of the images as they are now, for a finished run, which needs none of them: None where
    they are gone or not mounted, or of a kind that is always the same. A `DataError` where they are no set any more."""
    data = config.data
    if not isinstance(data, ImageNetDataConfig):
        return None
    try:
        if not any(data.folder.iterdir()):
            return None
    except (ConfigError, OSError):
        return None
    report = check(data.folder, None, None, None, fast=True)
    if report.problems:
        raise DataError(" ".join(report.problems))
    fingerprint, facts = identity(report, data.folder)
    return {"fingerprint": fingerprint, **facts}


def with_counts(config: Config, data: Data) -> Config:
    """The config with the numbers of classes and images that were found, where it leaves them open."""
    found = {key: data.facts[key] for key in COUNTS if getattr(config.data, key, 0) is None}
    return config.model_copy(update={"data": config.data.model_copy(update=found)})
