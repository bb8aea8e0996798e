"""Failure policy of a run, and the descriptions of failures for users."""

import errno
import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from ray.train import Checkpoint, UserCallback
from torch.distributed import DistError

from cluster.config import ClusterConfig
from cluster.errors import RunError, UntrainableError
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)


class FailurePolicy(UserCallback):
    """Ends a run that cannot be helped, or fails again and again; in Ray's controller process."""

    def __init__(self, cluster: ClusterConfig, storage: str) -> None:
        self._limit = cluster.max_consecutive_failures
        self._storage = storage
        self._in_a_row = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Forget the failures before this report."""
        self._in_a_row = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Decide whether the workers are started again.

        Raises:
            RunError: they are not.
        """
        if any(
            getattr(health_check_cause(each), "preempted", False)
            for each in worker_exceptions.values()
        ):
            return  # a node was taken with notice: no failure, and Ray may tell of it repeatedly
        rank, cause = first_cause(worker_exceptions)
        sentence = {
            0: f"worker {rank} failed: {describe_failure(cause, self._storage)}",
            1: f"worker {rank} was lost: it was killed, ran out of memory, or its node went",
            2: f"worker {rank} lost the connection to another one ({_first_line(cause)})",
        }[distance_from_root_cause(cause)]
        if isinstance(cause, ValueError | NonFiniteLoss) or is_out_of_memory(cause):
            raise UntrainableError(sentence)
        if _is_full_disk(cause):
            raise RunError(sentence)
        self._in_a_row += 1
        if self._in_a_row > self._limit:
            # Workers that die again and again without a word have too little memory.
            raise (UntrainableError if distance_from_root_cause(cause) == 1 else RunError)(
                f"{sentence}; that is failure {self._in_a_row} in a row without a report between, "
                f"and cluster.max_consecutive_failures is {self._limit}; start the run again to go on from its "
                "last checkpoint"
            )
        logger.warning(
            "%s; going on from the last checkpoint (failure %d in a row, cluster.max_consecutive_failures %d)",
            sentence, self._in_a_row, self._limit,
        )  # fmt: skip


def first_cause(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """Return the failure that explains those of the other workers, and its rank."""
    return min(failures.items(), key=lambda item: (distance_from_root_cause(item[1]), item[0]))


def distance_from_root_cause(failure: Exception) -> int:
    """Order the failures of several workers: an error, then a death, then losing one's peers."""
    if type(failure).__module__.startswith("ray."):
        return 1
    if isinstance(failure, DistError):
        return 2
    # Gloo has no error of its own.
    text = str(failure).lower()
    return 2 * (type(failure) is RuntimeError and ("connection" in text or "gloo" in text))


def health_check_cause(failure: Exception) -> Exception:
    """Return what a failed health check of Ray Train failed of."""
    return getattr(failure, "health_check_failure", failure)


def _first_line(cause: Exception) -> str:
    return str(cause).partition("\n")[0]


def _is_full_disk(cause: Exception) -> bool:
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(cause: Exception) -> bool:
    """Whether memory was refused, of a GPU or of a CPU, for which torch has no error of its own."""
    return isinstance(cause, MemoryError | torch.OutOfMemoryError) or (
        type(cause) is RuntimeError and "can't allocate memory" in str(cause)
    )


def describe_failure(cause: Exception, storage: str) -> str:
    """Return a failure as one sentence, with what helps against full disks and full memory."""
    if is_out_of_memory(cause):
        return (
            f"not enough memory: {_first_line(cause)}; a smaller model or train.batch_size needs "
            "less"
        )
    if _is_full_disk(cause):
        return (
            f"no space for a checkpoint: {cause}; free space in cluster.storage_path, {storage}, or in "
            f"the temporary folder of the node, {tempfile.gettempdir()}, and start the run again"
        )
    if isinstance(cause, RunError | ValueError | OSError | NonFiniteLoss):
        return str(cause)
    return f"{type(cause).__name__}: {cause}"
