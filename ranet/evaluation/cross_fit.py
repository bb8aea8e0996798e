"""Two-fold cross-fitting of exit thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranet.inference.threshold_search import fit_budgets


@dataclass(frozen=True, eq=False)
class Fold:
    """Thresholds fitted on one half of the images, for the other half."""

    held_out: Tensor
    """Indices of the images that the thresholds were not fitted on."""
    thresholds: Tensor
    """Fitted thresholds, (budgets, exits)."""


def cross_fit(
    confidences: Tensor, correct: Tensor, costs: Sequence[float], budgets: Sequence[float]
) -> Iterator[Fold]:
    """Fit thresholds on each of two fixed halves of the images.

    Args:
        confidences: (exits, images), of at least two images.
        correct: (exits, images), True where the predicted class is the label.
        costs: cumulative cost of every exit.
        budgets: mean costs per image, in the unit of `costs`.
    """
    order = torch.randperm(correct.shape[1], generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    for fitted, held_out in (halves, halves[::-1]):
        thresholds = fit_budgets(confidences[:, fitted], correct[:, fitted], costs, budgets)
        yield Fold(held_out, thresholds)
