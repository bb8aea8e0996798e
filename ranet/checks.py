"""Checks that several config dataclasses share."""

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(config: Any, section: str) -> None:
    """Check every field with a `Literal` annotation against its choices.

    Args:
        config: a dataclass instance.
        section: prefix of the setting's name in the message, such as "train.optim"; "" for none.

    Raises:
        ValueError: a field has another value.
    """
    for name, annotation in get_type_hints(type(config)).items():
        if get_origin(annotation) is not Literal:
            continue
        choices = get_args(annotation)
        value = getattr(config, name)
        if value not in choices:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{_setting(section, name)} must be one of {listed}, got {value!r}")


def check_range(config: Any, section: str, **bounds: tuple[float | None, float | None]) -> None:
    """Check that fields are finite numbers within inclusive bounds.

    Args:
        config: a dataclass instance.
        section: prefix of the setting's name in the message, such as "train.optim"; "" for none.
        **bounds: (min, max) of each field by its name; None for no bound.

    Raises:
        ValueError: a field is below its min, above its max, infinite or not a number.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        is_within = (low is None or value >= low) and (high is None or value <= high)
        if not (is_within and math.isfinite(value)):
            raise ValueError(
                f"{_setting(section, name)} must be {_describe(low, high)}, got {value}"
            )


def _setting(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _describe(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"from {low} to {high}"
    if low is not None:
        return f"{low} or more"
    return "a finite number" if high is None else f"{high} or less"
