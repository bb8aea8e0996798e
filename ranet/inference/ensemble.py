"""Ensemble of exits: the mean of the logits of all exits so far."""

from typing import Literal

import torch
from torch import Tensor

ExitEnsemble = Literal["alone", "together"]
"""alone: an exit answers by its own logits; together: by the mean of those of all exits so far."""


def mean_logits(logits: Tensor) -> Tensor:
    """Give for each exit the mean of its logits and those before: (exits, batch, classes)."""
    passed = torch.arange(1, len(logits) + 1, device=logits.device)
    return logits.cumsum(dim=0) / passed[:, None, None]
