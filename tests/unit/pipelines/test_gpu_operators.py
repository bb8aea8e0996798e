"""Operators of the configs on fake GPU tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import add
from typing import cast
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pipelines.run import Run, read_run
from ranet import Cascade, RANet
from ranet.evaluation.exit_outputs import collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from ranet.training.loop import take_step
from ranet.training.optim import FiniteGuard
from ranet.training.state import TrainState
from ranet.training.validation import evaluate
from tests.support.fake_gpu import FakeBatches, GpuOperators, as_fake, fake_batch, fake_gpu
from tests.support.paths import PROJECT

CONFIGS = ("cifar10", "imagenet", "imagenet_paper")
OPERATORS = {"cifar10": 2424, "imagenet": 4980, "imagenet_paper": 4167}
"""Operators of the first forward and backward pass; their CPU time bounds a fast GPU.

Later passes do without the 40 to 60 that compute the matrices of the resizes.
"""


def config_of(name: str) -> Run:
    return read_run(["--config", str(PROJECT / "configs" / f"{name}.yaml")])


@contextmanager
def fake_network(run: Run, device: str = "cuda") -> Iterator[tuple[RANet, Callable[..., Tensor]]]:
    """The network of a config and its normalisation, on a fake device."""
    with torch.device("meta"):
        network, normalize = RANet(run.model), Normalize((0.5,) * 3, (0.5,) * 3)
    with fake_gpu():
        yield cast(RANet, as_fake(network, device)), as_fake(normalize, device)


def fill_gradients(network: nn.Module) -> Callable[[FiniteGuard, Tensor], None]:
    """Return a stand-in for the backward pass, which needs a driver."""

    def backward(_: FiniteGuard, loss: Tensor) -> None:
        assert loss.is_cuda
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)

    return backward


@pytest.mark.parametrize("name", CONFIGS)
def test_training_step_and_evaluation_never_wait_for_the_gpu(name):
    run = config_of(name)
    config = replace(run.train, batch_size=32, micro_batch_size=16)
    size = run.model.image_size
    with fake_network(run) as (network, normalize):
        training = TrainState(config, network, normalize)
        guard = FiniteGuard(training.optimizer)
        training.model.train()
        images, labels = fake_batch(32, size)
        backward = mock.patch.object(FiniteGuard, "backward", fill_gradients(network))
        with backward, GpuOperators() as used:
            take_step(training, guard, images, labels, 10)
        assert used.num_reads == 0
        assert used.counts["_fused_sgd_"] >= 1
        # After the last batch, evaluation and scoring read their sums.
        with GpuOperators() as used:
            evaluate(training.eval_forward, FakeBatches(used, (16, 7), size))
        assert used.num_reads > 0
        with GpuOperators() as used:
            collect_exit_outputs(ForwardPass(network, normalize), FakeBatches(used, (16, 7), size))


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_backward_pass_start_a_fixed_number_of_operators(name):
    run = config_of(name)
    config = replace(run.train, batch_size=128, micro_batch_size=0)
    # Fake CPU tensors, and layers as on a GPU, where no narrow norm is computed by hand.
    as_on_gpu = mock.patch("ranet.model.layers.has_fast_norm", return_value=False)
    with fake_network(run, "cpu") as (network, normalize), as_on_gpu:
        training = TrainState(config, network, normalize)
        training.model.train()
        images, labels = fake_batch(128, run.model.image_size, "cpu")
        with GpuOperators() as used:
            logits = training.train_forward(images)
            reduce(add, training.loss(logits, labels, 0.0).values()).backward()
    assert used.total == OPERATORS[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS[:2])
def test_cascade_waits_for_the_gpu_once_per_exit(name, dtype):
    run = config_of(name)
    with torch.device("meta"):
        model = RANet(run.model).optimized(dtype)
    num_exits, size = run.model.num_exits, run.model.image_size
    cascade = Cascade(model, torch.full((num_exits,), 0.5))
    with fake_gpu(), GpuOperators() as used, used.reads_allowed():
        as_fake(model)
        images = torch.empty(64, 3, size, size, device="cuda")
        cascade(images)
        for _ in cascade.stream(images):
            pass
    assert used.num_reads == 2 * (num_exits - 1)
