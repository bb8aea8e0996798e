"""Kernels: the same results and gradients as torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from ranet.model.kernels import conv1x1, conv3x3, resize, resize_weights
from tests.support.tensors import channels_last, gradients


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "size"), [(2, 5), (1, 7), (40, 7)])
def test_3x3_convolution_with_a_large_weight_equals_that_of_torch(
    stride: int, batch: int, size: int
):
    torch.manual_seed(0)
    features = channels_last(batch, 500, size, size)
    weight, bias = channels_last(480, 500, 3, 3), torch.randn(480, dtype=torch.float64)
    ours = conv3x3(features, weight, bias, stride=stride)
    theirs = F.conv2d(features, weight, bias, stride=stride, padding=1)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        gradients(ours, [features, weight]),
        gradients(theirs, [features, weight]),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "size"), [(1, 4), (3, 33), (17, 8)])
def test_1x1_convolution_of_the_first_channels_equals_that_of_torch(
    batch: int, size: int, dtype: torch.dtype
):
    torch.manual_seed(0)
    features = channels_last(batch, 12, size, size, dtype=dtype)
    weight = torch.randn(7, 10, 1, 1, dtype=dtype, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = conv1x1(features, weight)
    finally:
        torch.set_num_threads(threads)
    theirs = F.conv2d(features[:, :10], weight)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        gradients(ours, [features, weight]),
        gradients(theirs, [features, weight]),
        rtol=0,
        atol=tolerance,
    )


@pytest.mark.parametrize(("size", "to"), [((8, 8), (4, 4)), ((5, 7), (9, 4))])
def test_gradient_of_a_resize_equals_that_of_torch(size: tuple[int, int], to: tuple[int, int]):
    torch.manual_seed(0)
    features = channels_last(2, 3, *size)
    ours = resize(features, torch.Size(to))
    theirs = F.interpolate(features, size=to, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        gradients(ours, [features]), gradients(theirs, [features]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("in_size", "out_size"), [(56, 28), (7, 14), (28, 56), (5, 3), (1, 4)])
def test_resize_weights_equal_those_of_torch(in_size: int, out_size: int):
    unit = torch.eye(in_size, dtype=torch.float64)[None]
    theirs = F.interpolate(unit, size=out_size, mode="linear", align_corners=True)[0]
    ours = resize_weights(in_size, out_size, torch.float32, torch.device("cpu"))
    assert torch.equal(ours, theirs.float())
