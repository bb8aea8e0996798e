"""Handle of an MLflow run, and logging of metrics and checkpoints."""

import json
import logging
import queue
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from cluster.errors import TrackingError
from cluster.retry import Retry
from cluster.tracking.client import make_client
from cluster.tracking.failures import explain, first_line, is_permanent, masked
from ranet.protocols import Metrics

_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)

RETRY_PAUSE_SECONDS = 5.0
"""Longest pause between two calls to an unavailable MLflow."""
RETRY_TIMEOUT_SECONDS = 300.0
"""Longest wait for an unavailable MLflow at the end of a run."""
CONTROLLER_SECONDS = 5.0
"""Longest wait of the driver for Ray's controller to log the metrics of the last epochs."""

_CHECKPOINTS = "checkpoints.json"


@dataclass(frozen=True)
class TrackedRun:
    """Picklable handle of an MLflow run that this driver owns."""

    uri: str
    run_id: str
    name: str
    attempt: int
    resumed: bool

    @property
    def storage_name(self) -> str:
        """Folder for the checkpoints of this attempt, unique across attempts and databases."""
        return f"{self.name}-{self.attempt}-{self.run_id[:8]}"

    @property
    def client(self) -> MlflowClient:
        """Client of the server that holds the run."""
        return make_client(self.uri)

    def log_history(self, history: Iterable[Metrics]) -> None:
        """Log the metrics of those epochs that MLflow does not have.

        A `MetricWriter` of another process may be about to log the same metrics, so this
        method first waits for `CONTROLLER_SECONDS`.

        Raises:
            TrackingError: MLflow was unavailable for `RETRY_TIMEOUT_SECONDS`.
        """
        entries = [MetricEntry(dict(metrics), None, now_ms()) for metrics in history]
        deadline = time.monotonic() + CONTROLLER_SECONDS
        while time.monotonic() < deadline:
            if {entry.step for entry in entries} <= self._retry(lambda: known_steps(self)):
                return
            time.sleep(0.2)
        self._retry(lambda: deliver(self, entries))

    def log_checkpoint(self, metrics: Metrics, uri: str, keep: int) -> None:
        """Add a checkpoint to the run's list of the `keep` newest checkpoints."""
        entry = MetricEntry(dict(metrics), uri, now_ms())
        self._retry(lambda: log_checkpoint_entry(self, entry, keep))

    def log_folder(self, folder: Path | str, artifact_path: str) -> None:
        """Log the files of a folder as artifacts."""
        self._retry(lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path))

    def _retry(self, call: Callable[[], _Value]) -> _Value:
        """Retry a call while MLflow is unavailable.

        Raises:
            TrackingError: MLflow was unavailable for `RETRY_TIMEOUT_SECONDS`, or rejects the call.
        """
        retry = Retry(timeout_seconds=RETRY_TIMEOUT_SECONDS, max_pause_seconds=RETRY_PAUSE_SECONDS)
        while True:
            try:
                return call()
            except Exception as error:
                if is_permanent(error):
                    raise TrackingError(
                        f"MLflow at {masked(self.uri)} rejects the results of {self.name}: "
                        f"{explain(error)}; then start {self.name} again to log its results"
                    ) from error
                logger.warning("MLflow does not answer, retrying: %s", first_line(error))
                if not retry.wait():
                    raise TrackingError(
                        f"MLflow at {masked(self.uri)} does not answer ({first_line(error)}); "
                        f"training is complete: start {self.name} again to log its results"
                    ) from error


