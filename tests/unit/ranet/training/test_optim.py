"""Weight decay, momentum and the guard against hand-computed values."""

import math

import pytest
import torch
from torch import nn

from ranet.config import OptimConfig
from ranet.training.optim import FiniteGuard, load_optimizer_state, make_optimizer, optimizer_state


@pytest.mark.parametrize(("decay", "other"), [("all", 0.95), ("weights", 1.0)])
def test_weight_decay_applies_to_the_configured_parameters(decay, other):
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


@pytest.mark.parametrize(("nesterov", "second"), [(False, 0.71), (True, 0.539)])
def test_momentum_accumulates_previous_gradients(nesterov, second):
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
    """Train on losses that are sums of the weights times a value."""
    guard = FiniteGuard(optimizer)
    for value in values:
        optimizer.zero_grad()
        guard.backward(sum(p.sum() for p in model.parameters()) * value)
        guard.check()
        optimizer.step()
    return guard


def test_guard_skips_all_updates_from_the_first_bad_step_on():
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(OptimConfig(decay="weights"), model) for model in models]
    clean = steps(models[0], optimizers[0], [1.0, 2.0])
    spoiled = steps(models[1], optimizers[1], [1.0, 2.0, math.nan, 1.0, math.inf])
    assert clean.first_bad_step() is None
    assert spoiled.first_bad_step() == 2
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)


def test_guard_detects_an_infinite_loss_with_a_finite_gradient():
    model = nn.Linear(2, 2, bias=False)
    optimizer = make_optimizer(OptimConfig(), model)
    before = model.weight.detach().clone()
    guard = FiniteGuard(optimizer)
    guard.backward(model.weight.sum() + math.inf)
    guard.check()
    optimizer.step()
    assert guard.first_bad_step() == 0
    assert torch.equal(model.weight, before)


def test_optimizer_state_resumes_in_another_memory_format():
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

    uninterrupted = conv(torch.channels_last)
    run(uninterrupted, [1, 2, 3])
    first, second = conv(torch.contiguous_format), conv(torch.channels_last)
    state = run(first, [1, 2])
    second.load_state_dict(first.state_dict())
    run(second, [3], state)
    assert torch.equal(second.weight, uninterrupted.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(4, 2), r"momentum_buffer of weight has shape \(2, 4\).* \(2, 3\)"),
        (nn.Linear(3, 2, bias=False), "only one of them has bias"),
    ],
)
def test_optimizer_state_of_other_parameters_is_rejected(other, message):
    optimizer = make_optimizer(OptimConfig(), other)
    steps(other, optimizer, [1.0])
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(
            make_optimizer(OptimConfig(), model), model, optimizer_state(optimizer, other)
        )
