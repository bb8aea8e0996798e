"""A run in MLflow, and the delivery of its metrics."""

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
from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis

from cluster.errors import TrackingError
from cluster.tracking.client import first_line, make_client, masked
from ranet.protocols import Metrics

_Value = TypeVar("_Value")
logger = logging.getLogger(__name__)
RETRY_SECONDS = 5.0
"""Time between two attempts to reach an MLflow that does not answer."""
PATIENCE_SECONDS = 300.0
"""How long the end of a run waits for an MLflow that does not answer."""
DELIVERY_SECONDS = 5.0
"""How long the driver gives Ray's controller to deliver the metrics of the last epochs."""
_CHECKPOINTS = "checkpoints.json"


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow that this process owns, small enough to be sent to other processes."""

    uri: str
    run_id: str
    name: str
    attempt: int
    resumed: bool

    @property
    def storage_name(self) -> str:
        """Folder of this attempt's checkpoints; no other attempt, in any database, has it."""
        return f"{self.name}-{self.attempt}-{self.run_id[:8]}"

    @property
    def client(self) -> MlflowClient:
        """A client of the server that holds the run."""
        return make_client(self.uri)

    def log_history(self, history: Iterable[Metrics]) -> None:
        """Log the metrics of those epochs that MLflow does not have.

        A `MetricWriter` of another process may be about to deliver them: it gets some time.
        """
        entries = [
            MetricEntry(dict(metrics), None, get_current_time_millis()) for metrics in history
        ]
        deadline = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < deadline:
            if {entry.step for entry in entries} <= self._insist(lambda: known_steps(self)):
                return
            time.sleep(0.2)
        self._insist(lambda: deliver(self, entries))

    def log_checkpoint(self, metrics: Metrics, location: str, keep: int) -> None:
        """Note step, metrics and location of the newest checkpoint, and of `keep` in all."""
        entry = MetricEntry(dict(metrics), location, get_current_time_millis())
        self._insist(lambda: note_checkpoint(self, entry, keep))

    def log_folder(self, folder: Path | str, artifact_path: str) -> None:
        """Keep the files of a folder as artifacts."""
        self._insist(lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path))

    def _insist(self, action: Callable[[], _Value]) -> _Value:
        """Do what needs MLflow, waiting for it if it does not answer.

        Raises:
            TrackingError: it stayed away for `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return action()
            except Exception as error:
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"MLflow at {masked(self.uri)} does not answer ({first_line(error)}); "
                        f"training is complete: start {self.name} again to do the rest"
                    ) from error
                logger.warning("MLflow does not answer, waiting for it: %s", first_line(error))
                time.sleep(RETRY_SECONDS)


class MetricWriter:
    """Sends the metrics of each epoch to MLflow from a thread, and keeps them until it answers."""

    def __init__(
        self, record: TrackedRun, *, keep_checkpoints: int, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._record = record
        self._keep_checkpoints = keep_checkpoints
        self._retry_seconds = retry_seconds
        self._queue: queue.Queue[MetricEntry] = queue.Queue()
        Thread(target=self._run, name="mlflow-metrics", daemon=True).start()

    def put(self, metrics: Metrics, location: str | None = None) -> None:
        """Queue the metrics of one epoch, and where its checkpoint lies; never waits."""
        self._queue.put(MetricEntry(dict(metrics), location, get_current_time_millis()))

    def flush(self, timeout: float) -> bool:
        """Wait for MLflow to have all, for at most `timeout` seconds; say whether it has."""
        deadline = time.monotonic() + timeout
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._queue.unfinished_tasks

    def _run(self) -> None:
        lost = False
        while True:
            entry = self._queue.get()
            while True:
                try:
                    deliver(self._record, [entry])
                    note_checkpoint(self._record, entry, self._keep_checkpoints)
                    break
                except Exception as error:
                    if not lost:
                        logger.warning(
                            "MLflow does not answer, training goes on and its metrics are kept: %s",
                            first_line(error),
                        )
                    lost = True
                    time.sleep(self._retry_seconds)
            if lost:
                logger.warning("MLflow answers again, kept metrics are being delivered")
                lost = False
            self._queue.task_done()


@dataclass(frozen=True)
class MetricEntry:
    """Metrics of one epoch on their way to MLflow."""

    metrics: Metrics
    location: str | None
    time: int

    @property
    def step(self) -> int:
        """Epoch of the metrics, which MLflow calls the step."""
        return int(self.metrics["epoch"])

    @property
    def is_within_epoch(self) -> bool:
        """Whether this is a checkpoint between two epochs, which has no metrics to log."""
        return "step" in self.metrics


def known_steps(record: TrackedRun) -> set[int]:
    """Epochs whose metrics MLflow has."""
    return {metric.step for metric in record.client.get_metric_history(record.run_id, "epoch")}


def deliver(record: TrackedRun, entries: list[MetricEntry]) -> None:
    """Log the entries whose step MLflow does not have: it would keep both values."""
    client = record.client
    entries = [entry for entry in entries if not entry.is_within_epoch]
    if not entries:
        return
    known = known_steps(record)
    for entry in entries:
        if entry.step not in known:
            batch = [
                Metric(name, value, entry.time, entry.step) for name, value in entry.metrics.items()
            ]
            client.log_batch(record.run_id, metrics=batch)
            known.add(entry.step)


def note_checkpoint(record: TrackedRun, entry: MetricEntry, keep: int) -> None:
    """Add a checkpoint to the run's list of the newest checkpoints."""
    if entry.location is None:
        return
    client = record.client
    kept: list[dict[str, Any]] = []
    if any(file.path == _CHECKPOINTS for file in client.list_artifacts(record.run_id)):
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(record.run_id, _CHECKPOINTS, folder)
            kept = [
                old
                for old in json.loads(Path(path).read_text())
                if _place(old["metrics"]) != _place(entry.metrics)
            ]
    kept.append({"step": entry.step, "location": entry.location, "metrics": entry.metrics})
    client.log_text(record.run_id, json.dumps(kept[-keep:], indent=2), _CHECKPOINTS)


def _place(metrics: Metrics) -> tuple[float, float]:
    """Epochs done, and steps of the next one."""
    return metrics["epoch"], metrics.get("step", 0.0)
