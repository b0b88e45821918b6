"""Widen every model of timm and torchvision by 1.5 and by 2, and measure whether its function is preserved.

    python bench/coverage.py                        # all of them, into results/coverage.csv; hours on two cores
    python bench/coverage.py --match 'resnet*' --out coverage_resnet.csv
    python bench/coverage.py --summary              # the totals of what is there
    python bench/coverage.py --heads                # timm's reset_classifier, ... on students, into results/heads.csv
    python bench/coverage.py --others               # the networks of bench/others.py, into results/others.csv
    python bench/coverage.py --plans                # of which models this library's students are other ones; 20 minutes

One row per model and factor, written as it comes; what has its row is skipped, so that calling it again goes on, with a
larger `--max-params` to the numbers of larger models.
Weights are a seeded random initialisation; batch-norm statistics are those of a batch, disturbed, and parameters that
the initialisation leaves constant are randomised, because zeros and ones hide faults. Errors are relative to the
largest output, in float32; where one is above 1e-5, the model is converted to float64 before it is widened, which
decides. Models larger than `--max-params` are widened on the meta device: what grows is known, the numbers are not.
Each model has a process of its own, so that none keeps another's memory. The networks of other packages are small: all
are measured in float64.

The column `plan` is a checksum of all that decides about a student's tensors: which channels are copied, and how often,
along which dimension of which tensor. Where it is the same, so are the student and its errors. `--plans` finds it on
the meta device, for another version of the library, and says which models were measured with another one: `--again`
measures those that `--match` names once more.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import fnmatch
import hashlib
import json
import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

COLUMNS = (
    *("model", "family", "kind", "input", "params_m", "factor", "params_after_m", "grew", "held"),
    *("error_eval", "error_train", "dtype", "seconds", "plan", "reason"),
)
PLANS = ("model", "params_m", "factor", "params_after_m", "grew", "plan", "reason")
NORMALISED_OTHERWISE = ("LayerNorm", "GroupNorm", "RmsNorm", "InstanceNorm", "Attention", "MultiheadAttention")
OTHERS = (
    *("model", "params_m", "factor", "params_after_m", "more", "grew", "held", "real"),
    *("error_eval", "error_train", "max_abs", "dtype", "seconds", "reason"),
)
HEAVY = [  # packages that take seconds to import
    *("net2net", "timm", "transformers", "diffusers", "monai.networks.nets", "vit_pytorch", "tsai.models.all"),
    *("segmentation_models_pytorch", "ultralytics.nn.tasks", "kornia.feature", "speechbrain", "braindecode.models"),
    *("open_clip", "torchxrayvision", "torch_geometric.nn", "stable_baselines3", "asteroid.models", "lightly.models"),
]
FACTORS = (1.5, 2.0)
HEADS_MOST = 6  # million parameters of a model whose methods are tried
BATCH, PAIR = 4, 2  # two would make batch norm over a single position a division by next to nothing
SMALL = 96  # pixels: enough for five halvings, where the architecture leaves the input size open
LIMITS = {"float32": 1e-5, "float64": 1e-10}
UNDONE = ("the process died", "not run")  # what is tried again the next time: for want of memory, or of time


def names() -> list[str]:
    import timm
    import torchvision

    vision = [
        n for n in torchvision.models.list_models(module=torchvision.models) if n not in ("raft_large", "raft_small")
    ]
    return [f"timm:{n}" for n in timm.list_models()] + [f"torchvision:{n}" for n in vision]


def other_names() -> list[str]:
    from others import NETS

    return list(NETS)


def build(name: str, device: str, **options: Any) -> Any:
    import timm
    import torch
    import torchvision

    source, _, arch = name.partition(":")
    with torch.device(device):
        if source == "timm":
            return timm.create_model(arch, **options)
        options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(arch, weights=None, **options)


def inputs(model: Any) -> list[tuple[int, int, int]]:
    """Input sizes to try, small first where the model may take it."""
    config = getattr(model, "default_cfg", None) or {}
    full = tuple(config.get("input_size") or (3, 224, 224))
    fixed = config.get("fixed_input_size", False)
    return [full] if fixed else [(full[0], SMALL, SMALL), full, (full[0], 299, 299)]


def with_images(name: str, model: Any, device: str) -> tuple[Any, Any]:
    """A model and a batch that it takes, of small images where it can be made for them. `model` is on meta."""
    import torch

    batch_norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    shapes = inputs(model)

    def batch(shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(BATCH if batch_norm else PAIR, *shape, generator=generator).to(device)

    def takes(model: Any, x: torch.Tensor) -> None:
        with torch.no_grad():
            for training in (True, False):
                model.train(training)(x)

    if len(shapes) == 1:  # its images have one size, which most such models can be told
        with contextlib.suppress(Exception):  # not this one
            x = batch((shapes[0][0], SMALL, SMALL))
            small = build(name, device, img_size=SMALL)
            takes(small, x)
            return small, x
    model = build(name, device) if device != "meta" else model
    for shape in shapes:
        x = batch(shape)
        with contextlib.suppress(Exception):  # too small for this architecture: the full size is next
            takes(model, x)
            break
    return model, x


def randomise(model: Any, x: Any) -> None:
    """Weights and statistics as different from their defaults as training makes them."""
    import torch

    from net2net.recording import as_arguments

    generator = torch.Generator().manual_seed(0)

    def around(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=generator) + 0.5

    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.numel() > 1
                and parameter.is_floating_point()
                and bool((parameter == parameter.flatten()[0]).all())
            ):
                value = float(parameter.flatten()[0])
                sign = 1 if value else torch.randint(2, parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(max(abs(value), 0.1) * around(parameter) * sign)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        args, kwargs = as_arguments(x)
        with contextlib.suppress(Exception):  # detection nets want targets; their statistics stay
            model.train()(*args, **kwargs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.running_var is not None:
                # Slightly: in some deep networks larger disturbances grow from layer to layer, and rounding with them.
                norm.running_mean.add_((around(norm.running_mean) - 1) * norm.running_var.sqrt() / 5)
                norm.running_var.mul_((around(norm.running_var) + 4) / 5)
        model.eval()


def reason(error: Exception, most: int = 300) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def send_rows(measure: Callable[..., Iterator[dict[str, Any]]], name: str, pipe: Any, max_params: float) -> None:
    """What a model's process does: `measure` notes in `row` what the model is, and yields what it finds, by factor."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"model": name}
    rows = []
    try:
        rows.extend({**row, **found} for found in measure(name, row, max_params))
    except Exception as error:  # the model itself fails: that too is a row
        rows.append({**row, "reason": reason(error)})
    pipe.send(rows)


