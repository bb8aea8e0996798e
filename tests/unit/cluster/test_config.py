"""Settings of the cluster."""

import pytest

from cluster.config import ClusterConfig


def test_number_of_workers_may_be_a_valid_range():
    assert (ClusterConfig(num_workers=3).min_workers, ClusterConfig().max_workers) == (3, 2)
    elastic = ClusterConfig(num_workers=[1, 4])  # pyright: ignore[reportArgumentType]
    assert (elastic.min_workers, elastic.max_workers) == (1, 4)
    for wrong in (0, (0, 2), (3, 2), (1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"cluster.num_workers must be 1 or more, or \[min"):
            ClusterConfig(num_workers=wrong)  # pyright: ignore[reportArgumentType]
