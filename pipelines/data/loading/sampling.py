"""Which worker reads which part of which image in an epoch: one definition for every loader.

An epoch of training is one order of all images, decided by seed and epoch. It is cut into
global batches; what is left at its end, less than a batch, is left out, and these are other images
in each epoch. Worker r of n reads the r-th of n consecutive parts of every global batch; where
n does not divide the batch, the first parts have one image more. So any number of workers, which
may change between two steps, reads each image of the epoch at the same step, exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.loading.augmentation import evaluation_boxes, training_boxes

BLOCK_IMAGES = 16
"""Neighbours in the file that are read together where data.shuffle is blocks."""
WINDOW_IMAGES = 1024 * BLOCK_IMAGES
"""Images among which any may follow any other then."""


def training_order(kind: str, num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Indices of all images in the order of an epoch (images,).

    Args:
        kind: `data.shuffle`.
        num_images: images in the file.
        seed: of the order, which depends on nothing else but the epoch.
        epoch: counted from 0.
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
    """Batches of one worker in one epoch."""

    samples: np.ndarray
    """Indices in the file, in reading order (samples,)."""
    boxes: np.ndarray
    """What is read of each: see `training_boxes` (samples, 5)."""
    batch_size: int
    """Images in a batch; the last one may have fewer."""
    image_size: int
    """Height and width of the images given, in pixels."""
    ahead: np.ndarray
    """The same indices in the order in which a disk is best asked for them; empty where it need not
    be asked."""
    num_ahead: int = 0
    """Images for which the disk is asked before they are read."""

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and boxes of one batch."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.samples[rows], self.boxes[rows]

    def samples_to_prefetch(self, number: int) -> np.ndarray:
        """Indices of images for which to ask the disk when a batch is begun."""
        last = (number + 1) * self.batch_size + self.num_ahead
        return self.ahead[last - self.batch_size if number else 0 : last]


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
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

    def epoch(self, epoch: int, first_step: int = 0) -> EpochOrder:
        """Plan an epoch, counted from 0, from one of its batches on."""
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
        # A window ahead, each window from its first image in the file to its last.
        places = np.arange(first_step, len(self)).repeat(own.shape[1]) * self.global_batch_size
        ahead = samples[np.lexsort((samples, places // WINDOW_IMAGES))]
        num_ahead = WINDOW_IMAGES // self.num_workers
        return EpochOrder(samples, boxes, own.shape[1], size, ahead, num_ahead)

    def _evaluated(self) -> np.ndarray:
        return np.array_split(np.arange(len(self.sizes)), self.num_workers)[self.rank]
