"""Networks of random shapes and with the statistics of random images."""

import torch
from hypothesis import strategies as st

from ranet import ModelConfig, RANet
from ranet.model.layers import NormRelu


def randomised(config: ModelConfig, seed: int = 0) -> RANet:
    """Create a float64 network whose batch norms have statistics of one batch."""
    torch.manual_seed(seed)
    model = RANet(config).double()
    norms = [module for module in model.modules() if isinstance(module, NormRelu)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(8, 3, config.image_size, config.image_size, dtype=torch.float64))
    for norm in norms:
        del norm.momentum
    return model


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    scales = draw(st.sampled_from([(1,), (1, 2), (1, 3), (1, 2, 2), (1, 2, 3), (1, 2, 3, 3)]))
    factors = st.tuples(*[st.integers(1, 3) for _ in scales])
    # Sizes, also odd ones, that give every exit a feature map of 5 to 12 pixels.
    halvings = len(set(scales)) - 1
    low = draw(st.integers(6, 9))
    return ModelConfig(
        scales=scales,
        growth_factors=draw(factors),
        bottleneck_factors=draw(factors),
        stem_channels=draw(st.integers(2, 6)),
        growth_rate=draw(st.integers(4, 6)),
        layers_per_block=draw(st.integers(2, 3)),
        layer_mode=draw(st.sampled_from(["even", "linear"])),
        num_blocks=draw(st.integers(1, 2)),
        extra_blocks=draw(st.integers(1, 2)),
        compress_factor=draw(st.sampled_from([0.25, 0.4, 0.5])),
        exit_channels=draw(st.sampled_from([None, 6])),
        image_size=low * 2**halvings - draw(st.integers(0, 1)),
        num_classes=3,
    )
