"""Where the checkout is, for tests that read its files or run its commands."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"


def script(*parts):
    """A script of the checkout as a module of its own, e.g. script("bench", "train.py")."""
    spec = importlib.util.spec_from_file_location("_".join(parts).removesuffix(".py"), ROOT.joinpath(*parts))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
