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
import threading
import time
from pathlib import Path
from typing import Any

BEAT = 10.0  # seconds between two counts
PATIENCE = 45.0  # seconds without a count after which an owner on another machine is taken for dead
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Taken(Exception):
    """The folder belongs to a living process; the message says which."""


class Lease:
    """The `lock` file of a folder, held until `release`. Raises `Taken`, or `OSError` where it cannot be written."""

    def __init__(self, folder: Path, patience: float | None = None):
        self.path = folder / "lock"
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
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
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(describe(owner(self.path))) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            kernel = False
        first = owner(self.path)
        if first is None:
            return
        if first.get("host") == platform.node():
            if not kernel and _alive(first.get("pid")):
                raise Taken(describe(first))
            return
        began = time.monotonic()
        while time.monotonic() - began < patience:
            time.sleep(min(1.0, patience / 10))
            now = owner(self.path)
            if now is None:
                return
            if now != first:
                raise Taken(describe(now))

    def _beat(self) -> None:
        text = json.dumps({**self._me, "count": self._count})
        # In place, since the kernel's lock is on this very file, and in one write of one length: no reader sees half.
        os.pwrite(self._file.fileno(), f"{text:<255}\n".encode(), 0)

    def _keep(self) -> None:
        while not self._end.wait(BEAT):
            with contextlib.suppress(OSError):  # a hiccup of the file system: the next count comes soon
                now = owner(self.path)
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
        said = json.loads(path.read_text() or "null")
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def describe(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process"
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"another process (pid {owner.get('pid')} on {owner.get('host')}{job})"


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
