"""Which worker reads which part of which image in an epoch: one definition for every loader."""

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
    """Height and width of the images given, in pixels."""
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

    def epoch(self, epoch: int) -> EpochPlan:
        """Plan an epoch, counted from 0."""
        if not self.is_training:
            samples = self._evaluated()
            boxes = evaluation_boxes(self.image_size, self.sizes[samples])
            return EpochPlan(samples, boxes, self.batch_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
        batches = order[: len(self) * self.global_batch_size].reshape(
            len(self), self.num_workers, self.batch_size
        )
        samples = batches[:, self.rank].reshape(-1)
        boxes = training_boxes(
            self.config, self.image_size, self.seed, epoch, samples, self.sizes[samples]
        )
        return EpochPlan(samples, boxes, self.batch_size)

    def _evaluated(self) -> np.ndarray:
        return np.array_split(np.arange(len(self.sizes)), self.num_workers)[self.rank]
