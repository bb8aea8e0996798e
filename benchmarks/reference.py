"""Networks with reproducible weights, to compare implementations and devices."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ranet import ModelConfig, RANet
from ranet.model.layers import NormRelu


def conformance_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Create the weights of a conformance file.

    Args:
        shapes: shape of each entry of the authors' state dict; the name is the entry's seed.
    """
    state = {}
    for name, shape in shapes.items():
        layer, _, entry = name.rpartition(".")
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if entry == "num_batches_tracked":
            state[name] = torch.tensor(0)
            continue
        if entry == "running_var" or (entry == "weight" and f"{layer}.running_var" in shapes):
            value = 0.5 + rng.random(shape)
        elif entry in ("running_mean", "bias"):
            value = 0.1 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def conformance_images(shape: Sequence[int]) -> Tensor:
    """Create the input of a conformance file, float32."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def random_network(config: ModelConfig, num_images: int = 16) -> tuple[RANet, Tensor]:
    """Create a network with batch norm statistics of random images.

    Returns:
        The network in evaluation mode, and the images (num_images, 3, height, width).
    """
    torch.manual_seed(0)
    model = RANet(config)
    images = torch.randn(num_images, 3, config.image_size, config.image_size)
    for module in model.modules():
        if isinstance(module, NormRelu):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images[:16])
    return model.eval(), images
