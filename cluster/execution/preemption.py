"""Preemption of nodes and the time limit: checks, and the workers' stop."""

import logging
import math
import os
import time

import ray.train
from ray.exceptions import RayActorError
from ray.train.collective import broadcast_from_rank_zero

from cluster.errors import TimeLimitError
from cluster.execution.node.environment import DEADLINE
from cluster.execution.ray_internals import health_check_cause
from ranet.protocols import Snapshot

logger = logging.getLogger(__name__)

PREEMPTION_CHECK_SECONDS = 5.0
"""Approximate interval of the workers' checks for preemption notices; Ray polls as often."""


class PreemptionNotices:
    """Notices of a preemption, and of the end of `cluster.max_hours`.

    The workers write a checkpoint and stop. After a preemption Ray restarts all workers on the
    remaining nodes, and no step repeats; after the time limit the run ends.
    """

    def __init__(self) -> None:
        # Ray copies this variable from the driver to its workers.
        self._is_preemptible = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"
        self._last_check = time.monotonic()
        self._steps_since_check, self._steps_between_checks = 0, 1
        self._is_preempted = False
        self._deadline = float(os.environ.get(DEADLINE, "inf"))
        self._is_over_limit = False

    @property
    def is_stopping(self) -> bool:
        """True if the last check found that the workers must stop."""
        return self._is_preempted or self._is_over_limit

    def check(self) -> bool:
        """Return whether the workers must stop after a checkpoint.

        A barrier now and then: all workers must call the method after every step.
        """
        self._steps_since_check += 1
        may_stop = self._is_preemptible or self._deadline < math.inf
        if not may_stop or self._steps_since_check < self._steps_between_checks:
            return False
        if self._is_preemptible:
            self._is_preempted = ray.train.get_preemption_info() is not None
        now = time.monotonic()
        steps_per_second = self._steps_since_check / max(now - self._last_check, 1e-3)
        # The clock of rank 0 decides for all workers, so that they check and stop at the same step.
        self._steps_between_checks, self._is_over_limit = broadcast_from_rank_zero((
            max(1, round(PREEMPTION_CHECK_SECONDS * steps_per_second)),
            time.time() > self._deadline,
        ))  # fmt: skip
        self._last_check, self._steps_since_check = now, 0
        return self.is_stopping

    def stop_if_preempted(self, snapshot: Snapshot) -> None:
        """Stop this worker if a notice was found.

        Raises:
            TimeLimitError: `cluster.max_hours` is over, which ends the run.
            RayActorError: a node is about to be preempted. Ray handles the error like the loss of
                the node, and FailurePolicy does not count it as a failure.
        """
        if self._is_over_limit:
            raise TimeLimitError(
                f"cluster.max_hours is over: stopped after {snapshot['epoch']} epochs and "
                f"{snapshot['step']} steps, with a checkpoint; start the run again to resume"
            )
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
