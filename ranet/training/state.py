"""Training state: model, optimizer, EMA and progress, with snapshots."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ranet.config import TrainConfig
from ranet.distributed import (
    average,
    fill,
    gather,
    joined,
    rank,
    statistics,
    world_size,
    wrap,
)
from ranet.evaluation.accuracy import validation_top1
from ranet.evaluation.forward import ForwardPass
from ranet.protocols import Metrics, Snapshot
from ranet.training.ema import ExponentialMovingAverage
from ranet.training.losses import ExitLosses
from ranet.training.meters import EpochMeter
from ranet.training.optim import load_optimizer_state, make_optimizer, optimizer_state

KEYS = {"epoch", "step", "seed", "model", "optimizer", "ema", "workers", "history", "best"}


class TrainState:
    """State of a training: network, optimizer, EMA, and progress.

    A snapshot does not change the state. Within an epoch the running statistics of the batch
    norms differ between workers, because every worker reads its own images. Therefore a snapshot
    holds the statistics of every worker, from which the same number of workers resumes exactly.
    Another number of workers resumes from the mean of the statistics, which is exact in the mean:
    updates of the statistics are linear, and the epoch ends with their mean. All other state is
    equal on every worker.

    Args:
        config: settings of the training.
        model: on its device, images (batch, 3, height, width) -> logits (exits, batch, classes);
            DDP copies the weights of rank 0 to all workers.
        normalize: uint8 images -> the model's input, on the device of the model.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, normalize: Callable[[Tensor], Tensor]
    ) -> None:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.config = config
        self.model = model.to(memory_format=layout)
        self.ddp_model = wrap(model, config.gradient_precision)
        self.ema = ExponentialMovingAverage(model, config.ema.decay) if config.ema.decay else None
        stepped = self.ddp_model
        if config.compile:
            stepped = cast(nn.Module, torch.compile(stepped, dynamic=False))
        self.train_forward = ForwardPass(stepped, normalize, config.precision, layout)
        """Forward pass of a training step."""
        self.eval_forward = ForwardPass(
            self.ema.model if self.ema else model,
            normalize,
            config.precision,
            layout,
            config.evaluation_batch_size,
        )
        """Forward pass of the network to evaluate and keep: the EMA, else the model."""
        self.loss = ExitLosses(config.loss)
        self.optimizer = make_optimizer(config.optim, model)
        self.device = next(model.parameters()).device
        self.epoch = 0
        """Number of complete epochs."""
        self.step = 0
        """Number of steps done in the current epoch."""
        self.meter = EpochMeter(self.device)
        self.history: list[Metrics] = []
        self.best: dict[str, Any] = {"value": -1.0}

    def end_steps(self) -> Metrics:
        """Average batch norm statistics over workers; return training metrics."""
        average(self._statistics())
        return self.meter.metrics()

    def end_epoch(self, metrics: Metrics) -> None:
        """Record an epoch's metrics, and its weights if it is best."""
        self.epoch += 1
        self.step = 0
        self.meter = EpochMeter(self.device)
        self.history.append(metrics)
        # Among equally good epochs, the last is the best: it was trained longest.
        if (value := _selection_value(self.config, metrics)) >= self.best["value"]:
            kept = self.eval_forward.model.state_dict()
            weights = {name: value.detach().to("cpu", copy=True) for name, value in kept.items()}
            self.best = {"epoch": self.epoch, "value": value, "model": weights}

    def snapshot(self) -> Snapshot:
        """Return a snapshot to resume from; a collective call.

        The tensors of model, optimizer and EMA are those of the training, which the next step
        changes; `HostCopies` copies them.
        """
        workers = None
        if self.step:
            own = self._statistics()
            workers = {
                "statistics": torch.stack(gather(joined(own) if own else torch.zeros(0))).cpu(),
                "meter": self.meter.state(),
            }
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seed": self.config.seed,
            "model": dict(self.model.state_dict()),
            "optimizer": optimizer_state(self.optimizer, self.model),
            "ema": dict(self.ema.model.state_dict()) if self.ema else None,
            "workers": workers,
            "history": [dict(each) for each in self.history],
            "best": self.best,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state from a snapshot, with any number of workers.

        Raises:
            ValueError: the snapshot is incomplete, or belongs to another training.
        """
        _check(self.config, snapshot)
        try:
            self.model.load_state_dict(snapshot["model"])
        except RuntimeError as error:
            raise ValueError(
                f"the snapshot to resume from belongs to another network: {error}"
            ) from error
        if self.ema is not None:
            self.ema.model.load_state_dict(snapshot["ema"])
        load_optimizer_state(self.optimizer, self.model, snapshot["optimizer"])
        self.epoch, self.step = snapshot["epoch"], snapshot["step"]
        self.history = [dict(each) for each in snapshot["history"]]
        self.best = snapshot["best"]
        if snapshot["workers"] is not None:
            rows = snapshot["workers"]["statistics"]
            own = rows[rank()] if len(rows) == world_size() else rows.mean(dim=0)
            fill(self._statistics(), own)
            self.meter = EpochMeter.from_state(snapshot["workers"]["meter"], rank(), self.device)

    def _statistics(self) -> list[Tensor]:
        """Return the running statistics, which differ between workers within an epoch."""
        own = statistics(self.model)
        return own + statistics(self.ema.model) if self.ema else own


def _check(config: TrainConfig, snapshot: Snapshot) -> None:
    """Reject a snapshot that is incomplete or belongs to another training."""
    if missing := KEYS - snapshot.keys():
        raise ValueError(
            f"{', '.join(sorted(missing))} missing in the snapshot to resume from: "
            "the snapshot is incomplete; resume from another one, or start from scratch"
        )
    if snapshot["seed"] != config.seed:
        raise ValueError(
            f"train.seed is {config.seed}, but the snapshot to resume from was trained with seed "
            f"{snapshot['seed']}: set that seed, or start from scratch"
        )
    if config.ema.decay and snapshot["ema"] is None:
        raise ValueError(
            f"train.ema.decay is {config.ema.decay}, but the snapshot to resume from has no "
            "EMA of the weights: set train.ema.decay to 0, or start from scratch"
        )
    if snapshot["epoch"] > config.epochs:
        raise ValueError(
            f"train.epochs is {config.epochs}, but the snapshot to resume from has "
            f"{snapshot['epoch']} epochs already: raise train.epochs, or start from scratch"
        )


def _selection_value(config: TrainConfig, metrics: Metrics) -> float:
    top1 = validation_top1(metrics)
    return top1[-1] if config.select_by == "last_exit" else sum(top1) / len(top1)
