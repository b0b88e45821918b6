"""The study of the paper's claims: the figures' arms with five seeds, and sweeps on held-out training images.

    python -m replicate.study --dry-run            # what there is, what it costs
    python -m replicate.study sweep_rate           # one part of it; without a name all, in this order
    python -m replicate.record laptop-held-out     # then into results/, a part's folder of runs each

A sweep varies one key of an arm of the figures. Choices are made on the last 10,000 training images, which no run of a
sweep is trained on; the test images are for the curves that are reported. Running it again goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from replicate import fig4, fig5, fig6
from replicate.launch import with_seconds
from replicate.runner import CONFIGS, Runner, Stage
from training.config import load
from training.errors import ConfigError

FIGURES = tuple(dict.fromkeys(fig4.ARMS + fig5.ARMS + fig6.ARMS))
LONG = tuple(arm for arm in FIGURES if arm != "random_pad")  # no claim about its final accuracy
HELD_OUT = ("data.validation=held_out",)


@dataclass(frozen=True)
class Part:
    """Runs of one scale, in a folder of runs of their own: arms as their files say, and arms with other values."""

    scale: str
    folder: str  # below runs/
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> (arm, key=value, ...)
    overrides: tuple[str, ...] = ()  # of all of them


def rates(arm: str, *scales: float) -> dict[str, tuple[str, ...]]:
    """An arm at other initial rates, as fractions of the one that the teachers begin with."""
    return {f"{arm}_rate_{scale:g}": (arm, f"optimizer.lr_scale={scale:g}") for scale in scales}


EXACT = ("growth.noise=0.05", "growth.exact=true")
CARRIED = ("growth.optimizer=carried",)
FAST, FASTER = ("schedule.decay_steps=15",), ("schedule.decay_steps=10",)
HALF = ("growth.teacher=teacher_narrow_half", *EXACT, *CARRIED, "training.steps=900")
# The control of configs/laptop-long/narrow_continued.yaml: the teacher itself, trained on as its student is.
NARROW_CONTINUED = ("wider", "growth.method=continue", "growth.noise=0.0", "model.width=0.5477")
SEEDS, FEW = (1, 2, 3, 4, 5), (1, 2, 3)
OWN_RATES = {  # of configs/long
    **dict.fromkeys(("wider", "random_pad", "deeper", "wider_sqrt2", "deeper_4pairs"), 0.1),
    **dict.fromkeys(("standard", "sqrt2_random_init"), 1),
    **dict.fromkeys(("deeper_random_init", "4pairs_random_init"), 0.3),
}
STUDY = {
    # The paper's setting, over the mini-batches of the net from scratch.
    "long": Part("long", "long", SEEDS, FIGURES),
    # The same mini-batches without growing: trained on at the student's rate, the schedule begun again, one schedule.
    "long_controls": Part(
        "long",
        "long",
        SEEDS,
        (
            "teacher_narrow",
            "standard",
            "narrow_continued",
            "standard_continued",
            "narrow_again",
            "standard_again",
            "standard_double",
        ),
    ),
    "long_large": Part("long", "long", SEEDS, ("sqrt2_random_init", "4pairs_random_init")),
    # Which rate suits each arm, chosen on images that none of these runs was trained on.
    "long_rates": Part(
        "long",
        "long-held-out",
        FEW,
        ("teacher_narrow", *OWN_RATES),
        {
            name: change
            for arm, own in OWN_RATES.items()
            for name, change in rates(arm, *(rate for rate in (1, 0.3, 0.1) if rate != own)).items()
        },
        HELD_OUT,
    ),
    # Where width is used, at the full rate: does it take noise?
    "long_noise": Part(
        "long",
        "long",
        SEEDS,
        ("teacher_narrow",),
        {
            "wider_rate_1": ("wider", "optimizer.lr_scale=1"),
            "wider_rate_1_noise_0": ("wider", "optimizer.lr_scale=1", "growth.noise=0.0"),
            "wider_rate_1_noise_10": ("wider", "optimizer.lr_scale=1", "growth.noise=0.1"),
            "wider_rate_1_exact": ("wider", "optimizer.lr_scale=1", *EXACT),
        },
    ),
    "long_prediction": Part("long", "long", SEEDS, ("teacher_narrow", "teacher_prediction")),
    "laptop": Part("laptop", "laptop", SEEDS, FIGURES, {"narrow_continued": NARROW_CONTINUED}),
    "sweep_rate": Part(
        "laptop",
        "laptop-held-out",
        FEW,
        ("teacher_narrow", "standard", "wider", "deeper"),
        {**rates("wider", 1, 0.3, 0.03), **rates("deeper", 1, 0.3, 0.03)},
        HELD_OUT,
    ),
    "laptop_long": Part("laptop-long", "laptop-long", SEEDS, (*LONG, "standard_continued", "narrow_continued")),
    "sweep_noise": Part(
        "laptop-long",
        "laptop-long-held-out",
        FEW,
        ("teacher_narrow", "narrow_continued"),
        {
            "wider_noise_0": ("wider", "growth.noise=0.0"),
            "wider_noise_1": ("wider", "growth.noise=0.01"),
            "wider_noise_3": ("wider", "growth.noise=0.03"),
            "wider_noise_10": ("wider", "growth.noise=0.1"),
            "wider_exact": ("wider", *EXACT),
        },
        HELD_OUT,
    ),
    # A student's rate that is through when the student is: a higher one that falls faster.
    "sweep_schedule": Part(
        "laptop-long",
        "laptop-long-held-out",
        FEW,
        ("teacher_narrow",),
        {
            "wider": ("wider",),
            "wider_rate_0.3_fast": ("wider", *FAST, "optimizer.lr_scale=0.3"),
            "wider_rate_0.3_fast_exact_carried": ("wider", *FAST, *EXACT, *CARRIED, "optimizer.lr_scale=0.3"),
            "wider_rate_1_fast_exact_carried": ("wider", *FASTER, *EXACT, *CARRIED, "optimizer.lr_scale=1"),
        },
        HELD_OUT,
    ),
    # What the paper had not: noise that cancels, the optimizer state carried over, the schedule that the sweep chose.
    "best": Part(
        "laptop-long",
        "laptop-long",
        SEEDS,
        ("teacher_narrow", "standard"),
        {
            "wider_best": ("wider", *FAST, *EXACT, *CARRIED, "optimizer.lr_scale=0.3"),
            "deeper_best": ("deeper", *CARRIED),
        },
    ),
    "best_short": Part(
        "laptop",
        "laptop",
        SEEDS,
        ("teacher_narrow", "standard"),
        {"wider_best": ("wider", *EXACT, *CARRIED), "deeper_best": ("deeper", *CARRIED)},
    ),
    # What the students of an annealed teacher lack. half: the teacher stops halfway, and its student goes
    # on with its rate and its optimizer's state, so that together they see what the net from scratch sees. again: the
    # student of the annealed teacher has all that the net from scratch has, its rate and its mini-batches.
    "sweep_across": Part(
        "laptop-long",
        "laptop-long-held-out",
        FEW,
        ("teacher_narrow", "standard"),
        {
            "teacher_narrow_half": ("teacher_narrow", "training.steps=900"),
            "wider_half": ("wider", *HALF, "optimizer.lr_scale=0.156"),
            "wider_again": ("wider", *EXACT, "optimizer.lr_scale=1", "training.steps=1800"),
        },
        HELD_OUT,
    ),
    "prediction": Part("laptop", "laptop", SEEDS, ("teacher_narrow", "teacher_prediction")),
    "sweep_optimizer": Part(
        "laptop",
        "laptop-held-out",
        FEW,
        ("teacher_narrow", "standard"),
        {
            "wider_carried": ("wider", *CARRIED),
            "wider_carried_rate_0.3": ("wider", *CARRIED, "optimizer.lr_scale=0.3"),
            "deeper_carried": ("deeper", *CARRIED),
            "deeper_carried_rate_0.3": ("deeper", *CARRIED, "optimizer.lr_scale=0.3"),
        },
        HELD_OUT,
    ),
    "sweep_when": Part(
        "laptop",
        "laptop-held-out",
        FEW,
        ("teacher_narrow",),
        {
            "teacher_narrow_early": ("teacher_narrow", "training.steps=400"),
            "wider_early": ("wider", "growth.teacher=teacher_narrow_early"),
            "wider_early_rate_0.3": ("wider", "growth.teacher=teacher_narrow_early", "optimizer.lr_scale=0.3"),
        },
        HELD_OUT,
    ),
    "sweep_baselines": Part(
        "laptop",
        "laptop-held-out",
        FEW,
        ("teacher_narrow", "standard", "random_pad", "deeper_random_init"),
        {
            **rates("random_pad", 1, 0.3, 0.03),
            **rates("deeper_random_init", 1, 0.1, 0.03),
            **rates("standard", 0.3, 0.1, 0.03),
        },
        HELD_OUT,
    ),
}


def stages(part: Part, runs: Path, seeds: tuple[int, ...] = ()) -> list[Stage]:
    """The runs of a part, in the order of their seeds, so that one whole repetition is there first."""
    named = {**{arm: (arm,) for arm in part.arms}, **part.variants}
    planned = []
    for seed in seeds or part.seeds:
        for name, (arm, *changes) in named.items():
            overrides = (*part.overrides, *changes)
            config = load(CONFIGS / part.scale / f"{arm}.yaml", [*overrides, f"seed={seed}"])
            folder = runs / part.folder / name / f"seed{seed}"
            planned.append(Stage(part.scale, name, config, folder, overrides=overrides, base=arm))
    return planned


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(STUDY)} (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="K", help="default: the part's own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are written (default: runs)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs side by side (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it costs; run nothing")
    arguments = parser.parse_args(argv)
    for name in arguments.parts:
        if name not in STUDY:
            parser.error(f"there is no part {name!r} of the study; there are {', '.join(STUDY)}")
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {arguments.jobs}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = arguments.jobs or cores
    code = 0
    for name in arguments.parts or STUDY:
        try:
            planned = stages(STUDY[name], arguments.runs, tuple(dict.fromkeys(arguments.seeds)))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        if arguments.dry_run:
            print(f"{name}:\n{with_seconds(planned, jobs)}\n")
            continue
        threads = max(1, cores // jobs)
        ended = Runner(planned, jobs, threads, {stage.name: 1 for stage in planned}, []).run()
        code = code or ended
        if ended > 1:  # stopped, or there is no data; 1 is a run that failed, which says nothing of the next part's
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
