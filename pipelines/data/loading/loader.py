"""Opening the batches of a prepared split."""

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
        split: Only train is shuffled and augmented.
        image_size: Height and width of the images given, in pixels.
        batch_size: Images in a batch of all workers together.
        rank: Number of this worker, counted from 0.
        num_workers: Workers that read the split together.
        seed: Seed of the order and the augmentation.
        device: Where the batches shall lie.
        epoch_sizes: Height and width of the training images of each epoch; empty: `image_size`.
            pad4 knows no other size than that of the stored images.

    Raises:
        FileNotFoundError: the split is not prepared.
        ValueError: its file is not whole or of other settings, or does not go with the arguments.
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
            f"{path}: image {outside[0]} has label {beton.labels[outside[0]]}, but there are "
            f"{classes} classes; prepare it anew"
        )
    is_training = split == "train"
    if is_training and batch_size < num_workers:
        raise ValueError(
            f"train.batch_size must be at least the number of workers, {num_workers}, got "
            f"{batch_size}: every worker takes a part of each batch"
        )
    if is_training and len(beton) < batch_size:
        raise ValueError(
            f"train.batch_size is {batch_size}, but {path} holds {len(beton)} images: "
            "there is no whole batch"
        )
    if is_training and config.augment.crop == "pad4" and (beton.sizes != image_size).any():
        raise ValueError(
            f"data.augment.crop: pad4 needs images of {image_size}x{image_size} pixels, but those of "
            f"{path} are {beton.sizes.min(axis=0).tolist()} to "
            f"{beton.sizes.max(axis=0).tolist()} high and wide; use data.augment.crop: random_resized"
        )
    planner = EpochSampler(
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
    return loader(beton, planner, device, config.decode_threads)
