"""A scale for images of one's own, made from one that there is: its steps follow from how many images there are.

    python -m replicate new-scale mine --from imagenet --data data/mine
    python -m replicate new-scale mine --data data/mine --epochs 30 --set data.image_size=128

Writes configs/mine/base.yaml, with which every arm is there: python train.py configs/mine/wider.yaml, python -m
replicate --scale mine. The rules; --set overrides any of them:

    training.batch_size      halved until an epoch has a hundred mini-batches, at the least one training.bn_batch_size
    optimizer.lr             in proportion to the mini-batch
    training.steps, schedule.decay_steps and .warmup_steps, training.eval_every
                             the same number of epochs as there; with --epochs the first two shrink or grow with them
    training.ema_decay       the average spans the same share of the run

Where training.steps is set, the schedule and the average follow it as they would follow --epochs.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import experiments
from experiments.paths import to_folder
from experiments.reading import YamlError, read
from replicate.stage import CONFIGS, known_scale
from training.config import COUNTS, SCALE, Config, ImageNetDataConfig, expanded, flatten, load
from training.errors import ConfigError, DataError

FOUND = {  # what --data tells, and no --set
    "data.name": "it is folder, whatever the layout",
    "data.root": "--data says where the images are",
    **{f"data.{key}": "--data is counted, now and by every run" for key in COUNTS},
}
STEPS = ("training.steps", "training.eval_every", "schedule.decay_steps", "schedule.warmup_steps")
MOST_EPOCHS = 1_000_000
MINIBATCHES = 100  # of an epoch, at the least, where the set is large enough for it


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replicate new-scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the scale, a new folder of configs/")
    parser.add_argument("--from", dest="source", default="imagenet", metavar="SCALE", help="(default: imagenet)")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="the images: class folders, tar shards or parquet"
    )
    parser.add_argument("--epochs", type=float, help="of every arm (default: as many as there)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the scale")
    parser.add_argument("--configs", type=to_folder, default=CONFIGS, help="where scales are (default: configs)")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", arguments.name) or arguments.name == "arms":
        parser.error(f"{arguments.name!r}: expected letters, digits, - and _, and not arms, which is no scale")
    if arguments.epochs is not None and not 0 < arguments.epochs <= MOST_EPOCHS:
        parser.error(f"--epochs {arguments.epochs:g}: expected a positive number, at most {MOST_EPOCHS:,}")
    folder = arguments.configs / arguments.name
    try:
        if folder.exists():
            raise ConfigError(f"{folder} is there already: take another name, or remove it first")
        print(create(folder, arguments.source, arguments.data, arguments.epochs, arguments.set))
    except (ConfigError, DataError, YamlError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def create(folder: Path, source: str, root: str, epochs: float | None, overrides: list[str]) -> str:
    """Write the scale; returns what to tell."""
    from training.data.imagenet.check import check

    source = known_scale(source, folder.parent, "--from")
    base = folder.parent / source / SCALE
    if not base.is_file():
        raise ConfigError(f"--from {source}: {base} is missing, which says what its arms share")
    for key in (override.partition("=")[0].strip() for override in overrides):
        if key in FOUND:
            raise ConfigError(f"--set {key}: {FOUND[key]}: leave it out")
        if key == "training.steps" and epochs is not None:
            raise ConfigError("--set training.steps: --epochs says the same: leave one of them out")
    before = load(base.parent / "standard.yaml")
    wanted = load(base.parent / "standard.yaml", ["schedule.warmup_steps=0", *overrides])  # which follows the steps
    if not isinstance(before.data, ImageNetDataConfig) or before.data.train_images is None:
        raise ConfigError(f"--from {source}: expected a scale whose data.train_images says its number, as imagenet's")
    report = check(expanded(root, "--data"), None, None, None, fast=True)
    if report.problems:
        raise DataError("\n".join(report.problems))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    images = report.facts["train_images"]
    if images < 2:
        raise DataError(f"{root}: expected two training images at the least, got {images}")
    values = {"data.name": "folder", "data.root": root}
    values |= dict.fromkeys(("data.classes", "data.train_images", "data.val_images"))  # null: as many as are found
    own = chosen(wanted, overrides)
    values |= follow(before, wanted, images, epochs, own.get("training.steps")) | own
    steps = values["training.steps"]
    if values["training.eval_every"] > steps:
        raise ConfigError(
            f"--set training.eval_every={values['training.eval_every']}: every arm has {steps:,} steps: expected at "
            "most as many"
        )
    if values["schedule.warmup_steps"] >= steps:
        raise ConfigError(
            f"--set schedule.warmup_steps={values['schedule.warmup_steps']}: every arm has {steps:,} steps: expected "
            "fewer"
        )
    was = flatten(before)
    ratios = {key: values[key] / was[key] for key in STEPS if was.get(key) and key in values}
    arms = {arm: _in_proportion(changes, ratios) for arm, changes in (read(base, "scale").get("arms") or {}).items()}
    facts = f"{report.facts['classes']:,} classes, {images:,} + {report.facts['val_images']:,} images"
    words = [folder.name, "--from", source, "--data", root, *(["--epochs", f"{epochs:g}"] if epochs else [])]
    words += [word for override in overrides for word in ("--set", override)]
    head = f"# Made by `python -m replicate new-scale {shlex.join(words)}`: {facts}.\n"
    text = f"{head}# The rules by which its numbers follow are in docs/your-data.md.\nextends: ../{source}/{SCALE}\n"
    text += "".join(_section(name, values) for name in dict.fromkeys(key.partition(".")[0] for key in values))
    text += "".join(["\narms:\n", *(f"  {arm}: {_json(changes)}\n" for arm, changes in arms.items())] if arms else [])
    # Beside the others, where `extends` means what it will mean; it gets its name when every arm can be read.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-scale-") as draft:
        (Path(draft) / SCALE).write_text(text, encoding="utf-8")
        for arm in experiments.arms():
            load(Path(draft) / f"{arm}.yaml")
        folder.mkdir()
        (Path(draft) / SCALE).replace(folder / SCALE)
    made = load(folder / "standard.yaml")
    epoch = images / made.training.batch_size
    return (
        f"{folder / SCALE}: {facts}; every arm has {made.training.steps:,} mini-batches of {made.training.batch_size} "
        f"({made.training.steps / epoch:.3g} epochs) from a learning rate of {made.optimizer.lr:g}\n"
        f"next: python -m replicate --scale {folder.name} --dry-run"
    )


def follow(
    before: Config, wanted: Config, images: int, epochs: float | None, steps: int | None = None
) -> dict[str, Any]:
    """What follows from the number of images, by the rules above; `wanted`: with what was set; `steps`: if that was."""
    batch = wanted.training.batch_size
    chunk = min(wanted.training.chunk, batch, images)
    if batch == before.training.batch_size:
        while batch > chunk and images < MINIBATCHES * batch:
            batch = max(chunk, batch // 2 // chunk * chunk)
    if batch % chunk and chunk == images:
        raise ConfigError(
            f"--set training.batch_size={batch}: there are {images} training images: expected no more in a mini-batch"
        )
    if batch % chunk:
        raise ConfigError(
            f"--set training.batch_size={batch}: expected a multiple of training.bn_batch_size, {chunk}: set that too"
        )
    there = before.data.train_images / before.training.batch_size  # mini-batches of an epoch
    share = images / batch / there
    stretch = epochs * there / before.training.steps if epochs else 1.0

    def scaled(steps: int, by: float) -> int:
        return max(1, round(steps * by)) if steps else 0

    if steps is not None:
        stretch = steps / before.training.steps / share
    steps = scaled(before.training.steps, share * stretch)
    ema = before.training.ema_decay
    return {
        "optimizer.lr": float(f"{before.optimizer.lr * batch / before.training.batch_size:.4g}"),
        "schedule.warmup_steps": min(steps - 1, scaled(before.schedule.warmup_steps, share * stretch)),
        "schedule.decay_steps": scaled(before.schedule.decay_steps, share * stretch),
        "training.steps": steps,
        "training.batch_size": batch,
        "training.bn_batch_size": chunk,
        "training.eval_every": min(steps, scaled(before.training.eval_every, share)),
        "training.ema_decay": ema and min(0.999999, round(1 - min(0.5, (1 - ema) * before.training.steps / steps), 6)),
    }


def chosen(wanted: Config, overrides: list[str]) -> dict[str, Any]:
    """The keys that were set, with their values as they were understood."""
    found = {}
    for override in overrides:
        key = override.partition("=")[0].strip()
        value: Any = wanted.model_dump()
        for name in key.split("."):
            value = value[name]
        if isinstance(value, dict) or "." not in key:
            raise ConfigError(f"--set {override}: expected a key of a section, e.g. --set data.image_size=128")
        found[key] = value
    return found


def _in_proportion(changes: dict[str, Any], ratios: dict[str, float]) -> dict[str, Any]:
    """What a scale changes of an arm, with numbers of mini-batches in proportion to this scale's own."""
    return {k: max(1, round(v * ratios[k])) if k in ratios and v else v for k, v in changes.items()}


def _section(name: str, values: dict[str, Any]) -> str:
    inner = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
    return f"\n{name}:\n" + "".join(f"  {key}: {_json(value)}\n" for key, value in inner.items())


def _json(value: Any) -> str:
    """As YAML: all JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
