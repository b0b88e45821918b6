"""A day of evidence from one GPU: is it right, how fast is it, and the eight arms of the gpu scale.

    sh tools/pack_gpu.sh       # where there is a network: what a bare machine lacks, into gpu-day/
    python bench/gpu.py 1      # on the GPU: checks, images/s at 32 and 256 images a pass, a profile of the step
    python bench/gpu.py 2      # the table: step, input, end to end, beside timm's; growth, checkpoint, optimizer
    python bench/gpu.py 3      # the arms of configs/gpu/, several at once

Each part ends after `--minutes` (nine) and goes on where it was when called again. Results are small files in --out:
gpu_checks.json, gpu_rates.csv, gpu_profile.txt, gpu_table.csv, gpu_arms.csv, gpu_arms.json. Part 3 keeps its runs in
`--runs`. It needs torch with CUDA, torchvision, pandas and matplotlib, and no network; the rest is in gpu-day/ where it
is missing. `--device cpu --tiny` goes through the same lines in minutes, with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKED = ROOT / "gpu-day"
# Distributions that a bare machine may lack, and the oldest version that will do.
NEEDED = {"pydantic": "2.9", "timm": "1.0.31", "pyyaml": "6.0", "tqdm": "4.66", "safetensors": "0.5"}
WITH = {"pydantic": ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions")}


def unpack_what_is_missing() -> None:
    """Put the packed wheels of what is missing or too old in front of everything, for this process and those it starts.

    Without pip, which a bare machine may lack as well.
    """
    for name, oldest in NEEDED.items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there = ""
        if there and _numbers(there) >= _numbers(oldest):
            continue
        for distribution in WITH.get(name, (name,)):
            wheel = _wheel(distribution)
            if wheel is None:
                sys.exit(
                    f"bench/gpu.py: {name} {oldest} or newer is missing, and {PACKED.name}/wheels has no "
                    f"{distribution} for this Python: run `sh tools/pack_gpu.sh` where there is a network, and bring "
                    "that folder along"
                )
            folder = PACKED / "site" / wheel.stem
            if not folder.exists():
                part = folder.with_name(f"{folder.name}.{os.getpid()}")
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(part)
                with contextlib.suppress(OSError):  # another process was first
                    part.rename(folder)
            sys.path.insert(0, str(folder))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _wheel(distribution: str) -> Path | None:
    """The packed wheel of a distribution that fits this interpreter."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for path in sorted((PACKED / "wheels").glob("*.whl"), reverse=True):
        name, _, *tags = path.stem.split("-")
        tag, abi = tags[-3], tags[-2]
        older = abi == "abi3" and int(tag.removeprefix("cp3") or 0) <= sys.version_info.minor
        if name.lower() == distribution and (tag.startswith("py3") or "py3" in tag or tag == python or older):
            return path
    return None


if __name__ == "__main__":
    unpack_what_is_missing()
    if (PACKED / "commit").exists():  # for a copy without its .git
        os.environ.setdefault("NET2NET_COMMIT", (PACKED / "commit").read_text().strip())

sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import net2net  # noqa: E402
import train as script  # noqa: E402
from net2net.inception_bn import TABLES, InceptionBN  # noqa: E402
from training.background import Background  # noqa: E402
from training.batchnorm import group_batch_norms  # noqa: E402
from training.compilation import compiled  # noqa: E402
from training.config import Config, load  # noqa: E402
from training.data.order import Order  # noqa: E402
from training.data.source import open_data  # noqa: E402
from training.device import driver, float32_precision  # noqa: E402
from training.graphs import WARM_UP  # noqa: E402
from training.network import build  # noqa: E402
from training.optim import make_optimizer  # noqa: E402
from training.runfolder import COLUMNS  # noqa: E402
from training.session import Session  # noqa: E402
from training.step import TrainStep  # noqa: E402


