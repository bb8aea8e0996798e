"""Correctness of network and training on a GPU, compared with the CPU."""

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cuda.items import Item
from benchmarks.plain import PlainRANet
from benchmarks.reference import conformance_images, conformance_weights, random_network
from ranet import Cascade, ModelConfig, RANet, model_from_official, official_state_dict
from ranet.config import EmaConfig, OptimConfig, TrainConfig
from ranet.inference.precision import tf32
from ranet.training.loop import take_step
from ranet.training.optim import FiniteGuard
from ranet.training.state import TrainState

FLOAT32_BOUND = 2e-4
"""Bound on float32 logits without TF32: max absolute difference from the CPU's."""
BFLOAT16_BOUND = 0.1
"""Bound on bfloat16 logits: max difference over the standard deviation of the logits."""
GRADIENT_BOUND = 1e-3
"""Bound on a training step: difference of all gradients over their norm."""


def correctness_items(
    config: ModelConfig, device: torch.device, conformance: Path | None
) -> Iterator[Item]:
    """Yield the checks; each has a value `passed`."""
    for file in sorted(conformance.glob("*.json")) if conformance else ():
        yield Item("correctness", f"conformance {file.stem}", partial(_conformance, file, device))
    checks = {
        "inference form, float32": _inference_form,
        "bfloat16": _bfloat16,
        "cascade": _cascade,
        "training step, float32": _training_step,
        "plain form, float32": _plain_form,
        "non-finite loss": _non_finite_loss,
        "synchronisation": _synchronisation,
    }
    for name, check in checks.items():
        yield Item("correctness", name, partial(check, config, device))


def _conformance(file: Path, device: torch.device) -> dict[str, Any]:
    """Compare with the authors' network."""
    reference = json.loads(file.read_text())
    state = conformance_weights(reference["shapes"])
    size = reference["input"][-1]
    model = model_from_official(reference["config"], reference["num_classes"], size, state).eval()
    images = conformance_images(reference["input"]).to(device)
    expected = torch.from_numpy(np.load(file.with_suffix(".npz"))["logits"])
    with tf32(allowed=False), torch.inference_mode():
        logits = model.to(device)(images)
    return _within(logits, expected, 5e-5)


def _within(values: Tensor, expected: Tensor, bound: float, scale: float = 1.0) -> dict[str, Any]:
    difference = (values.double().cpu() - expected.double().cpu()).abs().max().item() / scale
    return {"passed": difference <= bound, "difference": difference, "bound": bound}


@torch.inference_mode()
def _inference_form(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    model, images = random_network(config)
    expected = model(images)
    with tf32(allowed=False):
        logits = copy.deepcopy(model).to(device).optimized()(images.to(device))
    return _within(logits, expected, FLOAT32_BOUND)


@torch.inference_mode()
def _bfloat16(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    model, images = random_network(config)
    expected = model(images)
    logits = model.to(device).optimized(torch.bfloat16)(images.to(device)).float()
    return _within(logits, expected, BFLOAT16_BOUND, expected.std().item())


@torch.inference_mode()
def _cascade(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Compare the cascade with the exits chosen from a full pass."""
    model, images = random_network(config, 64)
    fused, images = model.to(device).optimized(), images.to(device)
    with tf32(allowed=False):
        probabilities = fused(images).softmax(dim=-1)
        confidences = probabilities.amax(dim=-1)
        thresholds = confidences.median(dim=1).values
        leaves = confidences >= thresholds[:, None]
        leaves[-1] = True
        exits = leaves.int().argmax(dim=0)
        labels = probabilities.argmax(dim=-1).gather(0, exits[None])[0]
        prediction = Cascade(fused, thresholds.cpu())(images)
    # The image at a threshold may leave on either side of it by a rounding error.
    equal = ((prediction.exits == exits + 1) & (prediction.labels == labels)).float().mean().item()
    return {"passed": equal >= 0.95, "equal": equal, "exits": len(exits.unique())}


def _training_state(config: ModelConfig, device: torch.device) -> tuple[TrainState, Tensor, Tensor]:
    torch.manual_seed(0)
    settings = TrainConfig(
        batch_size=8, optim=OptimConfig(lr=0.1), ema=EmaConfig(decay=0.9), channels_last=True
    )
    images = torch.randint(256, (8, 3, config.image_size, config.image_size), dtype=torch.uint8)
    labels = torch.randint(config.num_classes, (8,))
    training = TrainState(settings, RANet(config).to(device), lambda x: x.float() / 128 - 1)
    return training, images.to(device), labels.to(device)


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double().cpu() for p in model.parameters()])  # pyright: ignore[reportOptionalMemberAccess]


def _training_step(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    gradients = []
    for each in (torch.device("cpu"), device):
        training, images, labels = _training_state(config, each)
        with tf32(allowed=False):
            take_step(training, FiniteGuard(training.optimizer), images, labels, 10)
        gradients.append(_gradients(training.model))
    error = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    return {"passed": error <= GRADIENT_BOUND, "difference": error, "bound": GRADIENT_BOUND}


def _plain_form(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Compare logits and gradients with the layer-by-layer form on the same device."""
    model, images = random_network(config)
    plain = PlainRANet(config)
    plain.load_state_dict(official_state_dict(model))
    images = images.to(device)
    with tf32(allowed=False):
        ours, theirs = (each.to(device).train()(images) for each in (model, plain))
    return _within(ours.detach(), theirs.detach(), 10 * FLOAT32_BOUND)


def _non_finite_loss(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Check that a step with a NaN loss keeps the weights."""
    training, images, labels = _training_state(config, device)
    guard = FiniteGuard(training.optimizer)
    take_step(training, guard, images, labels, 10)
    before = [p.detach().clone() for p in training.model.parameters()]
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
        before[0].fill_(float("nan"))
    take_step(training, guard, images, labels, 10)
    after = training.model.parameters()
    kept = all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )
    return {"passed": kept and guard.first_bad_step() == 1, "bad step": guard.first_bad_step()}


def _synchronisation(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Check that the host never waits for the GPU in a step."""
    training, images, labels = _training_state(config, device)
    guard = FiniteGuard(training.optimizer)
    for _ in range(2):  # allocations and constants of the first steps may synchronise
        take_step(training, guard, images, labels, 10)
    if device.type != "cuda":
        return {"passed": True, "note": "only a GPU can synchronise"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(training, guard, images, labels, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"passed": True}
