"""Settings of the cluster."""

import math
import re

import pytest

from cluster.config import ClusterConfig


def test_number_of_workers_may_be_a_valid_range():
    assert (ClusterConfig(num_workers=3).min_workers, ClusterConfig().max_workers) == (3, 2)
    elastic = ClusterConfig(num_workers=[1, 4])  # pyright: ignore[reportArgumentType]
    assert (elastic.min_workers, elastic.max_workers) == (1, 4)
    for wrong in (0, (0, 2), (3, 2), (1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"cluster.num_workers must be 1 or more, or \[min"):
            ClusterConfig(num_workers=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus_per_worker": 0}, "cluster.cpus_per_worker must be 1 or more, got 0"),
        ({"keep_checkpoints": 0}, "cluster.keep_checkpoints must be 1 or more, got 0"),
        ({"cache_max_bytes": -1}, "cluster.cache_max_bytes must be 0 or more, got -1"),
        (
            {"max_consecutive_failures": -1},
            "cluster.max_consecutive_failures must be 0 or more, got -1",
        ),
        ({"device": "tpu"}, "cluster.device must be one of auto, cpu, gpu, got 'tpu'"),
        ({"start_timeout_seconds": 0.0}, "cluster.start_timeout_seconds must be above 0, got 0.0"),
        (
            {"elastic_check_seconds": math.nan},
            "cluster.elastic_check_seconds must be above 0, got nan",
        ),
    ],
)
def test_invalid_setting_is_rejected_with_its_name_rule_and_value(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ClusterConfig(**settings)
