"""Sweeps that are rejected, and bounds that are open."""

import pytest

from pipelines.run import parse_settings
from tuning.config import Sweep
from tuning.space import as_arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"space": {"a": {}}},
            "exactly one of choice, integers, uniform and log_uniform, got none",
        ),
        ({"space": {"a": {"choice": [1], "uniform": [0, 1]}}}, "got choice and uniform"),
        ({"space": {"a": {"uniform": [2, 1]}}}, r"uniform must be a low and a higher number"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, "log_uniform must be above 0"),
        ({"space": {"a": {"choice": [1], "length": 0}}}, "length must be 1 or more"),
        ({"space": {"a": {"chioce": [1]}}}, "chioce"),
        ({}, "space must name at least one setting"),
        ({"window": {"mult_adds": [3e6, 2e6]}}, r"window.mult_adds must be \[least, most\]"),
        ({"objective": {"names": ["acuracy"]}}, "must be among accuracy, area, .* got 'acuracy'"),
        ({"objective": {"names": ["area"]}}, "objective.area_range must be given where area"),
        (
            {"objective": {"names": ["accuracy", "mult_adds"]}, "stopping": {"method": "asha"}},
            "add --stopping.method=none",
        ),
        ({"name": "a b"}, "name must be letters"),
        (
            {"warm_start": ["digits", "a' OR name = 'b"]},
            r"each name in warm_start must be letters, .* got \"a' OR name = 'b\"",
        ),
        ({"search": "grid"}, "grid"),
        ({"windw": {"mult_adds": [1, 2]}}, "windw is not a setting; did you mean window"),
        ({"num_trails": 3}, "num_trails is not a setting; did you mean num_trials"),
        ({"objective.nmes": ["area"]}, "objective.nmes is not a setting; did you mean objective.n"),
        ({"cluster.num_workers": 2}, "cluster.num_workers is not a setting; "),
    ],
)
def test_a_wrong_sweep_is_refused(settings: dict, message: str):
    whole = {"space": {"train.seed": {"choice": [1]}}} | settings if settings else {}
    with pytest.raises(ValueError, match=message):
        parse_settings(Sweep, as_arguments(whole))
