"""Batches of a split that lies on the device as a whole."""

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
    """Batches of one split for one worker; training images are cut out and mirrored on the device.

    Raises:
        ValueError: training images differ in size.
    """

    def __init__(
        self, beton: Beton, planner: EpochSampler, device: torch.device, threads: int = 0
    ) -> None:
        size = int(beton.sizes[0, 0]) if planner.is_training else planner.image_size
        if planner.is_training and (beton.sizes != size).any():
            raise ValueError(
                f"data.loader: memory needs square images of one size, but those of {beton.path} "
                f"are {beton.sizes.min(axis=0).tolist()} to {beton.sizes.max(axis=0).tolist()} "
                "high and wide; use data.loader: ffcv"
            )
        # Images of the tensor, not of the file: evaluation images are cut while they are loaded.
        self.planner = replace(planner, sizes=np.full_like(beton.sizes, size))
        self.num_samples = len(beton)
        self.labels = torch.from_numpy(beton.labels).to(device)
        self.images = torch.empty((len(beton), size, size, 3), dtype=torch.uint8, device=device)
        everything = replace(
            planner,
            is_training=False,
            image_size=size,
            global_batch_size=256,
            rank=0,
            num_workers=1,
        )
        with StreamingBatches(beton, everything, torch.device("cpu"), threads).epoch(0) as batches:
            start = 0
            for images, _ in batches:
                self.images[start : start + len(images)] = images.permute(0, 2, 3, 1)
                start += len(images)

    def __len__(self) -> int:
        """Batches that this worker reads in one epoch."""
        return len(self.planner)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch; see `ranet.protocols.Batches`."""
        yield self._read(self.planner.epoch(epoch, first_step))

    def _read(self, plan: EpochOrder) -> Iterator[tuple[Tensor, Tensor]]:
        samples = torch.from_numpy(plan.samples).to(self.labels.device)
        boxes = torch.from_numpy(plan.boxes).to(self.labels.device)
        is_copied = bool(np.all(plan.boxes[:, 2:4] == plan.image_size))
        for start in range(0, len(samples), plan.batch_size):
            rows = slice(start, start + plan.batch_size)
            cut = self._copied if is_copied else self._resized
            images = cut(samples[rows], boxes[rows], plan.image_size).permute(0, 3, 1, 2)
            yield images, self.labels[samples[rows]]

    def _copied(self, samples: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Boxes of the images' own scale, black where they reach over the edge."""
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
        """Boxes of any scale, resized bilinearly."""
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
