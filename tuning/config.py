"""What a sweep is: its space, what networks may cost, when trials are given up."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config import check_name
from tuning.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Values to try for one setting: one of `choice`, `integers`, `uniform` and `log_uniform`."""

    choice: tuple[Any, ...] = ()
    """These values, all equally likely; a mapping of dotted names sets several settings at once."""
    integers: tuple[int, int] | None = None
    """Lowest and highest of whole numbers that are equally likely."""
    uniform: tuple[float, float] | None = None
    """Lowest and highest of real numbers that are equally likely."""
    log_uniform: tuple[float, float] | None = None
    """Lowest and highest of real numbers whose logarithms are equally likely."""
    length: int | None = None
    """Draw a list of so many values; null: a single value."""

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
                    raise ValueError(f"{name} must be a low and a higher number, got {bounds}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform must be above 0, got {self.log_uniform}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length must be 1 or more, or null, got {self.length}")


@dataclass(frozen=True, kw_only=True)
class CostLimits:
    """What a network of the sweep may cost: [least, most], null where there is no bound."""

    mult_adds: tuple[float | None, float | None] | None = None
    """Mult-adds of the last exit, per image."""
    first_exit: tuple[float | None, float | None] | None = None
    """Mult-adds of the first exit, per image."""
    parameters: tuple[float | None, float | None] | None = None
    """Weights of the network."""
    memory: tuple[float | None, float | None] | None = None
    """Bytes that a training step takes on one worker, as computed from the network's tensors."""

    def __post_init__(self) -> None:
        for name in ("mult_adds", "first_exit", "parameters", "memory"):
            bounds = getattr(self, name)
            if bounds is not None:
                object.__setattr__(self, name, tuple(bounds))
                least, most = _filled(bounds)
                if not 0 <= least <= most or math.isnan(most):
                    raise ValueError(
                        f"window.{name} must be [least, most] with least no larger than most, "
                        f"got {list(bounds)}: no network lies in it"
                    )

    def check(self, name: str, value: float) -> None:
        """Refuse a value outside the bounds of that name.

        Raises:
            RejectedError: it is.
        """
        bounds = getattr(self, name)
        if bounds is None:
            return
        least, most = _filled(bounds)
        if not least <= value <= most:
            raise RejectedError(
                f"window.{name}",
                f"window.{name} is [{least:.4g}, {most:.4g}], a drawn network has {value:.4g}",
            )


def _filled(bounds: tuple[float | None, float | None]) -> tuple[float, float]:
    least, most = bounds
    return 0.0 if least is None else least, math.inf if most is None else most


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When a trial is given up early: asynchronous successive halving on epochs."""

    method: Literal["asha", "none"] = "none"
    """none: every trial is trained to its end; asha: at epochs first_epoch, first_epoch * factor,
    ... only trials among the best 1/factor of those that came so far go on."""
    first_epoch: int = 1
    """Epochs that every trial is given."""
    factor: float = 3.0
    """One in so many goes on at each look."""
    brackets: int = 1
    """More than 1: HyperBand. Trials are dealt to so many brackets, each of which begins to look
    later than the one before."""

    def __post_init__(self) -> None:
        if self.method not in ("asha", "none"):
            raise ValueError(f"stopping.method must be asha or none, got {self.method!r}")
        for name in ("first_epoch", "brackets"):
            if getattr(self, name) < 1:
                raise ValueError(f"stopping.{name} must be 1 or more, got {getattr(self, name)}")
        if not self.factor > 1:
            raise ValueError(f"stopping.factor must be above 1, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over settings of a run."""

    name: str = "sweep"
    """Name of the sweep; a second start goes on with an unfinished one, or repeats a finished."""
    fresh: bool = False
    """Give up an unfinished sweep of this name and start anew."""
    run: str = "configs/cifar10.yaml"
    """File of the run that every trial starts from."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that run, by dotted name, which are other in this sweep."""
    space: dict[str, Dimension] = field(default_factory=dict)
    """Settings to search over, by dotted name. Besides those of a run: exit_weights.family,
    exit_weights.strength, exit_weights.free and scale_factors (docs/operating.md)."""
    window: CostLimits = field(default_factory=CostLimits)
    """What a network may cost; others are drawn again before anything is trained."""
    objective: Objective = field(default_factory=Objective)
    """By what trials are compared."""
    search: Literal["tpe", "random"] = "tpe"
    """tpe: draw where trials were good (Optuna's tree-structured Parzen estimator); random."""
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    """When a trial is given up early; none where there are several objectives."""
    warm_start: tuple[str, ...] = ()
    """Names of earlier sweeps of the same run and objective: what their trials showed is known to
    the search from the start, and none of them is trained again."""
    num_trials: int = 16
    """Trials in all."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "warm_start", tuple(self.warm_start))
        for earlier in self.warm_start:
            check_name(earlier, "each name in warm_start")
        if not self.space:
            raise ValueError("space must name at least one setting to search over, got none")
        if self.search not in ("tpe", "random"):
            raise ValueError(f"search must be tpe or random, got {self.search!r}")
        if len(self.objective.names) > 1 and self.stopping.method != "none":
            raise ValueError(
                f"stopping.method must be none with several objectives, got "
                f"{self.stopping.method} with {', '.join(self.objective.names)}: what is cheap and "
                "what is accurate cannot be ranked half-way; add --stopping.method=none"
            )
        if self.num_trials < 1:
            raise ValueError(f"num_trials must be 1 or more, got {self.num_trials}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


class RejectedError(ValueError):
    """A draw that cannot, or should not, be trained.

    Args:
        bound: short name of what rejects it, by which rejections are counted.
        sentence: the whole reason.
    """

    def __init__(self, bound: str, sentence: str) -> None:
        super().__init__(sentence)
        self.bound = bound
