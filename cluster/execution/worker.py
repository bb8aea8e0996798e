"""Wrapper of a run's worker function: heartbeats, and logs of unexpected errors."""

import logging
from threading import Event, Thread
from typing import Any

import ray.train

from cluster.execution.failures import distance_from_root_cause, is_out_of_memory
from cluster.execution.heartbeat import HEARTBEAT_SECONDS
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)


def run_worker(task: dict[str, Any]) -> None:
    """Run the worker function of a run; rank 0 sends heartbeats meanwhile.

    Args:
        task: the worker function ("worker"), its argument ("config"), the handle of the heartbeat
            actor ("heartbeats") and the name of the run ("name").
    """
    context = ray.train.get_context()
    num_workers = context.get_world_size()
    done = Event()

    def send_heartbeats() -> None:
        while not done.is_set():
            task["heartbeats"].beat.remote(task["name"], num_workers)
            done.wait(HEARTBEAT_SECONDS)

    if context.get_world_rank() == 0:
        Thread(target=send_heartbeats, name="heartbeats", daemon=True).start()
    try:
        task["worker"](task["config"])
    except Exception as error:
        # The driver shows every failure in one sentence; only a bug needs its traceback as well.
        expected = isinstance(error, ValueError | OSError | NonFiniteLoss)
        if distance_from_root_cause(error) == 0 and not expected and not is_out_of_memory(error):
            logger.exception("worker %d failed", context.get_world_rank())
        raise
    finally:
        done.set()
