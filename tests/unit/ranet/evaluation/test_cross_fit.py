import torch

from ranet.evaluation.cross_fit import cross_fit
from ranet.inference.threshold_search import fit_budgets


def test_folds_hold_out_every_image_once_and_fit_on_the_others():
    generator = torch.Generator().manual_seed(1)
    confidences = torch.rand(3, 41, generator=generator)
    correct = torch.rand(3, 41, generator=generator) < confidences
    costs, budgets = (1.0, 2.0, 4.0), (1.5, 3.0)
    first, second = cross_fit(confidences, correct, costs, budgets)
    assert sorted([*first.held_out.tolist(), *second.held_out.tolist()]) == list(range(41))
    for fold, other in ((first, second), (second, first)):
        fitted = other.held_out
        expected = fit_budgets(confidences[:, fitted], correct[:, fitted], costs, budgets)
        assert torch.equal(fold.thresholds, expected)
