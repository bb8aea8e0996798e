"""Network: equality with the plain network, and lazy computation."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain import PlainRANet
from ranet import PRESETS, Cascade, ModelConfig, RANet, official_state_dict
from ranet.config import ExitEnsemble
from tests.support.networks import configs, randomised

SMALL = ModelConfig(stem_channels=4, growth_rate=4, layers_per_block=2, num_classes=5)


def plain_twin(model: RANet) -> PlainRANet:
    plain = PlainRANet(model.config).double()
    plain.load_state_dict(official_state_dict(model))
    return plain


@settings(max_examples=12)
@given(configs(), st.integers(1, 40), st.sampled_from(["none", "mean_logits"]), st.floats(0, 1))
def test_all_forms_give_equal_outputs_in_float32(
    config: ModelConfig, batch: int, ensemble: ExitEnsemble, share: float
):
    """Compare plain, full, optimized, cascade and stream for any number of pixels."""
    model = randomised(config).float().eval()
    plain = PlainRANet(config).eval()
    plain.load_state_dict(official_state_dict(model))
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    with torch.inference_mode():
        expected = plain(images)
        scale = max(1.0, expected.abs().max().item())
        optimized = model.optimized()
        for form in (model, optimized):
            torch.testing.assert_close(form(images), expected, rtol=0, atol=5e-5 * scale)
    if ensemble == "mean_logits":
        expected = expected.cumsum(dim=0) / torch.arange(1, len(expected) + 1)[:, None, None]
    confidences, labels = expected.softmax(dim=2).max(dim=2)
    thresholds = confidences.quantile(share, dim=1)
    *_, last = Cascade(optimized, thresholds, ensemble).stream(images)
    assert last.is_final.all()
    taken = confidences >= thresholds[:, None]
    taken[-1] = True
    exits = taken.float().argmax(dim=0)
    # A confidence close to its threshold may be rounded to either side.
    clear = ((confidences - thresholds[:, None]).abs() > 1e-4 * scale).all(dim=0)
    for prediction in (Cascade(optimized, thresholds, ensemble)(images), last.prediction):
        assert torch.equal(prediction.exits[clear], exits[clear] + 1)
        chosen = prediction.exits[None] - 1
        torch.testing.assert_close(
            prediction.confidences, confidences.gather(0, chosen)[0], rtol=0, atol=5e-5 * scale
        )
        assert (prediction.labels == labels.gather(0, chosen)[0])[clear].float().mean() > 0.9 or (
            not clear.any()
        )


@pytest.mark.parametrize("batch", [5, 7])
def test_inference_form_supports_many_pixels_not_divisible_by_16(batch: int):
    model = randomised(replace(PRESETS["cifar_readme"], image_size=33)).float().eval()
    images = torch.randn(batch, 3, 33, 33)  # more than 4,096 pixels, no multiple of 16
    with torch.inference_mode():
        torch.testing.assert_close(model.optimized()(images), model(images), rtol=0, atol=5e-5)


def test_inference_form_supports_empty_batches_and_type_conversion():
    model = RANet(SMALL).eval()
    optimized = model.optimized()
    images = torch.randn(2, 3, 32, 32)
    assert optimized(images[:0]).shape == (SMALL.num_exits, 0, 5)
    exact = model.double()(images.double())
    torch.testing.assert_close(optimized.double()(images), exact, rtol=0, atol=1e-5)


@settings(max_examples=8)
@given(configs())
def test_network_equals_the_plain_network_in_outputs_and_gradients(config: ModelConfig):
    model = randomised(config)
    plain = plain_twin(model)
    images = torch.randn(3, 3, config.image_size, config.image_size, dtype=torch.float64)
    expected = plain.eval()(images)
    torch.testing.assert_close(model.eval()(images), expected, rtol=0, atol=1e-10)
    optimized = model.optimized(torch.float64)
    torch.testing.assert_close(optimized(images), expected, rtol=0, atol=1e-10)
    targets = torch.randn_like(plain(images))
    for network in (model.train(), plain.train()):
        ((network(images) - targets) ** 2).sum().backward()
    # After a gradient step both state dicts are equal, including running statistics.
    with torch.no_grad():
        for parameter in (*model.parameters(), *plain.parameters()):
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    expected = plain.state_dict()
    for name, value in official_state_dict(model).items():
        scale = 1 + expected[name].double().abs().max().item()
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("name", ["cifar_readme", "cifar_script"])
def test_published_cifar_networks_equal_the_plain_network_in_float32(name: str):
    model = randomised(PRESETS[name]).float().eval()
    plain = plain_twin(model).float().eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = plain(images)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=5e-5)
        last = model(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=0, atol=5e-5)
        torch.testing.assert_close(model.optimized()(images), expected, rtol=0, atol=5e-5)


def test_large_stem_gives_equal_outputs_in_the_inference_form():
    config = replace(SMALL, stem="large", image_size=128, exit_channels=None, compress_factor=0.5)
    model = randomised(config).eval()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    expected = plain_twin(model).eval()(images)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.optimized(torch.float64)(images), expected, rtol=0, atol=1e-10)


def test_inference_form_is_frozen_and_shares_no_memory_with_the_model():
    model = randomised(SMALL).float().eval()
    images = torch.randn(2, 3, 32, 32)
    optimized = model.optimized()
    before = optimized(images)
    assert not before.requires_grad
    assert not any(p.requires_grad for p in optimized.parameters())
    optimized.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(optimized(images), before)
    twin = copy.deepcopy(optimized)
    zeros = {name: torch.zeros_like(value) for name, value in optimized.state_dict().items()}
    twin.load_state_dict(zeros, assign=True)
    assert twin(images).count_nonzero() == 0
    assert torch.equal(optimized(images), before)
    half = randomised(SMALL).float().eval().optimized(torch.bfloat16)(images)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), before, rtol=0.1, atol=0.1)


def test_forward_equals_lazy_predictions():
    model = randomised(SMALL).eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    lazily = torch.stack(list(model.predictions(images)))
    assert lazily.shape == (SMALL.num_exits, 2, 5)
    assert torch.equal(model(images), lazily)


def test_no_block_runs_after_the_exit_at_which_reading_stops():
    model = randomised(SMALL).eval()
    ran: list[str] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "subnetworks":
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    predictions = model.predictions(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    next(predictions)
    assert ran == ["subnetworks.0.blocks.0", "subnetworks.0.exits.0"]
    next(predictions)
    assert ran[2:] == ["subnetworks.0.blocks.1", "subnetworks.0.exits.1"]
    next(predictions)
    assert ran[4:] == [f"subnetworks.1.blocks.{k}" for k in range(3)] + ["subnetworks.1.exits.0"]


def test_initial_weights_follow_the_authors_distribution():
    torch.manual_seed(0)
    state = official_state_dict(RANet(PRESETS["cifar_script"]))
    for name, value in state.items():
        if value.ndim == 4 and not name.startswith("FirstLayer") and value.numel() > 2000:
            fan_out = value.shape[0] * value.shape[2] * value.shape[3]
            assert value.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
    stem = state["FirstLayer.layers.2.net.0.weight"]  # framework default: uniform
    bound = 1 / math.sqrt(stem[0].numel())
    assert stem.abs().max() <= bound
    assert stem.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not state["classifier.0.linear.bias"].any()
    assert state["classifier.0.linear.weight"].abs().max() <= 1 / math.sqrt(128)


def test_each_training_batch_is_counted_once():
    model = randomised(SMALL).train()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model(images)
    model(images)
    model.eval()(images)
    counts = {
        int(value)
        for name, value in official_state_dict(model).items()
        if name.endswith("num_batches_tracked")
    }
    assert counts == {1 + 2}  # `randomised` has run one batch
