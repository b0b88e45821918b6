"""Where the images inside tar files are: each file is indexed once, and then read by offset, in any order."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import posixpath
import re
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from training.data.workers import cpus, parallel
from training.errors import DataError
from training.files import write_atomic

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# Images by their name too, which are not read here: one that was left out in silence would be missed by nobody.
OTHERS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pgm", ".ppm", ".tif", ".tiff")
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
    said: str = ""  # what stands in the place of a label that is no number


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name. macOS leaves ._name.JPEG beside name.JPEG, which is none."""
    return _ends_in(name, ENDINGS)


def _ends_in(name: str, endings: tuple[str, ...]) -> bool:
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in endings and not base.startswith(".")


def no_others(names: Iterable[str], where: str | Path) -> None:
    """That there is no image of a kind that is not read."""
    others = [name for name in names if _ends_in(name, OTHERS)]
    if others:
        files = "1 file" if len(others) == 1 else f"{len(others):,} files"
        raise DataError(
            f"{where} holds {files} that would be left out, such as {others[0]}: images are read from "
            f"{', '.join(ENDINGS)}. Convert them, or take them out."
        )


def contents(path: str | Path) -> bytes:
    """What a file holds; nothing, which is no image, for a pipe, which may never answer, or a device without an end."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            return b""
        raise


def no_pipe(path: Path) -> None:
    """That reading a file that holds many images comes to an end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe, a socket or a device, where a file was expected: take it out.")


def index(tars: list[Path]) -> list[Member]:
    """Every image in the tar files. An index that took long is kept in the user's cache, until a file changes."""
    names = [str(path) for path in tars]
    for path in tars:
        no_pipe(path)
    try:
        state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in tars]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "net2net"
    cache /= hashlib.sha256(repr((3, state)).encode()).hexdigest()[:32] + ".json"
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


class _Image(NamedTuple):
    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def dotted(self) -> bool:
        """Whether its name has more dots than the one before its ending."""
        return "." in posixpath.basename(self.stem)


class _Label(NamedTuple):
    number: int | None = None
    wnid: str = ""
    said: str = ""


def _members(job: tuple[str, Inner | None]) -> list[Member]:
    """The images of one tar file, in a shard (WebDataset) with their labels."""
    path, inner = job
    inner_name, start, size = inner or ("", 0, 0)
    where = f"{path} ({inner_name})" if inner else path
    samples: dict[str, list[_Image]] = {}  # by their files' name up to its first dot
    labels: dict[str, _Label] = {}  # by name without its last ending
    others, numbered = [], set()
    with open(path, "rb") as file:
        source = _Part(file, start, size) if inner else file
        with _opened(where, path, source) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it keeps them all, for finding one by its name
                name = posixpath.normpath(member.name)  # some begin with ./
                folder, base = posixpath.split(name)
                first = base.partition(".")[0]
                if not member.isfile() or not first:
                    continue
                stem, ending = os.path.splitext(name)
                ending = ending.lower()
                if is_image(base):
                    image = _Image(name, start + member.offset_data, member.size)
                    samples.setdefault(posixpath.join(folder, first), []).append(image)
                elif ending in (".cls", ".json"):
                    found, known = _label(tar.extractfile(member).read(), ending), labels.get(stem, _Label())
                    # Where both are there, .cls decides.
                    better = found if known.number is None or (ending == ".cls" and found.number is not None) else known
                    numbered |= {stem} if ending == ".cls" else set()
                    labels[stem] = better._replace(wnid=known.wnid or found.wnid)
                elif ending == ".tar":
                    raise DataError(f"The tar file {where} holds images and another tar file, {name}: take that out.")
                else:
                    others.append(name)
            _whole(tar)
    no_others(others, f"The tar file {where}")
    lonely = sorted(numbered - samples.keys() - {image.stem for images in samples.values() for image in images})
    if lonely:
        raise DataError(
            f"The tar file {where} has {lonely[0]}.cls and no image beside it ({', '.join(ENDINGS)}; a link inside a "
            "tar file is none)."
        )
    members = []
    for sample, images in samples.items():
        for image, label in _labelled(where, sample, images, labels):
            members.append(Member(path, inner_name, *image, label.number, label.wnid, label.said))
    return members


def _labelled(
    where: str, sample: str, images: list[_Image], labels: dict[str, _Label]
) -> Iterator[tuple[_Image, _Label]]:
    """The images of a sample, and what tells their class. A sample is named up to the first dot: it has one image.

    But where a name has dots, as a.b.jpg, a label a.b.cls is that image's own.
    """
    own = [image for image in images if image.dotted and image.stem in labels]
    shared = [image for image in images if image not in own]
    plain = [image for image in shared if not image.dotted]
    if plain and sample in labels:
        shared = plain  # a.seg.png beside a.jpg is another part of the sample
    if (len(shared) > 1 and sample in labels) or len({image.stem for image in own}) < len(own):
        names = ", ".join(image.name for image in (shared if len(shared) > 1 else own)[:3])
        raise DataError(
            f"The tar file {where} has several images for one label ({names}): nothing tells which one is meant. Give "
            "each its own name and label, or take out what is no image to train on."
        )
    for image in own:
        yield image, labels[image.stem]
    for image in shared:
        yield image, labels.get(sample, _Label())


NUMBER = re.compile(rb"[+-]?\d{1,18}")
LABELS = ("label", "cls", "class")  # keys of a sample's JSON


def _label(content: bytes, ending: str) -> _Label:
    if ending == ".cls":
        text = content.removeprefix(b"\xef\xbb\xbf").strip()
        if NUMBER.fullmatch(text):
            return _Label(int(text))
        return _Label(said=repr(content[:40].decode(errors="replace")))
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return _Label(said="in a file that is no valid JSON")
    if not isinstance(values, dict):
        return _Label(said="in JSON without keys")
    wnids = (v for v in values.values() if isinstance(v, str) and re.fullmatch(r"n\d{8}", v))
    there = [values[key] for key in LABELS if key in values]
    number = next((value for value in there if type(value) is int), None)
    said = f"under none of {', '.join(LABELS)} in its JSON, which has {', '.join(map(str, values))[:200] or 'no keys'}"
    return _Label(number, next(wnids, ""), "" if number is not None else repr(there[0])[:40] if there else said)


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
    """Whether a file is compressed (gzip, xz, bzip2, Zstandard), by its first bytes, not by its name."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"))
    return False


def _whole(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the archive's end: nothing but zeros may come there."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no file's header at byte {tar.offset:,}, where one was expected")
