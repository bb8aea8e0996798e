"""Thresholds applied to images: exits taken, accuracy, cost and shares."""

import math

import pytest
import torch

from ranet.inference.thresholds import assign_exits, score_budget

INF = math.inf


def test_image_leaves_at_the_first_exit_whose_threshold_it_reaches() -> None:
    confidences = torch.tensor([[0.9, 0.5, 0.2, 0.8], [0.1, 0.6, 0.3, 0.9], [0.1, 0.1, 0.1, 0.1]])
    exits = assign_exits(confidences, torch.tensor([0.8, 0.6, -INF]))
    assert exits.tolist() == [0, 1, 2, 0]
    assert exits.dtype == torch.int64


def test_infinite_thresholds_take_all_images_or_none() -> None:
    confidences = torch.tensor([[0.9, 1.0], [0.0, 0.5], [0.3, 0.4]])
    assert assign_exits(confidences, torch.tensor([INF, -INF, -INF])).tolist() == [1, 1]
    assert assign_exits(confidences, torch.tensor([-INF, INF, INF])).tolist() == [0, 0]
    assert assign_exits(confidences, torch.tensor([INF, INF, INF])).tolist() == [2, 2]


def test_score_budget_returns_accuracy_cost_and_shares() -> None:
    confidences = torch.tensor([[0.9, 0.1, 0.1, 0.1], [0.5, 0.5, 0.9, 0.1]])
    correct = torch.tensor([[True, True, True, True], [True, False, True, False]])
    score = score_budget(confidences, correct, [2, 10], torch.tensor([0.9, -INF]))
    assert score.top1 == 50.0
    assert score.mean_cost == 8.0
    assert score.shares == (0.25, 0.75)


def test_thresholds_of_another_network_are_rejected() -> None:
    confidences = torch.tensor([[0.5, 0.6], [0.7, 0.8]])
    with pytest.raises(ValueError, match=r"each of the 2 exits .* got shape \(3,\)"):
        assign_exits(confidences, torch.zeros(3))
