"""Faster forms of convolutions, resize and batch norm."""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def conv1x1(features: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution to the first `in` channels of the features.

    Args:
        features: (batch, channels, height, width); the channels after the first `in` are
            multiplied by 0, so their values must be finite.
        weight: (out, in, 1, 1).
    """
    if unread_channels := features.shape[1] - weight.shape[1]:
        weight = F.pad(weight, (0, 0, 0, 0, 0, unread_channels))
    batch, channels, height, width = features.shape
    # The number of threads would break a compiled graph.
    is_plain = batch >= 16 or features.device.type != "cpu" or torch.compiler.is_compiling()
    if is_plain or torch.get_num_threads() > 1:
        return F.conv2d(features, weight)
    # On one CPU thread torch has a slow convolution for fewer than 16 images. A 1x1 convolution
    # may treat every row of pixels as an image; with few rows, a matrix product is faster.
    pixels = features.permute(0, 2, 3, 1)
    if batch * height < 64 or features.dtype != torch.float32:
        return F.linear(pixels, weight.flatten(1)).permute(0, 3, 1, 2)
    rows = pixels.reshape(batch * height, 1, width, channels).permute(0, 3, 1, 2)
    rows = F.conv2d(rows, weight).permute(0, 2, 3, 1)
    return rows.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def conv3x3(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> Tensor:
    """Apply a padded 3x3 convolution to (batch, in, height, width)."""
    batch, channels, height, width = features.shape
    has_few_pixels = batch * (height // stride) * (width // stride) <= channels
    is_large = weight.numel() >= 2**21 and groups == 1
    if not is_large or not has_few_pixels or features.device.type != "cpu":
        return F.conv2d(features, weight, bias, stride=stride, padding=1, groups=groups)
    # With few pixels and a large weight, a CPU convolution spends most of its time on reordering
    # the weight. A matrix product of patches and weight needs no reordering.
    padded = F.pad(features.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)
    product = F.linear(patches.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return product.permute(0, 3, 1, 2)


def resize(features: Tensor, size: torch.Size) -> Tensor:
    """Resize features bilinearly with aligned corners; return them unchanged if equal."""
    if features.shape[-2:] == size:
        return features
    if not torch.is_grad_enabled():
        return _interpolate(features, size)
    return _Resize.apply(features, size)  # pyright: ignore[reportReturnType]


def _interpolate(features: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=True)


class _Resize(torch.autograd.Function):
    """Bilinear resize with a gradient made of two fixed matrix products.

    torch's own gradient uses atomic additions on a GPU, which are not deterministic, and loses
    the channels-last layout on a CPU, which takes ten times as long as the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, size: torch.Size) -> Tensor:
        ctx.in_size = features.shape[-2:]
        return _interpolate(features, size)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        (gradient,) = gradients
        height, width = ctx.in_size
        # The compiler ignores a cache; its graph computes the matrices on the device.
        weights = _resize_weights if torch.compiler.is_compiling() else resize_weights
        rows = weights(height, gradient.shape[2], gradient.dtype, gradient.device)
        columns = weights(width, gradient.shape[3], gradient.dtype, gradient.device)
        pixels = gradient.permute(0, 2, 3, 1).contiguous()
        with torch.autocast(gradient.device.type, enabled=False):
            pixels = (rows @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
            return (columns @ pixels).permute(0, 3, 1, 2), None


def _resize_weights(
    in_size: int, out_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weights of a linear resize with aligned corners, (in_size, out_size)."""
    scale = (in_size - 1) / max(1, out_size - 1)
    positions = torch.arange(out_size, dtype=torch.float64, device=device) * scale
    lower = positions.floor()
    share = positions - lower
    pixels = torch.arange(in_size, dtype=torch.float64, device=device)[:, None]
    weights = torch.where(pixels == lower, 1 - share, 0.0)
    return torch.where(pixels == lower + 1, share, weights).to(dtype)


resize_weights = lru_cache(maxsize=64)(_resize_weights)
"""The same weights, computed once per size, type and device."""


def has_fast_norm(features: Tensor) -> bool:
    """Return whether `NarrowNormRelu` is faster; measured on a CPU with AVX-512."""
    batch, channels, height, width = features.shape
    limit = 16 if features.dtype.itemsize > 2 else 8
    return (
        features.device.type == "cpu"
        and channels < limit
        and batch * height * width >= 8192
        and features.is_contiguous(memory_format=torch.channels_last)
    )


class NarrowNormRelu(torch.autograd.Function):
    """Training batch norm and ReLU for few channels on a CPU.

    torch's own kernel processes a vector of channels at a time, and single channels where there
    are fewer. This function joins k pixels into one row (pixels / k, k x channels), and sums over
    the rows, then over k. All arithmetic is in float32 or a wider type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Normalise features by their batch statistics; update the running statistics."""
        rows = _join_pixels(features)
        num_pixels = features.numel() // len(weight)
        mean = _sum_pixels(rows, len(weight)) / num_pixels
        centred = rows - _tile(mean, rows)
        variance = _sum_pixels(centred * centred, len(weight)) / num_pixels
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (num_pixels / (num_pixels - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        inverse_std = torch.rsqrt(variance + eps)
        output = torch.addcmul(_tile(bias, rows), centred, _tile(weight * inverse_std, rows))
        output = _split_pixels(output.relu_(), features)
        ctx.save_for_backward(features, output, weight, mean, inverse_std)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients of features, weight and bias."""
        features, output, weight, mean, inverse_std = ctx.saved_tensors
        rows = _join_pixels(features)
        num_pixels = features.numel() // len(weight)
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        gradient = _join_pixels(gradient)
        bias_gradient = _sum_pixels(gradient, len(weight))
        products = _sum_pixels(gradient * rows, len(weight))
        weight_gradient = (products - mean * bias_gradient) * inverse_std
        # With x the normalised feature and g the gradient of x * weight + bias, the gradient of
        # the feature is weight / std * (g - mean(g) - x * mean(g * x)): linear in feature and g.
        scale = weight * inverse_std
        slope = -scale * inverse_std * weight_gradient / num_pixels
        offset = -scale * bias_gradient / num_pixels - slope * mean
        result = torch.addcmul(_tile(offset, rows), rows, _tile(slope, rows))
        result.addcmul_(gradient, _tile(scale, rows))
        return _split_pixels(result, features), weight_gradient, bias_gradient, *[None] * 4


def _join_pixels(features: Tensor) -> Tensor:
    """View channels-last features as rows of k pixels."""
    num_pixels = features.numel() // features.shape[1]
    rows = features.permute(0, 2, 3, 1).view(num_pixels // math.gcd(num_pixels, 16), -1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _split_pixels(rows: Tensor, features: Tensor) -> Tensor:
    """Undo `_join_pixels`: restore the shape and type of the features."""
    batch, channels, height, width = features.shape
    return rows.to(features.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)


def _sum_pixels(rows: Tensor, num_channels: int) -> Tensor:
    """Sum each channel over all pixels: (channels,)."""
    return rows.sum(dim=0).view(-1, num_channels).sum(dim=0)


def _tile(values: Tensor, rows: Tensor) -> Tensor:
    """Repeat a value per channel for all pixels of a row."""
    return values.to(rows.dtype).repeat(rows.shape[1] // len(values))
