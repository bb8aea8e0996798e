"""What changes while a network learns: saved as a snapshot, and put back from one."""

from collections.abc import Mapping
from typing import Any

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
from ranet.protocols import Metrics, Snapshot
from ranet.training.ema import ExponentialMovingAverage
from ranet.training.meters import EpochMeter
from ranet.training.optim import load_optimizer_state, make_optimizer, optimizer_state

KEYS = {"epoch", "step", "seed", "model", "optimizer", "average", "workers", "history", "best"}


class TrainState:
    """A network, its optimizer, and how far they are.

    Taking a snapshot changes nothing. Within an epoch the workers differ in the running
    statistics of their batch norms, each of which has seen its own images; so a snapshot holds
    those of every worker, and as many workers go on exactly. Another number of workers goes on
    with the mean, which is exact in the mean: the statistics move linearly, and the epoch ends
    with their mean. Everything else is the same on every worker.

    Args:
        config: how to train.
        model: on its device; the first worker's weights count.
    """

    def __init__(self, config: TrainConfig, model: nn.Module) -> None:
        self.config = config
        self.model = model
        self.wrapped = wrap(model)
        self.called = torch.compile(self.wrapped, dynamic=False) if config.compile else self.wrapped
        """What a training step calls; evaluation calls the network as it is."""
        self.average = (
            ExponentialMovingAverage(model, config.ema.decay) if config.ema.decay else None
        )
        self.optimizer = make_optimizer(config.optim, model)
        self.device = next(model.parameters()).device
        self.epoch = 0
        """Epochs done."""
        self.step = 0
        """Steps done in the epoch that runs."""
        self.tally = EpochMeter(self.device)
        self.history: list[Metrics] = []
        self.best: dict[str, Any] = {"value": -1.0}

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the weights where there is one."""
        return self.average.model if self.average else self.model

    def end_steps(self) -> Metrics:
        """Make the workers alike when all steps of an epoch are done; give its metrics."""
        average(self._statistics())
        return self.tally.metrics()

    def end_epoch(self, metrics: Metrics) -> None:
        """Count the epoch that was trained and evaluated."""
        self.epoch += 1
        self.step = 0
        self.tally = EpochMeter(self.device)
        self.history.append(metrics)
        # Of epochs that are equally good, the one that trained longer.
        if (value := _selection_value(self.config, metrics)) >= self.best["value"]:
            weights = _to_cpu(self.scored.state_dict())
            self.best = {"epoch": self.epoch, "value": value, "model": weights}

    def snapshot(self) -> Snapshot:
        """Copy all that a resumed training needs; every worker must ask for it."""
        workers = None
        if self.step:
            own = self._statistics()
            workers = {
                "statistics": torch.stack(gather(joined(own) if own else torch.zeros(0))).cpu(),
                "tally": self.tally.state(),
            }
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seed": self.config.seed,
            "model": _to_cpu(self.model.state_dict()),
            "optimizer": _to_cpu(optimizer_state(self.optimizer, self.model)),
            "average": _to_cpu(self.average.model.state_dict()) if self.average else None,
            "workers": workers,
            "history": [dict(each) for each in self.history],
            "best": self.best,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, with any number of workers.

        Raises:
            ValueError: it is not complete, or of another training.
        """
        _check(self.config, snapshot)
        try:
            self.model.load_state_dict(snapshot["model"])
        except RuntimeError as error:
            raise ValueError(
                f"the snapshot to resume from is of another network: {error}"
            ) from error
        if self.average is not None:
            self.average.model.load_state_dict(snapshot["average"])
        load_optimizer_state(self.optimizer, self.model, snapshot["optimizer"])
        self.epoch, self.step = snapshot["epoch"], snapshot["step"]
        self.history = [dict(each) for each in snapshot["history"]]
        self.best = snapshot["best"]
        if snapshot["workers"] is not None:
            rows = snapshot["workers"]["statistics"]
            own = rows[rank()] if len(rows) == world_size() else rows.mean(dim=0)
            fill(self._statistics(), own)
            self.tally = EpochMeter.from_state(snapshot["workers"]["tally"], rank(), self.device)

    def _statistics(self) -> list[Tensor]:
        """Running statistics, of which each worker has its own while an epoch runs."""
        own = statistics(self.model)
        return own + statistics(self.average.model) if self.average else own


def _check(config: TrainConfig, snapshot: Snapshot) -> None:
    """Refuse a snapshot that is not one of this training."""
    if missing := KEYS - snapshot.keys():
        raise ValueError(
            f"the snapshot to resume from lacks {', '.join(sorted(missing))}: "
            "it is not complete; resume from another one, or start anew"
        )
    if snapshot["seed"] != config.seed:
        raise ValueError(
            f"train.seed is {config.seed}, but the snapshot to resume from was trained with seed "
            f"{snapshot['seed']}: set that seed, or start anew"
        )
    if config.ema.decay and snapshot["average"] is None:
        raise ValueError(
            f"train.ema.decay is {config.ema.decay}, but the snapshot to resume from has no "
            "average of the weights: set it to 0, or start anew"
        )
    if snapshot["epoch"] > config.epochs:
        raise ValueError(
            f"train.epochs is {config.epochs}, but the snapshot to resume from has "
            f"{snapshot['epoch']} epochs already: train for more epochs, or start anew"
        )


def _selection_value(config: TrainConfig, metrics: Metrics) -> float:
    top1 = validation_top1(metrics)
    return top1[-1] if config.select_by == "last_exit" else sum(top1) / len(top1)


def _to_cpu(value: Any) -> Any:
    """Copy nested dicts of tensors to the CPU; the copies do not change with the originals."""
    if isinstance(value, Mapping):
        return {key: _to_cpu(each) for key, each in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
