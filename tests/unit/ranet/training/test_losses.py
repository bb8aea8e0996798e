"""Training loss against hand-computed values."""

import math

import pytest
import torch

from ranet.training.losses import curriculum_weights, exit_loss

# Softmax of (0, ln 3) is (1/4, 3/4): the loss is ln 4 for label 0, and ln 4/3 for label 1.
LOGITS = torch.tensor([0.0, math.log(3.0)])
LABEL_0, LABEL_1 = math.log(4.0), math.log(4.0 / 3.0)


def test_exit_loss_is_the_mean_over_the_batch_and_the_sum_over_exits():
    logits = torch.stack((LOGITS.expand(2, 2), LOGITS.flip(0).expand(2, 2), torch.zeros(2, 2)))
    labels = torch.tensor([0, 0])
    expected = LABEL_0 + LABEL_1 + math.log(2.0)
    assert exit_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    mixed = torch.tensor([0, 1])
    expected = (LABEL_0 + LABEL_1) / 2 * 2 + math.log(2.0)
    assert exit_loss(logits, mixed).item() == pytest.approx(expected, rel=1e-6)


def test_exit_loss_is_weighted_by_exit():
    logits = torch.stack((LOGITS[None], LOGITS[None].flip(1)))
    loss = exit_loss(logits, torch.tensor([0]), weights=(0.5, 3.0))
    assert loss.item() == pytest.approx(0.5 * LABEL_0 + 3.0 * LABEL_1, rel=1e-6)


def test_label_smoothing_distributes_its_share_over_all_classes():
    # Smoothing 0.2 over two classes: the target of label 0 is (0.9, 0.1).
    loss = exit_loss(LOGITS[None, None], torch.tensor([0]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.9 * LABEL_0 + 0.1 * LABEL_1, rel=1e-6)


def test_exit_loss_of_bfloat16_logits_is_float32():
    logits = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(8)
    loss = exit_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == exit_loss(logits.float(), labels).item()


def test_wrong_number_of_exit_weights_is_rejected():
    with pytest.raises(ValueError, match=r"loss.exit_weights .* 3 entries .* for 2 exits"):
        exit_loss(torch.zeros(2, 1, 10), torch.tensor([0]), weights=(1.0, 1.0, 1.0))


def test_curriculum_weights_are_linear_in_exit_and_progress():
    assert curriculum_weights((), 3, shift=1.0, progress=0.0) == (2.0, 1.0, 0.0)
    assert curriculum_weights((), 3, shift=1.0, progress=0.5) == (1.5, 1.0, 0.5)
    assert curriculum_weights((), 3, shift=-1.0, progress=0.0) == (0.0, 1.0, 2.0)
    assert curriculum_weights((1.0, 4.0), 2, shift=0.5, progress=0.0) == (1.5, 2.0)
    assert curriculum_weights((1.0, 4.0), 2, shift=0.5, progress=1.0) == (1.0, 4.0)
    assert curriculum_weights((1.0, 4.0), 2, shift=0.0, progress=0.3) == (1.0, 4.0)
    assert curriculum_weights((3.0,), 1, shift=1.0, progress=0.0) == (3.0,)
