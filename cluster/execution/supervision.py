"""Supervision of a run by its driver, and of its driver."""

import logging
import os
import time
from collections.abc import Callable
from concurrent import futures
from threading import Thread
from typing import Any

from ray.train import Result

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.heartbeat import HEARTBEAT_SECONDS, Heartbeats
from cluster.execution.ray_internals import ControllerCallback
from cluster.execution.resources import no_workers_message
from cluster.monitoring.prometheus import active

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Interval between two warnings about missing workers."""
SHUTDOWN_SECONDS = "5"
"""Time limit for closing the workers' process group, in an environment variable."""


def run_supervised(
    fit: Callable[[], Result], heartbeats: Heartbeats, name: str, cluster: ClusterConfig
) -> Result:
    """Run `fit` in a thread; fail without heartbeats of workers.

    In the main thread Ray Train would handle Ctrl-C itself and exit with status 0; here Ctrl-C
    raises KeyboardInterrupt. The workers end when the connection to Ray is closed.

    Args:
        fit: trains until the run ends.
        heartbeats: heartbeats of this run and those that compete with it; all of them count.
        name: name of the run.
        cluster: contains the timeout, and the resources for the error message.

    Raises:
        RunError: no worker sent a heartbeat for `cluster.start_timeout_seconds`.
    """
    finished: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            finished.set_result(fit())
        except BaseException as error:
            finished.set_exception(error)

    # Training runs in a daemon thread: a hanging controller does not keep the process alive.
    Thread(target=run, name="ray-train", daemon=True).start()
    try:
        _wait_for_end(finished, heartbeats, name, cluster, active(name))
    except BaseException:
        # The run is interrupted (timeout, Ctrl-C, lost lease): its controller is still alive and
        # has to end the workers and release their resources before this process exits.
        heartbeats.abort(name)
        raise
    # The run has ended by itself: the actor must not keep its controller alive.
    heartbeats.forget_controller(name)
    return finished.result()


def _wait_for_end(
    finished: futures.Future[Result],
    heartbeats: Heartbeats,
    name: str,
    cluster: ClusterConfig,
    mark_active: Callable[[], None],
) -> None:
    """Wait for the end of a run; log changes of its workers."""
    known, started = 0, time.monotonic()
    last_warning = started
    while not futures.wait([finished], timeout=1.0).done:
        # The metric of an active run expires unless it is set again.
        mark_active()
        status = heartbeats.status(name)
        # The heartbeat actor may be older than this run.
        idle = min(status.seconds_since_any, time.monotonic() - started)
        # Log how many workers train, at the start and whenever an elastic run changes its size.
        if status.seconds_since_own < 2 * HEARTBEAT_SECONDS and status.num_workers != known:
            known = status.num_workers
            logger.info("training on %d worker%s", known, "s" * (known > 1))
        # End a run that waits for resources for too long, whatever the reason.
        if idle > cluster.start_timeout_seconds:
            raise RunError(no_workers_message(cluster))
        # Until then, say from time to time why nothing happens.
        if idle > LOG_SECONDS and time.monotonic() > last_warning + LOG_SECONDS:
            logger.warning("no workers for %.0f seconds; waiting", idle)
            last_warning = time.monotonic()


class ControllerRegistration(ControllerCallback):
    """Callback that registers the controller and checks its driver.

    The heartbeat actor ends with its driver. Ray then releases the driver's resources, workers
    first. A controller that is still alive takes this for lost workers, and resources
    that the controller requests after the end of its driver would never be released.
    """

    def __init__(self, heartbeats: Heartbeats, name: str) -> None:
        self._heartbeats, self._name = heartbeats, name

    def after_controller_start(self, train_run_context: Any) -> None:
        """Register the controller; limit the time to close process groups."""
        # Ray reads the variable in this process. Closing an NCCL group blocks while a collective
        # waits for a peer, and Ray's limit of 30 seconds would be spent at each growth.
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", SHUTDOWN_SECONDS)
        self._heartbeats.register_controller(self._name)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Check that the driver is alive before workers are started.

        Raises:
            RunError: the driver has ended.
        """
        if not self._heartbeats.is_driver_alive():
            raise RunError("the driver of the run has ended; start the run again")
