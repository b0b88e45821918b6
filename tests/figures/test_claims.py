"""Verdicts, intervals and sweeps, from small CSV files whose numbers are worked out by hand."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from finished import add, changed
from places import ROOT
from scipy import stats

from experiments import SPARE, looks
from figures import claims, documents, evidence, judging, metrics, sweeps
from figures.curves import Problem, Results
from figures.judging import Arms, verdict
from figures.metrics import Estimate, arrival, estimate, speedup
from figures.pace import contrasts, pace
from figures.rules import Rule, Rules

CLAIM = {"section": "", "says": "", "shows": "", "tests": [{"metric": "final", "arm": "a", "against": "b", "above": 0}]}
RULES = {"runs": "r", "chosen_on": "held", "rates": [1, 0.3, 0.1], "seeds": [1, 2, 3], "claims": {}, "headline": CLAIM}


def judge(test, seeds, results):
    return judging.judge(Rule.model_validate(test), seeds, Arms(Rules.model_validate(RULES), results))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_interval_is_students():
    found = estimate([0.3, -1.0, 2.5, 0.7, 0.1])
    assert found.mean == pytest.approx(0.52)
    reach = 2.7764 * np.std([0.3, -1.0, 2.5, 0.7, 0.1], ddof=1) / 5**0.5  # t of 4 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.52 - reach, 0.52 + reach), abs=1e-4)
    assert (estimate([1.0]).low, estimate([1.0]).high) == (-np.inf, np.inf)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_nineteen_of_twenty_intervals_contain_the_mean(seeds):
    drawn = np.random.default_rng(0).normal(size=(2000, seeds))
    within = [found.low <= 0 <= found.high for found in map(estimate, drawn.tolist())]
    assert np.mean(within) == pytest.approx(0.95, abs=0.015)


def test_ratios_are_averaged_geometrically():
    found = estimate([1.0, 4.0, 16.0], ratio=True)
    assert found.mean == pytest.approx(4)
    assert found.low * found.high == pytest.approx(16)
    with pytest.raises(ValueError, match="at least one seed"):
        estimate([])


def test_where_a_curve_ends_is_the_mean_of_its_last_tenth(tmp_path):
    run = add(tmp_path, "a", 1, [10, *range(60, 78), 80, 82])  # every 100 to 2,000: the last two lie above 1,800
    assert metrics.converged(run) == 81
    assert metrics.converged(add(tmp_path, "b", 1, [10, 90])) == 90


def test_arrivals_and_speedups_by_hand(tmp_path):
    student = add(tmp_path, "student", 1, [88, 87, 89, 90])
    scratch = add(tmp_path, "scratch", 1, [10, 80, 88, 89])
    assert arrival(scratch, 88) == 200
    assert arrival(scratch, 88, "images") == 200 * 128
    assert arrival(scratch, 89.5) == np.inf
    assert arrival(student, 88) == 100  # there at step 0: one interval
    assert speedup(student, scratch, 88) == 2
    assert speedup(student, scratch, 90) == 1  # scratch never: all of its 300
    assert speedup(scratch, student, 87.5) == 0.5
    assert speedup(scratch, student, 90) == 1  # the arm never: all of its 300 ...
    assert not metrics.arrived(scratch, 90)  # ... which is told
    assert metrics.area(scratch, 200) == pytest.approx((45 + 84) / 2)
    assert (metrics.start(student), metrics.last(student), metrics.final(student)) == (88, 90, 90)
    assert metrics.operations(student) == 10 * 300 * 128


def test_differences_are_of_the_same_seed(tmp_path, results):
    for seed, level in ((1, 80), (2, 85), (3, 90)):
        add(tmp_path / "r", "a", seed, [level, level + 1], final=level + 1.5)
        add(tmp_path / "r", "b", seed, [10, level], final=level)
    test = {"metric": "final", "arm": "a", "against": "b", "above": 1.4}
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
    test = Rule(metric="final", arm="a", against="b", **rule)
    assert judging._state(test, found and Estimate(*found, 5))[1] == state


def test_a_claim_needs_all_its_tests():
    def of(*states):
        return verdict(
            [judging.Outcome("", "", "", "", "", None, None, None, 0, None, None, 5, state) for state in states]
        )

    assert of("holds", "holds") == "yes"
    assert of("holds", "refuted", "not run") == "no"
    assert of("holds", "not shown") == of("holds", "not run") == "in part"
    assert of("not shown", "not run") == "not shown"
    assert of("not run", "not run") == "not run"
    assert of("not run", "unfinished") == "unfinished"
    assert of("holds", "unfinished") == "in part"


def test_an_arm_that_was_not_run_decides_nothing(results):
    assert judge({"metric": "final", "arm": "a", "against": "b", "above": 0}, [1, 2, 3], results).state == "not run"


def test_three_seeds_of_five_decide_nothing_yet(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 90])
        add(tmp_path / "r", "b", seed, [10, 80])
    test = {"metric": "final", "arm": "a", "against": "b", "above": 0}
    assert judge(test, [1, 2, 3], results).state == "holds"
    outcome = judge(test, [1, 2, 3, 4, 5], results)
    assert (outcome.state, outcome.found.mean, outcome.found.n) == ("unfinished", 10, 3)


def test_what_function_preservation_alone_would_be_given(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "student", seed, [80, 88, 92])
        add(tmp_path / "r", "scratch", seed, [10, 70, 80])
    test = {"metric": "area", "arm": "student", "against": "scratch", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    assert (outcome.found.mean, outcome.frozen) == (pytest.approx(87 - 57.5), pytest.approx(80 - 57.5))
    speed = {**test, "metric": "speedup", "of": "scratch", "points": -5, "above": 1}  # to 85
    outcome = judge(speed, [1, 2, 3], results)
    assert (outcome.found.mean, outcome.arrived) == (pytest.approx(2), 3)
    assert outcome.frozen == pytest.approx(1)  # it never arrives: all of its mini-batches


def test_what_a_decision_would_take(tmp_path, results):
    for seed, gain in {1: 0.9, 2: -0.3, 3: 0.6}.items():  # mean 0.4, standard deviation 0.6245
        add(tmp_path / "r", "teacher", seed, [10, 70, 80])  # 2.5 seconds
        for arm, final in (("a", 80 + gain), ("b", 80)):
            add(tmp_path / "r", arm, seed, [80] * (1 + seed), final=final, teacher="teacher")  # from 1.5 seconds
    test = {"metric": "final", "arm": "a", "against": "b", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    reach = {n: stats.t.ppf(0.975, n - 1) * 0.6245 / n**0.5 for n in (11, 12)}
    assert reach[11] > 0.4 > reach[12]
    assert (outcome.state, outcome.takes) == ("not shown", 12)
    assert outcome.hours * 3600 == pytest.approx(1.5 + 1.5 + 2.5)  # of the seed that took least; the teacher once

    tests = [test, test | {"above": 0.41}, test | {"above": -9}]
    of = Rules.model_validate(RULES | {"headline": CLAIM | {"tests": tests}})
    rows = claims.table(judging.evaluate(of, results))
    rows.core_hours *= 3600
    assert [claims.price(row) for row in rows.itertuples()] == ["12 seeds, 49.5 h", "over 200 seeds, 1084 h", ""]
    rows = claims.table(judging.evaluate(of.model_copy(update={"seeds": [1, 2, 3, 4]}), results))
    assert (rows.test[0], rows.takes[0]) == ("unfinished", 4)


def test_an_unfinished_run_decides_nothing(tmp_path, results, capsys):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 90], status="running" if seed == 3 else "finished")
    assert sorted(results.arm("r", "a")) == [1, 2]


def grid(root, arm, own, finals, seeds=(1, 2, 3)):
    """An arm at the rates of the grid: `finals` by rate; its own has the arm's name."""
    for rate, final in finals.items():
        for seed in seeds:
            add(root, arm if rate == own else f"{arm}_rate_{rate:g}", seed, [80, 85], final=final + seed, rate=rate)