def now_ms() -> int:
    """Return the time as MLflow counts it, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class MetricWriter:
    """Background writer of metrics that queues them during outages of MLflow."""

    def __init__(
        self,
        record: TrackedRun,
        *,
        keep_checkpoints: int,
        retry_seconds: float = RETRY_PAUSE_SECONDS,
    ) -> None:
        self._record = record
        self._keep_checkpoints = keep_checkpoints
        self._retry_seconds = retry_seconds
        self._queue: queue.Queue[MetricEntry] = queue.Queue()
        Thread(target=self._run, name="mlflow-metrics", daemon=True).start()

    def put(self, metrics: Metrics, checkpoint_uri: str | None = None) -> None:
        """Queue an epoch's metrics and checkpoint URI, without blocking."""
        self._queue.put(MetricEntry(dict(metrics), checkpoint_uri, now_ms()))

    def flush(self, timeout: float) -> bool:
        """Wait until all queued metrics are logged, at most `timeout` seconds.

        Returns:
            Whether all metrics were logged.
        """
        deadline = time.monotonic() + timeout
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._queue.unfinished_tasks

    def _run(self) -> None:
        while True:
            self._deliver(self._queue.get())
            self._queue.task_done()

    def _deliver(self, entry: "MetricEntry") -> None:
        """Log one entry, and retry without a limit while MLflow is unavailable."""
        retry = Retry(pause_seconds=self._retry_seconds, max_pause_seconds=self._retry_seconds)
        is_available = True
        while True:
            try:
                deliver(self._record, [entry])
                log_checkpoint_entry(self._record, entry, self._keep_checkpoints)
                break
            except Exception as error:
                if is_available:
                    logger.warning(
                        "MLflow %s, training continues and its metrics are kept: %s",
                        "rejects metrics" if is_permanent(error) else "does not answer",
                        explain(error) if is_permanent(error) else first_line(error),
                    )
                is_available = False
                retry.wait()
        if not is_available:
            logger.warning("MLflow answers again, logging the kept metrics")


@dataclass(frozen=True)
class MetricEntry:
    """Metrics of one epoch, queued for MLflow."""

    metrics: Metrics
    checkpoint_uri: str | None
    time_ms: int

    @property
    def step(self) -> int:
        """Epoch of the metrics, used as MLflow's step."""
        return int(self.metrics["epoch"])

    @property
    def is_within_epoch(self) -> bool:
        """Return whether the entry is a checkpoint within an epoch.

        Such an entry has no metrics to log.
        """
        return "step" in self.metrics


def has_reported(client: MlflowClient, run: Run) -> bool:
    """Return whether a run has logged an epoch or a checkpoint."""
    if "epoch" in run.data.metrics:
        return True
    return any(file.path == _CHECKPOINTS for file in client.list_artifacts(run.info.run_id))


def known_steps(record: TrackedRun) -> set[int]:
    """Return the epochs whose metrics MLflow has."""
    return {metric.step for metric in record.client.get_metric_history(record.run_id, "epoch")}


def deliver(record: TrackedRun, entries: list[MetricEntry]) -> None:
    """Log the entries whose step MLflow does not have yet.

    MLflow would store a second entry of the same step as a duplicate.
    """
    client = record.client
    entries = [entry for entry in entries if not entry.is_within_epoch]
    if not entries:
        return
    known = known_steps(record)
    for entry in entries:
        if entry.step not in known:
            batch = [
                Metric(name, value, entry.time_ms, entry.step)
                for name, value in entry.metrics.items()
            ]
            client.log_batch(record.run_id, metrics=batch)
            known.add(entry.step)


def log_checkpoint_entry(record: TrackedRun, entry: MetricEntry, keep: int) -> None:
    """Add a checkpoint to the artifact that lists the newest `keep` checkpoints."""
    if entry.checkpoint_uri is None:
        return
    client = record.client
    kept: list[dict[str, Any]] = []
    if any(file.path == _CHECKPOINTS for file in client.list_artifacts(record.run_id)):
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(record.run_id, _CHECKPOINTS, folder)
            kept = [
                old
                for old in json.loads(Path(path).read_text())
                if _progress_of(old["metrics"]) != _progress_of(entry.metrics)
            ]
    kept.append({"step": entry.step, "location": entry.checkpoint_uri, "metrics": entry.metrics})
    client.log_text(record.run_id, json.dumps(kept[-keep:], indent=2), _CHECKPOINTS)


def _progress_of(metrics: Metrics) -> tuple[float, float]:
    """Return the number of complete epochs, and steps of the next."""
    return metrics["epoch"], metrics.get("step", 0.0)
