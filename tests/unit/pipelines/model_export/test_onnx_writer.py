"""ONNX graphs of stages: the same logits in every engine."""

import pytest
import torch
from hypothesis import example, given, settings
from torch import nn

from pipelines.model_export.onnx_writer import to_onnx
from ranet import ModelConfig
from ranet.model.preprocessing import Normalize
from tests.support.engines import compile_in_engines
from tests.support.networks import configs, randomised

SMALL = ModelConfig(stem_channels=4, growth_rate=4, layers_per_block=2, num_classes=5)
ODD_SIZES = ModelConfig(stem_channels=4, growth_rate=4, layers_per_block=2, image_size=33)
"""Features of 9, 17 and 33 pixels: 9 times 17 / 9 is below 17 if the factor is a float32."""


@settings(max_examples=4)
@example(config=ODD_SIZES)
@given(config=configs())
def test_engines_compute_the_logits_of_torch(config: ModelConfig):
    model = randomised(config).float().eval()
    images = torch.randn(3, 3, config.image_size, config.image_size)
    with torch.inference_mode():
        expected = model(images)
    for network in compile_in_engines(model, images):
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=5e-5)


def test_a_graph_accepts_any_number_of_images():
    model = randomised(SMALL).float().eval()
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model(normalize(images))
    for network in compile_in_engines(model, images[:2], normalize):
        for batch in (1, 2, 15, 16, 17, 64, 256, 1):
            torch.testing.assert_close(
                network(images[:batch]), expected[:, :batch], rtol=1e-5, atol=5e-5
            )


class Sine(nn.Module):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (tensors[0].sin(),)


def test_an_operation_that_is_not_translated_is_named():
    program = torch.export.export(Sine(), (torch.ones(2, 3),))
    with pytest.raises(ValueError, match=r"contains aten\.sin\.default, which the ONNX writer"):
        to_onnx(program, ["x"], ["y"])
