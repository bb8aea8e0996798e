"""Batch norm with ReLU: results and gradients of torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from ranet.model.layers import NormRelu
from tests.support.tensors import channels_last, gradients


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((9, 5, 32, 32), id="narrow: several pixels per row"),
        pytest.param((5, 7, 43, 41), id="narrow, an odd number of pixels"),
        pytest.param((2, 5, 8, 8), id="few pixels"),
        pytest.param((9, 20, 32, 32), id="many channels"),
    ],
)
def test_training_norm_and_relu_equal_those_of_torch(shape: tuple[int, int, int, int]):
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


def test_narrow_norm_in_bfloat16_rounds_only_its_results():
    torch.manual_seed(0)
    features = (3 * channels_last(16, 5, 32, 32).detach() + 20).to(torch.bfloat16).requires_grad_()
    exact = features.detach().double().requires_grad_()
    norm, expected = NormRelu(5), torch.nn.BatchNorm2d(5).double()
    ours, theirs = norm(features), F.relu(expected(exact))
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), expected.running_var, rtol=1e-5, atol=0)
    direction = torch.randn_like(ours)
    actual_gradients = torch.autograd.grad(ours, [features, *norm.parameters()], direction)
    expected_gradients = torch.autograd.grad(
        theirs, [exact, *expected.parameters()], direction.double()
    )
    for gradient, right in zip(actual_gradients, expected_gradients, strict=True):
        assert (gradient.double() - right).norm() < 2**-8 * right.norm()
