"""Normalisation of uint8 images for the network."""

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Normalises uint8 images to float32, zero mean and unit variance per channel.

    Args:
        mean: mean of each channel, on a scale where white is 1.
        std: standard deviation of each channel, on the same scale.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", (torch.tensor(mean) * 255).reshape(shape), persistent=False)
        self.register_buffer(
            "scale", (1 / (torch.tensor(std) * 255)).reshape(shape), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, channels, height, width), uint8, to float32, same layout."""
        return (images.to(self.mean.dtype) - self.mean) * self.scale
