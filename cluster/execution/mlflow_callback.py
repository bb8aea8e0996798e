"""Ray Train callback that logs reported metrics to MLflow."""

from typing import Any

from ray.train import Checkpoint, UserCallback

from cluster.execution.reporter import metrics_in
from cluster.storage.checkpoints import checkpoint_uri
from cluster.tracking.record import MetricWriter, TrackedRun

FLUSH_SECONDS = 10.0
"""Timeout for logging the queued metrics when a run ends or fails."""


class MlflowCallback(UserCallback):
    """Ray Train callback that logs the reports of rank 0 to MLflow."""

    def __init__(self, record: TrackedRun, keep_checkpoints: int, last_epoch: int) -> None:
        self._record = record
        self._last_epoch = last_epoch
        self._keep_checkpoints = keep_checkpoints
        self._writer: MetricWriter | None = None

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Queue rank 0's metrics and checkpoint URI for MLflow."""
        if self._writer is None:  # its thread cannot be pickled, so it starts in the controller
            self._writer = MetricWriter(self._record, keep_checkpoints=self._keep_checkpoints)
        *earlier, own = metrics_in(metrics[0])
        for epoch in earlier:
            self._writer.put(epoch)
        self._writer.put(own, checkpoint_uri(checkpoint) if checkpoint else None)
        if own["epoch"] == self._last_epoch:  # Ray ends the controller after this report
            self._writer.flush(FLUSH_SECONDS)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Log the queued metrics now: the controller may be about to end."""
        if self._writer is not None:
            self._writer.flush(FLUSH_SECONDS)
