"""Configurations of the five published networks.

Source: the README and the scripts of the authors' code, and the paper's curves
(Yang et al., CVPR 2020, arXiv:2003.07326).
"""

from ranet.config import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    "cifar_readme": ModelConfig(layers_per_block=2, layer_mode="linear"),
    "cifar_script": ModelConfig(
        scales=(1, 2, 3, 3), growth_factors=(4, 2, 1, 1), bottleneck_factors=(4, 2, 1, 1)
    ),
    **{
        name: ModelConfig(
            scales=(1, 2, 3, 4),
            growth_factors=factors,
            bottleneck_factors=factors,
            stem_channels=stem_channels,
            growth_rate=16,
            layers_per_block=8,
            stem="large",
            exit_channels=None,
            image_size=224,
            num_classes=1000,
        )
        for name, factors, stem_channels in (
            ("imagenet_readme", (4, 2, 2, 1), 32),
            ("imagenet_script", (4, 2, 1, 1), 16),
            ("imagenet_paper", (4, 2, 2, 1), 64),
        )
    },
}
"""Configurations by name; the paper's curves show `cifar_script` and `imagenet_paper`."""
