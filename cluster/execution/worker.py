"""Wrapper of a run's worker function: heartbeats, and logs of unexpected errors."""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import TypeVar

import ray.train

from cluster.errors import RunError
from cluster.execution.failures import distance_from_root_cause, is_out_of_memory
from cluster.execution.heartbeat import HEARTBEAT_SECONDS, Heartbeats
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)

_Task = TypeVar("_Task")


def run_worker(
    function: Callable[[_Task], None], task: _Task, heartbeats: Heartbeats, name: str
) -> None:
    """Run the worker function of a run; rank 0 sends heartbeats meanwhile.

    Args:
        function: the worker function.
        task: its argument.
        heartbeats: receiver of the heartbeats.
        name: name of the run.
    """
    context = ray.train.get_context()
    num_workers = context.get_world_size()
    done = Event()

    def send_heartbeats() -> None:
        while not done.is_set():
            heartbeats.beat(name, num_workers)
            done.wait(HEARTBEAT_SECONDS)

    if context.get_world_rank() == 0:
        Thread(target=send_heartbeats, name="heartbeats", daemon=True).start()
    try:
        function(task)
    except Exception as error:
        # The driver shows every failure in one sentence; only a bug needs its traceback as well.
        expected = isinstance(error, RunError | ValueError | OSError | NonFiniteLoss)
        if distance_from_root_cause(error) == 0 and not expected and not is_out_of_memory(error):
            logger.exception("worker %d failed", context.get_world_rank())
        raise
    finally:
        done.set()
