"""Latency of exits, and latency as a cost for thresholds."""

from collections.abc import Iterator

import pytest
import torch

from ranet import ModelConfig, RANet, fit_thresholds, measure_latency
from ranet.inference.thresholds import score_budget

CONFIG = ModelConfig(stem_channels=8, growth_rate=6, layers_per_block=2)


@pytest.fixture(scope="module")
def model() -> Iterator[RANet]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield RANet(CONFIG)
    torch.set_num_threads(threads)


def test_latency_increases_from_exit_to_exit(model: RANet):
    latency = measure_latency(model)
    assert latency.shape == (CONFIG.num_exits,)
    assert latency.dtype == torch.float64
    assert latency[0] > 0
    assert (latency.diff() > 0).all()
    # Six exits on growing blocks: the first is a small part of the total on any machine.
    assert latency[-1] > 2 * latency[0]


def test_latency_per_image_is_lower_in_a_batch_than_for_a_single_image(model: RANet):
    optimized = model.optimized()
    assert measure_latency(optimized, 16)[-1] < measure_latency(optimized)[-1]


def test_thresholds_fitted_to_latency_keep_a_budget_in_milliseconds(model: RANet):
    latency = measure_latency(model, 4, rounds=5)
    confidences = torch.rand(CONFIG.num_exits, 500, generator=torch.Generator().manual_seed(0))
    correct = confidences > 0.5
    budget = (latency[0] + latency[-1]).item() / 2
    thresholds = fit_thresholds(confidences, correct, latency, budget, rule="geometric")
    score = score_budget(confidences, correct, latency, thresholds)
    assert 0.9 * budget < score.mean_cost <= budget


def test_measurement_does_not_change_a_model_in_training_mode(model: RANet):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_latency(model, rounds=1)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"rounds": 0}])
def test_batch_size_or_rounds_below_one_is_rejected(model: RANet, arguments: dict[str, int]):
    with pytest.raises(ValueError, match="must be 1 or more, got 0"):
        measure_latency(model, **arguments)