def test_the_best_rate_is_chosen_on_held_out_images_and_judged_on_others(tmp_path, results):
    grid(tmp_path / "held", "a", 0.1, {1: 80, 0.3: 82, 0.1: 81})
    grid(tmp_path / "r", "a", 0.1, {1: 90, 0.3: 70, 0.1: 75})
    grid(tmp_path / "r", "b", 1, {1: 71})
    test = {"metric": "final", "arm": "a@best", "against": "b", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    assert outcome.found.mean == pytest.approx(-1)
    assert outcome.arm == "a at its best rate (0.3)"
    other = judge({**test, "arm": "a", "against": "a@other"}, [1, 2, 3], results)
    assert (other.found.mean, other.against) == (pytest.approx(5), "a at its best other rate (0.3)")


def test_the_best_other_rate_is_not_the_arms_own(tmp_path, results):
    grid(tmp_path / "held", "a", 0.1, {1: 80, 0.3: 82, 0.1: 83})
    grid(tmp_path / "r", "a", 0.1, {1: 90, 0.3: 70, 0.1: 75})
    test = {"metric": "final", "arm": "a", "against": "a@other", "above": 0}
    assert judge(test, [1, 2, 3], results).found.mean == pytest.approx(5)
    assert judge({**test, "arm": "a@best", "against": "a"}, [1, 2, 3], results).found.mean == 0


def test_the_long_scales_config_says_the_best_rates():
    said = re.search(r"#   (\{.*?\})", (ROOT / "configs/long/base.yaml").read_text(), re.DOTALL)[1].replace("\n#", "")
    arms = Arms(claims.rules.read(ROOT / "results/claims.yaml"), Results(ROOT / "results"))
    assert {arm: arms.chosen(arm) for arm in yaml.safe_load(said)} == yaml.safe_load(said)


@pytest.mark.parametrize(("rates", "seeds"), [({1: 80, 0.1: 81}, (1, 2, 3)), ({1: 80, 0.3: 82, 0.1: 81}, (1, 2))])
def test_a_grid_that_is_not_whole_chooses_nothing(tmp_path, results, rates, seeds):
    grid(tmp_path / "held", "a", 0.1, rates, seeds)
    grid(tmp_path / "r", "a", 0.1, {1: 90, 0.3: 70, 0.1: 75})
    test = {"metric": "final", "arm": "a@best", "against": "a", "above": 0}
    outcome = judge(test, [1, 2, 3], results)
    assert (outcome.state, outcome.arm) == ("not run", "a at its best rate (not chosen yet)")


def test_a_control_is_the_teacher_trained_on_at_the_arms_rate(tmp_path, results):
    def control(name, rate, final):
        for seed in (1, 2, 3):
            run = add(tmp_path / "r", name, seed, [80, 85], final=final, rate=rate, teacher="t")
            changed(run.folder, lambda info: info["config"].update({"growth.method": "continue"}))

    control("t_continued", 0.1, 84)
    control("t_again", 1, 86)
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 85], final=87, rate=0.1, teacher="t")
        add(tmp_path / "r", "b", seed, [80, 85], final=87, rate=1, teacher="t")
        add(tmp_path / "r", "c", seed, [80, 85], final=87, rate=0.3, teacher="t")
    test = {"metric": "final", "arm": "a", "against": "control", "above": 0}
    for arm, against, gain in (("a", "t_continued", 3), ("b", "t_again", 1)):
        outcome = judge({**test, "arm": arm}, [1, 2, 3], results)
        assert (outcome.against, outcome.found.mean) == (against, gain)
    outcome = judge({**test, "arm": "c"}, [1, 2, 3], results)
    assert (outcome.against, outcome.state) == ("t, trained on at rate 0.3", "not run")


