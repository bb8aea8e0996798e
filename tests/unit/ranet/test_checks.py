import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pytest

from ranet.checks import check_choices, check_range

Split: TypeAlias = Literal["train", "val"]


@dataclass
class ExampleConfig:
    mode: Literal["a", "b", "c"] = "a"
    split: Split = "train"
    epochs: int = 1
    share: float = 0.5


def test_valid_config_passes_all_checks():
    config = ExampleConfig()
    check_choices(config, "train")
    check_range(config, "train", epochs=(1, None), share=(0, 1))


@pytest.mark.parametrize(
    ("config", "section", "message"),
    [
        (ExampleConfig(mode="x"), "train", "train.mode must be one of a, b, c, got 'x'"),  # pyright: ignore[reportArgumentType]
        (ExampleConfig(split="x"), "", "split must be one of train, val, got 'x'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_value_outside_of_its_literal_is_rejected(config, section, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_choices(config, section)


@pytest.mark.parametrize(
    ("config", "section", "bounds", "message"),
    [
        (ExampleConfig(epochs=0), "train", {"epochs": (1, None)},
         "train.epochs must be 1 or more, got 0"),
        (ExampleConfig(share=2), "", {"share": (0, 1)}, "share must be from 0 to 1, got 2"),
        (ExampleConfig(share=-1), "", {"share": (0, 1)}, "share must be from 0 to 1, got -1"),
        (ExampleConfig(share=2), "", {"share": (None, 1)}, "share must be 1 or less, got 2"),
        (ExampleConfig(share=float("nan")), "a.b", {"share": (0, 1)},
         "a.b.share must be from 0 to 1, got nan"),
        (ExampleConfig(share=float("inf")), "a.b", {"share": (0, None)},
         "a.b.share must be 0 or more, got inf"),
    ],
)  # fmt: skip
def test_value_outside_of_its_bounds_is_rejected(config, section, bounds, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_range(config, section, **bounds)


def test_bounds_are_inclusive():
    check_range(ExampleConfig(epochs=1, share=1), "", epochs=(1, 1), share=(0, 1))
