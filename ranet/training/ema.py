"""Exponential moving average of a network's weights."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """Exponential moving average of a network's weights and statistics.

    The decay of step t, counted from 0, is (t + 1) / (t + 10), at most `decay`, so that the random
    initial weights do not stay in the EMA.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        ours, theirs = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in theirs.items() if value.is_floating_point()]
        self._averages = [ours[name] for name in floating]
        self._values = [theirs[name] for name in floating]
        self._counts = [(ours[name], theirs[name]) for name in theirs.keys() - set(floating)]

    def update(self, step: int) -> None:
        """Update the EMA after a step, counted from 0 over all epochs."""
        keep = min(self._decay, (step + 1) / (step + 10))
        get_ema_multi_avg_fn(keep)(self._averages, self._values, None)
        for own, count in self._counts:
            own.copy_(count)