def test_an_arm_that_never_arrives_in_one_seed_is_not_shown_to_be_faster(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "b", seed, [10, 40, 60, 80, 90], rate=1)
        add(tmp_path / "r", "a", seed, [88, 89 + (seed < 3), 89 + (seed < 3), 89, 89], teacher="t")
        add(tmp_path / "r", "t", seed, [10, 40, 60, 80, 88])
    test = {"metric": "speedup", "arm": "a", "against": "b", "of": "b", "points": 0, "above": 0.01}
    outcome = judge(test, [1, 2, 3], results)
    assert (outcome.state, outcome.arrived, outcome.takes) == ("not shown", 2, None)
    halfway = judge({k: v for k, v in test.items() if k != "points"} | {"way": 0.5}, [1, 2, 3], results)
    assert (halfway.state, halfway.arrived, halfway.found.mean) == ("holds", 3, pytest.approx(4))  # 89 %


def test_a_rate_is_read_from_an_arm_of_that_name_alone(tmp_path, results):
    add(tmp_path / "r", "a", 1, [80, 88], rate=0.1)
    add(tmp_path / "r", "a_rate_0.3_fast", 1, [80, 99], rate=0.3)
    assert set(results.rates("r", "a")) == {0.1}
    add(tmp_path / "s", "a", 1, [80, 88], rate=0.1)
    add(tmp_path / "s", "a_rate_0.3", 1, [80, 99], rate=0.1)
    with pytest.raises(Problem, match="have the same rate"):
        results.rates("s", "a")


