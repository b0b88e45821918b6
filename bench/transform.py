"""How long does `widen` take? Beside Torch-Pruning's analysis, which also infers channel groups, and `copy.deepcopy`.

    uv pip install torch-pruning        # for this script only
    python bench/transform.py           # writes results/bench/transform.csv

All in one process, taking turns; milliseconds, the fastest of `--repeat`. `widen` is the whole transformation
(tracing, checking that the student repeats its teacher's forward pass, copying) without the numerical verification.
Torch-Pruning's `build_dependency` is its analysis alone (a forward pass on the CPU, and its graph); listing the groups
of channels comes on top. The finished student is what is copied. `ms_per_operation` should stay the same from the
small to the large networks of a family: the cost is linear in the number of operations.

Memory is measured in processes of their own: how far the peak rises while a net is widened to a student of 1 GB, over
the size of that student, by default and without noise and verification. `--memory` measures one of them.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import platform
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
import torchvision

import net2net
from net2net.recording import Recording, on_meta

COMPARED = ("inception_v3", "resnet50", "densenet121", "efficientnet_b0")
SCALING = ("resnet18", "resnet34", "resnet101", "resnet152", "densenet169", "densenet201")
COLUMNS = (
    *("model", "operations", "widen_ms", "deepcopy_ms", "torch_pruning_ms", "torch_pruning_groups_ms"),
    "ms_per_operation",
)


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    options = {"init_weights": False} if name == "inception_v3" else {}
    size = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, weights=None, **options).eval(), torch.randn(1, 3, size, size)


def fastest(actions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """The fastest time of each action in milliseconds; they take turns, so that a busy moment hits all of them."""
    best = dict.fromkeys(actions, math.inf)
    for _ in range(repeat):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def measure(name: str, repeat: int, peer: Any) -> dict[str, Any]:
    model, x = build(name)
    student = net2net.widen(model, x, 1.5, noise=0, verify=False)
    actions: dict[str, Callable[[], Any]] = {
        "widen_ms": lambda: net2net.widen(model, x, 1.5, noise=0, verify=False),
        "deepcopy_ms": lambda: copy.deepcopy(student),
    }
    if peer is not None and name in COMPARED:
        built = peer.DependencyGraph().build_dependency(model, example_inputs=x)
        actions["torch_pruning_ms"] = lambda: peer.DependencyGraph().build_dependency(model, example_inputs=x)
        actions["torch_pruning_groups_ms"] = lambda: list(built.get_all_groups())
    times = fastest(actions, repeat)
    operations = len(Recording(on_meta(model)).run(x))
    row = {"model": name, "operations": operations, **{k: f"{v:.0f}" for k, v in times.items()}}
    return row | {"ms_per_operation": f"{times['widen_ms'] / operations:.2f}"}


OPTIONS = {"default": {}, "bare": {"noise": 0, "verify": False}}


def peak_over_student(options: dict[str, Any], width: int = 3000, layers: int = 12) -> float:
    """How much memory a growth takes at its peak, in sizes of its student; to be run in a process of its own."""

    def peak() -> int:
        status = Path("/proc/self/status")
        if status.exists():  # `ru_maxrss` of a new process is no less than that of the one which started it
            return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def net(width: int) -> torch.nn.Module:
        hidden = [layer for _ in range(layers) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
        return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), *hidden, torch.nn.Linear(width, 8))

    x = torch.randn(1, 8)
    net2net.widen(net(6), x, 1.5, **options)  # what is loaded at the first use is no part of it
    teacher = net(width)
    before = peak()
    student = net2net.widen(teacher, x, 1.5, **options)
    return (peak() - before) / sum(p.nbytes for p in student.parameters())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/bench/transform.csv"))
    parser.add_argument("--memory", choices=OPTIONS, help="measure the memory alone")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.memory:
        peak = peak_over_student(OPTIONS[arguments.memory])
        print(f"peak over the student's size, {arguments.memory}: {peak:.2f}")
        return 0
    try:
        import torch_pruning as peer
    except ImportError:
        print("without Torch-Pruning (uv pip install torch-pruning)", file=sys.stderr)
        peer = None
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's
        for name in (*COMPARED, *SCALING):
            rows.append(measure(name, arguments.repeat, peer))
            print(rows[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread")
    for other in ("deepcopy_ms", "torch_pruning_ms"):
        ratios = [
            float(row["widen_ms"]) / float(row[other]) for row in rows if row.get(other) and row["model"] in COMPARED
        ]
        if ratios:
            print(f"widen over {other}: geometric mean {geometric_mean(ratios):.2f}, largest {max(ratios):.2f}")
    sys.stdout.flush()
    return max(subprocess.run([sys.executable, __file__, "--memory", which]).returncode for which in OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
