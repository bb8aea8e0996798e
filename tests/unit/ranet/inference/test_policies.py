"""Exit policies against hand-computed values."""

import math

import pytest
import torch

from ranet.inference.cascade import Cascade
from ranet.inference.policies import TOP_PROBABILITY
from tests.support.tiny import small_ranet


def test_top_probability_is_the_softmax_of_the_predicted_class():
    # Softmax of (0, ln 3) is (1/4, 3/4); equal logits share the probability.
    logits = torch.tensor([[[0.0, math.log(3.0)], [2.0, 2.0]]])
    confidences = TOP_PROBABILITY.confidence(logits)
    assert confidences.shape == (1, 2)
    assert confidences[0].tolist() == pytest.approx([0.75, 0.5])


class Margin:
    """Difference of the two highest probabilities."""

    name = "margin"

    def confidence(self, logits):
        first, second = logits.softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
        return first - second


def test_cascade_decides_by_the_confidence_of_its_policy():
    model = small_ranet().eval()
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        margins = Margin().confidence(model(images))
    thresholds = margins.median(dim=1).values
    prediction = Cascade(model, thresholds, policy=Margin())(images)
    expected = [
        next((k for k in range(3) if margins[k, n] >= thresholds[k]), 3) + 1 for n in range(32)
    ]
    assert prediction.exits.tolist() == expected
    assert len(set(expected)) > 2
