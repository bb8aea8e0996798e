"""The training loop: epochs, steps, checkpoints; it knows a Reporter and no cluster.

An epoch is
- `train_one_epoch`: every worker on its part of every batch, gradients averaged by DDP;
- `TrainState.end_steps`: the batch norm statistics become the same on every worker;
- `evaluate`: every worker on its share of the validation images, counts added up;
- `Reporter.report`: the metrics, and where due a snapshot from which `fit` goes on exactly.

A step is one global batch of `train.batch_size` images, whatever the number of workers. The loss
of a worker is weighted by its share of these images, and that of a micro-batch by its own, so the
gradient is always that of the mean loss over the global batch. (Batch norm has no such rule: it
takes its mean and variance over the images that one worker takes through the network at once.)
"""

import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ranet.config import TrainConfig
from ranet.distributed import accumulating, rank, world_size
from ranet.evaluation.accuracy import compute_logits
from ranet.protocols import Batches, Metrics, Reporter, Snapshot
from ranet.training.losses import curriculum_weights, exit_loss
from ranet.training.optim import FiniteGuard, NonFiniteLoss
from ranet.training.progress import ProgressLog
from ranet.training.schedule import is_checkpoint_due, learning_rate
from ranet.training.state import TrainState
from ranet.training.validation import evaluate

STEPS_BETWEEN_READS = 50
"""Steps between two looks at the guard's answer on an accelerator, where each look stalls it."""


def fit(
    config: TrainConfig,
    model: nn.Module,
    train: Batches,
    val: Batches,
    reporter: Reporter,
    *,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    resume: Snapshot | None = None,
    measure: Callable[[nn.Module], Metrics] | None = None,
) -> Snapshot:
    """Train a model and report after every epoch, on every worker, where due with a snapshot.

    Args:
        config: how to train.
        model: on `device`; images (batch, 3, height, width) -> logits (exits, batch, classes).
        train: batches to learn from.
        val: batches by which the best epoch is chosen.
        reporter: takes the metrics and the snapshot of every epoch.
        normalize: uint8 images -> the model's input, on `device`.
        device: where this worker computes.
        resume: snapshot of an earlier call; training goes on as if never interrupted.
        measure: further metrics of an epoch, from the network that is evaluated; called on every
            worker.

    Returns:
        The snapshot of the last epoch.

    Raises:
        NonFiniteLoss: training diverged; the weights are those before the bad step.
        ValueError: the snapshot does not fit, or there are no batches.
    """
    if len(train) == 0:
        raise ValueError(
            f"train.batch_size is {config.batch_size}, but there are only {train.num_samples} "
            "training images: not one full batch; lower train.batch_size"
        )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def prepare(images: Tensor) -> Tensor:
        return normalize(images.contiguous(memory_format=layout))

    training = TrainState(config, model.to(memory_format=layout))
    snapshot = resume
    if resume is not None:
        training.restore(resume)
    progress = ProgressLog(config.epochs, len(train), training.epoch * len(train) + training.step)
    if resume is not None:
        progress.log_resumed(training.epoch, training.step)
    while training.epoch < config.epochs:
        train_one_epoch(training, train, reporter, normalize=prepare, progress=progress)
        epoch = training.epoch
        metrics = {
            "epoch": float(epoch + 1),
            **training.end_steps(),
            "train/lr": learning_rate(config, (epoch + 1) * len(train) - 1, len(train)),
            **evaluate(config, training.scored, val, normalize=prepare, device=device),
            **(measure(training.scored) if measure is not None else {}),
        }
        if not math.isfinite(metrics["val/loss"]):
            raise NonFiniteLoss(
                f"the validation loss is {metrics['val/loss']} after epoch {epoch + 1} of "
                f"{config.epochs}, though every training loss was finite; train.optim.lr is "
                f"{config.optim.lr}: lower it, or lengthen train.optim.warmup_epochs"
            )
        training.end_epoch(metrics)
        progress.log_epoch(epoch, metrics)
        is_due = is_checkpoint_due(config, training.epoch, 0, len(train))
        snapshot = training.snapshot() if is_due else None
        reporter.report(metrics, snapshot)
    assert snapshot is not None, "the last epoch has one"
    return snapshot


