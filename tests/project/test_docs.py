"""The library's pages: their code runs, block after block, and their commands and links exist."""

import re
import shlex
import sys
import types

import pytest
from places import ROOT, script

from net2net import rules
from net2net.__main__ import _parser

DOCS = ROOT / "docs"
CARDS = sorted(DOCS.glob("net2*.md"))
PAGES = [*CARDS, DOCS / "rules.md", DOCS / "training.md"]


@pytest.mark.parametrize("card", PAGES, ids=lambda path: path.stem)
def test_the_code_runs(card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "RULES", rules.RULES.copy())
    module = types.ModuleType("page")  # timm's register_model looks for it
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    for code in re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL):
        exec(compile(code, card.name, "exec"), names)
    errors = [float(x) for x in re.findall(r"relative ([\d.e+-]+)", capsys.readouterr().out)]
    assert errors
    assert max(errors) < 1e-5


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_its_commands_exist(card):
    commands = re.findall(r"^python -m net2net (.*)$", card.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("page", [*PAGES, DOCS / "library.md"], ids=lambda path: path.stem)
def test_its_links_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (DOCS / target).exists(), target


def test_the_reference_is_that_of_the_docstrings():
    reference = script("tools", "reference.py")
    assert reference.PAGE.read_text() == reference.page(), "python tools/reference.py writes it anew"
