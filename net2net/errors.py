"""What this package raises: one sentence that names the layer or operation, what was expected, and what to do."""


class GrowthError(ValueError):
    """The model cannot be grown as asked."""


class UnsupportedOperation(GrowthError):
    """The forward pass uses an operation through which the channels cannot be followed."""
