"""Ensemble of exits: the mean logits of all exits so far."""

from typing import Literal

import torch
from torch import Tensor

ExitEnsemble = Literal["none", "mean_logits"]
"""none: an exit predicts from its own logits; mean_logits: from the mean of the logits of this exit
and all earlier exits."""


def mean_logits(logits: Tensor) -> Tensor:
    """Average the logits of each exit with those of earlier exits.

    Args:
        logits: (exits, batch, classes).

    Returns:
        Mean logits (exits, batch, classes).
    """
    counts = torch.arange(1, len(logits) + 1, device=logits.device)
    return logits.cumsum(dim=0) / counts[:, None, None]