def size_of(model: Any) -> float:
    """Million parameters."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def plan_of(record: dict[str, Any]) -> str:
    """A checksum of what decides about a student's tensors."""
    decides = [record.get(key) for key in ("spaces", "tensors", "scales", "standardised")]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def measure_plan(name: str, row: dict[str, Any], max_params: float) -> Iterator[dict[str, Any]]:
    """What grows of a model, without numbers."""
    model = built_on_meta(name)
    model, x = with_images(name, model, "meta")
    row["params_m"] = f"{size_of(model):.2f}"
    for factor in FACTORS:
        found = grow(model, x, factor, False)
        yield {"factor": factor, **{key: found[key] for key in PLANS if key in found}}


def built_on_meta(name: str) -> Any:
    from net2net.recording import on_meta

    try:
        return build(name, "meta")
    except NotImplementedError:  # it computes its own widths with tensors
        return on_meta(build(name, "cpu"))


def measure(name: str, row: dict[str, Any], max_params: float) -> Iterator[dict[str, Any]]:
    """How a model of timm or torchvision grows."""
    import torch

    model = built_on_meta(name)
    numbers = size_of(model) <= max_params
    model, x = with_images(name, model, "cpu" if numbers else "meta")
    kinds = {type(m).__name__ for m in model.modules()}
    other = any(word in kind for kind in kinds for word in NORMALISED_OTHERWISE)
    batch_norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    row["kind"] = "batch-norm convolutional" if batch_norm and not other else "other"
    row["family"] = type(model).__module__.rpartition(".")[2]
    row["params_m"] = f"{size_of(model):.2f}"
    row["input"] = "x".join(map(str, x.shape[1:]))
    if numbers:
        randomise(model, x)
    for factor in FACTORS:
        found = grow(model, x, factor, numbers)
        found.pop("student", None)
        yield {"factor": factor, **found}


