"""The benchmark scripts run, and the numbers in the docs are those of the committed tables."""

import csv

from places import ROOT, script

COVERAGE = (ROOT / "docs" / "coverage.md").read_text()


class Sent(list):
    send = list.extend


def test_coverage_measures_a_model_and_says_why_another_was_not_tried(monkeypatch):
    coverage, rows = script("bench", "coverage.py"), Sent()
    coverage.send_rows(coverage.measure, "torchvision:shufflenet_v2_x0_5", rows, max_params=100)
    assert [row["factor"] for row in rows] == [1.5, 2.0]
    for row in rows:
        assert row["kind"] == "batch-norm convolutional"
        assert row["grew"] > 10
        assert coverage.preserved(row)
    larger = Sent()
    coverage.send_rows(coverage.measure, "torchvision:shufflenet_v2_x0_5", larger, max_params=1)
    assert all(row["grew"] > 10 and "dtype" not in row for row in larger)
    broken = Sent()
    coverage.send_rows(coverage.measure, "torchvision:no_such_model", broken, max_params=100)
    assert "no_such_model" in broken[0]["reason"]


def test_of_what_was_measured_again_the_last_counts(tmp_path):
    file = tmp_path / "table.csv"
    died = "b,,,the process died (exit code -9)\nc,,,TypeError: no\n"
    file.write_text(f"model,factor,grew,reason\na,2.0,1,\n{died}b,2.0,5,\na,2.0,3,\n")
    rows = script("bench", "coverage.py").table(file)
    assert [(row["model"], row["grew"]) for row in rows] == [("a", "3"), ("b", "5"), ("c", "")]


def test_coverage_tries_what_users_of_timm_do_next(monkeypatch):
    coverage, rows = script("bench", "coverage.py"), Sent()
    coverage.send_rows(coverage.measure_heads, "timm:test_byobnet", rows, max_params=100)
    assert [row["factor"] for row in rows] == [1.5, 2.0]
    assert all(row[check] == "yes" for row in rows for check in coverage.HEADS)
    monkeypatch.setattr("net2net.growth.Growth.noting", lambda growth, numbers, unclear: growth)  # nothing follows
    broken = Sent()
    coverage.send_rows(coverage.measure_heads, "timm:test_byobnet", broken, max_params=100)
    assert all(broken[0][check] != "yes" for check in ("num_features", "forward_intermediates", "reset_classifier"))
    assert "num_features: False for True" in coverage._said(broken[0])


def test_the_docs_say_of_how_many_families_students_timms_methods_work():
    coverage = script("bench", "coverage.py")
    assert coverage.heads_summary(ROOT / "results" / "heads.csv") in COVERAGE
    assert len({row["family"] for row in coverage.table(ROOT / "results" / "heads.csv") if row["params_after_m"]}) >= 30


def test_a_student_that_moved_would_count_as_such():
    coverage = script("bench", "coverage.py")
    row = {"error_eval": "1e-7", "error_train": "2e-5", "dtype": "float32"}
    assert not coverage.preserved(row)
    assert coverage.preserved(row | {"error_train": "9e-6"})
    assert not coverage.preserved(row | {"dtype": "float64"})
    assert not coverage.preserved(row | {"error_train": "nan"})


def test_the_docs_have_the_totals_of_the_committed_table():
    table = script("bench", "coverage.py").summary(ROOT / "results" / "coverage.csv")
    assert table in COVERAGE
    rows = [[int(cell.split()[0]) for cell in line.split("|")[2:4]] for line in table.splitlines()[2:4]]
    tried, grow = (sum(column) for column in zip(*rows, strict=True))
    assert f"{grow:,} of the {tried:,} models of timm and torchvision" in (ROOT / "README.md").read_text()


def test_the_docs_have_the_networks_of_other_packages():
    coverage = script("bench", "coverage.py")
    table = coverage.others_summary(ROOT / "results" / "others.csv")
    assert table in COVERAGE
    *_, networks, grow, _, _ = table.splitlines()[-1].split("|")
    assert int(networks) >= 60
    assert int(grow.split()[0]) >= 0.9 * int(networks)
    for row in coverage.table(ROOT / "results" / "others.csv"):
        errors = [float(row[key]) for key in ("error_eval", "error_train") if row[key]]
        assert all(error <= coverage.LIMITS[row["dtype"]] for error in errors), row


def test_the_docs_have_the_times_of_the_committed_table():
    with (ROOT / "results" / "bench" / "transform.csv").open() as file:
        for row in csv.DictReader(file):
            assert f"| {row['model']} | {row['operations']} | {row['widen_ms']} |" in COVERAGE
