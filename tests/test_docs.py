"""The method cards: their code runs, block after block, and their commands and links exist."""

import re
import shlex
from pathlib import Path

import pytest

from net2net import rules
from net2net.__main__ import _parser

DOCS = Path(__file__).resolve().parents[1] / "docs"
CARDS = sorted(DOCS.glob("net2*.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_the_code_runs(card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    names = {}
    for code in re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL):
        exec(compile(code, card.name, "exec"), names)
    errors = [float(x) for x in re.findall(r"relative ([\d.e+-]+)", capsys.readouterr().out)]
    assert errors
    assert max(errors) < 1e-5


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_its_commands_and_links_exist(card):
    text = card.read_text()
    commands = re.findall(r"^python -m net2net (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command))
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
