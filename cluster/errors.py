"""What can go wrong with a run, by what its user can do about it."""


class RunError(RuntimeError):
    """A run that failed; its message is the cause, in one sentence."""


class UntrainableError(RunError):
    """A run that would fail again: it diverges, its settings are wrong, or memory is too small."""


class TrackingError(RuntimeError):
    """MLflow cannot be used, or will not give us the run; the message says what to do."""
