"""Training on digits in one process, for tests of the training loop."""

import math

import torch
from torch import nn

from ranet.config import OptimConfig, TrainConfig
from ranet.training.loop import fit
from ranet.training.state import TrainState
from tests.support.tiny import Digits, Recorder, TwoExits, normalize

CPU = torch.device("cpu")
QUICK = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=0.05, warmup_epochs=0.5))


def train(
    config=QUICK,
    model=None,
    resume=None,
    recorder=None,
    digits=320,
    prepare=normalize,
    device=CPU,
    measure=None,
):
    """Train a network on the first digits and validate on 80 others."""
    if model is None:
        model = TwoExits(config.seed)
    batches = Digits(0, digits, config.batch_size, shuffled=True, seed=config.seed, device=device)
    val = Digits(1000, 1080, 32, device=device)
    recorder = recorder or Recorder()
    try:
        training = TrainState(config, model, prepare)
        return fit(training, batches, val, recorder, resume=resume, measure=measure)
    finally:
        assert batches.num_open == 0
        assert val.num_open == 0


class NanOnCall:
    """Normalization that returns NaN at one call and stores the weights."""

    def __init__(self, model: nn.Module, call: int) -> None:
        self.model, self.calls_left = model, call

    def __call__(self, images):
        self.calls_left -= 1
        if self.calls_left == 0:
            self.weights = [p.detach().clone() for p in self.model.parameters()]
            return normalize(images) * math.nan
        return normalize(images)
