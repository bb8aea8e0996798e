"""Exit thresholds applied to held-out images: exits taken, accuracy and mean cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BudgetScore:
    """What a set of thresholds does to a set of images."""

    top1: float
    """Images answered correctly, in percent."""
    mean_cost: float
    """Mean cost of an image, in the unit of the costs."""
    shares: tuple[float, ...]
    """Share of the images that leaves at each exit; sums to 1."""


def assign_exits(confidences: Tensor, thresholds: Tensor) -> Tensor:
    """Give the exit, counted from 0, at which each image leaves: (samples,), int64.

    An image leaves at the first exit whose confidence (exits, samples) is at least the
    threshold (exits,); the last exit takes all that are left, whatever its threshold.
    """
    num_exits, num_samples = confidences.shape
    if thresholds.shape != (num_exits,):
        raise ValueError(
            f"thresholds must have one entry for each of the {num_exits} exits of confidences, "
            f"got shape {tuple(thresholds.shape)}"
        )
    exits = torch.full((num_samples,), num_exits - 1, device=confidences.device)
    for k in reversed(range(num_exits - 1)):
        exits[confidences[k] >= thresholds[k]] = k
    return exits


def score_budget(
    confidences: Tensor, correct: Tensor, costs: Sequence[float] | Tensor, thresholds: Tensor
) -> BudgetScore:
    """Score thresholds on images: accuracy, mean cost and the share of each exit.

    Shapes as in `fit_thresholds`. Score on other images than those of the fit.
    """
    costs = check_scores(confidences, correct, costs)
    exits = assign_exits(confidences, thresholds)
    shares = exits.bincount(minlength=len(costs)).double().cpu() / len(exits)
    return BudgetScore(
        top1=100 * correct.gather(0, exits[None]).double().mean().item(),
        mean_cost=(shares @ costs).item(),
        shares=tuple(shares.tolist()),
    )


def check_scores(confidences: Tensor, correct: Tensor, costs: Sequence[float] | Tensor) -> Tensor:
    """Refuse scores of the wrong form; give the costs (exits,) in float64, on the CPU."""
    if confidences.dim() != 2 or not confidences.is_floating_point():
        raise ValueError(
            "confidences must be floating point of shape (exits, samples), "
            f"got {confidences.dtype} of shape {tuple(confidences.shape)}"
        )
    if correct.shape != confidences.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"correct must be bool of the shape of confidences, {tuple(confidences.shape)}, "
            f"got {correct.dtype} of shape {tuple(correct.shape)}"
        )
    if confidences.numel() == 0:
        raise ValueError(
            "confidences must hold at least one exit and one sample, "
            f"got shape {tuple(confidences.shape)}"
        )
    if not confidences.isfinite().all():
        raise ValueError(
            f"confidences must be finite, got {int((~confidences.isfinite()).sum())} entries "
            "that are not: look for a network that diverged"
        )
    checked = torch.as_tensor(costs, dtype=torch.float64, device="cpu")
    if checked.shape != (len(confidences),):
        raise ValueError(
            f"costs must have one entry for each of the {len(confidences)} exits of confidences, "
            f"got shape {tuple(checked.shape)}"
        )
    if not (checked.isfinite().all() and (checked > 0).all() and (checked.diff() >= 0).all()):
        raise ValueError(
            "costs must be finite, above 0 and never fall from exit to exit, "
            f"got {checked.tolist()}: the cost of an exit includes that of all before it"
        )
    return checked
