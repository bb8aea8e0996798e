"""Learning rate, image size and checkpoints by epoch and step."""

import math

from ranet.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of a step of the training.

    The learning rate first rises to `lr`, reached at the last step of the warm-up. Multistep
    milestones count from the start of training. The cosine starts at the end of the warm-up and
    would reach 0 one step after the last step.
    """
    optim = config.optim
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if optim.schedule == "cosine":
        total_steps = config.epochs * steps_per_epoch
        progress = max(0.0, step - warmup_steps) / (total_steps - warmup_steps)
        return optim.lr * rise * (1 + math.cos(math.pi * progress)) / 2
    epoch = step // steps_per_epoch
    # A product such as 0.55 * 100 may be slightly above the intended epoch.
    passed = sum(epoch >= share * config.epochs - 1e-9 for share in optim.milestones)
    return optim.lr * rise * optim.gamma**passed


def epoch_sizes(config: TrainConfig) -> tuple[int, ...]:
    """Return the training image size of every epoch in pixels; empty: model.image_size."""
    num_sizes = len(config.progressive_sizes)
    return tuple(
        config.progressive_sizes[epoch * num_sizes // config.epochs]
        for epoch in range(config.epochs if num_sizes else 0)
    )


def is_checkpoint_due(config: TrainConfig, epoch: int, step: int, steps_per_epoch: int) -> bool:
    """Return whether a checkpoint is due at a point of training."""
    every = config.checkpoint_every_steps
    if step:
        return every > 0 and step % every == 0
    return not every or epoch == config.epochs or epoch * steps_per_epoch % every < steps_per_epoch
