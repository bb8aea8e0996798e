"""Training loop: epochs, steps and checkpoints, independent of Ray.

An epoch consists of
- `train_one_epoch`: every worker trains on its share of every batch, DDP averages the gradients;
- `TrainState.end_steps`: the batch norm statistics become equal on every worker;
- `evaluate`: every worker evaluates its share of the validation images, counts are summed;
- `Reporter.report`: metrics, and where due a snapshot from which `fit` resumes exactly.

A step is one global batch of `train.batch_size` images, for any number of workers. The loss of a
worker or a micro-batch is weighted by its share of these images, so the gradient is always the
gradient of the mean loss over the global batch. Batch norm is an exception: it computes mean and
variance over the images of one forward pass on one worker.
"""

import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from ranet.config import TrainConfig
from ranet.distributed import accumulating, rank, world_size
from ranet.protocols import Batches, Metrics, Reporter, Snapshot
from ranet.training.optim import FiniteGuard, NonFiniteLoss
from ranet.training.progress import ProgressLog
from ranet.training.schedule import is_checkpoint_due, learning_rate
from ranet.training.state import TrainState
from ranet.training.validation import evaluate

STEPS_BETWEEN_READS = 50
"""Steps between two reads of the guard on an accelerator; each read stalls the device."""


def fit(
    training: TrainState,
    train: Batches,
    val: Batches,
    reporter: Reporter,
    *,
    resume: Snapshot | None = None,
    measure: Callable[[nn.Module], Metrics] | None = None,
) -> Snapshot:
    """Train a model; report metrics and snapshots after every epoch.

    Args:
        training: a new training state.
        train: batches of the training split.
        val: batches of the validation split, which selects the best epoch.
        reporter: receives metrics and snapshots.
        resume: snapshot of a previous call; training continues as if never interrupted.
        measure: computes further metrics of an epoch from the evaluated network; called on every
            worker.

    Returns:
        The snapshot of the last epoch.

    Raises:
        NonFiniteLoss: training diverged; the weights are the weights before the bad step.
        ValueError: the snapshot belongs to another training, or there are no batches.
    """
    config = training.config
    if len(train) == 0:
        raise ValueError(
            f"train.batch_size is {config.batch_size}, but there are only {train.num_samples} "
            "training images, less than one batch; lower train.batch_size"
        )
    snapshot = None
    if resume is not None:
        training.restore(resume)
        snapshot = resume if training.epoch == config.epochs else None
    progress = ProgressLog(config.epochs, len(train), training.epoch * len(train) + training.step)
    if resume is not None:
        progress.log_resumed(training.epoch, training.step)
    del resume  # gigabytes that nobody needs any more
    while training.epoch < config.epochs:
        train_one_epoch(training, train, reporter, progress)
        metrics = _epoch_metrics(training, val, len(train))
        if measure is not None:
            metrics |= measure(training.eval_forward.model)
        training.end_epoch(metrics)
        progress.log_epoch(training.epoch - 1, metrics)
        is_due = is_checkpoint_due(config, training.epoch, 0, len(train))
        snapshot = training.snapshot() if is_due else None
        reporter.report(metrics, snapshot)
    assert snapshot is not None, "a snapshot follows the last epoch"
    return snapshot


def _epoch_metrics(training: TrainState, val: Batches, steps_per_epoch: int) -> Metrics:
    """Compute the metrics of an epoch after its last step.

    Raises:
        NonFiniteLoss: the validation loss is infinite or not a number.
    """
    config, number = training.config, training.epoch + 1
    metrics = {
        "epoch": float(number),
        **training.end_steps(),
        "train/lr": learning_rate(config, number * steps_per_epoch - 1, steps_per_epoch),
        **evaluate(training.eval_forward, val, config.loss.exit_weights),
    }
    if not math.isfinite(metrics["val/loss"]):
        raise NonFiniteLoss(
            f"the validation loss is {metrics['val/loss']} after epoch {number} of "
            f"{config.epochs}, though every training loss was finite; train.optim.lr is "
            f"{config.optim.lr}: lower it, or lengthen train.optim.warmup_epochs"
        )
    return metrics


