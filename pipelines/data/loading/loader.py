"""Open the batches of a prepared split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines.data.config import DataConfig, Split
from pipelines.data.format.metadata import read_info, split_path
from ranet.protocols import Batches


def open_batches(
    config: DataConfig,
    split: Split,
    *,
    image_size: int,
    batch_size: int,
    rank: int,
    num_workers: int,
    seed: int,
    device: torch.device,
    epoch_sizes: Sequence[int] = (),
) -> Batches:
    """Open one worker's batches of a prepared split.

    Args:
        config: Settings of the data.
        split: The split; only train is shuffled and augmented.
        image_size: Height and width of the images in the batches, in pixels.
        batch_size: Images in a batch of all workers together.
        rank: Rank of this worker.
        num_workers: Number of workers that share the split.
        seed: Seed of the shuffling and the augmentation.
        device: Device of the batches.
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
    classes = len(info.class_names)
    outside = np.flatnonzero((beton.labels < 0) | (beton.labels >= classes))
    if len(outside):
        raise ValueError(
            f"{path}: image {outside[0]} has label {beton.labels[outside[0]]}, but the number of "
            f"classes is {classes}; prepare it again"
        )
    is_training = split == "train"
    if is_training and batch_size < num_workers:
        raise ValueError(
            f"train.batch_size must be at least the number of workers, {num_workers}, got "
            f"{batch_size}: every worker takes a part of each batch"
        )
    if is_training and len(beton) < batch_size:
        raise ValueError(
            f"train.batch_size is {batch_size}, but {path} has only {len(beton)} images; "
            "use a smaller batch"
        )
    if is_training and config.augment.crop == "pad4" and (beton.sizes != image_size).any():
        raise ValueError(
            f"data.augment.crop: pad4 needs images of {image_size}x{image_size} pixels, but {path} "
            f"has images of [height, width] {beton.sizes.min(axis=0).tolist()} to "
            f"{beton.sizes.max(axis=0).tolist()}; use data.augment.crop: random_resized"
        )
    sampler = EpochSampler(
        config=config,
        is_training=is_training,
        sizes=beton.sizes,
        image_size=max(epoch_sizes, default=image_size) if is_training else image_size,
        epoch_sizes=epoch_sizes if is_training else (),
        global_batch_size=batch_size,
        rank=rank,
        num_workers=num_workers,
        seed=seed,
    )
    loader = MemoryBatches if config.loader == "memory" else StreamingBatches
    return loader(beton, sampler, device, config.decode_threads)
