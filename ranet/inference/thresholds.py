"""Exit thresholds applied to held-out images: exits taken, accuracy and mean cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BudgetScore:
    """Accuracy, mean cost and exit shares of thresholds on images."""

    top1: float
    """Top-1 accuracy in percent."""
    mean_cost: float
    """Mean cost per image, in the unit of the costs."""
    shares: tuple[float, ...]
    """Share of the images that leave at each exit; sums to 1."""


def assign_exits(confidences: Tensor, thresholds: Tensor) -> Tensor:
    """Assign each image to the exit where the image leaves.

    An image leaves at the first exit whose confidence is at least the threshold; all remaining
    images leave at the last exit, whatever its threshold.

    Args:
        confidences: (exits, images).
        thresholds: (exits,).

    Returns:
        Exit of each image, counted from 0 (images,), int64.

    Raises:
        ValueError: `thresholds` does not have one entry per exit.
    """
    num_exits, num_images = confidences.shape
    if thresholds.shape != (num_exits,):
        raise ValueError(
            f"thresholds must have one entry for each of the {num_exits} exits of confidences, "
            f"got shape {tuple(thresholds.shape)}"
        )
    exits = torch.full((num_images,), num_exits - 1, device=confidences.device)
    for k in reversed(range(num_exits - 1)):
        exits[confidences[k] >= thresholds[k]] = k
    return exits


def score_budget(
    confidences: Tensor, correct: Tensor, costs: Sequence[float] | Tensor, thresholds: Tensor
) -> BudgetScore:
    """Compute accuracy, mean cost and exit shares of thresholds on images.

    Shapes as in `fit_thresholds`. Use other images than for fitting the thresholds.
    """
    costs = check_exit_scores(confidences, correct, costs)
    exits = assign_exits(confidences, thresholds)
    shares = exits.bincount(minlength=len(costs)).double().cpu() / len(exits)
    return BudgetScore(
        top1=100 * correct.gather(0, exits[None]).double().mean().item(),
        mean_cost=(shares @ costs).item(),
        shares=tuple(shares.tolist()),
    )


def check_exit_scores(
    confidences: Tensor, correct: Tensor, costs: Sequence[float] | Tensor
) -> Tensor:
    """Validate confidences, correctness and costs.

    Returns:
        Costs (exits,), float64, on the CPU.

    Raises:
        ValueError: an argument has the wrong shape, type or values.
    """
    if confidences.dim() != 2 or not confidences.is_floating_point():
        raise ValueError(
            "confidences must be floating point of shape (exits, images), "
            f"got {confidences.dtype} of shape {tuple(confidences.shape)}"
        )
    if correct.shape != confidences.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"correct must be bool of the shape of confidences, {tuple(confidences.shape)}, "
            f"got {correct.dtype} of shape {tuple(correct.shape)}"
        )
    if confidences.numel() == 0:
        raise ValueError(
            "confidences must have at least one exit and one image, "
            f"got shape {tuple(confidences.shape)}"
        )
    if not confidences.isfinite().all():
        raise ValueError(
            f"confidences must be finite, got {int((~confidences.isfinite()).sum())} entries "
            "that are not: check whether training diverged"
        )
    checked = torch.as_tensor(costs, dtype=torch.float64, device="cpu")
    if checked.shape != (len(confidences),):
        raise ValueError(
            f"costs must have one entry for each of the {len(confidences)} exits of confidences, "
            f"got shape {tuple(checked.shape)}"
        )
    if not (checked.isfinite().all() and (checked > 0).all() and (checked.diff() >= 0).all()):
        raise ValueError(
            "costs must be finite, above 0 and never decrease from exit to exit, "
            f"got {checked.tolist()}: the cost of an exit includes all earlier exits"
        )
    return checked
