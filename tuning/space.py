"""Expand the parameters of a candidate to settings of a run."""

import json
from collections.abc import Mapping
from typing import Any

from tuning.config import Dimension, RejectedError

WEIGHTS = "exit_weights"
FACTORS = "scale_factors"
FAMILIES = ("uniform", "linear", "power", "cost", "free")
SHORTHANDS = (FACTORS, f"{WEIGHTS}.family", f"{WEIGHTS}.strength", f"{WEIGHTS}.free")
"""Names of a space that are not settings of a run, but expand to several."""


def names_in(space: Mapping[str, Dimension]) -> set[str]:
    """Return all settings and shorthands that a space can set.

    A choice that is a mapping sets the names in the mapping instead of the name of its entry.
    """
    names: set[str] = set()
    for name, dimension in space.items():
        for choice in dimension.choice or (None,):
            names |= set(choice) if isinstance(choice, Mapping) else {name}
    return names


def flatten_choices(params: Mapping[str, Any]) -> dict[str, Any]:
    """Replace mapping choices by the settings in them."""
    settings: dict[str, Any] = {}
    for name, value in params.items():
        settings |= value if isinstance(value, Mapping) else {name: value}
    return settings


def expand_model(params: Mapping[str, Any], scales: tuple[int, ...]) -> dict[str, Any]:
    """Return the settings of a candidate, except the loss weights of `expand_weights`.

    Args:
        params: values by the names of the space.
        scales: scales of the network if `params` does not set them.

    Raises:
        RejectedError: `scale_factors` has no entry for a scale.
    """
    settings = {
        name: value
        for name, value in flatten_choices(params).items()
        if not name.startswith(f"{WEIGHTS}.")
    }
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


def expand_weights(params: Mapping[str, Any], cost: tuple[int, ...]) -> list[float] | None:
    """Return a candidate's exit loss weights, with mean 1, if set.

    With depth d from 0 (first exit) to 1 (last exit) and strength s:

    - uniform: 1;
    - linear: 1 + s (2 d - 1), for s from -1 to 1;
    - power: (number of the exit / number of exits) ^ s;
    - cost: (mult-adds of the exit / mult-adds of the last exit) ^ s;
    - free: the first entries of `exit_weights.free`.

    Args:
        params: values by the names of the space.
        cost: cumulative mult-adds of every exit.

    Raises:
        RejectedError: the weights are invalid.
    """
    settings = flatten_choices(params)
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
                f"{WEIGHTS}.free has {len(free)} entries, but a candidate has {num_exits} exits: "
                "increase its length",
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
    """Format settings as command-line arguments: strings unchanged, other values as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]