def grow(model: Any, x: Any, factor: float, numbers: bool) -> dict[str, Any]:
    """Widen a model and measure: the columns from `params_after_m` on."""
    import torch

    import net2net

    start = time.monotonic()
    try:
        student = net2net.widen(model, x, factor, noise=0, verify=False)
    except net2net.GrowthError as error:
        return {"grew": 0, "reason": f"refused: {' '.join(str(error).split())[:300]}"}
    record = net2net.history(student)[-1]
    held = record["held"]
    # The commonest reasons for what was left alone, but for the one that every network ends with.
    why = sorted((n, reason) for reason, n in held.items() if reason != "they are the network's output")[:-3:-1]
    found = {
        "grew": len(record["spaces"]),
        "held": sum(held.values()),
        "reason": "; ".join(f"{n}: {reason}" for n, reason in why)[:300],
        "params_after_m": f"{size_of(student):.2f}",
        "seconds": f"{time.monotonic() - start:.2f}",
        "plan": plan_of(record),
    }
    if not numbers:
        return found | {"student": student}
    dtype = torch.float32
    errors = [net2net.verify(model, student, x, train=t, dtype=dtype).relative for t in (False, True)]
    if not all(error <= LIMITS["float32"] for error in errors):  # rounding, or a fault?
        dtype = torch.float64
        student = None  # or there would be two of them
        model = copy.deepcopy(model).double()
        if x.shape[-1] == SMALL:  # depthwise convolutions take minutes in float64
            with contextlib.suppress(Exception), torch.no_grad():  # too small for this architecture
                model(x[..., :64, :64].double())
                x = x[..., :64, :64].contiguous()
        student = net2net.widen(model, x.double(), factor, noise=0, verify=False)
        errors = [net2net.verify(model, student, x).relative, net2net.verify(model, student, x, train=True).relative]
    return found | {
        "error_eval": f"{errors[0]:.1e}",
        "error_train": f"{errors[1]:.1e}",
        "dtype": str(dtype).removeprefix("torch."),
    }


def measure_other(name: str, row: dict[str, Any], max_params: float) -> Iterator[dict[str, Any]]:
    """How a network of another package grows, measured in float64."""
    import torch
    from others import NETS
    from torch.utils import _pytree as pytree

    import net2net
    from net2net.errors import DoesNotRun
    from net2net.recording import as_arguments

    model, x = NETS[name]()
    model.eval()
    if not name.startswith("torchvision:"):  # saturated scores of detection nets are ties, which rounding breaks
        randomise(model.float(), x)
    dtype = torch.float64
    x = pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, x)
    try:
        with torch.no_grad():
            args, kwargs = as_arguments(x)
            model.double()(*args, **kwargs)
    except RuntimeError:  # its code converts to float32
        dtype, x = torch.float32, NETS[name]()[1]
        model.float()
    before = size_of(model)
    row["params_m"] = f"{before:.3f}"
    for factor in FACTORS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = grow(model, x, factor, False)
            student = found.pop("student", None)
            found.pop("plan", None)
        found["real"] = int(any("was run on the example inputs" in str(w.message) for w in caught))
        if student is not None:
            after = size_of(student)
            found |= {"params_after_m": f"{after:.3f}", "more": f"{after / before - 1:.1%}"}
            found["dtype"] = str(dtype).removeprefix("torch.")
            for mode in ("eval", "train"):
                try:
                    certificate = net2net.verify(model, student, x, train=mode == "train", dtype=dtype)
                    found[f"error_{mode}"] = f"{certificate.relative:.1e}"
                    found["max_abs"] = f"{max(certificate.max_abs, float(found.get('max_abs', 0))):.1e}"
                except DoesNotRun as refusal:
                    found["reason"] += f"; {mode}: {' '.join(str(refusal).split())[:120]}"
        yield {"factor": factor, **found}


