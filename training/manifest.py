"""run.json as far as it is read by others than train.py: without torch."""

from __future__ import annotations

from typing import Any


def is_manifest(content: Any) -> bool:
    """Whether it is what train.py writes: a config, and of a finished run its result."""
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        return False
    data, result = content.get("data", {"fingerprint": ""}), content.get("result")
    if not isinstance(data, dict) or not isinstance(data.get("fingerprint"), str):
        return False
    if content.get("status") != "finished":
        return True
    return isinstance(result, dict) and all(is_number(result.get(key)) for key in ("val_top1", "wall_s"))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