def train_one_epoch(
    training: TrainState, batches: Batches, reporter: Reporter, progress: ProgressLog
) -> None:
    """Run the remaining steps of the epoch, one per batch.

    Raises:
        NonFiniteLoss: raised on every worker, even if only one had the bad loss.
    """
    config, epoch, first_step = training.config, training.epoch, training.step
    training.model.train()
    guard = FiniteGuard(training.optimizer)
    asked = time.perf_counter()
    with batches.epoch(epoch, first_step) as reader:
        for images, labels in reader:
            waited = time.perf_counter() - asked
            take_step(training, guard, images, labels, len(batches))
            training.step += 1
            wants_checkpoint = reporter.wants_checkpoint() or (
                training.step
                < len(batches)  # after the last step, the checkpoint of the epoch follows
                and is_checkpoint_due(config, epoch, training.step, len(batches))
            )
            if (
                images.device.type == "cpu"
                or training.step % STEPS_BETWEEN_READS == 0
                or wants_checkpoint
            ):
                _raise_if_bad(guard, config, epoch, first_step, len(batches))
            took = time.perf_counter() - asked
            training.meter.add_time(took, waited)
            reporter.step(len(labels), took, waited)
            if wants_checkpoint:
                reporter.checkpoint(training.snapshot())
            if progress.is_due():
                progress.log_step(epoch, training.step, training.meter)
            asked = time.perf_counter()
    _raise_if_bad(guard, config, epoch, first_step, len(batches))
    training.meter.add_time(
        time.perf_counter() - asked, waited=0.0
    )  # work still queued on the device


def take_step(
    training: TrainState,
    guard: FiniteGuard,
    images: Tensor,
    labels: Tensor,
    steps_per_epoch: int,
) -> None:
    """Update the weights from this worker's share of a global batch."""
    config, optimizer = training.config, training.optimizer
    # Every step of every worker has its own seed, so that a resumed run gets the same random
    # numbers; seeding by a string hashes it, so that the seeds of successive steps are unrelated.
    seed = f"{config.seed} {training.epoch} {training.step} {rank()}"
    torch.manual_seed(random.Random(seed).getrandbits(63))
    global_step = training.epoch * steps_per_epoch + training.step
    progress = global_step / max(1, config.epochs * steps_per_epoch - 1)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, global_step, steps_per_epoch)
    optimizer.zero_grad()
    num_micro = math.ceil(len(labels) / config.micro_batch_size) if config.micro_batch_size else 1
    micro_batches = zip(images.tensor_split(num_micro), labels.tensor_split(num_micro), strict=True)
    for number, (micro_images, micro_labels) in enumerate(micro_batches, start=1):
        with nullcontext() if number == num_micro else accumulating(training.ddp_model):
            logits = training.train_forward(micro_images)
            loss = reduce(add, training.loss(logits, micro_labels, progress).values())
            # DDP divides the sum over workers by their number; world_size() undoes that.
            share = len(micro_labels) * world_size() / config.batch_size
            guard.backward(loss * share)
        training.meter.add_images(loss, logits, micro_labels)
    guard.check()
    optimizer.step()
    if training.ema is not None:
        training.ema.update(global_step)


def _raise_if_bad(
    guard: FiniteGuard, config: TrainConfig, epoch: int, first_step: int, num_steps: int
) -> None:
    if (step := guard.first_bad_step()) is not None:
        raise NonFiniteLoss(
            f"the loss or its gradient is infinite or not a number in epoch {epoch + 1} of "
            f"{config.epochs}, step {first_step + step + 1} of {num_steps}; the weights from "
            f"before that step are kept; train.optim.lr is {config.optim.lr}: lower it, or "
            "lengthen train.optim.warmup_epochs"
        )
