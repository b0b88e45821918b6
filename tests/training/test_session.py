"""What a session is told by its environment: ranks, GPUs, signals; and what a machine may lack."""

import re
import signal
import warnings
from datetime import timedelta

import pytest
import torch
from jobs import free_port
from places import ROOT
from torch import nn

import train
from training import device
from training.config import load
from training.errors import RunError
from training.session import Session, StopSignals
from training.step import failures_explained

pytestmark = pytest.mark.quick

SMOKE = ROOT / "configs" / "smoke" / "standard.yaml"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch):
    for name in (*device.COUNTS, *device.NAMES, "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_gpu(monkeypatch):
    """A driver that is older than what PyTorch was built for, as PyTorch tells it."""

    def is_available():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(device, "driver", lambda: "470.57.02")


# ---- ranks


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "one"}, "RANK=one: expected a whole number, as torchrun sets it"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2: expected a whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=9{40}: expected a whole number"),
        ({"RANK": "\u00b2"}, "RANK=\u00b2: expected a whole number"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_RANK is 0 and LOCAL_WORLD_SIZE 0"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "80000"}, "MASTER_PORT is 80000: expected a free port"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "abc"}, "the environment says MASTER_PORT=abc"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks are counted from 0"),
    ],
)
def test_an_environment_that_makes_no_sense_is_told(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=words):
        Session()


def test_a_process_without_the_others_says_that_it_waits(monkeypatch, capsys):
    """Variables that are left of another job: half an hour without a word looks like a hang."""
    port = free_port()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("training.session.PATIENCE", 0.1)
    monkeypatch.setattr("training.session.MEETING", timedelta(seconds=2))
    with pytest.raises(RunError, match="the 2 processes of this run do not find each other"), Session("cpu"):
        pass
    assert f"process 1 of 2 waits for the others at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "NCCL error in: NCCLUtils.hpp:219, invalid usage, NCCL version 2.29\nncclInvalidUsage: ...\nLast error:\n"
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000\nException raised from create at x",
            r"^the processes of this run cannot work together: NCCL error in: .* both on CUDA device 1000; the same",
        ),
        ("[1] Timed out waiting 1800000ms for recv operation", "waited too long for one of them: .*1800000ms for recv"),
        (
            "[pair.cc:534] Connection closed by peer [127.0.0.1]:12",
            "^another process of this run ended: its own message says why, unless it was killed; the same command",
        ),
        ("NCCL error: ncclRemoteError: a remote process exiting prematurely", "^another process of this run ended"),
    ],
)
def test_what_a_failed_call_to_other_ranks_means(monkeypatch, error, words):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    explained = Session("cpu").failure(torch.distributed.DistBackendError(error))
    assert isinstance(explained, RunError)
    assert re.search(words, str(explained))
    assert "raised from" not in str(explained)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", " ")
    session = Session("cpu")
    assert (session.rank, session.world) == (0, 1)


# ---- GPUs


@pytest.mark.parametrize(
    ("wanted", "variables", "asked"),
    [
        ("cuda", {}, "training.device is cuda"),
        ("auto", {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0"}, "granted a GPU (SLURM_GPUS_ON_NODE=1)"),
        ("auto", {"SLURM_JOB_GPUS": "0"}, "granted a GPU (SLURM_JOB_GPUS=0)"),  # a name, not a number
    ],
)
def test_a_gpu_that_was_asked_for_and_is_not_usable_is_told(without_gpu, monkeypatch, wanted, variables, asked):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError) as error:
        Session(wanted)
    for words in (asked, "too old (found version 11040)", "built for CUDA 12.8", "driver is 470.57.02", "device=cpu"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "variables"),
    [
        ("cpu", {"SLURM_GPUS_ON_NODE": "1"}),
        ("auto", {"SLURM_GPUS_ON_NODE": "0"}),
        ("auto", {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": ""}),  # hidden on purpose
        ("auto", {"SLURM_GPUS_ON_NODE": "00", "SLURM_JOB_GPUS": "(null)"}),
    ],
)
@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_without_one_that_was_asked_for_it_is_the_cpu(without_gpu, monkeypatch, wanted, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Session(wanted).device == CPU


def test_the_cpu_is_used_where_it_is_asked_for_and_a_gpu_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose_device("cpu", 5) == CPU
    assert device.choose_device("auto", 1) == device.choose_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(RunError, match="process 2 of this machine has no GPU, there are 2"):
        device.choose_device("auto", 2)


def test_a_run_that_gets_no_gpu_leaves_no_folder(without_gpu, tmp_path, capsys):
    assert train.main([str(SMOKE), "--out", str(tmp_path / "run"), "--set", "training.device=cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: training.device is cuda, but no GPU is usable")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_driver_s_version_is_the_kernel_module_s(tmp_path):
    file = tmp_path / "version"
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (root@host)",
    ):
        file.write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
        assert device.driver(file) == "535.104.05"
    assert device.driver(tmp_path / "none") == ""


# ---- signals


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop()
            assert stop.exit_code == 129
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- what a machine may lack


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules that torch.compile imports
def test_a_compiler_that_is_missing_is_told(monkeypatch, tmp_path):
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled before
    compiled = torch.compile(nn.Sigmoid())  # a kernel of its own: nn.Linear calls a library
    config = load(SMOKE, ["training.compile=true"])
    said = r"torch.compile failed: InvalidCxxCompiler: .*no-such-compiler"
    # By its own means: an attribute set on that module is not taken back by setting the old value.
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(RunError, match=said) as error,
        failures_explained(config),
    ):
        compiled(torch.ones(3, 5))
    assert "--set training.compile=false" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gpu_s_memory_that_is_full_is_told_and_a_bug_is_not_covered():
    config = load(SMOKE)
    with pytest.raises(RunError, match=r"memory is full \(CUDA out of memory\. Tried"), failures_explained(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    with pytest.raises(RuntimeError, match="a bug") as error, failures_explained(config):
        raise RuntimeError("a bug")
    assert not isinstance(error.value, RunError)
