"""The README: its code runs, its numbers are those of the committed results."""

import re

import pytest
from finished import add
from places import ROOT

from figures.curves import Problem
from figures.documents import documents, numbers, readme, replication, study, sweeps

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_code_runs_and_the_certificate_holds(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    relative = float(re.search(r"relative ([\d.e+-]+)", capsys.readouterr().out)[1])
    assert relative < 1e-5


@pytest.mark.parametrize("file", documents(ROOT), ids=lambda file: str(file.relative_to(ROOT)))
def test_the_numbers_are_those_of_the_committed_results(file):
    assert file.read_text() == documents(ROOT)[file](file.read_text())


def test_a_table_is_filled_in_from_the_runs(tmp_path):
    for seed, last in ((1, 90), (2, 92)):
        add(tmp_path / "long", "wider", seed, [80, last], final=last + 1)
    add(tmp_path / "long", "standard", 1, [10, 91], final=90)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "verdicts.md").write_text("| verdict |\n")
    filled = readme("b\n<!-- verdicts -->\n<!-- /verdicts -->\nc\n", tmp_path)
    assert filled == "b\n<!-- verdicts -->\n| verdict |\n<!-- /verdicts -->\nc\n"
    assert readme(filled, tmp_path) == filled
    filled = replication("a\n<!-- arms -->\n| `wider` | old |\n<!-- /arms -->\nb\n", tmp_path)
    assert "| `standard` | 100 | 10.0 | 91.0 | 90.0 | 1 | 0.35 M |\n" in filled
    assert "| `wider` | 100 | 80.0 ± 0.0 | 91.0 ± 1.4 | 92.0 ± 1.4 | 2 | 0.35 M |\n<!-- /arms -->\nb" in filled
    with pytest.raises(Problem, match="no table between <!-- verdicts -->"):
        readme("a", tmp_path)


def test_an_arm_of_the_study_that_was_not_run_is_named(tmp_path):
    (tmp_path / "figures").mkdir()
    columns = "runs,arm,start,final,final_low,final_high\nheld,wider,80,90,89,91\n"
    (tmp_path / "figures" / "sweeps.csv").write_text(columns)
    text = "<!-- rate: held -->\n| `{}` | old |\n<!-- /rate -->\n"
    assert "| `wider` | 80.00 | 90.00 [89.00, 91.00] |" in sweeps(text.format("wider"), tmp_path)
    with pytest.raises(Problem, match="has a row for deeper"):
        sweeps(text.format("deeper"), tmp_path)


def test_the_numbers_of_a_sentence_are_filled_in_from_the_runs(tmp_path):
    for seed in (1, 2):
        add(tmp_path / "long", "wider", seed, [80, 90], final=90 + seed)
        add(tmp_path / "long", "standard", seed, [10, 90], final=90.5)
    add(tmp_path / "long", "wider", 6, [80, 90], final=70)  # not of the seeds that all arms have
    text = "Ends at <!--final long: wider-->?<!--/--> %, <!--final long: wider - standard-->?<!--/--> points above."
    filled = numbers(text, tmp_path)
    assert "-->91.50 (n = 2)<!--/--> %, " in filled
    assert "-->+1.00 [-5.35, +7.35] (n = 2)<!--/--> points" in filled
    assert numbers(filled, tmp_path) == filled
    assert "-->not run<!--/-->" in numbers("<!--final long: deeper-->91.50<!--/-->", tmp_path)
    assert "-->-0.50 (n = 1)<!--/-->" in numbers("<!--start long: wider_2 - standard-->?<!--/-->", _one_more(tmp_path))


def _one_more(results):
    add(results / "long", "wider_2", 1, [89.5, 90])
    return results


def test_how_soon_each_arm_arrives_is_filled_in(tmp_path):
    (tmp_path / "figures").mkdir()
    head = "arm,against,level,seeds,both_reached,ratio_steps,ratio_operations,ratio_operations_with_teacher\n"
    rows = "wider,standard,converged - 1 points,5,5,4,3.96,1.5\nwider,standard,50 % of the way,5,5,9,9,9\n"
    (tmp_path / "figures" / "pace.csv").write_text(head + rows + "deeper,standard,converged - 1 points,5,3,,,\n")
    filled = study("<!-- pace -->\n<!-- /pace -->\n", tmp_path)
    assert filled.count("\n") == 6
    assert "| `wider` | `standard` | 4.0× | 4.0× | 1.5× | 5 |\n" in filled
    assert "| `deeper` | `standard` | not all arrive: 3 of 5 |  |  | 5 |\n" in filled


def test_every_file_and_command_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / script).exists(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
