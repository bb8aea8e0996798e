"""Exceptions shown to users, one per remedy."""


class RanetError(RuntimeError):
    """Base class of errors that end a command without a traceback.

    The message is one sentence.
    """


class RunError(RanetError):
    """Failed run; the message is the cause, in one sentence."""


class UntrainableError(RunError):
    """Run whose failure a restart cannot fix.

    The loss diverges, a setting is wrong, or the memory is too small.
    """


class TimeLimitError(RunError):
    """Run that was stopped with a checkpoint after `cluster.max_hours`."""


class TrackingError(RanetError):
    """Failure of MLflow, or rejected run; the message contains the remedy.

    MLflow is unavailable or incompatible, or the run cannot start under its name.
    """


EXPECTED_ERRORS = (RanetError, ValueError, OSError)
"""Errors that users can fix; their message is one sentence."""
