"""The actor beside the driver that knows which runs have workers, and their controllers.

It imports nothing but Ray, so that its process starts at once.
"""

import math
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BEAT_SECONDS = 2.0
"""Time between two signs of life of the workers."""
ABORT_SECONDS = 10.0
"""How long a stopped run waits for Ray's controller to end its workers."""


def start_heartbeats() -> Any:
    """Start the actor that workers give signs of life to; it lives as long as this process."""
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
    """Where the workers give signs of life."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._runs: dict[str, tuple[float, int]] = {}
        self._controllers: dict[str, Any] = {}

    def meet(self, name: str, controller: Any) -> None:
        """Get to know Ray's controller of a run."""
        self._controllers[name] = controller

    def forget(self, name: str) -> None:
        """Let go of a run's controller, which would live as long as this actor."""
        self._controllers.pop(name, None)

    def controller(self, name: str) -> Any:
        """Return Ray's controller of a run, None where it has not begun."""
        return self._controllers.get(name)

    def beat(self, name: str, num_workers: int) -> None:
        """Take a sign of life of a run's workers."""
        self._last = time.monotonic()
        self._runs[name] = self._last, num_workers

    def look(self, name: str) -> tuple[float, float, int]:
        """Return the seconds since the last sign of life of any run, and since that of one run.

        And how many workers the latter had.
        """
        now = time.monotonic()
        last, num_workers = self._runs.get(name, (-math.inf, 0))
        return now - self._last, now - last, num_workers


def abort(watch: Any, name: str) -> None:
    """Let the controller of a run end its workers and give back what it asked Ray for.

    Killed with its driver it would not: for three minutes Ray would hold the place of its workers
    against a run whose number of workers is a range.
    """
    with suppress(RayError):  # it ends itself in mid-call
        controller: Any = ray.get(watch.controller.remote(name), timeout=ABORT_SECONDS)
        if controller is not None:
            ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
    watch.forget.remote(name)