def test_the_pace_counts_operations_with_and_without_the_teachers(tmp_path, results):
    root = tmp_path / "r"
    for seed in (1, 2, 3):
        add(root, "teacher_narrow", seed, [10, 80, 86], flops=2e9)
        add(root, "standard", seed, [10, 80, 86.5, 87, 88], flops=5e9)
        add(root, "wider", seed, [86, 87, 88], flops=4e9, teacher="teacher_narrow")
    table = pace(Rules.model_validate(RULES), results).set_index("level")
    half = table.loc["50 % of the way"]  # 87
    assert (half.arm_steps, half.against_steps, half.arm_images) == (100, 300, 12800)
    assert half.against_teraflop == pytest.approx(5e9 * 300 * 128 / 1e12)
    assert half.arm_teraflop == pytest.approx(4e9 * 100 * 128 / 1e12)
    assert half.arm_and_teacher_teraflop == pytest.approx((4e9 * 100 + 2e9 * 200) * 128 / 1e12)
    assert (half.ratio_steps, half.ratio_operations) == (3, 3.75)
    assert half.ratio_operations_with_teacher == pytest.approx(5 * 300 / (4 * 100 + 2 * 200), abs=1e-4)
    assert table.loc["converged - 0 points"].arm_steps == 200
    assert (half.both_reached, half.seeds) == (3, 3)


def test_contrasts_are_of_the_same_seed(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "laptop-1000", "wider", seed, [80, 85], final=85 + seed)
        add(tmp_path / "laptop-1000", "wider_best", seed, [80, 85], final=85.5 + 2 * seed)
    (row,) = contrasts(results).to_dict("records")
    assert (row["mean"], row["n"]) == (2.5, 3)
    assert (row["arm"], row["against"]) == ("wider_best", "wider")


GOOD = {"metric": "final", "arm": "a", "against": "b", "above": 0}


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (GOOD | {"metric": "speed"}, ["headline.tests.0.metric", "'final'"]),
        (GOOD | {"targt": 4}, ["headline.tests.0.targt", "not permitted"]),
        (GOOD | {"below": 1}, ["one of above, below and within"]),
        ({k: v for k, v in GOOD.items() if k != "above"}, ["one of above, below and within"]),
        ({k: v for k, v in GOOD.items() if k != "against"}, ["headline.tests.0.against"]),
        (GOOD | {"metric": "speedup"}, ["needs `of` and one of way and points"]),
        (GOOD | {"metric": "speedup", "of": "a", "way": 0.5, "points": 1.0}, ["one of way and points"]),
        (GOOD | {"points": 1.0}, ["are for a speedup"]),
        (GOOD | {"of": "a"}, ["are for a speedup"]),
        ({**{k: v for k, v in GOOD.items() if k != "above"}, "below": 0, "target": 3}, ["for a test with above"]),
        (GOOD | {"arm": "a@worst"}, ["headline.tests.0.arm", "pattern"]),
        (GOOD | {"within": 0.5}, ["headline.tests.0.within"]),
    ],
)
def test_a_mistake_in_the_rules_is_named(tmp_path, capsys, test, words):
    rules = RULES | {"headline": CLAIM | {"tests": [test]}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(rules))
    assert claims.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    for word in ("claims.yaml", *words):
        assert word in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("value", [None, "many", [], "gone"])
