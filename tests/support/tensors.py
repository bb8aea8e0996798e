"""Channels-last features, and gradients in a fixed direction."""

import torch
from torch import Tensor


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    features = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return features.requires_grad_()


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, dtype=output.dtype))
