"""Progress log lines of a training."""

import logging
import time
from datetime import timedelta

from ranet.distributed import rank
from ranet.evaluation.accuracy import validation_top1
from ranet.protocols import Metrics
from ranet.training.meters import EpochMeter

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0
"""Seconds between two log lines within an epoch."""


class ProgressLog:
    """Log of progress and remaining time, written by rank 0 only.

    Args:
        num_epochs: epochs of the whole training.
        steps_per_epoch: steps of an epoch.
        first_step: steps done by previous invocations, counted over all epochs.
    """

    def __init__(self, num_epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._first_step = first_step
        self._started = self._logged = time.monotonic()

    def is_due(self) -> bool:
        """Return whether another line within the epoch is due."""
        return rank() == 0 and time.monotonic() - self._logged > SECONDS_BETWEEN_LINES

    def log_resumed(self, epoch: int, step: int) -> None:
        """Log the epochs and steps that previous invocations have done."""
        if rank() == 0:
            logger.info("resuming after %d epochs and %d steps", epoch, step)

    def log_step(self, epoch: int, step: int, meter: EpochMeter) -> None:
        """Log this worker's training loss and accuracy so far."""
        loss, first, last = meter.means()
        self._log(
            epoch,
            step,
            f"{meter.images_per_second:.0f} images/s, training loss {loss:.4g}, "
            f"top-1 first exit {first * 100:.2f} %, last exit {last * 100:.2f} %",
        )

    def log_epoch(self, epoch: int, metrics: Metrics) -> None:
        """Log the metrics of a whole epoch."""
        top1 = validation_top1(metrics)
        self._log(
            epoch,
            self._steps_per_epoch,
            f"{metrics['train/images_per_second']:.0f} images/s, "
            f"training loss {metrics['train/loss']:.4g}, "
            f"validation top-1 first exit {top1[0]:.2f} %, last exit {top1[-1]:.2f} %",
        )

    def _log(self, epoch: int, step: int, text: str) -> None:
        if rank() != 0:
            return
        self._logged = time.monotonic()
        steps_done = epoch * self._steps_per_epoch + step
        steps_left = self._num_epochs * self._steps_per_epoch - steps_done
        # The difference is 0 if the run resumed between an epoch's last step and the epoch's end.
        pace = (self._logged - self._started) / max(1, steps_done - self._first_step)
        logger.info(
            "epoch %d/%d, step %d/%d: %s; %s left",
            epoch + 1,
            self._num_epochs,
            step,
            self._steps_per_epoch,
            text,
            timedelta(seconds=round(pace * steps_left)),
        )
