"""What a sweep tries: values of settings, drawn at random."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.config import check_name


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Values to try for one setting: one of `choice`, `uniform` and `log_uniform`."""

    choice: tuple[Any, ...] = ()
    """These values, all equally likely."""
    uniform: tuple[float, float] | None = None
    """Lowest and highest of real numbers that are equally likely."""
    log_uniform: tuple[float, float] | None = None
    """Lowest and highest of real numbers whose logarithms are equally likely."""
    length: int | None = None
    """Draw a list of so many values; null: a single value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", tuple(self.choice))
        given = [name for name in ("choice", "uniform", "log_uniform") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "an entry of space must have exactly one of choice, uniform and log_uniform, "
                f"got {' and '.join(given) or 'none'}"
            )
        for name in ("uniform", "log_uniform"):
            bounds = getattr(self, name)
            if bounds is not None:
                object.__setattr__(self, name, tuple(bounds))
                if not -math.inf < bounds[0] < bounds[1] < math.inf:
                    raise ValueError(f"{name} must be a low and a higher number, got {bounds}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform must be above 0, got {self.log_uniform}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length must be 1 or more, or null, got {self.length}")

    def draw(self, random: np.random.Generator) -> Any:
        """Draw a value, or a list of `length` values; real numbers to three digits."""
        if self.length is None:
            return self._draw_one(random)
        return [self._draw_one(random) for _ in range(self.length)]

    def _draw_one(self, random: np.random.Generator) -> Any:
        if self.choice:
            return self.choice[int(random.integers(len(self.choice)))]
        if self.uniform is not None:
            low, high = self.uniform
            value = random.uniform(low, high)
        else:
            assert self.log_uniform is not None
            low, high = self.log_uniform
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        return float(f"{value:.3g}")


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
    """Settings to search over, by dotted name."""
    num_trials: int = 4
    """Trials in all."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.num_trials < 1:
            raise ValueError(f"num_trials must be 1 or more, got {self.num_trials}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as a command line gives them: strings as they are, others as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]
