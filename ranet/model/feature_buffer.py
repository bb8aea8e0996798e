"""Preallocated features of the inference form, and its view of features as pixels."""

import torch
from torch import Tensor

from ranet.model.kernels import resize


class FeatureBuffer:
    """Features of some images with room for more channels.

    `data` is (batch, height, width, room), of which the first `used` channels are set. Pixels
    are its rows: (batch x height x width, channels).
    """

    def __init__(self, data: Tensor, used: int) -> None:
        self.data = data
        self.used = used
        self.rows = data.view(-1, data.shape[3])

    @classmethod
    def empty(cls, like: Tensor, size: torch.Size, room: int) -> "FeatureBuffer":
        """Make one without features, for as many images as there are in `like`."""
        return cls(like.new_empty(len(like), *size, room), 0)

    @property
    def shape(self) -> torch.Size:
        """Batch, height and width."""
        return self.data.shape[:3]

    @property
    def pixels(self) -> Tensor:
        """The features so far (pixels, channels), a view."""
        return self.rows.narrow(1, 0, self.used)

    def append(self, pixels: Tensor) -> None:
        """Write features (pixels, channels) behind the others, cut off at 0."""
        channels = pixels.shape[1]
        torch.clamp_min(pixels, 0, out=self.rows.narrow(1, self.used, channels))
        self.used += channels

    def take(self, index: Tensor) -> "FeatureBuffer":
        """Gather images by their indices."""
        return FeatureBuffer(self.data.index_select(0, index), self.used)

    def narrow(self, used: int) -> "FeatureBuffer":
        """The same features, read only as far as so many channels."""
        return FeatureBuffer(self.data, used)


def as_features(pixels: Tensor, shape: torch.Size) -> Tensor:
    """View pixels of images of a shape (batch, height, width) as (batch, channels, ...)."""
    return pixels.view(*shape, pixels.shape[1]).permute(0, 3, 1, 2)


def as_pixels(features: Tensor) -> Tensor:
    """Give features (batch, channels, height, width) as (pixels of all images, channels)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def halved(shape: torch.Size) -> torch.Size:
    """Shape (batch, height, width) behind a convolution with stride 2."""
    batch, height, width = shape
    return torch.Size((batch, (height + 1) // 2, (width + 1) // 2))


def resize_pixels(pixels: Tensor, shape: torch.Size, new_shape: torch.Size) -> Tensor:
    """Resize pixels of images of a shape (batch, height, width) to another."""
    if shape == new_shape:
        return pixels
    return as_pixels(resize(as_features(pixels, shape), new_shape[1:]))
