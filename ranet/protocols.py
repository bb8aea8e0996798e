"""Protocols and types that the training loop shares with its callers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from torch import Tensor

Metrics: TypeAlias = dict[str, float]
"""Metrics of one epoch by name, such as `val/exit3/top1` in percent."""

Snapshot: TypeAlias = dict[str, Any]
"""Complete training state, from which a run resumes exactly. It has tensors, numbers, strings,
lists and dicts only, so that `torch.load(weights_only=True)` reads it. A saved snapshot has CPU
tensors; while the training runs, `model`, `optimizer` and `ema` are its own tensors.

- `epoch`: number of complete epochs; `step`: steps done in the epoch that follows, 0 after an
  epoch; `seed`: seed of the training; the learning rate follows from epoch and step;
- `model`: state dict; `optimizer`: tensors of the optimizer by parameter name;
- `ema`: state dict of the EMA of the weights; None without EMA;
- `workers`: within an epoch, the state that differs between workers, one row per worker:
  `statistics` of the batch norms and `meter`, the sums of the epoch's metrics; None after an epoch;
- `history`: metrics of every epoch so far, first epoch first;
- `best`: `epoch` (from 1), `value` (the accuracy that selected it) and `model` of the best epoch.
"""


class Batches(Protocol):
    """Batches of one split for one worker."""

    @property
    def num_samples(self) -> int:
        """Number of images of the whole split, over all workers."""
        ...

    def __len__(self) -> int:
        """Number of batches that this worker reads in one epoch."""
        ...

    def epoch(
        self, epoch: int, first_step: int = 0
    ) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of an epoch from a step on.

        Epochs and steps count from 0. The iterator yields images (batch, 3, height, width), uint8,
        and labels (batch,), int64, both on the worker's device. A batch is valid until the next
        batch is read. Shuffling and augmentation of a training split depend on (seed, epoch, sample
        index) only; every worker reads its share of every global batch, the shares differ by at
        most one image, and the last incomplete global batch is dropped. Validation and test splits
        contain each image exactly once over all workers; the numbers of batches of the workers
        may differ. Leaving the context stops all threads.
        """
        ...


class Reporter(Protocol):
    """Receiver of metrics and snapshots; every worker calls each method equally often.

    A reporter copies the tensors of a snapshot before the method returns: the next step changes
    them.
    """

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Handle an epoch's metrics, and its snapshot if one is due."""
        ...

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Count images, seconds and waiting seconds of a step."""
        ...

    def wants_checkpoint(self) -> bool:
        """Return whether to save a checkpoint after this step."""
        ...

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Save a snapshot within an epoch, or end the training."""
        ...
