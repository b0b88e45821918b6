"""Random draws: one generator for each purpose and layer."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, purpose: str, name: str) -> torch.Generator:
    """A generator of its own for each draw: asking for one more layer changes no other layer's draw."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
