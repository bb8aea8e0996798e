"""What a Ray Train worker reports, and how it finds it again."""

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

SECONDS_BETWEEN_QUESTIONS = 5.0
"""About how often workers ask whether a node will be taken; Ray itself looks as often."""
LIST_SECONDS = 60.0
"""How long a worker waits for Ray's list of checkpoints."""

_EARLIER = "earlier"


class RayReporter:
    """Makes a checkpoint of every snapshot. A barrier: each worker must report equally often.

    Ray hears of an epoch with the checkpoint that holds it and not before: lost, the epoch is
    trained again, and with other workers its metrics are not quite the same.

    Where the node of a worker is about to be taken, a checkpoint is wanted at once, and all workers
    stop when it is made: Ray starts them again on the nodes that stay, and no step is done twice.
    """

    def __init__(self) -> None:
        # Ray's workers have the setting of the driver.
        self._may_be_taken = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._asked = time.monotonic()
        self._steps_since, self._steps_between = 0, 1
        self._leaving = False
        self._storage_is_local = _storage().storage_filesystem.type_name == "local"
        self._earlier: list[Metrics] = []
        self._metrics = WorkerMetrics(ray.train.get_context().get_experiment_name())

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Hand the metrics to Ray and, on rank 0, the snapshot as a checkpoint, or keep them."""
        if snapshot is None:
            self._earlier.append(metrics)
        else:
            self.save(metrics, {SNAPSHOT: snapshot})
        if ray.train.get_context().get_world_rank() == 0:
            self._metrics.epoch(metrics)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count a step of this worker."""
        self._metrics.step(num_images, seconds, waited)

    def wants_checkpoint(self) -> bool:
        """Want one where Ray says that a node will be taken; a barrier every few seconds."""
        self._steps_since += 1
        if not self._may_be_taken or self._steps_since < self._steps_between:
            return False
        self._leaving = ray.train.get_preemption_info() is not None
        now = time.monotonic()
        steps_a_second = self._steps_since / max(now - self._asked, 1e-3)
        # One worker's clock decides for all, so that they meet again at the same step.
        self._steps_between = broadcast_from_rank_zero(
            max(1, round(SECONDS_BETWEEN_QUESTIONS * steps_a_second))
        )
        self._asked, self._steps_since = now, 0
        return self._leaving

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Make a checkpoint within an epoch, and stop where a node will be taken.

        Raises:
            RayActorError: a node will be taken; Ray takes it for the loss that it foretells, and
                counts it as none of the run's failures.
        """
        place = {"epoch": float(snapshot["epoch"]), "step": float(snapshot["step"])}
        self.save(place, {SNAPSHOT: snapshot})
        if self._leaving:
            if ray.train.get_context().get_world_rank() == 0:
                logger.warning(
                    "a node is about to be taken: stopped after %d epochs and %d steps",
                    snapshot["epoch"], snapshot["step"],
                )  # fmt: skip
            raise RayActorError(error_msg="a node is about to be taken", preempted=True)

    def save(self, metrics: Metrics, files: Mapping[str, Any]) -> None:
        """Report a checkpoint of several files, each holding one state for `torch.save`."""
        earlier, self._earlier = self._earlier, []
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), files)
            ray.train.report(
                metrics | {_EARLIER: earlier},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_upload_fn=None if self._storage_is_local else _upload,
            )
        self._metrics.checkpoint(time.perf_counter() - began)


def _upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
    storage = _storage()
    path = storage.build_checkpoint_path_from_name(name)
    upload(Path(checkpoint.path), storage.storage_filesystem, path)
    return Checkpoint(path, storage.storage_filesystem)


def _storage() -> Any:
    return ray.train.get_context().get_storage()  # annotated as None


def metrics_in(report: Mapping[str, Any]) -> list[Metrics]:
    """Give what a report of the first worker holds: epochs without a checkpoint, then its own."""
    own = {name: value for name, value in report.items() if name != _EARLIER}
    return [*report[_EARLIER], own]


def load_newest() -> dict[str, Any]:
    """Read the newest whole checkpoint of this worker's run; nothing where there is none yet.

    A barrier: the first worker chooses, the others read the same.

    Raises:
        DamagedCheckpointError: there are checkpoints, but none is whole.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return {}
    if ray.train.get_context().get_world_rank() == 0:
        files, chosen = _newest_whole(newest)
        broadcast_from_rank_zero(chosen.path)
        return files
    path: str | None = broadcast_from_rank_zero(None)
    assert path is not None, "the first worker sends one"
    return load_checkpoint(Checkpoint(path, newest.filesystem))


def _newest_whole(newest: Checkpoint) -> tuple[dict[str, Any], Checkpoint]:
    try:
        return load_checkpoint(newest), newest
    except DamagedCheckpointError as error:
        logger.warning("%s; going on from the one before", error)
    for reported in reversed(
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, LIST_SECONDS)
    ):
        if reported.checkpoint.path == newest.path:
            continue
        try:
            return load_checkpoint(reported.checkpoint), reported.checkpoint
        except DamagedCheckpointError as error:
            logger.warning("%s; going on from the one before", error)
    raise DamagedCheckpointError(
        f"no checkpoint of this run is whole, the newest is {checkpoint_uri(newest)}; start the run "
        "anew with --new-attempt, and keep more than cluster.keep_checkpoints next time"
    )
