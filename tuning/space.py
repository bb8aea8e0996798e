"""What a sweep tries: distributions of settings, and what a draw means for a run."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config import check_name
from tuning.objective import Objective

WEIGHTS = "exit_weights"
FACTORS = "scale_factors"
FAMILIES = ("uniform", "linear", "power", "cost", "free")
SHORTHANDS = (FACTORS, f"{WEIGHTS}.family", f"{WEIGHTS}.strength", f"{WEIGHTS}.free")
"""Names of a space that are no settings of a run, and stand for several."""


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


def names_in(space: Mapping[str, Dimension]) -> set[str]:
    """Return all that a space may set, by the names of settings and those that stand for several.

    A choice that is a mapping sets what is in it, under whatever name it stands.
    """
    names: set[str] = set()
    for name, dimension in space.items():
        for choice in dimension.choice or (None,):
            names |= set(choice) if isinstance(choice, Mapping) else {name}
    return names


def expand_model(draw: Mapping[str, Any], scales: tuple[int, ...]) -> dict[str, Any]:
    """Return the settings that a draw means, all but the loss weights of `expand_weights`.

    Args:
        draw: values by the names of the space.
        scales: those of the network where the draw has none.

    Raises:
        RejectedError: `scale_factors` has no entry for a scale.
    """
    settings: dict[str, Any] = {}
    for name, value in draw.items():
        settings |= value if isinstance(value, Mapping) else {name: value}
    settings = {name: v for name, v in settings.items() if not name.startswith(f"{WEIGHTS}.")}
    if FACTORS in settings:
        factors = settings.pop(FACTORS)
        scales = tuple(settings.get("model.scales", scales))
        if max(scales) > len(factors):
            raise RejectedError(
                FACTORS,
                f"{FACTORS} is {factors}: it must have an entry for each of the {max(scales)} "
                f"scales of {scales}, the highest resolution last",
            )
        by_scale = [factors[len(factors) - 1 - (max(scales) - scale)] for scale in scales]
        settings |= {"model.growth_factors": by_scale, "model.bottleneck_factors": by_scale}
    return settings


def expand_weights(draw: Mapping[str, Any], cost: tuple[int, ...]) -> list[float] | None:
    """Return the exit loss weights that a draw means, their mean 1; none where it has none.

    With depth d from 0 (first exit) to 1 (last) and strength s:

    - uniform: 1;
    - linear: 1 + s (2 d - 1), for s of -1 to 1;
    - power: (number of the exit / number of exits) ^ s;
    - cost: (mult-adds of the exit / those of the last) ^ s;
    - free: the first entries of `exit_weights.free`.

    Args:
        draw: values by the names of the space.
        cost: cumulative mult-adds of every exit.

    Raises:
        RejectedError: these are no weights.
    """
    settings: dict[str, Any] = {}
    for name, value in draw.items():
        settings |= value if isinstance(value, Mapping) else {name: value}
    given = {name for name in settings if name.startswith(f"{WEIGHTS}.")}
    if not given:
        return None
    family = settings.get(f"{WEIGHTS}.family", "free" if f"{WEIGHTS}.free" in given else "power")
    strength = float(settings.get(f"{WEIGHTS}.strength", 0.0))
    free = settings.get(f"{WEIGHTS}.free", ())
    num_exits = len(cost)
    if family == "uniform":
        weights = [1.0] * num_exits
    elif family == "linear":
        weights = [1 + strength * (2 * k / max(1, num_exits - 1) - 1) for k in range(num_exits)]
    elif family == "power":
        weights = [((k + 1) / num_exits) ** strength for k in range(num_exits)]
    elif family == "cost":
        weights = [(each / cost[-1]) ** strength for each in cost]
    elif family == "free":
        if len(free) < num_exits:
            raise RejectedError(
                f"{WEIGHTS}.free",
                f"{WEIGHTS}.free has {len(free)} entries and a drawn network {num_exits} exits: "
                "give it a larger length",
            )
        weights = [float(each) for each in free[:num_exits]]
    else:
        raise RejectedError(
            f"{WEIGHTS}.family",
            f"{WEIGHTS}.family must be one of {', '.join(FAMILIES)}, got {family!r}",
        )
    total = sum(weights)
    if min(weights) < 0 or total <= 0:
        raise RejectedError(
            f"{WEIGHTS}.{'free' if family == 'free' else 'strength'}",
            f"exit weights must be 0 or more and not all 0, got {weights} of family {family}",
        )
    return [float(f"{weight * num_exits / total:.4g}") for weight in weights]


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as a command line gives them: strings as they are, others as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]
