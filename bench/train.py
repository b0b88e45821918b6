"""How many images a second does training take? Our loop beside timm's parts, put together as timm's train script does.

    python bench/train.py               # writes results/bench/train_<hardware>_torch<version>.csv; docs/speed.md
    python bench/train.py --quick       # fewer networks, fewer repetitions
    CUDA_VISIBLE_DEVICES= python bench/train.py             # the CPU of a machine that has a GPU
    python bench/train.py --summary results/bench/train_cpu-1-thread_torch2.13.0.csv    # its tables for docs/speed.md

On a GPU if there is one (bfloat16, compiled, as configs/imagenet/ has it), else on one thread of the CPU (float32).
The training step alone on a batch that is in memory (`step`), JPEG files to batches on the device (`input`), and the
whole (`end_to_end`), for this project's Inception-BN at 224 pixels and torchvision's inception_v3 at 299. Both loops
have the same weights, files, augmentations, optimizer, precision, memory format and number of workers. They take turns,
so that a busy moment hits both; a number is the median of `--repeat` turns, with the lowest and the highest beside it.
`over_timm` is the median over the turns of our rate over timm's in the same turn.
On one thread of a CPU the seconds are the process's own, without those that other programs had.

Two floors: `floor_matmul`, the step's floating-point operations at the rate of a large matrix product of the same
precision, and `floor_decode`, one core that does nothing but decode the JPEGs. `decode` is the same with another
decoder, and `prepare` all that a worker does to an image, by what decodes and what resizes.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, dispatch_clip_grad
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # workers preload `train`, which would be this file

from training.config import Config, load
from training.data.augment import Preparation
from training.data.decode import decode_jpeg, torchcodec
from training.data.loader import MEAN, STD, ImageData
from training.data.order import Batch, Order
from training.data.workers import beside_training
from training.device import float32_precision
from training.errors import DataError
from training.network import build
from training.session import Session
from training.step import TrainStep

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "imagenet" / "standard.yaml"
WIDTHS, PAIRS = (0.5477, 1.0, 1.4142), (0, 2, 4)  # the arms': sqrt(0.3), 1, sqrt(2)
TRAIN_IMAGES, CONTENTS = 1024, 128  # files, and different ones among them
FOLDERS = 4  # classes of the generated JPEGs; the networks have 1,000
QUALITY, SIZE = 85, (500, 375)  # about 100 kB a file, ImageNet's mean
LOG_INTERVAL = 50  # timm's default
COLUMNS = (
    *("hardware", "torch", "model", "width", "extra_pairs", "image_size", "batch", "precision", "what", "loop"),
    *("images_per_s", "lowest", "highest", "over_timm", "chunks", "workers", "compile"),
)

log = logging.getLogger("bench")


@dataclass(frozen=True)
class Case:
    """A network and the images in one forward pass; a `compared` one is measured with timm too, in more turns."""

    model: str
    width: float
    extra_pairs: int
    image_size: int
    batch: int
    compared: bool = False


@dataclass(frozen=True)
class Setup:
    """What all cases have in common."""

    session: Session
    precision: str
    compile: bool
    chunks: int  # forward passes in a mini-batch
    workers: int
    root: Path  # of the JPEGs
    train_images: int
    val_images: int
    cuda_graphs: bool = False  # of this project's loop

    @property
    def device(self) -> torch.device:
        return self.session.device

    def clock(self) -> float:
        """Seconds, after the device has done what it was given.

        On the CPU, if this process does everything in one thread, the process's own seconds, without other programs'.
        """
        if self.session.cuda:
            torch.cuda.synchronize(self.device)
        elif not self.workers and torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def config(self, case: Case) -> Config:
        """The ImageNet config, but for what the benchmark varies."""
        values: dict[str, Any] = {
            "model.width": case.width,
            "model.extra_pairs": case.extra_pairs,
            "data.root": str(self.root),
            "data.train_images": self.train_images,
            "data.val_images": self.val_images,
            "data.image_size": case.image_size,
            "training.batch_size": case.batch * self.chunks,
            "training.bn_batch_size": case.batch,
            "training.precision": self.precision,
            "training.compile": str(self.compile).lower(),
            "training.cuda_graphs": str(self.cuda_graphs).lower(),
        }
        return load(CONFIG, [f"{key}={value}" for key, value in values.items()])


@dataclass(frozen=True)
class Subject:
    """Something to time: `opened()` gives a function that handles `images` images each time it is called."""

    what: str
    loop: str
    images: float
    opened: Callable[[], AbstractContextManager[Callable[[], Any]]]
    together: int = 1  # calls whose number should be a multiple of this: workers bring their chunks at the same time


class Ours:
    """train.py's step and training/data/loader.py."""

    name = "net2net"

    def __init__(self, setup: Setup, case: Case, model: nn.Module):
        self.setup, self.config, self.step = setup, setup.config(case), 0
        size = self.config.training.batch_size
        self.update = TrainStep(self.config, model, setup.session, Order(size, 0, size, case.batch))

    def __call__(self, batches: Iterator[Batch]) -> None:
        self.update(self.step, batches)
        self.step += 1

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        # 0 workers, this process itself, is nothing that a config may ask for.
        section = self.config.data.model_copy(update={"classes": FOLDERS, "workers": self.setup.workers})
        options = self.config.training
        data = ImageData(section, self.config.seed, options.batch_size, options.chunk, self.setup.device)
        try:
            yield data.stream(0)
        finally:
            data.close()

    @contextmanager
    def backends(self) -> Iterator[None]:
        with float32_precision(self.config.training.precision):
            yield


