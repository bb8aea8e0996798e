"""Objectives measured from exit outputs."""

import pytest
import torch

from ranet.evaluation.exit_outputs import ExitOutputs
from tuning.objective import Objective, cross_fitted


def test_budget_accuracy_is_measured_on_images_held_out_from_threshold_fitting():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((2, 400), generator=generator)
    # Confidence is noise, so thresholds fitted on one half do not help on the other half.
    correct = torch.rand((2, 400), generator=generator) < 0.5
    scores = ExitOutputs(noise, correct, correct)
    [accuracy] = cross_fitted(scores, (10, 20), [15.0])
    assert 40 < accuracy < 60
    certain = torch.stack((torch.arange(400) % 2 == 0, torch.ones(400, dtype=torch.bool)))
    scores = ExitOutputs(torch.where(certain, 0.9, 0.1), certain, certain)
    full, half = cross_fitted(scores, (10, 20), [20.0, 15.0])
    assert full == 100
    assert half == pytest.approx(100, abs=4)  # half of the images leave at the first exit


def test_objective_reports_each_metric_and_every_budget():
    correct = torch.stack((torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)))
    scores = ExitOutputs(torch.full((2, 20), 0.5), correct, correct)
    metrics = Objective(
        metrics=("accuracy_auc", "mult_adds", "latency_ms"),
        budgets_mult_adds=(100, 200),
        auc_range_mult_adds=(100, 200),
    ).measure(scores, (100, 200), 1.5)
    assert metrics["objective/budget1_top1"] == 0
    assert metrics["objective/budget2_top1"] == 100
    assert 0 < metrics["objective/accuracy_auc"] < 60
    assert metrics["objective/mult_adds"] == 200
    assert metrics["objective/latency_ms"] == 1.5
    own = Objective().measure(scores, (100, 200), None)
    assert own["objective/accuracy"] == 100