@pytest.mark.parametrize("key", ["all_val_top1", "training_flops_per_image"])
def test_a_run_that_lacks_a_number_is_named(tmp_path, results, capsys, key, value):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(RULES))
    runs = {arm: [add(tmp_path / "r", arm, seed, [80, 85]) for seed in (1, 2, 3)] for arm in ("a", "b", "standard")}

    def change(info):
        section = info["result"] if key == "all_val_top1" else info
        section[key] = value
        if value == "gone":
            del section[key]

    changed(runs["a" if key == "all_val_top1" else "standard"][1].folder, change)
    assert claims.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert f'seed2/run.json has no "{key}"' in printed
    assert "train this run again" in printed
    assert printed.count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_named(tmp_path, capsys):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / "out").write_text("a file")
    assert claims.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: Cannot write into {tmp_path / 'out'}: File exists.\n"


def test_the_verdicts_are_drawn_and_told_in_a_line_each(tmp_path, results):
    for seed in (1, 2, 3):
        add(tmp_path / "r", "a", seed, [80, 85], final=85 + seed / 10)
        add(tmp_path / "r", "b", seed, [80, 85], final=84)
        add(tmp_path / "r", "standard", seed, [10, 85], rate=1)
        add(tmp_path / "r", "wider", seed, [85, 86], teacher="standard")
    tests = [GOOD, GOOD | {"above": 2}, GOOD | {"metric": "area"}, GOOD | {"metric": "train_area"}]
    of = Rules.model_validate(RULES | {"claims": {"x": CLAIM | {"says": "it grows", "tests": tests}}})
    rows = claims.table(judging.evaluate(of, results))
    line = claims.verdicts(rows).splitlines()[2]
    assert line.startswith("| **x** it grows () | **no**: 1 ✓, 1 ✗, 2 – | final: a against b | +1.20 [")
    assert line.endswith("| > 2 |")  # the test that refutes it
    figure = evidence.forest(rows)
    labels, of_areas = ([text.get_text() for text in ax.get_yticklabels()] for ax in figure.axes[:2])
    assert labels == ["x   a – b", "x   a – b", "headline   a – b"]
    assert of_areas == ["x   a – b", "x   a – b (training)"]
    (mean,) = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0]][:1]
    assert mean.get_xdata() == pytest.approx([1.2])
    refuted = [line for line in figure.axes[0].lines if line.get_marker() == evidence.STATES["refuted"]["marker"]]
    assert list(refuted[0].get_xdata()) == pytest.approx([1.2])
    spent = evidence.cost(results, "r", of.seeds).axes[0].lines
    assert list(spent[0].get_xdata()) == [0, 10 * 12800 / 1e12]
    assert evidence.cost(results, "none", of.seeds) is None


def test_what_a_test_decides_is_in_no_arms_colour_and_is_seen_on_grey_paper():
    states = [{"mfc": look["color"], **look} for look in evidence.STATES.values()]
    arms = {look.colour.lower() for look in looks().values()} | {colour.lower() for colour in SPARE}
    assert not arms & {look["color"].lower() for look in states}
    assert len({(look["marker"], look["mfc"] == "white") for look in states}) == len(states)


