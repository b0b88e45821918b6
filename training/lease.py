"""Who may write into a run's folder: one job, on one machine, as long as it lives.

Two locks, since either alone fails somewhere. The kernel's (`flock`) is free at once when its process ends, however it
ends, but on some network file systems only one machine knows of it. So the owner also writes who it is into the
file, with a number that it counts up every few seconds. Whoever finds another machine's name there watches the number:
if it moves, the owner lives; if it does not, the owner is dead and its lease is taken over. No clock is compared with
another one, so machines may disagree about the time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

from training.files import sync

BEAT = 10.0  # seconds between two counts
PATIENCE = 45.0  # seconds without a count after which an owner on another machine is taken for dead
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Taken(Exception):
    """The folder belongs to a living process; the message says which."""


class Lease:
    """The `lock` file of a folder, held until `release`. Raises `Taken`, or `OSError` where it cannot be written."""

    def __init__(self, folder: Path, patience: float | None = None):
        self.path = folder / "lock"
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            self._take(PATIENCE if patience is None else patience)
        except BaseException:
            self._file.close()
            raise
        self._me = {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        self._count, self._end = 0, threading.Event()
        self.lost: str | None = None  # who has taken the folder from us, while we seemed dead or both came at once
        self._beat()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def _take(self, patience: float) -> None:
        kernel = True
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = owner(self.path)
                # The lock of a process that was killed lasts as long as its workers, which soon find it gone.
                if not dead(holder) or time.monotonic() - began > patience:
                    raise Taken(describe(holder)) from None
                time.sleep(0.1)
                continue
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                kernel = False
            break
        first = self._read()
        if first is None:
            return
        if first.get("host") == platform.node():
            if not kernel and not dead(first):
                raise Taken(describe(first))
            return
        print(
            f"train.py: {describe(first)} was training in {self.path.parent}: "
            f"waiting {patience:.0f} s for a sign of life",
            file=sys.stderr,
        )
        began = time.monotonic()
        while time.monotonic() - began < patience:
            time.sleep(min(1.0, patience / 10))
            now = self._read()
            if now is None:
                return
            if now != first:
                raise Taken(describe(now))

    def _read(self) -> dict[str, Any] | None:
        """The owner in the file; an error of the file system is one, not an owner's absence."""
        return _parse(self.path.read_text())

    def _beat(self) -> None:
        text = json.dumps({**self._me, "count": self._count})
        # In place, since the kernel's lock is on this very file, and in one write of one length: no reader sees half.
        os.pwrite(self._file.fileno(), f"{text:<255}\n".encode(), 0)
        sync(self._file.fileno())  # else NFS may keep it on this machine for longer than others wait

    def _keep(self) -> None:
        while not self._end.wait(BEAT):
            with contextlib.suppress(OSError):  # a hiccup of the file system: the next count comes soon
                now = self._read()
                if now is not None and {k: now.get(k) for k in self._me} != self._me:
                    self.lost = describe(now)
                    return
                self._count += 1
                self._beat()

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.lost is None:
                self._file.truncate(0)
        self._file.close()


def owner(path: Path) -> dict[str, Any] | None:
    """What the lock file says of its owner; None where there is none."""
    try:
        return _parse(path.read_text())
    except OSError:
        return None


def _parse(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def describe(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process"
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"another process (pid {owner.get('pid')} on {owner.get('host')}{job})"


def dead(owner: dict[str, Any] | None) -> bool:
    """Whether an owner surely lives no more: it was on this machine, and no process has its number."""
    if not owner or owner.get("host") != platform.node():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return True
    except PermissionError:
        return False
    return False
