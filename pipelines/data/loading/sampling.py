"""Epoch sampler: order of the samples and their distribution over workers.

A training epoch is a permutation of all images that depends only on seed and epoch. The permutation
is cut into global batches; the incomplete batch at its end is dropped, and its images differ from
epoch to epoch. Worker r of n reads the r-th of n consecutive parts of every global batch; if n does
not divide the batch, the first parts have one image more. Each image is therefore read exactly once
and at the same step for any number of workers, which may change between two steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.loading.augmentation import evaluation_boxes, training_boxes

BLOCK_IMAGES = 16
"""Size of a block of neighbouring images, for data.shuffle blocks."""
WINDOW_IMAGES = 1024 * BLOCK_IMAGES
"""Size of a shuffling window, for data.shuffle blocks."""


def training_order(kind: str, num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the indices of all images in epoch order, (images,).

    Args:
        kind: `data.shuffle`.
        num_images: number of images in the file.
        seed: seed of the order.
        epoch: epoch, counted from 0.
    """
    generator = np.random.default_rng((seed, epoch))
    if kind == "full":
        return generator.permutation(num_images)
    blocks = generator.permutation(-(-num_images // BLOCK_IMAGES))
    images = (blocks[:, None] * BLOCK_IMAGES + np.arange(BLOCK_IMAGES)).reshape(-1)
    images = images[images < num_images]
    windows = np.split(images, range(WINDOW_IMAGES, num_images, WINDOW_IMAGES))
    return np.concatenate([generator.permutation(window) for window in windows])


@dataclass(frozen=True)
class EpochOrder:
    """Samples and crop boxes of one worker in one epoch, by batch."""

    samples: np.ndarray
    """Indices in the file, in reading order (samples,)."""
    boxes: np.ndarray
    """Crop box of each sample, see `training_boxes` (samples, 5)."""
    batch_size: int
    """Images in a batch; the last batch may have fewer."""
    image_size: int
    """Height and width of the images in the batches, in pixels."""
    prefetch_order: np.ndarray
    """The same indices in the order of prefetching; empty: no prefetching."""
    num_ahead: int = 0
    """Number of images that are prefetched ahead of reading."""

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples and boxes of one batch."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.samples[rows], self.boxes[rows]

    def samples_to_prefetch(self, number: int) -> np.ndarray:
        """Return the samples to prefetch when a batch starts."""
        last = (number + 1) * self.batch_size + self.num_ahead
        return self.prefetch_order[last - self.batch_size if number else 0 : last]


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
    """Sampler of one worker's samples; workers' samples are disjoint."""

    config: DataConfig
    is_training: bool
    """Shuffle, augment and drop the incomplete last global batch."""
    sizes: np.ndarray
    """Height and width of every image of the split (images, 2)."""
    image_size: int
    """Height and width of the images in the batches, in pixels; in training the max over epochs."""
    epoch_sizes: Sequence[int] = ()
    """Height and width of the images in each training epoch, in pixels; empty: image_size."""
    global_batch_size: int
    """Images in a batch of all workers together."""
    rank: int
    num_workers: int
    seed: int

    @property
    def batch_size(self) -> int:
        """Max number of images in a batch of this worker."""
        return -(-self.global_batch_size // self.num_workers)

    def __len__(self) -> int:
        """Return the number of batches of this worker in an epoch."""
        if self.is_training:
            return len(self.sizes) // self.global_batch_size
        return -(-len(self._evaluated()) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> EpochOrder:
        """Return the samples of an epoch from a batch on."""
        if not self.is_training:
            samples = self._evaluated()[first_step * self.batch_size :]
            boxes = evaluation_boxes(self.image_size, self.sizes[samples])
            return EpochOrder(samples, boxes, self.batch_size, self.image_size, samples[:0])
        order = training_order(self.config.shuffle, len(self.sizes), self.seed, epoch)
        batches = order[: len(self) * self.global_batch_size].reshape(
            len(self), self.global_batch_size
        )
        own = np.array_split(batches[first_step:], self.num_workers, axis=1)[self.rank]
        samples = own.reshape(-1)
        size = self.epoch_sizes[epoch] if self.epoch_sizes else self.image_size
        boxes = training_boxes(self.config, size, self.seed, epoch, samples, self.sizes[samples])
        if self.config.shuffle == "full":
            return EpochOrder(samples, boxes, own.shape[1], size, samples[:0])
        # Prefetch the images of the next shuffling window, in file order.
        positions = np.arange(first_step, len(self)).repeat(own.shape[1]) * self.global_batch_size
        prefetch_order = samples[np.lexsort((samples, positions // WINDOW_IMAGES))]
        num_ahead = WINDOW_IMAGES // self.num_workers
        return EpochOrder(samples, boxes, own.shape[1], size, prefetch_order, num_ahead)

    def _evaluated(self) -> np.ndarray:
        return np.array_split(np.arange(len(self.sizes)), self.num_workers)[self.rank]
