"""Parameters and memory of a network."""

import pytest
import torch

from ranet import ModelConfig, RANet
from ranet.training.footprint import footprint


def test_footprint_matches_the_parameters_and_activations_of_the_network():
    config = ModelConfig(
        scales=(1, 2), growth_factors=(2, 1), bottleneck_factors=(2, 1), image_size=16,
        growth_rate=4, layers_per_block=2, num_blocks=1, extra_blocks=1,
    )  # fmt: skip
    network = RANet(config)
    images = torch.rand(8, 3, 16, 16)
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    count = sum(each.numel() for each in network.parameters())
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}
    activations = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in own)
    size = footprint(config, 8)
    assert size.parameters == count
    # A CPU takes some layers another way, and keeps a little more for them.
    assert size.memory == pytest.approx(12 * count + activations, rel=0.05)
