"""Expansion of candidates to settings of a run."""

import pytest

from cluster.cli import parse_settings
from cluster.paths import with_absolute_paths
from pipelines.run import Run, flatten
from tests.support.sweeps import BASE, COSTS
from tuning.config import RejectedError
from tuning.space import as_arguments, expand_model, expand_weights


def test_settings_survive_a_round_trip_through_the_command_line():
    parsed = parse_settings(Run, as_arguments(flatten(BASE)))
    assert parsed == with_absolute_paths(BASE)


def test_scale_factors_align_with_the_scales_at_the_highest_resolution():
    params = {"scale_factors": [8, 4, 2, 1], "model.scales": [1, 2, 3, 3]}
    assert expand_model(params, (1, 2))["model.growth_factors"] == [4, 2, 1, 1]
    assert expand_model({"scale_factors": [4, 2, 1]}, (1, 2))["model.bottleneck_factors"] == [2, 1]
    with pytest.raises(RejectedError, match="an entry for each of the 3 scales"):
        expand_model({"scale_factors": [2, 1]}, (1, 2, 3))


def test_mapping_choice_sets_several_settings():
    params = {"shape": {"model.scales": [1, 2], "model.growth_rate": 4}, "train.seed": 1}
    assert expand_model(params, (1,)) == {
        "model.scales": [1, 2], "model.growth_rate": 4, "train.seed": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        ({"family": "uniform"}, [1, 1, 1]),
        ({"family": "linear", "strength": 0.5}, [0.5, 1, 1.5]),
        ({"family": "power", "strength": 1.0}, [0.5, 1, 1.5]),
        ({"family": "power", "strength": -1.0}, [1.636, 0.8182, 0.5455]),
        ({"family": "cost", "strength": 1.0}, [0.4286, 0.8571, 1.714]),
        ({"family": "free", "free": [1.0, 2.0, 3.0, 9.0]}, [0.5, 1, 1.5]),
    ],
)
def test_exit_weights_of_each_family_have_mean_one(params: dict, weights: list):
    params = {f"exit_weights.{name}": value for name, value in params.items()}
    assert expand_weights(params, COSTS) == pytest.approx(weights)


def test_invalid_exit_weights_are_rejected_by_the_name_of_their_setting():
    for params, bound in (
        ({"exit_weights.family": "linear", "exit_weights.strength": 2.0}, "exit_weights.strength"),
        ({"exit_weights.free": [1.0]}, "exit_weights.free"),
        ({"exit_weights.family": "cubic"}, "exit_weights.family"),
    ):
        with pytest.raises(RejectedError) as caught:
            expand_weights(params, COSTS)
        assert caught.value.bound == bound
    assert expand_weights({"train.seed": 1}, COSTS) is None
