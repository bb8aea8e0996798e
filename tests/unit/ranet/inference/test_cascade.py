"""Cascade: predictions of a full pass, without computation after an exit."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ranet import Cascade, ModelConfig, RANet, mult_adds
from ranet.architecture import make_network_spec
from ranet.model.exit import Exit

CONFIG = ModelConfig(
    scales=(1, 2, 3, 3),
    growth_factors=(4, 2, 1, 1),
    bottleneck_factors=(4, 2, 1, 1),
    stem_channels=4,
    growth_rate=4,
    layers_per_block=2,
)
INF = float("inf")


@pytest.fixture(scope="module")
def model() -> RANet:
    torch.manual_seed(0)
    model = RANet(CONFIG)
    model.train()(torch.randn(32, 3, 32, 32))
    for module in model.modules():
        if isinstance(module, Exit):  # spread the confidences
            module.classify.weight.data *= 20
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(40, 3, 32, 32)


@pytest.fixture(scope="module")
def full(model: RANet, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return model(images).softmax(dim=2).max(dim=2)


def quantiles(confidences: Tensor, share: float) -> Tensor:
    return confidences.quantile(1 - share, dim=1)


@pytest.mark.parametrize("is_optimized", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("change", [{}, {2: INF}, {0: INF, 1: INF}, {3: -INF}, {7: INF}])
def test_cascade_predicts_like_the_full_pass_at_the_assigned_exit(
    model: RANet,
    images: Tensor,
    full: tuple[Tensor, Tensor],
    share: float,
    change: dict,
    is_optimized: bool,
):
    confidences, labels = full
    thresholds = quantiles(confidences, share)
    for exit_, value in change.items():
        thresholds[exit_] = value
    rule = thresholds.clone()
    rule[-1] = -INF
    first = (confidences >= rule[:, None]).float().argmax(dim=0)
    cascade = Cascade(model.optimized() if is_optimized else model, thresholds)
    prediction = cascade(images)
    near = (confidences - thresholds[:, None]).abs().min(dim=0).values < 1e-5
    assert torch.equal(prediction.exits[~near], first[~near] + 1)
    first = prediction.exits - 1
    assert torch.equal(prediction.labels, labels.gather(0, first[None])[0])
    expected = confidences.gather(0, first[None])[0]
    torch.testing.assert_close(prediction.confidences, expected, rtol=0, atol=5e-5)
    exit_costs = [
        block.exit.cost.mult_adds for block in make_network_spec(CONFIG).blocks if block.exit
    ]
    skipped = [
        sum(cost for cost, t in zip(exit_costs[:k], rule.tolist(), strict=False) if t > 1)
        for k in range(1, 9)
    ]
    expected = torch.tensor(mult_adds(CONFIG))[first] - torch.tensor(skipped)[first]
    assert torch.equal(prediction.mult_adds, expected)


@contextmanager
def recorded_batch_sizes(cascade: Cascade) -> Iterator[dict[str, int]]:
    """Record the batch size of each block and exit by module name."""
    seen: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, __, name=name: seen.update({name: len(args[0].data)})
        )
        for name, module in cascade.model.named_modules()
        if name.startswith("subnetworks.") and name.count(".") == 3
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_each_block_runs_only_on_the_images_that_reach_it(
    model: RANet, images: Tensor, full: tuple[Tensor, Tensor]
):
    cascade = Cascade(model, quantiles(full[0], 0.3))
    with recorded_batch_sizes(cascade) as seen:
        prediction = cascade(images)
    reached = {k: int((prediction.exits >= k).sum()) for k in range(1, 9)}
    expected = {}
    number = 1
    for i, blocks in enumerate(make_network_spec(CONFIG).subnetworks):
        first_exit = sum(block.exit is None for block in blocks)
        for k, block in enumerate(blocks):
            expected[f"subnetworks.{i}.blocks.{k}"] = reached[number]
            if block.exit:
                expected[f"subnetworks.{i}.exits.{k - first_exit}"] = reached[number]
                number += 1
    assert seen == {name: count for name, count in expected.items() if count}
    assert len(set(reached.values())) > 3


def test_no_block_runs_after_all_images_have_left(model: RANet, images: Tensor):
    cascade = Cascade(model, torch.full((8,), -INF))
    with recorded_batch_sizes(cascade) as seen:
        prediction = cascade(images)
    assert list(seen) == ["subnetworks.0.blocks.0", "subnetworks.0.exits.0"]
    assert prediction.exits.tolist() == [1] * len(images)
    assert prediction.mult_adds.tolist() == [mult_adds(CONFIG)[0]] * len(images)


def test_exit_with_infinite_threshold_is_neither_computed_nor_counted(model: RANet, images: Tensor):
    cascade = Cascade(model, torch.full((8,), INF))
    with recorded_batch_sizes(cascade) as seen:
        prediction = cascade(images)
    exit_costs = [
        block.exit.cost.mult_adds for block in make_network_spec(CONFIG).blocks if block.exit
    ]
    assert [name for name in seen if "exits" in name] == ["subnetworks.3.exits.1"]
    assert prediction.exits.tolist() == [8] * len(images)
    expected = mult_adds(CONFIG)[-1] - sum(exit_costs[:-1])
    assert prediction.mult_adds.tolist() == [expected] * len(images)


def test_stream_yields_the_predictions_so_far_and_marks_final_ones(
    model: RANet, images: Tensor, full: tuple[Tensor, Tensor]
):
    confidences, labels = full
    cascade = Cascade(model, quantiles(confidences, 0.3))
    whole = cascade(images)
    final_before = torch.zeros(len(images), dtype=torch.bool)
    number = 0
    for number, progress in enumerate(cascade.stream(images), start=1):
        prediction, is_final = progress.prediction, progress.is_final
        assert torch.equal(is_final, whole.exits <= number)
        assert torch.equal(prediction.exits, whole.exits.clamp(max=number))
        assert torch.equal(prediction.labels, labels.gather(0, prediction.exits[None] - 1)[0])
        assert torch.equal(
            prediction.mult_adds, torch.tensor(mult_adds(CONFIG))[prediction.exits - 1]
        )
        assert (final_before <= is_final).all()
        final_before = is_final
    assert final_before.all()
    assert number == int(whole.exits.max())


def test_closed_stream_runs_no_further_blocks(model: RANet, images: Tensor):
    cascade = Cascade(model, torch.full((8,), 1.0))
    with recorded_batch_sizes(cascade) as seen:
        stream = cascade.stream(images)
        first = next(stream)
        stream.close()
    assert list(seen) == ["subnetworks.0.blocks.0", "subnetworks.0.exits.0"]
    assert first.prediction.exits.tolist() == [1] * len(images)


def test_images_of_another_shape_are_rejected_at_the_call(model: RANet):
    cascade = Cascade(model, torch.full((8,), 1.0))
    for classify in (cascade, cascade.stream):
        with pytest.raises(ValueError, match=r"must have the shape .* got \(3, 32, 32\)"):
            classify(torch.zeros(3, 32, 32))


def test_ensemble_predicts_from_the_mean_logits_of_all_exits_so_far(model: RANet, images: Tensor):
    with torch.inference_mode():
        passed = torch.arange(1, CONFIG.num_exits + 1)[:, None, None]
        means = model(images).cumsum(dim=0) / passed
    confidences, labels = means.softmax(dim=2).max(dim=2)
    thresholds = quantiles(confidences, 0.3)
    thresholds[1] = INF  # its logits are part of later means: it runs and is counted
    prediction = Cascade(model, thresholds, "mean_logits")(images)
    assert prediction.exits.unique().numel() > 3
    assert 2 not in prediction.exits
    exits = prediction.exits[None] - 1
    torch.testing.assert_close(
        prediction.confidences, confidences.gather(0, exits)[0], rtol=0, atol=1e-5
    )
    assert torch.equal(prediction.labels, labels.gather(0, exits)[0])
    assert torch.equal(prediction.mult_adds, torch.tensor(mult_adds(CONFIG))[exits[0]])


def test_large_batch_in_chunks_gets_the_predictions_of_its_single_images(model: RANet):
    torch.manual_seed(5)
    images = torch.randn(150, 3, 32, 32)
    cascade = Cascade(model, torch.full((8,), 0.7))
    batched = cascade(images)
    separate = [cascade(image[None]) for image in images]
    assert torch.equal(batched.labels, torch.cat([one.labels for one in separate]))
    assert torch.equal(batched.exits, torch.cat([one.exits for one in separate]))


def test_single_image_empty_batch_and_training_mode_are_supported(model: RANet, images: Tensor):
    thresholds = torch.full((8,), 0.6)
    all_at_once = Cascade(model, thresholds)(images)
    model.train()
    single = Cascade(model, thresholds)(images[3:4])
    assert model.training
    model.eval()
    assert single.exits.tolist() == all_at_once.exits[3:4].tolist()
    assert single.labels.tolist() == all_at_once.labels[3:4].tolist()
    empty = Cascade(model, thresholds)(images[:0])
    assert [len(field) for field in vars(empty).values()] == [0, 0, 0, 0]
    assert not single.confidences.requires_grad


def test_thresholds_and_images_of_a_wrong_shape_are_rejected(model: RANet):
    with pytest.raises(ValueError, match="one number for each of the 8 exits"):
        Cascade(model, torch.zeros(7))
    with pytest.raises(ValueError, match="one number for each of the 8 exits"):
        Cascade(model, torch.full((8,), float("nan")))
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), got \(3, 32, 32\)"):
        Cascade(model, torch.zeros(8))(torch.zeros(3, 32, 32))
