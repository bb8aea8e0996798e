"""Layers that take another way on a CPU give what torch's own operations give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ranet.model.fused import FusedConv, as_features, as_pixels
from ranet.model.layers import NormRelu, conv1x1, conv3x3, resize


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    features = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return features.requires_grad_()


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, dtype=output.dtype))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((9, 5, 32, 32), id="narrow: pixels side by side"),
        pytest.param((5, 7, 43, 41), id="narrow, an odd number of pixels"),
        pytest.param((2, 5, 8, 8), id="few pixels"),
        pytest.param((9, 20, 32, 32), id="many channels"),
    ],
)
def test_norm_and_relu_in_training_are_those_of_torch(shape: tuple[int, int, int, int]):
    torch.manual_seed(0)
    features = channels_last(*shape)
    norm, expected = NormRelu(shape[1]).double(), torch.nn.BatchNorm2d(shape[1]).double()
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    expected.load_state_dict(norm.state_dict(), strict=False)
    ours, theirs = norm(features), F.relu(expected(features))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradients(ours, [features, *norm.parameters()]),
        gradients(theirs, [features, *expected.parameters()]),
        rtol=1e-10,
        atol=1e-10,
    )
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(expected, name))


def test_a_narrow_norm_in_bfloat16_rounds_its_results_and_nothing_else():
    torch.manual_seed(0)
    features = (3 * channels_last(16, 5, 32, 32).detach() + 20).to(torch.bfloat16).requires_grad_()
    exact = features.detach().double().requires_grad_()
    norm, expected = NormRelu(5), torch.nn.BatchNorm2d(5).double()
    ours, theirs = norm(features), F.relu(expected(exact))
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), expected.running_var, rtol=1e-5, atol=0)
    direction = torch.randn_like(ours)
    found = torch.autograd.grad(ours, [features, *norm.parameters()], direction)
    wanted = torch.autograd.grad(theirs, [exact, *expected.parameters()], direction.double())
    for gradient, right in zip(found, wanted, strict=True):
        assert (gradient.double() - right).norm() < 2**-8 * right.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "size"), [(2, 5), (1, 7), (40, 7)])
def test_a_3x3_convolution_with_a_large_weight_is_that_of_torch(stride: int, batch: int, size: int):
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
def test_a_1x1_convolution_of_the_first_channels_is_that_of_torch(
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
def test_the_gradient_of_a_resize_is_that_of_torch(size: tuple[int, int], to: tuple[int, int]):
    torch.manual_seed(0)
    features = channels_last(2, 3, *size)
    ours = resize(features, torch.Size(to))
    theirs = F.interpolate(features, size=to, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        gradients(ours, [features]), gradients(theirs, [features]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize(
    ("channels", "stride", "groups"), [(5, 1, 1), (12, 1, 1), (4, 2, 1), (6, 1, 2)]
)
def test_a_folded_convolution_is_that_of_torch_for_few_channels_and_odd_widths_too(
    channels: int, stride: int, groups: int, width: int
):
    torch.manual_seed(0)
    features = torch.randn(3, 4, 5, width, dtype=torch.float64)
    weight = torch.randn(channels, 4 // groups, 3, 3, dtype=torch.float64)
    bias = torch.randn(channels, dtype=torch.float64)
    expected = F.conv2d(features, weight, bias, stride=stride, padding=1, groups=groups).relu()
    conv = FusedConv(weight, bias, stride=stride, groups=groups)
    shape = torch.Size((3, 5, width))
    out_shape = torch.Size((3, *expected.shape[2:]))
    actual = as_features(conv(as_pixels(features), shape), out_shape)
    torch.testing.assert_close(actual, expected)
