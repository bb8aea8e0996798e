"""Training loss: sum of the cross-entropies of all exits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from ranet.config import LossConfig


class TrainingLoss(Protocol):
    """Loss of a training step, as named parts that are added up."""

    def __call__(self, logits: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Compute the parts of the loss, each a mean over images.

        Args:
            logits: (exits, batch, classes).
            labels: (batch,).
            progress: share of all steps that is done, 0 to 1.
        """
        ...


@dataclass(frozen=True)
class ExitLosses:
    """Weighted sum of the exits' cross-entropies (arXiv:2003.07326, sec. 3.3)."""

    config: LossConfig

    def __call__(self, logits: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Compute the loss; see `TrainingLoss`."""
        config = self.config
        weights = curriculum_weights(config.exit_weights, len(logits), config.curriculum, progress)
        return {"exits": exit_loss(logits, labels, weights, config.label_smoothing)}


def exit_loss(
    logits: Tensor, labels: Tensor, weights: Sequence[float] = (), label_smoothing: float = 0.0
) -> Tensor:
    """Sum the mean cross-entropy of a batch over the exits.

    Args:
        logits: (exits, batch, classes).
        labels: (batch,).
        weights: weight of each exit's loss, first exit first; empty: 1 for every exit.
        label_smoothing: share of the target that is distributed evenly over all classes.

    Raises:
        ValueError: the number of weights is not the number of exits.
    """
    num_exits, batch_size, _ = logits.shape
    if weights and len(weights) != num_exits:
        raise ValueError(
            f"train.loss.exit_weights must have one entry per exit: got {len(weights)} entries "
            f"{tuple(weights)} for {num_exits} exits; leave it empty for equal weights"
        )
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.repeat(num_exits),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    means = losses.reshape(num_exits, batch_size).mean(dim=1)
    if not weights:
        return means.sum()
    # Python numbers, one by one: a tensor of weights would be copied to the device every step.
    return sum(
        (weight * mean for weight, mean in zip(weights, means.unbind(), strict=True)),
        start=means.new_zeros(()),
    )


def curriculum_weights(
    weights: Sequence[float], num_exits: int, shift: float, progress: float
) -> tuple[float, ...]:
    """Compute each exit's loss weight at one point of training.

    Args:
        weights: weights at the end of the training; empty: 1 for every exit.
        num_exits: number of exits of the network.
        shift: `train.loss.curriculum`.
        progress: share of all steps that is done, 0 to 1.

    Returns:
        One weight per exit; `weights` itself, even if empty, where there is no curriculum.
    """
    if shift == 0 or num_exits == 1:
        return tuple(weights)
    lead = shift * (1 - progress)
    return tuple(
        weight * (1 + lead * (1 - 2 * k / (num_exits - 1)))
        for k, weight in enumerate(weights or (1.0,) * num_exits)
    )
