"""Prometheus metrics of a run, exported by Ray on each node.

All metrics except the staged bytes have the label `run`, the name of the attempt's checkpoint
folder. Counters are totals: the queries of the dashboard and the alert compute rates.
"""

import time
from collections.abc import Callable

import ray
from ray.util.metrics import Counter, Gauge

from ranet.protocols import Metrics

REFRESH_SECONDS = 5.0
"""Interval for setting gauges again; Ray drops a gauge that is not set for about 20 seconds."""

_RUN = ("run",)


class WorkerMetrics:
    """Metrics of one worker; Prometheus queries sum the counters over all workers."""

    def __init__(self, run: str) -> None:
        def counter(name: str, description: str) -> Counter:
            metric = Counter(name, description=description, tag_keys=_RUN)
            metric.set_default_tags({"run": run})
            return metric

        self._steps = counter("ranet_steps", "Steps taken.")
        self._images = counter("ranet_images", "Training images processed.")
        self._seconds = counter("ranet_step_seconds", "Seconds spent in steps.")
        self._waited = counter(
            "ranet_data_wait_seconds", "Seconds of the steps spent waiting for data."
        )
        self._saves = counter("ranet_checkpoints", "Checkpoints written and uploaded.")
        self._saving = counter(
            "ranet_checkpoint_seconds", "Seconds of writing and uploading checkpoints."
        )
        self._value = Gauge(
            "ranet_epoch_value",
            description="Metrics of the last epoch, with the names used in MLflow.",
            tag_keys=("run", "metric"),
        )
        self._value.set_default_tags({"run": run})
        self._last: Metrics = {}
        self._last_refresh = 0.0

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count a step, its images, its duration and its wait for data."""
        for counter, value in (
            (self._steps, 1),
            (self._images, num_images),
            (self._seconds, seconds),
            (self._waited, waited),
        ):
            if value > 0:  # Ray rejects an increment of 0
                counter.inc(value)
        if time.monotonic() - self._last_refresh > REFRESH_SECONDS:
            self.epoch(self._last)

    def checkpoint(self, seconds: float) -> None:
        """Count a checkpoint and its duration."""
        self._saves.inc()
        self._saving.inc(seconds)

    def epoch(self, metrics: Metrics) -> None:
        """Export the metrics of an epoch until the next epoch ends."""
        self._last, self._last_refresh = metrics, time.monotonic()
        for name, value in metrics.items():
            self._value.set(value, tags={"metric": name})


def staged_bytes() -> Callable[[int], None]:
    """Return a function that counts bytes downloaded from S3.

    Without a connection to Ray the function does nothing.
    """
    if not ray.is_initialized():
        return lambda size: None
    counter = Counter("ranet_staged_bytes", "Bytes downloaded from S3 to the disk of a node.")
    return lambda size: counter.inc(size)


def active(run: str) -> Callable[[], None]:
    """Return a function that marks the run as active."""
    gauge = Gauge(
        "ranet_run_active", description="1 while the driver of the run is alive.", tag_keys=_RUN
    )
    gauge.set_default_tags({"run": run})
    return lambda: gauge.set(1)
