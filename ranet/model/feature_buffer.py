"""Preallocated feature buffer of the inference form, and views as pixels."""

import torch
from torch import Tensor

from ranet.model.kernels import resize


class FeatureBuffer:
    """Features of a batch in preallocated memory, to which channels are appended.

    `data` is (batch, height, width, capacity); its first `used` channels contain features. `rows`
    is a view of `data`, one row per pixel: (batch x height x width, capacity).
    """

    def __init__(self, data: Tensor, used: int) -> None:
        self.data = data
        self.used = used
        self.rows = data.view(-1, data.shape[3])

    @classmethod
    def empty(cls, like: Tensor, size: torch.Size, capacity: int) -> "FeatureBuffer":
        """Create an empty buffer with batch size, type and device of `like`."""
        return cls(like.new_empty(len(like), *size, capacity), 0)

    @property
    def shape(self) -> torch.Size:
        """Batch, height and width."""
        return self.data.shape[:3]

    @property
    def pixels(self) -> Tensor:
        """View of the features (pixels, used channels)."""
        return self.rows.narrow(1, 0, self.used)

    def append(self, pixels: Tensor) -> None:
        """Append features (pixels, channels) after applying ReLU."""
        channels = pixels.shape[1]
        torch.clamp_min(pixels, 0, out=self.rows.narrow(1, self.used, channels))
        self.used += channels

    def take(self, index: Tensor) -> "FeatureBuffer":
        """Copy the features of the images at these indices."""
        return FeatureBuffer(self.data.index_select(0, index), self.used)

    def narrow(self, used: int) -> "FeatureBuffer":
        """Return a view of the first `used` channels, which shares the memory."""
        return FeatureBuffer(self.data, used)


def as_features(pixels: Tensor, shape: torch.Size) -> Tensor:
    """View pixels as features (batch, channels, height, width).

    Args:
        pixels: (pixels of all images, channels).
        shape: (batch, height, width) of the images.
    """
    return pixels.view(*shape, pixels.shape[1]).permute(0, 3, 1, 2)


def as_pixels(features: Tensor) -> Tensor:
    """Reshape features (batch, channels, height, width) to (pixels, channels)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def halved(shape: torch.Size) -> torch.Size:
    """Output shape (batch, height, width) of a convolution with stride 2."""
    batch, height, width = shape
    return torch.Size((batch, (height + 1) // 2, (width + 1) // 2))


def resize_pixels(pixels: Tensor, shape: torch.Size, new_shape: torch.Size) -> Tensor:
    """Resize pixels between two shapes (batch, height, width)."""
    if shape == new_shape:
        return pixels
    return as_pixels(resize(as_features(pixels, shape), new_shape[1:]))
