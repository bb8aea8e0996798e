"""Report metrics and checkpoints to Ray Train, and load the newest checkpoint."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.collective import broadcast_from_rank_zero

from cluster.monitoring.prometheus import WorkerMetrics
from cluster.storage.checkpoints import (
    SNAPSHOT,
    DamagedCheckpointError,
    checkpoint_uri,
    load_checkpoint,
    write_checkpoint,
)
from cluster.storage.filesystem import upload
from ranet.protocols import Metrics, Snapshot

logger = logging.getLogger(__name__)

PREEMPTION_CHECK_SECONDS = 5.0
"""Approximate interval of the workers' checks for preemption notices; Ray polls as often."""
LIST_SECONDS = 60.0
"""Timeout for Ray's list of checkpoints."""

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
        # Ray copies this variable from the driver to its workers.
        self._is_preemptible = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._last_check = time.monotonic()
        self._steps_since_check, self._steps_between_checks = 0, 1
        self._is_preempted = False
        self._storage_is_local = _storage().storage_filesystem.type_name == "local"
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
        self._steps_since_check += 1
        if not self._is_preemptible or self._steps_since_check < self._steps_between_checks:
            return False
        self._is_preempted = ray.train.get_preemption_info() is not None
        now = time.monotonic()
        steps_per_second = self._steps_since_check / max(now - self._last_check, 1e-3)
        # The clock of rank 0 decides for all workers, so that they check at the same step.
        self._steps_between_checks = broadcast_from_rank_zero(
            max(1, round(PREEMPTION_CHECK_SECONDS * steps_per_second))
        )
        self._last_check, self._steps_since_check = now, 0
        return self._is_preempted

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Report a checkpoint within an epoch; stop before a preemption.

        Raises:
            RayActorError: a node is about to be preempted. Ray handles the error like the loss of
                the node, and FailurePolicy does not count it as a failure.
        """
        progress = {"epoch": float(snapshot["epoch"]), "step": float(snapshot["step"])}
        self.save(progress, {SNAPSHOT: snapshot})
        if self._is_preempted:
            if ray.train.get_context().get_world_rank() == 0:
                logger.warning(
                    "a node is about to be preempted: stopped after %d epochs and %d steps",
                    snapshot["epoch"], snapshot["step"],
                )  # fmt: skip
            raise RayActorError(error_msg="a node is about to be preempted", preempted=True)

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
    storage = _storage()
    path = storage.build_checkpoint_path_from_name(name)
    upload(Path(checkpoint.path), storage.storage_filesystem, path)
    return Checkpoint(path, storage.storage_filesystem)


def _storage() -> Any:
    return ray.train.get_context().get_storage()  # Ray annotates the return type as None


def metrics_in(report: Mapping[str, Any]) -> list[Metrics]:
    """Return the metrics in a report of rank 0 by epoch.

    The epochs since the previous checkpoint come first, then the metrics of the report itself.
    """
    own = {name: value for name, value in report.items() if name != _PREVIOUS_EPOCHS}
    return [*report[_PREVIOUS_EPOCHS], own]


def load_newest() -> dict[str, Any]:
    """Load the newest intact checkpoint of the run, if any.

    A barrier: rank 0 selects the checkpoint, and the other workers load the same one.

    Raises:
        DamagedCheckpointError: all checkpoints of the run are damaged.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return {}
    if ray.train.get_context().get_world_rank() == 0:
        files, selected = _newest_intact(newest)
        broadcast_from_rank_zero(selected.path)
        return files
    path: str | None = broadcast_from_rank_zero(None)
    assert path is not None, "rank 0 sends a path"
    return load_checkpoint(Checkpoint(path, newest.filesystem))


def _newest_intact(newest: Checkpoint) -> tuple[dict[str, Any], Checkpoint]:
    try:
        return load_checkpoint(newest), newest
    except DamagedCheckpointError as error:
        logger.warning("%s; resuming from the previous checkpoint", error)
    for reported in reversed(
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, LIST_SECONDS)
    ):
        if reported.checkpoint.path == newest.path:
            continue
        try:
            return load_checkpoint(reported.checkpoint), reported.checkpoint
        except DamagedCheckpointError as error:
            logger.warning("%s; resuming from the previous checkpoint", error)
    raise DamagedCheckpointError(
        f"all checkpoints of this run are damaged, the newest is {checkpoint_uri(newest)}; start "
        "from scratch with --new-attempt, and increase cluster.keep_checkpoints"
    )