class Timms:
    """timm's parts in the order of its train script (train_one_epoch): --amp --amp-dtype bfloat16 --torchcompile."""

    name = "timm"

    def __init__(self, setup: Setup, case: Case, model: nn.Module):
        self.setup, self.case, self.model = setup, case, model
        self.config = config = setup.config(case)
        self.optimizer = create_optimizer_v2(
            model,
            opt="rmsproptf",
            lr=config.optimizer.lr,
            weight_decay=config.optimizer.weight_decay,
            momentum=config.optimizer.momentum,
            eps=config.optimizer.eps,
            alpha=config.optimizer.decay,
        )
        loss = LabelSmoothingCrossEntropy(smoothing=config.training.label_smoothing)
        self.task = ClassificationTask(model, criterion=loss, device=setup.device, verbose=False)
        self.task.setup_ema(decay=config.training.ema_decay, use_warmup=config.training.ema_warmup)
        if config.training.compile:
            self.task.compile()
        self.losses, self.data_time, self.update_time, self.updates = AverageMeter(), AverageMeter(), AverageMeter(), 0
        half = config.training.precision == "bfloat16"
        self.autocast = lambda: torch.autocast(setup.device.type, torch.bfloat16) if half else nullcontext()
        self.task.get_trainable_module().train()
        self.optimizer.zero_grad()

    def __call__(self, batches: Iterator[Batch]) -> None:
        chunks, start = self.setup.chunks, time.time()
        for chunk in range(chunks):
            began = time.time()
            images, labels = next(batches)
            images = images.contiguous(memory_format=torch.channels_last)
            self.data_time.update(chunks * (time.time() - began))
            with self.autocast():
                loss = self.task(images, labels)["loss"]
            if chunks > 1:
                loss = loss / chunks
            clipped = self.task.get_clip_parameters()
            loss.backward()
            if chunk == chunks - 1:
                dispatch_clip_grad(clipped, value=self.config.optimizer.clip_norm, mode="norm")
                self.optimizer.step()
            self.losses.update(loss.item() * chunks, len(images))
        self.updates += 1
        self.optimizer.zero_grad()
        self.task.update_ema(step=self.updates)
        self.update_time.update(time.time() - start)
        if self.updates % LOG_INTERVAL == 0:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            log.info(
                f"Train: [{self.updates:>4d}]  Loss: {self.losses.val:#.3g} ({self.losses.avg:#.3g})  "
                f"Time: {self.update_time.val:.3f}s ({self.update_time.avg:.3f}s)  "
                f"LR: {sum(rates) / len(rates):.3e}  Data: {self.data_time.val:.3f} ({self.data_time.avg:.3f})"
            )

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        data = self.config.data
        loader = create_loader(
            create_dataset("", root=str(self.setup.root), split="train", is_training=True, batch_size=self.case.batch),
            input_size=(3, data.image_size, data.image_size),
            batch_size=self.case.batch,
            is_training=True,
            scale=(data.min_area, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5 if data.flip else 0.0,
            color_jitter=data.color_jitter,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=self.setup.workers,
            pin_memory=self.setup.session.cuda,
            device=self.setup.device,
            use_multi_epochs_loader=True,  # the generated set is small: no pause at the end of each of its epochs
        )
        batches = endless(loader)
        try:
            yield batches
        finally:
            batches.close()
            del batches, loader  # ends the workers
            gc.collect()

    @contextmanager
    def backends(self) -> Iterator[None]:
        """Its script's global settings."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.benchmark, matmul.allow_tf32
        cudnn.benchmark = matmul.allow_tf32 = True
        try:
            yield
        finally:
            cudnn.benchmark, matmul.allow_tf32 = before


def endless(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


def cases(batches: list[int], pairs: tuple[int, ...], widths: tuple[float, ...]) -> list[Case]:
    """Both networks compared with timm; then our step over widths and pairs, and over the images in a forward pass.

    The first of `batches` is the usual one.
    """
    usual = Case("inception_bn", 1.0, 0, 224, batches[0], compared=True)
    grid = [Case("inception_bn", width, count, 224, batches[0]) for width in widths for count in pairs]
    sweep = [Case("inception_bn", 1.0, 0, 224, batch) for batch in batches]
    others = [case for case in (*grid, *sweep) if (case.width, case.extra_pairs, case.batch) != (1.0, 0, batches[0])]
    return [usual, Case("inception_v3", 1.0, 0, 299, batches[0], compared=True), *others]


def make_model(case: Case, config: Config, device: torch.device | str) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        if case.model == "inception_v3":
            options = {"num_classes": config.data.classes, "aux_logits": False, "init_weights": False}
            model = torchvision.models.inception_v3(weights=None, **options)
        else:
            model = build(config.model, config.data)
    return model.to(memory_format=torch.channels_last)


def step_flops(model: nn.Module, image_size: int, channels: int = 3) -> float:
    """Floating-point operations of one image's forward and backward pass, a multiplication and an addition being two.

    Convolutions and matrix products only; `model` is on the meta device, so that nothing is computed.
    """
    images = torch.empty(2, channels, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() / len(images)


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG whose spectrum falls off with 1/frequency, as a photograph's does."""
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((4, height, width), dtype=np.float32)) / frequency
    grey, *colours = np.fft.irfft2(noise, (height, width))
    pixels = np.stack([120 + 60 * (0.9 * grey / grey.std() + 0.3 * c / c.std()) for c in colours], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_images(root: Path, train: int, val: int) -> list[Path]:
    """Class folders of generated JPEGs; returns the training files."""
    rng, files = np.random.default_rng(0), []
    contents = [photograph(rng) for _ in range(min(train, CONTENTS))]
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            path = root / split / f"class{i % FOLDERS}" / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[i % len(contents)])
            files.append(path)
    return files[:train]


