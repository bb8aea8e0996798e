"""Stem: base features of every sub-network."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import StemSpec
from ranet.model.layers import ConvNormRelu, NormRelu


class LargeStemStep(nn.Module):
    """7x7 convolution, batch norm, ReLU and 3x3 max pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3)
        self.norm = NormRelu(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features of a quarter of their size."""
        return F.max_pool2d(self.norm(self.conv(images)), 3, stride=2, padding=1)


class Stem(nn.Module):
    """Base features of every scale, each computed from the next higher scale.

    Yang et al., CVPR 2020 (arXiv:2003.07326), section 3.2 ("initial layer").
    """

    def __init__(self, steps: Iterable[nn.Module]) -> None:
        """Create a stem from the steps of each scale, lowest resolution first."""
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (batch, 3, height, width) to features, lowest resolution first."""
        features: list[Tensor] = []
        for step in reversed(self.steps):
            features.append(step(features[-1] if features else images))
        return features[::-1]


def make_step(spec: StemSpec) -> nn.Module:
    """Build one step of the stem."""
    if spec.is_large:
        return LargeStemStep(spec.in_channels, spec.out_channels)
    step = ConvNormRelu(spec.in_channels, spec.out_channels, 3, stride=spec.stride)
    # The authors initialise the stem by torch's defaults.
    nn.init.kaiming_uniform_(step.weight, a=5**0.5)
    return step
