"""What the training loop needs from outside: batches to read, and a place to report to."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from torch import Tensor

Metrics: TypeAlias = dict[str, float]
"""Numbers of one epoch by name, such as `val/exit3/top1` in percent."""

Snapshot: TypeAlias = dict[str, Any]
"""All that a resumed run needs, as CPU tensors, numbers, strings, lists and dicts only, so that
`torch.load(weights_only=True)` reads it.

- `epoch`: epochs done; `step`: steps done in the next one, 0 after an epoch; `seed`: the
  training's seed; the learning rate follows from epoch and step;
- `model`: state dict, `optimizer`: its tensors by parameter name;
- `average`: state dict of the moving average of the weights; None without one;
- `workers`: within an epoch, what workers do not share, a row each: `statistics` of the batch norms
  and `tally`, what the epoch's metrics will be made of; None after an epoch, when all are alike;
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

    def epoch(
        self, epoch: int, first_step: int = 0
    ) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch, from one of them on: a context that yields an iterator.

        Both are counted from 0. The iterator gives images (batch, 3, height, width), uint8, and
        labels (batch,), int64, both on the worker's device. A batch is valid until the next one
        is read. Training splits are shuffled and augmented by (seed, epoch, sample index) alone;
        every worker gets its part of every global batch, at most one image more or less than the
        others, and the last short global batch is left out. Validation and test splits give each
        image exactly once over all workers, in unequal numbers of batches where they do not
        divide. Leaving the context frees all threads.
        """
        ...


class Reporter(Protocol):
    """Receives what a run produces; every worker calls it equally often."""

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Take the metrics of an epoch, and the state to resume after it where one is due."""
        ...

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Take what a step of this worker took: its images, seconds, and those spent waiting."""
        ...

    def wants_checkpoint(self) -> bool:
        """Say whether a checkpoint is wanted now; asked after every step, the same on all."""
        ...

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Take the state to resume from within an epoch; it may end the training by raising."""
        ...
