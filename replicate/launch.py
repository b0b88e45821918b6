"""The command line of the figures' scripts: which stages, on what, and what that costs."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path

import experiments
from experiments.output import columns
from experiments.paths import to_folder, to_path
from experiments.reading import YamlError
from replicate import cost
from replicate.runner import Runner, fetch_data, gpus_here
from replicate.slurm import SlurmError, describe, launch, load_cluster
from replicate.stage import CONFIGS, Stage, known_scale, plan
from replicate.status import states
from training.data.workers import cpus
from training.errors import ConfigError

LOCAL = ("jobs", "processes", "per_gpu")
SLURM = ("partition", "account", "constraint", "gpus", "nodes", "minutes")
SMALL = ("fashion_mnist", "generated")  # data that one CPU core is enough for


def main(description: str, names: tuple[str, ...] = (), argv: list[str] | None = None) -> int:
    """`names`: figures, or single arms; all figures without any."""
    parser = _parser(description)
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    try:
        scale = known_scale("smoke" if arguments.smoke else arguments.scale, arguments.configs)
        arms = experiments.arms(*names, folder=arguments.configs / "arms")
        stages = plan(scale, arms, arguments.seeds, arguments.runs, arguments.configs, arguments.set)
    except (ConfigError, YamlError) as error:
        print(error, file=sys.stderr)
        return 2
    return start(parser, arguments, stages, arguments.runs / scale / ".slurm")


def start(parser: argparse.ArgumentParser, arguments: argparse.Namespace, stages: list[Stage], folder: Path) -> int:
    """Runs the stages or prints them, as the options of `add_launcher` say; Slurm's scripts go into `folder`."""
    try:
        if problem := _absent(stages):
            # A job's node may have a disk of its own, and variables too: there train.py checks the data, in the job.
            if not arguments.dry_run and arguments.launcher == "local":
                raise ConfigError(problem)
            print(f"note: {problem}", file=sys.stderr)
        if arguments.launcher == "local":
            return _local(parser, arguments, stages)
        return _slurm(arguments, stages, folder)
    except (ConfigError, SlurmError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop", help="a folder of configs/ (default: laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="K")
    parser.add_argument("--runs", type=to_folder, default=Path("runs"), help="where runs are written (default: runs)")
    parser.add_argument("--configs", type=to_folder, default=CONFIGS, help="where scales are (default: configs)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all stages: data.root, wandb.mode, ..."
    )
    parser.add_argument("--smoke", action="store_true", help="short for --scale smoke: a few steps of every stage")
    add_launcher(parser)
    return parser


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """The options that say where stages are run, of the figures' scripts and of the study."""
    parser.add_argument("--dry-run", action="store_true", help="print the plan, its cost, what is there; run nothing")
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm", "print"),
        default="local",
        help="on this machine; as Slurm jobs; or print what Slurm would be given, and run nothing",
    )
    local = parser.add_argument_group("--launcher local")
    local.add_argument("--jobs", type=int, metavar="N", help="stages side by side (default: one per core, or per GPUs)")
    local.add_argument("--processes", type=int, metavar="N", help="processes of one stage (default: one per GPU)")
    local.add_argument("--per-gpu", type=int, metavar="N", help="stages that share a GPU, of one process each")
    slurm = parser.add_argument_group("--launcher slurm and print", "flags go before the cluster file; docs/cluster.md")
    slurm.add_argument("--cluster", type=to_path, metavar="FILE", help="YAML, see replicate/cluster.example.yaml")
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    slurm.add_argument("--constraint")
    slurm.add_argument("--gpus", type=int, metavar="N", help="per node, of one stage; 0: a CPU partition")
    slurm.add_argument("--nodes", type=int, metavar="N", help="of one stage")
    slurm.add_argument("--minutes", type=int, metavar="N", help="time limit of one job; longer stages are queued again")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    local = arguments.launcher == "local"
    for name in ("cluster", *SLURM) if local else LOCAL:
        if getattr(arguments, name) is not None:
            parser.error(
                f"--{name.replace('_', '-')} is not read by --launcher {arguments.launcher}, only by "
                + ("--launcher slurm and print" if local else "--launcher local")
            )
    for name in LOCAL:
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if arguments.per_gpu and arguments.processes not in (None, 1):
        parser.error("--per-gpu: stages that share a GPU have one process each, leave out --processes")


