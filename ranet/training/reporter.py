"""What the training loop needs from outside: batches to read, and a place to report to."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from torch import Tensor

logger = logging.getLogger(__name__)

Metrics: TypeAlias = dict[str, float]
"""Numbers of one epoch by name, such as `val/exit3/top1` in percent."""

Snapshot: TypeAlias = dict[str, Any]
"""All that a resumed run needs, as CPU tensors, numbers, strings, lists and dicts only, so that
`torch.load(weights_only=True)` reads it.

- `epoch`: epochs done, `seed`: the training's seed; the learning rate follows from the epoch;
- `model`: state dict, `optimizer`: its tensors by parameter name;
- `history`: metrics of every epoch so far, first epoch first;
- `best`: `epoch` (from 1), `value` (the accuracy it was chosen by) and `model` of the best epoch.
"""


class Batches(Protocol):
    """Batches of one split, as one worker sees them."""

    @property
    def num_samples(self) -> int:
        """Images of the whole split, over all workers."""
        ...

    def __len__(self) -> int:
        """Batches that this worker reads in one epoch."""
        ...

    def epoch(self, epoch: int) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch (counted from 0): a context that yields an iterator.

        The iterator gives images (batch, 3, height, width), uint8, and labels (batch,), int64,
        both on the worker's device. A batch is valid until the next one is read. Training
        splits are shuffled and augmented by (seed, epoch, sample index) alone, every worker
        gets equally many batches of equal size, and the last short global batch is left out;
        validation and test splits give each image exactly once over all workers, in unequal
        numbers of batches where they do not divide. Leaving the context frees all threads.
        """
        ...


class Reporter(Protocol):
    """Receives what a run produces; called on every worker, once per epoch."""

    def report(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Take the metrics of an epoch and the state to resume after it."""
        ...


class LogReporter:
    """Writes the metrics to the log: for a run on one machine without a cluster."""

    def report(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Log one line with every metric."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("epoch %d: %s", snapshot["epoch"], text)
