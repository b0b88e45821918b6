"""Getting and reading Fashion-MNIST: tiny files in place of the real ones, loopback at most for network."""

import functools
import gzip
import hashlib
import struct
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from places import ROOT
from torchvision.datasets import FashionMNIST

from training.data import fashion_mnist
from training.data.__main__ import main
from training.data.fashion_mnist import ensure, load
from training.errors import DataError

NAMES = [name for name, _ in FashionMNIST.resources]
REAL_DATA = ROOT / "data"
real_run = fashion_mnist._run


def idx(tensor: torch.Tensor) -> bytes:
    sizes = struct.pack(f">{tensor.dim()}I", *tensor.shape)
    return bytes([0, 0, 8, tensor.dim()]) + sizes + tensor.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "train-images-idx3-ubyte.gz": torch.randint(256, (5, 28, 28), generator=generator),
        "train-labels-idx1-ubyte.gz": torch.randint(10, (5,), generator=generator),
        "t10k-images-idx3-ubyte.gz": torch.randint(256, (3, 28, 28), generator=generator),
        "t10k-labels-idx1-ubyte.gz": torch.randint(10, (3,), generator=generator),
    }


@pytest.fixture
def debian(values, tmp_path) -> Path:
    """A folder with the four files as Debian's package has them: no name and another time in the gzip header."""
    folder = tmp_path / "debian"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(gzip.compress(idx(values[name]), mtime=1))
    return folder


@pytest.fixture
def upstream(debian, tmp_path) -> Path:
    """The same with upstream's gzip headers, made by Python's own gzip writer."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    for name in NAMES:
        mtime = fashion_mnist.GZIP_TIME[name.split("-")[0]]
        with gzip.GzipFile(folder / name.removesuffix(".gz"), "wb", mtime=mtime) as file:
            file.write(gzip.decompress((debian / name).read_bytes()))
        (folder / name.removesuffix(".gz")).rename(folder / name)
        # Byte 8 notes the compression level and byte 9 the system: 0 and Unix in upstream's.
        data = bytearray((folder / name).read_bytes())
        data[8:10] = 0, 3
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def nothing_in_reach(monkeypatch, upstream, tmp_path):
    """torchvision knows the tiny files' checksums, and each source fails until a test opens it."""
    resources = [(name, hashlib.md5((upstream / name).read_bytes()).hexdigest()) for name in NAMES]
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "no package here")

    def no_apt(command, tmp):
        raise FileNotFoundError("no apt-get here")

    monkeypatch.setattr(fashion_mnist, "_run", no_apt)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data folder"


@pytest.fixture
def raw(root) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    return folder


def assert_in_place(root: Path, upstream: Path) -> None:
    """The four files are upstream's, byte for byte, and nothing else is left."""
    files = [path for path in root.rglob("*") if path.name != "raw" and path != root / "FashionMNIST"]
    assert sorted(path.name for path in files) == sorted(NAMES)
    for path in files:
        assert path.read_bytes() == (upstream / path.name).read_bytes()


def test_missing_everything_names_files_folder_and_what_was_tried(root):
    start = time.monotonic()
    with pytest.raises(DataError) as refusal:
        ensure(root)
    message = str(refusal.value)
    for name, md5 in FashionMNIST.resources:
        assert f"{name}  md5 {md5}" in message
    assert str(root / "FashionMNIST" / "raw") in message
    tried = message.split("Tried:\n")[1].splitlines()
    assert len(tried) == 3
    assert "torchvision" in tried[0]
    assert "Error downloading" in tried[0]
    assert "no package here" in tried[1]
    assert "no apt-get here" in tried[2]
    assert time.monotonic() - start < 5
    assert [path.name for path in (root / "FashionMNIST").iterdir()] == ["raw"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"not gzip"])