def _local(parser: argparse.ArgumentParser, arguments: argparse.Namespace, stages: list[Stage]) -> int:
    gpus = gpus_here()
    if gpus and (arguments.processes or 1) > len(gpus):
        parser.error(f"--processes: {arguments.processes} processes need as many GPUs, here are {len(gpus)}")
    if arguments.per_gpu:
        arguments.processes, gpus = 1, gpus * arguments.per_gpu  # a GPU that is named twice is free twice
    processes = {stage.name: _processes(stage, arguments.processes, len(gpus)) for stage in stages}
    # Nets of this kind use one core each best: two runs of one thread see more images than one run of two threads.
    cores = cpus()
    widest = max(processes.values())
    side_by_side = len(gpus) if gpus else max(1, cores // widest)  # with GPUs the free ones decide
    jobs = arguments.jobs or min(side_by_side, len(stages))
    if arguments.dry_run:
        gpu = bool(gpus) or not _small(stages)
        print(_with_cost(arguments, stages, len(set(gpus))) if gpu else with_seconds(stages, jobs))
        return 0
    at_once = min(len(gpus), sum(sorted(processes.values())[-jobs:])) if gpus else jobs * widest  # processes
    threads = max(1, cores // at_once)
    return Runner(stages, jobs, threads, processes, gpus).run()


def _processes(stage: Stage, wanted: int | None, gpus: int) -> int:
    """One per GPU, as far as the batch can be shared out evenly; or as asked for."""
    if wanted is None:
        return max(n for n in range(1, max(1, min(gpus, stage.chunks)) + 1) if stage.chunks % n == 0)
    _enough(stage, wanted, "--processes")
    return wanted


def _enough(stage: Stage, processes: int, option: str) -> None:
    if processes > stage.chunks:
        raise ConfigError(
            f"{option}: {processes} processes, but {stage.file} has work for {stage.chunks}: training.batch_size / "
            "training.bn_batch_size"
        )


def _slurm(arguments: argparse.Namespace, stages: list[Stage], folder: Path) -> int:
    flags = {("gpus_per_node" if name == "gpus" else name): getattr(arguments, name) for name in SLURM}
    cluster = load_cluster(arguments.cluster, flags)
    for stage in stages:
        _enough(stage, cluster.nodes * cluster.processes, "--gpus and --nodes")
    gpus = cluster.nodes * cluster.gpus_per_node
    if arguments.launcher == "print":
        print(describe(stages, cluster, folder))
        print()
    if arguments.launcher == "print" or arguments.dry_run:
        in_gpu_hours = gpus or not _small(stages)
        print(_with_cost(arguments, stages, 0) if in_gpu_hours else with_seconds(stages, len(stages)))
        return 0
    if not fetch_data(stages, multiprocessing.get_context("forkserver")):
        return 2
    launch(stages, cluster, folder, lambda line: print(line, flush=True))
    return 0


def _absent(stages: list[Stage]) -> str:
    """Why a folder of images, which nobody fetches for us, cannot be read here; empty if it can."""
    roots = {s.config.data.root: s.config.data for s in stages if s.config.data.name not in SMALL and not s.finished}
    for root, data in sorted(roots.items()):
        try:
            if not data.folder.is_dir():
                return f"there is no folder {root} here, where the images should be: --set data.root=FOLDER"
        except ConfigError as error:
            return str(error)
    return ""


def _small(stages: list[Stage]) -> bool:
    return all(stage.config.data.name in SMALL for stage in stages)


def _planned(stages: list[Stage], costs: Iterable[str]) -> list[str]:
    """A line for each stage: its steps, what it costs, and where it is, in the words of `replicate status`."""
    found = states(stages, None)
    rows = zip(stages, costs, strict=True)
    return columns([(s.name, f"{s.steps} steps", cost, ", ".join(filter(None, found[s.name]))) for s, cost in rows])


def with_seconds(stages: list[Stage], jobs: int) -> str:
    """The plan, with what recorded runs took on one CPU core."""
    whole = [stage.seconds() for stage in stages]
    left = [s and s * (1 - stage.step / stage.steps) for stage, s in zip(stages, whole, strict=True)]
    time_left = "time unknown: no recorded run to go by"
    if None not in left:
        time_left = f"about {sum(left) / jobs / 60:.1f} min"
    lines = _planned(stages, ("?" if seconds is None else f"{seconds:.0f} s" for seconds in left))
    return "\n".join([*lines, f"{len(stages)} runs, {jobs} side by side, {time_left} (as recorded in results/)"])


def _with_cost(arguments: argparse.Namespace, stages: list[Stage], gpus: int) -> str:
    """The plan with its cost in GPU-hours; of a part, the cost of the whole replication too."""
    costs = cost.costs(stages)
    hours = (f"{cost.hours(costs[stage.name].hours)} GPU-hours" for stage in stages)
    lines = [*_planned(stages, hours), "", cost.table(stages, gpus)]
    scale = stages[0].scale
    try:
        everything = experiments.arms(folder=arguments.configs / "arms")
        whole = plan(scale, everything, arguments.seeds, arguments.runs, arguments.configs, arguments.set)
    except ConfigError:  # a scale of somebody's own may have some of the arms alone
        whole = []
    if len(whole) > len(stages):
        total = cost.hours(sum(one.hours for one in cost.costs(whole).values()))
        lines.append(f"figures 4, 5 and 6 together: {len(whole)} runs, {total} GPU-hours (python -m replicate)")
    return "\n".join(lines)
