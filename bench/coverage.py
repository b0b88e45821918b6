"""Widen every model of timm and torchvision by 1.5 and by 2, and measure whether its function is preserved.

    python bench/coverage.py                        # all of them, into results/coverage.csv; hours on two cores
    python bench/coverage.py --match 'resnet*' --out coverage_resnet.csv

One row per model and factor, written as it comes; models that have a row are skipped, so that calling it again goes on.
Weights are a seeded random initialisation, batch-norm parameters and statistics are randomised. Each model has a
process of its own, so that none keeps another's memory; `--max-params` leaves out what would not fit.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

COLUMNS = (
    *("model", "kind", "input", "params_m", "factor", "grew_spaces", "fixed_spaces", "params_after_m"),
    *("error_eval", "error_train", "dtype", "seconds", "reason"),
)
NORMALISED_OTHERWISE = ("LayerNorm", "GroupNorm", "RmsNorm", "InstanceNorm", "Attention", "MultiheadAttention")
FACTORS = (1.5, 2.0)
SMALL = 96  # pixels: enough for five halvings, where the architecture leaves the input size open


def names() -> list[str]:
    import timm
    import torchvision

    vision = [
        n for n in torchvision.models.list_models(module=torchvision.models) if n not in ("raft_large", "raft_small")
    ]
    return [f"timm:{n}" for n in timm.list_models()] + [f"torchvision:{n}" for n in vision]


def build(name: str) -> Any:
    import timm
    import torchvision

    source, _, arch = name.partition(":")
    if source == "timm":
        return timm.create_model(arch)
    options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, **options)


def inputs(model: Any, name: str) -> list[tuple[int, int, int]]:
    """Input sizes to try, small first where the model may take it."""
    config = getattr(model, "default_cfg", None) or {}
    full = tuple(config.get("input_size") or (3, 224, 224))
    fixed = config.get("fixed_input_size", False)
    return [full] if fixed else [(full[0], SMALL, SMALL), full]


def randomise(model: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for tensor, low in (
                    (module.weight, 0.5),
                    (module.running_var, 0.5),
                    (module.bias, -0.5),
                    (module.running_mean, -0.5),
                ):
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)


def measure(name: str, pipe: Any, max_params: float) -> None:
    """Send one row per factor."""
    import torch

    import net2net

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"model": name}
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in build(name).parameters()) / 1e6
    except Exception:  # an architecture that cannot be made on the meta device is made below
        size = 0.0
    if size > max_params:
        pipe.send([{**row, "params_m": f"{size:.1f}", "reason": f"not run: more than {max_params:g} M parameters"}])
        return
    rows = []
    try:
        model = build(name)
        randomise(model)
        kinds = {type(m).__name__ for m in model.modules()}
        other = any(word in kind for kind in kinds for word in NORMALISED_OTHERWISE)
        batch_norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
        row["kind"] = "batch-norm convolutional" if batch_norm and not other else "other"
        row["params_m"] = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"
        for shape in inputs(model, name):
            x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
            try:
                with torch.no_grad():
                    model.eval()(x)
                break
            except Exception:  # too small for this architecture: the full size is next
                continue
        row["input"] = "x".join(map(str, shape))
        for factor in FACTORS:
            start = time.monotonic()
            try:
                student = net2net.widen(model, x, factor, verify=False)
            except net2net.GrowthError as error:
                rows.append({**row, "factor": factor, "reason": " ".join(str(error).split())[:300]})
                continue
            seconds = time.monotonic() - start
            grew = len(net2net.history(student)[-1]["spaces"])
            dtype = torch.float32
            errors = [net2net.verify(model, student, x, train=t, dtype=dtype).relative for t in (False, True)]
            if not max(errors) <= 1e-5 and size < 60:  # rounding, or a fault? float64 decides
                dtype = torch.float64
                errors = [net2net.verify(model, student, x, train=t).relative for t in (False, True)]
            explained = net2net.explain(model, x)
            rows.append(
                {
                    **row,
                    "factor": factor,
                    "grew_spaces": grew,
                    "fixed_spaces": sum(space.fixed is not None for space in explained.spaces),
                    "params_after_m": f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f}",
                    "error_eval": f"{errors[0]:.1e}",
                    "error_train": f"{errors[1]:.1e}",
                    "dtype": str(dtype).removeprefix("torch."),
                    "seconds": f"{seconds:.2f}",
                }
            )
            del student
    except Exception as error:  # the model itself fails: that too is a row
        rows.append({**row, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
    pipe.send(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--match", default="*", help="a glob over names such as timm:resnet18 or resnet18")
    parser.add_argument("--out", type=Path, default=Path("results/coverage.csv"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--max-params", type=float, default=150, help="leave out larger models (millions)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model may take")
    arguments = parser.parse_args(argv)
    done = set()
    if arguments.out.exists():
        with arguments.out.open() as file:
            done = {row["model"] for row in csv.DictReader(file)}
    todo = [
        n
        for n in names()
        if n not in done
        and (fnmatch.fnmatch(n, arguments.match) or fnmatch.fnmatch(n.partition(":")[2], arguments.match))
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "torchvision", "net2net"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    running: list[tuple[str, Any, Any, float]] = []
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        while todo or running:
            while todo and len(running) < arguments.jobs:
                name = todo.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=measure, args=(name, theirs, arguments.max_params))
                process.start()
                theirs.close()
                running.append((name, process, ours, time.monotonic()))
            time.sleep(0.05)
            for entry in list(running):
                name, process, pipe, since = entry
                rows = None
                if pipe.poll():
                    try:
                        rows = pipe.recv()
                    except EOFError:
                        rows = [{"model": name, "reason": f"the process died (exit code {process.exitcode})"}]
                elif time.monotonic() - since > arguments.timeout:
                    process.kill()
                    rows = [{"model": name, "reason": f"not run: more than {arguments.timeout:g} s"}]
                if rows is not None:
                    process.join()
                    running.remove(entry)
                    writer.writerows(rows)
                    file.flush()
                    outcome = [r.get("reason") or r["error_eval"] for r in rows]
                    print(f"{len(todo) + len(running)} left; {name}: {outcome}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