def subjects(case: Case, setup: Setup) -> list[Subject]:
    """The subjects that are timed for a case, in the order of their turns."""
    config, device = setup.config(case), setup.device
    torch.manual_seed(1)
    images = torch.randn(case.batch, config.data.channels, case.image_size, case.image_size, device=device)
    batch = images.contiguous(memory_format=torch.channels_last), torch.arange(case.batch, device=device)
    found = []

    def step(loop: Ours | Timms) -> Subject:
        @contextmanager
        def opened() -> Iterator[Callable[[], None]]:
            with loop.backends():
                yield lambda: loop(repeat(batch))

        return Subject("step", loop.name, case.batch * setup.chunks, opened)

    def fed(loop: Ours | Timms, what: str) -> Subject:
        @contextmanager
        def opened() -> Iterator[Callable[[], Any]]:
            with loop.backends(), loop.batches() as batches:
                for _ in range(max(1, 2 * setup.workers)):  # until all workers bring chunks, and none is in stock
                    next(batches)
                yield (lambda: next(batches)) if what == "input" else (lambda: loop(batches))

        images = case.batch if what == "input" else case.batch * setup.chunks
        return Subject(what, loop.name, images, opened, max(1, setup.workers) if what == "input" else 1)

    for kind in (Ours, Timms) if case.compared else (Ours,):
        loop = kind(setup, case, make_model(case, config, device))
        found += [step(loop), fed(loop, "end_to_end")]
        if case.compared:
            found.append(fed(loop, "input"))
    found.sort(key=lambda subject: ("step", "input", "end_to_end").index(subject.what))  # the loops beside each other
    return [*found, matrix_floor(case, setup, step_flops(make_model(case, config, "meta"), case.image_size))]


def matrix_floor(case: Case, setup: Setup, flops: float) -> Subject:
    side = 8192 if setup.session.cuda else 1024
    dtype = torch.bfloat16 if setup.precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=setup.device, dtype=dtype) for _ in range(2))
    return Subject("floor_matmul", "", 2 * side**3 / flops, lambda: nullcontext(lambda: a @ b))


def decoding_floor(files: list[Path]) -> Subject:
    """One core decodes files that are in memory."""
    contents = [path.read_bytes() for path in files[:64]]

    def decode() -> None:
        for content in contents:
            Image.open(io.BytesIO(content)).convert("RGB")

    return Subject("floor_decode", "", len(contents), lambda: nullcontext(decode))


