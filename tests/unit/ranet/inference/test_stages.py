"""Stages: equal to the full pass for every network."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from benchmarks.reference import random_network
from ranet import PRESETS, ModelConfig, mult_adds
from ranet.inference.stages import Stage, make_stages, stage_mult_adds
from ranet.model.preprocessing import Normalize
from tests.support.networks import configs, randomised

SMALL = ModelConfig(stem_channels=4, growth_rate=4, layers_per_block=2, num_classes=5)


@torch.inference_mode()
def run_stages(
    stages: list[Stage], images: Tensor, programs: list[Callable[..., tuple[Tensor, ...]]]
) -> Tensor:
    """Logits (exits, batch, classes) of all stages."""
    values = {"images": images}
    logits = []
    for stage, program in zip(stages, programs, strict=True):
        results = program(*(values[name] for name in stage.inputs))
        values.update(zip(stage.outputs, results, strict=True))
        logits.append(values["logits"])
    return torch.stack(logits)


@settings(max_examples=12)
@given(configs())
def test_stages_equal_the_full_pass(config: ModelConfig):
    model = randomised(config).eval()
    images = torch.randn(3, 3, config.image_size, config.image_size, dtype=torch.float64)
    stages = make_stages(model)
    assert len(stages) == config.num_exits
    torch.testing.assert_close(run_stages(stages, images, stages), model(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_stages_of_a_preset_equal_the_full_pass_in_float32(name: str):
    model, images = random_network(PRESETS[name], num_images=2)
    stages = make_stages(model)
    with torch.inference_mode():
        full = model(images)
    torch.testing.assert_close(run_stages(stages, images, stages), full, rtol=0, atol=5e-5)


def test_exported_stages_accept_any_number_of_images():
    model = randomised(SMALL).float().eval()
    stages = make_stages(model, Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    programs = [program.module() for program in export_all(stages, images[:2])]
    with torch.inference_mode():
        full = model(Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))(images))
    for batch in (1, 2, 15, 16, 17, 64, 256):
        logits = run_stages(stages, images[:batch], programs)
        torch.testing.assert_close(logits, full[:, :batch], rtol=0, atol=5e-5)


def export_all(stages: list[Stage], images: Tensor) -> list[torch.export.ExportedProgram]:
    values = {"images": images}
    programs = []
    for stage in stages:
        inputs = tuple(values[name] for name in stage.inputs)
        programs.append(stage.export(inputs))
        values.update(zip(stage.outputs, stage(*inputs), strict=True))
    return programs


def test_a_stage_without_exit_returns_the_same_features():
    model = randomised(SMALL).eval()
    stage = make_stages(model)[0]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    shorter = stage.without_exit()
    assert (*shorter.outputs, "logits") == stage.outputs
    for actual, expected in zip(shorter(images), stage(images), strict=False):
        assert torch.equal(actual, expected)
    assert not [name for name, _ in shorter.named_buffers() if "classify" in name]


def test_stages_share_no_memory_with_the_network():
    model = randomised(SMALL).eval()
    stages = make_stages(model)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = run_stages(stages, images, stages)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(run_stages(stages, images, stages), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_mult_adds_of_the_stages_sum_to_those_of_the_exits(name: str):
    total = 0
    for (blocks, exit_), expected in zip(
        stage_mult_adds(PRESETS[name]), mult_adds(PRESETS[name]), strict=True
    ):
        total += blocks + exit_
        assert total == expected
