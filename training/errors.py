"""What ends a command with one sentence and without a traceback."""


class UserError(Exception):
    """Something that the user can put right; the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A config file or an override is wrong; the message names it, the key, what was expected and what was found."""


class DataError(UserError):
    """The data is absent or damaged."""


class RunError(UserError):
    """The run cannot start or go on."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or not the one that is needed."""


class FailedOnAnotherRank(RunError):
    """Another rank failed, and has said why itself."""


class Stopped(Exception):
    """The run was asked to stop, and saved at this step."""
