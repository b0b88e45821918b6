"""Verdicts, intervals and sweeps, from small CSV files whose numbers are worked out by hand."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_figures import write_run

from figures import claims, metrics, sweeps
from figures.claims import pace, verdict
from figures.curves import Problem, Results, read_seeds
from figures.metrics import Estimate, arrival, estimate, speedup
from figures.rules import Rule

ROOT = Path(__file__).resolve().parents[1]


def add(root, arm, seed, val, final=None, rate=1.0, flops=10, teacher=None, **how):
    """A run with what run.json says of a finished one."""
    folder = root / arm / f"seed{seed}"
    write_run(folder, val, **how)
    info = json.loads((folder / "run.json").read_text())
    info["config"] |= {"optimizer.lr_scale": rate, "growth.teacher": teacher}
    info |= {"training_flops_per_image": flops, "parameters": 350_000}
    info |= {"result": {"all_val_top1": (val[-1] if final is None else final) / 100}}
    (folder / "run.json").write_text(json.dumps(info))
    return read_seeds(root / arm)[seed]


def judge(test, seeds, results, rates=(1, 0.1)):
    return claims.judge(Rule.model_validate(test), seeds, list(rates), results)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_interval_is_that_of_all_resamples():
    values = [0.3, -1.0, 2.5, 0.7, 0.1]
    means = [sum(some) / 5 for some in itertools.product(values, repeat=5)]
    found = estimate(values)
    assert found.mean == pytest.approx(0.52)
    assert np.mean([m < found.low - 1e-12 for m in means]) < 0.025 <= np.mean([m <= found.low + 1e-12 for m in means])
    assert (
        np.mean([m > found.high + 1e-12 for m in means]) <= 0.025 <= np.mean([m >= found.high - 1e-12 for m in means])
    )
    assert estimate([1.0, 2.0, 4.5]) == Estimate(2.5, 1.0, 4.5, 3)  # three seeds: their range


def test_many_seeds_have_an_interval_too_and_always_the_same():
    values = np.random.default_rng(1).normal(size=12).tolist()
    found = estimate(values)
    margin = 1.96 * np.std(values) / math.sqrt(12)  # of the bootstrap's own distribution, nearly normal
    assert (found.low, found.high) == pytest.approx((np.mean(values) - margin, np.mean(values) + margin), abs=0.05)
    metrics._resamples.cache_clear()
    assert estimate(values) == found


@pytest.mark.parametrize(("seeds", "coverage"), [(3, 0.76), (5, 0.83)])
def test_so_few_seeds_have_too_narrow_intervals_and_claims_yaml_says_how_narrow(seeds, coverage):
    drawn = np.random.default_rng(0).normal(size=(2000, seeds))
    within = [found.low <= 0 <= found.high for found in map(estimate, drawn.tolist())]
    assert np.mean(within) == pytest.approx(coverage, abs=0.03)
    assert f"{100 * coverage:.0f} %" in (ROOT / "results" / "claims.yaml").read_text()


def test_ratios_are_averaged_geometrically_and_an_arm_that_never_arrives_is_not_left_out():
    assert estimate([1.0, 4.0, 16.0], ratio=True).mean == pytest.approx(4)
    lost = estimate([0.0, 4.0, 16.0], ratio=True)
    assert (lost.mean, lost.low, round(lost.high, 9)) == (0, 0, 16)
    with pytest.raises(ValueError, match="at least one seed"):
        estimate([])


def test_arrivals_and_speedups_by_hand(tmp_path):
    student = add(tmp_path, "student", 1, [88, 87, 89, 90])
    scratch = add(tmp_path, "scratch", 1, [10, 80, 88, 89])
    assert arrival(scratch, 88) == 200
    assert arrival(scratch, 88, "images") == 200 * 128
    assert arrival(scratch, 89.5) == math.inf
    assert arrival(student, 88) == 100  # there at step 0: one interval
    assert speedup(student, scratch, 88) == 2
    assert speedup(student, scratch, 90) == 1  # scratch never: all of its 300
    assert speedup(scratch, student, 90) == 0  # the arm never
    assert metrics.area(scratch, 200) == pytest.approx((45 + 84) / 2)
    assert (metrics.start(student), metrics.last(student), metrics.final(student)) == (88, 90, 90)
    assert metrics.operations(student) == 10 * 300 * 128


def test_differences_are_of_the_same_seed(tmp_path, results):
    for seed, level in ((1, 80), (2, 85), (3, 90)):
        add(tmp_path / "r", "a", seed, [level, level + 1], final=level + 1.5)
        add(tmp_path / "r", "b", seed, [10, level], final=level)
    test = {"runs": "r", "metric": "final", "arm": "a", "against": "b", "above": 1.4}
    outcome = judge(test, [1, 2, 3], results)
    assert outcome.found == Estimate(*[pytest.approx(1.5)] * 3, 3)
    assert outcome.state == "holds"
    assert judge({**test, "above": 1.6}, [1, 2, 3], results).state == "refuted"
    start = {**test, "metric": "start", "above": -0.1}  # of a student, against the last of its teacher
    assert judge(start, [1, 2, 3], results).found.mean == pytest.approx(0)


@pytest.mark.parametrize(
    ("rule", "found", "state"),
    [
        ({"above": 0}, (1, 0.1, 2), "holds"),
        ({"above": 0}, (1, -0.1, 2), "not shown"),
        ({"above": 0}, (-1, -2, -0.1), "refuted"),
        ({"below": 1.25}, (1, 0.9, 1.2), "holds"),
        ({"below": 1.25}, (1.3, 1.2, 1.4), "not shown"),
        ({"below": 1.25}, (1.5, 1.3, 1.6), "refuted"),
        ({"within": [-0.5, 0.5]}, (0, -0.5, 0.5), "holds"),
        ({"within": [-0.5, 0.5]}, (0, -0.6, 0.5), "not shown"),
        ({"within": [-0.5, 0.5]}, (-1, -2, -0.6), "refuted"),
        ({"above": 2, "target": 4}, (5, 2.1, 6), "holds"),
        ({"above": 2, "target": 4}, (3, 2.1, 6), "not shown"),
        ({"above": 2, "target": 4}, (1, 0.5, 1.5), "refuted"),
        ({"above": 2, "target": 4}, (3, 2.1, 3.9), "refuted"),
        ({"above": 0}, None, "not run"),
    ],
)
def test_what_an_interval_decides(rule, found, state):
    test = Rule(runs="r", metric="final", arm="a", against="b", **rule)
    assert claims._state(test, found and Estimate(*found, 5))[1] == state


def test_a_claim_needs_all_its_tests():
    def of(*states):
        return verdict([claims.Outcome("", "", "", None, None, None, 5, state) for state in states])

    assert of("holds", "holds") == "yes"
    assert of("holds", "refuted", "not run") == "no"
    assert of("holds", "not shown") == of("holds", "not run") == "in part"
    assert of("not shown", "not run") == "not shown"
    assert of("not run", "not run") == "not run"
    assert of("not run", "unfinished") == "unfinished"
    assert of("holds", "unfinished") == "in part"


def test_two_seeds_decide_nothing(tmp_path, results):
    for seed in (1, 2):
        add(tmp_path / "r", "a", seed, [80, 90])
        add(tmp_path / "r", "b", seed, [10, 80])
    assert judge(
        {"runs": "r", "metric": "final", "arm": "a", "against": "b", "above": 0}, [1, 2, 3], results
    ).state == ("not run")


def test_three_seeds_of_five_decide_nothing_yet(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 90])
        add(tmp_path / "r", "b", seed, [10, 80])
    test = {"runs": "r", "metric": "final", "arm": "a", "against": "b", "above": 0}
    assert judge(test, [1, 2, 3], results).state == "holds"
    outcome = judge(test, [1, 2, 3, 4, 5], results)
    assert (outcome.state, outcome.found.mean, outcome.found.n) == ("unfinished", 10, 3)


def test_what_function_preservation_alone_would_be_given(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "student", seed, [80, 88, 92])
        add(tmp_path / "r", "scratch", seed, [10, 70, 80])
    test = {"runs": "r", "metric": "area", "arm": "student", "against": "scratch", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    assert (outcome.found.mean, outcome.frozen) == (pytest.approx(87 - 57.5), pytest.approx(80 - 57.5))
    speed = {**test, "metric": "speedup", "of": "scratch", "points": -5, "above": 1}  # to 85
    outcome = judge(speed, [1, 2, 3], results)
    assert (outcome.found.mean, outcome.frozen, outcome.arrived) == (pytest.approx(2), 0, 3)


def test_an_unfinished_run_decides_nothing(tmp_path, results, capsys):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 90], status="running" if seed == 3 else "finished")
    assert sorted(results.arm("r", "a")) == [1, 2]


def test_the_best_rate_is_that_of_the_best_mean(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 88 + seed], rate=0.1)
        add(tmp_path / "r", "a_rate_0.3", seed, [80, 88.4 + seed], rate=0.3)
        add(
            tmp_path / "r", "a_rate_1", seed, [80, 95 if seed == 1 else 80], rate=1
        )  # best in one seed, not in the mean
    test = {"runs": "r", "metric": "best_rate", "arm": "a", "rate": 0.1, "above": -0.5}
    grid = (1, 0.3, 0.1)
    outcome = judge(test, [1, 2, 3], results, grid)
    assert outcome.found == Estimate(*[pytest.approx(-0.4)] * 3, 3)
    assert outcome.state == "holds"
    # The best one is not compared with itself, which would be a difference of zero whatever the seeds do.
    itself = judge({**test, "rate": 0.3}, [1, 2, 3], results, grid)
    assert itself.found == Estimate(*[pytest.approx(0.4)] * 3, 3)
    area = {"runs": "r", "metric": "area", "arm": "a", "rate": 0.1, "against_rate": 0.3, "above": 0}
    assert judge(area, [1, 2, 3], results).found.mean == pytest.approx(-0.2)
    other = {"runs": "r", "metric": "final", "arm": "a", "rate": 0.3, "against": "a", "above": 0}
    assert judge(other, [1, 2, 3], results).found.mean == pytest.approx(0.4)
    assert judge(test, [1, 2, 3, 4], results, grid).state == "not run"  # a seed is missing
    assert judge(test, [1, 2, 3], results, (*grid, 0.03)).state == "not run"  # a rate is


def test_a_rate_is_read_from_an_arm_of_that_name_alone(tmp_path, results):
    add(tmp_path / "r", "a", 1, [80, 88], rate=0.1)
    add(tmp_path / "r", "a_rate_0.3_fast", 1, [80, 99], rate=0.3)
    assert set(results.rates("r", "a")) == {0.1}
    add(tmp_path / "s", "a", 1, [80, 88], rate=0.1)
    add(tmp_path / "s", "a_rate_0.3", 1, [80, 99], rate=0.1)
    with pytest.raises(Problem, match="have the same rate"):
        results.rates("s", "a")


def test_a_baseline_at_its_best_rate_is_the_one_that_leaves_the_least_lead(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 90])
        add(tmp_path / "r", "b", seed, [60, 80 + seed], rate=1)
        add(tmp_path / "r", "b_rate_0.1", seed, [70, 70 + seed], rate=0.1)
    test = {"runs": "r", "metric": "area", "arm": "a", "against": "b", "against_rate": "best", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    assert outcome.found == Estimate(*(pytest.approx(x) for x in (14, 13.5, 14.5)), 3)
    assert (outcome.state, outcome.what) == ("holds", "r: area, a against b at its best rate")
    assert judge({**test, "metric": "final"}, [1, 2, 3], results).found.mean == pytest.approx(8)  # the other rate
    assert judge(test, [1, 2, 3, 4], results).state == "not run"  # the grid is not whole


def test_the_pace_counts_operations_with_and_without_the_teachers(tmp_path, results):
    root = tmp_path / "laptop"
    for seed in (1, 2, 3):
        add(root, "teacher_narrow", seed, [10, 80, 86], flops=2e9)
        add(root, "standard", seed, [10, 80, 86.5, 87, 88], flops=5e9)
        add(root, "wider", seed, [86, 87, 88], flops=4e9, teacher="teacher_narrow")
    table = pace(results).set_index("level")
    half = table.loc["50 % of the way"]  # 87
    assert (half.arm_steps, half.against_steps, half.arm_images) == (100, 300, 12800)
    assert half.against_teraflop == pytest.approx(5e9 * 300 * 128 / 1e12)
    assert half.arm_teraflop == pytest.approx(4e9 * 100 * 128 / 1e12)
    assert half.arm_and_teacher_teraflop == pytest.approx((4e9 * 100 + 2e9 * 200) * 128 / 1e12)
    assert (half.ratio_steps, half.ratio_operations) == (3, 3.75)
    assert half.ratio_operations_with_teacher == pytest.approx(5 * 300 / (4 * 100 + 2 * 200), abs=1e-4)
    assert table.loc["last - 0 points"].arm_steps == 200
    assert (half.arm_reached, half.seeds) == (3, 3)


def test_contrasts_are_of_the_same_seed(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "laptop", "wider", seed, [80, 85], final=85 + seed)
        add(tmp_path / "laptop", "wider_best", seed, [80, 85], final=85.5 + 2 * seed)
    (row,) = claims.contrasts(results).to_dict("records")
    assert row == {
        "runs": "laptop",
        "arm": "wider_best",
        "against": "wider",
        "mean": 2.5,
        "low": 1.5,
        "high": 3.5,
        "n": 3,
    }


GOOD = {"runs": "r", "metric": "final", "arm": "a", "against": "b", "above": 0}


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (GOOD | {"metric": "speed"}, ["headline.tests.0.metric", "'final'"]),
        (GOOD | {"targt": 4}, ["headline.tests.0.targt", "not permitted"]),
        (GOOD | {"below": 1}, ["one of above, below and within"]),
        ({k: v for k, v in GOOD.items() if k != "above"}, ["one of above, below and within"]),
        ({k: v for k, v in GOOD.items() if k != "against"}, ["needs against"]),
        (GOOD | {"metric": "speedup"}, ["needs of and points"]),
        (GOOD | {"metric": "best_rate"}, ["needs rate"]),
        (GOOD | {"against_rate": 1}, ["needs rate"]),
        (GOOD | {"seeds": 5}, ["headline.tests.0.seeds", "list"]),
        (GOOD | {"within": 0.5}, ["headline.tests.0.within"]),
    ],
)
def test_a_mistake_in_the_rules_is_named(tmp_path, capsys, test, words):
    rules = {"seeds": [1], "rates": [1, 0.1], "claims": {}}
    rules["headline"] = {"section": "", "says": "", "parts": [], "tests": [test]}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(rules))
    assert claims.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    for word in ("claims.yaml", *words):
        assert word in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("seeds: [1]", "rates: Field required"), ("[", "is not valid YAML"), ("", "the file: Input should")],
)
def test_a_file_that_holds_no_rules_is_named(tmp_path, capsys, text, words):
    (tmp_path / "claims.yaml").write_text(text)
    assert claims.main([str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert claims.main([str(tmp_path / "none")]) == 2
    assert "There is no" in capsys.readouterr().err


def test_every_sweep_is_drawn_from_its_runs(tmp_path, results, capsys):
    def three(folder, arm, low=80, **how):
        for seed in (1, 2, 3):
            add(tmp_path / folder, arm, seed, [low, 85, 85 + seed], **how)

    for arm, teacher in (("wider", "teacher_narrow"), ("deeper", "standard")):
        for rate in (0.1, 0.3, 1):
            name = arm if rate == 0.1 else f"{arm}_rate_{rate:g}"
            three(sweeps.SHORT, name, rate=rate, final=88 + rate, teacher=teacher)
        three(sweeps.SHORT, f"{arm}_carried", teacher=teacher)
    for arm in ("teacher_narrow", "teacher_narrow_early", "standard"):
        three(sweeps.SHORT, arm, final=86)
    three(sweeps.SHORT, "wider_early", low=70, teacher="teacher_narrow_early")
    for arm in (*sweeps.NOISE, "teacher_narrow_half"):
        three(sweeps.LONG, arm)
    three(sweeps.LONG, "wider_half", teacher="teacher_narrow_half")
    (tmp_path / "out").mkdir()
    sweeps.make(results, tmp_path / "out")
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == set(sweeps.SWEEPS)
    table = pd.read_csv(tmp_path / "out" / "sweeps.csv").set_index(["runs", "arm"])
    assert table.loc[(sweeps.SHORT, "wider_carried"), "final"] == 87
    assert tuple(table.loc[(sweeps.SHORT, "wider_carried"), ["final_low", "final_high"]]) == (86, 88)
    assert "not drawn" not in capsys.readouterr().err

    gains = sweeps.draw("sweep_rate", results).axes[0].lines[0]
    assert list(gains.get_xdata()) == [0.1, 0.3, 1]
    assert list(gains.get_ydata()) == pytest.approx([2.1, 2.3, 3])  # over the teacher's 86
    grown = {line.get_label(): line for line in sweeps.draw("sweep_when", results).axes[0].lines}[
        "after 400, from 1/10"
    ]
    assert list(grown.get_xdata()) == [200, 300, 400]  # behind the 200 of its teacher
    assert list(grown.get_ydata()) == [70, 85, 87]
    shutil.rmtree(tmp_path / sweeps.SHORT / "teacher_narrow_early")
    with pytest.raises(Problem, match="has no finished teacher"):
        sweeps.draw("sweep_when", Results(tmp_path))


def test_what_was_not_run_is_not_drawn(tmp_path, results, capsys):
    sweeps.make(results, tmp_path)
    assert capsys.readouterr().err.count("not drawn") == len(sweeps.SWEEPS)
    assert not list(tmp_path.glob("*.png"))


def test_the_committed_tables_are_those_of_the_committed_runs_and_need_no_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from figures.claims import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(ROOT / "results"), "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    tables = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".md"))
    assert tables == ["claims.csv", "claims.md", "contrasts.csv", "pace.csv", "sweeps.csv"]
    for name in tables:
        assert (tmp_path / name).read_text() == (ROOT / "results" / "figures" / name).read_text(), name
