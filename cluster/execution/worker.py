"""Worker function around the one of a run."""

import logging
from threading import Event, Thread
from typing import Any

import ray.train

from cluster.execution.failures import distance_from_root_cause, is_out_of_memory
from cluster.execution.heartbeat import BEAT_SECONDS
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)


def run_worker(task: dict[str, Any]) -> None:
    """Do what a worker has to do; the first of them gives signs of life."""
    context = ray.train.get_context()
    num_workers = context.get_world_size()
    done = Event()

    def beat() -> None:
        while not done.is_set():
            task["watch"].beat.remote(task["name"], num_workers)
            done.wait(BEAT_SECONDS)

    if context.get_world_rank() == 0:
        Thread(target=beat, name="beat", daemon=True).start()
    try:
        task["worker"](task["config"])
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | NonFiniteLoss)
        if distance_from_root_cause(error) == 0 and not expected and not is_out_of_memory(error):
            logger.exception("worker %d failed", context.get_world_rank())
        raise
    finally:
        done.set()
