"""Preemption of nodes: checks for notices, and the stop of the workers."""

import logging
import os
import time

import ray.train
from ray.exceptions import RayActorError
from ray.train.collective import broadcast_from_rank_zero

from cluster.execution.ray_internals import health_check_cause
from ranet.protocols import Snapshot

logger = logging.getLogger(__name__)

PREEMPTION_CHECK_SECONDS = 5.0
"""Approximate interval of the workers' checks for preemption notices; Ray polls as often."""


class PreemptionNotices:
    """Notices that a node of the workers is about to be preempted.

    A worker that knows of a preemption writes a checkpoint and stops: Ray restarts all workers on
    the remaining nodes, and no step repeats.
    """

    def __init__(self) -> None:
        # Ray copies this variable from the driver to its workers.
        self._is_preemptible = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._last_check = time.monotonic()
        self._steps_since_check, self._steps_between_checks = 0, 1
        self._is_preempted = False

    @property
    def is_preempted(self) -> bool:
        """True if the last check found a notice."""
        return self._is_preempted

    def check(self) -> bool:
        """Return whether a node is about to be preempted.

        A barrier now and then: all workers must call the method after every step.
        """
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

    def stop_if_preempted(self, snapshot: Snapshot) -> None:
        """Stop this worker if a node is about to be preempted.

        Raises:
            RayActorError: a node is about to be preempted. Ray handles the error like the loss of
                the node, and FailurePolicy does not count it as a failure.
        """
        if not self._is_preempted:
            return
        if ray.train.get_context().get_world_rank() == 0:
            logger.warning(
                "a node is about to be preempted: stopped after %d epochs and %d steps",
                snapshot["epoch"], snapshot["step"],
            )  # fmt: skip
        raise RayActorError(error_msg="a node is about to be preempted", preempted=True)


def is_preemption(failure: Exception) -> bool:
    """Return whether a worker's failure is the preemption of its node."""
    return getattr(health_check_cause(failure), "preempted", False)
