"""Which worker reads which part of which image in an epoch: one definition for every loader.

An epoch of training is one permutation of all images, decided by seed and epoch. It is cut into
global batches; what is left at its end, less than a batch, is left out, and these are other images
in each epoch. Worker r of n reads the r-th of n consecutive parts of every global batch; where
n does not divide the batch, the first parts have one image more. So any number of workers, which
may change between two steps, reads each image of the epoch at the same step, exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.augment import evaluation_boxes, training_boxes
from pipelines.data.config import DataConfig


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one worker in one epoch."""

    samples: np.ndarray
    """Indices in the file, in reading order (samples,)."""
    boxes: np.ndarray
    """What is read of each: see `training_boxes` (samples, 5)."""
    batch_size: int
    """Images in a batch; the last one may have fewer."""
    image_size: int
    """Height and width of the images given, in pixels."""

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and boxes of one batch."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.samples[rows], self.boxes[rows]


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans the epochs of one worker; the workers' plans make up one plan of the whole."""

    config: DataConfig
    is_training: bool
    """Shuffle, augment and leave out the last short batch of all workers."""
    sizes: np.ndarray
    """Height and width of every image of the split (images, 2)."""
    image_size: int
    """Height and width of the images given, in pixels; in training: of the largest."""
    epoch_sizes: Sequence[int] = ()
    """Height and width of the images given in each epoch of training; empty: image_size."""
    global_batch_size: int
    """Images in a batch of all workers together."""
    rank: int
    num_workers: int
    seed: int

    @property
    def batch_size(self) -> int:
        """Images in a batch of this worker at most."""
        return -(-self.global_batch_size // self.num_workers)

    def __len__(self) -> int:
        """Batches of this worker in an epoch."""
        if self.is_training:
            return len(self.sizes) // self.global_batch_size
        return -(-len(self._evaluated()) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> EpochPlan:
        """Plan an epoch, counted from 0, from one of its batches on."""
        if not self.is_training:
            samples = self._evaluated()[first_step * self.batch_size :]
            boxes = evaluation_boxes(self.image_size, self.sizes[samples])
            return EpochPlan(samples, boxes, self.batch_size, self.image_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
        batches = order[: len(self) * self.global_batch_size].reshape(
            len(self), self.global_batch_size
        )
        own = np.array_split(batches[first_step:], self.num_workers, axis=1)[self.rank]
        samples = own.reshape(-1)
        size = self.epoch_sizes[epoch] if self.epoch_sizes else self.image_size
        boxes = training_boxes(self.config, size, self.seed, epoch, samples, self.sizes[samples])
        return EpochPlan(samples, boxes, own.shape[1], size)

    def _evaluated(self) -> np.ndarray:
        return np.array_split(np.arange(len(self.sizes)), self.num_workers)[self.rank]
