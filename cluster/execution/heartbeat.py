"""Heartbeats of the runs of a driver, and their Ray Train controllers.

The module imports nothing but Ray, so that the process of the actor starts quickly.
"""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEARTBEAT_SECONDS = 2.0
"""Interval between two heartbeats of a run."""
CALL_SECONDS = 10.0
"""Timeout for calls to the actor and to a controller while a run starts workers or ends."""

_ActorHandle: TypeAlias = Any
"""Handle of an actor; Ray does not type the remote calls of an undecorated class."""


@dataclass(frozen=True)
class HeartbeatStatus:
    """Age of the last heartbeats, and a run's number of workers."""

    seconds_since_any: float
    """Seconds since the last heartbeat of any run, or since the start of the actor."""
    seconds_since_own: float
    """Seconds since the last heartbeat of this run; infinite before the first one."""
    num_workers: int
    """Number of workers of this run; 0 before its first heartbeat."""


class Heartbeats:
    """Client of the heartbeat actor of a driver; picklable.

    The actor runs on the driver's node and ends with the driver. Runs that compete for resources
    share one actor: a run that waits for another one is no failure.
    """

    def __init__(self, actor: _ActorHandle) -> None:
        self._actor = actor

    @classmethod
    def start(cls) -> "Heartbeats":
        """Start a heartbeat actor on this node; it ends with this process."""
        return cls(
            ray.remote(HeartbeatActor)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    ray.get_runtime_context().get_node_id(), soft=False
                ),
            )
            .remote()
        )

    def beat(self, run: str, num_workers: int) -> None:
        """Send a heartbeat of a run, without waiting for an answer."""
        self._actor.beat.remote(run, num_workers)

    def status(self, run: str) -> HeartbeatStatus:
        """Return the age of the last heartbeats and the number of workers."""
        return ray.get(self._actor.status.remote(run))

    def is_driver_alive(self) -> bool:
        """Return whether the driver is alive.

        A slow answer is no evidence against the driver; only the death of its actor is.
        """
        try:
            ray.get(self._actor.status.remote(""), timeout=CALL_SECONDS)
        except GetTimeoutError:
            return True
        except RayActorError:
            return False
        return True

    def register_controller(self, run: str) -> None:
        """Register this process, an actor, as the controller of a run."""
        self._actor.register_controller.remote(run, ray.get_runtime_context().current_actor)

    def forget_controller(self, run: str) -> None:
        """Release the handle of a run's controller, which keeps the controller alive."""
        self._actor.forget_controller.remote(run)

    def abort(self, run: str) -> None:
        """Let a run's controller end its workers and release their resources.

        A controller that is killed together with its driver does not release its requests: Ray
        would reserve the resources of an elastic run for another three minutes.
        """
        with suppress(RayError):  # the controller exits during the call
            controller: _ActorHandle = ray.get(
                self._actor.controller.remote(run), timeout=CALL_SECONDS
            )
            if controller is not None:
                ray.get(controller.abort.remote(), timeout=CALL_SECONDS)
        self.forget_controller(run)


class HeartbeatActor:
    """Receiver of the workers' heartbeats, and registry of controllers."""

    def __init__(self) -> None:
        self._last_heartbeat = time.monotonic()
        self._runs: dict[str, tuple[float, int]] = {}
        self._controllers: dict[str, _ActorHandle] = {}

    def register_controller(self, run: str, controller: _ActorHandle) -> None:
        """Store the handle of a run's Ray Train controller."""
        self._controllers[run] = controller

    def forget_controller(self, run: str) -> None:
        """Release the handle of a run's controller."""
        self._controllers.pop(run, None)

    def controller(self, run: str) -> _ActorHandle | None:
        """Return the Ray Train controller of a run, or None."""
        return self._controllers.get(run)

    def beat(self, run: str, num_workers: int) -> None:
        """Record a heartbeat of a run and its number of workers."""
        self._last_heartbeat = time.monotonic()
        self._runs[run] = self._last_heartbeat, num_workers

    def status(self, run: str) -> HeartbeatStatus:
        """Return the age of the last heartbeats and the number of workers."""
        now = time.monotonic()
        last, num_workers = self._runs.get(run, (-math.inf, 0))
        return HeartbeatStatus(now - self._last_heartbeat, now - last, num_workers)
