"""Configuration of a sweep: search space, cost limits, early stopping, objective."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config import check_name
from cluster.paths import path_field
from ranet.checks import check_choices, check_range
from tuning.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Distribution of one setting: `choice`, `integers`, `uniform` or `log_uniform`."""

    choice: tuple[Any, ...] = ()
    """Values, all equally likely; a mapping of dotted names sets several settings at once."""
    integers: tuple[int, int] | None = None
    """Min and max of uniformly distributed integers, inclusive."""
    uniform: tuple[float, float] | None = None
    """Min and max of uniformly distributed real numbers."""
    log_uniform: tuple[float, float] | None = None
    """Min and max of real numbers whose logarithm is uniformly distributed."""
    length: int | None = None
    """Number of values to sample as a list; null: a single value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", tuple(self.choice))
        kinds = ("choice", "integers", "uniform", "log_uniform")
        given = [name for name in kinds if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "an entry of space must have exactly one of choice, integers, uniform and "
                f"log_uniform, got {' and '.join(given) or 'none'}"
            )
        for name in kinds[1:]:
            bounds = getattr(self, name)
            if bounds is not None:
                object.__setattr__(self, name, tuple(bounds))
                if not -math.inf < bounds[0] < bounds[1] < math.inf:
                    raise ValueError(f"{name} must be [min, max] with min below max, got {bounds}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform must be above 0, got {self.log_uniform}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length must be 1 or more, or null, got {self.length}")


class RejectedError(ValueError):
    """A candidate cannot be trained, or exceeds the limits of the sweep.

    Args:
        bound: short name of the setting or limit that rejects it; rejections are counted by it.
        message: the whole reason.
    """

    def __init__(self, bound: str, message: str) -> None:
        super().__init__(message)
        self.bound = bound


@dataclass(frozen=True, kw_only=True)
class CostLimits:
    """Limits on a network's cost: [min, max], null for no bound."""

    mult_adds: tuple[float | None, float | None] | None = None
    """Mult-adds of the last exit, per image."""
    first_exit_mult_adds: tuple[float | None, float | None] | None = None
    """Mult-adds of the first exit, per image."""
    parameters: tuple[float | None, float | None] | None = None
    """Number of parameters of the network."""
    memory_bytes: tuple[float | None, float | None] | None = None
    """Memory of a training step on one worker in bytes, computed from the network's tensors."""

    def __post_init__(self) -> None:
        for name in ("mult_adds", "first_exit_mult_adds", "parameters", "memory_bytes"):
            bounds = getattr(self, name)
            if bounds is not None:
                object.__setattr__(self, name, tuple(bounds))
                low, high = _filled(bounds)
                if not 0 <= low <= high or math.isnan(high):
                    raise ValueError(
                        f"cost_limits.{name} must be [min, max] with 0 <= min <= max, "
                        f"got {list(bounds)}: no network can satisfy it"
                    )

    def check(self, name: str, value: float) -> None:
        """Check a cost of a candidate against the limit of that name.

        Raises:
            RejectedError: the value is outside the limit.
        """
        bounds = getattr(self, name)
        if bounds is None:
            return
        low, high = _filled(bounds)
        if not low <= value <= high:
            raise RejectedError(
                f"cost_limits.{name}",
                f"cost_limits.{name} is [{low:.4g}, {high:.4g}], a candidate has {value:.4g}",
            )


def _filled(bounds: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = bounds
    return 0.0 if low is None else low, math.inf if high is None else high


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Early stopping of trials by asynchronous successive halving (ASHA) over epochs."""

    method: Literal["asha", "none"] = "none"
    """none: train every trial to its last epoch; asha: at epochs first_epoch,
    first_epoch * factor, ... continue only trials in the best 1/factor so far."""
    first_epoch: int = 1
    """Number of epochs that every trial is trained."""
    factor: float = 3.0
    """Reduction factor: one in this many trials continues at each decision."""
    brackets: int = 1
    """Number of HyperBand brackets, each with a later first decision than the one before; 1: plain
    ASHA."""

    def __post_init__(self) -> None:
        check_choices(self, "early_stopping")
        check_range(self, "early_stopping", first_epoch=(1, None), brackets=(1, None))
        if not self.factor > 1:
            raise ValueError(f"early_stopping.factor must be above 1, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Hyperparameter search over the settings of a run."""

    name: str = "sweep"
    """Name of the sweep. Running it again resumes an unfinished sweep of that name, or starts a new
    attempt of a finished one."""
    base_config: str = path_field("configs/cifar10.yaml", "config")
    """Configuration file of the run that all trials start from; in a config file, relative to that
    file."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of that run to change for all trials, by dotted name."""
    space: dict[str, Dimension] = field(default_factory=dict)
    """Settings to search over, by dotted name. Besides settings of a run: exit_weights.family,
    exit_weights.strength, exit_weights.free and scale_factors (docs/operating.md)."""
    cost_limits: CostLimits = field(default_factory=CostLimits)
    """Limits on the cost of a network; candidates outside are rejected before training."""
    objective: Objective = field(default_factory=Objective)
    """Metrics to compare trials by."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler: tpe (tree-structured Parzen estimator) or random."""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    """Early stopping of trials; must be none with several objectives."""
    warm_start: tuple[str, ...] = ()
    """Names of other sweeps of the same run and objective. The sampler starts with the results of
    their trials, and none of these is trained again."""
    num_trials: int = 16
    """Total number of trials."""
    seed: int = 0
    """Random seed of the sampler."""

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "warm_start", tuple(self.warm_start))
        for name in self.warm_start:
            check_name(name, "each name in warm_start")
        if not self.base_config:
            raise ValueError("base_config must name a config file of a run, got an empty string")
        if not self.space:
            raise ValueError("space must name at least one setting to search over, got none")
        check_choices(self, "")
        check_range(self, "", num_trials=(1, None), seed=(0, None))
        if len(self.objective.metrics) > 1 and self.early_stopping.method != "none":
            raise ValueError(
                "early_stopping.method must be none with several objectives, got "
                f"{self.early_stopping.method} with {', '.join(self.objective.metrics)}: "
                "unfinished trials cannot be ranked by several objectives; "
                "add --early_stopping.method=none"
            )
