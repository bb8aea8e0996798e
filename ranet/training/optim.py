"""Stochastic gradient descent and a guard against non-finite updates."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD

from ranet.config import OptimConfig
from ranet.torch_internals import skip_updates_if


class NonFiniteLoss(RuntimeError):  # noqa: N818 - named after its condition
    """Loss or gradient became infinite or NaN; the update was skipped."""


def make_optimizer(config: OptimConfig, model: nn.Module) -> SGD:
    """Make the optimizer of a model; the loop sets its learning rate."""
    parameters = list(model.parameters())
    groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    if config.decay == "weights":
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    # Fused: one kernel for many parameters, and the only form that supports `found_inf`.
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)


def optimizer_state(optimizer: SGD, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the optimizer by parameter name, without its settings."""
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}


def load_optimizer_state(
    optimizer: SGD, model: nn.Module, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Restore an optimizer from the result of `optimizer_state`.

    Raises:
        ValueError: the parameters of the state have other names or shapes.
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
            # The fused kernel needs state tensors with the memory layout of their parameter.
            optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(saved)


class FiniteGuard:
    """Guard that skips updates from the first non-finite value on.

    All checks run on the device, so that no step waits for a result: `first_bad_step` may be
    read rarely, and the weights are still the weights before the bad step. A non-finite loss
    turns its gradients into NaN; the sum of the gradients over the workers is then NaN on every
    worker, so all workers stop at the same step and no collective operation blocks.

    Args:
        optimizer: a fused optimizer.
    """

    def __init__(self, optimizer: SGD) -> None:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._parameters[0].device
        self._found = torch.zeros((), device=device)
        self._clean_steps = torch.zeros((), dtype=torch.int64, device=device)
        skip_updates_if(optimizer, self._found)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        # The factor is 1, or NaN for a non-finite loss: an infinite loss may have a finite
        # gradient. Arithmetic, because torch.where would copy two numbers to the device.
        loss.backward(loss.detach() * 0 + 1)

    @torch.no_grad()
    def check(self) -> None:
        """Check the gradients of a whole step; call before `optimizer.step`."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        bad = get_total_norm(gradients, norm_type=math.inf).isfinite().logical_not()
        torch.maximum(self._found, bad.to(self._found.dtype), out=self._found)
        self._clean_steps += self._found == 0

    def first_bad_step(self) -> int | None:
        """Read the first skipped step from the device; None without one."""
        return int(self._clean_steps) if self._found else None
