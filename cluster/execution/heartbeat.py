"""Heartbeat actor: tracks runs with live workers and their Ray Train controllers.

The module imports nothing but Ray, so that the process of the actor starts quickly.
"""

import math
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEARTBEAT_SECONDS = 2.0
"""Interval between two heartbeats of a run."""
ABORT_SECONDS = 10.0
"""Timeout for calls to the actor and to a controller while a run ends."""


def start_heartbeats() -> Any:
    """Start the heartbeat actor on this node; it ends with this process."""
    return (
        ray.remote(HeartbeatActor)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        )
        .remote()
    )


class HeartbeatActor:
    """Receiver of the workers' heartbeats, and registry of controllers."""

    def __init__(self) -> None:
        self._last_heartbeat = time.monotonic()
        self._runs: dict[str, tuple[float, int]] = {}
        self._controllers: dict[str, Any] = {}

    def register_controller(self, name: str, controller: Any) -> None:
        """Store the handle of a run's Ray Train controller."""
        self._controllers[name] = controller

    def forget_controller(self, name: str) -> None:
        """Release the handle of a run's controller."""
        self._controllers.pop(name, None)

    def controller(self, name: str) -> Any:
        """Return the Ray Train controller of a run, or None."""
        return self._controllers.get(name)

    def beat(self, name: str, num_workers: int) -> None:
        """Record a heartbeat of a run and its number of workers."""
        self._last_heartbeat = time.monotonic()
        self._runs[name] = self._last_heartbeat, num_workers

    def status(self, name: str) -> tuple[float, float, int]:
        """Return the age of the last heartbeats and the number of workers.

        Returns:
            seconds since the last heartbeat of any run (or since the start of the actor), seconds
            since the last heartbeat of this run (infinite before the first one), and the number of
            workers of this run.
        """
        now = time.monotonic()
        last, num_workers = self._runs.get(name, (-math.inf, 0))
        return now - self._last_heartbeat, now - last, num_workers


def abort(heartbeats: Any, name: str) -> None:
    """Let a run's controller end its workers and release their resources.

    A controller that is killed together with its driver does not release its requests: Ray would
    reserve the resources of an elastic run for another three minutes.

    Args:
        heartbeats: handle of the heartbeat actor.
        name: name of the run.
    """
    with suppress(RayError):  # the controller exits during the call
        controller: Any = ray.get(heartbeats.controller.remote(name), timeout=ABORT_SECONDS)
        if controller is not None:
            ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
    heartbeats.forget_controller.remote(name)
