"""Forward pass from uint8 images to logits: layout, normalisation, autocast and network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ForwardPass:
    """Network with everything between a uint8 image and its logits."""

    model: nn.Module
    """Maps normalised images to logits (exits, batch, classes)."""
    normalize: Callable[[Tensor], Tensor]
    """Maps uint8 images (batch, 3, height, width) to the input of the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; the weights stay as they are."""
    memory_format: torch.memory_format | None = None
    """Memory format of the images; None: as they arrive."""
    max_images: int = 0
    """Largest number of images that pass through the network at once; 0: the whole batch."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 images (batch, 3, height, width) to logits (exits, batch, classes)."""
        if not 0 < self.max_images < len(images):
            return self._forward(images)
        parts = images.tensor_split(math.ceil(len(images) / self.max_images))
        return torch.cat([self._forward(part) for part in parts], dim=1)

    def _forward(self, images: Tensor) -> Tensor:
        if self.memory_format is not None:
            images = images.contiguous(memory_format=self.memory_format)
        # Normalization runs in float32, because bfloat16 is too coarse to subtract a mean.
        is_bfloat16 = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_bfloat16):
            return self.model(self.normalize(images))

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(chain(self.model.parameters(), self.model.buffers())).device
