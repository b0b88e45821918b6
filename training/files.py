"""Writing files that others read: whole or not at all, and patient with network file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# What a network file system says when it will be back: tried again after so many seconds each.
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EREMOTEIO}
PAUSES = (1.0, 3.0, 10.0)
# What a file system answers that cannot sync (FUSE, some network ones), or lets folders be written and not be read.
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def patiently(action: Callable[[], T]) -> T:
    """`action()`, again after a pause where the file system says that it is only away for a moment."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            time.sleep(pause)
    return action()


def write_atomic(path: Path, content: bytes | memoryview, *, durable: bool = False, only_writer: bool = False) -> None:
    """Replace a file in one step: after a kill or a full disk there is the old one or the new one, no half of one.

    `durable`: it is on the disk on return, through a power cut too. `only_writer`: no other process writes this file,
    so that what a kill leaves of it is overwritten by the next attempt, and does not pile up.
    """
    temporary = _beside(path, only_writer)

    def write() -> None:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                sync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)

    _or_clean_up(temporary, write)


def duplicate(path: Path, name: Path) -> None:
    """Give a file a second name that stays when the first one is replaced; a copy where there are no hard links."""
    temporary = _beside(name, only_writer=True)

    def link() -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(path, temporary)
        temporary.replace(name)

    _or_clean_up(temporary, link)


def _beside(path: Path, only_writer: bool) -> Path:
    """A hidden name in the same folder: a rename is atomic within a file system only."""
    return path.with_name(f".{path.name}.tmp" if only_writer else f".{path.name}.{os.getpid()}.tmp")


def _or_clean_up(temporary: Path, action: Callable[[], None]) -> None:
    try:
        patiently(action)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def sync(descriptor: int) -> None:
    """Onto the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """The file is in place already: that the folder cannot be synced is no failure to write."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