def _bench() -> Any:
    """bench/train.py, whose name is another module's."""
    spec = importlib.util.spec_from_file_location("bench_train", ROOT / "bench" / "train.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Day:
    """The options, where results go, and when to stop."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.tiny = options, options.tiny
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + 60 * options.minutes
        self.device = torch.device(options.device)
        self.session = Session()
        self.session.device, self.session.cuda = self.device, self.device.type == "cuda"

    def left(self, seconds: float) -> bool:
        """Whether something that takes so long still fits."""
        return time.monotonic() + (0 if self.tiny else seconds) < self.end

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any], times: int = 1) -> float:
        """Seconds of one call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return (time.perf_counter() - start) / times

    def table(self) -> str:
        return "inception_bn_28" if self.tiny else "inception_bn"

    def network(self, width: float = 1.0, pairs: int = 0, modules: int | None = None, **options: Any) -> InceptionBN:
        torch.manual_seed(0)
        table = TABLES[self.table()]
        if self.tiny:
            modules, width = 3, width / 4
        table = table._replace(modules=table.modules[:modules])
        return InceptionBN(table, width=width, extra_pairs=pairs, num_classes=10, **options)

    def images(self, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        channels, size = (1, 28) if self.tiny else (3, 96)
        generator = torch.Generator().manual_seed(n)
        return torch.randn(n, channels, size, size, generator=generator, dtype=dtype).to(self.device)

    def scale(self) -> str:
        return "smoke" if self.tiny else "gpu"

    def config(self, arm: str, *overrides: str) -> Config:
        return load(ROOT / "configs" / self.scale() / f"{arm}.yaml", [*self.where(), *overrides])

    def where(self) -> list[str]:
        """The packed images, if they are there: a machine without a network has no others."""
        return [f"data.root={PACKED}"] if (PACKED / "FashionMNIST").exists() else []


# ---- part 1: is it right?


def check_environment(day: Day) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": torch.__version__, "device": str(day.device), "cores": os.cpu_count()}
    if day.device.type == "cuda":
        facts |= {"name": torch.cuda.get_device_name(day.device), "cuda": torch.version.cuda}
        facts |= {"cudnn": torch.backends.cudnn.version(), "memory": torch.cuda.mem_get_info(day.device)[1]}
    return facts


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def _gradients(model: nn.Module, forward: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    F.cross_entropy(forward(x), torch.arange(len(x), device=x.device) % 10).backward()
    return [p.grad for p in model.parameters()]


def check_device_equals_cpu(day: Day) -> dict[str, Any]:
    """Gradients of the net in float64, there and on the CPU."""
    model, x = day.network().double(), day.images(8, torch.float64)
    here = _gradients(model, model, x.cpu())
    other = copy.deepcopy(model).to(day.device)
    there = _gradients(other, other, x)
    error = max(relative(a.cpu(), b) for a, b in zip(there, here, strict=True))
    assert error < 1e-6, error
    return {"relative_error_of_gradients": error}


def check_grouped_equals_chunks(day: Day) -> dict[str, Any]:
    """A pass of three groups against three passes, in float64."""
    model, x = day.network().double().to(day.device), day.images(12, torch.float64)
    grouped = group_batch_norms(copy.deepcopy(model), 4)
    one = _gradients(grouped, grouped, x)
    labels = torch.arange(12, device=x.device) % 10
    for part, own in zip(x.split(4), labels.split(4), strict=True):
        (F.cross_entropy(model(part), own) / 3).backward()
    error = max(relative(a, p.grad) for a, p in zip(one, model.parameters(), strict=True))
    assert error < 1e-6, error
    return {"relative_error_of_gradients": error}


def check_compiled_equals_eager(day: Day) -> dict[str, Any]:
    """In float32 without TF32, whole and by modules: as near to float64's gradients as the eager pass.

    Of the first modules of the network; on the CPU without generating code, which takes minutes there.
    """
    found = {}
    for how in (True, "modules"):
        torch.compiler.reset()
        model = group_batch_norms(day.network(modules=3).to(day.device, memory_format=torch.channels_last), 4)
        x = day.images(12).contiguous(memory_format=torch.channels_last)
        eager, exact = copy.deepcopy(model), copy.deepcopy(model).double()
        with _without_code_generation(day), float32_precision("float32"):
            start = time.perf_counter()
            ours = _gradients(model, compiled(model, how), x)
            day.wait()
            found[f"seconds_to_compile_{how}"] = time.perf_counter() - start
            theirs = _gradients(eager, eager, x)
            wanted = _gradients(exact, exact, x.double())
        error, eager_error = (_distance(found, wanted) for found in (ours, theirs))
        assert error < 3 * eager_error + 1e-6, (error, eager_error)
        found |= {f"relative_error_{how}": error, f"relative_error_eager_beside_{how}": eager_error}
    return found


def _distance(ours: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The relative distance of all gradients, taken as one vector."""
    a, b = (torch.cat([t.double().flatten() for t in each]) for each in (ours, wanted))
    return float((a - b).norm() / b.norm())


def check_replayed_equals_eager(day: Day) -> dict[str, Any]:
    """Eight steps by CUDA graphs and without."""
    ends, before = [], torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        for graphs in ("true", "false"):
            overrides = ("compile=false", f"cuda_graphs={graphs}", "precision=float32")
            step, data = _steps(day, *(f"training.{override}" for override in overrides))
            batches = data.stream(0)
            for number in range(8):
                step(number, batches)
            ends.append([t.detach().clone() for t in step.model.state_dict().values()] + [step.losses, step.correct])
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before, False
    exact = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    error = _distance(*ends)
    assert error < 1e-3, error
    return {"to_the_bit": exact, "relative_difference": error}


@contextlib.contextmanager
def _without_code_generation(day: Day) -> Iterator[None]:
    real = torch.compile
    if day.device.type == "cpu":
        torch.compile = lambda model, **options: real(model, backend="eager", **options)
    try:
        yield
    finally:
        torch.compile = real


def check_growth(day: Day) -> dict[str, Any]:
    """Every transformation there gives what it gives on the CPU, certified there; the generators stay as they were."""
    teacher, x = day.network().double(), day.images(8, torch.float64)
    _gradients(teacher, teacher, x.cpu())
    ways: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
        "widen": lambda model, x: net2net.widen(model, x, 1.5, noise=0.0),
        "random_pad": lambda model, x: net2net.random_pad(model, x, 1.5),
        "deepen": lambda model, x: net2net.deepen(model, x, {"inception.*.middle.2": [(3, 1)]}, calibration=[x]),
    }
    found = {}
    for name, way in ways.items():
        there = copy.deepcopy(teacher).to(day.device)
        states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(day.device)] if day.session.cuda else [])
        student, wanted = way(there, x), way(teacher, x.cpu())
        after = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(day.device)] if day.session.cuda else [])
        assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True)), f"{name} moved a random stream"
        pairs = zip(student.parameters(), wanted.parameters(), strict=True)
        found[f"{name}_against_cpu"] = error = max(relative(a.detach().cpu(), b.detach()) for a, b in pairs)
        assert error < 1e-6, (name, error)
        if name != "random_pad":
            for train in (False, True):
                certificate = net2net.verify(there, student, x, train=train)
                assert certificate.relative < 1e-6, (name, certificate)
                found[f"{name}_{'train' if train else 'eval'}"] = certificate.relative
    return found


def check_optimizer_grows(day: Day) -> dict[str, Any]:
    config = day.config("standard")
    model, x = day.network().to(day.device), day.images(8)
    optimizer = make_optimizer(config, model)
    _gradients(model, model, x)
    optimizer.step()
    student = net2net.widen(model, x, 1.5, noise=0.0)
    grown = net2net.grow_optimizer(optimizer, student, teacher=model)
    devices = {t.device.type for state in grown.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim}
    assert devices == {day.device.type}
    _gradients(student, student, x)
    grown.step()
    assert all(bool(p.isfinite().all()) for p in student.parameters())
    return {"tensors": sum(len(state) for state in grown.state.values())}


def _steps(day: Day, *overrides: str, arm: str = "standard") -> tuple[TrainStep, Any]:
    config = day.config(arm, *overrides)
    data = open_data(config, day.device)
    torch.manual_seed(0)
    model = build(config.model, config.data).to(day.device, memory_format=torch.channels_last)
    return TrainStep(config, model, day.session, data.order), data


def check_images_are_the_cpu_s(day: Day) -> dict[str, Any]:
    config = day.config("standard")
    found = []
    for device in (day.device, torch.device("cpu")):
        images, labels = next(open_data(config, device).stream(3))
        found.append((images.cpu(), labels.cpu()))
    (a, labels), (b, wanted) = found
    assert torch.equal(labels, wanted)
    assert torch.allclose(a, b, atol=1e-6)
    return {"largest_difference": float((a - b).abs().max())}


def check_a_step_waits_for_nothing(day: Day) -> dict[str, Any]:
    """CUDA raises where the host would wait for it."""
    step, data = _steps(day, "training.compile=false", "optimizer.clip_norm=2.0")
    batches = data.stream(0)
    step(0, batches)
    if day.session.cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            step(number, batches)
    finally:
        if day.session.cuda:
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": 3}


def check_launches(day: Day) -> dict[str, Any]:
    """Optimizer and average take a few kernels whatever the number of layers."""
    step, data = _steps(day, "training.compile=false")
    step(0, data.stream(0))
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CUDA] if day.session.cuda else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        step.optimizer.step()
        step.ema.update(step.model, 2)
        day.wait()
    launches = sum(e.count for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA)
    parameters = len(list(step.model.parameters()))
    assert not day.session.cuda or launches < parameters, launches
    return {"kernels": launches, "parameters": parameters}


def check_resume(day: Day) -> dict[str, Any]:
    """A run that was interrupted ends as one that was not, to the bit, where the kernels are deterministic."""
    tail = [
        *("--set", "training.steps=6", "--set", "training.eval_every=2", "--set", "training.compile=false"),
        *("--set", "training.keep=4", "--set", "data.val_images=100", "--set", "model.width=0.25"),
    ]
    tail += [word for override in day.where() for word in ("--set", override)]
    config = ROOT / "configs" / day.scale() / "standard.yaml"
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        before = torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            assert script.main([str(config), "--out", str(whole), *tail]) == 0
            shutil.copytree(whole, cut)
            # As a kill after the checkpoint of step 2 would have left it.
            (cut / "checkpoint-00000002.pt").replace(cut / "checkpoint.pt")
            for later in cut.glob("checkpoint-*.pt"):
                later.unlink()
            manifest = json.loads((cut / "run.json").read_text())
            manifest["status"] = "running"
            (cut / "run.json").write_text(json.dumps(manifest))
            assert script.main([str(config), "--out", str(cut), *tail]) == 0
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = before
        states = [torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True) for run in (whole, cut)]
    ours, wanted = (state["model"] for state in states)
    exact = all(torch.equal(ours[key], wanted[key]) for key in wanted)
    error = max(relative(ours[k].double(), wanted[k].double()) for k in wanted if wanted[k].is_floating_point())
    assert states[0]["step"] == states[1]["step"] == 6
    assert error < 1e-2, error
    return {"to_the_bit": exact, "relative_difference": error}


def check_ranks(day: Day) -> dict[str, Any]:
    """NCCL (gloo on a CPU) and DistributedDataParallel with one rank compute what is computed without."""
    import torch.distributed as dist

    model, x = day.network().double().to(day.device), day.images(8, torch.float64)
    other = copy.deepcopy(model)
    wanted = _gradients(model, model, x)
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if day.session.cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            ones = torch.ones(3, device=day.device)
            dist.all_reduce(ones)
            parallel = nn.parallel.DistributedDataParallel(other, broadcast_buffers=False, gradient_as_bucket_view=True)
            ours = [g.clone() for g in _gradients(other, parallel, x)]
        finally:
            dist.destroy_process_group()
    error = max(relative(a, b) for a, b in zip(ours, wanted, strict=True))
    assert error < 1e-9, error
    return {"backend": backend, "relative_error_of_gradients": error}


def check_checkpoints_do_not_stop_training(day: Day) -> dict[str, Any]:
    """The host's seconds for a checkpoint: what copying takes, and what a file would."""
    step, data = _steps(day, "training.compile=false")
    step(0, data.stream(0))
    background = Background()

    def job(state: Any) -> None:
        with tempfile.TemporaryFile() as file:
            torch.save(state, file)

    background.start(job, step.state_dict())
    background.wait()
    start = time.perf_counter()
    background.start(job, step.state_dict())
    handed_over = time.perf_counter() - start
    background.wait()
    return {"seconds_until_training_goes_on": handed_over, "seconds_until_written": time.perf_counter() - start}


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def part_1(day: Day) -> bool:
    path = day.out / "gpu_checks.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, check in CHECKS.items():
        if found.get(name, {}).get("ok"):
            continue
        if not day.left(20):
            return False
        start = time.perf_counter()
        try:
            found[name] = {"ok": True, **check(day)}
        except Exception as error:  # whatever it is: the other checks are to be made all the same
            found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            traceback.print_exc()
        found[name]["seconds"] = round(time.perf_counter() - start, 2)
        print(f"{name}: {found[name]}", flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return rates(day) and profile(day)


RATES = ("images_per_pass", "compile", "cuda_graphs", "images_per_s", "seconds_to_first_step", "memory_gib")


def _imagenet_step(day: Day, per_pass: int, compile_: str, **overrides: Any) -> tuple[TrainStep, Any]:
    """The ImageNet arm's step on a batch in memory: 8 chunks of 32 images."""
    chunk, chunks = (4, 3) if day.tiny else (32, 8)
    values = {
        "training.batch_size": chunk * chunks,
        "training.bn_batch_size": chunk,
        "training.images_per_pass": per_pass,
        "training.compile": compile_,
        "training.precision": "bfloat16" if day.session.cuda else "float32",
        **({"model.width": 0.2, "model.multiple_of": 1, "data.image_size": 64} if day.tiny else {}),
        **overrides,
    }
    config = load(ROOT / "configs" / "imagenet" / "standard.yaml", [f"{k}={v}" for k, v in values.items()])
    torch.manual_seed(0)
    model = build(config.model, config.data).to(day.device, memory_format=torch.channels_last)
    step = TrainStep(config, model, day.session, Order(chunk * chunks, 0, chunk * chunks, chunk))
    size = config.data.image_size
    images = torch.randn(chunk, 3, size, size, device=day.device).contiguous(memory_format=torch.channels_last)
    return step, (images, torch.arange(chunk, device=day.device))


def _forever(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def _rate(day: Day, step: TrainStep, batch: Any) -> tuple[float, float]:
    """Images a second, and the seconds of the first step."""
    batches = _forever(batch)
    first = day.seconds(lambda: step(0, batches))
    for _ in range(0 if day.tiny else WARM_UP):
        step(0, batches)
    times = 1 if day.tiny else max(3, int(3 / day.seconds(lambda: step(1, batches))))
    return step.config.training.batch_size / day.seconds(lambda: step(2, batches), times), first


def rates(day: Day) -> bool:
    """Images a second with 32 and with 256 images in a pass, eager and compiled."""
    path, done = day.out / "gpu_rates.csv", []
    if path.exists():
        with path.open() as file:
            done = list(csv.DictReader(file))
    wanted = [(compile_, n, how) for compile_ in ("modules", "true") for n in (256,) for how in ("true", "false")]
    wanted = [("false", n, how) for how in ("true", "false") for n in (32, 256)] + wanted
    for compile_, per_pass, graphs in [("false", 4, "true"), ("false", 12, "false")] if day.tiny else wanted:
        keys = {"images_per_pass": str(per_pass), "compile": compile_, "cuda_graphs": graphs}
        if any(row.items() >= keys.items() for row in done):
            continue
        if not day.left(150 if compile_ != "false" else 20):
            return False
        torch.compiler.reset()
        if day.session.cuda:
            torch.cuda.reset_peak_memory_stats(day.device)
        rate, first = _rate(day, *_imagenet_step(day, per_pass, compile_, **{"training.cuda_graphs": graphs}))
        memory = torch.cuda.max_memory_allocated(day.device) / 2**30 if day.session.cuda else 0.0
        measured = {"images_per_s": f"{rate:.4g}", "seconds_to_first_step": f"{first:.3g}"}
        done.append({**keys, **measured, "memory_gib": f"{memory:.3g}"})
        print(done[-1], flush=True)
        write(path, RATES, done)
    return True


def write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def profile(day: Day) -> bool:
    """Where the time of a step goes, by kernel: eager at 32 and at 256 images a pass, compiled at 256."""
    path = day.out / "gpu_profile.txt"
    if path.exists():
        return True
    texts = []
    activity = torch.profiler.ProfilerActivity
    wanted = [(32, "false"), (256, "false"), (256, "modules")]
    for per_pass, compile_ in [(4, "false"), (12, "false")] if day.tiny else wanted:
        if not day.left(40 if compile_ == "false" else 150):
            return False
        step, batch = _imagenet_step(day, per_pass, compile_)
        batches = _forever(batch)
        for _ in range(2):
            step(0, batches)
        day.wait()
        start = time.perf_counter()
        step(1, batches)
        handed_over = time.perf_counter() - start
        day.wait()
        whole = time.perf_counter() - start
        kinds = [activity.CPU, activity.CUDA] if day.session.cuda else [activity.CPU]
        with torch.profiler.profile(activities=kinds) as measured:
            step(1, batches)
            day.wait()
        order = "self_cuda_time_total" if day.session.cuda else "self_cpu_time_total"
        averages = measured.key_averages()
        events = sum(event.count for event in averages)
        table = averages.table(sort_by=order, row_limit=25, max_name_column_width=70)
        texts.append(
            f"compile={compile_}, {per_pass} images a pass: {events} events in a step; without the profiler the host "
            f"is busy for {handed_over:.4f} s of the step's {whole:.4f} s\n{table}"
        )
    path.write_text("\n".join(texts))
    return True


# ---- part 2: how fast is it?


TABLE = (
    *("what", "model", "width", "extra_pairs", "multiple_of", "image_size", "batch", "images_per_pass", "compile"),
    *("cuda_graphs", "loop", "precision", "workers", "value", "unit", "hardware", "torch"),
)


def part_2(day: Day) -> bool:
    path, rows = day.out / "gpu_table.csv", []
    if path.exists():
        with path.open() as file:
            rows = list(csv.DictReader(file))
    bench = _bench()

    def record(what: str, value: float, unit: str, **facts: Any) -> None:
        row = {**dict.fromkeys(TABLE, ""), **facts, "what": what, "value": f"{value:.4g}", "unit": unit}
        row |= {"hardware": bench.slug(day.device, 1), "torch": bench.version()}
        rows.append({key: str(item) for key, item in row.items()})
        print(what, facts, f"{value:.4g} {unit}", flush=True)
        write(path, TABLE, rows)

    def ended(row: dict[str, str]) -> bool:
        return row["unit"] == "done" or row["value"] == "nan"

    for name, seconds, measure in _measurements(day, bench):
        if name in {row["what"] for row in rows if ended(row)}:
            continue
        while rows and not ended(rows[-1]):  # of what was begun by a call before this one
            rows.pop()
        if not day.left(seconds):
            return False
        torch.compiler.reset()
        try:
            measure(record)
        except Exception as error:  # a pass that does not fit the memory: the other rows are wanted all the same
            traceback.print_exc()
            record(name, math.nan, f"{type(error).__name__}: {error}"[:200].replace("\n", " "))
        else:
            record(name, 1, "done")
    return True


def _measurements(day: Day, bench: Any) -> Iterator[tuple[str, float, Callable[[Callable], None]]]:
    """Name, seconds that it may take, and what measures: the most wanted first."""
    precision = "bfloat16" if day.session.cuda else "float32"

    def step(width: float, pairs: int, per_pass: int, compile_: str, multiple_of: int) -> Callable[[Callable], None]:
        def measure(record: Callable) -> None:
            options = {"model.width": width, "model.extra_pairs": pairs, "model.multiple_of": multiple_of}
            options["training.cuda_graphs"] = True
            if day.tiny:
                options["model.width"] = 0.2 * width
            rate, first = _rate(day, *_imagenet_step(day, per_pass, compile_, **options))
            facts = {"model": "inception_bn", "width": width, "extra_pairs": pairs, "multiple_of": multiple_of}
            facts |= {"images_per_pass": per_pass, "compile": compile_, "cuda_graphs": day.session.cuda}
            facts |= {"loop": "net2net", "precision": precision}
            record("step", rate, "images/s", **facts)
            record("first_step", first, "s", **facts)

        return measure

    def beside_timm(model: str, size: int, compile_: bool = False) -> Callable[[Callable], None]:
        def measure(record: Callable) -> None:
            batch, chunks = (4, 1) if day.tiny else (256, 1)
            workers = 0 if day.tiny else bench.beside_training()
            with tempfile.TemporaryDirectory() as folder:
                setup = bench.Setup(day.session, precision, compile_, chunks, workers, Path(folder), 1024, 4, True)
                if day.tiny:
                    setup = bench.Setup(day.session, precision, False, 1, 0, Path(folder), 8, 4)
                bench.write_images(setup.root, setup.train_images, setup.val_images)
                small = 80 if model == "inception_v3" else 64  # it takes no smaller ones
                case = bench.Case(model, 0.2 if day.tiny else 1.0, 0, small if day.tiny else size, batch, compared=True)
                found = bench.subjects(case, setup)
                measured = bench.measure(found, 1 if day.tiny else 3, 1e-6 if day.tiny else 3.0, setup.clock)
                for row in bench.rows(case, setup, found, measured, "")[: len(found)]:
                    facts = {key: row[key] for key in ("model", "width", "extra_pairs", "image_size", "batch", "loop")}
                    facts |= {"precision": precision, "workers": workers, "compile": row["compile"]}
                    facts |= {"cuda_graphs": day.session.cuda and row["loop"] == "net2net"}
                    record(row["what"], float(row["images_per_s"]), "images/s", **facts)

        return measure

    def growth(record: Callable) -> None:
        teacher, x = day.network(0.5477, multiple_of=8).to(day.device), day.images(32)
        student = day.network(1.0, multiple_of=8)
        convolutions = {n: m.out_channels for n, m in student.named_modules() if isinstance(m, nn.Conv2d)}
        widths = {n: channels for n, channels in convolutions.items() if n.startswith("inception.")}
        made: list[nn.Module] = []
        seconds = day.seconds(lambda: made.append(net2net.widen(teacher, x, widths=widths, noise=0.0, verify=False)))
        record("widen", seconds, "s", model=day.table())
        record("certificate", day.seconds(lambda: net2net.verify(teacher, made[0], x, train=True)), "s")

    def parts_of_a_step(record: Callable) -> None:
        made, batch = _imagenet_step(day, 4 if day.tiny else 256, "false")
        made(0, _forever(batch))
        record("optimizer", day.seconds(made.optimizer.step, 1 if day.tiny else 20), "s")
        record("average", day.seconds(lambda: made.ema.update(made.model, 2), 1 if day.tiny else 20), "s")
        background = Background()
        state = made.state_dict()
        with tempfile.TemporaryDirectory() as folder:
            background.start(lambda copy_: torch.save(copy_, f"{folder}/c.pt"), state)
            background.wait()
            handed = day.seconds(lambda: background.start(lambda copy_: torch.save(copy_, f"{folder}/c.pt"), state))
            record("checkpoint_until_training_goes_on", handed, "s")
            record("checkpoint_written", handed + day.seconds(background.wait), "s")
            record("checkpoint_size", Path(folder, "c.pt").stat().st_size / 1e6, "MB")

    def scale_step(arm: str, graphs: str) -> Callable[[Callable], None]:
        def measure(record: Callable) -> None:
            made, data = _steps(day, f"training.cuda_graphs={graphs}", arm=arm)
            rate, first = _rate(day, made, next(data.stream(0)))
            facts = {"model": made.config.model.name, "width": made.config.model.width, "loop": "net2net"}
            facts |= {"extra_pairs": made.config.model.extra_pairs, "batch": made.config.training.batch_size}
            facts |= {"compile": made.config.training.compile, "cuda_graphs": made.replays}
            facts |= {"precision": made.config.training.precision}
            record("step", rate, "images/s", **facts)
            record("first_step", first, "s", **facts)

        return measure

    per_pass = 12 if day.tiny else 256
    for arm in ("standard", "wider") if day.tiny else ("standard", "deeper", "wider_sqrt2"):
        for graphs in ("true", "false"):
            yield f"step of the {day.scale()} scale's {arm}, cuda_graphs={graphs}", 30, scale_step(arm, graphs)
    yield "inception_bn beside timm", 150, beside_timm("inception_bn", 224)
    yield "growth", 60, growth
    yield "parts of a step", 40, parts_of_a_step
    for width in (0.5477, 1.4142):
        for multiple_of in (8, 1):
            yield f"step width={width} multiple_of={multiple_of}", 60, step(width, 0, per_pass, "false", multiple_of)
    yield "inception_v3 beside timm", 150, beside_timm("inception_v3", 299)
    for number in [4] if day.tiny else [32, 64, 128, 512]:
        yield f"step images_per_pass={number}", 60, step(1.0, 0, number, "false", 8)
    if not day.tiny:
        for pairs in (2, 4):
            yield f"step extra_pairs={pairs}", 200, step(1.0, pairs, per_pass, "modules", 8)
        yield "inception_bn beside timm, compiled", 300, beside_timm("inception_bn", 224, True)


# ---- part 3: the arms


def part_3(day: Day) -> bool:
    """All arms of the scale by the launcher of the figures, stopped in time; what is there so far, in two files."""
    from experiments import arms as arms_of
    from replicate.runner import Runner, gpus_here
    from replicate.stage import plan
    from training.files import write_atomic

    scale, runs, overrides = day.scale(), day.options.runs, day.where()
    overrides += day.options.set
    arms = ("teacher_narrow", "wider") if day.tiny else arms_of()
    stages = plan(scale, arms, day.options.seeds, runs, overrides=overrides)
    jobs = day.options.jobs
    # One GPU named several times is shared by so many stages.
    gpus = (gpus_here()[:1] or ["0"]) * jobs if day.session.cuda else []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    runner = Runner(stages, jobs, threads, {stage.name: 1 for stage in stages}, gpus)
    # The launcher's own way to stop: its stages save, and go on the next time.
    handler = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, max(1.0, day.end - time.monotonic()))
    try:
        runner.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    rows, facts = [], {}
    for stage in stages:
        manifest = stage.manifest() or {}
        keys = ("status", "result", "parameters", "device", "versions", "error")
        facts[stage.name] = {key: manifest[key] for key in keys if key in manifest}
        metrics = stage.folder / "metrics.csv"
        if metrics.exists():
            with metrics.open() as file:
                whose = {"scale": scale, "arm": stage.arm, "seed": stage.config.seed}
                rows += [{**whose, **row} for row in csv.DictReader(file)]
    columns = tuple(dict.fromkeys(("scale", "arm", "seed", *COLUMNS, *(key for row in rows for key in row))))
    write(day.out / "gpu_arms.csv", columns, rows)
    write_atomic(day.out / "gpu_arms.json", json.dumps(facts, indent=1).encode() + b"\n")
    return all(stage.finished for stage in stages)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", type=int, choices=(1, 2, 3))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "results" / "bench"))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="of part 3")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--jobs", type=int, default=4, help="arms at once, part 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the arms, part 3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the arms, part 3")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks and few steps: do the lines run?")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench/gpu.py: torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU that it can use; the "
            f"driver is {driver() or 'not loaded'}. On a machine without one: --device cpu --tiny",
            file=sys.stderr,
        )
        return 2
    finished = (part_1, part_2, part_3)[options.part - 1](Day(options))
    print(f"part {options.part} is {'complete' if finished else 'not complete: the same command goes on from here'}")
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
