"""Learning rate, weight decay, and the guard, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from ranet.config import OptimConfig, TrainConfig
from ranet.training.ema import ExponentialMovingAverage
from ranet.training.optim import (
    FiniteGuard,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)


def rates(config, steps_per_epoch):
    steps = range(config.epochs * steps_per_epoch)
    return [learning_rate(config, step, steps_per_epoch) for step in steps]


def test_multistep_falls_at_the_first_epoch_at_or_after_each_milestone():
    config = TrainConfig(epochs=10, optim=OptimConfig(lr=1.0, milestones=(0.5, 0.75), gamma=0.1))
    by_step = rates(config, steps_per_epoch=4)
    assert by_step[:20] == [1.0] * 20
    assert by_step[20:32] == pytest.approx([0.1] * 12)
    assert by_step[32:] == pytest.approx([0.01] * 8)


def test_a_milestone_is_not_late_by_a_rounding_error():
    assert 0.55 * 100 > 55
    config = TrainConfig(epochs=100, optim=OptimConfig(lr=1.0, milestones=(0.55,), gamma=0.5))
    by_epoch = rates(config, steps_per_epoch=1)
    assert by_epoch[54] == 1.0
    assert by_epoch[55] == 0.5


def test_cosine_falls_from_the_full_rate_to_nothing_step_by_step():
    config = TrainConfig(epochs=2, optim=OptimConfig(lr=0.8, schedule="cosine"))
    by_step = rates(config, steps_per_epoch=3)
    expected = [0.8, 0.8 * (1 + math.sqrt(3) / 2) / 2, 0.6, 0.4, 0.2]
    assert by_step[:5] == pytest.approx(expected)
    assert 0 < by_step[5] < 0.06
    assert learning_rate(config, 6, steps_per_epoch=3) == pytest.approx(0, abs=1e-12)


def test_warmup_rises_evenly_to_the_full_rate():
    optim = OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=1.0)
    by_step = rates(TrainConfig(epochs=3, optim=optim), steps_per_epoch=4)
    assert by_step[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert by_step[8] == pytest.approx(0.5)
    optim = OptimConfig(lr=1.0, warmup_epochs=0.5, milestones=(0.5,))
    by_step = rates(TrainConfig(epochs=2, optim=optim), steps_per_epoch=5)
    assert by_step == pytest.approx([0.4, 0.8, 1.0, 1.0, 1.0] + [0.1] * 5)


@pytest.mark.parametrize(("decay", "other"), [("all", 0.95), ("weights", 1.0)])
def test_decay_reaches_the_parameters_it_is_meant_for(decay, other):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    optimizer = make_optimizer(OptimConfig(lr=0.1, weight_decay=0.5, decay=decay), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    values = {name: p.flatten().tolist() for name, p in model.named_parameters()}
    assert values.pop("0.weight") == pytest.approx([0.95, 0.95])
    assert values.keys() == {"0.bias", "1.weight", "1.bias"}
    for value in values.values():
        assert value == pytest.approx([other] * 2)


def test_an_average_follows_the_weights_from_far_at_the_end_and_closely_at_first():
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    model = nn.Sequential(linear, norm)
    nn.init.ones_(linear.weight)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    average = ExponentialMovingAverage(model, decay=0.2)
    expected = 1.0
    for step, keep in enumerate([0.1, 2 / 11, 0.2, 0.2]):  # (step + 1) / (step + 10), at most 0.2
        nn.init.constant_(linear.weight, step + 2.0)
        norm.running_mean.fill_(step + 2.0)
        norm.num_batches_tracked += 1
        average.update(step)
        expected = keep * expected + (1 - keep) * (step + 2)
    state = average.model.state_dict()
    assert state["0.weight"].item() == pytest.approx(expected)
    assert state["1.running_mean"].item() == pytest.approx(expected - keep_of_zero())
    assert state["1.num_batches_tracked"] == 4
    assert linear.weight.item() == 5
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def keep_of_zero() -> float:
    """What is left of the mean's first value, 0 where the weight's was 1."""
    return 0.1 * 2 / 11 * 0.2 * 0.2


@pytest.mark.parametrize(("nesterov", "second"), [(False, 0.71), (True, 0.539)])
def test_momentum_carries_on_the_gradients_before(nesterov, second):
    # Gradient 1 each time: the velocity is 1, then 1.9; Nesterov looks ahead: 1.9, then 2.71.
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    config = OptimConfig(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.0)
    optimizer = make_optimizer(config, model)
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert model.weight.item() == pytest.approx(second)


def steps(model, optimizer, values):
    """Train on scalar losses that grow with the weights by each of `values`."""
    guard = FiniteGuard(optimizer)
    for value in values:
        optimizer.zero_grad()
        guard.backward(sum(p.sum() for p in model.parameters()) * value)
        guard.check()
        optimizer.step()
    return guard


def test_a_guard_skips_every_update_from_the_first_bad_one_on():
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(OptimConfig(decay="weights"), model) for model in models]
    clean = steps(models[0], optimizers[0], [1.0, 2.0])
    spoiled = steps(models[1], optimizers[1], [1.0, 2.0, math.nan, 1.0, math.inf])
    assert clean.first_bad_step() is None
    assert spoiled.first_bad_step() == 2
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)


def test_a_guard_sees_an_infinite_loss_whose_gradient_is_finite():
    model = nn.Linear(2, 2, bias=False)
    optimizer = make_optimizer(OptimConfig(), model)
    before = model.weight.detach().clone()
    guard = FiniteGuard(optimizer)
    guard.backward(model.weight.sum() + math.inf)
    guard.check()
    optimizer.step()
    assert guard.first_bad_step() == 0
    assert torch.equal(model.weight, before)


def test_the_state_goes_on_whatever_layout_it_was_saved_in():
    def conv(memory_format):
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3).to(memory_format=memory_format)

    def run(model, values, state=None):
        optimizer = make_optimizer(OptimConfig(), model)
        if state is not None:
            load_optimizer_state(optimizer, model, state)
        for value in values:
            generator = torch.Generator().manual_seed(value)
            for p in model.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            optimizer.step()
        return optimizer_state(optimizer, model)

    unbroken = conv(torch.channels_last)
    run(unbroken, [1, 2, 3])
    first, second = conv(torch.contiguous_format), conv(torch.channels_last)
    state = run(first, [1, 2])
    second.load_state_dict(first.state_dict())
    run(second, [3], state)
    assert torch.equal(second.weight, unbroken.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(4, 2), r"momentum_buffer of weight has shape \(2, 4\).* \(2, 3\)"),
        (nn.Linear(3, 2, bias=False), "only one of them has bias"),
    ],
)
def test_the_state_of_other_parameters_is_refused(other, message):
    optimizer = make_optimizer(OptimConfig(), other)
    steps(other, optimizer, [1.0])
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(
            make_optimizer(OptimConfig(), model), model, optimizer_state(optimizer, other)
        )
