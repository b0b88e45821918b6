"""What stages cost: GPU-hours from the measured table, or from the network's arithmetic where nothing was measured."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from replicate.stage import ROOT, Stage
from training.config import Config

MEASURED = ROOT / "results" / "bench"
# Of one GPU in training, where there is no measurement: FLOP/s, what a published ResNet-50 on an A100 comes to (timm's
# issue 1491: 2,600 images/s in mixed precision); and seconds to launch one layer's kernels, forward and backward, at
# 60 us for each operation of an eager pass, as measured on an H200 beside slow cores (results/bench/gpu_rates.csv),
# which is the longer of the two where passes are small. Tests derive both.
ASSUMED, LAUNCH = 60e12, 600e-6
FORWARD = 1 / 3  # cost of evaluating an image, in images trained: forward without backward


class Cost(NamedTuple):
    hours: float  # of one GPU, from the first step to the last
    source: str


def images(config: Config) -> float:
    """Images trained on, and those evaluated by what they cost."""
    training = config.training
    evaluations = 1 + -(-training.steps // training.eval_every)
    return training.steps * training.batch_size + evaluations * (config.data.val_images or 0) * FORWARD


def costs(stages: Iterable[Stage], measured: Path = MEASURED) -> dict[str, Cost]:
    """The cost of each stage by its name; all measurements are taken from the hardware that has most of them."""
    stages, rows = list(stages), _rows(measured)
    found = {stage.name: _matching(stage.config, rows) for stage in stages}
    has = Counter(hardware for matching in found.values() for hardware in {row["hardware"] for row in matching})
    hardware = min(has, key=lambda name: (-has[name], name), default=None)
    result = {}
    for stage in stages:
        rates = [row for row in found[stage.name] if row["hardware"] == hardware]
        if rates:
            batch = images_in_a_pass(stage.config)  # as a measurement's batch
            row = min(rates, key=lambda row: (abs(int(row["batch"]) - batch), float(row["images_per_s"])))
            rate, source = (
                float(row["images_per_s"]),
                f"measured, {float(row['images_per_s']):.0f} images/s, {hardware}",
            )
        else:
            rate, why = assumed_rate(stage.config)
            source = f"estimate, not measured: {why}, {rate:.0f} images/s"
        result[stage.name] = Cost(images(stage.config) / rate / 3600, source)
    return result


def _rows(folder: Path) -> list[dict[str, str]]:
    rows = []
    for file in sorted(folder.glob("train_*.csv")):
        with file.open(newline="") as lines:
            rows += list(csv.DictReader(lines))
    wanted = {"what": "end_to_end", "loop": "net2net"}
    return [
        row
        for row in rows
        if all(row.get(key) == value for key, value in wanted.items()) and not row["hardware"].startswith("cpu")
    ]


def _matching(config: Config, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of the config's network at its image size and in its precision."""

    def key(model: str, width: Any, pairs: Any, size: Any) -> tuple:
        return model, round(float(width), 4), int(pairs), int(size)

    wanted = key(config.model.name, config.model.width, config.model.extra_pairs, config.data.image_size)
    return [
        row
        for row in rows
        if key(row["model"], row["width"], row["extra_pairs"], row["image_size"]) == wanted
        and row["precision"] == config.training.precision
    ]


def assumed_rate(config: Config) -> tuple[float, str]:
    """Images a second of one GPU, and what that is an assumption of."""
    flops, layers = forward_cost(config)
    by_work, by_launch = ASSUMED / (3 * flops), images_in_a_pass(config) / (layers * LAUNCH)
    if by_work <= by_launch:
        return by_work, f"{ASSUMED / 1e12:.0f} TFLOP/s"
    return by_launch, f"{LAUNCH * 1e6:.0f} us a layer"


def images_in_a_pass(config: Config) -> int:
    """Images in a forward pass of one GPU that has a whole mini-batch to itself."""
    from training.batchnorm import IMAGES_PER_PASS, passes

    options = config.training
    chunks = options.batch_size // options.chunk
    return max(passes(chunks, options.chunk, options.images_per_pass or IMAGES_PER_PASS)) * options.chunk


def forward_cost(config: Config) -> tuple[int, int]:
    """Floating-point operations of one image's forward pass, and the network's layers; backward is twice that."""
    model, data = config.model, config.data
    options = {"width": model.width, "extra_pairs": model.extra_pairs, "multiple_of": model.multiple_of}
    options |= {
        "in_channels": data.channels,
        "num_classes": data.classes or 1000,
    }  # of a folder of one's own they are not known yet
    return _forward_cost(model.name, data.image_size, **options)


@cache
def _forward_cost(name: str, size: int, **options: Any) -> tuple[int, int]:
    """Two for each multiply-add of convolutions and matrix products, counted on shapes alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from net2net.inception_bn import inception_bn

    with torch.device("meta"), torch.no_grad():
        model, image = inception_bn(name, **options).eval(), torch.empty(1, options["in_channels"], size, size)
        with FlopCounterMode(display=False) as counter:
            model(image)
    return counter.get_total_flops(), sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def table(stages: list[Stage], gpus: int | None = None) -> str:
    """GPU-hours per arm and in total; `gpus`: how many there are, to say how long that is."""
    found = costs(stages)
    total = sum(cost.hours for cost in found.values())
    left = sum(found[stage.name].hours * (1 - stage.step / stage.steps) for stage in stages)
    rows = [("arm", "runs", "GPU-hours", "from")]
    for arm in dict.fromkeys(stage.arm for stage in stages):
        mine = [found[stage.name] for stage in stages if stage.arm == arm]
        rows.append((arm, str(len(mine)), hours(sum(cost.hours for cost in mine)), mine[0].source))
    estimate = any(cost.source.startswith("estimate") for cost in found.values())
    rows.append(("total", str(len(stages)), hours(total), "partly or all an estimate" if estimate else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows]
    note = f"{hours(left)} GPU-hours are left to run"
    if gpus:
        note += f"; with all of {gpus} GPU{'s' * (gpus > 1)} busy about {hours(left / gpus)} hours"
    return "\n".join([*lines, note])


def hours(value: float) -> str:
    return f"{value:.1f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
