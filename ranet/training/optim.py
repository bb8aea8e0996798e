"""Stochastic gradient descent, its learning rate, and a guard against non-finite updates."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD

from ranet.config import OptimConfig


class NonFiniteLoss(RuntimeError):  # noqa: N818 - it says what was found
    """The loss or its gradient became infinite or not a number; the update was not made."""


def make_optimizer(config: OptimConfig, model: nn.Module) -> SGD:
    """Make the optimizer of a model; `learning_rate` gives its rate anew at every step."""
    parameters = list(model.parameters())
    groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    if config.decay == "weights":
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    # Fused: one kernel for many parameters, and the only form that can skip an update unasked.
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)


def optimizer_state(optimizer: SGD, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Tensors that the optimizer keeps, by name of the parameter; its settings are not in it."""
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}


def load_optimizer_state(
    optimizer: SGD, model: nn.Module, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        ValueError: the state is of other parameters, or of other shapes.
    """
    parameters = dict(model.named_parameters())
    if different := parameters.keys() ^ state.keys():
        raise ValueError(
            "the optimizer's state does not fit the network: only one of them has "
            f"{', '.join(sorted(different))}"
        )
    for name, parameter in parameters.items():
        for key, saved in state[name].items():
            if saved.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's state does not fit the network: {key} of {name} has shape "
                    f"{tuple(saved.shape)}, the parameter has {tuple(parameter.shape)}"
                )
            # The fused kernel walks through memory: the state must lie there as its parameter.
            optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(saved)


class FiniteGuard:
    """Skips every update from the first on whose loss or gradient is not finite.

    All of it happens on the device, so that no step waits for the answer: `first_bad_step` may be
    read rarely, and the weights are still those before the bad step. A loss that is not finite
    turns its gradients into NaN; the sum of the gradients over the workers carries that to all of
    them, so every worker stops at the same step and none waits for another.

    Args:
        optimizer: a fused optimizer.
    """

    def __init__(self, optimizer: SGD) -> None:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._parameters[0].device
        self._found = torch.zeros((), device=device)
        self._clean_steps = torch.zeros((), dtype=torch.int64, device=device)
        # The name by which torch.amp.GradScaler tells fused kernels to leave the parameters alone.
        optimizer.found_inf = self._found  # pyright: ignore[reportAttributeAccessIssue]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        # Times 1, or times NaN: an infinite loss may have a finite gradient, and on one worker
        # only. Arithmetic, because torch.where would copy its two numbers to the device.
        loss.backward(loss.detach() * 0 + 1)

    @torch.no_grad()
    def check(self) -> None:
        """Look at the gradients of a whole step, before the optimizer takes it."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        bad = get_total_norm(gradients, norm_type=math.inf).isfinite().logical_not()
        torch.maximum(self._found, bad.to(self._found.dtype), out=self._found)
        self._clean_steps += self._found == 0

    def first_bad_step(self) -> int | None:
        """Read from the device which step was the first to be skipped, counted from 0."""
        return int(self._clean_steps) if self._found else None