def _tensor(found: Any) -> Any:
    return found[-1] if isinstance(found, (tuple, list)) else found


def _head(model: Any) -> Any:
    """The first layer of a classifier; of a distilled network's two, the first one's."""
    import torch

    found = model.get_classifier()
    found = found[0] if isinstance(found, (tuple, list)) else found
    return next(m for m in found.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)))


def _reset(model: Any, x: Any, classes: int) -> tuple:
    model.reset_classifier(classes)
    out = _tensor(model(x))
    out.sum().backward()
    return tuple(out.shape)


# What users of timm do next, each as (what is found, what is expected) of a model and its input.
HEADS: dict[str, Any] = {
    "forward_features": lambda m, x: (bool(_tensor(m.forward_features(x)).isfinite().all()), True),
    "num_features": lambda m, x: (m.num_features in _tensor(m.forward_features(x)).shape, True),
    "head_hidden_size": lambda m, x: (
        m.forward_head(m.forward_features(x), pre_logits=True).shape[1],
        m.head_hidden_size,
    ),
    "get_classifier": lambda m, x: (_head(m).weight.shape[1], m.head_hidden_size),
    "forward_intermediates": lambda m, x: (
        [_tensor(y).shape[1] for y in m.forward_intermediates(x, intermediates_only=True)],
        [info["num_chs"] for info in m.feature_info],
    ),
    "reset_classifier": lambda m, x: (_reset(m, x, 7), (len(x), 7)),
    "no_classifier": lambda m, x: (_reset(m, x, 0), (len(x), m.head_hidden_size)),
}
HEADS_TABLE = ("model", "family", "input", "params_m", "factor", "params_after_m", *HEADS, "seconds", "reason")


def tried(check: str, model: Any, x: Any) -> str:
    """Whether a model does as timm promises: "yes", or what it does instead."""
    try:
        found, expected = HEADS[check](copy.deepcopy(model), x)
    except Exception as error:  # whatever a model's own code raises is the finding
        return reason(error, 120)
    return "yes" if found == expected else f"{found} for {expected}"


def measure_heads(name: str, row: dict[str, Any], max_params: float) -> Iterator[dict[str, Any]]:
    """What works on a student, of what works on its teacher (else the cell is empty)."""
    import torch

    import net2net

    model = build(name, "cpu").eval()
    row["family"] = type(model).__module__.rpartition(".")[2]
    row["params_m"] = f"{size_of(model):.2f}"
    for shape in inputs(model):
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        with contextlib.suppress(Exception), torch.no_grad():  # too small for this architecture
            model(x)
            break
    row["input"] = "x".join(map(str, shape))
    randomise(model, x)
    promised = [check for check in HEADS if tried(check, model, x) == "yes"]
    for factor in FACTORS:
        start = time.monotonic()
        try:
            student = net2net.widen(model, x, factor)
        except net2net.GrowthError as error:
            yield {"factor": factor, "reason": f"refused: {' '.join(str(error).split())[:200]}"}
            continue
        found = {"factor": factor, "params_after_m": f"{size_of(student):.2f}"}
        found |= {check: tried(check, student, x) for check in promised}
        yield {**found, "seconds": f"{time.monotonic() - start:.2f}"}


