"""The README: its code runs, its numbers are those of the committed results."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results" / "laptop"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_code_runs_and_the_certificate_holds(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    relative = float(re.search(r"relative ([\d.e+-]+)", capsys.readouterr().out)[1])
    assert relative < 1e-5


def test_the_table_of_results_is_that_of_the_committed_runs():
    found = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert {arm for arm, *_ in found} == {path.name for path in RESULTS.iterdir()}
    for arm, steps, start, end in found:
        with (RESULTS / arm / "seed0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows[-1]["step"] == steps
        assert f"{100 * float(rows[0]['val_top1']):.1f}" == start
        assert f"{100 * float(rows[-1]['val_top1']):.1f}" == end


def test_every_file_and_command_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / script).exists(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