def train_one_epoch(
    training: TrainState,
    batches: Batches,
    reporter: Reporter,
    *,
    normalize: Callable[[Tensor], Tensor],
    progress: ProgressLog,
) -> None:
    """Take the steps of the epoch that are not done yet, one for each batch.

    Raises:
        NonFiniteLoss: on every worker, whichever had the bad loss.
    """
    config, epoch, first_step = training.config, training.epoch, training.step
    training.model.train()
    guard = FiniteGuard(training.optimizer)
    asked = time.perf_counter()
    with batches.epoch(epoch, first_step) as reader:
        for images, labels in reader:
            waited = time.perf_counter() - asked
            take_step(training, guard, images, labels, len(batches), normalize=normalize)
            training.step += 1
            wants_checkpoint = reporter.wants_checkpoint() or (
                training.step < len(batches)  # otherwise the whole epoch's follows
                and is_checkpoint_due(config, epoch, training.step, len(batches))
            )
            if (
                images.device.type == "cpu"
                or training.step % STEPS_BETWEEN_READS == 0
                or wants_checkpoint
            ):
                _raise_if_bad(guard, config, epoch, first_step, len(batches))
            took = time.perf_counter() - asked
            training.tally.add_time(took, waited)
            reporter.step(len(labels), took, waited)
            if wants_checkpoint:
                reporter.checkpoint(training.snapshot())
            if progress.is_due():
                progress.log_step(epoch, training.step, training.tally)
            asked = time.perf_counter()
    _raise_if_bad(guard, config, epoch, first_step, len(batches))
    training.tally.add_time(time.perf_counter() - asked, waited=0.0)  # what was still queued


def take_step(
    training: TrainState,
    guard: FiniteGuard,
    images: Tensor,
    labels: Tensor,
    steps_per_epoch: int,
    *,
    normalize: Callable[[Tensor], Tensor],
) -> None:
    """Learn from this worker's part of a global batch."""
    config, optimizer = training.config, training.optimizer
    # A number of its own for every step and worker, so that it does not matter where one resumed;
    # strings are hashed, so that neighbouring ones have nothing in common.
    seed = f"{config.seed} {training.epoch} {training.step} {rank()}"
    torch.manual_seed(random.Random(seed).getrandbits(63))
    global_step = training.epoch * steps_per_epoch + training.step
    progress = global_step / max(1, config.epochs * steps_per_epoch - 1)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, global_step, steps_per_epoch)
    optimizer.zero_grad()
    num_micro = math.ceil(len(labels) / config.micro_batch_size) if config.micro_batch_size else 1
    micro_batches = zip(images.tensor_split(num_micro), labels.tensor_split(num_micro), strict=True)
    for number, (some, their_labels) in enumerate(micro_batches, start=1):
        with nullcontext() if number == num_micro else accumulating(training.wrapped):
            logits = compute_logits(training.called, some, normalize, config.precision)
            weights = curriculum_weights(
                config.loss.exit_weights, len(logits), config.loss.curriculum, progress
            )
            loss = exit_loss(logits, their_labels, weights, config.loss.label_smoothing)
            # DDP divides the sum over the workers by their number.
            share = len(their_labels) * world_size() / config.batch_size
            guard.backward(loss * share)
        training.tally.add_images(loss, logits, their_labels)
    guard.check()
    optimizer.step()
    if training.average is not None:
        training.average.update(global_step)


def _raise_if_bad(
    guard: FiniteGuard, config: TrainConfig, epoch: int, first_step: int, num_steps: int
) -> None:
    if (step := guard.first_bad_step()) is not None:
        raise NonFiniteLoss(
            f"the loss or its gradient is infinite or not a number in epoch {epoch + 1} of "
            f"{config.epochs}, step {first_step + step + 1} of {num_steps}; the weights are those "
            f"before that step; train.optim.lr is {config.optim.lr}: lower it, or lengthen "
            "train.optim.warmup_epochs"
        )
