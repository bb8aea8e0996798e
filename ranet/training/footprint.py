"""How large a network is, and how much memory training it takes, computed without training."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ranet.config import ModelConfig
from ranet.model.network import RANet


@dataclass(frozen=True)
class Footprint:
    """What training a network needs besides time."""

    parameters: int
    """Weights that it learns."""
    memory: int
    """Bytes of a float32 training step: weights, gradients, momentum and activations."""


@lru_cache(maxsize=128)
def footprint(config: ModelConfig, num_images: int) -> Footprint:
    """Compute the footprint of a network; it takes about a second.

    Activations are those that autograd keeps for the backward pass, counted on a network without
    data. What libraries take for themselves comes on top.

    Args:
        config: the network.
        num_images: images that a worker takes through the network at once.
    """
    with torch.device("meta"):
        network = RANet(config)
        # Activations grow with the images: few are as good as many, but batch norm needs two.
        images = torch.empty(2, 3, config.image_size, config.image_size)
    weights = {each.untyped_storage()._cdata: each for each in network.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage, held so that no other takes its place

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    activations = sum(
        each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights
    )
    parameters = sum(each.numel() for each in weights.values())
    return Footprint(parameters, 3 * 4 * parameters + activations * num_images // 2)
