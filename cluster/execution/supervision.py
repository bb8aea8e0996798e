"""Supervision of a run by its driver, and of the driver by the controller."""

import logging
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from threading import Thread
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import Result
from ray.train.v2._internal.execution.callback import ControllerCallback

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.heartbeat import ABORT_SECONDS, BEAT_SECONDS, abort
from cluster.execution.resources import no_workers_message
from cluster.monitoring.prometheus import active

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Time between two words on workers that are waited for."""


def run_supervised(
    fit: Callable[[], Result], watch: Any, name: str, cluster: ClusterConfig
) -> Result:
    """Run `fit` in a thread to its end, as long as there are workers, of whichever run of a watch.

    In the main thread Ray Train would handle Ctrl-C itself, and leave with status 0; so it reaches
    us as KeyboardInterrupt. The workers end when the connection to Ray is closed.

    Raises:
        RunError: there were no workers for too long.
    """
    outcome: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    try:
        _look_after(outcome, watch, name, cluster, active(name))
    except BaseException:
        abort(watch, name)
        raise
    watch.forget.remote(name)
    return outcome.result()


def _look_after(
    outcome: futures.Future[Result],
    watch: Any,
    name: str,
    cluster: ClusterConfig,
    still_active: Callable[[], None],
) -> None:
    """Wait for the end of a run as long as there are workers, and tell how many there are."""
    known, started = 0, time.monotonic()
    told = started
    while not futures.wait([outcome], timeout=1.0).done:
        still_active()
        silent, own_silent, num_workers = ray.get(watch.look.remote(name))
        silent = min(silent, time.monotonic() - started)
        if own_silent < 2 * BEAT_SECONDS and num_workers != known:
            logger.info("training on %d worker%s", num_workers, "s" * (num_workers > 1))
            known = num_workers
        if silent > cluster.start_timeout_seconds:
            raise RunError(no_workers_message(cluster))
        if silent > LOG_SECONDS and time.monotonic() > told + LOG_SECONDS:
            logger.warning("no workers since %.0f seconds, waiting for them", silent)
            told = time.monotonic()


class ControllerRegistration(ControllerCallback):
    """Tells the watch which actor the controller is, and starts no workers where it is gone.

    It goes with its driver. Ray then takes back the driver's places, workers first; a controller
    that lives a moment longer takes that for lost workers, and what it asks Ray for after its
    driver's end nobody would ever give back.
    """

    def __init__(self, watch: Any, name: str) -> None:
        self._watch, self._name = watch, name

    def after_controller_start(self, train_run_context: Any) -> None:
        """Register the controller."""
        self._watch.meet.remote(self._name, ray.get_runtime_context().current_actor)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Look for the driver.

        Raises:
            RunError: it is gone.
        """
        with suppress(GetTimeoutError):
            try:
                ray.get(self._watch.look.remote(self._name), timeout=ABORT_SECONDS)
            except RayActorError as error:
                raise RunError("the driver of the run is gone") from error
