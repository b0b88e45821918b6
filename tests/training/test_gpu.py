"""On a GPU: what bench/gpu.py checks, check by check. Without one its lines run on the CPU, small."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from places import script

from net2net.inception_bn import TABLES

CUDA = torch.cuda.is_available()
# timm leaves closing the files that it opens to the garbage collector; torch 2.13 has a new name for DDP's argument.
pytestmark = pytest.mark.filterwarnings(
    *("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::FutureWarning"),
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # dynamo's, which hides it by a filter of its own
)


@pytest.fixture(scope="module")
def gpu():
    return script("bench", "gpu.py")


def day(gpu, out, device="cpu", tiny=True):
    options = gpu.argparse.Namespace(out=out, minutes=9.0, device=device, tiny=tiny, runs=out / "runs", jobs=2)
    options.set, options.seeds = [], [1]
    return gpu.Day(options)


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize(
    "name",
    [
        *("environment", "device_equals_cpu", "grouped_equals_chunks", "compiled_equals_eager", "growth"),
        "replayed_equals_eager",
        *("optimizer_grows", "images_are_the_cpu_s", "a_step_waits_for_nothing", "launches", "resume", "ranks"),
        "checkpoints_do_not_stop_training",
    ],
)
def test_on_the_gpu(gpu, tmp_path, name):
    gpu.CHECKS[name](day(gpu, tmp_path, "cuda", tiny=False))


def test_every_check_is_among_those(gpu):
    named = next(mark for mark in test_on_the_gpu.pytestmark if mark.name == "parametrize").args[1]
    assert set(named) == set(gpu.CHECKS)


def test_the_first_part_notes_what_failed_and_goes_on_with_the_rest(gpu, tmp_path, monkeypatch):
    def wrong(day):
        raise AssertionError("not equal")

    calls = []
    monkeypatch.setattr(gpu, "CHECKS", {"wrong": wrong, "right": lambda day: calls.append(1) or {"error": 0.0}})
    monkeypatch.setattr(gpu, "rates", lambda day: True)
    monkeypatch.setattr(gpu, "profile", lambda day: True)
    for _ in range(2):  # the second time what was right is not done again
        assert gpu.part_1(day(gpu, tmp_path))
    found = json.loads((tmp_path / "gpu_checks.json").read_text())
    assert found["wrong"] == {"ok": False, "error": "AssertionError: not equal", "seconds": found["wrong"]["seconds"]}
    assert found["right"]["ok"]
    assert len(calls) == 1


def test_a_row_that_cannot_be_measured_is_noted_and_one_that_was_begun_is_measured_anew(gpu, tmp_path, monkeypatch):
    calls = []

    def full(record):
        calls.append("full")
        raise torch.OutOfMemoryError("the memory\nis full")

    def stopped(record):
        calls.append("stopped")
        record("step", 1.0, "images/s")
        if calls.count("stopped") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_measurements", lambda day, bench: [("full", 1, full), ("stopped", 1, stopped)])
    with pytest.raises(KeyboardInterrupt):
        gpu.part_2(day(gpu, tmp_path))
    assert gpu.part_2(day(gpu, tmp_path))
    with (tmp_path / "gpu_table.csv").open() as file:
        rows = [(row["what"], row["value"], row["unit"]) for row in csv.DictReader(file)]
    assert rows == [
        ("full", "nan", "OutOfMemoryError: the memory is full"),
        ("step", "1", "images/s"),
        ("stopped", "1", "done"),
    ]
    assert calls == ["full", "stopped", "stopped"]


def test_a_part_whose_time_is_over_stops_and_says_so(gpu, tmp_path, monkeypatch):
    late = day(gpu, tmp_path)
    late.end = 0.0
    monkeypatch.setattr(gpu, "CHECKS", {"never": lambda day: pytest.fail("there was no time")})
    assert not gpu.part_1(late)
    assert not gpu.part_2(late)


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_all_three_parts_go_through_without_a_gpu(gpu, tmp_path, monkeypatch):
    """Each line that will run on one; and what was done is not done again."""
    for name in ("inception_bn", "inception_bn_28"):
        one = [module for module in TABLES[name].modules if module.name == "3c"]  # with a stride
        monkeypatch.setitem(TABLES, name, TABLES[name]._replace(modules=tuple(one)))
    out = tmp_path / "out"
    words = ["--device", "cpu", "--tiny", "--out", str(out), "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    assert gpu.main(["2", *words, "--minutes", "0"]) == 3  # not complete
    for part in ("1", "2", "3"):
        assert gpu.main([part, *words]) == 0
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(found) == {
        *("gpu_checks.json", "gpu_rates.csv", "gpu_profile.txt", "gpu_table.csv", "gpu_arms.csv", "gpu_arms.json")
    }
    assert sum(map(len, found.values())) < 100_000
    checks = json.loads(found["gpu_checks.json"])
    assert {name for name, check in checks.items() if check["ok"]} == set(gpu.CHECKS)
    with (out / "gpu_table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert all(float(row["value"]) > 0 for row in table), [row for row in table if not float(row["value"]) > 0]
    assert {row["loop"] for row in table if row["model"] == "inception_v3"} == {"net2net", "timm", ""}
    arms = json.loads(found["gpu_arms.json"])
    assert {arm["status"] for arm in arms.values()} == {"finished"}
    for part in ("2", "3"):
        assert gpu.main([part, *words]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == found


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence(gpu, tmp_path, capsys):
    assert gpu.main(["1", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "finds no GPU that it can use; the driver is" in error
    assert "--device cpu --tiny" in error


def wheel(folder, name, content):
    import zipfile

    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("brought.py", content)


def test_what_is_missing_is_taken_from_the_packed_wheels(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PACKED", tmp_path)
    monkeypatch.setattr(gpu, "NEEDED", {"brought": "1.0"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(SystemExit, match=r"brought 1\.0 or newer is missing.*tools/pack_gpu\.sh"):
        gpu.unpack_what_is_missing()
    other = f"cp3{sys.version_info.minor + 1}"
    wheel(tmp_path / "wheels", f"brought-1.1-{other}-{other}-manylinux2014_x86_64.whl", "VALUE = 'another Python'")
    wheel(tmp_path / "wheels", "brought-1.1-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "VALUE = 1")
    gpu.unpack_what_is_missing()
    words = [sys.executable, "-c", "import brought; print(brought.VALUE)"]
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    assert subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"


def test_versions_are_compared_as_numbers(gpu):
    assert gpu._numbers("1.0.9") < gpu._numbers("1.0.31") <= gpu._numbers("1.0.31")
