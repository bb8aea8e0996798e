"""The training loop: epochs, evaluation, snapshots; it knows a Reporter and no cluster.

An epoch is
- `train_one_epoch`: every worker on its own batches, gradients averaged by DDP;
- `average_buffers`: the batch norm statistics become the same on every worker;
- `evaluate`: every worker on its share of the validation images, counts added up;
- `Reporter.report`: the metrics, and a snapshot from which `fit` goes on exactly.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ranet.config import TrainConfig
from ranet.training.distributed import average_buffers, gather, rank, world_size, wrap
from ranet.training.losses import exit_loss
from ranet.training.optim import (
    FiniteGuard,
    NonFiniteLoss,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)
from ranet.training.reporter import Batches, Metrics, Reporter, Snapshot

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0
"""Time after which a long epoch logs another line."""
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
) -> Snapshot:
    """Train a model and report after every epoch, on every worker.

    Args:
        config: how to train.
        model: on `device`; images (batch, 3, height, width) -> logits (exits, batch, classes).
        train: batches to learn from.
        val: batches by which the best epoch is chosen.
        reporter: takes the metrics and the snapshot of every epoch.
        normalize: uint8 images -> the model's input, on `device`.
        device: where this worker computes.
        resume: snapshot of an earlier call; training goes on as if never interrupted.

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
    model.to(memory_format=layout)
    optimizer = make_optimizer(config.optim, model)
    if resume is not None:
        _restore(config, model, optimizer, resume)
    first_epoch: int = resume["epoch"] if resume else 0
    history: list[Metrics] = list(resume["history"]) if resume else []
    best: dict[str, Any] = resume["best"] if resume else {"value": -1.0}
    snapshot: Snapshot = resume or {}

    def prepare(images: Tensor) -> Tensor:
        return normalize(images.contiguous(memory_format=layout))

    wrapped = wrap(model)
    progress = Progress(config.epochs, len(train), first_epoch)
    for epoch in range(first_epoch, config.epochs):
        # Strings are hashed, so that neighbouring seeds, epochs and ranks have nothing in common.
        torch.manual_seed(random.Random(f"{config.seed} {epoch} {rank()}").getrandbits(63))
        metrics: Metrics = {
            "epoch": float(epoch + 1),
            **train_one_epoch(
                config, wrapped, train, optimizer, epoch, normalize=prepare, progress=progress
            ),
        }
        average_buffers(model)
        metrics |= evaluate(config, model, val, normalize=prepare, device=device)
        history.append(metrics)
        weights = _to_cpu(model.state_dict())
        # Of epochs that are equally good, the one that trained longer.
        if (value := _selection_value(config, metrics)) >= best["value"]:
            best = {"epoch": epoch + 1, "value": value, "model": weights}
        snapshot = {
            "epoch": epoch + 1,
            "model": weights,
            "optimizer": _to_cpu(optimizer_state(optimizer, model)),
            "seed": config.seed,
            "history": [dict(each) for each in history],
            "best": best,
        }
        progress.log_epoch(epoch, metrics)
        reporter.report(metrics, snapshot)
    return snapshot


