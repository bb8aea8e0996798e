"""Reported mult-adds of a cascade equal the counted mult-adds of its operations."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ranet import PRESETS, Cascade, ModelConfig, RANet, mult_adds
from ranet.model.layers import NormRelu

SMALL = ModelConfig(
    scales=(1, 2, 3, 3),
    growth_factors=(4, 2, 1, 1),
    bottleneck_factors=(4, 2, 1, 1),
    stem_channels=4,
    growth_rate=4,
    layers_per_block=2,
)
LARGE = replace(
    SMALL, stem="large", image_size=128, exit_channels=None, compress_factor=0.5, num_classes=7
)
INF = float("inf")


class MultAddCounter(TorchFunctionMode):
    """Counter of executed mult-adds; zeros in a weight are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "conv2d":
            weight = args[1]
            self.total += len(out) * out.shape[2] * out.shape[3] * int(weight.count_nonzero())
        elif name == "linear":
            self.total += out.numel() // out.shape[-1] * int(args[1].count_nonzero())
        elif name in ("addmm", "addmm_", "mm", "matmul"):
            self.total += out.shape[0] * int(args[-1].count_nonzero())
        return out


@pytest.fixture(scope="module", params=["small", "large", "cifar_readme"])
def model(request: pytest.FixtureRequest) -> RANet:
    config = {"small": SMALL, "large": LARGE, **PRESETS}[request.param]
    torch.manual_seed(0)
    model = RANet(config)
    for module in model.modules():
        if isinstance(module, NormRelu):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images_for(config))
    return model.eval()


def images_for(config: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 3, config.image_size, config.image_size, generator=generator)


def count(cascade: Cascade, images: Tensor) -> tuple[int, Tensor]:
    with MultAddCounter() as counter:
        prediction = cascade(images)
    return counter.total, prediction.mult_adds


def test_cost_of_a_single_exit_equals_the_architecture_exactly(model: RANet):
    images = images_for(model.config)
    optimized = model.optimized()
    num_exits = model.config.num_exits
    for k, cost in enumerate(mult_adds(model.config)):
        thresholds = torch.full((num_exits,), 1.0)
        thresholds[k] = -INF
        counted, reported = count(Cascade(optimized, thresholds), images)
        assert reported.tolist() == [cost] * len(images)
        assert counted == cost * len(images)


@pytest.mark.parametrize("skipped", [[], [1], [0, 2, 4]])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_reported_mult_adds_match_the_blocks_that_ran(
    model: RANet, share: float, skipped: list[int]
):
    images = images_for(model.config)
    with torch.inference_mode():
        confidences = model(images).softmax(dim=2).amax(dim=2)
    thresholds = confidences.quantile(1 - share, dim=1)
    thresholds[skipped] = INF
    cascade = Cascade(model, thresholds)
    counted, reported = count(cascade, images)
    assert len(set(reported.tolist())) >= 3  # they leave at different exits
    assert counted == reported.sum()
    for image, cost in zip(images, reported, strict=True):  # and each image on its own
        counted, single = count(cascade, image[None])
        assert counted == single.item() == cost


def test_skipped_exits_cost_nothing(model: RANet):
    images = images_for(model.config)[:2]
    num_exits = model.config.num_exits
    all_exits, _ = count(Cascade(model, torch.full((num_exits,), 1.0)), images)
    last_exit, reported = count(Cascade(model, torch.full((num_exits,), INF)), images)
    assert last_exit == reported.sum() < 0.9 * all_exits
