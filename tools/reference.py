"""Write docs/library.md: the library's public names with their docstrings.

python tools/reference.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import net2net

PAGE = Path(__file__).resolve().parents[1] / "docs" / "library.md"
GROUPS = {
    "Growing": ("widen", "deepen", "Layer", "Maxout", "random_pad"),
    "Looking": ("explain", "Explanation", "verify", "Certificate", "summary", "Summary"),
    "Going on": ("grow_optimizer", "history", "replay", "save_weights", "load_weights", "load_record"),
    "Operations of one's own, and errors": ("register_rule", "GrowthError", "UnsupportedOperation"),
}


def page() -> str:
    left = sorted(name for name in net2net.__all__ if not name.startswith("__"))
    lines = [
        "# The library",
        "",
        "Written from the docstrings by `python tools/reference.py`; a test compares. The methods are explained in",
        "[Net2WiderNet](net2wider.md) and [Net2DeeperNet](net2deeper.md), loops in [training](training.md),",
        "`register_rule` in [rules](rules.md).",
    ]
    for title, names in GROUPS.items():
        lines += ["", f"## {title}"]
        for name in names:
            left.remove(name)
            lines += ["", f"### {name}", "", "```text", _signature(name), "", _text(name), "```"]
    if left:
        raise SystemExit(f"tools/reference.py: {', '.join(left)} is in no group of the page")
    return "\n".join(lines) + "\n"


def _signature(name: str) -> str:
    found = getattr(net2net, name)
    if inspect.isclass(found) and issubclass(found, Exception):
        return f"{name}({found.__mro__[1].__name__})"
    signature = inspect.signature(found)
    written = [re.sub(r"ForwardRef\('(.*)'\)", r"\1", str(p)) for p in signature.parameters.values()]
    parameters = [each.replace("'", "") for each in written]
    keywords = [p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()]
    if any(keywords):
        parameters.insert(keywords.index(True), "*")
    returned = "" if inspect.isclass(found) else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(parameters)}){returned}"
    return line if len(line) <= 110 else "\n    ".join([f"{name}(", *(f"{p}," for p in parameters)]) + f"\n){returned}"


def _text(name: str) -> str:
    return textwrap.dedent(inspect.getdoc(getattr(net2net, name)) or "").rstrip()


if __name__ == "__main__":
    PAGE.write_text(page())
