"""The training loss: cross-entropy of every exit, summed."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def exit_loss(
    logits: Tensor, labels: Tensor, weights: Sequence[float] = (), label_smoothing: float = 0.0
) -> Tensor:
    """Sum the mean cross-entropy of a batch over the exits, as the paper does.

    Args:
        logits: (exits, batch, classes).
        labels: (batch,).
        weights: factor of each exit's loss, first exit first; empty: 1 for all.
        label_smoothing: share of the target that is spread evenly over all classes.

    Raises:
        ValueError: there is not one weight per exit.
    """
    num_exits, batch_size, _ = logits.shape
    if weights and len(weights) != num_exits:
        raise ValueError(
            f"train.exit_loss_weights must have one entry per exit: got {len(weights)} entries "
            f"{tuple(weights)} for {num_exits} exits; leave it empty to weigh all exits alike"
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
