"""The pieces that blocks, stem and exits are made of."""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv_weight(out_channels: int, in_channels: int, kernel: int) -> nn.Parameter:
    """Make the weight of a convolution: normal, with He's standard deviation by fan-out.

    Source: the authors' initialisation, sqrt(2 / (kernel^2 out_channels)).
    """
    std = math.sqrt(2 / (kernel * kernel * out_channels))
    return nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel) * std)


def conv1x1(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of features (batch, in, height, width) with a weight (out, in, 1, 1)."""
    # On one CPU thread torch sends fewer than 16 images down a path that copies channels-last
    # features; as a matrix product they stay where they are.
    if len(features) < 16 and features.device.type == "cpu" and torch.get_num_threads() == 1:
        return F.linear(features.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(features, weight, bias)


def resize(features: Tensor, size: torch.Size) -> Tensor:
    """Resize features bilinearly to a height and width, corners aligned; as they are if equal."""
    if features.shape[-2:] == size:
        return features
    return _Resize.apply(features, size)  # pyright: ignore[reportReturnType]


class _Resize(torch.autograd.Function):
    """Bilinear resize whose gradient is two products with fixed matrices.

    torch's own gradient adds atomically on a GPU, so that no two runs are alike, and leaves the
    channels-last layout on a CPU, at ten times the time of the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, size: torch.Size) -> Tensor:
        ctx.in_size = features.shape[-2:]
        return F.interpolate(features, size=size, mode="bilinear", align_corners=True)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        (gradient,) = gradients
        height, width = ctx.in_size
        rows = _interpolation(height, gradient.shape[2], gradient.dtype, gradient.device)
        columns = _interpolation(width, gradient.shape[3], gradient.dtype, gradient.device)
        pixels = gradient.permute(0, 2, 3, 1).contiguous()
        pixels = (rows @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return (columns @ pixels).permute(0, 3, 1, 2), None


@lru_cache(maxsize=64)
def _interpolation(in_size: int, out_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weight of each input in each output of a linear resize: (in_size, out_size)."""
    unit = torch.eye(in_size, dtype=torch.float64)[None]
    weights = F.interpolate(unit, size=out_size, mode="linear", align_corners=True)[0]
    return weights.to(dtype=dtype, device=device)


class NormRelu(nn.Module):
    """Batch norm, then ReLU.

    Differs from `nn.BatchNorm2d`: keeps no count of batches, which would cost a kernel launch
    per layer and step; `RANet` counts for all.
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
        """Normalise features (batch, channels, height, width) and cut them off at 0."""
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

    def folded(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fold the evaluation form into the convolution before it: its new weight and bias.

        Args:
            weight: (channels, in_channels, height, width).
            bias: (channels,); None: the convolution has none.
        """
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        mean = self.running_mean if bias is None else self.running_mean - bias
        return weight * scale[:, None, None, None], self.bias - mean * scale


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU; odd kernel, padded to keep the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = conv_weight(out_channels, in_channels, kernel)
        self.norm = NormRelu(out_channels)
        self.stride = stride
        self.padding = kernel // 2

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        if self.weight.shape[-1] == 1:
            return self.norm(conv1x1(features, self.weight))
        return self.norm(F.conv2d(features, self.weight, stride=self.stride, padding=self.padding))
