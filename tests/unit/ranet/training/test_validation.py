"""Validation of a network, one process."""

import pytest
import torch
from torch import nn

from ranet.evaluation.forward import ForwardPass
from ranet.training.validation import evaluate
from tests.support.tiny import Digits, TwoExits, normalize


def test_validation_counts_every_image_once_for_any_batch_size():
    model = TwoExits()
    all_at_once = Digits(0, 97, 97)
    with torch.inference_mode():
        logits = model.eval()(normalize(all_at_once.images))
    losses = [nn.functional.cross_entropy(each, all_at_once.labels).item() for each in logits]
    right = [(each.argmax(1) == all_at_once.labels).double().mean() for each in logits]
    model.train()
    metrics = evaluate(ForwardPass(model, normalize), Digits(0, 97, 10))
    assert not model.training
    assert metrics["val/loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert metrics["val/exit1/top1"] == pytest.approx(100 * right[0].item())
    assert metrics["val/exit2/top1"] == pytest.approx(100 * right[1].item())
