"""Open the batches of a prepared split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.data.config import DataConfig, Split
from pipelines.data.format.metadata import read_info, rewrite_hint, split_path
from ranet.protocols import Batches

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Worker that reads batches; by default the only one, on the CPU."""

    rank: int = 0
    """Rank of this worker, counted from 0."""
    num_workers: int = 1
    """Number of workers that share the split."""
    seed: int = 0
    """Seed of the shuffling and the augmentation; the same for all workers."""
    device: torch.device = _CPU
    """Device of the batches."""


def open_batches(
    config: DataConfig,
    split: Split,
    *,
    image_size: int,
    batch_size: int,
    worker: Worker,
    epoch_sizes: Sequence[int] = (),
) -> Batches:
    """Open one worker's batches of a prepared split.

    Args:
        config: Settings of the data.
        split: The split; only train is shuffled and augmented.
        image_size: Height and width of the images in the batches, in pixels.
        batch_size: Images in a batch of all workers together.
        worker: The worker that reads the batches.
        epoch_sizes: Height and width of the training images of each epoch; empty: `image_size`.
            The crop pad4 supports only the size of the stored images.

    Raises:
        FileNotFoundError: the split is not prepared.
        ValueError: the file is incomplete, has other settings, or does not fit the arguments.
    """
    from pipelines.data.format.beton import open_beton
    from pipelines.data.loading.in_memory import MemoryBatches
    from pipelines.data.loading.sampling import EpochSampler
    from pipelines.data.loading.streaming import StreamingBatches

    info = read_info(config, image_size)
    path = split_path(Path(info.folder), split)
    beton = open_beton(path)
    _check_labels(path, beton.labels, len(info.class_names))
    is_training = split == "train"
    if is_training:
        _check_batch_size(path, len(beton), batch_size, worker.num_workers)
        if config.augment.crop == "pad4":
            _check_stored_sizes(path, beton.sizes, image_size)
    sampler = EpochSampler(
        config=config,
        is_training=is_training,
        sizes=beton.sizes,
        image_size=max(epoch_sizes, default=image_size) if is_training else image_size,
        epoch_sizes=epoch_sizes if is_training else (),
        global_batch_size=batch_size,
        rank=worker.rank,
        num_workers=worker.num_workers,
        seed=worker.seed,
    )
    loader = MemoryBatches if config.loader == "memory" else StreamingBatches
    return loader(beton, sampler, worker.device, config.decode_threads)


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    """Check that every label of a file names a class."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise ValueError(
            f"{path}: image {outside[0]} has label {labels[outside[0]]}, but the number of "
            f"classes is {classes}; {rewrite_hint(path)}"
        )


def _check_batch_size(path: Path, num_images: int, batch_size: int, num_workers: int) -> None:
    """Check that a training batch fits the workers and the images."""
    if batch_size < num_workers:
        raise ValueError(
            f"train.batch_size must be at least the number of workers, {num_workers}, got "
            f"{batch_size}: every worker takes a part of each batch"
        )
    if num_images < batch_size:
        raise ValueError(
            f"train.batch_size is {batch_size}, but {path} has only {num_images} images; "
            "use a smaller batch"
        )


def _check_stored_sizes(path: Path, sizes: np.ndarray, image_size: int) -> None:
    """Check that stored images have the size that crop pad4 needs."""
    if (sizes != image_size).any():
        raise ValueError(
            f"data.augment.crop: pad4 needs images of {image_size}x{image_size} pixels, but {path} "
            f"has images of [height, width] {sizes.min(axis=0).tolist()} to "
            f"{sizes.max(axis=0).tolist()}; use data.augment.crop: random_resized"
        )
