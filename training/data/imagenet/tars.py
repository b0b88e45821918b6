"""Where the images inside tar files are: each file is indexed once, and then read by offset, in any order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from training.data.workers import cpus, parallel
from training.errors import DataError
from training.files import write_atomic

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SLOW = 5.0  # seconds; an index that took longer to make is kept

Inner = tuple[str, int, int]  # a tar file inside a tar file: name, offset, size


class Member(NamedTuple):
    """An image inside a tar file, with the label that a shard gives it."""

    tar: str
    inner: str  # the name of the tar file inside `tar` that has it; "": it is in `tar` itself
    name: str
    offset: int
    size: int
    label: int | None
    wnid: str


def is_image(name: str) -> bool:
    """By its name; macOS leaves ._name.JPEG beside name.JPEG, which is none."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in ENDINGS and not base.startswith(".")


def index(tars: list[Path]) -> list[Member]:
    """Every image in the tar files. An index that took long is kept in the user's cache, until a file changes."""
    names = [str(path) for path in tars]
    try:
        state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in tars]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "net2net"
    cache /= hashlib.sha256(repr((2, state)).encode()).hexdigest()[:32] + ".json"
    with suppress(OSError, ValueError, TypeError, IndexError):
        return [Member(names[tar], *rest) for tar, *rest in json.loads(cache.read_text())]
    started = time.monotonic()
    jobs = [(name, inner) for name in names for inner in _inner(name)]
    parts = parallel(_members, jobs, cpus() if len(jobs) > 32 else 0, "tar files")
    members = [member for part in parts for member in part]
    if time.monotonic() - started > SLOW:
        number = {name: k for k, name in enumerate(names)}
        with suppress(OSError):  # no place for it: then it is made anew each time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, json.dumps([(number[m.tar], *m[1:]) for m in members]).encode())
    return members


def _inner(path: str) -> list[Inner | None]:
    """The tar files inside a tar file, or [None] if it holds other files."""
    with _opened(path, path) as tar:
        found = []
        while (member := tar.next()) is not None:
            if not member.name.endswith(".tar"):
                return [None]
            found.append((member.name, member.offset_data, member.size))
        _whole(tar)
        return found


def _members(job: tuple[str, Inner | None]) -> list[Member]:
    """The images of one tar file.

    In a shard (WebDataset) the files of a sample share their name up to the first dot.
    """
    path, inner = job
    inner_name, start, size = inner or ("", 0, 0)
    samples: dict[str, tuple[int | None, str]] = {}  # label and wnid
    images: dict[str, tuple[str, int, int]] = {}
    with open(path, "rb") as file:
        source = _Part(file, start, size) if inner else file
        with _opened(f"{path} ({inner_name})" if inner else path, path, source) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it keeps them all, for finding one by its name
                folder, base = os.path.split(member.name)
                stem, _, ending = base.partition(".")
                key = os.path.join(folder, stem)
                if not member.isfile() or not stem:
                    continue
                if is_image(base):
                    images[key if is_image(f"x.{ending}") else member.name] = (
                        member.name,
                        start + member.offset_data,
                        member.size,
                    )
                elif ending in ("cls", "json"):
                    label, wnid = samples.get(key, (None, ""))
                    found, name = _label(tar.extractfile(member).read(), ending)
                    # Where both are there, .cls decides.
                    samples[key] = (
                        found if found is not None and (ending == "cls" or label is None) else label,
                        wnid or name,
                    )
            _whole(tar)
    nothing = (None, "")
    return [Member(path, inner_name, *where, *samples.get(key, nothing)) for key, where in images.items()]


def _label(content: bytes, ending: str) -> tuple[int | None, str]:
    with suppress(ValueError):
        if ending == "cls":
            return int(content), ""
        values = json.loads(content)
        if isinstance(values, dict):
            label = next((values[k] for k in ("label", "cls", "class") if isinstance(values.get(k), int)), None)
            wnids = (v for v in values.values() if isinstance(v, str) and re.fullmatch(r"n\d{8}", v))
            return label, next(wnids, "")
    return None, ""


class _Part(io.RawIOBase):
    """A tar file inside another one, as a file."""

    def __init__(self, file: io.BufferedReader, start: int, size: int):
        self.file, self.start, self.size, self.place = file, start, size, 0

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = (0, self.place, self.size)[whence] + place
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        data = os.pread(self.file.fileno(), left if size < 0 else min(size, left), self.start + self.place)
        self.place += len(data)
        return data


@contextmanager
def _opened(where: str, path: str, source: Any = None) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:", fileobj=source) as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError) as error:
        if _compressed(path):
            raise DataError(
                f"The tar file {where} is compressed: images in it cannot be read one by one. Decompress it first "
                "(gzip -d, xz -d, bzip2 -d or zstd -d)."
            ) from None
        raise DataError(f"The tar file {where} is damaged or incomplete ({error}): fetch it again.") from None


def _compressed(path: str) -> bool:
    """By its first bytes: gzip, xz, bzip2 or Zstandard, whatever its name says."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"))
    return False


def _whole(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the archive's end: nothing but zeros may come there."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no file's header at byte {tar.offset:,}, where one was expected")