def train_one_epoch(
    config: TrainConfig,
    model: nn.Module,
    batches: Batches,
    optimizer: SGD,
    epoch: int,
    *,
    normalize: Callable[[Tensor], Tensor],
    progress: "Progress",
) -> Metrics:
    """Take one step for each batch; the same metrics come back on every worker.

    Raises:
        NonFiniteLoss: on every worker, whichever had the bad loss.
    """
    model.train()
    guard = FiniteGuard(optimizer)
    totals: Tensor | None = None
    num_images, lr, waited = 0, 0.0, 0.0
    started = asked = time.perf_counter()
    with batches.epoch(epoch) as reader:
        for step, (images, labels) in enumerate(reader):
            waited += time.perf_counter() - asked
            lr = learning_rate(config, epoch * len(batches) + step, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            logits = compute_logits(model, images, normalize, config.precision)
            loss = exit_loss(logits, labels, config.exit_loss_weights, config.label_smoothing)
            guard.backward(loss)
            optimizer.step()
            # Added up on the device: .item() here would stall it at every step.
            counts = _count_training(loss, logits, labels)
            totals = counts if totals is None else totals + counts
            num_images += len(labels)
            if images.device.type == "cpu" or step % STEPS_BETWEEN_READS == 0:
                _raise_if_bad(guard, config, epoch, len(batches))
            if progress.is_due():
                progress.log_step(epoch, step, totals, num_images, time.perf_counter() - started)
            asked = time.perf_counter()
    assert totals is not None, "a training split has at least one batch"
    _raise_if_bad(guard, config, epoch, len(batches))
    seconds = time.perf_counter() - started
    sums = torch.cat((totals[:1], totals.new_tensor([num_images, seconds, waited])))
    loss_sum, num_images, seconds, waited = torch.stack(gather(sums)).sum(dim=0).tolist()
    return {
        "train/loss": loss_sum / num_images,
        "train/images_per_second": num_images / (seconds / world_size()),
        "train/data_wait": waited / seconds,
        "train/lr": lr,
    }


@torch.inference_mode()
def evaluate(
    config: TrainConfig,
    model: nn.Module,
    batches: Batches,
    *,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Metrics:
    """Give the loss, and each exit's top-1 and top-5 in percent, over the images of all workers.

    The loss is the weighted sum over exits without label smoothing. Workers meet only at the
    end: they may hold unequal numbers of batches, or none.
    """
    model.eval()
    # One row for top-1, one for top-5, (2, exits); a worker without batches knows no exits.
    hits = torch.zeros((2, 0), dtype=torch.float64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    num_images = 0
    with batches.epoch(0) as reader:
        for images, labels in reader:
            logits = compute_logits(model, images, normalize, config.precision)
            loss_sum += exit_loss(logits, labels, config.exit_loss_weights) * len(labels)
            batch_hits = torch.stack(exit_hits(logits, labels)).sum(dim=2)
            hits = hits + batch_hits if num_images else batch_hits.double()
            num_images += len(labels)
    hit_sums = torch.stack([each for each in gather(hits) if each.numel()]).sum(dim=0)
    sums = torch.stack(gather(torch.stack((loss_sum, loss_sum.new_tensor(num_images)))))
    loss_total, num_images = sums.sum(dim=0).tolist()
    assert num_images == batches.num_samples, "every image is evaluated exactly once"
    top1, top5 = (hit_sums * 100 / num_images).tolist()
    metrics = {"val/loss": loss_total / num_images}
    for k, (first, fifth) in enumerate(zip(top1, top5, strict=True), start=1):
        metrics |= {f"val/exit{k}/top1": first, f"val/exit{k}/top5": fifth}
    return metrics


def compute_logits(
    model: nn.Module,
    images: Tensor,
    normalize: Callable[[Tensor], Tensor],
    precision: Literal["float32", "bfloat16"],
) -> Tensor:
    """Map uint8 images to logits (exits, batch, classes), by autocast where not in float32."""
    # Normalised in float32: bfloat16 has not the digits to subtract a mean. Autocast rounds after.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model(normalize(images))


def exit_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where the label is an exit's first choice, and where among its first five.

    Both are bool, (exits, batch); with fewer than five classes the second is always true.
    """
    choices = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = choices == labels[:, None]
    return hits[..., 0], hits.any(dim=-1)


class Progress:
    """Logs, on the first worker only, how far training is and how long it will still take."""

    def __init__(self, num_epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._first_step = first_epoch * steps_per_epoch
        self._started = self._logged = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether it is time for another line within the epoch."""
        return rank() == 0 and time.monotonic() - self._logged > SECONDS_BETWEEN_LINES

    def log_step(
        self, epoch: int, step: int, totals: Tensor, num_images: int, seconds: float
    ) -> None:
        """Log a line from the training images that this worker saw in the epoch so far."""
        loss, first, last = (totals / num_images).tolist()
        self._log(
            epoch,
            step + 1,
            f"{num_images * world_size() / seconds:.0f} images/s, training loss {loss:.4g}, "
            f"top-1 first exit {first * 100:.2f} %, last exit {last * 100:.2f} %",
        )

    def log_epoch(self, epoch: int, metrics: Metrics) -> None:
        """Log a line from the metrics of a whole epoch."""
        top1 = _validation_top1(metrics)
        self._log(
            epoch,
            self._steps_per_epoch,
            f"{metrics['train/images_per_second']:.0f} images/s, "
            f"training loss {metrics['train/loss']:.4g}, "
            f"validation top-1 first exit {top1[0]:.2f} %, last exit {top1[-1]:.2f} %",
        )

    def _log(self, epoch: int, step: int, text: str) -> None:
        if rank() != 0:
            return
        self._logged = time.monotonic()
        steps_done = epoch * self._steps_per_epoch + step
        steps_left = self._num_epochs * self._steps_per_epoch - steps_done
        pace = (self._logged - self._started) / (steps_done - self._first_step)
        logger.info(
            "epoch %d/%d, step %d/%d: %s; %s left",
            epoch + 1,
            self._num_epochs,
            step,
            self._steps_per_epoch,
            text,
            timedelta(seconds=round(pace * steps_left)),
        )


def _count_training(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the loss over a batch, and hits of the first and the last exit: (3,)."""
    choices = torch.stack((logits[0], logits[-1])).argmax(dim=-1)
    hits = (choices == labels).sum(dim=1)
    return torch.cat((loss.detach()[None].double() * len(labels), hits))


def _raise_if_bad(guard: FiniteGuard, config: TrainConfig, epoch: int, num_steps: int) -> None:
    if (step := guard.first_bad_step()) is not None:
        raise NonFiniteLoss(
            f"the loss or its gradient is infinite or not a number in epoch {epoch + 1} of "
            f"{config.epochs}, step {step + 1} of {num_steps}; the weights are those before that "
            f"step; train.optim.lr is {config.optim.lr}: lower it, or lengthen "
            "train.optim.warmup_epochs"
        )


def _validation_top1(metrics: Mapping[str, float]) -> list[float]:
    """Top-1 of every exit, first exit first."""
    return [v for name, v in metrics.items() if name.startswith("val/") and name.endswith("/top1")]


def _selection_value(config: TrainConfig, metrics: Mapping[str, float]) -> float:
    top1 = _validation_top1(metrics)
    return top1[-1] if config.select_by == "last_exit" else sum(top1) / len(top1)


def _restore(config: TrainConfig, model: nn.Module, optimizer: SGD, snapshot: Snapshot) -> None:
    """Put a snapshot into model and optimizer, if it is one of this training."""
    missing = {"epoch", "model", "optimizer", "seed", "history", "best"} - snapshot.keys()
    if missing:
        raise ValueError(
            f"the snapshot to resume from lacks {', '.join(sorted(missing))}: "
            "it is not complete; resume from another one, or start anew"
        )
    if snapshot["seed"] != config.seed:
        raise ValueError(
            f"train.seed is {config.seed}, but the snapshot to resume from was trained with seed "
            f"{snapshot['seed']}: set that seed, or start anew"
        )
    if snapshot["epoch"] > config.epochs:
        raise ValueError(
            f"train.epochs is {config.epochs}, but the snapshot to resume from has "
            f"{snapshot['epoch']} epochs already: train for more epochs, or start anew"
        )
    try:
        model.load_state_dict(snapshot["model"])
    except RuntimeError as error:
        raise ValueError(f"the snapshot to resume from is of another network: {error}") from error
    load_optimizer_state(optimizer, model, snapshot["optimizer"])


def _to_cpu(value: Any) -> Any:
    """Copy nested dicts of tensors to the CPU; the copies do not change with the originals."""
    if isinstance(value, Mapping):
        return {key: _to_cpu(each) for key, each in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
