"""Classifier of a saved model: predictions of the cascade, and rejected images."""

import pytest
import torch

from ranet import BudgetedClassifier, Cascade
from tests.support.registered import tiny_saved, trained_network


@pytest.fixture(scope="module")
def classifier() -> BudgetedClassifier:
    return BudgetedClassifier(tiny_saved())


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_predictions_are_those_of_the_cascade(classifier: BudgetedClassifier, budget: float):
    images = trained_network().test_images  # more than one chunk
    found = classifier.classify(images, budget)
    thresholds = torch.tensor(classifier.metadata.thresholds(budget))
    cascade = Cascade(trained_network().model, thresholds, classifier.metadata.exit_ensemble)
    expected = cascade(classifier.normalize(images))
    assert len(found.labels) == 300
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.exits, expected.exits)
    assert torch.equal(found.mult_adds, expected.mult_adds)
    torch.testing.assert_close(found.confidences, expected.confidences)


def test_smaller_budget_costs_less(classifier: BudgetedClassifier):
    images = trained_network().test_images
    costs = [
        classifier.classify(images, budget).mult_adds.double().mean().item()
        for budget in (classifier.metadata.min_budget_fraction, 0.7)
    ]
    assert costs[0] == classifier.metadata.exits[0].mult_adds < costs[1]


def test_images_of_another_shape_or_type_are_rejected(classifier: BudgetedClassifier):
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for images, message in (
        (image[0], "add the batch axis"),
        (image[..., 1:], r"Shape of input \(1, 3, 16, 15\) does not match"),
        (image[:0], "contains no images"),
        (image.float(), "images must be uint8, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.classify(images)
