"""Parameter count and training memory of a network, computed without training."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ranet.config import ModelConfig
from ranet.model.network import RANet
from ranet.torch_internals import storage_id


@dataclass(frozen=True)
class Footprint:
    """Parameter count and memory of a training."""

    parameters: int
    """Number of trainable weights."""
    memory: int
    """Memory of a float32 training step in bytes: weights, gradients, momentum, activations."""


@lru_cache(maxsize=128)
def footprint(config: ModelConfig, num_images: int) -> Footprint:
    """Compute the footprint of a network, in about a second.

    Activations are the tensors that autograd saves for the backward pass, counted on the meta
    device. The memory of CUDA and of other libraries is not included.

    Args:
        config: shape of the network.
        num_images: images per forward pass on one worker.
    """
    with torch.device("meta"):
        network = RANet(config)
        # Activations are proportional to the number of images; batch norm needs at least two.
        images = torch.empty(2, 3, config.image_size, config.image_size)
    weights = {storage_id(each): each for each in network.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage; kept alive so that no storage is counted twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[storage_id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    activations = sum(
        each.untyped_storage().nbytes() for address, each in kept.items() if address not in weights
    )
    parameters = sum(each.numel() for each in weights.values())
    return Footprint(parameters, 3 * 4 * parameters + activations * num_images // 2)
