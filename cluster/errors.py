"""Exceptions shown to users, one per remedy."""


class RanetError(RuntimeError):
    """Base of the errors that end a command with one sentence instead of a traceback."""


class RunError(RanetError):
    """Failed run; the message is the cause, in one sentence."""


class UntrainableError(RunError):
    """Run that would fail again: it diverges, a setting is wrong, or memory is too small."""


class TrackingError(RanetError):
    """MLflow is unavailable, incompatible or refuses the run; the message says what to do."""


EXPECTED_ERRORS = (RanetError, ValueError, OSError)
"""Errors that users can fix; their message is one sentence."""
