"""Memory of the configs on fake tensors, and its documented table."""

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import cast
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipelines.run import Run, read_run
from ranet import RANet
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from ranet.training.state import TrainState
from tests.support.fake_gpu import LiveMemory, as_fake, fake_batch, fake_gpu
from tests.support.paths import PROJECT

FEW, MANY = 16, 48
"""Numbers of images whose difference shows the memory of an image."""


def memory_of(run: Run) -> list[float]:
    """Fixed memory in GB; MB per image of training, evaluation and scoring."""
    config = replace(run.train, micro_batch_size=0)
    with torch.device("meta"):
        network, normalize = RANet(run.model), Normalize((0.5,) * 3, (0.5,) * 3)
    as_on_gpu = mock.patch("ranet.model.layers.has_fast_norm", return_value=False)
    with fake_gpu(), as_on_gpu, LiveMemory() as memory:
        model = cast(RANet, as_fake(network, "cpu"))
        training = TrainState(config, model, as_fake(normalize, "cpu"))
        scoring = ForwardPass(model, training.eval_forward.normalize)
        state = state_of(training, memory)

        def train(images: Tensor, labels: Tensor) -> None:
            logits = training.train_forward(images)
            reduce(add, training.loss(logits, labels, 0.0).values()).backward()

        def peaks(num_images: int) -> list[int]:
            batch = fake_batch(num_images, run.model.image_size, "cpu")
            model.train()
            found = [peak(memory, lambda: train(*batch))]
            model.eval()
            with torch.no_grad():
                forwards = (training.eval_forward, scoring)
                found += [peak(memory, partial(forward, batch[0])) for forward in forwards]
            return found

        held = memory.now
        few, many = peaks(FEW), peaks(MANY)
        assert state
    per_image = [(b - a) / (MANY - FEW) for a, b in zip(few, many, strict=True)]
    fixed = held + few[0] - FEW * per_image[0]
    return [fixed / 1e9, *(each / 1e6 for each in per_image)]


def state_of(training: TrainState, memory: LiveMemory) -> list[Tensor]:
    """Count weights, EMA, momentum and gradients, which DDP keeps; return new ones."""
    networks = [training.model, *([training.ema.model] if training.ema else [])]
    for network in networks:
        for tensor in network.state_dict().values():
            memory.add(tensor)
    parameters = list(training.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    return [torch.empty_like(each) for each in parameters]


def peak(memory: LiveMemory, work: Callable[[], object]) -> int:
    """Run some work and return how much memory it needs in bytes."""
    gc.collect()  # graphs of earlier work
    start = memory.peak = memory.now
    work()
    return memory.peak - start


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "imagenet_paper"])
def test_table_of_memory_shows_the_memory_of_the_configs(name):
    run = read_run(["--config", str(PROJECT / "configs" / f"{name}.yaml")])
    table = (PROJECT / "docs" / "scaling.md").read_text()
    row = re.search(rf"^\| `{name}.yaml` \|(.*)\|$", table, re.MULTILINE)
    assert row is not None
    written = [float(re.findall(r"[\d.]+", cell)[0]) for cell in row[1].split("|")[:4]]
    assert memory_of(run) == pytest.approx(written, rel=0.03, abs=0.006)
