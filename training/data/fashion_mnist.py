"""Fashion-MNIST: 60,000 + 10,000 real 28x28 grey images in ten classes, fetched once, verified, loaded whole.

The files live under `<root>/FashionMNIST/raw/`; this layout, the names and the checksums are torchvision's.
Where its mirror is out of reach they come from Debian's package `dataset-fashion-mnist`: the installed one if
there is one, else fetched with apt and unpacked, without root.
"""

import gzip
import hashlib
import math
import os
import signal
import struct
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from training.errors import DataError

PACKAGE = "dataset-fashion-mnist"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
STALL = 5.0  # seconds without one new byte before a source is given up; two sources use the network

# Debian's build drops name and time from the gzip headers. With them put back (the times are from upstream's
# files) the four are upstream's byte for byte, and torchvision's checksums hold for them too.
GZIP_TIME = {"train": 1504176606, "t10k": 1504176627}

# All that apt keeps goes into our own folder: neither root nor the machine's package lists are needed. Hooks
# are cleared because an image may have one that empties the machine's package cache after every update.
APT_CONF = """
Dir::State::lists "{tmp}/lists";
Dir::Cache "{tmp}/cache";
APT::Sandbox::User "root";
Acquire::Retries "0";
Acquire::http::Timeout "4";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def ensure(root: Path) -> Path:
    """Make sure that the four files are present and verified; return the folder they are in.

    A file that is there is never replaced: ours get their names only once verified, so a damaged one is not
    ours. Safe to call from several processes at once.
    """
    return fetched(root)[0]


def fetched(root: Path) -> tuple[Path, str]:
    # Imported here because it takes seconds, and `load` has no use for it.
    from torchvision.datasets import FashionMNIST

    raw = Path(root) / "FashionMNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the data folder {raw} cannot be made ({error.strerror}): give one that can be, by --root or data.root"
        ) from None
    missing = {}
    for name, md5 in FashionMNIST.resources:
        if not (raw / name).exists():
            missing[name] = md5
        elif not (raw / name).is_file():
            raise DataError(f"{raw / name} is not a file: remove it and run again.")
        elif (found := _md5(raw / name)) != md5:
            raise DataError(f"{raw / name} is damaged: md5 {found}, expected {md5}. Remove it and run again.")
    if not missing:
        return raw, "already there"

    failures = []
    sources = {
        "torchvision's download": _by_torchvision,
        "Debian's package, installed": _system_copy,
        "Debian's package, fetched": _by_apt,
    }
    for label, source in sources.items():
        # On the same file system as `raw`, and one per process: a rename is then all that others can see.
        with tempfile.TemporaryDirectory(dir=raw.parent, prefix=".fetch-", ignore_cleanup_errors=True) as folder:
            tmp = Path(folder).resolve()
            try:
                _collect(source(tmp), missing, tmp)
            except (DataError, OSError) as error:
                failures.append(f"  {label}: {' '.join(str(error).split())}")
                continue
            for name in missing:
                os.replace(tmp / name, raw / name)
            return raw, label
    wanted = "\n".join(f"  {name}  md5 {md5}" for name, md5 in missing.items())
    raise DataError(
        f"Fashion-MNIST could not be fetched. Put these files into {raw}:\n{wanted}\nTried:\n" + "\n".join(failures)
    )


def _collect(folder: Path, wanted: dict[str, str], tmp: Path) -> None:
    """Write the wanted files (name -> md5) from `folder` into `tmp`, verified."""
    for name, md5 in wanted.items():
        data = (folder / name).read_bytes()
        if data[:4] == b"\x1f\x8b\x08\x00":  # gzip, no name
            stem = name.removesuffix(".gz")
            header = struct.pack("<4sIBB", b"\x1f\x8b\x08\x08", GZIP_TIME[name.split("-")[0]], 0, 3)
            data = header + stem.encode() + b"\0" + data[10:]
        (tmp / name).write_bytes(data)
        if _md5(tmp / name) != md5:
            raise DataError(f"{folder / name} has md5 {_md5(folder / name)}, expected {md5}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _by_torchvision(tmp: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    errors = []

    def work() -> None:
        try:
            FashionMNIST(tmp, download=True)
        except Exception as error:  # whatever it is, the other thread reports it
            errors.append(error)

    # In a thread because no time-out covers a name look-up; a daemon so that a stuck one cannot hold us up.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    _wait(thread.is_alive, tmp)
    if errors:
        raise DataError(str(errors[0]))
    return tmp / "FashionMNIST" / "raw"


def _system_copy(tmp: Path) -> Path:
    return SYSTEM


def _by_apt(tmp: Path) -> Path:
    for part in ("lists/partial", "cache/archives/partial"):
        (tmp / part).mkdir(parents=True)
    (tmp / "apt.conf").write_text(APT_CONF.format(tmp=tmp))
    apt = ["apt-get", "-q", "-c", str(tmp / "apt.conf")]
    # One bad third-party source makes `update` fail though Debian's own came: only `download` decides.
    _, update = _run([*apt, "update"], tmp)
    code, download = _run([*apt, "download", PACKAGE], tmp)
    if code:
        complaints = [line for line in (update + download).splitlines() if line.startswith(("W:", "E:"))]
        raise DataError("; ".join(dict.fromkeys(complaints[:1] + complaints[-1:])) or f"apt-get: exit {code}")
    code, output = _run(["dpkg-deb", "-x", str(next(tmp.glob("*.deb"))), str(tmp / "tree")], tmp)
    if code:
        raise DataError(output)
    return tmp / "tree" / SYSTEM.relative_to("/")


def _run(command: list[str], tmp: Path) -> tuple[int, str]:
    """Run a command in `tmp`, its output kept off the terminal; return its exit code and what it said."""
    with tempfile.TemporaryFile("w+") as log:  # not under `tmp`: an error message is not a sign of progress
        process = subprocess.Popen(
            command,
            cwd=tmp,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that apt's helper processes go with it
        )
        try:
            _wait(lambda: process.poll() is None, tmp)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return process.returncode, log.read()


def _wait(busy: Callable[[], bool], tmp: Path) -> None:
    """Wait while `busy`, however long that takes, as long as bytes keep arriving in `tmp`."""
    size, since = -1, time.monotonic()
    while busy():
        total = 0
        with suppress(OSError):  # a file may be renamed away under us: a changed sum is all we ask for
            for path in tmp.rglob("*"):
                total += path.stat().st_size
        if total != size:
            size, since = total, time.monotonic()
        elif time.monotonic() - since > STALL:
            raise DataError(f"nothing arrived for {STALL:g} s")
        time.sleep(0.05)


def load(root: Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 1, 28, 28] and labels int64 [N] of the training or test set, without network."""
    raw = Path(root) / "FashionMNIST" / "raw"
    split = "train" if train else "t10k"
    images = _read_idx(raw / f"{split}-images-idx3-ubyte.gz", dims=3)
    labels = _read_idx(raw / f"{split}-labels-idx1-ubyte.gz", dims=1)
    if images.shape != (len(labels), 28, 28):
        raise DataError(f"{raw}: {split} images are {tuple(images.shape)}, labels {len(labels)}")
    return images.unsqueeze(1), labels.long()


def _read_idx(path: Path, dims: int) -> torch.Tensor:
    """The idx format: 0, 0, 8 for uint8, the number of dimensions; big-endian int32 sizes; the bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `make data`.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run `make data`.") from error
    start = 4 + 4 * dims
    if data[:4] != bytes([0, 0, 8, dims]) or len(data) < start:
        raise DataError(f"{path} is not an idx file of uint8 in {dims}-d: it starts {data[:4].hex()}")
    sizes = np.frombuffer(data, ">u4", count=dims, offset=4).tolist()
    if len(data) - start != math.prod(sizes):
        raise DataError(f"{path} holds {len(data) - start} bytes, but its header says {sizes}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy())
