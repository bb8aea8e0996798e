"""Convolution, batch norm and ReLU as layers of blocks, stem and exits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.model.kernels import NarrowNormRelu, conv1x1, conv3x3, has_fast_norm


def conv_weight(out_channels: int, in_channels: int, kernel: int) -> nn.Parameter:
    """Create the weight of a convolution by He's normal initialisation (fan-out).

    Source: the authors' initialisation, sqrt(2 / (kernel^2 out_channels)).
    """
    std = math.sqrt(2 / (kernel * kernel * out_channels))
    return nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel) * std)


class NormRelu(nn.Module):
    """Batch norm, then ReLU.

    Unlike `nn.BatchNorm2d`, this layer keeps no count of batches, which would cost a kernel
    launch per layer and step; `RANet` keeps one count for all layers.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum = 0.1
    eps = 1e-5

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (batch, channels, height, width), then apply ReLU."""
        if self.training and has_fast_norm(features):
            return NarrowNormRelu.apply(  # pyright: ignore[reportReturnType]
                features,
                self.weight,
                self.bias,
                self.running_mean,
                self.running_var,
                self.momentum,
                self.eps,
            )
        normed = F.batch_norm(
            features,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return F.relu_(normed)

    def fuse(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fold the norm into the preceding convolution: return its weight and bias.

        Args:
            weight: (channels, in_channels, height, width).
            bias: (channels,); None: the convolution has no bias.
        """
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        mean = self.running_mean if bias is None else self.running_mean - bias
        return weight * scale[:, None, None, None], self.bias - mean * scale


class ConvNormRelu(nn.Module):
    """1x1 or 3x3 convolution without bias, padded; batch norm; ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = conv_weight(out_channels, in_channels, kernel)
        self.norm = NormRelu(out_channels)
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        if self.weight.shape[-1] == 1:
            return self.norm(conv1x1(features, self.weight))
        return self.norm(conv3x3(features, self.weight, stride=self.stride))
