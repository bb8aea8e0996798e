"""CIFAR-10 from parquet files, as batches that stay on the device."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Images:
    """Images (images, 3, height, width), uint8, and labels (images,), int64."""

    pixels: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Images":
        """Return the images at some indices."""
        return Images(self.pixels[index], self.labels[index])


def read_cifar(folder: Path, size: int = 32) -> dict[str, Images]:
    """Read the splits train, val and test from `cifar10-train.parquet` and `cifar10-test.parquet`.

    The columns are `image`, an encoded image, and `label`. A tenth of the training images, chosen
    with a fixed seed, is held out as val.

    Args:
        folder: folder of the two files.
        size: height and width of the images, in pixels.
    """
    train, test = (_read(folder / f"cifar10-{split}.parquet", size) for split in ("train", "test"))
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    num_val = round(VALIDATION_SHARE * len(order))
    return {"train": train.take(order[num_val:]), "val": train.take(order[:num_val]), "test": test}


def _read(file: Path, size: int) -> Images:
    table = parquet.read_table(file, columns=["image", "label"]).to_pydict()
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(each)).convert("RGB").resize((size, size)))
            for each in table["image"]
        ]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(table["label"]))


class DeviceBatches:
    """`Batches` of images on a device, for one worker.

    Args:
        images: the images.
        batch_size: images in a batch.
        seed: seed of order and augmentation (crops of the padded image, mirroring); None: all
            images, in order, without augmentation.
    """

    def __init__(self, images: Images, batch_size: int, seed: int | None = None) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.images.labels)

    def __len__(self) -> int:
        is_partial = self.seed is None and self.num_samples % self.batch_size > 0
        return self.num_samples // self.batch_size + is_partial

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open an epoch's batches from a step on, like `Batches`."""
        batches = self._in_order() if self.seed is None else self._augmented(epoch)
        for _ in range(first_step):
            next(batches)
        yield batches

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = self.images.pixels, self.images.labels
        yield from zip(pixels.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def _augmented(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = self.images.pixels, self.images.labels
        size, device = pixels.shape[-1], pixels.device
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed or 0) + epoch)
        # Random numbers of the whole epoch, copied once.
        order = torch.randperm(self.num_samples, generator=generator).to(device)
        starts = torch.randint(2 * PADDING + 1, (2, self.num_samples), generator=generator).to(
            device
        )
        mirrored = (torch.rand(self.num_samples, generator=generator) < 0.5).to(device)
        along = torch.arange(size, device=device)
        for index in order.split(self.batch_size)[: len(self)]:
            padded = pad(pixels[index], (PADDING,) * 4).permute(0, 2, 3, 1)
            rows, columns = (starts[axis, index, None] + along for axis in (0, 1))
            columns = torch.where(mirrored[index, None], columns.flip(1), columns)
            each = torch.arange(len(index), device=device)[:, None, None]
            crops = padded[each, rows[:, :, None], columns[:, None, :]]
            yield crops.permute(0, 3, 1, 2), labels[index]
