"""The record of what was done to a model, which travels with it as plain data."""

from __future__ import annotations

import copy
import json
from typing import Any

from torch import nn

from net2net.growth import growth_of
from net2net.recording import submodules, unwrapped

# Of a model that is given as a student's teacher.
GROWN_AS_FAR = "is the student itself, or has been grown as far"


def remember(model: nn.Module, entry: dict[str, Any]) -> None:
    """Append to the record of what was done to a model; see `history`. It is read back first, as `replay` will."""
    if entry["op"] in ("widen", "random_pad"):
        growth_of(json.loads(json.dumps(entry)))
    for _, module in submodules(model):  # what was done to a part of it before says nothing of that part now
        if module is not model:
            vars(module).pop("net2net_history", None)
    model.net2net_history = [*copy.deepcopy(history(model)), entry]


def history(model: nn.Module) -> list[dict[str, Any]]:
    """What this package did to a model, oldest first: a list of plain dicts that JSON can hold."""
    return getattr(unwrapped(model), "net2net_history", [])