def test_damaged_file_is_named_and_left_alone(damage, root, raw, debian, upstream, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    bad = raw / NAMES[1]
    data = damage((upstream / NAMES[1]).read_bytes())
    bad.write_bytes(data)
    with pytest.raises(DataError) as refusal:
        ensure(root)
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    for part in (str(bad), hashlib.md5(data).hexdigest(), dict(FashionMNIST.resources)[NAMES[1]], "Remove it"):
        assert part in message
    assert bad.read_bytes() == data
    assert list(raw.iterdir()) == [bad]


def test_present_files_need_no_source(root, raw, upstream):
    for name in NAMES:
        (raw / name).write_bytes((upstream / name).read_bytes())
    assert ensure(root) == raw


def test_installed_package_gets_its_gzip_headers_back(root, debian, upstream, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    for name in NAMES:
        assert (debian / name).read_bytes() != (upstream / name).read_bytes()
    ensure(root)
    assert_in_place(root, upstream)


def test_only_what_is_missing_is_written(root, raw, debian, upstream, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    mine = raw / NAMES[2]
    mine.write_bytes((upstream / NAMES[2]).read_bytes())
    before = mine.stat()
    ensure(root)
    assert (mine.stat().st_ino, mine.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert_in_place(root, upstream)


def test_wrong_bytes_from_a_source_are_not_taken(root, debian, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    (debian / NAMES[3]).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"{NAMES[3]} has md5 {hashlib.md5(b'something else').hexdigest()}"):
        ensure(root)
    assert list((root / "FashionMNIST" / "raw").iterdir()) == []


def test_torchvision_downloads(root, upstream, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=upstream))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        assert fashion_mnist.fetched(root)[1] == "torchvision's download"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert_in_place(root, upstream)


def test_torchvision_that_hangs_is_given_up(root, debian, upstream, monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(FashionMNIST, "download", lambda self: hang.wait(60))
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    monkeypatch.setattr(fashion_mnist, "STALL", 0.2)
    start = time.monotonic()
    try:
        assert fashion_mnist.fetched(root)[1] == "Debian's package, installed"
    finally:
        hang.set()
    assert time.monotonic() - start < 5
    assert_in_place(root, upstream)


def test_package_is_fetched_and_unpacked_without_touching_the_machine(root, debian, upstream, monkeypatch):
    commands = []

    def apt(command, tmp):
        commands.append(command)
        assert tmp.is_relative_to(root.resolve())
        if command[0] == "apt-get":
            assert f'Dir::State::lists "{tmp}/lists"' in Path(command[command.index("-c") + 1]).read_text()
        if "update" in command:
            return 100, "E: some other source is down"  # must not stop us
        if "download" in command:
            (tmp / "package_1_all.deb").touch()
        if command[0] == "dpkg-deb":
            folder = Path(command[-1]) / fashion_mnist.SYSTEM.relative_to("/")
            folder.mkdir(parents=True)
            for name in NAMES:
                (folder / name).write_bytes((debian / name).read_bytes())
        return 0, ""

    monkeypatch.setattr(fashion_mnist, "_run", apt)
    assert fashion_mnist.fetched(root)[1] == "Debian's package, fetched"
    assert [command[0] for command in commands] == ["apt-get", "apt-get", "dpkg-deb"]
    assert_in_place(root, upstream)


def test_apt_failure_says_why(root, monkeypatch):
    def apt(command, tmp):
        if "update" in command:
            return 0, "Err:1 x\nW: Failed to fetch x\nW: Some index files failed to download."
        return 100, "Reading...\nE: Unable to locate package y"

    monkeypatch.setattr(fashion_mnist, "_run", apt)
    with pytest.raises(DataError, match=r"fetched: W: Failed to fetch x; E: Unable to locate package y$"):
        ensure(root)


def test_run_returns_code_and_output(tmp_path):
    assert real_run(["sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path) == (3, "out\nerr\n")


def test_run_kills_what_stalls_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "STALL", 0.2)
    with pytest.raises(DataError, match=r"nothing arrived for 0\.2 s"):
        real_run(["sh", "-c", "(sleep 1; touch child-lived) & wait"], tmp_path)
    time.sleep(1)
    assert list(tmp_path.glob("child-lived")) == []


def test_run_waits_for_what_is_slow_but_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "STALL", 1.0)
    script = "for i in 1 2 3 4 5 6; do echo $i >> part; sleep 0.25; done"
    assert real_run(["sh", "-c", script], tmp_path) == (0, "")


def test_several_at_once(root, debian, upstream, monkeypatch):
    everybody = threading.Barrier(4)

    def together(tmp):
        everybody.wait(10)  # all four have seen that the files are missing
        return debian

    monkeypatch.setattr(fashion_mnist, "_by_torchvision", together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(ensure(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [root / "FashionMNIST" / "raw"] * 4
    assert_in_place(root, upstream)


@pytest.mark.parametrize(("train", "split"), [(True, "train"), (False, "t10k")])
def test_load_returns_the_values(train, split, root, debian, values, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    ensure(root)
    images, labels = load(root, train)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images.long().squeeze(1), values[f"{split}-images-idx3-ubyte.gz"])
    assert images.shape[1:] == (1, 28, 28)
    assert torch.equal(labels, values[f"{split}-labels-idx1-ubyte.gz"])


def test_load_without_files_points_to_make_data(root):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is missing: run `make data`"):
        load(root, train=True)
    assert not root.exists()


LABELS = "t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], rf"{LABELS} is damaged \(.*\): remove it"),
        (lambda data: b"not gzip", rf"{LABELS} is damaged \(.*\): remove it"),
        (lambda data: data[:33] + b"\xff" * 8 + data[41:], rf"{LABELS} is damaged \(.*\): remove it"),
        (lambda data: gzip.compress(b""), rf"{LABELS} is not an idx file"),
        (lambda data: gzip.compress(idx(torch.zeros(3, 28, 28))), rf"{LABELS} is not an idx file .* starts 00000803"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), rf"{LABELS} holds 2 bytes, .* says \[3\]"),
        (lambda data: gzip.compress(idx(torch.zeros(4))), r"t10k images are \(3, 28, 28\), labels 4"),
    ],
)
def test_load_refuses_damaged_files(damage, message, root, raw, upstream):
    for name in NAMES:
        (raw / name).write_bytes((upstream / name).read_bytes())
    (raw / LABELS).write_bytes(damage((upstream / LABELS).read_bytes()))
    with pytest.raises(DataError, match=message):
        load(root, train=False)


def test_a_root_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["fetch", "--root", str(tmp_path / "file")]) == 2
    folder = tmp_path / "file" / "FashionMNIST" / "raw"
    assert capsys.readouterr().err.startswith(f"the data folder {folder} cannot be made (Not a directory): give one")


def test_command_line(root, raw, debian, monkeypatch, capsys):
    command = ["fetch", "--root", str(root)]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Fashion-MNIST could not be fetched.")
    assert "Traceback" not in err

    monkeypatch.setattr(fashion_mnist, "SYSTEM", debian)
    for how in ("Debian's package, installed", "already there"):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert out == f"Fashion-MNIST: four files, checksums right, in {raw} ({how})\n"
        assert err == ""


@pytest.mark.skipif(not (REAL_DATA / "FashionMNIST").exists(), reason="no real data here: `make data` gets it")
def test_the_real_thing():
    for train, n in ((True, 60_000), (False, 10_000)):
        images, labels = load(REAL_DATA, train)
        assert images.shape == (n, 1, 28, 28)
        assert labels.bincount().tolist() == [n // 10] * 10