def decoders(files: list[Path], config: Config) -> list[Subject]:
    """One core with what else decodes JPEGs, and with each way to prepare an image; torchcodec where it is there."""
    contents = [path.read_bytes() for path in files[:64]]
    ways = [("pillow", "pillow"), ("pillow", "torch")]
    found = []

    def one(what: str, name: str, call: Callable[[int, bytes], Any]) -> None:
        def each() -> None:
            for number, content in enumerate(contents):
                call(number, content)

        found.append(Subject(what, name, len(contents), lambda: nullcontext(each)))

    with suppress(DataError):
        torchcodec()
        ways.append(("torchcodec", "torch"))
        one("decode", "torchcodec", lambda _, content: decode_jpeg(content))
    for decode, resize in ways:
        data = config.data
        preparation = Preparation(
            *(data.image_size, data.crop_fraction, data.min_area, data.color_jitter, data.flip), decode, resize
        )
        one("prepare", f"{decode} + {resize}", lambda number, content, p=preparation: p.train(content, number))
    return found


def measure(found: list[Subject], turns: int, seconds: float, clock: Callable[[], float]) -> list[list[float]]:
    """Images a second of each subject in each turn; a turn takes about so many seconds, one call at least."""

    def timed(call: Callable[[], Any], number: int) -> float:
        start = clock()
        for _ in range(number):
            call()
        return clock() - start

    numbers = []
    for subject in found:
        with subject.opened() as call:
            timed(call, 1)  # compilation, the optimizer's state
            taken, calls = timed(call, 1), 1
            while taken < max(seconds / 10, 1e-6):
                taken, calls = taken + timed(call, calls), 2 * calls
            numbers.append(math.ceil(seconds * calls / taken / subject.together) * subject.together)
    rates: list[list[float]] = [[] for _ in found]
    for _ in range(turns):
        for subject, number, own in zip(found, numbers, rates, strict=True):
            with subject.opened() as call:
                own.append(subject.images * number / timed(call, number))
    return rates


def rows(case: Case | None, setup: Setup, found: list[Subject], rates: list[list[float]], hardware: str) -> list[dict]:
    """The table's rows for what was measured; `case` is None for what belongs to no network."""
    rate = {(subject.what, subject.loop): own for subject, own in zip(found, rates, strict=True)}
    made = []
    for (what, loop), own in rate.items():
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"hardware": hardware, "torch": version(), "what": what, "loop": loop}
        if case:
            row |= {"model": case.model, "width": case.width, "extra_pairs": case.extra_pairs}
            row |= {"image_size": case.image_size, "batch": case.batch, "precision": setup.precision}
        if loop:
            row |= {"chunks": setup.chunks, "workers": setup.workers, "compile": setup.compile}
        numbers = {"images_per_s": statistics.median(own), "lowest": min(own), "highest": max(own)}
        if loop == "net2net" and (what, "timm") in rate:
            numbers["over_timm"] = statistics.median(a / b for a, b in zip(own, rate[what, "timm"], strict=True))
        made.append(row | {key: f"{value:.4g}" for key, value in numbers.items()})
    return made


def summary(path: Path) -> str:
    """The tables of docs/speed.md."""
    with path.open() as file:
        table = list(csv.DictReader(file))

    def cell(row: dict[str, str]) -> str:
        return f"{row['images_per_s']} ({row['lowest']}–{row['highest']})"

    networks = {(row["model"], row["image_size"], row["batch"]): row for row in table if row["loop"] == "timm"}
    lines = ["| network | images/s | net2net | timm | net2net / timm |", "|---|---|---|---|---|"]
    for model, size, batch in networks:
        own = [row for row in table if (row["model"], row["image_size"], row["batch"]) == (model, size, batch)]
        own = [row for row in own if (row["width"], row["extra_pairs"]) == ("1.0", "0")]
        for row in own:
            for other in own:
                if (row["loop"], other["loop"], other["what"]) == ("net2net", "timm", row["what"]):
                    name = f"{model}, {size} px, batch {batch}"
                    lines.append(f"| {name} | {row['what']} | {cell(row)} | {cell(other)} | {row['over_timm']} |")
    steps = [row for row in table if (row["what"], row["loop"], row["model"]) == ("step", "net2net", "inception_bn")]
    floors = [row for row in table if row["what"] == "floor_matmul"]
    usual = steps[0]
    lines += ["", "| width | extra pairs | batch | step, images/s | cost | of the floor |", "|---|---|---|---|---|---|"]
    keys = ("model", "width", "extra_pairs", "batch")
    for row in steps:
        cost = float(usual["images_per_s"]) / float(row["images_per_s"])
        floor = next(other for other in floors if all(other[key] == row[key] for key in keys))
        part = float(row["images_per_s"]) / float(floor["images_per_s"])
        name = " | ".join(row[key] for key in keys[1:])
        lines.append(f"| {name} | {cell(row)} | {cost:.2f} | {part:.0%} of {floor['images_per_s']} |")
    decoding = next(row for row in table if row["what"] == "floor_decode")
    lines += ["", f"Decoding alone, one core: {cell(decoding)} images/s."]
    others = [row for row in table if row["what"] in ("decode", "prepare")]
    if others:
        lines += ["", "| one core | by | images/s |", "|---|---|---|"]
        lines += [f"| {row['what']} | {row['loop']} | {cell(row)} |" for row in others]
    return "\n".join(lines)


