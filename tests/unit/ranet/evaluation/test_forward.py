"""Forward pass from uint8 images to logits."""

import pytest
import torch

from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from tests.support.tiny import Digits, TwoExits, normalize


def test_forward_pass_normalizes_and_runs_the_model():
    model, images = TwoExits().eval(), Digits(0, 9, 9).images
    with torch.inference_mode():
        logits = ForwardPass(model, normalize)(images)
        assert torch.equal(logits, model(normalize(images)))


def test_images_are_normalized_in_float32_and_the_model_runs_in_bfloat16():
    dtypes = []

    def record(images):
        dtypes.append(normalize(images).dtype)
        return normalize(images)

    logits = ForwardPass(TwoExits(), record, "bfloat16")(Digits(0, 4, 4).images)
    assert dtypes == [torch.float32]
    assert logits.dtype == torch.bfloat16


def test_images_get_the_configured_memory_format():
    layouts = []

    def record(images):
        layouts.append(images.is_contiguous(memory_format=torch.channels_last))
        return normalize(images)

    images = Digits(0, 4, 4).images
    ForwardPass(TwoExits(), record)(images)
    ForwardPass(TwoExits(), record, memory_format=torch.channels_last)(images)
    assert layouts == [False, True]


def test_device_is_that_of_weights_or_buffers():
    forward = ForwardPass(TwoExits().to("meta"), normalize)
    assert forward.device.type == "meta"
    only_buffers = Normalize((0.5,), (0.5,))
    assert ForwardPass(only_buffers, normalize).device.type == "cpu"


@pytest.mark.parametrize(("max_images", "sizes"), [(0, [9]), (9, [9]), (4, [3, 3, 3]), (5, [5, 4])])
def test_large_batch_passes_in_even_parts(max_images, sizes):
    model, images, passed = TwoExits().eval(), Digits(0, 9, 9).images, []

    def record(part):
        passed.append(len(part))
        return normalize(part)

    logits = ForwardPass(model, record, max_images=max_images)(images)
    assert passed == sizes
    torch.testing.assert_close(logits, model(normalize(images)))
