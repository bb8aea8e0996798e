"""Fused convolutions: the same results as torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from ranet.model.feature_buffer import as_features, as_pixels
from ranet.model.fused import FusedConv


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize(
    ("channels", "stride", "groups"), [(5, 1, 1), (12, 1, 1), (4, 2, 1), (6, 1, 2)]
)
def test_fused_convolution_equals_that_of_torch_for_few_channels_and_odd_widths(
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
