"""Architecture: channels, sizes and costs against hand-computed numbers."""

from dataclasses import replace

import pytest

from ranet import PRESETS, ModelConfig, mult_adds, official_ops
from ranet.architecture import UnitSpec, make_network_spec

# Millions of operations per image at each exit, by the authors' counting method.
PUBLISHED_OPS = {
    "cifar_readme": "8.36 21.77 32.84 41.52 53.23 58.92",
    "cifar_script": "15.81 31.28 44.66 50.36 60.65 63.65 90.17 94.90",
    "imagenet_readme": "246.5 631.2 860.4 1041.1 1869.9 2160.4 2734.3 2828.3",
    "imagenet_script": "168.1 520.5 731.9 903.8 1052.3 1118.8 1589.0 1681.0",
    "imagenet_paper": "435.0 888.7 1153.4 1352.5 2279.9 2588.5 3235.5 3333.5",
}


@pytest.mark.parametrize("name", PUBLISHED_OPS)
def test_published_network_has_the_published_cost(name: str):
    published = [float(ops) for ops in PUBLISHED_OPS[name].split()]
    costs = [ops / 1e6 for ops in official_ops(PRESETS[name])]
    # Published to 0.01 and 0.1; one ImageNet figure was rounded twice.
    error = 0.006 if name.startswith("cifar") else 0.06
    assert costs == pytest.approx(published, rel=0, abs=error)


def test_fusion_blocks_have_the_hand_computed_channels():
    spec = make_network_spec(PRESETS["cifar_readme"])
    assert [step.out_channels for step in spec.stem] == [64, 32, 16]
    assert [step.size for step in spec.stem] == [8, 16, 32]
    first = spec.subnetworks[0][0]
    assert first.units == (UnitSpec(64, 64, 24), UnitSpec(88, 88, 24))
    assert (first.lower, first.out_channels) == (None, 112)
    # Growth 6 * 2 = 12, of which floor(0.25 * 12) = 3 are lateral.
    fusion = spec.subnetworks[1][0]
    assert fusion.units == (UnitSpec(32, 18, 9), UnitSpec(44, 18, 9))
    assert fusion.lower is not None
    assert fusion.lower.units == (UnitSpec(64, 12, 3), UnitSpec(88, 12, 3))
    assert fusion.lower.compressed_channels == 14  # floor(0.25 * 56)
    assert (fusion.in_size, fusion.out_size, fusion.out_channels) == (16, 16, 70)
    down = spec.subnetworks[1][1]
    assert (down.in_size, down.out_size, down.gathered_channels) == (16, 8, 147)
    assert down.transition_channels == 73
    assert [len(block.units) for block in spec.subnetworks[1]] == [2, 4, 6, 8]


def test_transitions_and_down_blocks_differ_where_a_scale_repeats():
    blocks = make_network_spec(PRESETS["cifar_script"]).subnetworks[3]
    assert [k for k, b in enumerate(blocks, 1) if b.transition_channels] == [2, 5]
    assert [k for k, b in enumerate(blocks, 1) if b.is_down] == [4, 6]
    assert [b.out_size for b in blocks] == [32, 32, 32, 16, 16, 8, 8, 8]


def test_mult_adds_equal_the_hand_computed_cost():
    config = ModelConfig(
        scales=(1,),
        growth_factors=(1,),
        bottleneck_factors=(2,),
        stem_channels=4,
        growth_rate=3,
        layers_per_block=2,
        num_blocks=1,
        exit_channels=5,
        image_size=8,
        num_classes=7,
    )
    stem = 3 * 4 * 9 * 64
    layer_1 = 4 * 4 * 64 + 4 * 3 * 9 * 64  # width min(4, 2 * 3) = 4
    layer_2 = 7 * 6 * 64 + 6 * 3 * 9 * 64  # width min(7, 6) = 6
    exit_ = 10 * 5 * 9 * 16 + 5 * 5 * 9 * 4 + 5 * 7
    assert mult_adds(config) == (stem + layer_1 + layer_2 + exit_,)
    relu = (4 + 4 + 3 + 6 + 3) * 64 + 5 * 16 + 5 * 4
    pool, linear_bias = 5 * 4, 7
    assert official_ops(config) == (mult_adds(config)[0] + relu + pool + linear_bias,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": (1, 3, 2)}, "model.scales must start at 1 and never decrease"),
        ({"scales": (2, 3, 4)}, "model.scales must start at 1"),
        ({"growth_factors": (4, 2)}, "model.growth_factors must have one entry per scale"),
        ({"bottleneck_factors": (4, 2, 0)}, "model.bottleneck_factors must all be 1 or more"),
        ({"growth_rate": 0}, "model.growth_rate must be 1 or more, got 0"),
        ({"growth_rate": 3}, "model.compress_factor .* leave at least one"),
        ({"layers_per_block": 1}, "model.layers_per_block must be 2 or more, got 1"),
        ({"layer_mode": "lg"}, "model.layer_mode must be one of even, linear, got 'lg'"),
        ({"stem": "tiny"}, "model.stem must be one of small, large, got 'tiny'"),
        ({"extra_blocks": 0}, "model.extra_blocks must be 1 or more, got 0"),
        ({"compress_factor": 1.0}, "model.compress_factor must be above 0 and below 1, got 1.0"),
        ({"exit_channels": 0}, "model.exit_channels must be 1 or more, or null, got 0"),
        ({"image_size": 16}, "model.image_size 16 .* 4 x 4; an exit needs 5 to 12 pixels"),
        ({"image_size": 64}, "model.image_size 64 .* 16 x 16"),
        ({"scales": (1, 1, 2)}, "model.image_size 32"),
    ],
)
def test_invalid_architecture_is_rejected_with_its_setting(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        replace(ModelConfig(), **changes)
