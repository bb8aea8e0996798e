"""What a Ray Train worker reports, and how it finds it again."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, UserCallback

from cluster.tracking import MetricWriter, Record
from ranet.training.reporter import Metrics, Snapshot

SNAPSHOT = "snapshot.pt"
FLUSH_SECONDS = 10.0
"""How long a failed run waits for MLflow to take its metrics."""


class RayReporter:
    """Makes a checkpoint of every snapshot. A barrier: each worker must report equally often."""

    def report(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Hand the metrics to Ray and, on rank 0, the snapshot as a checkpoint."""
        self.save(metrics, {SNAPSHOT: snapshot})

    def save(self, metrics: Metrics, files: Mapping[str, Any]) -> None:
        """Report a checkpoint of several files, each holding one state for `torch.save`."""
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, state in files.items():
                content = io.BytesIO()
                torch.save(state, content)  # to a full disk, it would not say what is wrong
                (Path(folder) / name).write_bytes(content.getbuffer())
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


class MlflowMetrics(UserCallback):
    """Sends what the workers report to MLflow; it lives in Ray's controller process."""

    def __init__(self, record: Record, keep_checkpoints: int) -> None:
        self._record = record
        self._keep_checkpoints = keep_checkpoints
        self._writer: MetricWriter | None = None

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Queue the metrics of rank 0 and the place of its checkpoint."""
        if self._writer is None:  # a thread cannot travel, so it starts where it is used
            self._writer = MetricWriter(self._record, keep_checkpoints=self._keep_checkpoints)
        self._writer.put(metrics[0], location_of(checkpoint) if checkpoint else None)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Let MLflow have what was measured: the controller may be about to end."""
        if self._writer is not None:
            self._writer.flush(FLUSH_SECONDS)


def location_of(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint lies: a path, or an address such as s3://bucket/runs/...."""
    filesystem = checkpoint.filesystem
    assert filesystem is not None, "Ray gives every reported checkpoint its filesystem"
    kind = filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"


def load_checkpoint(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Read the files of a checkpoint, if there is one, by name and onto the CPU."""
    if checkpoint is None:
        return {}
    with checkpoint.as_directory() as folder:
        return {
            path.name: torch.load(path, map_location="cpu", weights_only=True)
            for path in Path(folder).glob("*.pt")
        }
