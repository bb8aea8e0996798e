"""Report metrics and checkpoints to Ray Train."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from cluster.execution.preemption import PreemptionNotices
from cluster.execution.ray_internals import checkpoint_filesystem, checkpoint_path
from cluster.monitoring.prometheus import WorkerMetrics
from cluster.storage.checkpoints import SNAPSHOT, write_checkpoint
from cluster.storage.filesystem import upload
from ranet.protocols import Metrics, Snapshot

_PREVIOUS_EPOCHS = "previous_epochs"


class RayReporter:
    """Reporter that stores each snapshot as a Ray Train checkpoint.

    Each report is a barrier: all workers must report equally often.

    Metrics of an epoch are reported together with the checkpoint that contains the epoch. If the
    workers fail before, the epoch is trained again, and its metrics may differ slightly with
    another number of workers.

    When the node of a worker is about to be preempted, the reporter requests a checkpoint, and all
    workers stop after writing it: Ray restarts them on the remaining nodes, and no step repeats.
    """

    def __init__(self) -> None:
        self._notices = PreemptionNotices()
        self._storage_is_local = checkpoint_filesystem().type_name == "local"
        self._previous_epochs: list[Metrics] = []
        self._metrics = WorkerMetrics(ray.train.get_context().get_experiment_name())

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Report metrics with a checkpoint, or keep them for later."""
        if snapshot is None:
            self._previous_epochs.append(metrics)
        else:
            self.save(metrics, {SNAPSHOT: snapshot})
        if ray.train.get_context().get_world_rank() == 0:
            self._metrics.epoch(metrics)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count a step of this worker in its Prometheus metrics."""
        self._metrics.step(num_images, seconds, waited)

    def wants_checkpoint(self) -> bool:
        """Return whether a node is about to be preempted."""
        return self._notices.check()

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Report a checkpoint within an epoch; stop before a preemption.

        Raises:
            RayActorError: a node is about to be preempted.
        """
        progress = {"epoch": float(snapshot["epoch"]), "step": float(snapshot["step"])}
        self.save(progress, {SNAPSHOT: snapshot})
        self._notices.stop_if_preempted(snapshot)

    def save(self, metrics: Metrics, files: Mapping[str, Any]) -> None:
        """Report a checkpoint of several files, each a state written by `torch.save`."""
        previous, self._previous_epochs = self._previous_epochs, []
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), files)
            ray.train.report(
                metrics | {_PREVIOUS_EPOCHS: previous},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_upload_fn=None if self._storage_is_local else _upload,
            )
        self._metrics.checkpoint(time.perf_counter() - start)


def _upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
    path, filesystem = checkpoint_path(name), checkpoint_filesystem()
    upload(Path(checkpoint.path), filesystem, path)
    return Checkpoint(path, filesystem)


def metrics_in(report: Mapping[str, Any]) -> list[Metrics]:
    """Return the metrics in a report of rank 0 by epoch.

    The epochs since the previous checkpoint come first, then the metrics of the report itself.
    """
    own = {name: value for name, value in report.items() if name != _PREVIOUS_EPOCHS}
    return [*report[_PREVIOUS_EPOCHS], own]
