"""Batches of a split that is held in the device's memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.data.format.beton import Beton
from pipelines.data.loading.sampling import EpochOrder, EpochSampler
from pipelines.data.loading.streaming import StreamingBatches


class MemoryBatches:
    """Batches of one split for one worker, cropped on the device.

    Raises:
        ValueError: training images differ in size.
    """

    def __init__(
        self, beton: Beton, sampler: EpochSampler, device: torch.device, threads: int = 0
    ) -> None:
        size = int(beton.sizes[0, 0]) if sampler.is_training else sampler.image_size
        if sampler.is_training and (beton.sizes != size).any():
            raise ValueError(
                f"data.loader: memory needs square images of one size, but {beton.path} has images "
                f"of [height, width] {beton.sizes.min(axis=0).tolist()} to "
                f"{beton.sizes.max(axis=0).tolist()}; use data.loader: ffcv"
            )
        # Sizes in the tensor, not in the file: evaluation images are cropped when they are loaded.
        self.sampler = replace(sampler, sizes=np.full_like(beton.sizes, size))
        self.num_samples = len(beton)
        self.labels = torch.from_numpy(beton.labels).to(device)
        self.images = torch.empty((len(beton), size, size, 3), dtype=torch.uint8, device=device)
        whole_split = replace(
            sampler,
            is_training=False,
            image_size=size,
            global_batch_size=256,
            rank=0,
            num_workers=1,
        )
        with StreamingBatches(beton, whole_split, torch.device("cpu"), threads).epoch(0) as batches:
            start = 0
            for images, _ in batches:
                self.images[start : start + len(images)] = images.permute(0, 2, 3, 1)
                start += len(images)

    def __len__(self) -> int:
        """Return the number of batches of this worker in one epoch."""
        return len(self.sampler)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch; see `ranet.protocols.Batches`."""
        yield self._read(self.sampler.epoch(epoch, first_step))

    def _read(self, order: EpochOrder) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.labels.device
        samples = torch.from_numpy(order.samples).to(device, non_blocking=True)
        boxes = torch.from_numpy(order.boxes).to(device, non_blocking=True)
        is_copied = bool(np.all(order.boxes[:, 2:4] == order.image_size))
        for start in range(0, len(samples), order.batch_size):
            rows = slice(start, start + order.batch_size)
            crop = self._copied if is_copied else self._resized
            images = crop(samples[rows], boxes[rows], order.image_size).permute(0, 3, 1, 2)
            yield images, self.labels[samples[rows]]

    def _copied(self, samples: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Copy boxes of the output size; pixels outside the image are black."""
        height, width = self.images.shape[1:3]
        steps = torch.arange(size, device=boxes.device)
        rows = boxes[:, :1] + steps
        columns = boxes[:, 1:2] + torch.where(boxes[:, 4:] == 1, steps.flip(0), steps)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
            :, None, :
        ]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        images = self.images[samples[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images * inside[..., None]

    def _resized(self, samples: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Resize boxes of any size bilinearly."""
        height, width = self.images.shape[1:3]
        centres = (torch.arange(size, device=boxes.device) + 0.5) / size
        columns = torch.where(boxes[:, 4:] == 1, centres.flip(0), centres)
        rows = (boxes[:, :1] + centres * boxes[:, 2:3]) * 2 / height - 1
        columns = (boxes[:, 1:2] + columns * boxes[:, 3:4]) * 2 / width - 1
        grid = torch.stack(
            [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)],
            dim=-1,
        )
        images = F.grid_sample(
            self.images[samples].permute(0, 3, 1, 2).float(),
            grid,
            padding_mode="border",
            align_corners=False,
        )
        return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