def head_names() -> list[str]:
    """The smallest model of each of timm's families in results/coverage.csv, if it is small."""
    smallest: dict[str, tuple[float, str]] = {}
    for row in table(Path("results", "coverage.csv")):
        if row["model"].startswith("timm:") and row["params_m"]:
            size = (float(row["params_m"]), row["model"])
            smallest[row["family"]] = min(size, smallest.get(row["family"], size))
    return [name for size, name in smallest.values() if size <= HEADS_MOST]


def heads_summary(path: Path) -> str:
    """The table of docs/coverage.md: of how many families' students each of timm's methods works."""
    families = grouped((row for row in table(path) if row["params_after_m"]), "family")
    lines = ["| | families | works on their students |", "|---|---|---|"]
    for check in HEADS:
        its = [rows for rows in families.values() if any(row[check] for row in rows)]
        right = sum(all(row[check] in ("", "yes") for row in rows) for rows in its)
        lines.append(f"| `{check}` | {len(its)} | {right} |")
    return "\n".join(lines)


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a table, sorted; of a model and factor that was measured again, the last.

    A model that could not be tried has a row without a factor, until it has others.
    """
    with path.open() as file:
        rows = {(row["model"], row["factor"]): row for row in csv.DictReader(file)}
    tried = {model for model, factor in rows if factor}
    return [rows[model, factor] for model, factor in sorted(rows) if factor or model not in tried]


def grouped(rows: Iterable[dict[str, str]], key: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def summary(path: Path) -> str:
    """The totals of a table, for docs/coverage.md."""
    rows = table(path)
    lines = ["| models | tried | grow | of these measured | function preserved |", "|---|---|---|---|---|"]
    for kind in ("batch-norm convolutional", "other"):
        models = grouped((row for row in rows if row["kind"] == kind), "model")
        grown = {m: [r for r in its if r["grew"] not in ("", "0")] for m, its in models.items()}
        grown = {m: its for m, its in grown.items() if its}
        measured = {m: its for m, its in grown.items() if all(r["dtype"] for r in its)}
        kept = [m for m, its in measured.items() if all(preserved(r) for r in its)]
        lines.append(
            f"| {kind} | {len(models)} | {len(grown)} ({len(grown) / max(len(models), 1):.1%}) | {len(measured)} | "
            f"{len(kept)} ({len(kept) / max(len(measured), 1):.1%}) |"
        )
    unknown = sum(not row["kind"] for row in rows)
    return "\n".join([*lines, *([f"\n{unknown} models were not tried (see the column `reason`)."] if unknown else [])])


ENOUGH = 10  # per cent of more parameters


def others_summary(path: Path) -> str:
    """The table of docs/coverage.md: by package, how many networks grow, and how far their outputs are off at most."""
    lines = ["| package | networks | grow by more than 10 % | largest relative error |", "|---|---|---|---|"]
    totals = [0, 0, 0.0]
    packages: dict[str, list[list[dict[str, str]]]] = {}
    for model, rows in grouped(table(path), "model").items():
        packages.setdefault(model.partition(":")[0], []).append(rows)
    for package, its in sorted(packages.items()):
        grown = sum(any(float(row["more"].rstrip("%") or 0) > ENOUGH for row in rows) for rows in its)
        errors = [float(row[key]) for rows in its for row in rows for key in ("error_eval", "error_train") if row[key]]
        worst = max(errors, default=0.0)
        totals = [totals[0] + len(its), totals[1] + grown, max(totals[2], worst)]
        lines.append(f"| {package} | {len(its)} | {grown} | {f'{worst:.1e}' if errors else ''} |")
    share = totals[1] / max(totals[0], 1)
    return "\n".join(
        [*lines, f"| {len(packages)} packages | {totals[0]} | {totals[1]} ({share:.0%}) | {totals[2]:.1e} |"]
    )


def plans_summary(path: Path) -> str:
    """Of how many models the students are those that were measured, and the names of the others."""
    measured = grouped(table(Path("results", "coverage.csv")), "model")
    planned = grouped(table(path), "model")
    known = [model for model in planned if model in measured]

    def plans(rows: list[dict[str, str]]) -> dict[str, str]:
        return {row["factor"]: row["plan"] for row in rows if row["plan"]}

    other = [model for model in known if plans(planned[model]) != plans(measured[model])]
    said = f"{len(known) - len(other)} of {len(known)} models grow as those that were measured"
    return f"{said}; otherwise: {' '.join(other)}" if other else said


def preserved(row: dict[str, str]) -> bool:
    return all(float(row[key]) <= LIMITS[row["dtype"]] for key in ("error_eval", "error_train"))


def _said(row: dict[str, str]) -> str:
    """What does not work on a student."""
    return "; ".join(f"{check}: {row[check]}" for check in HEADS if row.get(check, "yes") != "yes") or "works"


TABLES: dict[str, tuple] = {
    "coverage": (COLUMNS, measure, names, summary),
    "others": (OTHERS, measure_other, other_names, others_summary),
    "heads": (HEADS_TABLE, measure_heads, head_names, heads_summary),
    "plans": (PLANS, measure_plan, names, plans_summary),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--match", default="*", help="a glob over names such as timm:resnet18 or resnet18")
    parser.add_argument("--others", action="store_true", help="networks of other packages, see bench/others.py")
    parser.add_argument("--out", type=Path, help="the table (default: results/coverage.csv, or others.csv, heads.csv)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--max-params", type=float, default=100, help="no numbers for larger models (millions)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model may take")
    parser.add_argument("--summary", action="store_true", help="print the totals of --out, run nothing")
    parser.add_argument("--heads", action="store_true", help="timm's own methods on students, one model per family")
    parser.add_argument("--plans", action="store_true", help="which students are other ones than those measured")
    parser.add_argument("--again", action="store_true", help="measure what has its row once more; the last row counts")
    arguments = parser.parse_args(argv)
    kind = next((k for k in ("others", "heads", "plans") if getattr(arguments, k)), "coverage")
    columns, measure, every, total = TABLES[kind]
    arguments.out = arguments.out or Path("runs" if kind == "plans" else "results", f"{kind}.csv")
    if arguments.summary:
        print(total(arguments.out))
        return 0
    done = set()
    if arguments.out.exists() and not arguments.again:
        done = {
            row["model"]
            for row in table(arguments.out)
            if not row["reason"].startswith(UNDONE)
            and (
                kind in ("heads", "plans")
                or row["dtype"]
                or row["grew"] in ("", "0")
                or float(row["params_m"]) > arguments.max_params
            )
        }
    todo = [
        n
        for n in every()
        if n not in done
        and (fnmatch.fnmatch(n, arguments.match) or fnmatch.fnmatch(n.partition(":")[2], arguments.match))
    ]
    said = _said if kind == "heads" else (lambda row: "grows" if row.get("grew") else "")
    random.Random(0).shuffle(todo)  # an unfinished table is then a sample
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY if arguments.others else ["timm", "torchvision", "net2net"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    running: list[tuple[str, Any, Any, float]] = []
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        while todo or running:
            while todo and len(running) < arguments.jobs:
                name = todo.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=send_rows, args=(measure, name, theirs, arguments.max_params))
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
                        rows = [{"model": name, "reason": f"{UNDONE[0]} (exit code {process.exitcode})"}]
                elif time.monotonic() - since > arguments.timeout:
                    process.kill()
                    rows = [{"model": name, "reason": f"{UNDONE[1]}: more than {arguments.timeout:g} s"}]
                if rows is not None:
                    process.join()
                    running.remove(entry)
                    writer.writerows(rows)
                    file.flush()
                    outcome = [r.get("error_train") or r.get("reason") or said(r) for r in rows]
                    print(f"{len(todo) + len(running)} left; {name}: {outcome}", flush=True)
    rows = table(arguments.out)
    temporary = arguments.out.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(arguments.out)
    print(total(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
