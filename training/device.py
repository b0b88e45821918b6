"""Which device a rank trains on; that a GPU which was asked for is there and works."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from training.errors import RunError

# What schedulers say of the GPUs that they gave a job: their number, or their names.
COUNTS, NAMES = ("SLURM_GPUS_ON_NODE", "PBS_NGPUS"), ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for `training.device`: auto is a GPU where there is one, or where the scheduler granted one.

    Raises `RunError` where a GPU was asked for and none is usable: a job should not train on the CPU for days instead.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as said:  # torch says why a GPU is not usable in a warning
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        if local_rank >= torch.cuda.device_count():
            raise RunError(
                f"process {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}: "
                "start at most one process per GPU (torchrun --nproc-per-node)"
            )
        return torch.device("cuda", local_rank)
    granted = granted_by()
    if wanted == "cuda" or granted:
        reason = "training.device is cuda" if wanted == "cuda" else f"the scheduler granted a GPU ({granted})"
        why = str(said[0].message).splitlines()[0] if said else "PyTorch sees none"
        raise RunError(
            f"{reason}, but no GPU is usable: {why.rstrip('.')}. This PyTorch ({torch.__version__}) is built for "
            f"{'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU alone'}, the NVIDIA driver is "
            f"{driver() or 'not loaded'}: install the PyTorch that fits the driver, or train on the CPU with "
            "--set training.device=cpu"
        )
    for warning in said:
        warnings.warn(warning.message, stacklevel=2)
    return torch.device("cpu")


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """For `training.precision`: within it, float32 is computed as such where that is what a run asks for.

    PyTorch lets cuDNN's convolutions round it to TF32, 10 bits of 23, and programs let matrix products do the same.
    With bfloat16 there is nothing to guard: what is set stays.
    """
    # By these flags and not by the newer `fp32_precision`, after which reading these, as other libraries do, raises.
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        if precision == "float32":
            for backend in backends:
                backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def granted_by() -> str:
    """The variable by which a scheduler says that it gave this job a GPU; empty where none does, or GPUs are hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return ""
    for name in (*COUNTS, *NAMES):
        value = os.environ.get(name, "").strip()
        if value not in ("", "(null)") and not (name in COUNTS and not value.strip("0")):
            return f"{name}={value}"
    return ""


def driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the NVIDIA driver that is loaded; empty where there is none."""
    with suppress(OSError):
        if match := re.search(r"Kernel Module.*?\s(\d+(\.\d+)+)", file.read_text()):
            return match[1]
    return ""
