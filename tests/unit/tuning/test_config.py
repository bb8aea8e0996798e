"""Validation of sweep configurations."""

import pytest

from cluster.cli import parse_settings
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
        ({"space": {"a": {"uniform": [2, 1]}}}, r"uniform must be \[min, max\] with min below max"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, "log_uniform must be above 0"),
        ({"space": {"a": {"choice": [1], "length": 0}}}, "length must be 1 or more"),
        ({"space": {"a": {"chioce": [1]}}}, "chioce"),
        ({}, "space must name at least one setting"),
        (
            {"cost_limits": {"mult_adds": [3e6, 2e6]}},
            r"cost_limits.mult_adds must be \[min, max\]",
        ),
        (
            {"objective": {"metrics": ["acuracy"]}},
            "must be among accuracy, accuracy_auc, .* got 'acuracy'",
        ),
        (
            {"objective": {"metrics": ["accuracy_auc"]}},
            "objective.auc_range_mult_adds must be given if and only if accuracy_auc",
        ),
        (
            {
                "objective": {"metrics": ["accuracy", "mult_adds"]},
                "early_stopping": {"method": "asha"},
            },
            "add --early_stopping.method=none",
        ),
        ({"name": "a b"}, "name must consist of letters"),
        (
            {"warm_start": ["digits", "a' OR name = 'b"]},
            r"each name in warm_start must consist of letters, .* got \"a' OR name = 'b\"",
        ),
        ({"sampler": "grid"}, "grid"),
        (
            {"cost_limts": {"mult_adds": [1, 2]}},
            "cost_limts is not a setting; did you mean cost_limits",
        ),
        ({"num_trails": 3}, "num_trails is not a setting; did you mean num_trials"),
        (
            {"objective.metrcs": ["accuracy_auc"]},
            "objective.metrcs is not a setting; did you mean objective.m",
        ),
        ({"cluster.num_workers": 2}, "cluster.num_workers is not a setting; "),
    ],
)
def test_invalid_sweep_raises_an_error_naming_the_setting(settings: dict, message: str):
    whole = {"space": {"train.seed": {"choice": [1]}}} | settings if settings else {}
    with pytest.raises(ValueError, match=message):
        parse_settings(Sweep, as_arguments(whole))
