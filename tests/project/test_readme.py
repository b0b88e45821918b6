"""The README: its code runs, its numbers are those of the committed results."""

import re
from pathlib import Path

import pytest
from finished import add

from figures.curves import Problem
from figures.documents import documents, readme, replication, study

ROOT = Path(__file__).resolve().parents[2]
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
    assert "| `wider` | 80.00 | 90.00 [89.00, 91.00] |" in study(text.format("wider"), tmp_path)
    with pytest.raises(Problem, match="has a row for deeper"):
        study(text.format("deeper"), tmp_path)


def test_every_file_and_command_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / script).exists(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
