"""Failure policy of a run, and the descriptions of failures for users."""

import errno
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from ray.train import Checkpoint, UserCallback
from torch.distributed import DistError

from cluster.config import ClusterConfig
from cluster.errors import RunError, TimeLimitError, UntrainableError
from cluster.execution.preemption import is_preemption
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)


class FailurePolicy(UserCallback):
    """Callback that ends a run after unfixable or too many failures.

    Ray Train itself restarts the workers without limit. The callback runs in its controller
    process, and an exception raised by the callback ends the run. More than
    `cluster.max_consecutive_failures` failures without a report in between are too many.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._max_failures = cluster.max_consecutive_failures
        self._storage = cluster.storage_path
        self._num_failures = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Reset the count of consecutive failures: the run has made progress."""
        self._num_failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Let Ray Train restart the workers, or end the run.

        Raises:
            RunError: the run ends.
        """
        # A preempted node is not a failure; Ray may report the same preemption several times.
        if any(is_preemption(failure) for failure in worker_exceptions.values()):
            return
        # All workers stop at the same step, after a checkpoint.
        for failure in worker_exceptions.values():
            if isinstance(failure, TimeLimitError):
                raise failure
        # Report the root cause only: the other workers failed because of it.
        rank, cause = first_cause(worker_exceptions)
        description = {
            0: f"worker {rank} failed: {describe_failure(cause, self._storage)}",
            1: f"worker {rank} was lost: it was killed, ran out of memory, or its node failed",
            2: f"worker {rank} lost the connection to another worker ({_first_line(cause)})",
        }[distance_from_root_cause(cause)]
        # Errors that would recur end the run at once. `UntrainableError` blames the settings: a
        # sweep then continues with other ones. A full disk has to be cleaned up first.
        if isinstance(cause, ValueError | NonFiniteLoss) or is_out_of_memory(cause):
            raise UntrainableError(description)
        if _is_full_disk(cause):
            raise RunError(description)
        # Other failures may be temporary: the workers restart, up to the limit.
        self._num_failures += 1
        if self._num_failures > self._max_failures:
            # Workers that are killed repeatedly, without an exception, have too little memory.
            raise (UntrainableError if distance_from_root_cause(cause) == 1 else RunError)(
                f"{description}; consecutive failure {self._num_failures} without progress, "
                f"cluster.max_consecutive_failures is {self._max_failures}; start the run again to "
                "resume from its last checkpoint"
            )
        logger.warning(
            "%s; restarting from the last checkpoint (consecutive failure %d, "
            "cluster.max_consecutive_failures is %d)",
            description, self._num_failures, self._max_failures,
        )  # fmt: skip


def first_cause(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """Return rank and exception of the root cause of a failure."""
    return min(failures.items(), key=lambda item: (distance_from_root_cause(item[1]), item[0]))


def distance_from_root_cause(failure: Exception) -> int:
    """Rank a worker's failure among those of a worker group.

    Returns:
        0: exception in the worker function; 1: the worker process died; 2: the worker lost the
        connection to another worker.
    """
    if type(failure).__module__.startswith("ray."):
        return 1
    if isinstance(failure, DistError):
        return 0 if is_out_of_memory(failure) else 2
    # Gloo raises a plain RuntimeError.
    text = str(failure).lower()
    return 2 * (type(failure) is RuntimeError and ("connection" in text or "gloo" in text))


def _first_line(cause: Exception) -> str:
    return str(cause).partition("\n")[0]


def _is_full_disk(cause: Exception) -> bool:
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(cause: Exception) -> bool:
    """Return whether an allocation failed on the GPU or CPU.

    For failed allocations on the CPU, in cuDNN, cuBLAS and NCCL torch raises RuntimeErrors.
    """
    if isinstance(cause, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(cause)
    signs = ("can't allocate memory", "ALLOC_FAILED", "out of memory")
    return isinstance(cause, RuntimeError) and any(sign in text for sign in signs)


class OutOfMemory(MemoryError):  # noqa: N818 - named after its condition
    """Failed allocation, with advice for the work that needed the memory."""


@contextmanager
def memory_advice(work: str, advice: str) -> Iterator[None]:
    """Add advice to errors of allocations.

    Args:
        work: the work that runs, for the message, such as "training".
        advice: what the user can do.

    Raises:
        OutOfMemory: an allocation failed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"not enough memory while {work}: {_first_line(error)}; {advice}"
        ) from error


def describe_failure(cause: Exception, storage: str) -> str:
    """Describe a failure in one sentence, with a remedy if known."""
    if isinstance(cause, OutOfMemory):
        return str(cause)
    if is_out_of_memory(cause):
        return f"not enough memory: {_first_line(cause)}; use a smaller model or train.batch_size"
    if _is_full_disk(cause):
        return (
            f"no space for a checkpoint: {cause}; free space in cluster.storage_path, {storage}, "
            "or "
            f"in the temporary folder of the node, {tempfile.gettempdir()}, and start the run again"
        )
    if isinstance(cause, RunError | ValueError | OSError | NonFiniteLoss):
        return str(cause)
    return f"{type(cause).__name__}: {cause}"