def version() -> str:
    return torch.__version__.partition("+")[0]


def slug(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return "-".join(torch.cuda.get_device_name(device).lower().split())
    return f"cpu-{threads}-thread{'s' * (threads > 1)}"


def write(path: Path, table: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one width and one depth besides the standard net's")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="images in a forward pass; the usual first")
    parser.add_argument("--chunks", type=int, help="forward passes in a mini-batch (default: GPU 8, CPU 1)")
    parser.add_argument(
        "--workers", type=int, help="that decode (default: GPU the job's cores but one, CPU 0: the loop itself)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--repeat", type=int, help="turns (default: 5; with --quick 3)")
    parser.add_argument("--seconds", type=float, help="that a turn of one measurement takes (default: GPU 4, CPU 1)")
    parser.add_argument("--out", type=Path, help="default: results/bench/train_<hardware>_torch<version>.csv")
    parser.add_argument("--summary", type=Path, metavar="CSV", help="only print the tables of this file")
    options = parser.parse_args(argv)
    if options.summary:
        print(summary(options.summary))
        return 0
    if min(*(options.batches or [2]), 2) < 2:
        parser.error("--batches: batch norm needs two images at least")

    session = Session()
    cuda = session.cuda
    if not cuda:
        torch.set_num_threads(options.threads)
    batches = options.batches or ([32, 64, 128, 256] if cuda else [4, 2, 8])
    chunks = options.chunks or (8 if cuda else 1)
    workers = (beside_training() if cuda else 0) if options.workers is None else options.workers
    turns = options.repeat or (3 if options.quick else 5)
    seconds = options.seconds or (4.0 if cuda else 1.0)
    tried = cases(batches, PAIRS, WIDTHS)
    if options.quick:
        corners = {(1.0, 0), (WIDTHS[0], 0), (1.0, PAIRS[1])}
        tried = [case for case in tried if case.batch == batches[0] and (case.width, case.extra_pairs) in corners]
    train_images = max(TRAIN_IMAGES, batches[0] * chunks)
    hardware = slug(session.device, options.threads)
    out = options.out or ROOT / "results" / "bench" / f"train_{hardware}_torch{version()}.csv"
    with tempfile.TemporaryDirectory() as folder:
        precision = "bfloat16" if cuda else "float32"
        setup = Setup(session, precision, cuda, chunks, workers, Path(folder), train_images, FOLDERS)
        files = write_images(setup.root, setup.train_images, setup.val_images)
        size = statistics.mean(path.stat().st_size for path in files)
        print(
            f"{hardware}, torch {version()}, {precision}; {len(files)} JPEGs of {size / 1000:.0f} kB; {workers} workers"
        )
        table: list[dict] = []

        def record(case: Case | None, found: list[Subject]) -> None:
            few = turns if case is None or case.compared else (turns + 1) // 2
            made = rows(case, setup, found, measure(found, few, seconds, setup.clock), hardware)
            print(case or "no network")
            for row in made:
                factor = f", {row['over_timm']} x timm's" if row["over_timm"] else ""
                text = "  {what:13}{loop:8}{images_per_s:>8} images/s ({lowest} to {highest})".format(**row)
                print(text + factor, flush=True)
            table.extend(made)
            write(out, table)

        record(None, [decoding_floor(files), *decoders(files, setup.config(tried[0]))])
        for case in tried:
            torch.compiler.reset()  # else the shapes of the last case make this one's dynamic, and slower
            gc.collect()
            record(case, subjects(case, setup))
    return 0


if __name__ == "__main__":
    sys.exit(main())
