"""Report metrics and checkpoints to Ray Train."""

import time
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from cluster.execution.preemption import PreemptionNotices
from cluster.execution.ray_internals import checkpoint_filesystem, checkpoint_path
from cluster.monitoring.prometheus import WorkerMetrics
from cluster.storage.checkpoints import SNAPSHOT, store_checkpoint
from ranet.protocols import Metrics, Snapshot
from ranet.training.host_copies import HostCopies

_PREVIOUS_EPOCHS = "previous_epochs"


class RayReporter:
    """Reporter that stores each snapshot as a Ray Train checkpoint.

    Each report is a barrier: all workers must report equally often.

    Metrics of an epoch are reported together with the checkpoint that contains the epoch. If the
    workers fail before, the epoch is trained again, and its metrics may differ slightly with
    another number of workers.

    Rank 0 copies the snapshot, and a thread of Ray's writes the copy while training continues. A
    checkpoint counts when it is complete in the storage. The next checkpoint waits for it.

    When the node of a worker is about to be preempted, the reporter requests a checkpoint, and all
    workers stop after writing it: Ray restarts them on the remaining nodes, and no step repeats.
    """

    def __init__(self) -> None:
        self._notices = PreemptionNotices()
        self._copies = HostCopies()
        self._last_write = _Write({}, lambda seconds: None)
        self._last_write.done.set()
        self._previous_epochs: list[Metrics] = []
        self._metrics = WorkerMetrics(ray.train.get_context().get_experiment_name())

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Report metrics with a checkpoint, or keep them for later."""
        if snapshot is None:
            self._previous_epochs.append(metrics)
        else:
            self._report(metrics, {SNAPSHOT: snapshot}, CheckpointUploadMode.ASYNC)
        if ray.train.get_context().get_world_rank() == 0:
            self._metrics.epoch(metrics)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count a step of this worker in its Prometheus metrics."""
        self._metrics.step(num_images, seconds, waited)

    def wants_checkpoint(self) -> bool:
        """Return whether the workers must write a checkpoint and stop."""
        return self._notices.check()

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Report a checkpoint within an epoch; stop if the workers must stop.

        Raises:
            RayActorError: a node is about to be preempted.
            TimeLimitError: `cluster.max_hours` is over.
        """
        progress = {"epoch": float(snapshot["epoch"]), "step": float(snapshot["step"])}
        is_last = self._notices.is_stopping
        mode = CheckpointUploadMode.SYNC if is_last else CheckpointUploadMode.ASYNC
        self._report(progress, {SNAPSHOT: snapshot}, mode)
        self._notices.stop_if_preempted(snapshot)

    def save(self, metrics: Metrics, files: Mapping[str, Any]) -> None:
        """Write and report a checkpoint of files, each for `torch.save`."""
        self._report(metrics, files, CheckpointUploadMode.SYNC)

    def _report(
        self, metrics: Metrics, files: Mapping[str, Any], mode: CheckpointUploadMode
    ) -> None:
        """Report a checkpoint of rank 0, and metrics on the other ranks."""
        previous, self._previous_epochs = self._previous_epochs, []
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        self._last_write.wait()  # it still reads the memory of the copies
        copied = {
            name: self._copies.copy(state) if name == SNAPSHOT else state
            for name, state in files.items()
        }
        self._last_write = _Write(copied, self._metrics.checkpoint)
        ray.train.report(
            metrics | {_PREVIOUS_EPOCHS: previous},
            # Ray calls the function only with a checkpoint, which the function does not read. The
            # folder does not exist, and Ray must not delete anything.
            checkpoint=Checkpoint.from_directory("unused"),
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=self._last_write,
        )


class _Write:
    """Writing of one checkpoint by Ray, in a thread or at once."""

    def __init__(self, files: Mapping[str, Any], count: Callable[[float], None]) -> None:
        self.done = Event()
        self._files, self._count = files, count
        self._error: Exception | None = None

    def __call__(self, _: Checkpoint, name: str) -> Checkpoint:
        """Store the files under the name that Ray chose."""
        start = time.perf_counter()
        checkpoint = Checkpoint(checkpoint_path(name), checkpoint_filesystem())
        try:
            store_checkpoint(checkpoint, self._files)
        except Exception as error:
            self._error = error  # Ray raises it in the worker, too
            raise
        finally:
            self.done.set()
        self._count(time.perf_counter() - start)
        return checkpoint

    def wait(self) -> None:
        """Wait until the checkpoint is stored.

        Raises:
            OSError: it could not be stored.
        """
        self.done.wait()
        if self._error is not None:
            raise self._error


def metrics_in(report: Mapping[str, Any]) -> list[Metrics]:
    """Return the metrics in a report of rank 0 by epoch.

    The epochs since the previous checkpoint come first, then the metrics of the report itself.
    """
    own = {name: value for name, value in report.items() if name != _PREVIOUS_EPOCHS}
    return [*report[_PREVIOUS_EPOCHS], own]
