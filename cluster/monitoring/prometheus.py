"""What a running training counts for Prometheus, by way of Ray's own exporter on every node.

All but the staged bytes have the label `run`, the folder of the attempt's checkpoints. They are
sums: rates are made by those who read them, in `cluster/monitoring/`.
"""

import time
from collections.abc import Callable

import ray
from ray.util.metrics import Counter, Gauge

from ranet.protocols import Metrics

SHOW_SECONDS = 5.0
"""Ray shows a value for some 20 seconds, and no longer unless it is set again."""

_RUN = ("run",)


class WorkerMetrics:
    """The counters of one worker; those of all workers add up."""

    def __init__(self, run: str) -> None:
        def counter(name: str, description: str) -> Counter:
            made = Counter(name, description=description, tag_keys=_RUN)
            made.set_default_tags({"run": run})
            return made

        self._steps = counter("ranet_steps", "Steps taken.")
        self._images = counter("ranet_images", "Training images that went through the network.")
        self._seconds = counter("ranet_step_seconds", "Seconds spent in steps.")
        self._waited = counter(
            "ranet_data_wait_seconds", "Seconds of steps spent waiting for data."
        )
        self._saves = counter("ranet_checkpoints", "Checkpoints written and stored.")
        self._saving = counter("ranet_checkpoint_seconds", "Seconds spent on checkpoints.")
        self._value = Gauge(
            "ranet_epoch_value",
            description="Metrics of the last epoch, by the names that MLflow has.",
            tag_keys=("run", "metric"),
        )
        self._value.set_default_tags({"run": run})
        self._last: Metrics = {}
        self._shown = 0.0

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count a step."""
        for counter, value in (
            (self._steps, 1),
            (self._images, num_images),
            (self._seconds, seconds),
            (self._waited, waited),
        ):
            if value > 0:  # Ray refuses to add nothing
                counter.inc(value)
        if time.monotonic() - self._shown > SHOW_SECONDS:
            self.epoch(self._last)

    def checkpoint(self, seconds: float) -> None:
        """Count a checkpoint."""
        self._saves.inc()
        self._saving.inc(seconds)

    def epoch(self, metrics: Metrics) -> None:
        """Show the metrics of an epoch, from now until the next one."""
        self._last, self._shown = metrics, time.monotonic()
        for name, value in metrics.items():
            self._value.set(value, tags={"metric": name})


def staged_bytes() -> Callable[[int], None]:
    """Return what counts bytes loaded from S3 to this node's disk; without Ray it does nothing."""
    if not ray.is_initialized():
        return lambda size: None
    counter = Counter("ranet_staged_bytes", "Bytes loaded from S3 to a node's disk.")
    return lambda size: counter.inc(size)


def active(run: str) -> Callable[[], None]:
    """Return what says, from its driver, that a run is waited for: call it every few seconds."""
    gauge = Gauge("ranet_run_active", description="1 while a driver waits for it.", tag_keys=_RUN)
    gauge.set_default_tags({"run": run})
    return lambda: gauge.set(1)
