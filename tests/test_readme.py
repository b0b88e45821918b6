"""The README: its code runs, its numbers are those of the committed results."""

import re
from pathlib import Path

import pandas as pd
import pytest

from figures.curves import read_seeds

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
STUDY = (ROOT / "docs" / "study.md").read_text()
FIGURES = ROOT / "results" / "figures"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_code_runs_and_the_certificate_holds(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    relative = float(re.search(r"relative ([\d.e+-]+)", capsys.readouterr().out)[1])
    assert relative < 1e-5


def test_the_table_of_results_is_that_of_the_committed_runs():
    number = r"([\d.]+) ± ([\d.]+) \| "
    found = re.findall(rf"^\| `(\w+)` \| (\d+) \| {number * 3}", README, re.MULTILINE)
    assert len(found) == 8
    for arm, steps, *numbers in found:
        runs = list(read_seeds(ROOT / "results" / "laptop" / arm).values())
        assert {run.rows.step.iloc[-1] for run in runs} == {int(steps)}
        columns = ([run.rows.val.iloc[i] for run in runs] for i in (0, -1))
        every = [pd.Series(column) for column in (*columns, [100 * run.info["result"]["all_val_top1"] for run in runs])]
        assert numbers == [f"{value:.1f}" for column in every for value in (column.mean(), column.std())], arm


def test_the_table_of_claims_is_the_one_that_make_claims_writes():
    table = re.search(r"<!-- claims -->\n(.*?)<!-- /claims -->", README, re.DOTALL)[1]
    assert table == (FIGURES / "claims.md").read_text()


def test_the_studys_table_of_sweeps_is_that_of_the_committed_runs():
    sweeps = pd.read_csv(FIGURES / "sweeps.csv").set_index(["runs", "arm"])
    found = re.findall(r"^\| `([\w.]+)` \| ([\d.]+) \| ([\d.]+) \[([\d.]+), ([\d.]+)\]", STUDY, re.MULTILINE)
    for arm, *numbers in found:
        rows = [row for (_, name), row in sweeps.iterrows() if name == arm]
        wanted = [[f"{row[key]:.2f}" for key in ("start", "final", "final_low", "final_high")] for row in rows]
        assert numbers in wanted, arm
    assert len(found) >= 8


def test_every_file_and_command_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / script).exists(), script
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
