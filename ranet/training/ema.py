"""The moving average of a network's weights over its training steps."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """A copy of a network that follows it: of weights and running statistics, a moving average.

    Early averages look back less far: step t, counted from 0, keeps (t + 1) / (t + 10) of the
    average, at most `decay`. Otherwise the first weights, which are random, would stay in it.
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
        """Take in the weights after a step, counted from 0 over all epochs."""
        keep = min(self._decay, (step + 1) / (step + 10))
        get_ema_multi_avg_fn(keep)(self._averages, self._values, None)
        for own, count in self._counts:
            own.copy_(count)