@pytest.mark.parametrize(
    ("text", "words"),
    [("seeds: [1]", "runs: Field required"), ("[", "not valid YAML"), ("", "runs: Field required")],
)
def test_a_file_that_holds_no_rules_is_named(tmp_path, capsys, text, words):
    (tmp_path / "claims.yaml").write_text(text)
    assert claims.main([str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert claims.main([str(tmp_path / "none")]) == 2
    assert "There is no" in capsys.readouterr().err


def told_by_the_sweeps(results):
    """What a reader of the picture alone has to know: of how many seeds, what a bar or band is, and which arm it is."""
    of_arms = {look.colour for look in looks().values()}
    for name, meaning in (("rate", "bars"), ("noise", "bars"), ("optimizer", "band"), ("when", "band")):
        figure = sweeps.draw(f"sweep_{name}", results)
        assert f"{meaning}: " in figure.get_supxlabel()
        for ax, arms in zip(figure.axes, ARMS_OF_PANELS[name], strict=False):
            legend = ax.get_legend()
            texts = [text.get_text() for text in legend.get_texts()] if legend else [ax.get_title(loc="left")]
            assert all("n = 3" in text for text in texts), texts
            assert {line.get_color() for line in ax.lines} & of_arms <= {looks()[arm].colour for arm in arms}
    of_students, of_deeper, _ = sweeps.draw("sweep_rate", results).axes
    assert {ax.get_ylabel() for ax in (of_students, of_deeper)} == {"held-out accuracy, points above the teacher's"}


ARMS_OF_PANELS = {
    "rate": ({"wider", "random_pad"}, {"deeper"}),
    "noise": ({"wider", "narrow_continued"},) * 2,
    "optimizer": ({"wider"}, {"deeper"}),
    "when": ({"wider", "standard", "teacher_narrow"},) * 2,
}


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
    low, high = table.loc[(sweeps.SHORT, "wider_carried"), ["final_low", "final_high"]]
    assert (low, high) == (pytest.approx(87 - 2.48, abs=0.01), pytest.approx(87 + 2.48, abs=0.01))
    assert "not drawn" not in capsys.readouterr().err

    gains = sweeps.draw("sweep_rate", results).axes[0].lines[0]
    assert list(gains.get_xdata()) == [0.1, 0.3, 1]
    assert list(gains.get_ydata()) == pytest.approx([2.1, 2.3, 3])  # over the teacher's 86
    grown = {line.get_label(): line for line in sweeps.draw("sweep_when", results).axes[0].lines}[
        "after 400, from 1/10, n = 3"
    ]
    assert list(grown.get_xdata()) == [200, 300, 400]  # behind the 200 of its teacher
    assert list(grown.get_ydata()) == [70, 85, 87]
    told_by_the_sweeps(results)
    shutil.rmtree(tmp_path / sweeps.SHORT / "teacher_narrow_early")
    with pytest.raises(Problem, match="has no finished teacher"):
        sweeps.draw("sweep_when", Results(tmp_path))


def test_what_was_not_run_is_not_drawn(tmp_path, results, capsys):
    sweeps.make(results, tmp_path)
    assert capsys.readouterr().err.count("not drawn") == len(sweeps.SWEEPS)
    assert not list(tmp_path.glob("*.png"))


def test_the_committed_tables_are_those_of_the_committed_runs_and_need_no_torch(tmp_path):
    code = """
import sys

class NoTorch:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not to be had")

sys.meta_path.insert(0, NoTorch())
from figures.claims import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, str(ROOT / "results"), "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    tables = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".md"))
    assert tables == ["claims.csv", "claims.md", "contrasts.csv", "pace.csv", "sweeps.csv", "verdicts.md"]
    for name in tables:
        assert (tmp_path / name).read_text() == (ROOT / "results" / "figures" / name).read_text(), name


def test_asking_for_help_fills_nothing_in(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("a")
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "documents", lambda root: {root / "README.md": lambda text: "b"})
    for asked, code in ("--help", 0), ("--halp", 2):
        with pytest.raises(SystemExit) as ended:
            documents.main([asked])
        assert ended.value.code == code
    assert "python -m figures.documents" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == "a"
    assert documents.main([]) == 0
    assert (tmp_path / "README.md").read_text() == "b"
