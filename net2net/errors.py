"""What this package raises: one sentence that names the layer or operation, what was expected, and what to do."""

from numbers import Integral
from typing import Any


class GrowthError(ValueError):
    """The model cannot be grown as asked."""


class DoesNotRun(GrowthError):
    """A teacher does not run on the inputs that it was given, in the mode that was asked for."""


class UnsupportedOperation(GrowthError):
    """The forward pass uses an operation through which the channels cannot be followed."""


def whole(number: Any, name: str) -> int:
    """The number, if it is an integer; else a `GrowthError` that names the argument."""
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise GrowthError(f"{name} is {number!r}: expected a whole number")
    return int(number)
