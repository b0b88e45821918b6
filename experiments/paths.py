"""Paths as people write them, in configs and on command lines."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path


class PathError(ValueError):
    """A path that stands for none; the message says why and what to do."""


def expanded(text: str | Path) -> Path:
    """A path with `~` and `$VAR` replaced by what they stand for, here and now: nothing that is recorded is."""
    text = str(text)
    if not text.strip() or "\0" in text:
        raise PathError(f"expected a path, got {text!r}")
    words = os.path.expanduser(text)

    def value(name: re.Match) -> str:
        name = name[1] or name[2]
        if not os.environ.get(name):
            raise PathError(f"{text}: the variable ${name} is not set here: set it, or write the path out")
        return os.environ[name]

    return Path(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, words))


def to_path(text: str) -> Path:
    """`expanded` as a type for argparse: the shell leaves `--out=~/x` as it is."""
    try:
        return expanded(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_folder(text: str) -> Path:
    """`to_path` of a folder, which may be there or not yet."""
    path = to_path(text)
    for place in (path, *path.parents):
        if place.is_file():
            raise argparse.ArgumentTypeError(f"expected a folder, {place} is a file")
    return path
