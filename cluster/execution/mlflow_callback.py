"""The way of metrics from the workers to MLflow."""

from typing import Any

from ray.train import Checkpoint, UserCallback

from cluster.execution.reporter import metrics_in
from cluster.storage.checkpoints import checkpoint_uri
from cluster.tracking.record import MetricWriter, TrackedRun

FLUSH_SECONDS = 10.0
"""How long a run that ends or fails waits for MLflow to take its metrics."""


class MlflowCallback(UserCallback):
    """Sends what the workers report to MLflow; it lives in Ray's controller process."""

    def __init__(self, record: TrackedRun, keep_checkpoints: int, last_epoch: int) -> None:
        self._record = record
        self._last_epoch = last_epoch
        self._keep_checkpoints = keep_checkpoints
        self._writer: MetricWriter | None = None

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Queue the metrics of rank 0 and the place of its checkpoint."""
        if self._writer is None:  # a thread cannot travel, so it starts where it is used
            self._writer = MetricWriter(self._record, keep_checkpoints=self._keep_checkpoints)
        *earlier, own = metrics_in(metrics[0])
        for epoch in earlier:
            self._writer.put(epoch)
        self._writer.put(own, checkpoint_uri(checkpoint) if checkpoint else None)
        if own["epoch"] == self._last_epoch:  # Ray ends the controller next
            self._writer.flush(FLUSH_SECONDS)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Let MLflow have what was measured: the controller may be about to end."""
        if self._writer is not None:
            self._writer.flush(FLUSH_SECONDS)
