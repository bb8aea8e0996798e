"""Metadata of trained networks: thresholds within a budget, JSON, checks."""

import json
import math
from dataclasses import replace

import pytest

from ranet.model.metadata import ModelMetadata, from_json, to_json
from tests.support.registered import tiny_saved


@pytest.fixture(scope="module")
def metadata() -> ModelMetadata:
    return tiny_saved().metadata


def test_metadata_survive_json_that_has_no_infinite_numbers(metadata: ModelMetadata):
    assert any(math.isinf(value) for row in metadata.curve for value in row.thresholds)
    text = json.dumps(to_json(metadata), allow_nan=False)
    assert from_json(json.loads(text)) == metadata


def test_thresholds_are_those_of_the_largest_budget_within_the_request(metadata: ModelMetadata):
    rows = {row.budget_fraction: row.thresholds for row in metadata.curve}
    assert metadata.thresholds(1) == rows[1.0]
    assert metadata.thresholds(0.5099) == metadata.thresholds(0.5) == rows[0.5]
    assert metadata.thresholds(metadata.min_budget_fraction) == metadata.curve[0].thresholds


@pytest.mark.parametrize("budget", [0.4090, 1.001, math.nan])
def test_impossible_budget_is_rejected(metadata: ModelMetadata, budget: float):
    with pytest.raises(ValueError, match=r"budget_fraction must be from 0.4091 .* to 1 "):
        metadata.thresholds(budget)


def test_metadata_that_contradict_the_network_are_rejected(metadata: ModelMetadata):
    row = metadata.curve[0]
    for changes, message in (
        ({"class_names": ("zero",)}, "class_names must have model.num_classes entries, 10, got 1"),
        (
            {"preprocessing": replace(metadata.preprocessing, image_size=32)},
            "preprocessing.image_size must be model.image_size, 16, got 32",
        ),
        ({"exits": metadata.exits[:2]}, "exits must have the mult-adds of the network"),
        ({"curve": ()}, "curve must have budget fractions in ascending order"),
        ({"curve": metadata.curve[::-1]}, "curve must have budget fractions in ascending order"),
        (
            {"curve": (replace(row, thresholds=row.thresholds[1:]),)},
            "curve must have one threshold for each of the 3 exits",
        ),
        ({"exit_ensemble": "max"}, "exit_ensemble must be one of none, mean_logits, got 'max'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(metadata, **changes)


def test_missing_and_unknown_entries_are_named(metadata: ModelMetadata):
    values = to_json(metadata)
    for changed, message in (
        ({k: v for k, v in values.items() if k != "curve"}, "ModelMetadata has no curve"),
        ({**values, "colour": 1}, "ModelMetadata has no field colour"),
        ({**values, "origin": {"seed": 1}}, "Origin has no command, commit"),
        ({**values, "data": "cifar10"}, "DataRecord must be an object, got 'cifar10'"),
    ):
        with pytest.raises(ValueError, match=message):
            from_json(changed)
